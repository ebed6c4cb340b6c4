"""Calls for benchmarks of the call path: callers at real-time pace, echo agents, a judge, and a Mirror to call.

The load runs in the benchmark's own process; what is measured are other processes' CPU seconds, user and system.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from aiohttp import web
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_connect, ws_create_server

from mirror_saas.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
FRAME_S = 0.02
TURN_EVERY_S = 8.0
HANDSHAKE_S = 60.0  # of a crowd that comes at once, on a machine that has other work
SPEECH = bytes([0x10, 0x90] * 80)
PLAY = json.dumps(
    {
        "event": "playAudio",
        "media": {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": b64encode(SPEECH).decode()},
    },
    separators=(",", ":"),
).encode()


class EchoAgent(WSListener):
    """Answers each media frame with one playAudio frame; supervised, it also reports a turn every 8 s."""

    def __init__(self, supervised: bool) -> None:
        self.supervised = supervised
        self.turns = 0
        self.next_turn = 0.0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.send_close()
            transport.disconnect()
            return
        payload = frame.get_payload_as_bytes()
        if b'"media"' in payload[:24]:
            if self.supervised:
                self._report(transport)
            transport.send(WSMsgType.TEXT, PLAY)
        elif b'"start"' in payload[:24] and self.supervised:
            hello = {"event": "mirror.hello", "v": 1, "sdk": "bench", "wants": ["verdicts", "notes"]}
            transport.send(WSMsgType.TEXT, json.dumps(hello).encode())

    def _report(self, transport: WSTransport) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self.next_turn:
            # Calls are spread over the 8 s, so that judging is as even as it is with real callers.
            first = self.turns == 0
            self.next_turn = now + (TURN_EVERY_S * (id(self) % 97) / 97 if first else TURN_EVERY_S)
            self.turns += 1
            turn = {
                "event": "mirror.turn",
                "turn_id": f"t{self.turns}",
                "customer_text": "What does the large one cost?",
                "text": "The large one is twelve dollars, and it comes with two toppings of your choice.",
            }
            transport.send(WSMsgType.TEXT, json.dumps(turn).encode())


class Caller(WSListener):
    """Plivo's side of one call: a media frame every 20 ms, and a count of what came back."""

    def __init__(self) -> None:
        self.stream_id = str(uuid4())
        self.received = 0.0  # frames of 20 ms
        self.sequence = 1
        self.transport: WSTransport | None = None

    def start(self) -> None:
        assert self.transport is not None
        start = {
            "event": "start",
            "sequenceNumber": 1,
            "start": {
                "callId": str(uuid4()),
                "streamId": self.stream_id,
                "accountId": "MAXXXXXXXXXXXXXXXXXX",
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
            },
            "extra_headers": "",
        }
        self.transport.send(WSMsgType.TEXT, json.dumps(start).encode())

    def tick(self) -> None:
        assert self.transport is not None
        self.sequence += 1
        media = (
            f'{{"event":"media","sequenceNumber":{self.sequence},"streamId":"{self.stream_id}","media":{{"track":'
            f'"inbound","timestamp":"1705312200000","chunk":{self.sequence},"payload":"{_INBOUND}"}},"extra_headers":""}}'
        )
        self.transport.send(WSMsgType.TEXT, media.encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if b'"playAudio"' in payload[:24]:
            begin = payload.index(b'"payload"') + 9
            begin = payload.index(b'"', begin) + 1
            end = payload.index(b'"', begin)
            self.received += ((end - begin) * 3 // 4 - payload.count(b"=", begin, end)) / len(SPEECH)
        elif b'"checkpoint"' in payload[:24]:
            name = json.loads(payload)["name"]
            played = {"event": "playedStream", "sequenceNumber": 1, "streamId": self.stream_id, "name": name}
            transport.send(WSMsgType.TEXT, json.dumps(played).encode())


_INBOUND = b64encode(b"\xff" * 160).decode()
WARM_S = 3.0  # of each run that is not counted: dialling, the first verdict, lines of a call's own


async def load(
    url: str, calls: int, seconds: float, process: psutil.Process, *, together: bool = False
) -> tuple[float, float]:
    """Run ``calls`` calls for ``seconds``; returns the server's CPU seconds and the 20 ms round trips in that time.

    Callers speak one after the other, evenly over 20 ms; ``together``, all in the same instant."""
    loop = asyncio.get_running_loop()
    callers: list[Caller] = []
    for _ in range(calls):
        caller = Caller()
        caller.transport, _ = await ws_connect(
            lambda caller=caller: caller, url, use_aiofastnet=False, websocket_handshake_timeout=HANDSHAKE_S
        )
        caller.start()
        callers.append(caller)
    running = True
    warm_until = loop.time() + WARM_S

    async def ticking(caller: Caller, offset: float) -> None:
        due = loop.time() + offset
        while running:
            await asyncio.sleep(max(0.0, due - loop.time()))
            caller.tick()
            due += FRAME_S

    apart = 0.0 if together else FRAME_S / calls
    tickers = [asyncio.create_task(ticking(c, apart * i)) for i, c in enumerate(callers)]
    await asyncio.sleep(warm_until - loop.time())
    used, trips = cpu_s(process), sum(caller.received for caller in callers)
    await asyncio.sleep(seconds)
    used, trips = cpu_s(process) - used, sum(caller.received for caller in callers) - trips
    running = False
    await asyncio.gather(*tickers)
    for caller in callers:
        assert caller.transport is not None
        caller.transport.send_close()
        caller.transport.disconnect()
    return used, trips


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used, in itself and in the kernel."""
    times = process.cpu_times()
    return times.user + times.system


async def agent_server(supervised: bool) -> tuple[asyncio.Server, str]:
    """An echo agent for this run, and its URL."""

    def listener(request: WSUpgradeRequest) -> WSListener:
        return EchoAgent(supervised)

    server = await ws_create_server(listener, "127.0.0.1", 0, use_aiofastnet=False)
    return server, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/agent"


async def judge_server() -> tuple[web.AppRunner, str]:
    """A judge that finds nothing wrong, after 300 ms."""
    content = json.dumps({"score": 0.0, "rule": None, "reason": "", "correction": ""})
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "bench",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520},
    }

    async def completions(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.3)
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when ``url`` answers 200."""
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{url} does not answer; the server ended with {process.poll()}") from None
            time.sleep(0.1)


@contextmanager
def mirror(home: Path, servers: Sequence[str] = ("daphne",)) -> Iterator[tuple[str, list[tuple[str, psutil.Process]]]]:
    """A Mirror on a database of its own under ``home``: its public URL, and for each of ``servers`` the address and the
    process of a node that carries calls on it."""
    from mirror_saas import embedded

    ports = [free_port() for _ in servers]
    public = f"http://127.0.0.1:{ports[0]}"
    os.environ.update(
        MIRROR_HOME=str(home),
        MIRROR_ENV="development",
        MIRROR_PUBLIC_URL=public,
        MIRROR_LIMIT_CALLS="unlimited",
        DJANGO_SETTINGS_MODULE="mirror_saas.settings",
    )
    for name in ("DATABASE_URL", "REDIS_URL", "DATABASE_OWNER_URL", "DATABASE_ADMIN_URL"):
        os.environ.pop(name, None)
    embedded.start(home)
    started: list[subprocess.Popen[bytes]] = []
    try:
        manage = [sys.executable, str(ROOT / "manage.py"), "serve"]
        subprocess.run([*manage, "--only", "migrate"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        nodes = []
        for server, port in zip(servers, ports, strict=True):
            env = {**os.environ, "PORT": str(port), "MIRROR_JOURNAL_DIR": str(home / f"journal-{port}")}
            node = subprocess.Popen([*manage, "--stream-only", "--server", server], cwd=ROOT, env=env)
            started.append(node)
            ready(f"http://127.0.0.1:{port}/readyz", node)
            nodes.append((f"http://127.0.0.1:{port}", psutil.Process(node.pid)))
        yield public, nodes
    finally:
        for node in started:
            node.terminate()
        for node in started:
            node.wait(60)
        embedded.stop(home)


def stream_url(http: str, upstream: str, judge: str, config: Mapping[str, Any] | None = None) -> str:
    """An agent of a new tenant, dialled at ``upstream``, and its stream URL; ``config`` are its policy's settings."""
    import django

    django.setup()
    from supervision.models import ProviderCredential
    from supervision.services import agents, credentials, policies
    from tenants.context import tenant_context
    from tenants.services.tenants import tenant_create

    slug = f"bench-{uuid4().hex[:8]}"
    tenant = tenant_create(slug=slug, name="Bench")
    with tenant_context(tenant.id):
        llm = credentials.credential_create(
            name="Judge", kind=ProviderCredential.Kind.LLM, base_url=judge, model="bench", api_key="bench"
        )
        policy = policies.policy_create(name="Bench")
        rules = [{"text": f"Never promise thing number {n}.", "severity": "medium"} for n in range(20)]
        draft = policies.policy_version_create(policy_id=policy.id, rules=rules, config=config, llm_credential=llm)
        policies.policy_version_publish(policy_id=policy.id, number=draft.number)
        made = agents.agent_create(name="Bench", upstream_url=upstream, policy=policy)
        key = agents.agent_stream_key_create(agent_id=made.agent.id).key
    return agents.stream_url(public_url=http, tenant_slug=slug, key=key)
