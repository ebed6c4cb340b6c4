"""The calls of a list as a file, a row each, as the list shows them: numbers masked, figures whole."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from supervision.models import Call
from supervision.selectors.call_pages import policy_names
from supervision.selectors.calls import CallFilters, call_list
from supervision.selectors.pages import MAX_LIMIT
from tenants.context import tenant_context
from webui.formats import number_masked


class CallCsvRow(BaseModel):
    """The columns of the file. Times are UTC, durations milliseconds, coverage is from 0 to 1."""

    id: UUID
    started_at: datetime
    ended_at: datetime | None
    duration_ms: int | None
    agent: str
    from_number: str
    to_number: str
    test: bool
    state: str
    outcome: str
    ended_by: str
    reason: str
    mode: str
    policy: str
    policy_version: int | None
    coverage_state: str
    coverage: float | None
    turns: int
    judged: int
    skipped: int
    timed_out: int
    failed: int
    shed: int
    interventions: int
    tools_blocked: int


def call_csv_batches(*, tenant_id: UUID, filters: CallFilters) -> Iterator[list[BaseModel]]:
    """All calls that the filters let through, newest first, page by page, each read as the tenant when it is due."""
    cursor: str | None = None
    while True:
        with tenant_context(tenant_id):
            page = call_list(cursor=cursor, limit=MAX_LIMIT, filters=filters)
            policies = policy_names(policy_ids=[call.policy_id for call in page.items])
            rows: list[BaseModel] = [_row(call, policies.get(call.policy_id, "")) for call in page.items]
        if rows:
            yield rows
        if page.next is None:
            return
        cursor = page.next


def _row(call: Call, policy: str) -> CallCsvRow:
    return CallCsvRow(
        id=call.id,
        started_at=call.started_at,
        ended_at=call.ended_at,
        duration_ms=call.duration_ms,
        agent=call.agent.name,
        from_number=number_masked(call.from_number),
        to_number=number_masked(call.to_number),
        test=call.test,
        state=call.state,
        outcome=call.outcome,
        ended_by=call.ended_by,
        reason=call.reason,
        mode=call.mode,
        policy=policy,
        policy_version=call.policy_version,
        coverage_state=call.coverage_state,
        coverage=call.coverage,
        turns=call.turn_count,
        judged=call.judged_count,
        skipped=call.skipped_count,
        timed_out=call.timed_out_count,
        failed=call.failed_count,
        shed=call.shed_count,
        interventions=call.intervention_count,
        tools_blocked=call.tools_blocked_count,
    )
