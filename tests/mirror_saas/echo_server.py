"""Run Mirror's server around an application that echoes, as a process: `python -m tests.mirror_saas.echo_server`."""

import asyncio
import logging.config
import sys
from typing import Any

from mirror_saas.direct_frames import FAILED, direct_frames
from mirror_saas.logging import logging_config


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """WebSockets get back what they send, or the close that `close <code>` asks for; HTTP gets its path, under `/read`
    once its body was read."""
    if scope["type"] == "http":
        while scope["path"] == "/read" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"].endswith("/direct"):
        await direct_echo(scope, receive, send)
        return
    try:
        while (message := await receive())["type"] == "websocket.receive":
            if (message.get("text") or "").startswith("close "):
                await send({"type": "websocket.close", "code": int(message["text"].removeprefix("close "))})
                continue
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
    finally:
        print("socket ended", flush=True)


async def direct_echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The same past ASGI, from the frame after `begin` on; `late` beside it takes the frames only after some have come,
    `raise` raises in their taker, and what came of `receive()` at last is printed."""
    frames = direct_frames(scope)
    assert frames is not None
    said = (await receive())["text"]
    if said == "begin late":
        await asyncio.sleep(0.3)
    closing: list[asyncio.Task[None]] = []

    def on_text(text: str) -> None:
        if text == "raise":
            raise RuntimeError("told to")
        if text.startswith("close "):
            frames.send_text("closing")
            code = int(text.removeprefix("close "))
            closing.append(asyncio.ensure_future(send({"type": "websocket.close", "code": code})))
        else:
            frames.send_text(text)

    frames.take(on_text, frames.send_binary)
    last = await receive()
    print(f"{last['type']} {last.get('code', last.get('problem'))}", flush=True)
    if last["type"] == FAILED:
        await send({"type": "websocket.close", "code": 1011})


async def on_start() -> None:
    print("on_start ran", flush=True)
    raise RuntimeError("a start that fails must not end the server")


async def on_stop() -> None:
    print("on_stop ran", flush=True)


def main() -> None:
    from mirror_saas.serving import ListenError, server_run

    port, part, drain_s, server, *rest = sys.argv[1:]
    run: Any = server_run
    if server == "uvicorn":
        from mirror_saas.uvicorn_serving import uvicorn_run as run
    logging.config.dictConfig(logging_config())
    try:
        run(
            echo,
            host="127.0.0.1",
            port=int(port),
            part=part,
            drain_s=float(drain_s),
            accept_s=float(rest[0]) if rest else 0.0,
            on_start=on_start,
            on_stop=on_stop,
        )
    except ListenError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
