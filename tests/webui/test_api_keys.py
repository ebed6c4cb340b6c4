"""The pages of API keys: a new key is shown once, and nobody sees another tenant's."""

from __future__ import annotations

import html
import http.client
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from tenants.actors import Actor, actor_context
from tenants.models import ApiKey, Membership
from tenants.roles import Role
from tenants.services import api_keys as services
from tenants.services.api_keys import api_key_authenticate, api_key_create, api_key_revoke
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, client_sign_in, tenancy_create, unique
from tests.webui.conftest import Console
from webui.formats import relative

pytestmark = pytest.mark.django_db

KEY = re.compile(r"mk_[a-z0-9]{12}_[A-Za-z0-9_-]{43}")


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def page_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return html.unescape(answer.content.decode())


def form_of(client: Client) -> dict[str, Any]:
    """What the form for a new key sends when it is filled in."""
    once = re.search(r'name="once" value="([^"]+)"', page_of(client, "/api-keys/new"))
    assert once is not None
    return {"name": "Nightly", "scopes": ["judge", "calls:read"], "expiry": "30", "until": "", "once": once.group(1)}


def the_id(tenancy: Tenancy) -> str:
    with tenancy.context():
        return str(ApiKey.objects.get(prefix=tenancy.api_key.split("_")[1]).id)


# -- making one ----------------------------------------------------------------------------------------------------


def test_a_new_key_is_shown_once_and_works(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    made = alice.post("/api-keys/new", form_of(alice))
    assert made.status_code == 302
    assert not KEY.search(f"{made.headers} {made.cookies} {made.content!r}")
    shown = alice.get(made["Location"])
    (key,) = set(KEY.findall(shown.content.decode()))
    assert "no-store" in shown.headers["Cache-Control"]
    principal = api_key_authenticate(key=key)
    assert principal is not None
    assert (principal.tenant, principal.name, principal.scopes) == (tenant.tenant, "Nightly", {"judge", "calls:read"})
    assert principal.expires_at is not None
    assert timedelta(days=29) < principal.expires_at - timezone.now() < timedelta(days=31)
    # Reloading, going back, the list: never again.
    for path in (made["Location"], made["Location"], "/api-keys", "/api-keys/new", "/audit"):
        assert key.split("_", 2)[2] not in page_of(alice, path)
    with tenant.context():
        assert ApiKey.objects.get(name="Nightly").created_by_label == tenant.users["alice"].email


def test_the_key_waits_sealed_in_the_session_and_for_its_own_page_only(alice: Client, tenant: Tenancy) -> None:
    made = alice.post("/api-keys/new", form_of(alice))
    key_id = made["Location"].rsplit("/", 1)[1]
    with tenant.context():
        prefix = ApiKey.objects.get(id=key_id).prefix
    for session in Session.objects.all():
        assert prefix not in str(session.get_decoded())
    assert not KEY.search(page_of(alice, f"/api-keys/{the_id(tenant)}"))
    assert alice.head(made["Location"]).status_code == 200
    assert KEY.search(page_of(alice, made["Location"]))


def test_another_session_of_the_same_person_does_not_show_it(alice: Client, tenant: Tenancy) -> None:
    made = alice.post("/api-keys/new", form_of(alice))
    other = Client()
    client_sign_in(other, tenant.users["alice"])
    assert not KEY.search(page_of(other, made["Location"]))


def test_sending_the_form_twice_makes_one_key_which_the_second_answer_shows(alice: Client, tenant: Tenancy) -> None:
    form = form_of(alice)
    first, second = alice.post("/api-keys/new", form), alice.post("/api-keys/new", form)
    assert first["Location"] == second["Location"]
    assert KEY.search(page_of(alice, second["Location"]))
    # Going back to the form and sending it once more, after the key was shown.
    again = alice.post("/api-keys/new", {**form, "name": "Other"})
    assert again["Location"] == first["Location"]
    assert not KEY.search(page_of(alice, again["Location"]))
    with tenant.context():
        assert list(ApiKey.objects.exclude(name="tests").values_list("name", flat=True)) == ["Nightly"]


def test_a_form_made_for_somebody_else_or_up_makes_nothing(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    charlie = Client()
    client_sign_in(charlie, stranger.users["charlie"])
    for once in (form_of(charlie)["once"], "", "x" * 5000, the_id(stranger), "a:b:c", "\x00"):
        answer = alice.post("/api-keys/new", {**form_of(alice), "once": once})
        assert answer.status_code == 200
        page = html.unescape(answer.content.decode())
        assert "Look it over and send it again." in page
        assert 'value="Nightly"' in page
    fresh = re.search(r'name="once" value="([^"]+)"', page)
    assert fresh is not None
    assert alice.post("/api-keys/new", {**form_of(alice), "once": fresh.group(1)}).status_code == 302
    with stranger.context():
        assert ApiKey.objects.count() == 1


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(alice: Client, tenant: Tenancy) -> None:
    wrong = [
        ({"name": ""}, "Say what the key is for."),
        ({"name": "x" * 201}, "Use 200 characters at most."),
        ({"name": "a\x00b"}, "without control characters"),
        ({"name": "a\u2028b"}, "in one line"),
        ({"name": tenant.api_key}, "looks like a secret"),
        ({"scopes": []}, "Choose at least one."),
        ({"scopes": ["owners:manage"]}, "Choose from the list."),
        ({"scopes": ["\x00"]}, "Choose from the list."),
        ({"expiry": "0"}, "Choose one of the list."),
        ({"expiry": ""}, "Choose when it ends."),
        ({"expiry": "date"}, "Give the date and time that it ends."),
        ({"expiry": "date", "until": "tomorrow"}, "Give a date and time."),
        ({"expiry": "date", "until": "2020-01-01T00:00"}, "still to come"),
        ({"expiry": "date", "until": "9999-12-31T23:59"}, "next ten years"),
        ({"expiry": "date", "until": "0001-01-01T00:00"}, "still to come"),
        ({"expiry": "date", "until": "9" * 5000}, "Give a date and time."),
    ]
    form = form_of(alice)
    alice.cookies["tz"] = "Pacific/Auckland"
    for change, told in wrong:
        answer = alice.post("/api-keys/new", {**form, **change})
        assert answer.status_code == 200, change
        page = html.unescape(answer.content.decode())
        assert told in page, change
        assert 'value="calls:read"' in page
        if "scopes" not in change:
            assert len(re.findall(r"<input[^>]* checked", page)) == 2, change
    with tenant.context():
        assert ApiKey.objects.count() == 1


def test_keys_may_never_end_or_end_on_a_date_of_the_viewers(alice: Client, tenant: Tenancy) -> None:
    alice.post("/api-keys/new", {**form_of(alice), "name": "for good", "expiry": "never"})
    alice.cookies["tz"] = "Asia/Tokyo"
    on = (timezone.now() + timedelta(days=3)).strftime("%Y-%m-%dT%H:%M")
    alice.post("/api-keys/new", {**form_of(alice), "name": "dated", "expiry": "date", "until": on})
    with tenant.context():
        assert ApiKey.objects.get(name="for good").expires_at is None
        ends = ApiKey.objects.get(name="dated").expires_at
    assert ends is not None
    assert (ends + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M") == on


def test_too_many_keys_are_refused_in_words(alice: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_ACTIVE", 1)
    answer = alice.post("/api-keys/new", form_of(alice))
    assert "revoke one that is not needed" in answer.content.decode()


def test_making_and_revoking_need_a_recent_sign_in_and_keep_what_was_typed(tenant: Tenancy) -> None:
    client = Client()
    client_sign_in(client, tenant.users["alice"])
    form = form_of(client)
    client_sign_in(client, tenant.users["alice"], ago=timedelta(minutes=6))
    for method, path in (("get", "/api-keys/new"), ("post", f"/api-keys/{the_id(tenant)}/revoke")):
        assert getattr(client, method)(path)["Location"].startswith("/account/confirm?next=")
    soon = (timezone.now() + timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M")
    ended = client.post(f"/api-keys/{the_id(tenant)}", {"name": "tests", "until": soon})
    assert ended["Location"].startswith("/account/confirm?next=/api-keys/")
    asked = client.post("/api-keys/new", form)
    assert asked["Location"] == "/account/confirm?next=/api-keys/new"
    with tenant.context():
        assert list(ApiKey.objects.values_list("name", "revoked_at", "expires_at")) == [("tests", None, None)]
    confirmed = client.post(asked["Location"], {"by": "password", "password": PASSWORD, "next": "/api-keys/new"})
    assert confirmed["Location"] == "/api-keys/new"
    page = page_of(client, "/api-keys/new")
    assert 'value="Nightly"' in page
    assert len(re.findall(r"<input[^>]* checked", page)) == 2


# -- the list and a key's page -------------------------------------------------------------------------------------


def test_the_list_says_what_each_key_may_and_when_it_was_used(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    now = timezone.now()
    with tenant.context():
        api_key_create(name="unused", scopes=["judge"])
        gone = api_key_create(name="gone", scopes=["judge"]).api_key
        api_key_revoke(api_key_id=gone.id)
        past = now - timedelta(days=9)
        api_key_create(name="over", scopes=["judge"], expires_at=now - timedelta(days=2), now=past)
        api_key_create(name="nearly over", scopes=["judge"], expires_at=now + timedelta(days=2))
        ApiKey.objects.filter(name="tests").update(
            last_used_at=now - timedelta(minutes=3, seconds=30), last_used_ip="203.0.113.9"
        )
    page = page_of(alice, "/api-keys")
    rows = dict(re.findall(r'<tr role="row"[^>]*>\s*<td[^>]*><a href="[^"]*">([^<]*)</a>(.*?)</tr>', page, re.S))
    assert list(rows) == ["nearly over", "gone", "unused", "tests", "over"]
    for name, told in {
        "tests": ("3 min ago", "from 203.0.113.9", "Active", "policies:write", tenant.api_key[:16]),
        "unused": (">never", "Active"),
        "gone": ("Revoked", "just now"),
        "over": ("Expired", "2 days ago"),
        "nearly over": ("Ends soon", "in 2 days"),
    }.items():
        for text in told:
            assert text in rows[name], (name, text)
    assert "charlie" not in page.lower()
    assert stranger.api_key.split("_")[1] not in page
    for state, names in {"active": 3, "expired": 1, "revoked": 1, "nonsense": 5}.items():
        assert len(re.findall(r'class="key-name"', page_of(alice, f"/api-keys?state={state}"))) == names


def test_keys_of_somebody_who_left_are_marked_and_can_be_listed(alice: Client, tenant: Tenancy) -> None:
    bob = tenant.users["bob"]
    with tenant.context():
        with actor_context(Actor(kind="user", id=bob.id, label=bob.email)):
            api_key_create(name="bob's", scopes=["calls:read"], held={"calls:read"})
        assert "no member any more" not in page_of(alice, "/api-keys")
        Membership.objects.filter(user=bob).delete()
    page = page_of(alice, "/api-keys")
    assert "no member any more" in page
    theirs = page_of(alice, f"/api-keys?state=active&made_by={bob.id}")
    assert re.findall(r'class="key-name"><a [^>]*>([^<]*)', theirs) == ["bob's"]


def test_long_lists_have_pages_and_wrong_cursors_lead_to_the_first(
    alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webui.views.api_keys.PAGE_ROWS", 1)
    with tenant.context():
        api_key_create(name="second", scopes=["judge"])
    page = page_of(alice, "/api-keys?state=active")
    older = re.search(r'href="(/api-keys\?state=active&cursor=[^"]+)"', page)
    assert older is not None
    assert ">tests</a>" in page_of(alice, older.group(1))
    for cursor in ("nonsense", "\x00", "x" * 5000):
        assert alice.get("/api-keys", {"cursor": cursor, "state": "active"})["Location"] == "/api-keys?state=active"


def test_a_key_is_renamed_ends_earlier_and_is_revoked(alice: Client, tenant: Tenancy) -> None:
    path = f"/api-keys/{the_id(tenant)}"
    assert alice.post(path, {"name": "Renamed <b>"})["Location"] == path
    assert "<h1>Renamed &lt;b&gt;</h1>" in alice.get(path).content.decode()
    soon = (timezone.now() + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M")
    assert alice.post(path, {"name": "Renamed", "until": soon}).status_code == 302
    later = (timezone.now() + timedelta(days=9)).strftime("%Y-%m-%dT%H:%M")
    refused = alice.post(path, {"name": "Renamed", "until": later})
    assert "end can come earlier, not later" in html.unescape(refused.content.decode())
    assert "Say what the key is for." in alice.post(path, {"name": " "}).content.decode()

    assert "Revoke Renamed?" in page_of(alice, f"{path}/revoke")
    assert api_key_authenticate(key=tenant.api_key) is not None
    for _ in range(2):
        assert alice.post(f"{path}/revoke")["Location"] == "/api-keys"
    assert "Renamed is revoked." in page_of(alice, "/api-keys")
    assert api_key_authenticate(key=tenant.api_key) is None
    assert alice.get(f"{path}/revoke")["Location"] == path


def test_a_tenant_without_keys_is_told_what_to_do(alice: Client, tenant: Tenancy) -> None:
    with tenant.context():
        ApiKey.objects.all().delete()
    assert "No API key yet" in page_of(alice, "/api-keys")


@pytest.mark.django_db(transaction=True)
def test_a_key_revoked_by_one_process_is_refused_by_another_at_once(console: Console) -> None:
    tenant, stranger = tenancy_create(owner="alice"), tenancy_create(owner="charlie")
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=30)

    def asked(key: str) -> int:
        headers = {"Host": f"127.0.0.1:{console.port}", "Authorization": f"Bearer {key}"}
        connection.request("GET", "/api/v1/me", headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert [asked(tenant.api_key) for _ in range(3)] == [200, 200, 200]
    with tenant.context():
        api_key_revoke(api_key_id=ApiKey.objects.get().id)
    # The same connection, and the very next request.
    assert asked(tenant.api_key) == 401
    assert asked(stranger.api_key) == 200
    connection.close()


# -- who may -------------------------------------------------------------------------------------------------------


def test_a_strangers_key_and_a_missing_one_are_the_same(alice: Client, stranger: Tenancy) -> None:
    for end in ("", "/revoke"):
        foreign, missing = (alice.get(f"/api-keys/{one}{end}") for one in (the_id(stranger), uuid7()))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.content == missing.content
        assert alice.post(f"/api-keys/{the_id(stranger)}{end}", {"name": "mine"}).status_code == 404
    assert api_key_authenticate(key=stranger.api_key) is not None


def test_only_who_administers_sees_keys(client: Client, tenant: Tenancy) -> None:
    for role in (Role.EDITOR, Role.REVIEWER, Role.VIEWER):
        with tenant.context():
            user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
            membership_create(user=user, role=role)
        client_sign_in(client, user)
        for path in ("/api-keys", "/api-keys/new", f"/api-keys/{the_id(tenant)}", f"/api-keys/{the_id(tenant)}/revoke"):
            assert client.get(path).status_code == 403
            assert client.post(path, {"name": "x"}).status_code in (403, 405)
        assert "/api-keys" not in client.get("/calls").content.decode()
    with tenant.context():
        assert [key.revoked_at for key in ApiKey.objects.all()] == [None]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "just now"),
        (-59.9, "just now"),
        (59.9, "in 1 min"),
        (61, "in 2 min"),
        (30 * 86400 - 1, "in 30 days"),
        (-60, "1 min ago"),
        (3600, "in 1 h"),
        (-47.9 * 3600, "47 h ago"),
        (-48 * 3600, "2 days ago"),
        (400 * 86400, "in 400 days"),
    ],
)
def test_how_far_off_a_moment_is(seconds: float, told: str) -> None:
    assert relative(int(seconds * 1000)) == told
