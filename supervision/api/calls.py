"""`/calls`: the list, one call, its turns and its timeline."""

from typing import Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router
from ninja.responses import Status
from pydantic import Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import Moment, PageOut, PageQuery, Text
from supervision.api.schemas import CallDetailOut, CallEventOut, CallOut, TurnDetailOut
from supervision.selectors.calls import (
    CallFilters,
    call_get,
    call_list,
    call_timeline,
    call_tool_decisions,
    call_turns,
)
from supervision.selectors.pages import BadCursor, cursor_decode, cursor_encode
from supervision.selectors.search import MAX_QUERY_CHARS
from supervision.services.erasure import call_erase
from tenants.api.auth import requires
from tenants.api.writes import writes
from tenants.roles import Scope

router = Router(tags=["calls"])


class CallsQuery(PageQuery):
    """Which calls."""

    agent_id: UUID | None = None
    state: Literal["live", "ended"] | None = None
    outcome: Text | None = Field(None, max_length=16)
    coverage: Literal["full", "partial", "none"] | None = Field(None, description="How much of the call was judged.")
    interventions: bool | None = Field(None, description="Whether Mirror stepped in.")
    test: bool | None = Field(None, description="Whether it was placed from the console, without a telephone.")
    text: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_QUERY_CHARS,
        description='What the caller or the agent said in one turn: words in any order, `"a phrase"`, `or`, `-word`.',
    )
    started_from: Moment | None = Field(None, alias="from", description="Started at or after, RFC 3339.")
    started_to: Moment | None = Field(None, alias="to", description="Started before, RFC 3339.")


LIST_ERRORS = problem_responses(401, 403, 422)
CALL_ERRORS = problem_responses(401, 403, 404)
CALL_LIST_ERRORS = problem_responses(401, 403, 404, 422)


@router.get("/calls", response={200: PageOut[CallOut], **LIST_ERRORS}, operation_id="call_list", summary="List calls")
@requires(Scope.CALLS_READ)
def calls(request: HttpRequest, query: Query[CallsQuery]) -> PageOut[CallOut]:
    """Calls, newest first. Calls that start while you page do not shift the pages."""
    page = call_list(
        cursor=query.cursor,
        limit=query.limit,
        filters=CallFilters(
            agent_id=query.agent_id,
            state=query.state,
            outcome=query.outcome,
            coverage=query.coverage,
            interventions=query.interventions,
            test=query.test,
            text=query.text,
            started_from=query.started_from,
            started_to=query.started_to,
        ),
    )
    return PageOut[CallOut](items=[CallOut.of(call) for call in page.items], next=page.next)


@router.get(
    "/calls/{uuid:call_id}",
    response={200: CallDetailOut, **CALL_ERRORS},
    operation_id="call_get",
    summary="One call, with counts",
)
@requires(Scope.CALLS_READ)
def call(request: HttpRequest, call_id: UUID) -> CallDetailOut:
    """One call. Another tenant's call and one that never was are both 404."""
    return CallDetailOut.of_call(call_get(call_id=call_id), call_tool_decisions(call_id=call_id))


@router.delete(
    "/calls/{uuid:call_id}",
    response={204: None, **problem_responses(401, 403, 404, 409)},
    operation_id="call_erase",
    summary="Erase a call",
)
@writes(Scope.CALLS_WRITE)
def erase(request: HttpRequest, call_id: UUID) -> Status[None]:
    """Delete all that is known of a call: what was said and done, the journals' copies included. Usage keeps counting
    it, without anything of the caller's. A call that still runs is 409."""
    call_erase(call_id=call_id)
    return Status(204, None)


@router.get(
    "/calls/{uuid:call_id}/turns",
    response={200: PageOut[TurnDetailOut], **CALL_LIST_ERRORS},
    operation_id="call_turns",
    summary="A call's turns with verdicts",
)
@requires(Scope.CALLS_READ)
def turns(request: HttpRequest, call_id: UUID, query: Query[PageQuery]) -> PageOut[TurnDetailOut]:
    """Turns in the order of the call, with what the caller heard, verdicts, tool decisions, interventions and notes."""
    after = None if query.cursor is None else int(cursor_decode(query.cursor, int)[0])
    details = call_turns(call_id=call_id, after_index=after, limit=query.limit + 1)
    more = len(details) > query.limit
    return PageOut[TurnDetailOut](
        items=[TurnDetailOut.of(detail) for detail in details[: query.limit]],
        next=cursor_encode(details[query.limit - 1].turn.index) if more else None,
    )


@router.get(
    "/calls/{uuid:call_id}/timeline",
    response={200: PageOut[CallEventOut], **CALL_LIST_ERRORS},
    operation_id="call_timeline",
    summary="Everything that happened in a call",
)
@requires(Scope.CALLS_READ)
def timeline(request: HttpRequest, call_id: UUID, query: Query[PageQuery]) -> PageOut[CallEventOut]:
    """Every event of the call, in order."""
    seq, after_id = (0, None) if query.cursor is None else _event_key(query.cursor)
    events = call_timeline(call_id=call_id, after_seq=seq, after_id=after_id, limit=query.limit + 1)
    more = len(events) > query.limit
    return PageOut[CallEventOut](
        items=[CallEventOut.model_validate(event) for event in events[: query.limit]],
        next=cursor_encode(events[query.limit - 1].seq, str(events[query.limit - 1].id)) if more else None,
    )


def _event_key(cursor: str) -> tuple[int, UUID]:
    seq, event_id = cursor_decode(cursor, int, str)
    try:
        return int(seq), UUID(str(event_id))
    except ValueError as error:
        raise BadCursor from error
