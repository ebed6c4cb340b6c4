"""A wrong configuration is refused when it is made, with the name of the field (J13)."""

from typing import Any

import pytest
from pydantic import ValidationError

from supervision.engine import MirrorConfig, PolicyConfig, Rule
from tests.engine.llms import ScriptedLLM

RULES = ["Never confirm a refund.", {"text": "Read the order back.", "severity": "high"}]


def config(**fields: Any) -> MirrorConfig:
    return MirrorConfig(**{"llm": ScriptedLLM(), "policies": RULES, **fields})


def test_the_defaults_are_those_of_the_reference() -> None:
    made = config()
    assert made.intervention_threshold == 0.7
    assert made.cooldown_s == 10.0
    assert made.semantic_review_timeout_s == 4.0
    assert made.tool_gate_enabled is True
    assert made.tool_gate_on_failure == "block"
    assert made.tool_gate_timeout_ms == 3000
    assert made.mode == "live"
    assert made.max_interventions_per_call == 3
    assert made.tenant_id is None
    assert {"place_order", "charge_card", "transfer_funds"} <= set(made.irreversible_tools)


def test_rules_are_strings_or_have_a_severity() -> None:
    assert config().policies == (
        Rule(text="Never confirm a refund.", severity="medium"),
        Rule(text="Read the order back.", severity="high"),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llm", "gpt-4o-mini"),
        ("llm", None),
        ("llm", ScriptedLLM),
        ("policies", "Never confirm a refund."),
        ("policies", ["Never confirm a refund.", "   "]),
        ("policies", [{"text": "x", "severity": "catastrophic"}]),
        ("policies", [{"text": "x", "weight": 3}]),
        ("policies", [7]),
        ("policies", 7),
        ("policies", ["x" * 5_000]),
        ("policies", ["x"] * 501),
        ("intervention_threshold", "abc"),
        ("intervention_threshold", "0.7"),
        ("intervention_threshold", True),
        ("intervention_threshold", 0),
        ("intervention_threshold", 1.01),
        ("intervention_threshold", float("nan")),
        ("cooldown_s", -1),
        ("cooldown_s", float("inf")),
        ("semantic_review_timeout_s", 0),
        ("tool_gate_enabled", "yes"),
        ("tool_gate_timeout_ms", 2.5),
        ("tool_gate_timeout_ms", 1),
        ("tool_gate_on_failure", "maybe"),
        ("irreversible_tools", "place_order"),
        ("irreversible_tools", ["place_order", " "]),
        ("mode", "off"),
        ("max_interventions_per_call", -1),
        ("buffer_text", "  "),
        ("buffer_text", "x" * 81),
        ("judge_max_tokens", 0),
        ("treshold", 0.7),
    ],
)
def test_j13_a_wrong_value_is_refused_with_the_fields_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        config(**{field: value})
    assert all(error["loc"][0] == field for error in refused.value.errors())


def test_j13_the_refusal_of_a_model_name_says_what_to_give_instead() -> None:
    with pytest.raises(ValidationError, match=r"OpenAIClient\(api_key=.*got str"):
        config(llm="gpt-4o-mini")


def test_j13_without_any_rule_nothing_would_be_judged_so_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="policies is empty"):
        config(policies=[])
    with pytest.raises(ValidationError, match="judging_prompt"):
        config(policies=[], judging_prompt="  ")


def test_rules_and_a_prompt_of_ones_own_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        config(judging_prompt="Judge {primary_response}.")
    assert config(policies=[], judging_prompt="Judge {primary_response}.").policies == ()


def test_refusals_do_not_repeat_the_value() -> None:
    with pytest.raises(ValidationError) as refused:
        config(intervention_threshold="sk-secret")
    assert "sk-secret" not in str(refused.value)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        config().intervention_threshold = 0.1


def test_a_stored_version_becomes_a_configuration() -> None:
    llm = ScriptedLLM()
    made = MirrorConfig.from_stored(
        [{"text": "Never confirm a refund.", "severity": "high"}],
        {"intervention_threshold": 1, "mode": "shadow", "irreversible_tools": ["Wire_Money"]},
        llm,
        tenant_id="t-1",
    )
    assert made.llm is llm
    assert (made.tenant_id, made.mode, made.intervention_threshold) == ("t-1", "shadow", 1.0)
    assert made.rules[0].severity == "high"


@pytest.mark.parametrize("name", ["llm", "tenant_id", "policies"])
def test_a_stored_version_cannot_bring_its_own_model_tenant_or_rules(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MirrorConfig.from_stored(["x"], {name: "y"}, ScriptedLLM())


def test_a_stored_version_with_a_wrong_value_is_refused_like_any_other() -> None:
    with pytest.raises(ValidationError, match="cooldown_s"):
        MirrorConfig.from_stored(["x"], {"cooldown_s": "ten"}, ScriptedLLM())


def test_a_policy_can_be_checked_without_a_model() -> None:
    assert PolicyConfig.model_validate({"policies": RULES, "cooldown_s": 0}).cooldown_s == 0
    with pytest.raises(ValidationError, match="mode"):
        PolicyConfig.model_validate({"policies": RULES, "mode": "loud"})
