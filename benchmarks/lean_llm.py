"""A server that answers every chat completion with the same clean verdict after a delay: as little work as can be.

    python -m benchmarks.lean_llm --delay-ms 300        # prints {"base_url": …} and runs until its input is closed

For figures in which the server must not be what is measured; it reads a request just far enough to know where it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

VERDICT = json.dumps({"score": 0.0, "rule": None, "reason": "", "correction": ""})
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": VERDICT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1500, "completion_tokens": 30, "total_tokens": 1530},
    }
).encode()
RESPONSE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(COMPLETION) + COMPLETION
)


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1, one request after the other, bodies by content-length."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._got = bytearray()
        self._body_ends: int | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._got += data
        while True:
            if self._body_ends is None:
                head_ends = self._got.find(b"\r\n\r\n")
                if head_ends < 0:
                    return
                length = 0
                for line in bytes(self._got[:head_ends]).split(b"\r\n")[1:]:
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                self._body_ends = head_ends + 4 + length
            if len(self._got) < self._body_ends:
                return
            del self._got[: self._body_ends]
            self._body_ends = None
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(RESPONSE)


async def serve(delay_s: float) -> None:
    """Serves until standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(delay_s), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def lean_llm(delay_ms: int = 0) -> Iterator[str]:
    """Runs the server in a process of its own; gives its base URL."""
    command = [sys.executable, "-m", "benchmarks.lean_llm", "--delay-ms", str(delay_ms)]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the stand-in's process ended before it was ready; see its stderr")
            yield json.loads(line)["base_url"]
        finally:
            process.stdin.close()


def main() -> None:
    """The command line of the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=int, default=0)
    runner = asyncio.Runner
    try:
        import uvloop
    except ImportError:
        loop_factory = None
    else:
        loop_factory = uvloop.new_event_loop
    with runner(loop_factory=loop_factory) as running:
        running.run(serve(parser.parse_args().delay_ms / 1000))


if __name__ == "__main__":
    main()
