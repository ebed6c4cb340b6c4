"""The demo's call, with its own agent, judge, rules and caller, as processes around a real Mirror."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror_saas.demo.conversation import EXCHANGES
from mirror_saas.demo.judge import VIOLATIONS
from supervision.plivo.simulator import SimulatedCall
from supervision.plivo.simulator.script import load_script
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.support.ports import free_port
from tests.support.stt import transcribe

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "mirror_saas" / "demo"


@contextlib.asynccontextmanager
async def demo_process(name: str) -> AsyncIterator[int]:
    """`python -m mirror_saas.demo.<name>`, from its line with "ready" to SIGTERM."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"mirror_saas.demo.{name}", "--port", str(port), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        assert b"ready" in line
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            await process.wait()
    assert process.returncode == 0


async def test_the_demo_call_shows_a_correction_a_blocked_tool_and_one_that_passes(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    script = await asyncio.to_thread(load_script(DEMO / "call.yaml").prepare)
    rules = [
        line for line in (DEMO / "policies.txt").read_text().splitlines() if line.strip() and not line.startswith("#")
    ]
    async with demo_process("judge") as judge, demo_process("agent") as agent:
        tenancy = await asyncio.to_thread(
            new_tenancy,
            upstream_url=f"ws://127.0.0.1:{agent}/",
            llm_base_url=f"http://127.0.0.1:{judge}/v1",
            rules=rules,
        )
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), script.run).run()
        rows = await recorded(tenancy)

    assert (record.outcome, record.ended_by) == ("completed", "caller")
    turns = [detail.turn for detail in rows.turns]
    assert [turn.customer_text for turn in turns] == ["", *(exchange.customer for exchange in EXCHANGES)]
    verdicts = [detail.verdict for detail in rows.turns]
    # The greeting and the farewell claim nothing, so that nobody is asked about them.
    assert [verdict.state for verdict in verdicts] == ["skipped", "judged", "judged", "judged", "skipped"]
    assert [verdict.score for verdict in verdicts] == [None, 1.0, 0.0, 0.0, None]
    assert [verdict.detail for verdict in verdicts] == ["nothing unusual", "", "", "", "a pleasantry"]
    assert {verdict.reason for verdict in verdicts} == {"", VIOLATIONS[0].reason}, "the script knows every line"

    (intervention,) = rows.interventions
    assert (intervention.outcome, intervention.rule) == ("completed", rules[0])
    assert intervention.correction_text == VIOLATIONS[0].correction
    assert intervention.correction_source == "llm"

    blocked, passed = rows.tool_decisions
    assert (blocked.name, blocked.allow, blocked.code, blocked.ok) == ("charge_card", False, "policy", None)
    assert (passed.name, passed.allow, passed.code, passed.ok) == ("place_order", True, "ok", True)

    # The agent follows its note on its next turn.
    assert turns[2].text.startswith("As I said, a colleague decides about your refund.")
    heard = transcribe(record.heard.pcm()).lower()
    assert "refunded" not in heard
    # In this order; "Slice House" and "margherita" are beyond a tiny recogniser.
    said = ("how can i help", "pass on your complaint", "not charged your card", "ordered one large", "thank you for")
    assert [heard.find(words) for words in said] == sorted({heard.index(words) for words in said})
