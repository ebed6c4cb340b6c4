"""Reading the current tenant's agents."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from uuid import UUID

from django.db.models import Count, OuterRef, Q, Subquery
from django.utils import timezone

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.errors import NotFound
from supervision.models import Agent, Call, ProviderCredential
from supervision.selectors.pages import newest_page
from supervision.stream.check import AgentAddress
from tenants.context import tenant_id_required
from tenants.sealing import sealed_field, unseal_text

MASK: Final = "***"


class AgentNotFound(NotFound):
    """The current tenant has no agent with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such agent.")


@dataclass(frozen=True, slots=True)
class AgentStanding:
    """Whether calls can reach an agent, and when one last did."""

    stream_keys: int
    """Those that work now."""
    last_call_at: datetime | None


def agent_list(
    *,
    policy_id: UUID | None = None,
    name: str = "",
    cursor: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page[Agent]:
    """Agents that are not archived, newest first, each with its policy; `name` is a part of theirs, in any case.

    Raises InvalidInput and BadCursor.
    """
    agents = Agent.objects.select_related("policy").filter(archived_at=None)
    if policy_id is not None:
        agents = agents.filter(policy_id=policy_id)
    if name:
        agents = agents.filter(name__icontains=name)
    return newest_page(agents, cursor=cursor, limit=limit)


def agent_get(*, agent_id: UUID) -> Agent:
    """One agent that is not archived, with its policy. Raises AgentNotFound."""
    agent = Agent.objects.select_related("policy").filter(id=agent_id, archived_at=None).first()
    if agent is None:
        raise AgentNotFound
    return agent


def agents_standing(*, agent_ids: Collection[UUID]) -> dict[UUID, AgentStanding]:
    """How each of these agents stands, by its id."""
    now = timezone.now()
    works = Q(stream_keys__revoked_at=None) & (Q(stream_keys__expires_at=None) | Q(stream_keys__expires_at__gt=now))
    newest = Call.objects.filter(agent_id=OuterRef("id")).order_by("-started_at").values("started_at")[:1]
    rows = (
        Agent.objects.filter(id__in=agent_ids)
        .annotate(working=Count("stream_keys", filter=works), newest=Subquery(newest))
        .values_list("id", "working", "newest")
    )
    return {agent_id: AgentStanding(stream_keys=keys, last_call_at=at) for agent_id, keys, at in rows}


def url_without_values(url: str) -> str:
    """`url` with the values of its query hidden: keys stand there, which who may not change the agent need not see."""
    parts = urlsplit(url)
    if not parts.query:
        return url
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    return urlunsplit(parts._replace(query=urlencode([(name, MASK) for name in names], safe="*")))


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
