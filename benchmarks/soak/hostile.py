"""Agents that do no good, and their callers: for a process of their own, which no other caller shares."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.soak.calls import BAD, SERVER, start_of
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall

TEN_MINUTES: Final = bytes([0x10, 0x90]) * (8000 * 300)
LONG_FRAME: Final = json.dumps(
    {
        "event": "playAudio",
        "media": {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": b64encode(TEN_MINUTES).decode()},
    }
)


async def hostile_calls(url: str, behaviour: str, number: int, seconds: float, port: int) -> dict[str, Any]:
    """So many calls whose agents, at this port, behave like this; their callers hang up after `seconds` (0: never)."""

    async def agent(connection: ServerConnection) -> None:
        start = await start_of(connection)
        if start is not None:
            with contextlib.suppress(ConnectionClosed):
                await BEHAVIOURS[behaviour](connection, start)

    async with serve(agent, "127.0.0.1", port, **SERVER):
        calls = [SimulatedCall(url, None, PlivoSwitches(hang_up_at_s=seconds)) for _ in range(number)]
        async with asyncio.timeout(120):
            records = await asyncio.gather(*(call.run() for call in calls))
    return {
        "calls": [
            {
                "call_id": record.call_id,
                "outcome": record.outcome,
                "ended_by": record.ended_by,
                "took_s": (record.ended_t or 0) - (record.started_t or 0),
            }
            for record in records
        ]
    }


def _frame(event: str, **fields: Any) -> str:
    return json.dumps({"event": event, **fields})


async def says_nothing(connection: ServerConnection, start: dict[str, Any]) -> None:
    """Accepts the socket, and never says a word."""
    async for _ in connection:
        pass


async def closes_in_mid_frame(connection: ServerConnection, start: dict[str, Any]) -> None:
    """Sends half a frame and is gone."""
    await connection.send(_frame("mirror.hello", v=1, sdk="x"))
    await asyncio.sleep(1)
    # A text frame of 1,000 bytes (RFC 6455, 5.2), of which 20 come.
    connection.transport.write(b"\x81\x7e\x03\xe8" + b'{"event":"playAudio"')
    await asyncio.sleep(0.1)
    connection.transport.abort()


async def sends_ten_minutes(connection: ServerConnection, start: dict[str, Any]) -> None:
    """Sends ten minutes of audio in one frame, then as many frames, at once."""
    await connection.send(_frame("mirror.hello", v=1, sdk="x"))
    media = {"contentType": "audio/x-mulaw", "sampleRate": 8000}
    await connection.send(_frame("mirror.turn", turn_id="t1", text="A very long story."))
    await connection.send(LONG_FRAME)
    await connection.send(_frame("mirror.turn", turn_id="t2", text=BAD))
    small = _frame("playAudio", media={**media, "payload": b64encode(TEN_MINUTES[:160]).decode()})
    for n in range(30_000):
        await connection.send(small)
        if n % 50 == 0:
            # As fast as it goes, but their callers live in this process, too, and have to read it.
            await asyncio.sleep(0)
    async for _ in connection:
        pass


async def never_reads(connection: ServerConnection, start: dict[str, Any]) -> None:
    """Reads nothing, and asks for answers all the time."""
    connection.transport.pause_reading()
    await connection.send(_frame("mirror.hello", v=1, sdk="x", wants=["verdicts", "notes"]))
    while True:
        for _ in range(50):
            await connection.send(_frame("mirror.turn", turn_id=7))
        await asyncio.sleep(0.05)


BEHAVIOURS: Final[dict[str, Callable[[ServerConnection, dict[str, Any]], Awaitable[None]]]] = {
    "mute": says_nothing,
    "mid-frame": closes_in_mid_frame,
    "long": sends_ten_minutes,
    "never-reads": never_reads,
}
