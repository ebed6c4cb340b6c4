"""The path that Plivo dials."""

from __future__ import annotations

from django.urls import path

from supervision.stream.consumer import StreamConsumer

websocket_urlpatterns = [
    path("stream/<str:slug>/<str:key>", StreamConsumer.as_asgi()),
]
