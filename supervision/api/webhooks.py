"""`/webhooks`: where a tenant's events are sent to, signed as Standard Webhooks are, and the log of what was sent."""

from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery, Text, unset
from supervision.selectors.webhooks import attempt_list, delivery_get, delivery_list, webhook_get, webhook_list
from supervision.services.webhooks import (
    DEFAULT_OVERLAP,
    MAX_DESCRIPTION_CHARS,
    MAX_OVERLAP,
    MAX_URL_CHARS,
    WebhookSecret,
    delivery_redeliver,
    webhook_create,
    webhook_delete,
    webhook_secret_rotate,
    webhook_test,
    webhook_update,
)
from supervision.webhooks import EVENT_TYPES
from tenants.api.auth import requires
from tenants.api.writes import Answer, writes
from tenants.roles import Scope

router = Router(tags=["webhooks"])

EventType = Literal[
    "call.started",
    "call.ended",
    "coverage.alarm",
    "intervention.started",
    "intervention.ended",
    "tool.blocked",
    "approval.requested",
    "approval.decided",
]
DeliveryState = Literal["pending", "delivered", "failed"]
READ_ERRORS = problem_responses(401, 403, 404)
WRITE_ERRORS = problem_responses(400, 401, 403, 404, 409, 422)
# A secret is in the answer.
NO_STORE = {"Cache-Control": "no-store"}
_MS = timedelta(milliseconds=1)
_TYPES = "; ".join(f"`{name}`: {text[0].lower()}{text[1:].rstrip('.')}" for name, text in EVENT_TYPES.items())


class WebhookIn(In):
    """An endpoint. Messages are `POST`ed to `url` as JSON with `type`, `timestamp` and `data`: ids and facts, nothing
    that was said. They are signed as Standard Webhooks are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://hooks.example.com/mirror",
                    "description": "Alarms to the on-call channel",
                    "event_types": ["coverage.alarm", "tool.blocked"],
                }
            ]
        }
    )

    url: str = Field(min_length=1, max_length=MAX_URL_CHARS, description="Use https. Private addresses are refused.")
    event_types: list[EventType] = Field(min_length=1, max_length=50, description=f"What to hear of. {_TYPES}.")
    description: str = Field("", max_length=MAX_DESCRIPTION_CHARS)
    enabled: bool = Field(True, description="What happens while it is false is not sent later either.")


class WebhookPatch(In):
    """What of an endpoint changes; the rest stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": True}]})

    url: str = unset(min_length=1, max_length=MAX_URL_CHARS)
    event_types: list[EventType] = unset(min_length=1, max_length=50)
    description: str = unset(max_length=MAX_DESCRIPTION_CHARS)
    enabled: bool = unset()


class WebhookRotateIn(In):
    """How long the former secret signs beside the new one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_ms": 86400000}]})

    overlap_ms: int = Field(DEFAULT_OVERLAP // _MS, ge=0, le=MAX_OVERLAP // _MS, description="Default: 24 hours.")


class WebhookOut(Out):
    """An endpoint, without its secret."""

    id: UUID
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    off_reason: str
    """Why Mirror switched it off: `gone`, the receiver answered 410 Gone; `failing`, it took nothing for three days.
    Empty otherwise."""
    failures: int
    """Attempts that failed in a row, of all its deliveries."""
    paused_until: datetime | None
    """Nothing is sent before, because too many attempts failed in a row; then one delivery is tried."""
    previous_secret_until: datetime | None
    """Until then messages are signed with the secret of before the rotation, too."""
    created_at: datetime
    updated_at: datetime


class WebhookSecretOut(WebhookOut):
    """An endpoint with its secret, which is not shown again."""

    secret: str
    """`whsec_` and base64, as libraries of Standard Webhooks take it."""

    @classmethod
    def of(cls, made: WebhookSecret) -> "WebhookSecretOut":
        return cls(**WebhookOut.model_validate(made.endpoint).model_dump(), secret=made.secret)


class DeliveryOut(Out):
    """An event for an endpoint."""

    id: UUID
    event_id: UUID
    """The message's `webhook-id`: the same for every attempt, so that a receiver knows what it has already."""
    type: str
    occurred_at: datetime
    data: dict[str, Any]
    state: str
    """`pending`, `delivered` or `failed`."""
    attempts: int
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    error: str
    """Why the last attempt failed."""
    created_at: datetime


class AttemptOut(Out):
    """What came of sending a delivery once."""

    id: UUID
    at: datetime
    status: int | None
    duration_ms: int
    error: str
    excerpt: str
    """The first characters of an answer that was no success."""


class DeliveryDetailOut(DeliveryOut):
    """A delivery with its newest 100 attempts, the newest first."""

    log: list[AttemptOut]


class DeliveriesQuery(PageQuery):
    """Which deliveries."""

    state: DeliveryState | None = None
    type: Text | None = Field(None, max_length=64, description="An event type, `webhook.test` among them.")


@router.get(
    "/webhooks",
    response={200: PageOut[WebhookOut], **problem_responses(401, 403, 422)},
    operation_id="webhook_list",
    summary="List webhooks",
)
@requires(Scope.ADMIN)
def webhooks(request: HttpRequest, query: Query[PageQuery]) -> PageOut[WebhookOut]:
    """Endpoints, newest first, without their secrets."""
    page = webhook_list(cursor=query.cursor, limit=query.limit)
    return PageOut[WebhookOut](items=[WebhookOut.model_validate(row) for row in page.items], next=page.next)


@router.post(
    "/webhooks",
    response={201: WebhookSecretOut, **problem_responses(400, 401, 403, 409, 422)},
    operation_id="webhook_create",
    summary="Make a webhook",
)
@writes(Scope.ADMIN, recent=True, status=201)
def webhook_post(request: HttpRequest, body: WebhookIn) -> Answer:
    """It is sent what happens from now on. Keep `secret` of the answer: it is not shown again."""
    made = webhook_create(
        url=body.url, event_types=body.event_types, description=body.description, enabled=body.enabled
    )
    location = {"Location": f"/api/v1/webhooks/{made.endpoint.id}"}
    return Answer(WebhookSecretOut.of(made), headers={**NO_STORE, **location})


@router.get(
    "/webhooks/{uuid:webhook_id}",
    response={200: WebhookOut, **READ_ERRORS},
    operation_id="webhook_get",
    summary="One webhook",
)
@requires(Scope.ADMIN)
def webhook(request: HttpRequest, webhook_id: UUID) -> WebhookOut:
    """One endpoint, without its secret."""
    return WebhookOut.model_validate(webhook_get(webhook_id=webhook_id))


@router.patch(
    "/webhooks/{uuid:webhook_id}",
    response={200: WebhookOut, **WRITE_ERRORS},
    operation_id="webhook_update",
    summary="Change a webhook",
)
@writes(Scope.ADMIN, recent=True)
def webhook_patch(request: HttpRequest, webhook_id: UUID, body: WebhookPatch) -> WebhookOut:
    """Switching it off gives up what is on its way (it can be redelivered); switching it on, or another URL, begins
    anew: nothing is paused any more."""
    given: Any = body.given()
    return WebhookOut.model_validate(webhook_update(webhook_id=webhook_id, **given))


@router.delete(
    "/webhooks/{uuid:webhook_id}",
    response={204: None, **WRITE_ERRORS},
    operation_id="webhook_delete",
    summary="Delete a webhook",
)
@writes(Scope.ADMIN)
def webhook_delete_(request: HttpRequest, webhook_id: UUID) -> None:
    """With its secret, its log and what was on its way."""
    webhook_delete(webhook_id=webhook_id)


@router.post(
    "/webhooks/{uuid:webhook_id}/rotate-secret",
    response={200: WebhookSecretOut, **WRITE_ERRORS},
    operation_id="webhook_rotate_secret",
    summary="Give a webhook a new secret",
)
@writes(Scope.ADMIN, recent=True)
def webhook_rotate(request: HttpRequest, webhook_id: UUID, body: WebhookRotateIn) -> Answer:
    """For `overlap_ms` messages carry both signatures, so a receiver can change over when it likes. With 0 the former
    secret, which somebody may have got hold of, signs nothing any more."""
    made = webhook_secret_rotate(webhook_id=webhook_id, overlap=body.overlap_ms * _MS)
    return Answer(WebhookSecretOut.of(made), headers=NO_STORE)


@router.post(
    "/webhooks/{uuid:webhook_id}/test",
    response={202: DeliveryOut, **WRITE_ERRORS},
    operation_id="webhook_test",
    summary="Send a test event",
)
@writes(Scope.ADMIN, status=202)
def webhook_test_(request: HttpRequest, webhook_id: UUID) -> DeliveryOut:
    """An event of the type `webhook.test` goes to the endpoint within seconds, whatever it wants to hear of."""
    return DeliveryOut.model_validate(webhook_test(webhook_id=webhook_id))


@router.get(
    "/webhooks/{uuid:webhook_id}/deliveries",
    response={200: PageOut[DeliveryOut], **problem_responses(401, 403, 404, 422)},
    operation_id="webhook_delivery_list",
    summary="What was sent to a webhook",
)
@requires(Scope.ADMIN)
def deliveries(request: HttpRequest, webhook_id: UUID, query: Query[DeliveriesQuery]) -> PageOut[DeliveryOut]:
    """Deliveries, newest first; they are kept for 30 days."""
    page = delivery_list(
        webhook_id=webhook_id, state=query.state, event_type=query.type, cursor=query.cursor, limit=query.limit
    )
    return PageOut[DeliveryOut](items=[DeliveryOut.model_validate(row) for row in page.items], next=page.next)


@router.get(
    "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}",
    response={200: DeliveryDetailOut, **READ_ERRORS},
    operation_id="webhook_delivery_get",
    summary="One delivery with its attempts",
)
@requires(Scope.ADMIN)
def delivery(request: HttpRequest, webhook_id: UUID, delivery_id: UUID) -> DeliveryDetailOut:
    """One delivery, with status, duration and error of each attempt."""
    row = delivery_get(webhook_id=webhook_id, delivery_id=delivery_id)
    log = [AttemptOut.model_validate(attempt) for attempt in attempt_list(delivery_id=row.id)]
    return DeliveryDetailOut(**DeliveryOut.model_validate(row).model_dump(), log=log)


@router.post(
    "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}/redeliver",
    response={202: DeliveryOut, **WRITE_ERRORS},
    operation_id="webhook_redeliver",
    summary="Send a delivery again",
)
@writes(Scope.ADMIN, status=202)
def redeliver(request: HttpRequest, webhook_id: UUID, delivery_id: UUID) -> DeliveryOut:
    """Delivered or not, it goes out again within seconds, under the same `webhook-id`, with all its attempts."""
    return DeliveryOut.model_validate(delivery_redeliver(webhook_id=webhook_id, delivery_id=delivery_id))
