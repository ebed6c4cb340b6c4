"""The pages of voice agents: making, changing and trying one, its stream keys, and who may see and do what."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Agent, Mode, StreamKey, Track
from supervision.selectors.agents import agent_address, agents_standing
from supervision.services.agents import (
    agent_create,
    agent_headers_update,
    agent_stream_key_create,
    agent_stream_key_revoke,
    stream_key_hash,
)
from supervision.services.policies import agent_policy_set, policy_create
from supervision.stream import check
from supervision.stream.check import AgentAddress, AgentCheck
from supervision.stream.frames import Hello
from tenants.models import AuditEvent
from tenants.roles import Role
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, call_create, client_sign_in, unique
from webui.presenters.agents import reached_from_here_only
from webui.views import agents as views

pytestmark = pytest.mark.django_db

KEY = re.compile(r"sk_[A-Za-z0-9_-]{43}")
ONCE = re.compile(r'name="once" value="([^"]+)"')


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def member(tenancy: Tenancy, role: Role) -> Client:
    with tenancy.context():
        user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
        membership_create(user=user, role=role)
    client = Client()
    client_sign_in(client, user)
    return client


def page_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return html.unescape(answer.content.decode())


def once_of(client: Client, path: str) -> str:
    found = ONCE.search(page_of(client, path))
    assert found is not None
    return found.group(1)


def sent(**changes: Any) -> dict[str, Any]:
    """What the form of an agent sends, filled in."""
    return {
        "name": "Front desk",
        "upstream_url": "ws://127.0.0.1:9/desk",
        "headers": "",
        "signing_secret": "",
        "language": "en-GB",
        "audio_format": "audio/x-l16;rate=16000",
        "bidirectional": "on",
        "mode": "live",
        "policy_id": "",
        "policy_track": "live",
        "tts_credential_id": "",
        "voice": "",
        "redials": "3",
        "failure_message": "",
        "on_failure": "close",
        "failure_transfer_url": "",
        **changes,
    }


def as_shown(agent: Agent, **changes: Any) -> dict[str, Any]:
    """What the form for a change sends: what it showed, which it carries along, and what was changed of that."""
    names = [name for name in sent() if name not in ("headers", "signing_secret")]
    shown = {name: getattr(agent, name) for name in names}
    shown |= {"policy_id": agent.policy_id or "", "tts_credential_id": agent.tts_credential_id or ""}
    form = {**shown, "bidirectional": "on" if agent.bidirectional else "", "headers": "", **changes}
    return {**{f"initial-{name}": value for name, value in shown.items()}, **form}


# -- making one -----------------------------------------------------------------------------------------------------


def test_an_agent_is_made_with_all_that_the_form_has_and_its_secret_is_shown_once(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    form = sent(
        headers="Authorization: Bearer agent-login\n\nX-Desk: 4",
        policy_id=str(tenant.policy.id),
        policy_track="shadow",
        mode="shadow",
        voice="nova",
        failure_message="Sorry,  call   again.",
        on_failure="transfer",
        failure_transfer_url="https://example.com/fallback.xml",
        once=once_of(alice, "/agents/new"),
    )
    del form["bidirectional"]
    made = alice.post("/agents/new", form)
    assert made.status_code == 302
    with tenant.context():
        agent = Agent.objects.get(name="Front desk")
        address = agent_address(agent_id=agent.id)
    assert made["Location"] == f"/agents/{agent.id}"
    assert (agent.language, agent.audio_format, agent.mode, agent.policy_track) == (
        "en-GB",
        "audio/x-l16;rate=16000",
        Mode.SHADOW,
        Track.SHADOW,
    )
    assert (agent.policy_id, agent.voice, agent.redials, agent.bidirectional) == (tenant.policy.id, "nova", 3, False)
    assert (agent.failure_message, agent.on_failure) == ("Sorry, call again.", "transfer")
    assert dict(address.headers) == {"Authorization": "Bearer agent-login", "X-Desk": "4"}
    shown = page_of(alice, made["Location"])
    assert address.signing_secret in shown
    assert "agent-login" not in shown
    for path in (made["Location"], "/agents", f"{made['Location']}/edit"):
        page = page_of(alice, path)
        assert address.signing_secret not in page
        assert "agent-login" not in page
    with stranger.context():
        assert Agent.objects.count() == 1


def test_sending_the_form_twice_makes_one_agent(alice: Client, tenant: Tenancy) -> None:
    form = sent(once=once_of(alice, "/agents/new"))
    first, second = alice.post("/agents/new", form), alice.post("/agents/new", form)
    assert first["Location"] == second["Location"]
    with tenant.context():
        assert Agent.objects.filter(name="Front desk").count() == 1


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    wrong = [
        ({"name": " "}, "Give the agent a name."),
        ({"name": "x" * 201}, "Use 200 characters at most."),
        ({"name": "a\x00b"}, "without control characters"),
        ({"upstream_url": ""}, "Give the URL that the agent listens at."),
        ({"upstream_url": "https://example.com"}, "starting with ws:// or wss://"),
        ({"upstream_url": "ws://user:pass@example.com/"}, "Leave the login out of the URL"),
        ({"upstream_url": "ws://169.254.169.254/"}, "169.254.169.254"),
        ({"headers": "no colon"}, "Line 1 has no colon"),
        ({"headers": "X-A: 1\nX-A: 2"}, "Line 2 gives a header"),
        ({"headers": "Host: example.com"}, "Host is set by Mirror"),
        ({"headers": "X-A: ü"}, "visible ASCII"),
        ({"signing_secret": "short"}, "16 to 200 visible ASCII"),
        ({"language": "English, please"}, "Give a language tag"),
        ({"audio_format": "audio/mp3"}, "Choose one of the list."),
        ({"mode": "off"}, "Choose one of the list."),
        ({"policy_id": str(stranger.policy.id)}, "Choose one of the list."),
        ({"policy_id": "x"}, "Choose one of the list."),
        ({"redials": "6"}, "Give 0 to 5."),
        ({"redials": "many"}, "Give a whole number from 0 to 5."),
        ({"redials": ""}, "Give 0 to 5."),
        ({"failure_message": "x" * 301}, "Use 300 characters at most."),
        ({"on_failure": "transfer"}, "Give the URL of the XML"),
        ({"on_failure": "transfer", "failure_transfer_url": "ftp://x"}, "This "),
    ]
    for change, told in wrong:
        answer = alice.post(
            "/agents/new",
            sent(failure_message="Call again.", **change) if "failure_message" not in change else sent(**change),
        )
        assert answer.status_code == 200, change
        page = html.unescape(answer.content.decode())
        (field, *_) = change
        assert told in page, change
        assert 'aria-invalid="true"' in page, change
        if field != "failure_message":
            assert 'value="Call again."' in page, change
        if field not in ("upstream_url",):
            assert "ws://127.0.0.1:9/desk" in page, change
    with tenant.context():
        assert Agent.objects.count() == 1


# -- changing one ---------------------------------------------------------------------------------------------------


def test_only_what_was_changed_is_written_so_that_two_people_do_not_undo_each_other(
    alice: Client, tenant: Tenancy
) -> None:
    path = f"/agents/{tenant.agent.id}/edit"
    with tenant.context():
        as_it_was = Agent.objects.get()
    shown = page_of(alice, path)
    assert f'name="initial-name" value="{as_it_was.name}"' in shown
    assert alice.post(path, as_shown(as_it_was, voice="nova"))["Location"] == f"/agents/{as_it_was.id}"
    # The second person's page is from before; they change something else.
    assert alice.post(path, as_shown(as_it_was, redials="4", bidirectional="")).status_code == 302
    with tenant.context():
        now = Agent.objects.get()
        assert (now.voice, now.redials, now.bidirectional) == ("nova", 4, False)
        assert (now.name, now.policy_id, now.mode) == (as_it_was.name, as_it_was.policy_id, as_it_was.mode)
        changed = [
            json.loads(event.after) for event in AuditEvent.objects.filter(action="agent.update").order_by("seq")
        ]
    assert [sorted(set(after) - {"updated_at"}) for after in changed] == [["voice"], ["bidirectional", "redials"]]
    assert alice.post(path, as_shown(now)).status_code == 302
    with tenant.context():
        assert AuditEvent.objects.filter(action="agent.update").count() == 2


def test_headers_are_kept_replaced_or_removed_and_asked_for_when_the_agent_moves(
    alice: Client, tenant: Tenancy
) -> None:
    path = f"/agents/{tenant.agent.id}/edit"
    with tenant.context():
        agent = agent_headers_update(agent=Agent.objects.get(), headers={"X-Login": "old"})

    def headers() -> dict[str, str]:
        with tenant.context():
            return dict(agent_address(agent_id=agent.id).headers)

    alice.post(path, as_shown(agent, voice="nova"))
    assert headers() == {"X-Login": "old"}
    moved = alice.post(path, as_shown(agent, upstream_url="ws://127.0.0.1:8/elsewhere"))
    assert "type them again, or have those that are stored removed" in html.unescape(moved.content.decode())
    assert headers() == {"X-Login": "old"}
    both = alice.post(path, as_shown(agent, headers="X-A: 1", headers_clear="on"))
    assert "Either type headers" in both.content.decode()
    alice.post(path, as_shown(agent, upstream_url="ws://127.0.0.1:8/elsewhere", headers="X-Login: new"))
    assert headers() == {"X-Login": "new"}
    alice.post(path, as_shown(agent, headers_clear="on"))
    assert headers() == {}
    assert "headers_clear" not in page_of(alice, path)


def test_an_editor_chooses_the_policy_and_nothing_else_and_the_agents_own_settings_stay(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    editor = member(tenant, Role.EDITOR)
    with tenant.context():
        other = policy_create(name="Other")
        agent_policy_set(
            agent_id=tenant.agent.id, policy_id=tenant.policy.id, overrides={"intervention_threshold": 0.9}
        )
    path = f"/agents/{tenant.agent.id}"
    page = page_of(editor, path)
    assert "<dt>Threshold</dt><dd>0.9" in page
    assert f'href="/policies/{tenant.policy.id}/agents/{tenant.agent.id}"' in page
    assert f"{path}/edit" not in page
    answer = editor.post(f"{path}/policy", {"policy_id": str(other.id), "policy_track": "shadow"})
    assert answer["Location"] == path
    assert "New calls are judged by Other." in page_of(editor, path)
    with tenant.context():
        agent = Agent.objects.get()
    assert (agent.policy_id, agent.policy_track) == (other.id, "shadow")
    assert agent.policy_overrides == {"intervention_threshold": 0.9}
    for wrong in (str(stranger.policy.id), "x"):
        refused = editor.post(f"{path}/policy", {"policy_id": wrong, "policy_track": "live"})
        assert "Choose one of the list." in refused.content.decode()
    assert editor.post(f"{path}/policy", {"policy_id": "", "policy_track": "live"}).status_code == 302
    assert "not judged" in page_of(editor, path)


# -- keys and secrets ------------------------------------------------------------------------------------------------


def test_a_new_key_is_shown_once_with_its_urls_and_the_keys_before_it_go_on(alice: Client, tenant: Tenancy) -> None:
    path = f"/agents/{tenant.agent.id}"
    form = {"overlap_h": "24", "once": once_of(alice, f"{path}/stream-key")}
    made = alice.post(f"{path}/stream-key", form)
    again = alice.post(f"{path}/stream-key", form)
    assert made["Location"] == again["Location"] == path
    assert not KEY.search(f"{made.headers} {made.content!r}")
    for session in Session.objects.all():
        assert not KEY.search(str(session.get_decoded()))
    assert alice.head(path).status_code == 200
    shown = page_of(alice, path)
    (key,) = set(KEY.findall(shown))
    assert f"/plivo/{tenant.slug}/{key}/answer" in shown
    assert f"ws://127.0.0.1:8000/stream/{tenant.slug}/{key}" in shown
    assert 'contentType="audio/x-mulaw;rate=8000"' in shown
    assert "Plivo cannot reach these." in shown
    for _ in range(2):
        assert key not in page_of(alice, path)
    with tenant.context():
        before, new = StreamKey.objects.order_by("created_at")
    assert bytes(new.key_hash) == stream_key_hash(key)
    assert new.expires_at is None
    assert before.expires_at is not None
    assert timedelta(hours=23) < before.expires_at - timezone.now() < timedelta(hours=25)
    assert "Choose one of the list." in alice.post(f"{path}/stream-key", {"overlap_h": "9"}).content.decode()


@pytest.mark.parametrize(
    ("public_url", "told"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000", True),
        ("http://[::1]:8000", True),
        ("https://10.1.2.3", True),
        ("https://mirror.example.com", False),
        ("https://93.184.215.14", False),
    ],
)
def test_addresses_that_plivo_cannot_reach_are_told_from_others(public_url: str, told: bool) -> None:
    assert reached_from_here_only(public_url) is told


def test_a_key_is_revoked_after_a_question_which_says_when_it_is_the_last(alice: Client, tenant: Tenancy) -> None:
    with tenant.context():
        key_id = StreamKey.objects.get().id
    path = f"/agents/{tenant.agent.id}/stream-keys/{key_id}/revoke"
    assert "It is the only one that works." in page_of(alice, path)
    with tenant.context():
        agent_stream_key_create(agent_id=tenant.agent.id)
    assert "It is the only one that works." not in page_of(alice, path)
    for _ in range(2):
        assert alice.post(path)["Location"] == f"/agents/{tenant.agent.id}"
    assert alice.get(path)["Location"] == f"/agents/{tenant.agent.id}"
    page = page_of(alice, f"/agents/{tenant.agent.id}")
    assert "is revoked. Calls that came in with it end" in page
    assert "Revoked" in page


def test_the_signing_secret_is_changed_to_one_that_is_made_or_given(alice: Client, tenant: Tenancy) -> None:
    path = f"/agents/{tenant.agent.id}/signing-secret"

    def secret() -> str:
        with tenant.context():
            return agent_address(agent_id=tenant.agent.id).signing_secret

    alice.post(path, {"signing_secret": "", "once": once_of(alice, path)})
    made = secret()
    assert made != tenant.signing_secret
    assert made in page_of(alice, f"/agents/{tenant.agent.id}")
    refused = alice.post(path, {"signing_secret": "too short", "once": once_of(alice, path)})
    assert "16 to 200 visible ASCII" in refused.content.decode()
    alice.post(path, {"signing_secret": "the-agent-knows-this-one", "once": once_of(alice, path)})
    assert secret() == "the-agent-knows-this-one"


def test_an_agent_goes_out_of_use_with_its_keys(alice: Client, tenant: Tenancy) -> None:
    call_create(tenant)
    path = f"/agents/{tenant.agent.id}/archive"
    assert "Its stream key is revoked" in page_of(alice, path)
    assert alice.post(path)["Location"] == "/agents"
    assert f"{tenant.agent.name} is out of use" in page_of(alice, "/agents")
    assert alice.post(path).status_code == 404
    with tenant.context():
        assert StreamKey.objects.get().revoked_at is not None


def test_dangerous_things_need_a_recent_sign_in(tenant: Tenancy) -> None:
    client = Client()
    client_sign_in(client, tenant.users["alice"], ago=timedelta(minutes=6))
    with tenant.context():
        key_id = StreamKey.objects.get().id
    base = f"/agents/{tenant.agent.id}"
    for end in ("stream-key", f"stream-keys/{key_id}/revoke", "signing-secret", "archive"):
        assert client.get(f"{base}/{end}")["Location"] == f"/account/confirm?next={base}/{end}"
        assert client.post(f"{base}/{end}", {"overlap_h": "0"})["Location"].startswith("/account/confirm")
    with tenant.context():
        assert StreamKey.objects.get().revoked_at is None
        assert Agent.objects.get().archived_at is None


# -- trying one out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            AgentCheck(reachable=False, handshake_status=403, problem="the agent refused the handshake"),
            ["cannot be reached", "The agent refused the handshake.", "HTTP 403"],
        ),
        (
            AgentCheck(reachable=True, handshake_status=101, dial_ms=41, audio_ms=1200),
            ["knows nothing of Mirror", "add supervision.client", "41 ms", "1.2 s"],
        ),
        (
            AgentCheck(
                reachable=True, dial_ms=7, problem="the agent closed the stream with code 1011", close_code=1011
            ),
            ["knows nothing of Mirror", "closed the stream with code 1011."],
        ),
        (
            AgentCheck(
                reachable=True,
                dial_ms=7,
                hello=Hello(sdk="mirror-client 1", wants=frozenset({"say"}), language="en", voice=None, marks=False),
                hello_ms=12,
            ),
            ["works with Mirror", "mirror-client 1", "12 ms", "say"],
        ),
    ],
    ids=["refused", "knows nothing", "hangs up", "says hello"],
)
def test_what_was_found_is_said_in_words_once(
    alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, found: AgentCheck, told: list[str]
) -> None:
    asked: list[AgentAddress] = []

    async def dialled(address: AgentAddress) -> AgentCheck:
        asked.append(address)
        return found

    monkeypatch.setattr(views, "agent_check", dialled)
    path = f"/agents/{tenant.agent.id}"
    assert alice.post(f"{path}/check")["Location"] == f"{path}#check"
    assert [address.upstream_url for address in asked] == [tenant.agent.upstream_url]
    page = page_of(alice, path)
    for words in told:
        assert words in page
    assert told[0] not in page_of(alice, path)


def test_an_agent_that_nobody_runs_is_dialled_and_not_reached(alice: Client, tenant: Tenancy) -> None:
    assert views.agent_check is check.agent_check
    alice.post(f"/agents/{tenant.agent.id}/check")
    assert "The agent cannot be reached." in page_of(alice, f"/agents/{tenant.agent.id}")


# -- the list --------------------------------------------------------------------------------------------------------


def test_the_list_says_how_agents_stand_and_is_filtered_by_the_url(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    call_create(tenant, started_at=timezone.now() - timedelta(minutes=3, seconds=30))
    with tenant.context():
        agent_create(name="Keyless", upstream_url="ws://127.0.0.1:9/", mode=Mode.SHADOW)
        agent_create(name="Percent % _", upstream_url="ws://127.0.0.1:9/", policy=tenant.policy)
        revoked = agent_stream_key_create(agent_id=Agent.objects.get(name="Keyless").id).stream_key
        agent_stream_key_revoke(stream_key_id=revoked.id)
    page = page_of(alice, "/agents")
    rows = dict(re.findall(r'class="agent-name"><a href="[^"]*">([^<]*)</a>(.*?)</tr>', page, re.S))
    assert list(rows) == ["Percent % _", "Keyless", "alice's agent"]
    for name, words in {
        "alice's agent": ("Ready", "3 min ago", "alice's policy"),
        "Keyless": ("No stream key", "none: not judged", "none yet", "Shadow"),
    }.items():
        for told in words:
            assert told in rows[name], (name, told)
    assert "charlie" not in page

    def names(query: str) -> list[str]:
        return re.findall(r'class="agent-name"><a href="[^"]*">([^<]*)</a>', page_of(alice, f"/agents?{query}"))

    assert names("name=KEYL") == ["Keyless"]
    assert names("name=%25") == ["Percent % _"]
    assert names(f"policy={tenant.policy.id}") == ["Percent % _", "alice's agent"]
    assert names(f"policy={stranger.policy.id}") == ["Percent % _", "Keyless", "alice's agent"]
    assert "No agent is like this" in page_of(alice, "/agents?name=nobody")


def test_long_lists_have_pages_and_wrong_cursors_lead_to_the_first(
    alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PAGE_ROWS", 1)
    with tenant.context():
        agent_create(name="second agent", upstream_url="ws://127.0.0.1:9/")
    older = re.search(r'href="(/agents\?name=agent&cursor=[^"]+)"', page_of(alice, "/agents?name=agent"))
    assert older is not None
    assert "alice's agent</a>" in page_of(alice, older.group(1))
    for cursor in ("nonsense", "\x00", "x" * 3000):
        assert alice.get("/agents", {"cursor": cursor, "name": "agent"})["Location"] == "/agents?name=agent"


def test_a_tenant_without_agents_is_told_what_to_do(tenant: Tenancy) -> None:
    with tenant.context():
        Agent.objects.update(archived_at=timezone.now())
    owner, viewer = Client(), Client()
    client_sign_in(owner, tenant.users["alice"])
    client_sign_in(viewer, tenant.users["bob"])
    assert 'href="/welcome"' in page_of(owner, "/agents")
    page = page_of(viewer, "/agents")
    assert "Ask an owner or admin" in page
    assert "/welcome" not in page


# -- who may ---------------------------------------------------------------------------------------------------------


def test_a_strangers_agent_and_a_missing_one_are_the_same(alice: Client, stranger: Tenancy) -> None:
    with stranger.context():
        key_id = StreamKey.objects.get().id
    ends = ("", "/edit", "/archive", "/stream-key", f"/stream-keys/{key_id}/revoke", "/signing-secret")
    for end in ends:
        foreign, missing = (alice.get(f"/agents/{one}{end}") for one in (stranger.agent.id, uuid7()))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.content == missing.content
        if end:
            assert alice.post(f"/agents/{stranger.agent.id}{end}", sent(overlap_h="0")).status_code == 404
    for end in ("/policy", "/check"):
        assert alice.post(f"/agents/{stranger.agent.id}{end}", {"policy_track": "live"}).status_code == 404
    # Her own agent with charlie's key.
    with_own = f"/agents/{first_agent(alice)}/stream-keys/{key_id}/revoke"
    assert alice.post(with_own).status_code == 404
    with stranger.context():
        assert StreamKey.objects.get().revoked_at is None


def first_agent(client: Client) -> UUID:
    found = re.search(r'href="/agents/([0-9a-f-]{36})"', page_of(client, "/agents"))
    assert found is not None
    return UUID(found.group(1))


def test_who_may_not_change_agents_sees_no_keys_and_no_secrets_in_urls(tenant: Tenancy) -> None:
    with tenant.context():
        Agent.objects.update(upstream_url="wss://agents.example/desk?token=hush&plain=")
    viewer = Client()
    client_sign_in(viewer, tenant.users["bob"])
    path = f"/agents/{tenant.agent.id}"
    for page in (page_of(viewer, "/agents"), page_of(viewer, path)):
        assert "wss://agents.example/desk?token=***&plain=***" in page
        assert "hush" not in page
        for hidden in ("/edit", "/stream-key", "/archive", "/check", "/policy", "/agents/new"):
            assert f'{hidden}"' not in page, hidden
    for end in ("/edit", "/stream-key", "/archive", "/signing-secret"):
        assert viewer.get(f"{path}{end}").status_code == 403
        assert viewer.post(f"{path}{end}", sent()).status_code == 403
    with tenant.context():
        assert agents_standing(agent_ids=[tenant.agent.id])[tenant.agent.id].stream_keys == 1
