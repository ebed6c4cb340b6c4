"""Connects a call's link to whatever the user has: a `plivo-stream-sdk` handler, an adapter, or a bare socket.

Works on the handler object that it is given; the package itself is never imported.
"""

from __future__ import annotations

import logging
from typing import Any

from supervision.audio.format import MediaFormat
from supervision.engine.adapters.link import Start, StreamLink
from supervision.engine.adapters.raw_ws import RawPlivoWSAdapter
from supervision.engine.adapters.tap import is_connection, is_starlette

logger = logging.getLogger(__name__)


def connect(handler: Any, link: StreamLink, media_format: MediaFormat) -> None:
    """Let a link carry the frames of `handler`'s stream. `media_format` is taken for the stream's where its `start`
    was read before anybody could look.

    Raises `TypeError` for an object that has no stream.
    """
    if isinstance(handler, RawPlivoWSAdapter):
        handler.connect(link)
    elif is_starlette(handler) or is_connection(handler):
        link.tap(handler)
    elif (socket := getattr(handler, "websocket", None)) is not None and link.tap(socket):
        # PlivoFastAPIStreamingHandler: it holds its socket from the beginning.
        _open_known(handler, link, media_format)
    elif callable(getattr(handler, "handle", None)) and callable(getattr(handler, "send_media", None)):
        _tap_on_handle(handler, link)
        _open_known(handler, link, media_format)
    else:
        raise TypeError(
            f"handler: Mirror cannot find a stream in a {type(handler).__name__}; give a plivo-stream-sdk handler, a "
            "RawPlivoWSAdapter, or a Starlette, FastAPI or websockets socket"
        )


def _tap_on_handle(handler: Any, link: StreamLink) -> None:
    """PlivoWebsocketStreamingHandler gets its socket only with `handle`."""
    socket = getattr(handler, "_websocket", None)
    if socket is not None and link.tap(socket):
        return
    handle = handler.handle

    async def handle_tapped(websocket: Any) -> Any:
        if not link.tap(websocket):
            logger.error("Mirror cannot read a %s: this call is not supervised", type(websocket).__name__)
        return await handle(websocket)

    handler.handle = handle_tapped


def _open_known(handler: Any, link: StreamLink, media_format: MediaFormat) -> None:
    """A handler that has read its `start` already knows what stream it has, but for the format."""
    stream_id = handler.get_stream_id() if callable(getattr(handler, "get_stream_id", None)) else None
    if stream_id:
        call_id = handler.get_call_id() if callable(getattr(handler, "get_call_id", None)) else None
        link.open(Start(call_id or "", stream_id, media_format))
