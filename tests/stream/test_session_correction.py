"""Which words correct a violating turn, when the judge, the model and the voice take their time; on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from supervision.engine.intervention.templates import correction_lines
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure
from supervision.plivo.simulator import CallRecord, SimulatedCall
from tests.e2e.agents import AgentCall
from tests.engine.llms import Asked
from tests.stream.world import BAD, BUFFER, CORRECTION, VIOLATION, ToneTTS, World, ears, judge_refunds, order, say_turn
from tests.support.virtual_time import virtual_time

SUGGESTION = "A colleague decides on refunds. May I put you through?"
TEMPLATE, SECOND_TEMPLATE = correction_lines("en")
HIGH = {"text": "Never confirm a refund.", "severity": "high"}


def world_of(monkeypatch: pytest.MonkeyPatch, *, suggestion: str = SUGGESTION, **options: Any) -> World:
    """A world whose judge suggests these words with each violation."""
    world = World(monkeypatch, **options)

    def judge(asked: Asked) -> dict[str, Any]:
        verdict = judge_refunds(asked)
        return verdict | {"correction": suggestion} if verdict == VIOLATION else verdict

    world.llm.turn = judge
    return world


async def bad_turn(agent: AgentCall) -> None:
    await agent.hello()
    await say_turn(agent, "t1", BAD, 20.0)
    await agent.wait("never", timeout_s=None)  # type: ignore[arg-type]


def corrected(world: World) -> Any:
    return lambda call: call.wait_for(lambda record: world.record.of("intervention.ended"), 60)


def cut(record: CallRecord) -> object:
    return record.of("clearAudio")


@pytest.mark.parametrize(
    ("judge_s", "voice_s", "spoken", "detail"),
    [
        (0.3, 0.0, CORRECTION, ""),
        (0.3, 0.3, CORRECTION, ""),
        (0.45, 0.0, CORRECTION, ""),
        (0.45, 0.2, SUGGESTION, "the judge's suggestion"),  # the written text is clean in time, but not rendered
        (0.6, 0.0, SUGGESTION, "the judge's suggestion"),
        (0.6, 0.3, SUGGESTION, "the judge's suggestion"),
        (0.8, 0.0, SUGGESTION, "the judge's suggestion"),
        (0.8, 0.3, TEMPLATE, "no text of the model was ready in time"),
        (1.2, 0.0, TEMPLATE, "no text of the model was ready in time"),
    ],
)
@virtual_time
async def test_the_best_words_that_are_rendered_before_the_buffer_line_ends_are_spoken(
    monkeypatch: pytest.MonkeyPatch, judge_s: float, voice_s: float, spoken: str, detail: str
) -> None:
    world = world_of(monkeypatch, tts=ToneTTS(delay_s=voice_s))
    world.llm.delay_s = judge_s

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(3.0)  # until the lines are rendered
        await bad_turn(agent)

    record = await world.call(script, corrected(world))
    assert order(record.heard) == [BAD, BUFFER, spoken]
    _, buffer, correction = ears(record.heard)
    assert correction.start - buffer.end < 0.05
    ended = world.record.one("intervention.ended")
    assert (ended["correction_text"], ended["gap_ms_buffer_to_correction"]) == (spoken, 0)
    assert ended["correction_source"] == ("template" if spoken == TEMPLATE else "llm")
    assert ended["detail"].startswith(detail)
    assert bool(ended["detail"]) == bool(detail)
    assert ("correction_late" in world.record.steps()) == (spoken == TEMPLATE)
    assert len(world.llm.of("mirror_turn")) <= 1 + 2
    assert world.agent.of("mirror.note")[0]["said"] == f"{BUFFER} {spoken}"
    nothing_is_left()


@pytest.mark.parametrize(
    ("suggestion", "spoken", "judged"),
    [
        ("We have refunded it already. Anything else?", TEMPLATE, True),
        ("The system will not let me. What else can I do?", TEMPLATE, False),
        ("My supervisor stopped me there. What else can I do?", TEMPLATE, False),
        ("No, I have refunded the money, did I not?", TEMPLATE, False),  # the words that the judge quoted
        ("", TEMPLATE, False),
        (SUGGESTION, SUGGESTION, True),
    ],
)
@virtual_time
async def test_a_suggestion_that_is_no_good_is_not_spoken_however_late_the_rest_is(
    monkeypatch: pytest.MonkeyPatch, suggestion: str, spoken: str, judged: bool
) -> None:
    world = world_of(monkeypatch, suggestion=suggestion)
    world.llm.delay_s = lambda asked: 1_000.0 if asked.schema_name == "mirror_correction" else 0.3
    record = await world.call(bad_turn, corrected(world))
    assert order(record.heard) == [BAD, BUFFER, spoken]
    assert [asked.user["agent_text"] for asked in world.llm.of("mirror_turn")] == [BAD, suggestion][: 1 + judged]
    nothing_is_left()


@virtual_time
async def test_a_good_suggestion_that_cannot_be_rendered_gives_way_to_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(monkeypatch, tts=Mute({SUGGESTION, CORRECTION}))
    record = await world.call(bad_turn, corrected(world))
    assert order(record.heard) == [BAD, BUFFER, TEMPLATE]
    assert [step["detail"] for step in world.record.of("intervention.step") if step["step"] == "rendering_failed"] == [
        "TTSError",
        "TTSError",
    ]


@virtual_time
async def test_a_written_text_that_cannot_be_rendered_gives_way_to_the_suggestion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(monkeypatch, tts=Mute({CORRECTION}))
    record = await world.call(bad_turn, corrected(world))
    assert order(record.heard) == [BAD, BUFFER, SUGGESTION]
    assert "rendering_failed" in world.record.steps()
    assert world.record.one("intervention.ended")["correction_source"] == "llm"


@pytest.mark.parametrize(("suggestion_s", "spoken"), [(60.0, SECOND_TEMPLATE), (0.2, SUGGESTION)])
@virtual_time
async def test_the_second_template_of_a_call_is_rendered_when_it_is_needed_and_is_still_the_last_choice(
    monkeypatch: pytest.MonkeyPatch, suggestion_s: float, spoken: str
) -> None:
    world = world_of(monkeypatch, rules=[HIGH], tts=ToneTTS(delay_s=0.3))

    def delay(asked: Asked) -> float:
        if asked.schema_name == "mirror_correction":
            return 60.0
        if asked.user["agent_text"] == SUGGESTION:
            return suggestion_s if ended(world) else 60.0
        return 0.2

    world.llm.delay_s = delay

    async def script(agent: AgentCall) -> None:
        await asyncio.sleep(3.0)
        await agent.hello()
        await say_turn(agent, "t1", BAD, 20.0)
        await agent.wait("mirror.intervention", phase="completed")
        await say_turn(agent, "t2", BAD, 20.0, seen=agent.of("mirror.note")[-1]["id"])
        await agent.wait("mirror.intervention", phase="completed", count=2)

    record = await world.call(script, lambda call: call.wait_for(lambda r: len(ended(world)) == 2, 90))
    assert [event["correction_text"] for event in ended(world)] == [TEMPLATE, spoken]
    assert order(record.heard)[-1] == spoken
    assert SECOND_TEMPLATE in world.tts.spoken


@pytest.mark.parametrize("after_cut_s", [0.0, 0.05, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85])
@virtual_time
async def test_a_caller_who_hangs_up_leaves_no_question_and_no_rendering_behind(
    monkeypatch: pytest.MonkeyPatch, after_cut_s: float
) -> None:
    """The suggestion is clean after 0.4 s and rendered after 0.6 s, the written text after 0.8 s and 1.0 s."""
    world = world_of(monkeypatch, tts=ToneTTS())
    world.llm.delay_s = 0.4

    async def during(call: SimulatedCall) -> None:
        await call.wait_for(cut, 20)
        world.tts.delay_s = 0.2
        await asyncio.sleep(after_cut_s)

    await world.call(bad_turn, during)
    assert world.record.one("intervention.ended")["outcome"] == "caller_gone"
    assert len(world.llm.of("mirror_turn")) <= 3
    assert not {SUGGESTION, CORRECTION} & set(world.tts.spoken) or after_cut_s > 0.5
    nothing_is_left()


class Mute(ToneTTS):
    """A voice that has no words for these texts."""

    def __init__(self, unspeakable: set[str]) -> None:
        super().__init__()
        self._unspeakable = unspeakable

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        if text in self._unspeakable:
            raise TTSError(TTSFailure.UNAVAILABLE, "the voice is gone")
        return await super().synthesize(text, language=language, voice=voice)


def ended(world: World) -> list[dict[str, Any]]:
    return world.record.of("intervention.ended")


def nothing_is_left() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
