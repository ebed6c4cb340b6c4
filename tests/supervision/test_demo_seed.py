"""The demo's tenant: a second start goes on with the same login and keys."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from mirror_saas.demo import seed
from mirror_saas.demo.seed import DemoSeed, demo_judge_get, demo_rules, demo_seed
from supervision.models import Agent, PolicyVersion, StreamKey
from supervision.services.agents import agent_stream_key_revoke, stream_key_hash
from supervision.services.policies import policy_version_create, policy_version_publish
from tenants.context import tenant_context
from tenants.models import ApiKey, User
from tenants.selectors.tenants import tenant_by_slug
from tenants.services.api_keys import api_key_revoke
from tests.factories import unique

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def own_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo tenant of this test's own."""
    name = unique("demo")
    monkeypatch.setattr(seed, "TENANT_SLUG", name)
    monkeypatch.setattr(seed, "EMAIL", f"{name}@example.com")


def run(**changed: Any) -> DemoSeed:
    given: dict[str, Any] = {
        "agent_url": "ws://127.0.0.1:7001/",
        "judge_base_url": "http://127.0.0.1:7002/v1",
        "judge_model": "judge-model",
        "judge_api_key": "judge-key",
        "model_judges": True,
        "public_url": "http://127.0.0.1:8000",
    }
    return demo_seed(**(given | changed))


def test_everything_that_it_returns_works() -> None:
    demo = run()
    assert demo["console_url"] == "http://127.0.0.1:8000/"
    client = Client()
    assert client.login(username=demo["email"], password=demo["password"])
    me = client.get("/api/v1/me").json()
    assert (me["user"]["email"], me["user"]["role"], me["tenant"]["slug"]) == (demo["email"], "owner", demo["tenant"])
    answer = Client().get("/api/v1/calls", headers={"Authorization": f"Bearer {demo['api_key']}"})
    assert answer.status_code == 200
    key = demo["stream_url"].rsplit("/", 1)[1]
    assert demo["answer_url"] == f"http://127.0.0.1:8000/plivo/{demo['tenant']}/{key}/answer"
    with tenant_context(tenant_by_slug(slug=demo["tenant"]).id):
        agent = Agent.objects.get()
        assert agent.upstream_url == "ws://127.0.0.1:7001/"
        assert bytes(StreamKey.objects.get(agent=agent).key_hash) == stream_key_hash(key)
        live = PolicyVersion.objects.get(policy_id=agent.policy_id, status="live")
        assert [rule["text"] for rule in live.rules] == demo_rules()
        assert live.llm_credential == demo_judge_get()


def test_a_second_start_returns_the_same_and_follows_ports_that_changed() -> None:
    first = run()
    second = run(
        previous=first,
        agent_url="ws://127.0.0.1:7101/",
        judge_base_url="http://127.0.0.1:7102/v1",
        public_url="http://127.0.0.1:9000",
    )
    assert {**second, "console_url": "", "stream_url": "", "answer_url": ""} == {
        **first,
        "console_url": "",
        "stream_url": "",
        "answer_url": "",
    }
    assert second["stream_url"] == first["stream_url"].replace(":8000/", ":9000/")
    with tenant_context(tenant_by_slug(slug=first["tenant"]).id):
        assert Agent.objects.get().upstream_url == "ws://127.0.0.1:7101/"
        judge = demo_judge_get()
        assert judge is not None
        assert judge.base_url == "http://127.0.0.1:7102/v1"
        assert PolicyVersion.objects.count() == 1


def test_what_does_not_work_any_more_is_made_anew() -> None:
    first = run()
    with tenant_context(tenant_by_slug(slug=first["tenant"]).id):
        api_key_revoke(api_key_id=ApiKey.objects.get().id)
        agent_stream_key_revoke(stream_key_id=StreamKey.objects.get().id)
    user = User.objects.get(email=first["email"])
    user.set_password("changed by its owner")
    user.save()
    second = run(previous=first)
    for name in ("api_key", "stream_url", "answer_url", "password"):
        assert second[name] != first[name], name
    assert Client().login(username=second["email"], password=second["password"])
    assert second == run(previous=second)


def test_lost_notes_get_a_new_login_to_the_same_demo() -> None:
    first = run()
    second = run()
    assert second["tenant"] == first["tenant"]
    assert Client().login(username=second["email"], password=second["password"])
    assert not Client().login(username=first["email"], password=first["password"])


def test_rules_that_somebody_published_stay() -> None:
    first = run()
    with tenant_context(tenant_by_slug(slug=first["tenant"]).id):
        policy_id = Agent.objects.get().policy_id
        draft = policy_version_create(policy_id=policy_id, rules=["Be kind."], llm_credential=demo_judge_get())
        policy_version_publish(policy_id=policy_id, number=draft.number)
        run(previous=first)
        live = PolicyVersion.objects.get(policy_id=policy_id, status="live")
        assert [rule["text"] for rule in live.rules] == ["Be kind."]


def test_a_script_that_judges_is_named_as_one_and_no_base_url_is_openais_own() -> None:
    demo = run(model_judges=False, judge_model="whatever")
    with tenant_context(tenant_by_slug(slug=demo["tenant"]).id):
        judge = demo_judge_get()
        assert judge is not None
        assert judge.model == seed.SCRIPTED_MODEL
    run(previous=demo, judge_base_url=None)
    with tenant_context(tenant_by_slug(slug=demo["tenant"]).id):
        judge = demo_judge_get()
        assert judge is not None
        assert (judge.model, judge.base_url) == ("judge-model", "https://api.openai.com/v1")


def test_a_local_model_gets_a_version_that_it_can_judge_by_and_gives_it_back() -> None:
    def live(tenant: str) -> PolicyVersion:
        with tenant_context(tenant_by_slug(slug=tenant).id):
            return PolicyVersion.objects.get(status="live")

    tenant = run()["tenant"]
    assert live(tenant).config == {}
    run(policy_config=seed.LOCAL_POLICY_CONFIG)
    local = live(tenant)
    assert (local.number, local.config["scoring"]) == (2, "logprob")
    run(policy_config=seed.LOCAL_POLICY_CONFIG)
    assert live(tenant).number == 2
    run()
    assert (live(tenant).number, live(tenant).config) == (3, {})
