"""The quickstart, on the real plivo-stream-sdk, with a Plivo stand-in that calls and a judge over the wire."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI, WebSocket
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler
from plivo_stream.websockets import PlivoWebsocketStreamingHandler
from websockets.asyncio.server import serve

from examples.quickstart import agent as quickstart
from supervision.engine import MirrorConfig, Supervisor
from supervision.engine.llm.openai import OpenAIClient
from supervision.plivo.simulator import CallRecord, PlivoSwitches, SimulatedCall, load_script
from tests.engine.attached_calls import Tones
from tests.plivo.agents import asgi_agent, settle
from tests.standins.llm import LLMStandIn, scripted, words

CLEAN = "Your order of two pizzas is in the oven."
WRONG = "Of course, your refund is confirmed and will be paid out to your card today, all of it, as you asked."
RIGHT = "A colleague decides on refunds. Shall I connect you?"
BUFFER = "Sorry, let me make sure I got that right..."


def make_supervisor(llm: LLMStandIn, **config: Any) -> Supervisor:
    llm.judge(words({"refund is confirmed": {"rule": 1, "correction": RIGHT}}))
    llm.correct(lambda question: RIGHT)
    llm.gate(lambda tool, question: {"allow": False, "score": 0.9, "reason": "twelve were wanted"})
    # fmt: off
    return Supervisor(MirrorConfig(
        llm=OpenAIClient(api_key="...", model="gpt-4o-mini", base_url=llm.base_url),
        policies=[
            "Never confirm a refund — transfer to a human supervisor.",
            "Always read the order back before calling place_order.",
            "Do not promise delivery times.",
        ],
        intervention_threshold=0.7,
        **config,
    ))
    # fmt: on


class Conversation:
    """Which turns the agent produces, and when: one for every key that the caller presses."""

    def __init__(self) -> None:
        self.voice = Tones()
        self.turns: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
            "1": ("Where is my order?", CLEAN, []),
            "2": ("I want my money back.", WRONG, []),
            "3": ("Twelve pizzas!", "One pizza is ordered.", [{"name": "place_order", "args": {"quantity": 1}}]),
        }
        self.verdicts: dict[str, Any] = {}
        self.events: list[str] = []
        self.done: dict[str, asyncio.Event] = {key: asyncio.Event() for key in self.turns}
        self.over = asyncio.Event()
        self.sup: Any = None


async def supervise(supervisor: Supervisor, handler: Any, run: Any, talk: Conversation) -> None:
    """The description's quickstart, with the turns produced inside the SDK's own callbacks."""
    my_tts = talk.voice
    async with supervisor.attach(handler, tts_provider=my_tts) as sup:
        talk.sup = sup

        @handler.on_start
        async def _(event: Any) -> None:
            sup.bind_call(event.start.call_id)
            talk.events.append("start")

        @handler.on_dtmf
        async def _(event: Any) -> None:
            user_text, agent_text, tool_intents = talk.turns[event.dtmf.digit]
            # When your agent produces a turn:
            verdict = await sup.review_turn(
                customer_text=user_text,
                primary_text=agent_text,
                tool_calls=tool_intents,
            )
            if verdict.should_intervene:
                await sup.intervene(verdict)  # Mirror speaks the correction
            else:
                await sup.speak(agent_text)  # happy path
            talk.verdicts[event.dtmf.digit] = verdict
            talk.done[event.dtmf.digit].set()

        @handler.on_played_stream
        async def _(event: Any) -> None:
            talk.events.append(f"played {event.name}")

        @handler.on_cleared_audio
        async def _(event: Any) -> None:
            talk.events.append("cleared")

        @handler.on_error
        async def _(error: Exception) -> None:
            talk.events.append(f"error {error!r}")

        await run()
    talk.over.set()


def heard(record: CallRecord, voice: Tones) -> list[str]:
    """Which texts the caller heard, in order."""
    texts: list[str] = []
    audio = record.heard.audio
    for at in range(0, len(audio) - 159, 160):
        frame = audio[at : at + 160]
        text = voice.text_of(frame)
        if text and (not texts or texts[-1] != text):
            texts.append(text)
    return [text for index, text in enumerate(texts) if index == 0 or text != texts[index - 1]]


async def call_through(url: str, talk: Conversation) -> CallRecord:
    call = SimulatedCall(url, switches=PlivoSwitches(delay_s=0.03))
    running = asyncio.create_task(call.run())
    await call.wait_started()
    await call.wait_for(lambda record: talk.sup is not None and talk.sup.armed, timeout_s=20)
    for key in talk.turns:
        call.press(key)
        await asyncio.wait_for(talk.done[key].wait(), 30)
        await quiet(call)
    call.hang_up()
    record: CallRecord = await settle(running)
    await asyncio.wait_for(talk.over.wait(), 10)
    return record


async def quiet(call: SimulatedCall) -> None:
    """Until all that was sent has been played."""
    before = -1.0

    def still(record: CallRecord) -> bool:
        nonlocal before
        end = record.heard.end or 0.0
        done = end == before and call.now - end > 0.3
        before = end
        return done

    await call.wait_for(still, timeout_s=20)


def check(record: CallRecord, talk: Conversation) -> None:
    assert talk.verdicts["1"].should_intervene is False
    assert talk.verdicts["2"].should_intervene is True
    assert talk.verdicts["3"].tools[0].allow is False
    texts = heard(record, talk.voice)
    assert texts[:3] == [CLEAN, BUFFER, RIGHT]
    assert WRONG not in texts
    assert "One pizza is ordered." not in texts
    assert texts[-1] == RIGHT
    # Nothing of Mirror's own wire traffic reaches the agent.
    assert talk.events == ["start"]


async def test_the_descriptions_quickstart_on_the_fastapi_handler() -> None:
    talk = Conversation()
    async with LLMStandIn() as llm:
        supervisor = make_supervisor(llm)
        app = FastAPI()

        @app.websocket("/stream")
        async def stream(websocket: WebSocket) -> None:
            handler = PlivoFastAPIStreamingHandler(websocket)
            await supervise(supervisor, handler, handler.start, talk)

        async with asgi_agent(app) as url:
            check(await call_through(f"{url}/stream", talk), talk)
        await supervisor.aclose()


async def test_the_descriptions_quickstart_on_the_websockets_handler() -> None:
    talk = Conversation()
    async with LLMStandIn() as llm:
        supervisor = make_supervisor(llm)

        async def stream(websocket: Any) -> None:
            handler = PlivoWebsocketStreamingHandler()
            await supervise(supervisor, handler, lambda: handler.handle(websocket), talk)

        async with serve(stream, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            check(await call_through(url, talk), talk)
        await supervisor.aclose()


async def test_the_example_agent_corrects_a_promise_blocks_a_charge_and_takes_an_order() -> None:
    folder = Path(quickstart.__file__).parent
    script = load_script(folder / "call.yaml").prepare()
    async with scripted(json.loads((folder / "judge.json").read_text()), LLMStandIn()) as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        supervisor = Supervisor(MirrorConfig(llm=client, policies=quickstart.POLICIES))
        async with asgi_agent(quickstart.make_app(supervisor)) as url:
            call = SimulatedCall(url + "/", script.run, script.switches, media_format=script.media_format)
            record = await settle(asyncio.create_task(call.run()), 80)
        await supervisor.aclose()
    assert record.outcome == "completed"

    async def was_heard(text: str, *, milliseconds: int = 500) -> bool:
        return record.heard.find((await quickstart.my_tts(text))[800 : 800 + 8 * milliseconds]) is not None

    assert await was_heard("Hello, this is Slice House. How can I help?")
    assert not await was_heard("I have already refunded the full amount to your card.")
    assert [question.agent_text for question in llm.asked("mirror_turn") if "refunded" in question.agent_text]
    # The charge was blocked, so the agent says so; the order was not, so it is taken.
    blocked = "I have not charged anything. The new pizza is twelve dollars. Which one would you like?"
    assert await was_heard(f"As I said, a colleague decides about your refund. {blocked}")
    assert await was_heard("Thank you. One large margherita is on its way to five Main Street.")
