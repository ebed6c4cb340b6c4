"""Supervision for a voice agent that already works: a few lines around the WebSocket it has.

    from supervision.client import MirrorClient

    mirror = MirrorClient(websocket)                        # Starlette / FastAPI or `websockets`
    handler = PlivoFastAPIStreamingHandler(mirror.websocket)  # the framework reads from here instead

    await mirror.turn("Two pizzas, right?", customer_text="…")   # before the turn's audio
    result = await mirror.run_tool("place_order", {"item": "pizza", "quantity": 2}, place_order, customer_text="…")
    note = mirror.take_note()                               # into the next prompt, if there is one

Mirror dials agents with the header ``X-Mirror-Signature``. Without it (Plivo itself is on the other end) the client
sends nothing and takes nothing: ``websocket`` is the very object it was given and every method gives its neutral
answer. With it, the client reads the socket in a task of its own, keeps the ``mirror.*`` frames and hands everything
else on unchanged and in order. That is why a framework may await :meth:`MirrorClient.tool` inside its own receive
callback, as ``plivo-stream-sdk`` does, and still get the answer.

Standard library only. One client per call; it belongs to the event loop on which the socket is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import inspect
import json
import logging
import re
import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

__all__ = [
    "Feed",
    "FrameError",
    "Intervention",
    "MirrorClient",
    "Note",
    "Ready",
    "Say",
    "ToolDecision",
    "UnsupportedSocketError",
    "Verdict",
    "verify",
]

log = logging.getLogger(__name__)

PROTOCOL_VERSION: Final = 1
SDK: Final = "mirror-python/0.1.0"
SIGNATURE_HEADER: Final = "X-Mirror-Signature"
CALL_HEADER: Final = "X-Mirror-Call"

#: What :meth:`MirrorClient.tool` tells Mirror it waits. Above the policy's default ``tool_gate_timeout_ms`` of 3,000,
#: so that it is Mirror that gives up first and says why.
TOOL_TIMEOUT_MS: Final = 3_500
#: How much longer than it said the client really waits: the answer's way back.
ANSWER_GRACE_MS: Final = 500
#: Until `mirror.ready` names the gated tools, these are taken to be irreversible (Mirror's own defaults).
DEFAULT_GATED_TOOLS: Final = frozenset(
    {
        "place_order",
        "charge_card",
        "book_flight",
        "book_flights",
        "cancel_subscription",
        "send_email",
        "send_sms",
        "process_payment",
        "transfer_funds",
    }
)
#: Read ahead of a framework that does not read, in characters: about 90 s of 20 ms mu-law frames. Beyond it the client
#: stops reading, and Mirror, which never waits for an agent, drops the oldest audio.
READ_AHEAD_CHARS: Final = 2 * 1024 * 1024
FEED_LIMIT: Final = 256
REMEMBERED_TURNS: Final = 1_000
ENDED_PHASES: Final = frozenset({"completed", "interrupted", "caller_gone", "failed"})

T = TypeVar("T")
JSON = Any


class UnsupportedSocketError(TypeError):
    """The object is neither a Starlette / FastAPI WebSocket nor one with ``recv()`` and ``send()``."""


# What Mirror says --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """`mirror.ready`: Mirror has switched the dialogue on."""

    call_id: str = ""
    mode: str = "live"
    policy_id: str = ""
    policy_version: int = 0
    gated_tools: tuple[str, ...] = ()
    resumed: bool = False
    approval_tools: tuple[str, ...] = ()
    approval_timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`mirror.verdict` on one turn. `score` is 0 to 1, None when nothing was judged; `latency_ms` in milliseconds.

    `state` is `judged`, `skipped`, `timed_out`, `failed` or `shed`. `intervene`: the score reached the threshold;
    `acted`: Mirror steps in; `withheld`: why it does not.
    """

    turn_id: str
    state: str = ""
    score: float | None = None
    intervene: bool = False
    acted: bool = False
    withheld: str = ""
    rule: str = ""
    reason: str = ""
    latency_ms: int = 0


@dataclass(frozen=True, slots=True)
class ToolDecision:
    """May this tool call run? True in a condition when it may.

    `code` is `ok`, `policy`, `duplicate`, `in_doubt`, `timeout`, `failed`, `cancelled`, `bad_args` or `denied`.
    `instruction` is what to say or ask instead, for the LLM. `stored_result` is what the first run of a duplicate
    gave. An allowance is good for `valid_ms`. `supervised` is False when no Mirror decided it.
    """

    id: str
    name: str
    allow: bool
    code: str
    reason: str = ""
    instruction: str = ""
    stored_result: JSON = None
    valid_ms: int | None = None
    supervised: bool = True

    def __bool__(self) -> bool:
        return self.allow


@dataclass(frozen=True, slots=True)
class Intervention:
    """`mirror.intervention`: one step. `phase` `started` means: stop generating and sending turn `turn_id`.

    Then `buffer`, `correction`, and one of `completed`, `interrupted`, `caller_gone`, `failed`. `text` is what
    Mirror says in that phase, if anything.
    """

    id: str
    turn_id: str
    phase: str
    text: str = ""

    @property
    def ended(self) -> bool:
        """No more phases follow."""
        return self.phase in ENDED_PHASES


@dataclass(frozen=True, slots=True)
class Note:
    """`mirror.note`: a one-shot system note for the agent's next turn; a higher `rev` replaces a lower one.

    `said` is what Mirror told the caller, `heard_text` what the caller heard of the agent's turn (`heard_ms`
    milliseconds of it), `dropped` the ids of turns the caller never heard. It is worth nothing after `expires_turns`
    turns.
    """

    id: str
    rev: int
    text: str
    turn_id: str = ""
    said: str = ""
    heard_text: str = ""
    heard_ms: int | None = None
    dropped: tuple[str, ...] = ()
    expires_turns: int | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """`mirror.say`: speak `text` with the agent's own voice, now; see :meth:`MirrorClient.saying`.

    `role` is `buffer` (a moment's pause, first) or `correction`. When its audio has not begun within `deadline_ms`
    milliseconds, Mirror speaks it with another voice.
    """

    id: str
    role: str
    text: str
    language: str = ""
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FrameError:
    """`mirror.error`: Mirror could not use a frame of ours. `ref` is the id it is about."""

    code: str
    message: str = ""
    ref: str = ""


def _text(frame: Mapping[str, JSON], name: str, default: str = "") -> str:
    value = frame.get(name)
    return value if isinstance(value, str) else default


def _number(frame: Mapping[str, JSON], name: str) -> float | None:
    value = frame.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _int(frame: Mapping[str, JSON], name: str) -> int | None:
    value = _number(frame, name)
    return None if value is None else int(value)


def _texts(frame: Mapping[str, JSON], name: str) -> tuple[str, ...]:
    value = frame.get(name)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


# Feeds -------------------------------------------------------------------------------------------


class Subscription(Generic[T]):
    """One reader of a :class:`Feed`: an async iterator that ends with the call."""

    def __init__(self, *, closed: bool) -> None:
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()
        self._closed = closed
        self._dropped = 0

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()

    def push(self, item: T, kind: str) -> None:
        if len(self._items) >= FEED_LIMIT:
            self._items.popleft()
            self._dropped += 1
            if self._dropped == 1:
                log.warning("A reader of mirror.%s is %d behind; it loses the oldest", kind, FEED_LIMIT)
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()


class Feed(Generic[T]):
    """What Mirror sends of one kind, in order.

    `async for item in feed` gets everything that arrives from then on and ends with the call; several loops each get
    all of it. `feed.on(callback)` calls a function or coroutine function for each, outside the socket's reader. A
    reader that falls more than 256 behind loses the oldest.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._closed = False
        self._subscriptions: weakref.WeakSet[Subscription[T]] = weakref.WeakSet()
        self._listeners: set[asyncio.Task[None]] = set()
        self.latest: T | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        subscription: Subscription[T] = Subscription(closed=self._closed)
        self._subscriptions.add(subscription)
        return subscription

    def on(self, callback: Callable[[T], object]) -> Callable[[T], object]:
        """Call `callback(item)` for each item, one at a time, awaiting it if it is a coroutine function.

        Usable as a decorator. Needs a running event loop. An exception is logged and the next item still comes.
        """
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._listen(aiter(self), callback))
            self._listeners.add(task)
            task.add_done_callback(self._listeners.discard)
        return callback

    async def _listen(self, items: AsyncIterator[T], callback: Callable[[T], object]) -> None:
        async for item in items:
            try:
                result = callback(item)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("A callback for mirror.%s failed", self._kind)

    def push(self, item: T) -> None:
        self.latest = item
        for subscription in list(self._subscriptions):
            subscription.push(item, self._kind)

    def close(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()


# Sockets -----------------------------------------------------------------------------------------


class _Inbox:
    """The frames that are the framework's, between the client's reader and the framework's receive calls."""

    def __init__(self) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._chars = 0
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    async def put(self, item: Any, chars: int) -> None:
        """Wait while too much lies unread. A single frame of any size is always taken."""
        while self._items and self._chars + chars > READ_AHEAD_CHARS:
            self._space.clear()
            await self._space.wait()
        self._items.append((item, chars))
        self._chars += chars
        self._changed.set()

    async def get(self) -> tuple[bool, Any]:
        """(True, frame), or (False, None) after the last one. Raises what ended the reading, if anything did.

        Safe to cancel: a frame is taken only on return.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                return False, None
            self._changed.clear()
            await self._changed.wait()
        item, chars = self._items.popleft()
        self._chars -= chars
        self._space.set()
        return True, item

    def end(self, error: Exception | None) -> None:
        self._ended = True
        self._error = error
        self._changed.set()


class _Socket(Protocol):
    """A framework's socket, seen from the client."""

    framework: Any

    def messages(self) -> AsyncIterator[Any]:
        """Every message as the framework would receive it, until the socket closes."""

    def text_of(self, message: Any) -> str | None:
        """The text of a text message."""

    async def send_text(self, text: str) -> None: ...


class _StarletteSocket:
    """A Starlette or FastAPI WebSocket.

    The framework gets a second WebSocket of the same class on the same ASGI scope, whose `receive` is fed by the
    client. Every convenience (`receive_text`, `iter_json`, states, errors) is therefore Starlette's own.
    """

    def __init__(self, websocket: Any, inbox: _Inbox, start_reader: Callable[[], None]) -> None:
        self._raw = websocket
        self._inbox = inbox
        self._start_reader = start_reader
        self.framework: Any = type(websocket)(websocket.scope, self._receive, websocket.send)
        known = vars(self.framework)
        for name, value in vars(websocket).items():
            if name in {"client_state", "application_state"} or name not in known:
                setattr(self.framework, name, value)

    async def _receive(self) -> Any:
        if self._raw.client_state.name == "CONNECTING":
            # `websocket.connect`: nothing can be read or sent before the framework has accepted.
            return await self._raw.receive()
        self._start_reader()
        more, message = await self._inbox.get()
        return message if more else await self._raw.receive()

    async def messages(self) -> AsyncIterator[Any]:
        while True:
            message = await self._raw.receive()
            yield message
            if message["type"] == "websocket.disconnect":
                return

    def text_of(self, message: Any) -> str | None:
        text = message.get("text")
        return text if isinstance(text, str) else None

    async def send_text(self, text: str) -> None:
        await self._raw.send_text(text)


class _Connection:
    """What a framework gets in place of a `websockets` connection: all of it, but reading comes from the client."""

    def __init__(self, connection: Any, inbox: _Inbox, start_reader: Callable[[], None]) -> None:
        self._raw = connection
        self._inbox = inbox
        self._start_reader = start_reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    async def __aenter__(self) -> _Connection:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._raw.__aexit__(*exc_info)

    async def recv(self, decode: bool | None = None) -> str | bytes:
        self._start_reader()
        more, message = await self._inbox.get()
        if not more:
            # Closed normally: the connection itself raises what its users expect.
            message = await self._raw.recv()
        if decode is True and isinstance(message, bytes):
            return message.decode()
        if decode is False and isinstance(message, str):
            return message.encode()
        received: str | bytes = message
        return received

    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[str | bytes]:
        yield await self.recv(decode)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        self._start_reader()
        while True:
            more, message = await self._inbox.get()
            if not more:
                return
            yield message


class _ConnectionSocket:
    """A connection of the `websockets` library, or anything else with `recv`, `send` and async iteration."""

    def __init__(self, connection: Any, inbox: _Inbox, start_reader: Callable[[], None]) -> None:
        self._raw = connection
        self.framework: Any = _Connection(connection, inbox, start_reader)

    async def messages(self) -> AsyncIterator[Any]:
        # Iteration ends on a normal close and raises on any other.
        async for message in self._raw:
            yield message

    def text_of(self, message: Any) -> str | None:
        return message if isinstance(message, str) else None

    async def send_text(self, text: str) -> None:
        await self._raw.send(text)


def _handshake_headers(websocket: Any) -> Mapping[str, str]:
    """The HTTP headers of the handshake, wherever this kind of socket keeps them."""
    for holder in (websocket, getattr(websocket, "request", None)):
        headers = getattr(holder, "headers", None)
        if headers is not None:
            found: Mapping[str, str] = headers
            return found
    # The `websockets` legacy server keeps them here.
    legacy: Mapping[str, str] = getattr(websocket, "request_headers", None) or {}
    return legacy


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """A header by name in any case. Plain dicts compare exactly, so every name is looked at."""
    for key in headers:
        if key.lower() == name.lower():
            try:
                return headers[key]
            except KeyError:
                # `websockets` raises a KeyError for a header that came twice: it proves nothing then.
                return None
    return None


def _socket_for(websocket: Any, inbox: _Inbox, start_reader: Callable[[], None]) -> _Socket:
    if hasattr(websocket, "scope") and hasattr(websocket, "receive") and hasattr(websocket, "client_state"):
        return _StarletteSocket(websocket, inbox, start_reader)
    if hasattr(websocket, "recv") and hasattr(websocket, "send") and hasattr(websocket, "__aiter__"):
        return _ConnectionSocket(websocket, inbox, start_reader)
    raise UnsupportedSocketError(
        f"MirrorClient cannot read a {type(websocket).__name__}: give it a Starlette or FastAPI WebSocket, or a "
        "connection of the websockets library (asyncio)"
    )


# The signature -----------------------------------------------------------------------------------


def verify(
    headers: Mapping[str, str],
    secret: str,
    path_and_query: str,
    call_id: str | None = None,
    *,
    tolerance_s: float = 300.0,
    now: float | None = None,
) -> bool:
    """Whether the handshake was signed by Mirror with this agent's signing secret.

    `headers` of the handshake; `path_and_query` as dialled (`/agent?x=1`, without `?` when there is no query);
    `call_id` by default the header `X-Mirror-Call`. The header is ``t=<unix seconds>,v1=<hex HMAC-SHA256(secret,
    t + "." + call_id + "." + path?query)>``; several ``v1`` may stand in it. False for a missing or malformed header
    and for a time more than `tolerance_s` seconds away from `now` (Unix seconds, default this machine's clock).
    """
    header = _header(headers, SIGNATURE_HEADER)
    call = call_id if call_id is not None else _header(headers, CALL_HEADER)
    if not header or call is None:
        return False
    pairs = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    if len(times) != 1 or not re.fullmatch(r"[0-9]{1,12}", times[0]):
        return False
    if abs((time.time() if now is None else now) - int(times[0])) > tolerance_s:
        return False
    signed = f"{times[0]}.{call}.{path_and_query}".encode()
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
    # No early end: how many candidates there are may be seen, how well they match may not.
    matches = [hmac.compare_digest(value.encode(), expected) for name, _, value in pairs if name == "v1"]
    return any(matches)


# The client --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _PendingNote:
    note: Note
    turns: int = 0


@dataclass(slots=True)
class _Waiting:
    """A tool call that waits for its verdict."""

    name: str
    irreversible: bool
    future: asyncio.Future[ToolDecision]
    waiters: int = 0


@dataclass(slots=True)
class _State:
    """What one supervised call has shown so far."""

    notes: OrderedDict[str, _PendingNote] = field(default_factory=OrderedDict)
    revisions: OrderedDict[str, int] = field(default_factory=OrderedDict)
    muted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    abandoned: OrderedDict[str, None] = field(default_factory=OrderedDict)
    seen: str | None = None
    growing: str | None = None  # the turn whose text is arriving


def _remember(memory: OrderedDict[str, Any], key: str, value: Any = None) -> None:
    memory[key] = value
    while len(memory) > REMEMBERED_TURNS:
        memory.popitem(last=False)


def _encode(frame: Mapping[str, JSON], what: str) -> str:
    try:
        return json.dumps(frame, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be JSON (text, numbers, booleans, null, lists, objects): {error}") from error


class MirrorClient:
    """The agent's side of the dialogue with Mirror, over the agent's own WebSocket.

    websocket: a Starlette / FastAPI WebSocket (accepted or not) or an asyncio `websockets` connection.
    language: BCP 47 tag of the call, voice: the agent's TTS voice name; both optional, told to Mirror.
    marks: the agent will say with :meth:`audio` which audio belongs to which turn. say: the agent will speak Mirror's
    lines (`says`) with its own voice.

    Raises UnsupportedSocketError for any other socket. No method raises because Mirror is slow, gone or wrong; a
    turn, name or argument that is not JSON raises TypeError, with or without Mirror.
    """

    def __init__(
        self,
        websocket: Any,
        *,
        language: str | None = None,
        voice: str | None = None,
        marks: bool = False,
        say: bool = False,
    ) -> None:
        headers = _handshake_headers(websocket)
        #: Whether Mirror is on the other end.
        self.supervised: Final = _header(headers, SIGNATURE_HEADER) is not None
        #: Plivo's id of the call, which Mirror gives when it dials; "" without Mirror.
        self.call_id: str = (_header(headers, CALL_HEADER) or "") if self.supervised else ""
        self.ready: Ready | None = None
        self.verdicts: Feed[Verdict] = Feed("verdict")
        self.notes: Feed[Note] = Feed("note")
        self.interventions: Feed[Intervention] = Feed("intervention")
        self.says: Feed[Say] = Feed("say")
        self.errors: Feed[FrameError] = Feed("error")
        self._feeds: tuple[Feed[Any], ...] = (self.verdicts, self.notes, self.interventions, self.says, self.errors)
        wants = ["verdicts", "notes", "say"] if say else ["verdicts", "notes"]
        self._hello = {"event": "mirror.hello", "v": PROTOCOL_VERSION, "sdk": SDK, "wants": wants}
        if language is not None:
            self._hello["language"] = language
        if voice is not None:
            self._hello["voice"] = voice
        if marks:
            self._hello["marks"] = True
        self._hello_sent = False
        self._closed = False
        self._reader: asyncio.Task[None] | None = None
        self._side_tasks: set[asyncio.Task[Any]] = set()
        self._ready_event = asyncio.Event()
        self._send_lock = asyncio.Lock()
        self._state = _State()
        self._inbox = _Inbox()
        socket = _socket_for(websocket, self._inbox, self._start_reader)
        self._socket = socket
        #: What to give to the framework in place of the socket. Without Mirror, the socket itself.
        self.websocket: Any = socket.framework if self.supervised else websocket
        if not self.supervised:
            self._end()

    # What the agent says

    async def turn(
        self,
        text: str,
        *,
        customer_text: str = "",
        tool_calls: Iterable[Mapping[str, JSON]] = (),
        turn_id: str | None = None,
        language: str | None = None,
        seen: str | None = None,
    ) -> str | None:
        """Report a whole agent turn; call it before the turn's audio is sent. Returns its id, None without Mirror.

        text: what the agent is about to say. customer_text: what it answers. tool_calls: what the same LLM answer
        wants to run, each `{"id", "name", "args", "irreversible"}`; ask :meth:`tool` with the same `id` before
        running one. seen: id of the newest note in the LLM's context, by default the last one that
        :meth:`take_note` gave. Does not wait for the verdict: read `verdicts` and `interventions`.
        """
        turn = turn_id or uuid.uuid4().hex
        frame = {
            "event": "mirror.turn",
            "turn_id": turn,
            "customer_text": customer_text,
            "text": text,
            "tool_calls": [dict(call) for call in tool_calls],
        }
        if language is not None:
            frame["language"] = language
        self._add_seen(frame, seen)
        encoded = _encode(frame, f"turn {turn}")
        if not self.supervised:
            return None
        self._age_notes()
        return turn if await self._send(encoded) else None

    async def delta(
        self,
        text: str,
        *,
        turn_id: str | None = None,
        final: bool = False,
        customer_text: str = "",
        language: str | None = None,
        seen: str | None = None,
    ) -> str | None:
        """Report the next piece of a turn while it is generated, in place of :meth:`turn`; before the piece's audio.

        Each clause is judged as soon as it is complete, while the rest is generated. Returns the turn's id, None
        without Mirror: give it with every further piece. final: with the last one, whose text may be empty. The other
        arguments are those of :meth:`turn`, and count with the first piece. A tool call of the turn is asked for with
        its `turn_id`. Once :meth:`muted`, there is no need to go on. See :meth:`told` for a stream of pieces.
        """
        first = turn_id is None or turn_id != self._state.growing
        turn = turn_id or uuid.uuid4().hex
        frame: dict[str, JSON] = {"event": "mirror.delta", "turn_id": turn, "text": text}
        if final:
            frame["final"] = True
        if first:
            frame["customer_text"] = customer_text
            if language is not None:
                frame["language"] = language
            self._add_seen(frame, seen)
        encoded = _encode(frame, f"turn {turn}")
        if not self.supervised:
            return None
        if first:
            self._age_notes()
        self._state.growing = None if final else turn
        return turn if await self._send(encoded) else None

    async def told(
        self,
        pieces: AsyncIterable[str],
        *,
        customer_text: str = "",
        turn_id: str | None = None,
        language: str | None = None,
        seen: str | None = None,
    ) -> AsyncIterator[str]:
        """The pieces of a turn that is being generated, each told to Mirror (:meth:`delta`) before it is given on.

            async for piece in mirror.told(llm.stream(messages), customer_text=heard):
                await tts.feed(piece)

        Ends early when Mirror has stepped in on the turn. However it ends, Mirror learns that the turn is complete.
        """
        turn = turn_id or uuid.uuid4().hex
        try:
            async for piece in pieces:
                await self.delta(piece, turn_id=turn, customer_text=customer_text, language=language, seen=seen)
                if self.muted(turn):
                    return
                yield piece
        finally:
            if self.supervised and self._state.growing == turn:
                await self.delta("", turn_id=turn, final=True)

    async def tool(
        self,
        name: str,
        args: Mapping[str, JSON] | str,
        *,
        irreversible: bool = False,
        id: str | None = None,
        turn_id: str | None = None,
        customer_text: str | None = None,
        key: str | None = None,
        timeout_ms: int | None = None,
        seen: str | None = None,
    ) -> ToolDecision:
        """Ask whether a tool call may run, and wait for the answer at most `timeout_ms` milliseconds and a bit: 3,500,
        and as long as the policy gives a person for a tool that needs one's approval.

        args: the arguments, or their JSON text as the LLM wrote it. irreversible: gate it whatever its name. id: the
        call's id, so that a turn's `tool_calls` and this ask about the same one. key: two identical orders that are
        both wanted differ in it.

        With no answer in time, or with the call gone, an irreversible tool (flagged, or gated by the policy) is not
        allowed and any other is, with code `timeout` or `failed`. Without Mirror: allowed, `supervised` False. After
        running it, say so with :meth:`tool_done`.
        """
        if timeout_ms is None:
            timeout_ms = self._patience_ms(name)
        if timeout_ms <= 0:
            raise ValueError(f"timeout_ms must be above 0, not {timeout_ms}")
        tool_id = id or uuid.uuid4().hex
        frame: dict[str, JSON] = {"event": "mirror.tool", "id": tool_id, "name": name, "timeout_ms": timeout_ms}
        frame["args"] = _arguments(args)
        if irreversible:
            frame["irreversible"] = True
        optional = {"turn_id": turn_id, "customer_text": customer_text, "key": key}
        frame.update({name: value for name, value in optional.items() if value is not None})
        self._add_seen(frame, seen)
        encoded = _encode(frame, f"args of tool {name}")
        if not self.supervised:
            return ToolDecision(tool_id, name, allow=True, code="ok", supervised=False)
        return await self._ask(tool_id, name, irreversible, encoded, timeout_ms)

    def _patience_ms(self, name: str) -> int:
        ready = self.ready
        if ready is None or name.strip().casefold() not in {tool.casefold() for tool in ready.approval_tools}:
            return TOOL_TIMEOUT_MS
        return ready.approval_timeout_ms + TOOL_TIMEOUT_MS

    async def tool_done(
        self, call: str | ToolDecision, ok: bool = True, result: JSON = None, *, cancelled: bool = False
    ) -> None:
        """Say that an allowed tool call ran. call: its id or its decision (one that was not allowed is not reported).

        ok: False frees its key, so that it can be tried again. cancelled: it was not run after all. result: JSON; it
        grounds later verdicts and answers duplicates.
        """
        tool_id = call.id if isinstance(call, ToolDecision) else call
        frame: dict[str, JSON] = {"event": "mirror.tool_done", "id": tool_id, "ok": ok, "result": result}
        if cancelled:
            frame["cancelled"] = True
        encoded = _encode(frame, f"result of tool call {tool_id}")
        if self.supervised and (isinstance(call, str) or call.allow):
            await self._send(encoded)

    async def run_tool(
        self,
        name: str,
        args: Mapping[str, JSON] | str,
        run: Callable[[], JSON | Awaitable[JSON]],
        *,
        irreversible: bool = False,
        id: str | None = None,
        turn_id: str | None = None,
        customer_text: str | None = None,
        key: str | None = None,
        timeout_ms: int | None = None,
    ) -> JSON:
        """:meth:`tool`, `run()` if it is allowed, :meth:`tool_done`: the tool's result as the LLM should see it.

        run: a function or coroutine function that does it and returns JSON. A duplicate gives the first run's result.
        Anything else that is not allowed gives `{"not_done": code, "reason": …, "instruction": …}`. An exception of
        `run` is reported (`ok` False) and raised. Cancelled while it runs, nothing is reported: whether it took
        effect is then unknown, and Mirror answers its repeat with `in_doubt`.
        """
        decision = await self.tool(
            name,
            args,
            irreversible=irreversible,
            id=id,
            turn_id=turn_id,
            customer_text=customer_text,
            key=key,
            timeout_ms=timeout_ms,
        )
        if not decision:
            if decision.code == "duplicate":
                return decision.stored_result
            return {"not_done": decision.code, "reason": decision.reason, "instruction": decision.instruction}
        try:
            result = run()
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            await self.tool_done(decision, ok=False, result={"error": type(error).__name__})
            raise
        await self.tool_done(decision, ok=True, result=result)
        return result

    async def transcript(self, text: str, final: bool = True, *, language: str | None = None) -> None:
        """What the caller said, by the agent's own transcription; `final` False for an interim result."""
        frame: dict[str, JSON] = {"event": "mirror.transcript", "role": "customer", "text": text, "final": final}
        if language is not None:
            frame["language"] = language
        encoded = _encode(frame, "transcript")
        if self.supervised:
            await self._send(encoded)

    async def audio(self, turn_id: str, state: str, chars: int | None = None) -> None:
        """Say which audio belongs to a turn, in order with playAudio (needs `marks=True`).

        state: `start`, `mark` (with `chars`, characters of the turn's text spoken so far), `end` or `cut`.
        """
        if state not in {"start", "mark", "end", "cut"}:
            raise ValueError(f"state must be start, mark, end or cut, not {state!r}")
        if (state == "mark") != (chars is not None):
            raise ValueError("chars goes with state 'mark' and only with it")
        frame: dict[str, JSON] = {"event": "mirror.audio", "turn_id": turn_id, "state": state}
        if chars is not None:
            frame["chars"] = chars
        encoded = _encode(frame, "audio")
        if self.supervised:
            await self._send(encoded)

    @contextlib.asynccontextmanager
    async def saying(self, say: Say) -> AsyncIterator[None]:
        """Around the sending of a line's audio, in order with playAudio (needs `say=True`):

            async for say in mirror.says:
                async with mirror.saying(say):
                    await websocket.send_text(play_audio(await my_tts(say.text)))

        Mirror lets the audio inside through to the caller, and nothing else while it intervenes. An exception, a
        cancellation too, says that the line was cut.
        """
        await self._line(say, "start")
        try:
            yield
        except BaseException:
            await self._line(say, "cut")
            raise
        await self._line(say, "end")
        if self.supervised:
            await self._send(_encode({"event": "mirror.said", "id": say.id}, "said"))

    async def _line(self, say: Say, state: str) -> None:
        if self.supervised:
            await self._send(_encode({"event": "mirror.audio", "say": say.id, "state": state}, "audio"))

    # What Mirror said

    def take_note(self) -> str | None:
        """The notes that were not taken yet, as text for the next prompt, oldest first, one a line; else None.

        Taking marks them seen: the next turn tells Mirror that it was generated with them.
        """
        notes = self._state.notes
        if not notes:
            return None
        taken = [pending.note for pending in notes.values()]
        notes.clear()
        self._state.seen = taken[-1].id
        return "\n".join(note.text for note in taken)

    def muted(self, turn_id: str | None) -> bool:
        """Whether Mirror has stepped in on this turn: nothing more of it will be heard, stop generating it."""
        return turn_id is not None and turn_id in self._state.muted

    @property
    def intervention(self) -> Intervention | None:
        """The intervention under way, at its latest phase."""
        latest = self.interventions.latest
        return None if latest is None or latest.ended or self._closed else latest

    async def wait_ready(self, timeout_s: float = 5.0) -> Ready | None:
        """Wait until Mirror answered the hello. None without Mirror, after `timeout_s` seconds, or when it is gone."""
        if self.supervised and not self._closed:
            self._start_reader()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._ready_event.wait()
        return self.ready

    async def aclose(self) -> None:
        """Stop reading. The socket is the framework's to close; afterwards the framework reads it directly."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.cancel()
            await asyncio.wait({reader})
        self._end()

    # Reading

    def _start_reader(self) -> None:
        if self._reader is None and not self._closed:
            self._reader = asyncio.get_running_loop().create_task(self._read(), name="mirror-client-reader")

    async def _read(self) -> None:
        error: Exception | None = None
        try:
            async for message in self._socket.messages():
                text = self._socket.text_of(message)
                frame = _mirror_frame(text)
                if frame is not None:
                    self._take(frame)
                    continue
                if not self._hello_sent and text is not None:
                    await self._send(None)
                await self._inbox.put(message, len(text) if text is not None else 0)
        except Exception as caught:
            # It is the framework's to handle: its next receive raises it.
            error = caught
        finally:
            self._inbox.end(error)
            self._end()

    def _end(self) -> None:
        """No more frames will come: release everybody who waits."""
        self._closed = True
        self._ready_event.set()
        for feed in self._feeds:
            feed.close()
        for tool_id, waiting in list(self._state.waiting.items()):
            if not waiting.future.done():
                waiting.future.set_result(self._fallback(tool_id, waiting, "failed", "the call has ended"))

    def _take(self, frame: dict[str, JSON]) -> None:
        match frame["event"]:
            case "mirror.ready":
                self._on_ready(frame)
            case "mirror.verdict":
                self.verdicts.push(
                    Verdict(
                        turn_id=_text(frame, "turn_id"),
                        state=_text(frame, "state"),
                        score=_number(frame, "score"),
                        intervene=frame.get("intervene") is True,
                        acted=frame.get("acted") is True,
                        withheld=_text(frame, "withheld"),
                        rule=_text(frame, "rule"),
                        reason=_text(frame, "reason"),
                        latency_ms=_int(frame, "latency_ms") or 0,
                    )
                )
            case "mirror.tool_verdict":
                self._on_tool_verdict(frame)
            case "mirror.intervention":
                step = Intervention(
                    _text(frame, "id"), _text(frame, "turn_id"), _text(frame, "phase"), _text(frame, "text")
                )
                if step.phase == "started":
                    _remember(self._state.muted, step.turn_id)
                self.interventions.push(step)
            case "mirror.note":
                self._on_note(frame)
            case "mirror.say":
                self.says.push(
                    Say(
                        id=_text(frame, "id"),
                        role=_text(frame, "role"),
                        text=_text(frame, "text"),
                        language=_text(frame, "language"),
                        deadline_ms=_int(frame, "deadline_ms"),
                    )
                )
            case "mirror.error":
                self._on_error(frame)
            case event:
                log.debug("Mirror sent %s, which this client does not know", event)

    def _on_ready(self, frame: dict[str, JSON]) -> None:
        policy = frame.get("policy")
        policy = policy if isinstance(policy, dict) else {}
        approvals = frame.get("approvals")
        approvals = approvals if isinstance(approvals, dict) else {}
        self.ready = Ready(
            call_id=_text(frame, "call_id", self.call_id),
            mode=_text(frame, "mode", "live"),
            policy_id=_text(policy, "id"),
            policy_version=_int(policy, "version") or 0,
            gated_tools=_texts(frame, "gated_tools"),
            resumed=frame.get("resumed") is True,
            approval_tools=_texts(approvals, "tools"),
            approval_timeout_ms=max(0, _int(approvals, "timeout_ms") or 0),
        )
        pending = frame.get("notes")
        for note in pending if isinstance(pending, list) else ():
            if isinstance(note, dict):
                self._on_note(note)
        self._ready_event.set()

    def _on_note(self, frame: dict[str, JSON]) -> None:
        note = Note(
            id=_text(frame, "id"),
            rev=_int(frame, "rev") or 0,
            text=_text(frame, "text"),
            turn_id=_text(frame, "turn_id"),
            said=_text(frame, "said"),
            heard_text=_text(frame, "heard_text"),
            heard_ms=_int(frame, "heard_ms"),
            dropped=_texts(frame, "dropped"),
            expires_turns=_int(frame, "expires_turns"),
        )
        if self._state.revisions.get(note.id, -1) >= note.rev:
            return
        _remember(self._state.revisions, note.id, note.rev)
        self._state.notes.pop(note.id, None)
        _remember(self._state.notes, note.id, _PendingNote(note))
        self.notes.push(note)

    def _on_tool_verdict(self, frame: dict[str, JSON]) -> None:
        tool_id = _text(frame, "id")
        allow = frame.get("allow") is True
        waiting = self._state.waiting.get(tool_id)
        if waiting is not None:
            if not waiting.future.done():
                waiting.future.set_result(
                    ToolDecision(
                        id=tool_id,
                        name=waiting.name,
                        allow=allow,
                        code=_text(frame, "code", "ok" if allow else "failed"),
                        reason=_text(frame, "reason"),
                        instruction=_text(frame, "instruction"),
                        stored_result=frame.get("stored_result"),
                        valid_ms=_int(frame, "valid_ms"),
                    )
                )
        elif tool_id in self._state.abandoned and allow:
            # Nobody waits any more, so the tool does not run; a grant left open would make its repeat `in_doubt`.
            del self._state.abandoned[tool_id]
            self._in_background(self.tool_done(tool_id, ok=False, cancelled=True))

    def _on_error(self, frame: dict[str, JSON]) -> None:
        refusal = FrameError(_text(frame, "code"), _text(frame, "message"), _text(frame, "ref"))
        log.warning("Mirror refused a frame: %s: %s", refusal.code, refusal.message)
        self.errors.push(refusal)
        waiting = self._state.waiting.get(refusal.ref)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(
                self._fallback(refusal.ref, waiting, "failed", f"{refusal.code}: {refusal.message}")
            )

    # Tools

    async def _ask(self, tool_id: str, name: str, irreversible: bool, encoded: str, timeout_ms: int) -> ToolDecision:
        waiting = self._state.waiting.get(tool_id)
        if waiting is None:
            future: asyncio.Future[ToolDecision] = asyncio.get_running_loop().create_future()
            waiting = self._state.waiting[tool_id] = _Waiting(name, irreversible, future)
        waiting.irreversible = waiting.irreversible or irreversible
        waiting.waiters += 1
        answered = False
        try:
            async with asyncio.timeout((timeout_ms + ANSWER_GRACE_MS) / 1000):
                if await self._send(encoded):
                    decision = await asyncio.shield(waiting.future)
                else:
                    decision = self._fallback(tool_id, waiting, "failed", "the call has ended")
            answered = True
            return decision
        except TimeoutError:
            decision = self._fallback(tool_id, waiting, "timeout", f"no answer within {timeout_ms} ms")
            answered = decision.allow
            return decision
        finally:
            waiting.waiters -= 1
            if waiting.waiters == 0:
                self._state.waiting.pop(tool_id, None)
                if not answered:
                    # Timed out or cancelled: if Mirror still allows it, it must hear that it did not run.
                    _remember(self._state.abandoned, tool_id)

    def _fallback(self, tool_id: str, waiting: _Waiting, code: str, reason: str) -> ToolDecision:
        """The decision when Mirror gave none."""
        gated = DEFAULT_GATED_TOOLS if self.ready is None else {tool.casefold() for tool in self.ready.gated_tools}
        blocked = waiting.irreversible or waiting.name.casefold() in gated
        return ToolDecision(
            id=tool_id,
            name=waiting.name,
            allow=not blocked,
            code=code,
            reason=reason,
            instruction=(
                "This could not be checked, so it was not done. Do not say that it was done; offer to try again."
                if blocked
                else ""
            ),
        )

    # Sending

    async def _send(self, encoded: str | None) -> bool:
        """Send a frame (None: only the hello, if it is still due). False when the socket no longer takes any.

        A caller that is cancelled (a barge-in) leaves no half-sent frame and no frame out of order.
        """
        return await asyncio.shield(self._in_background(self._send_in_order(encoded)))

    async def _send_in_order(self, encoded: str | None) -> bool:
        async with self._send_lock:
            if self._closed:
                return False
            try:
                if not self._hello_sent:
                    await self._socket.send_text(json.dumps(self._hello))
                    self._hello_sent = True
                if encoded is not None:
                    await self._socket.send_text(encoded)
            except Exception as error:
                # Never worse than without Mirror: the agent meets the same closed socket in its own next send.
                log.warning("Mirror cannot be told: the socket does not take frames (%s)", type(error).__name__)
                return False
        self._start_reader()
        return True

    def _in_background(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)
        return task

    def _add_seen(self, frame: dict[str, JSON], seen: str | None) -> None:
        newest = seen if seen is not None else self._state.seen
        if newest is not None:
            frame["seen"] = newest

    def _age_notes(self) -> None:
        """A turn goes out: notes that waited for `expires_turns` of them are worth nothing."""
        for note_id, pending in list(self._state.notes.items()):
            pending.turns += 1
            if pending.note.expires_turns is not None and pending.turns >= pending.note.expires_turns:
                del self._state.notes[note_id]


def _mirror_frame(text: str | None) -> dict[str, JSON] | None:
    """The frame, if it is one of Mirror's. Media frames, 50 a second, are told apart without parsing."""
    if text is None or '"mirror.' not in text:
        return None
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        # Not Mirror's: the framework gets it as it came.
        return None
    if isinstance(frame, dict):
        event = frame.get("event")
        if isinstance(event, str) and event.startswith("mirror."):
            return frame
    return None


def _arguments(args: Mapping[str, JSON] | str) -> JSON:
    """Arguments as an object where they are one. Text that is none goes out as it is: Mirror blocks it as bad_args."""
    if not isinstance(args, str):
        return dict(args)
    try:
        parsed = json.loads(args)
    except (ValueError, RecursionError):
        return args
    return parsed if isinstance(parsed, dict) else args
