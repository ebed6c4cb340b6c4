"""Tools through a real Mirror: a person approves one over REST while the call runs, and it runs once."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import uuid
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from supervision.models import Approval, LedgerEntry
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, found, recorded
from tests.factories import Tenancy
from tests.standins.llm import LLMStandIn

pytestmark = pytest.mark.django_db(transaction=True)

CHARGE = {"name": "charge_card", "args": {"amount": 99}}


async def waiting(tenancy: Tenancy) -> Approval:
    """The tool call that waits, as soon as one does."""

    return await found(tenancy, lambda: Approval.objects.filter(state="waiting").first())


def decide(mirror: MirrorServer, tenancy: Tenancy, approval: Approval) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{mirror.http}/api/v1/tool-decisions/{approval.id}/approval",
        data=json.dumps({"decision": "approve", "note": "Spoke to her."}).encode(),
        headers={"Authorization": f"Bearer {tenancy.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        made: dict[str, Any] = json.load(answer)
    return made


async def test_a_person_approves_a_running_calls_tool_and_it_runs_once(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    plivo_call_id = str(uuid.uuid4())
    over = asyncio.Event()
    told_after_s: list[float] = []
    made: list[Tenancy] = []
    timeline: list[Any] = []

    async def script(call: AgentCall) -> None:
        loop = asyncio.get_running_loop()
        ready = await call.hello()
        assert ready["approvals"]["tools"] == ["charge_card"]
        if not told_after_s:
            await call.send("mirror.tool", id="c1", **CHARGE)
            approval = await waiting(made[0])
            decided = await asyncio.to_thread(decide, mirror, made[0], approval)
            assert decided["state"] == "approved"
            answered_at = loop.time()
            verdict = await call.wait("mirror.tool_verdict", id="c1")
            assert (verdict["allow"], verdict["code"]) == (True, "ok")
            told_after_s.append(loop.time() - answered_at)
            await call.send("mirror.tool_done", id="c1", ok=True, result={"receipt": 7})
        await call.send("mirror.tool", id="c2", **CHARGE)
        again = await call.wait("mirror.tool_verdict", id="c2")
        assert (again["allow"], again["code"], again["stored_result"]) == (False, "duplicate", {"receipt": 7})
        over.set()

    async def caller(call: SimulatedCall) -> None:
        async with asyncio.timeout(30):
            await over.wait()
        call.hang_up()

    async with LLMStandIn() as llm, agent(script) as served:
        made.append(
            await asyncio.to_thread(
                new_tenancy,
                upstream_url=served.url,
                llm_base_url=llm.base_url,
                config={"approval_tools": ["charge_card"]},
            )
        )
        for _ in range(2):  # the second time the stream has come back
            over.clear()
            url = made[0].stream_url(mirror.ws)
            await SimulatedCall(url, caller, PlivoSwitches(), call_id=plivo_call_id).run()
            timeline += (await recorded(made[0])).timeline
    assert told_after_s[0] < 1.0
    assert any(event.kind == "approval.decided" for event in timeline)

    @sync_to_async
    def stored() -> tuple[list[str], list[tuple[str, bool]]]:
        with made[0].context():
            approvals = list(Approval.objects.values_list("state", flat=True))
            ledger = [(row.state, row.result_sealed is not None) for row in LedgerEntry.objects.all()]
            return approvals, ledger

    assert await stored() == (["approved"], [("done", True)])
