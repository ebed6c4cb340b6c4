"""What a relayed call costs: `make bench-relay`, or `python -m benchmarks.bench_relay [--calls 50] [--seconds 8]`.

Server CPU (user and system) per relayed 20 ms round trip: one media frame from Plivo to the agent and one playAudio
back. Mirror runs as in production (`manage.py serve --stream-only`, journal, PostgreSQL), under Daphne and under
uvicorn, in two kinds of call: an agent that says nothing to Mirror, and one that said hello and reports a turn every
8 s that is judged. The floor is a bare relay on picows that copies frames; the peer is an echo agent on pipecat behind
its Plivo serializer. The load runs in this process at real-time pace; servers take turns, rounds are repeated, and the
ratios are of medians within this run. The wall clock is not measured: the machine is shared.

Calls arrive in two ways. Apart, evenly over each 20 ms, as calls do that know nothing of each other: a server is woken
for nearly every frame, which costs any of them the most. Together, all in the same instant, as from a load generator
with one clock: a server reads many frames at each waking. A floor outside 15 to 30 µs says that the machine, in that
way of arriving, is too slow or too busy for the ratios to be held against the bars.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.stream_load import FRAME_S, ROOT, agent_server, judge_server, load, mirror, stream_url
from mirror_saas.ports import free_port

FLOOR = "bare picows relay"
PEER = "pipecat echo agent"
FLOOR_US = (15.0, 30.0)
SERVERS = {"daphne": "Daphne", "uvicorn": "uvicorn"}
# At most so many times the floor's CPU, and at least so many times less than the peer's.
BARS = {"daphne": (3.5, 4.0), "uvicorn": (2.0, 7.0)}
PEER_CALLS = 10  # of the peer at a time: it takes the same CPU for each, and must keep up


@contextmanager
def _process(*command: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


async def run(options: argparse.Namespace, nodes: list[tuple[str, psutil.Process]], public: str) -> int:
    plain_agent, plain_url = await agent_server(supervised=False)
    told_agent, told_url = await agent_server(supervised=True)
    judge, judge_url = await judge_server()
    floor_port, peer_port = free_port(), free_port()
    try:
        plain = await asyncio.to_thread(stream_url, public, plain_url, judge_url)
        told = await asyncio.to_thread(stream_url, public, told_url, judge_url)
        with (
            _process("benchmarks.bare_relay", "--port", str(floor_port), "--upstream", plain_url) as floor,
            _process("benchmarks.pipecat_peer", "--port", str(peer_port)) as peer,
        ):
            await _connectable(floor_port)
            await _connectable(peer_port)
            targets = {FLOOR: (f"ws://127.0.0.1:{floor_port}/stream", floor, options.calls)}
            for kind, (http, process) in zip(SERVERS, nodes, strict=True):
                for name, url in (("agent unaware", plain), ("supervised", told)):
                    here = url.replace(public.removeprefix("http"), http.removeprefix("http"))
                    targets[f"{SERVERS[kind]}, {name}"] = (here, process, options.calls)
            targets[PEER] = (f"ws://127.0.0.1:{peer_port}/", peer, min(options.calls, PEER_CALLS))
            costs = {together: await _costs(targets, options, together) for together in (False, True)}
    finally:
        plain_agent.close()
        told_agent.close()
        await judge.cleanup()
    return max([_report(options, found, together) for together, found in costs.items()])


async def _costs(
    targets: dict[str, tuple[str, psutil.Process, int]], options: argparse.Namespace, together: bool
) -> dict[str, list[float]]:
    """Microseconds per round trip of each target, one for each round."""
    costs: dict[str, list[float]] = {name: [] for name in targets}
    for _ in range(options.rounds):
        for name, (url, process, calls) in targets.items():
            used, trips = await load(url, calls, options.seconds, process, together=together)
            expected = calls * options.seconds / FRAME_S
            if trips < 0.95 * expected:
                print(f"{name}: {trips:.0f} of {expected:.0f} round trips; this machine is too busy", file=sys.stderr)
            costs[name].append(used / max(1.0, trips) * 1e6)
    return costs


def _report(options: argparse.Namespace, costs: dict[str, list[float]], together: bool) -> int:
    medians = {name: statistics.median(values) for name, values in costs.items()}
    floor, peer = medians[FLOOR], medians[PEER]
    print(
        f"{options.calls} calls that speak {'together' if together else 'apart'}, {options.seconds:g} s,"
        f" {options.rounds} rounds; server CPU per 20 ms round trip"
    )
    for name, value in medians.items():
        rounds = " ".join(f"{cost:.1f}" for cost in costs[name])
        print(f"  {name:<24}{value:7.1f} µs  {value / floor:5.2f} x   (rounds: {rounds})")
    if not FLOOR_US[0] <= floor <= FLOOR_US[1]:
        print(f"the floor is not within {FLOOR_US[0]:g} to {FLOOR_US[1]:g} µs: this run is void against the bars")
    failed = False
    for kind, (most, least) in BARS.items():
        value = medians[f"{SERVERS[kind]}, supervised"]
        failed |= value / floor > most or peer / value < least
        print(
            f"supervised under {SERVERS[kind]}: {value / floor:.2f} x the bare relay (bar: at most {most:g}),"
            f" {peer / value:.1f} x cheaper than the pipecat agent (bar: at least {least:g})"
        )
    return int(failed)


async def _connectable(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mirror-bench-") as folder,
        mirror(Path(folder) / "home", tuple(SERVERS)) as (public, nodes),
    ):
        return asyncio.run(run(options, nodes, public))


if __name__ == "__main__":
    sys.exit(main())
