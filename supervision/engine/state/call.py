"""One call's state: read when the call begins, written behind its back while it runs.

    state = await CallState.open(store, CallKey("tenant", "call"))
    state.note(HistoryEntry("customer", "Where is my order?"))     # at once, in memory
    await state.commit()                                           # when it has to be safe first
    await state.close(ended=True)

The process that owns the call is the only one that may change it, so it works on its own copy and never waits for the
store, except in `open`, `commit` and `close`. A store that is down costs nothing but durability: everything goes on in
memory, `degraded` says why, and what was missed is written when the store is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

from supervision.engine.context import HistoryEntry, Role
from supervision.engine.policy.compiler import MAX_HISTORY_CHARS, MAX_HISTORY_ENTRIES
from supervision.engine.scorer.tool_gate import MAX_LEDGER_ENTRIES, MAX_RESULT_CHARS
from supervision.engine.state.protocol import CallKey, StateError, StateLost, StateStore, StateTaken, StateUnavailable

logger = logging.getLogger(__name__)

# Changes of one moment go in one write.
WRITE_DELAY_S = 0.02
# A store that is down is asked again after this, doubling up to the second.
RETRY_FIRST_S = 1.0
RETRY_LAST_S = 30.0
MAX_RULES_REMEMBERED = 100
MAX_OVERRIDE_CHARS = 4_000

_ROLES = frozenset(get_args(Role))


class StateFull(StateError):
    """The call has as many irreversible tool calls as can be kept; to forget one would be to let it run again."""


@dataclass(frozen=True, slots=True)
class KeptTool:
    """An irreversible tool call as the ledger keeps it.

    `name` is case-folded, `args_sha256` the hex digest of the canonical arguments, `key` the agent's own key, `tool_id`
    the id of the call that took the entry. `done`: it ran, with `result` (JSON); else nobody said yet how it ended.
    """

    name: str
    args_sha256: str
    key: str
    tool_id: str
    done: bool = False
    result: Any = None

    @property
    def stored_as(self) -> str:
        """The name of the store's field; the same for every repeat of this call."""
        same = json.dumps([self.name, self.args_sha256, self.key])
        return f"tool:{hashlib.sha256(same.encode()).hexdigest()[:40]}"


@dataclass(frozen=True, slots=True)
class _Note:
    key: str
    entry: HistoryEntry


class CallState:
    """What is known of one call. Make it with `open`, and `close` it. Bounded like the engine's own memory of a call.

    Belongs to the event loop that it was opened on.
    """

    def __init__(
        self,
        store: StateStore,
        key: CallKey,
        *,
        clock: Callable[[], float] = time.time,
        on_degraded: Callable[[str | None], None] | None = None,
    ) -> None:
        self.key = key
        self.degraded: str | None = None
        """Why nothing can be written at the moment, fit for people; None while the store works."""
        self.taken = False
        """Another connection owns the call now; nothing of what happens here is kept any more."""
        self._store = store
        self._clock = clock
        self._on_degraded = on_degraded
        self._owner: str | None = None
        self._notes: dict[int, _Note] = {}
        self._serial = 0
        self._tools: dict[str, KeptTool] = {}
        self._override: tuple[str, float | None] | None = None
        self._acted: dict[str | None, float] = {}
        self._interventions = 0
        self._changes: dict[str, str | None] = {}
        self._stored: set[str] = set()
        self._opened_at = clock()
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._retry_s = RETRY_FIRST_S
        self._retry_at = 0.0

    @classmethod
    async def open(
        cls,
        store: StateStore,
        key: CallKey,
        *,
        clock: Callable[[], float] = time.time,
        on_degraded: Callable[[str | None], None] | None = None,
    ) -> Self:
        """Takes a call over, with what is known of it. A store that is down gives an empty state that is `degraded`.

        `clock` gives seconds since 1970, as all processes that share the store see them. `on_degraded` is told the
        reason when the store goes down, and None when it is back; it must not raise.
        """
        state = cls(store, key, clock=clock, on_degraded=on_degraded)
        async with state._writing:
            try:
                await state._claim(late=False)
            except StateUnavailable as error:
                state._went_down(str(error))
        return state

    # History

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """What was said and done so far, oldest first; at most 60 entries of 2,000 characters."""
        return tuple(note.entry for note in self._notes.values())

    @property
    def notes(self) -> tuple[tuple[str, HistoryEntry], ...]:
        """The history with the key that each entry was noted under ("" for none)."""
        return tuple((note.key, note.entry) for note in self._notes.values())

    @property
    def newest(self) -> HistoryEntry | None:
        """The last entry of the history."""
        note = next(reversed(self._notes.values()), None)
        return note.entry if note is not None else None

    def note(self, entry: HistoryEntry, key: str = "") -> None:
        """Adds to the history. With a `key`, an entry that was noted under the same key is replaced where it stands."""
        note = _Note(key, HistoryEntry(entry.role, entry.text[:MAX_HISTORY_CHARS]))
        serial = next((s for s, n in self._notes.items() if n.key == key), None) if key else None
        if serial is None:
            self._serial += 1
            serial = self._serial
        self._notes[serial] = note
        self._change(f"note:{serial}", _note_json(note))
        while len(self._notes) > MAX_HISTORY_ENTRIES:
            oldest = next(iter(self._notes))
            del self._notes[oldest]
            self._change(f"note:{oldest}", None)

    # The note to the agent

    @property
    def override(self) -> str | None:
        """The system note that waits for the agent's next turn, unless it is too old."""
        if self._override is None:
            return None
        text, until = self._override
        return text if until is None or self._clock() < until else None

    def set_override(self, text: str, *, ttl_s: float | None = None) -> None:
        """Leaves a system note for the agent's next turn; it takes the place of one that waits. It is dropped after
        `ttl_s` seconds, if given. Cut to 4,000 characters."""
        self._override = (text[:MAX_OVERRIDE_CHARS], None if ttl_s is None else self._clock() + ttl_s)
        self._change("override", _json(self._override))

    def take_override(self) -> str | None:
        """The waiting note, once: whoever asks next gets None."""
        text = self.override
        if self._override is not None:
            self._override = None
            self._change("override", None)
        return text

    # Irreversible tool calls

    @property
    def tools(self) -> tuple[KeptTool, ...]:
        """The irreversible tool calls that ran, or that were allowed to."""
        return tuple(self._tools.values())

    def tool(self, like: KeptTool) -> KeptTool | None:
        """What is kept of a tool call with the same name, arguments and key."""
        return self._tools.get(like.stored_as)

    def put_tool(self, tool: KeptTool) -> None:
        """Keeps a tool call, or what became of it. `commit` before it may run.

        A result that is no JSON, or has more than 16,000 characters, is kept as None. Raises `StateFull` at 500.
        """
        if tool.stored_as not in self._tools and len(self._tools) >= MAX_LEDGER_ENTRIES:
            raise StateFull(f"this call has asked for more than {MAX_LEDGER_ENTRIES} irreversible tool calls")
        if not _fits(tool.result):
            tool = replace(tool, result=None)
        self._tools[tool.stored_as] = tool
        self._change(tool.stored_as, _tool_json(tool))

    def drop_tool(self, tool: KeptTool) -> None:
        """Forgets a tool call that did not run, so that it may be tried again."""
        if self._tools.pop(tool.stored_as, None) is not None:
            self._change(tool.stored_as, None)

    # Interventions

    @property
    def interventions(self) -> int:
        """How many interventions there were in this call."""
        return self._interventions

    @property
    def acted_at(self) -> Mapping[str | None, float]:
        """When (seconds since 1970) each rule last led to an intervention; the last 100 rules."""
        return dict(self._acted)

    def note_intervention(self, rule: str | None) -> None:
        """An intervention because of this rule begins now."""
        self._interventions += 1
        self._acted.pop(rule, None)
        self._acted[rule] = self._clock()
        while len(self._acted) > MAX_RULES_REMEMBERED:
            del self._acted[next(iter(self._acted))]
        self._change("acted", self._acted_json())

    def _acted_json(self) -> str:
        return _json([self._interventions, list(self._acted.items())])

    # The store

    async def commit(self) -> bool:
        """Waits until everything up to now is in the store. False at once while the store is down (see `degraded`).

        Raises `StateTaken` when another connection has taken the call over: what this one does next is not safe.
        """
        async with self._writing:
            if not self.taken and (self.degraded is None or self._now() >= self._retry_at):
                await self._write()
            if self.taken:
                raise StateTaken
            # What was changed while that was written is newer than what this waits for.
            return self.degraded is None

    async def close(self, *, ended: bool = False) -> None:
        """Writes what is left, or with `ended` removes the call from the store; a call that another connection has
        taken over is left alone. What a store that is down still holds expires there."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.wait((self._writer,))
        async with self._writing:
            if self.taken:
                return
            if not ended:
                await self._write()
            elif self._owner is not None:
                try:
                    await self._store.forget(self.key, self._owner)
                except StateUnavailable as error:
                    self._went_down(str(error))

    def _change(self, name: str, value: str | None) -> None:
        if value is None and (name not in self._stored or (self.degraded is not None and name.startswith("note:"))):
            # There is nothing to remove, or nothing that matters: whoever reads the notes takes the last ones. While
            # the store is down, memory must not fill with removals.
            self._changes.pop(name, None)
            self._stored.discard(name)
        else:
            self._changes[name] = value
        self._start_writing()

    def _start_writing(self) -> None:
        if not self._closing.is_set() and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._keep_writing(), name="write call state")

    async def _keep_writing(self) -> None:
        while (self._changes or self.degraded is not None) and not self.taken:
            wait_s = WRITE_DELAY_S if self.degraded is None else max(WRITE_DELAY_S, self._retry_at - self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._closing.wait()
                return
            async with self._writing:
                await self._write()

    async def _write(self) -> None:
        """Writes all changes, once. Raises nothing: what became of it is in `degraded` and `taken`."""
        changes: dict[str, str | None] = {}
        try:
            if self._owner is None:
                await self._claim(late=True)
            assert self._owner is not None
            changes, self._changes = self._changes, {}
            if changes:
                # A field counts as stored from here on: whether a write that failed arrived is not known.
                self._stored.update(changes)
                await self._store.write(self.key, self._owner, changes)
                self._stored.difference_update(name for name, text in changes.items() if text is None)
        except StateTaken:
            logger.info("another connection has taken a call over; its state is no longer written here")
            self.taken = True
            self._changes.clear()
        except StateLost as error:
            # The next claim finds out what is missing. Not at once: a store that keeps losing it is as good as down.
            self._owner = None
            self._changes = {**changes, **self._changes}
            self._went_down(str(error))
        except Exception as error:
            # What was changed meanwhile is newer. A store of somebody's own may raise anything.
            self._changes = {**changes, **self._changes}
            self._went_down(str(error) if isinstance(error, StateError) else f"it raised {type(error).__name__}")
        except asyncio.CancelledError:
            self._changes = {**changes, **self._changes}
            raise
        else:
            self._came_back()

    async def _claim(self, *, late: bool) -> None:
        """Becomes the call's owner; puts what the store knows before what was learnt here without it."""
        claimed = await self._store.claim(self.key, opened_at=self._opened_at, late=late)
        self._owner = claimed.owner
        self._merge(_decoded(claimed.fields))
        # From here on the store lacks exactly what differs.
        self._stored = set(claimed.fields)
        fields = self._fields()
        self._changes = {name: text for name, text in fields.items() if claimed.fields.get(name) != text}
        self._changes.update({name: None for name in claimed.fields if name not in fields})

    def _merge(self, earlier: _Contents) -> None:
        own = list(self._notes.values())
        known = {note.key for note in own if note.key}
        self._notes = {serial: note for serial, note in sorted(earlier.notes.items()) if note.key not in known}
        self._serial = max([self._serial, *earlier.notes])
        for note in own:
            self._serial += 1
            self._notes[self._serial] = note
        for serial in list(self._notes)[:-MAX_HISTORY_ENTRIES]:
            del self._notes[serial]
        for name, tool in earlier.tools.items():
            # What ran, ran, whoever knows of it.
            if name not in self._tools or tool.done:
                self._tools[name] = tool
        self._override = self._override or earlier.override
        for rule, at in earlier.acted.items():
            self._acted[rule] = max(at, self._acted.get(rule, at))
        self._interventions += earlier.interventions

    def _fields(self) -> dict[str, str]:
        """Everything that the store should hold."""
        fields = {f"note:{serial}": _note_json(note) for serial, note in self._notes.items()}
        fields.update({field: _tool_json(tool) for field, tool in self._tools.items()})
        if self._override is not None:
            fields["override"] = _json(self._override)
        if self._interventions:
            fields["acted"] = self._acted_json()
        return fields

    def _went_down(self, why: str) -> None:
        self._retry_at = self._now() + self._retry_s
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)
        if self.degraded is None:
            logger.warning("call state is kept in memory only for now: %s", why)
            self.degraded = why
            if self._on_degraded is not None:
                self._on_degraded(why)
        self.degraded = why
        # Even with nothing to write: what the store knows of the call is wanted here.
        self._start_writing()

    def _came_back(self) -> None:
        self._retry_s = RETRY_FIRST_S
        if self.degraded is not None:
            logger.warning("call state is kept in the store again")
            self.degraded = None
            if self._on_degraded is not None:
                self._on_degraded(None)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


# Fields


@dataclass(slots=True)
class _Contents:
    notes: dict[int, _Note] = field(default_factory=dict)
    tools: dict[str, KeptTool] = field(default_factory=dict)
    override: tuple[str, float | None] | None = None
    acted: dict[str | None, float] = field(default_factory=dict)
    interventions: int = 0


def _decoded(fields: Mapping[str, str]) -> _Contents:
    """What a store's fields say. What cannot be read is left out, and said so in the log."""
    contents = _Contents()
    for name, text in fields.items():
        try:
            _decode_into(contents, name, json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError):
            logger.error("the state of a call has a field %r that cannot be read; it is dropped", name[:50])
    return contents


def _decode_into(contents: _Contents, name: str, value: Any) -> None:
    kind, _, rest = name.partition(":")
    if kind == "note":
        key, role, text = value
        if role not in _ROLES or not isinstance(text, str) or not isinstance(key, str):
            raise ValueError("not a note")
        contents.notes[int(rest)] = _Note(key, HistoryEntry(role, text))
    elif kind == "tool":
        tool_name, args_sha256, key, tool_id, done, result = value
        if not all(isinstance(item, str) for item in (tool_name, args_sha256, key, tool_id)) or done not in (0, 1):
            raise ValueError("not a tool call")
        contents.tools[name] = KeptTool(tool_name, args_sha256, key, tool_id, bool(done), result)
    elif kind == "override":
        text, until = value
        if not isinstance(text, str) or not isinstance(until, int | float | None):
            raise ValueError("not a note to the agent")
        contents.override = (text, until)
    elif kind == "acted":
        count, rules = value
        contents.acted = {rule: float(at) for rule, at in rules}
        contents.interventions = int(count)
    else:
        raise ValueError("not a field of this version")


def _note_json(note: _Note) -> str:
    return _json([note.key, note.entry.role, note.entry.text])


def _tool_json(tool: KeptTool) -> str:
    return _json([tool.name, tool.args_sha256, tool.key, tool.tool_id, tool.done, tool.result])


def _json(value: Any) -> str:
    # ASCII, so that NUL and half surrogate pairs are as storable as anything else.
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _fits(result: Any) -> bool:
    try:
        return len(json.dumps(result, allow_nan=False)) <= MAX_RESULT_CHARS
    except (TypeError, ValueError, RecursionError):
        return False
