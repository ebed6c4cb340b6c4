"""What goes out holds secrets and what was said; at the most talkative log level, none of it is in the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A process of its own, because logging is configured once in each.
SCRIPT = """
import asyncio, json, logging
import django
django.setup()
from aiohttp import web
from mirror_saas.egress_http import EgressClient, EgressFailed, llm_http_client
from supervision.engine.llm.openai import OpenAIPool
from supervision.stream.dial import AgentLeg, AgentUnreachable, handshake_headers

ANSWER = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop", "message":
    {"role": "assistant", "content": json.dumps({"text": "canary-answer"})}}]}

async def answer(request):
    if request.path == "/agent":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str('{"canary-frame": 1}')
        await socket.close()
        return socket
    if request.path == "/broken":
        return web.Response(status=500, text="canary-error")
    return web.json_response(ANSWER, headers={"X-Secret": "canary-response-header"})

async def main():
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"127.0.0.1:{runner.addresses[0][1]}"
    pool = OpenAIPool(http_client=llm_http_client)
    judge = pool.client(api_key="canary-api-key", model="m", base_url=f"http://{host}/v1")
    asked = dict(system="canary-policy", user="canary-said", schema_name="mirror_correction", max_tokens=10,
                 timeout_s=5, schema={"type": "object", "properties": {"text": {"type": "string"}}})
    got = await judge.complete_json(**asked)
    assert "canary-answer" in str(got), got
    failing = pool.client(api_key="canary-api-key", model="m", base_url=f"http://{host}/broken")
    try:
        await failing.complete_json(**asked)
    except Exception as problem:
        assert "canary" not in str(problem), problem
    async with EgressClient() as client:
        login = {"Authorization": "canary-login"}
        await client.request("POST", f"http://{host}/hook?canary-query", headers=login, body=b"canary-body")
        for bad in ("http://10.0.0.1/canary-path", "http://canary-user:x@a.example/", f"http://{host}/ canary"):
            try:
                await client.request("GET", bad)
            except (PermissionError, EgressFailed) as problem:
                logging.getLogger("test").warning("%s", problem)
    nothing = lambda *_: None
    leg = AgentLeg(on_text=nothing, on_binary=nothing, on_closed=nothing, on_dropped=nothing, on_garbled=nothing)
    url = f"ws://{host}/agent?canary-query"
    headers = handshake_headers(secret="canary-secret", call_id="canary-call", url=url,
        tenant_headers={"Authorization": "canary-login"}, plivo_tokens=("canary-auth-token",))
    signatures = [value for name, value in headers.items() if "ignature" in name]
    await leg.dial(url, headers=headers, subprotocols=[])
    leg.close()
    try:
        await leg.dial("ws://10.0.0.1/canary-path", headers=headers, subprotocols=[])
    except AgentUnreachable as problem:
        logging.getLogger("test").warning("%s", problem)
    await pool.aclose()
    await runner.cleanup()
    print(json.dumps(signatures))

asyncio.run(main())
logging.getLogger("test").debug("talkative")
"""


def test_neither_secrets_nor_words_are_logged_on_the_way_out(tmp_path: Path) -> None:
    import json

    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "mirror_saas.settings",
            "MIRROR_ENV": "development",
            "MIRROR_LOG_LEVEL": "DEBUG",
            "MIRROR_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "talkative" in ran.stderr
    assert "MIRROR_EGRESS_ALLOW" in ran.stderr
    assert "canary" not in ran.stderr
    for signature in json.loads(ran.stdout.splitlines()[-1]):
        assert signature not in ran.stderr
