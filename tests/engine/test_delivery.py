"""Which turns of a call are held, and how a turn that arrives in pieces is judged: what a stream's adapter asks."""

from __future__ import annotations

import asyncio

import pytest

from supervision.engine import JudgingState, TurnPayload, Verdict
from tests.engine.llms import ScriptedLLM, make_call
from tests.support.virtual_time import virtual_time

ASKS = "Could you please give me your order number?"
STATES = "Your parcel is on the van."


def turn(text: str) -> TurnPayload:
    return TurnPayload("Where is my parcel?", text, turn_id="t1", language="en")


@pytest.mark.parametrize(
    ("delivery", "mode", "text", "growing", "held"),
    [
        ("stream_first", "live", STATES, False, False),
        ("stream_first", "live", STATES, True, False),
        ("hold_risky", "live", STATES, False, True),
        ("hold_risky", "live", ASKS, False, False),
        ("hold_risky", "live", ASKS, True, True),
        ("hold_all", "live", ASKS, False, True),
        ("hold_all", "shadow", STATES, False, False),
    ],
)
def test_which_turns_wait_for_their_verdict(delivery: str, mode: str, text: str, growing: bool, held: bool) -> None:
    call = make_call(ScriptedLLM(), delivery=delivery, mode=mode, tiered_scoring_enabled=True)
    assert call.holds(turn(text), growing=growing) is held
    assert call.delivery == ("stream_first" if mode == "shadow" else delivery)


def test_a_pre_gate_that_fails_holds_and_is_asked_once_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(ScriptedLLM(), delivery="hold_risky", tiered_scoring_enabled=True)
    gate = call._supervisor.pregate
    asked: list[TurnPayload] = []
    decide = gate.decide

    def counting(payload: TurnPayload) -> object:
        asked.append(payload)
        return decide(payload)

    monkeypatch.setattr(gate, "decide", counting)
    payload = turn(ASKS)
    assert not call.holds(payload)
    assert asyncio.run(call.judge_turn(payload)).state is JudgingState.SKIPPED
    assert asked == [payload]

    def broken(payload: TurnPayload) -> object:
        raise ValueError("broken")

    monkeypatch.setattr(gate, "decide", broken)
    assert call.holds(turn(ASKS))


@pytest.mark.parametrize("streaming_mode", [None, True, False])
@virtual_time
async def test_a_streamed_turn_is_judged_by_the_clause_unless_the_policy_says_otherwise(
    streaming_mode: bool | None,
) -> None:
    config = {} if streaming_mode is None else {"streaming_mode": streaming_mode}
    llm = ScriptedLLM()
    call = make_call(llm, **config)
    told: list[tuple[Verdict, int]] = []
    streamed = call.streamed(turn(""), on_answer=lambda verdict, chars: told.append((verdict, chars)))
    streamed.push("One thing. Another ")
    await asyncio.sleep(0.1)
    by_clause = [] if streaming_mode is False else [len("One thing.")]
    assert [chars for _, chars in told] == by_clause
    call._note("tool:1", "tool", "place_order() was blocked, it did not run")
    streamed.push("thing.")
    verdict = await streamed.finish()
    assert "was blocked" in llm.asked[-1].user["history"][-1]["text"]
    call.note_streamed(verdict, call.interventions)
    assert call.states[JudgingState.JUDGED] == 1
