"""Exchanging keys: nothing is lost, wherever it is interrupted and whoever writes meanwhile."""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from mirror_saas import health
from supervision.models import Agent, ProviderCredential
from tenants.envelope import wrapped_by
from tenants.models import AuditEvent, DataKey, KeyCheck
from tenants.sealing import WrongEncryptionKey, key_ring, seal, sealed_field, unseal_text
from tenants.services import keys as service
from tenants.services.keys import RotationRuns, encryption_key_check, keys_rotate, sealed_columns
from tests.factories import Tenancy, tenancy_create
from tests.support.servers import ROOT, DatabaseUrls

NEW_KEY = secrets.token_bytes(32)
NOW = timedelta(0)


@pytest.fixture(autouse=True)
def own_tenants_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotate the tenants of this test, and not those that earlier ones committed; ids begin with their time."""
    began_ms, every = time.time_ns() // 1_000_000, service.tenant_ids_list
    monkeypatch.setattr(service, "tenant_ids_list", lambda: [found for found in every() if found.int >> 80 >= began_ms])


@pytest.fixture
def new_key(settings: Any) -> Any:
    """Call it to give this process another key, with the one before it as previous."""

    def exchange(*, keep_previous: bool = True) -> None:
        if settings.MIRROR_ENCRYPTION_KEY != NEW_KEY:
            settings.MIRROR_ENCRYPTION_KEY_PREVIOUS = (settings.MIRROR_ENCRYPTION_KEY,)
            settings.MIRROR_ENCRYPTION_KEY = NEW_KEY
        if not keep_previous:
            settings.MIRROR_ENCRYPTION_KEY_PREVIOUS = ()

    return exchange


def secrets_of(tenancy: Tenancy) -> tuple[str, str]:
    """The agent's signing secret and the judge's API key, as they are stored."""
    with tenancy.context():
        agent, judge = Agent.objects.get(), ProviderCredential.objects.get(id=tenancy.credential.id)
        return (
            unseal_text(
                agent.signing_secret_sealed,
                tenant_id=tenancy.id,
                field=sealed_field("supervision_agent", "signing_secret_sealed", agent.id),
            ),
            unseal_text(
                judge.api_key_sealed,
                tenant_id=tenancy.id,
                field=sealed_field("supervision_providercredential", "api_key_sealed", judge.id),
            ),
        )


def expected(tenancy: Tenancy) -> tuple[str, str]:
    return (tenancy.signing_secret, "llm-secret")


def key_ids_used(tenancy: Tenancy) -> set[bytes]:
    with tenancy.context():
        return {
            bytes(value)[1:17]
            for value in (
                Agent.objects.get().signing_secret_sealed,
                ProviderCredential.objects.get(id=tenancy.credential.id).api_key_sealed,
            )
        }


def rotate(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    call_command("rotate_keys", "--json", *arguments, stdout=out)
    done: dict[str, Any] = json.loads(out.getvalue())
    return done


def test_every_column_of_secrets_is_known() -> None:
    found = {(column.table, column.column) for column in sealed_columns()}
    assert {
        ("supervision_agent", "signing_secret_sealed"),
        ("supervision_agent", "headers_sealed"),
        ("supervision_providercredential", "api_key_sealed"),
    } <= found


@pytest.mark.django_db
def test_no_column_that_is_called_sealed_is_missed(tenant: Tenancy) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name LIKE '%%sealed%%'"
        )
        assert set(cursor.fetchall()) == {(column.table, column.column) for column in sealed_columns()}


# -- another key from the environment -----------------------------------------------------------------------------


@pytest.mark.django_db
def test_after_a_rotation_the_former_key_is_needed_no_more(tenant: Tenancy, stranger: Tenancy, new_key: Any) -> None:
    new_key()
    done = rotate()
    assert (done["tenants"], done["rewrapped"], done["resealed"], done["broken"]) == (2, 2, 0, [])
    with tenant.context():
        event = AuditEvent.objects.get(action="data_key.rotate")
        assert json.loads(event.after or "")["rewrapped"] == 1
    new_key(keep_previous=False)
    encryption_key_check()
    assert secrets_of(tenant) == expected(tenant)
    assert secrets_of(stranger) == expected(stranger)
    assert list(KeyCheck.objects.values_list("key_id", flat=True)) == [key_ring().current.id]


@pytest.mark.django_db
def test_a_second_rotation_changes_nothing(tenant: Tenancy, new_key: Any) -> None:
    new_key()
    rotate()
    with tenant.context():
        before = bytes(DataKey.objects.get().wrapped)
    done = rotate()
    assert (done["rewrapped"], done["resealed"], done["data_keys_made"]) == (0, 0, 0)
    with tenant.context():
        assert bytes(DataKey.objects.get().wrapped) == before
        assert AuditEvent.objects.filter(action="data_key.rotate").count() == 1


@pytest.mark.django_db
def test_rotating_one_tenant_leaves_the_stranger_and_the_former_key(
    tenant: Tenancy, stranger: Tenancy, new_key: Any
) -> None:
    new_key()
    assert rotate("--tenant", tenant.slug)["rewrapped"] == 1
    with stranger.context():
        assert wrapped_by(bytes(DataKey.objects.get().wrapped)) != key_ring().current.id
    assert secrets_of(stranger) == expected(stranger)
    new_key(keep_previous=False)
    with pytest.raises(WrongEncryptionKey):
        encryption_key_check()


@pytest.mark.django_db
def test_an_interrupted_rotation_leaves_everything_readable_and_goes_on(
    tenant: Tenancy, stranger: Tenancy, new_key: Any
) -> None:
    new_key()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keys_rotate(progress=interrupt)
    assert secrets_of(tenant) == expected(tenant)
    assert secrets_of(stranger) == expected(stranger)
    assert len(KeyCheck.objects.all()) == 2
    assert rotate()["rewrapped"] == 1
    new_key(keep_previous=False)
    assert secrets_of(tenant) == expected(tenant)
    assert secrets_of(stranger) == expected(stranger)


@pytest.mark.django_db
def test_a_rotation_without_the_former_key_is_refused_before_it_does_anything(tenant: Tenancy, new_key: Any) -> None:
    encryption_key_check()
    new_key(keep_previous=False)
    with pytest.raises(CommandError, match="is not the key that stored secrets were sealed with") as error:
        rotate()
    assert base64.b64encode(NEW_KEY).decode() not in str(error.value)


@pytest.mark.django_db(transaction=True)
def test_two_rotations_at_once_are_refused(database_urls: DatabaseUrls) -> None:
    with psycopg.connect(database_urls.app, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [service._ROTATE_LOCK])
        with pytest.raises(RotationRuns):
            keys_rotate(tenant_ids=[])
        # Closing a connection would do it too, but some moment later.
        other.execute("SELECT pg_advisory_unlock(%s)", [service._ROTATE_LOCK])
        keys_rotate(tenant_ids=[])


# -- new data keys ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_new_data_keys_seal_everything_anew_and_retire_the_old_ones(tenant: Tenancy, stranger: Tenancy) -> None:
    before = key_ids_used(tenant)
    done = rotate("--new-data-keys", "--min-age-h", "0", "--batch", "1")
    assert (done["data_keys_made"], done["data_keys_retired"], done["resealed"]) == (2, 2, 4)
    after = key_ids_used(tenant)
    assert len(after) == 1
    assert not after & before
    assert secrets_of(tenant) == expected(tenant)
    assert secrets_of(stranger) == expected(stranger)
    with tenant.context():
        # Kept for those who read a row just before.
        assert DataKey.objects.count() == 2
        DataKey.objects.exclude(retired_at=None).update(retired_at=timezone.now() - timedelta(hours=2))
    done = rotate("--new-data-keys")
    assert (done["data_keys_made"], done["data_keys_deleted"]) == (0, 1)
    with tenant.context():
        assert DataKey.objects.count() == 1
    assert secrets_of(tenant) == expected(tenant)


@pytest.mark.django_db
def test_a_retired_key_that_still_opens_something_is_not_deleted(tenant: Tenancy) -> None:
    with tenant.context():
        old = Agent.objects.get().signing_secret_sealed
    rotate("--new-data-keys", "--min-age-h", "0")
    with tenant.context():
        # A row that came back, from a backup for example.
        Agent.objects.update(signing_secret_sealed=old)
        DataKey.objects.exclude(retired_at=None).update(retired_at=timezone.now() - timedelta(hours=2))
    assert rotate()["data_keys_deleted"] == 0
    assert secrets_of(tenant) == expected(tenant)
    assert rotate()["data_keys_deleted"] == 1
    assert secrets_of(tenant) == expected(tenant)


@pytest.mark.django_db
@pytest.mark.parametrize("secrets_done", [0, 1])
def test_new_data_keys_interrupted_between_rows_are_not_made_twice(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, secrets_done: int
) -> None:
    real, left = service.seal, [secrets_done]

    def seal_or_die(*args: Any, **kwargs: Any) -> bytes:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(service, "seal", seal_or_die)
        with pytest.raises(KeyboardInterrupt):
            keys_rotate(new_data_keys=True, min_age=NOW, batch=1)
    assert secrets_of(tenant) == expected(tenant)
    done = keys_rotate(new_data_keys=True, min_age=NOW, batch=1)
    assert (done.data_keys_made, done.data_keys_retired, done.resealed) == (0, 1, 2 - secrets_done)
    assert secrets_of(tenant) == expected(tenant)


@pytest.mark.django_db
def test_a_secret_that_does_not_open_is_named_left_alone_and_keeps_its_key(
    tenant: Tenancy, stranger: Tenancy, new_key: Any
) -> None:
    with stranger.context():
        foreign = Agent.objects.get().signing_secret_sealed
    with tenant.context():
        agent = Agent.objects.get()
        Agent.objects.update(signing_secret_sealed=foreign)
    new_key()
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 secrets do not open") as error:
        call_command("rotate_keys", "--new-data-keys", "--min-age-h", "0", "--json", stdout=out)
    place = f"supervision_agent.signing_secret_sealed:{agent.id}"
    assert place in str(error.value)
    done = json.loads(out.getvalue())
    assert done["broken"] == [place]
    # The judge's key and the stranger's secrets are sealed anew all the same.
    assert done["resealed"] == 3
    with tenant.context():
        assert bytes(Agent.objects.get().signing_secret_sealed) == bytes(foreign)
        assert DataKey.objects.filter(retired_at=None).count() == 2
    assert len(KeyCheck.objects.all()) == 2
    assert secrets_of(stranger) == expected(stranger)


@pytest.mark.django_db(transaction=True)
def test_a_secret_stored_with_the_old_key_while_it_is_being_retired_is_not_lost() -> None:
    tenant = tenancy_create(owner="alice")
    sealed_one, may_commit = threading.Event(), threading.Event()
    problems: list[BaseException] = []
    field = sealed_field("supervision_agent", "headers_sealed", tenant.agent.id)

    def write_slowly() -> None:
        try:
            with tenant.context():
                value = seal('{"X": "late"}', tenant_id=tenant.id, field=field)
                sealed_one.set()
                assert may_commit.wait(timeout=30)
                Agent.objects.filter(id=tenant.agent.id).update(headers_sealed=value)
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    def rotate_meanwhile() -> None:
        try:
            keys_rotate(new_data_keys=True, min_age=NOW, tenant_ids=[tenant.id])
        except BaseException as error:
            problems.append(error)
        finally:
            connection.close()

    writer, rotator = threading.Thread(target=write_slowly), threading.Thread(target=rotate_meanwhile)
    writer.start()
    assert sealed_one.wait(timeout=30)
    rotator.start()
    _wait_for_lock_waiter()
    may_commit.set()
    writer.join(timeout=30)
    rotator.join(timeout=30)
    assert problems == []
    with tenant.context():
        newest = DataKey.objects.get(retired_at=None)
        stored = bytes(Agent.objects.get().headers_sealed or b"")
        assert stored[1:17] == newest.id.bytes
        assert unseal_text(stored, tenant_id=tenant.id, field=field) == '{"X": "late"}'
    assert secrets_of(tenant) == expected(tenant)


def _wait_for_lock_waiter() -> None:
    """Until some transaction of this database waits for a row that another one holds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock' AND wait_event IN ('transactionid', 'tuple')"
            )
            if cursor.fetchone()[0]:
                return
    raise AssertionError("the rotation did not wait for the writer")


# -- what was sealed before there were data keys ------------------------------------------------------------------


def legacy_seal(plain: str, *, tenancy: Tenancy, field: str, key: bytes) -> bytes:
    nonce = secrets.token_bytes(12)
    data = b"mirror\x00" + tenancy.id.bytes + field.encode()
    return b"\x01" + nonce + AESGCM(key).encrypt(nonce, plain.encode(), data)


@pytest.fixture
def legacy(tenant: Tenancy, settings: Any) -> Tenancy:
    """A tenant as a version without data keys left it."""
    key = settings.MIRROR_ENCRYPTION_KEY
    with tenant.context():
        for model, column, plain in (
            (Agent, "signing_secret_sealed", tenant.signing_secret),
            (ProviderCredential, "api_key_sealed", "llm-secret"),
        ):
            row: Any = model._default_manager.get()
            field = sealed_field(model._meta.db_table, column, row.id)
            model._default_manager.update(**{column: legacy_seal(plain, tenancy=tenant, field=field, key=key)})
        DataKey.objects.all().delete()
    KeyCheck.objects.all().delete()
    return tenant


@pytest.mark.django_db
def test_legacy_secrets_open_and_a_rotation_seals_them_with_a_data_key(legacy: Tenancy, new_key: Any) -> None:
    encryption_key_check()
    assert secrets_of(legacy) == expected(legacy)
    new_key()
    assert secrets_of(legacy) == expected(legacy)
    assert rotate()["resealed"] == 2
    new_key(keep_previous=False)
    encryption_key_check()
    assert secrets_of(legacy) == expected(legacy)
    with legacy.context():
        assert DataKey.objects.count() == 1


@pytest.mark.django_db
def test_a_first_start_with_a_wrong_key_on_legacy_secrets_fails_and_notes_nothing(
    legacy: Tenancy, new_key: Any
) -> None:
    new_key(keep_previous=False)
    with pytest.raises(WrongEncryptionKey):
        encryption_key_check()
    assert not KeyCheck.objects.exists()


# -- a start with a wrong key -------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_readyz_says_no_with_a_wrong_key_and_tells_no_key(tenant: Tenancy, new_key: Any, settings: Any) -> None:
    encryption_key_check()
    right, wrong = (base64.b64encode(key).decode() for key in (settings.MIRROR_ENCRYPTION_KEY, NEW_KEY))
    assert health.readiness()["encryption_key"] == "ok"
    new_key(keep_previous=False)
    told = health.readiness()["encryption_key"]
    assert "MIRROR_ENCRYPTION_KEY" in told
    assert right not in told
    assert wrong not in told


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("part", ["web", "worker", "beat"])
def test_no_process_starts_with_a_wrong_key(
    database_urls: DatabaseUrls, server_environment: dict[str, str], part: str
) -> None:
    encryption_key_check()
    wrong = base64.b64encode(NEW_KEY).decode()
    done = subprocess.run(
        [sys.executable, "manage.py", "serve", "--only", part],
        cwd=ROOT,
        env={**server_environment, "MIRROR_ENCRYPTION_KEY": wrong},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "is not the key that stored secrets were sealed with" in told
    assert "Traceback" not in told
    assert wrong not in told
    assert os.environ["MIRROR_ENCRYPTION_KEY"] not in told
