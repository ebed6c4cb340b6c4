"""`/verdicts`, `/tool-decisions` and `/interventions`: across calls, as pages or as one file; and labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils import timezone
from ninja import Query, Router
from pydantic import BaseModel, ConfigDict, Field

from mirror_saas.exports import ExportQuery, Format, export_content, export_format, export_response
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Moment, PageOut, PageQuery, Text
from supervision.api.schemas import ApprovalOut, InterventionRowOut, LabelOut, ToolDecisionRowOut, VerdictRowOut
from supervision.models import Intervention, ToolDecision, Verdict
from supervision.selectors.approvals import approval_get
from supervision.selectors.decisions import (
    InterventionFilters,
    ToolDecisionFilters,
    VerdictFilters,
    batch_before,
    intervention_labels,
    intervention_list,
    interventions_found,
    tool_decision_labels,
    tool_decision_list,
    tool_decisions_found,
    verdict_list,
    verdicts_found,
)
from supervision.services.approvals import MAX_NOTE_CHARS as MAX_APPROVAL_NOTE_CHARS
from supervision.services.approvals import approval_decide
from supervision.services.labels import MAX_NOTE_CHARS, intervention_label, tool_decision_label, turn_label
from tenants.api.auth import principal_of, requires
from tenants.api.writes import writes
from tenants.context import tenant_context
from tenants.roles import Scope

router = Router(tags=["decisions"])

Row = TypeVar("Row", Verdict, ToolDecision, Intervention)
LIST_ERRORS = problem_responses(401, 403, 422)
LABEL_ERRORS = problem_responses(400, 401, 403, 404, 422)
APPROVAL_ERRORS = problem_responses(400, 401, 403, 404, 409, 422)
JudgingStateName = Literal["judged", "skipped", "timed_out", "failed", "shed"]
LabelName = Literal["confirmed", "false_alarm", "missed", "unsure"]


class MadeQuery(PageQuery, ExportQuery):
    """Which rows, and as what."""

    agent_id: UUID | None = None
    call_id: UUID | None = None
    turn_id: UUID | None = None
    made_from: Moment | None = Field(None, alias="from", description="Made at or after, RFC 3339.")
    made_to: Moment | None = Field(None, alias="to", description="Made before, RFC 3339.")


class VerdictsQuery(MadeQuery):
    """Which verdicts."""

    state: JudgingStateName | None = None
    rule: Text | None = Field(None, max_length=4000, description="The rule that the judge named, word for word.")
    intervene: bool | None = Field(None, description="Whether the verdict called for an intervention.")
    acted: bool | None = None
    withheld: Text | None = Field(None, max_length=16, description="For example `shadow` or `cooldown`.")
    late: bool | None = None
    min_score: float | None = Field(None, ge=0, le=1)


class ToolDecisionsQuery(MadeQuery):
    """Which tool decisions."""

    name: Text | None = Field(None, max_length=200, description="The tool's name.")
    allow: bool | None = None
    code: Text | None = Field(None, max_length=16, description="For example `policy` or `duplicate`.")
    state: JudgingStateName | None = None
    irreversible: bool | None = None
    label: LabelName | Literal["none"] | None = Field(None, description="What a reviewer said; `none`: nothing yet.")


class InterventionsQuery(MadeQuery):
    """Which interventions."""

    outcome: Text | None = Field(None, max_length=32, description="For example `completed` or `caller_gone`.")
    plan: Text | None = Field(None, max_length=32)
    rule: Text | None = Field(None, max_length=4000, description="The rule that the judge named, word for word.")
    label: LabelName | Literal["none"] | None = Field(None, description="What a reviewer said; `none`: nothing yet.")


class ApprovalIn(In):
    """What a person says about a tool call that waits."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"decision": "approve", "note": "Confirmed by phone."}]})

    decision: Literal["approve", "deny"]
    note: str = Field("", max_length=MAX_APPROVAL_NOTE_CHARS, description="For the agent.")


class LabelIn(In):
    """What a reviewer says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"label": "false_alarm", "note": "The caller asked for the policy, not for money."}]
        }
    )

    label: LabelName
    note: str = Field("", max_length=MAX_NOTE_CHARS)


@router.get(
    "/verdicts",
    response={200: PageOut[VerdictRowOut], **LIST_ERRORS},
    operation_id="verdict_list",
    summary="Verdicts of all calls",
    openapi_extra=export_content("A verdict"),
)
@requires(Scope.CALLS_READ)
def verdicts(request: HttpRequest, query: Query[VerdictsQuery]) -> PageOut[VerdictRowOut] | StreamingHttpResponse:
    """Verdicts, newest first."""
    filters = VerdictFilters(**_filters(query))
    if (kind := export_format(request, query.format)) != "json":
        found = lambda: verdicts_found(filters)  # noqa: E731
        return _export(request, kind, "verdicts", VerdictRowOut, found, lambda rows: map(VerdictRowOut.of, rows))
    page = verdict_list(cursor=query.cursor, limit=query.limit, filters=filters)
    return PageOut[VerdictRowOut](items=[VerdictRowOut.of(row) for row in page.items], next=page.next)


@router.get(
    "/tool-decisions",
    response={200: PageOut[ToolDecisionRowOut], **LIST_ERRORS},
    operation_id="tool_decision_list",
    summary="Tool decisions of all calls",
    openapi_extra=export_content("A tool decision"),
)
@requires(Scope.CALLS_READ)
def tool_decisions(
    request: HttpRequest, query: Query[ToolDecisionsQuery]
) -> PageOut[ToolDecisionRowOut] | StreamingHttpResponse:
    """Tool decisions with their labels, newest first."""
    filters = ToolDecisionFilters(**_filters(query))
    if (kind := export_format(request, query.format)) != "json":
        found = lambda: tool_decisions_found(filters)  # noqa: E731
        return _export(request, kind, "tool-decisions", ToolDecisionRowOut, found, _tool_decisions_out)
    page = tool_decision_list(cursor=query.cursor, limit=query.limit, filters=filters)
    return PageOut[ToolDecisionRowOut](items=list(_tool_decisions_out(page.items)), next=page.next)


@router.get(
    "/tool-decisions/{uuid:decision_id}/approval",
    response={200: ApprovalOut, **problem_responses(401, 403, 404)},
    operation_id="approval_get",
    summary="A tool call that needs a person's approval",
)
@requires(Scope.CALLS_READ)
def approval(request: HttpRequest, decision_id: UUID) -> ApprovalOut:
    """How a tool call stands that waits, or waited, for a person. `approval.requested` webhooks name its decision."""
    return ApprovalOut.of(approval_get(decision_id=decision_id), timezone.now())


@router.post(
    "/tool-decisions/{uuid:decision_id}/approval",
    response={200: ApprovalOut, **APPROVAL_ERRORS},
    operation_id="approval_decide",
    summary="Approve or deny a tool call that waits",
)
@writes(Scope.CALLS_WRITE)
def decide(request: HttpRequest, decision_id: UUID, body: ApprovalIn) -> ApprovalOut:
    """The call hears of it at once, on whatever node it runs, and the agent is told the note. The same decision by the
    same person again changes nothing; one that was decided, or whose time is over, is 409. An approval that reaches
    the call after the agent stopped waiting becomes `void`."""
    decided = approval_decide(decision_id=decision_id, approve=body.decision == "approve", note=body.note)
    return ApprovalOut.of(decided, timezone.now())


@router.get(
    "/interventions",
    response={200: PageOut[InterventionRowOut], **LIST_ERRORS},
    operation_id="intervention_list",
    summary="Interventions of all calls",
    openapi_extra=export_content("An intervention"),
)
@requires(Scope.CALLS_READ)
def interventions(
    request: HttpRequest, query: Query[InterventionsQuery]
) -> PageOut[InterventionRowOut] | StreamingHttpResponse:
    """Interventions with their labels, newest first."""
    filters = InterventionFilters(**_filters(query))
    if (kind := export_format(request, query.format)) != "json":
        found = lambda: interventions_found(filters)  # noqa: E731
        return _export(request, kind, "interventions", InterventionRowOut, found, _interventions_out)
    page = intervention_list(cursor=query.cursor, limit=query.limit, filters=filters)
    return PageOut[InterventionRowOut](items=list(_interventions_out(page.items)), next=page.next)


@router.put(
    "/interventions/{uuid:intervention_id}/label",
    response={200: LabelOut, **LABEL_ERRORS},
    operation_id="intervention_label",
    summary="Label an intervention",
)
@writes(Scope.LABELS_WRITE)
def label_intervention(request: HttpRequest, intervention_id: UUID, body: LabelIn) -> LabelOut:
    """Say whether Mirror was right to step in; what was said before is replaced."""
    return LabelOut.of(intervention_label(intervention_id=intervention_id, value=body.label, note=body.note))


@router.put(
    "/tool-decisions/{uuid:decision_id}/label",
    response={200: LabelOut, **LABEL_ERRORS},
    operation_id="tool_decision_label",
    summary="Label a tool decision",
)
@writes(Scope.LABELS_WRITE)
def label_tool_decision(request: HttpRequest, decision_id: UUID, body: LabelIn) -> LabelOut:
    """Say whether a blocked tool call was rightly blocked (`confirmed`, `false_alarm`), or an allowed one should have
    been (`missed`); what was said before is replaced."""
    return LabelOut.of(tool_decision_label(decision_id=decision_id, value=body.label, note=body.note))


@router.put(
    "/turns/{uuid:turn_id}/label",
    response={200: LabelOut, **LABEL_ERRORS},
    operation_id="turn_label",
    summary="Label a turn",
)
@writes(Scope.LABELS_WRITE)
def label_turn(request: HttpRequest, turn_id: UUID, body: LabelIn) -> LabelOut:
    """Say whether the judge was right about a turn, or missed something; what was said before is replaced."""
    return LabelOut.of(turn_label(turn_id=turn_id, value=body.label, note=body.note))


_NO_FILTERS = {"cursor", "limit", "format"}


def _filters(query: MadeQuery) -> dict[str, Any]:
    return query.model_dump(exclude=_NO_FILTERS)


def _tool_decisions_out(rows: Sequence[ToolDecision]) -> Iterator[ToolDecisionRowOut]:
    labels = tool_decision_labels(decisions=rows)
    return (ToolDecisionRowOut.of_row(row, labels.get(row.id)) for row in rows)


def _interventions_out(rows: Sequence[Intervention]) -> Iterator[InterventionRowOut]:
    labels = intervention_labels(interventions=rows)
    return (InterventionRowOut.of_row(row, labels.get(row.id)) for row in rows)


def _export(
    request: HttpRequest,
    kind: Format,
    name: str,
    schema: type[BaseModel],
    found: Callable[[], QuerySet[Row]],
    made: Callable[[list[Row]], Iterator[BaseModel]],
) -> StreamingHttpResponse:
    tenant_id = principal_of(request).tenant.id

    def batches() -> Iterator[list[BaseModel]]:
        # Rows of these lists are never moved, so pages that are read one by one make up one whole.
        last: UUID | None = None
        while True:
            with tenant_context(tenant_id):
                rows = batch_before(found(), last)
                out = list(made(rows))
            if not rows:
                return
            yield out
            last = rows[-1].id

    return export_response(request, kind=kind, name=name, columns=schema, batches=batches())
