"""The API and calls that run: it is asked in one process, the calls are in another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from mirror_saas.ids import uuid7
from supervision.plivo.simulator import SimulatedCall
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded, server_start
from tests.e2e.test_supervised_call import BAD, CORRECTION, judge_refunds, make, simulate
from tests.factories import Tenancy, tenancy_create
from tests.standins.llm import LLMStandIn
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)

FORMER = "Never confirm a refund."
LATTER = "Never promise a rocket to the moon."


@pytest.fixture(scope="module")
def web(
    database_urls: Any, redis_url: str, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorServer]:
    """A process that has the API and no calls."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
    }
    server = server_start(environment, tmp_path_factory.mktemp("web") / "home", "--only", "web")
    yield server
    server.stop()
    assert "Traceback" not in (said := server.log.read_text()), said[-6000:]


@dataclass
class Program:
    """Asks the API with a tenant's key."""

    session: aiohttp.ClientSession
    url: str
    tenancy: Tenancy

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent["Authorization"] = f"Bearer {self.tenancy.api_key}"
        async with self.session.request(method, f"{self.url}/api/v1{path}", json=body, headers=sent) as answer:
            return answer.status, await answer.json()

    async def calls(self, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """The tenant's calls, the newest first, as soon as the record has what is waited for."""
        async with asyncio.timeout(20):
            while True:
                status, body = await self.ask("GET", "/calls")
                assert status == 200, body
                if enough(body["items"]):
                    items: list[Any] = body["items"]
                    return items
                await asyncio.sleep(0.05)  # another process writes them; there is nothing here to wait on

    async def turns(self, call_id: str, enough: Callable[[Any], bool]) -> None:
        """Wait until a call's only turn is recorded as a test wants it."""
        async with asyncio.timeout(30):
            while True:
                status, body = await self.ask("GET", f"/calls/{call_id}/turns")
                assert status == 200, body
                if body["items"] and enough(body["items"][0]):
                    return
                await asyncio.sleep(0.05)  # as above


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as made:
        yield made


@pytest.fixture
async def llm() -> AsyncIterator[LLMStandIn]:
    async with LLMStandIn() as stand_in:
        judge_refunds(stand_in)
        yield stand_in


async def test_a_running_call_keeps_its_version_and_the_next_one_gets_what_was_published(
    mirror: MirrorServer,
    web: MirrorServer,
    new_tenancy: TenancyMaker,
    llm: LLMStandIn,
    session: aiohttp.ClientSession,
) -> None:
    arrived: asyncio.Queue[AgentCall] = asyncio.Queue()

    async def script(call: AgentCall) -> None:
        await call.hello()
        arrived.put_nowait(call)

    async def judged(call: AgentCall, turn_id: str) -> None:
        """Report a turn and wait for its verdict."""
        await call.send("mirror.turn", turn_id=turn_id, customer_text="", text=f"This is turn {turn_id}, my friend.")
        assert (await call.wait("mirror.verdict", turn_id=turn_id))["state"] == "judged"

    async with agent(script) as made:
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url, rules=[FORMER])
        program = Program(session, web.http, tenancy)
        url, policy = tenancy.stream_url(mirror.ws), f"/policies/{tenancy.policy.id}"

        async def later(call: SimulatedCall) -> None:
            latter = await arrived.get()
            [ready] = latter.of("mirror.ready")
            assert ready["policy"] == {"id": str(tenancy.policy.id), "version": 2}
            await judged(latter, "late-1")

        async def during(call: SimulatedCall) -> None:
            former = await arrived.get()
            assert former.of("mirror.ready")[0]["policy"]["version"] == 1
            await judged(former, "early-1")
            body = {"rules": [{"text": LATTER}], "llm_credential_id": str(tenancy.credential.id)}
            status, draft = await program.ask("POST", f"{policy}/versions", body)
            assert status == 201, draft
            status, published = await program.ask("POST", f"{policy}/versions/2/publish", If_Match=draft["etag"])
            assert (status, published["status"]) == (200, "live")
            # At once, not only within the second that a new call may take to see it.
            await simulate(url, later)
            await judged(former, "early-2")

        await simulate(url, during)
        newest, oldest = await program.calls(lambda items: [each["state"] for each in items] == ["ended", "ended"])
    assert (newest["policy_version"], oldest["policy_version"]) == (2, 1)
    assert (newest["coverage_state"], oldest["coverage_state"]) == ("full", "full")
    asked = {
        turn: {rule for rule in (FORMER, LATTER) if rule in request.question.system}
        for request in llm.requests
        if request.question is not None
        for turn in ("early-1", "early-2", "late-1")
        if f"turn {turn}," in request.question.agent_text
    }
    assert asked == {"early-1": {FORMER}, "early-2": {FORMER}, "late-1": {LATTER}}


async def test_a_turn_that_a_program_reports_is_cut_and_corrected_for_an_agent_that_knows_nothing_of_mirror(
    mirror: MirrorServer,
    web: MirrorServer,
    new_tenancy: TenancyMaker,
    llm: LLMStandIn,
    session: aiohttp.ClientSession,
) -> None:
    # Without the innocent word that would be spared: what is wrong is at Plivo already.
    bad = BAD.removeprefix("Sure. ")
    speech = say(bad)
    answers: dict[str, tuple[int, Any]] = {}
    arrived: asyncio.Queue[AgentCall] = asyncio.Queue()

    async def script(call: AgentCall) -> None:
        await call.wait("start")
        arrived.put_nowait(call)

    llm.behave(delay_s=0.3)
    async with agent(script) as made:
        tenancy = await make(new_tenancy, upstream_url=made.url, llm_base_url=llm.base_url)
        stranger = await asyncio.to_thread(tenancy_create, owner="charlie")
        program, foreign = Program(session, web.http, tenancy), Program(session, web.http, stranger)
        turn = {"turn_id": "t1", "customer_text": "Give me my money back.", "text": bad}

        async def during(call: SimulatedCall) -> None:
            [live] = await program.calls(lambda items: [each["state"] for each in items] == ["live"])
            path = f"/calls/{live['id']}/turns"
            speaking = await arrived.get()
            answers["stranger"] = await foreign.ask("POST", path, turn)
            answers["nobody"] = await foreign.ask("POST", f"/calls/{uuid7()}/turns", turn)
            answers["reported"] = await program.ask("POST", path, turn)
            await speaking.speak(speech)
            answers["waited"] = await program.ask("POST", path, {**turn, "wait_ms": 10_000})
            await call.wait_for(lambda record: bool(record.of("clearAudio")), 20)
            await program.turns(
                live["id"], lambda turn: [each["outcome"] for each in turn["interventions"]] == ["completed"]
            )
            answers["live"] = await program.ask("GET", f"/calls/{live['id']}")

        record = await simulate(tenancy.stream_url(mirror.ws), during)
        rows = await recorded(tenancy)
        answers["late"] = await program.ask("POST", f"/calls/{rows.call.id}/turns", {**turn, "turn_id": "t2"})

    # Of the stranger's, a call of somebody else and one that never was are the same.
    assert [answers[who][0] for who in ("stranger", "nobody")] == [404, 404]
    assert answers["stranger"][1]["detail"] == answers["nobody"][1]["detail"]
    assert answers["reported"] == (202, {"turn_id": "t1", "verdict": None, "tools": []})
    status, waited = answers["waited"]
    assert (status, waited["verdict"]["intervene"], waited["verdict"]["acted"]) == (200, True, True)
    assert answers["live"][1]["state"] == "live"
    assert answers["late"][0] == 409
    # The caller heard the beginning of the bad turn at most, and then all of the correction.
    assert record.heard.find(speech) is None
    [cut, *_] = record.of("clearAudio")
    assert record.heard.since(cut.t).seconds >= len(say(CORRECTION)) / 8000
    assert not [event for event in made.calls[0].events if event["event"].startswith("mirror.")]
    [intervention], [detail] = rows.interventions, rows.turns
    assert intervention.correction_text == CORRECTION
    assert intervention.silence_proof in ("cleared", "fence")
    assert intervention.heard_ms < 2_000
    assert detail.verdict.state == "judged"
    assert (rows.call.hello_at_ms, rows.call.coverage_state) == (None, "full")
