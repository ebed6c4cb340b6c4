"""Sessions of people: listed, kept alive by use, and ended for good."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from allauth.usersessions.models import UserSession
from django.conf import settings as django_settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from tenants.models import AuditEvent, Membership, User
from tenants.services.people import SEEN_EVERY, SessionNotFound, session_list, session_revoke, session_touch
from tests.factories import PASSWORD, Tenancy
from webui.browsers import browser_name

pytestmark = pytest.mark.django_db

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605 (KHTML, like Gecko) Safari/604.1"


@pytest.fixture(autouse=True)
def no_attempts_before() -> None:
    cache.clear()


@pytest.fixture
def alice(tenant: Tenancy) -> User:
    return tenant.users["alice"]


def signed_in(user: User, *, agent: str = FIREFOX, ip: str = "192.0.2.7") -> Client:
    client = Client(REMOTE_ADDR=ip, headers={"User-Agent": agent})
    assert client.post("/sign-in", {"login": user.email, "password": PASSWORD}).status_code == 302
    return client


def is_signed_in(client: Client) -> bool:
    return client.get("/account").status_code == 200


def events(tenancy: Tenancy, action: str) -> list[AuditEvent]:
    with tenancy.context():
        return list(AuditEvent.objects.filter(action=action).order_by("seq"))


def row_of(client: Client) -> UserSession:
    return UserSession.objects.get(session_key=client.session.session_key)


def test_the_account_lists_ones_own_sessions_and_marks_this_one(alice: User, stranger: Tenancy) -> None:
    here = signed_in(alice)
    signed_in(alice, agent=SAFARI, ip="198.51.100.9")
    signed_in(stranger.users["charlie"], ip="203.0.113.5")
    page = here.get("/account").content.decode()
    assert "Firefox on Linux" in page
    assert "Safari on iPhone" in page
    assert "198.51.100.9" in page
    assert "203.0.113.5" not in page
    assert f"/account/sessions/{row_of(here).id}/end" not in page, "sign out is for that"
    assert page.count("last used") == 2


def test_a_session_that_is_ended_is_over_at_once(alice: User, tenant: Tenancy) -> None:
    here, there = signed_in(alice), signed_in(alice, agent=SAFARI)
    key, session_id = there.session.session_key, row_of(there).id
    assert here.post(f"/account/sessions/{session_id}/end")["Location"] == "/account"
    assert not Session.objects.filter(session_key=key).exists()
    assert not is_signed_in(there)
    assert there.get("/api/v1/me").status_code == 401
    assert is_signed_in(here)
    [event] = events(tenant, "user.session_revoke")
    assert json.loads(event.before or "") == {"ip": "192.0.2.7", "user_agent": SAFARI}
    assert here.post(f"/account/sessions/{session_id}/end").status_code == 404


def test_all_others_end_together(alice: User, tenant: Tenancy, stranger: Tenancy) -> None:
    here, others = signed_in(alice), [signed_in(alice), signed_in(alice, agent=SAFARI)]
    charlie = signed_in(stranger.users["charlie"])
    assert here.post("/account/sessions/end")["Location"] == "/account"
    assert is_signed_in(here)
    assert is_signed_in(charlie)
    assert not any(is_signed_in(other) for other in others)
    here.post("/account/sessions/end")
    assert len(events(tenant, "user.session_revoke")) == 1, "nothing was left to end"


def test_somebody_elses_session_and_a_missing_one_are_the_same(alice: User, stranger: Tenancy) -> None:
    here, charlie = signed_in(alice), signed_in(stranger.users["charlie"])
    foreign = here.post(f"/account/sessions/{row_of(charlie).id}/end")
    missing = here.post("/account/sessions/999999999/end")
    assert foreign.status_code == missing.status_code == 404
    assert is_signed_in(charlie)
    with pytest.raises(SessionNotFound):
        session_revoke(user=alice, session_id=row_of(charlie).id)
    assert here.post(f"/account/sessions/{10**30}/end").status_code == 404


def test_signing_out_takes_the_session_out_of_the_list(alice: User) -> None:
    here, there = signed_in(alice), signed_in(alice)
    there.post("/sign-out")
    assert here.get("/account").content.decode().count("last used") == 1
    assert [session.session_key for session in session_list(user=alice)] == [here.session.session_key]


def test_an_inactive_persons_session_ends(alice: User) -> None:
    here = signed_in(alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert not is_signed_in(here)


def test_a_removed_member_keeps_the_session_and_sees_nothing(alice: User, tenant: Tenancy) -> None:
    here = signed_in(alice)
    with tenant.context():
        Membership.objects.filter(user=alice).delete()
    assert here.get("/calls")["Location"] == "/no-tenant"
    assert here.get("/api/v1/calls").status_code == 401


def test_a_session_from_before_there_was_a_list_gets_into_it(alice: User) -> None:
    here = Client(headers={"User-Agent": FIREFOX})
    here.force_login(alice)
    assert not UserSession.objects.filter(user=alice).exists()
    here.get("/calls")
    assert row_of(here).user_agent == FIREFOX


# -- use ----------------------------------------------------------------------------------------------------------


def test_use_is_noted_once_a_minute_and_puts_the_end_off(alice: User) -> None:
    here = signed_in(alice)
    key, began = str(here.session.session_key), row_of(here).last_seen_at

    def touch(after: timedelta, ip: str = "192.0.2.7") -> bool:
        return session_touch(user=alice, session_key=key, ip=ip, user_agent=FIREFOX, now=began + after)

    assert not touch(SEEN_EVERY - timedelta(seconds=1))
    assert touch(SEEN_EVERY)
    assert not touch(SEEN_EVERY + timedelta(seconds=59))
    assert touch(SEEN_EVERY + timedelta(seconds=59), ip="198.51.100.9"), "another address is noted at once"
    session = row_of(here)
    assert (session.ip, session.last_seen_at) == ("198.51.100.9", began + SEEN_EVERY + timedelta(seconds=59))
    assert session.created_at <= began
    lives = Session.objects.get(session_key=key).expire_date - session.last_seen_at
    assert lives == timedelta(days=14)


def test_the_browser_keeps_the_cookie_as_long_as_the_session_lives(alice: User) -> None:
    here = signed_in(alice)
    UserSession.objects.filter(user=alice).update(last_seen_at=timezone.now() - timedelta(hours=1))
    cookie: Any = here.get("/calls").cookies["sessionid"]
    assert cookie.value == here.session.session_key
    assert cookie["max-age"] == django_settings.SESSION_COOKIE_AGE == 14 * 24 * 3600
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    assert "sessionid" not in here.get("/calls").cookies


def test_a_session_that_was_not_used_for_two_weeks_is_over(alice: User) -> None:
    here = signed_in(alice)
    Session.objects.filter(session_key=here.session.session_key).update(expire_date=timezone.now())
    assert not is_signed_in(here)
    assert session_list(user=alice) == []


def test_a_request_that_runs_while_its_session_ends_does_not_bring_it_back(alice: User) -> None:
    here = signed_in(alice)
    held = here.session
    assert held["_auth_user_id"] == str(alice.pk)
    session_revoke(user=alice, session_id=row_of(here).id)
    held["late"] = 1
    with pytest.raises(UpdateError):
        held.save()
    assert not is_signed_in(here)


# -- names of browsers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        (
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537 (KHTML, like Gecko) Chrome/140 Safari/537 Edg/140",
            "Edge on Windows",
        ),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Chrome/140.0 Safari/537.36", "Chrome on macOS"),
        ("curl/8.5.0", "Another program"),
        ("", "Another program"),
        ("<script>alert(1)</script>", "Another program"),
    ],
)
def test_browsers_have_names(agent: str, name: str) -> None:
    assert browser_name(agent) == name


def test_what_a_browser_calls_itself_is_text(alice: User) -> None:
    here = signed_in(alice, agent='"><script>alert(1)</script>')
    assert "<script>alert" not in here.get("/account").content.decode()
