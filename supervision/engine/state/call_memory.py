"""What one supervised call remembers: in this process alone, or through a `CallState` that outlives it.

Without a store everything is kept here. With one, `open` takes the call over in the background (the audio of a call
waits for no database), and what was learnt meanwhile is added to what the store knows. A store that does not answer
costs nothing but durability: `degraded` says so, and the call goes on with what is known here.

One thing is worth waiting for: an irreversible tool call may run only when that is in the store, for else a reconnect
would let it run again. Where it cannot be written, `tool_gate_on_failure` decides, as it does when the judge is down;
what it allows is written when the store is back. A connection that another has taken the call from allows nothing
irreversible any more, whatever the policy says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervision.engine.context import HistoryEntry, Role, ToolCode
from supervision.engine.policy.compiler import MAX_HISTORY_CHARS, MAX_HISTORY_ENTRIES
from supervision.engine.scorer.tool_gate import Ledger, LedgerKey, ToolDenied
from supervision.engine.state.call import MAX_OVERRIDE_CHARS, MAX_RULES_REMEMBERED, CallState, KeptTool
from supervision.engine.state.carried import CarriedMemory
from supervision.engine.state.protocol import CallKey, StateStore, StateTaken, StateUnavailable

logger = logging.getLogger(__name__)

OPEN_WITHIN_S = 1.5
"""How long a turn waits for what the store knows of the call; then it is judged without."""
CLOSE_WITHIN_S = 5.0
"""How long the end of supervision waits for the store to take what is left."""


@dataclass(slots=True)
class _Note:
    """A line of the history that may still change: `key` is the turn or tool call that it tells of."""

    key: str
    entry: HistoryEntry


class CallMemory:
    """The history, the note to the agent, the interventions and, through `ledger`, the irreversible tool calls of one
    call. `clock` gives seconds since 1970. Belongs to the event loop on which the call runs."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._notes: deque[_Note] = deque(maxlen=MAX_HISTORY_ENTRIES)
        self._override: tuple[str, float | None] | None = None
        self._acted_at: dict[str | None, float] = {}
        self._interventions = 0
        self._acted: deque[str | None] = deque(maxlen=MAX_RULES_REMEMBERED)
        self._state: CallState | None = None
        self._opening: asyncio.Task[CallState] | None = None
        self._put: set[str] = set()
        self._waited = False
        self._degraded: str | None = None

    # The store

    @property
    def degraded(self) -> str | None:
        """Why nothing reaches the store at the moment, fit for people; None while it does, and without a store."""
        if self._state is not None:
            if self._state.taken:
                return "another connection has taken this call over"
            return self._state.degraded
        return self._degraded

    def open(self, store: StateStore, key: CallKey) -> None:
        """Begins to take the call over from the store. Needs a running event loop; once per call."""
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(
            CallState.open(store, key, clock=self._clock, on_degraded=self._store_changed), name="open call state"
        )
        self._opening.add_done_callback(self._opened)

    async def opened(self, within_s: float = OPEN_WITHIN_S) -> None:
        """Returns when what the store knows of the call is here, at the latest after `within_s` seconds; at once when
        that was waited for before in vain."""
        task = self._opening
        if task is None or self._waited:
            return
        await asyncio.wait((task,), timeout=within_s)
        if task.done():
            # The callback was scheduled by the same event; it need not have run before this task.
            self._opened(task)
        elif not self._waited:
            self._waited = True
            self._degraded = "the state store has not answered in time"
            logger.warning("call state is kept in memory only for now: %s", self._degraded)

    async def close(self, *, ended: bool) -> None:
        """Writes what is left, within 5 seconds; with `ended` the store forgets the call."""
        task = self._opening
        if task is not None and not task.done():
            await asyncio.wait((task,), timeout=OPEN_WITHIN_S)
            if not task.done():
                self._opening = None
                self._degraded = "the state store has not answered in time"
                task.cancel()
                return
            self._opened(task)
        if self._state is None:
            return
        try:
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._state.close(ended=ended)
        except TimeoutError:
            # The stores here give up sooner; one of somebody's own may not.
            logger.warning("the state store did not take a call's last changes in time")

    def _opened(self, task: asyncio.Task[CallState] | None) -> None:
        if task is None or task is not self._opening:
            return
        self._opening = None
        if task.cancelled():
            self._degraded = "asking the state store was given up"
            return
        error = task.exception()
        if error is not None:
            # A store of somebody's own may raise anything; its message may hold what was said.
            logger.error("the state store raised %s; the call is kept in memory only", type(error).__name__)
            self._degraded = f"the state store raised {type(error).__name__}"
            return
        state = task.result()
        self._degraded = None
        for note in self._notes:
            state.note(note.entry, note.key)
        self._notes.clear()
        if self._override is not None:
            text, until = self._override
            now = asyncio.get_running_loop().time()
            state.set_override(text, ttl_s=None if until is None else until - now)
            self._override = None
        for rule in self._acted:
            state.note_intervention(rule)
        self._acted.clear()
        known = {tool.stored_as for tool in state.tools}
        self._take_in(state)
        self._state = state
        for key, entry in self._ledger.entries():
            tool = _kept(key, entry.owner, done=entry.done, result=entry.result)
            if entry.done or tool.stored_as not in known:
                self._put_tool(state, tool)

    def _store_changed(self, why: str | None) -> None:
        if why is None and self._state is not None:
            # It was down when the call began: what it knew has just been added.
            self._take_in(self._state)

    def _take_in(self, state: CallState) -> None:
        loop_now, now = asyncio.get_running_loop().time(), self._clock()
        for rule, at in state.acted_at.items():
            acted_at = loop_now - max(0.0, now - at)
            self._acted_at[rule] = max(acted_at, self._acted_at.get(rule, acted_at))
        for tool in state.tools:
            if tool.done or tool.stored_as not in self._put:
                key = (tool.name, bytes.fromhex(tool.args_sha256), tool.key)
                self._ledger.restore(key, tool.tool_id, done=tool.done, result=tool.result)

    def _put_tool(self, state: CallState, tool: KeptTool) -> None:
        self._put.add(tool.stored_as)
        state.put_tool(tool)

    # History

    @property
    def history(self) -> tuple[HistoryEntry, ...]:
        """What was said and done so far, oldest first; at most 60 entries of 2,000 characters."""
        if self._state is not None:
            return self._state.history
        return tuple(note.entry for note in self._notes)

    @property
    def newest(self) -> HistoryEntry | None:
        """The last entry of the history."""
        if self._state is not None:
            return self._state.newest
        return self._notes[-1].entry if self._notes else None

    def keyed(self) -> list[tuple[str, HistoryEntry]]:
        """The history with the key that each entry was noted under ("" for none)."""
        if self._state is not None:
            return list(self._state.notes)
        return [(note.key, note.entry) for note in self._notes]

    def note(self, key: str, role: Role, text: str) -> None:
        """Adds to the history; an entry with the same key (unless that is "") is replaced where it stands."""
        text = text.strip()[:MAX_HISTORY_CHARS]
        if not text:
            return
        entry = HistoryEntry(role, text)
        if self._state is not None:
            self._state.note(entry, key)
            return
        if key:
            for note in self._notes:
                if note.key == key:
                    note.entry = entry
                    return
        self._notes.append(_Note(key, entry))

    # Going on in another process

    def carried(self) -> CarriedMemory:
        """What is remembered, for whoever goes on with the call."""
        now = asyncio.get_running_loop().time()
        return CarriedMemory(
            notes=tuple(self.keyed()),
            tools=tuple(
                _kept(key, entry.owner, done=entry.done, result=entry.result) for key, entry in self._ledger.entries()
            ),
            acted=tuple((rule, max(0.0, now - at)) for rule, at in self._acted_at.items()),
            interventions=self.interventions,
        )

    def carry_on(self, carried: CarriedMemory) -> None:
        """Goes on from what another process remembered. Before anything was noted here."""
        now = asyncio.get_running_loop().time()
        for key, entry in carried.notes:
            self.note(key, entry.role, entry.text)
        for tool in carried.tools:
            key_of_tool = (tool.name, bytes.fromhex(tool.args_sha256), tool.key)
            self._ledger.restore(key_of_tool, tool.tool_id, done=tool.done, result=tool.result)
        self._acted_at.update((rule, now - ago_s) for rule, ago_s in carried.acted)
        self._interventions = carried.interventions

    # The note to the agent

    def set_override(self, text: str, ttl_s: float | None) -> None:
        """Leaves a note for the agent's next turn in place of one that waits; dropped after `ttl_s` seconds."""
        if self._state is not None:
            self._state.set_override(text, ttl_s=ttl_s)
            return
        until = None if ttl_s is None else asyncio.get_running_loop().time() + ttl_s
        self._override = (text[:MAX_OVERRIDE_CHARS], until)

    def take_override(self) -> str | None:
        """The waiting note, once."""
        if self._state is not None:
            return self._state.take_override()
        if self._override is None:
            return None
        (text, until), self._override = self._override, None
        return text if until is None or asyncio.get_running_loop().time() < until else None

    # Interventions

    @property
    def interventions(self) -> int:
        """How many interventions there were in this call."""
        return self._state.interventions if self._state is not None else self._interventions

    def acted_ago_s(self, rule: str | None) -> float | None:
        """How many seconds ago this rule last led to an intervention; None when it never did."""
        at = self._acted_at.get(rule)
        return None if at is None else asyncio.get_running_loop().time() - at

    def note_intervention(self, rule: str | None) -> None:
        """An intervention because of this rule begins now."""
        self._acted_at.pop(rule, None)
        self._acted_at[rule] = asyncio.get_running_loop().time()
        while len(self._acted_at) > MAX_RULES_REMEMBERED:
            del self._acted_at[next(iter(self._acted_at))]
        if self._state is not None:
            self._state.note_intervention(rule)
        else:
            self._interventions += 1
            self._acted.append(rule)

    # The ledger's journal (`scorer.tool_gate.LedgerJournal`)

    @property
    def durable(self) -> bool:
        """Whether irreversible tool calls have to be in a store before they may run."""
        return self._state is not None or self._opening is not None or self._degraded is not None

    async def ready(self) -> None:
        """Returns when the store has answered what it knows of the call. Waits as long as that takes."""
        if self._opening is not None:
            await asyncio.wait((self._opening,))
            self._opened(self._opening)

    async def pending(self, key: LedgerKey, tool_id: str) -> None:
        """Returns when it is in the store that this call may run. Raises `StateUnavailable` when it is not, and
        `ToolDenied` when another connection has the call now."""
        if self._state is None:
            raise StateUnavailable(self._degraded or "the state store is not open")
        self._put_tool(self._state, _kept(key, tool_id))
        try:
            written = await self._state.commit()
        except StateTaken as taken:
            raise ToolDenied(
                str(taken), "Another connection goes on with this call; it decides.", code=ToolCode.CANCELLED
            ) from taken
        if not written:
            raise StateUnavailable(self._state.degraded or "the state store is down")

    def done(self, key: LedgerKey, tool_id: str, result: Any) -> None:
        """The call ran, with this result."""
        if self._state is not None:
            self._put_tool(self._state, _kept(key, tool_id, done=True, result=result))

    def freed(self, key: LedgerKey, tool_id: str) -> None:
        """The call did not run, and may be tried again."""
        if self._state is not None:
            tool = _kept(key, tool_id)
            self._put.discard(tool.stored_as)
            self._state.drop_tool(tool)


def _kept(key: LedgerKey, tool_id: str, *, done: bool = False, result: Any = None) -> KeptTool:
    name, digest, own_key = key
    return KeptTool(name, digest.hex(), own_key, tool_id, done, result)
