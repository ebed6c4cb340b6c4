"""Stream keys are rotated with an overlap and revoked; the headers that agents are dialled with are sealed."""

from __future__ import annotations

import io
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Agent, StreamKey
from supervision.selectors.stream_keys import agent_stream_key_list
from supervision.services.agents import (
    agent_headers_update,
    agent_stream_key_create,
    agent_stream_key_revoke,
    agent_stream_key_rotate,
    stream_key_hash,
    upstream_url_clean,
)
from tenants.sealing import unseal_text
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


def opens(tenancy: Tenancy, key: str) -> tuple[UUID, UUID] | None:
    """What the look-up of the stream door finds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tenant_id, agent_id FROM stream_key_lookup(%s, %s)", [tenancy.slug, stream_key_hash(key)]
        )
        return cursor.fetchone()


def states(tenancy: Tenancy) -> list[str]:
    with tenancy.context():
        return [key.state for key in agent_stream_key_list(agent_id=tenancy.agent.id)]


def test_after_a_rotation_both_keys_open_until_the_overlap_ends(tenant: Tenancy, stranger: Tenancy) -> None:
    before = timezone.now()
    with tenant.context():
        made = agent_stream_key_rotate(agent_id=tenant.agent.id, overlap=timedelta(hours=2))
    assert made.key != tenant.stream_key
    assert len(made.key) == len("sk_") + 43
    for key in (tenant.stream_key, made.key):
        assert opens(tenant, key) == (tenant.id, tenant.agent.id)
        assert opens(stranger, key) is None
    assert states(tenant) == ["active", "expiring"]
    with tenant.context():
        old = StreamKey.objects.get(key_hash=stream_key_hash(tenant.stream_key))
        assert old.expires_at is not None
        assert timedelta(hours=2) <= old.expires_at - before < timedelta(hours=2, minutes=1)
        StreamKey.objects.filter(id=old.id).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert opens(tenant, tenant.stream_key) is None
    assert opens(tenant, made.key) is not None
    assert states(tenant) == ["active", "expired"]
    # The stranger's key is as it was.
    assert opens(stranger, stranger.stream_key) is not None
    assert states(stranger) == ["active"]


def test_a_rotation_without_overlap_ends_the_old_key_at_once(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        made = agent_stream_key_rotate(agent_id=tenant.agent.id, overlap=timedelta(0))
    assert opens(tenant, tenant.stream_key) is None
    assert opens(tenant, made.key) is not None
    assert opens(stranger, stranger.stream_key) is not None


def test_a_rotation_never_lets_a_key_live_longer(tenant: Tenancy) -> None:
    soon = timezone.now() + timedelta(minutes=5)
    with tenant.context():
        short = agent_stream_key_create(agent_id=tenant.agent.id, expires_at=soon)
        revoked = agent_stream_key_create(agent_id=tenant.agent.id)
        agent_stream_key_revoke(stream_key_id=revoked.stream_key.id)
        agent_stream_key_rotate(agent_id=tenant.agent.id)
        agent_stream_key_rotate(agent_id=tenant.agent.id, overlap=timedelta(days=30))
        assert StreamKey.objects.get(id=short.stream_key.id).expires_at == soon
        first = StreamKey.objects.get(key_hash=stream_key_hash(tenant.stream_key))
        assert first.expires_at is not None
        assert first.expires_at < timezone.now() + timedelta(hours=25)
        assert StreamKey.objects.get(id=revoked.stream_key.id).expires_at is None
    assert opens(tenant, revoked.key) is None


def test_a_revoked_key_opens_nothing_and_the_new_one_goes_on(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        made = agent_stream_key_rotate(agent_id=tenant.agent.id)
        old = StreamKey.objects.get(key_hash=stream_key_hash(tenant.stream_key))
    with stranger.context(), pytest.raises(StreamKey.DoesNotExist):
        agent_stream_key_revoke(stream_key_id=old.id)
    assert opens(tenant, tenant.stream_key) is not None
    with tenant.context():
        agent_stream_key_revoke(stream_key_id=old.id)
        at = StreamKey.objects.get(id=old.id).revoked_at
        agent_stream_key_revoke(stream_key_id=old.id)
        assert StreamKey.objects.get(id=old.id).revoked_at == at
    assert opens(tenant, tenant.stream_key) is None
    assert opens(tenant, made.key) is not None
    assert states(tenant) == ["active", "revoked"]


def test_a_stranger_rotates_and_lists_nothing_of_others(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        for agent_id in (tenant.agent.id, uuid7()):
            with pytest.raises(Agent.DoesNotExist):
                agent_stream_key_rotate(agent_id=agent_id)
            with pytest.raises(Agent.DoesNotExist):
                agent_stream_key_list(agent_id=agent_id)
    assert states(tenant) == ["active"]


def test_an_archived_agent_gets_no_new_key(tenant: Tenancy) -> None:
    with tenant.context():
        Agent.objects.filter(id=tenant.agent.id).update(archived_at=timezone.now())
        with pytest.raises(Agent.DoesNotExist):
            agent_stream_key_rotate(agent_id=tenant.agent.id)


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=30, seconds=1), timedelta.max])
def test_an_overlap_out_of_bounds_is_refused(tenant: Tenancy, overlap: timedelta) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        agent_stream_key_rotate(agent_id=tenant.agent.id, overlap=overlap)
    assert list(error.value.message_dict) == ["overlap"]
    assert states(tenant) == ["active"]


def test_what_is_stored_of_a_key_is_its_hash_alone(tenant: Tenancy) -> None:
    with tenant.context():
        made = agent_stream_key_rotate(agent_id=tenant.agent.id)
        [listed, _] = agent_stream_key_list(agent_id=tenant.agent.id)
    with connection.cursor() as cursor, tenant.context():
        cursor.execute("SELECT row_to_json(k)::text FROM supervision_streamkey k WHERE id = %s", [made.stream_key.id])
        (row,) = cursor.fetchone()
    assert made.key not in row
    assert stream_key_hash(made.key).hex() in row
    assert made.key not in repr(made)
    assert stream_key_hash(made.key).hex() not in repr(listed)


@pytest.mark.django_db(transaction=True)
def test_rotations_at_once_leave_one_key_without_an_end(tenant: Tenancy) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        try:
            barrier.wait(timeout=30)
            with tenant.context():
                agent_stream_key_rotate(agent_id=tenant.agent.id)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert sorted(states(tenant)) == ["active", *["expiring"] * 4]


def run(command: str, tenancy: Tenancy, *arguments: str, agent: UUID | None = None) -> str:
    out = io.StringIO()
    whose = ["--tenant", tenancy.slug, "--agent", str(agent or tenancy.agent.id)]
    call_command(command, *whose, *arguments, stdout=out)
    return out.getvalue().strip()


def test_the_command_prints_the_new_urls_once(tenant: Tenancy, stranger: Tenancy) -> None:
    printed = json.loads(run("stream_key", tenant, "--rotate", "--overlap-h", "1.5", "--json"))
    key = printed["stream_url"].rsplit("/", 1)[1]
    assert opens(tenant, key) == (tenant.id, tenant.agent.id)
    assert printed["answer_url"].endswith(f"/plivo/{tenant.slug}/{key}/answer")
    assert states(tenant) == ["active", "expiring"]
    for hours in ("-1", "nan", "1e300", "721"):
        with pytest.raises(CommandError, match="--overlap-h: "):
            run("stream_key", tenant, "--rotate", f"--overlap-h={hours}")
    assert states(tenant) == ["active", "expiring"]
    with pytest.raises(CommandError, match="--agent: "):
        run("stream_key", stranger, "--rotate", agent=tenant.agent.id)
    with pytest.raises(CommandError, match="--tenant: There is no tenant"):
        call_command("stream_key", "--tenant", "nobody-at-all", "--agent", str(tenant.agent.id))


def test_the_command_lists_keys_and_revokes_one(tenant: Tenancy, stranger: Tenancy) -> None:
    new = json.loads(run("stream_key", tenant, "--rotate", "--json"))
    listed = run("stream_key", tenant)
    assert tenant.stream_key not in listed
    assert new["stream_url"].rsplit("/", 1)[1] not in listed
    [first, second] = json.loads(run("stream_key", tenant, "--json"))
    assert (first["id"], first["state"], second["state"]) == (new["id"], "active", "expiring")
    for whose, key_id in ((stranger, second["id"]), (tenant, str(uuid7()))):
        with pytest.raises(CommandError, match="--revoke: "):
            run("stream_key", whose, "--revoke", key_id)
    with pytest.raises(CommandError, match="--agent: "):
        run("stream_key", stranger, "--revoke", second["id"], agent=tenant.agent.id)
    assert opens(tenant, tenant.stream_key) is not None
    run("stream_key", tenant, "--revoke", second["id"])
    assert opens(tenant, tenant.stream_key) is None
    assert states(tenant) == ["active", "revoked"]


# -- the headers that the agent is dialled with


def headers_of(tenancy: Tenancy) -> Any:
    with tenancy.context():
        agent = Agent.objects.get(id=tenancy.agent.id)
        if agent.headers_sealed is None:
            return None
        field = f"supervision_agent.headers_sealed:{agent.id}"
        return json.loads(unseal_text(agent.headers_sealed, tenant_id=tenancy.id, field=field))


def test_headers_are_stored_sealed_and_replaced_whole(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        agent = agent_headers_update(agent=tenant.agent, headers={"Authorization": "Bearer canary", "X-Team": "a b"})
        assert b"canary" not in bytes(agent.headers_sealed or b"")
    assert headers_of(tenant) == {"Authorization": "Bearer canary", "X-Team": "a b"}
    assert headers_of(stranger) is None
    with tenant.context():
        agent_headers_update(agent=tenant.agent, headers={})
    assert headers_of(tenant) is None


def test_a_strangers_agent_keeps_its_headers(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context(), pytest.raises(DatabaseError), transaction.atomic():
        agent_headers_update(agent=tenant.agent, headers={"X-Mine": "1"})
    assert headers_of(tenant) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"A b": "x"},
        {"A:": "x"},
        {"A\r\nB": "x"},
        {"É": "x"},
        {"A" * 101: "x"},
        {"A": ""},
        {"A": " x"},
        {"A": "x "},
        {"A": "canary\r\nX-Mirror-Call: 1"},
        {"A": "canary\nB"},
        {"A": "canary\x00"},
        {"A": "canary\x7f"},
        {"A": "caña-canary"},
        {"A": 1},
        {1: "x"},
        {"A": "x", "a": "y"},
        {"Host": "x"},
        {"connection": "x"},
        {"UPGRADE": "x"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "5"},
        {"Sec-WebSocket-Key": "x"},
        {"sec-websocket-protocol": "x"},
        {"X-Mirror-Signature": "t=1,v1=x"},
        {"x-mirror-call": "x"},
        {"X-Plivo-Signature-V3": "x"},
        {"x-plivo-signature-ma-v2": "x"},
        {f"H{number}": "x" for number in range(33)},
        {"A": "x" * 9000},
    ],
)
def test_headers_that_would_break_or_forge_a_handshake_are_refused(tenant: Tenancy, headers: dict[Any, Any]) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        agent_headers_update(agent=tenant.agent, headers=headers)
    assert list(error.value.message_dict) == ["headers"]
    assert "canary" not in str(error.value)
    assert headers_of(tenant) is None


@pytest.mark.parametrize(
    "url",
    [
        "wss://user:canary@h.example/",
        "wss://user@h.example/",
        "wss://@h.example/",
        "wss://h.example/#part",
        "wss://h.example/a b",
        "wss://h.example/\r\nX: y",
        "wss://h.example\\@evil.example/",
        "wss://h.example/\x00",
        "wss://h\t.example/",
    ],
)
def test_an_agents_url_holds_no_login_and_nothing_that_writes_into_the_handshake(url: str) -> None:
    with pytest.raises(ValidationError) as error:
        upstream_url_clean(url)
    assert list(error.value.message_dict) == ["upstream_url"]
    assert "canary" not in str(error.value)


def test_the_command_reads_headers_and_shows_their_names_only(
    tenant: Tenancy, stranger: Tenancy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Authorization:  Bearer canary:1 \n\nX-Team: a\n"))
    said = run("agent_headers", tenant)
    assert "canary" not in said
    assert "Authorization, X-Team" in said
    assert headers_of(tenant) == {"Authorization": "Bearer canary:1", "X-Team": "a"}
    file = tmp_path / "headers"
    for text, error in (
        ("canary", "Line 1 is no header"),
        ("X-A: canary\nX-A: b", "Line 2"),
        ("X-A: canary\nx-a: b", "given twice"),
        ("Host: canary", "Host is set by"),
        ("X-A: cañary", "visible ASCII"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(CommandError, match=error) as caught:
            run("agent_headers", tenant, "--file", str(file))
        assert "canary" not in str(caught.value)
    file.write_text("X-Mine: 1")
    with pytest.raises(CommandError, match="--agent: "):
        run("agent_headers", stranger, "--file", str(file), agent=tenant.agent.id)
    with pytest.raises(CommandError, match="--file: "):
        run("agent_headers", tenant, "--file", str(tmp_path / "none"))
    assert headers_of(tenant) == {"Authorization": "Bearer canary:1", "X-Team": "a"}
    assert headers_of(stranger) is None
    file.write_text("\n")
    run("agent_headers", tenant, "--file", str(file))
    assert headers_of(tenant) is None
