"""WebSocket routes of the console."""

from django.urls import path

from webui.consumers import ConsoleConsumer

websocket_urlpatterns = [path("ws/console", ConsoleConsumer.as_asgi())]
