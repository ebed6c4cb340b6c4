"""Roles of people and scopes of API keys, and what each may do: the one table that pages, API and sockets read."""

from __future__ import annotations

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


ALL_SCOPES: frozenset[str] = frozenset(scope.value for scope in Scope)

_READ = frozenset({Scope.CALLS_READ.value, Scope.POLICIES_READ.value})
_REVIEW = _READ | {Scope.LABELS_WRITE.value}
_EDIT = _REVIEW | {
    Scope.CALLS_WRITE.value,
    Scope.POLICIES_WRITE.value,
    Scope.JUDGE.value,
    Scope.REPLAY.value,
    Scope.REPORTS.value,
}

# A person signed in to the console has the scopes of their role, so that pages and API agree.
ROLE_SCOPES: dict[str, frozenset[str]] = {
    Role.OWNER.value: ALL_SCOPES,
    Role.ADMIN.value: ALL_SCOPES,
    Role.EDITOR.value: _EDIT,
    Role.REVIEWER.value: _REVIEW,
    Role.VIEWER.value: _READ,
}
