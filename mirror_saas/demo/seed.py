"""The demo's tenant: a person, an API key, an agent with a live policy, and the judge."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

from django.db import transaction

from supervision.models import Agent, Policy, PolicyVersion, ProviderCredential, StreamKey
from supervision.services.agents import (
    agent_create,
    agent_stream_key_create,
    agent_upstream_update,
    answer_url,
    stream_key_hash,
    stream_url,
)
from supervision.services.credentials import credential_create, credential_update
from supervision.services.policies import (
    policy_create,
    policy_version_create,
    policy_version_publish,
    rules_parse,
)
from tenants.context import tenant_context
from tenants.models import User
from tenants.roles import ALL_SCOPES, Role
from tenants.selectors.tenants import TenantNotFound, TenantRef, tenant_by_slug
from tenants.services.api_keys import api_key_authenticate, api_key_create
from tenants.services.memberships import membership_create
from tenants.services.tenants import tenant_create, user_create

TENANT_SLUG = "demo"
EMAIL = "demo@example.com"
AGENT_NAME = "Demo agent"
POLICY_NAME = "Demo policy"
# `create_agent` without LLM flags judges with the credential of this name.
JUDGE_NAME = "Demo judge"
# The model's name when no model judges but a script answers; the console says so wherever it meets this name.
SCRIPTED_MODEL = "demo-script"
OPENAI_BASE_URL = "https://api.openai.com/v1"
# How a small model on a CPU judges: by the probability of one token, and with time to read.
LOCAL_POLICY_CONFIG: dict[str, Any] = {
    "scoring": "logprob",
    "semantic_review_timeout_s": 30.0,
    # The caller of the demo waits half a minute for an answer.
    "tool_gate_timeout_ms": 25_000,
}
RULES_FILE = Path(__file__).resolve().parent / "policies.txt"


class DemoSeed(TypedDict):
    """What a person and a script need to use the demo; every value works."""

    console_url: str
    email: str
    password: str
    tenant: str
    api_key: str
    stream_url: str
    answer_url: str


def demo_seed(
    *,
    agent_url: str,
    judge_base_url: str | None,
    judge_model: str,
    judge_api_key: str | None,
    model_judges: bool,
    public_url: str,
    policy_config: Mapping[str, Any] | None = None,
    previous: Mapping[str, str] | None = None,
) -> DemoSeed:
    """Make the demo's tenant, or bring it up to date: agent, judge and rules are as given now.

    `judge_base_url` None is OpenAI's own. With `model_judges` false a script answers, and `judge_model` is stored as
    SCRIPTED_MODEL. `policy_config` has fields of the engine's PolicyConfig that the judge needs; a live version with
    the demo's own rules and other fields gives way to one with these. `previous` is what an earlier run returned: its
    password and keys are returned again if they still work, and made anew if not, since only their hashes are stored.
    """
    previous = previous or {}
    with transaction.atomic():
        tenant = _tenant()
        with tenant_context(tenant.id):
            password = _password(previous.get("password", ""))
            judge = _judge(
                judge_base_url or OPENAI_BASE_URL, judge_model if model_judges else SCRIPTED_MODEL, judge_api_key
            )
            policy = _policy(judge, dict(policy_config or {}))
            agent = _agent(agent_url, policy)
            key = _stream_key(agent, previous.get("stream_url", ""))
            api_key = _api_key(tenant, previous.get("api_key", ""))
    return DemoSeed(
        console_url=f"{public_url.rstrip('/')}/",
        email=EMAIL,
        password=password,
        tenant=tenant.slug,
        api_key=api_key,
        stream_url=stream_url(public_url=public_url, tenant_slug=tenant.slug, key=key),
        answer_url=answer_url(public_url=public_url, tenant_slug=tenant.slug, key=key),
    )


def demo_rules() -> list[str]:
    """The rules of the demo's policy."""
    return rules_parse(RULES_FILE.read_text(encoding="utf-8"))


def demo_judge_get() -> ProviderCredential | None:
    """The current tenant's demo judge; None where the demo was never seeded."""
    return ProviderCredential.objects.filter(name=JUDGE_NAME, kind=ProviderCredential.Kind.LLM).order_by("id").first()


def _tenant() -> TenantRef:
    try:
        return tenant_by_slug(slug=TENANT_SLUG)
    except TenantNotFound:
        return tenant_create(slug=TENANT_SLUG, name="Demo")


def _password(previous: str) -> str:
    user = User.objects.filter(email=EMAIL).first()
    password = (
        previous if user is not None and previous and user.check_password(previous) else secrets.token_urlsafe(12)
    )
    if user is None:
        user = user_create(email=EMAIL, password=password, name="Demo")
    elif password != previous:
        user.set_password(password)
        user.save(update_fields=["password"])
    membership_create(user=user, role=Role.OWNER)
    return password


def _api_key(tenant: TenantRef, previous: str) -> str:
    principal = api_key_authenticate(key=previous)
    if principal is not None and principal.tenant.id == tenant.id and principal.scopes == ALL_SCOPES:
        return previous
    return api_key_create(name="Demo", scopes=ALL_SCOPES).key


def _judge(base_url: str, model: str, api_key: str | None) -> ProviderCredential:
    judge = demo_judge_get()
    if judge is None:
        return credential_create(
            name=JUDGE_NAME,
            kind=ProviderCredential.Kind.LLM,
            base_url=base_url,
            model=model,
            api_key=api_key or "",
        )
    return credential_update(credential=judge, base_url=base_url, model=model, api_key=api_key or "")


def _policy(judge: ProviderCredential, config: dict[str, Any]) -> Policy:
    policy = Policy.objects.filter(name=POLICY_NAME).first() or policy_create(name=POLICY_NAME)
    live = PolicyVersion.objects.filter(policy=policy, status=PolicyVersion.Status.LIVE).first()
    # Whoever plays with the demo may publish rules of their own; those stay.
    ours = live is not None and [rule["text"] for rule in live.rules] == demo_rules()
    if live is None or (ours and _judging(live.config) != _judging(config)):
        draft = policy_version_create(policy_id=policy.id, rules=demo_rules(), config=config, llm_credential=judge)
        policy_version_publish(policy_id=policy.id, number=draft.number)
    return policy


def _judging(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a version's fields those that depend on who judges."""
    return {name: config[name] for name in LOCAL_POLICY_CONFIG if name in config}


def _agent(agent_url: str, policy: Policy) -> Agent:
    agent = Agent.objects.filter(name=AGENT_NAME, archived_at=None).order_by("id").first()
    if agent is None:
        return agent_create(name=AGENT_NAME, upstream_url=agent_url, policy=policy).agent
    return agent_upstream_update(agent=agent, upstream_url=agent_url)


def _stream_key(agent: Agent, previous_url: str) -> str:
    key = urlsplit(previous_url).path.rpartition("/")[2]
    known = StreamKey.objects.filter(agent=agent, key_hash=stream_key_hash(key), revoked_at=None, expires_at=None)
    return key if known.exists() else agent_stream_key_create(agent_id=agent.id).key
