"""Reading the current tenant's policies: the list, their versions, what judges are asked, and what differs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from django.db.models import QuerySet

from mirror_saas.preconditions import etag_of
from supervision.engine.config import PolicyConfig
from supervision.engine.policy.compiler import CompiledPolicy, compile_policy
from supervision.errors import NotFound
from supervision.models import Agent, Policy, PolicyVersion
from supervision.selectors.pages import DEFAULT_LIMIT, Page, cursor_decode, cursor_encode, limit_check, newest_page

# Rules that share so much of their words are one rule that was changed.
_SAME_RULE: Final = 0.6


class PolicyNotFound(NotFound):
    """The current tenant has no policy, or no version of it, with this id or number."""

    def __init__(self, what: str = "policy") -> None:
        super().__init__(f"There is no such {what}.")


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy with what its new calls get."""

    policy: Policy
    live_number: int | None
    shadow_number: int | None
    draft_numbers: tuple[int, ...]
    agent_count: int


class VersionContent(Protocol):
    """What a version says: a PolicyVersion has it, and so has one that somebody is about to store."""

    @property
    def rules(self) -> list[dict[str, Any]]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def llm_credential_id(self) -> UUID | None: ...
    @property
    def fallback_credential_id(self) -> UUID | None: ...


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule in two versions; None where the version does not have it. `same` rules are left out."""

    change: Literal["added", "removed", "changed"]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """What differs from one version to another. `config` has what counts, the engine's defaults included."""

    rules: list[RuleChange]
    config: dict[str, tuple[Any, Any]]
    llm_credential: tuple[UUID | None, UUID | None] | None
    fallback_credential: tuple[UUID | None, UUID | None] | None


def policy_etag(policy: Policy) -> str:
    """Changes with the name and with what new calls get."""
    return etag_of(policy.revision)


def policy_version_etag(version: PolicyVersion) -> str:
    """Changes with the version and with what goes live in its policy, which has to be loaded."""
    return etag_of(version.policy.revision, version.revision)


def policy_list(*, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[PolicyRow]:
    """Policies that are not archived, newest first. Raises InvalidInput and BadCursor."""
    page = newest_page(Policy.objects.filter(archived_at=None), cursor=cursor, limit=limit)
    return Page(items=_rows(page.items), next=page.next)


def policy_get(*, policy_id: UUID) -> PolicyRow:
    """One policy that is not archived. Raises PolicyNotFound."""
    return _rows([_policy(policy_id)])[0]


def policy_agents(*, policy_id: UUID) -> list[Agent]:
    """The agents whose new calls the policy judges, by name. Raises PolicyNotFound."""
    policy = _policy(policy_id)
    return list(Agent.objects.filter(policy=policy, archived_at=None).order_by("name", "id"))


def policy_version_list(
    *, policy_id: UUID, status: str | None = None, cursor: str | None = None, limit: int = DEFAULT_LIMIT
) -> Page[PolicyVersion]:
    """A policy's versions, newest first, each with the policy. Raises PolicyNotFound, InvalidInput and BadCursor."""
    limit_check(limit)
    policy = _policy(policy_id)
    versions = PolicyVersion.objects.filter(policy=policy).order_by("-number")
    if status is not None:
        versions = versions.filter(status=status)
    if cursor is not None:
        versions = versions.filter(number__lt=int(cursor_decode(cursor, int)[0]))
    rows = list(versions[: limit + 1])
    for version in rows:
        version.policy = policy
    return Page(items=rows[:limit], next=cursor_encode(rows[limit - 1].number) if len(rows) > limit else None)


def policy_version_get(*, policy_id: UUID, number: int) -> PolicyVersion:
    """One version, with its policy. Raises PolicyNotFound."""
    policy = _policy(policy_id)
    version = PolicyVersion.objects.filter(policy=policy, number=number).first()
    if version is None:
        raise PolicyNotFound("version")
    version.policy = policy
    return version


def policy_version_before(live: PolicyVersion) -> PolicyVersion | None:
    """What a rollback returns to: the version that was live before `live` and was not taken back itself; None without
    one."""
    earlier = PolicyVersion.objects.filter(
        policy_id=live.policy_id,
        status=PolicyVersion.Status.RETIRED,
        rolled_back_at=None,
        published_at__lt=live.published_at,
    )
    return earlier.order_by("-published_at", "-number").first()


def policy_version_config(version: VersionContent) -> PolicyConfig:
    """The version as the engine takes it, with the engine's defaults."""
    return PolicyConfig(**{**version.config, "policies": tuple(version.rules)})


def policy_version_compiled(version: VersionContent) -> CompiledPolicy:
    """The prompts that a judge gets under this version."""
    return compile_policy(policy_version_config(version))


def policy_version_diff(*, policy_id: UUID, number: int, other: int) -> VersionDiff:
    """What version `other` changes in version `number`. Raises PolicyNotFound."""
    before = policy_version_get(policy_id=policy_id, number=number)
    return policy_content_diff(before=before, after=policy_version_get(policy_id=policy_id, number=other))


def policy_content_diff(*, before: VersionContent, after: VersionContent) -> VersionDiff:
    """What `after`, a version or what is to become one, changes in `before`."""
    old, new = (
        {**policy_version_config(version).model_dump(mode="json", exclude={"policies"}), **_unsaid(version)}
        for version in (before, after)
    )
    return VersionDiff(
        rules=_rule_changes(before.rules, after.rules),
        config={name: (value, new[name]) for name, value in old.items() if value != new[name]},
        llm_credential=_change(before.llm_credential_id, after.llm_credential_id),
        fallback_credential=_change(before.fallback_credential_id, after.fallback_credential_id),
    )


def _unsaid(version: VersionContent) -> dict[str, None]:
    """Streamed turns are judged at clause boundaries where nothing is said of it, and not where it is off."""
    return {} if "streaming_mode" in version.config else {"streaming_mode": None}


def _change(before: UUID | None, after: UUID | None) -> tuple[UUID | None, UUID | None] | None:
    return None if before == after else (before, after)


def _policy(policy_id: UUID) -> Policy:
    policy = Policy.objects.filter(id=policy_id, archived_at=None).first()
    if policy is None:
        raise PolicyNotFound
    return policy


def _rows(policies: Sequence[Policy]) -> list[PolicyRow]:
    ids = [policy.id for policy in policies]
    numbers: dict[tuple[UUID, str], list[int]] = {}
    open_versions = PolicyVersion.objects.filter(policy_id__in=ids).exclude(status=PolicyVersion.Status.RETIRED)
    for policy_id, status, number in open_versions.order_by("-number").values_list("policy_id", "status", "number"):
        numbers.setdefault((policy_id, status), []).append(number)
    agents: dict[UUID, int] = {}
    users: QuerySet[Any, UUID] = Agent.objects.filter(policy_id__in=ids, archived_at=None).values_list(
        "policy_id", flat=True
    )
    for policy_id in users:
        agents[policy_id] = agents.get(policy_id, 0) + 1

    def first(policy: Policy, status: str) -> int | None:
        return next(iter(numbers.get((policy.id, status), ())), None)

    return [
        PolicyRow(
            policy=policy,
            live_number=first(policy, "live"),
            shadow_number=first(policy, "shadow"),
            draft_numbers=tuple(numbers.get((policy.id, "draft"), ())),
            agent_count=agents.get(policy.id, 0),
        )
        for policy in policies
    ]


def _rule_changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[RuleChange]:
    found: list[RuleChange] = []
    matcher = difflib.SequenceMatcher(None, [rule["text"] for rule in before], [rule["text"] for rule in after], False)
    for tag, from_, to, other_from, other_to in matcher.get_opcodes():
        olds, news = before[from_:to], after[other_from:other_to]
        if tag == "equal":
            pairs = zip(olds, news, strict=True)
            found += [RuleChange("changed", old, new) for old, new in pairs if old != new]
            continue
        while olds or news:
            old, new = (olds[0] if olds else None), (news[0] if news else None)
            if old is not None and new is not None and _alike(old["text"], new["text"]):
                found.append(RuleChange("changed", olds.pop(0), news.pop(0)))
            elif old is not None:
                found.append(RuleChange("removed", olds.pop(0), None))
            else:
                found.append(RuleChange("added", None, news.pop(0)))
    return found


def _alike(one: str, other: str) -> bool:
    # By words and without their order: rules can be long, and there can be hundreds.
    return difflib.SequenceMatcher(None, one.split(), other.split(), False).quick_ratio() >= _SAME_RULE
