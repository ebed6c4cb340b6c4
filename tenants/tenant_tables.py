"""SQL operations that make a table a tenant's, for migrations.

Applied migrations have run with what stands here: add functions, do not change the ones that exist.

The names of roles are fixed: `mirror_app` runs and is bound by the policies, `mirror_platform` owns the few
look-ups that must see across tenants (see tenants.services.roles).
"""

from __future__ import annotations

from typing import Literal

from django.db.migrations import RunSQL

# An unset or emptied setting is NULL, and NULL equals no tenant: without a context there are no rows.
CURRENT_TENANT = "nullif(current_setting('app.tenant_id', true), '')::uuid"

OnDelete = Literal["CASCADE", "NO ACTION", "SET NULL"]


def tenant_wall(table: str, *, column: str = "tenant_id") -> RunSQL:
    """Row-level security on `table`, for its owner too, and mirror_app's rights to it.

    A table that carries `tenant_id` also gets its foreign key to the tenant; the tenant's own table passes
    `column="id"`.
    """
    statements = [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY tenant_isolation ON {table} "
        f"USING ({column} = {CURRENT_TENANT}) WITH CHECK ({column} = {CURRENT_TENANT})",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO mirror_app",
    ]
    if column == "tenant_id":
        statements.insert(
            0,
            f"ALTER TABLE {table} ADD CONSTRAINT {table}_tenant_fk FOREIGN KEY (tenant_id) "
            "REFERENCES tenants_tenant (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
        )
    return RunSQL(tuple(statements), reverse_sql=RunSQL.noop)


def tenant_foreign_key(table: str, column: str, references: str, *, on_delete: OnDelete) -> RunSQL:
    """A foreign key `(tenant_id, column)` to `(tenant_id, id)`: a row can point into its own tenant only.

    It is checked at commit, because the recorder inserts a call's events before the call's own row.
    """
    action = f"SET NULL ({column})" if on_delete == "SET NULL" else on_delete
    name = f"{table}_{column}_tenant_fk"
    return RunSQL(
        f"ALTER TABLE {table} ADD CONSTRAINT {name} FOREIGN KEY (tenant_id, {column}) "
        f"REFERENCES {references} (tenant_id, id) ON DELETE {action} DEFERRABLE INITIALLY DEFERRED",
        reverse_sql=f"ALTER TABLE {table} DROP CONSTRAINT {name}",
    )


def platform_read(table: str, columns: list[str]) -> RunSQL:
    """Let the look-ups of mirror_platform read these columns of every tenant's rows, and nothing else."""
    return RunSQL(
        [
            f"CREATE POLICY platform_lookup ON {table} FOR SELECT TO mirror_platform USING (true)",
            f"GRANT SELECT ({', '.join(columns)}) ON {table} TO mirror_platform",
        ],
        reverse_sql=RunSQL.noop,
    )


def platform_function(name: str, arguments: str, returns: str, query: str) -> RunSQL:
    """A look-up that runs before the tenant is known: owned by mirror_platform, callable by mirror_app only.

    `query` is one SELECT; it names tables with their schema, because the search path is fixed to the catalogue.
    """
    return RunSQL(
        [
            f"CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} "
            "LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
            f"AS $lookup$ {query} $lookup$",
            f"REVOKE ALL ON FUNCTION public.{name}({arguments}) FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION public.{name}({arguments}) TO mirror_app",
            # Taking over a function needs CREATE on its schema; mirror_platform has it for this moment only.
            "GRANT CREATE ON SCHEMA public TO mirror_platform",
            f"ALTER FUNCTION public.{name}({arguments}) OWNER TO mirror_platform",
            "REVOKE CREATE ON SCHEMA public FROM mirror_platform",
        ],
        reverse_sql=[
            "SET LOCAL ROLE mirror_platform",
            f"DROP FUNCTION public.{name}({arguments})",
            "RESET ROLE",
        ],
    )


def tenant_wall_append_only(table: str) -> list[RunSQL]:
    """`tenant_wall` for a table whose rows stay as they were written: mirror_app may insert and read them only.

    The owner's default privileges give mirror_app more at the table's creation, so that is taken back.
    """
    return [
        tenant_wall(table),
        RunSQL(f"REVOKE UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON {table} FROM mirror_app", RunSQL.noop),
    ]


def platform_procedure(name: str, arguments: str, returns: str, body: str) -> RunSQL:
    """A `platform_function` whose question is planned for the values that it is asked with (PL/pgSQL's EXECUTE)."""
    return RunSQL(
        [
            f"CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} "
            "LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
            f"AS $lookup$ {body} $lookup$",
            f"REVOKE ALL ON FUNCTION public.{name}({arguments}) FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION public.{name}({arguments}) TO mirror_app",
            # Taking over a function needs CREATE on its schema; mirror_platform has it for this moment only.
            "GRANT CREATE ON SCHEMA public TO mirror_platform",
            f"ALTER FUNCTION public.{name}({arguments}) OWNER TO mirror_platform",
            "REVOKE CREATE ON SCHEMA public FROM mirror_platform",
        ],
        reverse_sql=[
            "SET LOCAL ROLE mirror_platform",
            f"DROP FUNCTION public.{name}({arguments})",
            "RESET ROLE",
        ],
    )


def tenant_wall_read_only(table: str) -> list[RunSQL]:
    """`tenant_wall` for a table that says what a tenant may: mirror_app, which acts for tenants, may only read it."""
    return [
        tenant_wall(table),
        RunSQL(f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON {table} FROM mirror_app", RunSQL.noop),
    ]
