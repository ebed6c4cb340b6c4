"""A server that is away is left alone for a while, and the log says so once."""

from __future__ import annotations

import logging

import pytest

from mirror_saas.outage import Outage

LOGGER = logging.getLogger("tests.outage")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_lasts_from_a_failure_on_and_every_failure_prolongs_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    caplog.set_level(logging.INFO, LOGGER.name)
    outage = Outage(LOGGER, down="away (%s)", up="back", alone_s=5, clock=clock)
    assert not outage.lasts
    outage.answered()
    outage.failed("Refused")
    assert outage.lasts
    clock.now += 4.9
    assert outage.lasts
    outage.failed("Refused")
    clock.now += 4.9
    assert outage.lasts
    clock.now += 0.1
    assert not outage.lasts, "the server is asked again"
    outage.failed("Refused")
    assert outage.lasts
    outage.answered()
    outage.answered()
    assert not outage.lasts
    assert [record.getMessage() for record in caplog.records] == ["away (Refused)", "back"]
