"""`/policies`: named policies, their versions, what goes live, and which agents they judge."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from ninja import Header, Query, Router
from pydantic import ConfigDict, Field, WithJsonSchema

from mirror_saas.preconditions import IfMatch
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery, unset
from supervision.engine.config import MAX_RULE_CHARS, MAX_RULE_TOOLS, MAX_RULES, MAX_STATEMENT_CHARS, PolicyConfig
from supervision.models import Agent, Policy, PolicyVersion, Track
from supervision.selectors.agents import agent_get
from supervision.selectors.policies import (
    PolicyRow,
    policy_agents,
    policy_etag,
    policy_get,
    policy_list,
    policy_version_compiled,
    policy_version_diff,
    policy_version_etag,
    policy_version_get,
    policy_version_list,
)
from supervision.services.defaults import default_llm_credential_id
from supervision.services.derivation import MAX_PROMPT_CHARS, policy_derive
from supervision.services.policies import (
    MAX_NOTE_CHARS,
    OVERRIDABLE,
    agent_policy_remove,
    agent_policy_set,
    llm_credential_get,
    policy_archive,
    policy_create,
    policy_rollback,
    policy_update,
    policy_version_copy,
    policy_version_create,
    policy_version_publish,
    policy_version_shadow,
    policy_version_update,
)
from tenants.api.auth import requires
from tenants.api.writes import Answer, writes
from tenants.roles import Scope

router = Router(tags=["policies"])

StatusName = Literal["draft", "shadow", "live", "retired"]
Severity = Literal["low", "medium", "high"]
READ_ERRORS = problem_responses(401, 403, 404)
WRITE_ERRORS = problem_responses(400, 401, 403, 404, 409, 422)
CHANGE_ERRORS = problem_responses(400, 401, 403, 404, 409, 412, 422, 428)

IfMatchHeader = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=1000,
        description="The ETag that the object had when you read it. When somebody changed it since: 412. Required.",
    ),
]


def _settings_schema(names: frozenset[str]) -> dict[str, Any]:
    """What the engine says of these fields of its PolicyConfig."""
    fields = PolicyConfig.model_json_schema()["properties"]
    shown = {name: {**schema, "description": _one_line(name)} for name, schema in fields.items() if name in names}
    return {"type": "object", "properties": shown, "additionalProperties": False}


def _one_line(name: str) -> str:
    return " ".join((PolicyConfig.model_fields[name].description or "").split())


SettingsIn = Annotated[
    dict[str, Any], WithJsonSchema(_settings_schema(frozenset(PolicyConfig.model_fields) - {"policies"}))
]
OverridesIn = Annotated[dict[str, Any], WithJsonSchema(_settings_schema(OVERRIDABLE))]


class RuleIn(In):
    """One rule, in plain language."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Never confirm a refund.", "severity": "high"}]})

    text: str = Field(max_length=MAX_RULE_CHARS)
    severity: Severity = "medium"
    statement: str | None = Field(
        None,
        max_length=MAX_STATEMENT_CHARS,
        description="What is true of a turn that breaks the rule; `scoring: logprob` asks about it.",
    )
    tools: list[str] = Field(
        default_factory=list,
        max_length=MAX_RULE_TOOLS,
        description="The tools that the rule is about: the judge is told so, and their calls are judged also where "
        "`tool_gate_enabled` is false.",
    )
    enabled: bool = Field(True, description="False: the rule is kept in the version and nothing is judged by it.")


class PolicyIn(In):
    """A policy's name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Refunds"}]})

    name: str = Field(max_length=200)


class PolicyOut(Out):
    """A policy, and which of its versions new calls get."""

    id: UUID
    name: str
    etag: str
    live_number: int | None
    shadow_number: int | None
    draft_numbers: list[int]
    agent_count: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: PolicyRow) -> "PolicyOut":
        policy = row.policy
        return cls(
            id=policy.id,
            name=policy.name,
            etag=policy_etag(policy),
            live_number=row.live_number,
            shadow_number=row.shadow_number,
            draft_numbers=list(row.draft_numbers),
            agent_count=row.agent_count,
            created_at=policy.created_at,
            updated_at=policy.updated_at,
        )


class VersionIn(In):
    """A draft: new, or with what version `from_number` has except for the fields that are given."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rules": [{"text": "Never confirm a refund.", "severity": "high"}],
                    "config": {"intervention_threshold": 0.8},
                    "llm_credential_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
                },
                {"from_number": 3, "config": {"intervention_threshold": 0.75}},
            ]
        }
    )

    from_number: int | None = Field(None, ge=1, lt=2**31)
    rules: list[RuleIn] = unset(max_length=MAX_RULES)
    config: SettingsIn = unset(description="Settings that are other than the engine's defaults.")
    llm_credential_id: UUID | None = Field(
        None,
        description="The model that judges. Left out: that of `from_number`, or the tenant's default. Null: none, and "
        "no turn is judged.",
    )
    fallback_credential_id: UUID | None = Field(
        None, description="A second model, which is asked when the first does not answer."
    )
    note: str = unset(max_length=MAX_NOTE_CHARS, description="What changed and why.")


class VersionPatch(In):
    """What of a draft changes; the rest stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"config": {"intervention_threshold": 0.75}}]})

    rules: list[RuleIn] = unset(max_length=MAX_RULES, description="Replaces all rules.")
    config: SettingsIn = unset(description="Replaces all settings.")
    llm_credential_id: UUID | None = None
    fallback_credential_id: UUID | None = None
    note: str = unset(max_length=MAX_NOTE_CHARS)


class VersionOut(Out):
    """A version of a policy. Only a `draft` can change; `live`, `shadow` and `retired` ones stay as they are."""

    id: UUID
    policy_id: UUID
    number: int
    status: str
    etag: str
    """Changes with the version, and with whatever goes live in its policy."""
    rules: list[dict[str, Any]]
    config: dict[str, Any]
    llm_credential_id: UUID | None
    fallback_credential_id: UUID | None
    note: str
    warnings: list[str]
    """Why calls under this version would not be judged as one would expect."""
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None
    rolled_back_at: datetime | None

    @classmethod
    def of(cls, version: PolicyVersion) -> "VersionOut":
        warnings = []
        if version.llm_credential_id is None:
            warnings.append("It names no language model (llm_credential_id), so no turn would be judged.")
        derived: dict[str, Any] = {"etag": policy_version_etag(version), "warnings": warnings}
        return cls(**derived, **{name: getattr(version, name) for name in cls.model_fields if name not in derived})


class VersionsQuery(PageQuery):
    """Which versions."""

    status: StatusName | None = None


class RollbackIn(In):
    """Where to return to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"number": 2}]})

    number: int | None = Field(None, ge=1, lt=2**31, description="Left out: the version that was live before.")


class PromptOut(Out):
    """The system prompts that the judge gets. What is said in a call goes into the user message, never in here."""

    turn_prompt: str
    tools_prompt: str
    correction_prompt: str


class RuleChangeOut(Out):
    """A rule that differs; `before` or `after` is null where the version does not have it."""

    change: Literal["added", "removed", "changed"]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class SettingChangeOut(Out):
    """A setting that differs, the engine's defaults included."""

    name: str
    before: Any
    after: Any


class DiffOut(Out):
    """What version `after` changes in version `before`. Empty lists: nothing."""

    before: int
    after: int
    rules: list[RuleChangeOut]
    config: list[SettingChangeOut]
    llm_credential: SettingChangeOut | None
    fallback_credential: SettingChangeOut | None


class PolicyAgentIn(In):
    """How the policy judges an agent."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"policy_track": "live", "policy_overrides": {"intervention_threshold": 0.9}}]}
    )

    policy_track: Literal["live", "shadow"] = Field(
        "live", description="`shadow`: new calls get the policy's shadow version while there is one."
    )
    policy_overrides: OverridesIn = Field(
        default_factory=dict, description="Settings that are otherwise for this agent than in the policy."
    )


class PolicyAgentOut(Out):
    """An agent that the policy judges."""

    agent_id: UUID
    agent_name: str
    policy_track: str
    policy_overrides: dict[str, Any]

    @classmethod
    def of(cls, agent: Agent) -> "PolicyAgentOut":
        return cls(
            agent_id=agent.id,
            agent_name=agent.name,
            policy_track=agent.policy_track,
            policy_overrides=agent.policy_overrides,
        )


class PolicyAgentsOut(Out):
    """The agents whose new calls the policy judges, by name."""

    items: list[PolicyAgentOut]


class DeriveIn(In):
    """An agent's system prompt, and where the draft goes: `policy_id`, or `name` for a new policy."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agent_prompt": "You answer the phone for a pizzeria. Never promise a delivery time.",
                    "llm_credential_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
                    "name": "Pizzeria",
                }
            ]
        }
    )

    agent_prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    llm_credential_id: UUID | None = Field(
        None,
        description="The model that reads the prompt, and judges by the draft later. Left out: the tenant's default.",
    )
    policy_id: UUID | None = None
    name: str | None = Field(None, max_length=200)


class DerivedRuleOut(Out):
    """A rule, and the words that it rests on: `agent_prompt[start:end]`."""

    text: str
    severity: str
    citation: str
    start: int
    end: int
    lead_in: str


class DroppedRuleOut(Out):
    """A rule that the model proposed and that does not follow from the prompt, with the reason."""

    text: str
    citation: str
    why: str


class DerivedOut(Out):
    """The draft, where its rules come from, and what was not taken. Read it before it goes live."""

    version: VersionOut
    rules: list[DerivedRuleOut]
    dropped: list[DroppedRuleOut]
    prompt_tokens: int
    completion_tokens: int


@router.get(
    "/policies",
    response={200: PageOut[PolicyOut], **problem_responses(401, 403, 422)},
    operation_id="policy_list",
    summary="List policies",
)
@requires(Scope.POLICIES_READ)
def policies(request: HttpRequest, query: Query[PageQuery]) -> PageOut[PolicyOut]:
    """Policies, newest first. Those that were taken out of use are not shown."""
    page = policy_list(cursor=query.cursor, limit=query.limit)
    return PageOut[PolicyOut](items=[PolicyOut.of(row) for row in page.items], next=page.next)


@router.post(
    "/policies",
    response={201: PolicyOut, **problem_responses(400, 401, 403, 409, 422)},
    operation_id="policy_create",
    summary="Make a policy",
)
@writes(Scope.POLICIES_WRITE, status=201)
def policy_post(request: HttpRequest, body: PolicyIn) -> Answer:
    """A policy without a version. Next, make a draft with its rules."""
    return _policy_answer(policy_create(name=body.name), created=True)


@router.post(
    "/policies/derive",
    response={201: DerivedOut, **problem_responses(400, 401, 403, 404, 409, 422, 502)},
    operation_id="policy_derive",
    summary="A draft from an agent's system prompt",
)
@writes(Scope.POLICIES_WRITE, status=201)
def policy_derive_post(request: HttpRequest, body: DeriveIn) -> DerivedOut:
    """Asks the model for rules, and keeps those whose source stands in the prompt word for word. Takes up to 90
    seconds; 502 when the model gives no usable answer."""
    made = policy_derive(
        agent_prompt=body.agent_prompt,
        llm_credential_id=body.llm_credential_id,
        policy_id=body.policy_id,
        name=body.name,
    )
    return DerivedOut(
        version=VersionOut.of(made.version),
        rules=[DerivedRuleOut.model_validate(rule) for rule in made.derived.rules],
        dropped=[DroppedRuleOut.model_validate(rule) for rule in made.derived.dropped],
        prompt_tokens=made.derived.usage.prompt_tokens,
        completion_tokens=made.derived.usage.completion_tokens,
    )


@router.get(
    "/policies/{uuid:policy_id}",
    response={200: PolicyOut, **READ_ERRORS},
    operation_id="policy_get",
    summary="One policy",
)
@requires(Scope.POLICIES_READ)
def policy(request: HttpRequest, policy_id: UUID, response: HttpResponse) -> PolicyOut:
    """One policy, with its ETag. Another tenant's policy and one that never was are both 404."""
    row = policy_get(policy_id=policy_id)
    response["ETag"] = policy_etag(row.policy)
    return PolicyOut.of(row)


@router.patch(
    "/policies/{uuid:policy_id}",
    response={200: PolicyOut, **CHANGE_ERRORS},
    operation_id="policy_update",
    summary="Rename a policy",
)
@writes(Scope.POLICIES_WRITE)
def policy_patch(request: HttpRequest, policy_id: UUID, body: PolicyIn, if_match: IfMatchHeader = None) -> Answer:
    """Needs `If-Match` with the policy's ETag."""
    expected = IfMatch.required(if_match)
    return _policy_answer(policy_update(policy_id=policy_id, name=body.name, if_match=expected))


@router.delete(
    "/policies/{uuid:policy_id}",
    response={204: None, **CHANGE_ERRORS},
    operation_id="policy_delete",
    summary="Take a policy out of use",
)
@writes(Scope.POLICIES_WRITE)
def policy_delete(request: HttpRequest, policy_id: UUID, if_match: IfMatchHeader = None) -> None:
    """Refused (409) while agents use it. Its versions stay for the calls that were judged by them. Needs `If-Match`."""
    policy_archive(policy_id=policy_id, if_match=IfMatch.required(if_match))


@router.get(
    "/policies/{uuid:policy_id}/versions",
    response={200: PageOut[VersionOut], **problem_responses(401, 403, 404, 422)},
    operation_id="policy_version_list",
    summary="A policy's versions",
)
@requires(Scope.POLICIES_READ)
def versions(request: HttpRequest, policy_id: UUID, query: Query[VersionsQuery]) -> PageOut[VersionOut]:
    """Versions, newest first."""
    page = policy_version_list(policy_id=policy_id, status=query.status, cursor=query.cursor, limit=query.limit)
    return PageOut[VersionOut](items=[VersionOut.of(version) for version in page.items], next=page.next)


@router.post(
    "/policies/{uuid:policy_id}/versions",
    response={201: VersionOut, **WRITE_ERRORS},
    operation_id="policy_version_create",
    summary="Make a draft",
)
@writes(Scope.POLICIES_WRITE, status=201)
def version_post(request: HttpRequest, policy_id: UUID, body: VersionIn) -> Answer:
    """A draft with the next number. It judges nothing until it is published or made the shadow version."""
    given = _version_given(body)
    with _fields_of_a_version():
        if body.from_number is not None:
            made = policy_version_copy(policy_id=policy_id, number=body.from_number, **given)
        else:
            policy_get(policy_id=policy_id)
            made = policy_version_create(
                policy_id=policy_id,
                rules=given.get("rules", []),
                config=given.get("config"),
                llm_credential=llm_credential_get(
                    given["llm_credential_id"] if "llm_credential_id" in given else default_llm_credential_id()
                ),
                fallback_credential=llm_credential_get(
                    given.get("fallback_credential_id"), field="fallback_credential_id"
                ),
                note=given.get("note", ""),
            )
    return _version_answer(made, created=True)


@router.get(
    "/policies/{uuid:policy_id}/versions/{int:number}",
    response={200: VersionOut, **READ_ERRORS},
    operation_id="policy_version_get",
    summary="One version",
)
@requires(Scope.POLICIES_READ)
def version(request: HttpRequest, policy_id: UUID, number: int, response: HttpResponse) -> VersionOut:
    """One version, with its ETag."""
    found = policy_version_get(policy_id=policy_id, number=number)
    response["ETag"] = policy_version_etag(found)
    return VersionOut.of(found)


@router.patch(
    "/policies/{uuid:policy_id}/versions/{int:number}",
    response={200: VersionOut, **CHANGE_ERRORS},
    operation_id="policy_version_update",
    summary="Change a draft",
)
@writes(Scope.POLICIES_WRITE)
def version_patch(
    request: HttpRequest, policy_id: UUID, number: int, body: VersionPatch, if_match: IfMatchHeader = None
) -> Answer:
    """Only a draft can change (409). Needs `If-Match` with the version's ETag."""
    expected = IfMatch.required(if_match)
    with _fields_of_a_version():
        made = policy_version_update(policy_id=policy_id, number=number, if_match=expected, **_version_given(body))
    return _version_answer(made)


@router.post(
    "/policies/{uuid:policy_id}/versions/{int:number}/publish",
    response={200: VersionOut, **CHANGE_ERRORS},
    operation_id="policy_version_publish",
    summary="Put a version live",
)
@writes(Scope.POLICIES_WRITE)
def version_publish(request: HttpRequest, policy_id: UUID, number: int, if_match: IfMatchHeader = None) -> Answer:
    """New calls get it at once, on every node; calls that run keep the version that they began with. A draft or shadow
    version can be published; the one that was live retires. Needs `If-Match` with the version's ETag, which changes
    when anything else goes live, too."""
    expected = IfMatch.required(if_match)
    return _version_answer(policy_version_publish(policy_id=policy_id, number=number, if_match=expected))


@router.post(
    "/policies/{uuid:policy_id}/versions/{int:number}/shadow",
    response={200: VersionOut, **CHANGE_ERRORS},
    operation_id="policy_version_shadow",
    summary="Let a draft judge without acting",
)
@writes(Scope.POLICIES_WRITE)
def version_shadow(request: HttpRequest, policy_id: UUID, number: int, if_match: IfMatchHeader = None) -> Answer:
    """New calls get it of agents whose `policy_track` is `shadow`; while no version is live, of all agents of the
    policy. It judges and records, and never acts. The shadow version before it retires. Needs `If-Match` with the
    version's ETag."""
    expected = IfMatch.required(if_match)
    return _version_answer(policy_version_shadow(policy_id=policy_id, number=number, if_match=expected))


@router.post(
    "/policies/{uuid:policy_id}/rollback",
    response={200: VersionOut, **CHANGE_ERRORS},
    operation_id="policy_rollback",
    summary="Take the live version back",
)
@writes(Scope.POLICIES_WRITE)
def rollback(
    request: HttpRequest, policy_id: UUID, body: RollbackIn | None = None, if_match: IfMatchHeader = None
) -> Answer:
    """The version that was live before is live again, or the one that `number` names. Versions that were taken back are
    not returned to by themselves. Needs `If-Match` with the policy's ETag."""
    expected = IfMatch.required(if_match)
    number = body.number if body else None
    return _version_answer(policy_rollback(policy_id=policy_id, number=number, if_match=expected))


@router.get(
    "/policies/{uuid:policy_id}/versions/{int:number}/prompt",
    response={200: PromptOut, **READ_ERRORS},
    operation_id="policy_version_prompt",
    summary="What the judge is asked",
)
@requires(Scope.POLICIES_READ)
def version_prompt(request: HttpRequest, policy_id: UUID, number: int) -> PromptOut:
    """The version's rules as the judge gets them, word for word: for turns, for tool calls, and for corrections."""
    return PromptOut.model_validate(policy_version_compiled(policy_version_get(policy_id=policy_id, number=number)))


@router.get(
    "/policies/{uuid:policy_id}/versions/{int:number}/diff/{int:other}",
    response={200: DiffOut, **READ_ERRORS},
    operation_id="policy_version_diff",
    summary="What differs between two versions",
)
@requires(Scope.POLICIES_READ)
def version_diff(request: HttpRequest, policy_id: UUID, number: int, other: int) -> DiffOut:
    """What version `other` changes in version `number`."""
    diff = policy_version_diff(policy_id=policy_id, number=number, other=other)
    return DiffOut(
        before=number,
        after=other,
        rules=[
            RuleChangeOut(
                change=rule.change,
                before=None if rule.before is None else dict(rule.before),
                after=None if rule.after is None else dict(rule.after),
            )
            for rule in diff.rules
        ],
        config=[SettingChangeOut(name=name, before=old, after=new) for name, (old, new) in sorted(diff.config.items())],
        llm_credential=_credential_change("llm_credential_id", diff.llm_credential),
        fallback_credential=_credential_change("fallback_credential_id", diff.fallback_credential),
    )


@router.get(
    "/policies/{uuid:policy_id}/agents",
    response={200: PolicyAgentsOut, **READ_ERRORS},
    operation_id="policy_agent_list",
    summary="Which agents a policy judges",
)
@requires(Scope.POLICIES_READ)
def agents(request: HttpRequest, policy_id: UUID) -> PolicyAgentsOut:
    """Each with what is otherwise for it than in the policy."""
    return PolicyAgentsOut(items=[PolicyAgentOut.of(agent) for agent in policy_agents(policy_id=policy_id)])


@router.put(
    "/policies/{uuid:policy_id}/agents/{uuid:agent_id}",
    response={200: PolicyAgentOut, **WRITE_ERRORS},
    operation_id="policy_agent_set",
    summary="Judge an agent by a policy",
)
@writes(Scope.POLICIES_WRITE)
def agent_put(request: HttpRequest, policy_id: UUID, agent_id: UUID, body: PolicyAgentIn) -> PolicyAgentOut:
    """The agent's new calls are judged by this policy, whatever judged them before."""
    policy_get(policy_id=policy_id)
    agent_get(agent_id=agent_id)
    return PolicyAgentOut.of(
        agent_policy_set(
            agent_id=agent_id,
            policy_id=policy_id,
            track=Track(body.policy_track),
            overrides=body.policy_overrides,
        )
    )


@router.delete(
    "/policies/{uuid:policy_id}/agents/{uuid:agent_id}",
    response={204: None, **problem_responses(401, 403, 404, 409, 422)},
    operation_id="policy_agent_remove",
    summary="Judge an agent by no policy",
)
@writes(Scope.POLICIES_WRITE)
def agent_delete(request: HttpRequest, policy_id: UUID, agent_id: UUID) -> None:
    """The agent's new calls are relayed and not judged."""
    policy_get(policy_id=policy_id)
    agent_policy_remove(agent_id=agent_id, policy_id=policy_id)


def _policy_answer(policy: Policy, *, created: bool = False) -> Answer:
    headers = {"ETag": policy_etag(policy)}
    if created:
        headers["Location"] = f"/api/v1/policies/{policy.id}"
    return Answer(PolicyOut.of(policy_get(policy_id=policy.id)), headers=headers)


def _version_answer(version: PolicyVersion, *, created: bool = False) -> Answer:
    headers = {"ETag": policy_version_etag(version)}
    if created:
        headers["Location"] = f"/api/v1/policies/{version.policy_id}/versions/{version.number}"
    return Answer(VersionOut.of(version), headers=headers)


def _version_given(body: VersionIn | VersionPatch) -> Any:
    given = body.given()
    given.pop("from_number", None)
    if "rules" in given:
        given["rules"] = [rule.model_dump(exclude_none=True) for rule in given["rules"]]
    return given


@contextmanager
def _fields_of_a_version() -> Iterator[None]:
    """Services name the engine's fields; in a body those stand in `config`."""
    try:
        yield
    except ValidationError as error:
        raise ValidationError(
            {
                name if name in VersionIn.model_fields else f"config.{name}": texts
                for name, texts in error.message_dict.items()
            }
        ) from error


def _credential_change(name: str, change: tuple[UUID | None, UUID | None] | None) -> SettingChangeOut | None:
    return change and SettingChangeOut(name=name, before=_text(change[0]), after=_text(change[1]))


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
