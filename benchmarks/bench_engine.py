"""What judging costs: `python -m benchmarks.bench_engine`, or `make bench-engine`.

Three figures, for a policy of 20 rules and calls with 20 turns behind them:

(a) CPU of the engine per judged turn, without model and pre-gate: the client answers at once in this process. Beside
    it the floor of any judge that sends the turn as JSON: `json.dumps` of the same message and `json.loads` of the
    same answer, nothing else.
(b) CPU per judged turn through the openai package, against a server in a process of its own. Beside it, in the same
    run: the same bytes posted with bare aiohttp, and the package as it comes, with its own transport.
(c) 1,000 reviews at once of a model that takes 300 ms, in one process: how many are not judged, and how long they take.

CPU is this process's own (`time.process_time`), so other processes disturb it little; each figure is the median of
several rounds, and the ways that are compared take turns within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.lean_llm import VERDICT, lean_llm
from supervision.engine import MirrorConfig, Supervisor, SupervisorContext, TurnPayload
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.llm.protocol import LLMResult
from supervision.engine.policy.compiler import TURN_SCHEMA, turn_message
from supervision.engine.supervisor import CallSupervisor

RULES = [
    f"Rule {number}: never tell the customer that a refund of order type {number} is approved, promised or on its way "
    "before a colleague has confirmed it in writing."
    for number in range(1, 21)
]
TURNS = 20
ENGINE_BAR_US = 150.0
CLIENT_BAR_MS = 1.2
BURST = 1_000
BURST_DELAY_MS = 300
BURST_BAR_S = 2.0
CONCURRENCY = 16

CUSTOMER = "And how about my order from last Tuesday, can you look into that as well, please?"
AGENT = (
    "Of course. I have your order in front of me: two margheritas and a salad, 27 euros 50. Would you like it again?"
)


class InstantLLM:
    """A model that answers at once, without leaving the process."""

    _result = LLMResult(VERDICT)

    async def complete_json(self, **_question: Any) -> LLMResult:
        return self._result

    async def aclose(self) -> None:
        pass


def supervised(llm: Any) -> CallSupervisor:
    """A call with 20 turns behind it, under 20 rules, each of whose turns is put to the model."""
    config = MirrorConfig(llm=llm, policies=RULES, tiered_scoring_enabled=False)
    call = Supervisor(config).call(SupervisorContext(call_id="bench"))
    for turn in range(TURNS):
        call.note_customer(f"This is what the customer says in turn {turn} of the call, a sentence of usual length.")
        call.note_agent(f"And this is what the agent answers to that in turn {turn}. It asks something, does it not?")
    return call


def payload(call: CallSupervisor) -> TurnPayload:
    return call.payload(customer_text=CUSTOMER, agent_text=AGENT, turn_id="t")


async def judge(call: CallSupervisor) -> None:
    await call.judge_turn(payload(call))


def floor_of(call: CallSupervisor) -> Callable[[], None]:
    """What nobody who sends the turn as JSON can do without."""
    message = json.loads(turn_message(payload(call), ()))

    def floor() -> None:
        json.dumps(message)
        json.loads(VERDICT)

    return floor


# (a)


async def engine_us(turns: int) -> tuple[float, float]:
    """Microseconds of CPU per judged turn, and those of the floor."""
    call = supervised(InstantLLM())
    floor = floor_of(call)
    for _ in range(50):
        await judge(call)
        floor()
    gc.collect()
    began = time.process_time()
    for _ in range(turns):
        await judge(call)
    engine = time.process_time() - began
    began = time.process_time()
    for _ in range(turns):
        floor()
    return engine / turns * 1e6, (time.process_time() - began) / turns * 1e6


# (b)


async def cpu_ms(turns: int, once: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds of CPU per turn, `CONCURRENCY` under way at a time."""
    left = turns

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    await asyncio.gather(*(once() for _ in range(CONCURRENCY)))
    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    return (time.process_time() - began) / turns * 1e3


async def client_ms(base_url: str, turns: int) -> dict[str, float]:
    """Milliseconds of CPU per judged turn by way of asking."""
    import aiohttp
    import openai

    client = OpenAIClient(api_key="k", model="judge", base_url=base_url)
    call = supervised(client)
    system = call.policy.turn_prompt
    sdk = openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0)
    connector = aiohttp.TCPConnector(limit=0)

    def body() -> dict[str, Any]:
        return {
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

    async def engine() -> None:
        verdict = await call.judge_turn(payload(call))
        assert verdict.state == "judged", verdict

    async def as_it_comes() -> None:
        completion = await sdk.chat.completions.create(**body())
        json.loads(completion.choices[0].message.content or "")

    async with aiohttp.ClientSession(connector=connector) as session:

        async def bare() -> None:
            data = json.dumps(body(), ensure_ascii=False, separators=(",", ":")).encode()
            headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
            async with session.post(f"{base_url}/chat/completions", data=data, headers=headers) as response:
                json.loads((await response.json())["choices"][0]["message"]["content"])

        took = {
            "engine": await cpu_ms(turns, engine),
            "bare": await cpu_ms(turns, bare),
            "sdk": await cpu_ms(turns, as_it_comes),
        }
    await client.aclose()
    await sdk.close()
    return took


# (c)


async def burst(base_url: str) -> tuple[Counter[str], list[float], float]:
    """The states of 1,000 reviews that begin at once, how long each took in seconds, and the CPU of all in seconds."""
    client = OpenAIClient(api_key="k", model="judge", base_url=base_url)
    supervisor = Supervisor(MirrorConfig(llm=client, policies=RULES, tiered_scoring_enabled=False))
    calls = [supervisor.call(SupervisorContext(call_id=f"c-{number}")) for number in range(BURST)]
    for call in calls:
        for turn in range(TURNS):
            call.note_customer(f"The customer's turn {turn}.")
            call.note_agent(f"The agent's turn {turn}.")
    loop = asyncio.get_running_loop()
    states: Counter[str] = Counter()
    took: list[float] = []

    async def review(call: CallSupervisor) -> None:
        began = loop.time()
        verdict = await call.judge_turn(payload(call))
        took.append(loop.time() - began)
        states[verdict.state] += 1

    gc.collect()
    cpu = time.process_time()
    await asyncio.gather(*map(review, calls))
    cpu = time.process_time() - cpu
    await client.aclose()
    return states, took, cpu


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main() -> int:
    """Measures and prints; the exit status is 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=1_000, help="judged turns per round of (a); (b) takes half")
    options = parser.parse_args()
    rounds, turns = options.rounds, options.turns

    engine_rounds = [asyncio.run(engine_us(turns)) for _ in range(rounds)]
    engine = statistics.median(row[0] for row in engine_rounds)
    floor = statistics.median(row[1] for row in engine_rounds)
    message = len(turn_message(payload(supervised(InstantLLM())), ()))
    print(f"20 rules, 20 turns of history; a turn's message has {message} characters; medians of {rounds} rounds")
    print(f"(a) engine CPU per judged turn, no model, no pre-gate  {engine:7.1f} µs   bar {ENGINE_BAR_US:.0f} µs")
    print(f"    floor: dumps of the message, loads of the answer   {floor:7.1f} µs   ratio {engine / floor:.1f}")

    with lean_llm() as base_url:
        client_rounds = [asyncio.run(client_ms(base_url, turns // 2)) for _ in range(rounds)]
    client = {way: statistics.median(row[way] for row in client_rounds) for way in client_rounds[0]}
    print(f"(b) CPU per judged turn through the openai package     {client['engine']:7.2f} ms   bar {CLIENT_BAR_MS} ms")
    print(
        f"    bare aiohttp, same bytes                           {client['bare']:7.2f} ms"
        f"   ratio {client['engine'] / client['bare']:.1f}"
    )
    print(
        f"    the package with its own transport                 {client['sdk']:7.2f} ms"
        f"   ratio {client['engine'] / client['sdk']:.1f}"
    )

    with lean_llm(BURST_DELAY_MS) as base_url:
        bursts = [asyncio.run(burst(base_url)) for _ in range(rounds)]
    not_judged = sum(states.total() - states["judged"] for states, _, _ in bursts)
    p50, p99, worst = (
        statistics.median(percentile(took, share) for _, took, _ in bursts) for share in (0.50, 0.99, 1.0)
    )
    print(f"(c) {BURST} reviews at once, a model that takes {BURST_DELAY_MS} ms; {len(bursts)} bursts")
    print(f"    not judged {not_judged}   bar 0;   p50 {p50:.2f} s, p99 {p99:.2f} s, max {worst:.2f} s   bar p99 2 s")
    print(f"    CPU of a burst {statistics.median(cpu for _, _, cpu in bursts):.2f} s, in one process")
    for states, _, _ in bursts:
        if states.total() != states["judged"]:
            print(f"    {dict(states)}")

    met = engine <= ENGINE_BAR_US and client["engine"] <= CLIENT_BAR_MS and not not_judged and p99 <= BURST_BAR_S
    print("all bars met" if met else "A BAR WAS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
