"""`/agents`: voice agents, the keys that Plivo dials them with, and trying one out."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest
from ninja import Query, Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery, unset
from supervision.api.policies import OverridesIn
from supervision.models import Agent, Mode, OnFailure, Track
from supervision.selectors.agents import agent_get, agent_list, url_without_values
from supervision.selectors.stream_keys import StreamKeyRef, agent_stream_key_get, agent_stream_key_list
from supervision.services.agents import (
    AUDIO_FORMATS,
    MAX_REDIALS,
    MAX_ROTATION_OVERLAP,
    ROTATION_OVERLAP,
    SECRET_CHARS,
    agent_archive,
    agent_checked,
    agent_create,
    agent_signing_secret_rotate,
    agent_stream_key_revoke,
    agent_stream_key_rotate,
    agent_update,
    answer_url,
    overlap_of_ms,
    stream_url,
    stream_xml,
)
from supervision.services.defaults import default_tts_credential_id
from tenants.api.auth import principal_of, requires
from tenants.api.writes import Answer, writes
from tenants.roles import Scope

router = Router(tags=["agents"])

ModeName = Literal["live", "shadow"]
OnFailureName = Literal["close", "hangup", "transfer"]
READ_ERRORS = problem_responses(401, 403, 404)
LIST_ERRORS = problem_responses(401, 403, 422)
WRITE_ERRORS = problem_responses(400, 401, 403, 404, 409, 422)
DELETE_ERRORS = problem_responses(401, 403, 404, 409, 422)
# Of answers that show something this once.
ONCE = {"Cache-Control": "no-store"}

_DAY_MS = int(ROTATION_OVERLAP.total_seconds() * 1000)
_MAX_MS = int(MAX_ROTATION_OVERLAP.total_seconds() * 1000)


class AgentIn(In):
    """A voice agent: where it listens, how it is dialled, and what judges it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "Front desk",
                    "upstream_url": "wss://agents.example.com/front-desk",
                    "language": "en-GB",
                    "mode": "live",
                    "headers": {"Authorization": "Bearer agent-login"},
                    "policy_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
                }
            ]
        }
    )

    name: str = Field(max_length=200)
    upstream_url: str = Field(
        max_length=2000, description="The agent's WebSocket, ws:// or wss://. Private addresses are refused."
    )
    mode: ModeName = Field("live", description="`shadow` judges and never acts.")
    language: str = Field("en", max_length=35, description="BCP 47, such as `en` or `pt-BR`.")
    voice: str = Field(
        "", max_length=200, description="The voice that corrections are spoken with; empty: the default."
    )
    audio_format: str = Field(
        AUDIO_FORMATS[0], max_length=32, description=f"What Plivo streams: one of {', '.join(AUDIO_FORMATS)}."
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="Sent when the agent is dialled, such as a login. Stored sealed, never shown again.",
    )
    signing_secret: str | None = Field(
        None,
        max_length=SECRET_CHARS,
        description="What `X-Mirror-Signature` is made with; left out, one is made. Answered this once.",
    )
    policy_id: UUID | None = Field(None, description="What judges its turns; null: nothing does.")
    policy_track: ModeName = Field(
        "live", description="`shadow`: new calls get the policy's shadow version while there is one."
    )
    policy_overrides: OverridesIn = Field(
        default_factory=dict, description="Settings that are otherwise for this agent than in its policy."
    )
    tts_credential_id: UUID | None = Field(
        None, description="A credential of the kind `tts`. Left out: the tenant's default. Null: none."
    )
    redials: int = Field(
        2,
        ge=0,
        le=MAX_REDIALS,
        description="How often an agent that cannot be reached, or whose socket breaks, is dialled again.",
    )
    failure_message: str = Field(
        "", max_length=300, description="What the caller is told when the agent has failed for good; empty: nothing."
    )
    on_failure: OnFailureName = Field(
        "close",
        description="What becomes of the call then: `close` ends the stream (1011), so that the XML behind it runs;"
        " `hangup` and `transfer` ask Plivo, and need a stored Plivo account.",
    )
    failure_transfer_url: str = Field(
        "", max_length=2000, description="The XML that a transferred call goes on with. Plivo asks for it by POST."
    )
    bidirectional: bool = Field(
        True,
        description="False for a `<Stream>` of your own without a way back: Mirror then speaks by Plivo's Speak API.",
    )


class AgentPatch(In):
    """What of an agent changes; the rest stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"mode": "shadow"}]})

    name: str = unset(max_length=200)
    upstream_url: str = unset(max_length=2000)
    mode: ModeName = unset()
    language: str = unset(max_length=35)
    voice: str = unset(max_length=200)
    audio_format: str = unset(max_length=32)
    headers: dict[str, str] = unset(
        description="Replaces all headers. Has to be given when the agent with headers moves to another server."
    )
    policy_id: UUID | None = None
    policy_track: ModeName = unset()
    policy_overrides: OverridesIn = unset()
    tts_credential_id: UUID | None = None
    redials: int = unset(ge=0, le=MAX_REDIALS, description="How often an agent that fails is dialled again.")
    failure_message: str = unset(max_length=300, description="What the caller is told then; empty: nothing.")
    on_failure: OnFailureName = unset(description="What becomes of the call then.")
    failure_transfer_url: str = unset(max_length=2000, description="The XML that a transferred call goes on with.")
    bidirectional: bool = unset(description="Whether the `<Stream>` has a way back for audio.")


class AgentOut(Out):
    """A voice agent. Its headers and its signing secret are not shown."""

    id: UUID
    name: str
    upstream_url: str
    """Values in its query are `***` for who may not change agents."""
    mode: str
    language: str
    voice: str
    audio_format: str
    has_headers: bool
    policy_id: UUID | None
    policy_name: str | None
    policy_track: str
    policy_overrides: dict[str, Any]
    tts_credential_id: UUID | None
    redials: int
    """How often an agent that cannot be reached, or whose socket breaks, is dialled again."""
    failure_message: str
    """What the caller is told when it has failed for good; empty: nothing."""
    on_failure: str
    """What becomes of the call then: `close`, `hangup` or `transfer`."""
    failure_transfer_url: str
    """The XML that a transferred call goes on with. Values in its query are `***` likewise."""
    bidirectional: bool
    """Whether Plivo's stream has a way back for audio."""
    created_at: datetime
    updated_at: datetime

    @classmethod
    def values(cls, agent: Agent, *, whole: bool) -> dict[str, Any]:
        """The fields of `agent`; without `whole`, values in its URL's query are hidden."""
        derived = {
            "has_headers": agent.headers_sealed is not None,
            "policy_name": agent.policy.name if agent.policy else None,
            "upstream_url": agent.upstream_url if whole else url_without_values(agent.upstream_url),
            "failure_transfer_url": agent.failure_transfer_url
            if whole
            else url_without_values(agent.failure_transfer_url),
        }
        return derived | {name: getattr(agent, name) for name in AgentOut.model_fields if name not in derived}

    @classmethod
    def of(cls, request: HttpRequest, agent: Agent) -> "AgentOut":
        return AgentOut(**cls.values(agent, whole=Scope.ADMIN.value in principal_of(request).scopes))


class AgentCreatedOut(AgentOut):
    """A new agent, and its signing secret: shown this once."""

    signing_secret: str


class SigningSecretIn(In):
    """The secret to sign with from now on."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"signing_secret": "a-secret-that-the-agent-knows-already"}]}
    )

    signing_secret: str | None = Field(None, max_length=SECRET_CHARS, description="Left out, one is made.")


class SigningSecretOut(Out):
    """The secret that `X-Mirror-Signature` is made with from the next call on: shown this once."""

    signing_secret: str


class StreamKeyIn(In):
    """How the keys before the new one end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_ms": 3_600_000}]})

    overlap_ms: int = Field(
        _DAY_MS,
        ge=0,
        le=_MAX_MS,
        description="How long the keys before this one go on, so that calls do while the URLs are changed at Plivo.",
    )


class StreamKeyOut(Out):
    """A stream key, without the key. `state` is `active`, `expiring`, `expired` or `revoked`."""

    id: UUID
    state: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: StreamKeyRef) -> "StreamKeyOut":
        return cls(
            id=key.id,
            state=key.state,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )


class StreamKeysOut(Out):
    """An agent's stream keys, newest first."""

    items: list[StreamKeyOut]


class StreamKeyCreatedOut(Out):
    """A new stream key, in the URLs that it stands in: shown this once."""

    id: UUID
    stream_url: str
    """For a `<Stream>` of your own."""
    answer_url: str
    """The answer URL of a Plivo application: it returns the XML, with what the call needs."""
    xml: str
    """For an answer URL of your own: return this to Plivo."""


class HelloOut(Out):
    """What the agent said of itself in `mirror.hello`."""

    sdk: str
    wants: list[str]
    language: str | None
    voice: str | None
    marks: bool


class AgentCheckOut(Out):
    """What was found. Times are in ms, `hello_ms` and `audio_ms` from the stream's start."""

    reachable: bool
    handshake_status: int | None
    """101 for a WebSocket, another HTTP status for a refusal, null when it never came to an answer."""
    problem: str | None
    dial_ms: int | None
    hello: HelloOut | None
    """Null for an agent that knows nothing of Mirror: its calls are relayed, its turns cannot be judged."""
    hello_ms: int | None
    audio_ms: int | None
    """When the agent's first audio came."""
    close_code: int | None


class AgentsQuery(PageQuery):
    """Which agents."""

    policy_id: UUID | None = None


@router.get(
    "/agents", response={200: PageOut[AgentOut], **LIST_ERRORS}, operation_id="agent_list", summary="List agents"
)
@requires(Scope.POLICIES_READ)
def agents(request: HttpRequest, query: Query[AgentsQuery]) -> PageOut[AgentOut]:
    """Agents, newest first. Those that were taken out of use are not shown."""
    page = agent_list(policy_id=query.policy_id, cursor=query.cursor, limit=query.limit)
    return PageOut[AgentOut](items=[AgentOut.of(request, agent) for agent in page.items], next=page.next)


@router.post(
    "/agents",
    response={201: AgentCreatedOut, **problem_responses(400, 401, 403, 409, 422)},
    operation_id="agent_create",
    summary="Make an agent",
)
@writes(Scope.ADMIN, status=201)
def agent_post(request: HttpRequest, body: AgentIn) -> Answer:
    """A new agent. Next, make a stream key for it, and enter the answer URL at Plivo."""
    made = agent_create(
        name=body.name,
        upstream_url=body.upstream_url,
        mode=Mode(body.mode),
        language=body.language,
        voice=body.voice,
        signing_secret=body.signing_secret,
        audio_format=body.audio_format,
        headers=body.headers,
        policy_id=body.policy_id,
        policy_track=Track(body.policy_track),
        policy_overrides=body.policy_overrides,
        tts_credential_id=(
            body.tts_credential_id if "tts_credential_id" in body.model_fields_set else default_tts_credential_id()
        ),
        redials=body.redials,
        failure_message=body.failure_message,
        on_failure=OnFailure(body.on_failure),
        failure_transfer_url=body.failure_transfer_url,
        bidirectional=body.bidirectional,
    )
    shown = AgentCreatedOut(**AgentOut.values(made.agent, whole=True), signing_secret=made.signing_secret)
    return Answer(shown, headers={"Location": f"/api/v1/agents/{made.agent.id}", **ONCE})


@router.get(
    "/agents/{uuid:agent_id}", response={200: AgentOut, **READ_ERRORS}, operation_id="agent_get", summary="One agent"
)
@requires(Scope.POLICIES_READ)
def agent(request: HttpRequest, agent_id: UUID) -> AgentOut:
    """One agent. Another tenant's agent and one that never was are both 404."""
    return AgentOut.of(request, agent_get(agent_id=agent_id))


@router.patch(
    "/agents/{uuid:agent_id}",
    response={200: AgentOut, **WRITE_ERRORS},
    operation_id="agent_update",
    summary="Change an agent",
)
@writes(Scope.ADMIN)
def agent_patch(request: HttpRequest, agent_id: UUID, body: AgentPatch) -> AgentOut:
    """Fields that are left out stay as they are. It counts from the agent's next call on; calls that run go on."""
    given: Any = body.given()
    for name, words in (("mode", Mode), ("policy_track", Track), ("on_failure", OnFailure)):
        if name in given:
            given[name] = words(given[name])
    agent_get(agent_id=agent_id)
    return AgentOut.of(request, agent_update(agent_id=agent_id, **given))


@router.delete(
    "/agents/{uuid:agent_id}",
    response={204: None, **DELETE_ERRORS},
    operation_id="agent_delete",
    summary="Take an agent out of use",
)
@writes(Scope.ADMIN)
def agent_delete(request: HttpRequest, agent_id: UUID) -> None:
    """Its stream keys are revoked, so no call reaches it any more. Its past calls stay."""
    agent_get(agent_id=agent_id)
    agent_archive(agent_id=agent_id)


@router.post(
    "/agents/{uuid:agent_id}/signing-secret",
    response={200: SigningSecretOut, **WRITE_ERRORS},
    operation_id="agent_signing_secret_rotate",
    summary="Change the signing secret",
)
@writes(Scope.ADMIN)
def signing_secret_post(request: HttpRequest, agent_id: UUID, body: SigningSecretIn | None = None) -> Answer:
    """The next call is signed with it. To miss no call, let the agent accept a new secret first, and give it here."""
    agent_get(agent_id=agent_id)
    made = agent_signing_secret_rotate(agent_id=agent_id, signing_secret=body.signing_secret if body else None)
    return Answer(SigningSecretOut(signing_secret=made.signing_secret), headers=ONCE)


@router.post(
    "/agents/{uuid:agent_id}/stream-key",
    response={201: StreamKeyCreatedOut, **WRITE_ERRORS},
    operation_id="stream_key_rotate",
    summary="Make a new stream key",
)
@writes(Scope.ADMIN, status=201)
def stream_key_post(request: HttpRequest, agent_id: UUID, body: StreamKeyIn | None = None) -> Answer:
    """The agent's first stream key, or a new one: the keys before it go on for the overlap. The URLs are not kept."""
    agent_row = agent_get(agent_id=agent_id)
    overlap = ROTATION_OVERLAP if body is None else overlap_of_ms(body.overlap_ms)
    made = agent_stream_key_rotate(agent_id=agent_id, overlap=overlap)
    where = {
        "public_url": settings.MIRROR.public_url,
        "tenant_slug": principal_of(request).tenant.slug,
        "key": made.key,
    }
    urls = {"stream_url": stream_url(**where), "answer_url": answer_url(**where)}
    xml = stream_xml(**urls, audio_format=agent_row.audio_format)
    return Answer(StreamKeyCreatedOut(id=made.stream_key.id, **urls, xml=xml), headers=ONCE)


@router.get(
    "/agents/{uuid:agent_id}/stream-keys",
    response={200: StreamKeysOut, **READ_ERRORS},
    operation_id="stream_key_list",
    summary="An agent's stream keys",
)
@requires(Scope.ADMIN)
def stream_keys(request: HttpRequest, agent_id: UUID) -> StreamKeysOut:
    """Which keys open the agent's URLs, and until when. The keys themselves are not kept."""
    agent_get(agent_id=agent_id)
    return StreamKeysOut(items=[StreamKeyOut.of(key) for key in agent_stream_key_list(agent_id=agent_id)])


@router.delete(
    "/agents/{uuid:agent_id}/stream-keys/{uuid:stream_key_id}",
    response={204: None, **DELETE_ERRORS},
    operation_id="stream_key_revoke",
    summary="Revoke a stream key",
)
@writes(Scope.ADMIN)
def stream_key_delete(request: HttpRequest, agent_id: UUID, stream_key_id: UUID) -> None:
    """At once and for good: whoever has the key, an attacker too, gets no call through any more."""
    agent_get(agent_id=agent_id)
    agent_stream_key_revoke(stream_key_id=agent_stream_key_get(agent_id=agent_id, stream_key_id=stream_key_id).id)


@router.post(
    "/agents/{uuid:agent_id}/check",
    response={200: AgentCheckOut, **DELETE_ERRORS},
    operation_id="agent_check",
    summary="Try an agent out",
)
@writes(Scope.ADMIN)
def agent_check_post(request: HttpRequest, agent_id: UUID) -> AgentCheckOut:
    """Dials the agent as a call would, starts a stream with a moment of silence and listens for `mirror.hello`; answers
    within 8 seconds. The handshake carries `X-Mirror-Check: 1`. No call is recorded."""
    found = agent_checked(agent_id=agent_id)
    hello = found.hello
    return AgentCheckOut(
        reachable=found.reachable,
        handshake_status=found.handshake_status,
        problem=found.problem,
        dial_ms=found.dial_ms,
        hello=None
        if hello is None
        else HelloOut(
            sdk=hello.sdk,
            wants=sorted(hello.wants),
            language=hello.language,
            voice=hello.voice,
            marks=hello.marks,
        ),
        hello_ms=found.hello_ms,
        audio_ms=found.audio_ms,
        close_code=found.close_code,
    )
