"""The pages of credentials: stored, changed and deleted, and no secret is ever shown."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from supervision.models import ModelDefaults, ProviderCredential
from supervision.selectors.credentials import credential_secret
from supervision.services.credentials import credential_create
from supervision.services.defaults import model_defaults_update
from tenants.models import AuditEvent
from tenants.roles import Role
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.factories import Tenancy, client_sign_in, unique
from tests.webui.pages import form_of, page_of, words_of

pytestmark = pytest.mark.django_db

SECRET = "sk-typed-by-alice"
AUTH_ID = "MA" + "X" * 18
MODEL = {"name": "Second judge", "base_url": "http://127.0.0.1:1/v1", "model": "judge-2", "secret": SECRET}


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


def viewer_of(tenancy: Tenancy) -> Client:
    client = Client()
    with tenancy.context():
        user = user_create(email=f"{unique('vera')}@example.com", password=None)
        membership_create(user=user, role=Role.VIEWER)
    client_sign_in(client, user)
    return client


def stored(tenancy: Tenancy, **which: Any) -> ProviderCredential:
    with tenancy.context():
        return ProviderCredential.objects.get(**which)


def test_each_kind_is_stored_by_its_form_and_its_secret_never_shown(
    alice: Client, tenant: Tenancy, stranger: Tenancy
) -> None:
    typed = {
        "llm": {**MODEL, "prompt_price": "0.15", "completion_price": "0.6"},
        "tts": {**MODEL, "name": "Voice"},
        "plivo": {"account": AUTH_ID, "secret": "t" * 20},
        "forge": {"provider": "gitlab", "name": "Fixes", "secret": "glpat-typed"},
    }
    kinds = page_of(alice, "/credentials/new")
    for kind, fields in typed.items():
        assert f"?kind={kind}" in kinds
        path = f"/credentials/new?kind={kind}"
        answer = alice.post(path, form_of(alice, path, **fields))
        made = stored(tenant, kind=kind, **({"name": fields["name"]} if "name" in fields else {}))
        assert answer["Location"] == f"/credentials/{made.id}", words_of(answer)
        with tenant.context():
            assert credential_secret(made) == fields["secret"]
        for page in (answer["Location"], f"{answer['Location']}/edit", "/credentials", "/audit"):
            assert fields["secret"] not in page_of(alice, page)
    assert stored(tenant, kind="forge").base_url == "https://gitlab.com/api/v4"
    assert stored(tenant, kind="plivo").name == f"Plivo {AUTH_ID}"
    listed = page_of(alice, "/credentials?kind=llm")
    assert "$0.15 in, $0.60 out" in listed
    assert "Fixes" not in listed
    assert "Judge" in listed
    charlie = Client()
    client_sign_in(charlie, stranger.users["charlie"])
    assert "Second judge" not in page_of(charlie, "/credentials")
    assert charlie.get(f"/credentials/{made.id}").status_code == 404


def test_sending_the_form_twice_stores_one(alice: Client, tenant: Tenancy) -> None:
    path = "/credentials/new?kind=llm"
    form = form_of(alice, path, **MODEL)
    first, second = alice.post(path, form), alice.post(path, form)
    assert first["Location"] == second["Location"]
    with tenant.context():
        assert ProviderCredential.objects.filter(name="Second judge").count() == 1


def test_what_is_wrong_stands_at_the_field_and_what_was_typed_stays(alice: Client, tenant: Tenancy) -> None:
    wrong: list[tuple[str, dict[str, str], str]] = [
        ("llm", {"name": ""}, "Say what to call it in lists."),
        ("llm", {"name": "x" * 201}, "Use 200 characters at most."),
        ("llm", {"model": ""}, "Name the model to ask there."),
        ("llm", {"base_url": "ftp://x"}, "starting with http(s)://"),
        ("llm", {"base_url": "http://10.0.0.1/v1"}, "private"),
        ("llm", {"base_url": "https://u:p@x.example/v1"}, "Leave the login out of the URL"),
        ("llm", {"secret": ""}, "Give the secret."),
        ("llm", {"secret": "two words"}, "visible characters, no spaces"),
        ("llm", {"prompt_price": "1"}, "Give both prices or none"),
        ("llm", {"prompt_price": "-1", "completion_price": "1"}, "Give 0 or more."),
        ("llm", {"prompt_price": "cheap", "completion_price": "NaN"}, "Give a number such as 0.15."),
        ("llm", {"prompt_price": "1.1234567", "completion_price": "1"}, "at most six places after the point"),
        ("plivo", {"account": "MA1", "secret": "t" * 20}, "MA or SA and 18 letters or digits"),
        ("plivo", {"account": AUTH_ID, "secret": "short"}, "at least 16 characters"),
        ("forge", {"provider": "svn"}, "Choose one of the list."),
    ]
    with tenant.context():
        before = ProviderCredential.objects.count()
    forms = {kind: form_of(alice, f"/credentials/new?kind={kind}") for kind in ("llm", "plivo", "forge")}
    for kind, fields, said in wrong:
        typed = {**forms[kind], **MODEL, "provider": "github", "account": AUTH_ID, **fields}
        answer = alice.post(f"/credentials/new?kind={kind}", typed)
        page = words_of(answer)
        assert answer.status_code == 200, fields
        assert said in page, fields
        assert page.count('aria-invalid="true"') >= 1, fields
        assert SECRET not in page
        if "secret" not in fields:
            assert "Type it again" in page
        if kind == "llm" and "model" not in fields:
            assert 'value="judge-2"' in page
    with tenant.context():
        assert ProviderCredential.objects.count() == before


def test_changing_keeps_the_secret_unless_one_is_typed_or_the_server_changes(alice: Client, tenant: Tenancy) -> None:
    found = tenant.credential
    path = f"/credentials/{found.id}/edit"
    assert "llm-secret" not in page_of(alice, path)
    priced = form_of(alice, path, name="Renamed", prompt_price="2.5", completion_price="10")
    assert alice.post(path, priced)["Location"] == f"/credentials/{found.id}"
    now = stored(tenant, id=found.id)
    with tenant.context():
        assert (now.name, str(now.prompt_price), credential_secret(now)) == ("Renamed", "2.500000", "llm-secret")
    assert 'value="2.5"' in page_of(alice, path)
    moved = alice.post(path, form_of(alice, path, base_url="http://127.0.0.2:1/v1"))
    assert "The server changes: give the key for it" in words_of(moved)
    alice.post(
        path,
        form_of(alice, path, base_url="http://127.0.0.2:1/v1", secret="sk-new", prompt_price="", completion_price=""),
    )
    now = stored(tenant, id=found.id)
    with tenant.context():
        assert (now.base_url, now.prompt_price, credential_secret(now)) == ("http://127.0.0.2:1/v1", None, "sk-new")
        assert "sk-new" not in str(list(AuditEvent.objects.values_list("before", "after")))
    # It is used and has no price: what calls cost is not known.
    assert "It has no price." in page_of(alice, f"/credentials/{found.id}")


def test_what_is_used_is_not_deleted_and_the_page_says_by_what(alice: Client, tenant: Tenancy) -> None:
    path = f"/credentials/{tenant.credential.id}/delete"
    with tenant.context():
        model_defaults_update(llm_credential_id=tenant.credential.id, tts_credential_id=None)
    page = page_of(alice, path)
    assert "alice's policy, version 1" in page
    assert "Default models" in page
    assert '<form method="post" class="card' not in page
    refused = alice.post(path)
    assert refused["Location"] == path
    assert "Nothing was deleted." in page_of(alice, path)
    with tenant.context():
        unused = credential_create(
            name="Unused", kind=ProviderCredential.Kind.TTS, base_url="http://127.0.0.1:1/v1", model="v", api_key="k"
        )
    assert "Delete Unused?" in page_of(alice, f"/credentials/{unused.id}/delete")
    assert alice.post(f"/credentials/{unused.id}/delete")["Location"] == "/credentials"
    assert alice.get(f"/credentials/{unused.id}").status_code == 404
    with tenant.context():
        assert ModelDefaults.objects.get().llm_credential_id == tenant.credential.id


def test_deleting_asks_who_it_is_and_what_the_last_plivo_account_means(alice: Client, tenant: Tenancy) -> None:
    path = "/credentials/new?kind=plivo"
    alice.post(path, form_of(alice, path, account=AUTH_ID, secret="t" * 20))
    account = stored(tenant, kind="plivo")
    client_sign_in(alice, tenant.users["alice"], ago=timedelta(minutes=6))
    gone = f"/credentials/{account.id}/delete"
    for asked in (alice.get(gone), alice.post(gone)):
        assert asked["Location"].startswith("/account/confirm")
    assert stored(tenant, kind="plivo") == account
    client_sign_in(alice, tenant.users["alice"])
    assert "It is the last Plivo account." in page_of(alice, gone)


def test_a_viewer_sees_which_there_are_and_no_more(alice: Client, tenant: Tenancy) -> None:
    vera = viewer_of(tenant)
    with tenant.context():
        model_defaults_update(llm_credential_id=tenant.credential.id, tts_credential_id=None)
    for path in ("/credentials", f"/credentials/{tenant.credential.id}"):
        page = page_of(vera, path)
        assert "judge-1" in page
        for door in ("/credentials/new", "/edit", "/delete", "/settings"):
            assert f'{door}"' not in page, door
    for path in ("/credentials/new", f"/credentials/{tenant.credential.id}/edit"):
        assert vera.get(path).status_code == 403
        assert vera.post(path, MODEL).status_code == 403


def test_an_address_that_makes_no_sense_leads_to_the_list(alice: Client) -> None:
    assert alice.get("/credentials?cursor=nonsense&kind=llm")["Location"] == "/credentials?kind=llm"
    assert "Judge" in page_of(alice, "/credentials?kind=nonsense")
    assert "None of this kind yet" in page_of(alice, "/credentials?kind=forge")
