"""The first run: the demo's agent or one's own, with addresses that are shown once."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import pytest
from django.test import Client

from mirror_saas.demo.seed import SCRIPTED_MODEL, demo_rules
from mirror_saas.ids import uuid7
from supervision.models import Agent, ModelDefaults, Policy, PolicyVersion, ProviderCredential, StreamKey
from supervision.selectors.credentials import credential_secret
from supervision.services.agents import stream_key_hash
from supervision.services.credentials import credential_create
from supervision.services.defaults import default_llm_credential_id, model_defaults_update
from tenants.context import tenant_context
from tenants.models import User
from tenants.roles import Role
from tenants.selectors.tenants import TenantRef
from tenants.services.memberships import membership_create
from tenants.services.tenants import tenant_create, user_create
from tests.factories import PASSWORD, Tenancy, client_sign_in, unique

pytestmark = pytest.mark.django_db

KEY = re.compile(r"sk_[A-Za-z0-9_-]{43}")
AGENT_URL, JUDGE_URL = "ws://127.0.0.1:7/", "http://127.0.0.1:8/v1"
OWN = {
    "name": "Front desk",
    "upstream_url": "ws://127.0.0.1:9/desk",
    "rules": "Be kind.\n\n# not a rule\nNever promise a refund.",
    "judge_url": "http://127.0.0.1:9/v1",
    "judge_model": "judge-9",
    "judge_key": "judge-key-9",
}


@pytest.fixture
def demo(settings: Any) -> None:
    """The operator runs the demo's agent and judge."""
    settings.MIRROR = replace(settings.MIRROR, demo_agent_url=AGENT_URL, demo_judge_url=JUDGE_URL)


@pytest.fixture
def newcomer(client: Client, db: None) -> tuple[Client, TenantRef]:
    """Somebody who has just signed up: an owner of a tenant with nothing in it."""
    tenant = tenant_create(slug=unique("new"), name="New")
    user: User = user_create(email=f"{unique('nina')}@x.example", password=PASSWORD)
    with tenant_context(tenant.id):
        membership_create(user=user, role=Role.OWNER)
    client_sign_in(client, user)
    return client, tenant


def page_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return html.unescape(answer.content.decode())


def form_of(client: Client, **fields: Any) -> dict[str, Any]:
    once = re.search(r'name="once" value="([^"]+)"', page_of(client, "/welcome"))
    assert once is not None
    return {**fields, "once": once.group(1)}


def test_the_demos_agent_is_made_once_with_everything_that_a_call_needs(
    newcomer: tuple[Client, TenantRef], demo: None, stranger: Tenancy
) -> None:
    client, tenant = newcomer
    page = page_of(client, "/welcome")
    assert "Use the demo agent" in page
    assert "no model reads along" in page, "it is honestly labelled"
    form = form_of(client, agent="demo")
    made, again = client.post("/welcome", form), client.post("/welcome", form)
    later = client.post("/welcome", form_of(client, agent="demo"))
    with tenant_context(tenant.id):
        agent, policy, judge, key = (kind.objects.get() for kind in (Agent, Policy, ProviderCredential, StreamKey))
        version = PolicyVersion.objects.get(status=PolicyVersion.Status.LIVE)
    assert {answer["Location"] for answer in (made, again, later)} == {f"/welcome/{agent.id}"}
    assert (agent.name, agent.upstream_url, agent.policy_id) == ("Demo agent", AGENT_URL, policy.id)
    assert (judge.base_url, judge.model, policy.name) == (JUDGE_URL, SCRIPTED_MODEL, "Demo policy")
    assert [rule["text"] for rule in version.rules] == demo_rules()
    assert version.llm_credential_id == judge.id
    shown = page_of(client, made["Location"])
    (text,) = set(KEY.findall(shown))
    assert stream_key_hash(text) == bytes(key.key_hash)
    assert f"/plivo/{tenant.slug}/{text}/answer" in shown
    assert f'/test-call?agent={agent.id}"' in shown
    assert not KEY.search(page_of(client, made["Location"]))
    with stranger.context():
        assert not Agent.objects.filter(upstream_url=AGENT_URL).exists()


def test_a_demo_that_moved_is_set_up_anew_with_the_judge_that_was_there(
    newcomer: tuple[Client, TenantRef], demo: None, settings: Any
) -> None:
    client, tenant = newcomer
    client.post("/welcome", form_of(client, agent="demo"))
    settings.MIRROR = replace(settings.MIRROR, demo_agent_url="ws://127.0.0.1:77/", demo_judge_url=JUDGE_URL + "/2")
    client.post("/welcome", form_of(client, agent="demo"))
    with tenant_context(tenant.id):
        assert list(Agent.objects.order_by("id").values_list("upstream_url", flat=True)) == [
            AGENT_URL,
            "ws://127.0.0.1:77/",
        ]
        assert ProviderCredential.objects.get().base_url == JUDGE_URL + "/2"


def test_pages_of_an_empty_tenant_lead_here(newcomer: tuple[Client, TenantRef]) -> None:
    client, tenant = newcomer
    viewer = Client()
    with tenant_context(tenant.id):
        user = user_create(email=f"{unique('vera')}@x.example", password=PASSWORD)
        membership_create(user=user, role=Role.VIEWER)
    client_sign_in(viewer, user)
    for path in ("/agents", "/calls", "/live"):
        assert 'href="/welcome"' in page_of(client, path)
        assert "Ask an owner or admin of New" in page_of(viewer, path)
        assert "/welcome" not in page_of(viewer, path)


def test_without_a_demo_only_ones_own_agent_is_offered(newcomer: tuple[Client, TenantRef]) -> None:
    client, tenant = newcomer
    assert "demo agent" not in page_of(client, "/welcome")
    answer = client.post("/welcome", form_of(client, agent="demo"))
    assert answer.status_code == 200
    with tenant_context(tenant.id):
        assert not Agent.objects.exists()


def test_ones_own_agent_is_made_with_rules_and_the_model_that_judges_it(newcomer: tuple[Client, TenantRef]) -> None:
    client, tenant = newcomer
    made = client.post("/welcome", form_of(client, **OWN))
    with tenant_context(tenant.id):
        agent, judge, version = (
            Agent.objects.select_related("policy").get(),
            ProviderCredential.objects.get(),
            PolicyVersion.objects.get(),
        )
        assert credential_secret(judge) == "judge-key-9"
        assert default_llm_credential_id() == judge.id
    assert made["Location"] == f"/welcome/{agent.id}"
    assert (judge.base_url, judge.model, version.llm_credential_id) == (OWN["judge_url"], "judge-9", judge.id)
    assert [rule["text"] for rule in version.rules] == ["Be kind.", "Never promise a refund."]
    assert (version.status, agent.policy.name) == (PolicyVersion.Status.LIVE, "Rules of Front desk")
    shown = page_of(client, made["Location"])
    assert KEY.search(shown)
    assert "judge-key-9" not in shown
    assert "supervision.client" in shown
    # The next one is judged by the same model, which nobody types again.
    assert 'name="judge_url"' not in page_of(client, "/welcome")
    client.post("/welcome", form_of(client, **{**OWN, "name": "Back office", "judge_url": "nonsense"}))
    with tenant_context(tenant.id):
        assert Agent.objects.count() == 2
        assert ProviderCredential.objects.count() == 1


def test_a_model_without_a_key_is_asked_with_none(newcomer: tuple[Client, TenantRef]) -> None:
    client, tenant = newcomer
    client.post("/welcome", form_of(client, **{**OWN, "judge_key": ""}))
    with tenant_context(tenant.id):
        assert credential_secret(ProviderCredential.objects.get()) == "none"


def test_what_is_wrong_stands_at_the_field_what_was_typed_stays_and_nothing_is_made(
    newcomer: tuple[Client, TenantRef],
) -> None:
    client, tenant = newcomer
    for change, told in (
        ({"name": ""}, "Give the agent a name."),
        ({"upstream_url": "http://127.0.0.1/"}, "starting with ws:// or wss://"),
        ({"rules": "# nothing\n"}, "Write at least one rule."),
        ({"rules": "x" * 5000}, "4000"),
        ({"judge_url": "ftp://x"}, "http"),
        ({"judge_url": ""}, "Give the URL of the model’s server."),
        ({"judge_model": ""}, "Name the model"),
        ({"judge_key": "two words"}, "no spaces"),
    ):
        answer = client.post("/welcome", form_of(client, **{**OWN, **change}))
        assert answer.status_code == 200, change
        page = html.unescape(answer.content.decode())
        assert told in page, (change, re.findall(r"field-error.*?</p>", page, re.S))
        assert 'aria-invalid="true"' in page, change
        (field, *_) = change
        if field != "name":
            assert 'value="Front desk"' in page
        assert "judge-key-9" not in page
    with tenant_context(tenant.id):
        assert not any(kind.objects.exists() for kind in (Agent, Policy, PolicyVersion, ProviderCredential, StreamKey))
        assert default_llm_credential_id() is None


def test_a_default_voice_stays_the_default(newcomer: tuple[Client, TenantRef]) -> None:
    client, tenant = newcomer
    with tenant_context(tenant.id):
        voice = credential_create(
            name="Voice", kind=ProviderCredential.Kind.TTS, base_url="http://127.0.0.1:9/v1", model="v", api_key="k"
        )
        model_defaults_update(llm_credential_id=None, tts_credential_id=voice.id)
    client.post("/welcome", form_of(client, **OWN))
    with tenant_context(tenant.id):
        assert ModelDefaults.objects.get().tts_credential_id == voice.id


def test_only_who_administers_sets_agents_up(tenant: Tenancy, stranger: Tenancy, demo: None) -> None:
    viewer, owner = Client(), Client()
    client_sign_in(viewer, tenant.users["bob"])
    client_sign_in(owner, tenant.users["alice"])
    for path in ("/welcome", f"/welcome/{tenant.agent.id}"):
        assert viewer.get(path).status_code == 403
    assert viewer.post("/welcome", {"agent": "demo"}).status_code == 403
    assert owner.get(f"/welcome/{stranger.agent.id}").status_code == 404
    assert owner.get(f"/welcome/{uuid7()}").status_code == 404
    with tenant.context():
        assert Agent.objects.count() == 1
