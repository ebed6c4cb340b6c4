"""Recorded calls, read from files: whatever of a common shape somebody has, and a clear word about what is not.

A file is a JSON document or JSON lines, in UTF-8, gzipped or not. It holds calls, or the turns of one call:

    [{"call_id": "c-1", "turns": [ ... ]}, ...]             # calls; an object {"calls": [...]} will do too
    [{"role": "customer", "text": "..."}, {"role": "agent", "text": "...", "tool_calls": [...]}, ...]

The entries of `turns`, or of a flat list, are what was said in order (`role` is `customer`, `agent`, `tool`, `mirror`;
`user` and `assistant` are understood, `system` is passed over), or whole turns: `{"customer_text", "agent_text",
"tool_calls", "tool_results", "tool_errors", "label"}`. Entries of a flat list may carry a `call_id` each.

A tool call is `{"name", "args", "irreversible"}`, or as OpenAI writes it, with `arguments` as a text.

A `label` says whether a turn was bad: true or false, `"bad"` or `"good"`, or an object with any of `bad`, `speech`,
`tools` (true: that part of the turn was bad), `wrong_write`, `agent_error`, `quoted_bad`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from supervision.engine.context import HistoryEntry, ToolCallIntent
from supervision.engine.supervisor import tool_entry

_CUSTOMER = frozenset({"customer", "user", "caller"})
_AGENT = frozenset({"agent", "assistant"})
_PASSED_OVER = frozenset({"system", "developer"})
_TURN_FIELDS = ("agent_text", "primary_text", "primary_response", "customer_text", "tool_calls")

Outcome = Literal["ran", "failed", "unknown"]


class RecordingError(ValueError):
    """A recording cannot be read. The message names the file, the record (counted from 1) and the field (list items
    counted from 0), and says what is wrong; it repeats nothing that was said in a call."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a person said of a turn: True is bad. None where nothing was said of that part."""

    turn: bool | None = None
    speech: bool | None = None
    tools: bool | None = None


@dataclass(frozen=True, slots=True)
class RecordedTool:
    """A tool call as it was made, and what became of it.

    `in_turn`: the result stands in the turn itself, so it was there before the turn ended. `noted_later`: it is told
    `before` a later turn. `said_before` is what the agent had said in the turn before the call, None when the recording
    does not tell.
    """

    intent: ToolCallIntent
    outcome: Outcome = "unknown"
    result: Any = None
    in_turn: bool = False
    noted_later: bool = False
    said_before: str | None = None

    def entry(self) -> HistoryEntry:
        """The line of the history that tells of it."""
        if self.outcome == "unknown":
            return tool_entry(self.intent, "was called; its result was not recorded")
        return tool_entry(self.intent, self.outcome, self.result)


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """All that the agent said and did at once. `before` is what happened since its last turn, without
    `customer_words`, which are what the customer said right before (none when the agent speaks twice running)."""

    index: int
    customer_text: str
    agent_text: str
    tools: tuple[RecordedTool, ...] = ()
    before: tuple[HistoryEntry, ...] = ()
    customer_words: tuple[HistoryEntry, ...] = ()
    label: Label = Label()


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call. `language` is a BCP 47 tag."""

    call_id: str
    turns: tuple[RecordedTurn, ...]
    language: str = "en"


@dataclass(frozen=True, slots=True)
class _At:
    """A place in a file."""

    file: str
    record: str = ""
    path: str = ""

    def of(self, name: str) -> _At:
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> _At:
        return replace(self, path=f"{self.path}[{index}]")

    def error(self, problem: str) -> RecordingError:
        return RecordingError(": ".join(part for part in (self.file, self.record, self.path, problem) if part))


def read_calls(path: Path) -> list[RecordedCall]:
    """Reads the calls of a file. Raises `RecordingError`."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise RecordingError(f"{path}: it is gzipped, and damaged or cut off ({error})") from error
    except OSError as error:
        raise RecordingError(f"{path}: it cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    name = path.name.removesuffix(".gz")
    return parse_calls(text, file=str(path), call_id=name.rpartition(".")[0] or name)


def parse_calls(text: str, *, file: str = "recording", call_id: str = "call") -> list[RecordedCall]:
    """The calls of a text. `file` is what errors call it, `call_id` names a call that has no id. Raises
    `RecordingError`, also when no agent turn is in it."""
    try:
        calls = _calls(_records(text, file), file, call_id)
    except RecursionError as error:
        raise RecordingError(f"{file}: it is nested too deeply") from error
    if not any(call.turns for call in calls):
        raise RecordingError(f'{file}: no agent turn is in it; turns have "agent_text", or "role": "agent"')
    return calls


# Files into records


def _records(text: str, file: str) -> list[tuple[_At, Any]]:
    start = text.lstrip()[:1]
    if not start:
        raise RecordingError(f"{file}: it is empty")
    if start not in "[{":
        raise RecordingError(f"{file}: it has to be JSON, or JSON lines, and begin with [ or {{")
    try:
        document = json.loads(text)
    except ValueError as error:
        # Not splitlines(): texts may contain line separators of other kinds.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if start == "[" or len(lines) < 2 or not _is_json(lines[0][1]):
            raise RecordingError(f"{file}: {_json_problem(error)}") from error
        return [(_At(file, f"line {number}"), _parsed_line(line, file, number)) for number, line in lines]
    if isinstance(document, dict):
        document = document["calls"] if isinstance(document.get("calls"), list) else [document]
    return [(_At(file, f"record {number}"), record) for number, record in enumerate(document, 1)]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parsed_line(line: str, file: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise RecordingError(f"{file}: line {number}: {_json_problem(error)}") from error


def _json_problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    return f"it is not JSON: {error}"


# Records into calls


def _calls(records: Sequence[tuple[_At, Any]], file: str, default_id: str) -> list[RecordedCall]:
    for at, record in records:
        if not isinstance(record, dict):
            raise at.error(f"a call or a turn has to be an object; this is {_kind(record)}")
    whole = [("turns" in record) for _, record in records]
    if all(whole):
        return [_call(at, record, number) for number, (at, record) in enumerate(records, 1)]
    if any(whole):
        at = records[whole.index(not whole[0])][0]
        raise at.error('some records are calls (with "turns") and some are turns; give one kind in a file')
    flat: dict[str, list[tuple[_At, dict[str, Any]]]] = {}
    for at, record in records:
        flat.setdefault(_call_id(at, record) or default_id, []).append((at, record))
    return [RecordedCall(call_id, _turns(entries, frozenset())) for call_id, entries in flat.items()]


def _call_id(at: _At, record: dict[str, Any]) -> str | None:
    value = record.get("call_id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise at.of("call_id").error(f"it has to be a text or a number; it is {_kind(value)}")
    return str(value)


def _call(at: _At, record: dict[str, Any], number: int) -> RecordedCall:
    call_id = _call_id(at, record)
    if call_id is not None:
        at = replace(at, record=f"{at.record} (call {call_id[:80]!r})")
    turns = record["turns"]
    if not isinstance(turns, list):
        raise at.of("turns").error(f"it has to be a list; it is {_kind(turns)}")
    entries: list[tuple[_At, dict[str, Any]]] = []
    for index, entry in enumerate(turns):
        where = at.of("turns").item(index)
        if not isinstance(entry, dict):
            raise where.error(f"a turn has to be an object; this is {_kind(entry)}")
        entries.append((where, entry))
    writes = record.get("write_tools") or []
    if not isinstance(writes, list) or not all(isinstance(name, str) for name in writes):
        raise at.of("write_tools").error("it has to be a list of tool names")
    language = _text(at, record, "language") or "en"
    irreversible = frozenset(name.strip().casefold() for name in writes)
    return RecordedCall(call_id or f"call {number}", _turns(entries, irreversible), language)


@dataclass(slots=True)
class _Reader:
    """Reads the entries of one call in order."""

    irreversible: frozenset[str]
    turns: list[RecordedTurn] = field(default_factory=list)
    tools: list[list[RecordedTool]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    customer_text: str = ""
    before: list[HistoryEntry] = field(default_factory=list)
    customer_words: list[HistoryEntry] = field(default_factory=list)

    def read(self, at: _At, entry: dict[str, Any]) -> None:
        if "role" not in entry:
            if not any(name in entry for name in _TURN_FIELDS):
                raise at.error('it has neither "role" nor "agent_text"; a turn has one of them')
            self.customer_text = ""
            self.customer(_text(at, entry, "customer_text"))
            self.agent(at, entry, _text(at, entry, "agent_text", "primary_text", "primary_response"))
            return
        role = entry["role"]
        if not isinstance(role, str):
            raise at.of("role").error(f"it has to be a text; it is {_kind(role)}")
        role = role.strip().casefold()
        if role in _PASSED_OVER:
            return
        if role in _CUSTOMER:
            self.customer(_text(at, entry, "text", "content"))
        elif role in _AGENT:
            self.agent(at, entry, _text(at, entry, "text", "content"))
        elif role == "tool":
            self.tool(at, entry)
        elif role == "mirror":
            self.meanwhile(HistoryEntry("mirror", _text(at, entry, "text", "content")))
        else:
            raise at.of("role").error("it has to be customer, agent, tool or mirror")

    def customer(self, text: str) -> None:
        if text.strip():
            self.customer_words.append(HistoryEntry("customer", text))

    def meanwhile(self, entry: HistoryEntry) -> None:
        self.before += [*self.customer_words, entry]
        if self.customer_words:
            self.customer_text = " ".join(words.text for words in self.customer_words)
        self.customer_words.clear()

    def agent(self, at: _At, entry: dict[str, Any], text: str) -> None:
        if self.customer_words:
            self.customer_text = " ".join(words.text for words in self.customer_words)
        tools = self.tool_calls(at, entry, text)
        label = _label(at.of("label"), entry.get("label"))
        if not tools:
            label = replace(label, speech=label.turn if label.speech is None else label.speech)
        elif not text.strip():
            label = replace(label, tools=label.turn if label.tools is None else label.tools)
        index = entry.get("index")
        self.turns.append(
            RecordedTurn(
                index if isinstance(index, int) and not isinstance(index, bool) else len(self.turns),
                self.customer_text,
                text,
                before=tuple(self.before),
                customer_words=tuple(self.customer_words),
                label=label,
            )
        )
        self.tools.append(tools)
        self.before.clear()
        self.customer_words.clear()

    def tool(self, at: _At, entry: dict[str, Any]) -> None:
        """A tool's result: of the call with its id, else of the first with its name that still waits for one."""
        wanted = _text(at, entry, "tool_call_id", "id")
        name = _text(at, entry, "name")
        result = next((entry[key] for key in ("result", "text", "content") if entry.get(key) is not None), None)
        failed = entry.get("error", entry.get("is_error", False))
        outcome: Outcome = "failed" if failed not in (False, None) else "ran"
        if outcome == "failed" and result is None:
            result = failed
        for tools in self.tools:
            for index, tool in enumerate(tools):
                fits = tool.intent.id == wanted if wanted else tool.intent.name == name
                if fits and tool.outcome == "unknown" and not tool.in_turn:
                    tools[index] = replace(tool, outcome=outcome, result=result, noted_later=True)
                    self.meanwhile(tools[index].entry())
                    return
        if not name and not wanted:
            raise at.error('a tool\'s result needs the "name" of the tool, or the "tool_call_id"')
        self.meanwhile(tool_entry(ToolCallIntent(wanted, name or wanted, {}), outcome, result))

    def tool_calls(self, at: _At, entry: dict[str, Any], text: str) -> list[RecordedTool]:
        calls = _list(at, entry, "tool_calls")
        results, errors = _list(at, entry, "tool_results"), _list(at, entry, "tool_errors")
        for name, values in (("tool_results", results), ("tool_errors", errors)):
            if values and len(values) != len(calls):
                raise at.of(name).error(f"it has {len(values)} items for {len(calls)} tool_calls")
        said = _said_before(at, entry, len(calls), text)
        tools = []
        for index, call in enumerate(calls):
            where = at.of("tool_calls").item(index)
            tool = RecordedTool(self.intent(where, call, f"t{len(self.turns)}.{index}"), said_before=said[index])
            failed = errors[index] if errors else False
            if not isinstance(failed, bool | None):
                raise at.of("tool_errors").item(index).error("it has to be true or false")
            result = results[index] if results else None
            if failed or errors or result is not None:
                tool = replace(tool, outcome="failed" if failed else "ran", result=result)
            tools.append(replace(tool, in_turn=bool(results)))
        return tools

    def intent(self, at: _At, call: Any, default_id: str) -> ToolCallIntent:
        if not isinstance(call, dict):
            raise at.error(f"a tool call has to be an object; this is {_kind(call)}")
        inner = call.get("function")
        if isinstance(inner, dict):
            call, at = {**inner, **{key: call[key] for key in ("id", "irreversible") if key in call}}, at.of("function")
        name = call.get("name")
        if not isinstance(name, str):
            # A blank one is what an agent may well have called; the gate has an answer to that.
            raise at.of("name").error(f"it has to be the tool's name; it is {_kind(name)}")
        irreversible = call.get("irreversible")
        if not isinstance(irreversible, bool | None):
            raise at.of("irreversible").error("it has to be true or false")
        args, problem = _arguments(call.get("args", call.get("arguments")))
        tool_id = _text(at, call, "id")
        if not tool_id or tool_id in self.ids:
            tool_id = default_id
        self.ids.add(tool_id)
        flagged = bool(irreversible) or name.strip().casefold() in self.irreversible
        return ToolCallIntent(tool_id, name, args, flagged, problem)


def _turns(entries: Sequence[tuple[_At, dict[str, Any]]], irreversible: frozenset[str]) -> tuple[RecordedTurn, ...]:
    reader = _Reader(irreversible)
    for at, entry in entries:
        reader.read(at, entry)
    return tuple(replace(turn, tools=tuple(tools)) for turn, tools in zip(reader.turns, reader.tools, strict=True))


def _said_before(at: _At, entry: dict[str, Any], calls: int, text: str) -> list[str | None]:
    """What the agent had said before each tool call of a turn, by its `order`: "tct" is a text, a call, a text."""
    order = entry.get("order")
    if not isinstance(order, str) or set(order) - {"t", "c"} or order.count("c") != calls:
        # Not told, or somebody's field of the same name.
        return [None] * calls
    texts = _list(at, entry, "agent_texts") or [text]
    if not all(isinstance(item, str) for item in texts):
        raise at.of("agent_texts").error("it has to be a list of texts")
    said: list[str | None] = []
    spoken = 0
    for part in order:
        if part == "t":
            spoken += 1
        else:
            said.append(" ".join(texts[:spoken]))
    return said


def _arguments(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Arguments as they were recorded. What is wrong with them was the agent's fault, and is for the gate to judge."""
    if value is None:
        return {}, None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            return None, f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not JSON"
    return (value, None) if isinstance(value, dict) else (None, "not a JSON object")


def _label(at: _At, value: Any) -> Label:
    if value is None:
        return Label()
    if isinstance(value, str) and value.strip().casefold() in ("bad", "good"):
        return Label(turn=value.strip().casefold() == "bad")
    if value in (0, 1) and isinstance(value, int | float):
        return Label(turn=bool(value))
    if not isinstance(value, dict):
        raise at.error('it has to be true (bad) or false, "bad" or "good", or an object')

    def said(name: str) -> bool | None:
        found = value.get(name)
        if not isinstance(found, bool | None):
            raise at.of(name).error(f"it has to be true or false; it is {_kind(found)}")
        return found

    quoted = value.get("quoted_bad")
    if not isinstance(quoted, list | str | None):
        raise at.of("quoted_bad").error(f"it has to be a list of quotes; it is {_kind(quoted)}")
    speech, tools = said("speech"), said("tools")
    if speech is None and quoted is not None:
        speech = bool(quoted)
    if tools is None:
        tools = said("wrong_write")
    parts = [part for part in (said("bad"), said("agent_error"), speech, tools) if part is not None]
    return Label(any(parts) if parts else None, speech, tools)


def _text(at: _At, entry: dict[str, Any], *names: str) -> str:
    """The text of the first of these fields that is there; empty when none is."""
    for name in names:
        value = entry.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise at.of(name).error(f"it has to be a text; it is {_kind(value)}")
            return value
    return ""


def _list(at: _At, entry: dict[str, Any], name: str) -> list[Any]:
    value = entry.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise at.of(name).error(f"it has to be a list; it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
