"""`/api-keys`: the tenant's keys for programs. A key is in the answer that makes it, and in no other."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Query, Router, Status
from pydantic import ConfigDict, Field

from mirror_saas.limits import MOST
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Moment, Out, PageOut, PageQuery, Text
from tenants.api.auth import principal_of, requires
from tenants.api.writes import writes
from tenants.authentication import RecentAuthenticationMissing, recently_authenticated
from tenants.models import ApiKey
from tenants.names import NAME_CHARS
from tenants.roles import ALL_SCOPES, Scope
from tenants.selectors.api_keys import ApiKeyFilters, ApiKeyState, api_key_get, api_key_list, api_key_state
from tenants.services.api_keys import api_key_create, api_key_revoke, api_key_update

router = Router(tags=["API keys"])


class CreatedByOut(Out):
    """Who made a key: as the audit log names them, also when they are gone."""

    kind: str
    """`user`, `api_key`, `system` (a command), or empty for a key of before this was kept."""
    id: UUID | None
    label: str


class ApiKeyInfoOut(Out):
    """A key without its secret, which nobody knows any more. `prefix` tells it from others: `mk_<prefix>_…`."""

    id: UUID
    name: str
    prefix: str
    scopes: list[str]
    state: ApiKeyState
    created_at: datetime
    created_by: CreatedByOut
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Noted at most once a minute."""
    last_used_ip: str
    """Where that use came from."""
    requests_per_minute: int | None
    """Null: as many as each of the tenant's keys."""

    @classmethod
    def of(cls, api_key: ApiKey) -> "ApiKeyInfoOut":
        return cls(**_fields(api_key))


class ApiKeyCreatedOut(ApiKeyInfoOut):
    """A new key. This is the only time that `key` is shown."""

    key: str


class ApiKeyIn(In):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "Reporting", "scopes": ["calls:read"], "expires_at": "2027-03-04T12:00:00Z"}]
        }
    )

    name: Text = Field(max_length=NAME_CHARS, description="What it is for.")
    scopes: list[Text] = Field(
        min_length=1, max_length=len(ALL_SCOPES), description="What it may do; no more than you may."
    )
    expires_at: Moment | None = Field(None, description="When it ends, at most ten years ahead; null: never.")
    requests_per_minute: int | None = Field(
        None, ge=1, le=MOST, strict=True, description="Fewer than each of the tenant's keys may make; null: as many."
    )


class ApiKeyPatchIn(In):
    """What changes of a key; leave out what does not."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "Reporting (old)", "expires_at": "2026-12-31T00:00:00Z"}]}
    )

    # None stands for left out; null is refused.
    name: Text = Field(None, max_length=NAME_CHARS)  # type: ignore[assignment]
    expires_at: Moment = Field(None, description="An earlier end. A key that lives longer is a new one.")  # type: ignore[assignment]


class ApiKeysQuery(PageQuery):
    """Which keys."""

    state: Literal["active", "expired", "revoked"] | None = None
    created_by_id: UUID | None = Field(None, description="Made by this person or key.")


@router.get(
    "/api-keys",
    response={200: PageOut[ApiKeyInfoOut], **problem_responses(401, 403, 422)},
    operation_id="api_key_list",
    summary="List API keys",
)
@requires(Scope.ADMIN)
def api_keys(request: HttpRequest, query: Query[ApiKeysQuery]) -> PageOut[ApiKeyInfoOut]:
    """Keys, newest first, with those that expired or were revoked."""
    page = api_key_list(
        cursor=query.cursor,
        limit=query.limit,
        filters=ApiKeyFilters(state=query.state, created_by_id=query.created_by_id),
    )
    return PageOut[ApiKeyInfoOut](items=[ApiKeyInfoOut.of(api_key) for api_key in page.items], next=page.next)


@router.post(
    "/api-keys",
    response={201: ApiKeyCreatedOut, **problem_responses(400, 401, 403, 422)},
    operation_id="api_key_create",
    summary="Make an API key",
)
@writes(Scope.ADMIN, recent=True)
def api_key_post(request: HttpRequest, response: HttpResponse, key: ApiKeyIn) -> Status[ApiKeyCreatedOut]:
    """Keep `key` of the answer: it is not shown again. From the console's session this needs a recent sign-in."""
    made = api_key_create(
        name=key.name,
        scopes=key.scopes,
        expires_at=key.expires_at,
        requests_per_minute=key.requests_per_minute,
        held=principal_of(request).scopes,
    )
    response.headers["Cache-Control"] = "no-store"
    response.headers["Location"] = f"/api/v1/api-keys/{made.api_key.id}"
    return Status(201, ApiKeyCreatedOut(**_fields(made.api_key), key=made.key))


@router.get(
    "/api-keys/{uuid:api_key_id}",
    response={200: ApiKeyInfoOut, **problem_responses(401, 403, 404)},
    operation_id="api_key_get",
    summary="One API key",
)
@requires(Scope.ADMIN)
def api_key(request: HttpRequest, api_key_id: UUID) -> ApiKeyInfoOut:
    """One key. Another tenant's key and one that never was are both 404."""
    return ApiKeyInfoOut.of(api_key_get(api_key_id=api_key_id))


@router.patch(
    "/api-keys/{uuid:api_key_id}",
    response={200: ApiKeyInfoOut, **problem_responses(400, 401, 403, 404, 422)},
    operation_id="api_key_update",
    summary="Rename an API key, or let it end earlier",
)
@writes(Scope.ADMIN)
def api_key_patch(request: HttpRequest, api_key_id: UUID, key: ApiKeyPatchIn) -> ApiKeyInfoOut:
    """Scopes cannot change, and the end cannot move away: whoever holds an old key gains nothing.

    From the console's session another end needs a recent sign-in, as revoking does.
    """
    if key.expires_at is not None and principal_of(request).kind == "session" and not recently_authenticated(request):
        raise RecentAuthenticationMissing
    return ApiKeyInfoOut.of(api_key_update(api_key_id=api_key_id, **key.model_dump(exclude_unset=True)))


@router.delete(
    "/api-keys/{uuid:api_key_id}",
    response={204: None, **problem_responses(401, 403, 404)},
    operation_id="api_key_revoke",
    summary="Revoke an API key",
)
@writes(Scope.ADMIN, recent=True)
def api_key_delete(request: HttpRequest, api_key_id: UUID) -> Status[None]:
    """The next request with it is refused, on every node. It stays in the list. Again, this changes nothing."""
    api_key_revoke(api_key_id=api_key_id)
    return Status(204, None)


def _fields(api_key: ApiKey) -> dict[str, Any]:
    names = ("id", "name", "prefix", "scopes", "created_at", "expires_at", "revoked_at", "last_used_at", "last_used_ip")
    return {
        **{name: getattr(api_key, name) for name in (*names, "requests_per_minute")},
        "state": api_key_state(api_key, now=timezone.now()),
        "created_by": CreatedByOut(
            kind=api_key.created_by_kind, id=api_key.created_by_id, label=api_key.created_by_label
        ),
    }
