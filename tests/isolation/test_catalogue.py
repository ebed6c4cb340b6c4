"""PostgreSQL's own catalogue says whether every tenant table is behind the wall; a new table without it fails here."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.db import connection

from tenants.managers import TenantManager, TenantModel
from tenants.models import Tenant

pytestmark = pytest.mark.django_db

WALL = "(tenant_id = (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid)"


def query(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def tenant_tables() -> list[str]:
    """Every table with a column tenant_id, whoever made it; through tables and other packages' tables too."""
    rows = query(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace"
        " AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY 1"
    )
    return [name for (name,) in rows]


def test_the_catalogue_knows_the_tables_of_every_tenant_model() -> None:
    models = {model._meta.db_table for model in apps.get_models() if issubclass(model, TenantModel)}
    assert models == set(tenant_tables())
    assert {"supervision_call", "supervision_turn", "supervision_callevent", "tenants_apikey"} <= models


def test_row_level_security_is_on_and_forced_for_the_owner_too() -> None:
    rows = query(
        "SELECT relname FROM pg_class WHERE relname = ANY(%s) AND NOT (relrowsecurity AND relforcerowsecurity)",
        [*tenant_tables(), "tenants_tenant"],
    )
    assert rows == []


def test_the_policy_compares_with_the_current_tenant_when_reading_and_when_writing() -> None:
    for table in tenant_tables():
        policies = query(
            "SELECT policyname, permissive, roles::text[], cmd, qual, with_check FROM pg_policies WHERE tablename = %s",
            table,
        )
        everybodys = [policy for policy in policies if policy[2] == ["public"]]
        assert everybodys == [("tenant_isolation", "PERMISSIVE", ["public"], "ALL", WALL, WALL)], table
        # Anything else may only let the look-ups read.
        others = {(tuple(roles), command) for _, _, roles, command, _, _ in policies if roles != ["public"]}
        assert others <= {(("mirror_platform",), "SELECT")}, table


def test_the_tenants_own_table_shows_the_current_tenant_only() -> None:
    [(qual, check)] = query(
        "SELECT qual, with_check FROM pg_policies WHERE tablename = 'tenants_tenant' AND roles::text[] = '{public}'"
    )
    assert qual == check == WALL.replace("tenant_id =", "id =")


def test_every_unique_constraint_carries_the_tenant_and_there_is_one_of_tenant_and_id() -> None:
    for table in tenant_tables():
        keys = query(
            "SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.position)"
            " FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int[]) WITH ORDINALITY k(number, position)"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number"
            " WHERE i.indrelid = %s::regclass AND i.indisunique GROUP BY i.indexrelid, i.indisprimary",
            f"public.{table}",
        )
        assert [columns for primary, columns in keys if primary] == [["id"]], table
        uniques = [columns for primary, columns in keys if not primary]
        assert ["tenant_id", "id"] in uniques, table
        assert [columns for columns in uniques if columns[0] != "tenant_id"] == [], table


# Read by SECURITY DEFINER look-ups before the tenant is known: these indexes have to lead with something else.
LOOKUP_INDEXES = {("tenants_apikey", "prefix"), ("tenants_membership", "user_id")}


def test_indexes_lead_with_the_tenant() -> None:
    for table in tenant_tables():
        first_columns = {
            column
            for (column,) in query(
                "SELECT a.attname FROM pg_index i"
                " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
                " WHERE i.indrelid = %s::regclass AND NOT i.indisprimary",
                f"public.{table}",
            )
        }
        assert "tenant_id" in first_columns, table
        assert {(table, column) for column in first_columns - {"tenant_id"}} <= LOOKUP_INDEXES, table


def test_foreign_keys_between_tenant_tables_carry_the_tenant() -> None:
    keys = query(
        "SELECT c.conrelid::regclass::text, c.confrelid::regclass::text, c.convalidated,"
        " (SELECT array_agg(a.attname::text ORDER BY k.position) FROM unnest(c.conkey) WITH ORDINALITY k(n, position)"
        "  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n),"
        " (SELECT array_agg(a.attname::text ORDER BY k.position) FROM unnest(c.confkey) WITH ORDINALITY k(n, position)"
        "  JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n)"
        " FROM pg_constraint c WHERE c.contype = 'f' AND c.conrelid::regclass::text = ANY(%s)",
        tenant_tables(),
    )
    found = set()
    for table, referenced, valid, columns, referenced_columns in keys:
        assert valid, table
        if referenced in tenant_tables():
            assert columns[0] == "tenant_id", (table, columns)
            assert referenced_columns == ["tenant_id", "id"], (table, columns)
            found.add((table, columns[1]))
        elif referenced == "tenants_tenant":
            assert columns == ["tenant_id"]
            found.add((table, "tenant_id"))
    # Django does not make them, so a field without its SQL would have none at all.
    expected = {
        (model._meta.db_table, field.column)
        for model in apps.get_models()
        if issubclass(model, TenantModel)
        for field in model._meta.concrete_fields
        if field.is_relation and issubclass(field.related_model, TenantModel | Tenant)  # type: ignore[arg-type]
    }
    assert found == expected


def test_the_role_that_runs_mirror_is_bound() -> None:
    [(role, superuser, bypass)] = query(
        "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    )
    assert (role, superuser, bypass) == ("mirror_app", False, False)
    assert query("SELECT relname FROM pg_class WHERE pg_get_userbyid(relowner) = 'mirror_app'") == []
    member_of = query("SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'mirror_app'::regrole")
    assert member_of == []


def test_look_ups_across_tenants_are_few_fixed_and_return_ids_only() -> None:
    functions = query(
        "SELECT p.proname, pg_get_userbyid(p.proowner), p.proconfig, pg_get_function_result(p.oid),"
        " has_function_privilege('mirror_app', p.oid, 'EXECUTE'), has_function_privilege('public', p.oid, 'EXECUTE')"
        " FROM pg_proc p WHERE p.prosecdef AND p.pronamespace = 'public'::regnamespace ORDER BY 1"
    )
    assert {(name, result) for name, _, _, result, _, _ in functions} == {
        ("api_key_lookup", "TABLE(tenant_id uuid, api_key_id uuid)"),
        ("membership_lookup", "TABLE(tenant_id uuid, membership_id uuid)"),
        ("stream_key_lookup", "TABLE(tenant_id uuid, agent_id uuid)"),
        ("tenant_ids_list", "SETOF uuid"),
        ("tenant_lookup", "uuid"),
    }
    for name, owner, config, _, app_may, everybody_may in functions:
        assert owner == "mirror_platform", name
        assert config == ["search_path=pg_catalog, pg_temp"], name
        assert (app_may, everybody_may) == (True, False), name


def test_the_look_ups_owner_cannot_log_in_or_make_anything_and_reads_a_few_columns() -> None:
    assert query("SELECT rolcanlogin, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = 'mirror_platform'") == [
        (False, False, False)
    ]
    assert query("SELECT has_schema_privilege('mirror_platform', 'public', 'CREATE')") == [(False,)]
    readable = query(
        "SELECT table_name::text || '.' || column_name::text FROM information_schema.column_privileges"
        " WHERE grantee = 'mirror_platform' AND table_schema = 'public'"
    )
    secrets = {"tenants_apikey.scopes", "supervision_agent.signing_secret_sealed", "supervision_call.from_number"}
    assert not secrets & {name for (name,) in readable}
    writable = query(
        "SELECT table_name FROM information_schema.role_table_grants"
        " WHERE grantee = 'mirror_platform' AND privilege_type <> 'SELECT'"
    )
    assert writable == []


def test_every_tenant_model_asks_for_a_context() -> None:
    for model in apps.get_models():
        if issubclass(model, TenantModel):
            assert isinstance(model._default_manager, TenantManager), model
