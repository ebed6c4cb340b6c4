"""Run Mirror's server around an application that echoes, as a process: `python -m tests.mirror_saas.echo_server`."""

import logging.config
import sys
from typing import Any

from mirror_saas.logging import logging_config


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """WebSockets get back what they send, or the close that `close <code>` asks for; HTTP gets its path."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})
        return
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while (message := await receive())["type"] == "websocket.receive":
            if (message.get("text") or "").startswith("close "):
                await send({"type": "websocket.close", "code": int(message["text"].removeprefix("close "))})
                continue
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
    finally:
        print("socket ended", flush=True)


async def on_start() -> None:
    print("on_start ran", flush=True)
    raise RuntimeError("a start that fails must not end the server")


async def on_stop() -> None:
    print("on_stop ran", flush=True)


def main() -> None:
    from mirror_saas.serving import ListenError, server_run

    port, part, drain_s = sys.argv[1:]
    logging.config.dictConfig(logging_config())
    try:
        server_run(
            echo,
            host="127.0.0.1",
            port=int(port),
            part=part,  # type: ignore[arg-type]
            drain_s=float(drain_s),
            on_start=on_start,
            on_stop=on_stop,
        )
    except ListenError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
