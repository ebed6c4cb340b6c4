"""Every door of Mirror, a row each: who may use it, and what it is tried with. A door without a row fails the sweep.

To add a row, put it into API (an operation under /api/v1), PAGES (any other URL), TOPICS (what a console socket can
subscribe to) or TASKS (a Celery task):

    api("DELETE", "/members/{uuid:member_id}", "admin", member)
    page("POST", "invitations", "admin", body=lambda tenancy, made: {"email": "new@example.com", "role": "viewer"})

- method and path are as the framework has them (the failing test prints them);
- then the capability that it needs: a name of tenants.roles, or MEMBER (any member or key), PERSON (signed in, of any
  tenant or none) or PUBLIC (anybody);
- `made(tenancy)` makes or finds the object that the path is about, inside the tenancy's context, and returns the values
  of the path's parameters: `{"member_id": …}`. Whoever asks, it is made for the tenancy that is asked about;
- `body(tenancy, made)` gives what is sent: JSON for the API, a form's fields for pages. Name objects of `tenancy` in it
  wherever ids may stand: the stranger sends the same ids;
- `headers` are sent with it, such as `If-Match`;
- `answers` are the statuses of somebody who may, if they are not 200 to 204 (API) or 200 and 302 (pages);
- `tells` is for a page whose path is a secret, which shows something of its tenant to whoever has that.

test_api_sweep.py, test_page_sweep.py, test_socket_sweep.py and test_task_sweep.py ask each row as its owner, as members
without the capability, as the owner of another tenant, as somebody without a tenant and as nobody.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from allauth.usersessions.models import UserSession
from django.apps import apps
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from mirror_saas.api import api as ninja_api
from mirror_saas.ids import uuid7
from supervision.models import AlarmRecipient, Call, Intervention, ProviderCredential, StreamKey, ToolDecision, Turn
from supervision.services.alarm_mails import alarms_off_url
from supervision.services.alarms import alarm_kinds_set, alarm_raise, alarms_mail_make
from supervision.services.credentials import credential_create
from supervision.services.labels import turn_label
from supervision.services.policies import policy_create, policy_version_create, policy_version_publish
from supervision.services.webhooks import webhook_create, webhook_test
from tenants.managers import TenantModel
from tenants.models import Membership, User
from tenants.roles import ROLE_CAPABILITIES, Role
from tenants.services.api_keys import api_key_create
from tenants.services.invitations import invitation_create, invitation_mark
from tenants.services.memberships import membership_create
from tenants.services.sign_up import sign_up_token
from tenants.services.tenants import user_create
from tests.factories import Tenancy, approval_create, call_create, tenancy_create

PUBLIC, PERSON, MEMBER = "public", "person", "member"

Made = dict[str, Any]
Make = Callable[[Tenancy], Made]
Body = Callable[[Tenancy, Made], Mapping[str, Any]]


@dataclass(frozen=True)
class Door:
    """One operation. See the module."""

    method: str
    path: str
    needs: str
    made: Make = field(repr=False)
    body: Body | None = field(repr=False)
    answers: frozenset[int]
    prefix: str
    json: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tells: bool = False

    @property
    def parameters(self) -> list[str]:
        return [name for _, name in _PARAMETER.findall(self.path)]

    def url(self, made: Made) -> str:
        return self.prefix + _PARAMETER.sub(lambda match: str(made[match.group(2)]), self.path)


_PARAMETER = re.compile(r"[{<](?:(\w+):)?(\w+)[}>]")
_OK = frozenset({200, 201, 202, 203, 204})
_ANY = {"If-Match": "*"}


def nothing(tenancy: Tenancy) -> Made:
    """The path has no parameters."""
    return {}


def call(tenancy: Tenancy) -> Made:
    """The tenancy's newest call."""
    newest = Call.objects.order_by("-started_at").first()
    assert newest is not None
    return {"call_id": newest.id}


def turn(tenancy: Tenancy) -> Made:
    return {"turn_id": Turn.objects.order_by("id")[0].id}


def call_turn(tenancy: Tenancy) -> Made:
    """A turn, and the call that it is of."""
    first = Turn.objects.order_by("id")[0]
    return {"call_id": first.call_id, "turn_id": first.id}


def intervention(tenancy: Tenancy) -> Made:
    return {"intervention_id": Intervention.objects.order_by("id")[0].id}


def review_item(tenancy: Tenancy) -> Made:
    return {"item_id": Intervention.objects.order_by("id")[0].id}


def label(tenancy: Tenancy) -> Made:
    made = turn_label(turn_id=Turn.objects.order_by("id")[0].id, value="unsure")
    return {"label_id": made.id, "at": made.updated_at.isoformat()}


def tool_decision(tenancy: Tenancy) -> Made:
    return {"decision_id": ToolDecision.objects.order_by("id")[0].id}


def approval(tenancy: Tenancy) -> Made:
    """A tool call that waits for a person."""
    return {"decision_id": approval_create(tenancy).id}


def api_key(tenancy: Tenancy) -> Made:
    return {"api_key_id": api_key_create(name="swept", scopes=["judge"]).api_key.id}


def agent(tenancy: Tenancy) -> Made:
    return {"agent_id": tenancy.agent.id}


def stream_key(tenancy: Tenancy) -> Made:
    return {"agent_id": tenancy.agent.id, "stream_key_id": StreamKey.objects.values_list("id", flat=True)[0]}


def credential(tenancy: Tenancy) -> Made:
    """One that nothing uses."""
    made = credential_create(
        name="swept", kind=ProviderCredential.Kind.LLM, base_url="http://127.0.0.1:1/v1", model="m", api_key="swept"
    )
    return {"credential_id": made.id}


def webhook(tenancy: Tenancy) -> Made:
    """An endpoint that nobody listens at, and something on its way to it."""
    made = webhook_create(url="http://127.0.0.1:1/swept", event_types=["call.ended"]).endpoint
    return {"webhook_id": made.id, "delivery_id": webhook_test(webhook_id=made.id).id}


def policy(tenancy: Tenancy) -> Made:
    """One that judges no agent, with a draft, a version that was live, and a live one."""
    made = policy_create(name=f"swept {secrets.token_hex(4)}")
    for _ in range(3):
        policy_version_create(policy_id=made.id, rules=["Be kind."], llm_credential=tenancy.credential)
    for number in (1, 2):
        policy_version_publish(policy_id=made.id, number=number)
    return {"policy_id": made.id, "number": 3, "other": 1}


def policy_agent(tenancy: Tenancy) -> Made:
    return {"policy_id": tenancy.policy.id, "agent_id": tenancy.agent.id}


def viewer(tenancy: Tenancy) -> Made:
    """A member who looks on."""
    user = user_create(email=f"{secrets.token_hex(6)}@{tenancy.slug}.example", password=None)
    membership_id = membership_create(user=user, role=Role.VIEWER).id
    return {"member_id": membership_id, "membership_id": membership_id}


def invitation(tenancy: Tenancy) -> Made:
    made = invitation_create(**invitee(tenancy, {}), capabilities=ROLE_CAPABILITIES["owner"])
    return {"invitation_id": made.invitation.id}


def invitation_token(tenancy: Tenancy) -> Made:
    """The secret of an invitation's link."""
    made = invitation_create(**invitee(tenancy, {}), capabilities=ROLE_CAPABILITIES["owner"])
    return {"token": made.link.rpartition("/")[2]}


def invitation_sent(tenancy: Tenancy) -> tuple[str, str]:
    """What the task that mails an invitation is told of it."""
    made = invitation_create(**invitee(tenancy, {}), capabilities=ROLE_CAPABILITIES["owner"])
    return str(made.invitation.id), invitation_mark(made.invitation)


def alarm_told(tenancy: Tenancy) -> tuple[str, str]:
    """What the task that mails alarms is told: who gets the mail, and which one it is."""
    member = Membership.objects.order_by("created_at", "id")[0]
    alarm_kinds_set(membership_id=member.id, kinds=["limit"])
    alarm_raise(kind="limit", subject=tenancy.id, data={"limit": "calls"}, state=secrets.token_hex(4))
    mails = alarms_mail_make(now=timezone.now())
    assert mails is not None
    return str(mails.recipient_ids[0]), str(mails.mail_id)


def alarm_link(tenancy: Tenancy) -> Made:
    """The secret of the link that stops a member's alarm mails."""
    member = Membership.objects.order_by("created_at", "id")[0]
    alarm_kinds_set(membership_id=member.id, kinds=["limit"])
    url = alarms_off_url(AlarmRecipient.objects.get(membership=member))
    return {"token": url.rpartition("/")[2]}


def a_webhook(tenancy: Tenancy, made: Made) -> dict[str, Any]:
    """What a webhook's form sends."""
    return {"url": "http://127.0.0.1:1/new", "event_types": ["call.ended"]}


def a_privacy(tenancy: Tenancy, made: Made) -> dict[str, Any]:
    """What the form about privacy sends."""
    rows = {"patterns-TOTAL_FORMS": 0, "patterns-INITIAL_FORMS": 0}
    return {"redact": ["email"], "phone_region": "DE", "retention_days": "", "sample": "Hello.", **rows}


def an_alarm_choice(tenancy: Tenancy, made: Made) -> dict[str, Any]:
    """What the form about alarm mails sends."""
    return {Membership.objects.order_by("created_at", "id")[0].id.hex: ["coverage"]}


def sign_up_link(tenancy: Tenancy) -> Made:
    """The token of a link that goes on with signing up, for somebody new."""
    return {"token": sign_up_token(email=f"{secrets.token_hex(6)}@{tenancy.slug}.example", proven=True)}


def session(tenancy: Tenancy) -> Made:
    """A browser that the tenancy's owner is signed in with."""
    (owner, *_) = tenancy.users.values()
    store = import_module(settings.SESSION_ENGINE).SessionStore()
    store.save()
    row = UserSession.objects.create(user=owner, ip="192.0.2.7", session_key=store.session_key, user_agent="Swept")
    return {"session_id": row.pk}


def invitee(tenancy: Tenancy, made: Made) -> dict[str, Any]:
    """Somebody new, named after the tenancy."""
    return {"email": f"{secrets.token_hex(6)}@{tenancy.slug}.example", "role": Role.VIEWER}


def api(
    method: str,
    path: str,
    needs: str,
    made: Make = nothing,
    *,
    body: Body | None = None,
    answers: Iterable[int] = _OK,
    headers: Mapping[str, str] | None = None,
) -> Door:
    return Door(method, path, needs, made, body, frozenset(answers), "/api/v1", json=True, headers=headers or {})


def page(
    method: str,
    path: str,
    needs: str,
    made: Make = nothing,
    *,
    body: Body | None = None,
    answers: Iterable[int] = (200, 302),
    tells: bool = False,
) -> Door:
    return Door(method, path, needs, made, body, frozenset(answers), "/", json=False, tells=tells)


# -- the table ----------------------------------------------------------------------------------------------------

API = [
    api("GET", "/me", MEMBER),
    api("GET", "/audit-events", "admin"),
    api("GET", "/audit-events/export", "admin"),
    api("GET", "/audit-events/verify", "admin"),
    api("GET", "/api-keys", "admin"),
    api("POST", "/api-keys", "admin", body=lambda tenancy, made: {"name": "new", "scopes": ["admin"]}),
    api("GET", "/api-keys/{uuid:api_key_id}", "admin", api_key),
    api("PATCH", "/api-keys/{uuid:api_key_id}", "admin", api_key, body=lambda tenancy, made: {"name": "new"}),
    api("DELETE", "/api-keys/{uuid:api_key_id}", "admin", api_key),
    api("GET", "/members", "admin"),
    api("GET", "/members/{uuid:member_id}", "admin", viewer),
    api("PATCH", "/members/{uuid:member_id}", "admin", viewer, body=lambda tenancy, made: {"role": "editor"}),
    api("DELETE", "/members/{uuid:member_id}", "admin", viewer),
    api("GET", "/invitations", "admin"),
    api("POST", "/invitations", "admin", body=invitee),
    api("GET", "/invitations/{uuid:invitation_id}", "admin", invitation),
    api("DELETE", "/invitations/{uuid:invitation_id}", "admin", invitation),
    api("POST", "/invitations/{uuid:invitation_id}/resend", "admin", invitation),
    api("GET", "/tenant", "admin"),
    api("PATCH", "/tenant", "admin", body=lambda tenancy, made: {"name": "new"}),
    api("GET", "/agents", "policies:read"),
    api(
        "POST",
        "/agents",
        "admin",
        body=lambda tenancy, made: {
            "name": "new",
            "upstream_url": "ws://127.0.0.1:1/new",
            "policy_id": tenancy.policy.id,
            "headers": {"X-Login": "new"},
        },
    ),
    api("GET", "/agents/{uuid:agent_id}", "policies:read", agent),
    api(
        "PATCH", "/agents/{uuid:agent_id}", "admin", agent, body=lambda tenancy, made: {"policy_id": tenancy.policy.id}
    ),
    api("DELETE", "/agents/{uuid:agent_id}", "admin", agent),
    api("POST", "/agents/{uuid:agent_id}/signing-secret", "admin", agent),
    api("POST", "/agents/{uuid:agent_id}/stream-key", "admin", agent, body=lambda tenancy, made: {"overlap_ms": 0}),
    api("GET", "/agents/{uuid:agent_id}/stream-keys", "admin", agent),
    api("DELETE", "/agents/{uuid:agent_id}/stream-keys/{uuid:stream_key_id}", "admin", stream_key),
    api("POST", "/agents/{uuid:agent_id}/check", "admin", agent),
    api("GET", "/credentials", "policies:read"),
    api(
        "POST",
        "/credentials",
        "admin",
        body=lambda tenancy, made: {
            "kind": "llm",
            "name": "new",
            "base_url": "http://127.0.0.1:1/v1",
            "model": "m",
            "secret": "new",
        },
    ),
    api("GET", "/credentials/{uuid:credential_id}", "policies:read", credential),
    api("PATCH", "/credentials/{uuid:credential_id}", "admin", credential, body=lambda tenancy, made: {"name": "new"}),
    api("DELETE", "/credentials/{uuid:credential_id}", "admin", credential),
    api("GET", "/webhooks", "admin"),
    api(
        "POST",
        "/webhooks",
        "admin",
        body=lambda tenancy, made: {"url": "http://127.0.0.1:1/new", "event_types": ["call.ended"]},
    ),
    api("GET", "/webhooks/{uuid:webhook_id}", "admin", webhook),
    api("PATCH", "/webhooks/{uuid:webhook_id}", "admin", webhook, body=lambda tenancy, made: {"description": "new"}),
    api("DELETE", "/webhooks/{uuid:webhook_id}", "admin", webhook),
    api("POST", "/webhooks/{uuid:webhook_id}/rotate-secret", "admin", webhook, body=lambda tenancy, made: {}),
    api("POST", "/webhooks/{uuid:webhook_id}/test", "admin", webhook),
    api("GET", "/webhooks/{uuid:webhook_id}/deliveries", "admin", webhook),
    api("GET", "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}", "admin", webhook),
    api("POST", "/webhooks/{uuid:webhook_id}/deliveries/{uuid:delivery_id}/redeliver", "admin", webhook),
    api("GET", "/policies", "policies:read"),
    api("POST", "/policies", "policies:write", body=lambda tenancy, made: {"name": "new"}),
    # Its judge does not answer.
    api(
        "POST",
        "/policies/derive",
        "policies:write",
        body=lambda tenancy, made: {
            "agent_prompt": "Never promise a delivery time.",
            "llm_credential_id": tenancy.credential.id,
            "policy_id": tenancy.policy.id,
        },
        answers=(502,),
    ),
    api("GET", "/policies/{uuid:policy_id}", "policies:read", policy),
    api(
        "PATCH",
        "/policies/{uuid:policy_id}",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"name": "new"},
        headers=_ANY,
    ),
    api("DELETE", "/policies/{uuid:policy_id}", "policies:write", policy, headers=_ANY),
    api("GET", "/policies/{uuid:policy_id}/versions", "policies:read", policy),
    api(
        "POST",
        "/policies/{uuid:policy_id}/versions",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"from_number": 1, "llm_credential_id": tenancy.credential.id},
    ),
    api("GET", "/policies/{uuid:policy_id}/versions/{int:number}", "policies:read", policy),
    api(
        "PATCH",
        "/policies/{uuid:policy_id}/versions/{int:number}",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"llm_credential_id": tenancy.credential.id, "note": "new"},
        headers=_ANY,
    ),
    api("POST", "/policies/{uuid:policy_id}/versions/{int:number}/publish", "policies:write", policy, headers=_ANY),
    api("POST", "/policies/{uuid:policy_id}/versions/{int:number}/shadow", "policies:write", policy, headers=_ANY),
    api("POST", "/policies/{uuid:policy_id}/rollback", "policies:write", policy, headers=_ANY),
    api("GET", "/policies/{uuid:policy_id}/versions/{int:number}/prompt", "policies:read", policy),
    api("GET", "/policies/{uuid:policy_id}/versions/{int:number}/diff/{int:other}", "policies:read", policy),
    api("GET", "/policies/{uuid:policy_id}/agents", "policies:read", policy),
    api(
        "PUT",
        "/policies/{uuid:policy_id}/agents/{uuid:agent_id}",
        "policies:write",
        policy_agent,
        body=lambda tenancy, made: {"policy_track": "shadow"},
    ),
    api("DELETE", "/policies/{uuid:policy_id}/agents/{uuid:agent_id}", "policies:write", policy_agent),
    api(
        "POST",
        "/review",
        "judge",
        body=lambda tenancy, made: {"agent_id": tenancy.agent.id, "turn_id": "t1", "text": "I have refunded it."},
    ),
    api(
        "POST",
        "/tool-gate",
        "judge",
        body=lambda tenancy, made: {"agent_id": tenancy.agent.id, "id": "c1", "name": "send_sms"},
    ),
    api("GET", "/calls", "calls:read"),
    api("GET", "/calls/{uuid:call_id}", "calls:read", call),
    api("GET", "/calls/{uuid:call_id}/turns", "calls:read", call),
    api("GET", "/calls/{uuid:call_id}/timeline", "calls:read", call),
    api("DELETE", "/calls/{uuid:call_id}", "calls:write", call),
    # It has ended.
    api(
        "POST",
        "/calls/{uuid:call_id}/turns",
        "judge",
        call,
        body=lambda tenancy, made: {"turn_id": "t9", "text": "new"},
        answers=(409,),
    ),
    api("GET", "/verdicts", "calls:read"),
    api("GET", "/tool-decisions", "calls:read"),
    api("GET", "/tool-decisions/{uuid:decision_id}/approval", "calls:read", approval),
    api(
        "POST",
        "/tool-decisions/{uuid:decision_id}/approval",
        "calls:write",
        approval,
        body=lambda tenancy, made: {"decision": "approve", "note": "new"},
    ),
    api("GET", "/interventions", "calls:read"),
    api("PUT", "/turns/{uuid:turn_id}/label", "labels:write", turn, body=lambda tenancy, made: {"label": "unsure"}),
    api(
        "PUT",
        "/interventions/{uuid:intervention_id}/label",
        "labels:write",
        intervention,
        body=lambda tenancy, made: {"label": "unsure"},
    ),
    api(
        "PUT",
        "/tool-decisions/{uuid:decision_id}/label",
        "labels:write",
        tool_decision,
        body=lambda tenancy, made: {"label": "unsure"},
    ),
    api("GET", "/usage", "calls:read"),
    api("GET", "/tenant/models", "policies:read"),
    api("PUT", "/tenant/models", "admin", body=lambda tenancy, made: {"llm_credential_id": None}),
    api("GET", "/tenant/privacy", "admin"),
    api("PUT", "/tenant/privacy", "admin", body=lambda tenancy, made: {"retention_days": 30}),
    api("GET", "/alarms", "admin"),
    api("GET", "/members/{uuid:member_id}/alarm-mails", "admin", viewer),
    api(
        "PUT", "/members/{uuid:member_id}/alarm-mails", "admin", viewer, body=lambda tenancy, made: {"kinds": ["call"]}
    ),
]

# Tries are counted by address, and every test comes from the same one.
_COUNTED = (200, 302, 429)


def _an_agent(tenancy: Tenancy) -> Mapping[str, Any]:
    """What the forms about an agent send. A policy of another tenant's is refused at its field: test_agents.py."""
    return {
        "name": "new",
        "upstream_url": "ws://127.0.0.1:1/new",
        "language": "en",
        "audio_format": tenancy.agent.audio_format,
        "mode": "live",
        "policy_id": "",
        "policy_track": "live",
        "redials": 0,
        "on_failure": "close",
        "rules": "Be kind.",
        "judge_url": "http://127.0.0.1:1/v1",
        "judge_model": "m",
    }


PAGES = [
    page("GET", "livez", PUBLIC),
    page("GET", "readyz", PUBLIC, answers=(200, 503)),
    # For the machine itself, and everybody here comes from elsewhere: tests/supervision/test_metrics.py.
    page("GET", "metrics", PUBLIC, answers=(404,)),
    page("GET", "api/v1/openapi.json", PUBLIC),
    page("GET", "api/v1/docs", PUBLIC),
    page("GET", "api/v1/", PUBLIC, answers=(404,)),
    page("GET", "", PUBLIC),
    page("GET", "sign-in", PUBLIC),
    page(
        "POST",
        "sign-in",
        PUBLIC,
        body=lambda tenancy, made: {"login": "nobody@example.com", "password": "x"},
        answers=_COUNTED,
    ),
    page("GET", "sign-in/code", PUBLIC),
    page("POST", "sign-in/code", PUBLIC),
    page("POST", "sign-out", PUBLIC),
    page("GET", "forgot-password", PUBLIC),
    page(
        "POST", "forgot-password", PUBLIC, body=lambda tenancy, made: {"email": "nobody@example.com"}, answers=_COUNTED
    ),
    page("GET", "forgot-password/sent", PUBLIC),
    page("GET", "reset-password/new", PUBLIC, answers=(200, 302, 404)),
    page("POST", "reset-password/new", PUBLIC, answers=(200, 302, 404)),
    page("GET", "reset-password/<str:key>", PUBLIC, lambda tenancy: {"key": "none"}, answers=(200, 302, 404)),
    page("GET", "sign-up", PUBLIC),
    page("POST", "sign-up", PUBLIC, body=lambda tenancy, made: {"email": "nobody@example.com"}, answers=_COUNTED),
    page("GET", "sign-up/sent", PUBLIC),
    page("GET", "sign-up/new", PUBLIC, answers=(200, 302, 404)),
    page("POST", "sign-up/new", PUBLIC, answers=(200, 302, 404)),
    page("GET", "sign-up/<str:token>", PUBLIC, sign_up_link),
    page("GET", "account", PERSON),
    page("GET", "account/confirm", PERSON),
    page("POST", "account/confirm", PERSON),
    page("GET", "account/password", PERSON),
    page("POST", "account/password", PERSON),
    page("GET", "account/two-factor", PERSON),
    page("POST", "account/two-factor", PERSON),
    page("GET", "account/two-factor/off", PERSON),
    page("POST", "account/two-factor/off", PERSON),
    page("GET", "account/recovery-codes", PERSON),
    page("POST", "account/recovery-codes/new", PERSON),
    page("POST", "account/sessions/end", PERSON),
    page("POST", "account/sessions/<int:session_id>/end", PERSON, session),
    page("GET", "no-tenant", PERSON, answers=(200, 302, 403)),
    page("POST", "tenant/switch", PERSON, body=lambda tenancy, made: {"tenant": tenancy.id}),
    page("GET", "members", "admin"),
    page("POST", "members/invite", "admin", body=invitee),
    page("GET", "members/leave", "membership"),
    page("POST", "members/leave", "membership"),
    page("GET", "members/<uuid:membership_id>/role", "admin", viewer),
    page("POST", "members/<uuid:membership_id>/role", "admin", viewer, body=lambda tenancy, made: {"role": "editor"}),
    page("GET", "members/<uuid:membership_id>/remove", "admin", viewer),
    page("POST", "members/<uuid:membership_id>/remove", "admin", viewer),
    page("POST", "invitations/<uuid:invitation_id>/resend", "admin", invitation),
    page("POST", "invitations/<uuid:invitation_id>/revoke", "admin", invitation),
    # Whoever has the link is shown whom it is for; that is what it is for.
    page("GET", "invitation/<str:token>", PUBLIC, invitation_token, tells=True),
    page("POST", "invitation/<str:token>", PUBLIC, invitation_token, answers=(200, 302, 403), tells=True),
    page("GET", "api-keys", "admin"),
    page("GET", "api-keys/new", "admin"),
    page("POST", "api-keys/new", "admin", body=lambda tenancy, made: {"name": "new", "scopes": ["admin"]}),
    page("GET", "api-keys/<uuid:api_key_id>", "admin", api_key),
    page("POST", "api-keys/<uuid:api_key_id>", "admin", api_key, body=lambda tenancy, made: {"name": "new"}),
    page("GET", "api-keys/<uuid:api_key_id>/revoke", "admin", api_key),
    page("POST", "api-keys/<uuid:api_key_id>/revoke", "admin", api_key),
    page("GET", "credentials", "policies:read"),
    page("GET", "credentials/new", "admin"),
    page(
        "POST",
        "credentials/new",
        "admin",
        body=lambda tenancy, made: {
            "kind": "llm",
            "name": "new",
            "base_url": "http://127.0.0.1:1/v1",
            "model": "m",
            "secret": "new",
        },
    ),
    page("GET", "credentials/<uuid:credential_id>", "policies:read", credential),
    page("GET", "credentials/<uuid:credential_id>/edit", "admin", credential),
    page(
        "POST",
        "credentials/<uuid:credential_id>/edit",
        "admin",
        credential,
        body=lambda tenancy, made: {"name": "new", "base_url": "http://127.0.0.1:1/v1", "model": "new"},
    ),
    page("GET", "credentials/<uuid:credential_id>/delete", "admin", credential),
    page("POST", "credentials/<uuid:credential_id>/delete", "admin", credential),
    page("GET", "webhooks", "admin"),
    page("GET", "webhooks/new", "admin"),
    page("POST", "webhooks/new", "admin", body=a_webhook),
    page("GET", "webhooks/<uuid:webhook_id>", "admin", webhook),
    page("GET", "webhooks/<uuid:webhook_id>/edit", "admin", webhook),
    page("POST", "webhooks/<uuid:webhook_id>/edit", "admin", webhook, body=a_webhook),
    page("GET", "webhooks/<uuid:webhook_id>/secret", "admin", webhook),
    page("POST", "webhooks/<uuid:webhook_id>/secret", "admin", webhook, body=lambda tenancy, made: {"overlap": "24"}),
    page("GET", "webhooks/<uuid:webhook_id>/delete", "admin", webhook),
    page("POST", "webhooks/<uuid:webhook_id>/delete", "admin", webhook),
    page("POST", "webhooks/<uuid:webhook_id>/test", "admin", webhook),
    page("GET", "webhooks/<uuid:webhook_id>/deliveries/<uuid:delivery_id>", "admin", webhook),
    page("POST", "webhooks/<uuid:webhook_id>/deliveries/<uuid:delivery_id>/redeliver", "admin", webhook),
    page("GET", "settings", "admin"),
    page("POST", "settings", "admin", body=lambda tenancy, made: {"name": "new"}),
    page("GET", "settings/models", "admin"),
    page("POST", "settings/models", "admin", body=lambda tenancy, made: {"llm_credential_id": ""}),
    page("GET", "settings/privacy", "admin"),
    page("POST", "settings/privacy", "admin", body=a_privacy),
    page("POST", "settings/privacy/try", "admin", body=a_privacy),
    page("GET", "settings/alarms", "admin"),
    page("POST", "settings/alarms", "admin", body=an_alarm_choice),
    page("GET", "alarm-mails", "membership"),
    page("POST", "alarm-mails", "membership", body=lambda tenancy, made: {"kinds": ["coverage"]}),
    # As with an invitation's link: whoever has it is shown whose mails it stops.
    page("GET", "alarm-mails/off/<str:token>", PUBLIC, alarm_link, answers=(200, 404), tells=True),
    page("POST", "alarm-mails/off/<str:token>", PUBLIC, alarm_link, answers=(200, 404), tells=True),
    page("GET", "audit", "admin"),
    page("GET", "audit/verify", "admin"),
    page("GET", "welcome", "admin"),
    page("POST", "welcome", "admin", body=lambda tenancy, made: {"agent": "own", **_an_agent(tenancy)}),
    page("GET", "welcome/<uuid:agent_id>", "admin", agent),
    page("GET", "agents", "policies:read"),
    page("GET", "agents/new", "admin"),
    page("POST", "agents/new", "admin", body=lambda tenancy, made: _an_agent(tenancy)),
    page("GET", "agents/<uuid:agent_id>", "policies:read", agent),
    page("GET", "agents/<uuid:agent_id>/edit", "admin", agent),
    page("POST", "agents/<uuid:agent_id>/edit", "admin", agent, body=lambda tenancy, made: _an_agent(tenancy)),
    page(
        "POST",
        "agents/<uuid:agent_id>/policy",
        "policies:write",
        agent,
        body=lambda tenancy, made: {"policy_id": tenancy.policy.id, "policy_track": "shadow"},
    ),
    page("POST", "agents/<uuid:agent_id>/check", "admin", agent),
    page("GET", "agents/<uuid:agent_id>/archive", "admin", agent),
    page("POST", "agents/<uuid:agent_id>/archive", "admin", agent),
    page("GET", "agents/<uuid:agent_id>/stream-key", "admin", agent),
    page("POST", "agents/<uuid:agent_id>/stream-key", "admin", agent, body=lambda tenancy, made: {"overlap_h": "0"}),
    page("GET", "agents/<uuid:agent_id>/stream-keys/<uuid:stream_key_id>/revoke", "admin", stream_key),
    page("POST", "agents/<uuid:agent_id>/stream-keys/<uuid:stream_key_id>/revoke", "admin", stream_key),
    page("GET", "agents/<uuid:agent_id>/signing-secret", "admin", agent),
    page("POST", "agents/<uuid:agent_id>/signing-secret", "admin", agent),
    page("GET", "calls", "calls:read"),
    page("GET", "calls.csv", "calls:read"),
    page("GET", "calls/<uuid:call_id>", "calls:read", call),
    page("GET", "calls/<uuid:call_id>/turns", "calls:read", call),
    page("GET", "calls/<uuid:call_id>/turns/<uuid:turn_id>", "calls:read", call_turn),
    page("GET", "calls/<uuid:call_id>/events", "calls:read", call),
    page(
        "POST",
        "calls/<uuid:call_id>/label",
        "labels:write",
        call_turn,
        body=lambda tenancy, made: {
            "turn": made["turn_id"],
            "about": "intervention",
            "subject_id": intervention(tenancy)["intervention_id"],
            "label": "unsure",
        },
    ),
    page("GET", "calls/<uuid:call_id>/erase", "calls:write", call),
    page("POST", "calls/<uuid:call_id>/erase", "calls:write", call),
    page("GET", "test-call", "calls:write"),
    page("GET", "live", "calls:read"),
    page("GET", "overview", "calls:read"),
    page("GET", "usage", "calls:read"),
    page("GET", "review", "labels:write"),
    page("GET", "review/<uuid:item_id>", "labels:write", review_item),
    page("POST", "review/<uuid:item_id>", "labels:write", review_item, body=lambda tenancy, made: {"label": "unsure"}),
    page(
        "POST",
        "review/undo",
        "labels:write",
        label,
        body=lambda tenancy, made: {"label": made["label_id"], "at": made["at"]},
    ),
    page("GET", "policies", "policies:read"),
    page("GET", "policies/new", "policies:write"),
    page(
        "POST",
        "policies/new",
        "policies:write",
        body=lambda tenancy, made: {"name": "swept anew", "rules": "Be kind."},
    ),
    page("GET", "policies/derive", "policies:write"),
    page(
        "POST",
        "policies/derive",
        "policies:write",
        body=lambda tenancy, made: {"prompt": "Be kind.", "name": "swept anew"},
    ),
    page("GET", "policies/<uuid:policy_id>", "policies:read", policy),
    page("GET", "policies/<uuid:policy_id>/diff", "policies:read", policy),
    page(
        "POST",
        "policies/<uuid:policy_id>/rename",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"name": "swept away", "etag": '"3"'},
    ),
    page("GET", "policies/<uuid:policy_id>/archive", "policies:write", policy),
    page("POST", "policies/<uuid:policy_id>/archive", "policies:write", policy),
    page(
        "POST",
        "policies/<uuid:policy_id>/rollback",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"number": made["other"], "etag": '"3"'},
    ),
    page(
        "POST",
        "policies/<uuid:policy_id>/agents",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"agent": tenancy.agent.id, "track": "live"},
    ),
    page("GET", "policies/<uuid:policy_id>/agents/<uuid:agent_id>", "policies:write", policy_agent),
    page(
        "POST",
        "policies/<uuid:policy_id>/agents/<uuid:agent_id>",
        "policies:write",
        policy_agent,
        body=lambda tenancy, made: {"track": "shadow", "intervention_threshold": "0.9"},
    ),
    page("POST", "policies/<uuid:policy_id>/agents/<uuid:agent_id>/remove", "policies:write", policy_agent),
    page("GET", "policies/<uuid:policy_id>/versions/new", "policies:write", policy),
    page(
        "POST",
        "policies/<uuid:policy_id>/versions/new",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"number": made["number"]},
    ),
    page("GET", "policies/<uuid:policy_id>/versions/<int:number>", "policies:read", policy),
    page(
        "POST",
        "policies/<uuid:policy_id>/versions/<int:number>/save",
        "policies:write",
        policy,
        body=lambda tenancy, made: {
            "rule.a.text": "Be kinder.",
            "rule.a.on": "on",
            "llm": tenancy.credential.id,
            "etag": '"3.1"',
        },
        answers=(200, 302, 409),
    ),
    page("GET", "policies/<uuid:policy_id>/versions/<int:number>/publish", "policies:write", policy),
    page(
        "POST",
        "policies/<uuid:policy_id>/versions/<int:number>/publish",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"etag": '"3.1"'},
        answers=(200, 302, 409),
    ),
    page(
        "POST",
        "policies/<uuid:policy_id>/versions/<int:number>/shadow",
        "policies:write",
        policy,
        body=lambda tenancy, made: {"etag": '"3.1"'},
    ),
    page(
        "POST",
        "policies/<uuid:policy_id>/versions/<int:number>/try",
        "judge",
        policy,
        body=lambda tenancy, made: {
            "try-do": f"turn.{turn(tenancy)['turn_id']}",
            "rule.a.text": "Be kinder.",
            "rule.a.on": "on",
            "llm": tenancy.credential.id,
        },
    ),
    page("GET", "approvals", "calls:read"),
    page(
        "POST",
        "approvals/decide",
        "calls:write",
        approval,
        body=lambda tenancy, made: {"approve": str(made["decision_id"])},
    ),
]

# Plivo asks these with a stream key; test_socket_sweep.py asks them with every wrong one.
HOOKS = {"plivo/<str:slug>/<str:key>/answer", "plivo/<str:slug>/<str:key>/status"}

# tests/webui/test_phone.py asks the telephone's as everybody.
SOCKETS = {"ws/console", "ws/test-call", "stream/<str:slug>/<str:key>"}

# What a console socket can follow: the capability, and the topic's name for an object of a tenancy.
TOPICS: dict[str, tuple[str, Callable[[Tenancy], str]]] = {
    "approvals": ("calls:read", lambda tenancy: "approvals"),
    "calls": ("calls:read", lambda tenancy: "calls"),
    "call": ("calls:read", lambda tenancy: f"call:{call(tenancy)['call_id']}"),
    "live": ("calls:read", lambda tenancy: "live"),
}

# Arguments that name an object of a tenancy. GLOBAL tasks belong to no tenant; they write no row of any.
GLOBAL, TENANT = "global", "tenant"
TASKS: dict[str, tuple[str, Callable[[Tenancy], tuple[Any, ...]]]] = {
    "mirror_saas.each_tenant": (GLOBAL, lambda tenancy: ("tenants.invitation_send",)),
    "mirror_saas.sessions_clear": (GLOBAL, lambda tenancy: ()),
    "tenants.sign_up_send": (GLOBAL, lambda tenancy: (next(iter(tenancy.users.values())).email,)),
    "tenants.password_reset_send": (GLOBAL, lambda tenancy: (next(iter(tenancy.users.values())).email,)),
    "tenants.invitation_send": (TENANT, lambda tenancy: invitation_sent(tenancy)),
    "supervision.calls_prune": (TENANT, lambda tenancy: ()),
    "supervision.webhooks_sweep": (GLOBAL, lambda tenancy: ()),
    "supervision.webhooks_send": (TENANT, lambda tenancy: ()),
    "supervision.webhooks_prune": (TENANT, lambda tenancy: ()),
    "supervision.alarms_sweep": (GLOBAL, lambda tenancy: ()),
    "supervision.alarms_mail": (TENANT, lambda tenancy: ()),
    "supervision.alarm_send": (TENANT, lambda tenancy: alarm_told(tenancy)),
    "supervision.alarms_check": (TENANT, lambda tenancy: ()),
    "tenants.idempotency_clear": (TENANT, lambda tenancy: ()),
}


# -- what there is ------------------------------------------------------------------------------------------------


def api_operations() -> dict[tuple[str, str], Any]:
    """(method, path) of every operation of the API, and its function."""
    found = {}
    for prefix, router in ninja_api._routers:
        for path, view in router.path_operations.items():
            for operation in view.operations:
                for method in operation.methods:
                    found[method, f"{prefix}{path}".replace("{uuidstr:", "{uuid:")] = operation.view_func
    return found


def urls() -> dict[str, Any]:
    """The path of every URL pattern outside of the API's operations, and its view."""

    def walk(patterns: Iterable[URLPattern | URLResolver], before: str) -> Iterator[tuple[str, Any]]:
        for pattern in patterns:
            path = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            else:
                yield path, pattern.callback

    operations = {re.sub(r"[{}]", "", path).replace("uuid:", "").replace("int:", "") for _, path in api_operations()}

    def is_operation(path: str) -> bool:
        plain = (
            re.sub(r"[<>]", "", path.removeprefix("api/v1"))
            .replace("uuid:", "")
            .replace("uuidstr:", "")
            .replace("int:", "")
        )
        return path.startswith("api/v1/") and plain in operations

    return {path: view for path, view in walk(get_resolver().url_patterns, "") if not is_operation(path)}


# -- who asks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asker:
    """Somebody with a session, a key, both or neither; each request is made by a client of its own."""

    session: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)

    def client(self) -> Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # From an address of its own: wrong keys from one address are limited, and there are many doors.
        address = str(IPv4Address(0x0A000000 | secrets.randbits(24)))
        client = Client(headers=headers, raise_request_exception=False, REMOTE_ADDR=address)
        if self.session is not None:
            client.cookies[settings.SESSION_COOKIE_NAME] = self.session
        return client


NOBODY = Asker()


def with_key(key: str) -> Asker:
    return Asker(key=key)


def signed_in(user: User, *, chosen: UUID | None = None, key: str | None = None) -> Asker:
    """A browser of `user`, who proved just now who they are; `chosen`: the tenant that the session says."""
    client = Client()
    client.force_login(user)
    state = client.session
    state["account_authentication_methods"] = [{"method": "password", "at": time.time()}]
    state["account_authentication_methods_user"] = str(user.pk)
    if chosen is not None:
        state["tenant_id"] = str(chosen)
    state.save()
    return Asker(session=state.session_key, key=key)


def person(name: str = "dora") -> User:
    """Somebody who belongs to no tenant."""
    return user_create(email=f"{name}-{secrets.token_hex(4)}@example.com", password=None, name=name)


def member(tenancy: Tenancy, role: Role) -> User:
    user = person(f"the-{role.value}")
    with tenancy.context():
        membership_create(user=user, role=role)
    return user


@dataclass(frozen=True)
class World:
    """Alice's tenant, charlie's, which is the one that is asked about, and everybody who asks."""

    tenant: Tenancy
    stranger: Tenancy
    charlie: Asker
    members: dict[Role, Asker]
    alice: Asker
    elsewhere: Asker  # alice, in a session that says it belongs to charlie's tenant
    beside: Asker  # charlie's session with a key of alice's tenant beside it
    wrong: Asker  # charlie's session with a wrong key
    dora: Asker
    dora_elsewhere: Asker

    def members_without(self, needs: str) -> list[Asker]:
        return [asker for role, asker in self.members.items() if needs not in ROLE_CAPABILITIES[role.value]]


def world_create() -> World:
    tenant, stranger = tenancy_create(owner="alice"), tenancy_create(owner="charlie")
    call_create(tenant)
    call_create(stranger, customer_text="charlie's secret question", text="charlie's secret answer")
    alice, charlie, dora = tenant.users["alice"], stranger.users["charlie"], person()
    return World(
        tenant=tenant,
        stranger=stranger,
        charlie=signed_in(charlie),
        members={role: signed_in(member(stranger, role)) for role in Role if role != Role.OWNER},
        alice=signed_in(alice),
        elsewhere=signed_in(alice, chosen=stranger.id),
        beside=signed_in(charlie, key=tenant.api_key),
        wrong=signed_in(charlie, key=f"{stranger.api_key[:-4]}AAAA"),
        dora=signed_in(dora),
        dora_elsewhere=signed_in(dora, chosen=stranger.id),
    )


# -- asking -------------------------------------------------------------------------------------------------------


@contextmanager
def undone() -> Iterator[None]:
    """What happens inside did not happen."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@dataclass(frozen=True)
class Question:
    """A door's request about one tenancy's object."""

    door: Door
    made: Made
    body: Any

    @property
    def url(self) -> str:
        return self.door.url(self.made)

    @property
    def text(self) -> str:
        return self.url + json.dumps(self.body, default=str)

    def ask(self, asker: Asker) -> HttpResponse:
        method, sent, client = self.door.method, self.body, asker.client()
        if self.door.json:
            text = "" if sent is None else json.dumps(sent, default=str)
            return client.generic(  # type: ignore[return-value]
                method, self.url, text, content_type="application/json", headers=dict(self.door.headers)
            )
        if method in ("GET", "HEAD"):
            return client.get(self.url)  # type: ignore[return-value]
        if method == "POST":
            return client.post(self.url, dict(sent or {}))  # type: ignore[return-value]
        return client.generic(method, self.url)  # type: ignore[return-value]

    def missing(self, ids: Iterable[UUID]) -> Question:
        """The same about something that does not exist: every id of it is an id of nothing."""
        replaced: dict[str, str] = {str(known): str(uuid7()) for known in ids}

        def replace(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: replace(each) for name, each in value.items()}
            if isinstance(value, list | tuple):
                return [replace(each) for each in value]
            return replaced.get(str(value), value)

        made = {name: _nobodys(value) for name, value in self.made.items()}
        return Question(self.door, made, replace(self.body))


def _nobodys(value: Any) -> Any:
    if isinstance(value, UUID):
        return uuid7()
    return 2**31 - 1 if isinstance(value, int) else secrets.token_urlsafe(32)


def question(door: Door, tenancy: Tenancy) -> Question:
    """The door's request about `tenancy`, which it may make an object in."""
    with tenancy.context():
        made = door.made(tenancy)
        body = None if door.body is None else door.body(tenancy, made)
    return Question(door, made, body)


def answer_text(response: HttpResponse) -> str:
    """All that an answer says: body, headers, cookies."""
    body = b"".join(response.streaming_content) if response.streaming else response.content  # type: ignore[attr-defined]
    headers = "\n".join(f"{name}: {value}" for name, value in response.items())
    return f"{response.status_code}\n{headers}\n{response.cookies.output()}\n\n{body.decode('utf-8', 'replace')}"


_VARIES = (
    re.compile(r'"request_id": ?"[^"]*"'),
    re.compile(r"(?im)^(x-request-id|ratelimit[\w-]*|x-ratelimit[\w-]*|set-cookie|retry-after|content-length): .*$"),
    re.compile(r'name="csrfmiddlewaretoken" value="[^"]*"'),
    re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}"),
)


def answer_alike(response: HttpResponse) -> str:
    """An answer without what differs from request to request: ids, tokens, what is left of a limit."""
    text = answer_text(response)
    for pattern in _VARIES:
        text = pattern.sub("*", text)
    return text


# -- what nobody else may see or change ---------------------------------------------------------------------------

# Being used is written down; it is the asker's key.
_UNUSED = "to_jsonb(t) - 'last_used_at' - 'last_used_ip'"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TENANT_TABLES = sorted(model._meta.db_table for model in apps.get_models() if issubclass(model, TenantModel))
# One question for all tables: it is asked around every request of the sweep.
_ROWS = " UNION ALL ".join(
    f"SELECT '{table}', coalesce(jsonb_agg({_UNUSED} ORDER BY t.id), '[]')::text FROM {table} t"
    for table in ["tenants_tenant", *_TENANT_TABLES]
)


def rows(tenancy: Tenancy) -> dict[str, str]:
    """Every row of a tenant, as JSON by table."""
    with tenancy.context(), connection.cursor() as cursor:
        cursor.execute(_ROWS)
        return dict(cursor.fetchall())


def row_ids(found: dict[str, str]) -> set[UUID]:
    return {UUID(text) for table in found.values() for text in _UUID.findall(table)}


def marks(tenancy: Tenancy, found: dict[str, str]) -> set[str]:
    """What would betray a tenancy in an answer: its words, names, addresses and the ids of its rows."""
    people = {word for user in tenancy.users.values() for word in (user.email, user.name)}
    ids = row_ids(found) | {user.id for user in tenancy.users.values()}
    said = {"charlie", "Charlie"} if "charlie" in tenancy.slug else set()
    return {tenancy.slug, tenancy.tenant.name, *people, *said, *map(str, ids), *(one.hex for one in ids)}


def leaks(response: HttpResponse, asked: Question, foreign: set[str]) -> list[str]:
    """Marks in an answer that the question did not name itself."""
    text = answer_text(response)
    return sorted(mark for mark in foreign if mark in text and mark not in asked.text)
