"""The REST API: one NinjaAPI, its authentication, and one shape for everything that goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ObjectDoesNotExist, RequestDataTooBig, SuspiciousOperation
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError

from mirror_saas import openapi
from mirror_saas.errors import Conflict, PreconditionFailed, PreconditionRequired, UpstreamFailed
from mirror_saas.openapi_webhooks import webhooks
from mirror_saas.problems import problem, request_id_of
from supervision.api.agents import router as agents_router
from supervision.api.alarms import router as alarms_router
from supervision.api.calls import router as calls_router
from supervision.api.credentials import router as credentials_router
from supervision.api.decisions import router as decisions_router
from supervision.api.defaults import router as model_defaults_router
from supervision.api.judge import router as judge_router
from supervision.api.policies import router as policies_router
from supervision.api.privacy import router as privacy_router
from supervision.api.usage import router as usage_router
from supervision.api.webhooks import router as webhooks_router
from supervision.errors import InvalidInput, NotFound
from supervision.stream.mailbox import CallSilent
from supervision.webhook_messages import MESSAGES
from supervision.webhooks import EVENT_TYPES, TEST_TYPE
from tenants.api.api_keys import router as api_keys_router
from tenants.api.audit import router as audit_router
from tenants.api.auth import BearerKey, SessionMember
from tenants.api.invitations import router as invitations_router
from tenants.api.limits import RateLimited
from tenants.api.me import router as me_router
from tenants.api.members import router as members_router
from tenants.api.tenant import router as tenant_router
from tenants.authentication import RecentAuthenticationMissing
from tenants.mail_limits import TooManyMails
from tenants.roles import CapabilityMissing
from tenants.services.idempotency import WriteRuns

logger = logging.getLogger(__name__)

INVALID = "Some fields cannot be used; `errors` says which and why."


class MirrorAPI(NinjaAPI):
    """NinjaAPI whose document says what is true of every operation (`mirror_saas.openapi`)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._schemas: dict[str, Any] = {}

    def get_openapi_schema(self, **kwargs: Any) -> Any:
        # Made once: anybody may ask for it, and making it is the most expensive thing that nobody needs a key for.
        key = repr(sorted(kwargs.items()))
        if key not in self._schemas:
            self._schemas[key] = self._schema(**kwargs)
        return self._schemas[key]

    def _schema(self, **kwargs: Any) -> dict[str, Any]:
        told = webhooks({**EVENT_TYPES, TEST_TYPE: "Somebody asked for a test."}, MESSAGES)
        return openapi.document(super().get_openapi_schema(**kwargs), dict(self._capabilities()), told)

    def _capabilities(self) -> Iterator[tuple[str, str | None]]:
        for _, router in self._routers:
            for view in router.path_operations.values():
                for operation in view.operations:
                    capability = getattr(operation.view_func, "capability", None)
                    yield operation.operation_id or "", capability and str(capability)


api = MirrorAPI(
    title="Mirror",
    version="1",
    description=openapi.DESCRIPTION,
    urls_namespace="api",
    auth=[BearerKey(), SessionMember()],
)
api.add_router("", me_router)
api.add_router("", agents_router)
api.add_router("", alarms_router)
api.add_router("", policies_router)
api.add_router("", credentials_router)
api.add_router("", calls_router)
api.add_router("", decisions_router)
api.add_router("", judge_router)
api.add_router("", privacy_router)
api.add_router("", model_defaults_router)
api.add_router("", usage_router)
api.add_router("", webhooks_router)
api.add_router("", audit_router)
api.add_router("", api_keys_router)
api.add_router("", tenant_router)
api.add_router("", members_router)
api.add_router("", invitations_router)


@api.exception_handler(AuthenticationError)
def _unauthenticated(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return problem(
        request,
        401,
        "Send `Authorization: Bearer mk_…` with a key that is neither revoked nor expired, or sign in to the console.",
        headers={"WWW-Authenticate": 'Bearer realm="mirror"'},
    )


@api.exception_handler(CapabilityMissing)
def _capability_missing(request: HttpRequest, error: CapabilityMissing) -> HttpResponse:
    return problem(request, 403, f"{error} Use a key or a role that has it.")


@api.exception_handler(RecentAuthenticationMissing)
def _confirm_first(request: HttpRequest, error: RecentAuthenticationMissing) -> HttpResponse:
    return problem(request, 403, str(error))


@api.exception_handler(TooManyMails)
def _too_many_mails(request: HttpRequest, error: TooManyMails) -> HttpResponse:
    return problem(request, 429, str(error), headers={"Retry-After": str(error.retry_after_s)})


@api.exception_handler(RateLimited)
def _rate_limited(request: HttpRequest, error: RateLimited) -> HttpResponse:
    return problem(request, 429, str(error), headers={"Retry-After": str(error.rate.reset_s)})


@api.exception_handler(NotFound)
def _not_found(request: HttpRequest, error: NotFound) -> HttpResponse:
    return problem(request, 404, str(error))


@api.exception_handler(Http404)
def _no_page(request: HttpRequest, error: Http404) -> HttpResponse:
    return problem(request, 404, "There is no such object.")


@api.exception_handler(InvalidInput)
def _invalid_input(request: HttpRequest, error: InvalidInput) -> HttpResponse:
    return problem(request, 422, INVALID, errors={error.field: [str(error)]})


@api.exception_handler(Conflict)
def _conflict(request: HttpRequest, error: Conflict) -> HttpResponse:
    headers = {"Retry-After": "1"} if isinstance(error, WriteRuns) else None
    return problem(request, 409, str(error), headers=headers)


@api.exception_handler(PreconditionFailed)
def _precondition_failed(request: HttpRequest, error: PreconditionFailed) -> HttpResponse:
    return problem(request, 412, str(error), headers={"ETag": error.etag})


@api.exception_handler(PreconditionRequired)
def _precondition_required(request: HttpRequest, error: PreconditionRequired) -> HttpResponse:
    return problem(request, 428, str(error))


@api.exception_handler(UpstreamFailed)
def _upstream_failed(request: HttpRequest, error: UpstreamFailed) -> HttpResponse:
    return problem(request, 502, str(error))


@api.exception_handler(ObjectDoesNotExist)
def _no_row(request: HttpRequest, error: ObjectDoesNotExist) -> HttpResponse:
    return problem(request, 404, "There is no such object.")


@api.exception_handler(ValidationError)
def _invalid_request(request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors: dict[str, list[str]] = {}
    for entry in error.errors:
        # The first part says where the field was (query, body), the rest is its name; in a body the second part is only
        # what the operation calls the whole of it.
        where, *name_parts = entry["loc"]
        name = ".".join(str(part) for part in (name_parts[1:] if where == "body" else name_parts)) or str(where)
        message = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            message = "There is no such field; check how it is spelled."
        errors.setdefault(name, []).append(message)
    return problem(request, 422, INVALID, errors=errors)


@api.exception_handler(DjangoValidationError)
def _invalid_model(request: HttpRequest, error: DjangoValidationError) -> HttpResponse:
    errors = error.message_dict if hasattr(error, "error_dict") else {"non_field": error.messages}
    return problem(request, 422, INVALID, errors=errors)


@api.exception_handler(HttpError)
def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return problem(request, error.status_code, str(error))


@api.exception_handler(SuspiciousOperation)
def _suspicious(request: HttpRequest, error: SuspiciousOperation) -> HttpResponse:
    if isinstance(error, RequestDataTooBig):
        return problem(request, 413, "The request's body is too large.")
    return problem(request, 400, "The request has more fields than any that makes sense, or forbidden characters.")


@api.exception_handler(CallSilent)
def _call_silent(request: HttpRequest, error: CallSilent) -> HttpResponse:
    return problem(
        request,
        503,
        "The node that has this call does not answer; send the turn again shortly, with the same turn_id.",
        headers={"Retry-After": "1"},
    )


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
def _database_down(request: HttpRequest, error: Exception) -> HttpResponse:
    logger.warning("the database did not answer a request", extra={"request_id": request_id_of(request)})
    return problem(request, 503, "The database does not answer; try again shortly.", headers={"Retry-After": "5"})


@api.exception_handler(Exception)
def _failed(request: HttpRequest, error: Exception) -> HttpResponse:
    logger.error("a request failed", exc_info=error, extra={"request_id": request_id_of(request)})
    return problem(request, 500, "Mirror failed to answer. The request_id stands in its log.")
