"""The API's errors: problem+json (RFC 9457), the same shape wherever a request fails.

`type` is `about:blank` plus a title for what HTTP itself says, `errors` maps each bad field to its messages, and
`request_id` stands in our log beside what happened.
"""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Mapping, Sequence

from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel

from mirror_saas.ids import uuid7

CONTENT_TYPE = "application/problem+json"
API_PREFIX = "/api/v1/"


class Problem(BaseModel):
    """What went wrong with a request."""

    type: str
    title: str
    status: int
    detail: str
    errors: dict[str, list[str]]
    request_id: str


def problem_responses(*statuses: int) -> dict[int, type[Problem]]:
    """Entries of an operation's `response` for the errors that it can answer with."""
    return dict.fromkeys(statuses, Problem)


def request_id_of(request: HttpRequest) -> str:
    """The request's id: made on first use, so that every line and answer about it carries the same one."""
    request_id: str | None = getattr(request, "mirror_request_id", None)
    if request_id is None:
        request_id = str(uuid7())
        request.mirror_request_id = request_id  # type: ignore[attr-defined]
    return request_id


def answer_headers(request: HttpRequest) -> dict[str, str]:
    """Headers that the answer to an API request gets, whatever the answer is; add to them."""
    headers: dict[str, str] | None = getattr(request, "mirror_answer_headers", None)
    if headers is None:
        headers = {}
        request.mirror_answer_headers = headers  # type: ignore[attr-defined]
    return headers


def problem_body(
    status: int, detail: str, *, request_id: str, errors: Mapping[str, Sequence[str]] | None = None
) -> bytes:
    """The JSON text of a problem; `errors` is field → messages."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": http.HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "errors": {field: list(messages) for field, messages in (errors or {}).items()},
            "request_id": request_id,
        }
    ).encode()


def problem(
    request: HttpRequest,
    status: int,
    detail: str,
    *,
    errors: Mapping[str, Sequence[str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """An answer that says what is wrong and what to do about it; `errors` is field → messages."""
    body = problem_body(status, detail, request_id=request_id_of(request), errors=errors)
    return HttpResponse(body, status=status, content_type=CONTENT_TYPE, headers=dict(headers or {}))


_WHAT_TO_DO = {
    400: "The request cannot be read; check its syntax.",
    403: "This is not allowed.",
    404: "There is nothing at this path; /api/v1/docs lists what there is.",
    405: "This path does not take this method.",
    413: "The request's body is too large.",
    500: "Mirror failed to answer. The request_id stands in its log.",
}


class ProblemMiddleware:
    """Under the API, turns errors that Django answers itself (unknown path, wrong method) into problem+json too."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if not request.path.startswith(API_PREFIX):
            return response
        if response.status_code >= 400 and response.headers.get("Content-Type") != CONTENT_TYPE:
            kept = {name: value for name, value in response.headers.items() if name in ("Allow", "Retry-After")}
            detail = _WHAT_TO_DO.get(response.status_code, "The request failed.")
            response = problem(request, response.status_code, detail, headers=kept)
        response.headers["X-Request-Id"] = request_id_of(request)
        for name, value in answer_headers(request).items():
            response.headers[name] = value
        return response
