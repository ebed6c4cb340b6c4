"""A draft from the system prompt that an agent already has: the engine derives the rules, the tenant's model reads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from django.core.exceptions import ValidationError

from mirror_saas.egress import egress_http_client
from mirror_saas.errors import InvalidInput, UpstreamFailed
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.policy.derive import DerivationFailed, DerivedPolicy, derive_policy
from supervision.models import Policy, PolicyVersion, ProviderCredential
from supervision.selectors.credentials import credential_secret
from supervision.services.defaults import default_llm_credential_id
from supervision.services.policies import llm_credential_get, policy_create, policy_version_create

# Ten questions, four at a time: what a request can wait for. The library takes longer prompts.
MAX_PROMPT_CHARS: Final = 60_000
QUESTION_S: Final = 45.0
DERIVE_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Derivation:
    """The draft, and where each of its rules comes from."""

    version: PolicyVersion
    derived: DerivedPolicy


@dataclass(frozen=True, slots=True)
class Derivable:
    """A question to a model that can be asked: what `derivation_prepare` found to be in order."""

    agent_prompt: str = field(repr=False)
    credential: ProviderCredential
    api_key: str = field(repr=False)
    policy_id: UUID | None
    name: str | None


def policy_derive(
    *, agent_prompt: str, llm_credential_id: UUID | None = None, policy_id: UUID | None = None, name: str | None = None
) -> Derivation:
    """A draft of policy `policy_id`, or of a new one called `name`, with what an agent's system prompt demands.

    The model behind `llm_credential_id` (None: the tenant's default) is asked, and the draft will be judged by it.
    Nothing is stored unless rules were found. Raises InvalidInput and ValidationError naming the field,
    Policy.DoesNotExist, and UpstreamFailed when the model gives no usable answer.
    """
    asked = derivation_prepare(
        agent_prompt=agent_prompt, llm_credential_id=llm_credential_id, policy_id=policy_id, name=name
    )
    return derivation_store(asked=asked, derived=derivation_ask(asked))


def derivation_prepare(
    *, agent_prompt: str, llm_credential_id: UUID | None, policy_id: UUID | None, name: str | None
) -> Derivable:
    """The first step of `policy_derive`, for whoever waits for the model outside of a transaction. Raises likewise."""
    if (policy_id is None) == (name is None):
        raise InvalidInput("policy_id", "Give policy_id for a draft of a policy that exists, or name for a new one.")
    if policy_id is not None:
        Policy.objects.get(id=policy_id, archived_at=None)
    elif name is not None and Policy.objects.filter(name=name.strip(), archived_at=None).exists():
        raise ValidationError({"name": f"There is a policy called {name.strip()!r} already; choose another name."})
    if len(agent_prompt) > MAX_PROMPT_CHARS:
        raise InvalidInput("agent_prompt", f"Give at most {MAX_PROMPT_CHARS} characters at a time.")
    if llm_credential_id is None:
        llm_credential_id = default_llm_credential_id()
        if llm_credential_id is None:
            raise ValidationError({"llm_credential_id": "Name the model that is to read; the tenant has no default."})
    credential = ProviderCredential.objects.filter(id=llm_credential_id, kind=ProviderCredential.Kind.LLM).first()
    if credential is None:
        raise ValidationError({"llm_credential_id": "There is no such credential of the kind `llm`."})
    return Derivable(agent_prompt, credential, credential_secret(credential), policy_id, name)


def derivation_ask(asked: Derivable) -> DerivedPolicy:
    """The second step: the model reads, for up to 90 seconds. Needs no database. Raises InvalidInput and
    UpstreamFailed."""
    credential = asked.credential
    try:
        derived = asyncio.run(_derived(asked.agent_prompt, credential.base_url, credential.model, asked.api_key))
    except ValueError as error:
        raise InvalidInput("agent_prompt", f"{error}.") from error
    except DerivationFailed as error:
        raise UpstreamFailed(f"{credential.name}: {error}.") from error
    except TimeoutError as error:
        raise UpstreamFailed(f"{credential.name} did not answer within {DERIVE_S:.0f} s.") from error
    if not derived.rules:
        raise InvalidInput("agent_prompt", "It demands nothing of the agent that a supervisor could check.")
    return derived


def derivation_store(*, asked: Derivable, derived: DerivedPolicy) -> Derivation:
    """The last step: the draft. Raises Policy.DoesNotExist, and ValidationError naming the field."""
    policy_id = asked.policy_id
    if policy_id is None:
        policy_id = policy_create(name=asked.name or "").id
    version = policy_version_create(
        policy_id=policy_id,
        rules=[rule.model_dump(exclude_none=True) for rule in derived.policies],
        llm_credential=llm_credential_get(asked.credential.id),
        note="Derived from an agent's system prompt.",
    )
    return Derivation(version=version, derived=derived)


async def _derived(agent_prompt: str, base_url: str, model: str, api_key: str) -> DerivedPolicy:
    pool = OpenAIPool(http_client=egress_http_client)
    try:
        client = pool.client(api_key=api_key, model=model, base_url=base_url)
        try:
            async with asyncio.timeout(DERIVE_S):
                return await derive_policy(agent_prompt, client, timeout_s=QUESTION_S)
        finally:
            await client.aclose()
    finally:
        await pool.aclose()
