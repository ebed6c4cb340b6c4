"""Two-factor authentication: enrolment, codes, recovery codes, and how their secrets are kept."""

from __future__ import annotations

import io
import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from urllib.parse import unquote

import pytest
from allauth.mfa.models import Authenticator
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from tenants.envelope import KeyRing, SealBroken
from tenants.mfa import text_open, text_seal
from tenants.models import AuditEvent, User
from tenants.roles import Role
from tenants.sealing import key_ring
from tenants.services.memberships import membership_create
from tenants.services.second_factor import (
    CodeWrong,
    SecondFactorOff,
    SecondFactorOn,
    code_verify,
    recovery_codes_left,
    recovery_codes_renew,
    recovery_codes_show,
    second_factor_is_on,
    second_factor_off,
    second_factors_reseal,
    totp_activate,
    totp_secret_new,
)
from tests.factories import PASSWORD, Tenancy, client_sign_in, tenancy_create
from tests.support.totp import totp

pytestmark = pytest.mark.django_db

NOW = 1_900_000_000.0
# RFC 6238, appendix B: SHA-1, the secret "12345678901234567890", eight digits of which ours are the last six.
RFC_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
RFC_VECTORS = {59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037"}


@pytest.fixture(autouse=True)
def no_attempts_before() -> None:
    cache.clear()


@pytest.fixture
def alice(tenant: Tenancy) -> User:
    return tenant.users["alice"]


def enrolled(user: User, *, at: float | None = None) -> str:
    """Turn the second factor of `user` on two steps before `at`; the secret."""
    secret = totp_secret_new()
    now = (NOW if at is None else at) - 60
    totp_activate(user=user, secret=secret, code=totp(secret, at=now), now=now)
    return secret


def stored(user: User) -> str:
    """Everything that the database has of the person's second factor, as text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(m::text, ' ') FROM mfa_authenticator m WHERE user_id = %s", [user.pk])
        return str(cursor.fetchone()[0])


def events(tenancy: Tenancy, action: str) -> list[AuditEvent]:
    with tenancy.context():
        return list(AuditEvent.objects.filter(action=action).order_by("seq"))


# -- codes ---------------------------------------------------------------------------------------------------------


def test_codes_are_those_of_the_rfc() -> None:
    for at, code in RFC_VECTORS.items():
        assert totp(RFC_SECRET, at=at) == code


def test_the_rfcs_codes_are_taken(alice: User) -> None:
    totp_activate(user=alice, secret=RFC_SECRET, code="287082", now=59)
    for at, code in list(RFC_VECTORS.items())[1:]:
        assert code_verify(user=alice, code=code, now=at).type == "totp"


def test_a_code_counts_once(alice: User) -> None:
    code = totp(enrolled(alice), at=NOW)
    assert code_verify(user=alice, code=code, now=NOW).type == "totp"
    for later in (0, 5, 31):
        with pytest.raises(CodeWrong):
            code_verify(user=alice, code=code, now=NOW + later)


def test_after_a_code_the_ones_before_it_count_no_more(alice: User) -> None:
    secret = enrolled(alice)
    code_verify(user=alice, code=totp(secret, at=NOW, steps=1), now=NOW)
    for steps in (-1, 0, 1):
        with pytest.raises(CodeWrong):
            code_verify(user=alice, code=totp(secret, at=NOW, steps=steps), now=NOW)


def test_the_code_that_turned_it_on_does_not_sign_in(alice: User) -> None:
    secret = totp_secret_new()
    code = totp(secret, at=NOW)
    totp_activate(user=alice, secret=secret, code=code, now=NOW)
    with pytest.raises(CodeWrong):
        code_verify(user=alice, code=code, now=NOW)


@pytest.mark.parametrize(("steps", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_one_step_before_and_after_is_near_enough(alice: User, steps: int, taken: bool) -> None:
    secret = enrolled(alice, at=NOW - 600)
    code = totp(secret, at=NOW, steps=steps)
    if taken:
        code_verify(user=alice, code=code, now=NOW)
    else:
        with pytest.raises(CodeWrong):
            code_verify(user=alice, code=code, now=NOW)


@pytest.mark.parametrize("typed", ["", "0", "١٢٣٤٥٦", "12345\x00", "é" * 6, "9" * 5000, "-" * 6])
def test_anything_else_is_wrong(alice: User, typed: str) -> None:
    enrolled(alice)
    with pytest.raises(CodeWrong):
        code_verify(user=alice, code=typed, now=NOW)


def test_spaces_between_digits_do_not_matter(alice: User) -> None:
    code = totp(enrolled(alice), at=NOW)
    assert code_verify(user=alice, code=f" {code[:3]} {code[3:]} ", now=NOW)


def test_a_strangers_codes_are_wrong(alice: User, stranger: Tenancy) -> None:
    enrolled(alice)
    theirs = enrolled(stranger.users["charlie"])
    codes = recovery_codes_show(user=stranger.users["charlie"])
    assert codes is not None
    for code in (totp(theirs, at=NOW), codes[0]):
        with pytest.raises(CodeWrong):
            code_verify(user=alice, code=code, now=NOW)
    assert recovery_codes_left(user=stranger.users["charlie"]) == 10


def test_it_is_turned_on_and_off_once(alice: User) -> None:
    secret = enrolled(alice)
    with pytest.raises(SecondFactorOn):
        totp_activate(user=alice, secret=secret, code=totp(secret, at=NOW), now=NOW)
    second_factor_off(user=alice)
    assert not Authenticator.objects.filter(user=alice).exists()
    with pytest.raises(SecondFactorOff):
        second_factor_off(user=alice)
    with pytest.raises(SecondFactorOff):
        recovery_codes_renew(user=alice)


# -- recovery codes ------------------------------------------------------------------------------------------------


def test_a_recovery_code_works_once_and_counts_down(alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    codes = recovery_codes_show(user=alice)
    assert codes is not None
    assert len(set(codes)) == 10
    assert all(re.fullmatch(r"\d{10}", code) for code in codes)

    assert code_verify(user=alice, code=f"{codes[3][:5]} {codes[3][5:]}").type == "recovery_codes"
    with pytest.raises(CodeWrong):
        code_verify(user=alice, code=codes[3])
    assert recovery_codes_left(user=alice) == 9
    [event] = events(tenant, "user.recovery_code_use")
    assert json.loads(event.after or "") == {"left": 9}


def test_recovery_codes_are_shown_once(alice: User) -> None:
    enrolled(alice)
    assert recovery_codes_show(user=alice)
    assert recovery_codes_show(user=alice) is None


def test_new_recovery_codes_replace_the_old_ones(alice: User) -> None:
    enrolled(alice)
    old = recovery_codes_show(user=alice)
    recovery_codes_renew(user=alice)
    new = recovery_codes_show(user=alice)
    assert old is not None
    assert new is not None
    assert not set(old) & set(new)
    with pytest.raises(CodeWrong):
        code_verify(user=alice, code=old[0])
    assert code_verify(user=alice, code=new[0])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["totp", "recovery_codes"])
def test_a_code_that_two_nodes_get_at_once_counts_once(kind: str) -> None:
    user = tenancy_create(owner="alice").users["alice"]
    secret = enrolled(user)
    codes = recovery_codes_show(user=user)
    assert codes is not None
    code, both = totp(secret, at=NOW) if kind == "totp" else codes[0], Barrier(2)

    def verify(_: int) -> bool:
        both.wait(10)
        try:
            code_verify(user=user, code=code, now=NOW)
        except CodeWrong:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(2) as nodes:
        assert sorted(nodes.map(verify, range(2))) == [False, True]


# -- how they are kept ---------------------------------------------------------------------------------------------


def test_neither_secret_nor_seed_is_in_the_database(alice: User) -> None:
    secret = enrolled(alice)
    codes = recovery_codes_show(user=alice)
    assert codes is not None
    kept = stored(alice)
    assert secret not in kept
    assert not any(code in kept for code in codes)
    row = Authenticator.objects.get(user=alice, type="totp")
    assert text_open(row.data["secret"]) == secret


def test_a_secret_opens_with_no_other_key_and_nowhere_else() -> None:
    ring, other = KeyRing.of(secrets.token_bytes(32)), KeyRing.of(secrets.token_bytes(32))
    sealed = text_seal("JBSWY3DPEHPK3PXP", ring=ring)
    assert text_open(sealed, ring=KeyRing.of(other.current.secret, [ring.current.secret])) == "JBSWY3DPEHPK3PXP"
    with pytest.raises(SealBroken, match="neither MIRROR_ENCRYPTION_KEY nor"):
        text_open(sealed, ring=other)
    with pytest.raises(SealBroken, match="moved or changed"):
        text_open(sealed, ring=ring, field="elsewhere")
    for broken in ("", "é", "a", "AAAA", sealed[:-8], "JBSWY3DPEHPK3PXP"):
        with pytest.raises(SealBroken) as raised:
            text_open(broken, ring=ring)
        assert "JBSWY3DP" not in str(raised.value)


def test_rotating_seals_them_anew_and_the_former_key_is_needed_no_more(
    alice: User, stranger: Tenancy, settings: Any
) -> None:
    secret, theirs = enrolled(alice), enrolled(stranger.users["charlie"])
    former, settings.MIRROR_ENCRYPTION_KEY = settings.MIRROR_ENCRYPTION_KEY, secrets.token_bytes(32)
    with pytest.raises(SealBroken):
        code_verify(user=alice, code=totp(secret, at=NOW), now=NOW)
    settings.MIRROR_ENCRYPTION_KEY_PREVIOUS = (former,)
    code_verify(user=alice, code=totp(secret, at=NOW), now=NOW)

    done = second_factors_reseal(ring=key_ring(), batch=3)
    assert (done.resealed, done.broken) == (4, ())
    assert second_factors_reseal(ring=key_ring(), batch=3).resealed == 0
    settings.MIRROR_ENCRYPTION_KEY_PREVIOUS = ()
    code_verify(user=alice, code=totp(secret, at=NOW, steps=1), now=NOW)
    code_verify(user=stranger.users["charlie"], code=totp(theirs, at=NOW), now=NOW)
    assert recovery_codes_show(user=alice)


def test_a_rotation_names_what_does_not_open_and_leaves_it(alice: User, settings: Any) -> None:
    enrolled(alice)
    before = stored(alice)
    settings.MIRROR_ENCRYPTION_KEY = secrets.token_bytes(32)
    done = second_factors_reseal(ring=key_ring(), batch=10)
    ids = Authenticator.objects.filter(user=alice).values_list("id", flat=True)
    assert sorted(done.broken) == sorted(f"mfa_authenticator.data:{row}" for row in ids)
    assert stored(alice) == before


# -- the pages -----------------------------------------------------------------------------------------------------


def secret_on(page: str) -> str:
    found = re.search(r'<code class="secret"[^>]*>([A-Z2-7 ]+)</code>', page)
    assert found is not None, page
    return found.group(1).replace(" ", "")


def test_setting_it_up_shows_a_qr_code_then_recovery_codes_once(client: Client, alice: User, tenant: Tenancy) -> None:
    client_sign_in(client, alice)
    page = client.get("/account/two-factor").content.decode()
    secret = secret_on(page)
    assert 'src="data:image/svg+xml;base64,' in page
    assert "<script>" not in page
    assert secret_on(client.get("/account/two-factor").content.decode()) == secret
    assert secret not in json.dumps(dict(client.session.items()))

    wrong = client.post("/account/two-factor", {"code": "000000"})
    assert "This code is wrong" in wrong.content.decode()
    assert not second_factor_is_on(user=alice)

    answer = client.post("/account/two-factor", {"code": totp(secret)})
    assert (answer.status_code, answer["Location"]) == (302, "/account/recovery-codes")
    twice = client.post("/account/two-factor", {"code": totp(secret)})
    assert twice["Location"] == "/account/recovery-codes"
    assert client.head("/account/recovery-codes").status_code == 405, "nobody would see them"
    shown = client.get("/account/recovery-codes").content.decode()
    download = re.search(r'download="mirror-recovery-codes.txt" href="data:text/plain;charset=utf-8,([^"]+)"', shown)
    assert download is not None
    codes = re.findall(r"\d{10}", unquote(download.group(1)))
    assert len(codes) == 10
    again = client.get("/account/recovery-codes").content.decode()
    assert "are not shown again" in again
    assert not any(code in again for code in codes)
    assert "second_factor_pending" not in client.session
    [event] = events(tenant, "user.second_factor_on")
    assert (event.actor_kind, event.actor_label) == ("user", alice.email)
    assert secret not in (event.after or "")


def test_signing_in_takes_the_code(client: Client, alice: User, tenant: Tenancy) -> None:
    secret = enrolled(alice, at=None)
    key_before = client.session.session_key
    first = client.post("/sign-in", {"login": alice.email, "password": PASSWORD, "next": "/calls?state=live"})
    assert (first.status_code, first["Location"]) == (302, "/sign-in/code")
    assert client.get("/calls").status_code == 302, "the password alone opens nothing"
    assert client.get("/api/v1/me").status_code == 401
    assert "Type your code" in client.get("/sign-in/code").content.decode()

    Authenticator.objects.filter(user=alice, type="totp").update(data=_data_without_step(alice))
    second = client.post("/sign-in/code", {"code": totp(secret)})
    assert (second.status_code, second["Location"]) == (302, "/calls?state=live")
    assert client.get("/calls").status_code == 200
    assert client.session.session_key != key_before
    [event] = events(tenant, "user.sign_in")
    assert json.loads(event.after or "") == {"second_factor": "authenticator app"}


def _data_without_step(user: User) -> dict[str, Any]:
    """The stored data as of somebody who enrolled long ago."""
    data = dict(Authenticator.objects.get(user=user, type="totp").data)
    return {**data, "last_step": 0}


def test_a_recovery_code_signs_in(client: Client, alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    codes = recovery_codes_show(user=alice)
    assert codes is not None
    client.post("/sign-in", {"login": alice.email, "password": PASSWORD})
    answer = client.post("/sign-in/code", {"code": codes[0]})
    assert answer["Location"] == "/calls"
    [event] = events(tenant, "user.sign_in")
    assert json.loads(event.after or "") == {"second_factor": "recovery code"}


def test_wrong_codes_are_recorded_and_then_locked_out(client: Client, alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    codes = recovery_codes_show(user=alice)
    assert codes is not None
    client.post("/sign-in", {"login": alice.email, "password": PASSWORD})
    for _ in range(5):
        page = client.post("/sign-in/code", {"code": "000000"})
        assert page.status_code == 200
        assert 'aria-invalid="true"' in page.content.decode()
    locked = client.post("/sign-in/code", {"code": codes[0]})
    assert locked.status_code == 429
    assert "Too many attempts" in locked.content.decode()
    assert client.get("/calls").status_code == 302
    assert recovery_codes_left(user=alice) == 10
    failed = events(tenant, "user.sign_in_failed")
    assert len(failed) == 5
    assert {event.actor_label for event in failed} == {"somebody who is not signed in"}


def test_the_second_step_needs_the_first(client: Client, alice: User) -> None:
    secret = enrolled(alice)
    assert client.get("/sign-in/code")["Location"] == "/sign-in"
    assert client.post("/sign-in/code", {"code": totp(secret)})["Location"] == "/sign-in"
    assert client.get("/calls").status_code == 302


def test_whoever_goes_back_may_sign_in_as_somebody_else(client: Client, alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    client.post("/sign-in", {"login": alice.email, "password": PASSWORD})
    assert client.get("/sign-in").status_code == 200
    answer = client.post("/sign-in", {"login": tenant.users["bob"].email, "password": PASSWORD})
    assert answer["Location"] == "/calls"
    assert client.get("/api/v1/me").json()["user"]["email"] == tenant.users["bob"].email


def test_turning_it_off_takes_a_recent_sign_in_and_is_recorded(client: Client, alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    client.force_login(alice)
    asked = client.post("/account/two-factor/off", headers={"Referer": "http://testserver/account"})
    assert asked["Location"] == "/account/confirm?next=/account"
    assert second_factor_is_on(user=alice)

    client_sign_in(client, alice)
    assert "Turn two-factor authentication off?" in client.get("/account/two-factor/off").content.decode()
    assert client.post("/account/two-factor/off")["Location"] == "/account"
    assert client.post("/account/two-factor/off")["Location"] == "/account"
    assert not second_factor_is_on(user=alice)
    assert len(events(tenant, "user.second_factor_off")) == 1


def test_every_tenant_of_the_person_hears_of_it_and_no_other(alice: User, tenant: Tenancy, stranger: Tenancy) -> None:
    second = tenancy_create(owner="erin")
    with second.context():
        membership_create(user=alice, role=Role.VIEWER)
    enrolled(alice)
    assert len(events(tenant, "user.second_factor_on")) == len(events(second, "user.second_factor_on")) == 1
    assert events(stranger, "user.second_factor_on") == []


# -- for an operator -----------------------------------------------------------------------------------------------


def test_an_operator_lets_somebody_in_who_lost_everything(alice: User, tenant: Tenancy) -> None:
    enrolled(alice)
    call_command("second_factor_off", "--email", alice.email.upper(), stdout=io.StringIO())
    assert not second_factor_is_on(user=alice)
    [event] = events(tenant, "user.second_factor_off")
    assert event.actor_kind == "system"
    with pytest.raises(CommandError, match="has no second factor"):
        call_command("second_factor_off", "--email", alice.email)
    with pytest.raises(CommandError, match="nobody signs in with"):
        call_command("second_factor_off", "--email", "nobody@x.example")
