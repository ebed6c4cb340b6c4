"""Roles of people, scopes of API keys, and what each may do: the one table that pages, API and sockets read."""

from __future__ import annotations

from typing import Final

from django.db import models


class Role(models.TextChoices):
    """What a member is in a tenant, most powerful first."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    EDITOR = "editor", "Editor"
    REVIEWER = "reviewer", "Reviewer"
    VIEWER = "viewer", "Viewer"


class Scope(models.TextChoices):
    """What an API key may be used for."""

    CALLS_READ = "calls:read", "Read calls"
    CALLS_WRITE = "calls:write", "Write calls"
    POLICIES_READ = "policies:read", "Read policies"
    POLICIES_WRITE = "policies:write", "Write policies"
    LABELS_WRITE = "labels:write", "Write labels"
    JUDGE = "judge", "Judge turns and tool calls"
    REPLAY = "replay", "Run replays"
    REPORTS = "reports", "Failure reports"
    ADMIN = "admin", "Administer the tenant"


class Capability(models.TextChoices):
    """What a person may do beside the scopes, which no API key can have."""

    OWNERS_MANAGE = "owners:manage", "Make, demote and remove owners"
    MEMBERSHIP = "membership", "See and end one’s own membership"


ALL_SCOPES: Final[frozenset[str]] = frozenset(Scope.values)
# Whatever a page, an operation of the API or a topic asks for is one of these.
ALL_CAPABILITIES: Final[frozenset[str]] = ALL_SCOPES | frozenset(Capability.values)

_VIEW = frozenset({Capability.MEMBERSHIP.value, Scope.CALLS_READ.value, Scope.POLICIES_READ.value})
_REVIEW = _VIEW | {Scope.LABELS_WRITE.value}
_EDIT = _REVIEW | {
    Scope.CALLS_WRITE.value,
    Scope.POLICIES_WRITE.value,
    Scope.JUDGE.value,
    Scope.REPLAY.value,
    Scope.REPORTS.value,
}
_ADMIN = _EDIT | {Scope.ADMIN.value}
_OWN = _ADMIN | {Capability.OWNERS_MANAGE.value}

ROLE_CAPABILITIES: Final[dict[str, frozenset[str]]] = {
    Role.OWNER.value: _OWN,
    Role.ADMIN.value: _ADMIN,
    Role.EDITOR.value: _EDIT,
    Role.REVIEWER.value: _REVIEW,
    Role.VIEWER.value: _VIEW,
}

# A person signed in to the console has the scopes of their role, so that pages and API agree.
ROLE_SCOPES: Final[dict[str, frozenset[str]]] = {
    role: capabilities & ALL_SCOPES for role, capabilities in ROLE_CAPABILITIES.items()
}


class CapabilityMissing(PermissionError):
    """The key or role does not cover this."""

    def __init__(self, capability: str) -> None:
        self.capability = capability
        kind = "scope" if capability in ALL_SCOPES else "capability"
        super().__init__(f"This needs the {kind} {capability}.")


def role_capabilities(role: str) -> frozenset[str]:
    """What a member with `role` may do; nothing for a role that is not known."""
    return ROLE_CAPABILITIES.get(role, frozenset())


def capability_known(name: str) -> str:
    """`name`, if it stands in the table. Raises LookupError: a door that asks for what nobody can have is a mistake."""
    if name not in ALL_CAPABILITIES:
        raise LookupError(f"No role and no key has the capability {name!r}; it is not in tenants.roles.")
    return name


def capability_require(capabilities: frozenset[str], capability: str) -> None:
    """Raises CapabilityMissing unless `capability` is among `capabilities`."""
    if capability not in capabilities:
        raise CapabilityMissing(capability)


def role_needs(role: str) -> str:
    """What it takes to give `role` to somebody, to take it away, or to end the membership of somebody who has it.

    Whoever has that has everything that the role may do: nobody gives more than they have. An API key with the scope
    admin counts as an admin, whatever other scopes it lacks.
    """
    return Capability.OWNERS_MANAGE.value if role == Role.OWNER else Scope.ADMIN.value


def role_grantable(capabilities: frozenset[str], role: str) -> bool:
    """Whether somebody with `capabilities` may give or take `role`."""
    return role_needs(role) in capabilities


def roles_grantable(capabilities: frozenset[str]) -> list[Role]:
    """The roles that somebody with `capabilities` may give, most powerful first."""
    return [role for role in Role if role_grantable(capabilities, role.value)]
