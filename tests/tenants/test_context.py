"""The tenant context: both walls go up together, and come down together."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection, transaction

from supervision.models import Call
from tenants.context import TenantContextMissing, tenant_context, tenant_context_current
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


def setting() -> str | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nullif(current_setting('app.tenant_id', true), '')")
        value: str | None = cursor.fetchone()[0]
        return value


def test_outside_of_a_context_a_query_says_that_a_tenant_is_missing() -> None:
    with pytest.raises(TenantContextMissing, match="A query of Call needs a tenant"):
        Call.objects.count()


def test_outside_of_a_context_a_row_cannot_be_made() -> None:
    with pytest.raises(TenantContextMissing, match="A new row of a tenant"):
        Call()


def test_inside_both_the_variable_and_the_setting_name_the_tenant(tenant: Tenancy) -> None:
    with tenant.context() as context:
        assert context.tenant_id == tenant.id
        assert tenant_context_current() == context
        assert setting() == str(tenant.id)
    assert tenant_context_current() is None


def test_leaving_restores_what_was_set_before_although_the_outer_transaction_goes_on(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    assert setting() is None
    with tenant.context():
        with stranger.context():
            assert setting() == str(stranger.id)
        assert setting() == str(tenant.id)
        assert Call.objects.count() == 0
    assert setting() is None


def test_an_exception_restores_it_too(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        with pytest.raises(LookupError), stranger.context():
            raise LookupError
        assert setting() == str(tenant.id)
        assert tenant_context_current() is not None
        assert tenant_context_current().tenant_id == tenant.id  # type: ignore[union-attr]
    assert setting() is None


def test_a_database_error_inside_restores_it_too(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        with pytest.raises(DatabaseError), stranger.context(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
        assert setting() == str(tenant.id)
    assert setting() is None


def test_a_context_marked_for_rollback_leaves_nothing_set(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        with stranger.context():
            transaction.set_rollback(True)
        assert setting() == str(tenant.id)


def test_a_tenant_is_named_by_a_uuid_only(tenant: Tenancy) -> None:
    with pytest.raises(TypeError, match="must be a UUID, got str"), tenant_context(str(tenant.id)):  # type: ignore[arg-type]
        pass
