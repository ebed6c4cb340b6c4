"""Signing up: what a link proves, what is told to whom, and what comes of it."""

from __future__ import annotations

import html
import json
import re
import smtplib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.core import mail
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.test import Client
from django.utils import timezone
from kombu.exceptions import OperationalError

from mirror_saas.env import MailServer
from mirror_saas.ids import uuid7
from tenants import tasks
from tenants.context import tenant_context
from tenants.models import AuditEvent, Tenant, User
from tenants.selectors.memberships import membership_list
from tenants.selectors.tenants import tenant_by_slug
from tenants.services.invitations import AddressUnproven
from tenants.services.sign_up import (
    VALID_FOR,
    SignUpClosed,
    SignUpLinkInvalid,
    sign_up,
    sign_up_mail,
    sign_up_of,
    sign_up_token,
    tenant_add,
)
from tenants.services.tenants import tenant_create
from tests.factories import PASSWORD, Tenancy, client_sign_in, unique

pytestmark = pytest.mark.django_db

LINK = re.compile(r"https?://\S+?(/sign-up/\S+)")
GOOD = {"name": "Dora", "tenant_name": "Dora’s Café", "password": "seven tall giraffes in a queue"}


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def mail_server(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail server is set up, and what is handed to the workers is done at once."""
    server = MailServer(host="mail.example.com", port=587, security="starttls")
    settings.MIRROR = replace(settings.MIRROR, email=server)
    monkeypatch.setattr(tasks.sign_up_send, "apply_async", lambda args, **options: sign_up_mail(email=args[0]))


def closed(settings: Any) -> None:
    settings.MIRROR = replace(settings.MIRROR, sign_up="closed")


def address() -> str:
    return f"{unique('dora')}@x.example"


def page(answer: Any) -> str:
    return html.unescape(answer.content.decode())


def mailed_path() -> str:
    found = LINK.search(str(mail.outbox[-1].body))
    assert found is not None
    return found.group(1)


# -- the pages ------------------------------------------------------------------------------------------------------


def test_a_mailed_link_leads_to_an_account_that_owns_a_tenant(
    client: Client, mail_server: None, stranger: Tenancy
) -> None:
    email = address()
    assert 'href="/sign-up"' in page(client.get("/sign-in"))
    asked = client.post("/sign-up", {"email": f" {email.upper()} "})
    assert asked["Location"] == "/sign-up/sent"
    assert "on its way" in page(client.get("/sign-up/sent"))
    assert not User.objects.filter(email=email).exists()
    (sent,) = mail.outbox
    assert sent.to == [email]
    (alternative,) = sent.alternatives
    assert mailed_path() in str(alternative.content)

    # From another browser than the one that asked: the link is what proves.
    there = Client()
    assert there.get(mailed_path())["Location"] == "/sign-up/new", "the token leaves the address"
    assert email in page(there.get("/sign-up/new"))
    made = there.post("/sign-up/new", GOOD)
    assert made["Location"] == "/welcome"
    user = User.objects.get(email=email)
    assert (user.name, user.check_password(GOOD["password"])) == ("Dora", True)
    (membership,) = membership_list(user_id=user.pk)
    assert (membership.role, membership.tenant.name) == ("owner", "Dora’s Café")
    assert membership.tenant.slug == "doras-cafe" or membership.tenant.slug.startswith("doras-cafe-")
    assert "Dora’s Café" in page(there.get("/welcome"))
    assert there.get("/api-keys/new").status_code == 200, "who has just signed up need not prove who they are"
    with tenant_context(membership.tenant.id):
        events = list(AuditEvent.objects.order_by("seq"))
    assert [event.action for event in events] == [
        "tenant.create",
        "membership.create",
        "user.sign_up",
        "user.sign_in",
    ]
    assert {event.actor_label for event in events} == {email}
    assert json.loads(events[2].after) == {"address_proven": True}
    # The link makes one account.
    late = Client()
    late.get(mailed_path())
    assert "You have an account" in page(late.get("/sign-up/new"))
    late.post("/sign-up/new", {**GOOD, "password": "another password entirely"})
    assert User.objects.get(email=email).check_password(GOOD["password"])
    assert User.objects.filter(email=stranger.users["charlie"].email).count() == 1


def test_an_address_that_has_an_account_is_told_so_by_mail_and_nobody_else_is(
    client: Client, mail_server: None, tenant: Tenancy
) -> None:
    known, unknown = tenant.users["alice"].email, address()
    answers = [client.post("/sign-up", {"email": email}) for email in (known, unknown)]
    assert len({(answer.status_code, answer["Location"], answer.content) for answer in answers}) == 1
    to_known, to_unknown = mail.outbox
    assert (to_known.to, to_unknown.to) == ([known], [unknown])
    assert "There is an account with this address already" in " ".join(str(to_known.body).split())
    assert not LINK.search(str(to_known.body))
    assert "/sign-in" in str(to_known.body)


def test_without_a_mail_server_one_goes_on_at_once(client: Client, tenant: Tenancy) -> None:
    email = address()
    assert client.post("/sign-up", {"email": email})["Location"] == "/sign-up/new"
    assert client.post("/sign-up/new", GOOD)["Location"] == "/welcome"
    assert mail.outbox == []
    assert client.get("/sign-up/new")["Location"] == "/"
    # An account that there is is not opened so.
    other = Client()
    other.post("/sign-up", {"email": tenant.users["alice"].email})
    assert "You have an account" in page(other.get("/sign-up/new"))
    other.post("/sign-up/new", GOOD)
    assert tenant.users["alice"].check_password(PASSWORD)
    assert other.get("/account").status_code == 302


def test_a_second_sending_leads_to_the_account_that_the_first_one_made(client: Client) -> None:
    email = address()
    client.post("/sign-up", {"email": email})
    assert client.post("/sign-up/new", GOOD)["Location"] == "/welcome"
    # The second one was sent before the first answer came: it knows the link and no sign-in.
    twin = Client()
    session = twin.session
    session["sign_up_link"] = sign_up_token(email=email, proven=False)
    session.save()
    assert twin.post("/sign-up/new", GOOD).status_code == 200
    assert "You have an account" in page(twin.get("/sign-up/new"))
    assert User.objects.filter(email=email).count() == 1


@pytest.mark.parametrize(
    ("email", "told"),
    [
        ("", "Type the email"),
        ("nobody", "This is not an email address"),
        ("a@b", "This is not an email address"),
        ("x" * 250 + "@x.example", "at most 254"),
        ("dora@x.example\nBcc: all@x.example", "This is not an email address"),
        ("dora\x00@x.example", "not"),
        ("дора@x.example", "not an email address"),
    ],
    ids=["nothing", "a word", "no domain", "long", "a header", "nul", "not ascii"],
)
def test_what_is_no_address_is_refused_at_the_field_and_stays(
    client: Client, mail_server: None, email: str, told: str
) -> None:
    answer = client.post("/sign-up", {"email": email})
    assert answer.status_code == 200
    shown = page(answer)
    assert 'aria-invalid="true"' in shown
    assert told in shown
    assert mail.outbox == []


def test_what_is_wrong_with_an_account_stands_at_its_field_and_what_was_typed_stays(client: Client) -> None:
    email = address()
    client.post("/sign-up", {"email": email})
    for change, told in (
        ({"name": ""}, "Type your name."),
        ({"name": "a\u2028b"}, "in one line"),
        ({"name": "a\x00b"}, "without control characters"),
        ({"tenant_name": "x" * 201}, "Use 200 characters at most."),
        ({"tenant_name": "\x07"}, "in one line"),
        ({"password": "short"}, "at least 12"),
        ({"password": "password1234"}, "too common"),
        ({"password": email}, "too similar"),
    ):
        answer = client.post("/sign-up/new", {**GOOD, **change})
        assert answer.status_code == 200, change
        shown = page(answer)
        assert told in shown, change
        assert 'aria-invalid="true"' in shown
        if "tenant_name" not in change:
            assert 'value="Dora’s Café"' in shown
        assert GOOD["password"] not in shown
    assert client.get("/account").status_code == 302


def test_links_that_open_nothing_look_alike(client: Client, mail_server: None) -> None:
    email = address()
    good = sign_up_token(email=email, proven=True)
    seen = set()
    for token in ("none", good[:-2], f"{good}A", good.replace(".", ":"), "x" * 5000, "%00", quote("ü.ü")):
        assert client.get(f"/sign-up/{token}").status_code == 302
        answer = client.get("/sign-up/new")
        assert answer.status_code == 404
        assert client.post("/sign-up/new", GOOD).status_code == 404
        seen.add(re.sub(r'(csrfmiddlewaretoken" value|data-csrf)="[^"]*"', "", page(answer)))
    assert len(seen) == 1
    assert Client().get("/sign-up/new").status_code == 404
    assert not User.objects.filter(email=email).exists()


def test_closed_lets_nobody_in(client: Client, settings: Any, mail_server: None) -> None:
    token = sign_up_token(email=address(), proven=True)
    closed(settings)
    assert "/sign-up" not in page(client.get("/sign-in"))
    client.get(f"/sign-up/{token}")
    for path in ("/sign-up", "/sign-up/new"):
        for answer in (client.get(path), client.post(path, {"email": "a@x.example", **GOOD})):
            assert answer.status_code == 403
            assert "Sign-up is closed" in page(answer)
    sign_up_mail(email=address())
    assert mail.outbox == []
    with pytest.raises(SignUpClosed):
        sign_up(token=token, user_id=uuid7(), **GOOD)


def test_mails_and_accounts_are_counted(client: Client, mail_server: None) -> None:
    email = address()
    statuses = [client.post("/sign-up", {"email": email}).status_code for _ in range(4)]
    assert statuses == [302, 302, 302, 429]
    assert len(mail.outbox) == 3
    many = [client.post("/sign-up", {"email": address()}).status_code for _ in range(8)]
    assert many[-1] == 429


def test_a_broker_that_is_down_is_said(
    client: Client, mail_server: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def down(*args: Any, **options: Any) -> None:
        raise OperationalError

    monkeypatch.setattr(tasks.sign_up_send, "apply_async", down)
    email = address()
    answer = client.post("/sign-up", {"email": email})
    assert answer.status_code == 503
    assert "Try again in a few minutes" in page(answer)
    assert f'value="{email}"' in page(answer)
    assert email not in caplog.text


def test_a_mail_that_is_not_taken_is_tried_again_and_not_logged(
    mail_server: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    def refuse(*, email: str) -> None:
        tries.append(email)
        raise smtplib.SMTPServerDisconnected

    monkeypatch.setattr(tasks, "sign_up_mail", refuse)
    email = address()
    tasks.sign_up_send.apply(args=(email,))
    assert len(tries) == tasks.MAIL_RETRIES + 1
    assert email not in caplog.text


# -- somebody who is signed in ----------------------------------------------------------------------------------------


def test_whoever_is_signed_in_adds_a_tenant_once(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    alice = tenant.users["alice"]
    client_sign_in(client, alice)
    shown = page(client.get("/sign-up"))
    once = re.search(r'name="once" value="([^"]+)"', shown)
    assert once is not None
    wrong = client.post("/sign-up", {"tenant_name": " ", "once": once.group(1)})
    assert "Type the name of your company" in page(wrong)
    form = {"tenant_name": "Second", "once": once.group(1)}
    assert [client.post("/sign-up", form)["Location"] for _ in range(2)] == ["/welcome", "/welcome"]
    assert [each.tenant.name for each in membership_list(user_id=alice.pk)] == [tenant.tenant.name, "Second"]
    assert client.get("/welcome").context["member"].tenant.name == "Second"
    for forged in ("", "x", sign_up_token(email="a@x.example", proven=True)):
        answer = client.post("/sign-up", {"tenant_name": "Third", "once": forged})
        assert "Look it over and send it again." in page(answer)
        assert 'value="Third"' in page(answer)
    # A form that was made for somebody else.
    charlie = Client()
    client_sign_in(charlie, stranger.users["charlie"])
    assert "Look it over" in page(charlie.post("/sign-up", form))
    assert len(membership_list(user_id=stranger.users["charlie"].pk)) == 1


def test_somebody_without_a_tenant_is_offered_one(client: Client, settings: Any) -> None:
    user = User.objects.create_user(email=address(), password=PASSWORD)
    client_sign_in(client, user)
    assert 'href="/sign-up"' in page(client.get("/no-tenant"))
    once = re.search(r'name="once" value="([^"]+)"', page(client.get("/sign-up")))
    assert once is not None
    assert client.post("/sign-up", {"tenant_name": "Mine", "once": once.group(1)})["Location"] == "/welcome"
    assert client.get("/welcome").status_code == 200
    closed(settings)
    assert client.get("/sign-up").status_code == 403


# -- the service ------------------------------------------------------------------------------------------------------


def test_a_link_is_good_for_a_day() -> None:
    now = timezone.now()
    token = sign_up_token(email="dora@x.example", proven=True, now=now)
    assert sign_up_of(token, now=now + VALID_FOR - timedelta(seconds=2)).proven
    with pytest.raises(SignUpLinkInvalid):
        sign_up_of(token, now=now + VALID_FOR + timedelta(seconds=1))


def test_a_token_that_proves_nothing_makes_no_account_where_mails_prove_addresses(mail_server: None) -> None:
    email = address()
    with pytest.raises(AddressUnproven):
        sign_up(token=sign_up_token(email=email, proven=False), user_id=uuid7(), **GOOD)
    assert not User.objects.filter(email=email).exists()


def test_slugs_are_made_of_names_and_differ_from_those_that_are_taken() -> None:
    user = User.objects.create_user(email=address(), password=PASSWORD)
    word = unique("slug")
    tenant_create(slug=word, name="taken by another")
    for name, begins in (
        (f"{word.upper()}!", f"{word}-"),
        ("Zoë & Söhne  GmbH", "zoe-sohne-gmbh"),
        ("株式会社", "tenant"),
        ("-" * 90, "tenant"),
        ("A" * 200, "a" * 40),
    ):
        made = tenant_add(user=user, tenant_id=uuid7(), tenant_name=name)
        assert made.slug.startswith(begins), made.slug
        assert tenant_by_slug(slug=made.slug) == made
    with pytest.raises(ValidationError) as error:
        tenant_add(user=user, tenant_id=uuid7(), tenant_name="\n")
    assert list(error.value.message_dict) == ["tenant_name"]


def test_everything_or_nothing_is_made(tenant: Tenancy) -> None:
    email = address()
    token = sign_up_token(email=email, proven=False)
    with tenant.context():
        before = Tenant.objects.count()
    for change, field in (({"tenant_name": "\n"}, "tenant_name"), ({"password": "short"}, "password")):
        with pytest.raises(ValidationError) as error:
            sign_up(token=token, user_id=uuid7(), **{**GOOD, **change})
        assert list(error.value.message_dict) == [field]
    assert not User.objects.filter(email=email).exists()
    with tenant.context():
        assert Tenant.objects.count() == before
