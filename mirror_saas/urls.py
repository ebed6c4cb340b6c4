"""Every HTTP path of Mirror."""

from django.urls import include, path

from mirror_saas import health, metrics
from mirror_saas.api import api

urlpatterns = [
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", metrics.metrics, name="metrics"),
    path("api/v1/", api.urls),
    path("", include("supervision.stream.http_urls")),
    path("", include("webui.urls")),
    path("", include("webui.allauth_urls")),
]
