"""`/audit-events`: who did what; the list, the export, and whether the chain holds."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Query, Router, Schema
from pydantic import Field, JsonValue

from mirror_saas.errors import InvalidInput
from mirror_saas.exports import JSON_LINES, in_threads
from mirror_saas.problems import problem_responses
from mirror_saas.schemas import Moment, Out, PageOut, PageQuery, Text
from tenants.api.auth import principal_of, requires
from tenants.audit_chain import ChainPoint, export_header, export_line
from tenants.context import tenant_context
from tenants.models import AuditEvent
from tenants.roles import Scope
from tenants.selectors.audit import (
    AuditFilters,
    auditevent_fields,
    auditevent_head,
    auditevent_list,
    auditevent_page,
)
from tenants.services.audit import VERIFY_EVENTS, VERIFY_S, auditevents_verify

router = Router(tags=["audit log"])


class AuditEventOut(Out):
    """One event. `hash` is the SHA-256 of the event as the export shows it; `prev_hash` that of the event before."""

    id: UUID
    seq: int
    at: datetime
    actor_kind: str
    """`user`, `api_key` or `system`."""
    actor_id: UUID | None
    actor_label: str
    action: str
    object_type: str
    object_id: str
    object_label: str
    before: JsonValue
    after: JsonValue
    ip: str
    user_agent: str
    session: str
    request_id: str
    prev_hash: str
    hash: str

    @classmethod
    def of(cls, event: AuditEvent) -> "AuditEventOut":
        return cls(**{**auditevent_fields(event), "hash": bytes(event.hash).hex()})


class AuditEventsQuery(PageQuery):
    """Which events."""

    action: Text | None = Field(None, max_length=64, description="For example `agent.create`.")
    actor_kind: Literal["user", "api_key", "system"] | None = None
    actor_id: UUID | None = None
    object_type: Text | None = Field(None, max_length=32)
    object_id: Text | None = Field(None, max_length=64)
    at_from: Moment | None = Field(None, alias="from", description="At or after, RFC 3339.")
    at_to: Moment | None = Field(None, alias="to", description="Before, RFC 3339.")


class ExportQuery(Schema):
    """Which part of the log."""

    after_seq: int = Field(0, ge=0, lt=2**62, description="Leave out the events up to this one: those exported before.")


class VerifyQuery(Schema):
    """What the log has to contain, and where to go on."""

    expected_seq: int | None = Field(None, ge=1, lt=2**62, description="An event known from an earlier verifying.")
    expected_hash: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Its hash; give both or neither.")
    after_seq: int | None = Field(None, ge=1, lt=2**62, description="`head_seq` of the answer to go on behind.")
    after_hash: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Its `head_hash`; give both or neither.")
    limit: int = Field(VERIFY_EVENTS, ge=1, le=VERIFY_EVENTS, description="Events to check with this request.")


class AuditVerificationOut(Out):
    """Keep `head_seq` and `head_hash`: given as what is expected, they show whether the log was cut or written anew.

    When `complete` is false there are more events: ask again with `after_seq` and `after_hash` from here.
    """

    valid: bool
    complete: bool
    count: int
    head_seq: int | None
    head_hash: str | None
    problem_seq: int | None
    problem: str | None


@router.get(
    "/audit-events",
    response={200: PageOut[AuditEventOut], **problem_responses(401, 403, 422)},
    operation_id="auditevent_list",
    summary="List the audit log",
)
@requires(Scope.ADMIN)
def audit_events(request: HttpRequest, query: Query[AuditEventsQuery]) -> PageOut[AuditEventOut]:
    """Who did what, newest first. Secrets are `***`. Nothing changes or removes an event."""
    page = auditevent_list(
        cursor=query.cursor,
        limit=query.limit,
        filters=AuditFilters(
            action=query.action,
            actor_kind=query.actor_kind,
            actor_id=query.actor_id,
            object_type=query.object_type,
            object_id=query.object_id,
            at_from=query.at_from,
            at_to=query.at_to,
        ),
    )
    return PageOut[AuditEventOut](items=[AuditEventOut.of(event) for event in page.items], next=page.next)


@router.get(
    "/audit-events/export",
    response=problem_responses(401, 403, 422),
    operation_id="auditevent_export",
    summary="The audit log as JSON lines",
    openapi_extra={
        "responses": {
            200: {
                "description": "JSON lines: what it is, then one event a line with its hash, oldest first.",
                "content": {JSON_LINES: {"schema": {"type": "string"}}},
            }
        }
    },
)
@requires(Scope.ADMIN)
def audit_export(request: HttpRequest, query: Query[ExportQuery]) -> StreamingHttpResponse:
    """Every event up to now, oldest first. `manage.py verify_audit --file` checks it, without a database."""
    tenant_id = principal_of(request).tenant.id
    head = auditevent_head()
    last = head if head is not None and head.seq > query.after_seq else None
    header = export_header(
        tenant_id=str(tenant_id),
        after_seq=query.after_seq,
        last=last,
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # Events are never changed, so pages that are read one by one make up one whole; no transaction stays open.
    streamed = _lines(tenant_id, header, query.after_seq, last)
    return StreamingHttpResponse(
        in_threads(streamed) if isinstance(request, ASGIRequest) else streamed,
        content_type=JSON_LINES,
        headers={
            "Content-Disposition": 'attachment; filename="audit-events.jsonl"',
            "Cache-Control": "no-store",
        },
    )


@router.get(
    "/audit-events/verify",
    response={200: AuditVerificationOut, **problem_responses(401, 403, 422)},
    operation_id="auditevent_verify",
    summary="Check the audit log",
)
@requires(Scope.ADMIN)
def audit_verify(request: HttpRequest, query: Query[VerifyQuery]) -> AuditVerificationOut:
    """Whether every event is there, unchanged and in its place; `count` events were checked by this request."""
    found = auditevents_verify(
        expected=_point(query.expected_seq, query.expected_hash, "expected"),
        after=_point(query.after_seq, query.after_hash, "after"),
        limit=query.limit,
        budget_s=VERIFY_S,
    )
    return AuditVerificationOut(
        valid=found.valid,
        complete=found.complete,
        count=found.count,
        head_seq=found.head.seq if found.head else None,
        head_hash=found.head.hash.hex() if found.head else None,
        problem_seq=found.problem.seq if found.problem else None,
        problem=found.problem.what if found.problem else None,
    )


def _point(seq: int | None, digest: str | None, name: str) -> ChainPoint | None:
    if seq is None and digest is None:
        return None
    if seq is None or digest is None:
        missing = f"{name}_hash" if digest is None else f"{name}_seq"
        raise InvalidInput(missing, f"Give {name}_seq and {name}_hash together.")
    return ChainPoint(seq, bytes.fromhex(digest))


def _lines(tenant_id: UUID, header: str, after_seq: int, last: ChainPoint | None) -> Iterator[str]:
    yield header + "\n"
    while last is not None and after_seq < last.seq:
        with tenant_context(tenant_id):
            events = auditevent_page(after_seq=after_seq, last_seq=last.seq)
        if not events:
            return
        yield "".join(export_line(auditevent_fields(event), bytes(event.hash)) + "\n" for event in events)
        after_seq = events[-1].seq
