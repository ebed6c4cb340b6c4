"""Voice agents: making them, and the keys that Plivo dials them with."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict, Unpack
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from mirror_saas.egress import EgressRefused, egress_check
from mirror_saas.ids import uuid7
from supervision.audio.format import L16, MULAW, MediaFormat
from supervision.models import Agent, Mode, OnFailure, Policy, PolicyVersion, ProviderCredential, StreamKey, Track
from supervision.plivo.rest import web_url_checked
from supervision.plivo.xml import stream_response
from supervision.selectors.agents import agent_address
from supervision.services.credentials import credential_of_kind
from supervision.services.policies import (
    overrides_checked,
    policy_create,
    policy_for_agent_get,
    policy_version_create,
    policy_version_publish,
)
from supervision.stream.check import AgentCheck, agent_check
from supervision.stream.headers import header_reserved
from tenants.context import tenant_id_required
from tenants.sealing import seal, sealed_field
from tenants.selectors.tenants import TenantRef
from tenants.services.audit import Snapshot, auditevent_record, changes, snapshot

SECRET_BYTES = 32
SECRET_CHARS: Final = 200
ROTATION_OVERLAP: Final = timedelta(hours=24)
MAX_ROTATION_OVERLAP: Final = timedelta(days=30)
MAX_HEADERS: Final = 32
MAX_REDIALS: Final = 5
MAX_HEADER_BYTES: Final = 8 * 1024
AUDIO_FORMATS: Final = tuple(
    MediaFormat(encoding, rate).xml_content_type for encoding, rate in ((MULAW, 8000), (L16, 8000), (L16, 16000))
)


class AgentFields(TypedDict, total=False):
    """What of an agent is to change. `headers` and `signing_secret` are stored sealed and never shown again."""

    name: str
    upstream_url: str
    mode: Mode
    language: str
    voice: str
    audio_format: str
    headers: Mapping[str, str]
    policy_id: UUID | None
    policy_track: Track
    policy_overrides: Mapping[str, Any]
    tts_credential_id: UUID | None
    redials: int
    failure_message: str
    on_failure: OnFailure
    failure_transfer_url: str
    bidirectional: bool


class _MoreFields(TypedDict, total=False):
    audio_format: str
    headers: Mapping[str, str]
    policy_id: UUID | None
    policy_track: Track
    policy_overrides: Mapping[str, Any]
    tts_credential_id: UUID | None
    redials: int
    failure_message: str
    on_failure: OnFailure
    failure_transfer_url: str
    bidirectional: bool


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
    **fields: Unpack[_MoreFields],
) -> NewAgent:
    """A new agent of the current tenant that listens at `upstream_url` (ws:// or wss://).

    A signing secret that is not given is made. Raises ValidationError naming the field.
    """
    secret = secrets.token_urlsafe(SECRET_BYTES) if signing_secret is None else _signing_secret_checked(signing_secret)
    with transaction.atomic():
        agent = Agent(id=uuid7(), policy=policy)
        _fill(agent, name=name, upstream_url=upstream_url, mode=mode, language=language, voice=voice, **fields)
        _seal_signing_secret(agent, secret)
        agent.full_clean(exclude=["tenant", "policy", "tts_credential"], validate_unique=False)
        agent.save(force_insert=True)
        auditevent_record(action="agent.create", row=agent, after=snapshot(agent))
    return NewAgent(agent=agent, signing_secret=secret)


def agent_update(*, agent_id: UUID, **fields: Unpack[AgentFields]) -> Agent:
    """Change an agent, from its next call on; fields that are not named stay as they are.

    Raises Agent.DoesNotExist and ValidationError naming the field: `headers` too, when the agent has headers and moves
    to another server, because whoever may name a server must not get logins by it that were given for another.
    """
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(id=agent_id, archived_at=None)
        was, origin = snapshot(agent), _origin(agent.upstream_url)
        _fill(agent, **fields)
        if agent.headers_sealed is not None and "headers" not in fields and _origin(agent.upstream_url) != origin:
            raise ValidationError(
                {"headers": "The agent moves to another server: give its headers again, or {} for none."}
            )
        agent.full_clean(exclude=["tenant", "policy", "tts_credential"], validate_unique=False)
        before, after = changes(was, snapshot(agent))
        if after:
            agent.updated_at = timezone.now()
            agent.save()
            auditevent_record(action="agent.update", row=agent, before=before, after=after)
        return agent


def agent_signing_secret_rotate(*, agent_id: UUID, signing_secret: str | None = None) -> NewAgent:
    """Sign with another secret from the next call on; one that is not given is made.

    To rotate without a failed call, let the agent accept both secrets first, and give the new one here. Raises
    Agent.DoesNotExist and ValidationError (field `signing_secret`).
    """
    secret = secrets.token_urlsafe(SECRET_BYTES) if signing_secret is None else _signing_secret_checked(signing_secret)
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(id=agent_id, archived_at=None)
        was = snapshot(agent)
        _seal_signing_secret(agent, secret)
        agent.updated_at = timezone.now()
        agent.save(update_fields=["signing_secret_sealed", "updated_at"])
        _updated(agent, was)
    return NewAgent(agent=agent, signing_secret=secret)


def agent_checked(*, agent_id: UUID) -> AgentCheck:
    """Dial an agent and say what was found, within 8 s; see `supervision.stream.check`. Raises AgentNotFound."""
    return asyncio.run(agent_check(agent_address(agent_id=agent_id)))


def overlap_of_ms(milliseconds: int) -> timedelta:
    """An overlap as the API has it."""
    return timedelta(milliseconds=milliseconds)


def agent_archive(*, agent_id: UUID) -> None:
    """Take an agent out of use, with all its stream keys. Its calls stay. Raises Agent.DoesNotExist."""
    with transaction.atomic():
        agent = Agent.objects.select_for_update(no_key=True).get(id=agent_id, archived_at=None)
        for key_id in StreamKey.objects.filter(agent=agent, revoked_at=None).values_list("id", flat=True):
            agent_stream_key_revoke(stream_key_id=key_id)
        was = snapshot(agent)
        agent.archived_at = agent.updated_at = timezone.now()
        agent.save(update_fields=["archived_at", "updated_at"])
        before, after = changes(was, snapshot(agent))
        auditevent_record(action="agent.archive", row=agent, before=before, after=after)


def agent_upstream_update(*, agent: Agent, upstream_url: str) -> Agent:
    """Let an agent be dialled elsewhere, from the next call on. Raises ValidationError (field `upstream_url`)."""
    was = snapshot(agent)
    agent.upstream_url = upstream_url_clean(upstream_url)
    agent.updated_at = timezone.now()
    agent.save(update_fields=["upstream_url", "updated_at"])
    _updated(agent, was)
    return agent


def agent_headers_update(*, agent: Agent, headers: Mapping[str, str]) -> Agent:
    """Replace the headers that the agent is dialled with, from the next call on; none for an empty mapping.

    They may hold logins, so they are sealed and never shown again. Raises ValidationError (field `headers`), which
    repeats names, no values.
    """
    was = snapshot(agent)
    _seal_headers(agent, headers)
    agent.updated_at = timezone.now()
    agent.save(update_fields=["headers_sealed", "updated_at"])
    _updated(agent, was)
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
    auditevent_record(action="stream_key.create", row=stream_key, object_label=agent.name, after=snapshot(stream_key))
    return NewStreamKey(stream_key=stream_key, key=key)


def agent_stream_key_rotate(*, agent_id: UUID, overlap: timedelta = ROTATION_OVERLAP) -> NewStreamKey:
    """A new stream key of an agent; the keys before it work for another `overlap` (0 to 30 days), or until they would
    have expired anyway.

    So calls go on while the new URLs are entered at Plivo. Raises Agent.DoesNotExist and ValidationError (field
    `overlap`).
    """
    if not timedelta(0) <= overlap <= MAX_ROTATION_OVERLAP:
        raise ValidationError({"overlap": f"Give 0 to {MAX_ROTATION_OVERLAP.days} days."})
    with transaction.atomic():
        # One rotation at a time, or of two new keys each could let the other live on.
        Agent.objects.select_for_update(no_key=True).get(id=agent_id, archived_at=None)
        ends = timezone.now() + overlap
        older = StreamKey.objects.filter(agent_id=agent_id, revoked_at=None)
        for stream_key in older.filter(Q(expires_at=None) | Q(expires_at__gt=ends)).select_for_update(no_key=True):
            was = snapshot(stream_key)
            stream_key.expires_at = ends
            stream_key.save(update_fields=["expires_at"])
            before, after = changes(was, snapshot(stream_key))
            auditevent_record(action="stream_key.expire", row=stream_key, before=before, after=after)
        return agent_stream_key_create(agent_id=agent_id)


def agent_stream_key_revoke(*, stream_key_id: UUID) -> None:
    """Switch a stream key off for good: no new call passes with it, and calls that came in with it end within 5 s.

    Raises StreamKey.DoesNotExist.
    """
    stream_key = StreamKey.objects.get(id=stream_key_id)
    if stream_key.revoked_at is None:
        was = snapshot(stream_key)
        stream_key.revoked_at = timezone.now()
        stream_key.save(update_fields=["revoked_at"])
        before, after = changes(was, snapshot(stream_key))
        auditevent_record(action="stream_key.revoke", row=stream_key, before=before, after=after)


def supervised_agent_create(
    *,
    tenant: TenantRef,
    name: str,
    upstream_url: str,
    rules: Sequence[str | Mapping[str, Any]],
    llm_credential: ProviderCredential,
    public_url: str,
    policy_name: str | None = None,
) -> SupervisedAgent:
    """An agent with a policy of its own, published, and a stream key: everything that a call needs, or nothing.

    The policy is called as the agent unless `policy_name` is given, with a number behind it where that is taken.
    Raises ValidationError naming the field.
    """
    with transaction.atomic():
        policy = policy_create(name=_free_policy_name((policy_name or name).strip()))
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


def stream_xml(*, stream_url: str, answer_url: str, audio_format: str) -> str:
    """The `<Response>` for an answer URL of the tenant's own, instead of Mirror's: Plivo streams to `stream_url`."""
    return stream_response(
        stream_url, content_type=audio_format, status_callback_url=f"{answer_url.removesuffix('/answer')}/status"
    )


def answer_url(*, public_url: str, tenant_slug: str, key: str) -> str:
    """Where Plivo asks what to do with a call."""
    return f"{public_url.rstrip('/')}/plivo/{tenant_slug}/{key}/answer"


def upstream_url_clean(upstream_url: str) -> str:
    """`upstream_url` without surrounding space. Raises ValidationError (field `upstream_url`)."""
    upstream_url = upstream_url.strip()
    # Blanks and control characters could write into the handshake; parsers disagree about backslashes.
    plain = re.fullmatch(r"[^\x00-\x20\x7f\\]+", upstream_url) is not None
    try:
        parts = urlsplit(upstream_url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        login = parts.username is not None or parts.password is not None
        usable = usable and plain and not parts.fragment
    except ValueError:
        usable = login = False
    if usable and login:
        raise ValidationError({"upstream_url": "Leave the login out of the URL; give it as a header of the agent."})
    if not usable:
        raise ValidationError(
            {
                "upstream_url": "Give the agent's WebSocket URL, starting with ws:// or wss://, such as wss://host/stream."
            }
        )
    try:
        egress_check(parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80))
    except EgressRefused as error:
        raise ValidationError({"upstream_url": f"{error}."}) from error
    return upstream_url


def _fill(agent: Agent, **fields: Unpack[AgentFields]) -> None:
    """Set what is given, checked. Raises ValidationError naming the field."""
    if "name" in fields:
        agent.name = fields["name"].strip()
    if "upstream_url" in fields:
        agent.upstream_url = upstream_url_clean(fields["upstream_url"])
    if "mode" in fields:
        agent.mode = fields["mode"].value
    if "language" in fields:
        agent.language = _language_clean(fields["language"])
    if "voice" in fields:
        agent.voice = fields["voice"].strip()
    if "audio_format" in fields:
        if fields["audio_format"] not in AUDIO_FORMATS:
            raise ValidationError({"audio_format": f"Choose one of {', '.join(AUDIO_FORMATS)}."})
        agent.audio_format = fields["audio_format"]
    if "headers" in fields:
        _seal_headers(agent, fields["headers"])
    if "policy_id" in fields:
        agent.policy = policy_for_agent_get(fields["policy_id"])
    if "policy_track" in fields:
        agent.policy_track = fields["policy_track"].value
    if "policy_overrides" in fields:
        agent.policy_overrides = overrides_checked(fields["policy_overrides"])
    if "tts_credential_id" in fields:
        agent.tts_credential = credential_of_kind(fields["tts_credential_id"], ProviderCredential.Kind.TTS)
    if "bidirectional" in fields:
        agent.bidirectional = fields["bidirectional"]
    _fill_failure(agent, **fields)


def _fill_failure(agent: Agent, **fields: Unpack[AgentFields]) -> None:
    if "redials" in fields:
        if not 0 <= fields["redials"] <= MAX_REDIALS:
            raise ValidationError({"redials": f"Give 0 to {MAX_REDIALS}."})
        agent.redials = fields["redials"]
    if "failure_message" in fields:
        agent.failure_message = " ".join(fields["failure_message"].split())
    if "on_failure" in fields:
        agent.on_failure = fields["on_failure"].value
    if "failure_transfer_url" in fields:
        agent.failure_transfer_url = fields["failure_transfer_url"].strip()
        if agent.failure_transfer_url:
            try:
                web_url_checked(agent.failure_transfer_url)
            except ValueError as error:
                raise ValidationError({"failure_transfer_url": f"This {error}."}) from error
    if agent.on_failure == OnFailure.TRANSFER and not agent.failure_transfer_url:
        raise ValidationError({"failure_transfer_url": "Give the URL of the XML that a transferred call goes on with."})


def _seal_signing_secret(agent: Agent, secret: str) -> None:
    agent.signing_secret_sealed = seal(
        secret,
        tenant_id=tenant_id_required("Sealing a signing secret"),
        field=sealed_field("supervision_agent", "signing_secret_sealed", agent.id),
    )


def _seal_headers(agent: Agent, headers: Mapping[str, str]) -> None:
    cleaned = _headers_clean(headers)
    agent.headers_sealed = (
        seal(
            json.dumps(cleaned),
            tenant_id=tenant_id_required("Sealing an agent's headers"),
            field=sealed_field("supervision_agent", "headers_sealed", agent.id),
        )
        if cleaned
        else None
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


# 16 characters are what a person might still make up; those that are made have 256 random bits.
_SIGNING_SECRET: Final = re.compile(rf"[!-~]{{16,{SECRET_CHARS}}}")
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def _signing_secret_checked(secret: str) -> str:
    if not _SIGNING_SECRET.fullmatch(secret):
        wanted = "Give 16 to 200 visible ASCII characters without spaces, or leave it out to have one made."
        raise ValidationError({"signing_secret": wanted})
    return secret


def _language_clean(language: str) -> str:
    language = language.strip()
    if not _LANGUAGE.fullmatch(language) or len(language) > 35:
        raise ValidationError({"language": "Give a language tag such as en, en-GB or pt-BR."})
    return language


# RFC 9110: a name is a token; of values, the visible ASCII characters with blanks and tabs between them.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE: Final = re.compile(r"[!-~]([\t -~]*[!-~])?")


def _headers_clean(headers: Mapping[str, str]) -> dict[str, str]:
    cleaned: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValidationError({"headers": "A header's name has letters, digits and hyphens only."})
        if header_reserved(name):
            raise ValidationError({"headers": f"{name} is set by Mirror or by the WebSocket handshake; leave it out."})
        if name.lower() in map(str.lower, cleaned):
            raise ValidationError({"headers": f"{name} is given twice."})
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValidationError({"headers": f"The value of {name} has to be visible ASCII characters on one line."})
        cleaned[name] = value
    if len(cleaned) > MAX_HEADERS or sum(len(name) + len(value) for name, value in cleaned.items()) > MAX_HEADER_BYTES:
        raise ValidationError({"headers": f"Give at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together."})
    return cleaned


def _updated(agent: Agent, was: Snapshot) -> None:
    before, after = changes(was, snapshot(agent))
    auditevent_record(action="agent.update", row=agent, before=before, after=after)


def _free_policy_name(name: str) -> str:
    """`name`, or `name 2` and so on when it is taken: agents may share a name, policies may not."""
    taken = set(Policy.objects.filter(name__startswith=name).values_list("name", flat=True))
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name[:190]} {number}"
    return free
