"""Which call a new socket is for: a new one, or one that lost its last socket and goes on here.

Whoever has the call is asked for it: this process, or another node through its mailbox, within a second. A node that is
silent has lost the call all the same: its writes are refused from then on, and PostgreSQL says what is known of the
call. Without Valkey a call that reconnects is found in this process or in PostgreSQL; without either it begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar
from uuid import UUID

import psycopg
from psycopg_pool import PoolTimeout

from mirror_saas.ids import uuid7, uuid7_time
from supervision.stream.carried import CarriedCall, CarriedInvalid
from supervision.stream.directory import AgentBinding, StreamDirectory
from supervision.stream.from_record import Connection, call_from_record, call_is_recorded
from supervision.stream.mailbox import CallSilent, Mailbox, NobodyThere
from supervision.stream.owners import KNOWN_FOR_S, RENEW_EVERY_S, CallKey, CallOwners, Claim, Held

logger = logging.getLogger(__name__)

HANDOVER_WITHIN_S: Final = 1.0
RECORD_WITHIN_S: Final = 1.0
T = TypeVar("T")
HAND_OVER: Final = "hand_over"  # the message by which a node asks another for a call


class OwnedCall(Protocol):
    """A call of this process, as far as another socket of it is concerned."""

    @property
    def held(self) -> Held:
        """Its name, id and epoch."""
        ...

    @property
    def binding(self) -> AgentBinding:
        """What it runs under."""
        ...

    async def hand_over(self) -> CarriedCall:
        """End here, and say how the call stands. Asking twice is answered alike."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """A call that this process has from now on. `carried` is how it stood, None for a new one. `known`: it was known
    before, even if it is over and the call is a new one under the same id of Plivo's."""

    held: Held
    known: bool
    carried: CarriedCall | None = None
    pinned: AgentBinding | None = None  # what it ran under, if it was this process's


@dataclass(slots=True)
class _Claimed:
    """A name that sockets of this process are taking, one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sockets: int = 0


class Takeovers:
    """The calls of this process by their names, and how they come and go. Belongs to one event loop."""

    def __init__(self, owners: CallOwners, mailbox: Mailbox, directory: StreamDirectory) -> None:
        self._owners = owners
        self._mailbox = mailbox
        self._directory = directory
        self._calls: dict[CallKey, OwnedCall] = {}
        self._claiming: dict[CallKey, _Claimed] = {}
        self._over: dict[CallKey, float] = {}
        self._renewing: asyncio.Task[None] | None = None
        # Redis clients may answer a cancellation with an error of their own: being cancelled is not enough to end.
        self._closing = False

    @asynccontextmanager
    async def claiming(self, key: CallKey) -> AsyncIterator[Callable[[], Awaitable[Taken]]]:
        """Hold a call's name while its new socket takes it: `take` in the block gives the call, and `add` belongs in it
        too, so that a third socket finds the second."""
        claimed = self._claiming.setdefault(key, _Claimed())
        claimed.sockets += 1
        try:
            async with claimed.lock:
                yield lambda: self._take(key)
        finally:
            claimed.sockets -= 1
            if not claimed.sockets:
                del self._claiming[key]

    async def knows(self, key: CallKey) -> bool:
        """Whether a call runs on some node, or ended less than a minute ago."""
        if key in self._calls or self._ended_lately(key):
            return True
        known = await self._owners.knows(key)
        if known is None:
            known = await self._asked(lambda connection: call_is_recorded(connection, key))
        return bool(known)

    def add(self, call: OwnedCall) -> None:
        """A call runs in this process, in place of the older socket of the same name."""
        self._calls[call.held.key] = call
        if self._renewing is None and self._owners.shared:
            self._renewing = asyncio.get_running_loop().create_task(self._go_on_renewing(), name="mirror-call-owners")

    def gone(self, call: OwnedCall) -> None:
        """A call goes on elsewhere, or on another socket: this one is not to be asked for it again."""
        if self._calls.get(call.held.key) is call:
            del self._calls[call.held.key]

    async def remove(self, call: OwnedCall, *, back: bool) -> None:
        """A call has ended here; `back`: it goes on if its stream comes again."""
        held = call.held
        if self._calls.get(held.key) is not call:
            return
        self.gone(call)
        self._remember_over(held.key)
        await self._owners.over(held, back=back)

    async def renew(self) -> None:
        """Put off when the leases of this process's calls lapse, and end those that somebody else has."""
        running = list(self._calls.values())
        lost = await self._owners.renew([call.held for call in running])
        ending = []
        for call in running:
            if call.held in lost and self._calls.get(call.held.key) is call:
                logger.warning("A call of this node goes on elsewhere; it is ended here")
                self.gone(call)
                ending.append(call.hand_over())
        await asyncio.gather(*ending)

    async def aclose(self) -> None:
        """Stop renewing."""
        self._closing = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._owners.aclose()

    # ------------------------------------------------------------------ taking a call

    async def _take(self, key: CallKey) -> Taken:
        mine = self._calls.get(key)
        known_id = mine.held.call_id if mine is not None else None
        least_epoch = mine.held.epoch + 1 if mine is not None else 1
        fresh_id = known_id or uuid7()
        claimed_at = self._owners.now()
        claim = await self._owners.claim(key, call_id=fresh_id, least_epoch=least_epoch)
        if mine is not None:
            epoch = max(least_epoch, claim.epoch if claim is not None else 0)
            held = Held(key, mine.held.call_id, epoch, claimed_at)
            try:
                carried = replace(await mine.hand_over(), epoch=epoch)
            except Exception:
                # A defect of ours must not cost the caller who came back the call.
                logger.exception("A call could not be handed over; it goes on without what was known of it")
                carried = self._unknown(held.call_id, epoch)
            return Taken(held, True, carried, mine.binding)
        known = (claim is not None and claim.known) or self._ended_lately(key)
        if claim is not None and claim.epoch > 1:
            carried = await self._carried(key, claim)
            return Taken(Held(key, claim.call_id, carried.epoch, claimed_at), True, carried)
        if claim is None and (found := await self._from_record(key, None, 2)) is not None:
            return Taken(Held(key, found.call_id, found.epoch, claimed_at), True, found)
        return Taken(Held(key, claim.call_id if claim is not None else fresh_id, 1, claimed_at), known)

    async def _carried(self, key: CallKey, claim: Claim) -> CarriedCall:
        """How a call stands that another process had: by its own word, else by the record, else unknown."""
        if claim.holds and (carried := await self._handed_over(key, claim)) is not None:
            return replace(carried, epoch=claim.epoch)
        found = await self._from_record(key, claim.call_id, claim.epoch)
        if found is not None:
            return found
        logger.warning("A call goes on of which neither its node nor the database says anything")
        return self._unknown(claim.call_id, claim.epoch)

    def _unknown(self, call_id: UUID, epoch: int) -> CarriedCall:
        """A call of which nothing is known but its id, which was made when it began."""
        began = uuid7_time(call_id)
        age_ms = max(0, round((self._owners.now() - began.timestamp()) * 1000))
        return CarriedCall(call_id=call_id, epoch=epoch, started_at=began, age_ms=age_ms)

    async def _handed_over(self, key: CallKey, claim: Claim) -> CarriedCall | None:
        try:
            message = {HAND_OVER: claim.epoch}
            answer = await self._mailbox.ask(key.tenant_id, claim.call_id, message, within_s=HANDOVER_WITHIN_S)
            return CarriedCall.unseal(answer["carried"], key.tenant_id)
        except (NobodyThere, CallSilent):
            logger.warning("The node %s does not hand a call over; it is taken from the record", claim.node)
        except (CarriedInvalid, KeyError) as problem:
            logger.error("What the node %s hands over cannot be used: %s", claim.node, problem)
        return None

    async def _from_record(self, key: CallKey, call_id: UUID | None, least_epoch: int) -> CarriedCall | None:
        return await self._asked(
            lambda connection: call_from_record(connection, key, call_id=call_id, least_epoch=least_epoch)
        )

    async def _asked(self, question: Callable[[Connection], Awaitable[T]]) -> T | None:
        """What the database answers; None when it does not."""
        if self._directory.is_down:
            return None
        try:
            async with asyncio.timeout(RECORD_WITHIN_S), self._directory.connection() as connection:
                return await question(connection)
        except (psycopg.Error, PoolTimeout, TimeoutError, OSError) as error:
            logger.warning("the record of a call that reconnects cannot be read: %s", type(error).__name__)
            return None

    # ------------------------------------------------------------------ calls that are over

    def _remember_over(self, key: CallKey) -> None:
        now = self._owners.now()
        self._over[key] = now
        for old in [old for old, at in self._over.items() if now - at > KNOWN_FOR_S]:
            del self._over[old]

    def _ended_lately(self, key: CallKey) -> bool:
        at = self._over.get(key)
        return at is not None and self._owners.now() - at <= KNOWN_FOR_S

    async def _go_on_renewing(self) -> None:
        while not self._closing:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew()
            except Exception:
                logger.exception("Renewing the owner records of calls failed; it is tried again")
