"""Over real sockets: an agent that breaks and breaks again, and an agent that speaks Mirror's lines itself."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode

import pytest
from websockets.asyncio.server import ServerConnection, serve

from supervision.client import MirrorClient, Say
from supervision.models import OnFailure, ProviderCredential
from supervision.plivo.simulator import SimulatedCall
from supervision.services.agents import agent_update
from supervision.services.plivo_accounts import plivo_account_save
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import MirrorServer, TenancyMaker, recorded
from tests.factories import Tenancy
from tests.standins.llm import LLMStandIn, words
from tests.standins.plivo_rest import AUTH_ID, AUTH_TOKEN, PlivoStandIn
from tests.support.speech import say

pytestmark = pytest.mark.django_db(transaction=True)

BAD = "Sure. I have refunded the money to your card, and it will be there tomorrow morning."
CORRECTION = "I cannot refund that myself. Shall I connect you with a colleague?"
SORRY = "I am sorry, please call again."
CALL_ID = "f4a1c0de-1111-4222-8333-444455556666"


def fails_by(tenancy: Tenancy, plivo_url: str) -> None:
    """Let the tenant's agent be dialled twice, and its calls be hung up at this Plivo."""
    with tenancy.context():
        agent_update(agent_id=tenancy.agent.id, redials=1, failure_message=SORRY, on_failure=OnFailure.HANGUP)
        account = plivo_account_save(auth_id=AUTH_ID, auth_token=AUTH_TOKEN)
        ProviderCredential.objects.filter(id=account.id).update(base_url=plivo_url)


async def test_an_agent_that_breaks_twice_is_told_of_and_hung_up_by_plivo(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    plivo = PlivoStandIn()
    plivo.call(CALL_ID)
    plivo.call("another-call")

    async def breaks(call: AgentCall) -> None:
        await call.wait("start")
        call.connection.transport.abort()

    async def caller(call: SimulatedCall) -> None:
        await plivo.wait_for("hangup")
        call.hang_up()

    async with agent(breaks) as made, plivo.serving() as base_url:
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=made.url)
        await asyncio.to_thread(fails_by, tenancy, base_url)
        record = await SimulatedCall(tenancy.stream_url(mirror.ws), caller, call_id=CALL_ID).run()
        rows = await recorded(tenancy)
    assert len(made.calls) == 2
    assert all(call.events[0]["event"] == "start" for call in made.calls)
    assert record.heard.seconds > 1.0  # that one is sorry
    assert [(asked.action, asked.call_id) for asked in plivo.asked] == [("hangup", CALL_ID)]
    assert plivo.live == {"another-call"}
    assert (rows.call.outcome, rows.call.ended_by) == ("failed", "agent")
    assert rows.call.reason.endswith("the caller was told; the call was hung up")
    assert AUTH_TOKEN not in mirror.log.read_text()


async def test_an_agent_speaks_mirrors_lines_with_its_own_voice(
    mirror: MirrorServer, new_tenancy: TenancyMaker
) -> None:
    said: list[Say] = []
    phases: list[str] = []

    async def serves(connection: ServerConnection) -> None:
        client = MirrorClient(connection, say=True)
        socket = client.websocket

        async def speak(text: str) -> None:
            audio = say(text)
            for offset in range(0, len(audio), 160):
                payload = b64encode(audio[offset : offset + 160]).decode()
                media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": payload}
                await socket.send(json.dumps({"event": "playAudio", "media": media}))

        async def lines() -> None:
            async for line in client.says:
                async with client.saying(line):
                    await speak(line.text)
                said.append(line)

        speaking = asyncio.create_task(lines())
        client.interventions.on(lambda step: phases.append(step.phase))
        first = True
        async for _ in socket:
            if first:
                first = False
                await client.turn(BAD, customer_text="Give me my money back.")
                await speak(BAD)
        await speaking

    async def caller(call: SimulatedCall) -> None:
        await call.wait_for(lambda _: "completed" in phases, 30)
        call.hang_up()

    say(BAD)
    say(CORRECTION)
    async with LLMStandIn() as judge, serve(serves, "127.0.0.1", 0) as server:
        judge.judge(words({"refunded": {"rule": 1, "correction": CORRECTION}}))
        judge.correct(lambda _: CORRECTION)
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/agent"
        tenancy = await asyncio.to_thread(new_tenancy, upstream_url=url, llm_base_url=judge.base_url)
        await SimulatedCall(tenancy.stream_url(mirror.ws), caller).run()
        rows = await recorded(tenancy)
    assert [line.role for line in said] == ["buffer", "correction"]
    assert said[1].text == CORRECTION
    (intervention,) = rows.interventions
    assert (intervention.outcome, intervention.correction_text) == ("completed", CORRECTION)
    steps = [event.data["step"] for event in rows.timeline if event.kind == "intervention.step"]
    assert steps.count("say_begun") == 2
    assert "say_given_up" not in steps
