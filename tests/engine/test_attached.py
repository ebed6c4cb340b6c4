"""The library's voice: what the caller hears, and what the agent knows of it. On virtual time."""

from __future__ import annotations

import asyncio
import sys

import pytest

from supervision.engine import MirrorConfig, Supervisor, TurnPayload, Verdict
from supervision.engine.intervention.orchestrator import Outcome
from supervision.engine.intervention.templates import buffer_lines
from supervision.engine.tts.ws_inject import PlivoStreamTTSSink
from tests.engine.attached_calls import CALL_ID, GOOD, RIGHT, WRONG, Scene, Tones
from tests.engine.llms import ScriptedLLM, decisions
from tests.engine.test_tool_loop import CHARGE, SPECS, AgentModel, says, wants
from tests.support.speech import say
from tests.support.virtual_time import virtual_time

BUFFERS = ("Sorry, let me make sure I got that right...", *buffer_lines("en"))


@virtual_time
async def test_a_clean_turn_is_spoken() -> None:
    async with Scene() as scene:
        verdict = await scene.call.review_turn(customer_text="Where is my order?", primary_text=GOOD)
        assert not verdict.should_intervene
        speaking = await scene.call.speak(GOOD)
        assert speaking.ok
        await speaking.played()
        assert scene.heard == [GOOD]
        assert scene.notes() == ["customer: Where is my order?", f"agent: {GOOD}"]


@virtual_time
async def test_a_turn_that_was_held_back_is_replaced_by_a_correction() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert scene.heard == [BUFFERS[0], RIGHT]
        note = await scene.call.consume_override()
        assert note is not None
        assert RIGHT in note
        assert "heard none of it" in note
        assert await scene.call.consume_override() is None


@virtual_time
async def test_a_turn_that_is_being_heard_is_cut() -> None:
    async with Scene(judge_s=0.6) as scene:
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        (wrong, _, seconds), *rest = scene.plivo.heard(scene.voice)
        assert wrong == WRONG
        assert seconds == pytest.approx(0.6, abs=0.15)
        assert [text for text, _, _ in rest] == [BUFFERS[0], RIGHT]
        assert outcome.spoken_text == f"{BUFFERS[0]} {RIGHT}"


# W cases: docs of the failures that each test is named after are in the project's list of failure cases.


@virtual_time
async def test_w1_a_socket_that_fails_ends_the_intervention_as_failed_and_raises_nothing() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        scene.plivo.broken = True
        report = await scene.call.intervene(verdict)
        assert report.outcome in (Outcome.FAILED, Outcome.CALLER_GONE)
        assert await scene.call.consume_override() is not None


@virtual_time
async def test_w1_a_voice_that_fails_leaves_the_call_unarmed_and_says_so() -> None:
    voice = Tones()
    voice.fails = RuntimeError("quota")
    async with Scene(voice=voice) as scene:
        assert not scene.call.armed
        assert "RuntimeError" in scene.call.unarmed_reason
        report = await scene.call.intervene(await scene.wrong_turn())
        assert report.outcome is Outcome.WITHHELD
        assert report.detail.startswith("unarmed: ")
        speaking = await scene.call.speak(GOOD)
        assert not speaking.ok
        assert "RuntimeError" in speaking.detail
        await speaking.played()
        note = await scene.call.consume_override()
        assert note is not None
        assert "Take it back first" in note


@virtual_time
async def test_w2_an_agent_that_waits_in_its_own_reader_is_not_deaf_afterwards() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        loop, reports, answered = asyncio.get_running_loop(), [], asyncio.Event()

        async def reader() -> None:
            async for _ in scene.plivo.websocket.iter_text():
                if not reports:
                    reports.append(await scene.call.intervene(verdict))
                    answered.set()

        scene._running.cancel()  # type: ignore[union-attr]
        reading = asyncio.create_task(reader())
        began = loop.time()
        scene.plivo.media(b"\xff" * 160)
        await asyncio.wait_for(answered.wait(), 20)
        assert reports[0].outcome is Outcome.COMPLETED
        # The buffer line has 9 words and the correction 11; nothing was waited for but what they take to say.
        assert loop.time() - began < 0.25 * 20 + 0.4
        reading.cancel()


@virtual_time
async def test_w3_a_caller_who_hangs_up_ends_it_at_once_and_history_says_what_was_heard() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        intervening = asyncio.create_task(scene.call.intervene(verdict))
        await asyncio.sleep(0.8)
        scene.plivo.hang_up()
        left = asyncio.get_running_loop().time()
        report = await intervening
        assert asyncio.get_running_loop().time() - left < 0.1
        assert report.outcome is Outcome.CALLER_GONE
        said = [entry.text for entry in scene.call.history if entry.role == "mirror"]
        assert said == ["Sorry, let me"]
        again = await scene.call.intervene(verdict)
        assert again.outcome is Outcome.CALLER_GONE
        assert not (await scene.call.speak(GOOD)).ok


@virtual_time
async def test_w4_acknowledgements_that_never_come_cost_no_more_than_1500_ms() -> None:
    async with Scene() as scene:
        scene.plivo.loses = {"playedStream", "clearedAudio"}
        verdict = await scene.wrong_turn()
        began = asyncio.get_running_loop().time()
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert report.gap_buffer_to_correction_ms is not None
        assert report.gap_buffer_to_correction_ms <= 20  # what is left of the last frame
        assert asyncio.get_running_loop().time() - began < 0.25 * 20 + 1.5 + 0.3


@virtual_time
async def test_w5_names_of_checkpoints_are_unique_and_late_acknowledgements_are_dropped() -> None:
    async with Scene(cooldown_s=0) as scene:
        scene.plivo.late_s = 3.0
        await scene.call.intervene(await scene.wrong_turn())
        await scene.call.intervene(await scene.wrong_turn("Again: your refund is confirmed."))
        await asyncio.sleep(10)
        names = [frame["name"] for _, frame in scene.plivo.of("checkpoint")]
        assert len(names) == len(set(names)) >= 4
        assert all(name.startswith("__mirror_") for name in names)
        assert scene.agent.of("playedStream") == []


@virtual_time
async def test_w6_a_second_violation_joins_the_intervention_that_runs() -> None:
    async with Scene(cooldown_s=0) as scene:
        first, second = await scene.wrong_turn(), await scene.wrong_turn("Yes: your refund is confirmed, I said.")
        running = asyncio.create_task(scene.call.intervene(first))
        await asyncio.sleep(0.3)
        report = await scene.call.intervene(second)
        assert (report.outcome, report.detail) == (Outcome.WITHHELD, "in_progress")
        third = await scene.wrong_turn("And once more: your refund is confirmed.")
        assert third.withheld == "in_progress"
        assert not third.should_intervene
        assert (await running).outcome is Outcome.COMPLETED
        assert scene.heard == [BUFFERS[0], RIGHT]


@virtual_time
async def test_w7_lines_are_rendered_when_the_call_begins_and_the_correction_while_the_buffer_plays() -> None:
    async with Scene(voice=Tones(delay_s=0.4)) as scene:
        await asyncio.sleep(4)
        armed_with = {text for text, _ in scene.voice.said}
        assert BUFFERS[0] in armed_with
        assert scene.call.armed
        before = len(scene.voice.said)
        report = await scene.call.intervene(await scene.wrong_turn())
        assert report.correction is not None
        assert report.correction.source == "llm"
        rendered = scene.voice.said[before:]
        assert RIGHT in [text for text, _ in rendered]
        assert not {text for text, _ in rendered} & armed_with
        assert report.buffer_playing is not None
        assert max(at for _, at in rendered) < report.buffer_playing.ends_at
        assert report.gap_buffer_to_correction_ms is not None
        assert report.gap_buffer_to_correction_ms <= 20  # what is left of the last frame
        (_, buffer_at, buffer_s), (_, correction_at, _) = scene.plivo.heard(scene.voice)
        assert correction_at - (buffer_at + buffer_s) < 0.1


@virtual_time
async def test_w7_the_next_call_has_its_lines_at_once() -> None:
    async with Scene() as scene:
        rendered = len(scene.voice.said)
        other = Scene(llm=scene.llm)
        other.supervisor, other.voice = scene.supervisor, scene.voice
        async with other:
            assert other.call.armed
            assert len(scene.voice.said) == rendered


@virtual_time
async def test_w8_a_reconnect_keeps_history_and_note_and_the_old_sockets_late_close_changes_nothing() -> None:
    async with Scene() as scene:
        await scene.call.intervene(await scene.wrong_turn())
        new = Scene(llm=scene.llm, voice=scene.voice)
        new.supervisor = scene.supervisor
        async with new:
            await new.call.opened()
            assert scene.notes() == new.notes()
            scene.plivo.hang_up()
            await asyncio.sleep(1)
            note = await new.call.consume_override()
            assert note is not None
            assert RIGHT in note
            assert (await new.call.speak(GOOD)).ok
            await asyncio.sleep(5)
            assert new.heard == [GOOD]


@virtual_time
async def test_w9_what_was_heard_of_a_cut_turn_goes_into_the_history() -> None:
    async with Scene(judge_s=1.2) as scene:
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        said = next(entry.text for entry in scene.call.history if entry.role == "agent")
        assert said.endswith("[cut off here; the rest was not heard]")
        heard = scene.call.heard(outcome.verdict.turn_id)
        assert heard is not None
        assert said.startswith(heard.heard_text)
        assert "paid out today" in heard.unheard_text
        assert [entry.role for entry in scene.call.history] == ["customer", "agent", "mirror"]


@virtual_time
async def test_w9_a_turn_that_the_agent_clears_is_noted_as_far_as_it_was_heard() -> None:
    async with Scene() as scene:
        verdict = await scene.call.review_turn(customer_text="Where is it?", primary_text=GOOD)
        await scene.call.speak(GOOD)
        await asyncio.sleep(1.0)
        await scene.agent.send("clearAudio", streamId="20170ada-f610-433b-8758-c02a2aab3662")
        await asyncio.sleep(2.0)
        assert len(scene.agent.of("clearedAudio")) == 1
        assert scene.notes()[-1].endswith("[cut off here; the rest was not heard]")
        heard = scene.call.heard(verdict.turn_id)
        assert heard is not None
        assert heard.unheard_text.endswith("oven now.")


@virtual_time
async def test_w10_a_key_ends_the_correction() -> None:
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(1.0)
        scene.plivo.press()
        report = await running
        assert report.outcome is Outcome.INTERRUPTED
        assert scene.plivo.of("clearAudio")
        note = await scene.call.consume_override()
        assert note is not None
        assert "Sorry, let me make" in note
        assert RIGHT not in note


@virtual_time
async def test_w10_the_callers_voice_ends_the_correction_and_a_murmur_does_not() -> None:
    speech = say("I do not want to hear that, what about my money, please?")
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await scene.plivo.says(speech[800:1600])  # 100 ms
        await asyncio.sleep(0.5)
        assert scene.call.intervening
        await scene.plivo.says(speech)
        assert (await running).outcome is Outcome.INTERRUPTED


@virtual_time
async def test_w10_without_a_detector_the_callers_words_end_it_unless_they_are_an_echo(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "supervision.audio.vad", None)
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(2.0)
        assert "webrtcvad-wheels is not installed" in caplog.text
        scene.call.note_customer_turn("let me make sure I got that")
        await asyncio.sleep(0.1)
        assert scene.call.intervening
        scene.call.note_customer_turn("No, listen to me.")
        assert (await running).outcome is Outcome.INTERRUPTED


@virtual_time
async def test_w11_a_flagged_turn_that_the_agent_streams_on_is_mute_for_ever() -> None:
    async with Scene(judge_s=0.5) as scene:
        judging = asyncio.create_task(scene.wrong_turn())
        await asyncio.sleep(0.1)
        audio = scene.voice.tone(WRONG)

        async def stream() -> None:
            for at in range(0, len(audio), 160):
                await scene.agent.play(audio[at : at + 160])
                await asyncio.sleep(0.02)

        streaming = asyncio.create_task(stream())
        report = await scene.call.intervene(await judging)
        assert report.outcome is Outcome.COMPLETED
        await streaming
        await asyncio.sleep(5)
        assert scene.heard == [WRONG, BUFFERS[0], RIGHT]
        assert scene.plivo.heard(scene.voice)[0][2] < 0.7


@virtual_time
async def test_w12_the_agents_clear_does_not_cut_mirror_off_and_is_answered() -> None:
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(0.5)
        await scene.agent.send("clearAudio", streamId="20170ada-f610-433b-8758-c02a2aab3662")
        assert (await running).outcome is Outcome.COMPLETED
        assert len(scene.agent.of("clearedAudio")) == 1
        assert scene.plivo.of("clearAudio") == []
        assert scene.heard == [BUFFERS[0], RIGHT]


@virtual_time
async def test_w13_acknowledgements_of_what_was_cut_wait_for_the_hand_back() -> None:
    async with Scene(judge_s=0.5) as scene:
        judging = asyncio.create_task(scene.wrong_turn())
        await asyncio.sleep(0.1)
        await scene.agent.play(scene.voice.tone(WRONG))
        await scene.agent.send("checkpoint", streamId="20170ada-f610-433b-8758-c02a2aab3662", name="mine")
        running = asyncio.create_task(scene.call.intervene(await judging))
        await asyncio.sleep(3)
        assert scene.agent.of("playedStream") == []
        await running
        await asyncio.sleep(0.1)
        assert [frame["name"] for frame in scene.agent.of("playedStream")] == ["mine"]


@virtual_time
async def test_w14_the_note_is_there_before_the_correction_and_stale_turns_are_dropped_and_named() -> None:
    async with Scene(judge_s=0.3) as scene:
        verdict = await scene.wrong_turn()
        running = asyncio.create_task(scene.call.intervene(verdict))
        await asyncio.sleep(0.05)
        stale = await scene.call.review_turn(customer_text="And?", primary_text="That is all, then.")
        assert (await scene.call.speak("That is all, then.")).ok
        await asyncio.sleep(0.6)
        note = await scene.call.consume_override()
        assert note is not None
        assert RIGHT in note
        assert RIGHT not in scene.heard
        await running
        await asyncio.sleep(5)
        assert scene.heard == [BUFFERS[0], RIGHT]
        after = await scene.call.consume_override()
        assert after is not None
        assert "not played" in after
        assert "agent: [cut off before it was heard]" in scene.notes()
        heard = scene.call.heard(stale.turn_id)
        assert heard is None or heard.heard_text == ""


@virtual_time
async def test_w14_a_turn_made_after_the_note_is_heard_after_the_correction() -> None:
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(0.5)
        assert await scene.call.consume_override() is not None
        await scene.call.review_turn(customer_text="Well?", primary_text=GOOD)
        speaking = await scene.call.speak(GOOD)
        assert (await running).outcome is Outcome.COMPLETED
        await speaking.played()
        assert scene.heard == [BUFFERS[0], RIGHT, GOOD]


@virtual_time
async def test_w14_a_note_is_worth_nothing_when_the_call_has_gone_on_for_long() -> None:
    clock = [1_800_000_000.0]
    scene = Scene()
    scene.supervisor = Supervisor(scene.supervisor.config, clock=lambda: clock[0])
    async with scene:
        await scene.call.intervene(await scene.wrong_turn())
        clock[0] += 121
        assert await scene.call.consume_override() is None


@virtual_time
async def test_w15_one_lost_answer_to_a_clear_does_not_shift_the_next() -> None:
    async with Scene(judge_s=0.5) as scene:
        scene.plivo.clear_answers = False
        await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        scene.plivo.clear_answers = True
        await scene.call.speak(GOOD)
        await asyncio.sleep(0.5)
        await scene.agent.send("clearAudio", streamId="20170ada-f610-433b-8758-c02a2aab3662")
        await asyncio.sleep(0.5)
        assert len(scene.agent.of("clearedAudio")) == 1


# Judging


@virtual_time
async def test_j7_a_turn_and_its_tool_are_judged_at_once_and_its_voice_is_rendered_meanwhile() -> None:
    async with Scene(judge_s=0.3, voice=Tones(delay_s=0.25)) as scene:
        await asyncio.sleep(3)
        began = asyncio.get_running_loop().time()
        outcome = await scene.call.review_and_speak(
            customer_text="Two pizzas.", primary_text=GOOD, tool_calls=[{"name": "place_order", "args": {"n": 2}}]
        )
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.3, abs=0.02)
        assert outcome.verdict.tools[0].allow
        assert not outcome.intervened
        assert outcome.spoken_text == GOOD
        await asyncio.sleep(5)
        assert scene.plivo.heard(scene.voice)[0][1] - began + scene.plivo._began == pytest.approx(0.25 + 0.06, abs=0.06)


@virtual_time
async def test_j10_a_late_verdict_never_stops_a_newer_turn() -> None:
    async with Scene() as scene:
        late = await scene.wrong_turn()
        await scene.call.speak(WRONG)
        await asyncio.sleep(4)
        await scene.call.review_turn(customer_text="Fine.", primary_text=GOOD)
        await scene.call.speak(GOOD)
        await asyncio.sleep(0.5)
        report = await scene.call.intervene(late)
        assert (report.outcome, report.detail) == (Outcome.WITHHELD, "late")
        await asyncio.sleep(5)
        assert scene.heard == [WRONG, GOOD]
        note = await scene.call.consume_override()
        assert note is not None
        assert "Take it back first" in note


@virtual_time
async def test_j10_a_verdict_on_a_turn_that_was_never_said_does_not_speak_over_the_one_that_was() -> None:
    async with Scene() as scene:
        late = await scene.wrong_turn()
        await scene.call.speak(GOOD)
        await asyncio.sleep(0.5)
        assert (await scene.call.intervene(late)).detail == "late"
        await asyncio.sleep(5)
        assert scene.heard == [GOOD]


@virtual_time
async def test_a_turn_that_has_just_been_heard_is_taken_back_aloud() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        speaking = await scene.call.speak(WRONG)
        await speaking.played()
        await asyncio.sleep(0.5)
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert scene.heard == [WRONG, "Sorry, I misspoke.", RIGHT]
        assert report.heard_text == WRONG


@virtual_time
async def test_while_the_caller_speaks_the_turn_is_silenced_and_nothing_is_said_over_them() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        await scene.call.speak(WRONG)
        speaking = asyncio.create_task(scene.plivo.says(say("No, I want to talk to somebody about my money, now!")))
        await asyncio.sleep(1.2)
        report = await scene.call.intervene(verdict)
        assert (report.outcome, report.detail) == (Outcome.INTERRUPTED, "the caller is speaking")
        await speaking
        await asyncio.sleep(3)
        assert scene.heard == [WRONG]
        assert scene.plivo.heard(scene.voice)[0][2] < 1.5
        assert "Nothing was said in its place" in (await scene.call.consume_override() or "")


# Delivery


@pytest.mark.parametrize(
    ("delivery", "pregate", "text", "begins_s"),
    [
        ("stream_first", False, GOOD, 0.0),
        ("hold_all", False, GOOD, 0.5),
        ("hold_risky", True, "Okay.", 0.0),
        ("hold_risky", True, "Your refund of 30 dollars was paid out to your card.", 0.5),
    ],
)
def test_delivery_decides_what_is_heard_before_the_verdict(
    delivery: str, pregate: bool, text: str, begins_s: float
) -> None:
    @virtual_time
    async def run() -> float:
        async with Scene(delivery=delivery, judge_s=0.5, tiered_scoring_enabled=pregate) as scene:
            began = scene.now()
            await scene.call.review_and_speak(customer_text="Hello?", primary_text=text)
            await asyncio.sleep(5)
            return scene.plivo.heard(scene.voice)[0][1] - began

    assert run() == pytest.approx(begins_s, abs=0.12)


@virtual_time
async def test_a_turn_is_held_no_longer_than_the_budget() -> None:
    async with Scene(delivery="hold_all", hold_budget_ms=300, judge_s=1.5) as scene:
        began = scene.now()
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        (text, at, seconds), *_ = scene.plivo.heard(scene.voice)
        assert text == WRONG
        assert at - began == pytest.approx(0.3, abs=0.12)
        assert seconds == pytest.approx(1.2, abs=0.15)


@virtual_time
async def test_held_to_the_verdict_nothing_of_a_wrong_turn_is_heard() -> None:
    async with Scene(delivery="hold_all", judge_s=0.5) as scene:
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        assert scene.heard == [BUFFERS[0], RIGHT]


@virtual_time
async def test_in_shadow_mode_everything_is_spoken_and_nothing_is_held() -> None:
    async with Scene(mode="shadow", delivery="hold_all", judge_s=0.5) as scene:
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert (outcome.verdict.withheld, outcome.intervened) == ("shadow", False)
        assert outcome.spoken_text == WRONG
        assert (await scene.call.intervene(outcome.verdict)).detail == "shadow"
        await asyncio.sleep(5)
        assert scene.heard == [WRONG]


@virtual_time
async def test_a_blocked_tool_is_spoken_about_in_place_of_the_turn() -> None:
    async with Scene() as scene:
        scene.llm.tools = decisions("t1", allow=False, reason="twelve were wanted", instruction="Ask how many.")
        outcome = await scene.call.review_and_speak(
            customer_text="Twelve!", primary_text="Done.", tool_calls=[{"id": "t1", "name": "place_order", "args": {}}]
        )
        assert outcome.intervened
        assert "Done." not in scene.heard[1:]
        assert scene.heard[-1] == RIGHT


@virtual_time
async def test_a_tool_that_was_gated_by_itself_can_be_answered_aloud() -> None:
    async with Scene() as scene:
        scene.llm.tools = decisions("t1", allow=False, reason="twelve were wanted", instruction="Ask how many.")
        verdict = await scene.call.gate_tool_call(
            customer_text="Twelve!", intents=[{"id": "t1", "name": "place_order", "args": {}}]
        )
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert scene.heard[0] == BUFFERS[0]


@virtual_time
async def test_streamed_words_are_cut_as_soon_as_a_clause_is_wrong() -> None:
    async with Scene(streaming_mode=True, judge_s=0.2) as scene:
        verdict = None
        for piece in ("Of course. ", "Your refund is ", "confirmed today. ", "It is on its way to you. "):
            verdict = verdict or await scene.call.review_stream_delta(customer_text="Money!", delta=piece)
            await scene.agent.play(scene.voice.tone(WRONG)[: 160 * 40])
            await asyncio.sleep(0.5)
        verdict = verdict or await scene.call.flush_stream(customer_text="Money!")
        assert verdict.should_intervene
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert scene.heard == [WRONG, BUFFERS[0], RIGHT]


@virtual_time
async def test_a_flushed_stream_is_spoken_like_any_turn() -> None:
    async with Scene(streaming_mode=True) as scene:
        for piece in GOOD.split(" "):
            await scene.call.review_stream_delta(customer_text="Where is it?", delta=piece + " ")
        verdict = await scene.call.flush_stream(customer_text="Where is it?")
        assert not verdict.should_intervene
        await (await scene.call.speak(GOOD)).played()
        assert scene.heard == [GOOD]
        assert len([note for note in scene.notes() if note.startswith("agent")]) == 1


# The call


@virtual_time
async def test_the_start_event_binds_the_call_and_binding_it_again_changes_nothing() -> None:
    async with Scene() as scene:
        assert scene.call.context.call_id == CALL_ID
        scene.call.bind_call(CALL_ID)
        scene.call.bind_call("another")  # too late: warned of, not raised into a callback that would swallow it
        assert scene.call.context.call_id == CALL_ID


@virtual_time
async def test_an_agent_may_know_the_call_under_an_id_of_its_own() -> None:
    scene = Scene(options={"call_id": "order-17"})
    async with scene:
        assert scene.call.context.call_id == "order-17"


@virtual_time
async def test_binding_right_after_the_start_event_is_in_time() -> None:
    scene = Scene()
    scene._attached = scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice)
    async with scene._attached as call:
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(0.1)
        call.bind_call("mine")
        await asyncio.sleep(1)
        assert call.context.call_id == "mine"
        running.cancel()


@virtual_time
async def test_turns_before_the_stream_has_started_are_said_when_it_has() -> None:
    """The description's quickstart, read to the letter, reviews and speaks before `handler.start()`."""
    scene = Scene()
    async with scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice) as call:
        verdict = await call.review_turn(customer_text="Where is it?", primary_text=GOOD)
        assert not verdict.should_intervene
        assert (await call.speak(GOOD)).ok
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(6)
        assert scene.heard == [GOOD]
        running.cancel()


@virtual_time
async def test_a_correction_before_the_stream_has_started_is_said_when_it_has() -> None:
    scene = Scene()
    async with scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        report = await call.intervene(verdict)
        assert report.detail == "the stream has not started; the correction is said when it has"
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(8)
        assert scene.heard == [BUFFERS[0], RIGHT]
        running.cancel()


@virtual_time
async def test_leaving_ends_an_intervention_and_lets_everything_pass() -> None:
    scene = Scene()
    async with scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(0.5)
    assert (await running).outcome is Outcome.FAILED
    await scene.agent.play(scene.voice.tone(GOOD))
    await asyncio.sleep(8)
    assert scene.heard[-1] == GOOD
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_an_agent_that_says_goodbye_during_an_intervention_waits_for_its_end() -> None:
    async with Scene() as scene:
        running = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(0.5)
        await scene.plivo.websocket.close()
        assert scene.heard == [BUFFERS[0], RIGHT]
        assert (await running).outcome is Outcome.COMPLETED


@virtual_time
async def test_the_agents_own_sounds_pass_and_are_paced() -> None:
    async with Scene() as scene:
        await scene.agent.play(scene.voice.tone(GOOD))
        await scene.agent.play(scene.voice.tone("Anything else for you?"))
        await scene.agent.send("checkpoint", streamId="20170ada-f610-433b-8758-c02a2aab3662", name="mine")
        await scene.agent.send("sendDTMF", dtmf="1")
        await asyncio.sleep(6)
        assert scene.heard == [GOOD, "Anything else for you?"]
        assert [frame["name"] for frame in scene.agent.of("playedStream")] == ["mine"]
        assert scene.plivo.of("sendDTMF")


@virtual_time
async def test_a_stream_of_no_known_format_is_judged_but_not_spoken_to() -> None:
    scene = Scene()
    async with scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice) as call:
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start(encoding="audio/opus")
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        assert verdict.should_intervene
        report = await call.intervene(verdict)
        assert report.outcome is Outcome.WITHHELD
        assert "audio/opus" in report.detail
        speaking = await call.speak(GOOD)
        assert not speaking.ok
        assert "audio/opus" in speaking.detail
        assert scene.agent.of("start")
        assert "Take it back first" in (await call.consume_override() or "")
        running.cancel()


@virtual_time
async def test_without_a_voice_the_agents_own_audio_is_supervised_and_the_note_remains() -> None:
    scene = Scene()
    async with scene.supervisor.attach(scene.plivo.websocket) as call:
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        assert (await call.intervene(verdict)).detail == "unarmed: no tts_provider was given"
        assert not call.armed
        assert "no tts_provider was given" in (await call.speak(GOOD)).detail
        assert "Take it back first" in (await call.consume_override() or "")
        running.cancel()


@virtual_time
async def test_no_failure_of_mirrors_is_raised_into_the_agents_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(scene.call._outlet, "plan", broken)
        report = await scene.call.intervene(verdict)
        assert (report.outcome, report.detail) == (Outcome.FAILED, "RuntimeError")
        monkeypatch.undo()
        monkeypatch.setattr(scene.call, "_hand_back", broken)
        report = await scene.call.intervene(verdict)
        assert (report.outcome, report.detail) == (Outcome.FAILED, "RuntimeError")
        assert not scene.call.intervening
        monkeypatch.setattr(scene.call._outlet, "say", broken)
        assert not (await scene.call.speak(GOOD)).ok


@virtual_time
async def test_cooldown_and_limit_withhold_and_are_spoken_past() -> None:
    async with Scene(cooldown_s=60, max_interventions_per_call=1) as scene:
        first = await scene.wrong_turn()
        again = await scene.wrong_turn("Sure, your refund is confirmed.")
        await scene.call.intervene(first)
        report = await scene.call.intervene(again)  # judged before the first acted
        assert (report.outcome, report.detail) == (Outcome.WITHHELD, "limit")
        third = await scene.wrong_turn("Well, your refund is confirmed.")
        assert third.withheld == "limit"
        assert (await scene.call.intervene(third)).detail == "limit"


@virtual_time
async def test_a_verdict_that_calls_for_nothing_does_nothing() -> None:
    async with Scene() as scene:
        verdict = await scene.call.review_turn(customer_text="Hi", primary_text=GOOD)
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.WITHHELD
        assert scene.heard == []


@virtual_time
async def test_the_tool_loop_speaks_the_correction_itself() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        payload = scene.call.payload(customer_text="Money!", agent_text=WRONG, turn_id="loop-1")
        said = await scene.call.spoke_instead(payload, verdict)
        assert said == f"{BUFFERS[0]} {RIGHT}"
        # Whoever speaks the loop's result all the same does not say it twice; once is enough of that, too.
        assert (await scene.call.speak(said)).detail == "Mirror has said this already"
        assert (await scene.call.speak(GOOD)).ok
        await asyncio.sleep(5)
        assert scene.heard == [BUFFERS[0], RIGHT, GOOD]


# What is given to attach


def the_supervisor() -> Supervisor:
    return Supervisor(MirrorConfig(llm=ScriptedLLM(), policies=["Be kind."]))


class HasSpeak:
    async def speak(self, text: str, *, language: str) -> None: ...

    async def clear(self) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "handler: give the call's stream, or a tts_sink"),
        ({"handler": object(), "tts_provider": "hello"}, TypeError, "tts_provider: a str cannot speak"),
        ({"handler": object(), "tts_provider": Tones}, TypeError, "tts_provider: Tones is a class"),
        ({"handler": object(), "tts_provider": lambda: b""}, TypeError, "tts_provider: .* takes no text"),
        ({"handler": object(), "tts_provider": lambda text, rate: b""}, TypeError, "wants rate besides the text"),
        ({"tts_sink": object()}, TypeError, "tts_sink: a object cannot speak"),
        ({"tts_sink": HasSpeak}, TypeError, "tts_sink: a type cannot speak"),
        ({"tts_sink": HasSpeak(), "tts_provider": Tones()}, TypeError, "give one of the two"),
        ({"tts_sink": PlivoStreamTTSSink(object(), Tones()), "handler": object()}, TypeError, "give them once"),
        ({"handler": object(), "language": "English!"}, ValueError, "language: must be a BCP 47 tag"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        the_supervisor().attach(**arguments)  # type: ignore[arg-type]


async def test_an_object_without_a_stream_is_refused() -> None:
    with pytest.raises(TypeError, match="handler: Mirror cannot find a stream in a object"):
        async with the_supervisor().attach(object(), tts_provider=Tones()):
            pass


# Corners


@virtual_time
async def test_w4_without_any_proof_of_silence_the_intervention_goes_on() -> None:
    async with Scene(judge_s=0.5) as scene:
        scene.plivo.loses = {"playedStream", "clearedAudio"}
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        assert scene.heard == [WRONG, BUFFERS[0], RIGHT]


@virtual_time
async def test_a_correction_waits_for_the_innocent_turn_before_it() -> None:
    async with Scene() as scene:
        await scene.call.review_turn(customer_text="Where is it?", primary_text=GOOD)
        audio = scene.voice.tone(GOOD)

        async def stream() -> None:
            for at in range(0, len(audio), 160):
                await scene.agent.play(audio[at : at + 160])
                await asyncio.sleep(0.02)

        streaming = asyncio.create_task(stream())
        await asyncio.sleep(1.0)
        report = await scene.call.intervene(await scene.wrong_turn())
        assert report.outcome is Outcome.COMPLETED
        assert scene.heard == [GOOD, BUFFERS[0], RIGHT]
        await streaming


@virtual_time
async def test_a_turn_that_is_reviewed_long_after_its_audio_began_is_cut() -> None:
    async with Scene() as scene:
        audio = scene.voice.tone(WRONG)

        async def stream() -> None:
            for at in range(0, len(audio), 160):
                await scene.agent.play(audio[at : at + 160])
                await asyncio.sleep(0.02)

        streaming = asyncio.create_task(stream())
        await asyncio.sleep(1.5)
        report = await scene.call.intervene(await scene.wrong_turn())
        assert report.outcome is Outcome.COMPLETED
        await streaming
        assert scene.heard == [WRONG, BUFFERS[0], RIGHT]


@virtual_time
async def test_a_voice_that_is_slower_than_the_judge_never_says_what_was_found_wrong() -> None:
    async with Scene(judge_s=0.1) as scene:
        scene.voice.delay_s = 1.5
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        assert scene.heard[0] == BUFFERS[0]
        assert WRONG not in scene.heard


@virtual_time
async def test_a_voice_that_is_slower_than_the_judge_says_what_was_found_right() -> None:
    async with Scene(judge_s=0.1) as scene:
        scene.voice.delay_s = 1.5
        outcome = await scene.call.review_and_speak(customer_text="Where is it?", primary_text=GOOD)
        assert outcome.spoken_text == GOOD
        await asyncio.sleep(5)
        assert scene.heard == [GOOD]


@virtual_time
async def test_a_verdict_that_comes_while_the_voice_still_renders_decides() -> None:
    async with Scene(delivery="hold_all", hold_budget_ms=200, judge_s=0.6) as scene:
        scene.voice.delay_s = 1.0
        outcome = await scene.call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        assert WRONG not in scene.heard


@virtual_time
async def test_a_turn_whose_voice_fails_is_judged_all_the_same_and_says_so() -> None:
    async with Scene(judge_s=0.2) as scene:
        scene.voice.fails = ConnectionError("no network")
        outcome = await scene.call.review_and_speak(customer_text="Where is it?", primary_text=GOOD)
        assert (outcome.spoken_text, outcome.intervened) == ("", False)
        assert "ConnectionError" in outcome.detail
        assert outcome.verdict.state.value == "judged"


@virtual_time
async def test_what_the_pre_gate_cannot_look_at_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scene(delivery="hold_risky", judge_s=0.5) as scene:

        def broken(*_: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(scene.supervisor.pregate, "decide", broken)
        began = scene.now()
        await scene.call.review_and_speak(customer_text="Hello?", primary_text="Okay.")
        await asyncio.sleep(2)
        assert scene.plivo.heard(scene.voice)[0][1] - began == pytest.approx(0.5, abs=0.12)


@virtual_time
async def test_an_intervention_waits_a_moment_for_lines_that_are_just_being_rendered() -> None:
    scene = Scene(voice=Tones(delay_s=0.1))
    async with scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice) as call:
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(0.15)
        assert not call.armed
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        assert (await call.intervene(verdict)).outcome is Outcome.COMPLETED
        running.cancel()


@virtual_time
async def test_what_was_stopped_is_not_said_later() -> None:
    async with Scene() as scene:
        await scene.call.intervene(await scene.wrong_turn())
        speaking = await scene.call.speak(WRONG)
        assert (speaking.ok, speaking.detail) == (False, "the turn was stopped by an intervention")
        assert scene.heard == [BUFFERS[0], RIGHT]


@virtual_time
async def test_j14_only_the_newest_turns_are_kept() -> None:
    async with Scene() as scene:
        for number in range(70):
            await scene.call.review_turn(customer_text="And?", primary_text=f"That is number {number}.")
        assert len(scene.call._turns) == 64
        assert scene.call.heard("unknown") is None


@virtual_time
async def test_leaving_at_once_leaves_nothing_behind() -> None:
    scene = Scene()
    async with scene.supervisor.attach(scene.plivo.websocket, tts_provider=scene.voice) as call:
        running = asyncio.create_task(scene.agent.run())
        scene.plivo.start()
        await asyncio.sleep(0.1)
    assert call.context.call_id == ""
    running.cancel()
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_cancelling_whoever_waits_does_not_stop_the_intervention() -> None:
    async with Scene() as scene:
        waiting = asyncio.create_task(scene.call.intervene(await scene.wrong_turn()))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await scene.call.quiet()
        assert scene.heard == [BUFFERS[0], RIGHT]


@virtual_time
async def test_a_correction_that_cannot_be_rendered_is_replaced_by_a_line_that_is() -> None:
    async with Scene() as scene:
        verdict = await scene.wrong_turn()
        scene.voice.fails = RuntimeError("quota")
        report = await scene.call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert report.correction is not None
        assert report.correction.source == "template"


@virtual_time
async def test_t7_the_tool_loop_on_a_call_blocks_the_tool_and_speaks_the_correction_once() -> None:
    async with Scene() as scene:
        scene.llm.tools = decisions("c1", allow=False, reason="nobody named an amount", instruction="Ask how much.")
        ran: list[dict[str, object]] = []
        model = AgentModel(wants(CHARGE, content="I charge your card now."), says(GOOD))
        result = await scene.call.run_supervised_loop(
            llm_client=model,
            model="m",
            system_prompt="You take orders.",
            tool_specs=SPECS,
            tool_executors={"charge_card": ran.append},
            customer_text="Hello?",
        )
        assert result.blocked
        assert ran == []
        assert result.text == " ".join(scene.heard)
        await scene.call.review_and_speak(customer_text="Hello?", primary_text=result.text)
        await asyncio.sleep(5)
        assert result.text == " ".join(scene.heard)


@virtual_time
async def test_the_tool_loop_is_in_the_calls_language(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scene(options={"language": "es"}) as scene:
        scene.llm.tools = decisions("c1", allow=False, reason="nobody named an amount", instruction="Ask how much.")
        languages: list[str] = []
        spoke_instead = scene.call.spoke_instead

        async def seen(payload: TurnPayload, verdict: Verdict) -> str | None:
            languages.append(payload.language)
            return await spoke_instead(payload, verdict)

        monkeypatch.setattr(scene.call, "spoke_instead", seen)
        await scene.call.run_supervised_loop(
            llm_client=AgentModel(wants(CHARGE, content="Cobro su tarjeta."), says(GOOD)),
            model="m",
            system_prompt="You take orders.",
            tool_specs=SPECS,
            tool_executors={"charge_card": print},
            customer_text="¿Hola?",
        )
        assert languages == ["es"]
