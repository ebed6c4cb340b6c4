"""The server itself, as a process with real sockets: its limits, what each part serves, and how it stops."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mirror_saas.serving import WEBSOCKET_MAX_BYTES, ListenError, port_check
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk_" + "k" * 43


@dataclass
class Running:
    process: asyncio.subprocess.Process
    port: int
    server: str = "daphne"

    @property
    def stream(self) -> str:
        return f"ws://127.0.0.1:{self.port}/stream/demo/{KEY}"

    def http(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def output(self) -> str:
        """All it printed, once it has ended."""
        printed, _ = await self.process.communicate()
        return printed.decode()


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def until_draining(server: Running) -> None:
    """Return once the server has seen its signal."""
    async with asyncio.timeout(10):
        while await status(server.http(f"/plivo/demo/{KEY}/answer")) != 503:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(
    *, part: str = "all", drain_s: float = 60.0, server: str = "daphne", accept_s: float = 0.0
) -> AsyncIterator[Running]:
    port = free_port()
    options = (str(port), part, str(drain_s), server, str(accept_s))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.mirror_saas.echo_server", *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await status(f"http://127.0.0.1:{port}/livez")
                    break
                except aiohttp.ClientError:
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
        yield Running(process, port, server)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(params=["daphne", "uvicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    """The servers that there are."""
    return str(request.param)


async def test_a_message_of_16_mib_passes_and_one_byte_more_closes_the_socket() -> None:
    async with serving() as server, connect(server.stream, max_size=None, compression=None) as socket_:
        message = b"m" * WEBSOCKET_MAX_BYTES
        await socket_.send(message)
        assert await socket_.recv() == message
        # The server drops the connection, perhaps before all of it was sent.
        with contextlib.suppress(ConnectionClosed):
            await socket_.send(message + b"1")
        with pytest.raises(ConnectionClosed):
            await socket_.recv()


@pytest.mark.parametrize("code", [1000, 1008, 1011, 4000])
async def test_a_socket_is_closed_with_the_code_that_the_application_gives(code: int) -> None:
    async with serving() as server, connect(server.stream) as call:
        await call.send(f"close {code}")
        async with asyncio.timeout(5):
            await call.wait_closed()
        assert call.close_code == code


async def test_no_path_is_ever_printed(kind: str) -> None:
    async with serving(server=kind) as server:
        async with connect(server.stream) as socket_:
            await socket_.send("hello")
            assert await socket_.recv() == "hello"
        assert await status(server.http(f"/plivo/demo/{KEY}/status")) == 200
        server.process.send_signal(signal.SIGTERM)
        printed = await server.output()
    assert KEY not in printed
    assert "/stream/" not in printed
    assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("part", "call_path", "console"), [("all", True, True), ("stream", True, False), ("web", False, True)]
)
async def test_each_part_serves_its_share_and_its_health(part: str, call_path: bool, console: bool) -> None:
    async with serving(part=part) as server:
        assert await status(server.http("/readyz")) == 200
        assert await status(server.http(f"/plivo/demo/{KEY}/answer")) == (200 if call_path else 404)
        assert await status(server.http("/calls")) == (200 if console else 404)
        for url, served in ((server.stream, call_path), (f"ws://127.0.0.1:{server.port}/live/calls", console)):
            if served:
                async with connect(url) as socket_:
                    await socket_.send("hello")
                    assert await socket_.recv() == "hello"
            else:
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url)
                assert refused.value.response.status_code == 403


async def test_sigterm_lets_a_running_call_finish_and_takes_no_new_one(kind: str) -> None:
    async with serving(server=kind) as server:
        async with connect(server.stream) as call:
            await call.send("before")
            assert await call.recv() == "before"
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                await until_draining(server)
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.stream)
            assert refused.value.response.status_code == 403
            assert await status(server.http("/calls")) == 200
            await call.send("after")
            assert await call.recv() == "after"
            assert server.process.returncode is None
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0


async def until_printed(server: Running, words: str) -> None:
    assert server.process.stdout is not None
    async with asyncio.timeout(10):
        while words not in (await server.process.stdout.readline()).decode():
            assert server.process.returncode is None


async def test_a_stopping_server_takes_calls_until_whoever_spreads_them_knows(kind: str) -> None:
    async with serving(server=kind, accept_s=1.0) as server:
        server.process.send_signal(signal.SIGTERM)
        await until_printed(server, "calls are still taken for 1 s")
        async with connect(server.stream) as call:
            await call.send("came late")
            assert await call.recv() == "came late"
            await until_printed(server, "1 calls may finish within 60 s")
            assert await status(server.http(f"/plivo/demo/{KEY}/answer")) == 503
            with pytest.raises(InvalidStatus):
                await connect(server.stream)
            await call.send("still here")
            assert await call.recv() == "still here"
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0


async def test_a_second_signal_ends_a_server_that_still_takes_calls(kind: str) -> None:
    async with serving(server=kind, accept_s=600) as server, connect(server.stream) as call:
        server.process.send_signal(signal.SIGTERM)
        await until_printed(server, "calls are still taken for 600 s")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            await call.recv()
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0


async def test_a_call_that_does_not_end_is_ended_when_its_time_is_over(kind: str) -> None:
    async with serving(server=kind, drain_s=0.3) as server, connect(server.stream) as call:
        await call.send("hello")
        await call.recv()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            await call.recv()
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0
        assert "1 calls did not finish within 0.3 s" in await server.output()


async def test_a_second_signal_ends_calls_at_once() -> None:
    async with serving(drain_s=600) as server, connect(server.stream) as call:
        await call.send("hello")
        await call.recv()
        server.process.send_signal(signal.SIGINT)
        await until_draining(server)
        server.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0


async def test_what_calls_share_is_opened_first_and_closed_after_the_last_call(kind: str) -> None:
    async with serving(server=kind, drain_s=0) as server, connect(server.stream) as call:
        await call.send("hello")
        await call.recv()
        server.process.send_signal(signal.SIGTERM)
        lines = (await server.output()).splitlines()
    assert lines[0] == "on_start ran"
    assert "on_start failed" in lines[1]
    assert lines[-2:] == ["socket ended", "on_stop ran"]
    assert server.process.returncode == 0


async def test_an_open_console_page_does_not_hold_up_a_stop() -> None:
    async with serving(drain_s=600) as server, connect(f"ws://127.0.0.1:{server.port}/live/calls") as page:
        await page.send("hello")
        await page.recv()
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0


async def test_a_taken_port_is_one_line_and_a_failure(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^Port {port} on 127\.0\.0\.1 is taken"):
            port_check("127.0.0.1", port)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.mirror_saas.echo_server", str(port), "all", "0", kind),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
    assert process.returncode == 1
    assert printed.decode().startswith(f"Port {port} on 127.0.0.1 is taken")
    assert printed.count(b"\n") == 1


def test_an_address_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(ListenError, match=r"^Cannot listen on 192\.0\.2\.1:8000"):
        port_check("192.0.2.1", 8000)
