"""What `/metrics` tells of recording."""

from __future__ import annotations

import pytest

from supervision.metrics import RecordingCollector, recorder_metrics
from supervision.recorder.drain import DrainCounts
from supervision.recorder.recorder import RecorderCounts
from supervision.recorder.writer import WriterCounts
from supervision.stream import runtime


def test_what_became_of_the_events_of_calls_is_told_by_its_fate() -> None:
    counts = RecorderCounts(
        WriterCounts(recorded=12, written=9, detail_dropped=2, lost=1, failures=3), DrainCounts(stored=8, outages=1)
    )
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in recorder_metrics(counts)
        for sample in metric.samples
    }
    assert told == {
        ("mirror_recorder_events_total", "recorded"): 12,
        ("mirror_recorder_events_total", "written"): 9,
        ("mirror_recorder_events_total", "stored"): 8,
        ("mirror_recorder_events_total", "detail_dropped"): 2,
        ("mirror_recorder_events_total", "lost"): 1,
        ("mirror_recorder_events_total", "refused"): 0,
        ("mirror_recorder_outages_total",): 1,
        ("mirror_journal_failures_total",): 3,
    }


def test_a_process_that_carries_no_calls_tells_of_its_door_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # A test before this one may have let this process carry calls.
    monkeypatch.setattr(runtime, "_runtime", None)
    assert [metric.name for metric in RecordingCollector().collect()] == ["mirror_connections_turned_away"]
