"""Policies and their versions: drafting and publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import pydantic
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from supervision.engine.config import PolicyConfig
from supervision.engine.policy.rule_lines import rule_lines
from supervision.models import Policy, PolicyVersion, ProviderCredential
from tenants.services.audit import auditevent_record, changes, snapshot


def policy_create(*, name: str) -> Policy:
    """A new policy without a version. Raises ValidationError (field `name`) when the name is blank or taken."""
    policy = Policy(name=name.strip())
    policy.full_clean(exclude=["tenant"], validate_unique=False, validate_constraints=False)
    if Policy.objects.filter(name=policy.name).exists():
        raise ValidationError({"name": f"There is a policy called {policy.name!r} already; choose another name."})
    policy.save(force_insert=True)
    auditevent_record(action="policy.create", row=policy, after=snapshot(policy))
    return policy


def policy_version_create(
    *,
    policy_id: UUID,
    rules: Sequence[str | Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
    llm_credential: ProviderCredential | None = None,
) -> PolicyVersion:
    """A draft with the next number.

    `rules` are strings or {"text", "severity"}; `config` holds fields of the engine's PolicyConfig other than the
    rules. Raises Policy.DoesNotExist, or ValidationError naming the field that the engine would refuse.
    """
    stored_rules, stored_config = _checked(rules, config or {})
    with transaction.atomic():
        policy = Policy.objects.select_for_update(no_key=True).get(id=policy_id)
        latest = PolicyVersion.objects.filter(policy=policy).order_by("-number").first()
        version = PolicyVersion.objects.create(
            policy=policy,
            number=latest.number + 1 if latest else 1,
            rules=stored_rules,
            config=stored_config,
            llm_credential=llm_credential,
        )
        auditevent_record(
            action="policy_version.create", row=version, object_label=_label(policy, version), after=snapshot(version)
        )
        return version


def policy_version_publish(*, policy_id: UUID, number: int) -> PolicyVersion:
    """Make a draft what new calls get; the version that was live retires.

    Raises PolicyVersion.DoesNotExist, or ValidationError when the version is no draft.
    """
    with transaction.atomic():
        # Publishing twice at once: the second waits here and then sees what the first did.
        policy = Policy.objects.select_for_update(no_key=True).get(id=policy_id)
        version = PolicyVersion.objects.get(policy_id=policy_id, number=number)
        if version.status != PolicyVersion.Status.DRAFT:
            raise ValidationError(
                {"status": f"Version {number} is {version.status}; only a draft can be published. Make a new version."}
            )
        was = snapshot(version)
        live = PolicyVersion.objects.filter(policy_id=policy_id, status=PolicyVersion.Status.LIVE)
        retired = live.values_list("number", flat=True).first()
        live.update(status=PolicyVersion.Status.RETIRED)
        version.status = PolicyVersion.Status.LIVE
        version.published_at = timezone.now()
        version.save(update_fields=["status", "published_at"])
        before, after = changes(was, snapshot(version))
        auditevent_record(
            action="policy_version.publish",
            row=version,
            object_label=_label(policy, version),
            before={**before, "live_number": retired},
            after={**after, "live_number": number},
        )
        return version


def _label(policy: Policy, version: PolicyVersion) -> str:
    return f"{policy.name}, version {version.number}"


def rules_parse(text: str) -> list[str]:
    """The rules of a text file: one a line; blank lines and lines that begin with # are left out."""
    return [line for _, line in rule_lines(text)]


def _checked(
    rules: Sequence[str | Mapping[str, Any]], config: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rules and config as they are stored: what the engine accepts, in its own form, without its defaults."""
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
    _refuse_what_a_relayed_call_cannot_do(checked)
    stored = checked.model_dump(mode="json", include={"policies", *config})
    stored_rules = [
        {name: value for name, value in rule.items() if value is not None} for rule in stored.pop("policies")
    ]
    if any("\x00" in rule["text"] for rule in stored_rules):
        raise ValidationError({"rules": "A rule contains the character U+0000, which PostgreSQL cannot store."})
    return stored_rules, stored


def _refuse_what_a_relayed_call_cannot_do(config: PolicyConfig) -> None:
    """Raises ValidationError for what the engine does in an agent's own process, and a relayed call does not do yet: it
    would be stored, shown and never happen."""
    messages: dict[str, list[str]] = {}
    if config.delivery != "stream_first":
        messages["delivery"] = [
            f"Calls through Mirror's stream cannot hold turns yet ({config.delivery}); leave it at stream_first."
        ]
    if config.hold_budget_ms != PolicyConfig.model_fields["hold_budget_ms"].default:
        messages["hold_budget_ms"] = ["Calls through Mirror's stream cannot hold turns yet; leave it out."]
    if config.streaming_mode:
        messages["streaming_mode"] = [
            "Calls through Mirror's stream judge whole turns (mirror.turn) so far; leave it at false."
        ]
    if messages:
        raise ValidationError(messages)
