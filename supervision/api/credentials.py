"""`/credentials`: access to models that judge, voices, Plivo accounts and forges. Secrets go in and never come out."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery, unset
from supervision.models import ProviderCredential
from supervision.selectors.credentials import credential_get, credential_list
from supervision.services.credentials import credential_add, credential_change, credential_delete, secret_named
from tenants.api.auth import requires
from tenants.api.writes import Answer, writes
from tenants.roles import Scope

router = Router(tags=["credentials"])

Price = Annotated[
    Decimal | None,
    Field(ge=0, max_digits=12, decimal_places=6, description="US dollars per million tokens; for what usage cost."),
]
KindName = Literal["llm", "tts", "plivo", "forge"]
READ_ERRORS = problem_responses(401, 403, 404)


class CredentialIn(In):
    """Access to a server. Which fields belong to it depends on `kind`:

    - `llm`, `tts`: an OpenAI-compatible server, with `base_url` and `model`;
    - `plivo`: a Plivo account, with `account`, its Auth ID; `secret` is its Auth Token;
    - `forge`: GitHub or GitLab, with `provider`, and `base_url` for a server of your own; `secret` is an access token.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "llm",
                    "name": "Judge",
                    "base_url": "https://api.openai.com/v1",
                    "model": "gpt-4o-mini",
                    "secret": "sk-replace-me",
                },
                {
                    "kind": "plivo",
                    "name": "Main account",
                    "account": "MAXXXXXXXXXXXXXXXXXX",
                    "secret": "replace-with-the-auth-token",
                },
                {"kind": "forge", "name": "Fixes", "provider": "github", "secret": "github_pat_replace_me"},
            ]
        }
    )

    kind: KindName
    name: str = Field("", max_length=200, description="What to call it in lists. Only a Plivo account can do without.")
    secret: str = Field(max_length=4000, description="Stored sealed, never shown again.")
    base_url: str | None = Field(None, max_length=2000, description="Private addresses are refused.")
    model: str | None = Field(None, max_length=200)
    account: str | None = Field(None, max_length=40)
    provider: Literal["github", "gitlab"] | None = None
    prompt_price: Price = None
    completion_price: Price = None


class CredentialPatch(In):
    """What of a credential changes; the rest stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"secret": "sk-replace-me"}]})

    name: str = unset(max_length=200)
    secret: str = unset(max_length=4000, description="Has to be given when `base_url` names another server.")
    base_url: str = unset(max_length=2000)
    model: str = unset(max_length=200)
    prompt_price: Price = None
    completion_price: Price = None


class CredentialOut(Out):
    """A credential, without its secret. What does not belong to its kind is empty."""

    id: UUID
    kind: str
    name: str
    base_url: str
    model: str
    account: str
    provider: str
    prompt_price: float | None
    completion_price: float | None
    created_at: datetime
    updated_at: datetime
    """When it was changed last; for a Plivo account the newest one signs first."""


class CredentialsQuery(PageQuery):
    """Which credentials."""

    kind: KindName | None = None


@router.get(
    "/credentials",
    response={200: PageOut[CredentialOut], **problem_responses(401, 403, 422)},
    operation_id="credential_list",
    summary="List credentials",
)
@requires(Scope.POLICIES_READ)
def credentials(request: HttpRequest, query: Query[CredentialsQuery]) -> PageOut[CredentialOut]:
    """Credentials, newest first, without their secrets."""
    page = credential_list(kind=query.kind, cursor=query.cursor, limit=query.limit)
    return PageOut[CredentialOut](items=[CredentialOut.model_validate(row) for row in page.items], next=page.next)


@router.post(
    "/credentials",
    response={201: CredentialOut, **problem_responses(400, 401, 403, 409, 422)},
    operation_id="credential_create",
    summary="Store a credential",
)
@writes(Scope.ADMIN, status=201)
def credential_post(request: HttpRequest, body: CredentialIn) -> Answer:
    """From the first Plivo account on, answer URLs take only what Plivo signed for one of the stored accounts."""
    made = credential_add(
        kind=ProviderCredential.Kind(body.kind),
        name=body.name,
        secret=body.secret,
        base_url=body.base_url,
        model=body.model,
        account=body.account,
        provider=ProviderCredential.Provider(body.provider) if body.provider else None,
        prompt_price=body.prompt_price,
        completion_price=body.completion_price,
    )
    return Answer(CredentialOut.model_validate(made), headers={"Location": f"/api/v1/credentials/{made.id}"})


@router.get(
    "/credentials/{uuid:credential_id}",
    response={200: CredentialOut, **READ_ERRORS},
    operation_id="credential_get",
    summary="One credential",
)
@requires(Scope.POLICIES_READ)
def credential(request: HttpRequest, credential_id: UUID) -> CredentialOut:
    """One credential, without its secret."""
    return CredentialOut.model_validate(credential_get(credential_id=credential_id))


@router.patch(
    "/credentials/{uuid:credential_id}",
    response={200: CredentialOut, **problem_responses(400, 401, 403, 404, 409, 422)},
    operation_id="credential_update",
    summary="Change a credential",
)
@writes(Scope.ADMIN)
def credential_patch(request: HttpRequest, credential_id: UUID, body: CredentialPatch) -> CredentialOut:
    """New calls use it at once. A stored secret is never sent to another server than it was given for."""
    credential_get(credential_id=credential_id)
    given: Any = body.given()
    if "secret" in given:
        given["api_key"] = given.pop("secret")
    with secret_named():
        return CredentialOut.model_validate(credential_change(credential_id=credential_id, **given))


@router.delete(
    "/credentials/{uuid:credential_id}",
    response={204: None, **problem_responses(401, 403, 404, 409, 422)},
    operation_id="credential_delete",
    summary="Forget a credential",
)
@writes(Scope.ADMIN)
def credential_delete_(request: HttpRequest, credential_id: UUID) -> None:
    """With its secret. Refused (409) while a policy version that is not retired, or an agent, uses it. Without the last
    Plivo account, what comes to answer URLs is not checked any more."""
    credential_get(credential_id=credential_id)
    credential_delete(credential_id=credential_id)
