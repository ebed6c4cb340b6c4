"""A stand-in for Plivo's REST API of calls, for tests. It imports nothing of Mirror's client.

    plivo = PlivoStandIn()
    plivo.call("call-1")
    answer = await plivo.answer("DELETE", "/v1/Account/MA…/Call/call-1/", headers, b"")   # without a socket
    async with plivo.serving() as base_url: ...                                             # with one

It answers as Plivo does: 401 for a wrong login, 404 for a call that is over, 202 and 204 for what it took, 400 for a
body that it cannot use, and a request without a call id is one about all calls. `next_answers` scripts the next ones.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

AUTH_ID = "MAALICESACCOUNT00001"
AUTH_TOKEN = "plivo-token-of-alice-0001"
_PATH = re.compile(r"/v1/Account/(?P<account>[^/]*)/Call/(?:(?P<call>[^/]+)/)?(?P<rest>.*)")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. `action` is `speak`, `stop_speaking`, `transfer`, `hangup`, `hangup_all` or what it was instead."""

    action: str
    call_id: str
    fields: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer; `headers` such as `Retry-After`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


class PlivoStandIn:
    """One Plivo account and its live calls."""

    def __init__(self, auth_id: str = AUTH_ID, auth_token: str = AUTH_TOKEN) -> None:
        self.auth_id = auth_id
        self.auth_token = auth_token
        self.live: set[str] = set()
        self.asked: list[Asked] = []
        self.next_answers: deque[Answered] = deque()
        self.changed = asyncio.Event()

    def call(self, call_id: str) -> None:
        """A call is running."""
        self.live.add(call_id)

    def of(self, action: str) -> list[Asked]:
        """The requests for one action, in order."""
        return [asked for asked in self.asked if asked.action == action]

    async def wait_for(self, action: str) -> Asked:
        """The first request for this action, as soon as it came."""
        async with asyncio.timeout(20):
            while not self.of(action):
                self.changed.clear()
                await self.changed.wait()
        return self.of(action)[0]

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answered:
        """What Plivo answers to one request."""
        found = _PATH.fullmatch(path)
        if found is None or found["account"] != self.auth_id or not self._logged_in(headers):
            return Answered(401)
        try:
            fields = json.loads(body) if body else {}
        except ValueError:
            return Answered(400)
        action, call_id = _action(method, found["call"], found["rest"], fields), found["call"] or ""
        self.asked.append(Asked(action, call_id, fields, asyncio.get_running_loop().time()))
        self.changed.set()
        if self.next_answers:
            scripted = self.next_answers.popleft()
            await asyncio.sleep(scripted.after_s)
            return scripted
        if action == "hangup_all":
            self.live.clear()
            return Answered(204)
        if action == "unknown":
            return Answered(400)
        if call_id not in self.live:
            return Answered(404)
        if action == "hangup":
            self.live.discard(call_id)
        return Answered(202 if action in ("speak", "transfer") else 204)

    def _logged_in(self, headers: Mapping[str, str]) -> bool:
        given = {name.lower(): value for name, value in headers.items()}.get("authorization", "")
        return given == "Basic " + base64.b64encode(f"{self.auth_id}:{self.auth_token}".encode()).decode()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listen; gives the base URL, which ends with `/v1`."""

        async def handle(request: web.Request) -> web.Response:
            answered = await self.answer(request.method, request.path, request.headers, await request.read())
            return web.json_response({"api_id": "stand-in"}, status=answered.status, headers=dict(answered.headers))

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            await runner.cleanup()


def _action(method: str, call_id: str | None, rest: str, fields: Any) -> str:
    if not isinstance(fields, dict):
        return "unknown"
    if call_id is None:
        return "hangup_all" if method == "DELETE" and not rest else "unknown"
    if rest == "Speak/":
        speaks = method == "POST" and isinstance(fields.get("text"), str) and fields["text"]
        return "speak" if speaks else "stop_speaking" if method == "DELETE" else "unknown"
    if rest:
        return "unknown"
    if method == "DELETE":
        return "hangup"
    url = str(fields.get("aleg_url", ""))
    return "transfer" if method == "POST" and url.startswith("http") and fields.get("legs") == "aleg" else "unknown"
