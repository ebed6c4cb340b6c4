"""The audit log: what is done is recorded with its change, and nobody who runs Mirror can rewrite it."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, ProgrammingError, connection, transaction

from mirror_saas.ids import uuid7
from supervision.models import ProviderCredential, StreamKey
from supervision.services.agents import (
    agent_create,
    agent_headers_update,
    agent_stream_key_create,
    agent_stream_key_revoke,
    agent_stream_key_rotate,
    agent_upstream_update,
)
from supervision.services.credentials import credential_update
from supervision.services.plivo_accounts import plivo_account_remove, plivo_account_save
from supervision.services.policies import policy_create, policy_version_create, policy_version_publish
from tenants.actors import Actor, actor_context
from tenants.audit_chain import ChainPoint, canonical, export_header, export_line, export_verify
from tenants.context import TenantContextMissing, tenant_context
from tenants.management.commands import verify_audit
from tenants.models import ApiKey, AuditEvent
from tenants.roles import Role
from tenants.selectors.audit import auditevent_fields, auditevent_head, auditevent_page
from tenants.services.api_keys import api_key_create, api_key_revoke
from tenants.services.audit import auditevent_record, auditevents_verify, changes, snapshot
from tenants.services.tenants import membership_create, tenant_create, user_create
from tests.factories import PASSWORD, Tenancy, tenancy_create, unique
from tests.support.servers import DatabaseUrls

ALICE = Actor(kind="user", label="alice@example.com", id=uuid7(), ip="203.0.113.9", user_agent="Firefox")


def events_of(tenancy: Tenancy) -> list[AuditEvent]:
    with tenancy.context():
        return list(AuditEvent.objects.order_by("seq"))


def newest(tenancy: Tenancy) -> AuditEvent:
    return events_of(tenancy)[-1]


# -- what is recorded ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_everything_that_a_tenant_is_made_of_is_in_its_log_from_the_first_event(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    assert [event.action for event in events_of(tenant)] == [
        "tenant.create",
        "membership.create",
        "membership.create",
        "api_key.create",
        "credential.create",
        "policy.create",
        "policy_version.create",
        "policy_version.publish",
        "agent.create",
        "stream_key.create",
    ]
    assert [event.seq for event in events_of(tenant)] == list(range(1, 11))
    assert "charlie" not in repr([auditevent_fields(event) for event in events_of(tenant)])
    assert "alice" not in repr([auditevent_fields(event) for event in events_of(stranger)])


def _plivo(tenancy: Tenancy) -> None:
    plivo_account_save(auth_id="MA" + "X" * 18, auth_token="canary-plivo-token-1")


def _plivo_again(tenancy: Tenancy) -> None:
    _plivo(tenancy)
    plivo_account_save(auth_id="MA" + "X" * 18, auth_token="canary-plivo-token-2")


def _plivo_removed(tenancy: Tenancy) -> None:
    _plivo(tenancy)
    plivo_account_remove(auth_id="MA" + "X" * 18)


def _published(tenancy: Tenancy) -> None:
    draft = policy_version_create(policy_id=tenancy.policy.id, rules=["Be kind."])
    policy_version_publish(policy_id=tenancy.policy.id, number=draft.number)


def _credential(tenancy: Tenancy) -> None:
    credential_update(
        credential=ProviderCredential.objects.get(), base_url="https://x.example/v1", model="m2", api_key="canary-llm"
    )


CHANGES: list[tuple[str, Callable[[Tenancy], object], Any, Any]] = [
    (
        "agent.update",
        lambda t: agent_upstream_update(agent=t.agent, upstream_url="wss://a.example/x?key=canary-query"),
        {"upstream_url": "ws://127.0.0.1:1/agent"},
        {"upstream_url": "wss://a.example/x?key=***"},
    ),
    (
        "agent.update",
        lambda t: agent_headers_update(agent=t.agent, headers={"Authorization": "Bearer canary-header"}),
        {"headers_sealed": None},
        {"headers_sealed": "***"},
    ),
    (
        "credential.update",
        _credential,
        {"base_url": "http://127.0.0.1:1/v1", "model": "judge-1", "api_key_sealed": "***"},
        {"base_url": "https://x.example/v1", "model": "m2", "api_key_sealed": "***"},
    ),
    ("credential.create", _plivo, None, {"name": "Plivo MA" + "X" * 18, "api_key_sealed": "***"}),
    ("credential.update", _plivo_again, {"api_key_sealed": "***"}, {"api_key_sealed": "***"}),
    ("credential.delete", _plivo_removed, {"account": "MA" + "X" * 18, "api_key_sealed": "***"}, None),
    (
        "policy_version.create",
        lambda t: policy_version_create(policy_id=t.policy.id, rules=["Be kind."]),
        None,
        {"number": 2, "status": "draft", "rules": [{"text": "Be kind.", "severity": "medium"}]},
    ),
    (
        "policy_version.publish",
        _published,
        {"status": "draft", "live_number": 1},
        {"status": "live", "live_number": 2},
    ),
    (
        "stream_key.create",
        lambda t: agent_stream_key_create(agent_id=t.agent.id, key="sk_canary-stream-key-of-more-than-16"),
        None,
        {"key_hash": "***", "revoked_at": None},
    ),
    (
        "stream_key.revoke",
        lambda t: agent_stream_key_revoke(stream_key_id=StreamKey.objects.get().id),
        {"revoked_at": None},
        {},
    ),
    ("stream_key.expire", lambda t: agent_stream_key_rotate(agent_id=t.agent.id), {"expires_at": None}, {}),
    (
        "api_key.create",
        lambda t: api_key_create(name="canary-free", scopes=["judge"], held=["judge"]),
        None,
        {"name": "canary-free", "scopes": ["judge"], "revoked_at": None},
    ),
    ("api_key.revoke", lambda t: api_key_revoke(api_key_id=ApiKey.objects.get().id), {"revoked_at": None}, {}),
    (
        "membership.update",
        lambda t: membership_create(user=t.users["bob"], role=Role.EDITOR),
        {"role": "viewer"},
        {"role": "editor"},
    ),
    (
        "membership.create",
        lambda t: membership_create(user=user_create(email="d@example.com", password=PASSWORD), role=Role.VIEWER),
        None,
        {"role": "viewer"},
    ),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("action", "do", "before", "after"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_change_is_recorded_with_before_and_after_and_without_secrets(
    tenant: Tenancy, stranger: Tenancy, action: str, do: Callable[[Tenancy], object], before: Any, after: Any
) -> None:
    strangers = len(events_of(stranger))
    with tenant.context(), actor_context(ALICE):
        last_seq = AuditEvent.objects.count()
        do(tenant)
    made = [event for event in events_of(tenant) if event.seq > last_seq and event.action == action]
    assert len(made) == 1
    event = auditevent_fields(made[0])
    assert (event["actor_kind"], event["actor_label"], event["actor_id"]) == ("user", ALICE.label, str(ALICE.id))
    assert (event["ip"], event["user_agent"]) == ("203.0.113.9", "Firefox")
    assert event["object_type"] == action.split(".")[0]
    for found, expected in ((event["before"], before), (event["after"], after)):
        if expected is None:
            assert found is None
        else:
            assert {name: found[name] for name in expected} == expected
    whole = repr([auditevent_fields(each) for each in events_of(tenant)]).replace("canary-free", "")
    for secret in ("canary", "llm-secret", tenant.api_key.split("_", 2)[2], tenant.stream_key, tenant.signing_secret):
        assert secret not in whole
    assert len(events_of(stranger)) == strangers
    with tenant.context():
        assert auditevents_verify().valid


@pytest.mark.django_db
def test_what_changes_nothing_is_no_event(tenant: Tenancy) -> None:
    before = len(events_of(tenant))
    with tenant.context():
        membership_create(user=tenant.users["bob"], role=Role.VIEWER)
        key = ApiKey.objects.get()
        api_key_revoke(api_key_id=key.id)
        api_key_revoke(api_key_id=key.id)
    assert len(events_of(tenant)) == before + 1


@pytest.mark.django_db
def test_what_was_rolled_back_is_no_event_and_leaves_no_gap(tenant: Tenancy) -> None:
    before = len(events_of(tenant))
    try:
        with tenant.context():
            api_key_create(name="never", scopes=["judge"])
            raise LookupError
    except LookupError:
        pass
    with tenant.context():
        api_key_create(name="kept", scopes=["judge"])
        assert auditevents_verify().valid
    assert [event.object_label for event in events_of(tenant)][before:] == ["kept"]


@pytest.mark.django_db
def test_secrets_in_nested_values_are_masked_whatever_they_are_called(tenant: Tenancy) -> None:
    with tenant.context():
        event = auditevent_record(
            action="thing.create",
            object_id="1",
            after={
                "config": {"apiKey": "canary-1", "nested": [{"Authorization": "canary-2"}], "judge_max_tokens": 400},
                "text": "call wss://user:canary-3@host/ with mk_abc_canary-4 and sk_canary-5-canary-5-canary",
                "auth_token": ["canary-6"],
                "callback_url": "https://h/x?a=canary-7&b=canary-8#top",
            },
        )
    after = auditevent_fields(event)["after"]
    assert "canary" not in json.dumps(after)
    assert after["config"]["judge_max_tokens"] == 400
    assert after["callback_url"] == "https://h/x?a=***&b=***#top"


@pytest.mark.django_db
def test_hostile_texts_are_stored_and_verified(tenant: Tenancy) -> None:
    label = 'nul \x00 quote " backslash \\ newline \n emoji 🍕 rtl \u202e' + "x" * 500
    actor = Actor(kind="user", label=label, user_agent=label, ip="::1")
    with tenant.context(), actor_context(actor):
        auditevent_record(
            action="thing.create",
            object_id="1",
            object_label=label,
            after={"text": label, "big": 10**30, "small": 1e-7, "large": 1e16, "ratio": 0.1 + 0.2, "key\x00": None},
        )
        assert auditevents_verify().valid
    event = auditevent_fields(newest(tenant))
    assert event["after"]["large"] == 1e16
    assert "\x00" in event["after"]["text"]
    assert len(event["actor_label"]) == 300


def test_a_value_that_json_cannot_hold_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical({"x": value})


@pytest.mark.django_db
def test_without_anybody_the_process_is_the_actor(tenant: Tenancy) -> None:
    event = newest(tenant)
    assert event.actor_kind == "system"
    assert " by " in event.actor_label


def test_without_a_tenant_nothing_is_recorded() -> None:
    with pytest.raises(TenantContextMissing):
        auditevent_record(action="thing.create", object_id="1")


@pytest.mark.django_db
def test_changes_are_the_columns_that_differ(tenant: Tenancy) -> None:
    was = snapshot(tenant.agent)
    assert changes(was, snapshot(tenant.agent)) == ({}, {})
    tenant.agent.name = "renamed"
    assert changes(was, snapshot(tenant.agent)) == ({"name": "alice's agent"}, {"name": "renamed"})


# -- append-only --------------------------------------------------------------------------------------------------

REWRITES = [
    "UPDATE tenants_auditevent SET action = 'nothing'",
    "UPDATE tenants_auditevent SET seq = seq + 1",
    "DELETE FROM tenants_auditevent",
    "TRUNCATE tenants_auditevent",
    "INSERT INTO tenants_auditevent SELECT * FROM tenants_auditevent ON CONFLICT (id) DO UPDATE SET action = 'x'",
    "MERGE INTO tenants_auditevent a USING tenants_auditevent b ON a.id = b.id WHEN MATCHED THEN DELETE",
    "ALTER TABLE tenants_auditevent DISABLE ROW LEVEL SECURITY",
    "DROP TABLE tenants_auditevent",
    "CREATE RULE r AS ON INSERT TO tenants_auditevent DO INSTEAD NOTHING",
    "CREATE TRIGGER t BEFORE INSERT ON tenants_auditevent FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "SELECT 1 FROM tenants_auditevent FOR UPDATE",
    "GRANT SELECT ON tenants_auditevent TO PUBLIC; UPDATE tenants_auditevent SET action = 'x'",
    "SET ROLE mirror_owner",
    "SET session_replication_role = replica",
]


@pytest.mark.django_db
@pytest.mark.parametrize("statement", REWRITES)
def test_the_role_that_runs_mirror_cannot_rewrite_the_log(tenant: Tenancy, statement: str) -> None:
    before = [auditevent_fields(event) for event in events_of(tenant)]
    with tenant.context():
        with pytest.raises(ProgrammingError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
        assert auditevents_verify().valid
    assert [auditevent_fields(event) for event in events_of(tenant)] == before


@pytest.mark.django_db
def test_a_number_cannot_be_given_twice_and_a_strangers_log_cannot_be_written(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    with tenant.context():
        first = AuditEvent.objects.get(seq=1)
        fields = {field.attname: getattr(first, field.attname) for field in AuditEvent._meta.concrete_fields}
        with pytest.raises(IntegrityError), transaction.atomic():
            AuditEvent.objects.create(**{**fields, "id": uuid7()})
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            AuditEvent.objects.create(**{**fields, "id": uuid7(), "seq": 99, "tenant_id": stranger.id})
    with stranger.context():
        assert auditevents_verify().valid


@pytest.mark.django_db
def test_an_event_that_was_planted_behind_the_log_is_found(tenant: Tenancy) -> None:
    # Inserting is allowed to mirror_app: the chain is what tells.
    with tenant.context():
        last = AuditEvent.objects.order_by("-seq").first()
        assert last is not None
        fields = {field.attname: getattr(last, field.attname) for field in AuditEvent._meta.concrete_fields}
        AuditEvent.objects.create(**{**fields, "id": uuid7(), "seq": last.seq + 1, "prev_hash": last.hash})
        found = auditevents_verify()
    assert found.problem is not None
    assert found.problem.seq == last.seq + 1
    assert "was changed" in found.problem.what


# -- what only the owner of the database could do -----------------------------------------------------------------

TAMPERINGS = [
    ("UPDATE tenants_auditevent SET action = 'agent.delete' WHERE seq = 4", 4, "was changed"),
    ("UPDATE tenants_auditevent SET at = at + interval '1 microsecond' WHERE seq = 4", 4, "was changed"),
    ("UPDATE tenants_auditevent SET actor_label = 'bob' WHERE seq = 1", 1, "was changed"),
    ("UPDATE tenants_auditevent SET after = '{}' WHERE seq = 4", 4, "was changed"),
    ("UPDATE tenants_auditevent SET after = 'no json' WHERE seq = 4", 4, "was changed"),
    ("UPDATE tenants_auditevent SET after = NULL WHERE seq = 4", 4, "was changed"),
    ("UPDATE tenants_auditevent SET ip = '192.0.2.1' WHERE seq = 10", 10, "was changed"),
    ("DELETE FROM tenants_auditevent WHERE seq = 1", 1, "is missing"),
    ("DELETE FROM tenants_auditevent WHERE seq = 5", 5, "is missing"),
    ("UPDATE tenants_auditevent SET seq = -seq WHERE seq = 5", 1, "is missing"),
    ("UPDATE tenants_auditevent SET hash = '\\x00' WHERE seq = 5", 5, "was changed"),
    (
        "UPDATE tenants_auditevent SET seq = CASE seq WHEN 4 THEN 1005 ELSE 1004 END WHERE seq IN (4, 5);"
        "UPDATE tenants_auditevent SET seq = seq - 1000 WHERE seq > 1000",
        4,
        "does not follow",
    ),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("statement", "seq", "what"), TAMPERINGS)
def test_what_the_databases_owner_changes_is_found(
    database_urls: DatabaseUrls, statement: str, seq: int, what: str
) -> None:
    tenant, stranger = tenancy_create(owner="alice", viewer="bob"), tenancy_create(owner="charlie")
    tamper(database_urls, tenant, statement)
    with tenant.context():
        found = auditevents_verify()
    assert found.problem is not None
    assert (found.problem.seq, found.count) == (seq, seq - 1)
    assert what in found.problem.what
    with stranger.context():
        assert auditevents_verify().valid


def tamper(database_urls: DatabaseUrls, tenancy: Tenancy, statement: str) -> None:
    with psycopg.connect(database_urls.owner) as owner:
        owner.execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenancy.id)])
        owner.execute(statement.encode())


@pytest.mark.django_db(transaction=True)
def test_a_log_that_was_cut_off_or_written_anew_is_found_by_a_head_that_was_kept(database_urls: DatabaseUrls) -> None:
    tenant = tenancy_create(owner="alice")
    with tenant.context():
        head = auditevent_head()
        assert head is not None
        assert auditevents_verify(expected=head).valid
    tamper(database_urls, tenant, f"DELETE FROM tenants_auditevent WHERE seq = {head.seq}")
    with tenant.context():
        # The chain alone cannot know what came after its end.
        assert auditevents_verify().valid
        found = auditevents_verify(expected=head)
        assert found.problem is not None
        assert "cut off" in found.problem.what
        api_key_create(name="another", scopes=["judge"])
        found = auditevents_verify(expected=head)
        assert found.problem is not None
        assert "written anew" in found.problem.what


# -- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_writers_at_the_same_time_make_one_chain_without_gaps() -> None:
    tenant, stranger = (tenant_create(slug=unique(name), name=name) for name in ("alice", "charlie"))
    barrier = threading.Barrier(6)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait(timeout=30)
            for turn in range(15):
                who = tenant if number < 4 else stranger
                try:
                    with tenant_context(who.id):
                        auditevent_record(action="thing.create", object_id=f"{number}-{turn}", object_label=who.name)
                        if turn % 5 == 4:
                            raise LookupError
                except LookupError:
                    pass
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert problems == []
    for who, writers in ((tenant, 4), (stranger, 2)):
        with tenant_context(who.id):
            found = auditevents_verify()
            labels = set(AuditEvent.objects.values_list("object_label", flat=True))
        assert found.valid
        assert found.count == 1 + writers * 12
        assert labels <= {who.name, who.slug}


@pytest.mark.django_db(transaction=True)
def test_a_writer_waits_for_the_one_before_and_follows_it() -> None:
    tenant = tenant_create(slug=unique("alice"), name="Alice")
    first_wrote, may_commit, second_done = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        try:
            with tenant_context(tenant.id):
                auditevent_record(action="thing.create", object_id="first")
                first_wrote.set()
                assert may_commit.wait(timeout=30)
        finally:
            connection.close()

    def second() -> None:
        try:
            with tenant_context(tenant.id):
                auditevent_record(action="thing.create", object_id="second")
            second_done.set()
        finally:
            connection.close()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert first_wrote.wait(timeout=30)
    threads[1].start()
    wait_for_a_waiter()
    assert not second_done.is_set()
    may_commit.set()
    for thread in threads:
        thread.join(timeout=30)
    with tenant_context(tenant.id):
        assert list(AuditEvent.objects.order_by("seq").values_list("object_id", flat=True))[1:] == ["first", "second"]
        assert auditevents_verify().valid


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("second", "first"),
    [
        (_plivo, lambda t: agent_stream_key_create(agent_id=t.agent.id)),
        (
            lambda t: api_key_create(name="second", scopes=["judge"]),
            lambda t: agent_create(name="first", upstream_url="ws://127.0.0.1:1/", policy=t.policy),
        ),
        (_published, lambda t: agent_create(name="first", upstream_url="ws://127.0.0.1:1/", policy=t.policy)),
        (
            lambda t: agent_stream_key_rotate(agent_id=t.agent.id),
            lambda t: agent_stream_key_create(agent_id=t.agent.id),
        ),
        (
            lambda t: membership_create(user=t.users["bob"], role=Role.EDITOR),
            lambda t: policy_create(name="first"),
        ),
    ],
    ids=["plivo", "api key", "publish", "rotate", "member"],
)
def test_a_writer_that_waits_for_the_log_does_not_hold_what_the_other_needs_to_commit(
    second: Callable[[Tenancy], object], first: Callable[[Tenancy], object]
) -> None:
    tenant = tenancy_create(owner="alice", viewer="bob")
    problems: list[BaseException] = []
    recorded, may_commit = threading.Event(), threading.Event()

    def begin() -> None:
        try:
            with tenant.context():
                first(tenant)
                recorded.set()
                assert may_commit.wait(timeout=30)
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    def follow() -> None:
        try:
            with tenant.context():
                second(tenant)
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=begin), threading.Thread(target=follow)]
    threads[0].start()
    assert recorded.wait(timeout=30)
    threads[1].start()
    wait_for_a_waiter()
    # The commit checks foreign keys, which lock the rows that they point at.
    may_commit.set()
    for thread in threads:
        thread.join(timeout=30)
    assert problems == []
    with tenant.context():
        assert auditevents_verify().valid


def wait_for_a_waiter() -> None:
    """Until a transaction of this database waits for the log."""
    with connection.cursor() as cursor:
        for _ in range(3000):
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'"
            )
            if cursor.fetchone()[0]:
                return
    raise AssertionError("the second writer did not wait")


# -- an export ----------------------------------------------------------------------------------------------------


def export_of(tenancy: Tenancy, *, after_seq: int = 0) -> list[str]:
    with tenancy.context():
        head = auditevent_head()
        header = export_header(
            tenant_id=str(tenancy.id), after_seq=after_seq, last=head, exported_at="2026-11-22T00:00:00+00:00"
        )
        return [header] + [
            export_line(auditevent_fields(event), bytes(event.hash)) for event in auditevent_page(after_seq=after_seq)
        ]


@pytest.mark.django_db
def test_an_export_is_verified_without_a_database_also_by_hand(tenant: Tenancy) -> None:
    lines = export_of(tenant)
    found = export_verify(lines)
    assert (found.valid, found.count) == (True, 10)
    assert export_verify(lines, expected=found.head).valid
    previous = "0" * 64
    for line in lines[1:]:
        # As the header says it, with nothing of ours.
        text, digest = line[len('{"event":') :].rsplit(',"hash":"', 1)
        assert hashlib.sha256(text.encode()).hexdigest() == digest.removesuffix('"}')
        assert json.loads(text)["prev_hash"] == previous
        previous = digest.removesuffix('"}')
    part = export_of(tenant, after_seq=4)
    assert (export_verify(part).valid, export_verify(part).count) == (True, 6)


@pytest.mark.django_db
def test_an_export_that_was_touched_is_refused(tenant: Tenancy, stranger: Tenancy) -> None:
    lines = export_of(tenant)
    for touched in (
        lines[:4] + lines[5:],
        lines[:-1],
        [lines[0], *lines[2:]],
        [*lines[:4], lines[5], lines[4], *lines[6:]],
        [*lines[:4], lines[4].replace('"seq":4', '"seq":4,"extra":1'), *lines[5:]],
        [*lines[:4], lines[4].replace("api_key.create", "api_key.delete"), *lines[5:]],
        lines + export_of(stranger)[1:],
        [export_of(stranger)[0], *lines[1:]],
        lines[:1],
    ):
        assert not export_verify(touched).valid
    for unreadable in ([], ["{}"], lines[1:], [lines[0], "[]"], [lines[0], "{"]):
        with pytest.raises(ValueError, match="not one of an export"):
            export_verify(unreadable)


# -- manage.py verify_audit ---------------------------------------------------------------------------------------


def verify(*arguments: str) -> str:
    out = io.StringIO()
    call_command("verify_audit", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.django_db
def test_the_command_prints_a_head_that_it_can_be_given_later(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not those that other tests committed and tampered with.
    monkeypatch.setattr(verify_audit, "tenant_ids_list", lambda: [tenant.id, stranger.id])
    told = verify("--tenant", tenant.slug)
    head = told.split("head ")[1].strip().removesuffix(".")
    assert ChainPoint.parse(head).seq == 10
    verify("--tenant", tenant.slug, "--expect", head)
    with pytest.raises(CommandError, match="not as it was written"):
        verify("--tenant", stranger.slug, "--expect", head)
    everybody = [json.loads(line) for line in verify("--json").splitlines()]
    assert [line["log"] for line in everybody] == [tenant.slug, stranger.slug]
    for arguments in (["--expect", head], ["--tenant", tenant.slug, "--expect", "1:xyz"], ["--tenant", "nobody"]):
        with pytest.raises(CommandError):
            verify(*arguments)


@pytest.mark.django_db
def test_the_command_checks_a_file(tenant: Tenancy, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    lines = export_of(tenant)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "10 events are right" in verify("--file", str(file))
    file.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(CommandError, match="not as it was written"):
        verify("--file", str(file))
    file.write_text("not an export\n", encoding="utf-8")
    with pytest.raises(CommandError, match="Line 1"):
        verify("--file", str(file))
    with pytest.raises(CommandError, match="cannot be read"):
        verify("--file", str(tmp_path / "none"))
