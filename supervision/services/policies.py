"""Policies and their versions: drafting, publishing, taking back.

Whatever changes a policy locks its row first, so that of two who publish, edit or roll back at once the second sees
what the first did. `if_match` is what the asker saw of the object (see `mirror_saas.preconditions`); it is checked
under that lock. A version's ETag changes with the version and with whatever goes live in its policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

import pydantic
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from mirror_saas.errors import Conflict
from mirror_saas.preconditions import IfMatch
from supervision.engine.config import PolicyConfig
from supervision.engine.policy.rule_lines import rule_lines
from supervision.models import Agent, Policy, PolicyVersion, ProviderCredential, Track
from supervision.selectors.policies import policy_etag, policy_version_before, policy_version_etag
from supervision.services.credentials import credential_of_kind
from tenants.services.audit import Snapshot, auditevent_record, changes, snapshot

# What an agent may have otherwise than its policy says. Each of these is right or wrong by itself, so a version that is
# published later cannot make an agent's settings unusable.
OVERRIDABLE: Final = frozenset(
    {
        "approval_hold_text",
        "approval_on_silence",
        "approval_timeout_ms",
        "approval_tools",
        "buffer_text",
        "cooldown_s",
        "delivery",
        "hold_budget_ms",
        "intervention_threshold",
        "irreversible_tools",
        "judge_max_tokens",
        "max_interventions_per_call",
        "pregate_always",
        "semantic_review_timeout_s",
        "streaming_mode",
        "tiered_scoring_enabled",
        "tool_gate_enabled",
        "tool_gate_on_failure",
        "tool_gate_timeout_ms",
    }
)
MAX_NOTE_CHARS: Final = 2_000

Rules = Sequence[str | Mapping[str, Any]]


class VersionFields(TypedDict, total=False):
    """What of a draft is to change."""

    rules: Rules
    config: Mapping[str, Any]
    llm_credential_id: UUID | None
    fallback_credential_id: UUID | None
    note: str


def policy_create(*, name: str) -> Policy:
    """A new policy without a version. Raises ValidationError (field `name`) when the name is blank or taken."""
    policy = Policy()
    _rename(policy, name)
    auditevent_record(action="policy.create", row=policy, after=snapshot(policy))
    return policy


def policy_update(*, policy_id: UUID, name: str, if_match: IfMatch | None = None) -> Policy:
    """Give a policy another name.

    Raises Policy.DoesNotExist, PreconditionFailed, and ValidationError (field `name`).
    """
    with transaction.atomic():
        policy = _locked(policy_id, if_match)
        was = snapshot(policy)
        if name.strip() != policy.name:
            policy.revision += 1
            policy.updated_at = timezone.now()
            _rename(policy, name)
            before, after = changes(was, snapshot(policy))
            auditevent_record(action="policy.update", row=policy, before=before, after=after)
        return policy


def policy_archive(*, policy_id: UUID, if_match: IfMatch | None = None) -> None:
    """Take a policy out of use; its versions stay for the calls that were judged by them. Its name is free again.

    Raises Policy.DoesNotExist, PreconditionFailed, and Conflict while an agent uses it.
    """
    with transaction.atomic():
        policy = _locked(policy_id, if_match)
        agents = Agent.objects.filter(policy=policy, archived_at=None).order_by("name")
        names = list(agents.values_list("name", flat=True))
        if names:
            raise Conflict(
                f"{len(names)} agents use this policy ({', '.join(names[:5])}{', …' if len(names) > 5 else ''});"
                " give them another one first."
            )
        was = snapshot(policy)
        policy.archived_at = policy.updated_at = timezone.now()
        policy.revision += 1
        policy.save(update_fields=["archived_at", "updated_at", "revision"])
        before, after = changes(was, snapshot(policy))
        auditevent_record(action="policy.archive", row=policy, before=before, after=after)


def policy_version_create(
    *,
    policy_id: UUID,
    rules: Rules,
    config: Mapping[str, Any] | None = None,
    llm_credential: ProviderCredential | None = None,
    fallback_credential: ProviderCredential | None = None,
    note: str = "",
) -> PolicyVersion:
    """A draft with the next number.

    `rules` are strings or {"text", "severity"}; `config` holds fields of the engine's PolicyConfig other than the
    rules. `fallback_credential` is asked when `llm_credential` does not answer. Raises Policy.DoesNotExist, or
    ValidationError naming the field that cannot be used.
    """
    stored_rules, stored_config = policy_content_checked(rules=rules, config=config or {})
    _check_fallback(llm_credential, fallback_credential)
    with transaction.atomic():
        policy = _locked(policy_id)
        latest = PolicyVersion.objects.filter(policy=policy).order_by("-number").first()
        version = PolicyVersion.objects.create(
            policy=policy,
            number=latest.number + 1 if latest else 1,
            rules=stored_rules,
            config=stored_config,
            llm_credential=llm_credential,
            fallback_credential=fallback_credential,
            note=_note_checked(note),
        )
        auditevent_record(
            action="policy_version.create", row=version, object_label=_label(policy, version), after=snapshot(version)
        )
        return version


def policy_version_copy(*, policy_id: UUID, number: int, **fields: Unpack[VersionFields]) -> PolicyVersion:
    """A draft with what version `number` has, except for `fields`. Raises as policy_version_create does, and
    PolicyVersion.DoesNotExist."""
    with transaction.atomic():
        _locked(policy_id)
        source = PolicyVersion.objects.get(policy_id=policy_id, number=number)
        credential_id = fields.get("llm_credential_id", source.llm_credential_id)
        fallback_id = fields.get("fallback_credential_id", source.fallback_credential_id)
        return policy_version_create(
            policy_id=policy_id,
            rules=fields.get("rules", source.rules),
            config=fields.get("config", source.config),
            llm_credential=llm_credential_get(credential_id),
            fallback_credential=llm_credential_get(fallback_id, field="fallback_credential_id"),
            note=fields.get("note", f"From version {number}."),
        )


def policy_version_update(
    *, policy_id: UUID, number: int, if_match: IfMatch | None = None, **fields: Unpack[VersionFields]
) -> PolicyVersion:
    """Change a draft; fields that are not named stay as they are.

    Raises Policy.DoesNotExist, PolicyVersion.DoesNotExist, PreconditionFailed, Conflict when the version is no draft
    any more, and ValidationError naming the field.
    """
    with transaction.atomic():
        policy = _locked(policy_id)
        version = _version(policy, number, if_match)
        if version.status != PolicyVersion.Status.DRAFT:
            raise Conflict(
                f"Version {number} is {version.status}, and only drafts can be changed. Make a new version from it."
            )
        was = snapshot(version)
        if "rules" in fields or "config" in fields:
            version.rules, version.config = policy_content_checked(
                rules=fields.get("rules", version.rules), config=fields.get("config", version.config)
            )
        if "llm_credential_id" in fields:
            version.llm_credential = llm_credential_get(fields["llm_credential_id"])
        if "fallback_credential_id" in fields:
            version.fallback_credential = llm_credential_get(
                fields["fallback_credential_id"], field="fallback_credential_id"
            )
        _check_fallback(version.llm_credential, version.fallback_credential)
        if "note" in fields:
            version.note = _note_checked(fields["note"])
        before, after = changes(was, snapshot(version))
        if after:
            _version_save(version, "rules", "config", "llm_credential", "fallback_credential", "note")
            auditevent_record(
                action="policy_version.update",
                row=version,
                object_label=_label(policy, version),
                before=before,
                after=after,
            )
        return version


def policy_version_publish(*, policy_id: UUID, number: int, if_match: IfMatch | None = None) -> PolicyVersion:
    """Make a draft or shadow version what new calls get; the version that was live retires.

    Calls that run keep the version that they began with. Raises Policy.DoesNotExist, PolicyVersion.DoesNotExist,
    PreconditionFailed, and Conflict when the version is live or retired.
    """
    with transaction.atomic():
        policy = _locked(policy_id)
        version = _version(policy, number, if_match)
        if version.status not in (PolicyVersion.Status.DRAFT, PolicyVersion.Status.SHADOW):
            raise Conflict(
                f"Version {number} is {version.status}; only a draft or a shadow version can be published. Make a new"
                " version, or roll back."
            )
        _go_live(policy, version, "policy_version.publish")
        return version


def policy_version_shadow(*, policy_id: UUID, number: int, if_match: IfMatch | None = None) -> PolicyVersion:
    """Let a draft judge without acting: for new calls of agents that follow the policy's shadow version, and of all its
    agents as long as no version is live. The version that was shadow before retires.

    Raises Policy.DoesNotExist, PolicyVersion.DoesNotExist, PreconditionFailed, and Conflict when it is no draft.
    """
    with transaction.atomic():
        policy = _locked(policy_id)
        version = _version(policy, number, if_match)
        if version.status != PolicyVersion.Status.DRAFT:
            raise Conflict(f"Version {number} is {version.status}; only a draft can become the shadow version.")
        was = snapshot(version)
        for former in PolicyVersion.objects.filter(policy=policy, status=PolicyVersion.Status.SHADOW):
            former.status = PolicyVersion.Status.RETIRED
            _version_save(former, "status")
        version.status = PolicyVersion.Status.SHADOW
        _version_save(version, "status")
        _policy_touched(policy)
        before, after = changes(was, snapshot(version))
        auditevent_record(
            action="policy_version.shadow",
            row=version,
            object_label=_label(policy, version),
            before=before,
            after=after,
        )
        version.policy = policy
        return version


def policy_rollback(*, policy_id: UUID, number: int | None = None, if_match: IfMatch | None = None) -> PolicyVersion:
    """Take the live version back: version `number`, or else the one that was live before it, is live again.

    A version that was taken back is not returned to unless it is named. Raises Policy.DoesNotExist,
    PolicyVersion.DoesNotExist, PreconditionFailed, and Conflict when nothing is live or there is nothing to return to.
    """
    with transaction.atomic():
        policy = _locked(policy_id, if_match)
        versions = PolicyVersion.objects.filter(policy=policy)
        live = versions.filter(status=PolicyVersion.Status.LIVE).first()
        if live is None:
            raise Conflict("No version of this policy is live, so there is nothing to take back.")
        if number is None:
            target = policy_version_before(live)
            if target is None:
                raise Conflict(f"No version was live before version {live.number}; name the version to return to.")
        else:
            target = versions.get(number=number)
            if target.status != PolicyVersion.Status.RETIRED or target.published_at is None:
                raise Conflict(f"Version {number} is {target.status} or was never live; only such can be returned to.")
        _go_live(policy, target, "policy.rollback", taken_back=live)
        return target


def agent_policy_set(
    *,
    agent_id: UUID,
    policy_id: UUID | None,
    track: Track = Track.LIVE,
    overrides: Mapping[str, Any] | None = None,
) -> Agent:
    """Judge an agent's new calls by a policy (None: by none); `overrides` are settings that are otherwise for it.

    Raises Agent.DoesNotExist, and ValidationError naming `policy_id` or a field of `overrides`.
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(id=agent_id, archived_at=None)
        was = snapshot(agent)
        agent.policy = policy_for_agent_get(policy_id)
        agent.policy_track = track.value
        agent.policy_overrides = overrides_checked(overrides or {})
        before, after = changes(was, snapshot(agent))
        if after:
            agent.updated_at = timezone.now()
            agent.save(update_fields=["policy", "policy_track", "policy_overrides", "updated_at"])
            auditevent_record(action="agent.update", row=agent, before=before, after=after)
        return agent


def agent_policy_remove(*, agent_id: UUID, policy_id: UUID) -> None:
    """Judge an agent's new calls by no policy. Raises Agent.DoesNotExist when it is not `policy_id` that judges it."""
    with transaction.atomic():
        Agent.objects.select_for_update(no_key=True).get(id=agent_id, policy_id=policy_id, archived_at=None)
        agent_policy_set(agent_id=agent_id, policy_id=None)


def policy_for_agent_get(policy_id: UUID | None) -> Policy | None:
    """The policy, held against being archived until the transaction ends. Raises ValidationError (`policy_id`)."""
    if policy_id is None:
        return None
    policy = Policy.objects.select_for_update(no_key=True).filter(id=policy_id, archived_at=None).first()
    if policy is None:
        raise ValidationError({"policy_id": "There is no such policy."})
    return policy


def llm_credential_get(credential_id: UUID | None, *, field: str = "llm_credential_id") -> ProviderCredential | None:
    """The credential, held against being deleted until the transaction ends. Raises ValidationError (`field`)."""
    return credential_of_kind(credential_id, ProviderCredential.Kind.LLM, field=field)


def _check_fallback(first: ProviderCredential | None, second: ProviderCredential | None) -> None:
    """Raises ValidationError (`fallback_credential_id`) when the second could never take the first one's place."""
    if second is None:
        return
    if first is None:
        message = "Only where llm_credential_id names a model can another one take its place."
    elif first.id == second.id:
        message = "This is the credential that it is to take the place of; name another one, or none."
    else:
        return
    raise ValidationError({"fallback_credential_id": message})


def overrides_checked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What an agent overrides, as it is stored. Raises ValidationError naming the field."""
    unknown = sorted(set(overrides) - OVERRIDABLE)
    if unknown:
        message = f"An agent can override {', '.join(sorted(OVERRIDABLE))}, nothing else."
        raise ValidationError(dict.fromkeys((f"policy_overrides.{name}" for name in unknown), message))
    try:
        _, stored = policy_content_checked(rules=["-"], config=overrides)
    except ValidationError as error:
        messages = {f"policy_overrides.{name}": texts for name, texts in error.message_dict.items()}
        raise ValidationError(messages) from error
    return stored


def _rename(policy: Policy, name: str) -> None:
    policy.name = name.strip()
    policy.full_clean(exclude=["tenant"], validate_unique=False, validate_constraints=False)
    try:
        # Somebody else may take the name at the same moment; then only the index knows.
        with transaction.atomic():
            policy.save()
    except IntegrityError as error:
        raise ValidationError(
            {"name": f"There is a policy called {policy.name!r} already; choose another name."}
        ) from error


def _locked(policy_id: UUID, if_match: IfMatch | None = None) -> Policy:
    policy = Policy.objects.select_for_update(no_key=True).get(id=policy_id, archived_at=None)
    if if_match is not None:
        if_match.check(policy_etag(policy))
    return policy


def _version(policy: Policy, number: int, if_match: IfMatch | None) -> PolicyVersion:
    version = PolicyVersion.objects.get(policy=policy, number=number)
    version.policy = policy
    if if_match is not None:
        if_match.check(policy_version_etag(version))
    return version


def _version_save(version: PolicyVersion, *fields: str) -> None:
    version.revision += 1
    version.updated_at = timezone.now()
    version.save(update_fields=[*fields, "revision", "updated_at"])


def _policy_touched(policy: Policy) -> None:
    policy.revision += 1
    policy.updated_at = timezone.now()
    policy.save(update_fields=["revision", "updated_at"])


def _go_live(policy: Policy, version: PolicyVersion, action: str, *, taken_back: PolicyVersion | None = None) -> None:
    was: Snapshot = snapshot(version)
    now = timezone.now()
    retired = None
    for live in PolicyVersion.objects.filter(policy=policy, status=PolicyVersion.Status.LIVE):
        retired = live.number
        live.status = PolicyVersion.Status.RETIRED
        live.rolled_back_at = now if taken_back is not None else None
        _version_save(live, "status", "rolled_back_at")
    version.status = PolicyVersion.Status.LIVE
    version.rolled_back_at = None
    if taken_back is None:
        # A version that is returned to keeps its place in the order in which versions went live.
        version.published_at = now
    _version_save(version, "status", "published_at", "rolled_back_at")
    _policy_touched(policy)
    version.policy = policy
    before, after = changes(was, snapshot(version))
    auditevent_record(
        action=action,
        row=version if taken_back is None else policy,
        object_label=_label(policy, version),
        before={**before, "live_number": retired},
        after={**after, "live_number": version.number},
    )


def _note_checked(note: str) -> str:
    note = note.strip()
    if len(note) > MAX_NOTE_CHARS:
        raise ValidationError({"note": f"Give at most {MAX_NOTE_CHARS} characters."})
    return note


def _label(policy: Policy, version: PolicyVersion) -> str:
    return f"{policy.name}, version {version.number}"


def rules_parse(text: str) -> list[str]:
    """The rules of a text file: one a line; blank lines and lines that begin with # are left out."""
    return [line for _, line in rule_lines(text)]


def policy_content_checked(*, rules: Rules, config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rules and config as they are stored: what the engine accepts, in its own form, without its defaults.

    Raises ValidationError naming the field: `rules`, or a field of the engine's PolicyConfig.
    """
    if "policies" in config:
        raise ValidationError({"config": "The rules have a field of their own; leave `policies` out of the config."})
    if not rules and "judging_prompt" not in config:
        raise ValidationError({"rules": "Give at least one rule, or a judging_prompt in the config."})
    try:
        checked = PolicyConfig(**{**config, "policies": tuple(rules)})
    except pydantic.ValidationError as error:
        messages: dict[str, list[str]] = {}
        for problem in error.errors():
            field, *inside = problem["loc"] or ("config",)
            if field == "policies":
                place = f"rule {inside[0] + 1}: " if inside and isinstance(inside[0], int) else ""
                messages.setdefault("rules", []).append(place + problem["msg"])
            else:
                messages.setdefault(str(field), []).append(problem["msg"])
        raise ValidationError(messages) from error
    stored = checked.model_dump(mode="json", include={"policies", *config})
    stored_rules = [_stored(rule) for rule in stored.pop("policies")]
    if any("\x00" in rule["text"] + rule.get("statement", "") for rule in stored_rules):
        raise ValidationError({"rules": "A rule contains the character U+0000, which PostgreSQL cannot store."})
    return stored_rules, stored


def _stored(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule without what goes without saying."""
    unsaid: dict[str, Any] = {"statement": None, "tools": [], "enabled": True}
    return {name: value for name, value in rule.items() if name not in unsaid or value != unsaid[name]}
