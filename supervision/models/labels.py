"""What reviewers said of turns, interventions and tool decisions."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import tenant_key, text_column
from tenants.managers import TenantModel

_SUBJECTS = ("turn", "intervention", "tool_decision")


def _only(subject: str) -> models.Q:
    return models.Q(**{f"{name}__isnull": name != subject for name in _SUBJECTS})


class Label(TenantModel):
    """What a reviewer said of a turn, an intervention or a tool decision; the newest word counts, the audit log has
    those before."""

    class Value(models.TextChoices):
        CONFIRMED = "confirmed", "Confirmed: Mirror was right"
        FALSE_ALARM = "false_alarm", "False alarm: nothing was wrong"
        MISSED = "missed", "Missed: something was wrong and Mirror let it pass"
        UNSURE = "unsure", "Unsure"

    call = tenant_key("supervision.Call", related_name="labels")
    # Exactly one of the three.
    turn = tenant_key("supervision.Turn", related_name="labels", null=True)
    intervention = tenant_key("supervision.Intervention", related_name="labels", null=True)
    tool_decision = tenant_key("supervision.ToolDecision", related_name="labels", null=True)
    value = models.CharField(max_length=16, choices=Value.choices)
    note = text_column()
    # Who said so last: a person or an API key, as the audit log names them.
    labelled_by = models.CharField(max_length=300)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="label_tenant_id"),
            models.UniqueConstraint(
                fields=["tenant", "turn"], condition=models.Q(turn__isnull=False), name="label_tenant_turn"
            ),
            models.UniqueConstraint(
                fields=["tenant", "intervention"],
                condition=models.Q(intervention__isnull=False),
                name="label_tenant_intervention",
            ),
            models.UniqueConstraint(
                fields=["tenant", "tool_decision"],
                condition=models.Q(tool_decision__isnull=False),
                name="label_tenant_tool_decision",
            ),
            models.CheckConstraint(
                condition=_only("turn") | _only("intervention") | _only("tool_decision"), name="label_of_one_thing"
            ),
            models.CheckConstraint(
                condition=models.Q(value__in=["confirmed", "false_alarm", "missed", "unsure"]), name="label_value"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "call"], name="label_tenant_call"),
            models.Index(fields=["tenant", "-updated_at"], name="label_tenant_newest"),
        ]

    def __str__(self) -> str:
        return f"label {self.value}"
