"""What the pre-gate saves and what it misses: `python -m benchmarks.bench_pregate --data FOLDER`, or
`make bench-pregate DATA=FOLDER`, with labelled calls in FOLDER (see `labelled_calls`).

A turn is bad when its label says `wrong_write` or `agent_error`, or has a `quoted_bad`. For each data set:

- the gate as it is shipped. It was fitted to `tau` and `voice`, so on these its figure flatters ("in sample");
- the same gate fitted anew to four fifths of the tasks and asked about the others, for every fifth ("out of fold"):
  what to expect of tasks that it never saw. The rules that come before the model are written by hand, with these calls
  in view, and are the same in every fold: that part of the flattery it cannot remove;
- the curve: other thresholds of the model, out of fold. Lower judges more. At "rules alone" the model judges nothing;
- two peers on the same turns: judging only turns with a call that writes, and a word list.

And the time of a decision, by the clock and of CPU. A data set that nothing was fitted to has one figure only.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import train_pregate
from benchmarks.labelled_calls import DataMissing, LabelledTurn, read_turns
from supervision.engine.scorer.pregate import Model, PreGate, shipped_model

FITTED = train_pregate.DATA_SETS
OTHERS = ("coffee",)
SEED = 0
# Log-odds beside the shipped threshold.
OFFSETS = (-4.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, math.inf)
WARM_UP = 200
WIDTHS = (6, 7, 7, 14, 7, 7)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# A gate as one would write it in an hour: anything with a number, a tool, or a word that commits to something.
_COMMITS = re.compile(
    r"\d|\b(?:refund\w*|cancel\w*|confirm\w*|charg\w*|pa(?:y|id)\w*|pric\w*|cost\w*|fees?|free|discount\w*|book\w*|"
    r"order\w*|deliver\w*|guarant\w*|promis\w*|polic\w*|account\w*|address|card|credit\w*|dollars?|minutes?|hours?|"
    r"days?|tomorrow|today|tonight|always|never|definitely)\b",
    re.IGNORECASE,
)


def by_word_list(turn: LabelledTurn) -> bool:
    """Whether a word list judges this turn."""
    return bool(turn.payload.tool_calls) or _COMMITS.search(turn.payload.agent_text) is not None


def gates_of(turns: Sequence[LabelledTurn], model: Model | None = None) -> list[PreGate]:
    """A gate for each turn: one per policy, shared by its turns."""
    made: dict[int, PreGate] = {}
    return [made.setdefault(id(turn.config), PreGate(turn.config, model)) for turn in turns]


def log_odds_of(turns: Sequence[LabelledTurn]) -> Floats:
    """What the shipped model says of each turn."""
    return np.array([gate.assess(turn.payload)[0] for gate, turn in zip(gates_of(turns), turns, strict=True)])


def row(name: str, judged: Bools, bad: Bools) -> str:
    """One line: the share of turns skipped, and how many bad ones were among them."""
    missed = int((bad & ~judged).sum())
    share = f"{missed / bad.sum():6.1%}" if bad.any() else "      "
    return f"  {name:<44} {1 - judged.mean():6.1%}   {missed:3} of {int(bad.sum()):<4} {share}"


def show(name: str, turns: Sequence[LabelledTurn], in_sample: Floats, out_of_fold: Floats | None) -> None:
    """Prints the table of a data set."""
    bad = np.array([turn.bad for turn in turns])
    threshold = shipped_model().threshold
    print(f"\n{name}: {len(turns)} turns, {int(bad.sum())} bad")
    print(f"  {'':<44} skipped   bad turns missed")
    print(row("peer: only turns with a call that writes", np.array([turn.writes for turn in turns]), bad))
    print(row("peer: a word list", np.array([by_word_list(turn) for turn in turns]), bad))
    if out_of_fold is None:
        print(row("as shipped (nothing was fitted to these)", in_sample >= threshold, bad))
        curve, said = in_sample, "as shipped"
    else:
        print(row("as shipped, in sample (flatters)", in_sample >= threshold, bad))
        print(row("as shipped, OUT OF FOLD", out_of_fold >= threshold, bad))
        curve, said = out_of_fold, "out of fold"
    sources = sorted({turn.source for turn in turns})
    for source in sources if len(sources) > 1 else ():
        own = np.array([turn.source == source for turn in turns])
        print(row(f"    of it {source}", curve[own] >= threshold, bad[own]))
    print(f"  curve, {said}; threshold in log-odds")
    for offset in OFFSETS:
        at = "rules alone" if offset == math.inf else f"{threshold + offset:6.2f}{' (shipped)' if not offset else ''}"
        print(row(f"    {at}", curve >= min(threshold + offset, sys.float_info.max), bad))


def times_of(turns: Sequence[LabelledTurn], clock_ns: Callable[[], int]) -> Floats:
    """Microseconds of one decision for each turn by this clock, after a few to warm up."""
    gates = gates_of(turns)
    for gate, turn in list(zip(gates, turns, strict=True))[:WARM_UP]:
        gate.decide(turn.payload)
    took = np.zeros(len(turns))
    for index, (gate, turn) in enumerate(zip(gates, turns, strict=True)):
        began = clock_ns()
        gate.decide(turn.payload)
        took[index] = (clock_ns() - began) / 1000
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints. The exit status is 2 when the labelled calls are not there."""
    parser = argparse.ArgumentParser(prog="make bench-pregate", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="", help="folder with calls/*.jsonl.gz and policies/")
    given = parser.parse_args(arguments).data
    if not given:
        print("make bench-pregate needs labelled calls: make bench-pregate DATA=/path/of/the/folder, with")
        print(
            "calls/tau.jsonl.gz, calls/voice.jsonl.gz, calls/coffee.jsonl.gz and policies/ in it. Nothing was measured."
        )
        return 2
    try:
        sets = {name: read_turns(Path(given), name) for name in (*FITTED, *OTHERS)}
    except DataMissing as missing:
        print(f"Nothing was measured: {missing}. Give the folder of the labelled calls: make bench-pregate DATA=FOLDER")
        return 2
    fitted = [turn for name in FITTED for turn in sets[name]]
    names = np.array([turn.data_set for turn in fitted])
    print("The pre-gate on labelled calls. Fitting it five times for the figures out of fold; about half a minute.")
    out_of_fold = train_pregate.out_of_fold(fitted, SEED)
    for name, turns in sets.items():
        show(name, turns, log_odds_of(turns), out_of_fold[names == name] if name in FITTED else None)
    print("\na decision, microseconds    by the clock: p50    p95    p99   of CPU: p50    p95    p99")
    for name, turns in sets.items():
        clock, cpu = (times_of(turns, by) for by in (time.perf_counter_ns, time.thread_time_ns))
        figures = [*np.quantile(clock, (0.5, 0.95, 0.99)), *np.quantile(cpu, (0.5, 0.95, 0.99))]
        print(f"  {name:<36} " + "".join(f"{value:{width}.0f}" for value, width in zip(figures, WIDTHS, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
