"""Whether those who look on still may: one question for all console sockets of a process, every two seconds.

What a socket's right rests on is compared with what it was at the last full check: the session and what it says, the
person's password, that they are active, their membership and role. Only sockets where something of it changed are
checked anew, one by one. So a session that ended or a membership that was taken away counts within five seconds, also
on a socket that nothing is sent on, and thousands of sockets cost one query.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID
from weakref import WeakKeyDictionary

from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

logger = logging.getLogger(__name__)

CHECK_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What a viewer's right to look on rested on when it was checked. The marks are hashes."""

    session_key: str = field(repr=False)
    session_mark: str = field(repr=False)
    user_id: UUID
    password_mark: str = field(repr=False)
    membership_id: UUID
    role: str


class Watched(Protocol):
    """A socket: what it stood on, and the full check, which closes it if need be."""

    @property
    def standing(self) -> Standing: ...

    async def check(self) -> None: ...


def mark(text: str) -> str:
    """The hash of a text, as PostgreSQL makes it too."""
    return hashlib.sha256(text.encode()).hexdigest()


def session_mark(session_key: str) -> str:
    """What a stored session says, as a hash; empty for one that does not exist.

    Take it before the check that it is to stand for: a change between the two is then found by the next round.
    """
    data = Session.objects.filter(session_key=session_key).values_list("session_data", flat=True).first()
    return "" if data is None else mark(data)


_STANDING: Final = """
SELECT asked.n - 1
  FROM unnest(%s::text[], %s::text[], %s::uuid[], %s::text[], %s::uuid[])
       WITH ORDINALITY AS asked(session_key, session_mark, user_id, password_mark, membership_id, n)
  JOIN django_session s ON s.session_key = asked.session_key AND s.expire_date > %s
   AND encode(sha256(convert_to(s.session_data, 'UTF8')), 'hex') = asked.session_mark
  JOIN tenants_user u ON u.id = asked.user_id AND u.is_active
   AND encode(sha256(convert_to(u.password, 'UTF8')), 'hex') = asked.password_mark
 WHERE asked.membership_id IN (SELECT memberships_standing(%s::uuid[], %s::text[]))
"""


def standing_still(standings: Sequence[Standing]) -> set[int]:
    """Positions of those in `standings` of which nothing has changed. One query, for viewers of any tenants."""
    memberships = [standing.membership_id for standing in standings]
    with connection.cursor() as cursor:
        cursor.execute(
            _STANDING,
            [
                [standing.session_key for standing in standings],
                [standing.session_mark for standing in standings],
                [standing.user_id for standing in standings],
                [standing.password_mark for standing in standings],
                memberships,
                timezone.now(),
                memberships,
                [standing.role for standing in standings],
            ],
        )
        return {position for (position,) in cursor.fetchall()}


class ViewerWatch:
    """The console sockets of one event loop. It asks while there are any."""

    def __init__(self, still: Callable[[Sequence[Standing]], Awaitable[set[int]]]) -> None:
        """`still` is `standing_still` in a database thread."""
        self._still = still
        self._sockets: set[Watched] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, socket: Watched) -> None:
        """Watch a socket from now on."""
        self._sockets.add(socket)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def discard(self, socket: Watched) -> None:
        """Watch it no more; nothing happens to one that is not watched."""
        self._sockets.discard(socket)
        if not self._sockets and self._task is not None:
            self._task.cancel()
            self._task = None

    async def check(self) -> None:
        """Ask once for all sockets, and let those check in full of which something changed."""
        asked = [(socket, socket.standing) for socket in self._sockets]
        if not asked:
            return
        still = await self._still([standing for _, standing in asked])
        changed = [socket for position, (socket, _) in enumerate(asked) if position not in still]
        await asyncio.gather(*(socket.check() for socket in changed))

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                # Not cancelled with this task: the last socket that a check closes leaves the watch, and so ends it.
                await asyncio.shield(self.check())
                failing = False
            except Exception as error:
                # Nothing is sent meanwhile that the database was not asked for, viewer and all.
                if not failing:
                    logger.warning("who looks on cannot be checked: %s; it is tried again", type(error).__name__)
                failing = True


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, ViewerWatch] = WeakKeyDictionary()


def viewer_watch(still: Callable[[Sequence[Standing]], Awaitable[set[int]]]) -> ViewerWatch:
    """The running loop's watch, made with `still` by the first socket."""
    loop = asyncio.get_running_loop()
    watch = _watches.get(loop)
    if watch is None:
        watch = _watches[loop] = ViewerWatch(still)
    return watch
