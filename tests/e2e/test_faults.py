"""Callers who hang up, agents that die, judges that hang, a database that stops, a Mirror that is killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from mirror_saas import embedded
from mirror_saas.ids import uuid7
from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall
from tenants.services.roles import roles_create
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import ROOT, CallRows, MirrorServer, TenancyMaker, recorded, server_start
from tests.recorder.calls import everything
from tests.standins.llm import LLMStandIn, words
from tests.support.servers import DatabaseUrls, Servers, _migrate
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)

BAD = "I have refunded the money to your card, and it will be there tomorrow morning."
CORRECTION = "I cannot refund that myself. Shall I connect you with a colleague?"
GOOD = "A colleague will take care of it. May I put you through?"
WIRE = PlivoSwitches(delay_s=0.05)

Script = Callable[[AgentCall], Awaitable[None]]
Caller = Callable[[SimulatedCall, "list[AgentCall]"], Awaitable[None]]


@dataclass
class Call:
    """A call that is over, as everybody saw it."""

    record: CallRecord
    rows: CallRows
    agents: list[AgentCall]

    @property
    def outcome(self) -> str:
        (intervention,) = self.rows.interventions
        return str(intervention.outcome)

    def seconds(self, kind: str) -> float:
        """When, since the call began, the timeline has the first event of this kind."""
        began = self.rows.timeline[0].at
        return next((event.at - began).total_seconds() for event in self.rows.timeline if event.kind == kind)


async def place(
    mirror: MirrorServer,
    new_tenancy: TenancyMaker,
    script: Script,
    caller: Caller,
    *,
    llm: Callable[[LLMStandIn], None] = lambda llm: None,
    hang_up: bool = True,
    **tenancy_fields: Any,
) -> Call:
    """One call of a tenant of its own; the caller hangs up when `caller` is over."""

    async def whole(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: made.calls, 20)
        await caller(call, made.calls)
        if hang_up:
            call.hang_up()

    async with LLMStandIn() as judge, agent(script) as made:
        judge.judge(words({"refunded": {"rule": 1, "correction": CORRECTION}}))
        judge.correct(lambda _: CORRECTION)
        llm(judge)
        fields = {"upstream_url": made.url, "llm_base_url": judge.base_url, **tenancy_fields}
        tenancy = await asyncio.to_thread(new_tenancy, **fields)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), whole, WIRE).run()
        rows = await recorded(tenancy)
        judge.release()
    numbers = [event.seq for event in rows.timeline]
    assert numbers == list(range(1, len(numbers) + 1))
    assert Counter(event.kind for event in rows.timeline)["call.ended"] == 1
    return Call(record, rows, made.calls)


def heard_of(speech: bytes, record: CallRecord) -> float:
    """How many seconds of this speech the caller heard first of all, before anything else."""
    pairs = zip(record.heard.audio, speech, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))) / 8_000


def phase(agents: list[AgentCall], name: str) -> bool:
    return any(event["phase"] == name for call in agents for event in call.of("mirror.intervention"))


async def bad_turn(call: AgentCall) -> None:
    await call.hello()
    await call.send("mirror.turn", turn_id="t1", customer_text="Give me my money back.", text=BAD)
    await call.speak(say(BAD))


# The caller hangs up


async def test_a_hang_up_ends_an_intervention_at_once_wherever_it_is(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    closed: dict[str, float] = {}
    waits: list[asyncio.Task[None]] = []

    def at(moment: str) -> Caller:
        async def caller(call: SimulatedCall, agents: list[AgentCall]) -> None:
            if moment == "clear":
                await call.wait_for(lambda record: record.of("clearAudio"), 20)
            elif moment == "before":
                await call.wait_for(lambda record: record.heard.seconds > 0, 20)
            else:
                await call.wait_for(lambda _: phase(agents, moment), 20)
            call.hang_up()
            # A task of its own: this script ends with the caller's socket, which may close before the agent's.
            waits.append(asyncio.create_task(agent_closes(moment, agents[0])))

        return caller

    async def agent_closes(moment: str, agent: AgentCall) -> None:
        began = asyncio.get_running_loop().time()
        await agent.connection.wait_closed()
        closed[moment] = asyncio.get_running_loop().time() - began

    moments = ("before", "clear", "buffer", "correction", "completed")
    say(BAD)
    calls = dict(
        zip(
            moments,
            await asyncio.gather(*(place(mirror, new_tenancy, bad_turn, at(moment)) for moment in moments)),
            strict=True,
        )
    )
    await asyncio.gather(*waits)
    for moment, call in calls.items():
        assert (call.record.outcome, call.record.ended_by) == ("completed", "caller"), moment
        assert (call.rows.call.outcome, call.rows.call.ended_by) == ("completed", "caller"), moment
        assert call.agents[0].closed == 1000, moment
        assert closed[moment] < 1.0, moment
        assert [turn.verdict.state for turn in call.rows.turns] == ["judged"], moment
        # What is recorded is what may have been heard at most: never less than it was, and not much more.
        heard_ms = heard_of(say(BAD), call.record) * 1000
        assert -100 < call.rows.turns[0].turn.heard_ms - heard_ms < 800, moment
    assert [calls[moment].outcome for moment in ("clear", "buffer", "correction")] == ["caller_gone"] * 3
    assert calls["completed"].outcome == "completed"
    for moment in ("clear", "buffer", "correction"):
        ended = calls[moment].seconds("intervention.ended")
        assert ended - calls[moment].rows.call.duration_ms / 1000 < 1.0, moment


# The agent dies, or goes


async def test_an_agent_that_dies_or_goes_is_recorded_as_it_was(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    def leaves(when: str | None, code: int) -> Script:
        async def script(call: AgentCall) -> None:
            if when is not None:
                await bad_turn(call)
                await call.wait("mirror.intervention", phase=when)
            else:
                await call.hello()
            if code == 1006:
                call.connection.transport.abort()
            else:
                await call.connection.close(code)

        return script

    async def waits(call: SimulatedCall, agents: list[AgentCall]) -> None:
        await call.wait_for(lambda _: False, 30)

    say(BAD)
    died, died_during, died_after, refused, went, went_during = await asyncio.gather(
        place(mirror, new_tenancy, leaves(None, 1006), waits),
        place(mirror, new_tenancy, leaves("buffer", 1006), waits),
        place(mirror, new_tenancy, leaves("completed", 1011), waits),
        place(mirror, new_tenancy, leaves(None, 4000), waits),
        place(mirror, new_tenancy, leaves(None, 1000), waits),
        place(mirror, new_tenancy, leaves("started", 1000), waits),
    )
    for call in (died, died_during, died_after, refused):
        assert (call.record.outcome, call.record.close_code) == ("failed", 1011)
        assert (call.rows.call.outcome, call.rows.call.ended_by) == ("failed", "agent")
    assert "1006" in died.rows.call.reason
    assert "1011" in died_after.rows.call.reason
    assert "4000" in refused.rows.call.reason
    assert died_during.outcome == "failed"
    assert died_after.outcome == "completed"
    for call in (went, went_during):
        assert (call.record.outcome, call.record.ended_by, call.record.close_code) == ("completed", "agent", 1000)
        assert (call.rows.call.outcome, call.rows.call.ended_by) == ("completed", "agent")
    # The agent was gone, and the correction was heard to its end.
    assert went_during.outcome == "completed"
    (intervention,) = went_during.rows.interventions
    assert intervention.correction_text == CORRECTION
    assert went_during.record.heard.seconds > 4.0


@pytest.mark.parametrize("port", ["closed", "not a websocket"])
async def test_an_agent_that_cannot_be_reached_fails_the_call(
    mirror: MirrorServer, new_tenancy: TenancyMaker, port: str
) -> None:
    upstream = "ws://127.0.0.1:1/" if port == "closed" else f"{mirror.ws}/livez"
    tenancy = await asyncio.to_thread(new_tenancy, upstream_url=upstream)
    record = await SimulatedCall(tenancy.stream_url(mirror.ws)).run()
    rows = await recorded(tenancy)
    assert (record.outcome, record.close_code) == ("failed", 1011)
    assert (rows.call.outcome, rows.call.ended_by) == ("failed", "agent")
    assert rows.call.reason.startswith("the agent could not be reached:")


# The judge fails


async def test_a_judge_that_fails_in_any_way_leaves_the_call_alone(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    tool = {"id": "c1", "name": "charge_card", "args": {"amount": 99}}

    async def script(call: AgentCall) -> None:
        await call.hello()
        await call.send("mirror.turn", turn_id="t1", customer_text="Pay.", text=BAD, tool_calls=[tool])
        await call.speak(say(GOOD))
        await call.send("checkpoint", streamId=call.stream_id, name="end")
        verdict = await call.wait("mirror.tool_verdict", id="c1")
        assert verdict["allow"] is False
        assert verdict["instruction"]
        await call.wait("mirror.verdict", turn_id="t1")

    async def caller(call: SimulatedCall, agents: list[AgentCall]) -> None:
        await call.wait_for(lambda record: record.played("end") and agents[0].of("mirror.verdict"), 30)

    def behaves(**behaviour: Any) -> Callable[[LLMStandIn], None]:
        return lambda llm: llm.behave(**behaviour)

    faults = {
        "hangs": (behaves(hang=True), "timed_out", "timeout"),
        "drips": (behaves(drip_bytes=1, drip_every_s=0.1), "timed_out", "timeout"),
        "errors": (behaves(status=500), "failed", "failed"),
        "refuses the key": (behaves(status=401), "failed", "failed"),
        "garbage": (behaves(content="I would rather not say."), "failed", "failed"),
        "not http": (behaves(body=b"\x00\xff{"), "failed", "failed"),
        "cut off": (behaves(close_after=20), "failed", "failed"),
        "85": (behaves(content='{"score": 85, "rule": 1, "reason": "", "correction": ""}'), "failed", "failed"),
    }
    say(GOOD)
    config = {"semantic_review_timeout_s": 3.0, "tool_gate_timeout_ms": 2500}
    calls = await asyncio.gather(
        *(place(mirror, new_tenancy, script, caller, llm=llm, config=config) for llm, _, _ in faults.values())
    )
    for (fault, (_, state, code)), call in zip(faults.items(), calls, strict=True):
        assert call.record.outcome == "completed", fault
        assert call.record.heard.find(say(GOOD)), fault
        (turn,) = call.rows.turns
        assert turn.verdict.state == state, (fault, turn.verdict.detail)
        (decision,) = call.rows.tool_decisions
        assert (decision.allow, decision.code) == (False, code), fault
        assert call.rows.call.coverage_state == "partial", fault
        assert call.rows.interventions == [], fault
        if state == "timed_out":
            assert 2900 <= turn.verdict.latency_ms <= 3900, fault


# A Mirror of its own, over a PostgreSQL that is stopped


@dataclass
class Private:
    """Servers that only the tests below use, so that they may be stopped and killed."""

    home: Path
    urls: DatabaseUrls
    environment: dict[str, str]
    mirror: MirrorServer

    def restart(self) -> None:
        self.mirror = server_start(self.environment, self.home / "mirror")

    def tenancy(self, upstream_url: str, llm_base_url: str) -> SimpleNamespace:
        """A tenant with an agent, made from the command line: Django in this process knows another database."""
        tenant_id = uuid7()
        slug = f"alice-{tenant_id.hex[-8:]}"
        with psycopg.connect(self.urls.app) as connection:
            connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant_id)])
            connection.execute(
                "INSERT INTO tenants_tenant (id, slug, name, created_at) VALUES (%s, %s, 'Alice', now())",
                [tenant_id, slug],
            )
        rules = self.home / "rules.txt"
        rules.write_text("Never confirm a refund.\n")
        options = ["--tenant", slug, "--name", "Agent", "--upstream", upstream_url, "--policies", str(rules)]
        model = ["--llm-base-url", llm_base_url, "--llm-model", "judge-1", "--llm-api-key", "key", "--json"]
        made = subprocess.run(
            [sys.executable, "manage.py", "create_agent", *options, *model],
            cwd=ROOT,
            env={**self.mirror.environment},
            capture_output=True,
            check=True,
            text=True,
        )
        return SimpleNamespace(id=tenant_id, slug=slug, **json.loads(made.stdout))

    async def rows(
        self, tenancy: SimpleNamespace, calls: int = 1, timeout_s: float = 30
    ) -> dict[str, list[dict[str, Any]]]:
        """Everything of the tenant's calls, once so many have ended."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = await asyncio.to_thread(everything, self.urls.app, tenancy)
                ended = [call for call in found["supervision_call"] if call["state"] == "ended"]
                if len(ended) >= calls:
                    return found
                await asyncio.sleep(0.1)  # another process writes them; there is nothing here to wait on


@pytest.fixture(scope="module")
def private(redis_url: str) -> Iterator[Private]:
    home = Path(tempfile.mkdtemp(prefix="mirror-faults-"))
    servers = embedded.start(home)
    urls = Servers(servers.database_admin_url, servers.redis_url, home, None).urls("mirror")
    roles_create(admin_url=servers.database_admin_url, database="mirror")
    _migrate(urls)
    environment = {
        **os.environ,
        "DATABASE_URL": urls.app,
        "DATABASE_OWNER_URL": urls.owner,
        "REDIS_URL": redis_url,
    }
    made = Private(home, urls, environment, server_start(environment, home / "mirror"))
    yield made
    made.mirror.stop()
    said = made.mirror.log.read_text()
    embedded.stop(home)
    shutil.rmtree(home, ignore_errors=True)
    assert "Traceback" not in said, said[-6000:]


def check_whole(found: dict[str, list[dict[str, Any]]]) -> None:
    """Nothing lost and nothing doubled: the events of each call count on without a gap, and the tables agree."""
    for call in found["supervision_call"]:
        events = [event for event in found["supervision_callevent"] if event["call_id"] == call["id"]]
        numbers = sorted(event["seq"] for event in events)
        assert numbers == list(range(1, len(numbers) + 1))
        kinds = Counter(event["kind"] for event in events)
        assert (kinds["call.started"], kinds["call.ended"]) == (1, 1)
        for table, kind in (
            ("supervision_turn", "turn.reported"),
            ("supervision_tooldecision", "tool.decided"),
            ("supervision_intervention", "intervention.started"),
        ):
            assert len([row for row in found[table] if row["call_id"] == call["id"]]) == kinds[kind], table


async def test_calls_outlive_a_database_that_stops_and_their_record_is_whole_when_it_is_back(private: Private) -> None:
    down = asyncio.Event()

    async def script(call: AgentCall) -> None:
        await call.hello()
        if not down.is_set():
            await call.send("mirror.turn", turn_id="before", customer_text="", text=GOOD)
            await call.wait("mirror.verdict", turn_id="before")
            await down.wait()
        await call.send("mirror.turn", turn_id="bad", customer_text="Give me my money back.", text=BAD)
        await call.speak(say(BAD))
        await call.send("mirror.tool", id="c1", name="charge_card", args={"amount": 5})
        verdict = await call.wait("mirror.tool_verdict", id="c1")
        assert verdict["allow"] is True, verdict  # written down in the journal, which needs no PostgreSQL
        await call.send("mirror.tool_done", id="c1", ok=True, result={"receipt": 1})
        await call.wait("mirror.intervention", phase="completed")

    async def caller(call: SimulatedCall) -> None:
        def mine() -> list[AgentCall]:
            starts = ((one, one.of("start")) for one in made.calls)
            return [one for one, start in starts if start and start[0]["start"]["callId"] == call.record.call_id]

        await call.wait_for(lambda _: phase(mine(), "completed"), 60)
        call.hang_up()

    say(BAD)
    async with LLMStandIn() as llm, agent(script) as made:
        llm.judge(words({"refunded": {"rule": 1, "correction": CORRECTION}}))
        llm.correct(lambda _: CORRECTION)
        llm.behave(delay_s=0.3)
        tenancy = await asyncio.to_thread(private.tenancy, made.url, llm.base_url)
        url = tenancy.stream_url
        call = SimulatedCall(url, caller, WIRE)
        first = asyncio.create_task(call.run())
        await call.wait_for(lambda _: made.calls and made.calls[0].of("mirror.verdict"), 30)
        await asyncio.to_thread(embedded.stop, private.home)
        down.set()
        # A new call of an agent whose key was looked up before is served, an unknown key is refused as ever.
        second = asyncio.create_task(SimulatedCall(url, caller, WIRE).run())
        stranger = await SimulatedCall(url.rsplit("/", 1)[0] + "/sk_unknown").run()
        assert stranger.handshake_status == 403
        records = [await first, await second]
        await asyncio.to_thread(embedded.start, private.home)
        found = await private.rows(tenancy, calls=2)

    for record in records:
        assert (record.outcome, record.ended_by, record.close_code) == ("completed", "caller", 1000)
        assert record.heard.find(say(BAD)) is None
        assert record.heard.seconds > 4
    check_whole(found)
    assert {call["outcome"] for call in found["supervision_call"]} == {"completed"}
    refs = Counter(turn["ref"] for turn in found["supervision_turn"])
    assert refs == {"before": 1, "bad": 2}
    assert {row["outcome"] for row in found["supervision_intervention"]} == {"completed"}
    assert [(row["allow"], row["ok"]) for row in found["supervision_tooldecision"]] == [(True, True)] * 2


async def test_a_mirror_that_is_killed_leaves_a_call_that_is_closed_with_all_that_was_acknowledged(
    private: Private,
) -> None:
    async def script(call: AgentCall) -> None:
        await call.hello()
        await call.send("mirror.turn", turn_id="t1", customer_text="", text=GOOD)
        await call.wait("mirror.verdict", turn_id="t1")
        await call.send("mirror.tool", id="c1", name="charge_card", args={"amount": 5})
        verdict = await call.wait("mirror.tool_verdict", id="c1")
        assert verdict["allow"] is True
        private.mirror.process.send_signal(signal.SIGKILL)

    async with LLMStandIn() as llm, agent(script) as made:
        tenancy = await asyncio.to_thread(private.tenancy, made.url, llm.base_url)
        url = tenancy.stream_url
        record = await SimulatedCall(url).run()
        private.mirror.process.wait(10)
        await asyncio.to_thread(private.restart)
        found = await private.rows(tenancy)

    assert (record.outcome, record.close_code) == ("failed", 1006)
    check_whole(found)
    (call,) = found["supervision_call"]
    assert (call["outcome"], call["ended_by"], call["reason"]) == ("failed", "mirror", "process_died")
    (turn,) = found["supervision_turn"]
    assert turn["ref"] == "t1"
    (decision,) = found["supervision_tooldecision"]
    assert (decision["ref"], decision["allow"]) == ("c1", True)  # on disk before the agent was told


async def test_a_mirror_that_is_stopped_in_a_call_closes_it_and_says_so(private: Private) -> None:
    async def script(call: AgentCall) -> None:
        await call.hello()
        await call.send("mirror.turn", turn_id="t1", customer_text="", text=GOOD)
        await call.wait("mirror.verdict", turn_id="t1")
        private.mirror.process.send_signal(signal.SIGTERM)

    async with LLMStandIn() as llm, agent(script) as made:
        tenancy = await asyncio.to_thread(private.tenancy, made.url, llm.base_url)
        record = await SimulatedCall(tenancy.stream_url).run()
        await asyncio.to_thread(private.mirror.process.wait, 30)
        found = await private.rows(tenancy, timeout_s=1)  # all of it was stored before the process ended

    said = private.mirror.log.read_text()
    assert "Traceback" not in said, said.replace("\\n", "\n")[-6000:]
    assert record.ended_by in ("agent", "plivo")
    check_whole(found)
    (call,) = found["supervision_call"]
    assert call["ended_by"] == "mirror"
    assert call["reason"]
