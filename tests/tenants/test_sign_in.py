"""Signing in with email and password, what is locked when, and what to do about a forgotten password."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.core.internal import ratelimit
from allauth.urls import urlpatterns as allauth_urlpatterns
from django.core import mail
from django.core.cache import cache
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse
from kombu.exceptions import OperationalError

from tenants import tasks
from tenants.authentication import RECENT, recently_authenticated
from tenants.models import AuditEvent, User
from tenants.services.people import password_reset_mail
from tenants.services.second_factor import totp_activate, totp_secret_new
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, client_sign_in, tenancy_create, unique
from tests.support.totp import totp
from webui.access import reauthenticated

pytestmark = pytest.mark.django_db

NEW_PASSWORD = "seven tall giraffes in a queue"
LINK = re.compile(r"https?://\S+?(/reset-password/\S+)")


class Clock:
    """The time that limits go by; it passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        # No two attempts are at the same moment.
        self.now += 0.001
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    cache.clear()
    clock = Clock()
    monkeypatch.setattr(ratelimit, "time", SimpleNamespace(time=clock, monotonic=time.monotonic, sleep=time.sleep))
    yield clock
    cache.clear()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the workers is done at once."""
    monkeypatch.setattr(
        tasks.password_reset_send, "apply_async", lambda args, **options: password_reset_mail(email=args[0])
    )


def sign_in(client: Client, user: User, password: str = PASSWORD, **extra: Any) -> HttpResponse:
    answer: Any = client.post("/sign-in", {"login": user.email, "password": password}, **extra)
    return answer  # type: ignore[no-any-return]


def is_signed_in(client: Client) -> bool:
    return client.get("/account").status_code == 200


def events(tenancy: Tenancy, action: str) -> list[AuditEvent]:
    with tenancy.context():
        return list(AuditEvent.objects.filter(action=action).order_by("seq"))


# -- who comes in --------------------------------------------------------------------------------------------------


def test_a_sign_in_is_recorded_where_the_person_is_a_member(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    alice = tenant.users["alice"]
    assert sign_in(client, alice, headers={"User-Agent": "Firefox/140"})["Location"] == "/calls"
    [event] = events(tenant, "user.sign_in")
    assert (event.actor_kind, event.actor_id, event.actor_label) == ("user", alice.pk, alice.email)
    assert (event.object_id, event.ip, event.user_agent) == (str(alice.pk), "127.0.0.1", "Firefox/140")
    assert event.session
    assert json.loads(event.after or "") == {"second_factor": None}
    assert events(stranger, "user.sign_in") == []


def test_a_failed_one_is_recorded_too_and_tells_no_password(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    sign_in(client, tenant.users["alice"], "not my password")
    [event] = events(tenant, "user.sign_in_failed")
    assert event.actor_label == "somebody who is not signed in"
    assert event.object_label == tenant.users["alice"].email
    assert "not my password" not in (event.after or "")
    assert events(stranger, "user.sign_in_failed") == []


def test_signing_in_gives_the_session_another_key(client: Client, tenant: Tenancy) -> None:
    session = client.session
    session["theirs"] = "planted"
    session.save()
    planted = session.session_key
    sign_in(client, tenant.users["alice"])
    assert client.session.session_key != planted


def test_whoever_is_signed_in_is_led_on(client: Client, tenant: Tenancy) -> None:
    sign_in(client, tenant.users["alice"])
    assert client.get("/sign-in")["Location"] == "/calls"
    assert client.get("/sign-in?next=/account")["Location"] == "/account"


def test_an_inactive_person_does_not_come_in_and_is_told_nothing_else(client: Client, tenant: Tenancy) -> None:
    User.objects.filter(pk=tenant.users["alice"].pk).update(is_active=False)
    page = sign_in(client, tenant.users["alice"])
    assert "Email or password is wrong" in page.content.decode()
    assert not is_signed_in(client)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"login": "alice", "password": "x"}, "This is not an email address"),
        ({"login": "a@b.example\x00", "password": "x"}, "Null characters are not allowed"),
        ({"login": "a" * 300 + "@b.example", "password": "x"}, "at most 254"),
        ({"login": "a@b.example", "password": "x" * 5000}, "longer than any password"),
        ({}, "Type the email that you were invited with."),
    ],
)
def test_bad_input_is_refused_at_its_field(client: Client, fields: dict[str, str], said: str) -> None:
    page = client.post("/sign-in", fields)
    assert page.status_code == 200
    assert said in page.content.decode()
    assert 'aria-invalid="true"' in page.content.decode()


def test_odd_headers_break_nothing(client: Client, tenant: Tenancy) -> None:
    answer = sign_in(
        client,
        tenant.users["alice"],
        REMOTE_ADDR="fe80::1%eth0",
        headers={
            "User-Agent": "a\x00b" + "é" * 500,
            "Accept": "application/json",
            "X-Requested-With": "XMLHttpRequest",
        },
    )
    assert (answer.status_code, answer["Location"]) == (302, "/calls")
    assert client.get("/account", REMOTE_ADDR="", headers={"User-Agent": ""}).status_code == 200


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "javascript:alert(1)", "/\\evil.example"])
def test_nobody_is_led_to_other_sites(client: Client, tenant: Tenancy, to: str) -> None:
    user = tenant.users["alice"]
    answer = client.post("/sign-in", {"login": user.email, "password": PASSWORD, "next": to})
    assert answer["Location"] == "/calls"
    answer = client.post("/account/confirm", {"by": "password", "password": PASSWORD, "next": to})
    assert answer["Location"] == "/account"


# -- too many attempts ---------------------------------------------------------------------------------------------


def test_five_wrong_passwords_lock_the_account_for_five_minutes(client: Client, tenant: Tenancy, clock: Clock) -> None:
    alice = tenant.users["alice"]
    for _ in range(5):
        assert sign_in(client, alice, "wrong").status_code == 200
        clock.now += 10
    locked = sign_in(client, alice)
    assert locked.status_code == 429
    assert "Too many attempts" in locked.content.decode()
    assert f'value="{alice.email}"' in locked.content.decode()
    assert not is_signed_in(client)
    # Neither another address nor the case of the email gets around it.
    assert sign_in(client, alice, REMOTE_ADDR="192.0.2.7").status_code == 429
    answer = client.post("/sign-in", {"login": alice.email.upper(), "password": PASSWORD}, HTTP_HOST="localhost")
    assert answer.status_code == 429

    clock.now += 300 - 50
    assert sign_in(client, alice).status_code == 302
    assert is_signed_in(client)


def test_a_locked_account_locks_nobody_else_out(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    for _ in range(6):
        sign_in(client, tenant.users["alice"], "wrong")
    assert sign_in(Client(REMOTE_ADDR="192.0.2.7"), stranger.users["charlie"]).status_code == 302
    assert sign_in(Client(), tenant.users["bob"]).status_code == 302


def test_right_passwords_count_as_no_attempts_and_wipe_none(client: Client, tenant: Tenancy) -> None:
    alice = tenant.users["alice"]
    for _ in range(4):
        sign_in(Client(), alice, "wrong")
    for _ in range(6):
        assert sign_in(Client(), alice).status_code == 302
    assert sign_in(client, alice, "wrong").status_code == 200
    assert sign_in(client, alice).status_code == 429


def test_one_address_may_not_try_one_account_after_the_other(tenant: Tenancy, clock: Clock) -> None:
    def spray(number: int, address: str) -> int:
        answer = Client(REMOTE_ADDR=address).post(
            "/sign-in", {"login": f"somebody{number}@x.example", "password": PASSWORD}
        )
        return answer.status_code

    assert [spray(number, "192.0.2.7") for number in range(20)] == [200] * 20
    assert spray(20, "192.0.2.7") == 429
    assert sign_in(Client(REMOTE_ADDR="192.0.2.7"), tenant.users["alice"]).status_code == 429
    assert sign_in(Client(REMOTE_ADDR="192.0.2.8"), tenant.users["alice"]).status_code == 302
    clock.now += 60
    assert sign_in(Client(REMOTE_ADDR="192.0.2.7"), tenant.users["alice"]).status_code == 302


def test_a_header_that_anybody_can_send_changes_no_address(tenant: Tenancy, settings: Any) -> None:
    def spray(number: int, peer: str) -> int:
        client = Client(REMOTE_ADDR=peer, headers={"X-Forwarded-For": f"198.51.100.{number}"})
        return client.post("/sign-in", {"login": f"who{number}@x.example", "password": "wrong"}).status_code

    assert [spray(number, "192.0.2.7") for number in range(21)][-1] == 429
    settings.MIRROR = replace(settings.MIRROR, trusted_proxies=("192.0.2.9/32",))
    assert [spray(number, "192.0.2.9") for number in range(25)][-1] == 200


def test_many_requests_of_one_address_get_a_page_that_says_so(client: Client) -> None:
    for _ in range(60):
        client.post("/sign-in", {})
    answer = client.post("/sign-in", {})
    assert answer.status_code == 429
    assert "Too many attempts" in answer.content.decode()
    assert client.get("/sign-in").status_code == 200


# -- allauth offers nothing else -----------------------------------------------------------------------------------


def _paths(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern).lstrip("^")
        if isinstance(pattern, URLResolver):
            yield from _paths(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            yield route.rstrip("$").rstrip("\\Z"), pattern.name


def test_no_url_of_allauth_answers(client: Client) -> None:
    theirs = dict(_paths(list(allauth_urlpatterns)))
    assert {"signup/", "login/", "2fa/authenticate/", "sessions/"} <= set(theirs)
    for path in theirs:
        for prefix in ("/", "/accounts/", "/account/", "/auth/"):
            for asked in (prefix + path, (prefix + path).rstrip("/")):
                if asked in ("/", "/account", "/accounts", "/auth"):
                    continue
                answer = client.get(asked)
                assert answer.status_code == 404, asked


def test_the_names_that_allauth_looks_up_are_pages_of_ours() -> None:
    ours = {
        "account_login": "/sign-in",
        "mfa_authenticate": "/sign-in/code",
        "account_reauthenticate": "/account/confirm",
    }
    for _, name in _paths(list(allauth_urlpatterns)):
        if name in ours:
            assert reverse(str(name)) == ours.pop(str(name))
        elif name is not None:
            with pytest.raises(NoReverseMatch):
                reverse(name)
    assert ours == {}
    views = {str(getattr(pattern.callback, "__module__", "")) for pattern in _callbacks(get_resolver().url_patterns)}
    assert not {module for module in views if module.startswith("allauth")}


def _callbacks(patterns: list[Any]) -> Iterator[URLPattern]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _callbacks(pattern.url_patterns)
        else:
            yield pattern


# -- the password --------------------------------------------------------------------------------------------------


def change(client: Client, current: str = PASSWORD, new: str = NEW_PASSWORD, again: str | None = None) -> HttpResponse:
    answer: Any = client.post(
        "/account/password", {"password": current, "password1": new, "password2": new if again is None else again}
    )
    return answer  # type: ignore[no-any-return]


def test_changing_the_password_ends_the_other_sessions_and_keeps_this_one(client: Client, tenant: Tenancy) -> None:
    alice, elsewhere = tenant.users["alice"], Client()
    sign_in(client, alice)
    sign_in(elsewhere, alice)
    before = client.session.session_key
    assert change(client)["Location"] == "/account"
    assert is_signed_in(client)
    assert client.session.session_key != before
    assert not is_signed_in(elsewhere)
    assert client.get("/account").content.decode().count("last used") == 1
    assert sign_in(Client(), alice).status_code == 200, "the old password is no good"
    assert sign_in(Client(), alice, NEW_PASSWORD).status_code == 302
    [event] = events(tenant, "user.password_change")
    assert json.loads(event.after or "") == {"sessions_ended": 1}


@pytest.mark.parametrize(
    ("new", "again", "said"),
    [
        ("short", None, "at least 12 characters"),
        ("qwerty123456", None, "too common"),
        (NEW_PASSWORD, "another one altogether", "The two are not the same"),
        ("", None, "Type the new password."),
    ],
)
def test_a_weak_password_is_refused_at_its_field(
    client: Client, tenant: Tenancy, new: str, again: str | None, said: str
) -> None:
    client_sign_in(client, tenant.users["alice"])
    page = change(client, new=new, again=again)
    assert page.status_code == 200
    assert said in page.content.decode()
    assert sign_in(Client(), tenant.users["alice"]).status_code == 302


def test_a_password_like_the_email_is_refused(client: Client) -> None:
    user = user_create(email=f"{unique('margarethe')}@x.example", password=PASSWORD)
    client_sign_in(client, user)
    page = change(client, new=user.email.partition("@")[0])
    assert "too similar to the email" in page.content.decode()


def test_the_current_password_is_asked_for_and_cannot_be_guessed(client: Client, tenant: Tenancy) -> None:
    client_sign_in(client, tenant.users["alice"])
    for _ in range(5):
        page = change(client, current="wrong")
        assert "This is not your password" in page.content.decode()
    assert change(client).status_code == 429
    assert not events(tenant, "user.password_change")


# -- a forgotten one -----------------------------------------------------------------------------------------------


def mailed_link(client: Client, email: str) -> str:
    answer = client.post("/forgot-password", {"email": email})
    assert answer["Location"] == "/forgot-password/sent"
    found = LINK.search(str(mail.outbox[-1].body))
    assert found is not None
    return found.group(1)


def test_a_mailed_link_gives_a_new_password_once_and_ends_all_sessions(
    client: Client, tenant: Tenancy, workers: None
) -> None:
    alice, elsewhere = tenant.users["alice"], Client()
    sign_in(elsewhere, alice)
    link = mailed_link(client, alice.email.upper())
    assert mail.outbox[-1].to == [alice.email]
    [(html, kind)] = mail.outbox[-1].alternatives  # type: ignore[attr-defined]
    assert kind == "text/html"
    assert f'{link}"' in html

    opened = client.get(link)
    assert opened["Location"] == "/reset-password/new", "the key leaves the address"
    page = client.get("/reset-password/new").content.decode()
    assert alice.email in page
    weak = client.post("/reset-password/new", {"password1": "short", "password2": "short"})
    assert "at least 12 characters" in weak.content.decode()
    done = client.post("/reset-password/new", {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD})
    assert done["Location"] == "/sign-in"
    assert "Your password is changed" in client.get("/sign-in").content.decode()
    assert not is_signed_in(client), "the link does not sign in"
    assert not is_signed_in(elsewhere)

    client.get(link)
    again = client.post("/reset-password/new", {"password1": PASSWORD, "password2": PASSWORD})
    assert "This link does not work" in again.content.decode()
    assert sign_in(client, alice, NEW_PASSWORD).status_code == 302
    assert len(events(tenant, "user.password_reset")) == 1
    assert not EmailAddress.objects.filter(user=alice).exists(), "people's addresses stand in one place"


def test_whoever_is_signed_in_may_use_the_link_and_signs_in_anew(
    client: Client, tenant: Tenancy, workers: None
) -> None:
    sign_in(client, tenant.users["alice"])
    client.get(mailed_link(client, tenant.users["alice"].email))
    done = client.post("/reset-password/new", {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD})
    assert (done.status_code, done["Location"]) == (302, "/sign-in")
    assert "Your password is changed" in client.get("/sign-in").content.decode()
    assert not is_signed_in(client)


def test_a_mail_server_that_is_down_is_tried_again(
    tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    def refuse(*, email: str) -> bool:
        tries.append(email)
        raise ConnectionRefusedError

    monkeypatch.setattr(tasks, "password_reset_mail", refuse)
    tasks.password_reset_send.apply(args=(tenant.users["alice"].email,))
    assert len(tries) == 1 + tasks.MAIL_RETRIES
    assert tenant.users["alice"].email not in caplog.text


def test_a_second_factor_is_asked_for_after_a_reset(client: Client, tenant: Tenancy, workers: None) -> None:
    alice, secret = tenant.users["alice"], totp_secret_new()
    totp_activate(user=alice, secret=secret, code=totp(secret, steps=-1))
    client.get(mailed_link(client, alice.email))
    client.post("/reset-password/new", {"password1": NEW_PASSWORD, "password2": NEW_PASSWORD})
    assert sign_in(client, alice, NEW_PASSWORD)["Location"] == "/sign-in/code"
    assert not is_signed_in(client)


def test_the_answer_tells_nobody_who_has_an_account(client: Client, tenant: Tenancy, workers: None) -> None:
    switched_off = user_create(email=f"{unique('off')}@x.example", password=PASSWORD)
    User.objects.filter(pk=switched_off.pk).update(is_active=False)
    without = user_create(email=f"{unique('none')}@x.example", password=None)
    answers = [
        client.post("/forgot-password", {"email": email})
        for email in (tenant.users["alice"].email, "nobody@x.example", switched_off.email, without.email)
    ]
    assert {(answer.status_code, answer["Location"]) for answer in answers} == {(302, "/forgot-password/sent")}
    assert [message.to for message in mail.outbox] == [[tenant.users["alice"].email]]


def test_the_link_names_us_whatever_the_request_says(
    client: Client, tenant: Tenancy, workers: None, settings: Any
) -> None:
    client.post(
        "/forgot-password",
        {"email": tenant.users["alice"].email},
        headers={"X-Forwarded-Host": "evil.example"},
        HTTP_HOST="localhost",
    )
    body = str(mail.outbox[-1].body)
    assert settings.MIRROR.public_url + "/reset-password/" in body
    assert "evil.example" not in body


@pytest.mark.parametrize("key", ["x", "-", "0" * 32 + "-abc-def", "é", "a" * 3000])
def test_a_made_up_link_does_not_work(client: Client, tenant: Tenancy, key: str) -> None:
    client.get(f"/reset-password/{key}")
    page = client.get("/reset-password/new")
    assert page.status_code == 200
    assert "This link does not work" in page.content.decode()


def test_a_link_for_one_person_opens_no_other(
    client: Client, tenant: Tenancy, stranger: Tenancy, workers: None
) -> None:
    link = mailed_link(client, stranger.users["charlie"].email)
    client.get(link.replace(stranger.users["charlie"].pk.hex, tenant.users["alice"].pk.hex))
    assert "This link does not work" in client.get("/reset-password/new").content.decode()


def test_mails_are_throttled(client: Client, tenant: Tenancy, workers: None, clock: Clock) -> None:
    for _ in range(3):
        client.post("/forgot-password", {"email": tenant.users["alice"].email})
    assert client.post("/forgot-password", {"email": tenant.users["alice"].email}).status_code == 429
    assert client.post("/forgot-password", {"email": tenant.users["bob"].email}).status_code == 302
    assert len(mail.outbox) == 4
    clock.now += 3600
    assert client.post("/forgot-password", {"email": tenant.users["alice"].email}).status_code == 302


def test_without_a_broker_the_page_says_so(client: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*args: Any, **options: Any) -> None:
        raise OperationalError("Error 111 connecting to 127.0.0.1:1. Connection refused.")

    monkeypatch.setattr(tasks.password_reset_send, "apply_async", down)
    page = client.post("/forgot-password", {"email": tenant.users["alice"].email})
    assert page.status_code == 503
    assert "cannot be sent just now" in page.content.decode()
    assert f'value="{tenant.users["alice"].email}"' in page.content.decode()


# -- a recent sign-in ----------------------------------------------------------------------------------------------


def ask(client: Client) -> Any:
    request = RequestFactory().get("/")
    request.session = client.session
    request.user = User.objects.get(pk=client.session["_auth_user_id"])
    return request


def test_a_sign_in_is_recent_for_five_minutes(client: Client, tenant: Tenancy) -> None:
    sign_in(client, tenant.users["alice"])
    request, now = ask(client), time.time()
    assert recently_authenticated(request)
    assert recently_authenticated(request, now=now + RECENT.total_seconds() - 5)
    assert not recently_authenticated(request, now=now + RECENT.total_seconds() + 5)
    assert not recently_authenticated(request, now=now - 60), "a proof of the future proves nothing"


def test_a_session_without_a_proof_is_not_recent(client: Client, tenant: Tenancy) -> None:
    client.force_login(tenant.users["alice"])
    assert not recently_authenticated(ask(client))
    session = client.session
    session["account_authentication_methods"] = [{"method": "password", "at": time.time()}]
    session["account_authentication_methods_user"] = str(tenant.users["bob"].pk)
    session.save()
    assert not recently_authenticated(ask(client)), "somebody else's proof"


def test_confirming_with_the_password_leads_back(client: Client, tenant: Tenancy) -> None:
    client_sign_in(client, tenant.users["alice"], ago=timedelta(minutes=6))
    asked = client.get("/account/two-factor")
    assert asked["Location"] == "/account/confirm?next=/account/two-factor"
    assert "Confirm that it is you" in client.get(asked["Location"]).content.decode()
    wrong = client.post(asked["Location"], {"by": "password", "password": "wrong", "next": "/account/two-factor"})
    assert "This is not your password" in wrong.content.decode()
    right = client.post("/account/confirm", {"by": "password", "password": PASSWORD, "next": "/account/two-factor"})
    assert right["Location"] == "/account/two-factor"
    assert client.get("/account/two-factor").status_code == 200


def test_confirming_with_a_code(client: Client, tenant: Tenancy) -> None:
    alice, secret = tenant.users["alice"], totp_secret_new()
    client_sign_in(client, alice, ago=timedelta(minutes=6))
    without = client.post("/account/confirm", {"by": "code", "code": "123456"})
    assert without.status_code == 200
    assert not recently_authenticated(ask(client))
    totp_activate(user=alice, secret=secret, code=totp(secret, steps=-1))
    wrong = client.post("/account/confirm", {"by": "code", "code": "000000"})
    assert "This code is wrong" in wrong.content.decode()
    assert client.post("/account/confirm", {"by": "code", "code": totp(secret)})["Location"] == "/account"
    assert recently_authenticated(ask(client))
    assert len(events(tenant, "user.confirm_failed")) == 1


def test_guessing_is_throttled_when_confirming_too(client: Client, tenant: Tenancy) -> None:
    client.force_login(tenant.users["alice"])
    for _ in range(5):
        client.post("/account/confirm", {"by": "password", "password": "wrong"})
    locked = client.post("/account/confirm", {"by": "password", "password": PASSWORD})
    assert locked.status_code == 429
    assert not recently_authenticated(ask(client))


def test_a_form_that_was_sent_leads_back_to_the_page_it_stood_on(client: Client, tenant: Tenancy) -> None:
    client.force_login(tenant.users["alice"])
    view = reauthenticated(lambda request: HttpResponse("done"))

    def location(referer: str | None) -> str:
        request = ask(client)
        post = RequestFactory().post("/members/remove", headers={"Referer": referer} if referer else {})
        post.session, post.user = request.session, request.user
        return view(post)["Location"]

    assert location("http://testserver/members?page=2") == "/account/confirm?next=/members%3Fpage%3D2"
    for elsewhere in (None, "https://evil.example/members", "http://[", "javascript:x"):
        assert location(elsewhere) == "/account/confirm?next=/"


def test_the_account_page_is_for_whoever_is_signed_in_member_or_not(client: Client, tenant: Tenancy) -> None:
    for path in ("/account", "/account/password", "/account/confirm", "/account/two-factor", "/account/recovery-codes"):
        assert client.get(path)["Location"] == f"/sign-in?next={path}"
    for path in ("/account/sessions/end", "/account/sessions/1/end", "/account/recovery-codes/new"):
        assert client.get(path).status_code == 405
        assert client.post(path)["Location"] == "/sign-in?next=/account"
    alone = user_create(email=f"{unique('dora')}@x.example", password=PASSWORD)
    sign_in(client, alone)
    page = client.get("/account")
    assert page.status_code == 200
    assert "of </span>" not in page.content.decode()


def test_the_account_page_tells_nothing_of_a_stranger(client: Client, tenant: Tenancy) -> None:
    other = tenancy_create(owner="charlie")
    sign_in(Client(headers={"User-Agent": "charlies browser"}), other.users["charlie"])
    sign_in(client, tenant.users["alice"])
    assert "charlie" not in client.get("/account").content.decode().lower()
