"""Tools in a call: which may run, what the agent is told, and what the record says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from supervision.plivo.simulator import CallRecord
from supervision.stream import tools as tools_part
from supervision.stream.failure import FailurePolicy
from tests.e2e.agents import AgentCall
from tests.engine.llms import Asked, decisions
from tests.stream.world import BAD, GOOD, World, say_turn
from tests.support.virtual_time import virtual_time

CHARGE = {"name": "charge_card", "args": {"amount": 99}}
LOOK_UP = {"name": "get_order", "args": {"order": "A7"}}


def refuse_over_50(asked: Asked) -> dict[str, Any]:
    made = []
    for tool in asked.user["tool_calls"]:
        allow = tool["args"].get("amount", 0) <= 50
        why = {} if allow else {"reason": "Over 50.", "instruction": "Offer a colleague."}
        made += decisions(tool["id"], allow=allow, **why)["decisions"]
    return {"decisions": made}


async def ask(agent: AgentCall, tool_id: str, **tool: Any) -> dict[str, Any]:
    """Ask about a tool and wait for the newest answer."""
    before = len([event for event in agent.of("mirror.tool_verdict") if event["id"] == tool_id])
    await agent.send("mirror.tool", id=tool_id, **tool)
    return await agent.wait("mirror.tool_verdict", id=tool_id, count=before + 1)


async def tools(world: World, script: Callable[[AgentCall], Awaitable[None]], *, seconds: float = 30.0) -> CallRecord:
    """A call in which the agent says hello and then runs `script`, which must come to its end."""
    over: list[bool] = []

    async def whole(agent: AgentCall) -> None:
        await agent.hello()
        await script(agent)
        over.append(True)

    record = await world.call(whole, lambda call: call.wait_for(lambda r: over, seconds))
    assert over
    return record


@virtual_time
async def test_a_tool_against_the_policy_is_blocked_and_an_allowed_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.tools = refuse_over_50

    async def script(agent: AgentCall) -> None:
        blocked = await ask(agent, "c1", **CHARGE, customer_text="Charge me.")
        assert blocked == {
            "event": "mirror.tool_verdict",
            "id": "c1",
            "allow": False,
            "code": "policy",
            "reason": "Over 50.",
            "instruction": "Offer a colleague.",
            "stored_result": None,
            "valid_ms": 0,
        }
        allowed = await ask(agent, "c2", name="Charge_Card", args={"amount": 5})
        assert (allowed["allow"], allowed["code"], allowed["valid_ms"]) == (True, "ok", 30_000)
        await agent.send("mirror.tool_done", id="c2", ok=True, result={"receipt": 7})

    await tools(world, script)
    first, second = world.record.of("tool.decided")
    assert (first["allow"], first["code"], first["irreversible"], first["reason"]) == (
        False,
        "policy",
        True,
        "Over 50.",
    )
    assert (second["allow"], second["irreversible"]) == (True, True)  # names compare case-folded
    done = world.record.one("tool.done")
    assert (done["decision_id"], done["result"]) == (second["decision_id"], {"receipt": 7})
    assert world.record.one("call.ended")["tools_blocked"] == 1


@virtual_time
async def test_an_irreversible_permission_is_on_disk_before_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    committed: list[int] = []
    commit = world.record.commit

    async def slow_commit(call_id: Any = None) -> None:
        await commit(call_id)
        committed.append(len(world.record.of("tool.decided")))

    monkeypatch.setattr(world.record, "commit", slow_commit)

    async def script(agent: AgentCall) -> None:
        await ask(agent, "c1", **CHARGE)
        assert committed == [1]
        await ask(agent, "l1", **LOOK_UP)
        assert committed == [1]  # what can be undone waits for nothing

    await tools(world, script)


@virtual_time
async def test_a_broken_journal_blocks_what_cannot_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.record.broken = True

    async def script(agent: AgentCall) -> None:
        blocked = await ask(agent, "c1", **CHARGE)
        assert (blocked["allow"], blocked["code"]) == (False, "failed")
        assert blocked["instruction"]
        allowed = await ask(agent, "l1", **LOOK_UP)
        assert allowed["allow"] is True
        world.record.broken = False
        again = await ask(agent, "c2", **CHARGE)  # the key was freed: nothing ran
        assert (again["allow"], again["code"]) == (True, "ok")

    world.log.setLevel(100)  # the end of the call tells of the broken journal
    await tools(world, script)
    newest = {event["decision_id"]: event for event in world.record.of("tool.decided")}
    assert [(event["ref"], event["allow"]) for event in newest.values()] == [("c1", False), ("l1", True), ("c2", True)]


@virtual_time
async def test_a_journal_that_hangs_is_a_gate_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.log.setLevel(100)  # the end of the call tells of the journal

    async def hang(call_id: Any = None) -> None:
        await asyncio.sleep(1_000)

    monkeypatch.setattr(world.record, "commit", hang)

    async def script(agent: AgentCall) -> None:
        asked_at = asyncio.get_running_loop().time()
        blocked = await ask(agent, "c1", **CHARGE)
        assert (blocked["allow"], blocked["code"]) == (False, "failed")
        assert asyncio.get_running_loop().time() - asked_at <= 3.05

    record = await tools(world, script)
    assert world.over_at - record.began_at - (record.ended_t or 0) < 3.0


@virtual_time
async def test_a_journal_that_fails_may_be_overruled_by_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"tool_gate_on_failure": "allow"})
    world.record.broken = True
    world.log.setLevel(100)

    async def script(agent: AgentCall) -> None:
        assert (await ask(agent, "c1", **CHARGE))["allow"] is True

    await tools(world, script)


@virtual_time
async def test_what_ran_is_a_duplicate_with_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        assert (await ask(agent, "c1", **CHARGE))["allow"] is True
        await agent.send("mirror.tool_done", id="c1", ok=True, result={"receipt": 7})
        for tool_id in ("c2", "c1"):  # under another id, and under its own
            again = await ask(agent, tool_id, name="CHARGE_CARD", args={"amount": 99})
            assert (again["allow"], again["code"], again["stored_result"]) == (False, "duplicate", {"receipt": 7})
        wanted = await ask(agent, "c3", **CHARGE, key="second order")
        assert wanted["allow"] is True

    await tools(world, script)
    assert len(world.llm.of("mirror_tools")) == 2


@virtual_time
async def test_what_failed_or_was_cancelled_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        for number, outcome in enumerate(({"ok": False, "result": "declined"}, {"ok": True, "cancelled": True})):
            assert (await ask(agent, f"c{number}", **CHARGE))["allow"] is True
            await agent.send("mirror.tool_done", id=f"c{number}", **outcome)
        assert (await ask(agent, "c9", **CHARGE))["allow"] is True

    await tools(world, script)
    assert [event["allow"] for event in world.record.of("tool.decided")] == [True, True, True]


@virtual_time
async def test_a_repeat_of_what_may_be_running_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        assert (await ask(agent, "c1", **CHARGE))["allow"] is True
        asked_at = asyncio.get_running_loop().time()
        again = await ask(agent, "c2", **CHARGE, timeout_ms=800)
        assert (again["allow"], again["code"]) == (False, "in_doubt")
        assert asyncio.get_running_loop().time() - asked_at == pytest.approx(0.8, abs=0.1)

    await tools(world, script)


@virtual_time
async def test_an_id_says_nothing_about_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.tools = refuse_over_50

    async def script(agent: AgentCall) -> None:
        assert (await ask(agent, "call_0", name="charge_card", args={"amount": 5}))["allow"] is True
        other = await ask(agent, "call_0", name="charge_card", args={"amount": 9_999})
        assert (other["allow"], other["code"]) == (False, "policy")

    await tools(world, script)
    assert [event["args"]["amount"] for event in world.record.of("tool.decided")] == [5, 9_999]


@virtual_time
async def test_an_id_used_again_in_another_turn_is_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        for ref in ("t1", "t2"):
            await say_turn(agent, ref, GOOD, 0.5, tool_calls=[{"id": "call_0", **CHARGE}])
            await agent.wait("mirror.tool_verdict", id="call_0", count=1 if ref == "t1" else 2)
        first, second = agent.of("mirror.tool_verdict")
        assert (first["allow"], first["code"]) == (True, "ok")
        assert (second["allow"], second["code"]) == (False, "in_doubt")

    await tools(world, script)


@virtual_time
async def test_a_tool_named_in_its_turn_gets_the_same_verdict_when_asked_for_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await say_turn(agent, "t1", GOOD, 0.5, tool_calls=[{"id": "c1", **CHARGE}, {"id": "l1", **LOOK_UP}])
        early = agent.send("mirror.tool", id="c1", turn_id="t1", **CHARGE)  # while the turn is still being judged
        await early
        await agent.wait("mirror.tool_verdict", id="c1", count=2)
        await agent.send("mirror.tool", id="c1", **CHARGE)
        await agent.wait("mirror.tool_verdict", id="c1", count=3)
        await agent.wait("mirror.tool_verdict", id="l1")
        verdicts = [event for event in agent.of("mirror.tool_verdict") if event["id"] == "c1"]
        assert verdicts[0] == verdicts[1] == verdicts[2]
        assert verdicts[0]["allow"] is True

    await tools(world, script)
    assert len(world.llm.of("mirror_tools")) == 1  # one question for both
    assert len(world.record.of("tool.decided")) == 2


@pytest.mark.parametrize(
    "args",
    ['{"amount": 99', "[1, 2]", 7, [], '"text"', "[" * 3_000, '{"amount": NaN}', '{"a": "\\ud800"}', "x" * 70_000],
)
@virtual_time
async def test_malformed_arguments_never_run(monkeypatch: pytest.MonkeyPatch, args: Any) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", name="charge_card", args=args)
        assert (verdict["allow"], verdict["code"]) == (False, "bad_args")
        assert verdict["reason"]

    await tools(world, script)
    decided = world.record.one("tool.decided")
    assert (decided["allow"], decided["code"]) == (False, "bad_args")
    assert world.llm.of("mirror_tools") == []


@virtual_time
async def test_arguments_as_the_models_own_string_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.tools = refuse_over_50

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", name="charge_card", args='{"amount": 51}')
        assert (verdict["allow"], verdict["code"]) == (False, "policy")

    await tools(world, script)
    assert world.record.one("tool.decided")["args"] == {"amount": 51}


@pytest.mark.parametrize("speaks", [True, False], ids=["armed", "unarmed"])
@pytest.mark.parametrize("tool", [CHARGE, LOOK_UP], ids=["irreversible", "reversible"])
@virtual_time
async def test_a_turn_whose_words_broke_a_rule_may_do_nothing(
    monkeypatch: pytest.MonkeyPatch, tool: dict[str, Any], speaks: bool
) -> None:
    world = World(monkeypatch, speaks=speaks)
    world.llm.delay_s = lambda asked: 0.6 if asked.schema_name == "mirror_turn" else 0.1  # the tool is known first

    async def script(agent: AgentCall) -> None:
        await say_turn(agent, "t1", BAD, 2.0, tool_calls=[{"id": "c1", **tool}])
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert (verdict["allow"], verdict["code"]) == (False, "denied")
        later = await ask(agent, "c2", turn_id="t1", name="get_order", args={"order": "B8"})
        assert (later["allow"], later["code"]) == (False, "denied")

    await tools(world, script)
    assert [event["code"] for event in world.record.of("tool.decided")] == ["denied", "denied"]
    assert world.record.one("turn.judged")["acted"] is speaks


@virtual_time
async def test_a_cooldown_does_not_open_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, config={"cooldown_s": 60.0})

    async def script(agent: AgentCall) -> None:
        await say_turn(agent, "t1", BAD, 2.0)
        await agent.wait("mirror.intervention", phase="completed")
        seen = agent.of("mirror.note")[-1]["id"]
        await say_turn(agent, "t2", BAD, 2.0, seen=seen, tool_calls=[{"id": "c1", **CHARGE}])
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert (verdict["allow"], verdict["code"]) == (False, "denied")

    await tools(world, script)
    assert world.record.of("turn.judged")[1]["withheld"] == "cooldown"


@virtual_time
async def test_a_tool_waits_for_the_words_of_its_turn_only_as_long_as_the_gate_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = lambda asked: 3.8 if asked.schema_name == "mirror_turn" else 0.1

    async def script(agent: AgentCall) -> None:
        asked_at = asyncio.get_running_loop().time()
        await say_turn(agent, "t1", GOOD, 2.0, tool_calls=[{"id": "c1", **CHARGE}, {"id": "l1", **LOOK_UP}])
        charge = await agent.wait("mirror.tool_verdict", id="c1")
        look_up = await agent.wait("mirror.tool_verdict", id="l1")
        assert asyncio.get_running_loop().time() - asked_at <= 3.1
        assert (charge["allow"], charge["code"]) == (False, "timeout")
        assert look_up["allow"] is True
        assert (await ask(agent, "c2", **CHARGE))["allow"] is True  # the first never ran

    await tools(world, script)


@virtual_time
async def test_shadow_mode_lets_every_tool_run_and_records_what_it_would_have_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, mode="shadow")
    world.llm.tools = refuse_over_50

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", **CHARGE)
        assert (verdict["allow"], verdict["code"], verdict["instruction"]) == (True, "ok", "")
        await say_turn(agent, "t1", BAD, 1.0, tool_calls=[{"id": "l1", **LOOK_UP}])
        assert (await agent.wait("mirror.tool_verdict", id="l1"))["allow"] is True
        world.record.broken = True
        assert (await ask(agent, "c2", name="charge_card", args={"amount": 1}))["allow"] is True
        world.record.broken = False

    await tools(world, script)
    charge, look_up, _ = world.record.of("tool.decided")
    assert "would have been refused (policy): Over 50." in charge["reason"]
    assert "would have been refused (denied)" in look_up["reason"]
    assert world.record.one("call.ended")["tools_blocked"] == 0


@virtual_time
async def test_without_a_policy_turns_fail_and_only_what_can_be_undone_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, governed=False)

    async def script(agent: AgentCall) -> None:
        calls = [{"id": "c1", **CHARGE, "irreversible": True}, {"id": "l1", **LOOK_UP}]
        await say_turn(agent, "t1", BAD, 1.0, tool_calls=calls)
        assert (await agent.wait("mirror.tool_verdict", id="c1"))["allow"] is False
        assert (await agent.wait("mirror.tool_verdict", id="l1"))["allow"] is True
        assert (await ask(agent, "c2", **CHARGE))["allow"] is False  # on the list that goes for every policy
        await agent.send("mirror.tool_done", id="l1", ok=True)

    await tools(world, script)
    assert world.record.one("turn.judged")["detail"] == "no live policy"


@virtual_time
async def test_a_gate_that_breaks_refuses_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.log.setLevel(100)

    async def script(agent: AgentCall) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(tools_part.CallTools, "_with_speech", broken)
        verdict = await ask(agent, "c1", **CHARGE)
        assert (verdict["allow"], verdict["code"]) == (False, "failed")

    await tools(world, script)
    assert world.record.one("tool.decided")["allow"] is False


@virtual_time
async def test_tool_done_for_an_unknown_id_is_an_error_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        await agent.send("mirror.tool_done", id="nobody", ok=True)
        error = await agent.wait("mirror.error")
        assert (error["code"], error["ref"]) == ("unknown_id", "nobody")

    await tools(world, script)
    assert world.record.of("tool.done") == []


@virtual_time
async def test_a_tool_may_come_before_the_words_of_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)

    async def script(agent: AgentCall) -> None:
        verdict = await ask(agent, "c1", turn_id="t1", **CHARGE)
        assert (verdict["allow"], verdict["code"]) == (True, "ok")
        await agent.send("mirror.turn", turn_id="t1", text=GOOD)
        await agent.wait("mirror.verdict", turn_id="t1")
        assert agent.of("mirror.error") == []

    await tools(world, script)
    assert world.record.one("tool.decided")["turn_id"] is None


@virtual_time
async def test_words_that_come_while_their_tool_is_judged_decide_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.llm.delay_s = 0.5

    async def script(agent: AgentCall) -> None:
        await agent.send("mirror.tool", id="c1", turn_id="t1", **CHARGE)
        await asyncio.sleep(0.2)
        await agent.send("mirror.turn", turn_id="t1", text=BAD)
        verdict = await agent.wait("mirror.tool_verdict", id="c1")
        assert (verdict["allow"], verdict["code"]) == (False, "denied")

    await tools(world, script)
    assert world.record.one("tool.decided")["allow"] is False


@virtual_time
async def test_a_call_that_comes_back_knows_what_it_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    over: list[str] = []

    async def first(agent: AgentCall) -> None:
        await agent.hello()
        assert (await ask(agent, "c1", **CHARGE))["allow"] is True
        assert (await ask(agent, "c2", **CHARGE, key="second"))["allow"] is True
        over.append("first")

    async def second(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.tool_done", id="c1", ok=True, result={"receipt": 7})
        again = await ask(agent, "c1", **CHARGE)
        assert (again["allow"], again["code"], again["stored_result"]) == (False, "duplicate", {"receipt": 7})
        again = await ask(agent, "c2", **CHARGE, key="second", timeout_ms=500)
        assert (again["allow"], again["code"]) == (False, "in_doubt")
        assert agent.of("mirror.error") == []
        over.append("second")

    for name, script in (("first", first), ("second", second)):
        world.record.events.clear()
        await world.call(script, lambda call, name=name: call.wait_for(lambda r: name in over, 30), call_id="plivo-1")
    assert world.record.one("tool.done")["ref"] == "c1"


@virtual_time
async def test_a_permission_that_comes_too_late_for_its_call_leaves_nothing_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    claim = world.runtime.ledger.claim
    asked = asyncio.Event()

    async def slow(*args: Any, **more: Any) -> Any:
        asked.set()
        await asyncio.sleep(1.0)
        return await claim(*args, **more)

    monkeypatch.setattr(world.runtime.ledger, "claim", slow)

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        await agent.send("mirror.tool", id="c1", **CHARGE)

    await world.call(script, lambda call: asked.wait())  # type: ignore[arg-type, return-value]
    decided = world.record.one("tool.decided")
    assert (decided["allow"], decided["code"]) == (False, "cancelled")
    assert world.runtime.ledger.rows == {}  # type: ignore[attr-defined]


@virtual_time
async def test_an_agent_that_is_dialled_again_runs_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are the socket's: the new agent asks with the ids of the old one, and none of its permissions is its own."""
    world = World(monkeypatch)
    world.runtime.binding = replace(world.binding, failure=FailurePolicy(redials=2))
    over: list[bool] = []

    async def script(agent: AgentCall) -> None:
        await agent.hello()
        if len(world.agents) == 1:
            assert (await ask(agent, "c1", **CHARGE))["allow"] is True
            assert (await ask(agent, "c2", **CHARGE, key="second"))["allow"] is True
            world.llm.delay_s = 1.0
            await agent.send("mirror.tool", id="c3", **CHARGE, key="third")  # not decided when the socket breaks
            await asyncio.sleep(0.1)
            await agent.connection.close(1006)
            return
        again = await ask(agent, "c1", **CHARGE, timeout_ms=500)
        assert (again["allow"], again["code"]) == (False, "in_doubt")
        await agent.send("mirror.tool_done", id="c2", ok=True, result={"receipt": 7})
        again = await ask(agent, "c2", **CHARGE, key="second")
        assert (again["code"], again["stored_result"]) == ("duplicate", {"receipt": 7})
        assert agent.of("mirror.error") == []
        assert (await ask(agent, "c3", **CHARGE, key="third"))["allow"] is True  # the first never got its permission
        over.append(True)

    await world.call(script, lambda call: call.wait_for(lambda r: over, 60))
    assert len(world.agents) == 2
    codes = [event["code"] for event in world.record.of("tool.decided") if event["ref"] == "c3"]
    assert codes == ["cancelled", "ok"]
