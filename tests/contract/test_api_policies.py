"""Policies and their versions: drafting, publishing, taking back, and who may not overwrite whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from mirror_saas.ids import uuid7
from supervision.engine.policy.compiler import compile_policy
from supervision.models import Agent, Policy, PolicyVersion
from supervision.selectors.policies import policy_version_config
from supervision.stream.directory import AgentBinding, StreamDirectory
from tenants.models import AuditEvent
from tenants.roles import Scope
from tenants.services.api_keys import api_key_create
from tests.contract.client import ask, errors
from tests.factories import Tenancy, unique
from tests.standins.llm import LLMStandIn
from tests.support.servers import DatabaseUrls

pytestmark = pytest.mark.django_db

RULE = {"text": "Be kind.", "severity": "low"}


def draft(tenancy: Tenancy, **body: Any) -> Any:
    path = f"/policies/{tenancy.policy.id}/versions"
    response = ask(tenancy, "POST", path, {"rules": [RULE], **body})
    assert response.status_code == 201, response.content
    return response.json()


def act(tenancy: Tenancy, version: Any, action: str, **headers: str) -> Any:
    path = f"/policies/{tenancy.policy.id}/versions/{version['number']}/{action}"
    return ask(tenancy, "POST", path, **({"If_Match": version["etag"]} | headers))


def read(tenancy: Tenancy, number: int) -> Any:
    return ask(tenancy, "GET", f"/policies/{tenancy.policy.id}/versions/{number}").json()


def roll_back(tenancy: Tenancy, body: Any = None) -> Any:
    path = f"/policies/{tenancy.policy.id}"
    return ask(tenancy, "POST", f"{path}/rollback", body, If_Match=ask(tenancy, "GET", path).headers["ETag"])


def statuses(tenancy: Tenancy) -> dict[int, str]:
    with tenancy.context():
        return dict(PolicyVersion.objects.filter(policy=tenancy.policy).values_list("number", "status"))


# -- policies -----------------------------------------------------------------------------------------------------


def test_a_policy_is_made_shown_renamed_and_taken_out_of_use(tenant: Tenancy, stranger: Tenancy) -> None:
    made = ask(tenant, "POST", "/policies", {"name": " Refunds "})
    body = made.json()
    assert (made.status_code, body["name"], body["live_number"], body["agent_count"]) == (201, "Refunds", None, 0)
    path = f"/policies/{body['id']}"
    assert made.headers["Location"] == f"/api/v1{path}"
    shown = ask(tenant, "GET", path)
    assert shown.headers["ETag"] == body["etag"] == made.headers["ETag"]
    renamed = ask(tenant, "PATCH", path, {"name": "Money"}, If_Match=body["etag"])
    assert (renamed.status_code, renamed.json()["name"]) == (200, "Money")
    assert renamed.json()["etag"] == renamed.headers["ETag"] != body["etag"]
    assert ask(tenant, "DELETE", path, If_Match=renamed.headers["ETag"]).status_code == 204
    assert ask(tenant, "GET", path).status_code == 404
    # Its name is free again.
    assert ask(tenant, "POST", "/policies", {"name": "Money"}).status_code == 201
    listed = [item["name"] for item in ask(tenant, "GET", "/policies").json()["items"]]
    assert listed == ["Money", "alice's policy"]
    assert [item["name"] for item in ask(stranger, "GET", "/policies").json()["items"]] == ["charlie's policy"]


def test_a_list_says_what_new_calls_get(tenant: Tenancy) -> None:
    shadowed = draft(tenant)
    act(tenant, shadowed, "shadow")
    draft(tenant)
    draft(tenant)
    [item] = ask(tenant, "GET", "/policies").json()["items"]
    assert (item["live_number"], item["shadow_number"], item["draft_numbers"]) == (1, 2, [4, 3])
    assert item["agent_count"] == 1


def test_pages_show_every_policy_once(tenant: Tenancy) -> None:
    for number in range(4):
        ask(tenant, "POST", "/policies", {"name": f"p{number}"})
    seen, query = [], "?limit=2"
    while True:
        body = ask(tenant, "GET", f"/policies{query}").json()
        seen += [item["name"] for item in body["items"]]
        if body["next"] is None:
            break
        query = f"?limit=2&cursor={body['next']}"
    assert seen == ["p3", "p2", "p1", "p0", "alice's policy"]
    assert list(errors(ask(tenant, "GET", "/policies?cursor=bm9uZQ"))) == ["cursor"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "nul \x00", "alice's policy", None, 7])
def test_a_name_that_cannot_be_used_is_refused(tenant: Tenancy, name: Any) -> None:
    assert list(errors(ask(tenant, "POST", "/policies", {"name": name}))) == ["name"]


def test_a_policy_that_judges_agents_stays(tenant: Tenancy) -> None:
    path = f"/policies/{tenant.policy.id}"
    refused = ask(tenant, "DELETE", path, If_Match="*")
    assert refused.status_code == 409
    assert "alice's agent" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/policies"),
        ("PATCH", "/policies/{policy}"),
        ("POST", "/policies/{policy}/versions"),
        ("PATCH", "/policies/{policy}/versions/2"),
        ("POST", "/policies/{policy}/rollback"),
        ("PUT", "/policies/{policy}/agents/{agent}"),
        ("POST", "/policies/derive"),
    ],
)
def test_an_unknown_field_is_refused_by_name(tenant: Tenancy, method: str, path: str) -> None:
    draft(tenant)
    where = path.format(policy=tenant.policy.id, agent=tenant.agent.id)
    found = errors(ask(tenant, method, where, {"name": "x", "nmae": "y", "agent_prompt": "p"}, If_Match="*"))
    assert found["nmae"] == ["There is no such field; check how it is spelled."]


# -- versions -----------------------------------------------------------------------------------------------------


def test_a_draft_is_made_changed_and_read(tenant: Tenancy) -> None:
    body = {
        "rules": [{"text": " Be kind. "}, {"text": "Never lie.", "severity": "high", "statement": "The agent lies."}],
        "config": {"intervention_threshold": 0.8, "pregate_always": ["amount"]},
        "llm_credential_id": str(tenant.credential.id),
        "note": "first try",
    }
    made = ask(tenant, "POST", f"/policies/{tenant.policy.id}/versions", body)
    version = made.json()
    assert (made.status_code, version["number"], version["status"]) == (201, 2, "draft")
    assert version["rules"] == [
        {"text": "Be kind.", "severity": "medium"},
        {"text": "Never lie.", "severity": "high", "statement": "The agent lies."},
    ]
    assert (version["config"], version["note"], version["warnings"]) == (body["config"], "first try", [])
    path = f"/policies/{tenant.policy.id}/versions/2"
    assert made.headers["Location"] == f"/api/v1{path}"
    changed = ask(
        tenant, "PATCH", path, {"config": {"cooldown_s": 3}, "llm_credential_id": None}, If_Match=version["etag"]
    )
    assert changed.status_code == 200
    after = changed.json()
    assert (after["rules"], after["config"], after["note"]) == (version["rules"], {"cooldown_s": 3}, "first try")
    assert after["llm_credential_id"] is None
    assert "llm_credential_id" in after["warnings"][0]
    shown = ask(tenant, "GET", path)
    assert shown.json() == after
    assert shown.headers["ETag"] == changed.headers["ETag"] == after["etag"] != version["etag"]


def test_a_rule_names_tools_and_can_be_off(tenant: Tenancy) -> None:
    rules = [
        {"text": "Be kind.", "tools": ["charge_card"], "enabled": True},
        {"text": "Never lie.", "tools": [], "enabled": False},
    ]
    made = draft(tenant, rules=rules)
    # What goes without saying is not stored.
    assert made["rules"] == [
        {"text": "Be kind.", "severity": "medium", "tools": ["charge_card"]},
        {"text": "Never lie.", "severity": "medium", "enabled": False},
    ]
    prompt = ask(tenant, "GET", f"/policies/{tenant.policy.id}/versions/{made['number']}/prompt").json()["turn_prompt"]
    assert "1. Be kind. [charge_card]" in prompt
    assert "Never lie." not in prompt


def test_a_draft_can_begin_with_what_a_version_has(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", f"/policies/{tenant.policy.id}/versions", {"from_number": 1, "note": "less"}).json()
    assert made["rules"] == read(tenant, 1)["rules"]
    assert made["llm_credential_id"] == str(tenant.credential.id)
    assert made["note"] == "less"
    assert ask(tenant, "POST", f"/policies/{tenant.policy.id}/versions", {"from_number": 9}).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rules"),
        ({"rules": []}, "rules"),
        ({"rules": [{"text": " "}]}, "rules"),
        ({"rules": [{"text": "x", "severity": "huge"}]}, "rules.0.severity"),
        ({"rules": [{"text": "x", "weight": 1}]}, "rules.0.weight"),
        ({"rules": [{"text": "x\x00"}]}, "rules.0.text"),
        ({"rules": [{"text": "x\ud800"}]}, "rules.0.text"),
        ({"rules": ["x"]}, "rules.0"),
        ({"rules": [RULE] * 501}, "rules"),
        ({"rules": [RULE], "config": {"intervention_threshold": 2}}, "config.intervention_threshold"),
        ({"rules": [RULE], "config": {"treshold": 0.5}}, "config.treshold"),
        ({"rules": [RULE], "config": {"delivery": "hold"}}, "config.delivery"),
        ({"rules": [RULE], "config": {"delivery": None}}, "config.delivery"),
        ({"rules": [RULE], "config": {"hold_budget_ms": 49}}, "config.hold_budget_ms"),
        ({"rules": [RULE], "config": {"hold_budget_ms": 10_001}}, "config.hold_budget_ms"),
        ({"rules": [RULE], "config": {"hold_budget_ms": 800.5}}, "config.hold_budget_ms"),
        ({"rules": [RULE], "config": {"hold_budget_ms": "800"}}, "config.hold_budget_ms"),
        ({"rules": [RULE], "config": {"hold_budget_ms": True}}, "config.hold_budget_ms"),
        ({"rules": [RULE], "config": {"streaming_mode": "yes"}}, "config.streaming_mode"),
        ({"rules": [RULE], "config": {"policies": ["x"]}}, "config"),
        ({"rules": [RULE], "config": {"llm": "x"}}, "config.llm"),
        ({"rules": [RULE], "note": "x" * 2001}, "note"),
        ({"rules": [RULE], "llm_credential_id": str(uuid7())}, "llm_credential_id"),
        ({"rules": [RULE], "from_number": 0}, "from_number"),
        ({"rules": None}, "rules"),
    ],
)
def test_a_draft_that_cannot_be_used_is_refused_with_the_field(tenant: Tenancy, body: Any, field: str) -> None:
    assert list(errors(ask(tenant, "POST", f"/policies/{tenant.policy.id}/versions", body))) == [field]
    assert statuses(tenant) == {1: "live"}


def test_another_tenants_model_cannot_judge(tenant: Tenancy, stranger: Tenancy) -> None:
    body = {"rules": [RULE], "llm_credential_id": str(stranger.credential.id)}
    response = ask(tenant, "POST", f"/policies/{tenant.policy.id}/versions", body)
    assert list(errors(response)) == ["llm_credential_id"]


def second_model(tenancy: Tenancy) -> str:
    """A credential for another model of the tenant's."""
    body = {"kind": "llm", "name": "Second", "base_url": "https://second.example/v1", "model": "s-1", "secret": "sk-2"}
    made: str = ask(tenancy, "POST", "/credentials", body).json()["id"]
    return made


def test_a_version_can_name_a_second_model_for_when_the_first_does_not_answer(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    path = f"/policies/{tenant.policy.id}/versions"
    second, first = second_model(tenant), str(tenant.credential.id)
    made = ask(tenant, "POST", path, {"from_number": 1, "fallback_credential_id": second}).json()
    assert (made["llm_credential_id"], made["fallback_credential_id"]) == (first, second)
    copied = ask(tenant, "POST", path, {"from_number": 2}).json()
    assert copied["fallback_credential_id"] == second
    diff = ask(tenant, "GET", f"{path}/1/diff/2").json()
    assert diff["fallback_credential"] == {"name": "fallback_credential_id", "before": None, "after": second}
    assert diff["llm_credential"] is None

    for body, said in (
        ({"fallback_credential_id": first}, "name another one"),
        ({"fallback_credential_id": str(stranger.credential.id)}, "no such credential"),
        ({"fallback_credential_id": "x"}, "UUID"),
        ({"llm_credential_id": None}, "Only where llm_credential_id names a model"),
    ):
        refused = errors(ask(tenant, "PATCH", f"{path}/2", body, If_Match=made["etag"]))
        assert list(refused) == ["fallback_credential_id"]
        assert said in refused["fallback_credential_id"][0]
    refused = errors(ask(tenant, "POST", path, {"rules": [RULE], "fallback_credential_id": second}))
    assert list(refused) == ["fallback_credential_id"]

    in_use = ask(tenant, "DELETE", f"/credentials/{second}")
    assert (in_use.status_code, "version 2 of" in in_use.json()["detail"]) == (409, True)
    cleared = ask(tenant, "PATCH", f"{path}/2", {"fallback_credential_id": None}, If_Match=made["etag"])
    assert cleared.json()["fallback_credential_id"] is None
    with tenant.context():
        PolicyVersion.objects.filter(number=3).update(status="retired")
    assert ask(tenant, "DELETE", f"/credentials/{second}").status_code == 204
    assert read(tenant, 3)["fallback_credential_id"] is None


def test_a_body_that_is_no_json_is_refused(tenant: Tenancy) -> None:
    from django.test import Client

    response = Client().post(
        "/api/v1/policies",
        "{",
        content_type="application/json",
        headers={"Authorization": f"Bearer {tenant.api_key}"},
    )
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_published_version_cannot_change(tenant: Tenancy) -> None:
    version = read(tenant, 1)
    refused = ask(tenant, "PATCH", f"/policies/{tenant.policy.id}/versions/1", {"note": "x"}, If_Match=version["etag"])
    assert errors(refused, 409) == {}
    assert read(tenant, 1) == version


def test_versions_are_listed_newest_first(tenant: Tenancy) -> None:
    for _ in range(3):
        draft(tenant)
    path = f"/policies/{tenant.policy.id}/versions"
    first = ask(tenant, "GET", f"{path}?limit=3").json()
    rest = ask(tenant, "GET", f"{path}?limit=3&cursor={first['next']}").json()
    assert [item["number"] for item in first["items"] + rest["items"]] == [4, 3, 2, 1]
    assert rest["next"] is None
    assert [item["number"] for item in ask(tenant, "GET", f"{path}?status=live").json()["items"]] == [1]


# -- what new calls get -------------------------------------------------------------------------------------------


def test_a_draft_goes_from_shadow_to_live_and_the_live_one_retires(tenant: Tenancy) -> None:
    made = draft(tenant)
    shadowed = act(tenant, made, "shadow")
    assert (shadowed.status_code, shadowed.json()["status"]) == (200, "shadow")
    assert statuses(tenant) == {1: "live", 2: "shadow"}
    assert act(tenant, shadowed.json(), "shadow").status_code == 409
    published = act(tenant, shadowed.json(), "publish")
    assert (published.json()["status"], published.headers["ETag"]) == ("live", published.json()["etag"])
    assert published.json()["published_at"] is not None
    assert statuses(tenant) == {1: "retired", 2: "live"}
    assert act(tenant, read(tenant, 1), "publish").status_code == 409
    with tenant.context():
        last = AuditEvent.objects.order_by("-seq").first()
        assert last is not None
        assert (last.action, last.actor_kind) == ("policy_version.publish", "api_key")


def test_one_version_is_shadow_at_a_time(tenant: Tenancy) -> None:
    one, other = draft(tenant), draft(tenant)
    act(tenant, one, "shadow")
    assert act(tenant, read(tenant, other["number"]), "shadow").status_code == 200
    assert statuses(tenant) == {1: "live", 2: "retired", 3: "shadow"}


def test_rolling_back_returns_to_what_was_live_before_and_never_to_what_was_taken_back(tenant: Tenancy) -> None:
    for number in (2, 3):
        draft(tenant)
        act(tenant, read(tenant, number), "publish")
    back = roll_back(tenant)
    assert (back.status_code, back.json()["number"], back.json()["status"]) == (200, 2, "live")
    assert statuses(tenant) == {1: "retired", 2: "live", 3: "retired"}
    assert read(tenant, 3)["rolled_back_at"] is not None
    draft(tenant)
    act(tenant, read(tenant, 4), "publish")
    assert roll_back(tenant).json()["number"] == 2
    assert roll_back(tenant).json()["number"] == 1
    nowhere = roll_back(tenant)
    assert nowhere.status_code == 409
    # By its number, a version that was taken back can go live again.
    again = roll_back(tenant, {"number": 3})
    assert (again.json()["number"], again.json()["rolled_back_at"]) == (3, None)
    draft(tenant)
    assert roll_back(tenant, {"number": 5}).status_code == 409
    assert roll_back(tenant, {"number": 77}).status_code == 404


def test_without_a_live_version_there_is_nothing_to_take_back(tenant: Tenancy) -> None:
    made = ask(tenant, "POST", "/policies", {"name": "Empty"}).json()
    assert ask(tenant, "POST", f"/policies/{made['id']}/rollback", If_Match=made["etag"]).status_code == 409


# -- nobody overwrites anybody ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"name": "Mine"}),
        ("DELETE", "", None),
        ("POST", "/rollback", None),
        ("PATCH", "/versions/2", {"note": "mine"}),
        ("POST", "/versions/2/publish", None),
        ("POST", "/versions/2/shadow", None),
    ],
)
def test_a_change_says_what_it_is_about(tenant: Tenancy, method: str, path: str, body: Any) -> None:
    draft(tenant)
    where = f"/policies/{tenant.policy.id}{path}"
    assert errors(ask(tenant, method, where, body), 428) == {}
    assert list(errors(ask(tenant, method, where, body, If_Match="2"))) == ["If-Match"]
    for stale in ('"0"', '"2.0", "7.7"', 'W/"2.1"', 'W/"1"'):
        refused = ask(tenant, method, where, body, If_Match=stale)
        assert errors(refused, 412) == {}
        assert (
            refused.headers["ETag"]
            == ask(
                tenant, "GET", where.removesuffix("/publish").removesuffix("/shadow").removesuffix("/rollback")
            ).headers["ETag"]
        )
    assert statuses(tenant) == {1: "live", 2: "draft"}


def test_of_two_editors_of_a_draft_the_second_is_told(tenant: Tenancy) -> None:
    seen = draft(tenant)
    path = f"/policies/{tenant.policy.id}/versions/2"
    assert ask(tenant, "PATCH", path, {"note": "one"}, If_Match=seen["etag"]).status_code == 200
    assert ask(tenant, "PATCH", path, {"note": "other"}, If_Match=seen["etag"]).status_code == 412
    # Nor can a draft that was changed since be put live unseen.
    assert act(tenant, seen, "publish").status_code == 412
    assert read(tenant, 2)["note"] == "one"


def test_whoever_publishes_sees_that_something_else_went_live(tenant: Tenancy) -> None:
    mine, yours = draft(tenant), draft(tenant)
    assert act(tenant, yours, "publish").status_code == 200
    assert act(tenant, mine, "publish").status_code == 412
    assert statuses(tenant) == {1: "retired", 2: "draft", 3: "live"}
    assert act(tenant, read(tenant, 2), "publish").status_code == 200


def test_drafts_are_edited_beside_each_other(tenant: Tenancy) -> None:
    one, other = draft(tenant), draft(tenant)
    path = f"/policies/{tenant.policy.id}/versions"
    assert ask(tenant, "PATCH", f"{path}/2", {"note": "a"}, If_Match=one["etag"]).status_code == 200
    assert ask(tenant, "PATCH", f"{path}/3", {"note": "b"}, If_Match=other["etag"]).status_code == 200


def at_once(*actions: Any) -> list[Any]:
    barrier = threading.Barrier(len(actions))
    answers: list[Any] = []

    def run(action: Any) -> None:
        try:
            barrier.wait(30)
            answers.append(action())
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(actions)
    return answers


@pytest.mark.django_db(transaction=True)
def test_of_those_who_publish_at_once_one_does(tenant: Tenancy) -> None:
    for _ in range(3):
        versions = [draft(tenant) for _ in range(4)]
        versions = [read(tenant, version["number"]) for version in versions]
        answers = at_once(*(lambda version=version: act(tenant, version, "publish") for version in versions))
        assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]
        [won] = [answer.json()["number"] for answer in answers if answer.status_code == 200]
        live = [number for number, status in statuses(tenant).items() if status == "live"]
        assert live == [won]


@pytest.mark.django_db(transaction=True)
def test_publishing_rolling_back_and_editing_at_once_end_in_one_order(tenant: Tenancy) -> None:
    for _ in range(3):
        version = draft(tenant)
        path = f"/policies/{tenant.policy.id}/versions/{version['number']}"
        answers = at_once(
            lambda version=version: act(tenant, version, "publish"),
            lambda version=version: act(tenant, version, "shadow"),
            lambda path=path, version=version: ask(tenant, "PATCH", path, {"note": "x"}, If_Match=version["etag"]),
        )
        assert sorted(answer.status_code for answer in answers) == [200, 412, 412]
        found = list(statuses(tenant).values())
        assert (found.count("live"), found.count("shadow") <= 1) == (1, True)


@pytest.mark.django_db(transaction=True)
def test_of_two_policies_of_one_name_at_once_one_is_made(tenant: Tenancy) -> None:
    name = unique("policy")
    answers = at_once(*(lambda: ask(tenant, "POST", "/policies", {"name": name}) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 422, 422, 422]
    with tenant.context():
        assert Policy.objects.filter(name=name).count() == 1


# -- every node ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(database_urls: DatabaseUrls) -> Iterator[Any]:
    """Two nodes' directories; each call of `nodes()` asks both what a new call of a key gets."""
    loop = asyncio.new_event_loop()
    made = [StreamDirectory(database_urls.app) for _ in range(2)]

    def look_up(tenancy: Tenancy) -> list[AgentBinding]:
        async def both() -> list[AgentBinding]:
            found = [await directory.lookup(tenancy.slug, tenancy.stream_key) for directory in made]
            assert None not in found
            return found  # type: ignore[return-value]

        return loop.run_until_complete(both())

    yield look_up
    for directory in made:
        loop.run_until_complete(directory.aclose())
    loop.close()


@pytest.mark.django_db(transaction=True)
def test_what_is_published_is_what_the_next_call_gets_on_every_node(
    tenant: Tenancy, stranger: Tenancy, nodes: Any
) -> None:
    running = nodes(tenant)
    assert [binding.policy_version for binding in running] == [1, 1]
    act(tenant, draft(tenant, config={"cooldown_s": 5}), "publish")
    # The answer to publishing came after its commit: the very next look-up has it, without any waiting.
    assert [(binding.policy_version, dict(binding.config)) for binding in nodes(tenant)] == [(2, {"cooldown_s": 5})] * 2
    assert roll_back(tenant).status_code == 200
    assert [binding.policy_version for binding in nodes(tenant)] == [1, 1]
    # A call that runs keeps what it began with.
    assert [(binding.policy_version, len(binding.rules)) for binding in running] == [(1, 2), (1, 2)]
    assert [binding.policy_version for binding in nodes(stranger)] == [1, 1]


@pytest.mark.django_db(transaction=True)
def test_an_agent_can_follow_the_shadow_version_and_have_settings_of_its_own(tenant: Tenancy, nodes: Any) -> None:
    act(tenant, draft(tenant, config={"cooldown_s": 5}), "shadow")
    assert [(binding.policy_version, binding.mode) for binding in nodes(tenant)] == [(1, "live")] * 2
    path = f"/policies/{tenant.policy.id}/agents/{tenant.agent.id}"
    body = {"policy_track": "shadow", "policy_overrides": {"intervention_threshold": 0.95}}
    assert ask(tenant, "PUT", path, body).status_code == 200
    [binding, _] = nodes(tenant)
    assert (binding.policy_version, binding.mode) == (2, "shadow")
    assert dict(binding.config) == {"cooldown_s": 5, "intervention_threshold": 0.95}
    # When the shadow version has gone live there is none to follow.
    act(tenant, read(tenant, 2), "publish")
    [binding, _] = nodes(tenant)
    assert (binding.policy_version, binding.mode, binding.config["intervention_threshold"]) == (2, "live", 0.95)
    assert ask(tenant, "DELETE", path).status_code == 204
    [binding, _] = nodes(tenant)
    assert (binding.policy_id, binding.policy_version, binding.llm) == (None, None, None)


@pytest.mark.django_db(transaction=True)
def test_a_policy_says_which_turns_wait_for_their_verdict_and_an_agent_may_differ(
    tenant: Tenancy, stranger: Tenancy, nodes: Any
) -> None:
    config = {"delivery": "hold_risky", "hold_budget_ms": 600, "streaming_mode": False}
    version = draft(tenant, config=config)
    assert version["config"] == config
    act(tenant, version, "publish")
    assert [dict(binding.config) for binding in nodes(tenant)] == [config] * 2
    path = f"/policies/{tenant.policy.id}/agents/{tenant.agent.id}"
    overrides = {"delivery": "hold_all", "hold_budget_ms": 10_000}
    assert ask(tenant, "PUT", path, {"policy_overrides": overrides}).status_code == 200
    [binding, _] = nodes(tenant)
    assert dict(binding.config) == {**config, **overrides}
    assert "delivery" not in nodes(stranger)[0].config


# -- agents, prompt, diff -----------------------------------------------------------------------------------------


def test_which_agents_a_policy_judges(tenant: Tenancy, stranger: Tenancy) -> None:
    other = ask(tenant, "POST", "/policies", {"name": "Other"}).json()
    path = f"/policies/{other['id']}/agents"
    body = {"policy_overrides": {"buffer_text": "Hm."}}
    put = ask(tenant, "PUT", f"{path}/{tenant.agent.id}", body)
    expected = {
        "agent_id": str(tenant.agent.id),
        "agent_name": "alice's agent",
        "policy_track": "live",
        "policy_overrides": {"buffer_text": "Hm."},
    }
    assert (put.status_code, put.json()) == (200, expected)
    assert ask(tenant, "GET", path).json() == {"items": [expected]}
    assert ask(tenant, "GET", f"/policies/{tenant.policy.id}/agents").json() == {"items": []}
    assert ask(tenant, "PUT", f"{path}/{stranger.agent.id}", body).status_code == 404
    assert ask(tenant, "DELETE", f"{path}/{stranger.agent.id}").status_code == 404
    assert ask(tenant, "DELETE", f"/policies/{tenant.policy.id}/agents/{tenant.agent.id}").status_code == 404
    with stranger.context():
        assert Agent.objects.get().policy_overrides == {}


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"intervention_threshold": 2}, "policy_overrides.intervention_threshold"),
        ({"judging_prompt": "x"}, "policy_overrides.judging_prompt"),
        ({"scoring": "logprob"}, "policy_overrides.scoring"),
        ({"delivery": "later"}, "policy_overrides.delivery"),
        ({"hold_budget_ms": 0}, "policy_overrides.hold_budget_ms"),
        ({"typo": 1}, "policy_overrides.typo"),
        ([], "policy_overrides"),
    ],
)
def test_an_agent_overrides_what_fits_every_version(tenant: Tenancy, overrides: Any, field: str) -> None:
    path = f"/policies/{tenant.policy.id}/agents/{tenant.agent.id}"
    assert list(errors(ask(tenant, "PUT", path, {"policy_overrides": overrides}))) == [field]


def test_the_prompt_is_what_the_engine_compiles(tenant: Tenancy) -> None:
    body = ask(tenant, "GET", f"/policies/{tenant.policy.id}/versions/1/prompt").json()
    compiled = compile_policy(policy_version_config(tenant.version))
    assert body == {
        "turn_prompt": compiled.turn_prompt,
        "tools_prompt": compiled.tools_prompt,
        "correction_prompt": compiled.correction_prompt,
    }
    assert "1. Never confirm a refund." in body["turn_prompt"]


def test_a_diff_names_rules_and_settings_with_the_engines_defaults(tenant: Tenancy) -> None:
    draft(
        tenant,
        rules=[
            {"text": "Never confirm a refund.", "severity": "low"},
            {"text": "Never promise a delivery date or time.", "severity": "medium"},
            {"text": "Greet every caller politely.", "severity": "low"},
        ],
        config={"intervention_threshold": 0.8},
    )
    path = f"/policies/{tenant.policy.id}/versions"
    body = ask(tenant, "GET", f"{path}/1/diff/2").json()
    assert [
        (rule["change"], rule["before"] and rule["before"]["text"], rule["after"] and rule["after"]["text"])
        for rule in body["rules"]
    ] == [
        ("changed", "Never confirm a refund.", "Never confirm a refund."),
        ("changed", "Never promise a delivery date.", "Never promise a delivery date or time."),
        ("added", None, "Greet every caller politely."),
    ]
    assert body["config"] == [{"name": "intervention_threshold", "before": 0.7, "after": 0.8}]
    assert body["llm_credential"]["before"] == str(tenant.credential.id)
    back = ask(tenant, "GET", f"{path}/2/diff/1").json()
    assert [rule["change"] for rule in back["rules"]] == ["changed", "changed", "removed"]
    same = ask(tenant, "GET", f"{path}/1/diff/1").json()
    assert (same["rules"], same["config"], same["llm_credential"]) == ([], [], None)
    assert ask(tenant, "GET", f"{path}/1/diff/99999999999999999999").status_code == 404


# -- deriving -----------------------------------------------------------------------------------------------------

PROMPT = "You answer the phone for a pizzeria. Never promise a delivery time. Our menu has 12 pizzas."


def judge_at(tenancy: Tenancy, base_url: str) -> str:
    """A credential for the stand-in."""
    body = {"kind": "llm", "name": "Reader", "base_url": base_url, "model": "reader-1", "secret": "sk-reader"}
    response = ask(tenancy, "POST", "/credentials", body)
    assert response.status_code == 201, response.content
    found: str = response.json()["id"]
    return found


def rules_of(question: Any) -> list[dict[str, Any]]:
    cited = "Never promise a delivery time."
    return [
        {"text": cited, "citation": cited, "severity": "high"},
        {"text": "Never promise 20 minutes.", "citation": cited, "severity": "low"},
    ]


def test_a_draft_is_derived_from_a_prompt_with_its_sources(tenant: Tenancy, stranger: Tenancy) -> None:
    with LLMStandIn().in_thread() as llm:
        llm.derive(rules_of)
        credential = judge_at(tenant, llm.base_url)
        body = {"agent_prompt": PROMPT, "llm_credential_id": credential, "name": "Pizzeria"}
        response = ask(tenant, "POST", "/policies/derive", body, Idempotency_Key="k")
        assert response.status_code == 201, response.content
        assert ask(tenant, "POST", "/policies/derive", body, Idempotency_Key="k").json() == response.json()
        assert len(llm.requests) == 1
    made = response.json()
    [rule] = made["rules"]
    assert (rule["text"], PROMPT[rule["start"] : rule["end"]]) == ("Never promise a delivery time.", rule["citation"])
    [dropped] = made["dropped"]
    assert dropped["text"] == "Never promise 20 minutes."
    version = made["version"]
    assert (version["number"], version["status"], version["llm_credential_id"]) == (1, "draft", credential)
    assert version["rules"] == [{"text": "Never promise a delivery time.", "severity": "high"}]
    newest = next(iter(ask(tenant, "GET", "/policies").json()["items"]))
    assert (newest["name"], newest["draft_numbers"]) == ("Pizzeria", [1])
    with stranger.context():
        assert Policy.objects.count() == 1


def test_a_prompt_can_become_a_draft_of_a_policy_that_exists(tenant: Tenancy) -> None:
    with LLMStandIn().in_thread() as llm:
        llm.derive(rules_of)
        body = {
            "agent_prompt": PROMPT,
            "llm_credential_id": judge_at(tenant, llm.base_url),
            "policy_id": str(tenant.policy.id),
        }
        response = ask(tenant, "POST", "/policies/derive", body)
    assert (response.status_code, response.json()["version"]["number"]) == (201, 2)
    assert statuses(tenant) == {1: "live", 2: "draft"}


def test_a_model_that_gives_no_answer_is_a_502_that_repeats_nothing(tenant: Tenancy) -> None:
    with LLMStandIn().in_thread() as llm:
        llm.behave(status=401)
        body = {"agent_prompt": PROMPT, "llm_credential_id": judge_at(tenant, llm.base_url), "name": "Pizzeria"}
        response = ask(tenant, "POST", "/policies/derive", body)
    assert errors(response, 502) == {}
    assert "Reader" in response.json()["detail"]
    assert "sk-reader" not in response.content.decode()
    with tenant.context():
        assert Policy.objects.count() == 1


def test_a_prompt_that_demands_nothing_makes_no_draft(tenant: Tenancy) -> None:
    with LLMStandIn().in_thread() as llm:
        llm.derive(lambda question: [])
        body = {"agent_prompt": "Hello.", "llm_credential_id": judge_at(tenant, llm.base_url), "name": "Pizzeria"}
        assert list(errors(ask(tenant, "POST", "/policies/derive", body))) == ["agent_prompt"]
    with tenant.context():
        assert Policy.objects.count() == 1


def test_what_cannot_be_derived_is_refused_before_anybody_is_asked(tenant: Tenancy, stranger: Tenancy) -> None:
    own = {"agent_prompt": PROMPT, "llm_credential_id": str(tenant.credential.id)}
    for body, field in (
        ({**own}, "policy_id"),
        ({**own, "name": "x", "policy_id": str(tenant.policy.id)}, "policy_id"),
        ({**own, "name": "alice's policy"}, "name"),
        ({**own, "name": "x", "agent_prompt": ""}, "agent_prompt"),
        ({**own, "name": "x", "agent_prompt": " "}, "agent_prompt"),
        ({**own, "name": "x", "agent_prompt": "x" * 60_001}, "agent_prompt"),
        ({**own, "name": "x", "llm_credential_id": str(stranger.credential.id)}, "llm_credential_id"),
    ):
        assert list(errors(ask(tenant, "POST", "/policies/derive", body))) == [field]
    foreign = {**own, "policy_id": str(stranger.policy.id)}
    assert ask(tenant, "POST", "/policies/derive", foreign).status_code == 404


# -- the stranger, and scopes -------------------------------------------------------------------------------------


def test_another_tenants_policies_are_not_there(tenant: Tenancy, stranger: Tenancy) -> None:
    foreign = stranger.policy.id
    for method, path, body in (
        ("GET", f"/policies/{foreign}", None),
        ("PATCH", f"/policies/{foreign}", {"name": "x"}),
        ("DELETE", f"/policies/{foreign}", None),
        ("GET", f"/policies/{foreign}/versions", None),
        ("POST", f"/policies/{foreign}/versions", {"rules": [RULE]}),
        ("POST", f"/policies/{foreign}/versions", {"from_number": 1}),
        ("GET", f"/policies/{foreign}/versions/1", None),
        ("PATCH", f"/policies/{foreign}/versions/1", {"note": "x"}),
        ("POST", f"/policies/{foreign}/versions/1/publish", None),
        ("POST", f"/policies/{foreign}/versions/1/shadow", None),
        ("POST", f"/policies/{foreign}/rollback", None),
        ("GET", f"/policies/{foreign}/versions/1/prompt", None),
        ("GET", f"/policies/{foreign}/versions/1/diff/1", None),
        ("GET", f"/policies/{foreign}/agents", None),
        ("PUT", f"/policies/{foreign}/agents/{tenant.agent.id}", {}),
        ("DELETE", f"/policies/{foreign}/agents/{stranger.agent.id}", None),
    ):
        response = ask(tenant, method, path, body, If_Match="*")
        missing = ask(tenant, method, path.replace(str(foreign), str(uuid7())), body, If_Match="*")
        assert (response.status_code, missing.status_code) == (404, 404), (method, path)
        assert response.json()["detail"] == missing.json()["detail"]
        assert "charlie" not in response.content.decode()
    assert statuses(stranger) == {1: "live"}


def test_reading_and_writing_need_their_scopes(tenant: Tenancy) -> None:
    with tenant.context():
        reader = api_key_create(name="reader", scopes=[Scope.POLICIES_READ.value]).key
    assert ask(tenant, "GET", "/policies", api_key=reader).status_code == 200
    assert ask(tenant, "POST", "/policies", {"name": "x"}, api_key=reader).status_code == 403
