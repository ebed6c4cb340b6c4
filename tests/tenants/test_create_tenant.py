"""`manage.py create_tenant`: what it prints is enough to sign in, to ask the API and to make an agent."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from tenants.models import User
from tenants.roles import ALL_SCOPES, Role
from tenants.selectors.memberships import membership_list
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.api_keys import api_key_authenticate
from tests.factories import Tenancy, unique

pytestmark = pytest.mark.django_db


def created(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    call_command("create_tenant", *arguments, "--json", stdout=out)
    printed: dict[str, Any] = json.loads(out.getvalue())
    return printed


def test_the_owner_can_sign_in_and_the_key_is_the_tenants() -> None:
    slug, email = unique("acme"), f"{unique('olga')}@example.com"
    made = created("--slug", slug, "--name", "Acme", "--email", email.upper())
    assert list(made) == ["console_url", "tenant", "email", "password", "api_key"]
    assert (made["tenant"], made["email"]) == (slug, email)
    assert Client().login(username=email, password=made["password"])
    principal = api_key_authenticate(key=made["api_key"])
    assert principal is not None
    assert (principal.tenant, principal.scopes) == (tenant_by_slug(slug=slug), ALL_SCOPES)
    (membership,) = membership_list(user_id=User.objects.get(email=email).id)
    assert (membership.tenant.slug, membership.role) == (slug, Role.OWNER)

    out = io.StringIO()
    arguments = ("--tenant", slug, "--name", "Desk", "--upstream", "ws://127.0.0.1:9/", "--json")
    call_command("create_agent", *arguments, "--llm-base-url", "http://llm", "--llm-model", "m", stdout=out)
    assert f"/stream/{slug}/" in json.loads(out.getvalue())["stream_url"]


def test_who_has_an_account_keeps_its_password(tenant: Tenancy) -> None:
    alice = tenant.users["alice"]
    before = User.objects.get(id=alice.id).password
    made = created("--slug", unique("second"), "--name", "Second", "--email", alice.email)
    assert made["password"] is None
    assert User.objects.get(id=alice.id).password == before
    assert {membership.tenant.slug for membership in membership_list(user_id=alice.id)} == {tenant.slug, made["tenant"]}


@pytest.mark.parametrize(
    ("flag", "value"), [("--slug", "No Spaces"), ("--email", "nobody"), ("--name", "")], ids=["slug", "email", "name"]
)
def test_bad_input_names_its_flag_and_leaves_nothing(flag: str, value: str) -> None:
    slug = unique("left")
    given = {"--slug": slug, "--name": "Left", "--email": "left@example.com", flag: value}
    with pytest.raises(CommandError, match=flag):
        created(*(word for pair in given.items() for word in pair))
    with pytest.raises(TenantNotFound):
        tenant_by_slug(slug=slug)
    assert not User.objects.filter(email="left@example.com").exists()


def test_a_taken_slug_is_one_line(tenant: Tenancy) -> None:
    with pytest.raises(CommandError, match=f"--slug: The slug '{tenant.slug}' is taken"):
        created("--slug", tenant.slug, "--name", "Again", "--email", "again@example.com")
