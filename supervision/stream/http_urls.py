"""What Plivo asks for over HTTP: the answer to a call, and a place to report a stream's fate."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from supervision.audio.format import MediaFormat
from supervision.plivo.xml import stream_response
from supervision.stream.directory import AgentBinding, DirectoryUnavailable
from supervision.stream.runtime import stream_runtime
from supervision.stream.token import query_with, token_make


@csrf_exempt
@require_http_methods(["GET", "POST"])
async def answer(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """The `<Stream>` XML of a call, with a token that carries what only this webhook knows."""
    binding = await _binding(slug, key)
    if isinstance(binding, HttpResponse):
        return binding
    asked = request.POST if request.method == "POST" else request.GET
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
        content_type=MediaFormat().xml_content_type,
        status_callback_url=f"{public}/plivo/{slug}/{key}/status",
    )
    return HttpResponse(written, content_type="application/xml")


@csrf_exempt
@require_http_methods(["GET", "POST"])
async def status(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """A stream status callback: taken, and answered without a body."""
    binding = await _binding(slug, key)
    return binding if isinstance(binding, HttpResponse) else HttpResponse(status=204)


async def _binding(slug: str, key: str) -> AgentBinding | HttpResponse:
    runtime = await stream_runtime()
    try:
        binding = await runtime.directory.lookup(slug, key)
    except DirectoryUnavailable:
        return HttpResponse(status=503, headers={"Retry-After": "2"})
    # Unknown tenant, unknown key, revoked key and another tenant's key look the same: 403 without a body.
    return binding if binding is not None else HttpResponse(status=403)


urlpatterns = [
    path("plivo/<str:slug>/<str:key>/answer", answer),
    path("plivo/<str:slug>/<str:key>/status", status),
]
