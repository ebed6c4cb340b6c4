"""Recorded calls against a policy, before it goes live: what it would have led to, and what judging costs.

    python -m supervision.engine.replay calls.json --policies policies.txt --threshold-sweep 0.5,0.6,0.7,0.8

`recordings` reads the calls, `runner` judges them, `report` counts; `python -m supervision.engine.replay --help` says
what the command takes.
"""

from supervision.engine.replay.recordings import (
    Label,
    RecordedCall,
    RecordedTool,
    RecordedTurn,
    RecordingError,
    parse_calls,
    read_calls,
)
from supervision.engine.replay.report import Prices, details, summarize
from supervision.engine.replay.runner import Replayed, TurnResult, replay

__all__ = [
    "Label",
    "Prices",
    "RecordedCall",
    "RecordedTool",
    "RecordedTurn",
    "RecordingError",
    "Replayed",
    "TurnResult",
    "details",
    "parse_calls",
    "read_calls",
    "replay",
    "summarize",
]
