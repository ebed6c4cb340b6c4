"""HTTP by hand: requests as nobody's client would write them, and answers with every header as it came."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """An answer; `headers` have names in lower case, repeated ones included."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def one(self, name: str) -> str:
        """The header that must be there once."""
        (value,) = self.all(name)
        return value

    @property
    def cookies(self) -> dict[str, str]:
        """Set-Cookie lines by the cookie's name."""
        return {line.split("=", 1)[0]: line for line in self.all("set-cookie")}


def raw_ask(port: int, request: bytes, *, timeout_s: float = TIMEOUT_S) -> Answer | None:
    """What 127.0.0.1:`port` says to these very bytes; None when it closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        with contextlib.suppress(OSError):  # refused before all was sent; the answer is there
            connection.sendall(request)
        return _answer(connection)


def ask(
    port: int,
    method: str,
    path: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    host: str | None = "mirror.test",
) -> Answer:
    """One request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else ())]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body)}")
    answer = raw_ask(port, "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
    assert answer is not None, f"no answer to {method} {path[:80]}"
    return answer


def upgrade(port: int, path: str, *, headers: Iterable[tuple[str, str]] = (), host: str = "mirror.test") -> Answer:
    """The answer to a WebSocket handshake."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in headers]
    answer = raw_ask(port, "\r\n".join([*lines, "", ""]).encode("latin-1"))
    assert answer is not None, f"no answer to the handshake for {path[:80]}"
    return answer


def _answer(connection: socket.socket) -> Answer | None:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = _more(connection)
        if not chunk:
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    status = int(first.split(" ")[1])
    lengths = [int(value) for name, value in headers if name == "content-length"]
    chunked = ("transfer-encoding", "chunked") in headers
    while status not in (101, 204, 304) and (not lengths or len(body) < lengths[0]):
        if chunked and body.endswith(b"0\r\n\r\n"):
            break
        chunk = _more(connection)
        if not chunk:
            break
        body += chunk
    return Answer(status, headers, body)


def _more(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
