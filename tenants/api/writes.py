"""What every operation of the API that changes something has in common: scope, tenant, and `Idempotency-Key`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja.params.functions import Header
from ninja.responses import NinjaJSONEncoder, Status
from ninja.utils import contribute_operation_args
from pydantic import BaseModel

from tenants.api.auth import Principal, principal_of, requires
from tenants.roles import Capability, Scope
from tenants.services.idempotency import (
    StoredAnswer,
    idempotency_begin,
    idempotency_store,
    request_fingerprint,
)

P = ParamSpec("P")

REPLAYED = "Idempotency-Replayed"
# 1 to 255 visible ASCII characters; a UUID is a good key.
KEY_PATTERN = r"^[!-~]{1,255}$"

KEY_HEADER = Header(
    None,
    alias="Idempotency-Key",
    pattern=KEY_PATTERN,
    description="Makes it safe to send this again: for 24 hours the same key with the same request gets the stored"
    " answer. Another request with it is refused (422); while the first one runs, 409.",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write answers with, where it is more than a body and the usual status."""

    body: BaseModel | None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def writes(
    capability: Scope | Capability | None, *, recent: bool = False, status: int = 200
) -> Callable[[Callable[Concatenate[HttpRequest, P], Any]], Callable[..., HttpResponse]]:
    """`requires` for an operation that changes something: it can be sent again with its `Idempotency-Key`.

    The operation returns a pydantic model, ninja's `Status`, an `Answer`, or None (204). Its answer is stored in the
    transaction of what it did. What it raises is not stored: it undid everything, so sending it again asks anew.
    """

    def decorate(operation: Callable[Concatenate[HttpRequest, P], Any]) -> Callable[..., HttpResponse]:
        @wraps(operation)
        def run(request: HttpRequest, /, *args: Any, idempotency_key: str | None = None, **kwargs: Any) -> HttpResponse:
            if idempotency_key is None:
                return _rendered(operation(request, *args, **kwargs), status, kwargs)
            actor_id = _actor_id(principal_of(request))
            fingerprint = _fingerprint(request)
            stored = idempotency_begin(key=idempotency_key, actor_id=actor_id, fingerprint=fingerprint)
            if stored is not None:
                response = HttpResponse(stored.body, status=stored.status, headers=dict(stored.headers))
                response.headers[REPLAYED] = "true"
                return response
            response = _rendered(operation(request, *args, **kwargs), status, kwargs)
            answer = StoredAnswer(
                status=response.status_code, headers=dict(response.headers), body=response.content.decode()
            )
            idempotency_store(key=idempotency_key, actor_id=actor_id, fingerprint=fingerprint, answer=answer)
            return response

        contribute_operation_args(run, "idempotency_key", str | None, KEY_HEADER)  # type: ignore[arg-type]
        return requires(capability, recent=recent)(run)

    return decorate


def _rendered(result: Any, status: int, parameters: Mapping[str, Any]) -> HttpResponse:
    if isinstance(result, HttpResponse):
        return result
    headers: dict[str, str] = {}
    for given in parameters.values():
        # An operation can ask for the response to come, and set headers on it.
        if isinstance(given, HttpResponse):
            headers |= {name: value for name, value in given.headers.items() if name != "Content-Type"}
    if isinstance(result, Status):
        status, result = result.status_code, result.value
    if isinstance(result, Answer):
        status, headers, result = result.status or status, {**headers, **result.headers}, result.body
    if result is None:
        return HttpResponse(status=204, headers=headers)
    # As ninja writes what other operations return: the same object looks the same wherever it is answered.
    body = json.dumps(result.model_dump(), cls=NinjaJSONEncoder)
    return HttpResponse(body, status=status, content_type="application/json; charset=utf-8", headers=headers)


def _actor_id(principal: Principal) -> UUID:
    if principal.api_key is not None:
        return principal.api_key.api_key_id
    assert principal.user_id is not None  # it is a key or a person
    return principal.user_id


def _fingerprint(request: HttpRequest) -> bytes:
    return request_fingerprint(
        (request.method or "").encode(),
        request.get_full_path().encode(),
        request.headers.get("If-Match", "").encode(),
        _canonical(request.body),
    )


def _canonical(body: bytes) -> bytes:
    """A client that builds its JSON again may order it differently; that is the same request."""
    try:
        return json.dumps(json.loads(body), sort_keys=True).encode()
    except (ValueError, RecursionError):
        return body
