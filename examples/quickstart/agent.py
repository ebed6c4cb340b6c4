"""A Plivo voice agent that supervises itself: plivo-stream-sdk, and Mirror's engine as a library.

Run it: python -m examples.quickstart.agent --port 9004 (see README.md, also for how to do so without a network).
"""

import argparse
import asyncio
import json
import os
from collections.abc import Coroutine
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from plivo_stream import MediaEvent, StartEvent
from plivo_stream.fastapi import PlivoFastAPIStreamingHandler

from examples.slice_house import Ears, Message, caller_lines, from_mulaw, run_tool, speak, think, to_mulaw
from supervision.engine import MirrorConfig, Supervisor
from supervision.engine.llm.openai import OpenAIClient

POLICIES = [
    "Never confirm a refund — transfer to a human supervisor.",
    "Always read the order back before calling place_order.",
    "Never charge a card with an amount that the customer did not name.",
]


async def my_tts(text: str) -> bytes:
    """Where your TTS vendor is: mu-law at 8 kHz."""
    return to_mulaw(await speak(text))


def make_app(supervisor: Supervisor) -> FastAPI:
    app = FastAPI()

    @app.websocket("/")
    async def call(websocket: WebSocket) -> None:
        handler = PlivoFastAPIStreamingHandler(websocket)
        ears, said = Ears(), iter(caller_lines())
        messages: list[Message] = []
        answers: set[asyncio.Task[None]] = set()

        async with supervisor.attach(handler, tts_provider=my_tts) as sup:

            async def answer(user_text: str) -> None:
                if user_text:
                    messages.append({"role": "user", "content": user_text})
                if note := await sup.consume_override():
                    messages.append({"role": "system", "content": note})
                reply = think(messages)
                if tool := reply.tool:
                    gate = await sup.gate_tool_call(
                        customer_text=user_text, intents=[{"name": tool.name, "args": tool.args}]
                    )
                    (decision,) = gate.tools
                    result: dict[str, Any] = {"status": "not_done", "say": decision.instruction}
                    if decision.allow:
                        result = run_tool(tool)
                        sup.tool_done(decision.id, True, result)
                    messages.append({"role": "tool", "content": json.dumps(result)})
                    reply = think(messages)
                agent_text = reply.text
                messages.append({"role": "assistant", "content": agent_text})
                verdict = await sup.review_turn(customer_text=user_text, primary_text=agent_text)
                if verdict.should_intervene:
                    await sup.intervene(verdict)  # Mirror speaks the correction
                else:
                    await sup.speak(agent_text)  # happy path

            def begin(work: Coroutine[Any, Any, None]) -> None:
                answers.add(task := asyncio.create_task(work))
                task.add_done_callback(answers.discard)

            @handler.on_start
            async def on_start(event: StartEvent) -> None:
                sup.bind_call(event.start.call_id)
                begin(answer(""))

            @handler.on_media
            async def on_media(event: MediaEvent) -> None:
                match ears.hear(from_mulaw(event.get_raw_media())):
                    case "began":
                        await handler.send_clear_audio()
                    case "stopped":
                        begin(answer(next(said)))

            await handler.start()

    return app


def make_supervisor() -> Supervisor:
    """The judge is any server that speaks OpenAI's chat completions; without OPENAI_BASE_URL it is OpenAI."""
    llm = OpenAIClient(
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        model=os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
        base_url=os.environ.get("OPENAI_BASE_URL"),
    )
    return Supervisor(MirrorConfig(llm=llm, policies=POLICIES, intervention_threshold=0.7))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9004)
    port = parser.parse_args().port
    uvicorn.run(make_app(make_supervisor()), host="127.0.0.1", port=port, ws_max_size=16 * 1024 * 1024)
