"""One bound on all questions that a process has with models, shared fairly between tenants.

    pool = ScoringPool(limit=1000)
    supervisor = Supervisor(config, limiter=pool.share("tenant-a", limit=200))

Of `limit` places an eighth is kept: for tenants that have less than their share, and half of it for tool calls. The
share is what is not kept, divided by the tenants that have questions with models or waiting. Whoever has the fewest
questions with models gets the next place; among a tenant's own questions the riskiest goes first (`Risk`), then the
oldest. It follows that

- a tenant below its share takes a place at once while the kept ones last, however much the others ask, and
- otherwise waits for the places of the others to become free no longer than one of their questions takes, and in that
  time gets every place that does, until it has its share (start-time fair queueing by places instead of by time, which
  nobody knows before: Goyal, Vin, Cheng, "Start-time Fair Queuing", 1996).

Beyond `most_waiting` questions that wait, the least risky one of the tenant that has the most waiting is shed, the
newest among equals. Gates of irreversible tools are never shed: they wait to their deadline.

Calls and reviews run on event loops of several threads, so the pool may be shared by threads; each question is woken on
its own loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

from supervision.engine.llm.limiter import Risk

LIMIT = 1_000
"""Questions with models at a time."""
KEPT_PARTS = 8
"""One in so many places is kept for tenants below their share."""
WAITING_PER_PLACE = 2
"""Unless it is said otherwise, so many questions may wait for each place, a hundred at least."""
WAIT_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram of waits, in seconds."""

TenantClass = Literal["within_share", "over_share"]
"""How much the tenant had under way when it asked. Figures tell apart these, not tenants, of which there is no end."""
ShedCause = Literal["no_place", "overtaken"]
"""`no_place`: none became free in time. `overtaken`: too many waited, and others were riskier."""

STALE_PER_TENANT = 8
"""How many outdated entries the order of tenants may have for each before it is made anew."""

_URGENT = Risk.TOOL


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What a pool did since it was made, and has now. Keys are by class of tenant; waits are of questions that got a
    place, their histogram counts by `WAIT_BOUNDS_S` and beyond, not accumulated."""

    limit: int | None
    in_flight: int
    waiting: int
    tenants: int
    placed: dict[tuple[TenantClass, Risk], int]
    shed: dict[tuple[TenantClass, Risk, ShedCause], int]
    timed_out: dict[TenantClass, int]
    """Gates of irreversible tools that got no place by their deadline."""
    waits: dict[TenantClass, tuple[int, ...]]
    waited_s: dict[TenantClass, float]


class _Question:
    """One that waits for its place, or did."""

    __slots__ = ("done", "loop", "placed", "risk", "share", "whose")

    def __init__(self, share: PoolShare, risk: Risk, whose: TenantClass, loop: asyncio.AbstractEventLoop) -> None:
        self.share = share
        self.risk = risk
        self.whose = whose
        self.loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        # None while it waits; whether it got a place afterwards.
        self.placed: bool | None = None


@dataclass(slots=True)
class _Counts:
    placed: Counter[tuple[TenantClass, Risk]] = field(default_factory=Counter)
    shed: Counter[tuple[TenantClass, Risk, ShedCause]] = field(default_factory=Counter)
    timed_out: Counter[TenantClass] = field(default_factory=Counter)
    waits: dict[TenantClass, list[int]] = field(
        default_factory=lambda: {
            "within_share": [0] * (len(WAIT_BOUNDS_S) + 1),
            "over_share": [0] * (len(WAIT_BOUNDS_S) + 1),
        }
    )
    waited_s: dict[TenantClass, float] = field(default_factory=lambda: {"within_share": 0.0, "over_share": 0.0})


class PoolShare:
    """A tenant's part in a pool; a `QuestionLimiter`. Made by `ScoringPool.share`."""

    def __init__(self, pool: ScoringPool, tenant: str, limit: int | None, on_limit: Callable[[], None] | None) -> None:
        self.tenant = tenant
        self.in_flight = 0
        """Questions that are with models."""
        self._pool = pool
        self._limit = limit
        self._on_limit = on_limit
        self._waiting: dict[Risk, OrderedDict[_Question, None]] = {}
        self._waits = 0
        self._served = 0  # when it got its last place, in places given
        self._version = 0  # of its entry in the pool's heaps

    def allow(self, limit: int | None) -> None:
        """Change the tenant's own limit. Questions that are under way beyond a lower one go on."""
        if limit != self._limit:
            self._pool._allow(self, limit)

    async def acquire(self, *, within_s: float, risk: Risk) -> bool:
        """See `QuestionLimiter`. `on_limit` of `ScoringPool.share` hears of each question that got no place while the
        tenant was at its own limit."""
        pool = self._pool
        loop = asyncio.get_running_loop()
        question = pool._ask(self, risk, loop)
        if question is None:
            return True
        asked_at = loop.time()
        try:
            if question.done.done():
                # Shed at once: whoever asks again at once must not keep the loop from everybody else.
                await asyncio.sleep(0)
            async with asyncio.timeout(within_s):
                await question.done
        except TimeoutError:
            return self._ended(pool._timed_out(question, loop.time() - asked_at))
        except asyncio.CancelledError:
            pool._gave_up(question)
            raise
        return self._ended(pool._settled(question, loop.time() - asked_at))

    def release(self) -> None:
        """See `QuestionLimiter`."""
        self._pool._release(self)

    def _ended(self, outcome: tuple[bool, bool]) -> bool:
        placed, at_limit = outcome
        if at_limit and self._on_limit is not None:
            self._on_limit()
        return placed

    # Called by the pool, under its lock.

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and self.in_flight >= self._limit

    def _enqueue(self, question: _Question) -> None:
        self._waiting.setdefault(question.risk, OrderedDict())[question] = None
        self._waits += 1

    def _dequeue(self, question: _Question) -> None:
        queue = self._waiting[question.risk]
        del queue[question]
        if not queue:
            del self._waiting[question.risk]
        self._waits -= 1

    def _riskiest(self) -> _Question:
        return next(iter(self._waiting[max(self._waiting)]))

    def _least_risky(self) -> _Question | None:
        """The question that would be shed first; None when none may be."""
        risk = min(self._waiting, default=Risk.IRREVERSIBLE)
        return None if risk is Risk.IRREVERSIBLE else next(reversed(self._waiting[risk]))

    @property
    def _has_urgent(self) -> bool:
        return any(risk >= _URGENT for risk in self._waiting)


class ScoringPool:
    """See the module's docstring. Opens nothing, and belongs to no event loop."""

    def __init__(self, *, limit: int | None = LIMIT, most_waiting: int | None = None) -> None:
        """`limit` is of questions with models at a time, None for no bound but the tenants' own; `most_waiting` of
        those that wait (twice the limit unless it is given, a hundred at least). Raises `ValueError` for a limit that
        is negative."""
        if limit is not None and limit < 0:
            raise ValueError("limit: give the number of questions that may be with models at a time, or None")
        self.limit = limit
        self.most_waiting = most_waiting if most_waiting is not None else max(100, WAITING_PER_PLACE * (limit or LIMIT))
        self._lock = threading.Lock()
        self._shares: WeakValueDictionary[str, PoolShare] = WeakValueDictionary()
        # Tenants with questions, whoever else has forgotten them.
        self._active: dict[str, PoolShare] = {}
        # Tenants with questions that wait, the one with the fewest under way first; outdated entries are left out when
        # they come up. Urgent ones besides: they may have places that others may not.
        self._next: list[_Entry] = []
        self._next_urgent: list[_Entry] = []
        self._serial = itertools.count()
        self._given = 0
        self._in_flight = 0
        self._waits = 0
        self._counts = _Counts()

    def share(self, tenant: str, *, limit: int | None = None, on_limit: Callable[[], None] | None = None) -> PoolShare:
        """The tenant's part, the same one for as long as somebody keeps it or it has questions. `limit` is the tenant's
        own (None: only the pool's), as of now."""
        with self._lock:
            share = self._shares.get(tenant)
            if share is None:
                share = self._shares[tenant] = PoolShare(self, tenant, limit, on_limit)
        share.allow(limit)
        return share

    def figures(self) -> PoolFigures:
        """See `PoolFigures`."""
        with self._lock:
            counts = self._counts
            return PoolFigures(
                limit=self.limit,
                in_flight=self._in_flight,
                waiting=self._waits,
                tenants=len(self._active),
                placed=dict(counts.placed),
                shed=dict(counts.shed),
                timed_out=dict(counts.timed_out),
                waits={whose: tuple(waits) for whose, waits in counts.waits.items()},
                waited_s=dict(counts.waited_s),
            )

    # Who gets a place

    @property
    def _kept(self) -> int:
        return 0 if self.limit is None else self.limit // KEPT_PARTS

    def _fair(self, tenants: int) -> int:
        """How many places are a tenant's share."""
        assert self.limit is not None
        return max(1, (self.limit - self._kept) // max(1, tenants))

    def _may(self, share: PoolShare, risk: Risk) -> bool:
        if share._is_full:
            return False
        if self.limit is None:
            return True
        if share.in_flight < self._fair(len(self._active)):
            return self._in_flight < self.limit
        kept = self._kept
        return self._in_flight < self.limit - (kept // 2 if risk >= _URGENT else kept)

    def _class(self, share: PoolShare) -> TenantClass:
        if self.limit is None:
            return "within_share"
        return "within_share" if share.in_flight + share._waits < self._fair(len(self._active)) else "over_share"

    def _ask(self, share: PoolShare, risk: Risk, loop: asyncio.AbstractEventLoop) -> _Question | None:
        """None when there is a place at once."""
        with self._lock:
            self._active[share.tenant] = share
            whose = self._class(share)
            # Whoever waits already goes first, unless this one is riskier.
            if self._may(share, risk) and (not share._waits or risk > share._riskiest().risk):
                self._take(share)
                self._count_placed(whose, risk, 0.0)
                return None
            question = _Question(share, risk, whose, loop)
            share._enqueue(question)
            self._waits += 1
            self._changed(share)
            if self._waits > self.most_waiting:
                self._shed_one(share)
            return question

    def _release(self, share: PoolShare) -> None:
        with self._lock:
            share.in_flight -= 1
            self._in_flight -= 1
            self._changed(share)
            self._forget_if_idle(share)
            self._let_in()

    def _allow(self, share: PoolShare, limit: int | None) -> None:
        with self._lock:
            share._limit = limit
            self._changed(share)
            self._let_in()

    def _take(self, share: PoolShare) -> None:
        share.in_flight += 1
        self._in_flight += 1
        self._given += 1
        share._served = self._given
        self._changed(share)

    def _changed(self, share: PoolShare) -> None:
        """Its place in the order is another now."""
        share._version += 1
        if not share._waits or share._is_full:
            return
        entry = (share.in_flight, share._served, next(self._serial), share._version, share)
        _push(self._next, entry, len(self._active))
        if share._has_urgent:
            _push(self._next_urgent, entry, len(self._active))

    def _first(self, heap: list[_Entry]) -> PoolShare | None:
        while heap and heap[0][3] != heap[0][4]._version:
            heapq.heappop(heap)
        return heap[0][4] if heap else None

    def _let_in(self) -> None:
        """Gives out what places there are."""
        while (share := self._next_share()) is not None:
            question = share._riskiest()
            share._dequeue(question)
            self._waits -= 1
            question.placed = True
            self._take(share)
            if not _wake(question):
                # Its loop was closed: nobody waits there any more.
                share.in_flight -= 1
                self._in_flight -= 1
                self._changed(share)
                self._forget_if_idle(share)

    def _next_share(self) -> PoolShare | None:
        share = self._first(self._next)
        if share is None or self._may(share, share._riskiest().risk):
            return share
        # Nobody has less than this one, so only a tool call may have a place that this one may not.
        share = self._first(self._next_urgent)
        return share if share is not None and self._may(share, share._riskiest().risk) else None

    def _shed_one(self, asker: PoolShare) -> None:
        """One too many waits."""
        fair = self.most_waiting // max(1, len(self._active))
        most = asker if asker._waits > fair else max(self._active.values(), key=lambda share: share._waits)
        victim = most._least_risky() or asker._least_risky()
        if victim is None:
            return
        self._leave(victim)
        _wake(victim)

    def _forget_if_idle(self, share: PoolShare) -> None:
        if not share.in_flight and not share._waits:
            self._active.pop(share.tenant, None)

    # How a question's wait ended; the second part says whether the tenant's own limit was in the way

    def _settled(self, question: _Question, waited_s: float) -> tuple[bool, bool]:
        with self._lock:
            if question.placed:
                self._count_placed(question.whose, question.risk, waited_s)
                return True, False
            self._counts.shed[question.whose, question.risk, "overtaken"] += 1
            return False, question.share._is_full

    def _timed_out(self, question: _Question, waited_s: float) -> tuple[bool, bool]:
        with self._lock:
            if question.placed is None:
                at_limit = question.share._is_full
                self._leave(question)
                if question.risk is Risk.IRREVERSIBLE:
                    self._counts.timed_out[question.whose] += 1
                else:
                    self._counts.shed[question.whose, question.risk, "no_place"] += 1
                return False, at_limit
        # It was settled in the same moment.
        return self._settled(question, waited_s)

    def _gave_up(self, question: _Question) -> None:
        with self._lock:
            if question.placed is None:
                self._leave(question)
                return
        if question.placed:
            self._release(question.share)

    def _leave(self, question: _Question) -> None:
        question.share._dequeue(question)
        self._waits -= 1
        question.placed = False
        self._changed(question.share)
        self._forget_if_idle(question.share)
        # With one tenant less, the others' shares are larger.
        self._let_in()

    def _count_placed(self, whose: TenantClass, risk: Risk, waited_s: float) -> None:
        self._counts.placed[whose, risk] += 1
        self._counts.waits[whose][bisect_left(WAIT_BOUNDS_S, waited_s)] += 1
        self._counts.waited_s[whose] += waited_s


# Questions with models, when the last place was taken, a serial number, the share's version then, the share.
_Entry = tuple[int, int, int, int, PoolShare]


def _push(heap: list[_Entry], entry: _Entry, tenants: int) -> None:
    if len(heap) > STALE_PER_TENANT * (tenants + 8):
        heap[:] = [one for one in heap if one[3] == one[4]._version]
        heapq.heapify(heap)
    heapq.heappush(heap, entry)


def _wake(question: _Question) -> bool:
    """Tells whoever waits that it is settled. False when their loop is closed."""
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is question.loop:
        _tell(question.done)
        return True
    try:
        question.loop.call_soon_threadsafe(_tell, question.done)
    except RuntimeError:
        return False
    return True


def _tell(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
