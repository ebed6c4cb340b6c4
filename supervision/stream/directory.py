"""Whose stream a call is: from the slug and key in its URL to the agent, its policy and the judge's access.

The key's hash finds tenant and agent through `stream_key_lookup`, the one thing that is looked up before the tenant is
known; everything else is read under row-level security with the tenant set. No ORM: one small psycopg pool per process.

While the database is up, every look-up asks it, so that a revoked key and a newly published policy count at once.
While it is down, bindings that were looked up within the last hour go on; anything else is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import connection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from mirror_saas.limits import NO_LIMITS, Limits
from mirror_saas.outage import Outage
from supervision.audio.format import MediaFormat
from supervision.plivo.rest import PlivoAccount
from supervision.redaction import RedactionSettings
from supervision.stream.failure import NO_FAILURE_POLICY, FailurePolicy
from tenants.envelope import SealBroken, TenantKeys, sealed_field
from tenants.limits import MIB, limit_of
from tenants.sealing import key_ring
from tenants.selectors.tenants import TenantRef

logger = logging.getLogger(__name__)

LOOKUP_TIMEOUT_S: Final = 2.0
CACHE_FOR_S: Final = 3600.0
_CACHE_ENTRIES: Final = 10_000
# After the database failed, look-ups use what is known for this long before they ask again: well within the 5 s in
# which a revocation has to win once the database is back.
_DOWN_FOR_S: Final = 1.0
_POOL_SIZE: Final = 4

_Pool = AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]


class DirectoryUnavailable(Exception):
    """The database cannot be asked and the key was not looked up within the last hour: refuse the call, try later."""


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Access to an OpenAI-compatible server."""

    base_url: str
    model: str
    api_key: str = field(repr=False)


LLMSettings = ProviderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBinding:
    """What a call needs to know of its agent; pinned when the call starts.

    The policy fields and `llm` are None and `rules` empty when the agent has no published policy, and `llm` alone when
    the policy names no credential or its key cannot be unsealed: such a call is relayed and not judged. A shadow
    version makes `mode` "shadow".
    """

    tenant_id: UUID
    tenant_slug: str
    agent_id: UUID
    stream_key_id: UUID
    agent_name: str
    upstream_url: str
    signing_secret: str = field(repr=False)
    mode: str
    language: str
    voice: str
    policy_id: UUID | None
    policy_version_id: UUID | None
    policy_version: int | None
    rules: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    llm: ProviderSettings | None
    fallback_llm: ProviderSettings | None = None
    """Who is asked when `llm` does not answer."""
    tts: ProviderSettings | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that this agent has otherwise than its policy; `config` has them already."""
    audio_format: str = MediaFormat().xml_content_type
    """What Plivo is asked to stream, as `contentType` of `<Stream>` has it."""
    redaction: RedactionSettings = field(default_factory=RedactionSettings)
    """What is taken out of the call's words before they are stored."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    plivo_tokens: tuple[str, ...] | None = field(default=None, repr=False)
    """The auth tokens of the tenant's Plivo accounts, the one stored last first; None when none was ever stored. Empty
    when those that were cannot be unsealed: what Plivo signs can then not be checked, so it is refused."""
    plivo_accounts: tuple[PlivoAccount, ...] = ()
    """Those of these accounts whose token could be unsealed, in the same order: for Plivo's REST API."""
    failure: FailurePolicy = NO_FAILURE_POLICY
    bidirectional: bool = True
    """Whether Plivo's stream has a way back for audio; false of a `<Stream>` of the tenant's own without one."""
    limits: Limits = NO_LIMITS
    storage_full: bool = False
    """Whether the tenant's record takes all that it may: then the call is recorded without what was said."""


@dataclass(frozen=True, slots=True)
class _Known:
    binding: AgentBinding
    at: float
    # Unix time at which the key stops working, if it has one.
    expires: float | None


def _pool(dsn: str) -> _Pool:
    """Small, with short waits, not opened yet."""
    return AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=_POOL_SIZE,
        open=False,
        timeout=LOOKUP_TIMEOUT_S,
        reconnect_timeout=LOOKUP_TIMEOUT_S,
        max_idle=300.0,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "row_factory": dict_row,
            "connect_timeout": math.ceil(LOOKUP_TIMEOUT_S),
            "application_name": "mirror-stream",
        },
        name="mirror-stream",
    )


class StreamDirectory:
    """Looks up who a stream belongs to. Belongs to one event loop; nothing is opened before the first look-up."""

    def __init__(
        self, dsn: str, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        """`dsn` logs in as mirror_app. `clock` gives Unix time, by which keys expire, and `steady` seconds that never
        jump, by which everything else goes."""
        self._pool = _pool(dsn)
        self._clock = clock
        self._steady = steady
        self._opened = False
        self._known: OrderedDict[tuple[str, bytes], _Known] = OrderedDict()
        self._outage = Outage(
            logger,
            # The message of a pool or connection error names host and role, never a password or key.
            down="stream keys cannot be looked up, using those of the last hour: %s",
            up="stream keys can be looked up again",
            alone_s=_DOWN_FOR_S,
            clock=steady,
        )

    async def lookup(self, slug: str, key: str, *, pinned_version: UUID | None = None) -> AgentBinding | None:
        """The agent that `key` names in the tenant `slug`, or None; with `pinned_version` under that version of a
        policy, whatever is published by now.

        None is the one answer for an unknown tenant or key, another tenant's key, a key that was revoked or has
        expired, and an archived agent. Raises DirectoryUnavailable.
        """
        try:
            hashed = hashlib.sha256(key.encode()).digest()
            slug.encode()
        except UnicodeEncodeError:
            return None
        if "\x00" in slug or len(slug) > 63:
            return None
        if self.is_down:
            return self._from_memory(slug, hashed)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                known = await self._from_database(slug, hashed, pinned_version)
        except (psycopg.Error, PoolTimeout, TimeoutError, OSError) as error:
            self._outage.failed(error or "no answer")
            return self._from_memory(slug, hashed)
        self._outage.answered()
        if pinned_version is None:
            self._remember(slug, hashed, known)
        return known.binding if known is not None else None

    async def keys_revoked(self, key_ids: Collection[UUID]) -> set[UUID]:
        """Those of some stream keys that were revoked, or went with their tenant; expired ones are not among them.

        Raises DirectoryUnavailable.
        """
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self._open()
                async with self._pool.connection() as connection:
                    cursor = await connection.execute("SELECT stream_keys_revoked(%s) AS id", (list(key_ids),))
                    gone = {row["id"] for row in await cursor.fetchall()}
        except (psycopg.Error, PoolTimeout, TimeoutError, OSError) as error:
            self._outage.failed(error or "no answer")
            raise DirectoryUnavailable("The database cannot say which stream keys were revoked.") from error
        self._outage.answered()
        return gone

    @property
    def is_down(self) -> bool:
        """Whether the database failed a moment ago, so that asking it again is no use yet."""
        return self._outage.lasts

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        """A connection of the pool, for what else a call asks or writes. Raises what psycopg raises."""
        await self._open()
        async with self._pool.connection() as connection:
            yield connection

    async def aclose(self) -> None:
        """Close the pool."""
        if self._opened:
            await self._pool.close()

    def _remember(self, slug: str, hashed: bytes, known: _Known | None) -> None:
        if known is None:
            self._known.pop((slug, hashed), None)
            return
        self._known[slug, hashed] = known
        self._known.move_to_end((slug, hashed))
        if len(self._known) > _CACHE_ENTRIES:
            self._known.popitem(last=False)

    def _from_memory(self, slug: str, hashed: bytes) -> AgentBinding | None:
        known = self._known.get((slug, hashed))
        if known is None or self._steady() - known.at > CACHE_FOR_S:
            raise DirectoryUnavailable("The database cannot be reached and this key was not used within the last hour.")
        if known.expires is not None and known.expires <= self._clock():
            return None
        return known.binding

    async def _open(self) -> None:
        if not self._opened:
            self._opened = True
            await self._pool.open(wait=False)

    async def _from_database(self, slug: str, hashed: bytes, pinned_version: UUID | None) -> _Known | None:
        await self._open()
        async with self._pool.connection() as connection:
            # In no transaction: for a wrong key, of which many may come, this is all that is asked.
            cursor = await connection.execute(
                "SELECT tenant_id, agent_id FROM stream_key_lookup(%s, %s)", (slug, hashed)
            )
            found = await cursor.fetchone()
            if found is None:
                return None
            of_agent = {"tenant": found["tenant_id"], "agent": found["agent_id"], "key_hash": hashed}
            async with connection.transaction():
                await connection.execute(
                    "SELECT set_config('app.tenant_id', %s, true), set_config('statement_timeout', '2000', true)",
                    (str(found["tenant_id"]),),
                )
                cursor = await connection.execute(
                    _BINDING if pinned_version is None else _BINDING_PINNED, {**of_agent, "version": pinned_version}
                )
                row = await cursor.fetchone()
        if row is None:
            return None
        expires = row["expires_at"].timestamp() if row["expires_at"] is not None else None
        return _Known(_binding(row, slug), self._steady(), expires)


# The live version judges, or the shadow version for agents that follow that one; without it, the other does. A shadow
# version never acts.
_BINDING: Final = """
SELECT a.tenant_id, a.id AS agent_id, a.name, a.upstream_url, a.signing_secret_sealed, a.headers_sealed, a.mode,
       a.language, a.voice, a.audio_format, a.policy_overrides, a.redials, a.failure_message, a.on_failure,
       a.failure_transfer_url, a.bidirectional, k.id AS stream_key_id, k.expires_at,
       (SELECT jsonb_object_agg(d.id, encode(d.wrapped, 'hex'))
          FROM tenants_datakey d WHERE d.tenant_id = a.tenant_id) AS data_keys,
       v.policy_id, v.id AS version_id, v.number, v.status, v.rules, v.config,
       llm.id AS llm_id, llm.base_url AS llm_base_url, llm.model AS llm_model, llm.api_key_sealed AS llm_sealed,
       tts.id AS tts_id, tts.base_url AS tts_base_url, tts.model AS tts_model, tts.api_key_sealed AS tts_sealed,
       plivo.ids AS plivo_ids, plivo.sealed AS plivo_sealed, plivo.accounts AS plivo_auth_ids, plivo.urls AS plivo_urls,
       fallback.id AS fallback_id, fallback.base_url AS fallback_base_url, fallback.model AS fallback_model,
       fallback.api_key_sealed AS fallback_sealed,
       privacy.redact AS redact_kinds, privacy.phone_region AS redact_region, privacy.patterns AS redact_patterns,
       limits.calls AS limit_calls, limits.judge_calls AS limit_judge_calls, limits.storage_mib AS limit_storage_mib,
       coalesce(storage.storage_bytes, 0) AS storage_bytes
  FROM supervision_agent a
  LEFT JOIN supervision_streamkey k
    ON k.tenant_id = a.tenant_id AND k.agent_id = a.id AND k.key_hash = %(key_hash)s
   AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
  LEFT JOIN LATERAL (
        SELECT * FROM supervision_policyversion
         WHERE tenant_id = a.tenant_id AND policy_id = a.policy_id AND status IN ('live', 'shadow')
         ORDER BY status = a.policy_track DESC, number DESC LIMIT 1) v ON true
  LEFT JOIN supervision_providercredential llm
    ON llm.tenant_id = a.tenant_id AND llm.id = v.llm_credential_id AND llm.kind = 'llm'
  LEFT JOIN supervision_providercredential tts
    ON tts.tenant_id = a.tenant_id AND tts.id = a.tts_credential_id AND tts.kind = 'tts'
  LEFT JOIN supervision_providercredential fallback
    ON fallback.tenant_id = a.tenant_id AND fallback.id = v.fallback_credential_id AND fallback.kind = 'llm'
  LEFT JOIN supervision_privacysettings privacy ON privacy.tenant_id = a.tenant_id
  LEFT JOIN tenants_tenantlimits limits ON limits.tenant_id = a.tenant_id
  LEFT JOIN tenants_tenantuse storage ON storage.tenant_id = a.tenant_id
  LEFT JOIN LATERAL (
        SELECT array_agg(id ORDER BY updated_at DESC, id) AS ids,
               array_agg(account ORDER BY updated_at DESC, id) AS accounts,
               array_agg(base_url ORDER BY updated_at DESC, id) AS urls,
               array_agg(api_key_sealed ORDER BY updated_at DESC, id) AS sealed
          FROM supervision_providercredential WHERE tenant_id = a.tenant_id AND kind = 'plivo') plivo ON true
 WHERE a.tenant_id = %(tenant)s AND a.id = %(agent)s AND a.archived_at IS NULL
   AND (k.id IS NOT NULL OR %(key_hash)s::bytea IS NULL)
"""


# The same for a call that goes on: by the version that it began with.
_BINDING_PINNED: Final = _BINDING.replace(
    "tenant_id = a.tenant_id AND policy_id = a.policy_id AND status IN ('live', 'shadow')",
    "tenant_id = a.tenant_id AND id = %(version)s",
)
assert _BINDING_PINNED != _BINDING


def agent_binding(*, tenant: TenantRef, agent_id: UUID) -> AgentBinding | None:
    """What a call of this agent that began now would be judged by, without a key; None when the current tenant has no
    such agent, or has archived it. Runs in the tenant's context, through Django's connection."""
    parameters = {"tenant": tenant.id, "agent": agent_id, "key_hash": None}
    with connection.cursor() as cursor:
        cursor.execute(_BINDING, parameters)
        row = cursor.fetchone()
        if row is None:
            return None
        names = [column.name for column in cursor.description]
    # Django leaves JSON as text for its fields to read.
    values = {
        name: json.loads(value) if name in _JSON_COLUMNS and isinstance(value, str) else value
        for name, value in zip(names, row, strict=True)
    }
    return _binding(values, tenant.slug)


_JSON_COLUMNS: Final = frozenset(
    {"data_keys", "rules", "config", "policy_overrides", "redact_kinds", "redact_patterns"}
)


def _binding(row: Mapping[str, Any], slug: str) -> AgentBinding:
    tenant_id: UUID = row["tenant_id"]
    wrapped = {UUID(key_id): bytes.fromhex(key) for key_id, key in (row["data_keys"] or {}).items()}
    keys = TenantKeys(key_ring(), tenant_id, wrapped)
    limits = _limits(row)
    accounts = _plivo_accounts(row, keys)
    binding = AgentBinding(
        tenant_id=tenant_id,
        tenant_slug=slug,
        agent_id=row["agent_id"],
        stream_key_id=row["stream_key_id"],
        agent_name=row["name"],
        upstream_url=row["upstream_url"],
        signing_secret=_agent_secret(row, "signing_secret_sealed", keys),
        mode=row["mode"],
        language=row["language"],
        voice=row["voice"],
        policy_id=row["policy_id"],
        policy_version_id=row["version_id"],
        policy_version=row["number"],
        rules=tuple(MappingProxyType(rule) for rule in row["rules"] or ()),
        config=MappingProxyType({**(row["config"] or {}), **row["policy_overrides"]}),
        overrides=MappingProxyType(row["policy_overrides"]),
        audio_format=row["audio_format"],
        llm=_provider(row, "llm", keys),
        tts=_provider(row, "tts", keys),
        redaction=RedactionSettings.from_row(row["redact_kinds"], row["redact_region"], row["redact_patterns"]),
        fallback_llm=_provider(row, "fallback", keys),
        headers=MappingProxyType(_headers(row, keys)),
        plivo_tokens=None if accounts is None else tuple(account.auth_token for account in accounts),
        plivo_accounts=accounts or (),
        failure=FailurePolicy(
            redials=row["redials"],
            message=row["failure_message"],
            then=row["on_failure"],
            transfer_url=row["failure_transfer_url"],
        ),
        bidirectional=row["bidirectional"],
        limits=limits,
        storage_full=limits.storage_mib is not None and row["storage_bytes"] >= limits.storage_mib * MIB,
    )
    return replace(binding, mode="shadow") if row["status"] == "shadow" else binding


def _limits(row: Mapping[str, Any]) -> Limits:
    defaults: Limits = settings.MIRROR.limits
    return replace(
        defaults,
        calls=limit_of(row["limit_calls"], defaults.calls),
        judge_calls=limit_of(row["limit_judge_calls"], defaults.judge_calls),
        storage_mib=limit_of(row["limit_storage_mib"], defaults.storage_mib),
    )


def _agent_secret(row: Mapping[str, Any], column: str, keys: TenantKeys) -> str:
    where = sealed_field("supervision_agent", column, row["agent_id"])
    try:
        return keys.unseal(row[column], field=where).decode()
    except SealBroken as error:
        # Without its secret the agent would be dialled with a wrong signature: better no call than a forged one.
        logger.error("%s", error)
        raise DirectoryUnavailable(str(error)) from error


def _headers(row: Mapping[str, Any], keys: TenantKeys) -> dict[str, str]:
    if row["headers_sealed"] is None:
        return {}
    headers: dict[str, str] = json.loads(_agent_secret(row, "headers_sealed", keys))
    return headers


def _plivo_accounts(row: Mapping[str, Any], keys: TenantKeys) -> tuple[PlivoAccount, ...] | None:
    if row["plivo_ids"] is None:
        return None
    accounts = []
    columns = (row["plivo_ids"], row["plivo_sealed"], row["plivo_auth_ids"], row["plivo_urls"])
    for credential_id, sealed, auth_id, url in zip(*columns, strict=True):
        where = sealed_field("supervision_providercredential", "api_key_sealed", credential_id)
        try:
            accounts.append(PlivoAccount(auth_id, keys.unseal(sealed, field=where).decode(), url))
        except SealBroken as error:
            logger.error("%s", error)
    return tuple(accounts)


def _provider(row: Mapping[str, Any], kind: str, keys: TenantKeys) -> ProviderSettings | None:
    credential_id = row[f"{kind}_id"]
    if credential_id is None:
        return None
    where = sealed_field("supervision_providercredential", "api_key_sealed", credential_id)
    try:
        api_key = keys.unseal(row[f"{kind}_sealed"], field=where).decode()
    except SealBroken as error:
        # The call goes on unjudged (llm) or unarmed (tts), which its record shows.
        logger.error("%s", error)
        return None
    return ProviderSettings(row[f"{kind}_base_url"], row[f"{kind}_model"], api_key)
