"""The ledger of irreversible tool calls in PostgreSQL: one run a call, whatever becomes of the allowing process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.engine.policy.compiler import json_of
from supervision.models import LedgerEntry
from supervision.services.erasure import call_erase
from supervision.services.privacy import calls_prune
from supervision.stream.ledger import Kept, LedgerCall
from tenants.context import tenant_context
from tests.factories import Tenancy, call_create, tenancy_create
from tests.stream.node import Node
from tests.support.servers import ROOT, DatabaseUrls

CHARGE = {"name": "charge_card", "args": {"amount": 99, "card": "4111 1111 1111 1111"}}
PLIVO = "9a3c8d1e-plivo-call"
NOWHERE = "postgresql://mirror_app@127.0.0.1:1/mirror"
PATIENCE_S = 60


@pytest.fixture
def alice(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="alice")


@pytest.fixture
def charlie(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="charlie")


MakeNode = Callable[..., Node]


@pytest.fixture
async def node(database_urls: DatabaseUrls) -> AsyncIterator[MakeNode]:
    made: list[Node] = []

    def make(tenancy: Tenancy, plivo_call_id: str = PLIVO, *, dsn: str = database_urls.app, **config: Any) -> Node:
        made.append(Node(dsn, tenancy.id, plivo_call_id, **config))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


async def rows(tenancy: Tenancy) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        with tenant_context(tenancy.id):
            return list(LedgerEntry.objects.order_by("created_at").values())

    return await sync_to_async(read)()


async def test_a_permission_is_in_the_database_before_it_leaves(node: MakeNode, alice: Tenancy) -> None:
    first = node(alice)
    verdict = await first.ask("c1", **CHARGE)
    (row,) = await rows(alice)
    assert (verdict["allow"], row["state"], row["tool"], row["ref"]) == (True, "pending", "charge_card", "c1")
    (decided,) = [event.data for event in first.events if event.kind == "tool.decided"]
    assert str(row["id"]) == decided["decision_id"]
    await first.ask("l1", name="get_order", args={"order": "A7"})
    assert len(await rows(alice)) == 1  # what can be undone is not written down


async def test_a_killed_process_leaves_what_it_allowed_in_doubt_until_the_agent_tells(
    node: MakeNode,
    alice: Tenancy,
    charlie: Tenancy,
    database_urls: DatabaseUrls,
    server_environment: dict[str, str],
) -> None:
    """The agent asks on a socket whose node is killed with SIGKILL between the permission and its end, then goes on
    over another node."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.stream.node", database_urls.app, str(alice.id), PLIVO),
        cwd=ROOT,
        env=server_environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps({"event": "mirror.tool", "id": "c1", **CHARGE}).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            assert json.loads(await process.stdout.readline())["allow"] is True
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    second = node(alice, tool_gate_timeout_ms=600)
    stranger = node(charlie)
    asked_at = asyncio.get_running_loop().time()
    again = await second.ask("c2", **CHARGE)
    assert (again["allow"], again["code"], again["stored_result"]) == (False, "in_doubt", None)
    assert asyncio.get_running_loop().time() - asked_at >= 0.5  # it was waited for
    assert second.llm.of("mirror_tools") == []
    # The same words in another call, another tenant's call of the same id, and a second order that is wanted.
    assert (await node(alice, "another").ask("c1", **CHARGE))["allow"] is True
    assert (await stranger.ask("c1", **CHARGE))["allow"] is True
    assert (await second.ask("c3", **CHARGE, key="second"))["allow"] is True

    await second.done("c1", ok=True, result={"receipt": 7})
    (done,) = [event.data for event in second.events if event.kind == "tool.done"]
    pending, *_ = await rows(alice)
    assert (pending["state"], done["decision_id"]) == ("done", str(pending["id"]))
    third = node(alice)
    again = await third.ask("c9", name="CHARGE_CARD", args=CHARGE["args"])
    assert (again["allow"], again["code"], again["stored_result"]) == (False, "duplicate", {"receipt": 7})
    assert [row["state"] for row in await rows(charlie)] == ["pending"]


async def test_of_two_nodes_that_are_asked_at_once_one_allows(node: MakeNode, alice: Tenancy) -> None:
    both = [node(alice, tool_gate_timeout_ms=800) for _ in range(2)]
    await asyncio.gather(*(each.ledger.ready() for each in both))
    verdicts = await asyncio.gather(*(each.ask("c1", **CHARGE) for each in both))
    assert sorted(verdict["code"] for verdict in verdicts) == ["in_doubt", "ok"]
    loser = both[[verdict["code"] for verdict in verdicts].index("in_doubt")]
    assert (await loser.ask("c2", **CHARGE))["code"] == "in_doubt"  # and it remembers


async def test_a_repeat_that_waits_learns_how_the_first_ended_elsewhere(node: MakeNode, alice: Tenancy) -> None:
    first = node(alice)
    for number, (outcome, code) in enumerate(
        [({"ok": False, "result": "declined"}, "ok"), ({"ok": True, "result": [1]}, "duplicate")]
    ):
        key = str(number)
        assert (await first.ask(f"a{key}", **CHARGE, key=key))["allow"] is True
        other = node(alice)
        await other.ledger.ready()
        waiting = asyncio.create_task(other.ask(f"b{key}", **CHARGE, key=key))
        await asyncio.sleep(0)
        await first.done(f"a{key}", **outcome)
        assert (await waiting)["code"] == code


async def test_what_did_not_run_leaves_nothing(node: MakeNode, alice: Tenancy) -> None:
    first = node(alice)
    for outcome in ({"ok": False}, {"ok": True, "cancelled": True}):
        assert (await first.ask("c1", **CHARGE))["allow"] is True
        await first.done("c1", **outcome)
        assert await rows(alice) == []


async def test_an_end_that_nobody_asked_about_is_an_error(node: MakeNode, alice: Tenancy) -> None:
    lone = node(alice)
    await lone.done("nobody", ok=True)
    assert await lone.told.get() == {"event": "mirror.error", "code": "unknown_id"}
    assert await rows(alice) == []


@pytest.mark.parametrize("on_failure", ["block", "allow"])
async def test_without_a_database_the_policy_decides(
    node: MakeNode, alice: Tenancy, on_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervision.stream.ledger.CLOSE_S", 0.0)
    alone = node(alice, dsn=NOWHERE, tool_gate_on_failure=on_failure)
    verdict = await alone.ask("c1", **CHARGE)
    assert verdict["allow"] is (on_failure == "allow")
    if on_failure == "block":
        assert (verdict["code"], verdict["reason"]) == ("failed", "the decision could not be recorded")
        assert verdict["instruction"]


async def test_what_was_allowed_without_a_database_is_written_when_it_is_back(
    node: MakeNode, alice: Tenancy, database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervision.stream.ledger.RETRY_S", 0.01)
    alone = node(alice, tool_gate_on_failure="allow")
    working, alone.database._connect = alone.database._connect, node(alice, dsn=NOWHERE).database._connect
    assert (await alone.ask("c1", **CHARGE))["allow"] is True
    assert await rows(alice) == []
    alone.database._connect = working
    await alone.store.settled(alone.ledger._call, within_s=PATIENCE_S)
    assert [row["state"] for row in await rows(alice)] == ["pending"]
    assert (await node(alice, tool_gate_timeout_ms=300).ask("c2", **CHARGE))["code"] == "in_doubt"


async def test_a_row_that_can_never_be_written_holds_up_no_other(
    node: MakeNode, alice: Tenancy, caplog: pytest.LogCaptureFixture
) -> None:
    first = node(alice)
    # Its tenant is gone.
    call = LedgerCall(uuid7(), PLIVO, uuid7())
    first.store.settle(call, Kept(uuid7(), ("charge_card", b"x" * 32, ""), "c1", done=True), freed=False)
    await first.store.settled(call, within_s=PATIENCE_S)
    assert "stays in doubt" in caplog.text
    assert (await first.ask("c1", **CHARGE))["allow"] is True
    await first.done("c1", ok=True, result=1)
    assert [row["state"] for row in await rows(alice)] == ["done"]


async def test_a_result_is_sealed_and_arguments_cannot_be_tried_out(
    node: MakeNode, alice: Tenancy, database_urls: DatabaseUrls
) -> None:
    first = node(alice)
    await first.ask("c1", **CHARGE)
    await first.done("c1", ok=True, result={"card": "4111 1111 1111 1111", "name": "Zoë Secret"})
    with psycopg.connect(database_urls.admin) as admin:
        table = admin.execute("SELECT row_to_json(l)::text FROM supervision_ledgerentry l").fetchall()
    text = "".join(row for (row,) in table)
    for said in ("4111", "Zo", "Secret", b"4111".hex(), b"Secret".hex()):
        assert said not in text
    canonical = json_of(CHARGE["args"])
    assert canonical is not None
    assert sha256(canonical.encode()).hexdigest() not in text


async def test_a_result_whose_key_is_gone_is_a_duplicate_all_the_same(
    node: MakeNode, alice: Tenancy, database_urls: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    first = node(alice)
    await first.ask("c1", **CHARGE)
    await first.done("c1", ok=True, result={"receipt": 7})
    with psycopg.connect(database_urls.admin) as admin:
        admin.execute("UPDATE supervision_ledgerentry SET result_sealed = result_sealed || 'x'::bytea")
    again = await node(alice).ask("c2", **CHARGE)
    assert (again["code"], again["stored_result"]) == ("duplicate", None)
    assert "cannot be unsealed" in caplog.text


async def test_old_rows_are_pruned_and_a_strangers_are_not(node: MakeNode, alice: Tenancy, charlie: Tenancy) -> None:
    for tenancy in (alice, charlie):
        await node(tenancy).ask("c1", **CHARGE)

    def prune(after: timedelta) -> None:
        with tenant_context(alice.id):
            calls_prune(now=timezone.now() + after)

    await sync_to_async(prune)(timedelta(hours=30))
    assert len(await rows(alice)) == 1  # its call may still be running
    await sync_to_async(prune)(timedelta(hours=49))
    assert await rows(alice) == []
    assert len(await rows(charlie)) == 1


def test_a_call_that_is_erased_takes_its_rows_along(tenant: Tenancy, stranger: Tenancy) -> None:
    kept: list[UUID] = []
    with tenant.context():
        call, other = call_create(tenant), call_create(tenant)
        for each in (call, other):
            row = LedgerEntry.objects.create(
                plivo_call_id=each.plivo_call_id or str(each.id),
                call_id=each.id,
                ref="c1",
                tool="charge_card",
                args_digest=b"x" * 32,
                state="pending",
            )
            kept.append(row.id)
        call_erase(call_id=call.id)
        assert list(LedgerEntry.objects.values_list("id", flat=True)) == kept[1:]
