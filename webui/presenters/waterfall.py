"""An intervention's steps on one axis, to scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from supervision.models import Intervention, Verdict
from webui.formats import duration, sentence_of

STEPS = {
    "clear_sent": "Clear sent",
    "cleared": "Clear acknowledged",
    "fence": "Fence checkpoint played",
    "silence_proved": "Silence proven",
    "silence_unproven": "Silence not proven, went on",
    "buffer_sent": "Buffer line sent",
    "buffer_played": "Buffer line played",
    "correction_ready": "Correction ready",
    "correction_late": "Correction late, template spoke",
    "correction_failed": "Correction failed, template spoke",
    "correction_sent": "Correction sent",
    "correction_played": "Correction played",
    "correction_unacknowledged": "Correction not acknowledged",
    "note_sent": "Note sent",
    "handed_back": "Handed back",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch (or, with no length, a moment) of a waterfall. `x` and `width` are per cent of its span."""

    label: str
    tone: Literal["judge", "cut", "mirror", "wait", "point"]
    start_ms: int
    end_ms: int | None
    x: str
    width: str
    open: bool
    words: str

    @property
    def point(self) -> bool:
        return self.tone == "point"


@dataclass(frozen=True, slots=True)
class Tick:
    x: str
    words: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The steps of an intervention to scale: `span_ms` from the first to the last known moment."""

    span_ms: int
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


def steps_of(intervention: Intervention) -> list[dict[str, Any]]:
    return sorted(intervention.steps, key=lambda step: int(step["at_ms"]))


def step_times(intervention: Intervention) -> dict[str, int]:
    """When each step came first. One can come twice (a clear, and a second one when the caller cuts in): the first
    opens the stretch."""
    times: dict[str, int] = {}
    for step in steps_of(intervention):
        times.setdefault(str(step["step"]), int(step["at_ms"]))
    return times


def waterfall_of(intervention: Intervention, verdict: Verdict | None) -> Waterfall:
    """The intervention's stretches and moments on one axis, starting when the judge was asked."""
    times = step_times(intervention)

    def first(*names: str) -> int | None:
        known = [times[name] for name in names if name in times]
        return min(known) if known else None

    stretches: list[tuple[str, Literal["judge", "cut", "mirror", "wait"], int, int | None]] = []
    if verdict is not None and verdict.latency_ms is not None:
        stretches.append(("Judged", "judge", verdict.at_ms - verdict.latency_ms, verdict.at_ms))
    if (clear := times.get("clear_sent")) is not None:
        stretches.append(
            ("Cut to silence", "cut", clear, first("silence_proved", "cleared", "fence", "silence_unproven"))
        )
    if (ready := times.get("correction_ready")) is not None:
        stretches.append(("Correction written", "wait", intervention.at_ms, ready))
    if (buffer := times.get("buffer_sent")) is not None:
        stretches.append(("Buffer line", "mirror", buffer, times.get("buffer_played")))
    if (sent := times.get("correction_sent")) is not None:
        # Sent before the buffer line ends, it waits in Plivo's queue; it is heard from then on.
        heard = max(sent, times.get("buffer_played", sent))
        if heard > sent:
            stretches.append(("Correction queued", "wait", sent, heard))
        stretches.append(("Correction", "mirror", heard, first("correction_played", "correction_unacknowledged")))
    drawn = {
        "clear_sent", "cleared", "fence", "silence_proved", "silence_unproven", "correction_ready",
        "buffer_sent", "buffer_played", "correction_sent", "correction_played",
        "correction_unacknowledged",
    }  # fmt: skip
    points = [(name, at) for name, at in times.items() if name not in drawn]

    moments = [intervention.at_ms, *times.values()]
    moments += [at for _, _, start, end in stretches for at in (start, end) if at is not None]
    if intervention.ended_at_ms is not None:
        moments.append(intervention.ended_at_ms)
    begin, end_of_all = min(moments), max(moments)
    span = max(1, end_of_all - begin)

    def per_cent(ms: float) -> str:
        return f"{100 * ms / span:.3f}"

    bars: list[Bar] = []
    for label, tone, start, end in stretches:
        is_open = end is None and not intervention.outcome
        if end is None and intervention.outcome:
            # It ended without this stretch's end ever being acknowledged: bounded by the end of the intervention.
            words = f"from {duration(start - begin)}, never acknowledged"
            stop = intervention.ended_at_ms if intervention.ended_at_ms is not None else end_of_all
        else:
            stop = end_of_all if end is None else end
            words = "running" if end is None else duration(stop - start)
        stop = max(stop, start)
        bars.append(
            Bar(label, tone, start - begin, None if end is None else end - begin,
                per_cent(start - begin), per_cent(stop - start), is_open, words)
        )  # fmt: skip
    for name, at in points:
        bars.append(
            Bar(STEPS.get(name, sentence_of(name)), "point", at - begin, at - begin, per_cent(at - begin), "0", False,
                f"at {duration(at - begin)}")
        )  # fmt: skip
    return Waterfall(span, tuple(bars), tuple(Tick(per_cent(at), duration(at)) for at in nice_ticks(span)))


def nice_ticks(span_ms: int, most: int = 5) -> tuple[int, ...]:
    """Round moments from 0 up to `span_ms`, at most `most` steps of 1, 2 or 5 times a power of ten apart."""
    step = 1
    while span_ms / step > most:
        digits = str(step)[0]
        step = step * 2 if digits != "2" else step * 5 // 2
    return tuple(range(0, span_ms + 1, step))
