"""The pages of webhooks: a secret is shown once, and what was sent can be looked at and sent again."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from django.utils import timezone

from supervision.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from supervision.services import webhooks as services
from supervision.services.webhooks import webhook_create, webhook_secrets, webhook_switch_off, webhook_test
from tests.factories import PASSWORD, Tenancy, client_sign_in
from tests.webui.pages import form_of, page_of, words_of

pytestmark = pytest.mark.django_db

SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
URL = "http://127.0.0.1:1/hooks"


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def endpoint_of(tenancy: Tenancy, url: str = URL) -> WebhookEndpoint:
    with tenancy.context():
        return webhook_create(url=url, event_types=["call.ended", "tool.blocked"]).endpoint


def now_of(tenancy: Tenancy, endpoint: WebhookEndpoint) -> WebhookEndpoint:
    with tenancy.context():
        return WebhookEndpoint.objects.get(id=endpoint.id)


def typed(client: Client, path: str = "/webhooks/new", **changed: Any) -> dict[str, Any]:
    return form_of(client, path, **{"url": URL, "event_types": ["call.ended"], **changed})


def test_a_new_one_shows_its_secret_once(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    made = alice.post("/webhooks/new", typed(alice, description="On call"))
    assert not SECRET.search(f"{made.headers} {made.cookies} {made.content!r}")
    (secret,) = set(SECRET.findall(page_of(alice, made["Location"])))
    with tenant.context():
        endpoint = WebhookEndpoint.objects.get()
        assert webhook_secrets(endpoint=endpoint, now=timezone.now()) == [secret]
    for path in (made["Location"], f"{made['Location']}/edit", "/webhooks", "/audit"):
        assert secret not in page_of(alice, path)
    assert "On call" in page_of(alice, "/webhooks")
    charlie = Client()
    client_sign_in(charlie, stranger.users["charlie"])
    assert "No webhook yet" in page_of(charlie, "/webhooks")
    for path in ("", "/edit", "/secret", "/delete"):
        assert charlie.get(f"{made['Location']}{path}").status_code == 404


def test_sent_twice_the_form_makes_one_and_both_answers_lead_to_it(alice: Client, tenant: Tenancy) -> None:
    form = typed(alice)
    first, second = alice.post("/webhooks/new", form), alice.post("/webhooks/new", form)
    assert first["Location"] == second["Location"]
    assert SECRET.search(page_of(alice, second["Location"]))
    with tenant.context():
        assert WebhookEndpoint.objects.count() == 1


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(
    alice: Client, tenant: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"url": ""}, "Give the URL that events are sent to."),
        ({"url": "ftp://x.example"}, "http"),
        ({"url": "http://10.1.2.3/x"}, "private"),
        ({"url": "http://127.0.0.1:1/x#part"}, "Leave out what follows #"),
        ({"url": "x" * 2001}, "Use 2000 characters at most."),
        ({"description": "x" * 501}, "Use 500 characters at most."),
        ({"event_types": []}, "Choose at least one."),
        ({"event_types": ["call.exploded"]}, "Choose from the list."),
    ]
    form = typed(alice, description="On call")
    for fields, said in wrong:
        answer = alice.post("/webhooks/new", {**form, **fields})
        page = words_of(answer)
        assert answer.status_code == 200, fields
        assert said in page, fields
        assert "field-error" in page, fields
        if "description" not in fields:
            assert 'value="On call"' in page
    with tenant.context():
        assert not WebhookEndpoint.objects.exists()
    monkeypatch.setattr(services, "MAX_ENDPOINTS", 0)
    assert "delete one first" in words_of(alice.post("/webhooks/new", typed(alice)))


def test_what_was_typed_is_there_after_confirming_who_one_is(alice: Client, tenant: Tenancy) -> None:
    form = typed(alice, description="On call", event_types=["tool.blocked"])
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    asked = alice.post("/webhooks/new", form)
    assert asked["Location"] == "/account/confirm?next=/webhooks/new"
    alice.post(asked["Location"], {"by": "password", "password": PASSWORD, "next": "/webhooks/new"})
    again = form_of(alice, "/webhooks/new")
    assert (again["url"], again["description"], again["event_types"]) == ([URL], ["On call"], ["tool.blocked"])
    assert alice.post("/webhooks/new", again).status_code == 302
    with tenant.context():
        assert WebhookEndpoint.objects.get().event_types == ["tool.blocked"]
    # Kept for that page, and for once.
    assert "On call" not in page_of(alice, "/webhooks/new")


def test_one_is_changed_switched_off_and_on(alice: Client, tenant: Tenancy) -> None:
    endpoint = endpoint_of(tenant)
    path = f"/webhooks/{endpoint.id}/edit"
    form = form_of(alice, path)
    assert (form["event_types"], form["enabled"]) == (["call.ended", "tool.blocked"], ["on"])
    del form["enabled"]
    assert alice.post(path, form)["Location"] == f"/webhooks/{endpoint.id}"
    assert not now_of(tenant, endpoint).enabled
    page = page_of(alice, f"/webhooks/{endpoint.id}")
    assert "Off</span>" in page
    assert "Send a test event</button>" not in page
    refused = alice.post(f"/webhooks/{endpoint.id}/test")
    assert "switch it on first" in page_of(alice, refused["Location"])
    with tenant.context():
        WebhookEndpoint.objects.update(enabled=True)
        webhook_switch_off(
            endpoint=now_of(tenant, endpoint), reason=WebhookEndpoint.OffReason.FAILING, now=timezone.now()
        )
    assert "took nothing for days" in page_of(alice, f"/webhooks/{endpoint.id}")
    alice.post(path, form_of(alice, path, enabled="on", url="http://127.0.0.1:2/other"))
    now = now_of(tenant, endpoint)
    assert (now.enabled, now.off_reason, now.url) == (True, "", "http://127.0.0.1:2/other")


def test_a_new_secret_signs_beside_the_one_before_or_instead_of_it(alice: Client, tenant: Tenancy) -> None:
    endpoint = endpoint_of(tenant)
    path = f"/webhooks/{endpoint.id}/secret"
    shown = []
    for overlap, signing in (("24", 2), ("0", 1)):
        answer = alice.post(path, form_of(alice, path, overlap=overlap))
        (secret,) = set(SECRET.findall(page_of(alice, answer["Location"])))
        shown.append(secret)
        with tenant.context():
            secrets = webhook_secrets(endpoint=now_of(tenant, endpoint), now=timezone.now())
        assert secrets[0] == secret
        assert len(secrets) == signing
    assert shown[0] != shown[1]
    assert "Choose one of the list." in words_of(alice.post(path, form_of(alice, path, overlap="99")))
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    assert alice.post(path, {"overlap": "0"})["Location"].startswith("/account/confirm")


def test_a_test_event_is_followed_and_sent_again(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    endpoint, other = endpoint_of(tenant), endpoint_of(tenant)
    form = form_of(alice, f"/webhooks/{endpoint.id}")
    first = alice.post(f"/webhooks/{endpoint.id}/test", form)
    assert alice.post(f"/webhooks/{endpoint.id}/test", form)["Location"] == first["Location"]
    with tenant.context():
        delivery = WebhookDelivery.objects.get()
    path = f"/webhooks/{endpoint.id}/deliveries/{delivery.id}"
    assert first["Location"] == path
    page = page_of(alice, path)
    assert "On its way" in page
    assert 'hx-trigger="every' in page
    assert '"type": "webhook.test"' in page
    with tenant.context():
        WebhookAttempt.objects.create(
            delivery=delivery, status=500, duration_ms=1234, error="the receiver answered (500)", excerpt="<b>no</b>"
        )
        WebhookDelivery.objects.update(state="failed", next_attempt_at=None, attempts=12, error="gave up")
    page = alice.get(path).content.decode()
    assert "Failed" in page
    assert "1.2 s" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "hx-trigger" not in page
    assert alice.post(f"{path}/redeliver", form_of(alice, path))["Location"] == path
    with tenant.context():
        assert WebhookDelivery.objects.get().state == "pending"
    # Of another endpoint, of nobody's, of somebody else's.
    charlie = Client()
    client_sign_in(charlie, stranger.users["charlie"])
    for client, wrong in (
        (alice, f"/webhooks/{other.id}/deliveries/{delivery.id}"),
        (alice, f"/webhooks/{endpoint.id}/deliveries/{UUID(int=7)}"),
        (charlie, path),
    ):
        assert client.get(wrong).status_code == 404
        assert client.post(f"{wrong}/redeliver").status_code == 404


def test_what_was_sent_is_filtered_in_the_url(alice: Client, tenant: Tenancy) -> None:
    endpoint = endpoint_of(tenant)
    path = f"/webhooks/{endpoint.id}"
    assert "Nothing was sent yet" in page_of(alice, path)
    with tenant.context():
        webhook_test(webhook_id=endpoint.id)
        WebhookDelivery.objects.update(state="delivered", next_attempt_at=None, delivered_at=timezone.now())
        webhook_test(webhook_id=endpoint.id)
    assert page_of(alice, path).count("<code>webhook.test</code></a>") == 2
    assert page_of(alice, f"{path}?state=delivered").count("<code>webhook.test</code></a>") == 1
    assert "No delivery is like this" in page_of(alice, f"{path}?type=call.ended")
    assert "Choose one of the list." in page_of(alice, f"{path}?state=lost")
    assert alice.get(f"{path}?state=pending&cursor=nonsense")["Location"] == f"{path}?state=pending"


def test_deleting_asks_once_more_and_who_it_is(alice: Client, tenant: Tenancy) -> None:
    endpoint = endpoint_of(tenant)
    path = f"/webhooks/{endpoint.id}/delete"
    assert "Delete the webhook to 127.0.0.1:1?" in page_of(alice, path)
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    assert alice.post(path)["Location"].startswith("/account/confirm")
    client_sign_in(alice, tenant.users["alice"])
    assert alice.post(path)["Location"] == "/webhooks"
    with tenant.context():
        assert not WebhookEndpoint.objects.exists()
