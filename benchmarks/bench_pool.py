"""What a noisy tenant does to another one's judge: `python -m benchmarks.bench_pool`, or `make bench-pool`.

Two figures, with models that are servers in processes of their own:

(a) A quiet tenant's turns arrive by chance, a noisy tenant has 400 asked at all times, and 64 questions may be with
    models, which take 300 ms each. How long the quiet tenant's questions wait for their place, and how long its
    verdicts take: alone on the places that are its share of two (28), in the pool beside the noisy one, and beside it
    on 64 places that whoever comes first gets. The bound is on the wait: no longer than alone, but for one question of
    the noisy tenant's. What a verdict takes beyond wait and model is this machine's CPU.
(b) CPU per judgement of 1,000 at once, through pool, breaker, shared client and the service's own HTTP door, beside
    the same bytes posted 1,000 at once with bare aiohttp; and what of it are place and breaker.

CPU is this process's own (`time.process_time`); the ways that are compared take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench_engine import BURST, BURST_DELAY_MS, RULES, TURNS, payload, percentile
from benchmarks.lean_llm import lean_llm
from supervision.engine import MirrorConfig, Supervisor, SupervisorContext
from supervision.engine.llm.breaker import CircuitBreaker
from supervision.engine.llm.limiter import QuestionLimiter, Risk
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.llm.pool import KEPT_PARTS, ScoringPool
from supervision.engine.policy.compiler import TURN_SCHEMA, turn_message
from supervision.engine.supervisor import CallSupervisor

PLACES = 64
SHARE = (PLACES - PLACES // KEPT_PARTS) // 2
NOISY = 400
QUIET_LOAD = 0.5  # of what its share can answer
QUESTION_S = BURST_DELAY_MS / 1000
# Of a turn that was shed, until the same call has its next one; a turn takes longer than that.
NEXT_TURN_S = 0.5


@dataclass
class FirstCome:
    """Places for whoever comes first, as the only limit that a process has: what the pool is compared with."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PLACES))

    async def acquire(self, *, within_s: float, risk: Risk) -> bool:
        """See `QuestionLimiter`."""
        try:
            async with asyncio.timeout(within_s):
                await self.places.acquire()
        except TimeoutError:
            return False
        return True

    def release(self) -> None:
        """See `QuestionLimiter`."""
        self.places.release()


@dataclass
class Timed:
    """A tenant's places, and how many seconds each question waited for one, those included that got none."""

    places: QuestionLimiter
    waited_s: list[float] = field(default_factory=list)

    async def acquire(self, *, within_s: float, risk: Risk) -> bool:
        """See `QuestionLimiter`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        placed = await self.places.acquire(within_s=within_s, risk=risk)
        self.waited_s.append(loop.time() - began)
        return placed

    def release(self) -> None:
        """See `QuestionLimiter`."""
        self.places.release()

    def line(self) -> str:
        """For people."""
        p50, p95, worst = (percentile(self.waited_s, share) * 1e3 for share in (0.5, 0.95, 1.0))
        return f"waits p50 {p50:5.0f} ms, p95 {p95:5.0f} ms, max {worst:5.0f} ms;"


@dataclass
class Seen:
    """A tenant's verdicts: how they ended, and how many seconds those took that were judged."""

    states: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        """For people."""
        took = self.took_s or [float("nan")]
        share = self.states["judged"] / max(1, self.states.total())
        return (
            f"verdicts p50 {percentile(took, 0.5) * 1e3:5.0f} ms, p95 {percentile(took, 0.95) * 1e3:5.0f} ms,"
            f" {share:6.1%} of {self.states.total():5d} judged"
        )


def call_of(llms: OpenAIPool, base_url: str, limiter: QuestionLimiter | None, key: str) -> CallSupervisor:
    """A call under a policy of 20 rules, each of whose turns is put to the model."""
    llm = llms.client(api_key=key, model="judge", base_url=base_url)
    config = MirrorConfig(llm=llm, policies=RULES, tiered_scoring_enabled=False, semantic_review_timeout_s=4.0)
    return Supervisor(config, limiter=limiter).call(SupervisorContext(call_id="bench"))


async def judge(call: CallSupervisor, seen: Seen) -> bool:
    """Has a turn judged; whether it was."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    verdict = await call.judge_turn(payload(call))
    seen.states[verdict.state.value] += 1
    if verdict.state == "judged":
        seen.took_s.append(loop.time() - began)
    return verdict.state == "judged"


async def tenants(
    base_url: str, quiet: QuestionLimiter, noisy: QuestionLimiter | None, seconds: float
) -> tuple[Seen, Seen]:
    """What the quiet tenant and, where there is one, the noisy one have seen."""
    from mirror_saas.egress import egress_http_client

    llms = OpenAIPool(http_client=egress_http_client)
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    seen_quiet, seen_noisy = Seen(), Seen()
    storm: list[asyncio.Task[None]] = []
    if noisy is not None:
        loud = call_of(llms, base_url, noisy, "noisy")

        async def storms() -> None:
            while loop.time() < ends:
                if not await judge(loud, seen_noisy):
                    await asyncio.sleep(NEXT_TURN_S)

        storm = [loop.create_task(storms()) for _ in range(NOISY)]
    call = call_of(llms, base_url, quiet, "quiet")
    rng = random.Random(20261123)
    await asyncio.sleep(1.0)
    asked: list[asyncio.Task[bool]] = []
    while loop.time() < ends:
        await asyncio.sleep(rng.expovariate(QUIET_LOAD * SHARE / QUESTION_S))
        asked.append(loop.create_task(judge(call, seen_quiet)))
    await asyncio.gather(*asked, *storm)
    await llms.aclose()
    return seen_quiet, seen_noisy


async def burst(base_url: str) -> tuple[float, float, Counter[str]]:
    """Milliseconds of CPU per judgement of 1,000 at once, of a bare post of the same bytes, and the states."""
    import aiohttp

    from mirror_saas.egress import egress_http_client

    llms = OpenAIPool(http_client=egress_http_client)
    pool = ScoringPool(limit=2 * BURST)
    calls = [call_of(llms, base_url, pool.share(f"tenant {number % 20}"), "k") for number in range(BURST)]
    for call in calls:
        for turn in range(TURNS):
            call.note_customer(f"The customer's turn {turn}.")
            call.note_agent(f"The agent's turn {turn}.")
    seen = Seen()
    await asyncio.gather(*(judge(call, Seen()) for call in calls[:64]))
    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(judge(call, seen) for call in calls))
    engine = (time.process_time() - began) / BURST * 1e3

    system = calls[0].policy.turn_prompt

    async def bare(session: aiohttp.ClientSession, call: CallSupervisor) -> None:
        body: dict[str, Any] = {
            "model": "judge",
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": turn_message(payload(call), ())},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "mirror_turn", "strict": True, "schema": TURN_SCHEMA},
            },
            "max_tokens": 400,
            "temperature": 0,
        }
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
        async with session.post(f"{base_url}/chat/completions", data=data, headers=headers) as response:
            json.loads((await response.json())["choices"][0]["message"]["content"])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(bare(session, call) for call in calls[:64]))
        gc.collect()
        began = time.process_time()
        await asyncio.gather(*(bare(session, call) for call in calls))
        floor = (time.process_time() - began) / BURST * 1e3
    await llms.aclose()
    return engine, floor, seen.states


async def place_us(times: int = 20_000) -> float:
    """Microseconds of CPU for a place that is free, and the breaker, of one question."""
    share, breaker = ScoringPool().share("tenant"), CircuitBreaker()
    began = time.process_time()
    for _ in range(times):
        await share.acquire(within_s=1.0, risk=Risk.TURN)
        breaker.answered(breaker.admit())
        share.release()
    return (time.process_time() - began) / times * 1e6


def main() -> int:
    """Measures and prints; the exit status is 1 when the bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each of the three ways of (a)")
    parser.add_argument("--rounds", type=int, default=5, help="of (b)")
    options = parser.parse_args()

    os.environ.setdefault("MIRROR_ENV", "development")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mirror_saas.settings")
    import django

    django.setup()

    def run(quiet: Timed, noisy: QuestionLimiter | None) -> tuple[Seen, Seen]:
        return asyncio.run(tenants(base_url, quiet, noisy, options.seconds))

    pool, first_come = ScoringPool(limit=PLACES), FirstCome()
    # Without kept places, alone on as many as are its share.
    own, shared, queued = Timed(FirstCome(asyncio.Semaphore(SHARE))), Timed(pool.share("quiet")), Timed(first_come)
    with lean_llm(BURST_DELAY_MS) as base_url:
        alone, _ = run(own, None)
        beside, noise = run(shared, pool.share("noisy"))
        unfair, unfair_noise = run(queued, first_come)
        bursts = [asyncio.run(burst(base_url)) for _ in range(options.rounds)]
    print(f"(a) {PLACES} places, a model that takes {BURST_DELAY_MS} ms; a noisy tenant with {NOISY} turns at a time")
    print(f"    quiet tenant alone on its share of {SHARE}  {own.line()} {alone.line()}")
    print(f"    beside the noisy one, in the pool     {shared.line()} {beside.line()}")
    print(f"      the noisy one meanwhile             {noise.line()}")
    print(f"    beside it, whoever comes first        {queued.line()} {unfair.line()}")
    print(f"      the noisy one meanwhile             {unfair_noise.line()}")
    met = beside.states["shed"] == 0
    for name, share in (("p50", 0.50), ("p95", 0.95), ("max", 1.0)):
        bound = percentile(own.waited_s, share) + QUESTION_S
        waited = percentile(shared.waited_s, share)
        met = met and waited <= bound
        print(f"    wait {name} in the pool {waited * 1e3:.0f} ms, bound {bound * 1e3:.0f} ms (alone + one question)")

    engine, floor = (statistics.median(row[n] for row in bursts) for n in (0, 1))
    states = sum((row[2] for row in bursts), Counter[str]())
    print(f"(b) {BURST} judgements at once, medians of {options.rounds} rounds: {dict(states)}")
    print(f"    CPU per judgement {engine:.2f} ms; bare aiohttp, same bytes {floor:.2f} ms; ratio {engine / floor:.2f}")
    print(f"    of it a free place and the breaker: {asyncio.run(place_us()):.1f} µs")
    met = met and states["judged"] == states.total()
    print("the bound is met" if met else "THE BOUND WAS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
