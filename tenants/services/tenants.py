"""Making tenants and people."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction

from mirror_saas.ids import uuid7
from tenants.context import tenant_context
from tenants.models import Tenant, User
from tenants.names import name_clean
from tenants.roles import ALL_SCOPES, Role
from tenants.selectors.tenants import TenantNotFound, TenantRef, tenant_by_slug
from tenants.services.api_keys import api_key_create
from tenants.services.audit import auditevent_record, changes, snapshot
from tenants.services.memberships import membership_create

PASSWORD_BYTES = 12


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant just made. `password` is None when the owner had an account before, which keeps its own."""

    tenant: TenantRef
    email: str
    password: str | None = field(repr=False)
    api_key: str = field(repr=False)


def tenant_with_owner_create(*, slug: str, name: str, email: str) -> NewTenant:
    """A new tenant, its owner and an API key with all scopes: everything that its first use needs, or nothing.

    Raises ValidationError (fields `slug`, `name`, `email`).
    """
    with transaction.atomic():
        tenant = tenant_create(slug=slug, name=name)
        user = User.objects.filter(email=email.strip().lower()).first()
        password = None
        if user is None:
            password = secrets.token_urlsafe(PASSWORD_BYTES)
            user = user_create(email=email, password=password)
        with tenant_context(tenant.id):
            membership_create(user=user, role=Role.OWNER)
            api_key = api_key_create(name="First key", scopes=ALL_SCOPES).key
    return NewTenant(tenant=tenant, email=user.email, password=password, api_key=api_key)


def tenant_create(*, slug: str, name: str, tenant_id: UUID | None = None) -> TenantRef:
    """A new tenant. Raises ValidationError (field `slug`) when the slug is malformed or taken."""
    tenant = Tenant(id=tenant_id or uuid7(), slug=slug, name=name)
    # Uniqueness is asked of the look-up: row-level security hides other tenants' slugs from a query.
    tenant.clean_fields()
    try:
        tenant_by_slug(slug=slug)
    except TenantNotFound:
        pass
    else:
        raise ValidationError({"slug": f"The slug {slug!r} is taken; choose another."})
    with tenant_context(tenant.id):
        tenant.save(force_insert=True)
        auditevent_record(action="tenant.create", row=tenant, after=snapshot(tenant))
    return TenantRef(id=tenant.id, slug=slug, name=name)


def tenant_update(*, name: str | None = None) -> Tenant:
    """Change the current tenant's settings; None leaves one as it is. Raises ValidationError (field `name`)."""
    with transaction.atomic():
        tenant = Tenant.objects.select_for_update(no_key=True).get()
        was = snapshot(tenant)
        if name is not None:
            tenant.name = name_clean(name)
        before, after = changes(was, snapshot(tenant))
        if after:
            tenant.save(update_fields=list(after))
            auditevent_record(action="tenant.update", row=tenant, before=before, after=after)
    return tenant


def user_create(*, email: str, password: str | None, name: str = "") -> User:
    """A new person who signs in with `email` and `password` (None: no sign-in by password).

    Raises ValidationError (field `email`) when the address is malformed or has an account already.
    """
    email = email.strip().lower()
    User(email=email, name=name).full_clean(exclude=["password"])
    return User.objects.create_user(email=email, password=password, name=name)
