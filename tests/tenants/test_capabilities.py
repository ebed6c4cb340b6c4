"""The one table of who may do what: pages, API and sockets ask for what stands in it, and for nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RoutePattern

from mirror_saas.api import api
from tenants.api.auth import Principal, requires
from tenants.roles import (
    ALL_CAPABILITIES,
    ALL_SCOPES,
    ROLE_CAPABILITIES,
    ROLE_SCOPES,
    Capability,
    CapabilityMissing,
    Role,
    Scope,
    capability_known,
    capability_require,
    role_capabilities,
    role_grantable,
    roles_grantable,
)
from tenants.selectors.memberships import MembershipRef
from tenants.selectors.tenants import TenantRef
from webui.access import member_view
from webui.context_processors import NAVIGATION
from webui.live import Topic

# Pages that belong to a person or to nobody, and to no tenant: what they show and change is the session's own.
OF_NO_TENANT = {
    *("home", "sign_in", "sign_in_code", "sign_out", "no_tenant", "invitation", "tenant_switch"),
    *("forgot_password", "forgot_password_sent", "reset_password", "reset_password_new"),
    *("sign_up", "sign_up_sent", "sign_up_link", "sign_up_new"),
    *("account", "confirm", "password", "two_factor", "two_factor_off", "recovery_codes", "recovery_codes_new"),
    *("sessions_end", "session_end", "alarm_mails_off"),
}


def patterns(resolver: URLResolver) -> Iterator[URLPattern]:
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            yield from patterns(entry)
        else:
            yield entry


def console_patterns() -> list[URLPattern]:
    [console] = [
        entry
        for entry in get_resolver().url_patterns
        if isinstance(entry, URLResolver) and entry.app_name == "webui" and isinstance(entry.pattern, RoutePattern)
    ]
    return list(patterns(console))


def capability_of(view: Any) -> str | None:
    """What a view asks for, wherever in its decorators it does."""
    return getattr(view, "capability", None)


def topics(parent: type[Topic] = Topic) -> Iterator[type[Topic]]:
    for topic in parent.__subclasses__():
        yield topic
        yield from topics(topic)


# -- the doors ----------------------------------------------------------------------------------------------------


def test_every_page_names_a_capability_or_is_known_to_be_of_no_tenant() -> None:
    found = {pattern.name: capability_of(pattern.callback) for pattern in console_patterns()}
    assert {name for name, capability in found.items() if capability is None} == OF_NO_TENANT & set(found)
    assert {capability for capability in found.values() if capability} <= ALL_CAPABILITIES
    assert found["calls"] == found["call"] == "calls:read"


def test_every_operation_of_the_api_names_a_capability() -> None:
    found = {}
    for prefix, router in api._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                for method in operation.methods:
                    function = operation.view_func
                    assert hasattr(function, "capability"), f"{method} {prefix}{path} is not behind `requires`."
                    found[f"{method} {prefix}{path}"] = capability_of(function)
    # Whoever is known may ask who they are.
    assert {name for name, capability in found.items() if capability is None} == {"GET /me"}
    assert {capability for capability in found.values() if capability} <= ALL_CAPABILITIES


def test_every_topic_names_a_capability() -> None:
    found = list(topics())
    assert found
    assert {topic.capability for topic in found} <= ALL_CAPABILITIES


def test_the_navigation_shows_what_its_page_lets_in() -> None:
    asked = {f"webui:{pattern.name}": capability_of(pattern.callback) for pattern in console_patterns()}
    assert {item.route: item.scope for item in NAVIGATION} == {item.route: asked[item.route] for item in NAVIGATION}


def test_a_door_that_asks_for_what_nobody_has_cannot_be_made() -> None:
    with pytest.raises(LookupError, match=r"'calls:raed'"):
        member_view(scope="calls:raed")
    with pytest.raises(LookupError, match="everything"):
        capability_known("everything")

    class Other:
        value = "everything"

    with pytest.raises(LookupError, match="everything"):
        requires(Other())  # type: ignore[arg-type]


# -- the table ----------------------------------------------------------------------------------------------------


def test_every_role_stands_in_the_table_and_every_capability_is_somebodys() -> None:
    assert set(ROLE_CAPABILITIES) == set(ROLE_SCOPES) == set(Role.values)
    assert frozenset().union(*ROLE_CAPABILITIES.values()) == ALL_CAPABILITIES
    assert not ALL_SCOPES & set(Capability.values)
    assert role_capabilities("janitor") == frozenset()


def test_each_role_may_do_all_that_the_next_one_may() -> None:
    ordered = [ROLE_CAPABILITIES[role] for role in Role.values]
    for more, less in itertools.pairwise(ordered):
        assert more > less


def test_only_owners_manage_owners() -> None:
    assert [role for role in Role.values if "owners:manage" in ROLE_CAPABILITIES[role]] == ["owner"]
    assert ROLE_CAPABILITIES["owner"] - ROLE_CAPABILITIES["admin"] == {"owners:manage"}


def test_nobody_gives_more_than_they_have() -> None:
    for giver, capabilities in ROLE_CAPABILITIES.items():
        for given, granted in ROLE_CAPABILITIES.items():
            if role_grantable(capabilities, given):
                assert granted <= capabilities, (giver, given)
    assert roles_grantable(ROLE_CAPABILITIES["owner"]) == list(Role)
    assert roles_grantable(ROLE_CAPABILITIES["admin"]) == [Role.ADMIN, Role.EDITOR, Role.REVIEWER, Role.VIEWER]
    for role in ("editor", "reviewer", "viewer"):
        assert roles_grantable(ROLE_CAPABILITIES[role]) == []


def test_a_key_with_every_scope_is_no_owner() -> None:
    assert Role.OWNER not in roles_grantable(ALL_SCOPES)
    assert roles_grantable(frozenset({"admin"})) == [Role.ADMIN, Role.EDITOR, Role.REVIEWER, Role.VIEWER]
    assert roles_grantable(ALL_SCOPES - {"admin"}) == []


@pytest.mark.parametrize("role", Role.values)
def test_a_person_may_do_the_same_in_pages_and_in_the_api(role: str) -> None:
    from mirror_saas.ids import uuid7

    tenant = TenantRef(id=uuid7(), slug="t", name="T")
    member = MembershipRef(membership_id=uuid7(), user_id=uuid7(), role=role, tenant=tenant)
    asker = Principal(kind="session", tenant=tenant, scopes=member.scopes, user_id=member.user_id, role=role)
    assert asker.capabilities == member.capabilities == ROLE_CAPABILITIES[role]
    assert member.scopes == ROLE_SCOPES[role] == member.capabilities & ALL_SCOPES


def test_what_is_missing_is_named_in_the_words_of_who_asks() -> None:
    with pytest.raises(CapabilityMissing, match=r"^This needs the scope admin\.$"):
        capability_require(frozenset(), Scope.ADMIN.value)
    with pytest.raises(CapabilityMissing, match=r"^This needs the capability owners:manage\.$"):
        capability_require(ALL_SCOPES, "owners:manage")
