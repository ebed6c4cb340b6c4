"""What one version of a policy changes in another, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from supervision.models import ProviderCredential
from supervision.selectors.policies import RuleChange, VersionDiff
from webui.policy_settings import SETTINGS
from webui.presenters.pieces import Badge
from webui.presenters.policies import SEVERITY, credential_words

CHANGES: Mapping[str, Badge] = {
    "added": Badge("Added", "plus", "good"),
    "removed": Badge("Removed", "cross", "bad"),
    "changed": Badge("Changed", "note", "warn"),
}


@dataclass(frozen=True, slots=True)
class Words:
    """A stretch of a rule's text: in both versions, or in one of them only."""

    kind: Literal["same", "added", "removed"]
    text: str


@dataclass(frozen=True, slots=True)
class RuleDiff:
    """A rule that differs, and how."""

    badge: Badge
    words: tuple[Words, ...]
    facts: tuple[tuple[str, str, str], ...]
    """What else differs: its name, before, after."""
    marks: str
    """What else a rule has that is only in one of the versions."""


@dataclass(frozen=True, slots=True)
class ValueDiff:
    label: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class DiffView:
    rules: tuple[RuleDiff, ...]
    values: tuple[ValueDiff, ...]

    @property
    def nothing(self) -> bool:
        return not self.rules and not self.values


def diff_view(diff: VersionDiff, *, credentials: Mapping[UUID, ProviderCredential]) -> DiffView:
    values = [
        ValueDiff(label, credential_words(change[0], credentials), credential_words(change[1], credentials))
        for label, change in (("Judged by", diff.llm_credential), ("When it does not answer", diff.fallback_credential))
        if change is not None
    ]
    values += [_value(name, *diff.config[name]) for name in SETTINGS if name in diff.config]
    return DiffView(tuple(_rule(change) for change in diff.rules), tuple(values))


def _value(name: str, before: Any, after: Any) -> ValueDiff:
    setting = SETTINGS[name]
    return ValueDiff(setting.label, setting.words(before), setting.words(after))


def _rule(change: RuleChange) -> RuleDiff:
    before, after = change.before or {}, change.after or {}
    facts = []
    for label, old, new in (
        ("Severity", _severity(before), _severity(after)),
        ("Tools", _tools(before), _tools(after)),
        ("State", _state(before), _state(after)),
        ("Statement", before.get("statement") or "none", after.get("statement") or "none"),
    ):
        if change.change == "changed" and old != new:
            facts.append((label, old, new))
    return RuleDiff(
        badge=CHANGES[change.change],
        words=words_diff(before.get("text", ""), after.get("text", "")),
        facts=tuple(facts),
        marks="" if change.change == "changed" else _marks(after or before),
    )


def _marks(rule: Mapping[str, Any]) -> str:
    marks = [f"{_severity(rule)} severity"]
    if rule.get("tools"):
        marks.append(f"about {_tools(rule)}")
    if not rule.get("enabled", True):
        marks.append("off")
    return ", ".join(marks)


def words_diff(before: str, after: str) -> tuple[Words, ...]:
    """Both texts as one, with what is only in either marked."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    found: list[Words] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if tag == "equal":
            found.append(Words("same", "".join(old[a:b])))
            continue
        if a < b:
            found.append(Words("removed", "".join(old[a:b])))
        if c < d:
            found.append(Words("added", "".join(new[c:d])))
    return tuple(found)


def _severity(rule: Mapping[str, Any]) -> str:
    return SEVERITY[rule.get("severity", "medium")].text


def _tools(rule: Mapping[str, Any]) -> str:
    return ", ".join(rule.get("tools", ())) or "any"


def _state(rule: Mapping[str, Any]) -> str:
    return "on" if rule.get("enabled", True) else "off"
