"""What the caller hears, by ear: a speech recogniser listens to calls through a real Mirror."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import pytest

from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import CallRows, MirrorServer, TenancyMaker, recorded
from tests.standins.llm import LLMStandIn, words
from tests.support.speech import say, true_words
from tests.support.stt import transcribe

pytestmark = pytest.mark.django_db(transaction=True)

TURN = "Let me see what I can do about that. I have refunded the money."
CORRECTION = "A colleague decides about that. Shall I connect you with them?"
WIRES = {
    "plain": PlivoSwitches(delay_s=0.02),
    "slow and jittery": PlivoSwitches(delay_s=0.2, jitter_s=0.04, seed=7),
    "cleared lost": PlivoSwitches(delay_s=0.02, cleared_audio="lost"),
    "cleared late": PlivoSwitches(delay_s=0.02, cleared_audio="late"),
    "cleared doubled": PlivoSwitches(delay_s=0.02, cleared_audio="double"),
}


@dataclass
class Call:
    record: CallRecord
    rows: CallRows
    agent: AgentCall


async def place(mirror: MirrorServer, new_tenancy: TenancyMaker, wire: str) -> Call:
    """A call on this wire, in which the judge answers 200 ms after the turn was reported."""

    async def script(call: AgentCall) -> None:
        await call.hello()
        await asyncio.sleep(0.6)  # as long as a caller speaks at least; the slow wire is measured by now
        await call.send("mirror.turn", turn_id="t1", customer_text="Where is my money?", text=TURN)
        await call.speak(say(TURN))
        await call.wait("mirror.intervention", phase="completed")

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: made.calls and made.calls[0].of("mirror.note"), 20)
        await call.wait_for(lambda _: "completed" in [e["phase"] for e in made.calls[0].of("mirror.intervention")], 20)
        call.hang_up()

    async with LLMStandIn() as llm, agent(script) as made:
        llm.judge(words({"refunded the money": {"rule": 1, "correction": CORRECTION}}))
        llm.correct(lambda _: CORRECTION)
        llm.behave(delay_s=0.2)
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller, WIRES[wire]).run()
        return Call(record, await recorded(tenancy), made.calls[0])


async def test_a_recogniser_hears_buffer_line_and_correction_and_not_the_violation(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    violation = next(word.start_ms for word in true_words(TURN) if word.word == "refunded")
    assert violation > 1_000
    say(TURN)
    calls = dict(zip(WIRES, await asyncio.gather(*(place(mirror, new_tenancy, wire) for wire in WIRES)), strict=True))
    for wire, call in calls.items():
        heard = call.record.heard
        (intervention,) = call.rows.interventions
        assert intervention.outcome == "completed", wire
        assert intervention.correction_text == CORRECTION, wire
        assert intervention.violation_heard_ms == 0, wire
        # Whatever the wire did, the agent's clear was not asked for and not shown.
        assert call.agent.of("clearedAudio") == [], wire
        gaps = [round(gap.seconds * 1000) for gap in heard.silences(0.02)]
        assert all(gap <= 700 for gap in gaps), (wire, gaps)
        # Where the innocent beginning was still playing when the verdict came, nothing wrong was at Plivo yet.
        assert intervention.silence_proof in ("cleared", "fence", "not_needed"), wire
        assert (intervention.silence_proof == "not_needed") == (not call.record.of("clearAudio")), wire
        if wire == "cleared lost":
            assert intervention.silence_proof != "cleared"

    for wire in ("plain", "slow and jittery"):
        text = await asyncio.to_thread(transcribe, calls[wire].record.heard.pcm())
        spoken = _words(text)
        buffer = calls[wire].rows.interventions[0].buffer_text
        assert _share(buffer, spoken) >= 0.7, (buffer, text)
        assert _share(CORRECTION, spoken) >= 0.8, text
        assert "refunded" not in spoken, text
        assert "money" not in spoken, text
        assert spoken.index("colleague") > spoken.index(_words(buffer)[-1]), text


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _share(line: str, spoken: list[str]) -> float:
    """How much of a line was heard; a recogniser may mistake a word."""
    wanted = _words(line)
    return sum(word in spoken for word in wanted) / len(wanted)
