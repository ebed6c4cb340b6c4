"""What happened in a call. The recorder writes these tables; nothing else does.

`CallEvent` is the truth, in order; the other tables are projections of it for lists, pages and figures.
`at_ms` is milliseconds since the call started, on the call's monotonic clock.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models

from supervision.models.fields import (
    count_column,
    flag_column,
    list_column,
    ms_column,
    tenant_key,
    text_column,
    word_column,
)
from tenants.managers import TenantModel


class Call(TenantModel):
    """One supervised call."""

    class State(models.TextChoices):
        LIVE = "live", "Live"
        ENDED = "ended", "Ended"

    agent = tenant_key("supervision.Agent", related_name="calls")
    policy = tenant_key("supervision.Policy", related_name="calls", null=True)
    # The version that was live when the call started; it judges the whole call. `policy_version` is its number.
    pinned_version = tenant_key(
        "supervision.PolicyVersion", related_name="calls", null=True, db_column="policy_version_id"
    )
    policy_version = models.IntegerField(null=True, blank=True)
    state = models.CharField(max_length=8, choices=State.choices, default=State.LIVE, db_default="live")
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    plivo_call_id = word_column(200)
    stream_id = word_column(200)
    account_id = word_column(200)
    from_number = word_column(64)
    to_number = word_column(64)
    mode = word_column(8)
    delivery = word_column(16)
    encoding = word_column(32)
    sample_rate = models.IntegerField(null=True, blank=True)
    node = word_column(200)

    # What the agent said of itself; `hello_at_ms` is NULL for an agent that never said mirror.hello.
    hello_at_ms = ms_column()
    sdk = word_column(200)
    language = word_column(35)
    wants = list_column()
    marks = flag_column()
    agent_connected_at_ms = ms_column()
    dial_ms = ms_column()
    agent_failed_at_ms = ms_column()
    agent_failure = text_column()

    outcome = word_column(16)
    ended_by = word_column(16)
    close_code = models.IntegerField(null=True, blank=True)
    reason = text_column()
    coverage_state = word_column(16)
    coverage_reason = text_column()
    # Share of turns that ended as judged or skipped, 0 to 1; NULL while no turn was reported.
    coverage = models.FloatField(null=True, blank=True)
    turn_count = count_column()
    judged_count = count_column()
    skipped_count = count_column()
    timed_out_count = count_column()
    failed_count = count_column()
    shed_count = count_column()
    intervention_count = count_column()
    tools_blocked_count = count_column()
    duration_ms = ms_column()
    dropped_media_ms = models.BigIntegerField(default=0, db_default=0)
    # The tenant's record took all that it may when the call began: what was said in it is not stored.
    storage_limit = flag_column()
    # Placed from the console by a member, without a telephone.
    test = flag_column()
    # How many sockets the call has had: what an older one's node records after `epoch_at`, or above the number
    # `epoch_after_seq` if that node told it, is refused.
    epoch = models.IntegerField(default=1, db_default=1)
    epoch_at = models.DateTimeField(null=True, blank=True)
    epoch_after_seq = models.BigIntegerField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="call_tenant_id"),
            models.CheckConstraint(condition=models.Q(state__in=["live", "ended"]), name="call_state"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "-started_at", "-id"], name="call_tenant_newest"),
            models.Index(fields=["tenant", "agent", "-started_at", "-id"], name="call_tenant_agent_newest"),
            models.Index(fields=["tenant", "state", "-started_at", "-id"], name="call_tenant_state_newest"),
            models.Index(fields=["tenant", "policy"], name="call_tenant_policy"),
            # A reconnect where neither process nor Valkey knows of the call.
            models.Index(fields=["tenant", "plivo_call_id"], name="call_tenant_plivo_call"),
            models.Index(
                fields=["tenant", "-started_at", "-id"],
                condition=models.Q(intervention_count__gt=0),
                name="call_tenant_intervened",
            ),
            # Few of many: a list of them need not go through all.
            models.Index(
                fields=["tenant", "-started_at", "-id"], condition=models.Q(test=True), name="call_tenant_test"
            ),
            models.Index(fields=["tenant", "pinned_version"], name="call_tenant_version"),
        ]

    def __str__(self) -> str:
        return f"call {self.id}"


class CallEvent(TenantModel):
    """One thing that happened, as the call's own process recorded it."""

    call = tenant_key("supervision.Call", related_name="events")
    seq = models.BigIntegerField()
    at = models.DateTimeField()
    kind = models.CharField(max_length=64)
    data: models.JSONField[Any, Any] = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="callevent_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "seq"], name="callevent_tenant_call_seq"),
        ]

    def __str__(self) -> str:
        return f"{self.seq} {self.kind}"


class Turn(TenantModel):
    """A whole turn of the agent, as it reported it, and what the caller heard of it."""

    call = tenant_key("supervision.Call", related_name="turns")
    ref = word_column(200)
    index = models.IntegerField()
    customer_text = text_column()
    text = text_column()
    tool_calls = list_column()
    language = word_column(35)
    at_ms = models.BigIntegerField()

    # What the caller heard: estimated unless `heard_basis` is `marks`; NULL and empty when playout was not followed.
    audio_ms = ms_column()
    heard_ms = ms_column()
    heard_text = text_column()
    uncertain_text = text_column()
    unheard_text = text_column()
    heard_basis = word_column(16)
    heard_at_ms = ms_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="turn_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "index"], name="turn_tenant_call_index"),
        ]

    def __str__(self) -> str:
        return f"turn {self.index}"


class Verdict(TenantModel):
    """What the judge said of a turn. A late answer is a verdict of its own, with `late`."""

    call = tenant_key("supervision.Call", related_name="verdicts")
    turn = tenant_key("supervision.Turn", related_name="verdicts")
    state = models.CharField(max_length=16)
    score = models.FloatField(null=True, blank=True)
    threshold = models.FloatField(null=True, blank=True)
    rule = models.TextField(null=True, blank=True)
    reason = text_column()
    correction = text_column()
    intervene = flag_column()
    acted = flag_column()
    withheld = word_column(16)
    latency_ms = ms_column()
    prompt_tokens = count_column()
    completion_tokens = count_column()
    # Which model judged, and whether it is the second provider's, because the first did not answer.
    model = word_column(200)
    fallback = flag_column()
    late = flag_column()
    detail = text_column()
    at_ms = models.BigIntegerField()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="verdict_tenant_id"),
            models.CheckConstraint(
                condition=models.Q(state__in=["judged", "skipped", "timed_out", "failed", "shed"]),
                name="verdict_state",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "at_ms"], name="verdict_tenant_call"),
            models.Index(fields=["tenant", "turn"], name="verdict_tenant_turn"),
            # Lists across calls are asked most for what is rare.
            models.Index(fields=["tenant", "-id"], condition=models.Q(intervene=True), name="verdict_tenant_intervene"),
            models.Index(
                fields=["tenant", "-id"],
                condition=models.Q(state__in=["timed_out", "failed", "shed"]),
                name="verdict_tenant_uncovered",
            ),
        ]

    def __str__(self) -> str:
        return f"verdict {self.state}"


class ToolDecision(TenantModel):
    """Whether a tool call of the agent may run, why, and what came of it."""

    call = tenant_key("supervision.Call", related_name="tool_decisions")
    turn = tenant_key("supervision.Turn", related_name="tool_decisions", null=True)
    # The agent's own id of the tool call.
    ref = word_column(200)
    name = models.TextField()
    # NULL when the agent's arguments were not a JSON object.
    args: models.JSONField[Any, Any] = models.JSONField(null=True, blank=True)
    irreversible = flag_column()
    allow = models.BooleanField()
    code = models.CharField(max_length=16)
    state = word_column(16)
    score = models.FloatField(null=True, blank=True)
    reason = text_column()
    instruction = text_column()
    latency_ms = ms_column()
    prompt_tokens = count_column()
    completion_tokens = count_column()
    model = word_column(200)
    fallback = flag_column()
    at_ms = models.BigIntegerField()

    # What the agent said came of it; `ok` is NULL while it has said nothing.
    ok = models.BooleanField(null=True, blank=True)
    result: models.JSONField[Any, Any] = models.JSONField(null=True, blank=True)
    cancelled = flag_column()
    done_at_ms = ms_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="tooldecision_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "at_ms"], name="tooldecision_tenant_call"),
            models.Index(fields=["tenant", "turn"], name="tooldecision_tenant_turn"),
            models.Index(fields=["tenant", "-id"], condition=models.Q(allow=False), name="tooldecision_tenant_blocked"),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.code}"


class Intervention(TenantModel):
    """Mirror stepping in: each step with its time, and how it ended."""

    call = tenant_key("supervision.Call", related_name="interventions")
    turn = tenant_key("supervision.Turn", related_name="interventions", null=True)
    verdict = tenant_key("supervision.Verdict", related_name="interventions", null=True)
    rule = models.TextField(null=True, blank=True)
    plan = word_column(32)
    at_ms = models.BigIntegerField()
    # A list of {"step": str, "at_ms": int, "detail": JSON}, in order.
    steps = list_column()

    # Empty while the intervention runs.
    outcome = word_column(32)
    ended_at_ms = ms_column()
    buffer_text = text_column()
    correction_text = text_column()
    correction_source = word_column(16)
    heard_ms = ms_column()
    violation_heard_ms = ms_column()
    violation_basis = word_column(16)
    silence_proof = word_column(16)
    gap_ms_cut_to_buffer = ms_column()
    gap_ms_buffer_to_correction = ms_column()
    detail = text_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="intervention_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "at_ms"], name="intervention_tenant_call"),
            models.Index(fields=["tenant", "turn"], name="intervention_tenant_turn"),
            models.Index(fields=["tenant", "verdict"], name="intervention_tenant_verdict"),
        ]

    def __str__(self) -> str:
        return f"intervention {self.outcome or 'running'}"


class AgentNote(TenantModel):
    """A note to the agent about what Mirror did; sent again with a higher `rev` when the outcome differs."""

    call = tenant_key("supervision.Call", related_name="notes")
    turn = tenant_key("supervision.Turn", related_name="notes", null=True)
    intervention = tenant_key("supervision.Intervention", related_name="notes", null=True)
    rev = models.IntegerField(default=1, db_default=1)
    text = text_column()
    said = text_column()
    heard_text = text_column()
    heard_ms = ms_column()
    # Agent turns that were dropped because they were generated before the note.
    dropped = list_column()
    expires_turns = models.IntegerField(null=True, blank=True)
    at_ms = models.BigIntegerField()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="agentnote_tenant_id"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call", "at_ms"], name="agentnote_tenant_call"),
            models.Index(fields=["tenant", "turn"], name="agentnote_tenant_turn"),
            models.Index(fields=["tenant", "intervention"], name="agentnote_tenant_intervention"),
        ]

    def __str__(self) -> str:
        return f"note rev {self.rev}"
