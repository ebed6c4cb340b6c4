"""Secrets and words go into every entry point of real processes at their most talkative; none comes out in the log.

One thing prints a secret by purpose: without a mail server, mails (a link to a new password, an invitation) are printed
by Django's console backend on the worker's standard output. Nothing here asks for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from mirror_saas.celery import app as celery_app
from supervision.plivo.simulator import PlivoSwitches, SimulatedCall
from supervision.services.agents import agent_headers_update, agent_stream_key_create, stream_url
from supervision.services.plivo_accounts import plivo_account_save
from tests.e2e.agents import AgentCall, agent
from tests.e2e.conftest import ROOT, Fortress, recorded
from tests.factories import PASSWORD, Tenancy, tenancy_create
from tests.standins.llm import LLMStandIn, words
from tests.support.raw_http import Answer, ask, upgrade
from tests.webui.conftest import let_sign_in

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]

CSRF = "c" * 32
FORM = "application/x-www-form-urlencoded"


class Canaries:
    """Secrets by what they are; each is a word that nothing else says."""

    def __init__(self, fortress: Fortress) -> None:
        self.port = fortress.port
        self.sung = fortress.secrets
        self.echoed: list[str] = []

    def __call__(self, kind: str, form: str = "{}") -> str:
        """A new one, in `form`; what is looked for is the word in it."""
        word = f"canary{secrets.token_hex(8)}"
        self.sung[kind] = word
        return form.format(word)

    def real(self, kind: str, secret: str) -> str:
        """A secret that Mirror made itself."""
        self.sung[kind] = secret
        return secret

    def ask(self, method: str, path: str, *headers: tuple[str, str], kind: str = "", body: str = "") -> Answer:
        """A request; no answer to it may repeat a secret."""
        sent = [*headers, ("Origin", Fortress.ORIGIN), ("X-CSRFToken", CSRF)]
        if not any(name == "Cookie" for name, _ in headers):
            sent.append(("Cookie", f"__Host-csrftoken={CSRF}"))
        if kind:
            sent.append(("Content-Type", kind))
        answer = ask(self.port, method, path, headers=sent, body=body.encode())
        text = answer.body.decode("utf-8", "replace") + str([h for h in answer.headers if h[0] != "set-cookie"])
        self.echoed += [f"{name} in the answer to {method} {path}" for name, word in self.sung.items() if word in text]
        if path == "/account/two-factor":
            # A mistyped code stays in its field, to be corrected.
            self.echoed = [what for what in self.echoed if not what.startswith("code for /account/two-factor in")]
        return answer


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


def ask_the_api(canary: Canaries, tenancy: Tenancy) -> None:
    """Keys, right, wrong and misshapen; bodies and fields of every kind."""
    key = tenancy.api_key
    canary.real("the API key's secret", key.split("_", 2)[2])
    assert canary.ask("GET", "/api/v1/me", bearer(key)).status == 200
    for kind, wrong in [
        ("a wrong API key", key.rsplit("_", 1)[0] + "_{}" + "A" * 21),
        ("an unknown API key", "mk_abcdefghijkl_{}" + "A" * 21),
        ("no API key at all", "{}"),
        ("a key with blanks", "x {} y"),
    ]:
        assert canary.ask("GET", "/api/v1/me", bearer(canary(kind, wrong))).status in (401, 429)
    assert canary.ask("GET", "/api/v1/me", ("Authorization", canary("a basic login", "Basic {}"))).status in (401, 429)
    as_owner = bearer(key)
    for index, body in enumerate(('{{"name": ["{}"]}}', '{{"name": "x", "scopes": "{}"}}', '{{"name": {}', '"{}"')):
        for path in ("/api/v1/api-keys", "/api/v1/invitations", "/api/v1/me", "/api/v1/nothing"):
            sent = canary(f"JSON body {index} for {path}", body)
            answer = canary.ask("POST", path, as_owner, kind="application/json", body=sent)
            assert 400 <= answer.status < 500, (path, answer)
    canary.ask("GET", "/api/v1/calls?limit=" + canary("a query"), as_owner)
    canary.ask("GET", "/api/v1/calls?cursor=" + canary("a cursor"), as_owner)


def ask_the_pages(canary: Canaries, tenancy: Tenancy) -> None:
    """Cookies, forms with passwords and codes, and tokens in paths."""
    email = tenancy.users["alice"].email
    canary.ask("GET", "/calls", ("Cookie", canary("a session cookie", "__Host-sessionid={}")))
    canary.ask("GET", "/sign-in", ("Cookie", canary("a CSRF cookie", "__Host-csrftoken={}")))
    canary.ask("GET", "/sign-in", ("Cookie", canary("a time zone", "tz={}")))
    canary.ask("POST", "/sign-in", kind=FORM, body=f"login={email}&password=" + canary("a wrong password"))
    canary.ask("POST", "/sign-in", ("Cookie", "x=y"), kind=FORM, body="password=" + canary("a password without CSRF"))
    canary.real("the password", PASSWORD)
    signed_in = canary.ask("POST", "/sign-in", kind=FORM, body=f"login={email}&password={PASSWORD.replace(' ', '+')}")
    assert signed_in.status == 302, signed_in
    session = canary.real("the session", signed_in.cookies["__Host-sessionid"].split(";")[0].split("=", 1)[1])
    cookies = ("Cookie", f"__Host-sessionid={session}; __Host-csrftoken={CSRF}")
    assert canary.ask("GET", "/calls", cookies).status == 200
    for path in ("/sign-in/code", "/account/confirm", "/account/password", "/account/two-factor", "/forgot-password"):
        body = "&".join(
            f"{name}=" + canary(f"{name} for {path}")
            for name in ("code", "password", "oldpassword", "password1", "password2", "secret")
        )
        assert canary.ask("POST", path, cookies, kind=FORM, body=body).status < 500
    for prefix in ("/invitation/", "/reset-password/", "/reset-password/3f-", "/stream/demo/", "/plivo/demo/"):
        for suffix in ("", "/more", "?x=y"):
            assert canary.ask("GET", canary(f"{prefix}…{suffix}", prefix + "{}" + suffix)).status < 500
    canary.ask("POST", canary("an invitation's token", "/invitation/{}"), cookies, kind=FORM, body="")


def ask_as_plivo(canary: Canaries, tenancy: Tenancy) -> None:
    """Answer URL, status callback, call token."""
    url = tenancy.answer_url("")
    canary.real("the stream key", tenancy.stream_key)
    answer = ask(canary.port, "GET", f"{url}?CallUUID=c1")
    assert answer.status == 200
    token = canary.real("the call token", answer.body.decode().split("mt=", 1)[1].split("<", 1)[0].split("&", 1)[0])
    path = f"/stream/{tenancy.slug}/{tenancy.stream_key}"
    upgrade(canary.port, f"{path}?mt={token[:-3]}AAA")
    upgrade(canary.port, f"{path}?mt=" + canary("a made-up call token"))
    upgrade(canary.port, f"{path}?lang=" + canary("a stream's query"))
    upgrade(canary.port, canary("a wrong stream key", "/stream/" + tenancy.slug + "/sk_{}"))
    upgrade(canary.port, canary("an unroutable stream", "/stream/" + tenancy.slug + "/sk_{}/x"))
    # Its answer has to name the stream, key and all.
    form = ("Content-Type", FORM)
    ask(canary.port, "POST", url, headers=[form], body=f"CallUUID=c2&Digits={canary('digits in a form')}".encode())
    canary.ask("POST", canary("a wrong answer key", f"/plivo/{tenancy.slug}/" + "{}/answer"), kind=FORM, body="")
    with tenancy.context():
        plivo_account_save(auth_id="MA" + "X" * 18, auth_token=canary("Plivo's auth token", "{}" + "t" * 18))
    signature = canary("a signature")
    canary.ask(
        "POST", url, ("X-Plivo-Signature-V3", signature), ("X-Plivo-Signature-V3-Nonce", "1"), kind=FORM, body=""
    )


async def call(canary: Canaries, llm: LLMStandIn) -> Tenancy:
    """A whole call: words of caller and agent, digits, frames, tools, a judge that answers and one that fails."""
    api_key = canary("the judge's key", "sk-{}")
    echo = {"message": f"Incorrect API key provided: {api_key}. " + canary("a judge's error"), "type": "invalid"}
    said = canary("the agent's words", "I have refunded {} to you.")
    reason = {"rule": 1, "reason": canary("the judge's reason"), "correction": canary("the judge's correction")}
    llm.judge(words({"refunded": reason}))
    llm.correct(lambda question: canary("the correction that is spoken"))
    llm.once(status=500, error=echo)

    async def script(call: AgentCall) -> None:
        await call.wait("start")
        await call.send("mirror.hello", v=1, sdk=canary("an SDK's name"), language=canary("a language"))
        await call.hello()
        await call.connection.send(canary("no JSON", "{} {{"))
        await call.connection.send(canary("bytes", "{}").encode())
        await call.send(canary("an event's name"), x=canary("an event's field"))
        await call.send("mirror.turn", turn_id=7, text=canary("a malformed turn"))
        for number in range(3):
            heard = canary(f"the caller's words {number}")
            await call.send("mirror.turn", turn_id=f"t{number}", customer_text=heard, text=said)
            await call.wait("mirror.verdict", count=number + 1)
        arguments = {"card": canary("a tool's argument")}
        await call.send("mirror.tool", id="x1", turn_id="t9", name="refund", arguments=arguments)
        await call.send("mirror.tool_done", id="x1", result=canary("a tool's result"))
        await call.send("sendDTMF", dtmf={"digit": canary("digits that the agent sends")})
        await call.send("checkpoint", streamId=call.stream_id, name="end")

    async def caller(simulated: SimulatedCall) -> None:
        simulated.send_raw(json.dumps({"event": "dtmf", "dtmf": {"digit": canary("digits that the caller pressed")}}))
        simulated.send_raw(canary("no JSON of Plivo's", "{{ {}"))
        await simulated.wait_for(lambda record: bool(record.played("end")), 30)
        simulated.hang_up()

    async with agent(script) as made:
        upstream = f"{made.url}?token=" + canary("the agent URL's token")
        tenancy = await asyncio.to_thread(
            tenancy_create, upstream_url=upstream, llm_base_url=llm.base_url, llm_api_key=api_key
        )
        canary.real("the signing secret", tenancy.signing_secret)
        await asyncio.to_thread(give_headers, canary, tenancy)
        url = tenancy.stream_url(f"ws://127.0.0.1:{canary.port}")
        record = await SimulatedCall(url, caller, PlivoSwitches(), keep_raw=True).run()
        assert record.outcome == "completed", record
        await recorded(tenancy)
    llm.once(status=401, error=echo)
    return tenancy


def give_headers(canary: Canaries, tenancy: Tenancy) -> None:
    with tenancy.context():
        headers = {"Authorization": canary("the agent's login", "Bearer {}"), "X-Key": canary("an agent's header")}
        agent_headers_update(agent=tenancy.agent, headers=headers)
    let_sign_in(tenancy)


async def call_nobody(canary: Canaries) -> None:
    """A call whose agent does not answer."""
    upstream = canary("an unreachable agent's URL", "ws://127.0.0.1:1/agent/{}?token=1")
    tenancy = await asyncio.to_thread(tenancy_create, upstream_url=upstream)
    key = canary("a key of an unreachable agent", "sk_{}" + "k" * 20)

    def more_key() -> str:
        with tenancy.context():
            made = agent_stream_key_create(agent_id=tenancy.agent.id, key=key)
        return stream_url(public_url=f"ws://127.0.0.1:{canary.port}", tenant_slug=tenancy.slug, key=made.key)

    await SimulatedCall(await asyncio.to_thread(more_key), None, PlivoSwitches()).run()


async def ask_the_console(canary: Canaries) -> None:
    """Frames on a console socket."""
    for frame in (
        '{{"type": "subscribe", "topic": "{}"}}',
        '{{"type": "{}"}}',
        "{} {{",
        '{{"type": "subscribe", "x": "{}"}}',
    ):
        cookie = {"Cookie": f"__Host-sessionid={canary.sung['the session']}"}
        url = f"ws://127.0.0.1:{canary.port}/ws/console"
        async with connect(url, origin=Origin(Fortress.ORIGIN), additional_headers=cookie) as console:
            # What makes no sense closes the socket.
            await console.send(canary(f"a console's frame {frame}", frame))
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionClosed):
                    while '"refused"' not in str(await console.recv()):
                        pass


def send_tasks(canary: Canaries, fortress: Fortress) -> None:
    """Messages to the worker: unknown, misshapen, of nobody."""
    redis_url = fortress.environment["REDIS_URL"]
    fortress.expected += ["unexpected keyword argument 'nope'", "celery.exceptions.Reject: ('its headers name"]
    with celery_app.connection_for_write(redis_url) as connection:
        for name in ("nothing.known", "tenants.invitation_send", "tenants.password_reset_send"):
            arguments = {"args": [canary(f"{name}'s argument")], "kwargs": {"nope": canary(f"{name}'s field")}}
            celery_app.send_task(name, connection=connection, queue="celery", **arguments)
    fortress.command.until("nothing.known")


def run_commands(canary: Canaries, fortress: Fortress, tenancy: Tenancy) -> str:
    """What management commands and a start that fails write, apart from what they are for."""
    key = canary("a key given to a command")
    made = run(
        fortress.environment, "create_agent", "--tenant", tenancy.slug, "--name", "x", "--upstream", "ws://127.0.0.1:1/",
        "--llm-base-url", "http://127.0.0.1:1/v1", "--llm-model", "m", "--llm-api-key", key,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    wrong = {
        "MIRROR_ENCRYPTION_KEY": canary("an encryption key that is none"),
        "MIRROR_SECRET_KEY": canary("a secret key that is none")[:10],
        "DATABASE_URL": canary("a database's password", "postgresql://mirror_app:{}@"),
        "REDIS_URL": canary("a broker's password", "redis://:{}@:x/0"),
    }
    failed = run({**fortress.environment, **wrong}, "serve", "--only", "web")
    assert failed.returncode != 0
    assert "MIRROR_ENCRYPTION_KEY" in failed.stdout + failed.stderr
    return made.stderr + key_free(made.stdout) + failed.stdout + failed.stderr


def key_free(shown: str) -> str:
    """A command's output without the keys that it is there to show."""
    return "\n".join(
        line for line in shown.splitlines() if not line.startswith(("stream_url", "answer_url", "signing"))
    )


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


async def test_no_secret_and_no_word_reaches_a_log(fortress: Fortress) -> None:
    canary = Canaries(fortress)
    async with LLMStandIn() as llm:
        tenancy = await call(canary, llm)
    await call_nobody(canary)
    await asyncio.to_thread(ask_the_api, canary, tenancy)
    await asyncio.to_thread(ask_the_pages, canary, tenancy)
    await ask_the_console(canary)
    await asyncio.to_thread(ask_as_plivo, canary, tenancy)
    await asyncio.to_thread(send_tasks, canary, fortress)
    printed = await asyncio.to_thread(run_commands, canary, fortress, tenancy)

    # A line about each of them is there, so it is not silence that passes.
    ask(fortress.port, "GET", "/the-last-line")
    await asyncio.to_thread(fortress.command.until, "/the-last-line")
    for line in ("Forbidden: /plivo/", "Not Found: /invitation/***", "Unauthorized: /api/v1/me", "nothing.known"):
        assert line in fortress.said, line
    logs = (
        printed
        + fortress.said
        + "".join(path.read_text(errors="replace") for path in fortress.home.rglob("*.log") if path.is_file())
    )
    assert len(canary.sung) > 90
    assert [kind for kind, word in canary.sung.items() if word in logs] == []
    assert canary.echoed == []
