"""Every benchmark in turn, in a short form: `make bench`, or `python -m benchmarks [--data FOLDER] [--only NAME …]`.

Each runs as its own command would, with less of everything, so that all take about a quarter of an hour; its figures
are printed as they come, and at the end a line for each: whether it kept to its bars. A short run on a busy machine can
miss a bar that the whole benchmark keeps to; what counts is the benchmark's own command. Those that need labelled calls
or a model are left out without them. Exits with 1 when a benchmark could not run at all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its short form; `{data}` in it is the folder of labelled calls, which it then needs."""

    name: str
    short: tuple[str, ...] = ()
    needs_model: bool = False

    @property
    def needs_data(self) -> bool:
        return "{data}" in self.short


BENCHMARKS = (
    Benchmark("relay", ("--calls", "30", "--seconds", "5", "--rounds", "3")),
    Benchmark("calls", ("--seconds", "20")),
    Benchmark("agent_leg", ("--seconds", "3")),
    Benchmark("delivery", ("--pairs", "2", "--seconds", "20")),
    Benchmark("delivery", ("--part", "heard", "--data", "{data}", "--calls", "3")),
    Benchmark("recorder", ("--seconds", "5")),
    Benchmark("pool", ("--seconds", "5", "--rounds", "2")),
    Benchmark("engine", ("--rounds", "3", "--turns", "400")),
    Benchmark("heard"),
    Benchmark("audio"),
    Benchmark("replay"),
    Benchmark("api", ("--turns", "50000", "--each", "20")),
    Benchmark("console", ("--turns", "50000", "--each", "20", "--seconds", "20")),
    Benchmark("pregate", ("--data", "{data}")),
    Benchmark("judge", ("--data", "{data}", "--minutes", "5"), needs_model=True),
)


# An exception and a bar that was missed would both end Python with 1.
BROKE = 70
_RUN = f"""
import runpy, sys, traceback
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as end:
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
        sys.exit({BROKE})
    raise
except Exception:
    traceback.print_exc()
    sys.exit({BROKE})
"""


def why_not(benchmark: Benchmark, data: str) -> str | None:
    """Why a benchmark cannot run here, or None."""
    if benchmark.needs_data and not data:
        return "needs labelled calls (DATA=FOLDER)"
    if benchmark.needs_model and not os.environ.get("OPENAI_API_KEY"):
        return "needs a model (OPENAI_API_KEY)"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of labelled calls")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in BENCHMARKS], help="these alone")
    options = parser.parse_args()
    chosen = [one for one in BENCHMARKS if not options.only or one.name in options.only]
    lines = []
    broken = False
    for benchmark in chosen:
        missing = why_not(benchmark, options.data)
        if missing:
            lines.append(f"{benchmark.name:<12}left out: {missing}")
            continue
        arguments = [argument.format(data=options.data) for argument in benchmark.short]
        print(f"\n== {benchmark.name} {' '.join(arguments)}".rstrip(), flush=True)
        begun = time.monotonic()
        module = f"benchmarks.bench_{benchmark.name}"
        status = subprocess.run([sys.executable, "-c", _RUN, module, *arguments], cwd=ROOT).returncode
        said = {0: "done", 1: "missed a bar (see above)"}.get(status, "did not run to its end")
        broken |= status not in (0, 1)
        lines.append(f"{benchmark.name:<12}{said}, {time.monotonic() - begun:.0f} s")
    print("\n" + "\n".join(lines), flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
