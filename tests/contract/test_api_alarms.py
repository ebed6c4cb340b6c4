"""`/alarms` and `/members/{id}/alarm-mails`: what went wrong, and who is mailed of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.services.alarms import alarm_raise, alarms_mail_make
from tenants.models import AuditEvent
from tests.contract.test_api_members import member_of, send, with_key
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


def path(tenancy: Tenancy, name: str) -> str:
    return f"/members/{member_of(tenancy, name).id}/alarm-mails"


def test_nobody_is_mailed_until_somebody_chooses_so(tenant: Tenancy, stranger: Tenancy) -> None:
    key = with_key(tenant)
    assert send(key, "GET", path(tenant, "bob")).json() == {"kinds": []}
    assert send(key, "PUT", path(tenant, "bob"), {"kinds": ["call", "coverage", "call"]}).json() == {
        "kinds": ["coverage", "call"]
    }
    assert send(key, "GET", path(tenant, "bob")).json() == {"kinds": ["coverage", "call"]}
    assert send(key, "GET", path(tenant, "alice")).json() == {"kinds": []}
    assert send(with_key(stranger), "GET", path(stranger, "charlie")).json() == {"kinds": []}
    assert send(key, "PUT", path(tenant, "bob"), {"kinds": []}).json() == {"kinds": []}
    with tenant.context():
        assert AuditEvent.objects.filter(action="alarm_mails.update").count() == 2


@pytest.mark.parametrize(
    "body", [None, {}, {"kinds": ["fire"]}, {"kinds": None}, {"kinds": "call"}, {"kinds": ["call"] * 5}, {"kind": []}]
)
def test_what_is_no_kind_is_refused_by_name(tenant: Tenancy, body: Any) -> None:
    refused = send(with_key(tenant), "PUT", path(tenant, "bob"), body)
    assert refused.status_code in (400, 422)
    assert refused.json()["errors"]
    assert send(with_key(tenant), "GET", path(tenant, "bob")).json() == {"kinds": []}


def test_foreign_and_missing_members_are_the_same_and_a_key_needs_the_scope(tenant: Tenancy, stranger: Tenancy) -> None:
    foreign = path(stranger, "charlie")
    for method, body in (("GET", None), ("PUT", {"kinds": ["call"]})):
        answers = [
            send(with_key(tenant), method, f"/members/{uuid7()}/alarm-mails", body),
            send(with_key(tenant), method, foreign, body),
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert send(with_key(tenant, "calls:read"), method, path(tenant, "bob"), body).status_code == 403
    assert send(with_key(tenant, "calls:read"), "GET", "/alarms").status_code == 403
    assert send(with_key(stranger), "GET", foreign).json() == {"kinds": []}


def test_alarms_are_listed_the_newest_first_in_words(tenant: Tenancy, stranger: Tenancy) -> None:
    now = timezone.now()
    send(with_key(tenant), "PUT", path(tenant, "bob"), {"kinds": ["limit", "coverage"]})
    with tenant.context():
        alarm_raise(kind="limit", subject=tenant.id, data={"limit": "calls"}, now=now - timedelta(hours=1))
        assert alarms_mail_make(now=now) is not None
        data = {"call_id": str(uuid7()), "agent_id": str(tenant.agent.id), "alarm": "ended"}
        alarm_raise(kind="coverage", subject=uuid7(), data=data, now=now)
    first = send(with_key(tenant), "GET", "/alarms?limit=1").json()
    (newest,) = first["items"]
    assert newest["text"] == f"{tenant.agent.name}: the call has ended, and not every turn was judged"
    assert (newest["kind"], newest["data"], newest["mailed_at"]) == ("coverage", data, None)
    (older,) = send(with_key(tenant), "GET", f"/alarms?limit=1&cursor={first['next']}").json()["items"]
    assert older["text"] == "Calls are refused: as many run at the same time as may."
    assert older["mailed_at"] is not None
    assert send(with_key(stranger), "GET", "/alarms").json() == {"items": [], "next": None}
    assert send(with_key(tenant), "GET", "/alarms?cursor=x").json()["errors"].keys() == {"cursor"}
