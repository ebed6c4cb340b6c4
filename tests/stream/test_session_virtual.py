"""Whole calls on virtual time: what the caller heard, what the agent was told, and what was recorded."""

from __future__ import annotations

import time

import pytest

from tests.e2e.agents import AgentCall
from tests.stream.world import BAD, CORRECTION, GOOD, World, ears, order, say_turn
from tests.support.virtual_time import virtual_time

BUFFER = "Sorry, let me check that for you."


@virtual_time
async def test_a_violating_turn_is_heard_as_silence_buffer_line_and_correction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await say_turn(agent, "t1", BAD, 6.0)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", GOOD, 2.0, seen=agent.of("mirror.note")[-1]["id"])
        await agent.send("checkpoint", streamId=agent.stream_id, name="good-played")

    t = time.monotonic()
    record = await world.call(script, lambda call: call.wait_for(lambda r: r.played("good-played"), 60))
    print(time.monotonic() - t)
    for v in ears(record.heard): print(v)
    for e in world.record.events: print(e.kind, e.data)
    for e in world.agent.events:
        if e["event"]!="media": print(e)
    assert order(record.heard) == [BAD, BUFFER, CORRECTION, GOOD]
    assert 0
