"""How many questions a list asks the database: as many for thirty rows as for one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from mirror_saas import openapi
from mirror_saas.api import api
from mirror_saas.ids import uuid7
from supervision.models import (
    Agent,
    AgentNote,
    Call,
    CallEvent,
    Intervention,
    Label,
    ProviderCredential,
    ToolDecision,
    Turn,
    Verdict,
    WebhookEndpoint,
)
from supervision.services.agents import agent_create, agent_stream_key_create
from supervision.services.alarms import alarm_kinds_set, alarm_raise
from supervision.services.credentials import credential_create
from supervision.services.policies import policy_create, policy_version_create
from supervision.services.webhooks import MAX_ENDPOINTS, webhook_create, webhook_test
from tenants.models import Membership
from tenants.roles import ROLE_CAPABILITIES, Role
from tenants.services.api_keys import api_key_create
from tenants.services.invitations import invitation_create
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.contract.client import ask
from tests.factories import CALL_START, Tenancy, call_create, unique

pytestmark = pytest.mark.django_db

ROWS = 30


def api_keys(tenancy: Tenancy, index: int) -> None:
    api_key_create(name=f"key {index}", scopes=["judge"])


def members(tenancy: Tenancy, index: int) -> None:
    user = user_create(email=f"{unique('member')}@example.com", password=None)
    membership_create(user=user, role=Role.VIEWER)


def invitations(tenancy: Tenancy, index: int) -> None:
    email = f"{unique('invitee')}@example.com"
    invitation_create(email=email, role=Role.VIEWER, capabilities=ROLE_CAPABILITIES["owner"])


def agents(tenancy: Tenancy, index: int) -> None:
    made = agent_create(name=f"agent {index}", upstream_url="ws://127.0.0.1:1/", policy=tenancy.policy).agent
    call_create(tenancy, agent=made, started_at=CALL_START + timedelta(days=index))


def stream_keys(tenancy: Tenancy, index: int) -> None:
    agent_stream_key_create(agent_id=tenancy.agent.id)


def credentials(tenancy: Tenancy, index: int) -> None:
    credential_create(
        name=f"model {index}",
        kind=ProviderCredential.Kind.LLM,
        base_url="http://127.0.0.1:1/v1",
        model="m",
        api_key="secret",
    )


def policies(tenancy: Tenancy, index: int) -> None:
    made = policy_create(name=f"policy {index}")
    policy_version_create(policy_id=made.id, rules=["Be kind."])


def versions(tenancy: Tenancy, index: int) -> None:
    policy_version_create(policy_id=tenancy.policy.id, rules=["Be kind."], llm_credential=tenancy.credential)


def turns(tenancy: Tenancy, index: int) -> None:
    """A turn of one call with all that can be about a turn."""
    call = Call.objects.order_by("started_at")[0]
    at_ms = 10_000 + index
    turn = Turn.objects.create(call=call, ref=f"more-{index}", index=10 + index, at_ms=at_ms)
    verdict = Verdict.objects.create(call=call, turn=turn, state="judged", score=0.9, at_ms=at_ms)
    ToolDecision.objects.create(call=call, turn=turn, ref=f"tool-{index}", name="pay", allow=False, at_ms=at_ms)
    made = Intervention.objects.create(call=call, turn=turn, verdict=verdict, plan="cut_now", at_ms=at_ms, steps=[])
    AgentNote.objects.create(call=call, turn=turn, intervention=made, text="x", at_ms=at_ms)
    Label.objects.create(call=call, turn=turn, value="unsure", labelled_by="alice")
    Label.objects.create(call=call, intervention=made, value="unsure", labelled_by="alice")
    CallEvent.objects.create(call=call, seq=100 + index, at=CALL_START, kind="note.sent", data={})


def webhooks(tenancy: Tenancy, index: int) -> None:
    if index < MAX_ENDPOINTS:
        webhook_create(url=f"http://127.0.0.1:1/{index}", event_types=["call.ended"])


def deliveries(tenancy: Tenancy, index: int) -> None:
    webhook_test(webhook_id=WebhookEndpoint.objects.order_by("id")[0].id)


def alarms(tenancy: Tenancy, index: int) -> None:
    alarm_kinds_set(membership_id=Membership.objects.order_by("id")[0].id, kinds=["coverage"])
    agent = Agent.objects.order_by("-id")[0]
    alarm_raise(kind="coverage", subject=uuid7(), data={"call_id": str(uuid7()), "agent_id": str(agent.id)})


GROW: list[Callable[[Tenancy, int], None]] = [
    api_keys, members, invitations, agents, stream_keys, credentials, policies, versions, turns, webhooks, deliveries,
    alarms,
]  # fmt: skip


def lists() -> set[str]:
    """The paths of all operations that answer with rows."""
    document = api.get_openapi_schema()
    found = set()
    for path, method, operation in openapi.operations(document):
        answer = operation["responses"].get("200", {}).get("content", {}).get("application/json")
        if method == "get" and answer:
            fields = openapi.resolved(document, answer["schema"])["properties"]
            found |= {path.removeprefix("/api/v1")} if {"items", "days"} & set(fields) else set()
    return found


def test_lists_ask_as_much_for_thirty_rows_as_for_one(tenant: Tenancy, stranger: Tenancy, redis_url: str) -> None:
    call = call_create(tenant)
    with tenant.context():
        webhooks(tenant, 0)
        values = {
            "call_id": call.id,
            "agent_id": tenant.agent.id,
            "policy_id": tenant.policy.id,
            "webhook_id": WebhookEndpoint.objects.get().id,
        }
    queries: dict[str, list[int]] = {path: [] for path in sorted(lists())}
    assert len(queries) > 15

    def count(least: int) -> None:
        ask(tenant, "GET", "/me")  # notes the key's use, once a minute
        for path, counted in queries.items():
            days = {"/usage": "?to=2026-04-30&from=2026-03-01"}.get(path, "?limit=100")
            with CaptureQueriesContext(connection) as captured:
                answer = ask(tenant, "GET", path.format(**values) + days)
            assert answer.status_code == 200, answer.content
            body = answer.json()
            most = MAX_ENDPOINTS if path == "/webhooks" else least
            assert len(body.get("items", body.get("days"))) >= min(least, most), path
            counted.append(len(captured))

    with tenant.context():
        for grow in GROW:
            grow(tenant, 1)
    count(1)
    with tenant.context():
        for grow in GROW:
            for index in range(2, ROWS + 1):
                grow(tenant, index)
    count(ROWS)
    assert {path: counted for path, counted in queries.items() if len(set(counted)) > 1} == {}
    assert max(counted[0] for counted in queries.values()) <= 26
