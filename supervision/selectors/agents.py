"""Reading the current tenant's agents."""

from __future__ import annotations

import json
from uuid import UUID

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.errors import NotFound
from supervision.models import Agent, ProviderCredential
from supervision.selectors.pages import newest_page
from supervision.stream.check import AgentAddress
from tenants.context import tenant_id_required
from tenants.sealing import sealed_field, unseal_text


class AgentNotFound(NotFound):
    """The current tenant has no agent with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such agent.")


def agent_list(*, policy_id: UUID | None = None, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Agent]:
    """Agents that are not archived, newest first, each with its policy. Raises InvalidInput and BadCursor."""
    agents = Agent.objects.select_related("policy").filter(archived_at=None)
    if policy_id is not None:
        agents = agents.filter(policy_id=policy_id)
    return newest_page(agents, cursor=cursor, limit=limit)


def agent_get(*, agent_id: UUID) -> Agent:
    """One agent that is not archived, with its policy. Raises AgentNotFound."""
    agent = Agent.objects.select_related("policy").filter(id=agent_id, archived_at=None).first()
    if agent is None:
        raise AgentNotFound
    return agent


def agent_address(*, agent_id: UUID) -> AgentAddress:
    """How Mirror dials an agent, with the secrets that it takes. Raises AgentNotFound and SealBroken."""
    agent = agent_get(agent_id=agent_id)
    tenant_id = tenant_id_required("An agent's secrets")

    def opened(sealed: bytes, table: str, column: str, row_id: UUID) -> str:
        return unseal_text(bytes(sealed), tenant_id=tenant_id, field=sealed_field(table, column, row_id))

    headers = {}
    if agent.headers_sealed is not None:
        headers = json.loads(opened(agent.headers_sealed, "supervision_agent", "headers_sealed", agent.id))
    accounts = ProviderCredential.objects.filter(kind=ProviderCredential.Kind.PLIVO).order_by("-updated_at", "id")
    return AgentAddress(
        upstream_url=agent.upstream_url,
        signing_secret=opened(agent.signing_secret_sealed, "supervision_agent", "signing_secret_sealed", agent.id),
        headers=headers,
        plivo_tokens=[
            opened(account.api_key_sealed, "supervision_providercredential", "api_key_sealed", account.id)
            for account in accounts
        ],
        audio_format=agent.audio_format,
    )
