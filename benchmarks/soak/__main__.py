"""`python -m benchmarks.soak`: see the package."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.soak.calls import agents_running
from benchmarks.soak.faults import FAULTS, Result, Soak, judge_prepare
from benchmarks.soak.node import Node, Servers
from tests.standins.llm import LLMStandIn

SIZE, LENGTH, FRAMES = 50, 1.0, 1_000_000
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


async def soak_run(names: Sequence[str], *, size: int, length: float, frames: int) -> list[Result]:
    """Run these faults one after the other; a row for each. Told to stop, it takes its servers down first."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    # What callers notice must be the node's doing: a full collection of this process stops all of them.
    gc.disable()
    home = Path(tempfile.mkdtemp(prefix="mirror-soak-"))
    servers = Servers(home)
    node = Node(servers)
    # An agent that takes connections and never answers one: its backlog is all there is.
    silent = await asyncio.start_server(_hold, "127.0.0.1", 0)
    try:
        await asyncio.to_thread(servers.start)
        await asyncio.to_thread(node.start)
        async with LLMStandIn() as llm, agents_running() as agents:
            judge_prepare(llm)
            port = silent.sockets[0].getsockname()[1]
            soak = Soak(servers, node, agents, llm, size, length, frames, silent_url=f"ws://127.0.0.1:{port}/agent")
            await soak.prepare()
            for name in names:
                began = time.monotonic()
                await FAULTS[name](soak)
                agents.calls.clear()
                llm.requests.clear()
                gc.collect()
                print(f"{_row(soak.results[-1])}  [{time.monotonic() - began:.0f} s]", flush=True)
                for problem in soak.results[-1].problems:
                    print("   ", problem, flush=True)
            return soak.results
    finally:
        silent.close()
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(servers.stop)
        shutil.rmtree(home, ignore_errors=True)


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass
    writer.close()


def _row(result: Result) -> str:
    disturbed = f"{result.disturbed}" + (" (as they must be)" if result.allowed and result.disturbed else "")
    lost = f"{result.lost}" + (f", {result.doubled} doubled" if result.doubled else "")
    return f"| {result.fault} | {result.calls} | {disturbed} | {lost} | {result.seen} |"


def table(results: Sequence[Result], *, size: int, length: float, frames: int) -> str:
    """The results as the document has them."""
    when = datetime.now(UTC)
    machine = (
        f"{os.cpu_count()} cores ({platform.machine()}), Linux {platform.release()}, Python {platform.python_version()}"
    )
    load = ", ".join(f"{average:.0f}" for average in os.getloadavg())
    command = "`make soak`"
    if (size, length, frames) != (SIZE, LENGTH, FRAMES):
        command = f"Scaled down, `python -m benchmarks.soak --calls {size} --length {length:g} --frames {frames}`"
    head = (
        f"{command} on {when:%Y-%m-%d}, {machine}; servers, node, agents, judge and callers on this one machine, whose"
        f" load averages were {load} at the end."
    )
    rows = ["| fault | calls running | calls disturbed | records lost | seen |", "|---|---|---|---|---|"]
    return "\n".join([head, "", *rows, *map(_row, results)])


def main() -> int:
    """Run, print, write; 0 when nothing was lost and nobody disturbed who need not be."""
    parser = argparse.ArgumentParser(description="Break everything around running calls.")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"some of {', '.join(FAULTS)} (default: all)")
    parser.add_argument("--calls", type=int, default=SIZE, help="calls that run beside each fault")
    parser.add_argument("--length", type=float, default=LENGTH, help="share of each fault's full length")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of the fuzzing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    options = parser.parse_args()
    unknown = [name for name in options.faults if name not in FAULTS]
    if unknown:
        parser.error(f"there is no fault {unknown[0]!r}; the faults are {', '.join(FAULTS)}")
    size, length, frames = options.calls, options.length, options.frames
    try:
        results = asyncio.run(soak_run(options.faults or list(FAULTS), size=size, length=length, frames=frames))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    written = table(results, size=size, length=length, frames=frames)
    print("\n" + written)
    if options.write is not None:
        document = options.write.read_text(encoding="utf-8")
        pattern = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)
        options.write.write_text(
            pattern.sub(lambda _: f"{BEGIN}\n{written}\n{END}", document, count=1), encoding="utf-8"
        )
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
