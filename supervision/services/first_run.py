"""The first agent of a tenant, with everything that a supervised call needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction

from supervision.models import ProviderCredential
from supervision.services.agents import SupervisedAgent, supervised_agent_create
from supervision.services.credentials import credential_create
from supervision.services.defaults import (
    default_llm_credential_id,
    default_tts_credential_id,
    model_defaults_update,
)
from supervision.services.policies import llm_credential_get
from tenants.selectors.tenants import TenantRef

# Servers without accounts take any key, but the client libraries insist on sending one.
NO_API_KEY: Final = "none"


def first_agent_create(
    *,
    tenant: TenantRef,
    name: str,
    upstream_url: str,
    rules: Sequence[str],
    public_url: str,
    judge_url: str = "",
    judge_model: str = "",
    judge_key: str = "",
) -> SupervisedAgent:
    """An agent with a policy of its own, published, and a stream key: everything that a call needs, or nothing.

    It is judged by the tenant's default model; without one, by the model given here, which becomes the default. Raises
    ValidationError naming the field: also `judge_url`, `judge_model` or `judge_key`.
    """
    with transaction.atomic():
        return supervised_agent_create(
            tenant=tenant,
            name=name,
            upstream_url=upstream_url,
            rules=rules,
            llm_credential=_judge(default_llm_credential_id(), judge_url, judge_model, judge_key),
            public_url=public_url,
            policy_name=f"Rules of {name.strip()}"[:200],
        )


def _judge(default_id: UUID | None, url: str, model: str, key: str) -> ProviderCredential:
    default = llm_credential_get(default_id)
    if default is not None:
        return default
    try:
        judge = credential_create(
            name=f"Judge: {model}"[:200],
            kind=ProviderCredential.Kind.LLM,
            base_url=url,
            model=model,
            api_key=key or NO_API_KEY,
        )
    except ValidationError as error:
        names = {"base_url": "judge_url", "model": "judge_model", "api_key": "judge_key"}
        raise ValidationError(
            {names.get(field, field): texts for field, texts in error.message_dict.items()}
        ) from error
    model_defaults_update(llm_credential_id=judge.id, tts_credential_id=default_tts_credential_id())
    return judge
