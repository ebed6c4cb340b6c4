"""`/review`, `/tool-gate` and `POST /calls/{id}/turns`: judging for agents that do not speak on Mirror's sockets."""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from ninja import Router
from ninja.responses import Status
from pydantic import ConfigDict, Field, JsonValue

from mirror_saas.errors import Conflict, InvalidInput
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out
from supervision.api.calls import router as calls_router
from supervision.engine.context import HistoryEntry, ToolCallIntent, ToolVerdict, TurnPayload, Verdict
from supervision.selectors.calls import call_get
from supervision.services.judging import Judge, judge_of_agent, review_count, tool_review, turn_review
from supervision.stream import frames
from supervision.stream.mailbox import CallSilent, NobodyThere, call_post
from supervision.stream.owners import call_is_owned
from tenants.api.auth import principal_of, requires
from tenants.context import tenant_context
from tenants.roles import Scope

router = Router(tags=["judge"])

MAX_HISTORY = 60
MAX_WAIT_MS = 20_000
LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$"
JUDGE_ERRORS = problem_responses(400, 401, 403, 404, 409, 422)
TURN_ERRORS = problem_responses(400, 401, 403, 404, 409, 422, 503)


class ToolCallIn(In):
    """A tool that the agent wants to run. `args` that are no JSON object are refused by the gate, not by the API."""

    id: str = Field(min_length=1, max_length=frames.MAX_ID)
    name: str = Field(min_length=1, max_length=frames.MAX_ID)
    args: JsonValue = Field(default_factory=dict, description="A JSON object, or the text of one.")
    irreversible: bool = False


class HistoryIn(In):
    """One thing that was said or done earlier in the conversation."""

    role: Literal["customer", "agent", "tool", "mirror"]
    text: str = Field(max_length=frames.MAX_TEXT)


class TurnIn(In):
    """A whole agent turn, as in `mirror.turn`."""

    turn_id: str = Field(min_length=1, max_length=frames.MAX_ID)
    customer_text: str = Field("", max_length=frames.MAX_TEXT)
    text: str = Field("", max_length=frames.MAX_TEXT, description="What the agent is about to say.")
    tool_calls: list[ToolCallIn] = Field(default_factory=list, max_length=frames.MAX_TOOLS)
    language: str | None = Field(None, max_length=frames.MAX_ID, pattern=LANGUAGE, description="A BCP 47 tag.")
    seen: str | None = Field(None, max_length=frames.MAX_ID, description="The newest note in the agent's context.")


class ReviewIn(TurnIn):
    """A turn to judge on its own, in the policy of an agent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agent_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
                    "turn_id": "t7",
                    "customer_text": "Can I have my money back?",
                    "text": "I have refunded it.",
                    "tool_calls": [{"id": "c1", "name": "refund", "args": {"order_id": "4711"}, "irreversible": True}],
                    "language": "en",
                    "history": [
                        {"role": "customer", "text": "My pizza was cold."},
                        {"role": "agent", "text": "I am sorry to hear that."},
                    ],
                }
            ]
        }
    )

    agent_id: UUID
    history: list[HistoryIn] = Field(
        default_factory=list, max_length=MAX_HISTORY, description="What was said before it, oldest first."
    )


class ToolGateIn(ToolCallIn):
    """A pending tool call, as in `mirror.tool`, to judge in the policy of an agent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "agent_id": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
                    "id": "c1",
                    "name": "refund",
                    "args": {"order_id": "4711"},
                    "irreversible": True,
                    "customer_text": "Can I have my money back?",
                    "text": "One moment, please.",
                    "history": [
                        {"role": "customer", "text": "My pizza was cold."},
                        {"role": "agent", "text": "I am sorry to hear that."},
                    ],
                }
            ]
        }
    )

    agent_id: UUID
    turn_id: str | None = Field(None, max_length=frames.MAX_ID)
    customer_text: str = Field("", max_length=frames.MAX_TEXT)
    text: str = Field("", max_length=frames.MAX_TEXT, description="What the agent says in the same turn.")
    key: str | None = Field(None, max_length=frames.MAX_ID)
    timeout_ms: int | None = Field(None, ge=0, le=600_000)
    seen: str | None = Field(None, max_length=frames.MAX_ID)
    history: list[HistoryIn] = Field(default_factory=list, max_length=MAX_HISTORY)


class ReportedTurnIn(TurnIn):
    """A turn of a call that runs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "turn_id": "t7",
                    "customer_text": "Can I have my money back?",
                    "text": "I have refunded it.",
                    "wait_ms": 3000,
                }
            ]
        }
    )

    wait_ms: int = Field(
        0, ge=0, le=MAX_WAIT_MS, description="How long to wait for the verdict; without it the answer is 202 at once."
    )


class PolicyRef(Out):
    """The policy that judged, and its version."""

    id: UUID | None
    version: int | None


class ToolVerdictOut(Out):
    """As in `mirror.tool_verdict`. `code` is `ok`, `policy`, `duplicate`, `in_doubt`, `timeout`, `failed`, `cancelled`,
    `bad_args` or `denied`; `instruction` is what to say or ask instead of a refused call."""

    id: str
    allow: bool
    code: str
    reason: str
    instruction: str
    stored_result: Any = None
    valid_ms: int


class JudgedToolOut(ToolVerdictOut):
    """A tool verdict with how the judging ended: `judged`, `skipped`, `timed_out`, `failed` or `shed`."""

    state: str
    score: float | None
    latency_ms: int
    policy: PolicyRef
    mode: str

    @classmethod
    def of_verdict(cls, verdict: ToolVerdict, judge: Judge) -> "JudgedToolOut":
        return cls(
            **_tool_fields(verdict),
            state=verdict.state.value,
            score=verdict.score,
            latency_ms=verdict.latency_ms,
            policy=_policy(judge),
            mode=judge.mode,
        )


class VerdictAnswer(Out):
    """As in `mirror.verdict`. `state` is how it ended: `judged`, `skipped`, `timed_out`, `failed` or `shed`."""

    turn_id: str
    state: str
    score: float | None
    intervene: bool
    acted: bool
    withheld: str | None
    rule: str | None
    reason: str
    latency_ms: int


class ReviewOut(VerdictAnswer):
    """The verdict on the words, and one on each tool call. Nothing was done about either: `acted` is false."""

    threshold: float
    correction: str
    tools: list[ToolVerdictOut]
    policy: PolicyRef
    mode: str

    @classmethod
    def of(cls, verdict: Verdict, judge: Judge) -> "ReviewOut":
        return cls(
            turn_id=verdict.turn_id,
            state=verdict.state.value,
            score=verdict.score,
            intervene=verdict.should_intervene,
            acted=False,
            withheld=verdict.withheld,
            rule=verdict.rule,
            reason=verdict.reason or verdict.detail,
            latency_ms=verdict.latency_ms,
            threshold=verdict.threshold,
            correction=verdict.correction,
            tools=[ToolVerdictOut(**_tool_fields(tool)) for tool in verdict.tools],
            policy=_policy(judge),
            mode=judge.mode,
        )


class ReportedTurnOut(Out):
    """`verdict` is null and tools are missing in `tools` while they are being judged."""

    turn_id: str
    verdict: VerdictAnswer | None
    tools: list[ToolVerdictOut]


@router.post(
    "/review",
    response={200: ReviewOut, **JUDGE_ERRORS},
    operation_id="turn_review",
    summary="Judge a turn, without doing anything about it",
)
@requires(Scope.JUDGE, in_transaction=False)
def review(request: HttpRequest, body: ReviewIn) -> ReviewOut:
    """Judge what an agent is about to say and do, in its live policy. It belongs to no call and is not stored, apart
    from the figures of usage. A judge that is late or fails is a `state`, not an error."""
    tenant = principal_of(request).tenant
    with tenant_context(tenant.id):
        judge = judge_of_agent(tenant=tenant, agent_id=body.agent_id)
    turn = _turn(body)
    payload = TurnPayload(
        turn.customer_text,
        turn.text,
        turn.tool_calls,
        _history(body.history),
        turn.ref,
        turn.language or judge.binding.language or "en",
    )
    verdict = turn_review(judge, payload)
    with tenant_context(tenant.id):
        review_count(judge=judge, verdict=verdict, tools=verdict.tools, now=timezone.now())
    return ReviewOut.of(verdict, judge)


@router.post(
    "/tool-gate",
    response={200: JudgedToolOut, **JUDGE_ERRORS},
    operation_id="tool_review",
    summary="Judge a pending tool call",
)
@requires(Scope.JUDGE, in_transaction=False)
def tool_gate(request: HttpRequest, body: ToolGateIn) -> JudgedToolOut:
    """Whether a tool call may run, in the agent's live policy. It belongs to no call, so a repeat of the same order is
    not known as one: ask on the call's socket, or report the turn to the call, where that matters."""
    tenant = principal_of(request).tenant
    with tenant_context(tenant.id):
        judge = judge_of_agent(tenant=tenant, agent_id=body.agent_id)
    verdict = tool_review(
        judge,
        _intent(body),
        customer_text=body.customer_text,
        agent_text=body.text,
        turn_id=body.turn_id or "",
        history=_history(body.history),
        timeout_ms=body.timeout_ms,
    )
    with tenant_context(tenant.id):
        review_count(judge=judge, verdict=None, tools=[verdict], now=timezone.now())
    return JudgedToolOut.of_verdict(verdict, judge)


# Of one path, all methods belong to one router.
@calls_router.post(
    "/calls/{uuid:call_id}/turns",
    response={200: ReportedTurnOut, 202: ReportedTurnOut, **TURN_ERRORS},
    operation_id="call_turn_report",
    summary="Report a turn of a call that runs",
)
@requires(Scope.JUDGE, in_transaction=False)
def report_turn(request: HttpRequest, call_id: UUID, body: ReportedTurnIn) -> Status[ReportedTurnOut]:
    """For agents that cannot speak `mirror.*` on their socket: the live call judges the turn and acts on it, on
    whatever node it runs. 202 once the call has it, 200 with the verdict if that came within `wait_ms`. The same turn
    sent again is the same turn. A call that ended is 409; one whose node does not answer is 503."""
    tenant = principal_of(request).tenant
    turn = body.model_dump(exclude={"wait_ms"})
    _turn(body)
    try:
        answer = call_post(
            settings.REDIS_URL,
            tenant_id=tenant.id,
            call_id=call_id,
            message={"turn": turn, "wait_ms": body.wait_ms},
            wait_s=body.wait_ms / 1000,
        )
    except (NobodyThere, CallSilent):
        if call_is_owned(settings.REDIS_URL, tenant_id=tenant.id, call_id=call_id):
            # It may be too new for the record, or about to go on elsewhere.
            raise CallSilent from None
        with tenant_context(tenant.id):
            call = call_get(call_id=call_id)
        if call.state == call.State.ENDED:
            raise CallOver from None
        raise CallSilent from None
    if not answer["taken"]:
        raise _refusal(answer)
    done = answer["verdict"] is not None and len(answer["tools"]) == len(body.tool_calls)
    return Status(
        200 if done else 202,
        ReportedTurnOut(turn_id=body.turn_id, verdict=answer["verdict"], tools=answer["tools"]),
    )


class CallOver(Conflict):
    """The call has ended, so a turn of it is too late."""

    def __init__(self) -> None:
        super().__init__("This call has ended.")


def _refusal(answer: dict[str, Any]) -> Exception:
    if answer["code"] == "ended":
        return CallOver()
    if answer["code"] in ("not_recorded", "moved"):
        return CallSilent()
    field, _, message = str(answer["message"]).partition(": ")
    if answer["code"] == "duplicate_turn":
        return Conflict("Another turn of this call was reported under this turn_id; give each turn an id of its own.")
    return InvalidInput(field, message or field)


def _turn(body: TurnIn) -> frames.Turn:
    """The turn as the call's socket would read it. Raises InvalidInput."""
    try:
        parsed = frames.parse({**body.model_dump(include=set(TurnIn.model_fields)), "event": "mirror.turn"})
    except frames.FrameError as problem:
        field, _, message = problem.message.partition(": ")
        raise InvalidInput(field, message or problem.message) from problem
    assert isinstance(parsed, frames.Turn)
    return parsed


def _intent(body: ToolGateIn) -> ToolCallIntent:
    try:
        parsed = frames.parse({**body.model_dump(include=set(ToolCallIn.model_fields)), "event": "mirror.tool"})
    except frames.FrameError as problem:
        field, _, message = problem.message.partition(": ")
        raise InvalidInput(field, message or problem.message) from problem
    assert isinstance(parsed, frames.Tool)
    return parsed.intent


def _history(entries: Sequence[HistoryIn]) -> tuple[HistoryEntry, ...]:
    return tuple(HistoryEntry(entry.role, entry.text) for entry in entries)


def _policy(judge: Judge) -> PolicyRef:
    return PolicyRef(id=judge.binding.policy_id, version=judge.binding.policy_version)


def _tool_fields(verdict: ToolVerdict) -> dict[str, Any]:
    return {
        "id": verdict.id,
        "allow": verdict.allow,
        "code": verdict.code.value,
        "reason": verdict.reason,
        "instruction": verdict.instruction,
        "stored_result": verdict.stored_result,
        "valid_ms": verdict.valid_ms,
    }
