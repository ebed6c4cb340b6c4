"""The circuit breaker: pure, with a clock of the test's; then in front of a real endpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from supervision.engine.llm.breaker import (
    FAILURES,
    MOST_OPEN_S,
    MOST_REST_S,
    OPEN_S,
    WINDOW_S,
    BreakerOpen,
    BreakerState,
    CircuitBreaker,
)
from supervision.engine.llm.openai import OpenAIClient, OpenAIPool
from supervision.engine.llm.protocol import LLMError, LLMRejected, LLMTimeout, LLMUnreachable
from tests.standins.llm import LLMStandIn

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def fail(breaker: CircuitBreaker, times: int = FAILURES) -> None:
    for _ in range(times):
        breaker.failed(breaker.admit(), "it answered HTTP 500")


def test_it_opens_after_failures_and_says_why_and_until_when(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, FAILURES - 1)
    assert breaker.state is CLOSED
    fail(breaker, 1)
    assert breaker.state is OPEN
    clock.now += 2.0
    with pytest.raises(BreakerOpen) as refused:
        breaker.admit()
    assert str(refused.value) == (
        "the model's endpoint was not asked: 5 of the last 5 questions failed (it answered HTTP 500); it is asked again"
        " in 3 s"
    )
    assert refused.value.retry_after_s == OPEN_S - 2.0
    assert (breaker.counts.opened, breaker.counts.refused) == (1, 1)


def test_it_stays_closed_while_most_questions_are_answered(breaker: CircuitBreaker) -> None:
    for _ in range(20):
        breaker.answered(breaker.admit())
        breaker.answered(breaker.admit())
        fail(breaker, 1)
    assert breaker.state is CLOSED


def test_failures_of_long_ago_do_not_count(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(20):
        fail(breaker, 1)
        clock.now += WINDOW_S / 3
    assert breaker.state is CLOSED


def test_one_probe_at_a_time_and_two_that_are_answered_close_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += OPEN_S
    assert breaker.state is HALF_OPEN
    assert breaker.is_ready
    first = breaker.admit()
    assert not breaker.is_ready
    with pytest.raises(BreakerOpen, match="it is being tried again"):
        breaker.admit()
    breaker.answered(first)
    assert breaker.state is HALF_OPEN
    breaker.answered(breaker.admit())
    assert breaker.state is CLOSED
    assert breaker.why == ""
    assert breaker.counts.probes_answered == 2


def test_a_probe_that_fails_opens_it_for_twice_as_long(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    open_s = OPEN_S
    for _ in range(6):
        clock.now += open_s
        assert breaker.state is HALF_OPEN
        fail(breaker, 1)
        open_s = min(2 * open_s, MOST_OPEN_S)
        clock.now += open_s - 0.01
        assert breaker.state is OPEN
        clock.now += 0.01 - open_s
    clock.now += open_s
    for _ in range(2):
        breaker.answered(breaker.admit())
    fail(breaker)
    clock.now += OPEN_S
    assert breaker.state is HALF_OPEN, "what was long ago is forgotten once it was closed"


def test_a_probe_that_was_given_up_makes_room_for_another(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += OPEN_S
    breaker.dropped(breaker.admit())
    assert breaker.state is HALF_OPEN
    breaker.answered(breaker.admit())


def test_answers_from_before_it_opened_change_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    early = [breaker.admit() for _ in range(8)]
    fail(breaker)
    for ticket in early:
        breaker.failed(ticket, "late")
    assert breaker.counts.opened == 1
    clock.now += OPEN_S
    probe = breaker.admit()
    breaker.answered(early[0])
    assert not breaker.is_ready, "the probe is still out"
    breaker.answered(probe)
    assert breaker.counts.probes_answered == 1


def test_a_rest_is_kept_at_once_and_everything_is_asked_after_it(breaker: CircuitBreaker, clock: Clock) -> None:
    ticket = breaker.admit()
    breaker.rest(7.0, "it answered HTTP 429")
    assert not breaker.is_current(ticket)
    assert breaker.state is OPEN
    assert breaker.rests_for_s == 7.0
    clock.now += 6.9
    with pytest.raises(BreakerOpen, match="HTTP 429"):
        breaker.admit()
    breaker.rest(0.05, "a shorter one does not shorten it")
    assert breaker.rests_for_s == pytest.approx(0.1)
    clock.now += 0.2
    assert breaker.rests_for_s is None
    assert breaker.state is CLOSED
    tickets = [breaker.admit() for _ in range(5)]
    assert not any(ticket.probe for ticket in tickets)


def test_nobody_can_make_it_rest_for_ever(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.rest(1e12, "it answered HTTP 429")
    assert breaker.rests_for_s == MOST_REST_S
    clock.now += MOST_REST_S
    breaker.admit()
    breaker.rest(0.0, "nothing")
    breaker.rest(-5.0, "nothing")
    assert breaker.state is CLOSED


# In front of an endpoint


async def ask(client: OpenAIClient, timeout_s: float = 4.0) -> str:
    answer = await client.complete_json(
        system="s", user="{}", schema_name="mirror_turn", schema={"type": "object"}, max_tokens=50, timeout_s=timeout_s
    )
    return answer.text


async def test_an_endpoint_that_fails_is_left_alone_and_found_again(clock: Clock) -> None:
    async with LLMStandIn() as llm:
        pool = OpenAIPool(clock=clock)
        client = pool.client(api_key="k", model="judge", base_url=llm.base_url)
        llm.behave(status=500)
        for _ in range(FAILURES):
            with pytest.raises(LLMRejected):
                await ask(client, 0.15)
        sent = len(llm.requests)
        with pytest.raises(BreakerOpen, match="HTTP 500"):
            await ask(client)
        assert len(llm.requests) == sent, "nothing was sent"
        assert pool.figures().breakers == {CLOSED: 0, OPEN: 1, HALF_OPEN: 0}

        clock.now += OPEN_S
        with pytest.raises(LLMRejected):
            await ask(client, 0.1)
        with pytest.raises(BreakerOpen):
            await ask(client)
        llm.behave()
        clock.now += 2 * OPEN_S
        assert await ask(client)
        assert await ask(client)
        figures = pool.figures()
        assert figures.breakers[CLOSED] == 1
        assert (figures.opened, figures.probes_answered, figures.probes_failed) == (2, 2, 1)
        assert figures.outcomes == {"failing": 6, "not_asked": 2, "answered": 2}
        await client.aclose()
        await pool.aclose()


async def test_one_tenants_wrong_key_is_nobody_elses(clock: Clock) -> None:
    async with LLMStandIn(api_key="right") as llm:
        pool = OpenAIPool(clock=clock)
        wrong = pool.client(api_key="wrong", model="judge", base_url=llm.base_url)
        right = pool.client(api_key="right", model="judge", base_url=llm.base_url)
        for _ in range(FAILURES):
            with pytest.raises(LLMRejected, match="401"):
                await ask(wrong)
        with pytest.raises(BreakerOpen, match="check the API key"):
            await ask(wrong)
        assert await ask(right)
        assert pool.client(api_key="right", model="judge", base_url=llm.base_url).breaker is right.breaker
        assert pool.client(api_key="right", model="another", base_url=llm.base_url).breaker is not right.breaker
        await pool.aclose()


async def test_a_retry_after_within_the_deadline_is_waited_for_and_a_longer_one_keeps_everybody_away(
    clock: Clock,
) -> None:
    async with LLMStandIn() as llm:
        pool = OpenAIPool()
        client = pool.client(api_key="k", model="judge", base_url=llm.base_url)
        other = pool.client(api_key="another", model="judge", base_url=llm.base_url)
        llm.once(status=429, headers={"Retry-After-Ms": "150"})
        loop = asyncio.get_running_loop()
        began = loop.time()
        first = asyncio.create_task(ask(client))
        async with asyncio.timeout(10):
            while client.is_ready:  # noqa: ASYNC110 - the refusal is on its way, and tells nobody else
                await asyncio.sleep(0)
        assert await ask(other), "another key is not limited"
        assert await ask(client), "one that has the time waits, too"
        assert await first
        assert 0.15 <= loop.time() - began < 3.0
        assert len([one for one in llm.requests if one.headers["Authorization"] == "Bearer k"]) == 3

        llm.once(status=429, headers={"Retry-After": "20"})
        with pytest.raises(LLMRejected, match="429"):
            await ask(client)
        sent = len(llm.requests)
        began = loop.time()
        with pytest.raises(BreakerOpen, match=r"429.*in 20 s"):
            await ask(client)
        assert loop.time() - began < 1.0, "what cannot be waited for is not"
        assert len(llm.requests) == sent
        await pool.aclose()


@pytest.mark.parametrize(
    ("headers", "rests_for_s"),
    [
        ({"Retry-After": "20"}, 20.0),
        ({"Retry-After": "20", "Retry-After-Ms": "30500"}, 30.5),
        ({"Retry-After": "Mon, 23 Nov 2026 08:00:40 GMT", "Date": "Mon, 23 Nov 2026 08:00:00 GMT"}, 40.0),
        ({"Retry-After": "Mon, 23 Nov 2026 07:00:00 GMT", "Date": "Mon, 23 Nov 2026 08:00:00 GMT"}, None),
        ({"Retry-After": "1e12"}, MOST_REST_S),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
async def test_how_long_an_endpoint_wants_to_be_left_alone_is_read_as_it_may_be_written(
    clock: Clock, headers: dict[str, str], rests_for_s: float | None
) -> None:
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="judge", base_url=llm.base_url, clock=clock)
        llm.behave(status=429, headers=headers)
        with pytest.raises(LLMRejected):
            await ask(client, 0.15)
        assert client.breaker.rests_for_s == rests_for_s
        await client.aclose()


async def test_questions_that_are_not_answered_in_time_open_it_however_they_are_given_up() -> None:
    async with LLMStandIn() as llm:
        llm.behave(hang=True)
        client = OpenAIClient(api_key="k", model="judge", base_url=llm.base_url)
        by_itself = [ask(client, 0.5) for _ in range(2)]
        by_others = [asyncio.wait_for(ask(client, 0.5), 0.5) for _ in range(2)]
        ended = await asyncio.gather(*by_itself, *by_others, return_exceptions=True)
        assert [type(error) for error in ended[:2]] == [LLMTimeout] * 2
        assert all(isinstance(error, TimeoutError | LLMTimeout) for error in ended)
        for _ in range(6):
            given_up = asyncio.create_task(ask(client, 30.0))
            await asyncio.sleep(0.01)
            given_up.cancel()
            await asyncio.wait({given_up})
            with pytest.raises(LLMTimeout):
                await ask(client, 0.01)
        assert client.breaker.state is CLOSED, "a change of mind, or too little time, says nothing about the endpoint"
        with pytest.raises(LLMError):
            await ask(client, 0.5)
        assert client.breaker.state is OPEN
        llm.release()
        await client.aclose()


async def test_an_endpoint_that_is_not_there_opens_it() -> None:
    client = OpenAIClient(api_key="k", model="judge", base_url="http://127.0.0.1:9/v1")
    for _ in range(FAILURES):
        with pytest.raises(LLMUnreachable):
            await ask(client, 0.15)
    with pytest.raises(BreakerOpen, match="cannot be reached"):
        await ask(client)
    await client.aclose()
