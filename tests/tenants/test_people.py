"""People, their memberships, and the tenant of their session."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from supervision.models import Policy
from tenants.context import tenant_context, tenant_context_current
from tenants.middleware import TenantMiddleware
from tenants.models import Membership, User
from tenants.roles import ALL_SCOPES, ROLE_SCOPES, Role
from tenants.selectors.memberships import membership_get, membership_list
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug, tenant_ids_list
from tenants.services.tenants import membership_create, tenant_create, user_create
from tests.factories import PASSWORD, Tenancy, unique

pytestmark = pytest.mark.django_db


def test_people_sign_in_with_their_address_in_any_case(tenant: Tenancy) -> None:
    email = tenant.users["alice"].email
    assert Client().login(username=email.upper(), password=PASSWORD)
    assert not Client().login(username=email, password="wrong")


def test_an_address_has_one_account_in_any_case(tenant: Tenancy) -> None:
    email = tenant.users["alice"].email
    with pytest.raises(ValidationError) as error:
        user_create(email=f" {email.upper()} ", password=None)
    assert "email" in error.value.message_dict
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.filter(email=email).update(email=email.upper())


def test_a_person_may_belong_to_two_tenants(tenant: Tenancy, stranger: Tenancy) -> None:
    alice = tenant.users["alice"]
    with stranger.context():
        membership_create(user=alice, role=Role.REVIEWER)
    assert [(m.tenant, m.role) for m in membership_list(user_id=alice.id)] == [
        (tenant.tenant, "owner"),
        (stranger.tenant, "reviewer"),
    ]
    chosen = membership_get(user_id=alice.id, tenant_id=stranger.id)
    assert chosen is not None
    assert (chosen.tenant, chosen.scopes) == (stranger.tenant, ROLE_SCOPES["reviewer"])


def test_choosing_a_tenant_that_one_is_not_in_gives_ones_own(tenant: Tenancy, stranger: Tenancy) -> None:
    found = membership_get(user_id=tenant.users["bob"].id, tenant_id=stranger.id)
    assert found is not None
    assert found.tenant == tenant.tenant
    assert membership_get(user_id=user_create(email=f"{unique('nobody')}@x.example", password=None).id) is None


def test_a_second_membership_changes_the_role(tenant: Tenancy) -> None:
    bob = tenant.users["bob"]
    with tenant.context():
        membership_create(user=bob, role=Role.EDITOR)
        assert Membership.objects.get(user=bob).role == "editor"


def test_only_owners_and_admins_have_every_scope() -> None:
    assert {role for role, scopes in ROLE_SCOPES.items() if scopes == ALL_SCOPES} == {"owner", "admin"}
    assert set(ROLE_SCOPES) == set(Role.values)


def test_slugs_are_unique_across_tenants_that_cannot_see_each_other(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        tenant_create(slug=stranger.slug, name="x")
    assert "taken" in error.value.message_dict["slug"][0]


@pytest.mark.parametrize("slug", ["", "Upper", "-a", "a-", "a/b", "a" * 64, "ä", "a\n"])
def test_slugs_that_do_not_fit_a_url_are_refused(slug: str) -> None:
    with pytest.raises(ValidationError) as error:
        tenant_create(slug=slug, name="x")
    assert list(error.value.message_dict) == ["slug"]


def test_tenants_are_found_by_slug_and_listed_for_schedules(tenant: Tenancy, stranger: Tenancy) -> None:
    assert tenant_by_slug(slug=tenant.slug) == tenant.tenant
    assert {tenant.id, stranger.id} <= set(tenant_ids_list())
    with pytest.raises(TenantNotFound, match="no tenant 'nobody'"):
        tenant_by_slug(slug="nobody")


# -- the middleware -----------------------------------------------------------------------------------------------


def request_of(user: Any, session: dict[str, str] | None = None) -> HttpRequest:
    request = RequestFactory().get("/")
    request.user = user
    request.session = session or {}  # type: ignore[assignment]
    return request


def test_a_view_runs_in_the_tenant_of_the_session(tenant: Tenancy, stranger: Tenancy) -> None:
    seen: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append((request.tenant, request.membership.role, Policy.objects.get().name))  # type: ignore[attr-defined]
        return HttpResponse()

    alice = tenant.users["alice"]
    with stranger.context():
        membership_create(user=alice, role=Role.VIEWER)
    TenantMiddleware(view)(request_of(alice))
    TenantMiddleware(view)(request_of(alice, {"tenant_id": str(stranger.id)}))
    assert seen == [
        (tenant.tenant, "owner", "alice's policy"),
        (stranger.tenant, "viewer", "charlie's policy"),
    ]
    assert tenant_context_current() is None


def test_a_person_without_a_tenant_has_none() -> None:
    user = user_create(email=f"{unique('new')}@x.example", password=None)
    request = request_of(user)
    TenantMiddleware(lambda request: HttpResponse())(request)
    assert (request.tenant, request.membership) == (None, None)  # type: ignore[attr-defined]


def test_what_a_view_wrote_before_it_failed_is_rolled_back(tenant: Tenancy) -> None:
    def failing(request: HttpRequest) -> HttpResponse:
        Policy.objects.create(name="half done")
        # Django's handler calls process_exception and turns the exception into a response, in this order.
        middleware.process_exception(request, RuntimeError())
        return HttpResponse(status=500)

    middleware = TenantMiddleware(failing)
    middleware(request_of(tenant.users["alice"]))
    with tenant_context(tenant.id):
        assert not Policy.objects.filter(name="half done").exists()
