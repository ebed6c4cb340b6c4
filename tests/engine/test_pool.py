"""One pool of places for all tenants: who gets the next one, what is shed, and what a noisy tenant can do to others."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from supervision.engine import JudgingState, MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent
from supervision.engine.llm.limiter import Risk, asking, risk_here
from supervision.engine.llm.pool import STALE_PER_TENANT, PoolShare, ScoringPool
from tests.engine.llms import CLEAN, ScriptedLLM
from tests.support.virtual_time import virtual_time

Acquire = Callable[[], Awaitable[bool]]


async def ask(share: PoolShare, seconds: float, risk: Risk = Risk.TURN, within_s: float = 60.0) -> float | None:
    """Asks a question that takes so long; returns how long it waited for its place, None when it got none."""
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    if not await share.acquire(within_s=within_s, risk=risk):
        return None
    waited = loop.time() - asked_at
    try:
        await asyncio.sleep(seconds)
    finally:
        share.release()
    return waited


async def noise(share: PoolShare, questions: int, seconds: Callable[[], float], risk: Risk = Risk.TURN) -> None:
    """Keeps so many questions asked at all times."""

    async def one() -> None:
        while True:
            if await ask(share, seconds(), risk) is None:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(questions)))


# What a noisy tenant can do to others


@virtual_time
async def test_a_quiet_tenant_does_not_wait_at_all_while_the_kept_places_last() -> None:
    pool = ScoringPool(limit=64)
    noisy, quiet = pool.share("noisy"), pool.share("quiet")
    storm = asyncio.create_task(noise(noisy, 300, lambda: 2.0))
    await asyncio.sleep(0.1)
    assert noisy.in_flight == 56, "all but the eighth that is kept"
    assert await asyncio.gather(*(ask(quiet, 1.0) for _ in range(8))) == [0.0] * 8
    storm.cancel()


@virtual_time
async def test_a_tenant_that_asks_for_its_share_has_it_within_one_question_of_the_noisy_one() -> None:
    pool = ScoringPool(limit=64)
    noisy, quiet = pool.share("noisy"), pool.share("quiet")
    storm = asyncio.create_task(noise(noisy, 300, lambda: 2.0))
    await asyncio.sleep(0.1)
    waits = await asyncio.gather(*(ask(quiet, 4.0) for _ in range(28)))
    assert all(wait is not None and wait <= 2.0 for wait in waits), "28 = (64 - 8) / 2 places are its share"
    storm.cancel()


@pytest.mark.parametrize("load", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("noisy_risk", [Risk.TURN, Risk.IRREVERSIBLE])
def test_no_question_waits_longer_than_with_its_share_alone_and_one_question_of_the_noisy_tenant(
    load: float, noisy_risk: Risk
) -> None:
    """The bound itself, question by question: the same questions at the same times, in the shared pool beside a tenant
    that always has 400 asked, and alone on as many places as are the tenant's share."""
    limit, longest, share_of_two = 32, 1.0, 14  # (32 - 4) / 2
    rng = random.Random(f"{load} {noisy_risk}")
    arrivals, at = [], 0.0
    for _ in range(600):
        at += rng.expovariate(load * share_of_two / 0.5)
        arrivals.append((at, rng.uniform(0.1, 0.9)))

    @virtual_time
    async def shared() -> list[float]:
        pool = ScoringPool(limit=limit, most_waiting=10_000)
        noisy, quiet = pool.share("noisy"), pool.share("quiet")
        seconds = random.Random(1)
        storm = asyncio.create_task(noise(noisy, 400, lambda: seconds.uniform(0.2, longest), noisy_risk))
        await asyncio.sleep(3.0)
        waits = await offered(arrivals, lambda took: ask(quiet, took))
        storm.cancel()
        return waits

    @virtual_time
    async def alone() -> list[float]:
        places = asyncio.Semaphore(share_of_two)
        loop = asyncio.get_running_loop()

        async def one(took: float) -> float:
            asked_at = loop.time()
            async with places:
                waited = loop.time() - asked_at
                await asyncio.sleep(took)
            return waited

        return await offered(arrivals, one)

    beside, by_itself = shared(), alone()  # type: ignore[func-returns-value]
    over = [a - b for a, b in zip(beside, by_itself, strict=True)]
    assert max(over) <= longest
    if load <= 0.3:
        assert sorted(beside)[len(beside) // 2] == 0.0, "and mostly there is no waiting at all"


async def offered(
    arrivals: list[tuple[float, float]], question: Callable[[float], Awaitable[float | None]]
) -> list[float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    running = []
    for at, took in arrivals:
        await asyncio.sleep(began + at - loop.time())
        running.append(asyncio.ensure_future(question(took)))
    waits = await asyncio.gather(*running)
    assert None not in waits
    return [wait for wait in waits if wait is not None]


@virtual_time
async def test_tenants_that_all_want_more_than_there_is_have_equally_many_places() -> None:
    pool = ScoringPool(limit=80, most_waiting=1_000)
    shares = [pool.share(f"tenant {number}") for number in range(7)]
    storms = [asyncio.create_task(noise(share, 10 * (n + 2), lambda: 1.0)) for n, share in enumerate(shares)]
    await asyncio.sleep(10.05)
    assert {share.in_flight for share in shares} == {10}
    for storm in storms:
        storm.cancel()
    await asyncio.sleep(0.01)


@virtual_time
async def test_a_tenant_whose_model_takes_long_does_not_end_up_with_the_places_of_others() -> None:
    pool = ScoringPool(limit=32, most_waiting=1_000)
    slow, quick = pool.share("slow"), pool.share("quick")
    storms = [
        asyncio.create_task(noise(share, 40, lambda seconds=seconds: seconds))
        for share, seconds in ((quick, 0.1), (slow, 30.0))
    ]
    await asyncio.sleep(20.0)
    assert quick.in_flight >= 14, "(32 - 4) / 2, though it gave them back two hundred times meanwhile"
    for storm in storms:
        storm.cancel()


@virtual_time
async def test_a_tenants_own_limit_holds_where_the_pool_has_room() -> None:
    at_limit: list[int] = []
    pool = ScoringPool(limit=100)
    share = pool.share("alice", limit=3, on_limit=lambda: at_limit.append(1))
    waits = await asyncio.gather(*(ask(share, 1.0, within_s=0.5) for _ in range(5)))
    assert waits == [0.0, 0.0, 0.0, None, None]
    assert len(at_limit) == 2
    stranger = pool.share("bob", limit=3)
    assert await ask(stranger, 0.1) == 0.0


@virtual_time
async def test_places_that_others_take_are_no_reason_to_blame_the_tenants_limit() -> None:
    blamed: list[int] = []
    pool = ScoringPool(limit=1)
    other = asyncio.create_task(ask(pool.share("other"), 5.0))
    await asyncio.sleep(0)
    share = pool.share("alice", limit=3, on_limit=lambda: blamed.append(1))
    assert await ask(share, 1.0, within_s=0.5) is None
    assert not blamed
    other.cancel()


# Which question goes first, and which is shed


@virtual_time
async def test_the_riskiest_question_of_a_tenant_goes_first_and_then_the_oldest() -> None:
    pool = ScoringPool(limit=1, most_waiting=100)
    share = pool.share("alice")
    order: list[tuple[Risk, int]] = []
    assert await share.acquire(within_s=1.0, risk=Risk.TURN)

    async def question(risk: Risk, number: int) -> None:
        assert await share.acquire(within_s=60.0, risk=risk)
        order.append((risk, number))
        await asyncio.sleep(0.1)
        share.release()

    asked = [(risk, number) for number in range(2) for risk in Risk]
    random.Random(3).shuffle(asked)
    asked.sort(key=lambda one: one[1])  # the second of each risk is asked after all of the first
    tasks = [asyncio.create_task(question(*one)) for one in asked]
    await asyncio.sleep(0.01)
    share.release()
    await asyncio.gather(*tasks)
    assert order == [(risk, number) for risk in sorted(Risk, reverse=True) for number in range(2)]


@virtual_time
async def test_what_is_shed_is_the_least_risky_work_of_the_tenant_that_asks_most() -> None:
    pool = ScoringPool(limit=1, most_waiting=12)
    noisy, quiet = pool.share("noisy"), pool.share("quiet")
    assert await noisy.acquire(within_s=1.0, risk=Risk.TURN)
    ended: dict[tuple[str, Risk, int], bool] = {}

    async def question(share: PoolShare, risk: Risk, number: int) -> None:
        ended[share.tenant, risk, number] = await share.acquire(within_s=100.0, risk=risk)

    waiting = [asyncio.create_task(question(noisy, risk, n)) for n in range(2) for risk in sorted(Risk)[3:]]
    await asyncio.sleep(0.01)
    assert not ended, "as many as may wait"
    waiting += [asyncio.create_task(question(quiet, Risk.BACKGROUND, n)) for n in range(3)]
    await asyncio.sleep(0.01)
    assert ended == {
        ("noisy", Risk.REVIEW, 1): False,
        ("noisy", Risk.REVIEW, 0): False,
        ("noisy", Risk.TURN, 1): False,
    }
    for task in waiting:
        task.cancel()


@virtual_time
async def test_the_gate_of_an_irreversible_tool_is_never_shed() -> None:
    pool = ScoringPool(limit=1, most_waiting=4)
    share = pool.share("alice")
    assert await share.acquire(within_s=1.0, risk=Risk.TURN)
    gates = [asyncio.create_task(ask(share, 0.1, Risk.IRREVERSIBLE, within_s=30.0)) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert await ask(share, 0.1, Risk.TOOL, within_s=30.0) is None, "not even for others of its own kind"
    await asyncio.sleep(5.0)
    share.release()
    assert all(wait is not None for wait in await asyncio.gather(*gates))
    late = asyncio.create_task(ask(share, 5.0))
    await asyncio.sleep(0.1)
    assert await ask(share, 0.1, Risk.IRREVERSIBLE, within_s=1.0) is None
    figures = pool.figures()
    assert sum(figures.timed_out.values()) == 1
    assert {risk for _, risk, _ in figures.shed} == {Risk.TOOL}
    late.cancel()


@virtual_time
async def test_tool_calls_have_places_that_turns_of_the_same_noisy_tenant_may_not_take() -> None:
    pool = ScoringPool(limit=64)
    noisy = pool.share("noisy")
    storm = asyncio.create_task(noise(noisy, 200, lambda: 2.0))
    await asyncio.sleep(0.1)
    assert await asyncio.gather(*(ask(noisy, 1.0, Risk.TOOL) for _ in range(4))) == [0.0] * 4
    storm.cancel()


@virtual_time
async def test_a_program_that_asks_again_and_again_at_once_leaves_the_loop_to_others() -> None:
    pool = ScoringPool(limit=1, most_waiting=0)
    share = pool.share("alice")
    assert await share.acquire(within_s=1.0, risk=Risk.TURN)
    others = asyncio.create_task(asyncio.sleep(0))
    for _ in range(5):
        assert not await share.acquire(within_s=1.0, risk=Risk.TURN)
    assert others.done()


# Through the engine


def supervisor(llm: ScriptedLLM, share: PoolShare, **config: object) -> Supervisor:
    made = {"policies": ["Never confirm a refund."], "tiered_scoring_enabled": False, "semantic_review_timeout_s": 2.0}
    return Supervisor(MirrorConfig(llm=llm, **(made | config)), limiter=share)  # type: ignore[arg-type]


@virtual_time
async def test_what_is_shed_says_so_in_its_verdict_and_in_coverage() -> None:
    pool = ScoringPool(limit=1, most_waiting=1)
    call = supervisor(ScriptedLLM(delay_s=1.0), pool.share("alice")).call(SupervisorContext(call_id="c"))
    verdicts = await asyncio.gather(*(call.review_turn(customer_text="", primary_text=f"turn {n}") for n in range(4)))
    assert Counter(verdict.state for verdict in verdicts) == {JudgingState.JUDGED: 1, JudgingState.SHED: 3}
    assert call.coverage == 1 / 4
    (tool,) = await call.gate_tools([ToolCallIntent("t", "look_up", {"id": 5})], customer_text="")
    assert (tool.state, tool.allow) == (JudgingState.JUDGED, True)


@virtual_time
async def test_a_reversible_tool_that_is_shed_is_allowed_and_says_why() -> None:
    share = ScoringPool(limit=0).share("alice")
    call = supervisor(ScriptedLLM(), share, tool_gate_timeout_ms=500).call(SupervisorContext(call_id="c"))
    (tool,) = await call.gate_tools([ToolCallIntent("t", "look_up", {"id": 5})], customer_text="")
    assert (tool.state, tool.allow) == (JudgingState.SHED, True)
    assert "too many questions" in tool.reason


@virtual_time
async def test_each_question_says_what_hangs_on_it() -> None:
    class Asked:
        def __init__(self) -> None:
            self.risks: list[Risk] = []

        async def acquire(self, *, within_s: float, risk: Risk) -> bool:
            self.risks.append(risk)
            return True

        def release(self) -> None:
            pass

    async def asked(mode: str = "live", risk: Risk | None = None) -> list[Risk]:
        share = Asked()
        llm = ScriptedLLM(turn=lambda _: dict(CLEAN))
        made = supervisor(llm, share, mode=mode, streaming_mode=True)  # type: ignore[arg-type]
        call = made.call(SupervisorContext(call_id="c"))
        irreversible = ToolCallIntent("2", "charge_card", {})
        with asking(risk or risk_here()):
            verdict = await call.review_turn(customer_text="Hi", primary_text="Your parcel is on its way.")
        await call.gate_tools([ToolCallIntent("1", "look_up", {})], customer_text="Hi")
        await call.gate_tools([ToolCallIntent("3", "look_up", {}), irreversible], customer_text="Hi")
        await call.correct(call.payload(customer_text="Hi", agent_text="Refunded."), verdict)
        await call.review_stream_delta(customer_text="And now?", delta="It is with the courier. Nothing")
        await call.flush_stream(customer_text="And now?")
        return share.risks

    both_of_a_correction = [Risk.CORRECTION] * 2
    streamed = [Risk.CLAUSE, Risk.TURN]
    assert await asked() == [Risk.TURN, Risk.TOOL, Risk.IRREVERSIBLE, *both_of_a_correction, *streamed]
    assert (await asked(risk=Risk.REVIEW))[0] is Risk.REVIEW
    assert Counter(await asked(mode="shadow")) == {Risk.SHADOW: 6, Risk.IRREVERSIBLE: 1}


# Its insides


@virtual_time
async def test_figures_tell_classes_of_tenants_apart_and_no_tenant() -> None:
    pool = ScoringPool(limit=16)
    noisy, quiet = pool.share("noisy"), pool.share("quiet")
    storm = [asyncio.create_task(ask(noisy, 1.0, within_s=0.5)) for _ in range(30)]
    await asyncio.sleep(0.1)
    waits = await asyncio.gather(*(ask(quiet, 0.1) for _ in range(2)))
    assert waits == [0.0, 0.0]
    await asyncio.gather(*storm)
    figures = pool.figures()
    assert (figures.in_flight, figures.waiting, figures.tenants) == (0, 0, 0)
    assert sum(figures.placed.values()) == 16
    assert figures.placed["within_share", Risk.TURN] == 16
    assert figures.shed == {("over_share", Risk.TURN, "no_place"): 16}
    assert figures.waits["within_share"][0] == 16
    assert sum(figures.waits["over_share"]) == 0


@virtual_time
async def test_a_share_is_the_same_while_somebody_has_it_and_forgotten_afterwards() -> None:
    pool = ScoringPool(limit=4)
    share = pool.share("alice", limit=1)
    assert pool.share("alice", limit=2) is share
    running = asyncio.create_task(ask(share, 1.0))
    await asyncio.sleep(0)
    del share
    assert pool.share("alice", limit=2).in_flight == 1
    await running
    del running
    await asyncio.sleep(0)
    assert not pool._active
    assert not dict(pool._shares)


@virtual_time
async def test_the_order_of_tenants_does_not_grow_while_many_wait() -> None:
    pool = ScoringPool(limit=8, most_waiting=10_000)
    storms = [asyncio.create_task(noise(pool.share(f"t{n}"), 50, lambda: 0.01)) for n in range(4)]
    await asyncio.sleep(15.0)
    assert pool._given > 5_000
    assert len(pool._next) <= STALE_PER_TENANT * 12 + 1
    for storm in storms:
        storm.cancel()
    await asyncio.gather(*storms, return_exceptions=True)
    figures = pool.figures()
    assert (figures.in_flight, figures.waiting, figures.tenants) == (0, 0, 0)


def test_loops_of_several_threads_share_the_places() -> None:
    pool = ScoringPool(limit=5, most_waiting=2_000)
    together, most = Counter[str](), 0
    counting = threading.Lock()

    async def many(tenant: str) -> int:
        share = pool.share(tenant)

        async def one() -> bool:
            nonlocal most
            if not await share.acquire(within_s=30.0, risk=Risk.TURN):
                return False
            with counting:
                together["now"] += 1
                most = max(most, together["now"])
            await asyncio.sleep(0)
            with counting:
                together["now"] -= 1
            share.release()
            return True

        return sum(await asyncio.gather(*(one() for _ in range(300))))

    answered: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answered.append(asyncio.run(many(f"tenant {n % 2}")))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answered == [300] * 4
    assert most <= 5
    assert pool.figures().in_flight == 0


def test_a_loop_that_was_closed_keeps_no_place() -> None:
    pool = ScoringPool(limit=1)
    share = pool.share("alice")
    gone = asyncio.new_event_loop()

    async def abandoned() -> None:
        assert await share.acquire(within_s=1.0, risk=Risk.TURN)
        question = pool._ask(share, Risk.TURN, asyncio.get_running_loop())
        assert question is not None

    gone.run_until_complete(abandoned())
    gone.close()
    share.release()
    figures = pool.figures()
    assert (figures.in_flight, figures.waiting) == (0, 0)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="limit: give the number"):
        ScoringPool(limit=-1)
