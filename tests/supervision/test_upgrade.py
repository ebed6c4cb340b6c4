"""A database of the first version, with secrets as that one sealed them, goes on working after an upgrade."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mirror_saas.databases import database_url_for
from mirror_saas.ids import uuid7
from supervision.services.agents import stream_key_hash
from supervision.stream.directory import AgentBinding, StreamDirectory
from tenants.services.roles import roles_create
from tests.factories import unique
from tests.support.servers import ROOT, DatabaseUrls

FIRST_VERSION = ("supervision", "0001")


@pytest.fixture
def environment(database_urls: DatabaseUrls) -> Iterator[dict[str, str]]:
    """Of processes that work on a database of the first version; nobody else uses it."""
    name = unique("upgrade")
    password = conninfo_to_dict(database_urls.app).get("password")
    roles_create(admin_url=database_urls.admin, database=name)
    urls = {
        role: database_url_for(database_urls.admin, user=role, database=name, password=password)
        for role in ("mirror_app", "mirror_owner")
    }
    yield {
        **os.environ,
        "DATABASE_URL": urls["mirror_app"],
        "DATABASE_OWNER_URL": urls["mirror_owner"],
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }
    with psycopg.connect(database_urls.admin, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def manage(environment: dict[str, str], *arguments: str, role: str = "app") -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**environment, "MIRROR_DATABASE_ROLE": role},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def first_version_seal(plain: str, tenant_id: Any, field: str) -> bytes:
    """As the first version did: one key for all, no data key."""
    nonce = secrets.token_bytes(12)
    data = b"mirror\x00" + tenant_id.bytes + field.encode()
    return b"\x01" + nonce + AESGCM(settings.MIRROR_ENCRYPTION_KEY).encrypt(nonce, plain.encode(), data)


def tenant_make(url: str, slug: str, secret: str) -> None:
    """A tenant's agent, judge and stream key, in the first version's tables. The stream key is `sk_` and the slug."""
    tenant, agent, judge, policy, version = (uuid7() for _ in range(5))
    signing = first_version_seal(f"{secret} signing", tenant, f"supervision_agent.signing_secret_sealed:{agent}")
    headers = json.dumps({"Authorization": f"Bearer {secret}"})
    with psycopg.connect(url) as connection:
        execute = connection.execute
        execute("SELECT set_config('app.tenant_id', %s, true)", [str(tenant)])
        execute(
            "INSERT INTO tenants_tenant (id, slug, name, created_at) VALUES (%s, %s, %s, now())", [tenant, slug, slug]
        )
        execute(
            "INSERT INTO supervision_providercredential (id, tenant_id, name, kind, base_url, model, api_key_sealed,"
            " created_at, updated_at) VALUES (%s, %s, 'Judge', 'llm', 'http://127.0.0.1:1/v1', 'm', %s, now(), now())",
            [
                judge,
                tenant,
                first_version_seal(f"{secret} key", tenant, f"supervision_providercredential.api_key_sealed:{judge}"),
            ],
        )
        execute(
            "INSERT INTO supervision_policy (id, tenant_id, name, created_at) VALUES (%s, %s, 'P', now())",
            [policy, tenant],
        )
        execute(
            "INSERT INTO supervision_policyversion (id, tenant_id, policy_id, number, status, rules, config,"
            " llm_credential_id, created_at) VALUES (%s, %s, %s, 1, 'live', '[]', '{}', %s, now())",
            [version, tenant, policy, judge],
        )
        execute(
            "INSERT INTO supervision_agent (id, tenant_id, name, upstream_url, signing_secret_sealed, headers_sealed,"
            " policy_id, created_at, updated_at) VALUES (%s, %s, 'A', 'ws://127.0.0.1:1/', %s, %s, %s, now(), now())",
            [
                agent,
                tenant,
                signing,
                first_version_seal(headers, tenant, f"supervision_agent.headers_sealed:{agent}"),
                policy,
            ],
        )
        execute(
            "INSERT INTO supervision_streamkey (id, tenant_id, agent_id, key_hash, created_at)"
            " VALUES (%s, %s, %s, %s, now())",
            [uuid7(), tenant, agent, stream_key_hash(f"sk_{slug}")],
        )


async def binding(environment: dict[str, str], slug: str, key: str) -> AgentBinding | None:
    """What a call of the tenant would get."""
    directory = StreamDirectory(make_conninfo(environment["DATABASE_URL"]))
    try:
        return await directory.lookup(slug, key)
    finally:
        await directory.aclose()


async def assert_served(environment: dict[str, str]) -> None:
    for slug, secret in (("alice", "al1ce"), ("charlie", "charl1e")):
        found = await binding(environment, slug, f"sk_{slug}")
        assert found is not None
        assert found.llm is not None
        assert (found.signing_secret, found.llm.api_key) == (f"{secret} signing", f"{secret} key")
        assert dict(found.headers) == {"Authorization": f"Bearer {secret}"}
    assert await binding(environment, "alice", "sk_charlie") is None


@pytest.mark.timeout(240)
async def test_secrets_of_the_first_version_are_served_before_and_after_they_are_sealed_anew(
    environment: dict[str, str],
) -> None:
    manage(environment, "migrate", *FIRST_VERSION, "--skip-checks", "--verbosity", "0", role="owner")
    tenant_make(environment["DATABASE_URL"], "alice", "al1ce")
    tenant_make(environment["DATABASE_URL"], "charlie", "charl1e")
    manage(environment, "migrate", "sessions", "--skip-checks", "--verbosity", "0", role="owner")
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO django_session VALUES ('of-the-first-version', 'x', now() + interval '1 day')")

    manage(environment, "migrate", "--skip-checks", "--verbosity", "0", role="owner")
    await assert_served(environment)
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        [sessions] = connection.execute("SELECT count(*) FROM django_session").fetchall()
    assert sessions == (0,), "nobody could see it in a list and end it"

    done = json.loads(manage(environment, "rotate_keys", "--json"))
    assert (done["tenants"], done["resealed"], done["broken"]) == (2, 6, [])
    await assert_served(environment)
    with psycopg.connect(environment["DATABASE_OWNER_URL"]) as owner:
        owner.execute("ALTER TABLE supervision_agent NO FORCE ROW LEVEL SECURITY")
        stored = owner.execute("SELECT signing_secret_sealed, headers_sealed FROM supervision_agent").fetchall()
        owner.rollback()
    assert len(stored) == 2
    assert {value[0] for row in stored for value in row} == {2}

    assert json.loads(manage(environment, "rotate_keys", "--json"))["resealed"] == 0
