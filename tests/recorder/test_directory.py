"""Whose stream it is: one answer for everything that is not a valid key, and an hour of memory without a database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Agent, PolicyVersion, ProviderCredential, StreamKey
from supervision.services.agents import agent_stream_key_create, agent_stream_key_revoke, agent_stream_key_rotate
from supervision.services.credentials import credential_create
from supervision.services.plivo_accounts import plivo_account_save
from supervision.services.policies import policy_version_create, policy_version_publish
from supervision.stream import directory as directory_module
from supervision.stream.directory import DirectoryUnavailable, ProviderSettings, StreamDirectory
from supervision.stream.failure import FailurePolicy
from tenants.models import Tenant
from tenants.sealing import seal, sealed_field
from tests.factories import RULES, Tenancy, tenancy_create
from tests.support.servers import DatabaseUrls

# The ORM is for arranging rows; the look-up itself uses none. Each block below is one synchronous step of a test.
pytestmark = pytest.mark.django_db(transaction=True)


class WallClock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()
        self.jumped = 0.0

    def __call__(self) -> float:
        return self.now + self.jumped

    def steady(self) -> float:
        """What a clock that nobody sets says meanwhile."""
        return self.now


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def alice(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="alice", config={"cooldown_s": 7})


@pytest.fixture
def charlie(transactional_db: None) -> Tenancy:
    return tenancy_create(owner="charlie", upstream_url="ws://127.0.0.1:1/charlie")


@pytest.fixture
async def make_directory(
    database_urls: DatabaseUrls, clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., StreamDirectory]]:
    # A database that is shut refuses at once; how long the pool hopes otherwise is not what these tests are about.
    monkeypatch.setattr(directory_module, "LOOKUP_TIMEOUT_S", 0.5)
    made: list[StreamDirectory] = []

    def make(dsn: str = database_urls.app) -> StreamDirectory:
        made.append(StreamDirectory(dsn, clock, clock.steady))
        return made[-1]

    yield make
    for directory in made:
        await directory.aclose()


@pytest.fixture
def directory(make_directory: Callable[..., StreamDirectory]) -> StreamDirectory:
    return make_directory()


def change(database_urls: DatabaseUrls, tenancy: Tenancy, sql: str, *parameters: Any) -> None:
    """Change a tenant's rows as mirror_app."""
    with psycopg.connect(database_urls.app) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenancy.id)])
        assert connection.execute(sql.encode(), parameters).rowcount == 1


class Database:
    """The test database, which can be shut for mirror_app: as good as a server that is down."""

    def __init__(self, urls: DatabaseUrls) -> None:
        self._urls = urls
        self._admin = psycopg.connect(urls.admin.replace(f"/{urls.name}", "/postgres"), autocommit=True)
        # Other tests' threads keep theirs; nobody but they could open them anew.
        self._of_others = self._connections()

    def _connections(self) -> list[int]:
        rows = self._admin.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [self._urls.name])
        return [pid for (pid,) in rows]

    def shut(self) -> None:
        self._admin.execute(f'ALTER DATABASE "{self._urls.name}" ALLOW_CONNECTIONS false'.encode())
        ours = [pid for pid in self._connections() if pid not in self._of_others]
        # And wait until each is gone: a signal that has not arrived yet lets one more question through.
        self._admin.execute("SELECT pg_terminate_backend(pid, 20000) FROM unnest(%s::int[]) AS pid", [ours])

    def open(self) -> None:
        self._admin.execute(f'ALTER DATABASE "{self._urls.name}" ALLOW_CONNECTIONS true'.encode())


@pytest.fixture
def database(database_urls: DatabaseUrls) -> Iterator[Database]:
    from django.db import connections

    made = Database(database_urls)
    yield made
    made.open()
    # Django's connection was terminated with the others.
    connections.close_all()


async def test_a_key_finds_its_agent_with_policy_and_judge(directory, alice, charlie):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert binding is not None
    assert (binding.tenant_id, binding.tenant_slug) == (alice.id, alice.slug)
    assert (binding.agent_id, binding.agent_name) == (alice.agent.id, "alice's agent")
    assert (binding.upstream_url, binding.signing_secret) == ("ws://127.0.0.1:1/agent", alice.signing_secret)
    assert (binding.mode, binding.language, binding.voice, dict(binding.headers)) == ("live", "en", "", {})
    assert (binding.policy_id, binding.policy_version_id, binding.policy_version) == (
        alice.policy.id,
        alice.version.id,
        1,
    )
    assert [dict(rule) for rule in binding.rules] == list(RULES)
    assert dict(binding.config)["cooldown_s"] == 7
    assert binding.llm == ProviderSettings("http://127.0.0.1:1/v1", "judge-1", "llm-secret")
    assert binding.tts is None
    other = await directory.lookup(charlie.slug, charlie.stream_key)
    assert (other.tenant_id, other.upstream_url) == (charlie.id, "ws://127.0.0.1:1/charlie")


async def test_secrets_do_not_show_in_a_binding(directory, alice):
    shown = repr(await directory.lookup(alice.slug, alice.stream_key))
    assert alice.signing_secret not in shown
    assert "llm-secret" not in shown


async def test_everything_that_is_no_valid_key_gets_the_same_answer(directory, alice, charlie):
    for slug, key in [
        ("nobody", alice.stream_key),
        (alice.slug, "sk_unknown"),
        (alice.slug, charlie.stream_key),
        (charlie.slug, alice.stream_key),
        (alice.slug.upper(), alice.stream_key),
        (alice.slug, alice.stream_key + " "),
        (alice.slug, ""),
        ("", alice.stream_key),
        (alice.slug + "\x00", alice.stream_key),
        (alice.slug, "\x00"),
        ("a" * 10_000, alice.stream_key),
        (alice.slug, "k" * 1_000_000),
        (alice.slug, "\ud800"),
        ("\ud800", alice.stream_key),
        ("'; DROP TABLE supervision_agent; --", alice.stream_key),
    ]:
        assert await directory.lookup(slug, key) is None, (slug[:20], key[:20])
    assert await directory.lookup(alice.slug, alice.stream_key) is not None


async def test_a_revoked_key_is_refused_at_once_and_the_other_key_goes_on(directory, database_urls, alice):
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    change(database_urls, alice, "UPDATE supervision_streamkey SET revoked_at = now()")
    assert await directory.lookup(alice.slug, alice.stream_key) is None


def keys_of(alice: Tenancy, **changes: Any) -> str:
    with alice.context():
        return agent_stream_key_create(agent_id=alice.agent.id, **changes).key


@pytest.fixture
def second_key(alice: Tenancy) -> str:
    return keys_of(alice)


@pytest.fixture
def expired_key(alice: Tenancy) -> str:
    return keys_of(alice, expires_at=timezone.now() - timedelta(seconds=1))


@pytest.fixture
def revoked_key(alice: Tenancy) -> str:
    with alice.context():
        made = agent_stream_key_create(agent_id=alice.agent.id)
        agent_stream_key_revoke(stream_key_id=made.stream_key.id)
        assert StreamKey.objects.get(id=made.stream_key.id).revoked_at is not None
    return made.key


async def test_keys_overlap_and_end_one_by_one(directory, alice, second_key, expired_key, revoked_key):
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    assert await directory.lookup(alice.slug, second_key) is not None
    assert await directory.lookup(alice.slug, expired_key) is None
    assert await directory.lookup(alice.slug, revoked_key) is None


async def test_an_archived_agent_takes_no_calls(directory, database_urls, alice, charlie):
    change(database_urls, alice, "UPDATE supervision_agent SET archived_at = now()")
    assert await directory.lookup(alice.slug, alice.stream_key) is None
    assert await directory.lookup(charlie.slug, charlie.stream_key) is not None


@pytest.fixture
def published_twice(alice: Tenancy) -> PolicyVersion:
    with alice.context():
        draft = policy_version_create(
            policy_id=alice.policy.id, rules=["Never swear."], llm_credential=alice.credential
        )
        version = policy_version_publish(policy_id=alice.policy.id, number=draft.number)
        policy_version_create(policy_id=alice.policy.id, rules=["A draft."])
    return version


async def test_the_version_that_was_published_last_counts_and_no_draft(directory, alice, published_twice):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert (binding.policy_version_id, binding.policy_version) == (published_twice.id, 2)
    assert [rule["text"] for rule in binding.rules] == ["Never swear."]


@pytest.fixture
def with_two_models(alice: Tenancy) -> None:
    with alice.context():
        second = credential_create(
            kind=ProviderCredential.Kind.LLM,
            name="Second",
            base_url="https://second.example/v1",
            model="s-1",
            api_key="sk-second",
        )
        draft = policy_version_create(
            policy_id=alice.policy.id,
            rules=["Never swear."],
            llm_credential=alice.credential,
            fallback_credential=second,
        )
        policy_version_publish(policy_id=alice.policy.id, number=draft.number)


async def test_a_second_model_comes_with_the_version_that_names_it(directory, alice, with_two_models, charlie):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert (binding.llm.model, binding.fallback_llm.model, binding.fallback_llm.api_key) == (
        alice.credential.model,
        "s-1",
        "sk-second",
    )
    assert (await directory.lookup(charlie.slug, charlie.stream_key)).fallback_llm is None


async def test_a_policy_whose_newest_version_is_a_shadow_never_acts(directory, database_urls, alice):
    change(database_urls, alice, "UPDATE supervision_policyversion SET status = 'shadow'")
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert (binding.mode, binding.policy_version) == ("shadow", 1)


async def test_an_agent_without_a_published_policy_is_relayed_and_not_judged(directory, database_urls, alice):
    change(database_urls, alice, "UPDATE supervision_policyversion SET status = 'retired'")
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert (binding.policy_id, binding.policy_version_id, binding.policy_version) == (None, None, None)
    assert (binding.rules, binding.llm) == ((), None)


@pytest.fixture
def with_headers_and_voice(alice: Tenancy) -> None:
    with alice.context():
        credential = ProviderCredential(name="Voice", kind="tts", base_url="http://127.0.0.1:1/tts", model="tts-1")
        credential.api_key_sealed = seal(
            "tts-secret",
            tenant_id=alice.id,
            field=sealed_field("supervision_providercredential", "api_key_sealed", credential.id),
        )
        credential.save(force_insert=True)
        field = sealed_field("supervision_agent", "headers_sealed", alice.agent.id)
        sealed = seal(json.dumps({"Authorization": "Bearer x"}), tenant_id=alice.id, field=field)
        Agent.objects.filter(id=alice.agent.id).update(headers_sealed=sealed, tts_credential=credential, voice="alloy")


async def test_headers_and_voice_come_along(directory, alice, with_headers_and_voice):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert dict(binding.headers) == {"Authorization": "Bearer x"}
    assert binding.tts == ProviderSettings("http://127.0.0.1:1/tts", "tts-1", "tts-secret")
    assert binding.voice == "alloy"
    assert "Bearer" not in repr(binding)


async def test_what_becomes_of_a_failing_agents_calls_comes_along(directory, database_urls, alice, charlie):
    change(
        database_urls,
        alice,
        "UPDATE supervision_agent SET redials = 3, failure_message = 'Sorry.', on_failure = 'transfer',"
        " failure_transfer_url = 'https://example.com/x', bidirectional = false",
    )
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert binding.failure == FailurePolicy(3, "Sorry.", "transfer", "https://example.com/x")
    assert binding.bidirectional is False
    strangers = await directory.lookup(charlie.slug, charlie.stream_key)
    assert (strangers.failure, strangers.bidirectional) == (FailurePolicy(), True)


AUTH_IDS = ("MAXXXXXXXXXXXXXXXXX1", "SAXXXXXXXXXXXXXXXXX2")


@pytest.fixture
def with_plivo_accounts(alice: Tenancy, charlie: Tenancy) -> None:
    for tenancy, letter in ((alice, "a"), (charlie, "c")):
        with tenancy.context():
            for number, auth_id in enumerate(AUTH_IDS):
                plivo_account_save(auth_id=auth_id, auth_token=f"{letter}{number}" * 20)


async def test_a_tenant_without_a_plivo_account_has_no_tokens(directory, alice):
    assert (await directory.lookup(alice.slug, alice.stream_key)).plivo_tokens is None


async def test_the_tokens_stored_last_come_first_and_a_strangers_never(directory, alice, charlie, with_plivo_accounts):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert binding.plivo_tokens == ("a1" * 20, "a0" * 20)
    assert [account.auth_id for account in binding.plivo_accounts] == list(reversed(AUTH_IDS))
    assert [account.auth_token for account in binding.plivo_accounts] == list(binding.plivo_tokens)
    assert {account.base_url for account in binding.plivo_accounts} == {"https://api.plivo.com/v1"}
    assert "a1a1" not in repr(binding)
    assert "a1a1" not in repr(binding)
    other = await directory.lookup(charlie.slug, charlie.stream_key)
    assert other.plivo_tokens == ("c1" * 20, "c0" * 20)


async def test_tokens_that_cannot_be_unsealed_are_none_but_still_ask_for_a_signature(
    directory, database_urls, alice, charlie, with_plivo_accounts, caplog
):
    broken = (
        "UPDATE supervision_providercredential SET api_key_sealed = '\\x0102' WHERE kind = 'plivo' AND account = %s"
    )
    change(database_urls, alice, broken, AUTH_IDS[0])
    assert (await directory.lookup(alice.slug, alice.stream_key)).plivo_tokens == ("a1" * 20,)
    change(database_urls, alice, broken, AUTH_IDS[1])
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert binding.plivo_tokens == ()
    assert binding.llm is not None
    assert "cannot be unsealed" in caplog.text
    assert (await directory.lookup(charlie.slug, charlie.stream_key)).plivo_tokens == ("c1" * 20, "c0" * 20)


async def test_a_judges_key_that_cannot_be_unsealed_leaves_the_call_unjudged(
    directory, database_urls, alice, charlie, caplog
):
    # Charlie's sealed key, copied into alice's row by whoever could: it opens for charlie only.
    [stolen] = [charlie.credential.api_key_sealed]
    change(database_urls, alice, "UPDATE supervision_providercredential SET api_key_sealed = %s", bytes(stolen))
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert binding.llm is None
    assert binding.policy_version == 1
    assert "cannot be unsealed" in caplog.text
    assert "llm-secret" not in caplog.text


async def test_an_agents_secret_that_cannot_be_unsealed_refuses_the_call(directory, database_urls, alice):
    change(database_urls, alice, "UPDATE supervision_agent SET signing_secret_sealed = '\\x0102'")
    with pytest.raises(DirectoryUnavailable, match="signing_secret_sealed"):
        await directory.lookup(alice.slug, alice.stream_key)


# Without a database


async def test_while_the_database_is_down_keys_of_the_last_hour_go_on(
    directory, database, clock, alice, charlie, caplog
):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    assert await directory.lookup(charlie.slug, "sk_unknown") is None
    database.shut()
    clock.now += directory_module.CACHE_FOR_S - 1
    assert await directory.lookup(alice.slug, alice.stream_key) == binding
    # What was not known is refused as what it is: not looked up.
    for slug, key in [
        (charlie.slug, charlie.stream_key),
        (charlie.slug, "sk_unknown"),
        (charlie.slug, alice.stream_key),
    ]:
        with pytest.raises(DirectoryUnavailable):
            await directory.lookup(slug, key)
    clock.now += 2
    with pytest.raises(DirectoryUnavailable):
        await directory.lookup(alice.slug, alice.stream_key)
    assert caplog.text.count("using those of the last hour") == 1
    assert alice.stream_key not in caplog.text


async def test_after_the_database_is_back_revocation_wins_within_five_seconds(
    directory, database, database_urls, clock, alice
):
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    database.shut()
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    database.open()
    change(database_urls, alice, "UPDATE supervision_streamkey SET revoked_at = now()")
    clock.now += 5
    # The pool may need a moment of real time to connect again; every answer until then is the remembered one.
    answers = []
    while not answers or answers[-1] is not None:
        answers.append(await directory.lookup(alice.slug, alice.stream_key))
        clock.now += 1.1
        assert len(answers) < 4
    database.shut()
    clock.now += 5
    with pytest.raises(DirectoryUnavailable):
        await directory.lookup(alice.slug, alice.stream_key)


@pytest.mark.parametrize("jump_s", [-7_200.0, 7_200.0])
async def test_a_wall_clock_that_jumps_neither_keeps_nor_loses_what_is_remembered(
    directory, database, database_urls, clock, alice, jump_s
):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    database.shut()
    assert await directory.lookup(alice.slug, alice.stream_key) == binding
    clock.jumped = jump_s
    assert await directory.lookup(alice.slug, alice.stream_key) == binding
    database.open()
    change(database_urls, alice, "UPDATE supervision_streamkey SET revoked_at = now()")
    clock.now += 5
    answers = []
    while not answers or answers[-1] is not None:
        answers.append(await directory.lookup(alice.slug, alice.stream_key))
        clock.now += 1.1
        assert len(answers) < 4


async def test_a_remembered_key_still_expires(directory, database, database_urls, clock, alice):
    ends = datetime.fromtimestamp(clock.now, UTC) + timedelta(minutes=10)
    change(database_urls, alice, "UPDATE supervision_streamkey SET expires_at = %s", ends)
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    database.shut()
    clock.now += 599
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    clock.now += 2
    assert await directory.lookup(alice.slug, alice.stream_key) is None


async def test_a_database_that_was_never_reached_refuses_with_a_reason(make_directory, alice):
    directory = make_directory("postgresql://mirror_app@127.0.0.1:1/mirror")
    with pytest.raises(DirectoryUnavailable, match="cannot be reached"):
        await directory.lookup(alice.slug, alice.stream_key)


async def test_memory_is_bounded(directory, alice, second_key, monkeypatch, database):
    monkeypatch.setattr(directory_module, "_CACHE_ENTRIES", 1)
    assert await directory.lookup(alice.slug, alice.stream_key) is not None
    assert await directory.lookup(alice.slug, second_key) is not None
    database.shut()
    assert await directory.lookup(alice.slug, second_key) is not None
    with pytest.raises(DirectoryUnavailable):
        await directory.lookup(alice.slug, alice.stream_key)


# -- which keys were revoked ---------------------------------------------------------------------------------------


async def test_revoked_keys_are_told_from_those_that_expired_or_were_rotated(directory, alice, charlie):
    @sync_to_async
    def arrange():
        with charlie.context():
            foreign = StreamKey.objects.get().id
        with alice.context():
            revoked, expired, standing = (agent_stream_key_create(agent_id=alice.agent.id).stream_key for _ in range(3))
            agent_stream_key_revoke(stream_key_id=revoked.id)
            StreamKey.objects.filter(id=expired.id).update(expires_at=timezone.now() - timedelta(hours=1))
            agent_stream_key_rotate(agent_id=alice.agent.id, overlap=timedelta(0))
        return revoked.id, expired.id, standing.id, foreign

    revoked, expired, standing, foreign = await arrange()
    assert await directory.keys_revoked([revoked, expired, standing, foreign, revoked]) == {revoked}
    assert await directory.keys_revoked([]) == set()
    assert await directory.keys_revoked([expired]) == set()


async def test_keys_of_a_deleted_tenant_and_of_nobody_count_as_revoked(directory, alice, charlie):
    @sync_to_async
    def arrange():
        with alice.context():
            kept = StreamKey.objects.get().id
        with charlie.context():
            gone = StreamKey.objects.get().id
            Tenant.objects.all().delete()
        return kept, gone

    kept, gone = await arrange()
    nobodys = uuid7()
    assert await directory.keys_revoked([kept, gone, nobodys]) == {gone, nobodys}


async def test_while_the_database_is_down_nobody_says_that_a_key_was_revoked(directory, database, alice):
    binding = await directory.lookup(alice.slug, alice.stream_key)
    database.shut()
    with pytest.raises(DirectoryUnavailable, match="cannot say which"):
        await directory.keys_revoked([binding.stream_key_id])
    database.open()
    assert await directory.keys_revoked([binding.stream_key_id]) == set()
