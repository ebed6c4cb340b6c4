"""What happened in a call: one dataclass per kind of event, and the envelope that carries it.

    log = CallLog(record=recorder.record, tenant_id=tenant_id, call_id=call_id)
    log.add(TurnReported(turn_id=turn_id, ref="t1", index=1, customer_text="…", text="…", language="en", at_ms=5210))

Every kind names its fields, so an unknown key is a TypeError and a value of the wrong type an EventInvalid that names
kind and field: both are programming errors. What callers and agents control, texts and JSON values, never raises: it is
made storable (bounded, no NUL, no lone surrogates, no NaN, no endless nesting), and every cut is visible in the value.

Durations and positions are integers in milliseconds; `at_ms` counts from the start of the call on a monotonic clock.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from mirror_saas.ids import uuid7

MAX_TEXT_BYTES: Final = 64 * 1024
MAX_JSON_BYTES: Final = 64 * 1024
MAX_JSON_DEPTH: Final = 32
_MAX_JSON_INT_BITS: Final = 63

# Events of a call's first socket are numbered from 1; each further socket, by its epoch, has numbers of its own above.
EPOCH_BITS: Final = 32

JSON = Any


class EventInvalid(ValueError):
    """An event that its kind does not allow: names the kind and the field, never the value."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """The values a text field may take."""

    values: frozenset[str]

    def __init__(self, *values: str) -> None:
        object.__setattr__(self, "values", frozenset(values))


Json = Annotated[Any, "json"]

JudgingState = Annotated[str, OneOf("judged", "skipped", "timed_out", "failed", "shed")]
CallMode = Annotated[str, OneOf("live", "shadow")]
CallDelivery = Annotated[str, OneOf("stream_first", "hold_risky", "hold_all")]
CallOutcome = Annotated[str, OneOf("completed", "failed")]
EndedBy = Annotated[str, OneOf("caller", "agent", "mirror")]
CoverageState = Annotated[str, OneOf("full", "partial", "none")]
InterventionPlan = Annotated[str, OneOf("replace_held", "cut_when_reached", "cut_now", "retract", "note_only")]
InterventionOutcome = Annotated[
    str,
    OneOf(
        "completed",
        "interrupted",
        "caller_gone",
        "failed",
        "late",
        "unarmed",
        "caller_speaking",
        "shadow",
        "cooldown",
        "limit",
    ),
]
SilenceProof = Annotated[str, OneOf("cleared", "fence", "unproven", "not_needed")]
HeardBasis = Annotated[str, OneOf("marks", "pauses", "estimated")]
ViolationBasis = Annotated[str, OneOf("quote", "clause", "turn")]
HoldEndedBy = Annotated[str, OneOf("verdict", "budget", "discarded")]
CorrectionSource = Annotated[str, OneOf("llm", "template")]
ToolCode = Annotated[
    str,
    OneOf("ok", "policy", "duplicate", "in_doubt", "timeout", "failed", "cancelled", "bad_args", "denied"),
]
OnSilence = Annotated[str, OneOf("deny", "allow")]
ApprovalOutcome = Annotated[str, OneOf("approved", "denied", "expired", "cancelled", "void", "unasked")]
MediaDirection = Annotated[str, OneOf("inbound", "outbound")]


@dataclass(frozen=True, slots=True)
class RecordEvent:
    """One thing that happened in a call.

    `id` is a UUIDv7 and the key of idempotency: writing an event twice changes nothing. `seq` counts from 1 in each
    call, and from higher up after each reconnect (`first_seq`). `at` is the wall clock in UTC. `data` is JSON and
    belongs to the event: nobody changes it afterwards.
    """

    id: UUID
    tenant_id: UUID
    call_id: UUID
    seq: int
    at: datetime
    kind: str
    data: dict[str, JSON]

    @property
    def epoch(self) -> int:
        """Which of the call's sockets this is of, from 1."""
        return epoch_of(self.seq)


def epoch_of(seq: int) -> int:
    """The epoch of a call that an event with this number is of, from 1."""
    return ((seq - 1) >> EPOCH_BITS) + 1


def first_seq(epoch: int) -> int:
    """The number of the first event of an epoch: above those of all older ones, whatever their owners still record."""
    return ((epoch - 1) << EPOCH_BITS) + 1


class EventData:
    """Base of the kinds. A subclass is a frozen dataclass whose fields are the keys of `RecordEvent.data`."""

    __slots__ = ()
    KIND: ClassVar[str]
    # A full journal gives up events of detail kinds before those that the record of a call stands on.
    DETAIL: ClassVar[bool] = False
    # What was said in the call, by field, and what stands there when that is not to be stored.
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType({})

    def as_data(self) -> dict[str, JSON]:
        """The JSON of this event. Raises EventInvalid for a value that the kind does not allow."""
        kind = type(self)
        data: dict[str, JSON] = {}
        for name, convert in _converters_of(kind):
            try:
                data[name] = convert(getattr(self, name))
            except _NotAllowed as problem:
                raise EventInvalid(f"{kind.KIND}: field {name!r} {problem}") from None
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(EventData):
    KIND: ClassVar[str] = "call.started"
    plivo_call_id: str
    stream_id: str
    account_id: str
    agent_id: UUID
    policy_id: UUID | None
    policy_version_id: UUID | None
    policy_version: int | None
    mode: CallMode
    delivery: CallDelivery
    encoding: str
    sample_rate: int
    from_number: str = ""
    to_number: str = ""
    node: str = ""
    storage_limit: bool = False
    test: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMoved(EventData):
    """The last event of a call on a socket whose call goes on on another one."""

    KIND: ClassVar[str] = "call.moved"
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResumed(EventData):
    """The first event of a call on another socket, perhaps of another node, with all that its row needs: what the older
    one recorded may come later. `after_seq` is the number of the older socket's last event, None when it was silent."""

    KIND: ClassVar[str] = "call.resumed"
    epoch: int
    after_seq: int | None
    started_at: str
    plivo_call_id: str
    stream_id: str
    account_id: str
    agent_id: UUID
    policy_id: UUID | None
    policy_version_id: UUID | None
    policy_version: int | None
    mode: CallMode
    delivery: CallDelivery
    encoding: str
    sample_rate: int
    from_number: str = ""
    to_number: str = ""
    node: str = ""
    storage_limit: bool = False
    test: bool = False
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHello(EventData):
    KIND: ClassVar[str] = "call.hello"
    sdk: str
    language: str
    wants: Json = field(default_factory=list)
    marks: bool = False
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConnected(EventData):
    KIND: ClassVar[str] = "agent.connected"
    at_ms: int
    dial_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFailed(EventData):
    KIND: ClassVar[str] = "agent.failed"
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptNoted(EventData):
    KIND: ClassVar[str] = "transcript.noted"
    DETAIL: ClassVar[bool] = True
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType({"text": ""})
    at_ms: int
    role: str
    text: str
    final: bool
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReported(EventData):
    KIND: ClassVar[str] = "turn.reported"
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType({"customer_text": "", "text": "", "tool_calls": ()})
    turn_id: UUID
    ref: str
    index: int
    customer_text: str
    text: str
    tool_calls: Json = field(default_factory=list)
    language: str = ""
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCompleted(EventData):
    """All words of a turn whose text came in pieces; `turn.reported` has the first piece."""

    KIND: ClassVar[str] = "turn.completed"
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType({"text": ""})
    turn_id: UUID
    text: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHeld(EventData):
    """How long the beginning of a turn was kept from the caller until it was judged, and what ended that."""

    KIND: ClassVar[str] = "turn.held"
    DETAIL: ClassVar[bool] = True
    turn_id: UUID
    held_ms: int
    ended_by: HoldEndedBy
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnJudged(EventData):
    KIND: ClassVar[str] = "turn.judged"
    turn_id: UUID
    verdict_id: UUID
    state: JudgingState
    score: float | None
    threshold: float
    rule: str | None
    reason: str
    correction: str
    intervene: bool
    acted: bool
    withheld: str | None
    latency_ms: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    fallback: bool = False
    late: bool = False
    detail: str = ""
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHeard(EventData):
    KIND: ClassVar[str] = "turn.heard"
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType(
        {"heard_text": "", "uncertain_text": "", "unheard_text": ""}
    )
    turn_id: UUID
    audio_ms: int
    heard_ms: int
    heard_text: str
    uncertain_text: str
    unheard_text: str
    basis: HeardBasis
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDecided(EventData):
    KIND: ClassVar[str] = "tool.decided"
    decision_id: UUID
    turn_id: UUID | None
    ref: str
    name: str
    args: Json
    irreversible: bool
    allow: bool
    code: ToolCode
    state: JudgingState
    score: float | None
    reason: str
    instruction: str
    latency_ms: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    fallback: bool = False
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDone(EventData):
    KIND: ClassVar[str] = "tool.done"
    decision_id: UUID
    ref: str
    ok: bool
    result: Json
    cancelled: bool
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested(EventData):
    KIND: ClassVar[str] = "approval.requested"
    decision_id: UUID
    turn_id: UUID | None
    ref: str
    name: str
    args: Json
    irreversible: bool
    on_silence: OnSilence
    within_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDecided(EventData):
    """`by` and `note` are empty when no person decided."""

    KIND: ClassVar[str] = "approval.decided"
    decision_id: UUID
    outcome: ApprovalOutcome
    by: str = ""
    note: str = ""
    waited_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionStarted(EventData):
    KIND: ClassVar[str] = "intervention.started"
    intervention_id: UUID
    turn_id: UUID
    verdict_id: UUID | None
    rule: str | None
    plan: InterventionPlan
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionStep(EventData):
    KIND: ClassVar[str] = "intervention.step"
    intervention_id: UUID
    step: str
    at_ms: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionEnded(EventData):
    KIND: ClassVar[str] = "intervention.ended"
    intervention_id: UUID
    outcome: InterventionOutcome
    buffer_text: str = ""
    correction_text: str = ""
    correction_source: CorrectionSource | None = None
    heard_ms: int | None = None
    violation_heard_ms: int | None = None
    violation_basis: ViolationBasis | None = None
    silence_proof: SilenceProof | None = None
    gap_ms_cut_to_buffer: int | None = None
    gap_ms_buffer_to_correction: int | None = None
    at_ms: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSent(EventData):
    KIND: ClassVar[str] = "note.sent"
    SAID: ClassVar[Mapping[str, JSON]] = types.MappingProxyType({"text": "", "said": "", "heard_text": ""})
    note_id: UUID
    rev: int
    intervention_id: UUID | None
    turn_id: UUID | None
    text: str
    said: str
    heard_text: str
    heard_ms: int | None
    dropped: Json = field(default_factory=list)
    expires_turns: int = 1
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRejected(EventData):
    KIND: ClassVar[str] = "frame.rejected"
    DETAIL: ClassVar[bool] = True
    code: str
    message: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaDropped(EventData):
    KIND: ClassVar[str] = "media.dropped"
    DETAIL: ClassVar[bool] = True
    direction: MediaDirection
    ms: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(EventData):
    """The last event of a call. Counts that are None are taken from its rows: a process that died cannot count.

    `detail_dropped` is how many events of detail kinds were left out of the call's record because the journal was
    nearly full; the journal's writer knows it (writer.py).
    """

    KIND: ClassVar[str] = "call.ended"
    outcome: CallOutcome
    ended_by: EndedBy
    close_code: int | None
    reason: str
    coverage_state: CoverageState | None
    coverage_reason: str
    coverage: float | None
    turns: int | None
    judged: int | None
    skipped: int | None
    timed_out: int | None
    failed: int | None
    shed: int | None
    interventions: int | None
    tools_blocked: int | None
    duration_ms: int | None
    dropped_media_ms: int | None
    detail_dropped: int | None = 0

    def without_counts(self) -> CallEnded:
        """The same for a call whose counts nobody has; they are taken from its rows."""
        counted = ("turns", "judged", "skipped", "timed_out", "failed", "shed", "interventions", "tools_blocked")
        unknown: dict[str, Any] = dict.fromkeys(("coverage_state", "coverage", "dropped_media_ms", *counted))
        return replace(self, coverage_reason="", **unknown)


_ALL: Final[tuple[type[EventData], ...]] = (
    CallStarted,
    CallMoved,
    CallResumed,
    CallHello,
    AgentConnected,
    AgentFailed,
    TranscriptNoted,
    TurnReported,
    TurnCompleted,
    TurnHeld,
    TurnJudged,
    TurnHeard,
    ToolDecided,
    ToolDone,
    ApprovalRequested,
    ApprovalDecided,
    InterventionStarted,
    InterventionStep,
    InterventionEnded,
    NoteSent,
    FrameRejected,
    MediaDropped,
    CallEnded,
)
KINDS: Final[Mapping[str, type[EventData]]] = {kind.KIND: kind for kind in _ALL}
DETAIL_KINDS: Final = frozenset(kind.KIND for kind in _ALL if kind.DETAIL)


def parse(kind: str, data: Mapping[str, JSON]) -> EventData:
    """The typed form of `data`; raises EventInvalid when kind, keys or types are not those of events.py."""
    try:
        dataclass_ = KINDS[kind]
    except KeyError:
        raise EventInvalid(f"unknown kind {kind!r}; known are {', '.join(sorted(KINDS))}") from None
    known = {f.name: f for f in fields(dataclass_)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(known)):
        raise EventInvalid(f"{kind}: unknown field {unknown[0]!r}; known are {', '.join(known)}")
    missing = [
        name for name, f in known.items() if name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise EventInvalid(f"{kind}: field {missing[0]!r} is missing")
    made = dataclass_(**data)
    made.as_data()
    return made


class CallLog:
    """Numbers and stamps the events of one call and hands them to `record` (a Recorder's, usually).

    `last_seq` is the number of the call's newest event, for a call that goes on after a reconnect. `without_said`
    leaves out what was said, of turns, transcripts and notes; verdicts, tool decisions and interventions stay whole.
    """

    __slots__ = ("_now", "_record", "_without_said", "call_id", "seq", "tenant_id")

    def __init__(
        self,
        *,
        record: Callable[[RecordEvent], None],
        tenant_id: UUID,
        call_id: UUID,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        last_seq: int = 0,
        without_said: bool = False,
    ) -> None:
        self._record = record
        self._now = now
        self._without_said = without_said
        self.tenant_id = tenant_id
        self.call_id = call_id
        self.seq = last_seq

    def add(self, event: EventData) -> RecordEvent:
        """Record `event` as the next of this call. Raises EventInvalid before anything is recorded."""
        if self._without_said and event.SAID:
            event = replace(event, **event.SAID)  # type: ignore[type-var]  # every kind is a dataclass
        made = make_event(event, tenant_id=self.tenant_id, call_id=self.call_id, seq=self.seq + 1, at=self._now())
        self.seq = made.seq
        self._record(made)
        return made


def make_event(event: EventData, *, tenant_id: UUID, call_id: UUID, seq: int, at: datetime) -> RecordEvent:
    """The envelope around `event`, with a new id of the time `at` (an aware datetime)."""
    if at.tzinfo is None:
        raise EventInvalid(f"{event.KIND}: `at` must be an aware datetime, for example datetime.now(UTC)")
    if seq < 1:
        raise EventInvalid(f"{event.KIND}: `seq` counts from 1, got {seq}")
    unix_ms = int(at.timestamp() * 1000)
    return RecordEvent(uuid7(unix_ms=unix_ms), tenant_id, call_id, seq, at.astimezone(UTC), event.KIND, event.as_data())


# Converters: from what a field may hold to its JSON.


class _NotAllowed(Exception):
    """Says what a value must be; `as_data` adds kind and field."""


def bounded_text(text: str, limit: int = MAX_TEXT_BYTES) -> str:
    """`text` as PostgreSQL can store it: no NUL, no lone surrogates, at most `limit` bytes of UTF-8; a cut says so."""
    if "\x00" in text:
        text = text.replace("\x00", "\N{SYMBOL FOR NULL}")
    if len(text) * 4 <= limit and text.isascii():
        return str(text)
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > limit:
        marker = f" … [cut: {limit} of {len(encoded)} bytes kept]"
        kept = encoded[: limit - len(marker.encode())]
        return kept.decode("utf-8", "ignore") + marker
    return encoded.decode("utf-8")


def bounded_json(value: object, limit: int = MAX_JSON_BYTES) -> JSON:
    """`value` as JSON that PostgreSQL can store, at most about `limit` bytes and 32 levels; every cut is visible.

    NaN and infinities become their names, integers beyond 64 bits text, unknown objects the name of their type.
    """
    return _Bounded(limit).convert(value, 0)


class _Bounded:
    """One pass over a JSON value with a budget of bytes that all its parts share."""

    __slots__ = ("left",)

    def __init__(self, limit: int) -> None:
        self.left = limit

    def convert(self, value: object, depth: int) -> JSON:
        self.left -= 4
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            if value.bit_length() <= _MAX_JSON_INT_BITS:
                self.left -= 16
                return int(value)
            return self._text(str(value) if value.bit_length() <= 1024 else f"[integer of {value.bit_length()} bits]")
        if isinstance(value, float):
            self.left -= 16
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, UUID):
            return self._text(str(value))
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if depth >= MAX_JSON_DEPTH:
                return "[cut: nested too deeply]"
            return self._object(value, depth) if isinstance(value, Mapping) else self._array(value, depth)
        return f"[not JSON: {type(value).__name__}]"

    def _text(self, value: str) -> str:
        limit = max(self.left, 64)
        text = bounded_text(value, limit)
        self.left -= len(text.encode())
        return text

    def _object(self, value: Mapping[Any, Any], depth: int) -> dict[str, JSON]:
        made: dict[str, JSON] = {}
        for n, (key, item) in enumerate(value.items()):
            if self.left <= 0:
                made["[cut]"] = f"{n} of {len(value)} fields kept"
                break
            made[self._text(key if isinstance(key, str) else repr(key)[:64])] = self.convert(item, depth + 1)
        return made

    def _array(self, value: Any, depth: int) -> list[JSON]:
        made: list[JSON] = []
        for n, item in enumerate(value):
            if self.left <= 0:
                made.append(f"[cut: {n} of {len(value)} items kept]")
                break
            made.append(self.convert(item, depth + 1))
        return made


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _NotAllowed(f"must be text, got {type(value).__name__}")
    return bounded_text(value)


def _integer(value: object) -> int:
    if type(value) is int and value.bit_length() <= _MAX_JSON_INT_BITS:
        return value
    raise _NotAllowed(f"must be an integer, got {type(value).__name__}")


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _NotAllowed(f"must be a finite number, got {type(value).__name__}")


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _NotAllowed(f"must be true or false, got {type(value).__name__}")


def _uuid(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(UUID(value))
        except ValueError:
            pass
    raise _NotAllowed(f"must be a UUID, got {type(value).__name__}")


def _one_of(allowed: OneOf) -> Callable[[object], str]:
    names = ", ".join(sorted(allowed.values))

    def convert(value: object) -> str:
        if isinstance(value, str) and value in allowed.values:
            # A StrEnum member is stored as plain text.
            return str.__str__(value)
        raise _NotAllowed(f"must be one of {names}")

    return convert


_PLAIN: Final[dict[Any, Callable[[object], JSON]]] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _boolean,
    UUID: _uuid,
}


def _converter(annotation: Any) -> Callable[[object], JSON]:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, OneOf):
                return _one_of(extra)
        if base is Any:
            return bounded_json
        return _converter(base)
    if origin in (Union, types.UnionType):
        inner = _converter(next(arg for arg in get_args(annotation) if arg is not type(None)))
        return lambda value: None if value is None else inner(value)
    return _PLAIN[annotation]


_CONVERTERS: Final[dict[type[EventData], tuple[tuple[str, Callable[[object], JSON]], ...]]] = {}


def _converters_of(kind: type[EventData]) -> tuple[tuple[str, Callable[[object], JSON]], ...]:
    made = _CONVERTERS.get(kind)
    if made is None:
        hints = get_type_hints(kind, include_extras=True)
        made = tuple((f.name, _converter(hints[f.name])) for f in fields(kind))  # type: ignore[arg-type]
        _CONVERTERS[kind] = made
    return made
