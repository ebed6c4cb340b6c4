"""Voice agents: making them, and the keys that Plivo dials them with."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import Agent, Mode, Policy, PolicyVersion, ProviderCredential, StreamKey
from supervision.services.policies import policy_create, policy_version_create, policy_version_publish
from tenants.context import tenant_id_required
from tenants.sealing import seal, sealed_field
from tenants.selectors.tenants import TenantRef

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class NewAgent:
    """An agent just made, and the secret that `X-Mirror-Signature` is made with."""

    agent: Agent
    signing_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewStreamKey:
    """A stream key just made. `key` is its only copy."""

    stream_key: StreamKey
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SupervisedAgent:
    """An agent that can take calls: with a live policy and the URLs for Plivo, which hold its stream key."""

    agent: Agent
    version: PolicyVersion
    signing_secret: str = field(repr=False)
    stream_url: str = field(repr=False)
    answer_url: str = field(repr=False)


def agent_create(
    *,
    name: str,
    upstream_url: str,
    policy: Policy | None = None,
    mode: Mode = Mode.LIVE,
    language: str = "en",
    voice: str = "",
    signing_secret: str | None = None,
) -> NewAgent:
    """A new agent of the current tenant that listens at `upstream_url` (ws:// or wss://).

    Raises ValidationError naming `name`, `upstream_url` or `language`.
    """
    secret = signing_secret or secrets.token_urlsafe(SECRET_BYTES)
    agent = Agent(
        id=uuid7(),
        name=name.strip(),
        upstream_url=upstream_url_clean(upstream_url),
        policy=policy,
        mode=mode.value,
        language=language,
        voice=voice,
    )
    agent.signing_secret_sealed = seal(
        secret,
        tenant_id=tenant_id_required("Sealing a signing secret"),
        field=sealed_field("supervision_agent", "signing_secret_sealed", agent.id),
    )
    agent.full_clean(exclude=["tenant", "policy"])
    agent.save(force_insert=True)
    return NewAgent(agent=agent, signing_secret=secret)


def agent_upstream_update(*, agent: Agent, upstream_url: str) -> Agent:
    """Let an agent be dialled elsewhere, from the next call on. Raises ValidationError (field `upstream_url`)."""
    agent.upstream_url = upstream_url_clean(upstream_url)
    agent.updated_at = timezone.now()
    agent.save(update_fields=["upstream_url", "updated_at"])
    return agent


def agent_stream_key_create(
    *, agent_id: UUID, expires_at: datetime | None = None, key: str | None = None
) -> NewStreamKey:
    """A new stream key of an agent; keys made before go on working until they are revoked.

    `key` puts a key back that is known from elsewhere. Raises Agent.DoesNotExist.
    """
    agent = Agent.objects.get(id=agent_id, archived_at=None)
    key = key or f"sk_{secrets.token_urlsafe(SECRET_BYTES)}"
    stream_key = StreamKey.objects.create(agent=agent, key_hash=stream_key_hash(key), expires_at=expires_at)
    return NewStreamKey(stream_key=stream_key, key=key)


def agent_stream_key_revoke(*, stream_key_id: UUID) -> None:
    """Switch a stream key off for good. Raises StreamKey.DoesNotExist."""
    stream_key = StreamKey.objects.get(id=stream_key_id)
    if stream_key.revoked_at is None:
        stream_key.revoked_at = timezone.now()
        stream_key.save(update_fields=["revoked_at"])


def supervised_agent_create(
    *,
    tenant: TenantRef,
    name: str,
    upstream_url: str,
    rules: Sequence[str | Mapping[str, Any]],
    llm_credential: ProviderCredential,
    public_url: str,
) -> SupervisedAgent:
    """An agent with a policy of its own, published, and a stream key: everything that a call needs, or nothing.

    Raises ValidationError naming the field.
    """
    with transaction.atomic():
        policy = policy_create(name=_free_policy_name(name.strip()))
        draft = policy_version_create(policy_id=policy.id, rules=rules, llm_credential=llm_credential)
        version = policy_version_publish(policy_id=policy.id, number=draft.number)
        made = agent_create(name=name, upstream_url=upstream_url, policy=policy)
        key = agent_stream_key_create(agent_id=made.agent.id).key
    return SupervisedAgent(
        agent=made.agent,
        version=version,
        signing_secret=made.signing_secret,
        stream_url=stream_url(public_url=public_url, tenant_slug=tenant.slug, key=key),
        answer_url=answer_url(public_url=public_url, tenant_slug=tenant.slug, key=key),
    )


def stream_key_hash(key: str) -> bytes:
    """What is stored of a stream key: its SHA-256 (the key has 256 random bits, so a plain hash is enough)."""
    return hashlib.sha256(key.encode()).digest()


def stream_url(*, public_url: str, tenant_slug: str, key: str) -> str:
    """Where Plivo streams a call to; `public_url` is http(s)://host[:port]."""
    scheme, _, host = public_url.rstrip("/").partition("://")
    return f"{'wss' if scheme == 'https' else 'ws'}://{host}/stream/{tenant_slug}/{key}"


def answer_url(*, public_url: str, tenant_slug: str, key: str) -> str:
    """Where Plivo asks what to do with a call."""
    return f"{public_url.rstrip('/')}/plivo/{tenant_slug}/{key}/answer"


def upstream_url_clean(upstream_url: str) -> str:
    """`upstream_url` without surrounding space. Raises ValidationError (field `upstream_url`)."""
    upstream_url = upstream_url.strip()
    try:
        parts = urlsplit(upstream_url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError(
            {
                "upstream_url": "Give the agent's WebSocket URL, starting with ws:// or wss://, such as wss://host/stream."
            }
        )
    return upstream_url


def _free_policy_name(name: str) -> str:
    """`name`, or `name 2` and so on when it is taken: agents may share a name, policies may not."""
    taken = set(Policy.objects.filter(name__startswith=name).values_list("name", flat=True))
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name[:190]} {number}"
    return free
