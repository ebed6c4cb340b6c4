"""An intervention's order and its bounds in time, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from supervision.engine.intervention.orchestrator import (
    Intervention,
    Line,
    Outcome,
    Plan,
    Playing,
    Report,
    SilenceProof,
)
from tests.support.virtual_time import virtual_time

BUFFER = Line("One moment, please.", b"b" * 8000)  # one second of mu-law
TEMPLATE = Line("Let me put that right. What can I do for you?", b"t" * 16000)
CORRECTION = Line("I cannot refund that myself. Shall I connect you?", b"c" * 24000, "llm")
SPARE = Line("A colleague decides on that. Shall I connect you?", b"s" * 24000, "llm")


class Audio:
    def __init__(self, starts_at: float, seconds: float, acknowledged: bool) -> None:
        self.starts_at = starts_at
        self.ends_at = starts_at + seconds
        self._acknowledged = acknowledged

    async def played(self) -> None:
        if not self._acknowledged:
            await asyncio.Event().wait()
        await asyncio.sleep(max(0.0, self.ends_at - asyncio.get_running_loop().time()))


class Sink:
    """A far end that plays in real time and answers as it is told to."""

    def __init__(self, proof: SilenceProof = "cleared", proof_after: float = 0.05, acknowledges: bool = True) -> None:
        self.log: list[tuple[str, str, float]] = []
        self._proof = proof
        self._proof_after = proof_after
        self._acknowledges = acknowledges
        self._free_at = 0.0
        self.broken = False
        self._began = asyncio.get_running_loop().time()

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def clear(self) -> SilenceProof:
        self.log.append(("clear", "", self._now()))
        await asyncio.sleep(self._proof_after)
        self._free_at = 0.0
        return self._proof

    def play(self, line: Line, label: str) -> Playing:
        if self.broken:
            raise ConnectionError("the socket is gone")
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + len(line.audio) / 8000
        self.log.append((label, line.text, start - self._began))
        return Audio(start, len(line.audio) / 8000, self._acknowledges)

    # Observer
    def phase(self, phase: str, text: str = "") -> None:
        self.log.append((f"phase:{phase}", text, self._now()))

    def step(self, step: str, detail: str = "") -> None:
        self.log.append((f"step:{step}", detail, self._now()))

    def note(self, line: Line) -> None:
        self.log.append(("note", line.text, self._now()))

    def heard(self) -> list[tuple[str, str, float]]:
        return [entry for entry in self.log if ":" not in entry[0]]


def after(seconds: float, line: Line | None = CORRECTION) -> Callable[[], Awaitable[Line | None]]:
    async def correct() -> Line | None:
        await asyncio.sleep(seconds)
        return line

    return correct


def intervention(sink: Sink, correct: Callable[[], Awaitable[Line | None]], plan: Plan = Plan.CUT_NOW) -> Intervention:
    return Intervention(plan=plan, sink=sink, observer=sink, buffer=BUFFER, fallback=TEMPLATE, correct=correct)


@virtual_time
async def test_silence_then_buffer_then_note_then_correction_without_a_gap() -> None:
    sink = Sink()
    report = await intervention(sink, after(0.4)).run()
    assert report.outcome is Outcome.COMPLETED
    assert [entry[0] for entry in sink.heard()] == ["clear", "buffer", "note", "correction"]
    times = {entry[0]: entry[2] for entry in sink.heard()}
    assert times["buffer"] == pytest.approx(0.05)
    assert times["note"] == pytest.approx(0.4)
    assert times["correction"] == pytest.approx(1.05)  # exactly at the buffer line's end
    assert report.gap_buffer_to_correction_ms == 0
    assert report.silence_proof == "cleared"


@virtual_time
async def test_w7_the_correction_is_prepared_while_the_buffer_plays() -> None:
    sink = Sink()
    report = await intervention(sink, after(0.85)).run()
    assert report.correction == CORRECTION
    assert report.gap_buffer_to_correction_ms == 0


@virtual_time
async def test_a_correction_that_is_not_ready_150_ms_before_the_buffers_end_is_replaced_by_the_template() -> None:
    sink = Sink()
    report = await intervention(sink, after(30.0)).run()
    assert report.correction == TEMPLATE
    queued = next(entry[2] for entry in sink.log if entry[0] == "step:correction_sent")
    assert queued == pytest.approx(0.9)
    assert report.gap_buffer_to_correction_ms == 0


@pytest.mark.parametrize("problem", [RuntimeError("model"), None])
def test_a_correction_that_fails_or_is_empty_is_replaced_by_the_template(problem: Exception | None) -> None:
    @virtual_time
    async def run() -> Report:
        async def correct() -> Line | None:
            if problem is not None:
                raise problem
            return None

        return await intervention(Sink(), correct).run()

    assert run().correction == TEMPLATE


@pytest.mark.parametrize(
    ("correct_s", "ready_s", "problem", "spoken"),
    [
        (0.6, 0.3, None, CORRECTION),
        (30.0, 0.3, None, SPARE),
        (30.0, 0.89, None, SPARE),
        (30.0, 0.91, None, TEMPLATE),
        (0.6, 0.3, RuntimeError("model"), SPARE),
        (0.6, 0.8, RuntimeError("model"), TEMPLATE),
    ],
)
def test_at_the_deadline_the_best_line_so_far_is_spoken(
    correct_s: float, ready_s: float, problem: Exception | None, spoken: Line
) -> None:
    @virtual_time
    async def run() -> tuple[Report, list[str]]:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def correct() -> Line | None:
            await asyncio.sleep(correct_s)
            if problem is not None:
                raise problem
            return CORRECTION

        sink = Sink()
        running = intervention(sink, correct)
        running.so_far = lambda: SPARE if loop.time() - began >= ready_s else None
        return await running.run(), [entry[0] for entry in sink.log]

    report, log = run()
    assert (report.correction, report.gap_buffer_to_correction_ms) == (spoken, 0)
    assert ("step:correction_late" in log or "step:correction_failed" in log) == (spoken is TEMPLATE)


@virtual_time
async def test_w4_an_acknowledgement_that_never_comes_is_waited_for_no_longer_than_the_audio_and_1500_ms() -> None:
    sink = Sink(acknowledges=False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    report = await intervention(sink, after(0.1)).run()
    assert report.outcome is Outcome.COMPLETED
    assert loop.time() - began == pytest.approx(0.05 + 1.0 + 3.0 + 1.5)
    assert any(entry[0] == "step:correction_unacknowledged" for entry in sink.log)


@virtual_time
async def test_w3_a_caller_who_hangs_up_ends_it_at_once() -> None:
    sink = Sink()
    running = intervention(sink, after(0.3))
    task = asyncio.create_task(running.run())
    await asyncio.sleep(0.8)
    running.stop(Outcome.CALLER_GONE)
    report = await task
    assert asyncio.get_running_loop().time() - sink._began == pytest.approx(0.8)
    assert report.outcome is Outcome.CALLER_GONE
    assert sink.log[-1][0] == "phase:caller_gone"


@pytest.mark.parametrize("at", [0.0, 0.02, 0.06, 0.5, 0.95, 1.2, 3.9])
def test_hanging_up_at_any_step_ends_it_at_once(at: float) -> None:
    @virtual_time
    async def run() -> tuple[Report, float]:
        sink = Sink()
        running = intervention(sink, after(0.9))
        task = asyncio.create_task(running.run())
        await asyncio.sleep(at)
        running.stop(Outcome.CALLER_GONE)
        report = await task
        return report, asyncio.get_running_loop().time() - sink._began - at

    report, late = run()
    assert report.outcome is Outcome.CALLER_GONE
    assert late == pytest.approx(0.0)


@virtual_time
async def test_w10_the_callers_voice_clears_what_mirror_says() -> None:
    sink = Sink()
    running = intervention(sink, after(0.1))
    task = asyncio.create_task(running.run())
    await asyncio.sleep(1.5)
    running.stop(Outcome.INTERRUPTED)
    report = await task
    assert report.outcome is Outcome.INTERRUPTED
    assert [entry[0] for entry in sink.heard()] == ["clear", "buffer", "note", "correction", "clear"]


@virtual_time
async def test_w1_a_sink_error_ends_it_as_failed_and_says_so() -> None:
    sink = Sink()
    sink.broken = True
    report = await intervention(sink, after(0.1)).run()
    assert report.outcome is Outcome.FAILED
    assert "the socket is gone" in report.detail
    assert sink.log[-1][0] == "phase:failed"


@virtual_time
async def test_without_a_cut_nothing_is_cleared() -> None:
    sink = Sink()
    report = await intervention(sink, after(0.1), Plan.REPLACE_HELD).run()
    assert [entry[0] for entry in sink.heard()] == ["buffer", "note", "correction"]
    assert report.silence_proof == "not_needed"
    assert report.gap_cut_to_buffer_ms is None


@virtual_time
async def test_words_behind_innocent_audio_are_cleared_when_they_would_begin() -> None:
    sink = Sink()
    running = intervention(sink, after(0.1), Plan.CUT_WHEN_REACHED)
    running.begins_at = asyncio.get_running_loop().time() + 0.7
    await running.run()
    assert sink.heard()[0] == ("clear", "", pytest.approx(0.7))


@virtual_time
async def test_going_on_without_a_proof_of_silence_is_recorded() -> None:
    sink = Sink(proof="unproven", proof_after=0.3)
    report = await intervention(sink, after(0.1)).run()
    assert report.silence_proof == "unproven"
    assert report.outcome is Outcome.COMPLETED


@virtual_time
async def test_nothing_is_left_running_when_it_ends() -> None:
    sink = Sink()
    running = intervention(sink, after(100.0))
    task = asyncio.create_task(running.run())
    await asyncio.sleep(0.2)
    running.stop(Outcome.CALLER_GONE)
    await task
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
