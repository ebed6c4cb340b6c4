"""The ASGI application: HTTP to Django, Plivo's streams to the call path, console sockets behind their login."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mirror_saas.settings")
# Django has to be set up before anything below imports a model.
http_application = get_asgi_application()

from mirror_saas.headers import headers_application  # noqa: E402
from mirror_saas.origins import origin_application, scheme_application  # noqa: E402
from supervision.stream.routing import websocket_urlpatterns as stream_patterns  # noqa: E402
from webui.routing import websocket_urlpatterns as console_patterns  # noqa: E402

ASGIApp = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

STREAM_PREFIX = "/stream/"


async def websocket_refuse(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Refuse a handshake for a path that nobody serves (403, the same answer as for a wrong key).

    URLRouter raises for an unknown path instead, and that error's text carries the path, so it may carry a key.
    """
    await receive()
    await send({"type": "websocket.close"})


_unknown = re_path(r"", websocket_refuse)  # type: ignore[arg-type]
_stream: ASGIApp = URLRouter([*stream_patterns, _unknown])
_console: ASGIApp = origin_application(AuthMiddlewareStack(URLRouter([*console_patterns, _unknown])))


async def websocket_application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Plivo is no browser: its streams carry neither Origin nor session, the key in the path is the credential."""
    app = _stream if str(scope["path"]).startswith(STREAM_PREFIX) else _console
    await app(scope, receive, send)


application: ASGIApp = scheme_application(
    headers_application(ProtocolTypeRouter({"http": http_application, "websocket": websocket_application}))
)
