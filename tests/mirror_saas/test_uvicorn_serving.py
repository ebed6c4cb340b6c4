"""Uvicorn's own answers, which no application has seen: as bounded and as silent as Daphne's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from django.core.management import CommandError, call_command

from mirror_saas.serving import HTTP_BODY_MAX_BYTES
from tests.mirror_saas.test_serving import KEY, Running, serving
from tests.support.raw_http import Answer, raw_ask

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Running]:
    async with serving(server="uvicorn") as running:
        yield running


async def asked(server: Running, request: bytes) -> Answer:
    answer = await asyncio.to_thread(raw_ask, server.port, request)
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: a\r\nX-Big: " + b"x" * 2_000_000 + b"\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (HTTP_BODY_MAX_BYTES + 1), 413),
        (
            b"GET /stream/demo/%s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: <b>not one</b>\r\n\r\n" % KEY.encode(),
            400,
        ),
        (
            b"GET /stream/demo/%s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 9\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % KEY.encode(),
            400,
        ),
    ],
)
@module_loop
async def test_what_uvicorn_refuses_itself_quotes_nothing_and_has_our_headers(
    server: Running, request_: bytes, status: int
) -> None:
    answer = await asked(server, request_)
    assert answer.status == status
    assert answer.one("x-content-type-options") == "nosniff"
    assert answer.one("cache-control") == "no-store"
    assert not answer.all("server")
    for quoted in (b"not one", KEY.encode(), b"GARBAGE", b"uvicorn", b"websockets"):
        assert quoted not in answer.body


@module_loop
async def test_a_body_without_a_length_is_bounded_too(server: Running) -> None:
    chunk = b"10000\r\n" + b"b" * 0x10000 + b"\r\n"
    request = b"POST /calls HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await asked(server, request + chunk * 4 + b"0\r\n\r\n")
    assert answer.status == 200
    answer = await asked(server, request.replace(b"/calls", b"/read") + chunk * 161)
    assert answer.status == 413


def test_uvicorn_serves_calls_and_nothing_else() -> None:
    for part in ("all", "web"):
        with pytest.raises(CommandError, match="--stream-only"):
            call_command("serve", "--only", part, "--server", "uvicorn")
    with pytest.raises(CommandError, match="--stream-only"):
        call_command("serve", "--server", "uvicorn")
