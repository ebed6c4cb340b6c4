"""`mirror.*` frames: what an agent tells Mirror, checked, and what Mirror answers.

A frame that is not as the contract says becomes a :class:`FrameError` that names the field; the call goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from supervision.engine.context import ToolCallIntent

VERSION: Final = 1
MAX_TEXT: Final = 32_000  # characters of one text field
MAX_ID: Final = 200
MAX_TOOLS: Final = 64
MAX_ARGS: Final = 64_000  # bytes of a tool's arguments as JSON
WANTS: Final = frozenset({"verdicts", "notes", "say"})
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*\Z")


class FrameError(Exception):
    """A `mirror.*` frame that cannot be taken: ``code`` is the contract's, the message names the field."""

    def __init__(self, code: str, message: str, ref: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.ref = ref


@dataclass(frozen=True, slots=True)
class Hello:
    """`mirror.hello`."""

    sdk: str
    wants: frozenset[str]
    language: str | None
    voice: str | None
    marks: bool


@dataclass(frozen=True, slots=True)
class Transcript:
    """`mirror.transcript`: what the caller said."""

    text: str
    final: bool
    language: str | None


@dataclass(frozen=True, slots=True)
class Turn:
    """`mirror.turn`: a whole agent turn, reported before its audio."""

    ref: str
    customer_text: str
    text: str
    tool_calls: tuple[ToolCallIntent, ...]
    language: str | None
    seen: str | None


@dataclass(frozen=True, slots=True)
class Delta:
    """`mirror.delta`: the next piece of a turn that is being generated. Only the first one's ``customer_text``,
    ``language`` and ``seen`` count."""

    ref: str
    text: str
    final: bool
    customer_text: str
    language: str | None
    seen: str | None


@dataclass(frozen=True, slots=True)
class Audio:
    """`mirror.audio`: which turn, or which of Mirror's lines (`say`), the audio around it belongs to."""

    turn_ref: str | None
    state: str
    chars: int | None
    say: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """`mirror.said`: the agent has spoken a line of Mirror's."""

    say: str


@dataclass(frozen=True, slots=True)
class Tool:
    """`mirror.tool`: may this call run?"""

    intent: ToolCallIntent
    turn_ref: str | None
    customer_text: str
    key: str | None
    timeout_ms: int | None
    seen: str | None


@dataclass(frozen=True, slots=True)
class ToolDone:
    """`mirror.tool_done`: the call ran, or did not."""

    ref: str
    ok: bool
    result: Any
    cancelled: bool


AgentFrame = Hello | Transcript | Turn | Delta | Audio | Said | Tool | ToolDone


def reference(frame: Mapping[str, Any]) -> str | None:
    """What a `mirror.error` about this frame names: its `turn_id`, else its `id`, None without either."""
    return _Reader(frame).ref


def parse(frame: Mapping[str, Any]) -> AgentFrame:
    """A decoded `mirror.*` frame as what it says.

    Raises :class:`FrameError` (`bad_version`, `bad_field`, `bad_json`) naming the field and what it may be.
    """
    event = frame["event"]
    reader = _Reader(frame)
    if event == "mirror.hello":
        return _hello(reader)
    if event == "mirror.transcript":
        return _transcript(reader)
    if event == "mirror.turn":
        return _turn(reader)
    if event == "mirror.delta":
        return Delta(
            ref=reader.ident("turn_id"),
            text=reader.text("text", default="" if frame.get("final") is True else None),
            final=reader.flag("final", default=False),
            customer_text=reader.text("customer_text", default=""),
            language=reader.language(),
            seen=reader.optional("seen"),
        )
    if event == "mirror.audio":
        return _audio(reader)
    if event == "mirror.tool":
        return _tool(reader)
    if event == "mirror.tool_done":
        return ToolDone(
            ref=reader.ident("id"),
            ok=reader.flag("ok", default=True),
            result=frame.get("result"),
            cancelled=reader.flag("cancelled", default=False),
        )
    if event == "mirror.said":
        return Said(say=reader.ident("id"))
    raise FrameError("bad_field", "event: not a frame that an agent sends", reader.ref)


def _hello(reader: _Reader) -> Hello:
    version = reader.frame.get("v", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise FrameError("bad_version", f"v: this server speaks version {VERSION}")
    wants = reader.frame.get("wants")
    if wants is None:
        wants = ["verdicts", "notes"]
    if not isinstance(wants, list) or not all(isinstance(want, str) for want in wants):
        raise FrameError("bad_field", f"wants: a list of {', '.join(sorted(WANTS))}")
    return Hello(
        sdk=reader.text("sdk", default="", limit=MAX_ID),
        wants=frozenset(wants) & WANTS,  # what a later version may add is no error
        language=reader.language(),
        voice=reader.optional("voice"),
        marks=reader.flag("marks", default=False),
    )


def _transcript(reader: _Reader) -> Transcript:
    if reader.frame.get("role", "customer") != "customer":
        raise FrameError("bad_field", "role: must be customer; the agent's own words are mirror.turn")
    return Transcript(text=reader.text("text"), final=reader.flag("final", default=True), language=reader.language())


def _turn(reader: _Reader) -> Turn:
    calls = reader.frame.get("tool_calls")
    if calls is None:
        calls = []
    if not isinstance(calls, list) or len(calls) > MAX_TOOLS:
        raise FrameError("bad_field", f"tool_calls: a list of at most {MAX_TOOLS} objects", reader.ref)
    intents = tuple(_intent(_Reader(call, f"tool_calls[{i}].", reader.ref)) for i, call in enumerate(calls))
    if len({intent.id for intent in intents}) != len(intents):
        raise FrameError("bad_field", "tool_calls: each id may stand once in a turn", reader.ref)
    return Turn(
        ref=reader.ident("turn_id"),
        customer_text=reader.text("customer_text", default=""),
        text=reader.text("text", default=""),
        tool_calls=intents,
        language=reader.language(),
        seen=reader.optional("seen"),
    )


def _audio(reader: _Reader) -> Audio:
    state = reader.frame.get("state")
    if state not in ("start", "mark", "end", "cut"):
        raise FrameError("bad_field", "state: one of start, mark, end, cut", reader.ref)
    chars = reader.whole("chars", most=MAX_TEXT)
    if state == "mark" and chars is None:
        raise FrameError("bad_field", "chars: a mark needs the number of characters spoken so far", reader.ref)
    if reader.frame.get("say") is not None:
        if reader.frame.get("turn_id") is not None:
            raise FrameError("bad_field", "say: audio belongs to a turn_id or to a say, not to both", reader.ref)
        return Audio(turn_ref=None, state=state, chars=chars, say=reader.ident("say"))
    return Audio(turn_ref=reader.ident("turn_id"), state=state, chars=chars)


def _tool(reader: _Reader) -> Tool:
    return Tool(
        intent=_intent(reader),
        turn_ref=reader.optional("turn_id"),
        customer_text=reader.text("customer_text", default=""),
        key=reader.optional("key"),
        timeout_ms=reader.whole("timeout_ms", most=600_000),
        seen=reader.optional("seen"),
    )


def _intent(reader: _Reader) -> ToolCallIntent:
    args = reader.frame.get("args", {})
    error = None
    if isinstance(args, str):
        # Many frameworks hand on the model's own string. What it holds may be broken: then the tool must not run.
        try:
            args = json.loads(args) if args.strip() else {}
        except (ValueError, RecursionError) as problem:
            args, error = None, f"args is not valid JSON: {problem}"
    if error is None and not isinstance(args, dict):
        args, error = None, "args must be a JSON object"
    if error is None:
        try:
            size = len(json.dumps(args, allow_nan=False, ensure_ascii=False).encode())
        except (ValueError, RecursionError) as problem:
            args, error = None, f"args cannot be written as JSON: {problem}"
        else:
            if size > MAX_ARGS:
                args, error = None, f"args is longer than {MAX_ARGS} bytes"
    return ToolCallIntent(
        id=reader.ident("id"),
        name=reader.ident("name"),
        args=args,
        irreversible=reader.flag("irreversible", default=False),
        error=error,
    )


class _Reader:
    """Takes typed fields out of a frame; an error names the field with its path."""

    def __init__(self, frame: Any, path: str = "", ref: str | None = None) -> None:
        self.path = path
        self.ref = ref
        if not isinstance(frame, Mapping):
            raise FrameError("bad_field", f"{path.rstrip('.')}: must be an object", ref)
        self.frame = frame
        if ref is None:
            for name in ("turn_id", "say", "id"):
                value = frame.get(name)
                if isinstance(value, str):
                    self.ref = value[:MAX_ID]
                    break

    def _fail(self, name: str, message: str) -> FrameError:
        return FrameError("bad_field", f"{self.path}{name}: {message}", self.ref)

    def text(self, name: str, *, default: str | None = None, limit: int = MAX_TEXT) -> str:
        value = self.frame.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._fail(name, "must be a string")
        if len(value) > limit:
            raise self._fail(name, f"at most {limit} characters")
        return value

    def ident(self, name: str) -> str:
        value = self.text(name, limit=MAX_ID)
        if not value.strip():
            raise self._fail(name, "must not be empty")
        return value

    def optional(self, name: str) -> str | None:
        return None if self.frame.get(name) is None else self.text(name, limit=MAX_ID)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.frame.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._fail(name, "must be true or false")
        return value

    def whole(self, name: str, *, most: int) -> int | None:
        value = self.frame.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._fail(name, "must be a whole number")
        if value != int(value) or not 0 <= value <= most:
            raise self._fail(name, f"must be a whole number from 0 to {most}")
        return int(value)

    def language(self) -> str | None:
        value = self.optional("language")
        if value is not None and not _LANGUAGE.match(value):
            raise self._fail("language", "must be a BCP 47 tag such as en-US")
        return value
