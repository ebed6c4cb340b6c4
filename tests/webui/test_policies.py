"""The pages of policies: what they store, keep, refuse and never show to anybody else."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from supervision.engine import Usage
from supervision.engine.config import PolicyConfig
from supervision.engine.llm.protocol import LLMResult, LLMTimeout
from supervision.models import Agent, Policy, PolicyVersion, Turn, UsageDay, Verdict
from supervision.selectors.policies import policy_etag, policy_version_etag
from supervision.services import derivation, judging
from supervision.services.policies import (
    agent_policy_set,
    policy_create,
    policy_version_create,
    policy_version_publish,
    policy_version_update,
)
from tenants.api.limits import RateLimited
from tenants.context import tenant_context_current
from tenants.limits_redis import Rate
from tenants.models import AuditEvent
from tenants.roles import Role
from tenants.services.memberships import membership_create
from tenants.services.tenants import user_create
from tests.engine.llms import ScriptedLLM
from tests.factories import Tenancy, call_create, client_sign_in, unique
from webui.policy_settings import SETTINGS
from webui.views import policy_try

pytestmark = pytest.mark.django_db

VIOLATION = {"score": 0.95, "rule": "1", "reason": 'It says "refunded".', "correction": "Ask a colleague."}


@pytest.fixture
def alice(client: Client, tenant: Tenancy) -> Client:
    client_sign_in(client, tenant.users["alice"])
    return client


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> ScriptedLLM:
    """The model that every policy of this test asks, on a judging loop of its own."""
    made = ScriptedLLM(turn=VIOLATION)

    class Pool:
        def __init__(self, **_: Any) -> None:
            pass

        def client(self, **settings: Any) -> ScriptedLLM:
            return made

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(judging, "OpenAIPool", Pool)
    monkeypatch.setattr(judging, "_made", None)
    return made


class Reader:
    """A model that reads an agent's prompt and proposes `rules`; None: it cannot be asked."""

    def __init__(self) -> None:
        self.read = 0
        self.rules: list[dict[str, str]] | None = [
            {
                "text": "Never promise a delivery time.",
                "citation": "Never promise a delivery time.",
                "severity": "high",
            },
            {"text": "Never mention olives.", "citation": "Our oven is from Naples.", "severity": "low"},
        ]

    async def complete_json(self, **_: Any) -> LLMResult:
        self.read += 1
        if self.rules is None:
            raise LLMTimeout("slow")
        return LLMResult(json.dumps({"rules": self.rules}), Usage(100, 20, 0))

    async def aclose(self) -> None:
        pass


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    made = Reader()

    class Pool:
        def __init__(self, **_: Any) -> None:
            pass

        def client(self, **settings: Any) -> Reader:
            return made

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(derivation, "OpenAIPool", Pool)
    return made


def text_of(answer: Any) -> str:
    return html.unescape(answer.content.decode())


def page_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return text_of(answer)


def member(tenancy: Tenancy, role: Role) -> Client:
    client = Client()
    with tenancy.context():
        user = user_create(email=f"{unique('member')}@example.com", password=None)
        membership_create(user=user, role=role)
    client_sign_in(client, user)
    return client


def draft_of(tenancy: Tenancy, rules: Any = ("Never confirm a refund.",), **fields: Any) -> PolicyVersion:
    """A draft of the tenancy's policy."""
    with tenancy.context():
        return policy_version_create(
            policy_id=tenancy.policy.id, rules=rules, llm_credential=tenancy.credential, **fields
        )


def url_of(version: PolicyVersion, end: str = "") -> str:
    return f"/policies/{version.policy_id}/versions/{version.number}{end}"


def typed(version: PolicyVersion, *rules: dict[str, str] | str, **fields: Any) -> dict[str, Any]:
    """What the editor of `version` sends with these rules in it."""
    sent: dict[str, Any] = {"etag": policy_version_etag(version), "llm": version.llm_credential_id or ""}
    for number, rule in enumerate(rules):
        row = {"text": rule, "on": "on"} if isinstance(rule, str) else rule
        sent |= {f"rule.k{number}.{name}": value for name, value in {"severity": "medium", **row}.items()}
    return {**sent, **fields}


def stored(tenancy: Tenancy, version: PolicyVersion) -> PolicyVersion:
    with tenancy.context():
        return PolicyVersion.objects.select_related("policy").get(id=version.id)


# -- the list, and making one -------------------------------------------------------------------------------------


def test_the_list_says_what_judges_and_what_does_not(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        idle = policy_create(name="Refunds of spring")
        agent_policy_set(agent_id=tenant.agent.id, policy_id=idle.id)
    page = page_of(alice, "/policies")
    assert "alice's policy" in page
    assert "Version 1" in page
    assert "nothing is published" in page
    assert "charlie" not in page
    for role, may in ((Role.EDITOR, True), (Role.VIEWER, False)):
        assert ("/policies/new" in page_of(member(tenant, role), "/policies")) is may


def test_a_new_policy_is_a_draft_and_wrong_input_is_kept(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    form = {"name": "Deliveries", "rules": "Never promise a date.\n\n# why\nBe kind.", "llm": tenant.credential.id}
    taken = alice.post("/policies/new", {**form, "name": "alice's policy"})
    assert "already; choose another name" in text_of(taken)
    assert "Never promise a date." in text_of(taken)
    assert "Write at least one rule." in text_of(alice.post("/policies/new", {**form, "rules": " "}))
    foreign = alice.post("/policies/new", {**form, "llm": stranger.credential.id})
    assert "Choose one of the list." in text_of(foreign)
    too_long = alice.post("/policies/new", {**form, "rules": "x" * 4001})
    assert "Rule 1: String should have at most 4000 characters." in text_of(too_long)
    with tenant.context():
        assert Policy.objects.filter(name="Deliveries").count() == 0
    made = alice.post("/policies/new", form)
    with tenant.context():
        policy = Policy.objects.get(name="Deliveries")
        version = PolicyVersion.objects.get(policy=policy)
    assert made["Location"] == f"/policies/{policy.id}/versions/1"
    assert [rule["text"] for rule in version.rules] == ["Never promise a date.", "Be kind."]
    assert (version.status, version.llm_credential_id) == ("draft", tenant.credential.id)


def test_a_form_that_is_sent_twice_makes_one_policy_and_one_draft(alice: Client, tenant: Tenancy) -> None:
    once = re.search(r'name="once" value="([^"]+)"', page_of(alice, "/policies/new"))
    assert once is not None
    form = {"name": "Once", "rules": "Be kind.", "llm": "", "once": once[1]}
    first, second = alice.post("/policies/new", form), alice.post("/policies/new", form)
    assert first["Location"] == second["Location"]
    with tenant.context():
        policy = Policy.objects.get(name="Once")
    token = re.search(r'name="once" value="([^"]+)"', page_of(alice, first["Location"].replace("/1", "/new")))
    assert token is not None
    again = {"number": "1", "once": token[1]}
    for _ in range(2):
        assert alice.post(f"/policies/{policy.id}/versions/new", again)["Location"].endswith("/versions/2")
    with tenant.context():
        assert PolicyVersion.objects.filter(policy=policy).count() == 2


# -- the editor ---------------------------------------------------------------------------------------------------


def test_every_setting_of_the_engine_has_a_field(alice: Client, tenant: Tenancy) -> None:
    assert set(SETTINGS) == set(PolicyConfig.model_fields) - {"policies"}
    page = page_of(alice, url_of(draft_of(tenant)))
    for name in SETTINGS:
        assert f'name="{name}"' in page, name


def test_everything_that_is_typed_is_stored_and_shown_again(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant)
    settings = {
        "intervention_threshold": "0.85",
        "cooldown_s": "2.5",
        "judge_max_tokens": "600",
        "scoring": "json",
        "mode": "shadow",
        "tiered_scoring_enabled": "off",
        "streaming_mode": "off",
        "pregate_always": ["amount", "refusal"],
        "irreversible_tools": "refund, charge_card\nwire",
        "approval_tools": "none",
        "escalation": "transfer",
        "escalation_url": "https://xml.example/next",
        "buffer_text_own": "on",
        "delivery": "hold_risky",
        "hold_budget_ms": "900",
    }
    rows = (
        {"text": "Never charge twice.", "severity": "high", "tools": "charge_card, refund", "on": "on"},
        {"text": "Be kind.", "severity": "low", "statement": "The agent is rude."},
    )
    saved = alice.post(url_of(version, "/save"), typed(version, *rows, note="Cards.", **settings))
    assert saved["Location"] == url_of(version)
    now = stored(tenant, version)
    assert now.rules == [
        {"text": "Never charge twice.", "severity": "high", "tools": ["charge_card", "refund"]},
        {"text": "Be kind.", "severity": "low", "statement": "The agent is rude.", "enabled": False},
    ]
    assert now.config == {
        "intervention_threshold": 0.85,
        "cooldown_s": 2.5,
        "judge_max_tokens": 600,
        "scoring": "json",
        "mode": "shadow",
        "tiered_scoring_enabled": False,
        "streaming_mode": False,
        "pregate_always": ["amount", "refusal"],
        "irreversible_tools": ["refund", "charge_card", "wire"],
        "approval_tools": [],
        "escalation": "transfer",
        "escalation_url": "https://xml.example/next",
        "buffer_text": None,
        "delivery": "hold_risky",
        "hold_budget_ms": 900,
    }
    assert now.note == "Cards."
    # What the page shows of it, sent as it is, changes nothing.
    page = alice.get(url_of(version))
    editor = page.context["editor"]
    again = {name: value for name in editor.form.fields if (value := editor.form[name].value()) not in (None, False)}
    rules = [{**vars_of(row), **({"on": "on"} if row.on else {})} for row in editor.rows]
    assert alice.post(url_of(version, "/save"), {**typed(now, *rules), **again}).status_code == 302
    assert stored(tenant, version).config == now.config
    assert stored(tenant, version).rules == now.rules
    assert stored(tenant, version).revision == now.revision


def vars_of(row: Any) -> dict[str, str]:
    return {"text": row.text, "severity": row.severity, "tools": row.tools, "statement": row.statement}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"intervention_threshold": "85"}, "Give a number from 0 to 1."),
        ({"intervention_threshold": "nan"}, "Give a number from 0 to 1."),
        ({"intervention_threshold": "0"}, "Input should be greater than 0."),
        ({"hold_budget_ms": "1.5"}, "Give a whole number from 50 to 10000 ms."),
        ({"cooldown_s": "soon"}, "Give a number from 0 to 3600 s."),
        ({"escalation": "transfer"}, "Give the URL of the XML that a transferred call goes on with."),
        ({"scoring": "guess"}, "Choose one of the list."),
        ({"pregate_always": "weather"}, "Choose one of the list."),
        ({"buffer_text": "Hm.", "buffer_text_own": "on"}, "Write the words, or choose Mirror’s own: not both."),
        ({"note": "x" * 2001}, "Use 2000 characters at most."),
        ({"judging_prompt": "Judge."}, "Policies and judging_prompt exclude each other; give one of them."),
        ({"rule.k0.tools": "x" * 201}, "A tool name is one line of at most 200 characters."),
        ({"rule.k0.statement": "x" * 301}, "String should have at most 300 characters."),
        ({"llm": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d"}, "Choose one of the list."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said_at_its_field_and_kept(
    alice: Client, tenant: Tenancy, fields: dict[str, str], said: str
) -> None:
    version = draft_of(tenant)
    answer = alice.post(url_of(version, "/save"), typed(version, "Never say Tuesday.", **fields))
    page = text_of(answer)
    assert answer.status_code == 200
    assert said in page
    assert "Never say Tuesday." in page
    for value in fields.values():
        assert value[:50] in page or value in ("guess", "weather") or "0199" in value
    assert stored(tenant, version).rules == version.rules


def test_rules_that_are_all_off_or_none_are_refused(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant)
    off = alice.post(url_of(version, "/save"), typed(version, {"text": "Be kind."}))
    assert "Every rule is switched off" in text_of(off)
    none = alice.post(url_of(version, "/save"), typed(version, {"text": "  ", "on": "on"}))
    assert "Give at least one rule" in text_of(none)


def test_rows_move_without_javascript_and_nothing_is_stored_by_it(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant)
    form = typed(version, "One.", "Two.", "Three.")

    def after(do: str) -> list[str]:
        answer = alice.post(url_of(version, "/save"), {**form, "do": do})
        return [row.text for row in answer.context["editor"].rows]

    assert after("down.k0") == ["Two.", "One.", "Three."]
    assert after("up.k2") == ["One.", "Three.", "Two."]
    assert after("up.k0") == ["One.", "Two.", "Three."]
    assert after("remove.k1") == ["One.", "Three."]
    assert after("add") == ["One.", "Two.", "Three.", ""]
    assert after("up.nobody") == after("dance") == ["One.", "Two.", "Three."]
    assert stored(tenant, version).rules == version.rules


def test_who_saves_second_sees_both_texts_and_loses_neither(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant, ["Never confirm a refund."])
    mine = typed(version, "Never confirm or promise a refund.")
    with tenant.context():
        policy_version_update(policy_id=version.policy_id, number=version.number, rules=["Never confirm any refund."])
    answer = alice.post(url_of(version, "/save"), mine)
    page = text_of(answer)
    assert answer.status_code == 409
    assert "somebody changed this draft meanwhile" in page
    assert "<del>any</del><ins>or promise a</ins>" in page
    assert "Never confirm or promise a refund." in page
    assert stored(tenant, version).rules[0]["text"] == "Never confirm any refund."
    # The form is about theirs now: sent again, mine is stored over it.
    etag = answer.context["editor"].form["etag"].value()
    assert alice.post(url_of(version, "/save"), {**mine, "etag": etag}).status_code == 302
    assert stored(tenant, version).rules[0]["text"] == "Never confirm or promise a refund."


def test_saving_twice_is_saving_once_and_what_goes_live_elsewhere_is_no_conflict(
    alice: Client, tenant: Tenancy
) -> None:
    version = draft_of(tenant)
    form = typed(version, "Be kind.")
    other = draft_of(tenant, ["Something else."])
    with tenant.context():
        policy_version_publish(policy_id=version.policy_id, number=other.number)
    assert [alice.post(url_of(version, "/save"), form).status_code for _ in range(2)] == [302, 302]
    now = stored(tenant, version)
    assert (now.rules[0]["text"], now.revision) == ("Be kind.", version.revision + 1)


def test_a_draft_that_was_published_meanwhile_is_saved_as_a_new_one(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant)
    form = typed(version, "Be kind.", then="copy")
    with tenant.context():
        policy_version_publish(policy_id=version.policy_id, number=version.number)
    refused = alice.post(url_of(version, "/save"), {**form, "then": ""})
    assert refused.status_code == 409
    assert "is live now, and cannot change any more" in text_of(refused)
    locations = {alice.post(url_of(version, "/save"), form)["Location"] for _ in range(2)}
    assert locations == {url_of(version).replace(f"/{version.number}", f"/{version.number + 1}")}
    assert stored(tenant, version).rules == version.rules


# -- to work, and back --------------------------------------------------------------------------------------------


def test_a_draft_goes_live_after_a_look_at_what_it_changes_and_one_click_takes_it_back(
    alice: Client, tenant: Tenancy
) -> None:
    version = draft_of(tenant, ["Never confirm a refund."], config={"intervention_threshold": 0.9})
    look = page_of(alice, url_of(version, "/publish"))
    assert "Removed" in look
    assert "<del>0.7</del>" in look
    assert "alice's agent" in look
    stale = alice.post(url_of(version, "/publish"), {"etag": '"1.0"'})
    assert stale.status_code == 409
    assert stored(tenant, version).status == "draft"
    etag_sent = {"etag": policy_version_etag(stored(tenant, version))}
    for _ in range(2):
        assert alice.post(url_of(version, "/publish"), etag_sent)["Location"] == url_of(version)
    assert stored(tenant, version).status == "live"
    page = page_of(alice, f"/policies/{version.policy_id}")
    assert "Roll back to version 1" in page
    back = {"etag": policy_etag(stored(tenant, version).policy)}
    for _ in range(2):
        assert alice.post(f"/policies/{version.policy_id}/rollback", back).status_code == 302
    with tenant.context():
        live = PolicyVersion.objects.get(policy_id=version.policy_id, status="live")
        assert live.number == 1
        assert AuditEvent.objects.filter(action="policy.rollback").count() == 1
    # And forward again, by name.
    again = {"etag": policy_etag(stored(tenant, version).policy), "number": version.number}
    alice.post(f"/policies/{version.policy_id}/rollback", again)
    assert stored(tenant, version).status == "live"
    nowhere = {"etag": policy_etag(stored(tenant, version).policy), "number": "99"}
    assert alice.post(f"/policies/{version.policy_id}/rollback", nowhere).status_code == 404


def test_a_draft_runs_in_shadow(alice: Client, tenant: Tenancy) -> None:
    version = draft_of(tenant)
    alice.post(url_of(version, "/shadow"), {"etag": policy_version_etag(stored(tenant, version))})
    assert stored(tenant, version).status == "shadow"
    page = page_of(alice, url_of(version))
    assert "new calls of agents that follow the shadow version" in page
    assert "/save" not in page


def test_two_versions_are_compared_by_the_url(alice: Client, tenant: Tenancy) -> None:
    rules = [{"text": "Never confirm a refund.", "severity": "low", "tools": ["refund"], "enabled": False}, "Be kind."]
    version = draft_of(tenant, rules, config={"streaming_mode": False})
    page = page_of(alice, f"/policies/{version.policy_id}/diff?before=1&after={version.number}")
    for words in (
        "Severity: <del>High</del>",
        "<ins>refund</ins>",
        "<ins>off</ins>",
        "<ins>Be kind.</ins>",
        "<ins>off</ins>",
    ):
        assert words in page
    assert "<del>when the agent streams</del>" in page
    for wrong in ("before=99", "after=x", "before=" + "9" * 30):
        assert alice.get(f"/policies/{version.policy_id}/diff?{wrong}").status_code == 404


# -- agents, names, the end ----------------------------------------------------------------------------------------


def test_agents_are_added_changed_and_removed(alice: Client, tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        other = policy_create(name="Second")
        agent_policy_set(
            agent_id=tenant.agent.id, policy_id=tenant.policy.id, overrides={"intervention_threshold": 0.9}
        )
    foreign = alice.post(f"/policies/{other.id}/agents", {"agent": stranger.agent.id, "track": "live"})
    assert "Choose one of the list." in text_of(foreign)
    assert "charlie" not in text_of(foreign)
    alice.post(f"/policies/{other.id}/agents", {"agent": tenant.agent.id, "track": "shadow"})

    def agent() -> Agent:
        with tenant.context():
            return Agent.objects.get(id=tenant.agent.id)

    assert (agent().policy_id, agent().policy_track) == (other.id, "shadow")
    assert agent().policy_overrides == {"intervention_threshold": 0.9}
    url = f"/policies/{other.id}/agents/{tenant.agent.id}"
    assert 'value="0.9"' in page_of(alice, url)
    wrong = alice.post(url, {"track": "live", "cooldown_s": "-1"})
    assert "Give a number from 0 to 3600 s." in text_of(wrong)
    alice.post(url, {"track": "live", "cooldown_s": "30", "approval_tools": "refund"})
    assert (agent().policy_track, agent().policy_overrides) == (
        "live",
        {"cooldown_s": 30, "approval_tools": ["refund"]},
    )
    alice.post(f"{url}/remove")
    assert agent().policy_id is None
    assert alice.get(url).status_code == 404


def test_a_name_that_somebody_changed_meanwhile_is_asked_about(alice: Client, tenant: Tenancy) -> None:
    url = f"/policies/{tenant.policy.id}/rename"
    old = policy_etag(stored(tenant, tenant.version).policy)
    assert alice.post(url, {"name": "Second", "etag": old}).status_code == 302
    answer = alice.post(url, {"name": "Third", "etag": old})
    assert "is called Second. Save again to call it Third." in text_of(answer)
    new = answer.context["name_form"]["etag"].value()
    assert alice.post(url, {"name": "Third", "etag": new}).status_code == 302
    assert "Third" in page_of(alice, f"/policies/{tenant.policy.id}")


def test_a_policy_that_judges_is_not_taken_out_of_use_and_the_end_asks_who_it_is(
    alice: Client, tenant: Tenancy
) -> None:
    url = f"/policies/{tenant.policy.id}/archive"
    assert "Not yet: it judges" in page_of(alice, url)
    assert "agents use this policy" in text_of(alice.post(url))
    with tenant.context():
        agent_policy_set(agent_id=tenant.agent.id, policy_id=None)
    long_ago = Client()
    client_sign_in(long_ago, tenant.users["alice"], ago=timedelta(hours=1))
    assert long_ago.post(url)["Location"].startswith("/account/confirm")
    assert alice.post(url)["Location"] == "/policies"
    assert alice.get(f"/policies/{tenant.policy.id}").status_code == 404


# -- trying it -----------------------------------------------------------------------------------------------------


def test_a_typed_turn_is_judged_by_what_is_typed_and_counted(
    alice: Client, tenant: Tenancy, stranger: Tenancy, llm: ScriptedLLM
) -> None:
    with tenant.context():
        type(tenant.credential).objects.filter(id=tenant.credential.id).update(prompt_price="2", completion_price="8")
    version = draft_of(tenant)
    form = typed(version, {"text": "Never say Tuesday.", "tools": "calendar", "on": "on"}, "Be kind.")
    turn = {
        "try-do": "typed",
        "try-customer": "When?",
        "try-agent": "On Tuesday.",
        "try-tool": "calendar",
        "try-args": '{"day": "Tuesday"}',
        "try-history": "customer: Hello.\nagent: Hi!",
    }
    answer = alice.post(url_of(version, "/try"), {**form, **turn})
    page = text_of(answer)
    assert answer.status_code == 200, page
    for words in ("Violation", "0.95 reaches threshold 0.70", "Never say Tuesday.", 'It says "refunded".', "tokens in"):
        assert words in page, words
    assert "Never say Tuesday. [calendar]" in page  # in the compiled prompt
    assert stored(tenant, version).rules == version.rules
    with tenant.context():
        assert UsageDay.objects.get(source="api").judged == 1
    asked = next(question for question in llm.asked if "On Tuesday." in str(question))
    assert "Hello." in str(asked)


def test_the_pre_gate_lets_a_turn_pass_unless_the_judge_is_to_be_asked_anyway(
    alice: Client, tenant: Tenancy, llm: ScriptedLLM
) -> None:
    version = draft_of(tenant)
    turn = {**typed(version, "Never confirm a refund."), "try-do": "typed", "try-agent": "Hello, how can I help you?"}
    passed = text_of(alice.post(url_of(version, "/try"), turn))
    assert "The pre-gate let it pass" in passed
    assert llm.asked == []
    assert "Violation" in text_of(alice.post(url_of(version, "/try"), {**turn, "try-anyway": "on"}))
    assert len(llm.asked) == 1


def test_nothing_is_judged_by_a_draft_that_is_wrong_or_has_no_model(
    alice: Client, tenant: Tenancy, llm: ScriptedLLM
) -> None:
    version = draft_of(tenant)
    turn = {"try-do": "typed", "try-agent": "I have refunded it."}
    wrong = alice.post(url_of(version, "/try"), {**typed(version, "Be kind.", cooldown_s="x"), **turn})
    assert "Nothing was judged: something is wrong with the draft." in text_of(wrong)
    nobody = alice.post(url_of(version, "/try"), {**typed(version, "Be kind.", llm=""), **turn})
    assert "no language model that can be used" in text_of(nobody)
    for fields, said in (
        ({"try-agent": ""}, "Write what the agent says"),
        ({"try-tool": "refund", "try-args": "[1]"}, "Write a JSON object"),
        ({"try-history": "somebody: Hello."}, "Line 1: begin it with customer:"),
        ({"try-args": '{"a": 1}'}, "Name the tool that these arguments are for."),
    ):
        assert said in text_of(alice.post(url_of(version, "/try"), {**typed(version, "Be kind."), **turn, **fields}))
    assert llm.asked == []
    llm.turn = LLMTimeout("slow")
    failed = text_of(alice.post(url_of(version, "/try"), {**typed(version, "Be kind."), **turn}))
    assert "Timed out" in failed or "Judging failed" in failed


def test_a_turn_of_a_past_call_is_judged_with_what_came_before_it(
    alice: Client, tenant: Tenancy, stranger: Tenancy, llm: ScriptedLLM
) -> None:
    call = call_create(tenant)
    with tenant.context():
        first = Turn.objects.get(call=call)
        second = Turn.objects.create(
            call=call, ref="t2", index=1, customer_text="Thanks.", text="Goodbye, you are refunded.", at_ms=9_000
        )
        Verdict.objects.create(call=call, turn=second, state="judged", score=0.1, threshold=0.7, at_ms=9_200)
    version = draft_of(tenant)
    page = page_of(alice, f"{url_of(version)}?turn={second.id}")
    assert "Goodbye, you are refunded." in page
    form = typed(version, "Never confirm a refund.")
    found = alice.post(url_of(version, "/try"), {**form, "try-do": "find", "try-q": ""})
    assert f'value="call.{call.id}"' in text_of(found)
    opened = alice.post(url_of(version, "/try"), {**form, "try-do": f"call.{call.id}"})
    assert f'value="turn.{first.id}"' in text_of(opened)
    judged = alice.post(
        url_of(version, "/try"), {**form, "try-do": f"turn.{second.id}"}, headers={"X-Mirror-Part": "row"}
    )
    row = text_of(judged)
    assert row.startswith("<li")
    for words in ("Clean", "0.10", "Violation", "0.95", "Flips"):
        assert words in row
    (asked,) = llm.asked
    history = [(entry["role"], entry["text"]) for entry in asked.user["history"]]
    assert ("customer", "Can I have my money back?") in history
    assert ("mirror", "I cannot confirm that. May I connect you to a colleague?") in history
    assert not any("Goodbye" in text for _, text in history)
    # Somebody else's turn and call are none.
    with stranger.context():
        theirs = Turn.objects.get()
    for do in (f"turn.{theirs.id}", f"call.{theirs.call_id}", "turn.x", "call.x"):
        assert alice.post(url_of(version, "/try"), {**form, "try-do": do}).status_code == 404
    foreign = page_of(alice, f"{url_of(version)}?turn={theirs.id}&call={theirs.call_id}")
    assert "charlie" not in foreign
    assert len(llm.asked) == 1


def test_a_version_that_is_live_is_tried_as_it_stands(alice: Client, tenant: Tenancy, llm: ScriptedLLM) -> None:
    url = url_of(tenant.version)
    turn = {"try-do": "typed", "try-agent": "I have refunded it.", "rule.k0.text": "Never say Tuesday."}
    part = alice.post(f"{url}/try", turn, headers={"X-Mirror-Part": "panel"})
    assert text_of(part).startswith("<section")
    assert "Never confirm a refund." in text_of(part)
    assert "Never say Tuesday." not in text_of(part)
    assert alice.get(f"{url}/try")["Location"] == url


def test_too_many_questions_are_refused_in_words(
    alice: Client, tenant: Tenancy, llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RateLimited(Rate(allowed=False, limit=1, remaining=0, reset_s=7), "Too many; the next one in 7 s.")

    monkeypatch.setattr(policy_try, "request_count", refuse)
    answer = alice.post(url_of(tenant.version, "/try"), {"try-do": "typed", "try-agent": "I have refunded it."})
    assert answer.status_code == 429
    assert "the next one in 7 s" in text_of(answer)
    assert llm.asked == []


def test_no_transaction_waits_for_the_model_and_the_same_text_has_one_engine(
    alice: Client, tenant: Tenancy, llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, judges = [], []

    def review(judge: Any, payload: Any) -> Any:
        contexts.append(tenant_context_current())
        judges.append(judge.binding.policy_version_id)
        return judging.turn_review(judge, payload)

    monkeypatch.setattr(policy_try, "turn_review", review)
    version = draft_of(tenant)
    for rule in ("Be kind.", "Be kind.", "Be kinder."):
        form = {**typed(version, rule), "try-do": "typed", "try-agent": "I have refunded it."}
        assert "Violation" in text_of(alice.post(url_of(version, "/try"), form))
    assert contexts == [None, None, None]
    first, again, other = judges
    assert first == again != other
    assert [question.system.count("Be kinder.") for question in llm.asked] == [0, 0, 1]


def test_a_viewer_reads_and_tries_nothing(tenant: Tenancy, llm: ScriptedLLM) -> None:
    viewer = member(tenant, Role.VIEWER)
    version = draft_of(tenant)
    page = page_of(viewer, url_of(version))
    for words in ("/save", "/try", "/publish", "/shadow", "Judge this turn"):
        assert words not in page
    assert "What the judge is told" in page
    for end in ("/save", "/try", "/publish", "/shadow"):
        assert viewer.post(url_of(version, end), {}).status_code == 403


# -- deriving ------------------------------------------------------------------------------------------------------

PROMPT = "You answer the phone for a pizzeria. Never promise a delivery time. Our oven is from Naples."


def test_a_draft_is_derived_and_shows_where_its_rules_come_from(
    alice: Client, tenant: Tenancy, stranger: Tenancy, reader: Reader
) -> None:
    once = re.search(r'name="once" value="([^"]+)"', page_of(alice, "/policies/derive"))
    assert once is not None
    form = {"prompt": PROMPT, "policy": "", "name": "Pizzeria", "llm": tenant.credential.id, "once": once[1]}
    made = alice.post("/policies/derive", form)
    assert made.status_code == 302, text_of(made)
    page = page_of(alice, made["Location"])
    assert "Where these rules come from" in page
    assert "<blockquote>Never promise a delivery time.</blockquote>" in page
    assert "Never mention olives." in page  # proposed, and not taken
    assert "Where these rules come from" in page_of(alice, made["Location"])
    assert PROMPT not in page
    with tenant.context():
        version = PolicyVersion.objects.get(policy__name="Pizzeria")
        assert [rule["text"] for rule in version.rules] == ["Never promise a delivery time."]
    # Into a policy that there is, and the same form once more.
    into = {**form, "policy": tenant.policy.id, "name": ""}
    assert alice.post("/policies/derive", into)["Location"] == alice.post("/policies/derive", into)["Location"]
    with tenant.context():
        assert PolicyVersion.objects.filter(policy=tenant.policy, status="draft").count() == 1


def test_what_cannot_be_derived_is_said_and_the_prompt_is_kept(
    alice: Client, tenant: Tenancy, stranger: Tenancy, reader: Reader
) -> None:
    form = {"prompt": PROMPT, "policy": "", "name": "Pizzeria", "llm": tenant.credential.id}
    for fields, said in (
        ({"name": ""}, "Give the new policy a name."),
        ({"name": "alice's policy"}, "already; choose another name"),
        ({"prompt": ""}, "Paste the prompt"),
        ({"llm": ""}, "the tenant has no default"),
        ({"policy": stranger.policy.id}, "Choose one of the list."),
    ):
        answer = alice.post("/policies/derive", {**form, **fields})
        assert (answer.status_code, said in text_of(answer)) == (200, True), said
        assert "Our oven is from Naples." in text_of(answer) or "prompt" in fields
    assert reader.read == 0
    reader.rules = []
    assert "demands nothing of the agent" in text_of(alice.post("/policies/derive", form))
    reader.rules = None
    broken = alice.post("/policies/derive", form)
    assert broken.status_code == 502
    assert "Nothing was made; what you typed is kept." in text_of(broken)
    assert "Our oven is from Naples." in text_of(broken)
    with tenant.context():
        assert not Policy.objects.filter(name="Pizzeria").exists()
