"""PostgreSQL's own catalogue says whether every tenant table is behind the wall; a new table without it fails here.

What is looked at is in tenants.isolation, which `manage.py audit_isolation` prints for operators. Here it finds
nothing, and then everything that somebody breaks on purpose.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.core.management import CommandError, call_command

from tenants.isolation import (
    APPEND_ONLY,
    Finding,
    IsolationReport,
    connection_findings,
    isolation_audit,
    query,
    tenant_tables,
)
from tenants.managers import TenantManager, TenantModel
from tests.support.servers import DatabaseUrls, Servers, roles_held

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def roles(servers: Servers) -> Iterator[None]:
    with roles_held():
        yield


def test_there_is_nothing_to_find() -> None:
    assert isolation_audit().findings == ()
    assert connection_findings() == []


def test_the_catalogue_knows_the_tables_of_every_tenant_model() -> None:
    models = {model._meta.db_table for model in apps.get_models() if issubclass(model, TenantModel)}
    assert models == set(tenant_tables()) == set(isolation_audit().tables)
    assert {"supervision_call", "supervision_turn", "supervision_callevent", "tenants_apikey"} <= models
    assert models >= APPEND_ONLY


def test_every_tenant_model_asks_for_a_context() -> None:
    for model in apps.get_models():
        if issubclass(model, TenantModel):
            assert isinstance(model._default_manager, TenantManager), model


def test_look_ups_across_tenants_are_few() -> None:
    assert set(isolation_audit().functions) == {
        "alarm_tenants_waiting",
        "api_key_lookup",
        "invitation_lookup",
        "membership_lookup",
        "memberships_standing",
        "stream_key_lookup",
        "stream_keys_revoked",
        "tenant_ids_list",
        "tenant_lookup",
        "turn_search",
        "webhook_tenants_due",
    }


def test_the_look_ups_owner_reads_no_secret() -> None:
    readable = query(
        "SELECT table_name::text || '.' || column_name::text FROM information_schema.column_privileges"
        " WHERE grantee = 'mirror_platform' AND table_schema = 'public'"
    )
    secrets = {
        "tenants_apikey.scopes",
        "tenants_datakey.wrapped",
        "supervision_agent.signing_secret_sealed",
        "supervision_providercredential.api_key_sealed",
        "supervision_webhookendpoint.url",
        "supervision_webhookendpoint.secret_sealed",
        "supervision_webhookdelivery.data",
        "supervision_call.from_number",
    }
    assert not secrets & {name for (name,) in readable}


# -- everything that is broken on purpose is found ----------------------------------------------------------------


@pytest.fixture
def broken(database_urls: DatabaseUrls) -> Iterator[Any]:
    """`broken(statement)`: what the audit finds after a superuser ran it; taken back at the end."""
    with psycopg.connect(database_urls.admin) as admin:

        def ask(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
            return admin.execute(statement.encode(), parameters).fetchall()

        def run(statement: str) -> IsolationReport:
            # Another test's server may hold a table for a moment; a lock that never comes must not hang the run.
            admin.execute("SET LOCAL lock_timeout = '30s'")
            admin.execute(statement.encode())
            return isolation_audit(ask)

        yield run
        admin.rollback()


WALLED = (
    "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; ALTER TABLE {0} FORCE ROW LEVEL SECURITY; ALTER TABLE {0} OWNER TO"
    " mirror_owner; CREATE POLICY tenant_isolation ON {0} USING (tenant_id = nullif(current_setting('app.tenant_id',"
    " true), '')::uuid) WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)"
)
LOOKUP = (
    "CREATE FUNCTION leak() RETURNS {1} LANGUAGE sql STABLE SECURITY DEFINER {0} AS $$ {2} $$;"
    " REVOKE ALL ON FUNCTION leak() FROM PUBLIC; GRANT EXECUTE ON FUNCTION leak() TO mirror_app;"
    " GRANT CREATE ON SCHEMA public TO mirror_platform; ALTER FUNCTION leak() OWNER TO mirror_platform;"
    " REVOKE CREATE ON SCHEMA public FROM mirror_platform"
)
FIXED = "SET search_path = pg_catalog, pg_temp"

BREAKAGES = [
    ("ALTER TABLE supervision_turn DISABLE ROW LEVEL SECURITY", "row-level security", "supervision_turn", "has none"),
    ("ALTER TABLE supervision_turn NO FORCE ROW LEVEL SECURITY", "row-level security", "supervision_turn", "FORCE"),
    ("ALTER TABLE tenants_tenant NO FORCE ROW LEVEL SECURITY", "row-level security", "tenants_tenant", "FORCE"),
    ("DROP POLICY tenant_isolation ON supervision_turn", "policies", "supervision_turn", "does not compare"),
    (
        "ALTER POLICY tenant_isolation ON supervision_turn USING (true)",
        "policies",
        "supervision_turn",
        "does not compare",
    ),
    (
        "ALTER POLICY tenant_isolation ON supervision_turn WITH CHECK (true)",
        "policies",
        "supervision_turn",
        "does not compare",
    ),
    (
        "ALTER POLICY tenant_isolation ON tenants_tenant USING (true)",
        "policies",
        "tenants_tenant",
        "does not compare",
    ),
    (
        "ALTER POLICY tenant_isolation ON supervision_turn TO mirror_owner",
        "policies",
        "supervision_turn",
        "does not compare",
    ),
    (
        "CREATE POLICY also ON supervision_turn FOR SELECT TO mirror_app USING (true)",
        "policies",
        "supervision_turn",
        "opens it to mirror_app for SELECT",
    ),
    (
        "CREATE POLICY also ON supervision_turn TO mirror_platform USING (true)",
        "policies",
        "supervision_turn",
        "opens it to mirror_platform for ALL",
    ),
    (
        "CREATE TABLE stray (id uuid PRIMARY KEY, tenant_id uuid NOT NULL)",
        "row-level security",
        "stray",
        "has none",
    ),
    ("CREATE TABLE stray (id uuid PRIMARY KEY)", "tables", "stray", "belongs to no model"),
    (
        "CREATE TABLE through (id uuid PRIMARY KEY, turn_id uuid REFERENCES supervision_turn (id))",
        "tables",
        "through",
        "points at supervision_turn",
    ),
    (
        "CREATE TABLE stray (id uuid PRIMARY KEY, tenant_id uuid NOT NULL); " + WALLED.format("stray"),
        "uniques",
        "stray",
        "(tenant_id, id) is not unique",
    ),
    (
        "CREATE TABLE stray (id uuid PRIMARY KEY, tenant_id uuid NOT NULL); " + WALLED.format("stray"),
        "indexes",
        "stray",
        "no index leads",
    ),
    (
        "CREATE TABLE stray (id uuid PRIMARY KEY, tenant_id uuid NOT NULL); " + WALLED.format("stray"),
        "foreign keys",
        "stray",
        "tenant_id has no foreign key",
    ),
    (
        # Of columns that no two tests' rows have alike, or it could not be made.
        "ALTER TABLE supervision_agent ADD CONSTRAINT one_secret UNIQUE (signing_secret_sealed)",
        "uniques",
        "supervision_agent",
        "(signing_secret_sealed) is unique across tenants",
    ),
    (
        "CREATE UNIQUE INDEX one_id ON supervision_agent (lower(id::text))",
        "uniques",
        "supervision_agent",
        "(an expression) is unique across tenants",
    ),
    ("CREATE INDEX slow ON supervision_turn (text)", "indexes", "supervision_turn", "leads with text"),
    (
        "ALTER TABLE supervision_turn DROP CONSTRAINT supervision_turn_call_id_tenant_fk",
        "foreign keys",
        "supervision_turn",
        "call_id has no foreign key",
    ),
    (
        "ALTER TABLE supervision_turn ADD CONSTRAINT loose FOREIGN KEY (call_id) REFERENCES supervision_call (id)",
        "foreign keys",
        "supervision_turn",
        "loose can point at another tenant's supervision_call",
    ),
    (
        "ALTER TABLE supervision_turn ADD CONSTRAINT unchecked FOREIGN KEY (tenant_id, call_id)"
        " REFERENCES supervision_call (tenant_id, id) NOT VALID",
        "foreign keys",
        "supervision_turn",
        "unchecked was never checked",
    ),
    ("GRANT TRUNCATE ON supervision_turn TO mirror_app", "rights", "supervision_turn", "mirror_app may TRUNCATE"),
    ("GRANT SELECT ON supervision_turn TO PUBLIC", "rights", "supervision_turn", "PUBLIC may SELECT"),
    ("GRANT UPDATE ON tenants_auditevent TO mirror_app", "rights", "tenants_auditevent", "mirror_app may UPDATE"),
    ("GRANT DELETE ON tenants_auditevent TO mirror_app", "rights", "tenants_auditevent", "mirror_app may DELETE"),
    ("ALTER TABLE supervision_turn OWNER TO mirror_app", "rights", "supervision_turn", "belongs to mirror_app"),
    ("ALTER TABLE supervision_turn OWNER TO mirror_app", "roles", "mirror_app", "owns supervision_turn"),
    ("CREATE VIEW peek AS SELECT * FROM supervision_turn", "views", "peek", "no security_invoker"),
    ("CREATE MATERIALIZED VIEW peek AS SELECT id FROM supervision_turn", "views", "peek", "materialized"),
    ("ALTER ROLE mirror_app SUPERUSER", "roles", "mirror_app", "superuser"),
    ("ALTER ROLE mirror_app BYPASSRLS", "roles", "mirror_app", "BYPASSRLS"),
    ("ALTER ROLE mirror_owner BYPASSRLS", "roles", "mirror_owner", "BYPASSRLS"),
    ("ALTER ROLE mirror_app REPLICATION", "roles", "mirror_app", "replicate"),
    ("ALTER ROLE mirror_app CREATEROLE", "roles", "mirror_app", "may make roles"),
    ("ALTER ROLE mirror_platform LOGIN", "roles", "mirror_platform", "can log in"),
    ("GRANT mirror_owner TO mirror_app", "roles", "mirror_app", "is a member of mirror_owner"),
    ("GRANT mirror_platform TO mirror_app", "roles", "mirror_app", "is a member of mirror_platform"),
    ("GRANT CREATE ON SCHEMA public TO mirror_app", "roles", "mirror_app", "schema public"),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", "roles", "mirror_platform", "schema public"),
    (
        "ALTER ROLE mirror_app SET app.tenant_id = '00000000-0000-0000-0000-000000000001'",
        "settings",
        "mirror_app",
        "begins every session with app.tenant_id",
    ),
    ("ALTER ROLE mirror_app SET row_security = off", "settings", "mirror_app", "row_security"),
    (
        LOOKUP.format("", "uuid", "SELECT id FROM public.tenants_tenant"),
        "functions",
        "leak",
        "does not fix its search path",
    ),
    (
        LOOKUP.format(FIXED, "TABLE (tenant_id uuid, slug text)", "SELECT id, slug::text FROM public.tenants_tenant"),
        "functions",
        "leak",
        "returns more than ids",
    ),
    (
        LOOKUP.format(FIXED, "uuid", "SELECT id FROM public.tenants_tenant")
        + "; GRANT EXECUTE ON FUNCTION leak() TO PUBLIC",
        "functions",
        "leak",
        "may be called by",
    ),
    (
        f"CREATE FUNCTION leak() RETURNS uuid LANGUAGE sql SECURITY DEFINER {FIXED}"
        " AS $$ SELECT id FROM public.tenants_tenant $$",
        "functions",
        "leak",
        "runs with the rights of",
    ),
    (
        "CREATE FUNCTION sneaky(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS $$ SELECT true $$",
        "functions",
        "sneaky",
        "LEAKPROOF",
    ),
    ("GRANT SELECT ON supervision_turn TO mirror_platform", "rights", "supervision_turn", "mirror_platform may SELECT"),
    (
        "GRANT SELECT (wrapped) ON tenants_datakey TO mirror_platform",
        "look-up rights",
        "mirror_platform",
        "may read tenants_datakey.wrapped",
    ),
    (
        "GRANT UPDATE (slug) ON tenants_tenant TO mirror_platform",
        "look-up rights",
        "mirror_platform",
        "may UPDATE tenants_tenant",
    ),
]


@pytest.mark.parametrize(("statement", "check", "subject", "message"), BREAKAGES)
def test_what_is_broken_is_found(broken: Any, statement: str, check: str, subject: str, message: str) -> None:
    found = [finding for finding in broken(statement).findings if finding.check == check]
    assert [finding for finding in found if finding.subject == subject and message in finding.message], found


def test_the_owner_and_the_administrator_are_no_roles_to_run_as(database_urls: DatabaseUrls) -> None:
    for url in (database_urls.owner, database_urls.admin):
        with psycopg.connect(url) as other:

            def ask(statement: str, *parameters: Any, other: Any = other) -> list[tuple[Any, ...]]:
                rows: list[tuple[Any, ...]] = other.execute(statement.encode(), parameters).fetchall()
                return rows

            [finding] = connection_findings(ask)
            assert "it has to be mirror_app" in finding.message


# -- manage.py audit_isolation ------------------------------------------------------------------------------------


def test_the_command_prints_every_table_and_ends_well() -> None:
    out = io.StringIO()
    call_command("audit_isolation", stdout=out)
    lines = out.getvalue().splitlines()
    assert {f"ok       {table}" for table in tenant_tables()} <= set(lines)
    assert lines[-1].endswith("PostgreSQL keeps the tenants apart.")
    out = io.StringIO()
    call_command("audit_isolation", "--json", stdout=out)
    assert json.loads(out.getvalue())["findings"] == []


def test_the_command_exits_with_1_on_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenants.management.commands import audit_isolation

    wrong = Finding("policies", "supervision_turn", "is open.")
    monkeypatch.setattr(
        audit_isolation, "isolation_audit", lambda: IsolationReport(("supervision_turn",), (), (wrong,))
    )
    for arguments in ([], ["--json"]):
        out = io.StringIO()
        with pytest.raises(CommandError, match="1 findings") as error:
            call_command("audit_isolation", *arguments, stdout=out)
        assert error.value.returncode == 1
        assert "supervision_turn" in out.getvalue()
        assert "is open." in out.getvalue()
