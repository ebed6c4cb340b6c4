"""A stream for agents that speak Plivo's protocol over a WebSocket of their own, without `plivo-stream-sdk`."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from supervision.audio.format import MediaFormat, MediaFormatError
from supervision.engine.adapters.link import Start, StreamLink
from supervision.plivo import events


class RawPlivoWSAdapter:
    """Plivo's stream over a bare WebSocket, to be given to `Supervisor.attach`.

        adapter = RawPlivoWSAdapter(websocket)
        async with supervisor.attach(adapter, tts_provider=my_tts) as sup:
            async for text in websocket.iter_text():
                frame = json.loads(text)
                if not await adapter.dispatch_inbound(frame):
                    continue

    A Starlette, FastAPI or `websockets` socket is read and written below the agent from `attach` on: its own receive
    loop and its own sends go on as before, Mirror's acknowledgements never appear in it, and `dispatch_inbound` and
    `set_stream_id` are not needed. Any other object that can send text (`send_text`, `send_str` or `send`) works too:
    then every frame of Plivo's must be handed to `dispatch_inbound`, what is said must go through this object, and a
    receive loop that itself waits for an intervention delays what Plivo answers until the wait has run out.
    """

    def __init__(
        self,
        ws: Any,
        content_type: str = "audio/x-mulaw",
        sample_rate: int = 8000,
        *,
        on_answer: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """`content_type` and `sample_rate` (Hz) are the stream's, until Plivo's `start` says otherwise.

        `on_answer` gets frames that Mirror answers in Plivo's place (`clearedAudio` and `playedStream` for what the
        agent sent while Mirror spoke) when the socket is not one that Mirror reads itself.
        Raises `ValueError` for a format that Plivo does not have, `TypeError` for an object that cannot send text.
        """
        try:
            self.media_format = MediaFormat.from_start({"encoding": content_type, "sampleRate": sample_rate})
        except MediaFormatError as problem:
            raise ValueError(f"content_type, sample_rate: {problem}") from problem
        sends = (getattr(ws, name, None) for name in ("send_text", "send_str", "send"))
        send = next((send for send in sends if callable(send)), None)
        if send is None:
            raise TypeError(f"ws: a {type(ws).__name__} has none of send_text, send_str and send")
        self.ws = ws
        self.stream_id: str | None = None
        self.call_id: str | None = None
        self._send: Callable[[str], Any] = send
        self._on_answer = on_answer
        self._link: StreamLink | None = None
        self._dispatching = False
        self._passed = False

    def connect(self, link: StreamLink) -> None:
        """Called by `attach`: from here on frames go through `link`."""
        self._link = link
        if not link.tap(self.ws):
            link.untapped(self._send_text, self._to_agent)
        if self.stream_id:
            link.open(Start(self.call_id or "", self.stream_id, self.media_format))

    def disconnect(self) -> None:
        """Called when supervision ends: from here on frames go out as they are."""
        self._link = None

    def set_stream_id(self, stream_id: str) -> None:
        """Tell the `streamId` of Plivo's `start`. The stream's format is the one that the adapter was made with.

        Raises `ValueError` when it is blank.
        """
        if not stream_id or not stream_id.strip():
            raise ValueError("stream_id: must not be blank; take start.streamId of Plivo's start event")
        self.stream_id = stream_id
        if self._link is not None:
            self._link.open(Start(self.call_id or "", stream_id, self.media_format))

    async def send_media(self, audio: bytes) -> None:
        """Play audio to the caller: raw samples in the stream's format. Raises what the socket raises."""
        payload = base64.b64encode(audio).decode("ascii")
        media = {
            "contentType": self.media_format.encoding,
            "sampleRate": self.media_format.sample_rate,
            "payload": payload,
        }
        await self._say({"event": "playAudio", "media": media})

    async def send_checkpoint(self, name: str) -> None:
        """Ask for a `playedStream` with this name when all audio before it has played.

        Raises `ValueError` before the stream id is known, and what the socket raises.
        """
        await self._say({"event": "checkpoint", "streamId": self._known_stream_id(), "name": name})

    async def send_clear_audio(self) -> None:
        """Drop what is queued for the caller. Raises as `send_checkpoint` does."""
        await self._say({"event": "clearAudio", "streamId": self._known_stream_id()})

    async def dispatch_inbound(self, frame: Mapping[str, Any]) -> bool:
        """Take a decoded frame that the agent's own receive loop got from Plivo.

        False when the frame is none of the agent's: it acknowledges something that Mirror sent.
        """
        frame = dict(frame)
        start = Start.of(frame)
        if start is not None:
            self.stream_id, self.call_id = start.stream_id, start.call_id
            self.media_format = start.media_format or self.media_format
        link = self._link
        if link is None:
            return True
        if link.tapped is not None:
            # The tap has seen it, unless it was read before there was one.
            if start is not None:
                link.open(start)
            return True
        self._dispatching, self._passed = True, False
        try:
            link.plivo_text(events.dump(frame))
        finally:
            self._dispatching = False
        return self._passed

    def closed(self) -> None:
        """Tell that the socket has closed. Needed only for sockets that Mirror cannot read itself."""
        if self._link is not None:
            self._link.gone()

    def _to_agent(self, text: str) -> None:
        if self._dispatching and not self._passed:
            self._passed = True
        elif self._on_answer is not None:
            self._on_answer(json.loads(text))

    async def _say(self, frame: dict[str, Any]) -> None:
        text = events.dump(frame)
        # A tapped socket hands its sends to the link by itself.
        if self._link is not None and self._link.tapped is None:
            await self._link.agent_text(text)
        else:
            await self._send_text(text)

    async def _send_text(self, text: str) -> None:
        sent = self._send(text)
        if inspect.isawaitable(sent):
            await sent

    def _known_stream_id(self) -> str:
        if not self.stream_id:
            raise ValueError("stream_id: not known before Plivo's start event; call set_stream_id or dispatch_inbound")
        return self.stream_id
