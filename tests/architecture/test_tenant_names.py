"""Whatever is shared between tenants and nodes names the tenant: groups of the channel layer, keys in Valkey, tasks."""

from __future__ import annotations

import ast
from pathlib import Path
from uuid import UUID

import pytest

from tenants.cache_keys import tenant_key
from tenants.channel_groups import TenantGroup

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for package in ("mirror_saas", "tenants", "supervision", "webui") for path in (ROOT / package).rglob("*.py")
)
TENANT = UUID("0190f3a4-0000-7000-8000-000000000001")

# Groups are joined and spoken to here only, where their name comes from a TenantGroup.
GROUPS = {"tenants/channel_groups.py"}
GROUP_CALLS = {"group_add", "group_discard", "group_send"}
# Django's cache has no idea of tenants. Only allauth uses it, for attempts by people and addresses, who belong to none.
CACHE = {"mirror_saas/cache.py"}
# These speak to Valkey themselves; what they keep of a tenant stands under a key with its id.
VALKEY = {
    "mirror_saas/cache.py",
    "mirror_saas/embedded.py",
    "mirror_saas/health.py",
    "supervision/engine/state/redis.py",
    "supervision/stream/mailbox.py",
    "supervision/stream/owners.py",
    "supervision/stream/valkey.py",
    "tenants/limits_redis.py",
    "tenants/mail_limits.py",
}


def modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def under(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in names)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in SOURCES}


def test_groups_are_used_through_the_one_place_that_names_their_tenant(trees: dict[str, ast.AST]) -> None:
    using = {
        file
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in GROUP_CALLS
    }
    assert using == GROUPS


def test_nothing_of_a_tenant_is_in_djangos_cache(trees: dict[str, ast.AST]) -> None:
    assert {file for file, tree in trees.items() if under(modules(tree), "django.core.cache")} == CACHE


def test_who_speaks_to_valkey_is_known(trees: dict[str, ast.AST]) -> None:
    using = {file for file, tree in trees.items() if under(modules(tree), "redis")}
    assert using <= VALKEY, "name the tenant in the keys (tenants.cache_keys), then add the module to this list"


def test_names_tell_tenants_apart() -> None:
    assert TenantGroup(TENANT, "calls").name == f"t.{TENANT.hex}.calls"
    assert tenant_key("calls", TENANT) == f"mirror:calls:{{{TENANT}}}"
