"""What Plivo asks for over HTTP: the answer to a call, and a place to report a stream's fate.

Both are checked against Plivo's signature once the tenant has stored its Plivo auth token. Plivo signs the URL as it
was configured there, so what is compared is `MIRROR_PUBLIC_URL` with the path behind it, whatever host and scheme the
request arrived with after a proxy or a tunnel.
"""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import parse_qsl

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from supervision.plivo import signatures
from supervision.plivo.xml import stream_response
from supervision.stream.directory import AgentBinding, DirectoryUnavailable
from supervision.stream.limits import lease_name
from supervision.stream.runtime import stream_runtime
from supervision.stream.token import query_with, token_make
from tenants.limits_refused import Refused, refused

logger = logging.getLogger(__name__)

# Plivo sends some twenty short fields.
MAX_BODY_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 200
RETRY_AFTER_S: Final = 10  # for a place among a tenant's calls to become free

Fields = list[tuple[str, str]]


@csrf_exempt
@require_http_methods(["GET", "POST"])
async def answer(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """The `<Stream>` XML of a call, with a token that carries what only this webhook knows."""
    admitted = await _admitted(request, slug, key, "answer")
    if isinstance(admitted, HttpResponse):
        return admitted
    binding, fields = admitted
    asked = dict(fields) if request.method == "POST" else request.GET
    limit = binding.limits.calls
    name = lease_name(binding.agent_id, asked.get("CallUUID", ""))
    if not await (await stream_runtime()).calls.is_free(binding.tenant_id, limit=limit, call=name):
        refused(binding.tenant_id, Refused.CALLS)
        logger.warning(
            "A call to agent %s was refused at its answer URL: tenant %s has %s concurrent calls, which is its limit",
            binding.agent_id,
            binding.tenant_slug,
            limit,
        )
        # Whatever is no 2xx makes Plivo ask the application's fallback answer URL.
        return HttpResponse(
            f"concurrent calls: the limit of {limit} is reached\n",
            status=503,
            content_type="text/plain",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    token = token_make(
        tenant_id=binding.tenant_id,
        agent_id=binding.agent_id,
        call_id=asked.get("CallUUID", ""),
        from_number=asked.get("From", ""),
        to_number=asked.get("To", ""),
    )
    public: str = settings.MIRROR.public_url
    own_query = request.META.get("QUERY_STRING", "") if request.method == "POST" else ""
    url = f"ws{public.removeprefix('http')}/stream/{slug}/{key}?{query_with(own_query, token)}"
    written = stream_response(
        url,
        content_type=binding.audio_format,
        status_callback_url=f"{public}/plivo/{slug}/{key}/status",
    )
    return HttpResponse(written, content_type="application/xml")


@csrf_exempt
@require_http_methods(["GET", "POST"])
async def status(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """A stream status callback: taken, and answered without a body."""
    admitted = await _admitted(request, slug, key, "status")
    return admitted if isinstance(admitted, HttpResponse) else HttpResponse(status=204)


async def _admitted(request: HttpRequest, slug: str, key: str, what: str) -> tuple[AgentBinding, Fields] | HttpResponse:
    """Whose webhook it is and the fields of its form, or the refusal."""
    fields = _fields(request)
    runtime = await stream_runtime()
    try:
        binding = await runtime.directory.lookup(slug, key)
    except DirectoryUnavailable:
        return HttpResponse(status=503, headers={"Retry-After": "2"})
    # Unknown tenant, unknown key, revoked key, another tenant's key, a wrong or missing signature and a body that
    # Plivo would not send look the same: 403 without a body.
    if binding is None or fields is None:
        return HttpResponse(status=403)
    if binding.plivo_tokens is not None and not _signed(request, binding, fields, f"/plivo/{slug}/{key}/{what}"):
        logger.warning(
            "The %s URL of agent %s was asked without a signature that fits the stored Plivo auth token and"
            " MIRROR_PUBLIC_URL (%s); refused",
            what,
            binding.agent_id,
            settings.MIRROR.public_url,
        )
        return HttpResponse(status=403)
    return binding, fields


def _signed(request: HttpRequest, binding: AgentBinding, fields: Fields, path: str) -> bool:
    query = request.META.get("QUERY_STRING", "")
    url = f"{settings.MIRROR.public_url}{path}{'?' + query if query else ''}"
    # A GET's fields stand in its query.
    return (
        signatures.verify(
            request.headers,
            tokens=binding.plivo_tokens or (),
            method=request.method or "",
            urls=[url],
            params=fields if request.method == "POST" else (),
        )
        is not None
    )


def _fields(request: HttpRequest) -> Fields | None:
    """The decoded fields of a form, in order and with repetitions; none for another kind of body. None when the body is
    larger than any of Plivo's, or broke off."""
    try:
        body = request.body
    except (RequestDataTooBig, UnreadablePostError):
        return None
    if len(body) > MAX_BODY_BYTES:
        return None
    if request.content_type != "application/x-www-form-urlencoded":
        return []
    try:
        return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        return None


urlpatterns = [
    path("plivo/<str:slug>/<str:key>/answer", answer),
    path("plivo/<str:slug>/<str:key>/status", status),
]
