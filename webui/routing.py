"""WebSocket routes of the console."""

from django.urls import path

from webui.consumers import ConsoleConsumer
from webui.phone import PhoneConsumer

websocket_urlpatterns = [
    path("ws/console", ConsoleConsumer.as_asgi()),
    path("ws/test-call", PhoneConsumer.as_asgi()),
]
