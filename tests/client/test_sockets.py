"""The client under the real socket classes: nothing of Plivo's is lost or changed, nothing of Mirror's shows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from hypothesis import given
from hypothesis import strategies as st
from starlette.websockets import WebSocketState
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from supervision.client import MirrorClient, _mirror_frame
from tests.client.fake_mirror import Answers, Line, call
from tests.client.servers import asgi_server, websockets_server

Agent = Callable[[MirrorClient, Any], Awaitable[None]]


class Served:
    """One agent behind a real server; what went wrong in it is raised in the test."""

    def __init__(self) -> None:
        self.port = 0
        self.done = asyncio.Event()
        self.error: BaseException | None = None

    async def run(self, websocket: Any, agent: Agent) -> None:
        try:
            await agent(MirrorClient(websocket), websocket)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.done.set()

    async def finished(self) -> None:
        async with asyncio.timeout(10):
            await self.done.wait()
        if self.error is not None:
            raise self.error


@contextlib.asynccontextmanager
async def served_starlette(agent: Agent) -> AsyncIterator[Served]:
    app, served = FastAPI(), Served()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await served.run(websocket, agent)

    async with asgi_server(app) as served.port:
        yield served


@contextlib.asynccontextmanager
async def served_websockets(agent: Agent) -> AsyncIterator[Served]:
    served = Served()

    async def handler(connection: ServerConnection) -> None:
        await served.run(connection, agent)

    async with websockets_server(handler) as served.port:
        yield served


async def read_until(
    error: type[Exception], receive: Callable[[], Awaitable[Any]], got: list[Any] | None = None
) -> None:
    try:
        while True:
            message = await receive()
            if got is not None:
                got.append(message)
    except error:
        return


async def talk(line: Line) -> list[str | bytes]:
    """Send all that Plivo may send with Mirror's frames in between; returns what is the agent's, in order."""
    sent: list[str | bytes] = []
    await line.mirror("note", id="n-1", rev=1, text="one")
    sent.append(await line.start())
    await line.mirror("verdict", turn_id="1", state="judged", score=0.0)
    for number in range(50):
        sent.append(await line.media(bytes([number]) * 160))
        await line.mirror("something_of_a_later_version", number=number)
    odd = [
        "not json",
        '{"event":"stop"}',
        '{"event": "dtmf", "note": "mirror.note"}',
        '{"event": "x", "inner": {"event": "mirror.note"}}',
        '["mirror.note"]',
        '{"event": 3, "mirror.": 1}',
        '{"event":"start","sequenceNumber":"3","ünïcode":"\\u00e9"}',
        '{"event":"mirror.broken"',
        '{"a":' * 30_000 + '"mirror.' + '"' + "}" * 30_000,
        " ",
    ]
    for text in odd:
        await line.connection.send(text)
        sent.append(text)
    await line.connection.send(b"\x00\xff mirror.")
    sent.append(b"\x00\xff mirror.")
    await line.mirror("intervention", id="i-1", turn_id="1", phase="started")
    sent.append(await line.plivo("last", streamId=line.stream_id))
    return sent


@pytest.mark.parametrize("signed", [True, False])
async def test_starlette_gets_every_frame_byte_for_byte(signed: bool) -> None:
    got: list[str | bytes] = []

    async def agent(mirror: MirrorClient, websocket: WebSocket) -> None:
        socket: WebSocket = mirror.websocket
        assert isinstance(socket, WebSocket)
        assert socket.headers["user-agent"] == websocket.headers["user-agent"]
        await socket.accept()
        while (message := await socket.receive())["type"] == "websocket.receive":
            got.append(message["text"] if message.get("text") is not None else message["bytes"])
        assert socket.client_state is WebSocketState.DISCONNECTED

    async with served_starlette(agent) as served:
        async with call(served.port, signed=signed, start=False) as line:
            sent = await talk(line)
        await served.finished()
    assert (got == sent) is signed
    assert sent == [message for message in got if message in sent]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("how", ["iteration", "recv"])
async def test_websockets_gets_every_frame_byte_for_byte(signed: bool, how: str) -> None:
    got: list[str | bytes] = []

    async def agent(mirror: MirrorClient, connection: ServerConnection) -> None:
        socket: ServerConnection = mirror.websocket
        assert socket.remote_address == connection.remote_address
        if how == "iteration":
            async for message in socket:
                got.append(message)  # noqa: PERF401
        else:
            await read_until(ConnectionClosedOK, socket.recv, got)
        with pytest.raises(ConnectionClosedOK):
            await socket.recv()

    async with served_websockets(agent) as served:
        async with call(served.port, signed=signed, start=False) as line:
            sent = await talk(line)
        await served.finished()
    assert (got == sent) is signed
    assert sent == [message for message in got if message in sent]


@pytest.mark.parametrize("signed", [True, False])
async def test_what_the_agent_sends_goes_out_byte_for_byte(signed: bool) -> None:
    texts = ['{"event":"playAudio", "media":{}}', "not json", '{"event":"clearAudio"}']

    async def starlette(mirror: MirrorClient, _: WebSocket) -> None:
        await mirror.websocket.accept()
        for text in texts:
            await mirror.websocket.send_text(text)
        await mirror.websocket.send_json({"event": "checkpoint"})
        await mirror.websocket.close(4001, "done")

    async with served_starlette(starlette) as served:
        from websockets.asyncio.client import connect

        from tests.client.fake_mirror import signature_headers

        headers = signature_headers("/", call_id="c") if signed else {}
        async with connect(f"ws://127.0.0.1:{served.port}/", additional_headers=headers) as connection:
            got = [await connection.recv() for _ in range(4)]
            assert got == [*texts, '{"event":"checkpoint"}']
            with pytest.raises(ConnectionClosedError) as closed:
                await connection.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "done")
        await served.finished()


async def test_starlettes_own_receive_methods_work() -> None:
    got: list[Any] = []

    async def agent(mirror: MirrorClient, _: WebSocket) -> None:
        socket: WebSocket = mirror.websocket
        await socket.accept()
        got.append(await socket.receive_json())
        got.append(await socket.receive_text())
        got.append(await socket.receive_bytes())
        got.extend([text async for text in socket.iter_text()])
        with pytest.raises(RuntimeError):
            await socket.receive_text()

    async with served_starlette(agent) as served:
        async with call(served.port) as line:
            await line.mirror("note", id="n-1", rev=1, text="one")
            await line.connection.send("text")
            await line.connection.send(b"bytes")
            await line.mirror("note", id="n-1", rev=2, text="two")
            await line.connection.send("last")
        await served.finished()
    assert got[0]["event"] == "start"
    assert got[1:] == ["text", b"bytes", "last"]


async def test_websockets_decode_argument_works() -> None:
    got: list[Any] = []

    async def agent(mirror: MirrorClient, _: ServerConnection) -> None:
        socket = mirror.websocket
        got.append(await socket.recv(decode=False))
        got.append(await socket.recv(decode=True))
        got.extend([part async for part in socket.recv_streaming()])

    async with served_websockets(agent) as served, call(served.port, start=False) as line:
        await line.connection.send("text")
        await line.connection.send(b"bytes")
        await line.connection.send("streamed")
        await served.finished()
    assert got == [b"text", "bytes", "streamed"]


async def test_a_connection_that_breaks_reaches_the_framework_as_its_own_error() -> None:
    async def plain(mirror: MirrorClient, _: ServerConnection) -> None:
        await read_until(ConnectionClosedError, mirror.websocket.recv)

    async def starlette(mirror: MirrorClient, _: WebSocket) -> None:
        await mirror.websocket.accept()
        await read_until(WebSocketDisconnect, mirror.websocket.receive_text)

    for serving, agent in ((served_websockets, plain), (served_starlette, starlette)):
        async with serving(agent) as served:  # type: ignore[operator]
            async with call(served.port) as line:
                await line.wait_for("mirror.hello")
                line.connection.transport.abort()
            await served.finished()


async def test_a_socket_that_was_accepted_and_read_before_it_was_wrapped() -> None:
    got: list[Any] = []
    app = FastAPI()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.left_by_a_framework = "kept"  # type: ignore[attr-defined]
        got.append((await websocket.receive_json())["event"])
        mirror = MirrorClient(websocket)
        got.append(mirror.websocket.left_by_a_framework)
        got.append((await mirror.websocket.receive_json())["event"])
        got.append(await mirror.tool("look_up", {}))
        await mirror.websocket.send_json({"event": "done"})

    async with asgi_server(app) as port, call(port) as line:
        await line.media(b"\xff" * 160)
        await line.wait_for("done")
    assert got[:3] == ["start", "kept", "media"]
    assert got[3].supervised
    assert [frame["event"] for frame in line.frames] == ["mirror.hello", "mirror.tool", "done"]


async def test_an_agent_that_waits_for_a_tool_while_it_receives_gets_its_answer() -> None:
    decisions = []

    async def agent(mirror: MirrorClient, _: ServerConnection) -> None:
        async for message in mirror.websocket:
            if json.loads(message)["event"] == "start":
                decisions.append(await mirror.tool("charge_card", {"amount": 45}))
                decisions.append(await mirror.tool("place_order", {"item": "pizza"}))

    answers = Answers(tools={"charge_card": {"allow": False, "code": "policy", "instruction": "ask"}})
    async with served_websockets(agent) as served:
        async with call(served.port, answers=answers) as line:
            for _ in range(200):
                await line.media(b"\xff" * 160)
            await line.wait_for("mirror.tool", 2)
        await served.finished()
    assert [(decision.allow, decision.code) for decision in decisions] == [(False, "policy"), (True, "ok")]


def test_the_client_needs_nothing_but_the_standard_library() -> None:
    root = Path(__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); before = set(sys.modules); import supervision.client; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'supervision'}))"
    )
    found = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS = ["ready", "verdict", "tool_verdict", "intervention", "note", "error", "", "x"]
FIELDS = ["id", "turn_id", "rev", "text", "phase", "score", "policy", "gated_tools", "notes", "allow", "code", "ref"]


@given(frame=st.dictionaries(st.sampled_from(FIELDS), json_values), kind=st.sampled_from(KINDS))
def test_no_frame_of_mirrors_whatever_its_fields_are_harms_the_agent(frame: dict[str, Any], kind: str) -> None:
    from tests.client.wire import Wire, settle
    from tests.support.virtual_time import run_virtual

    async def scenario() -> None:
        wire = Wire()
        mirror = MirrorClient(wire)
        wire.arrive({"event": "start"}, {**frame, "event": f"mirror.{kind}"}, {"event": "media"})
        got = [json.loads(await mirror.websocket.recv())["event"] for _ in range(2)]
        assert got == ["start", "media"]
        mirror.take_note()
        await mirror.turn("Hello.")
        await settle()
        assert wire.sent[-1]["event"] == "mirror.turn"

    run_virtual(scenario())


@given(text=st.text() | json_values.map(json.dumps))
def test_nothing_that_is_plivos_is_taken_for_mirrors(text: str) -> None:
    try:
        frame = json.loads(text)
    except ValueError:
        frame = None
    event = frame.get("event") if isinstance(frame, dict) else None
    if not (isinstance(event, str) and event.startswith("mirror.")):
        assert _mirror_frame(text) is None
