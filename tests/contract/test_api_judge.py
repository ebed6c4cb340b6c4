"""`/review`, `/tool-gate` and `POST /calls/{id}/turns` through the real URLs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from mirror_saas.ids import uuid7
from supervision.engine.llm.protocol import LLMTimeout
from supervision.models import Call, PolicyVersion, UsageDay
from supervision.services import judging
from supervision.stream.mailbox import Mailbox
from supervision.stream.owners import CallKey, CallOwners
from tests.contract.test_api_calls import assert_problem
from tests.engine.llms import ScriptedLLM, decisions
from tests.factories import Tenancy, call_create

pytestmark = pytest.mark.django_db

VIOLATION = {"score": 0.95, "rule": "1", "reason": 'It says "refunded".', "correction": "Ask a colleague."}


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> ScriptedLLM:
    """The model that every policy of this test asks, on a judging loop of its own."""
    made = ScriptedLLM(turn=VIOLATION)
    asked: list[dict[str, Any]] = []

    class Pool:
        def __init__(self, **_: Any) -> None:
            pass

        def client(self, **settings: Any) -> ScriptedLLM:
            asked.append(settings)
            return made

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(judging, "OpenAIPool", Pool)
    monkeypatch.setattr(judging, "_made", None)
    made.settings = asked  # type: ignore[attr-defined]
    return made


def post(tenancy: Tenancy, path: str, body: Any) -> Any:
    client = Client(headers={"Authorization": f"Bearer {tenancy.api_key}"})
    return client.post(f"/api/v1{path}", data=body, content_type="application/json")


def review(tenancy: Tenancy, **fields: Any) -> Any:
    body = {"agent_id": str(tenancy.agent.id), "turn_id": "t1", "text": "I have refunded it.", **fields}
    return post(tenancy, "/review", body)


def gate(tenancy: Tenancy, **fields: Any) -> Any:
    body = {"agent_id": str(tenancy.agent.id), "id": "c1", "name": "charge_card", "args": {"amount": 5}, **fields}
    return post(tenancy, "/tool-gate", body)


# -- /review -------------------------------------------------------------------------------------------------------


def test_a_turn_is_judged_in_the_agents_live_policy_and_nothing_is_stored(tenant: Tenancy, llm: Any) -> None:
    response = review(tenant, customer_text="Money back!", history=[{"role": "agent", "text": "Hello."}])
    assert response.status_code == 200, response.content
    body = response.json()
    assert body.pop("latency_ms") >= 0
    assert body == {
        "turn_id": "t1",
        "state": "judged",
        "score": 0.95,
        "intervene": True,
        "acted": False,
        "withheld": None,
        "rule": "Never confirm a refund.",
        "reason": 'It says "refunded".',
        "threshold": 0.7,
        "correction": "Ask a colleague.",
        "tools": [],
        "policy": {"id": str(tenant.policy.id), "version": 1},
        "mode": "live",
    }
    [asked] = llm.asked
    assert asked.user["customer_text"] == "Money back!"
    assert asked.user["history"] == [{"role": "agent", "text": "Hello."}]
    assert llm.settings == [{"api_key": "llm-secret", "model": "judge-1", "base_url": "http://127.0.0.1:1/v1"}]
    with tenant.context():
        assert not Call.objects.exists()
        [day] = UsageDay.objects.all()
    assert (day.source, day.model, day.turns, day.judged, day.prompt_tokens) == ("api", "judge-1", 1, 1, 100)


def test_a_server_that_stops_closes_what_reviews_shared(tenant: Tenancy, llm: Any) -> None:
    assert review(tenant).status_code == 200
    made = judging._made
    assert made is not None
    judging.judging_close()
    assert llm.closed == 1
    judging.judging_close()
    assert review(tenant).status_code == 200, "a process that goes on all the same makes another"
    assert judging._made is not made


def test_tools_of_a_turn_get_a_verdict_each(tenant: Tenancy, llm: Any) -> None:
    llm.turn = {"score": 0.0, "rule": None, "reason": "", "correction": ""}
    llm.tools = lambda asked: decisions("c1", allow=False, reason="too much", instruction="Ask again.")
    call = {"id": "c1", "name": "charge_card", "args": '{"amount": 5}', "irreversible": True}
    body = review(tenant, tool_calls=[call]).json()
    [tool] = body["tools"]
    assert (tool["id"], tool["allow"], tool["code"]) == ("c1", False, "policy")
    assert body["intervene"] is True


def test_an_agent_in_shadow_mode_is_only_watched(tenant: Tenancy, llm: Any) -> None:
    with tenant.context():
        tenant.agent.mode = "shadow"
        tenant.agent.save(update_fields=["mode"])
    body = review(tenant).json()
    assert (body["mode"], body["withheld"], body["intervene"]) == ("shadow", "shadow", False)


def test_a_judge_that_fails_is_a_state_and_counted(tenant: Tenancy, llm: Any) -> None:
    llm.turn = LLMTimeout("no answer")
    body = review(tenant).json()
    assert body["state"] == "timed_out"
    assert (body["score"], body["intervene"]) == (None, False)
    assert body["reason"]
    with tenant.context():
        assert UsageDay.objects.get().timed_out == 1


def test_two_requests_are_judged_at_the_same_time(tenant: Tenancy, llm: Any) -> None:
    """One loop serves them, and neither waits for the other."""
    with tenant.context():
        judge = judging.judge_of_agent(tenant=tenant.tenant, agent_id=tenant.agent.id)
    together = threading.Barrier(2)

    def meet(asked: Any) -> dict[str, Any]:
        return dict(VIOLATION)

    llm.turn = meet
    both = asyncio.Event()
    arrived = 0

    async def meeting(asked: Any) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)

    complete = llm.complete_json

    async def complete_json(**question: Any) -> Any:
        await meeting(question)
        return await complete(**question)

    llm.complete_json = complete_json
    states: list[str] = []

    def ask() -> None:
        together.wait(10)
        payload = judging.TurnPayload("", "I have refunded it.", turn_id="t")
        states.append(judging.turn_review(judge, payload).state.value)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert states == ["judged", "judged"]


@pytest.mark.parametrize("ask", [review, gate])
def test_an_agent_without_a_policy_that_can_judge_is_a_conflict(tenant: Tenancy, llm: Any, ask: Any) -> None:
    with tenant.context():
        PolicyVersion.objects.update(status="retired")
    assert "publish" in assert_problem(ask(tenant), 409)["detail"]
    assert llm.asked == []


@pytest.mark.parametrize("ask", [review, gate])
def test_a_strangers_agent_and_a_missing_one_are_alike(tenant: Tenancy, stranger: Tenancy, llm: Any, ask: Any) -> None:
    answers = [assert_problem(ask(tenant, agent_id=str(agent_id)), 404) for agent_id in (stranger.agent.id, uuid7())]
    assert {**answers[0], "request_id": ""} == {**answers[1], "request_id": ""}
    assert llm.asked == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"agent_id": None}, "agent_id"),
        ({"turn_id": ""}, "turn_id"),
        ({"turn_id": " "}, "turn_id"),
        ({"text": 5}, "text"),
        ({"text": "x" * 32_001}, "text"),
        ({"text": "a\x00"}, "text"),
        ({"language": "?"}, "language"),
        ({"tool_calls": [{"id": "a", "name": ""}]}, "tool_calls.0.name"),
        ({"tool_calls": [{"id": "a", "name": "x"}] * 2}, "tool_calls"),
        ({"tool_calls": [{"id": "a", "name": "x"}] * 65}, "tool_calls"),
        ({"history": [{"role": "system", "text": "x"}]}, "history.0.role"),
        ({"history": [{"role": "agent", "text": "x"}] * 61}, "history"),
        ({"mode": "live"}, "mode"),
    ],
)
def test_a_bad_turn_names_its_field(tenant: Tenancy, llm: Any, fields: dict[str, Any], field: str) -> None:
    assert list(assert_problem(review(tenant, **fields), 422)["errors"]) == [field]
    assert llm.asked == []


# -- /tool-gate ----------------------------------------------------------------------------------------------------


def test_a_tool_call_is_judged(tenant: Tenancy, llm: Any) -> None:
    llm.tools = lambda asked: decisions("c1", allow=False, reason="too much", instruction="Ask again.")
    body = gate(tenant, customer_text="Pay it.", turn_id="t1").json()
    assert body.pop("latency_ms") >= 0
    assert body.pop("score") is not None
    assert body == {
        "id": "c1",
        "allow": False,
        "code": "policy",
        "reason": "too much",
        "instruction": "Ask again.",
        "stored_result": None,
        "valid_ms": 0,
        "state": "judged",
        "policy": {"id": str(tenant.policy.id), "version": 1},
        "mode": "live",
    }
    with tenant.context():
        day = UsageDay.objects.get()
    assert (day.turns, day.tool_decisions, day.tools_blocked, day.prompt_tokens) == (0, 1, 1, 100)
    llm.tools = lambda asked: decisions("c1")
    assert gate(tenant).json()["allow"] is True
    # Nothing is remembered, so the same order is no repeat.
    assert gate(tenant).json()["code"] == "ok"


def test_an_irreversible_call_that_cannot_be_judged_is_blocked(tenant: Tenancy, llm: Any) -> None:
    llm.tools = LLMTimeout("no answer")
    body = gate(tenant).json()
    assert (body["allow"], body["code"], body["state"]) == (False, "timeout", "timed_out")
    assert body["instruction"]


@pytest.mark.parametrize("args", ["{", "[]", [1], 5, None])
def test_arguments_that_are_no_object_are_blocked_and_not_guessed(tenant: Tenancy, llm: Any, args: Any) -> None:
    body = gate(tenant, args=args).json()
    assert (body["allow"], body["code"]) == (False, "bad_args")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": ""}, "id"),
        ({"name": "  "}, "name"),
        ({"irreversible": "maybe"}, "irreversible"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"customer_text": ["x"]}, "customer_text"),
    ],
)
def test_a_bad_tool_call_names_its_field(tenant: Tenancy, llm: Any, fields: dict[str, Any], field: str) -> None:
    assert list(assert_problem(gate(tenant, **fields), 422)["errors"]) == [field]


# -- a turn of a call that runs ------------------------------------------------------------------------------------


@pytest.fixture
def running(tenant: Tenancy, redis_url: str) -> Iterator[tuple[Call, list[dict[str, Any]], dict[str, Any]]]:
    """A live call that is heard for in another thread, as on another node; what it got, and what it answers."""
    call = call_create(tenant, state="live")
    got: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"taken": True, "verdict": None, "tools": []}
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def deliver(message: dict[str, Any]) -> dict[str, Any]:
        got.append(message)
        return answer

    async def open_() -> Mailbox:
        from redis.asyncio import Redis

        mailbox = Mailbox(redis_url)
        mailbox.open(tenant.id, call.id, deliver)
        async with asyncio.timeout(20), Redis.from_url(redis_url) as redis:
            from supervision.stream.mailbox import call_channel

            while not (await redis.pubsub_numsub(call_channel(tenant.id, call.id)))[0][1]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return mailbox

    mailbox = asyncio.run_coroutine_threadsafe(open_(), loop).result(30)
    yield call, got, answer
    asyncio.run_coroutine_threadsafe(mailbox.aclose(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def report(tenancy: Tenancy, call_id: Any, **fields: Any) -> Any:
    return post(tenancy, f"/calls/{call_id}/turns", {"turn_id": "t1", "text": "Hello.", **fields})


def test_a_turn_reaches_the_call_and_is_answered_202_or_with_the_verdict(tenant: Tenancy, running: Any) -> None:
    call, got, answer = running
    response = report(tenant, call.id, customer_text="Hi")
    assert response.status_code == 202, response.content
    assert response.json() == {"turn_id": "t1", "verdict": None, "tools": []}
    assert got[0]["wait_ms"] == 0
    assert {name: got[0]["turn"][name] for name in ("turn_id", "customer_text", "text", "tool_calls")} == {
        "turn_id": "t1",
        "customer_text": "Hi",
        "text": "Hello.",
        "tool_calls": [],
    }
    verdict = {
        "turn_id": "t1",
        "state": "judged",
        "score": 0.1,
        "intervene": False,
        "acted": False,
        "withheld": None,
        "rule": None,
        "reason": "",
        "latency_ms": 5,
    }
    answer["verdict"] = verdict
    response = report(tenant, call.id, wait_ms=1000)
    assert (response.status_code, response.json()["verdict"]) == (200, verdict)


@pytest.mark.parametrize(
    ("code", "status"),
    [("ended", 409), ("duplicate_turn", 409), ("not_recorded", 503), ("moved", 503), ("bad_field", 422)],
)
def test_what_the_call_refuses_is_said(tenant: Tenancy, running: Any, code: str, status: int) -> None:
    call, _, answer = running
    answer.update({"taken": False, "code": code, "message": "text: at most 32000 characters"})
    body = assert_problem(report(tenant, call.id), status)
    assert list(body["errors"]) == (["text"] if status == 422 else [])


def test_another_tenant_does_not_reach_it(tenant: Tenancy, stranger: Tenancy, running: Any) -> None:
    call, got, _ = running
    answers = [assert_problem(report(stranger, call_id), 404) for call_id in (call.id, uuid7())]
    assert {**answers[0], "request_id": ""} == {**answers[1], "request_id": ""}
    assert got == []


def test_a_call_that_ended_is_409_and_one_that_nobody_has_503(tenant: Tenancy, redis_url: str) -> None:
    assert "ended" in assert_problem(report(tenant, call_create(tenant).id), 409)["detail"]
    response = report(tenant, call_create(tenant, state="live").id)
    assert_problem(response, 503)
    assert response.headers["Retry-After"] == "1"


def test_a_call_that_a_node_has_and_the_record_does_not_know_yet_is_503_for_its_tenant_alone(
    tenant: Tenancy, stranger: Tenancy, redis_url: str
) -> None:
    call_id = uuid7()

    async def claim() -> None:
        owners = CallOwners(redis_url, "node-1", answer_within_s=10.0)
        await owners.claim(CallKey(tenant.id, tenant.agent.id, str(uuid7())), call_id=call_id)
        await owners.aclose()

    assert_problem(report(tenant, call_id), 404)
    asyncio.run(claim())
    response = report(tenant, call_id)
    assert_problem(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert_problem(report(stranger, call_id), 404)


def test_a_bad_reported_turn_names_its_field(tenant: Tenancy, redis_url: str) -> None:
    call = call_create(tenant, state="live")
    for fields, field in (({"turn_id": " "}, "turn_id"), ({"wait_ms": 20_001}, "wait_ms"), ({"text": None}, "text")):
        assert list(assert_problem(report(tenant, call.id, **fields), 422)["errors"]) == [field]
