"""What Plivo asks of Mirror is taken only with Plivo's signature, once the tenant has stored its auth token.

The doors run as they are, on a directory that knows alice's agent and charlie's; signatures are made with Plivo's own
package where it can make them.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64encode
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import pytest
from django.conf import settings
from django.test import AsyncRequestFactory
from plivo.utils.signature_v3 import construct_get_url, construct_post_url, get_signature_v3

from mirror_saas.ids import uuid7
from supervision.plivo.signatures import sign, signature_v2, verify
from supervision.stream import consumer, http_urls
from supervision.stream.consumer import StreamConsumer
from supervision.stream.dial import handshake_headers
from supervision.stream.directory import AgentBinding
from supervision.stream.limits import CallLeases
from supervision.stream.revocation import KeyWatch

PUBLIC = "https://mirror.example.com"
TOKEN, SECOND, FOREIGN = "a" * 40, "b" * 40, "c" * 40
KEYS = {("alice", "sk_alice"): (TOKEN, SECOND), ("charlie", "sk_charlie"): (FOREIGN,), ("bob", "sk_bob"): None}
FIELDS = {"CallUUID": "call-1", "From": "15550100", "To": "15550199", "Empty": "", "CallerName": "José 李"}


def binding_of(slug: str, tokens: tuple[str, ...] | None) -> AgentBinding:
    return AgentBinding(
        tenant_id=uuid7(),
        tenant_slug=slug,
        agent_id=uuid7(),
        stream_key_id=uuid7(),
        agent_name=f"{slug}'s agent",
        upstream_url="ws://agent.example/",
        signing_secret="secret",
        mode="live",
        language="en",
        voice="",
        policy_id=None,
        policy_version_id=None,
        policy_version=None,
        rules=(),
        config={},
        llm=None,
        plivo_tokens=tokens,
    )


class Directory:
    def __init__(self) -> None:
        self.bindings = {place: binding_of(place[0], tokens) for place, tokens in KEYS.items()}

    async def lookup(self, slug: str, key: str) -> AgentBinding | None:
        return self.bindings.get((slug, key))

    async def keys_revoked(self, key_ids: Collection[UUID]) -> set[UUID]:
        return set()


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Directory:
    made = Directory()
    runtime = SimpleNamespace(
        directory=made,
        calls=CallLeases(None),
        keys=KeyWatch(made.keys_revoked),
        start=lambda: asyncio.sleep(0),
    )

    async def stream_runtime() -> Any:
        return runtime

    monkeypatch.setattr(http_urls, "stream_runtime", stream_runtime)
    monkeypatch.setattr(consumer, "stream_runtime", stream_runtime)
    monkeypatch.setattr(settings, "MIRROR", replace(settings.MIRROR, public_url=PUBLIC))
    # Tokens of calls are sealed; which tenant's they are is what other tests are about.
    monkeypatch.setattr(http_urls, "token_make", lambda **fields: "token-" + fields["from_number"])
    return made


def plivos(token: str, method: str, url: str, fields: Mapping[str, Any] | None = None, nonce: str = "123") -> str:
    """The signature that Plivo's own package expects."""
    base = construct_get_url(url, {}) if method == "GET" else construct_post_url(url, dict(fields or {}))
    return get_signature_v3(token.encode(), base.decode(), nonce.encode()).decode()


def v3(signature: str, nonce: str = "123") -> dict[str, str]:
    return {"X-Plivo-Signature-V3": signature, "X-Plivo-Signature-V3-Nonce": nonce}


async def ask(
    path: str,
    *,
    method: str = "POST",
    body: str | bytes = "",
    content_type: str = "application/x-www-form-urlencoded",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of a webhook's answer, as if a proxy had passed it on under a name of its own."""
    parts = urlsplit(path)
    factory = AsyncRequestFactory(headers={"Host": "127.0.0.1:8001", "X-Forwarded-Proto": "https"})
    data = body.encode() if isinstance(body, str) else body
    if method == "GET":
        request = factory.get(parts.path, query_params=None, headers=headers)
        request.META["QUERY_STRING"] = parts.query
    else:
        request = factory.post(parts.path, data=data, content_type=content_type, headers=headers)
        request.META["QUERY_STRING"] = parts.query
    _, _, slug, key, what = parts.path.split("/")
    view = http_urls.answer if what == "answer" else http_urls.status
    answered = await view(request, slug, key)
    return answered.status_code, answered.content, dict(answered.headers)


def form(fields: Any = FIELDS) -> str:
    return urlencode(fields)


@pytest.mark.parametrize("what", ["answer", "status"])
@pytest.mark.parametrize("token", [TOKEN, SECOND])
async def test_what_plivo_signed_for_the_public_url_is_taken(directory: Directory, what: str, token: str) -> None:
    path = f"/plivo/alice/sk_alice/{what}"
    for query in ("", "?lang=en&empty=&b=2&a=%20x"):
        signed = v3(plivos(token, "POST", PUBLIC + path + query, FIELDS))
        status, body, _ = await ask(path + query, body=form(), headers=signed)
        assert status == (200 if what == "answer" else 204)
        assert what == "status" or b"token-15550100" in body
        query = f"{query or '?x=1'}&{urlencode({'CallUUID': 'call-1', 'From': '15550100'})}"
        signed = v3(plivos(token, "GET", PUBLIC + path + query))
        status, body, _ = await ask(path + query, method="GET", headers=signed)
        assert status == (200 if what == "answer" else 204)
        assert what == "status" or b"token-15550100" in body


async def test_repeated_fields_other_headers_and_the_older_scheme(directory: Directory) -> None:
    path, url = "/plivo/alice/sk_alice/answer", f"{PUBLIC}/plivo/alice/sk_alice/answer"
    repeated = [("b", "2"), ("a", "1"), ("b", "1"), ("", "x")]
    right = plivos(TOKEN, "POST", url, {"b": ["2", "1"], "a": "1", "": "x"})
    for headers in (
        v3(right),
        v3(f"wrong, {right}"),
        {"X-Plivo-Signature-V3": "wrong", "X-Plivo-Signature-Ma-V3": right, "X-Plivo-Signature-V3-Nonce": "123"},
        {"X-PLIVO-SIGNATURE-MA-V3": right, "x-plivo-signature-v3-nonce": "123"},
        {"X-Plivo-Signature-V2": signature_v2(TOKEN, url=url, nonce="9"), "X-Plivo-Signature-V2-Nonce": "9"},
        {"X-Plivo-Signature-Ma-V2": signature_v2(TOKEN, url=url, nonce="9"), "X-Plivo-Signature-V2-Nonce": "9"},
    ):
        assert (await ask(path, body=form(repeated), headers=headers))[0] == 200, headers


async def test_a_body_that_is_no_form_has_no_fields(directory: Directory) -> None:
    path = "/plivo/alice/sk_alice/status"
    signed = v3(plivos(TOKEN, "POST", PUBLIC + path, {}))
    body = json.dumps({"Event": "x"})
    assert (await ask(path, body=body, content_type="application/json", headers=signed))[0] == 204
    assert (await ask(path, body=form(), headers=signed))[0] == 403


async def test_every_refusal_is_the_same_403_without_a_body(directory: Directory) -> None:
    good = v3(plivos(TOKEN, "POST", f"{PUBLIC}/plivo/alice/sk_alice/answer", FIELDS))
    right = good["X-Plivo-Signature-V3"]

    def signed_for(url: str, token: str = TOKEN, fields: Any = FIELDS) -> dict[str, str]:
        return v3(plivos(token, "POST", url, fields))

    path = "/plivo/alice/sk_alice/answer"
    http = "http" + PUBLIC.removeprefix("https")
    attempts: dict[str, dict[str, Any]] = {
        "unknown tenant": {"path": "/plivo/nobody/sk_alice/answer", "headers": good},
        "unknown key": {"path": "/plivo/alice/sk_other/answer", "headers": good},
        "another tenant's key": {"path": "/plivo/alice/sk_charlie/answer", "headers": good},
        "unsigned": {"headers": {}},
        "signature without nonce": {"headers": {"X-Plivo-Signature-V3": right}},
        "nonce without signature": {"headers": {"X-Plivo-Signature-V3-Nonce": "123"}},
        "another nonce": {"headers": {**good, "X-Plivo-Signature-V3-Nonce": "124"}},
        "another tenant's token": {"headers": signed_for(PUBLIC + path, FOREIGN)},
        "no token at all": {"headers": signed_for(PUBLIC + path, "")},
        "the key as token": {"headers": signed_for(PUBLIC + path, "sk_alice")},
        "the proxy's url": {"headers": signed_for("http://127.0.0.1:8001" + path)},
        "http for https": {"headers": signed_for(http + path)},
        "with the port": {"headers": signed_for(f"{PUBLIC}:443{path}")},
        "another path": {"headers": signed_for(f"{PUBLIC}/plivo/alice/sk_alice/status")},
        "charlie's url": {"headers": signed_for(f"{PUBLIC}/plivo/charlie/sk_charlie/answer")},
        "a query added": {"path": f"{path}?lang=de", "headers": good},
        "a field changed": {"headers": good, "body": form({**FIELDS, "From": "15550666"})},
        "a field added": {"headers": good, "body": form({**FIELDS, "To2": "1"})},
        "a field taken out": {"headers": good, "body": form({"CallUUID": "call-1"})},
        "a field twice": {"headers": good, "body": f"{form()}&From=15550100"},
        "no field": {"headers": good, "body": ""},
        "fields in the query": {"path": f"{path}?{form()}", "headers": good, "body": ""},
        "the form as JSON": {"headers": good, "content_type": "application/json"},
        "the form as multipart": {"headers": good, "content_type": "multipart/form-data; boundary=x"},
        "as GET": {"path": f"{path}?{form()}", "headers": good, "method": "GET"},
        "v2 beside a wrong v3": {
            "headers": {
                **v3("wrong"),
                "X-Plivo-Signature-V2": signature_v2(TOKEN, url=PUBLIC + path, nonce="9"),
                "X-Plivo-Signature-V2-Nonce": "9",
            }
        },
        "v2 of another url": {
            "headers": {
                "X-Plivo-Signature-V2": signature_v2(TOKEN, url=http + path, nonce="9"),
                "X-Plivo-Signature-V2-Nonce": "9",
            }
        },
        "a body too large": {"headers": good, "body": "a" * 70_000},
        "a body far too large": {"headers": good, "body": b"a" * 3_000_000},
        "too many fields": {"headers": good, "body": "&".join(f"f{n}=1" for n in range(300))},
        "charset": {"headers": good, "content_type": "application/x-www-form-urlencoded; charset=utf-16", "body": "x"},
        "not UTF-8": {"headers": good, "body": b"From=\xff\xfe"},
        "letters that are no header's": {"headers": {**good, "X-Plivo-Signature-V3": "é" * 44}},
        "a thousand guesses": {"headers": {**good, "X-Plivo-Signature-V3": ",".join(["A" * 44] * 1000)}},
    }
    answers = {}
    for name, attempt in attempts.items():
        asked = {"path": path, "body": form(), **attempt}
        answers[name] = await ask(asked.pop("path"), **asked)
    assert {name for name, answer in answers.items() if answer[:2] != (403, b"")} == set()
    assert {name for name, answer in answers.items() if answer != answers["unknown tenant"]} == set()
    assert (await ask(path, body=form(), headers=good))[0] == 200


async def test_without_a_stored_token_nothing_is_checked_but_a_broken_one_refuses(directory: Directory) -> None:
    assert (await ask("/plivo/bob/sk_bob/answer", body=form()))[0] == 200
    directory.bindings["bob", "sk_bob"] = replace(directory.bindings["bob", "sk_bob"], plivo_tokens=())
    path = "/plivo/bob/sk_bob/answer"
    for headers in (
        {},
        v3(plivos(TOKEN, "POST", PUBLIC + path, FIELDS)),
        v3(plivos("", "POST", PUBLIC + path, FIELDS)),
    ):
        assert (await ask(path, body=form(), headers=headers))[:2] == (403, b"")


async def test_a_refusal_is_told_in_the_log_without_a_secret(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    signed = v3("canary-signature", "canary-nonce")
    await ask("/plivo/alice/sk_alice/answer?q=canary-query", body="From=canary-from", headers=signed)
    assert f"agent {directory.bindings['alice', 'sk_alice'].agent_id}" in caplog.text
    assert PUBLIC in caplog.text
    for secret in ("sk_alice", "canary", TOKEN, SECOND):
        assert secret not in caplog.text


async def test_comparing_takes_no_shortcut(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(1) or real(a, b))
    path = "/plivo/alice/sk_alice/answer"
    await ask(path, body=form(), headers=v3(plivos(TOKEN, "POST", PUBLIC + path, FIELDS)))
    assert len(compared) == 2  # both tokens, although the first fits


# -- the handshake of a stream


async def shake(path: str, headers: Mapping[str, str] | None = None, *twice: tuple[str, str]) -> bool:
    """Whether the stream door lets a handshake in."""
    parts = urlsplit(path)
    _, _, slug, key = parts.path.split("/")
    pairs = [*(headers or {}).items(), *twice]
    scope = {
        "type": "websocket",
        "path": parts.path,
        "query_string": parts.query.encode(),
        "headers": [(b"host", b"127.0.0.1:8001"), *((n.lower().encode(), v.encode("latin-1")) for n, v in pairs)],
        "subprotocols": [],
        "url_route": {"kwargs": {"slug": slug, "key": key}},
    }
    messages = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await StreamConsumer()(scope, receive, send)
    assert [message["type"] for message in sent] in (["websocket.accept"], ["websocket.close"])
    return sent[0]["type"] == "websocket.accept"


HOST = PUBLIC.removeprefix("https")
FORMS = [
    f"{scheme}{HOST}{{path}}{suffix}" for scheme in ("https", "http", "wss", "ws") for suffix in ("", "/websocket")
]


def any_form(token: str, url: str) -> dict[str, str]:
    made = sign(tokens=[token], method="GET", urls=[url], nonce="7")
    return {name: made[name] for name in ("X-Plivo-Signature-V3", "X-Plivo-Signature-V3-Nonce")}


@pytest.mark.parametrize("url", FORMS)
@pytest.mark.parametrize("path", ["/stream/alice/sk_alice", "/stream/alice/sk_alice?lang=en&b=%20"])
async def test_a_handshake_signed_for_any_form_of_our_url_is_let_in(directory: Directory, url: str, path: str) -> None:
    assert await shake(path, any_form(SECOND, url.format(path=path)))
    if url.startswith("http"):
        assert await shake(path, v3(plivos(TOKEN, "GET", url.format(path=path))))


async def test_a_handshake_that_plivo_did_not_sign_is_let_in_by_its_key(directory: Directory) -> None:
    # Nobody has written down that Plivo signs them; one is missed only where the operator says so.
    assert await shake("/stream/alice/sk_alice")
    assert await shake("/stream/bob/sk_bob", v3("wrong"))  # no token, nothing to check with
    settings.MIRROR = replace(settings.MIRROR, handshake_signature="require")
    assert not await shake("/stream/alice/sk_alice")
    assert await shake("/stream/alice/sk_alice", any_form(TOKEN, f"{PUBLIC}/stream/alice/sk_alice"))
    assert await shake("/stream/bob/sk_bob")
    settings.MIRROR = replace(settings.MIRROR, handshake_signature="ignore")
    assert await shake("/stream/alice/sk_alice", v3("wrong"))


@pytest.mark.parametrize(
    "headers",
    [
        v3("wrong"),
        v3(""),
        {"X-Plivo-Signature-V3": "x"},
        {"X-Plivo-Signature-V3-Nonce": "x"},
        {"X-Plivo-Signature-V2": "x"},
        {"X-Plivo-Signature-Ma-V2": ""},
        any_form(FOREIGN, f"{PUBLIC}/stream/alice/sk_alice"),
        any_form(TOKEN, f"{PUBLIC}/stream/charlie/sk_charlie"),
        any_form(TOKEN, "https://127.0.0.1:8001/stream/alice/sk_alice"),
        any_form(TOKEN, f"{PUBLIC}/stream/alice/sk_alice?lang=en"),
        v3(plivos(TOKEN, "POST", f"{PUBLIC}/stream/alice/sk_alice", {})[:-1] + "A"),
        v3(b64encode(b"x" * 32).decode()),
    ],
)
async def test_a_handshake_with_a_wrong_signature_is_refused(directory: Directory, headers: dict[str, str]) -> None:
    assert not await shake("/stream/alice/sk_alice", headers)


async def test_a_signature_spread_over_two_lines_counts(directory: Directory) -> None:
    right = any_form(TOKEN, f"{PUBLIC}/stream/alice/sk_alice")
    assert await shake("/stream/alice/sk_alice", right, ("X-Plivo-Signature-V3", "wrong"))


async def test_a_stranger_who_knows_a_key_cannot_pass_with_a_signature_of_his_own(directory: Directory) -> None:
    assert not await shake("/stream/alice/sk_alice", any_form(FOREIGN, f"{PUBLIC}/stream/alice/sk_alice"))
    assert not await shake("/stream/charlie/sk_alice", any_form(FOREIGN, f"{PUBLIC}/stream/charlie/sk_alice"))
    assert await shake("/stream/charlie/sk_charlie", any_form(FOREIGN, f"{PUBLIC}/stream/charlie/sk_charlie"))


# -- towards the agent


def test_the_agents_handshake_holds_headers_and_signatures_and_no_forged_one() -> None:
    url = "wss://agent.example:8443/call%20me?lang=en"
    headers = handshake_headers(
        secret="secret",
        call_id="call-1",
        url=url,
        tenant_headers={"X-Team": "a", "X-Mirror-Signature": "forged", "Sec-WebSocket-Key": "x", "hOST": "x"},
        plivo_tokens=(TOKEN, SECOND),
    )
    assert headers["X-Team"] == "a"
    assert headers["X-Mirror-Call"] == "call-1"
    assert headers["X-Mirror-Signature"].startswith("t=")
    assert not {"sec-websocket-key", "host"} & {name.lower() for name in headers}
    for scheme in ("http", "https", "ws", "wss"):
        for path in ("/call%20me", "/call me"):
            for suffix in ("", "/websocket"):
                seen = f"{scheme}://agent.example:8443{path}?lang=en{suffix}"
                for token in (TOKEN, SECOND):
                    assert verify(headers, tokens=[token], method="GET", urls=[seen]) is not None, seen
                assert verify(headers, tokens=[FOREIGN], method="GET", urls=[seen]) is None
    assert sum(len(name) + len(value) + 4 for name, value in headers.items()) < 6_000


def test_each_handshake_has_a_nonce_of_its_own_and_none_without_a_token() -> None:
    def made(tokens: tuple[str, ...]) -> dict[str, str]:
        return handshake_headers(
            secret="s", call_id="c", url="ws://agent.example/", tenant_headers={}, plivo_tokens=tokens
        )

    assert made((TOKEN,))["X-Plivo-Signature-V3-Nonce"] != made((TOKEN,))["X-Plivo-Signature-V3-Nonce"]
    assert not [name for name in made(()) if name.lower().startswith("x-plivo")]
