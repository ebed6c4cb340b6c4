"""Policies and their versions as rows and lines of pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from supervision.models import PolicyVersion, ProviderCredential
from supervision.selectors.policies import PolicyRow, VersionContent
from webui.formats import count_of
from webui.policy_settings import Setting, settings_of
from webui.presenters.pieces import Badge

STATUS: Mapping[str, Badge] = {
    "draft": Badge("Draft", "note", title="Judges nothing yet, and can change"),
    "shadow": Badge("Shadow", "info", "mirror", title="Judges and records, and never steps in"),
    "live": Badge("Live", "check", "good", title="What new calls are judged by"),
    "retired": Badge("Retired", "dash", title="Was live or shadow before; calls that began under it go on with it"),
}
SEVERITY: Mapping[str, Badge] = {
    "low": Badge("Low", "dash"),
    "medium": Badge("Medium", "info"),
    "high": Badge("High", "alert", "warn", title="Acts again within the cooldown"),
}


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A policy in the list."""

    id: UUID
    name: str
    live: str
    shadow: str
    drafts: tuple[int, ...]
    agents: str
    agent_count: int
    updated_at: datetime

    @property
    def idle(self) -> bool:
        """Agents use it, and none of its versions can judge them."""
        return self.agent_count > 0 and not self.live and not self.shadow


def policy_lines(rows: Sequence[PolicyRow]) -> list[PolicyLine]:
    return [
        PolicyLine(
            id=row.policy.id,
            name=row.policy.name,
            live=f"Version {row.live_number}" if row.live_number is not None else "",
            shadow=f"Version {row.shadow_number}" if row.shadow_number is not None else "",
            drafts=row.draft_numbers,
            agents=count_of(row.agent_count, "agent") if row.agent_count else "no agent",
            agent_count=row.agent_count,
            updated_at=row.policy.updated_at,
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class RuleLine:
    """A rule to read."""

    number: int | None
    """As the judge numbers it; None for one that is off."""
    text: str
    severity: Badge
    tools: tuple[str, ...]
    statement: str


def rule_lines(rules: Sequence[Mapping[str, Any]]) -> list[RuleLine]:
    found, number = [], 0
    for rule in rules:
        on = rule.get("enabled", True)
        number += on
        found.append(
            RuleLine(
                number=number if on else None,
                text=rule["text"],
                severity=SEVERITY[rule.get("severity", "medium")],
                tools=tuple(rule.get("tools", ())),
                statement=rule.get("statement") or "",
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class SettingLine:
    """A setting that is otherwise than the engine's."""

    label: str
    value: str
    default: str


def setting_lines(config: Mapping[str, Any]) -> list[SettingLine]:
    return [_setting_line(setting, value) for setting, value in settings_of(config)]


def _setting_line(setting: Setting, value: Any) -> SettingLine:
    return SettingLine(setting.label, setting.words(value), setting.default_words)


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version in its policy's table."""

    number: int
    status: Badge
    state: str
    rules: str
    note: str
    created_at: datetime
    published_at: datetime | None
    rolled_back_at: datetime | None
    judged: bool
    """Whether it names a model."""
    can_return: bool
    """Whether it can be live again."""


def version_lines(versions: Sequence[PolicyVersion], *, live: int | None) -> list[VersionLine]:
    return [version_line(version, live=live) for version in versions]


def version_line(version: PolicyVersion, *, live: int | None) -> VersionLine:
    retired = version.status == PolicyVersion.Status.RETIRED
    return VersionLine(
        number=version.number,
        status=STATUS[version.status],
        state=version.status,
        rules=rules_words(version),
        note=version.note,
        created_at=version.created_at,
        published_at=version.published_at,
        rolled_back_at=version.rolled_back_at,
        judged=version.llm_credential_id is not None,
        can_return=retired and version.published_at is not None and live is not None,
    )


def rules_words(content: VersionContent) -> str:
    """`4 rules, 1 off`, or that it has a prompt of its own."""
    if not content.rules:
        return "own prompt"
    off = sum(not rule.get("enabled", True) for rule in content.rules)
    words = count_of(len(content.rules), "rule")
    return f"{words}, {off} off" if off else words


def credential_words(credential_id: UUID | None, credentials: Mapping[UUID, ProviderCredential]) -> str:
    """The model by which a version judges."""
    if credential_id is None:
        return "none"
    credential = credentials.get(credential_id)
    if credential is None:
        return "another one"
    return f"{credential.name} · {credential.model}" if credential.model else credential.name
