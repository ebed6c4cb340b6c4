"""Verdicts, tool decisions and interventions of the current tenant across its calls, newest first.

Ids are UUIDv7, so they order these rows by when they were made, and name the time of a row. Every function runs inside
`tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q, QuerySet

from mirror_saas.ids import uuid7_floor
from supervision.models import Intervention, Label, ToolDecision, Verdict
from supervision.selectors.pages import DEFAULT_LIMIT, BadCursor, Page, cursor_decode, cursor_encode, limit_check

Row = TypeVar("Row", Verdict, ToolDecision, Intervention)
BATCH = 1_000


@dataclass(frozen=True, slots=True)
class MadeFilters:
    """Filters of all three lists; None leaves one out. `made_from` is inclusive, `made_to` is not."""

    agent_id: UUID | None = None
    call_id: UUID | None = None
    turn_id: UUID | None = None
    made_from: datetime | None = None
    made_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class VerdictFilters(MadeFilters):
    """Which verdicts."""

    state: str | None = None
    rule: str | None = None
    intervene: bool | None = None
    acted: bool | None = None
    withheld: str | None = None
    late: bool | None = None
    min_score: float | None = None


@dataclass(frozen=True, slots=True)
class ToolDecisionFilters(MadeFilters):
    """Which tool decisions. `label` is a label's value, or `none` for those without one."""

    name: str | None = None
    allow: bool | None = None
    code: str | None = None
    state: str | None = None
    irreversible: bool | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class InterventionFilters(MadeFilters):
    """Which interventions. `label` is a label's value, or `none` for those without one."""

    outcome: str | None = None
    plan: str | None = None
    rule: str | None = None
    label: str | None = None


def verdict_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, filters: VerdictFilters | None = None
) -> Page[Verdict]:
    """Verdicts, each with `agent_id`. Raises InvalidInput (limit) and BadCursor."""
    return _page(verdicts_found(filters or VerdictFilters()), cursor, limit)


def tool_decision_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, filters: ToolDecisionFilters | None = None
) -> Page[ToolDecision]:
    """Tool decisions, each with `agent_id`. Raises InvalidInput (limit) and BadCursor."""
    return _page(tool_decisions_found(filters or ToolDecisionFilters()), cursor, limit)


def intervention_list(
    *, cursor: str | None = None, limit: int = DEFAULT_LIMIT, filters: InterventionFilters | None = None
) -> Page[Intervention]:
    """Interventions, each with `agent_id`. Raises InvalidInput (limit) and BadCursor."""
    return _page(interventions_found(filters or InterventionFilters()), cursor, limit)


def verdicts_found(filters: VerdictFilters) -> QuerySet[Verdict]:
    """The verdicts that pass, newest first."""
    found = _made(Verdict.objects.all(), filters)
    if filters.state is not None:
        found = found.filter(state=filters.state)
    if filters.rule is not None:
        found = found.filter(rule=filters.rule)
    if filters.intervene is not None:
        found = found.filter(intervene=filters.intervene)
    if filters.acted is not None:
        found = found.filter(acted=filters.acted)
    if filters.withheld is not None:
        found = found.filter(withheld=filters.withheld)
    if filters.late is not None:
        found = found.filter(late=filters.late)
    if filters.min_score is not None:
        found = found.filter(score__gte=filters.min_score)
    return found


def tool_decisions_found(filters: ToolDecisionFilters) -> QuerySet[ToolDecision]:
    """The tool decisions that pass, newest first."""
    found = _made(ToolDecision.objects.all(), filters)
    if filters.name is not None:
        found = found.filter(name=filters.name)
    if filters.allow is not None:
        found = found.filter(allow=filters.allow)
    if filters.code is not None:
        found = found.filter(code=filters.code)
    if filters.state is not None:
        found = found.filter(state=filters.state)
    if filters.irreversible is not None:
        found = found.filter(irreversible=filters.irreversible)
    if filters.label is not None:
        found = found.filter(_labelled(Label.objects.filter(tool_decision_id=OuterRef("pk")), filters.label))
    return found


def interventions_found(filters: InterventionFilters) -> QuerySet[Intervention]:
    """The interventions that pass, newest first."""
    found = _made(Intervention.objects.all(), filters)
    if filters.outcome is not None:
        found = found.filter(outcome=filters.outcome)
    if filters.plan is not None:
        found = found.filter(plan=filters.plan)
    if filters.rule is not None:
        found = found.filter(rule=filters.rule)
    if filters.label is not None:
        found = found.filter(_labelled(Label.objects.filter(intervention_id=OuterRef("pk")), filters.label))
    return found


def _labelled(labels: QuerySet[Label], value: str) -> Q:
    return ~Q(Exists(labels)) if value == "none" else Q(Exists(labels.filter(value=value)))


def batch_before(found: QuerySet[Row], last: UUID | None, limit: int = BATCH) -> list[Row]:
    """The next rows after the one with the id `last`, for an export; None begins with the newest."""
    return list((found if last is None else found.filter(id__lt=last))[:limit])


def intervention_labels(*, interventions: Iterable[Intervention]) -> dict[UUID, Label]:
    """What reviewers said of these interventions, by the intervention's id."""
    ids = [intervention.id for intervention in interventions]
    labels = Label.objects.filter(intervention_id__in=ids) if ids else ()
    return {label.intervention_id: label for label in labels if label.intervention_id is not None}


def tool_decision_labels(*, decisions: Iterable[ToolDecision]) -> dict[UUID, Label]:
    """What reviewers said of these tool decisions, by the decision's id."""
    ids = [decision.id for decision in decisions]
    labels = Label.objects.filter(tool_decision_id__in=ids) if ids else ()
    return {label.tool_decision_id: label for label in labels if label.tool_decision_id is not None}


def _made(rows: QuerySet[Row], filters: MadeFilters) -> QuerySet[Row]:
    found: QuerySet[Any] = rows.annotate(agent_id=F("call__agent_id")).order_by("-id")
    if filters.agent_id is not None:
        found = found.filter(call__agent_id=filters.agent_id)
    if filters.call_id is not None:
        found = found.filter(call_id=filters.call_id)
    if filters.turn_id is not None:
        found = found.filter(turn_id=filters.turn_id)
    if filters.made_from is not None:
        found = found.filter(id__gte=uuid7_floor(filters.made_from))
    if filters.made_to is not None:
        found = found.filter(id__lt=uuid7_floor(filters.made_to))
    return found


def _page(found: QuerySet[Row], cursor: str | None, limit: int) -> Page[Row]:
    limit_check(limit)
    last = None if cursor is None else _id_of(cursor)
    rows = batch_before(found, last, limit + 1)
    if len(rows) <= limit:
        return Page(items=rows, next=None)
    return Page(items=rows[:limit], next=cursor_encode(str(rows[limit - 1].id)))


def _id_of(cursor: str) -> UUID:
    (row_id,) = cursor_decode(cursor, str)
    try:
        return UUID(str(row_id))
    except ValueError as error:
        raise BadCursor from error
