"""What a tenant used, day by day. Kept when the calls themselves are pruned or erased: it has figures only."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models

from supervision.models.fields import count_column, word_column
from tenants.managers import TenantModel


def _sum_column() -> models.BigIntegerField[int, int]:
    return models.BigIntegerField(default=0, db_default=0)


class UsageDay(TenantModel):
    """One UTC day of one judging model (empty where calls had none).

    `calls` counts the calls that started that day, the other figures are what those calls came to. Rows of the source
    `calls` are written once, when the day is over; `erased` is what was erased before that, and `api` what the judge
    endpoints were asked, as it happens.
    """

    day = models.DateField()
    source = models.CharField(max_length=8, default="calls", db_default="calls")
    model = word_column(200)
    calls = count_column()
    call_ms = _sum_column()
    turns = count_column()
    judged = count_column()
    skipped = count_column()
    timed_out = count_column()
    failed = count_column()
    shed = count_column()
    tool_decisions = count_column()
    tools_blocked = count_column()
    interventions = count_column()
    prompt_tokens = _sum_column()
    completion_tokens = _sum_column()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="usageday_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "day", "source", "model"], name="usageday_tenant_day"),
            models.CheckConstraint(condition=models.Q(source__in=["calls", "erased", "api"]), name="usageday_source"),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.model}"


class JudgeLatencyDay(TenantModel):
    """How long judges took to answer in the calls that started on one UTC day (supervision.selectors.latencies).

    Written once, when the day is over.
    """

    day = models.DateField()
    # {class of latencies: how many}.
    counts: models.JSONField[Any, Any] = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="judgelatencyday_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "day"], name="judgelatencyday_tenant_day"),
        ]

    def __str__(self) -> str:
        return str(self.day)


class ErasedCall(TenantModel):
    """A call whose rows were erased; its id is the call's. What journals still hold of it is dropped when it comes."""

    erased_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="erasedcall_tenant_id"),
        ]

    def __str__(self) -> str:
        return f"erased call {self.id}"
