"""The agent leg: one WebSocket to the tenant's agent.

A slow agent must never slow Plivo: what it does not read waits in a bounded queue, and past the bound its oldest media
is dropped, counted, and shown. The same queue holds what Plivo says while the agent is being dialled.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from mirror_saas.egress import EgressRefused, egress_socket
from supervision.plivo import signatures as plivo
from supervision.plivo.events import is_media
from supervision.stream.headers import header_reserved

logger = logging.getLogger(__name__)

DIAL_TIMEOUT_S: Final = 5.0
MAX_MESSAGE: Final = 16 * 1024 * 1024
# What waits in the kernel is read at once and handled before other calls have their turn: of an agent that sends ten
# minutes of audio in small frames that would be seconds. A window of 64 KiB carries 20 times real time over 250 ms.
RECEIVE_BUFFER: Final = 64 * 1024
PING_AFTER_S: Final = 20.0
WRITE_HIGH: Final = 256 * 1024  # bytes in the socket's buffer from which frames wait in our own queue
BACKLOG_MEDIA: Final = 500  # media frames of 20 ms that wait for a slow agent: 10 s, then the oldest go
BACKLOG_BYTES: Final = 8 * 1024 * 1024
BACKLOG_MOST: Final = 64 * 1024 * 1024  # of what is no media and is never dropped; with more, the agent has failed
_TEXT: Final = WSMsgType.TEXT
GOODBYE_S: Final = 5.0  # for an agent to take what was sent and our close frame; then the connection is cut


class AgentUnreachable(Exception):
    """The agent could not be connected to. The message says why, without secrets; `status` is the HTTP status that it
    refused the handshake with, if it did; `temporary` whether it may be worth dialling again."""

    def __init__(self, message: str, *, status: int | None = None, temporary: bool = True) -> None:
        self.status = status
        self.temporary = temporary and (status is None or status >= 500 or status in (408, 425, 429))
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class AgentClosed:
    """How the agent's socket ended: ``code`` as in RFC 6455 (1006 when it just broke)."""

    code: int
    reason: str

    @property
    def normal(self) -> bool:
        """Whether the agent said goodbye, rather than failed."""
        return self.code in (1000, 1001, 1005)

    @property
    def temporary(self) -> bool:
        """Whether another socket may fare better: the connection broke or the server did, it refused nothing."""
        return self.code in (1006, 1011, 1012, 1013, 1014)


def upstream_url(base: str, query: str) -> str:
    """The agent's URL with Plivo's query string (less Mirror's own token) behind its own."""
    if not query:
        return base
    parts = urlsplit(base)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))


def signature(secret: str, call_id: str, url: str, now_s: int) -> str:
    """`X-Mirror-Signature` for a handshake: HMAC-SHA256 over ``t.call_id.path?query``, hex."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    digest = hmac.new(secret.encode(), f"{now_s}.{call_id}.{target}".encode(), hashlib.sha256).hexdigest()
    return f"t={now_s},v1={digest}"


class AgentLeg:
    """The agent's socket, from before it is dialled until after it closed.

    ``on_text`` and ``on_binary`` get whole messages as they arrive, ``on_closed`` is called once; ``on_dropped`` gets
    the number of media frames lost to a slow agent.
    """

    def __init__(
        self,
        *,
        on_text: Callable[[str], None],
        on_binary: Callable[[bytes], None],
        on_closed: Callable[[AgentClosed], None],
        on_dropped: Callable[[int], None],
        on_garbled: Callable[[str], None],
    ) -> None:
        self._on_text = on_text
        self._on_binary = on_binary
        self._on_closed = on_closed
        self._on_dropped = on_dropped
        self._on_garbled = on_garbled
        self._transport: WSTransport | None = None
        self._paused = True  # until connected
        self._backlog: deque[tuple[WSMsgType, bytes, bool]] = deque()
        self._backlog_bytes = 0
        self._backlog_media = 0
        self._closed: AgentClosed | None = None
        self._pinging: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._heard_since_ping = False

    @property
    def connected(self) -> bool:
        """Whether frames can reach the agent now."""
        return self._transport is not None and self._closed is None

    async def dial(self, url: str, *, headers: Mapping[str, str], subprotocols: list[str]) -> None:
        """Connect within 5 s and send what waited. Raises :class:`AgentUnreachable`."""
        extra = dict(headers)
        if subprotocols:
            extra["Sec-WebSocket-Protocol"] = ", ".join(subprotocols)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                transport, listener = await ws_connect(
                    lambda: _Listener(self),
                    url,
                    extra_headers=extra,
                    websocket_handshake_timeout=DIAL_TIMEOUT_S,
                    max_frame_size=MAX_MESSAGE,
                    max_redirects=0,
                    socket_factory=_socket,
                    use_aiofastnet=False,
                )
        except TimeoutError as problem:
            raise AgentUnreachable(f"no connection within {DIAL_TIMEOUT_S:.0f} s") from problem
        except EgressRefused as problem:
            raise AgentUnreachable(str(problem), temporary=False) from problem
        except WSError as problem:
            answer = problem.response if isinstance(problem, WSHandshakeError) else None
            status = None if answer is None else int(answer.status)
            raise AgentUnreachable(f"the handshake failed: {type(problem).__name__}", status=status) from problem
        except OSError as problem:
            raise AgentUnreachable(f"the connection failed: {problem.strerror or type(problem).__name__}") from problem
        except ValueError as problem:
            raise AgentUnreachable("the agent's URL cannot be dialled", temporary=False) from problem
        if listener is None:
            # picows calls a connection that closed before it answered a success without a listener.
            raise AgentUnreachable("the handshake failed: the connection was closed instead of an answer")
        self._watching = asyncio.get_running_loop().create_task(_retrieved(transport))
        if self._closed is None:
            transport.underlying_transport.set_write_buffer_limits(high=WRITE_HIGH)
            self._transport = transport
            self._ping_later()
            self._resume()
        else:
            transport.disconnect(False)

    def send_text(self, text: str) -> None:
        """Send a text frame as it is, or queue it while the agent is dialled or slow."""
        if self._paused:
            self._wait(WSMsgType.TEXT, text.encode(), is_media(text))
        elif self._transport is not None:
            self._transport.send(_TEXT, text.encode())

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame as it is."""
        if self._paused:
            self._wait(WSMsgType.BINARY, data, False)
        elif self._transport is not None:
            self._transport.send(WSMsgType.BINARY, data)

    def close(self, code: int = 1000) -> None:
        """Say goodbye with ``code``; nothing that still comes is taken, and a peer that does not answer is cut off."""
        self._closed = self._closed or AgentClosed(code, "closed by Mirror")
        if self._pinging is not None:
            self._pinging.cancel()
        self._backlog.clear()
        self._paused = True
        if self._transport is not None:
            self._transport.send_close(WSCloseCode(code))
            self._transport.disconnect()
            # An agent that reads nothing would keep its socket, and what it did not read, for ever.
            asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.disconnect, False)

    def reopen(self, first: str) -> None:
        """After its socket broke: be as before it was dialled, with the text frame ``first`` in front of all that an
        agent is sent from now on."""
        self._closed = self._transport = None
        self._paused = True
        self._backlog.clear()
        self._backlog_bytes = self._backlog_media = 0
        self.send_text(first)

    def cut(self) -> None:
        """End the connection at once, after :meth:`close`: for a loop that ends too and cannot wait for the peer."""
        if self._transport is not None:
            self._transport.disconnect(False)

    def _ping_later(self) -> None:
        self._heard_since_ping = False
        self._pinging = asyncio.get_running_loop().call_later(PING_AFTER_S, self._ping)

    def _ping(self) -> None:
        # A missing pong is no reason to hang up: Plivo would not either, and a busy agent answers late.
        if self._transport is not None and self._closed is None:
            if not self._heard_since_ping:
                self._transport.send_ping()
            self._ping_later()

    def _wait(self, kind: WSMsgType, data: bytes, media: bool) -> None:
        if self._closed is not None:
            return
        self._backlog.append((kind, data, media))
        self._backlog_bytes += len(data)
        self._backlog_media += media
        if self._backlog_media > BACKLOG_MEDIA or self._backlog_bytes > BACKLOG_BYTES:
            self._drop_oldest_media()
        if self._backlog_bytes > BACKLOG_MOST:
            # All that is left are frames that are never dropped: answers that it asks for and does not read.
            self._backlog.clear()
            self._backlog_bytes = self._backlog_media = 0
            if self._transport is not None:
                self.cut()
            else:
                self._ended(AgentClosed(1006, "too much came before the agent was reached"))

    def _drop_oldest_media(self) -> None:
        for index, (_, data, media) in enumerate(self._backlog):
            if media:
                del self._backlog[index]
                self._backlog_bytes -= len(data)
                self._backlog_media -= 1
                self._on_dropped(1)
                return

    def _resume(self) -> None:
        self._paused = False
        while self._backlog and not self._paused and self._transport is not None:
            kind, data, media = self._backlog.popleft()
            self._backlog_bytes -= len(data)
            self._backlog_media -= media
            self._transport.send(kind, data)

    def _ended(self, closed: AgentClosed) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
        first, self._closed = self._closed is None, self._closed or closed
        self._paused = True
        self._backlog.clear()
        if first:
            self._on_closed(closed)


class _Listener(WSListener):
    """Puts the frames of the agent's socket together to messages."""

    def __init__(self, leg: AgentLeg) -> None:
        self._leg = leg
        self._parts: list[bytes] = []
        self._size = 0
        self._kind = WSMsgType.TEXT
        self._close = AgentClosed(1006, "the connection broke")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if self._leg._closed is not None and kind is not WSMsgType.CLOSE:
            return
        self._leg._heard_since_ping = True
        if kind is _TEXT and frame.fin:
            try:
                text = frame.get_payload_as_utf8_text()
            except UnicodeDecodeError:
                self._garbled()
            else:
                self._leg._on_text(text)
        elif kind is WSMsgType.BINARY and frame.fin:
            self._leg._on_binary(frame.get_payload_as_bytes())
        elif kind is WSMsgType.CLOSE:
            code = frame.get_close_code()
            number = int(code.value if isinstance(code, WSCloseCode) else code)
            self._close = AgentClosed(number or 1005, "closed by the agent")
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self._fragment(transport, frame)

    def _fragment(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.CONTINUATION:
            self._kind, self._parts, self._size = frame.msg_type, [], 0
        payload = frame.get_payload_as_bytes()
        self._size += len(payload)
        if self._size > MAX_MESSAGE:
            self._close = AgentClosed(1009, f"a message longer than {MAX_MESSAGE} bytes")
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
            return
        self._parts.append(payload)
        if frame.fin:
            whole, self._parts = b"".join(self._parts), []
            if self._kind is WSMsgType.TEXT:
                self._text(whole)
            else:
                self._leg._on_binary(whole)

    def _text(self, payload: bytes) -> None:
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError:
            self._garbled()
        else:
            self._leg._on_text(text)

    def _garbled(self) -> None:
        # Not a text frame by RFC 6455; Plivo could not be given it as one.
        self._leg._on_garbled("a text frame that is not UTF-8 was dropped")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._leg._ended(self._close)

    def pause_writing(self) -> None:
        self._leg._paused = True

    def resume_writing(self) -> None:
        self._leg._resume()


async def _retrieved(transport: WSTransport) -> None:
    """Take in how the transport ended: :class:`_Listener` has told already, and an end that nobody asks about would be
    logged as an error of ours."""
    try:
        await transport.wait_disconnected()
    except Exception as problem:
        logger.debug("An agent's socket ended: %s", type(problem).__name__)


async def _socket(url: Any) -> Any:
    return await egress_socket(url.host, url.port, receive_buffer=RECEIVE_BUFFER)


def handshake_headers(
    *, secret: str, call_id: str, url: str, tenant_headers: Mapping[str, str], plivo_tokens: Sequence[str] = ()
) -> dict[str, str]:
    """The headers of the agent's handshake: the tenant's own, the call's id, and the signatures over both.

    With the tenant's ``plivo_tokens`` they hold Plivo's signature too, made for ``url``: an agent that checks it sees
    its own URL, and Plivo's original was for Mirror's.
    """
    headers = {name: value for name, value in tenant_headers.items() if not header_reserved(name)}
    headers["X-Mirror-Call"] = call_id
    headers["X-Mirror-Signature"] = signature(secret, call_id, url, int(time.time()))
    nonce = str(secrets.randbelow(10**20))
    return headers | plivo.sign(tokens=plivo_tokens, method="GET", urls=plivo.handshake_urls(url), nonce=nonce)
