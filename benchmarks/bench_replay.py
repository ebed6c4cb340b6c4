"""How long a replay takes: `python -m benchmarks.bench_replay`, or `make bench-replay`.

200 calls of 5 turns, judged by a local server that takes 300 ms for every answer. Three ways:

- the command, `python -m supervision.engine.replay --concurrency 64`, in a process of its own, from start to exit;
- the same command asking one question after the other, as replays elsewhere do, on samples of the calls;
- the sequential peer's time for all calls, projected from two samples: the time of a short run, and the time per
  question by which a longer run exceeds it, so that the start of the process is counted once.

Nothing is averaged away: each is one run.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.standins.llm import llm_process

CALLS = 200
TURNS = 5
DELAY_S = 0.3
CONCURRENCY = 64
# Calls of the two sequential runs.
FEW, MORE = 2, 8
TARGET_S = 8.0


def call(number: int) -> dict[str, Any]:
    """A recorded call; every seventh turn breaks the rule."""
    turns = []
    for turn in range(TURNS):
        broken = (number + turn) % 7 == 0
        said = "Your refund is confirmed." if broken else f"Your order {number} is being prepared, step {turn}."
        turns.append({"customer_text": f"What about item {turn}?", "agent_text": said, "label": broken})
    return {"call_id": f"call-{number}", "turns": turns}


def run(folder: Path, base_url: str, calls: int, concurrency: int) -> tuple[float, dict[str, Any]]:
    """Replays the first `calls` calls; seconds from the start of the process to its end, and its report."""
    recordings = folder / f"calls-{calls}.json"
    recordings.write_text(json.dumps([call(number) for number in range(calls)]))
    policies = folder / "policies.txt"
    policies.write_text("Never confirm a refund.\nDo not promise delivery times.\n")
    command = [sys.executable, "-m", "supervision.engine.replay", str(recordings), "--policies", str(policies)]
    command += ["--threshold-sweep", "0.5,0.6,0.7,0.8", "--base-url", base_url, "--format", "json"]
    began = time.perf_counter()
    done = subprocess.run([*command, "--concurrency", str(concurrency)], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def main() -> int:
    """Measures and prints; the exit status is 1 when the replay missed its target or was not complete."""
    script = {"turns": {"refund is confirmed": {"score": 0.9, "correction": ""}}, "delay_s": DELAY_S}
    with tempfile.TemporaryDirectory() as name, llm_process(script) as base_url:
        folder = Path(name)
        few_s, _ = run(folder, base_url, FEW, 1)
        more_s, _ = run(folder, base_url, MORE, 1)
        per_question_s = (more_s - few_s) / ((MORE - FEW) * TURNS)
        sequential_s = few_s + (CALLS - FEW) * TURNS * per_question_s
        took_s, report = run(folder, base_url, CALLS, CONCURRENCY)
    judged, errors = report["speech"]["judged"], report["errors"]["count"]
    speech = report["thresholds"][0]["speech"]
    at_best_s = math.ceil(CALLS * TURNS / CONCURRENCY) * DELAY_S
    print(f"replay, {CALLS} calls of {TURNS} turns, a judge that takes {DELAY_S * 1000:.0f} ms, one run each")
    print(f"  {CONCURRENCY} at a time   {took_s:6.1f} s from start to exit; {report['seconds']:.1f} s of it judging")
    print(f"                  (at that delay judging alone takes at least {at_best_s:.1f} s)")
    measured = f"{FEW * TURNS} and {MORE * TURNS} questions were measured now"
    print(f"  one at a time {sequential_s:6.1f} s, projected: {measured}")
    print(f"                  ({few_s:.1f} and {more_s:.1f} s, so {per_question_s * 1000:.0f} ms a question)")
    print(f"  ratio         {sequential_s / took_s:6.1f}")
    print(f"  judged {judged}, errors {errors}; precision {speech['precision']}, recall {speech['recall']}")
    met = took_s <= TARGET_S and judged == CALLS * TURNS and errors == 0
    print(f"  target {TARGET_S:.0f} s: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
