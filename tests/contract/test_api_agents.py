"""Agents: how they are dialled, the keys that open them, and trying one out."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from django.conf import settings
from django.utils import timezone
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import ServerConnection, serve

from mirror_saas import egress
from mirror_saas.ids import uuid7
from supervision.client import verify
from supervision.models import Agent, StreamKey
from supervision.services.agents import AUDIO_FORMATS, stream_key_hash
from supervision.stream import check
from tenants.models import AuditEvent
from tenants.roles import Scope
from tenants.sealing import sealed_field, unseal_text
from tenants.services.api_keys import api_key_create
from tests.contract.client import ask, errors
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db

BODY = {"name": "Front desk", "upstream_url": "wss://agents.example/desk"}


def opened(tenancy: Tenancy, agent_id: str, column: str) -> str:
    with tenancy.context():
        agent = Agent.objects.get(id=agent_id)
        return unseal_text(
            bytes(getattr(agent, column)),
            tenant_id=tenancy.id,
            field=sealed_field("supervision_agent", column, agent.id),
        )


def test_an_agent_is_made_shown_changed_and_taken_out_of_use(tenant: Tenancy, stranger: Tenancy) -> None:
    body = {
        **BODY,
        "name": " Front desk ",
        "mode": "shadow",
        "language": "pt-BR",
        "voice": "nova",
        "audio_format": "audio/x-l16;rate=16000",
        "headers": {"Authorization": "Bearer agent-login"},
        "policy_id": str(tenant.policy.id),
        "policy_track": "shadow",
        "policy_overrides": {"cooldown_s": 3},
    }
    made = ask(tenant, "POST", "/agents", body)
    assert made.status_code == 201, made.content
    agent = made.json()
    secret = agent.pop("signing_secret")
    path = f"/agents/{agent['id']}"
    assert made.headers["Location"] == f"/api/v1{path}"
    expected = {**body, "name": "Front desk", "has_headers": True, "policy_name": "alice's policy"}
    del expected["headers"]
    assert expected.items() <= agent.items()
    assert ask(tenant, "GET", path).json() == agent
    assert opened(tenant, agent["id"], "signing_secret_sealed") == secret
    assert json.loads(opened(tenant, agent["id"], "headers_sealed")) == body["headers"]
    changed = ask(tenant, "PATCH", path, {"mode": "live", "policy_id": None, "headers": {}})
    assert changed.status_code == 200
    assert (changed.json()["mode"], changed.json()["policy_id"], changed.json()["has_headers"]) == ("live", None, False)
    assert (changed.json()["voice"], changed.json()["language"]) == ("nova", "pt-BR")
    assert [item["name"] for item in ask(tenant, "GET", "/agents").json()["items"]] == ["Front desk", "alice's agent"]
    assert [item["name"] for item in ask(stranger, "GET", "/agents").json()["items"]] == ["charlie's agent"]
    assert ask(tenant, "DELETE", path).status_code == 204
    assert ask(tenant, "GET", path).status_code == 404
    assert ask(tenant, "PATCH", path, {"mode": "live"}).status_code == 404
    with tenant.context():
        events = list(AuditEvent.objects.filter(object_id=agent["id"]).order_by("seq"))
        assert [event.action for event in events] == ["agent.create", "agent.update", "agent.archive"]
        assert not [event for event in events if "agent-login" in f"{event.before}{event.after}"]
        assert not [event for event in events if secret in f"{event.before}{event.after}"]


def test_agents_can_be_listed_by_policy(tenant: Tenancy, stranger: Tenancy) -> None:
    ask(tenant, "POST", "/agents", BODY)
    listed = ask(tenant, "GET", f"/agents?policy_id={tenant.policy.id}").json()["items"]
    assert [item["name"] for item in listed] == ["alice's agent"]
    assert ask(tenant, "GET", f"/agents?policy_id={stranger.policy.id}").json()["items"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": None}, "name"),
        ({"nmae": "x"}, "nmae"),
        ({"upstream_url": "https://agents.example"}, "upstream_url"),
        ({"upstream_url": "wss://user:pw@agents.example"}, "upstream_url"),
        ({"upstream_url": "wss://agents.example/\r\nX: y"}, "upstream_url"),
        ({"upstream_url": "wss://agents.example:0/"}, "upstream_url"),
        ({"upstream_url": "wss://agents.example:99999/"}, "upstream_url"),
        ({"upstream_url": "wss://" + "x" * 2000}, "upstream_url"),
        ({"mode": "off"}, "mode"),
        ({"language": "English"}, "language"),
        ({"language": ""}, "language"),
        ({"audio_format": "audio/opus"}, "audio_format"),
        ({"audio_format": "audio/x-mulaw;rate=16000"}, "audio_format"),
        ({"voice": "x" * 201}, "voice"),
        ({"headers": {"Bad Name": "x"}}, "headers"),
        ({"headers": {"X-Mirror-Call": "x"}}, "headers"),
        ({"headers": {"X-A": "two\nlines"}}, "headers"),
        ({"headers": {"X-A": 1}}, "headers.X-A"),
        ({"headers": {f"X-{n}": "x" for n in range(33)}}, "headers"),
        ({"policy_id": str(uuid7())}, "policy_id"),
        ({"policy_id": "x"}, "policy_id"),
        ({"policy_track": "draft"}, "policy_track"),
        ({"policy_overrides": {"scoring": "json"}}, "policy_overrides.scoring"),
        ({"tts_credential_id": str(uuid7())}, "tts_credential_id"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_field(tenant: Tenancy, change: dict[str, Any], field: str) -> None:
    assert list(errors(ask(tenant, "POST", "/agents", {**BODY, **change}))) == [field]
    before = ask(tenant, "GET", f"/agents/{tenant.agent.id}").json()
    assert list(errors(ask(tenant, "PATCH", f"/agents/{tenant.agent.id}", change))) == [field]
    assert ask(tenant, "GET", f"/agents/{tenant.agent.id}").json() == before
    with tenant.context():
        assert Agent.objects.count() == 1


@pytest.mark.parametrize("secret", ["", "short", "with a blank in it", "ü" * 20, "x" * 201])
def test_a_signing_secret_that_is_none_is_refused(tenant: Tenancy, secret: str) -> None:
    assert list(errors(ask(tenant, "POST", "/agents", {**BODY, "signing_secret": secret}))) == ["signing_secret"]
    path = f"/agents/{tenant.agent.id}/signing-secret"
    assert list(errors(ask(tenant, "POST", path, {"signing_secret": secret}))) == ["signing_secret"]


def test_a_refused_value_is_not_repeated(tenant: Tenancy) -> None:
    response = ask(tenant, "POST", "/agents", {**BODY, "headers": {"X-A": "login-1\n"}, "signing_secret": "s 3"})
    assert "login-1" not in response.content.decode()
    assert "s 3" not in response.content.decode()


@pytest.mark.parametrize(
    "url",
    [
        "ws://169.254.169.254/",
        "ws://10.0.0.1/",
        "wss://[::1]/",
        "ws://127.0.0.1:9000/",
        "ws://localhost/",
        "ws://0x7f.1/",
    ],
)
def test_a_private_address_is_refused_when_it_is_entered(
    tenant: Tenancy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "rules", lambda: ((), False))
    assert list(errors(ask(tenant, "POST", "/agents", {**BODY, "upstream_url": url}))) == ["upstream_url"]
    response = ask(tenant, "PATCH", f"/agents/{tenant.agent.id}", {"upstream_url": url})
    assert list(errors(response)) == ["upstream_url"]


def test_another_tenants_policy_and_voice_are_none(tenant: Tenancy, stranger: Tenancy) -> None:
    for change in ({"policy_id": str(stranger.policy.id)}, {"tts_credential_id": str(stranger.credential.id)}):
        [field] = change
        assert list(errors(ask(tenant, "POST", "/agents", {**BODY, **change}))) == [field]
        assert list(errors(ask(tenant, "PATCH", f"/agents/{tenant.agent.id}", change))) == [field]


def test_logins_do_not_follow_an_agent_to_another_server(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/agents", {**BODY, "headers": {"Authorization": "Bearer login"}}).json()
    path = f"/agents/{made['id']}"
    for url in ("wss://evil.example/desk", "ws://agents.example/desk", "wss://agents.example:8443/desk"):
        assert list(errors(ask(tenant, "PATCH", path, {"upstream_url": url}))) == ["headers"]
    assert ask(tenant, "PATCH", path, {"upstream_url": "wss://agents.example/other"}).status_code == 200
    moved = ask(
        tenant, "PATCH", path, {"upstream_url": "wss://new.example/", "headers": {"Authorization": "Bearer new"}}
    )
    assert moved.status_code == 200
    assert json.loads(opened(tenant, made["id"], "headers_sealed")) == {"Authorization": "Bearer new"}


def test_values_in_the_query_of_a_url_are_for_administrators(tenant: Tenancy) -> None:
    url = "wss://agents.example/desk?token=secret-1&room=2&flag"
    made = ask(tenant, "POST", "/agents", {**BODY, "upstream_url": url}).json()
    with tenant.context():
        reader = api_key_create(name="reader", scopes=[Scope.POLICIES_READ.value]).key
    seen = ask(tenant, "GET", f"/agents/{made['id']}", api_key=reader).json()
    assert seen["upstream_url"] == "wss://agents.example/desk?token=***&room=***&flag=***"
    assert ask(tenant, "GET", f"/agents/{made['id']}").json()["upstream_url"] == url


# -- secrets and keys ---------------------------------------------------------------------------------------------


def test_the_signing_secret_is_changed_and_shown_once(tenant: Tenancy) -> None:
    path = f"/agents/{tenant.agent.id}/signing-secret"
    made = ask(tenant, "POST", path).json()["signing_secret"]
    assert made != tenant.signing_secret
    assert opened(tenant, str(tenant.agent.id), "signing_secret_sealed") == made
    given = ask(tenant, "POST", path, {"signing_secret": "chosen-by-the-agent"})
    assert given.json() == {"signing_secret": "chosen-by-the-agent"}
    assert opened(tenant, str(tenant.agent.id), "signing_secret_sealed") == "chosen-by-the-agent"


def test_a_stream_key_comes_with_its_urls_and_xml_once_and_the_old_one_goes_on(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    path = f"/agents/{tenant.agent.id}"
    ask(tenant, "PATCH", path, {"audio_format": AUDIO_FORMATS[1]})
    response = ask(tenant, "POST", f"{path}/stream-key", {"overlap_ms": 3_600_000})
    assert response.status_code == 201
    made = response.json()
    public = settings.MIRROR.public_url
    key = made["stream_url"].rsplit("/", 1)[1]
    assert made["stream_url"] == f"ws{public.removeprefix('http')}/stream/{tenant.slug}/{key}"
    assert made["answer_url"] == f"{public}/plivo/{tenant.slug}/{key}/answer"
    [stream] = ElementTree.fromstring(made["xml"].encode())
    assert stream.text == made["stream_url"]
    assert stream.attrib["contentType"] == AUDIO_FORMATS[1]
    assert stream.attrib["statusCallbackUrl"] == f"{public}/plivo/{tenant.slug}/{key}/status"
    with tenant.context():
        stored = StreamKey.objects.get(id=made["id"])
        assert bytes(stored.key_hash) == stream_key_hash(key)
    listed = ask(tenant, "GET", f"{path}/stream-keys")
    assert [(item["state"], item["id"] == made["id"]) for item in listed.json()["items"]] == [
        ("active", True),
        ("expiring", False),
    ]
    ends = timezone.datetime.fromisoformat(listed.json()["items"][1]["expires_at"])
    assert abs(ends - timezone.now() - timedelta(hours=1)) < timedelta(minutes=1)
    assert key not in listed.content.decode()
    with stranger.context():
        assert StreamKey.objects.count() == 1


@pytest.mark.parametrize("overlap", [-1, 31 * 24 * 3_600_000, "1h", 1.5, 10**30, None])
def test_an_overlap_is_up_to_thirty_days(tenant: Tenancy, overlap: Any) -> None:
    response = ask(tenant, "POST", f"/agents/{tenant.agent.id}/stream-key", {"overlap_ms": overlap})
    assert list(errors(response)) == ["overlap_ms"]
    with tenant.context():
        assert StreamKey.objects.count() == 1


def test_a_stream_key_is_revoked_for_good(tenant: Tenancy, stranger: Tenancy) -> None:
    path = f"/agents/{tenant.agent.id}/stream-keys"
    [key] = ask(tenant, "GET", path).json()["items"]
    assert ask(tenant, "DELETE", f"{path}/{key['id']}").status_code == 204
    assert ask(tenant, "DELETE", f"{path}/{key['id']}").status_code == 204
    assert [item["state"] for item in ask(tenant, "GET", path).json()["items"]] == ["revoked"]
    with stranger.context():
        foreign = StreamKey.objects.get().id
    # Neither under the own agent nor under the stranger's.
    assert ask(tenant, "DELETE", f"{path}/{foreign}").status_code == 404
    assert ask(tenant, "DELETE", f"/agents/{stranger.agent.id}/stream-keys/{foreign}").status_code == 404
    with stranger.context():
        assert StreamKey.objects.get().revoked_at is None


def test_an_agent_out_of_use_has_no_key_that_opens(tenant: Tenancy) -> None:
    assert ask(tenant, "DELETE", f"/agents/{tenant.agent.id}").status_code == 204
    with tenant.context():
        assert StreamKey.objects.filter(revoked_at=None).count() == 0


# -- trying one out -----------------------------------------------------------------------------------------------


@contextmanager
def agent_at(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    """A WebSocket server beside the test, made with nothing of Mirror's; yields its URL."""
    with serve(handler, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/agent?room=1"
        finally:
            server.shutdown()
            thread.join(30)


def at(tenancy: Tenancy, url: str) -> str:
    """The path of the agent, which listens at `url` now."""
    path = f"/agents/{tenancy.agent.id}"
    assert ask(tenancy, "PATCH", path, {"upstream_url": url}).status_code == 200
    return path


def drain(connection: ServerConnection) -> list[dict[str, Any]]:
    """What comes until the other side says goodbye, or is gone."""
    frames: list[dict[str, Any]] = []
    with suppress(ConnectionClosed):
        frames.extend(map(json.loads, connection))
    return frames


def test_an_agent_that_knows_mirror_is_found_with_what_it_says_of_itself(tenant: Tenancy) -> None:
    seen: dict[str, Any] = {}

    def agent(connection: ServerConnection) -> None:
        seen["headers"] = connection.request.headers if connection.request else None
        seen["path"] = connection.request.path if connection.request else None
        start = json.loads(connection.recv(timeout=10))
        connection.send(json.dumps({"event": "playAudio", "media": {"payload": ""}}))
        hello = {"event": "mirror.hello", "v": 1, "sdk": "tests/1", "marks": True, "language": "en", "wants": ["notes"]}
        connection.send(json.dumps(hello))
        seen["frames"] = [start, *drain(connection)]

    with agent_at(agent) as url:
        ask(tenant, "PATCH", f"/agents/{tenant.agent.id}", {"headers": {"X-Login": "agent-login"}})
        with tenant.context():
            Agent.objects.update(upstream_url=url)
        response = ask(tenant, "POST", f"/agents/{tenant.agent.id}/check")
    assert response.status_code == 200, response.content
    found = response.json()
    assert (found["reachable"], found["handshake_status"], found["problem"]) == (True, 101, None)
    assert found["hello"] == {"sdk": "tests/1", "wants": ["notes"], "language": "en", "voice": None, "marks": True}
    assert found["dial_ms"] >= 0
    assert found["hello_ms"] >= found["audio_ms"] >= 0
    assert "agent-login" not in response.content.decode()
    # It was dialled as a call would: with the login and a signature over the call's id and the URL.
    headers = seen["headers"]
    assert (headers["X-Login"], headers["X-Mirror-Check"], seen["path"]) == ("agent-login", "1", "/agent?room=1")
    assert verify(headers, tenant.signing_secret, seen["path"])
    assert seen["frames"][0]["event"] == "start"
    assert {frame["event"] for frame in seen["frames"]} == {"start", "media", "stop"}


def test_an_agent_that_knows_nothing_of_mirror_is_reachable_all_the_same(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LISTEN_S", 0.2)
    with agent_at(lambda connection: drain(connection) and None) as url:
        found = ask(tenant, "POST", f"{at(tenant, url)}/check").json()
    assert (found["reachable"], found["handshake_status"], found["hello"]) == (True, 101, None)
    assert (found["problem"], found["audio_ms"], found["close_code"]) == (None, None, None)


def test_an_agent_that_hangs_up_is_said_to(tenant: Tenancy) -> None:
    with agent_at(lambda connection: connection.close(4001, "my secret reason")) as url:
        response = ask(tenant, "POST", f"{at(tenant, url)}/check")
    found = response.json()
    assert (found["reachable"], found["close_code"]) == (True, 4001)
    assert "4001" in found["problem"]
    assert "my secret reason" not in response.content.decode()


@pytest.mark.parametrize("status", [302, 401, 500])
def test_a_refused_handshake_is_told_by_its_status_alone(tenant: Tenancy, status: int) -> None:
    def refuse(connection: ServerConnection, request: Any) -> Response:
        headers = Headers({"Location": "ws://10.0.0.1/internal", "X-Inside": "inside", "Content-Length": "6"})
        return Response(status, "No", headers, b"inside")

    with agent_at(lambda connection: None, process_request=refuse) as url:
        response = ask(tenant, "POST", f"{at(tenant, url)}/check")
    found = response.json()
    assert (found["reachable"], found["handshake_status"], found["hello"]) == (False, status, None)
    assert "inside" not in response.content.decode()
    assert "10.0.0.1" not in response.content.decode()


def test_nobody_listening_and_no_web_socket_are_told_apart(tenant: Tenancy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = ask(tenant, "POST", f"{at(tenant, f'ws://127.0.0.1:{port}/')}/check").json()
    assert (found["reachable"], found["handshake_status"]) == (False, None)
    assert found["problem"].startswith("the connection failed")


def test_an_address_that_turned_private_is_not_dialled(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []

    def agent(connection: ServerConnection) -> None:
        dialled.append("yes")

    with agent_at(agent) as url:
        path = at(tenant, url)
        monkeypatch.setattr(egress, "rules", lambda: ((), False))
        found = ask(tenant, "POST", f"{path}/check").json()
    assert (found["reachable"], found["handshake_status"], dialled) == (False, None, [])
    assert "MIRROR_EGRESS_ALLOW" in found["problem"]


def test_an_agent_that_floods_is_left_after_its_hello(tenant: Tenancy) -> None:
    def agent(connection: ServerConnection) -> None:
        connection.recv(timeout=10)
        try:
            connection.send("x" * 1_000_000)
            connection.send("[" * 50_000)
            connection.send(json.dumps({"event": "mirror.hello", "v": 99}))
            connection.send(b"\x00" * 1_000_000)
            connection.send(json.dumps({"event": "mirror.hello", "sdk": "s" * 200}))
            while True:
                connection.send("y" * 10_000)
        except ConnectionClosed:
            return

    with agent_at(agent) as url:
        found = ask(tenant, "POST", f"{at(tenant, url)}/check").json()
    assert found["hello"]["sdk"] == "s" * 200


# -- the stranger, and scopes -------------------------------------------------------------------------------------


def test_another_tenants_agents_are_not_there(tenant: Tenancy, stranger: Tenancy) -> None:
    foreign = stranger.agent.id
    for method, suffix, body in (
        ("GET", "", None),
        ("PATCH", "", {"mode": "shadow"}),
        ("DELETE", "", None),
        ("POST", "/signing-secret", None),
        ("POST", "/stream-key", None),
        ("GET", "/stream-keys", None),
        ("POST", "/check", None),
    ):
        response = ask(tenant, method, f"/agents/{foreign}{suffix}", body)
        missing = ask(tenant, method, f"/agents/{uuid7()}{suffix}", body)
        assert (response.status_code, missing.status_code) == (404, 404), (method, suffix)
        assert response.json()["detail"] == missing.json()["detail"]
        assert "charlie" not in response.content.decode()
    with stranger.context():
        agent = Agent.objects.get()
        assert (agent.mode, agent.archived_at, StreamKey.objects.count()) == ("live", None, 1)


def test_what_opens_doors_is_for_administrators(tenant: Tenancy) -> None:
    with tenant.context():
        editor = api_key_create(name="editor", scopes=[Scope.POLICIES_READ.value, Scope.POLICIES_WRITE.value]).key
    path = f"/agents/{tenant.agent.id}"
    assert ask(tenant, "GET", path, api_key=editor).status_code == 200
    for method, where, body in (
        ("POST", "/agents", BODY),
        ("PATCH", path, {"mode": "shadow"}),
        ("DELETE", path, None),
        ("POST", f"{path}/stream-key", None),
        ("GET", f"{path}/stream-keys", None),
        ("POST", f"{path}/signing-secret", None),
        ("POST", f"{path}/check", None),
    ):
        assert ask(tenant, method, where, body, api_key=editor).status_code == 403, (method, where)
