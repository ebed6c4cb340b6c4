"""`/tenant`: the tenant that the key or session speaks for, and its settings."""

from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from django.http import HttpRequest
from ninja import Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, Text
from tenants.api.auth import requires
from tenants.api.writes import writes
from tenants.models import Tenant
from tenants.names import NAME_CHARS
from tenants.roles import Scope
from tenants.selectors.limits import tenant_limits_get, tenant_use_get
from tenants.selectors.tenants import tenant_get
from tenants.services.tenants import tenant_update

router = Router(tags=["tenant"])


class LimitsOut(Out):
    """What the tenant may use; the operator sets it. Null is no limit, 0 none allowed."""

    calls: int | None = Field(description="Calls at the same time.")
    judge_calls: int | None = Field(description="Questions to the judge at the same time, in each process.")
    requests_per_minute: int | None = Field(description="Requests to the API, of all keys and people together.")
    key_requests_per_minute: int | None = Field(description="Requests to the API, of each key and each person.")
    storage_mib: int | None = Field(description="MiB that the record of calls may take.")


class UseOut(Out):
    """What the tenant uses. Null is not known at the moment."""

    calls: int | None = Field(description="Calls that run now.")
    requests_per_minute: int | None = Field(description="Requests to the API in the last minute.")
    storage_bytes: int = Field(description="What the record of calls takes.")
    refused_today: dict[str, int] = Field(
        description="How often each limit (`calls`, `judge_calls`, `requests`, `storage`) refused something today, UTC."
    )
    refused_30_days: dict[str, int]


class TenantSettingsOut(Out):
    """The tenant. Its `slug`, which stands in stream URLs, does not change."""

    id: UUID
    slug: str
    name: str
    created_at: datetime
    limits: LimitsOut
    use: UseOut

    @classmethod
    def of(cls, tenant: Tenant) -> "TenantSettingsOut":
        use = tenant_use_get()
        return cls(
            id=tenant.id,
            slug=tenant.slug,
            name=tenant.name,
            created_at=tenant.created_at,
            limits=LimitsOut(**asdict(tenant_limits_get())),
            use=UseOut(**asdict(use)),
        )


class TenantPatchIn(In):
    """What changes; leave out what does not."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Pizzeria"}]})

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
@writes(Scope.ADMIN)
def tenant_patch(request: HttpRequest, settings: TenantPatchIn) -> TenantSettingsOut:
    """What is left out stays as it is."""
    return TenantSettingsOut.of(tenant_update(**settings.model_dump(exclude_unset=True)))
