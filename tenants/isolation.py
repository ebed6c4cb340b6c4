"""Whether PostgreSQL keeps the tenants apart: its own catalogue says so, whatever migrations and models claim.

Read by `manage.py audit_isolation` for an operator and by tests/isolation/test_catalogue.py for us. Nothing here needs
a tenant, and any role may ask: the catalogue is everybody's to read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.apps import apps
from django.db import connection

from tenants.managers import TenantModel
from tenants.models import Tenant
from tenants.services.roles import APP, OWNER, PLATFORM

Query = Callable[..., list[tuple[Any, ...]]]

TENANTS: Final = "tenants_tenant"
WALL: Final = "(tenant_id = (NULLIF(current_setting('app.tenant_id'::text, true), ''::text))::uuid)"
# Rows of the installation or of people, who belong to no tenant. A table of ours that is neither here nor a tenant's is
# a finding, because row-level security does not know whose its rows are.
GLOBAL_TABLES: Final = frozenset(
    {
        "tenants_user",
        "tenants_keycheck",
        # allauth's, of people: second factors and recovery codes (sealed), and where somebody is signed in. Selected by
        # the person who asks (tenants.services.people, .second_factor); the two of addresses stay empty.
        "mfa_authenticator",
        "usersessions_usersession",
        "account_emailaddress",
        "account_emailconfirmation",
        # Django's: sessions are found by their key, which is the secret itself.
        "django_session",
    }
)
# Read by SECURITY DEFINER look-ups before the tenant is known: these indexes have to lead with something else.
LOOKUP_INDEXES: Final = frozenset(
    {
        ("tenants_apikey", "prefix"),
        ("tenants_membership", "user_id"),
        ("tenants_invitation", "token_hash"),
        # A word of every entry is the tenant's (see supervision's migration 0016).
        ("supervision_turn", "search"),
    }
)
# What the search function matches with; it gives out ids of the current tenant only.
SEARCHED: Final = frozenset({("supervision_turn", "search")})
# What look-ups may read beside ids, times and hashes: what finds a tenant, and whether a member still has a role.
_LOOK_UP_WORDS: Final = frozenset({"slug", "prefix", "role"})
# Rows of these stay as they were written.
APPEND_ONLY: Final = frozenset({"tenants_auditevent"})
# The operator writes these, as mirror_owner: what a tenant may is not the tenant's to say.
READ_ONLY: Final = frozenset({"tenants_tenantlimits"})
_OUR_APPS: Final = frozenset({"tenants", "supervision", "webui", "mirror_saas"})
_MAY: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that lets one tenant reach another's rows, or that could."""

    check: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message} [{self.check}]"


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """What was looked at, and what is wrong with it."""

    tables: tuple[str, ...]
    functions: tuple[str, ...]
    findings: tuple[Finding, ...]


def query(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask through Django's connection."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def isolation_audit(ask: Query = query) -> IsolationReport:
    """Look at every table, policy, index, key, function and role. `ask(statement, *parameters)` returns rows."""
    tables = tenant_tables(ask)
    findings = [
        finding
        for check in (
            _tables_of_models,
            _row_level_security,
            _policies,
            _uniques,
            _indexes,
            _foreign_keys,
            _rights,
            _views,
        )
        for finding in check(ask, tables)
    ]
    findings += [finding for check in (_roles, _settings, _functions, _look_up_rights) for finding in check(ask)]
    return IsolationReport(
        tables=tuple(tables),
        functions=tuple(name for name, *_ in _security_definers(ask)),
        findings=tuple(findings),
    )


def tenant_tables(ask: Query = query) -> list[str]:
    """Every table with a column tenant_id, whoever made it; through tables and other packages' tables too."""
    rows = ask(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relkind IN ('r', 'p', 'f') AND c.relnamespace = 'public'::regnamespace"
        " AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY 1"
    )
    return [name for (name,) in rows]


def _tables_of_models(ask: Query, tables: list[str]) -> list[Finding]:
    """Every table is a tenant's, or known to be nobody's."""
    findings = []
    models = {model._meta.db_table: model for model in apps.get_models(include_auto_created=True)}
    ours = {table for table, model in models.items() if model._meta.app_label in _OUR_APPS}
    for table, model in models.items():
        if issubclass(model, TenantModel) and table not in tables:
            findings.append(Finding("tables", table, "is a tenant's model and has no column tenant_id."))
    existing = [
        name
        for (name,) in ask(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'f')"
            " AND relnamespace = 'public'::regnamespace ORDER BY 1"
        )
    ]
    for table in existing:
        if table in tables or table == TENANTS or table in GLOBAL_TABLES:
            continue
        if table in ours:
            findings.append(Finding("tables", table, "has no column tenant_id, and is not known to be nobody's."))
        elif table not in models and table != "django_migrations":
            findings.append(Finding("tables", table, "belongs to no model; nobody knows whose rows it has."))
    # A table that points at tenants' rows has tenants' rows: Django's own through tables, for example.
    pointing = ask(
        "SELECT DISTINCT c.conrelid::regclass::text, c.confrelid::regclass::text FROM pg_constraint c"
        " WHERE c.contype = 'f' AND c.confrelid::regclass::text = ANY(%s) AND NOT c.conrelid::regclass::text = ANY(%s)"
        " ORDER BY 1",
        [*tables, TENANTS],
        [*tables, TENANTS],
    )
    for table, referenced in pointing:
        findings.append(Finding("tables", table, f"points at {referenced} and has no column tenant_id."))
    return findings


def _row_level_security(ask: Query, tables: list[str]) -> list[Finding]:
    rows = ask(
        "SELECT relname, relrowsecurity, relforcerowsecurity, relkind = 'f' FROM pg_class"
        " WHERE relname = ANY(%s) AND relnamespace = 'public'::regnamespace ORDER BY 1",
        [*tables, TENANTS],
    )
    findings = []
    for table, enabled, forced, foreign in rows:
        if foreign:
            findings.append(Finding("row-level security", table, "is a foreign table, which cannot have any."))
        elif not enabled:
            findings.append(Finding("row-level security", table, "has none."))
        elif not forced:
            findings.append(Finding("row-level security", table, "does not bind the table's owner (FORCE is missing)."))
    return findings


def _policies(ask: Query, tables: list[str]) -> list[Finding]:
    findings = []
    for table in [*tables, TENANTS]:
        wall = WALL if table != TENANTS else WALL.replace("tenant_id =", "id =")
        policies = ask(
            "SELECT policyname::text, permissive, roles::text[], cmd, qual, with_check FROM pg_policies"
            " WHERE schemaname = 'public' AND tablename = %s ORDER BY 1",
            table,
        )
        walls = [policy for policy in policies if policy[0] == "tenant_isolation"]
        if walls != [("tenant_isolation", "PERMISSIVE", ["public"], "ALL", wall, wall)]:
            findings.append(
                Finding("policies", table, "its policy does not compare reads and writes with the current tenant.")
            )
        for name, permissive, roles, command, _, _ in policies:
            # Anything else may only let the look-ups read; permissive policies add up.
            if name != "tenant_isolation" and permissive == "PERMISSIVE" and (roles, command) != ([PLATFORM], "SELECT"):
                findings.append(
                    Finding("policies", table, f"the policy {name} opens it to {', '.join(roles)} for {command}.")
                )
    return findings


def _uniques(ask: Query, tables: list[str]) -> list[Finding]:
    """Uniqueness across tenants would tell one of them what another one has."""
    findings = []
    for table in tables:
        keys = ask(
            "SELECT i.indisprimary, array_agg(coalesce(a.attname::text, 'an expression') ORDER BY k.position)"
            " FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int[]) WITH ORDINALITY k(number, position)"
            " LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0"
            " WHERE i.indrelid = %s::regclass AND i.indisunique GROUP BY i.indexrelid, i.indisprimary",
            f"public.{table}",
        )
        if [columns for primary, columns in keys if primary] != [["id"]]:
            findings.append(Finding("uniques", table, "its primary key is not the column id."))
        uniques = [columns for primary, columns in keys if not primary]
        if ["tenant_id", "id"] not in uniques:
            findings.append(Finding("uniques", table, "(tenant_id, id) is not unique, so no key can point at it."))
        findings += [
            Finding("uniques", table, f"({', '.join(columns)}) is unique across tenants.")
            for columns in uniques
            if columns[0] != "tenant_id"
        ]
    return findings


def _indexes(ask: Query, tables: list[str]) -> list[Finding]:
    findings = []
    for table in tables:
        first_columns = {
            column
            for (column,) in ask(
                "SELECT coalesce(a.attname::text, 'an expression') FROM pg_index i"
                " LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND i.indkey[0] > 0"
                " WHERE i.indrelid = %s::regclass AND NOT i.indisprimary AND i.indisvalid",
                f"public.{table}",
            )
        }
        if "tenant_id" not in first_columns:
            findings.append(Finding("indexes", table, "no index leads with tenant_id."))
        findings += [
            Finding("indexes", table, f"an index leads with {column} and not with tenant_id.")
            for column in sorted(first_columns - {"tenant_id"})
            if (table, column) not in LOOKUP_INDEXES
        ]
    return findings


def _foreign_keys(ask: Query, tables: list[str]) -> list[Finding]:
    keys = ask(
        "SELECT c.conname::text, c.conrelid::regclass::text, c.confrelid::regclass::text, c.convalidated,"
        " (SELECT array_agg(a.attname::text ORDER BY k.position) FROM unnest(c.conkey) WITH ORDINALITY k(n, position)"
        "  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n),"
        " (SELECT array_agg(a.attname::text ORDER BY k.position) FROM unnest(c.confkey) WITH ORDINALITY k(n, position)"
        "  JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n)"
        " FROM pg_constraint c WHERE c.contype = 'f' AND c.conrelid::regclass::text = ANY(%s) ORDER BY 1",
        tables,
    )
    findings = []
    found = set()
    for name, table, referenced, valid, columns, referenced_columns in keys:
        if not valid:
            findings.append(Finding("foreign keys", table, f"{name} was never checked against the rows there are."))
        if referenced in tables:
            if columns[0] != "tenant_id" or referenced_columns != ["tenant_id", "id"] or len(columns) != 2:
                findings.append(Finding("foreign keys", table, f"{name} can point at another tenant's {referenced}."))
                continue
            found.add((table, columns[1]))
        elif referenced == TENANTS:
            if columns != ["tenant_id"]:
                findings.append(Finding("foreign keys", table, f"{name} names a tenant in another column."))
                continue
            found.add((table, "tenant_id"))
    # Django does not make them, so a field without its SQL would have none at all.
    expected = {
        (model._meta.db_table, field.column)
        for model in apps.get_models(include_auto_created=True)
        if issubclass(model, TenantModel)
        for field in model._meta.concrete_fields
        if field.is_relation and issubclass(field.related_model, TenantModel | Tenant)  # type: ignore[arg-type]
    } | {(table, "tenant_id") for table in tables}
    findings += [
        Finding("foreign keys", table, f"{column} has no foreign key that carries the tenant.")
        for table, column in sorted(expected - found)
    ]
    return findings


def _rights(ask: Query, tables: list[str]) -> list[Finding]:
    """TRUNCATE, REFERENCES and TRIGGER are not asked by row-level security; PUBLIC and others need no rights at all."""
    rows = ask(
        "SELECT c.relname::text, coalesce(r.rolname::text, 'PUBLIC'), acl.privilege_type"
        " FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl LEFT JOIN pg_roles r ON r.oid = acl.grantee"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(%s) AND acl.grantee <> c.relowner"
        " ORDER BY 1, 2, 3",
        [*tables, TENANTS],
    )
    findings = []
    for table, grantee, privilege in rows:
        may = _MAY - {"UPDATE", "DELETE"} if table in APPEND_ONLY else _MAY
        may = frozenset({"SELECT"}) if table in READ_ONLY else may
        if grantee != APP or privilege not in may:
            findings.append(Finding("rights", table, f"{grantee} may {privilege}."))
    owners = ask(
        "SELECT relname::text, pg_get_userbyid(relowner)::text FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%s) AND pg_get_userbyid(relowner) <> %s",
        [*tables, TENANTS],
        OWNER,
    )
    findings += [Finding("rights", table, f"belongs to {owner} and not to {OWNER}.") for table, owner in owners]
    return findings


def _views(ask: Query, tables: list[str]) -> list[Finding]:
    """A view reads with its owner's rights and a materialized one keeps what its maker saw."""
    rows = ask(
        "SELECT DISTINCT v.relname::text, v.relkind::text,"
        " coalesce('security_invoker=true' = ANY(v.reloptions) OR 'security_invoker=on' = ANY(v.reloptions), false)"
        " FROM pg_class v JOIN pg_rewrite w ON w.ev_class = v.oid"
        " JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid"
        " AND d.refclassid = 'pg_class'::regclass JOIN pg_class t ON t.oid = d.refobjid"
        " WHERE v.relkind IN ('v', 'm') AND t.relname = ANY(%s) ORDER BY 1",
        [*tables, TENANTS],
    )
    findings = []
    for view, kind, invoker in rows:
        if kind == "m":
            findings.append(Finding("views", view, "is a materialized view of tenants' rows, without a policy."))
        elif not invoker:
            findings.append(
                Finding("views", view, "reads tenants' rows with its owner's rights (no security_invoker).")
            )
    return findings


def _roles(ask: Query) -> list[Finding]:
    findings = []
    roles = {
        name: attributes
        for name, *attributes in ask(
            "SELECT rolname::text, rolsuper, rolbypassrls, rolcreaterole, rolreplication, rolcanlogin FROM pg_roles"
            " WHERE rolname = ANY(%s)",
            [APP, OWNER, PLATFORM],
        )
    }
    for role in (APP, OWNER, PLATFORM):
        if role not in roles:
            findings.append(Finding("roles", role, "does not exist; run `manage.py create_roles`."))
            continue
        superuser, bypass, create_role, replication, login = roles[role]
        for wrong, what in (
            (superuser, "is a superuser, whom row-level security does not bind."),
            (bypass, "has BYPASSRLS."),
            (create_role, "may make roles."),
            (replication, "may replicate, and so read every row."),
            (login and role == PLATFORM, "can log in."),
        ):
            if wrong:
                findings.append(Finding("roles", role, what))
    if not {APP, PLATFORM} <= roles.keys():
        return findings
    member_of = ask("SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole ORDER BY 1", APP)
    findings += [Finding("roles", APP, f"is a member of {role}.") for (role,) in member_of]
    owned = ask(
        "SELECT relname::text FROM pg_class WHERE pg_get_userbyid(relowner) = %s"
        " UNION ALL SELECT proname::text FROM pg_proc WHERE pg_get_userbyid(proowner) = %s"
        " UNION ALL SELECT nspname::text FROM pg_namespace WHERE pg_get_userbyid(nspowner) = %s"
        " UNION ALL SELECT datname::text FROM pg_database WHERE pg_get_userbyid(datdba) = %s ORDER BY 1",
        *(APP,) * 4,
    )
    findings += [Finding("roles", APP, f"owns {name}, and an owner can switch policies off.") for (name,) in owned]
    for role in (APP, PLATFORM):
        for schema, may in ask(
            "SELECT nspname::text, has_schema_privilege(%s, oid, 'CREATE') FROM pg_namespace"
            " WHERE nspname NOT LIKE 'pg\\_%%' AND nspname <> 'information_schema' ORDER BY 1",
            role,
        ):
            if may:
                findings.append(Finding("roles", role, f"may make objects in the schema {schema}."))
    return findings


def _settings(ask: Query) -> list[Finding]:
    """A setting that a role or database begins with is one that nobody chose."""
    rows = ask(
        "SELECT coalesce(r.rolname::text, d.datname::text, 'every role'), s.setting"
        " FROM pg_db_role_setting x CROSS JOIN LATERAL unnest(x.setconfig) s(setting)"
        " LEFT JOIN pg_roles r ON r.oid = x.setrole LEFT JOIN pg_database d ON d.oid = x.setdatabase"
        " WHERE x.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
        " AND (s.setting LIKE 'app.tenant_id=%%' OR s.setting ILIKE 'row_security=%%') ORDER BY 1"
    )
    return [Finding("settings", whose, f"begins every session with {setting}.") for whose, setting in rows]


def _security_definers(ask: Query) -> list[tuple[Any, ...]]:
    return ask(
        "SELECT p.proname::text, pg_get_userbyid(p.proowner)::text, p.proconfig, pg_get_function_result(p.oid),"
        " ARRAY(SELECT coalesce(r.rolname::text, 'PUBLIC')"
        "         FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) acl"
        "         LEFT JOIN pg_roles r ON r.oid = acl.grantee WHERE acl.grantee <> p.proowner ORDER BY 1)"
        " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE p.prosecdef AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema' ORDER BY 1"
    )


def _functions(ask: Query) -> list[Finding]:
    """Look-ups across tenants are few, cannot be led astray, and return ids only."""
    findings = []
    for name, owner, config, result, callers in _security_definers(ask):
        if owner != PLATFORM:
            findings.append(Finding("functions", name, f"runs with the rights of {owner} and not of {PLATFORM}."))
        if config != ["search_path=pg_catalog, pg_temp"]:
            findings.append(Finding("functions", name, "does not fix its search path."))
        if callers != [APP]:
            findings.append(Finding("functions", name, f"may be called by {', '.join(callers) or 'nobody'}."))
        columns = result.removeprefix("SETOF ").removeprefix("TABLE(").removesuffix(")").split(", ")
        if not all(column.split()[-1] == "uuid" for column in columns):
            findings.append(Finding("functions", name, f"returns more than ids: {result}."))
    leakproof = ask(
        "SELECT p.proname::text FROM pg_proc p WHERE p.proleakproof AND p.pronamespace = 'public'::regnamespace"
    )
    # The planner may run such a function on rows before the policy has hidden them.
    findings += [Finding("functions", name, "is marked LEAKPROOF.") for (name,) in leakproof]
    return findings


def _look_up_rights(ask: Query) -> list[Finding]:
    """The look-ups' owner reads what finds a tenant, and no secret."""
    rows = ask(
        "SELECT c.relname::text, a.attname::text, t.typname::text, acl.privilege_type FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " CROSS JOIN LATERAL (SELECT * FROM aclexplode(a.attacl) UNION ALL SELECT * FROM aclexplode(c.relacl)) acl"
        " JOIN pg_roles r ON r.oid = acl.grantee"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND r.rolname = %s ORDER BY 1, 2",
        PLATFORM,
    )
    findings = []
    for table, column, kind, privilege in rows:
        if privilege != "SELECT":
            findings.append(Finding("look-up rights", PLATFORM, f"may {privilege} {table}."))
        elif (table, column) in SEARCHED:
            continue
        elif not column.endswith("_hash") and kind not in ("uuid", "timestamptz") and column not in _LOOK_UP_WORDS:
            findings.append(Finding("look-up rights", PLATFORM, f"may read {table}.{column}."))
    return sorted(set(findings), key=str)


def connection_findings(ask: Query = query) -> list[Finding]:
    """Whether the role that this process logs in as is bound at all."""
    [(user, superuser, bypass)] = ask(
        "SELECT current_user::text, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    )
    if user != APP or superuser or bypass:
        return [Finding("connection", user, f"is what DATABASE_URL logs in as; it has to be {APP}.")]
    return []
