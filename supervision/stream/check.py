"""Trying an agent out: dial it as a call would, start a stream, and see what comes back.

It uses the very leg that calls use, so what it finds is what a call would find: the same check of the address, the same
headers and signatures, the same limits. Nothing is recorded and nothing of what the agent sends is passed on.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from mirror_saas.ids import uuid7
from supervision.audio.format import FRAME_MS, MediaFormat
from supervision.stream import frames
from supervision.stream.dial import AgentClosed, AgentLeg, AgentUnreachable, handshake_headers

LISTEN_S: Final = 3.0  # for `mirror.hello`, which agents send at once
SILENCE_MS: Final = 200
# Larger frames are no `mirror.hello`, and are not looked at.
_MAX_HELLO: Final = 64 * 1024
CHECK_HEADER: Final = "X-Mirror-Check"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """How an agent is dialled."""

    upstream_url: str
    signing_secret: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    plivo_tokens: Sequence[str] = field(default=(), repr=False)
    audio_format: str = MediaFormat().xml_content_type


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCheck:
    """What was found. Times are in ms; `hello_ms` and `audio_ms` count from the stream's start.

    `problem` says why the agent could not be reached, or that it hung up. `handshake_status` is 101 for a WebSocket,
    another HTTP status for a refusal, None when it never came to that. `hello` is None for an agent that knows nothing
    of Mirror, which works all the same: its calls are relayed, and its turns cannot be judged.
    """

    reachable: bool
    handshake_status: int | None = None
    problem: str | None = None
    dial_ms: int | None = None
    hello: frames.Hello | None = None
    hello_ms: int | None = None
    audio_ms: int | None = None
    close_code: int | None = None


async def agent_check(address: AgentAddress) -> AgentCheck:
    """Dial an agent, start a stream with a moment of silence, and listen for 3 s at most.

    Dialling takes 5 s at most. The handshake carries `X-Mirror-Check: 1`, so that an agent can tell it from a call.
    """
    loop = asyncio.get_running_loop()
    visitor = _Visitor(loop)
    leg = AgentLeg(
        on_text=visitor.text,
        on_binary=lambda data: None,
        on_closed=visitor.closed,
        on_dropped=lambda count: None,
        on_garbled=lambda message: None,
    )
    call_id = str(uuid7())
    headers = handshake_headers(
        secret=address.signing_secret,
        call_id=call_id,
        url=address.upstream_url,
        tenant_headers=address.headers,
        plivo_tokens=address.plivo_tokens,
    )
    began = loop.time()
    try:
        await leg.dial(address.upstream_url, headers={**headers, CHECK_HEADER: "1"}, subprotocols=[])
    except AgentUnreachable as problem:
        return AgentCheck(reachable=False, handshake_status=problem.status, problem=str(problem))
    dial_ms = round((loop.time() - began) * 1000)
    try:
        visitor.began = loop.time()
        for frame in _opening(call_id, str(uuid7()), address.audio_format):
            leg.send_text(frame)
        try:
            async with asyncio.timeout(LISTEN_S):
                await visitor.done.wait()
        except TimeoutError:
            pass  # an agent that says nothing of Mirror; what it did say is known
        leg.send_text(orjson.dumps({"event": "stop"}).decode())
    finally:
        leg.close(1000)
        leg.cut()
        await asyncio.sleep(0)  # the transport ends in the loop's next round
    ended = visitor.ended
    return AgentCheck(
        reachable=True,
        handshake_status=101,
        problem=None if ended is None else f"the agent closed the stream with code {ended.code}",
        dial_ms=dial_ms,
        hello=visitor.hello,
        hello_ms=visitor.hello_ms,
        audio_ms=visitor.audio_ms,
        close_code=None if ended is None else ended.code,
    )


class _Visitor:
    """Hears what the agent says, until it said hello or hung up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.began = loop.time()
        self.done = asyncio.Event()
        self.hello: frames.Hello | None = None
        self.hello_ms: int | None = None
        self.audio_ms: int | None = None
        self.ended: AgentClosed | None = None

    def text(self, text: str) -> None:
        if self.done.is_set() or len(text) > _MAX_HELLO:
            return
        try:
            frame = orjson.loads(text)
        except ValueError:
            return
        event = frame.get("event") if isinstance(frame, dict) else None
        if event == "playAudio" and self.audio_ms is None:
            self.audio_ms = self._since()
        elif event == "mirror.hello":
            try:
                parsed = frames.parse(frame)
            except frames.FrameError:
                return
            if isinstance(parsed, frames.Hello):
                self.hello, self.hello_ms = parsed, self._since()
                self.done.set()

    def closed(self, closed: AgentClosed) -> None:
        if not self.done.is_set():
            self.ended = closed
            self.done.set()

    def _since(self) -> int:
        return round((self._loop.time() - self.began) * 1000)


def _opening(call_id: str, stream_id: str, audio_format: str) -> list[str]:
    """`start` and a moment of silence, as Plivo sends them."""
    encoding, _, rate = audio_format.partition(";rate=")
    media = MediaFormat(encoding, int(rate))
    start = {
        "event": "start",
        "sequenceNumber": 0,
        "start": {
            "callId": call_id,
            "streamId": stream_id,
            "accountId": "",
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": media.encoding, "sampleRate": media.sample_rate},
        },
        "extra_headers": "{}",
    }
    payload = base64.b64encode(media.silence(FRAME_MS)).decode()
    silence = [
        {
            "event": "media",
            "sequenceNumber": chunk,
            "streamId": stream_id,
            "media": {"track": "inbound", "timestamp": str(chunk * FRAME_MS), "chunk": chunk, "payload": payload},
            "extra_headers": "{}",
        }
        for chunk in range(1, SILENCE_MS // FRAME_MS + 1)
    ]
    return [orjson.dumps(frame).decode() for frame in (start, *silence)]
