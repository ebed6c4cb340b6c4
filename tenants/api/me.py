"""`/me`: who am I, and what may I do."""

from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Router
from pydantic import BaseModel

from mirror_saas.problems import problem_responses
from tenants.api.auth import principal_of, requires

router = Router(tags=["me"])


class TenantOut(BaseModel):
    """The tenant that the key or the session speaks for."""

    id: UUID
    slug: str
    name: str


class ApiKeyOut(BaseModel):
    """The key that asks."""

    id: UUID
    name: str
    prefix: str
    expires_at: datetime | None


class UserOut(BaseModel):
    """The person who asks, and what they are in the tenant."""

    id: UUID
    email: str
    name: str
    role: str


class MeOut(BaseModel):
    """Who asks, and what they may do."""

    kind: str
    """`api_key` or `session`."""
    tenant: TenantOut
    scopes: list[str]
    api_key: ApiKeyOut | None
    user: UserOut | None


@router.get(
    "/me",
    response={200: MeOut, **problem_responses(401)},
    operation_id="me_get",
    summary="Who asks, and what they may do",
)
@requires(None)
def me_get(request: HttpRequest) -> MeOut:
    """The key or person that the request came from, their tenant and their scopes."""
    principal = principal_of(request)
    key = principal.api_key
    return MeOut(
        kind=principal.kind,
        tenant=TenantOut(id=principal.tenant.id, slug=principal.tenant.slug, name=principal.tenant.name),
        scopes=sorted(principal.scopes),
        api_key=ApiKeyOut(id=key.api_key_id, name=key.name, prefix=key.prefix, expires_at=key.expires_at)
        if key
        else None,
        user=UserOut(id=principal.user_id, email=principal.email, name=principal.name, role=principal.role)
        if principal.user_id
        else None,
    )
