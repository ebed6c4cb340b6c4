"""Making tenants, people and memberships."""

from __future__ import annotations

from django.core.exceptions import ValidationError

from mirror_saas.ids import uuid7
from tenants.context import tenant_context
from tenants.models import Membership, Tenant, User
from tenants.roles import Role
from tenants.selectors.tenants import TenantNotFound, TenantRef, tenant_by_slug


def tenant_create(*, slug: str, name: str) -> TenantRef:
    """A new tenant. Raises ValidationError (field `slug`) when the slug is malformed or taken."""
    tenant = Tenant(id=uuid7(), slug=slug, name=name)
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
    return TenantRef(id=tenant.id, slug=slug, name=name)


def user_create(*, email: str, password: str | None, name: str = "") -> User:
    """A new person who signs in with `email` and `password` (None: no sign-in by password).

    Raises ValidationError (field `email`) when the address is malformed or has an account already.
    """
    email = email.strip().lower()
    User(email=email, name=name).full_clean(exclude=["password"])
    return User.objects.create_user(email=email, password=password, name=name)


def membership_create(*, user: User, role: Role) -> Membership:
    """Make `user` a member of the current tenant, or give an existing member `role`."""
    membership, _ = Membership.objects.update_or_create(user=user, defaults={"role": role.value})
    return membership
