"""`/tenant`: the tenant that the key or session speaks for, and its settings."""

from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, Text
from tenants.api.auth import requires
from tenants.models import Tenant
from tenants.names import NAME_CHARS
from tenants.roles import Scope
from tenants.selectors.tenants import tenant_get
from tenants.services.tenants import tenant_update

router = Router(tags=["tenant"])


class TenantSettingsOut(Out):
    """The tenant. Its `slug`, which stands in stream URLs, does not change."""

    id: UUID
    slug: str
    name: str
    created_at: datetime

    @classmethod
    def of(cls, tenant: Tenant) -> "TenantSettingsOut":
        return cls.model_validate(tenant)


class TenantPatchIn(In):
    """What changes; leave out what does not."""

    # None stands for left out; null is refused.
    name: Text = Field(None, max_length=NAME_CHARS, description="How pages and mails call the tenant.")  # type: ignore[assignment]


@router.get(
    "/tenant",
    response={200: TenantSettingsOut, **problem_responses(401, 403)},
    operation_id="tenant_get",
    summary="The tenant and its settings",
)
@requires(Scope.ADMIN)
def tenant(request: HttpRequest) -> TenantSettingsOut:
    """The tenant that the key or session speaks for."""
    return TenantSettingsOut.of(tenant_get())


@router.patch(
    "/tenant",
    response={200: TenantSettingsOut, **problem_responses(400, 401, 403, 422)},
    operation_id="tenant_update",
    summary="Change the tenant's settings",
)
@requires(Scope.ADMIN)
def tenant_patch(request: HttpRequest, settings: TenantPatchIn) -> TenantSettingsOut:
    """What is left out stays as it is."""
    return TenantSettingsOut.of(tenant_update(**settings.model_dump(exclude_unset=True)))
