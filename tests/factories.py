"""Rows for tests. Alice and bob belong to the tenant under test; charlie is the stranger.

Every factory makes a tenant, a name or an id that nobody else uses, so tests may commit and never clean up.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import (
    Agent,
    AgentNote,
    Approval,
    Call,
    CallEvent,
    Intervention,
    Policy,
    PolicyVersion,
    ProviderCredential,
    ToolDecision,
    Turn,
    Verdict,
)
from supervision.services.agents import agent_create, agent_stream_key_create, answer_url, stream_url
from supervision.services.credentials import credential_create
from supervision.services.policies import policy_create, policy_version_create, policy_version_publish
from tenants.context import TenantContext, tenant_context
from tenants.limits_refused import Refused
from tenants.models import User
from tenants.roles import ALL_SCOPES, Role
from tenants.selectors.tenants import TenantRef
from tenants.services.api_keys import api_key_create
from tenants.services.limits import limitrefusals_add, storage_use_add
from tenants.services.tenants import membership_create, tenant_create, user_create

PASSWORD = "correct horse battery staple"
RULES: tuple[dict[str, str], ...] = (
    {"text": "Never confirm a refund.", "severity": "high"},
    {"text": "Never promise a delivery date.", "severity": "medium"},
)
CALL_START = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tenancy:
    """A tenant with all that it takes to serve one call."""

    tenant: TenantRef
    users: Mapping[str, User]
    api_key: str = field(repr=False)
    credential: ProviderCredential
    policy: Policy
    version: PolicyVersion
    agent: Agent
    signing_secret: str = field(repr=False)
    stream_key: str = field(repr=False)

    @property
    def id(self) -> UUID:
        return self.tenant.id

    @property
    def slug(self) -> str:
        return self.tenant.slug

    def context(self) -> AbstractContextManager[TenantContext]:
        """Run a block as this tenant."""
        return tenant_context(self.tenant.id)

    def stream_url(self, public_url: str) -> str:
        return stream_url(public_url=public_url, tenant_slug=self.slug, key=self.stream_key)

    def answer_url(self, public_url: str) -> str:
        return answer_url(public_url=public_url, tenant_slug=self.slug, key=self.stream_key)


def unique(word: str) -> str:
    """`word-` and eight random letters and digits."""
    return f"{word}-{secrets.token_hex(4)}"


def client_sign_in(client: Client, user: User, *, ago: timedelta = timedelta()) -> None:
    """Sign `user` in as the sign-in page does, `ago` before now: dangerous things ask for a recent sign-in."""
    client.force_login(user)
    session = client.session
    session["account_authentication_methods"] = [{"method": "password", "at": time.time() - ago.total_seconds()}]
    session["account_authentication_methods_user"] = str(user.pk)
    session.save()


def tenancy_create(
    *,
    owner: str = "alice",
    viewer: str | None = None,
    upstream_url: str = "ws://127.0.0.1:1/agent",
    llm_base_url: str = "http://127.0.0.1:1/v1",
    llm_model: str = "judge-1",
    llm_api_key: str = "llm-secret",
    rules: Sequence[str | Mapping[str, Any]] = RULES,
    config: Mapping[str, Any] | None = None,
    mode: str = "live",
    language: str = "en",
) -> Tenancy:
    """A tenant with people, an API key with every scope, an agent, a live policy and a stream key.

    `users` maps the names given to people whose password is PASSWORD.
    """
    from supervision.models import Mode

    slug = unique(f"{owner}s-tenant")
    tenant = tenant_create(slug=slug, name=f"{owner.title()}'s tenant")
    with tenant_context(tenant.id):
        users = {}
        for name, role in ((owner, Role.OWNER), (viewer, Role.VIEWER)):
            if name is not None:
                users[name] = user_create(email=f"{name}@{slug}.example", password=PASSWORD, name=name.title())
                membership_create(user=users[name], role=role)
        api_key = api_key_create(name="tests", scopes=ALL_SCOPES).key
        credential = credential_create(
            name="Judge",
            kind=ProviderCredential.Kind.LLM,
            base_url=llm_base_url,
            model=llm_model,
            api_key=llm_api_key,
        )
        policy = policy_create(name=f"{owner}'s policy")
        draft = policy_version_create(policy_id=policy.id, rules=rules, config=config, llm_credential=credential)
        version = policy_version_publish(policy_id=policy.id, number=draft.number)
        made = agent_create(
            name=f"{owner}'s agent",
            upstream_url=upstream_url,
            policy=policy,
            mode=Mode(mode),
            language=language,
            redials=0,  # what a test's agent does, it does once
        )
        stream_key = agent_stream_key_create(agent_id=made.agent.id).key
    return Tenancy(
        tenant=tenant,
        users=users,
        api_key=api_key,
        credential=credential,
        policy=policy,
        version=version,
        agent=made.agent,
        signing_secret=made.signing_secret,
        stream_key=stream_key,
    )


def approval_create(tenancy: Tenancy, *, within: timedelta = timedelta(minutes=1), **fields: Any) -> Approval:
    """A tool call of a call that runs, which waits for a person for so long from now."""
    now = timezone.now()
    with tenancy.context():
        made = {
            "id": uuid7(),
            "call_id": uuid7(),
            "agent": tenancy.agent,
            "ref": "c1",
            "tool": "charge_card",
            "args": {"amount": 99},
            "irreversible": True,
            "on_silence": "deny",
            "requested_at": now,
            "expires_at": now + within,
        }
        return Approval.objects.create(**{**made, **fields})


def call_create(
    tenancy: Tenancy,
    *,
    customer_text: str = "Can I have my money back?",
    text: str = "Yes, I have refunded it.",
    started_at: datetime = CALL_START,
    state: str = "ended",
    outcome: str = "completed",
    agent: Agent | None = None,
) -> Call:
    """A call with a row in every table of a call: a turn judged bad, corrected and noted, and a blocked tool. Another
    one was refused that day, and what it takes is counted."""
    with tenancy.context():
        ended = state == "ended"
        call = Call.objects.create(
            agent=agent or tenancy.agent,
            policy=tenancy.policy,
            pinned_version=tenancy.version,
            policy_version=tenancy.version.number,
            state=state,
            started_at=started_at,
            ended_at=started_at + timedelta(seconds=30) if ended else None,
            plivo_call_id=str(uuid7()),
            stream_id=str(uuid7()),
            account_id="MAXXXX",
            from_number="+15550100",
            to_number="+15550199",
            mode="live",
            delivery="stream_first",
            encoding="audio/x-mulaw",
            sample_rate=8000,
            node="node-1",
            hello_at_ms=40,
            sdk="tests/1",
            language="en",
            wants=["verdicts", "notes"],
            agent_connected_at_ms=20,
            dial_ms=12,
            outcome=outcome if ended else "",
            ended_by="caller" if ended else "",
            close_code=1000 if ended else None,
            coverage_state="full" if ended else "",
            coverage=1.0,
            turn_count=1,
            judged_count=1,
            intervention_count=1,
            tools_blocked_count=1,
            duration_ms=30_000 if ended else None,
        )
        turn = Turn.objects.create(
            call=call,
            ref="t1",
            index=0,
            customer_text=customer_text,
            text=text,
            tool_calls=[{"id": "tool-1", "name": "process_payment", "args": {"amount": 5}, "irreversible": True}],
            language="en",
            at_ms=2_000,
            audio_ms=2_400,
            heard_ms=800,
            heard_text="Yes, I",
            uncertain_text="have",
            unheard_text="refunded it.",
            heard_basis="pauses",
            heard_at_ms=3_100,
        )
        verdict = Verdict.objects.create(
            call=call,
            turn=turn,
            state="judged",
            score=0.93,
            threshold=0.7,
            rule="Never confirm a refund.",
            reason=f'The agent says "{text}".',
            correction="Say that a colleague will look at it.",
            intervene=True,
            acted=True,
            latency_ms=210,
            prompt_tokens=420,
            completion_tokens=31,
            at_ms=2_210,
        )
        decision = ToolDecision.objects.create(
            call=call,
            turn=turn,
            ref="tool-1",
            name="process_payment",
            args={"amount": 5},
            irreversible=True,
            allow=False,
            code="policy",
            state="judged",
            score=0.9,
            reason=f"customer asked: {customer_text}",
            instruction="Tell the caller that you cannot do that.",
            latency_ms=180,
            at_ms=2_190,
        )
        intervention = Intervention.objects.create(
            call=call,
            turn=turn,
            verdict=verdict,
            rule="Never confirm a refund.",
            plan="cut_now",
            at_ms=2_215,
            steps=[
                {"step": "clear_sent", "at_ms": 2_216, "detail": None},
                {"step": "cleared", "at_ms": 2_240, "detail": None},
                {"step": "correction_played", "at_ms": 6_000, "detail": None},
            ],
            outcome="completed",
            ended_at_ms=6_010,
            buffer_text="One moment, please.",
            correction_text="I cannot confirm that. May I connect you to a colleague?",
            correction_source="llm",
            heard_ms=800,
            violation_heard_ms=300,
            violation_basis="pauses",
            silence_proof="cleared",
            gap_ms_cut_to_buffer=60,
            gap_ms_buffer_to_correction=20,
        )
        AgentNote.objects.create(
            call=call,
            turn=turn,
            intervention=intervention,
            text=f"You were stopped saying: {text}",
            said="I cannot confirm that.",
            heard_text="Yes, I",
            heard_ms=800,
            expires_turns=2,
            at_ms=2_900,
        )
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("call.started", {"plivo_call_id": call.plivo_call_id}),
            ("turn.reported", {"turn_id": str(turn.id), "text": text, "customer_text": customer_text, "at_ms": 2_000}),
            ("turn.judged", {"turn_id": str(turn.id), "verdict_id": str(verdict.id), "at_ms": 2_210}),
            ("tool.decided", {"decision_id": str(decision.id), "at_ms": 2_190}),
        ]
        if ended:
            kinds.append(("call.ended", {"outcome": outcome}))
        storage_use_add(storage_bytes=sum(len(str(data)) for _, data in kinds))
        limitrefusals_add(counts={(started_at.date(), Refused.CALLS.value): 1})
        for seq, (kind, data) in enumerate(kinds, start=1):
            CallEvent.objects.create(
                call=call, seq=seq, at=started_at + timedelta(milliseconds=seq), kind=kind, data=data
            )
    return call
