"""The demo for tenants of their own: its voice agent, judged by its script, where the operator runs both.

`make run` does. The agent is a scripted shop that speaks, and breaks two of its rules in each call; the judge answers
from a script for just that call, so no model is asked and nothing is paid. Pages and policies call it `demo-script`.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.db import transaction

from mirror_saas.demo.seed import AGENT_NAME, JUDGE_NAME, POLICY_NAME, SCRIPTED_MODEL, demo_judge_get, demo_rules
from supervision.models import Agent, ProviderCredential
from supervision.services.agents import SupervisedAgent, supervised_agent_create
from supervision.services.credentials import credential_create, credential_update
from tenants.selectors.tenants import TenantRef

# The script wants no key; the client libraries insist on sending one.
_JUDGE_KEY = "scripted"


@dataclass(frozen=True, slots=True)
class DemoOffer:
    """Where the demo's agent and its judge listen."""

    agent_url: str
    judge_url: str


def demo_offer() -> DemoOffer | None:
    """The demo that the operator runs; None: there is none."""
    agent_url, judge_url = settings.MIRROR.demo_agent_url, settings.MIRROR.demo_judge_url
    if agent_url is None or judge_url is None:
        return None
    return DemoOffer(agent_url=agent_url, judge_url=judge_url)


def demo_agent_get(*, offer: DemoOffer) -> Agent | None:
    """The current tenant's agent that is the demo's; None when it has none, or took it out of use."""
    return (
        Agent.objects.select_related("policy")
        .filter(upstream_url=offer.agent_url, archived_at=None)
        .order_by("id")
        .first()
    )


def demo_agent_add(*, offer: DemoOffer, tenant: TenantRef, public_url: str) -> SupervisedAgent:
    """Give the current tenant the demo's agent, with a policy of its own that the script judges by, and a stream key.

    Raises ValidationError naming the field, such as `upstream_url` where the operator lets nobody reach it.
    """
    with transaction.atomic():
        return supervised_agent_create(
            tenant=tenant,
            name=AGENT_NAME,
            upstream_url=offer.agent_url,
            rules=demo_rules(),
            llm_credential=_judge(offer),
            public_url=public_url,
            policy_name=POLICY_NAME,
        )


def _judge(offer: DemoOffer) -> ProviderCredential:
    judge = demo_judge_get()
    if judge is not None and judge.model == SCRIPTED_MODEL:
        if judge.base_url == offer.judge_url:
            return judge
        return credential_update(credential=judge, base_url=offer.judge_url, model=SCRIPTED_MODEL, api_key=_JUDGE_KEY)
    return credential_create(
        name=JUDGE_NAME,
        kind=ProviderCredential.Kind.LLM,
        base_url=offer.judge_url,
        model=SCRIPTED_MODEL,
        api_key=_JUDGE_KEY,
    )
