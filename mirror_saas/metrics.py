"""`/metrics`: what this process does, in Prometheus' text format.

Other modules register collectors with `REGISTRY`. Labels have few values that are known before: states, classes,
outcomes; never a tenant, an agent, a call or a URL, of which there is no end and which nobody else may learn.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

# What a proxy adds: then whoever asks is not on this machine, whatever the socket's address says.
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def metrics(request: HttpRequest) -> HttpResponse:
    """The figures. With MIRROR_METRICS_TOKEN for whoever sends it as a bearer token; without, for this machine only.
    Anybody else gets 404, as for a path that is not there."""
    if not _may_read(request):
        return HttpResponse("Not found.\n", status=404, content_type="text/plain")
    return HttpResponse(generate_latest(REGISTRY), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _may_read(request: HttpRequest) -> bool:
    token: str | None = settings.MIRROR.metrics_token
    if token is not None:
        sent = request.headers.get("Authorization", "")
        return hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())
    if any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False
