"""The floor for the relay's benchmark: a picows server that dials an agent for each stream and copies frames.

python -m benchmarks.bare_relay --port 9001 --upstream ws://127.0.0.1:9002/agent
"""

from __future__ import annotations

import argparse
import asyncio

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server


class _Leg(WSListener):
    def __init__(self) -> None:
        self.other: WSTransport | None = None
        self.waiting: list[bytes] = []

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            if self.other is None:
                self.waiting.append(frame.get_payload_as_bytes())
            else:
                self.other.send(WSMsgType.TEXT, frame.get_payload_as_memoryview())
        elif frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.other is not None:
            self.other.disconnect()


class _Plivo(_Leg):
    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = upstream

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.dialling = asyncio.get_running_loop().create_task(self._dial(transport))

    async def _dial(self, transport: WSTransport) -> None:
        agent = _Leg()
        agent.other = transport
        self.other, _ = await ws_connect(lambda: agent, self.upstream, use_aiofastnet=False)
        for frame in self.waiting:
            self.other.send(WSMsgType.TEXT, frame)


async def main(port: int, upstream: str) -> None:
    def listener(request: WSUpgradeRequest) -> WSListener:
        return _Plivo(upstream)

    server = await ws_create_server(listener, "127.0.0.1", port, use_aiofastnet=False)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    asyncio.run(main(options.port, options.upstream))
