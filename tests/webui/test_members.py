"""The pages of members and invitations, accepting one, and being in one tenant of several."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core import mail
from django.http import HttpResponse
from django.test import Client

from mirror_saas.ids import uuid7
from mirror_saas.logging import mask_secrets
from tenants.models import AuditEvent, Invitation, Membership, User
from tenants.roles import ROLE_CAPABILITIES, Role
from tenants.services.invitations import invitation_create, invitation_link, invitation_mark, invitation_revoke
from tenants.services.memberships import membership_create
from tenants.services.second_factor import totp_activate, totp_secret_new
from tenants.services.tenants import user_create
from tenants.tasks import invitation_send
from tests.factories import PASSWORD, Tenancy, call_create, unique
from tests.support.mails import mails_count_anew
from tests.support.totp import totp
from tests.webui.pages import form_of

pytestmark = pytest.mark.django_db

GOOD = "correct horse battery"
OWNER = ROLE_CAPABILITIES["owner"]


@pytest.fixture(autouse=True)
def mails(monkeypatch: pytest.MonkeyPatch) -> None:
    mails_count_anew(monkeypatch)


def signed_in(user: User, *, recently: bool = True, client: Client | None = None) -> Client:
    """A browser in which this person proved now or an hour ago who they are."""
    client = client or Client()
    client.force_login(user)
    session = client.session
    session["account_authentication_methods"] = [{"method": "password", "at": time.time() - (0 if recently else 3600)}]
    session["account_authentication_methods_user"] = str(user.pk)
    session.save()
    return client


@pytest.fixture
def alice(tenant: Tenancy) -> Client:
    return signed_in(tenant.users["alice"])


def text(answer: Any) -> str:
    return str(answer.content.decode())


def member(tenancy: Tenancy, role: Role) -> Membership:
    user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD, name=f"{role.label} Person")
    with tenancy.context():
        return membership_create(user=user, role=role)


def membership_of(tenancy: Tenancy, name: str) -> Membership:
    with tenancy.context():
        return Membership.objects.get(user=tenancy.users[name])


def invited(tenancy: Tenancy, email: str, *, role: Role = Role.EDITOR) -> Invitation:
    with tenancy.context():
        return invitation_create(email=email, role=role, capabilities=OWNER).invitation


def path_of(invitation: Invitation, *, proven: bool = True) -> str:
    return "/invitation/" + invitation_link(invitation, proven=proven).rsplit("/", 1)[1]


def follow(client: Client, answer: HttpResponse) -> str:
    assert answer.status_code == 302, text(answer)
    return text(client.get(answer.headers["Location"]))


# -- members --------------------------------------------------------------------------------------------------------


def test_an_owner_sees_members_with_controls(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    page = text(alice.get("/members"))
    bob = membership_of(tenant, "bob")
    assert tenant.users["bob"].email in page
    assert f'action="/members/{bob.id}/role"' in page
    assert f'href="/members/{bob.id}/remove"' in page
    assert "the last owner stays until there is another" in page
    assert f"/members/{membership_of(tenant, 'alice').id}/role" not in page
    assert '<option value="owner"' in page
    assert "charlie" not in page
    assert re.search(r'<a[^>]* href="/members" aria-current="page">Members</a>', page)


def test_an_admin_sees_owners_without_controls(tenant: Tenancy) -> None:
    admin = member(tenant, Role.ADMIN)
    member(tenant, Role.OWNER)
    page = text(signed_in(admin.user).get("/members"))
    with tenant.context():
        owners = list(Membership.objects.filter(role="owner"))
    assert len(owners) == 2
    for owner in owners:
        assert owner.user.email in page
        assert str(owner.id) not in page
    assert '<option value="owner"' not in page


@pytest.mark.parametrize("role", [Role.EDITOR, Role.REVIEWER, Role.VIEWER])
def test_who_does_not_administer_is_not_shown_the_page_and_refused(tenant: Tenancy, role: Role) -> None:
    client = signed_in(member(tenant, role).user)
    bob = membership_of(tenant, "bob")
    assert 'href="/members"' not in text(client.get("/calls"))
    for answer in (
        client.get("/members"),
        client.post("/members/invite", {"email": "d@x.example", "role": "viewer"}),
        client.get(f"/members/{bob.id}/role?role=owner"),
        client.post(f"/members/{bob.id}/role", {"role": "admin"}),
        client.post(f"/members/{bob.id}/remove"),
        client.post(f"/invitations/{uuid7()}/revoke"),
    ):
        assert answer.status_code == 403
        assert tenant.users["bob"].email not in text(answer)
    assert membership_of(tenant, "bob").role == "viewer"
    assert client.get("/members/leave").status_code == 200


def test_nobody_sees_nothing(client: Client, tenant: Tenancy) -> None:
    for path in ("/members", "/members/leave", f"/members/{membership_of(tenant, 'bob').id}/remove"):
        answer = client.get(path)
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/sign-in?next=/members")


def test_a_role_is_changed_and_said(alice: Client, tenant: Tenancy) -> None:
    bob = membership_of(tenant, "bob")
    page = follow(alice, alice.post(f"/members/{bob.id}/role", {"role": "admin"}))
    assert f"{tenant.users['bob'].email} is an admin now." in page
    assert membership_of(tenant, "bob").role == "admin"
    assert "Choose one of the roles" in follow(alice, alice.post(f"/members/{bob.id}/role", {"role": "king"}))
    assert membership_of(tenant, "bob").role == "admin"


def test_an_owner_is_made_after_confirming(tenant: Tenancy) -> None:
    bob = membership_of(tenant, "bob")
    path = f"/members/{bob.id}/role"
    stale = signed_in(tenant.users["alice"], recently=False)
    asked = stale.post(path, {"role": "owner"}, headers={"Referer": "http://testserver/members"})
    assert asked.headers["Location"] == "/account/confirm?next=/members"
    assert stale.post(path, {"role": "owner", "confirmed": "yes"}).status_code == 302
    assert membership_of(tenant, "bob").role == "viewer"

    recent = signed_in(tenant.users["alice"])
    asked = recent.post(path, {"role": "owner"})
    assert asked.headers["Location"] == f"{path}?role=owner"
    assert f"Make {tenant.users['bob'].email} an owner?" in text(recent.get(asked.headers["Location"]))
    assert membership_of(tenant, "bob").role == "viewer"
    page = follow(recent, recent.post(path, {"role": "owner", "confirmed": "yes"}))
    assert "is an owner now" in page
    # And back: Alice steps down, by the same way.
    alice = membership_of(tenant, "alice")
    assert "an owner no more?" in text(recent.get(f"/members/{alice.id}/role?role=viewer"))
    stepped = recent.post(f"/members/{alice.id}/role", {"role": "viewer", "confirmed": "yes"})
    assert stepped.headers["Location"] == "/"
    assert recent.get("/members").status_code == 403


def test_an_admin_makes_no_owner_and_unmakes_none(tenant: Tenancy) -> None:
    admin = signed_in(member(tenant, Role.ADMIN).user)
    alice, bob = membership_of(tenant, "alice"), membership_of(tenant, "bob")
    for answer in (
        admin.get(f"/members/{bob.id}/role?role=owner"),
        admin.post(f"/members/{bob.id}/role", {"role": "owner", "confirmed": "yes"}),
        admin.post(f"/members/{alice.id}/role", {"role": "viewer", "confirmed": "yes"}),
        admin.get(f"/members/{alice.id}/remove"),
        admin.post(f"/members/{alice.id}/remove"),
    ):
        assert answer.status_code == 403
    refused = admin.post("/members/invite", {"email": "d@x.example", "role": "owner"})
    assert "Choose one of the list." in text(refused)
    assert (membership_of(tenant, "alice").role, membership_of(tenant, "bob").role) == ("owner", "viewer")


def test_a_member_is_removed_after_confirming_and_sees_nothing_at_once(tenant: Tenancy, alice: Client) -> None:
    bob = membership_of(tenant, "bob")
    call = call_create(tenant)
    browser = signed_in(tenant.users["bob"])
    assert browser.get(f"/calls/{call.id}").status_code == 200
    path = f"/members/{bob.id}/remove"
    stale = signed_in(tenant.users["alice"], recently=False)
    assert stale.get(path).headers["Location"] == f"/account/confirm?next={path}"
    assert stale.post(path).status_code == 302
    assert browser.get(f"/calls/{call.id}").status_code == 200

    assert f"Remove {tenant.users['bob'].email}?" in text(alice.get(path))
    assert browser.get(f"/calls/{call.id}").status_code == 200
    assert "is no member any more" in follow(alice, alice.post(path))
    assert browser.get(f"/calls/{call.id}").headers["Location"] == "/no-tenant"
    assert browser.get("/no-tenant").status_code == 403
    assert alice.post(path).status_code == 404


def test_foreign_and_missing_members_are_the_same(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    theirs = membership_of(stranger, "charlie").id
    their_invitation = invited(stranger, "d@x.example").id
    for method, path, data in (
        ("get", "/members/{}/remove", {}),
        ("post", "/members/{}/remove", {}),
        ("get", "/members/{}/role", {"role": "owner"}),
        ("post", "/members/{}/role", {"role": "viewer"}),
    ):
        foreign = getattr(alice, method)(path.format(theirs), data)
        missing = getattr(alice, method)(path.format(uuid7()), data)
        assert foreign.status_code == missing.status_code == 404
        assert foreign.content == missing.content
    for end in ("resend", "revoke"):
        foreign = alice.post(f"/invitations/{their_invitation}/{end}")
        missing = alice.post(f"/invitations/{uuid7()}/{end}")
        assert foreign.status_code == missing.status_code == 404
        assert foreign.content == missing.content
    assert membership_of(stranger, "charlie").role == "owner"


def test_a_member_leaves_and_the_last_owner_is_told_what_to_do(alice: Client, tenant: Tenancy) -> None:
    bob = signed_in(tenant.users["bob"], recently=False)
    assert 'href="/members/leave"' in text(bob.get("/account"))
    assert "Leave Alice" in text(bob.get("/members/leave"))
    assert membership_of(tenant, "bob")
    assert "You have left" in follow(bob, bob.post("/members/leave"))
    with tenant.context():
        assert not Membership.objects.filter(user=tenant.users["bob"]).exists()
    for answer in (alice.get("/members/leave"), alice.post("/members/leave")):
        assert "You are its last owner. Make somebody else an owner first." in text(answer)
    assert membership_of(tenant, "alice").role == "owner"


def test_looking_changes_nothing(alice: Client, tenant: Tenancy) -> None:
    bob = membership_of(tenant, "bob")
    for path in (
        "/members/invite",
        f"/invitations/{uuid7()}/revoke",
        f"/invitations/{uuid7()}/resend",
        "/tenant/switch",
    ):
        assert alice.get(path).status_code == 405
    assert alice.get(f"/members/{bob.id}/role?role=admin").status_code == 302
    assert membership_of(tenant, "bob").role == "viewer"


def test_members_come_in_pages(alice: Client, tenant: Tenancy) -> None:
    for _ in range(50):
        member(tenant, Role.VIEWER)
    first = text(alice.get("/members"))
    assert tenant.users["alice"].email not in re.sub(r"<header.*?</header>", "", first, flags=re.S)
    [older] = re.findall(r'href="(/members\?cursor=[^"]+)"', first)
    assert tenant.users["bob"].email in text(alice.get(older))
    assert alice.get("/members?cursor=x").headers["Location"] == "/members"


# -- inviting -------------------------------------------------------------------------------------------------------


def test_inviting_shows_the_link_once(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    sent = alice.post("/members/invite", {"email": " Dora@X.example ", "role": "editor"})
    assert sent.headers["Location"] == "/members"
    page = text(alice.get("/members"))
    with tenant.context():
        invitation = Invitation.objects.get()
    link = invitation_link(invitation)
    assert f'value="{link}"' in page
    assert "dora@x.example is invited." in page
    assert invitation_link(invitation, proven=True) not in page
    again = text(alice.get("/members"))
    assert link not in again
    assert "dora@x.example" in again
    # Nowhere in the session either.
    token = link.rsplit("/", 1)[1]
    for session in Session.objects.all():
        assert token not in str(session.get_decoded())
    assert "dora" not in text(signed_in(stranger.users["charlie"]).get("/members"))


def test_inviting_and_sending_again_are_done_once_however_often_the_form_is_sent(
    alice: Client, tenant: Tenancy
) -> None:
    form = form_of(alice, "/members", email="dora@x.example", role="viewer")
    first, second = alice.post("/members/invite", form), alice.post("/members/invite", form)
    assert (first["Location"], second["Location"]) == ("/members", "/members")
    page = follow(alice, second)
    assert "dora@x.example is invited." in page
    assert "invited already" not in page
    with tenant.context():
        invitation = Invitation.objects.get()
    again = form_of(alice, "/members")
    for _ in range(2):
        alice.post(f"/invitations/{invitation.id}/resend", again)
    with tenant.context():
        assert AuditEvent.objects.filter(action="invitation.resend").count() == 1


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(alice: Client, tenant: Tenancy) -> None:
    invited(tenant, "dora@x.example")
    for email, said in (
        ("", "Type the email of the person to invite."),
        ("dora", "This is not an email address."),
        (tenant.users["bob"].email, "is a member already."),
        ("dora@x.example", "is invited already."),
    ):
        page = text(alice.post("/members/invite", {"email": email, "role": "reviewer"}))
        assert said in page
        assert 'id="id_email-error"' in page
        assert 'aria-describedby="id_email-error"' in page
        assert f'value="{email}"' in page or not email
        assert '<option value="reviewer" selected>' in page


def test_an_owner_is_invited_after_confirming_and_nothing_is_typed_twice(tenant: Tenancy) -> None:
    stale = signed_in(tenant.users["alice"], recently=False)
    asked = stale.post("/members/invite", {"email": "dora@x.example", "role": "owner"})
    assert asked.headers["Location"] == "/account/confirm?next=/members"
    with tenant.context():
        assert not Invitation.objects.exists()
    page = text(stale.get("/members"))
    assert 'value="dora@x.example"' in page
    assert '<option value="owner" selected>' in page
    recent = signed_in(tenant.users["alice"])
    assert recent.post("/members/invite", {"email": "dora@x.example", "role": "owner"}).status_code == 302
    with tenant.context():
        assert Invitation.objects.get().role == "owner"


def test_when_the_mail_could_not_be_queued_the_page_says_so(alice: Client, tenant: Tenancy) -> None:
    alice.post("/members/invite", {"email": "dora@x.example", "role": "editor"})
    with tenant.context():
        Invitation.objects.update(mail_state="not_queued")
    page = text(alice.get("/members"))
    assert "dora@x.example is invited, but the mail could not be sent:" in page
    assert "Mail not sent" in page


def test_an_invitation_is_sent_again_and_revoked(alice: Client, tenant: Tenancy) -> None:
    invitation = invited(tenant, "dora@x.example")
    old = path_of(invitation)
    page = follow(alice, alice.post(f"/invitations/{invitation.id}/resend"))
    assert "dora@x.example is invited." in page
    assert Client().get(old).status_code == 404
    with tenant.context():
        new = path_of(Invitation.objects.get())
    assert Client().get(new).status_code == 200
    page = follow(alice, alice.post(f"/invitations/{invitation.id}/revoke"))
    assert "its link is dead" in page
    assert "Open invitations" not in page
    assert Client().get(new).status_code == 404
    assert "was revoked" in follow(alice, alice.post(f"/invitations/{invitation.id}/resend"))


# -- accepting ------------------------------------------------------------------------------------------------------


def test_a_new_person_joins_and_is_signed_in(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    invitation = invited(tenant, "dora@x.example")
    path = path_of(invitation)
    page = text(client.get(path))
    assert "Join Alice" in page
    assert "as editor" in page
    answer = client.post(path, {"name": "Dora", "password": GOOD})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/")
    assert client.get("/calls").status_code == 200
    dora = User.objects.get(email="dora@x.example")
    with tenant.context():
        assert Membership.objects.get(user=dora).role == "editor"
        events = list(AuditEvent.objects.filter(actor_id=dora.id).order_by("seq").values_list("action", flat=True))
    assert events == ["invitation.accept", "membership.create", "user.sign_in"]
    # A person who has just typed their new password has proved who they are.
    assert client.get("/account/two-factor").status_code == 200
    assert client.get(path).status_code == 404
    assert Client().login(username="dora@x.example", password=GOOD)
    assert "charlie" not in text(client.get("/calls"))


def test_looking_at_a_link_accepts_nothing(client: Client, tenant: Tenancy) -> None:
    invitation = invited(tenant, "dora@x.example")
    for _ in range(2):
        assert client.get(path_of(invitation)).status_code == 200
        assert client.head(path_of(invitation)).status_code == 200
    assert client.options(path_of(invitation)).status_code == 405
    with tenant.context():
        assert Invitation.objects.get().accepted_at is None
    assert not User.objects.filter(email="dora@x.example").exists()


@pytest.mark.parametrize(
    ("name", "password", "said"),
    [
        ("", GOOD, "Type your name."),
        ("Dora", "", "Type a password."),
        ("Dora", "short", "too short"),
        ("Dora", "qwerty123456", "too common"),
        ("Dora", "dora@x.example", "too similar"),
        ("Dora\x00", GOOD, "Null characters"),
        ("x" * 300, GOOD, "200 characters at most"),
    ],
)
def test_what_is_wrong_with_a_new_account_stands_at_its_field(
    client: Client, tenant: Tenancy, name: str, password: str, said: str
) -> None:
    invitation = invited(tenant, "dora@x.example")
    page = text(client.post(path_of(invitation), {"name": name, "password": password}))
    assert said in page
    assert "field-error" in page
    if name == "Dora":
        assert 'value="Dora"' in page
    assert re.search(r'<input type="password"[^>]* value=', page) is None
    assert not User.objects.filter(email="dora@x.example").exists()
    assert client.get("/calls").status_code == 302


def test_somebody_with_an_account_signs_in_first(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    charlie = stranger.users["charlie"]
    path = path_of(invited(tenant, charlie.email, role=Role.REVIEWER))
    page = text(client.get(path))
    assert "This address has an account." in page
    assert 'name="password"' not in page
    # A new password is not set by a link.
    client.post(path, {"name": "Evil", "password": GOOD})
    charlie.refresh_from_db()
    assert charlie.check_password(PASSWORD)
    [sign_in] = re.findall(r'href="(/sign-in\?next=[^"]+)"', page)
    answer = client.post(sign_in, {"login": charlie.email, "password": PASSWORD, "next": path})
    assert answer.headers["Location"] == path
    assert "Join Alice" in text(client.get(path))
    assert client.post(path).headers["Location"] == "/"
    # They go on in the tenant that they joined.
    assert "Alice&#x27;s tenant" in text(client.get("/calls"))
    with tenant.context():
        assert Membership.objects.get(user=charlie).role == "reviewer"
    assert membership_of(stranger, "charlie").role == "owner"
    assert client.post(path).status_code == 404


def test_a_second_factor_comes_before_accepting(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    charlie = stranger.users["charlie"]
    secret = totp_secret_new()
    totp_activate(user=charlie, secret=secret, code=totp(secret, steps=-1))
    path = path_of(invited(tenant, charlie.email))
    half = client.post("/sign-in", {"login": charlie.email, "password": PASSWORD, "next": path})
    assert half.headers["Location"].startswith("/sign-in/code")
    assert "Sign in" in text(client.post(path))
    with tenant.context():
        assert Invitation.objects.get().accepted_at is None
    assert client.post(half.headers["Location"], {"code": totp(secret)}).headers["Location"] == path
    assert client.post(path).headers["Location"] == "/"
    with tenant.context():
        assert Membership.objects.filter(user=charlie).exists()


def test_signed_in_as_somebody_else(tenant: Tenancy, stranger: Tenancy) -> None:
    invitation = invited(tenant, "dora@x.example")
    path = path_of(invitation)
    charlie = signed_in(stranger.users["charlie"])
    page = text(charlie.get(path))
    assert "whom this invitation is not for" in page
    refused = charlie.post(path, {"name": "Charlie", "password": GOOD})
    assert refused.status_code == 403
    with tenant.context():
        assert not Membership.objects.filter(user=stranger.users["charlie"]).exists()
        assert Invitation.objects.get().accepted_at is None
    assert charlie.post(path, {"do": "sign_out"}).headers["Location"] == path
    assert "Make an account and join" in text(charlie.get(path))


def test_links_that_open_nothing_look_alike(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    used, revoked, expired = (invited(tenant, f"{name}@x.example") for name in ("a", "b", "c"))
    client.post(path_of(used), {"name": "A", "password": GOOD})
    with tenant.context():
        invitation_revoke(invitation_id=revoked.id, capabilities=OWNER)
        Invitation.objects.filter(id=expired.id).update(expires_at=expired.created_at)
    paths = [*(path_of(each) for each in (used, revoked, expired)), f"/invitation/{'A' * 43}", "/invitation/%00"]
    for browser in (Client(), signed_in(stranger.users["charlie"])):
        for method in (browser.get, browser.post):
            answers = [method(path) for path in paths]
            assert {answer.status_code for answer in answers} == {404}
            bodies = {re.sub(r'name="csrfmiddlewaretoken" value="[^"]+"', "", text(answer)) for answer in answers}
            assert len(bodies) == 1
            assert "This invitation does not work" in bodies.pop()


def test_a_link_stays_out_of_logs_caches_and_other_sites(client: Client, tenant: Tenancy) -> None:
    path = path_of(invited(tenant, "dora@x.example"))
    answer = client.get(path)
    assert "no-store" in answer.headers["Cache-Control"]
    token = path.rsplit("/", 1)[1]
    for line in (f"Not Found: {path}", f'"GET {path} HTTP/1.1" 404', f"/sign-in?next={path}"):
        masked = mask_secrets(line)
        assert all(part not in masked for part in token.split(".")), masked


def test_forms_of_invitations_need_their_csrf_token(tenant: Tenancy) -> None:
    path = path_of(invited(tenant, "dora@x.example"))
    browser = Client(enforce_csrf_checks=True)
    assert browser.post(path, {"name": "Dora", "password": GOOD}).status_code == 403
    assert not User.objects.filter(email="dora@x.example").exists()


def test_the_mailed_link_is_the_one_that_works(client: Client, tenant: Tenancy) -> None:
    invitation = invited(tenant, "dora@x.example")
    with tenant.context():
        invitation_send.apply((str(invitation.id), invitation_mark(invitation)))
    [message] = mail.outbox
    [link] = re.findall(r"http://\S+/invitation/\S+", str(message.body))
    client.post(link[link.index("/invitation/") :], {"name": "Dora", "password": GOOD})
    assert User.objects.filter(email="dora@x.example").exists()


# -- several tenants ------------------------------------------------------------------------------------------------


@pytest.fixture
def both(tenant: Tenancy, stranger: Tenancy) -> Client:
    """Alice's browser; she owns her tenant and may look at Charlie's."""
    with stranger.context():
        membership_create(user=tenant.users["alice"], role=Role.VIEWER)
    return signed_in(tenant.users["alice"])


def test_one_tenant_needs_no_switcher(alice: Client, tenant: Tenancy) -> None:
    assert "/tenant/switch" not in text(alice.get("/calls"))


def test_switching_shows_the_other_tenant_and_nothing_of_the_first(
    both: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    mine = call_create(tenant)
    page = text(both.get("/calls"))
    assert "Switch to Charlie" in page
    assert f'value="{stranger.id}"' in page
    assert mine.id.hex in page
    assert both.post("/tenant/switch", {"tenant": str(stranger.id)}).headers["Location"] == "/"
    page = text(both.get("/calls"))
    assert mine.id.hex not in page
    assert "Viewer of Charlie" in page
    assert both.get(f"/calls/{mine.id}").status_code == 404
    assert both.get("/members").status_code == 403
    # It stays so, and goes back.
    assert both.get("/api/v1/me").json()["tenant"]["slug"] == stranger.slug
    both.post("/tenant/switch", {"tenant": str(tenant.id)})
    assert both.get(f"/calls/{mine.id}").status_code == 200


@pytest.mark.parametrize("chosen", ["", "x", "\x00", "0" * 40])
def test_switching_goes_to_ones_own_tenants_only(
    alice: Client, tenant: Tenancy, stranger: Tenancy, chosen: str
) -> None:
    answers = [alice.post("/tenant/switch", {"tenant": value}) for value in (chosen, str(stranger.id), str(uuid7()))]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert alice.get("/api/v1/me").json()["tenant"]["slug"] == tenant.slug


@pytest.mark.parametrize("kept", ["x", "", None, 5, ["a"], {"a": 1}, "0" * 40])
def test_a_malformed_choice_in_the_session_is_none(alice: Client, tenant: Tenancy, kept: Any) -> None:
    session = alice.session
    session["tenant_id"] = kept
    session.save()
    assert alice.get("/calls").status_code == 200
    assert alice.session["tenant_id"] == str(tenant.id)


def test_a_form_of_the_tenant_before_does_nothing_in_the_next_one(tenant: Tenancy, stranger: Tenancy) -> None:
    """The old tab: its form was written for another tenant."""
    with stranger.context():
        membership_create(user=tenant.users["alice"], role=Role.ADMIN)
    browser = signed_in(tenant.users["alice"], client=Client(enforce_csrf_checks=True))
    page = text(browser.get("/members"))
    token = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[0]
    invite = {"email": "dora@x.example", "role": "viewer", "csrfmiddlewaretoken": token}
    switched = browser.post("/tenant/switch", {"tenant": str(stranger.id), "csrfmiddlewaretoken": token})
    assert switched.status_code == 302
    refused = browser.post("/members/invite", invite)
    assert refused.status_code == 403
    assert "This form has expired" in text(refused)
    for tenancy in (tenant, stranger):
        with tenancy.context():
            assert not Invitation.objects.exists()


def test_what_is_sent_after_a_membership_ended_is_done_nowhere(tenant: Tenancy, stranger: Tenancy) -> None:
    """Whoever is removed while they type does not do it in their other tenant."""
    bob = tenant.users["bob"]
    with tenant.context():
        membership_create(user=bob, role=Role.ADMIN)
    with stranger.context():
        membership_create(user=bob, role=Role.ADMIN)
    browser = signed_in(bob)
    assert browser.get("/members").status_code == 200
    with tenant.context():
        Membership.objects.filter(user=bob).delete()
    answer = browser.post("/members/invite", {"email": "dora@x.example", "role": "viewer"})
    assert answer.headers["Location"] == "/no-tenant"
    assert browser.post("/api/v1/invitations", {}, content_type="application/json").status_code == 401
    with stranger.context():
        assert not Invitation.objects.exists()
    moved = browser.get("/no-tenant")
    assert moved.headers["Location"] == "/calls"
    page = text(browser.get("/calls"))
    assert "Nothing was changed." in page
    assert "Admin of Charlie" in page


def test_a_page_says_whose_it_is_to_its_socket(alice: Client, tenant: Tenancy) -> None:
    assert f'data-tenant="{tenant.id}"' in text(alice.get("/calls"))
