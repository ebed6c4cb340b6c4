"""Agents, policies and credentials: what is made, and what is refused with the field's name."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from mirror_saas.errors import Conflict
from supervision.models import Agent, PolicyVersion, ProviderCredential, StreamKey
from supervision.services.agents import (
    agent_create,
    agent_stream_key_create,
    agent_stream_key_revoke,
    agent_upstream_update,
    answer_url,
    stream_url,
)
from supervision.services.credentials import credential_create, credential_update
from supervision.services.policies import policy_create, policy_version_create, policy_version_publish, rules_parse
from tenants.sealing import SealBroken, unseal_text
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db


# -- policies -----------------------------------------------------------------------------------------------------


def test_a_draft_keeps_what_was_given_and_the_engines_form_of_the_rules(tenant: Tenancy) -> None:
    with tenant.context():
        draft = policy_version_create(
            policy_id=tenant.policy.id,
            rules=["  Be kind. ", {"text": "Never lie.", "severity": "high"}],
            config={"intervention_threshold": 0.8},
        )
    assert (draft.number, draft.status) == (2, "draft")
    assert draft.rules == [{"text": "Be kind.", "severity": "medium"}, {"text": "Never lie.", "severity": "high"}]
    assert draft.config == {"intervention_threshold": 0.8}


@pytest.mark.parametrize(
    ("rules", "config", "field"),
    [
        ([], {}, "rules"),
        (["ok", " "], {}, "rules"),
        ([{"text": "x", "severity": "huge"}], {}, "rules"),
        (["nul \x00"], {}, "rules"),
        (["ok"], {"intervention_threshold": 2}, "intervention_threshold"),
        (["ok"], {"intervention_treshold": 0.5}, "intervention_treshold"),
        (["ok"], {"policies": ["x"]}, "config"),
        (["ok"], {"llm": "x"}, "llm"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_with_the_fields_name(
    tenant: Tenancy, rules: list[Any], config: dict[str, Any], field: str
) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        policy_version_create(policy_id=tenant.policy.id, rules=rules, config=config)
    assert list(error.value.message_dict) == [field]


def test_what_the_engine_can_do_is_accepted(tenant: Tenancy) -> None:
    config = {
        "delivery": "hold_risky",
        "hold_budget_ms": 500,
        "streaming_mode": True,
        "tiered_scoring_enabled": False,
        "pregate_always": ["amount"],
        "scoring": "logprob",
    }
    with tenant.context():
        version = policy_version_create(policy_id=tenant.policy.id, rules=["A."], config=config)
    assert version.config == config


def test_the_wrong_rule_is_counted_from_one(tenant: Tenancy) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        policy_version_create(policy_id=tenant.policy.id, rules=["ok", "x" * 5000])
    assert error.value.message_dict["rules"][0].startswith("rule 2: ")


def test_publishing_retires_the_version_that_was_live(tenant: Tenancy) -> None:
    with tenant.context():
        draft = policy_version_create(policy_id=tenant.policy.id, rules=["Be kind."])
        policy_version_publish(policy_id=tenant.policy.id, number=draft.number)
        assert {version.number: version.status for version in PolicyVersion.objects.all()} == {1: "retired", 2: "live"}
        with pytest.raises(Conflict, match="only a draft"):
            policy_version_publish(policy_id=tenant.policy.id, number=1)


@pytest.mark.django_db(transaction=True)
def test_drafts_and_publications_at_once_leave_one_live_version_and_no_number_twice(tenant: Tenancy) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        try:
            barrier.wait(timeout=30)
            for _ in range(5):
                with tenant.context():
                    draft = policy_version_create(policy_id=tenant.policy.id, rules=["Be kind."])
                    policy_version_publish(policy_id=tenant.policy.id, number=draft.number)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    with tenant.context():
        assert sorted(PolicyVersion.objects.values_list("number", flat=True)) == list(range(1, 22))
        assert PolicyVersion.objects.filter(status="live").count() == 1


def test_policy_names_are_unique_in_a_tenant_only(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        policy_create(name="charlie's policy")
        for name in ("charlie's policy", " ", "n" * 201):
            with pytest.raises(ValidationError) as error:
                policy_create(name=name)
            assert list(error.value.message_dict) == ["name"]


def test_rules_files_have_one_rule_a_line() -> None:
    text = "\ufeff# heading\r\nNever  confirm.\r\n\r\n  # indented\n\tBe # kind.\t\n"
    assert rules_parse(text) == ["Never  confirm.", "Be # kind."]
    assert rules_parse("") == []


# -- agents -------------------------------------------------------------------------------------------------------


def test_an_agents_secret_and_keys_are_not_stored_in_the_clear(tenant: Tenancy) -> None:
    with tenant.context():
        stored = Agent.objects.get()
        key = StreamKey.objects.get()
    sealed = bytes(stored.signing_secret_sealed)
    assert tenant.signing_secret.encode() not in sealed
    field = f"supervision_agent.signing_secret_sealed:{stored.id}"
    assert unseal_text(sealed, tenant_id=tenant.id, field=field) == tenant.signing_secret
    assert tenant.stream_key.encode() not in bytes(key.key_hash)
    assert tenant.stream_key not in repr(tenant)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"upstream_url": "https://agent.example"}, "upstream_url"),
        ({"upstream_url": "wss://"}, "upstream_url"),
        ({"upstream_url": "ws://h:99999/"}, "upstream_url"),
        ({"upstream_url": "ws://h/" + "x" * 2000}, "upstream_url"),
        ({"name": ""}, "name"),
        ({"language": "x" * 36}, "language"),
    ],
)
def test_a_wrong_agent_is_refused_with_the_fields_name(tenant: Tenancy, changed: dict[str, str], field: str) -> None:
    with tenant.context(), pytest.raises(ValidationError) as error:
        agent_create(**({"name": "n", "upstream_url": "wss://agent.example/x"} | changed))  # type: ignore[arg-type]
    assert list(error.value.message_dict) == [field]


def test_a_new_stream_key_leaves_the_old_one_working_until_it_is_revoked(tenant: Tenancy) -> None:
    with tenant.context():
        old = StreamKey.objects.get()
        new = agent_stream_key_create(agent_id=tenant.agent.id)
        assert new.key.startswith("sk_")
        assert new.key != tenant.stream_key
        assert StreamKey.objects.filter(revoked_at=None).count() == 2
        agent_stream_key_revoke(stream_key_id=old.id)
        assert list(StreamKey.objects.filter(revoked_at=None)) == [new.stream_key]


def test_a_strangers_agent_gets_no_key(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context(), pytest.raises(Agent.DoesNotExist):
        agent_stream_key_create(agent_id=stranger.agent.id)


def test_an_agent_can_be_dialled_elsewhere(tenant: Tenancy) -> None:
    with tenant.context():
        agent_upstream_update(agent=Agent.objects.get(), upstream_url=" wss://new.example/x ")
        assert Agent.objects.get().upstream_url == "wss://new.example/x"


@pytest.mark.parametrize(
    ("public_url", "stream", "answer"),
    [
        ("https://m.example", "wss://m.example/stream/t/k", "https://m.example/plivo/t/k/answer"),
        ("http://127.0.0.1:9000/", "ws://127.0.0.1:9000/stream/t/k", "http://127.0.0.1:9000/plivo/t/k/answer"),
    ],
)
def test_urls_follow_the_public_address(public_url: str, stream: str, answer: str) -> None:
    assert stream_url(public_url=public_url, tenant_slug="t", key="k") == stream
    assert answer_url(public_url=public_url, tenant_slug="t", key="k") == answer


# -- credentials --------------------------------------------------------------------------------------------------


def test_a_credential_is_sealed_for_its_row(tenant: Tenancy) -> None:
    with tenant.context():
        first, second = (
            credential_create(
                name="j", kind=ProviderCredential.Kind.LLM, base_url="https://x.example/v1/", model="m", api_key="key-1"
            )
            for _ in range(2)
        )
        credential_update(credential=first, base_url="http://y.example/v1", model="m2", api_key="key-2")
        stored = ProviderCredential.objects.get(id=first.id)
    field = f"supervision_providercredential.api_key_sealed:{first.id}"
    assert (stored.base_url, stored.model) == ("http://y.example/v1", "m2")
    assert unseal_text(stored.api_key_sealed, tenant_id=tenant.id, field=field) == "key-2"
    with pytest.raises(SealBroken):
        unseal_text(second.api_key_sealed, tenant_id=tenant.id, field=field)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"base_url": "x.example/v1"}, "base_url"),
        ({"base_url": "ftp://x.example"}, "base_url"),
        ({"base_url": "https://user:pw@x.example"}, "base_url"),
        ({"base_url": "https://x.example:port"}, "base_url"),
        ({"model": " "}, "model"),
        ({"name": ""}, "name"),
    ],
)
def test_a_wrong_credential_is_refused_with_the_fields_name(
    tenant: Tenancy, changed: dict[str, str], field: str
) -> None:
    given: Any = {"name": "j", "base_url": "https://x.example/v1", "model": "m", "api_key": "k"} | changed
    with tenant.context(), pytest.raises(ValidationError) as error:
        credential_create(kind=ProviderCredential.Kind.LLM, **given)
    assert list(error.value.message_dict) == [field]
    assert "pw" not in str(error.value)
