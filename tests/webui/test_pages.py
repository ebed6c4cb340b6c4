"""Pages as a member, as a stranger, and as nobody."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client

from mirror_saas.ids import uuid7
from supervision.models import Call
from tenants.roles import Role
from tenants.services.tenants import membership_create, user_create
from tests.factories import CALL_START, PASSWORD, Tenancy, call_create, tenancy_create, unique
from tests.webui import story

pytestmark = pytest.mark.django_db

ENDED = re.compile(r'id="calls-ended".*?</tbody>', re.S)
LIVE = re.compile(r'id="calls-live".*?</tbody>', re.S)
ROW = re.compile(r'<tr id="call-([0-9a-f]{32})"')


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client.force_login(tenant.users["alice"])
    return client


def rows(page: str, part: re.Pattern[str]) -> list[str]:
    found = part.search(page)
    return ROW.findall(found.group()) if found else []


def text_of(client: Client, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200, (path, response.status_code)
    return response.content.decode()


# -- signing in ----------------------------------------------------------------------------------------------------


def test_a_member_signs_in_and_comes_to_the_page_that_they_asked_for(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    asked = client.get(f"/calls/{call.id}")
    assert asked.status_code == 302
    assert asked["Location"] == f"/sign-in?next=/calls/{call.id}"

    answer = client.post(
        asked["Location"],
        {"login": tenant.users["alice"].email.upper(), "password": PASSWORD, "next": f"/calls/{call.id}"},
    )
    assert (answer.status_code, answer["Location"]) == (302, f"/calls/{call.id}")
    assert client.get(answer["Location"]).status_code == 200


def test_a_wrong_password_keeps_the_email_and_tells_neither_which_was_wrong(client: Client, tenant: Tenancy) -> None:
    email = tenant.users["alice"].email
    wrong_password = client.post("/sign-in", {"login": email, "password": "wrong"}).content.decode()
    wrong_email = client.post("/sign-in", {"login": "nobody@x.example", "password": PASSWORD}).content.decode()

    message = "Email or password is wrong. Check both and try again."
    assert message in wrong_password
    assert message in wrong_email
    assert f'value="{email}"' in wrong_password
    assert "wrong" not in re.findall(r'<input type="password"[^>]*>', wrong_password)[0]


def test_empty_fields_say_at_the_field_what_to_type(client: Client) -> None:
    page = client.post("/sign-in", {"login": "", "password": ""}).content.decode()
    assert "Type the email that you were invited with." in page
    assert 'aria-describedby="id_password-error"' in page
    assert 'id="id_password-error"' in page


def test_sign_in_does_not_send_people_to_other_sites(client: Client, tenant: Tenancy) -> None:
    answer = client.post(
        "/sign-in",
        {"login": tenant.users["alice"].email, "password": PASSWORD, "next": "https://evil.example/"},
    )
    assert answer["Location"] == "/calls"


def test_signing_out_takes_a_post_and_ends_the_session(alice: Client) -> None:
    assert alice.get("/sign-out").status_code == 405
    assert alice.get("/calls").status_code == 200
    assert alice.post("/sign-out")["Location"] == "/sign-in"
    assert alice.get("/calls").status_code == 302


def test_forms_need_their_csrf_token(tenant: Tenancy) -> None:
    client = Client(enforce_csrf_checks=True)
    answer = client.post("/sign-in", {"login": tenant.users["alice"].email, "password": PASSWORD})
    assert answer.status_code == 403
    assert "This form has expired" in answer.content.decode()


def test_a_person_without_a_tenant_is_told_what_to_do(client: Client) -> None:
    client.force_login(user_create(email=f"{unique('dora')}@x.example", password=PASSWORD))
    answer = client.get("/calls")
    assert answer["Location"] == "/no-tenant"
    page = client.get("/no-tenant")
    assert page.status_code == 403
    assert "You are in no tenant" in page.content.decode()


# -- who sees what -------------------------------------------------------------------------------------------------


def test_every_role_may_look_at_calls(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    for role in Role:
        with tenant.context():
            user = user_create(email=f"{unique(role.value)}@x.example", password=PASSWORD)
            membership_create(user=user, role=role)
        client.force_login(user)
        assert client.get("/calls").status_code == 200
        assert client.get(f"/calls/{call.id}").status_code == 200


def test_a_foreign_call_and_a_missing_one_are_the_same(alice: Client, stranger: Tenancy) -> None:
    with stranger.context():
        theirs = Call.objects.get()
    foreign, missing = alice.get(f"/calls/{theirs.id}"), alice.get(f"/calls/{uuid7()}")
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content


def test_nothing_of_a_stranger_is_in_any_page(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    for path in ("/calls", "/calls?state=ended", f"/calls?agent={stranger.agent.id}", f"/calls/{call.id}"):
        page = text_of(alice, path)
        assert "charlie" not in page.lower(), path
        assert stranger.slug not in page, path


def test_nobody_sees_nothing(client: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    for path in ("/calls", f"/calls/{call.id}"):
        answer = client.get(path)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/sign-in?next=")
    assert client.get("/")["Location"] == "/calls"


# -- what the policy forbids -----------------------------------------------------------------------------------------


def test_no_page_has_inline_script_or_style(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    for path in ("/calls", f"/calls/{call.id}", "/no-tenant"):
        page = alice.get(path, follow=True).content.decode()
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|javascript:", page), path


# -- the list ------------------------------------------------------------------------------------------------------


def test_live_calls_stand_on_top_and_the_rest_is_newest_first(alice: Client, tenant: Tenancy) -> None:
    old = call_create(tenant)
    live = call_create(tenant, state="live", started_at=CALL_START - timedelta(hours=1))
    new = call_create(tenant, started_at=CALL_START + timedelta(hours=1))
    page = text_of(alice, "/calls")
    assert rows(page, LIVE) == [live.id.hex]
    assert rows(page, ENDED) == [new.id.hex, old.id.hex]


def test_filters_stand_in_the_url_and_keep_what_was_chosen(alice: Client, tenant: Tenancy) -> None:
    failed = call_create(tenant, outcome="failed")
    call_create(tenant)
    page = text_of(alice, f"/calls?state=ended&outcome=failed&agent={tenant.agent.id}")
    assert rows(page, ENDED) == [failed.id.hex]
    assert '<option value="failed" selected>' in page
    assert f'<option value="{tenant.agent.id}" selected>' in page


def test_times_are_filtered_in_the_viewers_zone(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)  # 12:00 UTC
    alice.cookies["tz"] = "Asia/Tokyo"  # 21:00
    assert rows(text_of(alice, "/calls?after=2026-03-04T20:59&before=2026-03-04T21:00"), ENDED) == [call.id.hex]
    assert rows(text_of(alice, "/calls?after=2026-03-04T21:01"), ENDED) == []
    assert rows(text_of(alice, "/calls?before=2026-03-04T20:59"), ENDED) == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("state=nonsense", "Choose one of the list."),
        ("agent=nonsense", "Choose one of the list."),
        ("after=yesterday", "Give a date and time."),
        ("after=2026-03-04T12:00&before=2026-03-04T11:00", "Give a time after “From”."),
    ],
)
def test_a_wrong_filter_says_so_at_its_field(alice: Client, tenant: Tenancy, query: str, message: str) -> None:
    call_create(tenant)
    page = text_of(alice, f"/calls?{query}")
    assert message in page


def test_pages_lead_through_all_calls_once(alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webui.lists.PAGE_ROWS", 3)
    made = [call_create(tenant, started_at=CALL_START + timedelta(minutes=n)).id.hex for n in range(7)]
    seen: list[str] = []
    path: str | None = "/calls?state=ended"
    while path:
        page = text_of(alice, path)
        seen += rows(page, ENDED)
        older = re.search(r'href="([^"]+)" rel="next"', page)
        path = older.group(1).replace("&amp;", "&") if older else None
        assert path is None or "state=ended" in path
    assert seen == made[::-1]


def test_a_cursor_that_is_none_leads_to_the_start_of_the_same_list(alice: Client) -> None:
    assert alice.get("/calls?state=ended&cursor=broken")["Location"] == "/calls?state=ended"


def test_empty_lists_say_what_to_do_next(alice: Client, tenant: Tenancy) -> None:
    assert "Place a test call" in text_of(alice, "/calls")
    assert "clear all filters" in text_of(alice, "/calls?state=live")


def test_numbers_are_masked(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    for path in ("/calls", f"/calls/{call.id}"):
        page = text_of(alice, path)
        assert "+15 ••• 100" in page
        assert "+15550100" not in page


def test_times_are_in_the_viewers_zone_with_utc_on_hover(alice: Client, tenant: Tenancy) -> None:
    call_create(tenant)
    alice.cookies["tz"] = "Europe/Berlin"
    page = text_of(alice, "/calls")
    assert 'datetime="2026-03-04T12:00:00.000Z" title="2026-03-04 12:00:00.000 UTC">4 Mar 2026, 13:00:00</time>' in page
    assert 'data-zone="Europe/Berlin"' in page
    alice.cookies["tz"] = "../../etc/passwd"
    assert "4 Mar 2026, 12:00:00" in text_of(alice, "/calls")


def test_the_theme_follows_its_cookie(alice: Client) -> None:
    assert "data-theme=" not in text_of(alice, "/calls")
    alice.cookies["theme"] = "dark"
    assert 'data-theme="dark"' in text_of(alice, "/calls")
    alice.cookies["theme"] = '"><script>'
    assert "data-theme=" not in text_of(alice, "/calls")


# -- a call --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_calls_page_shows_what_was_recorded(client: Client, tenant: Tenancy, recorded: story.Recording) -> None:
    told = story.corrected_call(tenant, CALL_START)
    recorded(told.events)
    client.force_login(tenant.users["bob"])
    page = text_of(client, f"/calls/{told.call_id}")

    for shown in (
        "75 %",
        "Judging is degraded: 1 turn not judged (1 timed out).",
        "0.93 reaches threshold 0.70",
        story.REFUND_RULE,
        "One second, let me check that.",
        "Shall I connect you to a colleague?",
        "<code>policy</code>: against a rule",
        "&quot;order_id&quot;: &quot;4417&quot;",
        "Timed out",
        "Correction queued",
        "Violation heard",
        "310 ms",
        "Call ended",
    ):
        assert shown in page.replace("&#x27;", "'"), shown
    assert '<span class="said-uncertain"><span class="unseen">[maybe heard:] </span>just refunded</span>' in page
    assert re.search(r'<s class="said-unheard"><span class="unseen">\[never heard:\] </span>your 189 dollars', page)
    # Highlights first, then turns.
    assert page.index('id="highlights"') < page.index('id="turns"') < page.index('id="events"')


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("told", [story.live_call, story.silent_call, story.failed_call, story.clean_call])
def test_every_kind_of_call_has_a_page(
    client: Client, tenant: Tenancy, recorded: story.Recording, told: Callable[..., story.Story]
) -> None:
    one = told(tenant, story.now())
    recorded(one.events)
    client.force_login(tenant.users["alice"])
    assert "Highlights" in text_of(client, f"/calls/{one.call_id}")
    assert one.call_id.hex in text_of(client, "/calls")


def test_the_demos_script_is_not_taken_for_a_model(client: Client) -> None:
    demo = tenancy_create(owner="alice", llm_model="demo-script")
    call = call_create(demo)
    client.force_login(demo.users["alice"])
    for path in ("/calls", f"/calls/{call.id}"):
        assert "No model is judging: the demo’s script answers." in text_of(client, path)


def test_a_model_that_judges_is_named(alice: Client, tenant: Tenancy) -> None:
    call = call_create(tenant)
    page = text_of(alice, f"/calls/{call.id}")
    assert "judged by judge-1" in page
    assert "No model is judging" not in page + text_of(alice, "/calls")


def test_what_callers_and_agents_say_is_text_and_nothing_else(alice: Client, tenant: Tenancy) -> None:
    evil = "<img src=x onerror=alert(1)>\"'{{ 7|add:7 }}"
    call = call_create(tenant, customer_text=evil, text=evil)
    page = text_of(alice, f"/calls/{call.id}")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "{{ 7|add:7 }}" in page


def test_wrong_addresses_get_a_page_of_ours(alice: Client) -> None:
    answer = alice.get("/calls/not-a-uuid")
    assert answer.status_code == 404
    assert "Not found" in answer.content.decode()


def test_pages_only_take_the_methods_that_they_have(alice: Client) -> None:
    assert alice.post("/calls").status_code == 405
    assert alice.head("/calls").status_code == 200
