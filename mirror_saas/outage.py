"""A server that does not answer is left alone for a while, so that not every request waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable


class Outage:
    """Whether a server is away, as one process sees it. Threads may share it.

    The log gets one line when the server went and one when it answers again, however many ask meanwhile.
    """

    def __init__(
        self, logger: logging.Logger, *, down: str, up: str, alone_s: float, clock: Callable[[], float]
    ) -> None:
        """`down` and `up` are those lines; `down` has one `%s`, for what went wrong. `clock` gives seconds."""
        self._logger = logger
        self._down = down
        self._up = up
        self._alone_s = alone_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failed_at: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether the server failed less than `alone_s` ago, and is to be left alone."""
        failed_at = self._failed_at
        return failed_at is not None and self._clock() - failed_at < self._alone_s

    def failed(self, problem: object) -> None:
        """The server did not answer. `problem` stands in the log: a kind of error, or a text without secrets."""
        with self._lock:
            known, self._failed_at = self._failed_at is not None, self._clock()
        if not known:
            self._logger.warning(self._down, problem)

    def answered(self) -> None:
        """The server answered."""
        if self._failed_at is None:
            return
        with self._lock:
            known, self._failed_at = self._failed_at is not None, None
        if known:
            self._logger.info(self._up)
