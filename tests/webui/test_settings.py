"""The settings' pages: name and limits, default models, privacy with its try-out, and who gets alarm mails."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import AlarmRecipient, Call, ModelDefaults, PrivacySettings, ProviderCredential
from supervision.redaction import MAX_PATTERNS
from supervision.services.alarm_mails import alarm_mail_send
from supervision.services.alarms import alarm_kinds_set, alarm_raise, alarms_mail_make
from supervision.services.credentials import credential_create
from tenants.models import AuditEvent, Membership, Tenant
from tenants.roles import Role
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import PASSWORD, Tenancy, call_create, client_sign_in, unique
from tests.webui.pages import form_of, page_of, words_of

pytestmark = pytest.mark.django_db

PRIVACY = "/settings/privacy"


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def charlie_of(stranger: Tenancy) -> Client:
    client = Client()
    client_sign_in(client, stranger.users["charlie"])
    return client


def member_of(tenancy: Tenancy, role: Role = Role.VIEWER) -> tuple[Client, Membership]:
    client = Client()
    with tenancy.context():
        user = user_create(email=f"{unique('vera')}@example.com", password=None, name="Vera")
        member = membership_create(user=user, role=role)
    client_sign_in(client, user)
    return client, member


def owner_of(tenancy: Tenancy) -> Membership:
    return Membership.objects.get(user=next(iter(tenancy.users.values())))


# -- general ------------------------------------------------------------------------------------------------------


def test_the_name_is_changed_and_what_is_wrong_stays_typed(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    assert alice.post("/settings", form_of(alice, "/settings", name="  Pizzeria ")).status_code == 302
    page = page_of(alice, "/settings")
    assert "Saved." in page
    assert 'value="Pizzeria"' in page
    assert tenant.slug in page
    for wrong, said in (("", "Give a name."), ("x" * 201, "Use 200 characters at most."), ("a\u2028b", "in one line")):
        answer = words_of(alice.post("/settings", form_of(alice, "/settings", name=wrong)))
        assert said in answer
        assert 'aria-invalid="true"' in answer
    with tenant.context():
        assert Tenant.objects.get().name == "Pizzeria"
    with stranger.context():
        assert Tenant.objects.get().name == "Charlie's tenant"


def test_limits_show_what_is_used_and_what_was_refused(alice: Client, tenant: Tenancy) -> None:
    call_create(tenant, started_at=timezone.now())
    page = page_of(alice, "/settings")
    assert "20,480 MiB" in page
    assert 'data-label="Refused today" class="figure">1<' in page
    assert "None stored" in page


# -- default models -----------------------------------------------------------------------------------------------


def test_default_models_are_chosen_among_ones_own(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        voice = credential_create(
            name="Voice", kind=ProviderCredential.Kind.TTS, base_url="http://127.0.0.1:1/v1", model="v", api_key="k"
        )
    path = "/settings/models"
    judge = str(tenant.credential.id)
    alice.post(path, form_of(alice, path, llm_credential_id=judge, tts_credential_id=str(voice.id)))
    form = form_of(alice, path)
    assert (form["llm_credential_id"], form["tts_credential_id"]) == ([judge], [str(voice.id)])
    for wrong in (str(stranger.credential.id), str(voice.id), "nonsense"):
        assert "Choose one of the list" in words_of(alice.post(path, form_of(alice, path, llm_credential_id=wrong)))
    alice.post(path, form_of(alice, path, llm_credential_id="", tts_credential_id=""))
    with tenant.context():
        assert ModelDefaults.objects.get().llm_credential_id is None
        assert AuditEvent.objects.filter(action="model_defaults.update").count() == 2


# -- privacy ------------------------------------------------------------------------------------------------------


def rows(*patterns: tuple[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"patterns-TOTAL_FORMS": len(patterns)}
    for number, (name, pattern) in enumerate(patterns):
        fields |= {f"patterns-{number}-name": name, f"patterns-{number}-pattern": pattern}
    return fields


def stored(tenancy: Tenancy) -> PrivacySettings | None:
    with tenancy.context():
        return PrivacySettings.objects.first()


def test_privacy_is_saved_as_it_stands_on_the_page(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    form = form_of(alice, PRIVACY)
    assert (form["redact"], form["phone_region"]) == (["card", "email", "phone"], ["US"])
    own = rows(("member number", r"M-\d{6}"), ("", ""), ("room", "R[0-9]+"))
    sent = form_of(alice, PRIVACY, redact=["email"], phone_region="DE", retention_days="90", **own)
    assert alice.post(PRIVACY, sent)["Location"] == PRIVACY
    row = stored(tenant)
    assert row is not None
    assert (row.redact, row.phone_region, row.retention_days) == (["email"], "DE", 90)
    assert row.patterns == [{"name": "member number", "pattern": r"M-\d{6}"}, {"name": "room", "pattern": "R[0-9]+"}]
    # What the page shows saves the same again; a row that is emptied is gone.
    assert alice.post(PRIVACY, form_of(alice, PRIVACY)).status_code == 302
    assert stored(tenant).patterns == row.patterns  # type: ignore[union-attr]
    emptied = form_of(alice, PRIVACY, **{"patterns-0-name": "", "patterns-0-pattern": ""})
    alice.post(PRIVACY, emptied)
    assert stored(tenant).patterns == row.patterns[1:]  # type: ignore[union-attr]
    assert stored(stranger) is None


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(alice: Client, tenant: Tenancy) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"retention_days": "0"}, "Give 1 to 3650 days, or nothing to keep calls."),
        ({"retention_days": "soon"}, "Give a whole number of days."),
        ({"phone_region": "XX"}, "Choose one of the list."),
        ({"redact": ["names"]}, "Choose from the list."),
        (rows(("open", "(")), "It is no RE2 pattern"),
        (rows(("empty", "x*")), "It finds the empty text"),
        (rows(("", "x")), "Its name needs 1 to 40 characters"),
        (rows(("a", "x"), ("a", "y")), "There is another one called a."),
        (rows(("long", "x" * 501)), "Use 500 characters at most."),
        (rows(*((f"p{number}", "x") for number in range(MAX_PATTERNS + 1))), "Give at most 50 patterns."),
        ({"patterns-TOTAL_FORMS": "many"}, "The form came incomplete."),
    ]
    form = form_of(alice, PRIVACY, sample="kept words")
    for fields, said in wrong:
        answer = alice.post(PRIVACY, {**form, **fields})
        page = words_of(answer)
        assert answer.status_code == 200, fields
        assert said in page, fields
        assert "kept words" in page
        assert "field-error" in page
        for name, value in fields.items():
            if name.endswith(("-name", "-pattern")) and len(value) < 40:
                assert f'value="{value}"' in page or not value, fields
    assert stored(tenant) is None


def test_a_sentence_is_tried_with_what_is_typed_and_nothing_is_saved(alice: Client, tenant: Tenancy) -> None:
    path = f"{PRIVACY}/try"
    sample = "Card 4111 1111 1111 1111, room R12, <b>bob@example.com</b>."
    typed = form_of(alice, PRIVACY, sample=sample, redact=["card"], **rows(("room number", "R[0-9]+")))
    answer = alice.post(path, typed)
    assert "Card [card number], room [room number], &lt;b&gt;bob@example.com&lt;/b&gt;." in answer.content.decode()
    page = words_of(answer)
    assert 'value="room number"' in page
    assert sample in page
    assert "Nothing is taken out of it." in words_of(alice.post(path, {**typed, "sample": "Hello."}))
    refused = words_of(alice.post(path, {**typed, **rows(("room", "("))}))
    assert "Something above cannot be used yet." in refused
    assert stored(tenant) is None
    assert alice.get(path).status_code == 405
    # Nobody has to say who they are to try.
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    assert alice.post(path, typed).status_code == 200


def test_a_shorter_time_says_how_many_calls_it_deletes_and_waits_for_a_yes(alice: Client, tenant: Tenancy) -> None:
    call_create(tenant)
    call_create(tenant, started_at=timezone.now())
    sent = form_of(alice, PRIVACY, retention_days="30")
    asked = words_of(alice.post(PRIVACY, sent))
    assert "1 call is older than that." in asked
    assert 'value="30"' in asked
    assert stored(tenant) is None
    assert alice.post(PRIVACY, {**sent, "delete_confirmed": "on"}).status_code == 302
    assert stored(tenant).retention_days == 30  # type: ignore[union-attr]
    with tenant.context():
        # The schedule deletes, within the hour.
        assert Call.objects.count() == 2
    # A longer time, and the same again, delete nothing that would have stayed.
    for days in ("30", "60", ""):
        assert alice.post(PRIVACY, form_of(alice, PRIVACY, retention_days=days)).status_code == 302


def test_privacy_asks_who_it_is_and_keeps_what_was_typed(alice: Client, tenant: Tenancy) -> None:
    sent = form_of(alice, PRIVACY, redact=["phone"], retention_days="45", **rows(("room", "R[0-9]+")))
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    asked = alice.post(PRIVACY, sent)
    assert asked["Location"] == f"/account/confirm?next={PRIVACY}"
    assert stored(tenant) is None
    alice.post(asked["Location"], {"by": "password", "password": PASSWORD, "next": PRIVACY})
    again = form_of(alice, PRIVACY)
    assert (again["redact"], again["retention_days"]) == (["phone"], ["45"])
    assert again["patterns-0-pattern"] == ["R[0-9]+"]
    assert alice.post(PRIVACY, again).status_code == 302
    assert stored(tenant).retention_days == 45  # type: ignore[union-attr]


# -- alarm mails --------------------------------------------------------------------------------------------------


def kinds_of(tenancy: Tenancy) -> dict[str, list[str]]:
    with tenancy.context():
        return dict(AlarmRecipient.objects.values_list("membership__user__name", "kinds"))


def test_an_admin_chooses_for_everybody_and_a_member_for_themselves(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    path = "/settings/alarms"
    vera, member = member_of(tenant)
    assert "Nobody gets alarm mails." in page_of(alice, path)
    with tenant.context():
        owner = owner_of(tenant)
    sent = form_of(alice, path, **{owner.id.hex: ["coverage", "limit"], member.id.hex: ["call"]})
    assert alice.post(path, sent)["Location"] == path
    assert kinds_of(tenant) == {"Alice": ["coverage", "limit"], "Vera": ["call"]}
    assert form_of(alice, path)[owner.id.hex] == ["coverage", "limit"]
    assert "Nobody gets alarm mails." not in page_of(alice, path)
    wrong = words_of(alice.post(path, {**sent, member.id.hex: ["noise"]}))
    assert "Choose from the list." in wrong
    # Their own page, which says nothing of others.
    assert form_of(vera, "/alarm-mails")["kinds"] == ["call"]
    assert tenant.users["alice"].email not in page_of(vera, "/alarm-mails")
    assert vera.post("/alarm-mails", form_of(vera, "/alarm-mails", kinds=["webhook"])).status_code == 302
    assert vera.get(path).status_code == 403
    assert kinds_of(tenant)["Vera"] == ["webhook"]
    vera.post("/alarm-mails", form_of(vera, "/alarm-mails", kinds=[]))
    assert "You get no alarm mails." in page_of(vera, "/alarm-mails")
    assert list(kinds_of(tenant)) == ["Alice"]
    # Somebody else's member is none of the form's fields.
    charlie = charlie_of(stranger)
    charlie.post(path, form_of(charlie, path, **{owner.id.hex: ["call"]}))
    assert kinds_of(tenant) == {"Alice": ["coverage", "limit"]}
    assert kinds_of(stranger) == {}


def test_the_newest_alarms_are_listed(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["coverage"])
        data = {"call_id": str(call.id), "agent_id": str(tenant.agent.id), "alarm": "degraded"}
        alarm_raise(kind="coverage", subject=call.id, data=data)
    page = page_of(alice, "/settings/alarms")
    assert f'href="/calls/{call.id}">alice\'s agent: three turns in a row were not judged' in page
    assert "waits for the next mail" in page


def test_the_mailed_link_asks_and_then_stops_them(client: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        alarm_kinds_set(membership_id=owner_of(tenant).id, kinds=["limit"])
        alarm_raise(kind="limit", subject=uuid7(), data={"limit": "calls"})
        made = alarms_mail_make(now=timezone.now())
    assert made is not None
    alarm_mail_send(tenant_id=tenant.id, recipient_id=made.recipient_ids[0], mail_id=made.mail_id)
    (message,) = mail.outbox
    url = str(message.extra_headers["List-Unsubscribe"]).strip("<>")
    path = url[url.index("/alarm-mails") :]
    # Whoever has the link, signed in as somebody else or not at all. Scanners that follow it stop nothing.
    for who in (client, charlie_of(stranger)):
        assert f"{tenant.users['alice'].email} is mailed when" in page_of(who, path)
        assert kinds_of(tenant) == {"Alice": ["limit"]}
    stopped = client.post(path, {"do": "stop"})
    assert "Alarm mails are off" in words_of(stopped)
    assert kinds_of(tenant) == {}
    with tenant.context():
        assert AuditEvent.objects.filter(action="alarm_mails.update").latest("seq").actor_label == (
            "somebody who is not signed in"
        )
    for gone in (path, f"{path}x", "/alarm-mails/off/nonsense"):
        assert client.get(gone).status_code == 404
        assert client.post(gone, {"do": "stop"}).status_code == 404


def test_only_those_who_administer_see_the_settings(tenant: Tenancy) -> None:
    for role in (Role.EDITOR, Role.REVIEWER, Role.VIEWER):
        vera, _ = member_of(tenant, role)
        for path in ("/settings", "/settings/models", PRIVACY, "/settings/alarms"):
            assert vera.get(path).status_code == 403
            assert vera.post(path, {"name": "Mine"}).status_code == 403
        assert 'href="/settings' not in page_of(vera, "/alarm-mails")
