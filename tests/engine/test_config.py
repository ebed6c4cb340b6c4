"""A wrong configuration is refused when it is made, with the name of the field (J13)."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from supervision.engine import ConfigError, MirrorConfig, PolicyConfig, Rule
from supervision.engine.llm.openai import OpenAIClient
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
    assert made.tiered_scoring_enabled is True
    assert made.streaming_mode is False
    assert made.buffer_text == "Sorry, let me make sure I got that right..."
    assert made.judging_prompt is None
    assert made.secrets is None
    assert made.delivery == "stream_first"
    assert made.hold_budget_ms == 800
    assert made.scoring == "json"
    assert made.pregate_always == ()
    assert {"place_order", "charge_card", "transfer_funds"} <= set(made.irreversible_tools)


def test_rules_are_strings_or_have_a_severity() -> None:
    assert config().policies == (
        Rule(text="Never confirm a refund.", severity="medium"),
        Rule(text="Read the order back.", severity="high"),
    )


def test_a_rule_that_is_off_is_kept_and_not_judged_by() -> None:
    made = config(policies=["Be kind.", Rule(text="Never lie.", enabled=False, tools=[" charge_card ", "charge_card"])])
    assert [rule.text for rule in made.rules] == ["Be kind."]
    assert [rule.text for rule in made.policies] == ["Be kind.", "Never lie."]
    assert made.policies[1].tools == ("charge_card",)
    with pytest.raises(ValidationError, match="every rule is switched off"):
        config(policies=[Rule(text="Be kind.", enabled=False)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policies", [{"text": "x", "tools": "charge_card"}]),
        ("policies", [{"text": "x", "tools": [" "]}]),
        ("policies", [{"text": "x", "tools": ["a\nb"]}]),
        ("policies", [{"text": "x", "tools": ["x" * 201]}]),
        ("policies", [{"text": "x", "tools": ["x"] * 51}]),
        ("policies", [{"text": "x", "enabled": "no"}]),
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
        ("delivery", "hold"),
        ("delivery", None),
        ("hold_budget_ms", 0),
        ("hold_budget_ms", 800.0),
        ("hold_budget_ms", "800"),
        ("streaming_mode", "false"),
        ("streaming_mode", 1),
        ("scoring", "vibes"),
        ("tiered_scoring_enabled", "no"),
        ("pregate_always", "amount"),
        ("pregate_always", ["amounts"]),
        ("secrets", "vault://"),
        ("tenant_id", " "),
        ("tenant_id", "x" * 201),
        ("tenant_id", 7),
        ("max_interventions_per_call", True),
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


# From the environment


def from_env(**variables: str) -> MirrorConfig:
    return MirrorConfig.from_env({"MIRROR_POLICIES": "Never confirm a refund.", **variables}, llm=ScriptedLLM())


def test_every_field_can_be_set_by_a_variable() -> None:
    variables = {
        "INTERVENTION_THRESHOLD": ("0.8", 0.8),
        "COOLDOWN_S": ("5", 5.0),
        "SEMANTIC_REVIEW_TIMEOUT_S": ("2.5", 2.5),
        "TOOL_GATE_ENABLED": ("No", False),
        "IRREVERSIBLE_TOOLS": ("wire_money, place_order", ("wire_money", "place_order")),
        "TOOL_GATE_ON_FAILURE": ("allow", "allow"),
        "TOOL_GATE_TIMEOUT_MS": ("1500", 1500),
        "APPROVAL_TOOLS": ("wire_money", ("wire_money",)),
        "APPROVAL_TIMEOUT_MS": ("90000", 90_000),
        "APPROVAL_ON_SILENCE": ("allow", "allow"),
        "APPROVAL_HOLD_TEXT": ("One moment.", "One moment."),
        "MODE": ("shadow", "shadow"),
        "MAX_INTERVENTIONS_PER_CALL": ("0", 0),
        "ESCALATION": ("transfer", "transfer"),
        "ESCALATION_URL": ("https://example.com/people.xml", "https://example.com/people.xml"),
        "ESCALATION_TEXT": ("One moment, please.", "One moment, please."),
        "DELIVERY": ("hold_risky", "hold_risky"),
        "HOLD_BUDGET_MS": ("600", 600),
        "STREAMING_MODE": ("1", True),
        "SCORING": ("json", "json"),
        "BUFFER_TEXT": ("One moment.", "One moment."),
        "TIERED_SCORING_ENABLED": ("off", False),
        "PREGATE_ALWAYS": ('["amount", "refusal"]', ("amount", "refusal")),
        "JUDGE_MAX_TOKENS": ("200", 200),
        "TENANT_ID": ("t-1", "t-1"),
    }
    made = from_env(**{f"MIRROR_{name}": text for name, (text, _) in variables.items()})
    assert {name: getattr(made, name.lower()) for name in variables} == {
        n: value for n, (_, value) in variables.items()
    }
    # Nothing was forgotten.
    assert {name.lower() for name in variables} == set(MirrorConfig.model_fields) - {
        "llm",
        "secrets",
        "policies",
        "judging_prompt",
    }


def test_rules_are_lines_or_json_or_a_file(tmp_path: Path) -> None:
    assert [rule.text for rule in from_env(MIRROR_POLICIES="# ours\nA.\n\n  B.\n").rules] == ["A.", "B."]
    rules = from_env(MIRROR_POLICIES=json.dumps(["A.", {"text": "B.", "severity": "high"}])).rules
    assert [(rule.text, rule.severity) for rule in rules] == [("A.", "medium"), ("B.", "high")]
    file = tmp_path / "policies.txt"
    file.write_text("\ufeffA.\nB. ü\n", encoding="utf-8")
    made = from_env(MIRROR_POLICIES="", MIRROR_POLICIES_FILE=str(file))
    assert [rule.text for rule in made.rules] == ["A.", "B. ü"]
    file.write_text("Judge {primary_response}.", encoding="utf-8")
    prompted = from_env(MIRROR_POLICIES=" ", MIRROR_JUDGING_PROMPT_FILE=str(file))
    assert (prompted.rules, prompted.judging_prompt) == ((), "Judge {primary_response}.")
    assert MirrorConfig.from_env({"APP_POLICIES": "A."}, llm=ScriptedLLM(), prefix="APP_").rules[0].text == "A."


@pytest.mark.parametrize(
    ("variable", "text", "names"),
    [
        ("MIRROR_INTERVENTION_THRESHOLD", "abc", "(intervention_threshold) has to be a number"),
        ("MIRROR_INTERVENTION_THRESHOLD", "7", "(intervention_threshold)"),
        ("MIRROR_INTERVENTION_THRESHOLD", "nan", "(intervention_threshold)"),
        ("MIRROR_HOLD_BUDGET_MS", "2.5", "(hold_budget_ms) has to be a whole number"),
        ("MIRROR_STREAMING_MODE", "maybe", "(streaming_mode) has to be true or false"),
        ("MIRROR_DELIVERY", "later", "(delivery)"),
        ("MIRROR_POLICIES", "[oops", "(policies) begins like a JSON list"),
        ("MIRROR_POLICIES", "[7]", "(policies)"),
        ("MIRROR_POLICIES", "  ", "policies is empty"),
        ("MIRROR_JUDGING_PROMPT", "Judge.", "policies and judging_prompt exclude"),
        ("MIRROR_IRREVERSIBLE_TOOLS", "[oops", "(irreversible_tools) begins like a JSON list"),
        ("MIRROR_POLICIES_FILE", "/nowhere/at/all", "exclude each other"),
        ("MIRROR_JUDGING_PROMPT_FILE", "/nowhere/at/all", "(judging_prompt) names a file that cannot be read"),
        ("MIRROR_LLM", "gpt-4o-mini", "(llm)"),
        ("MIRROR_SECRETS", "vault", "(secrets)"),
        ("MIRROR_THRESHOLD", "abc", "MIRROR_INTERVENTION_THRESHOLD"),
        ("MIRROR_COOLDWN_S", "3", "MIRROR_COOLDOWN_S"),
    ],
)
def test_j13_a_variable_that_cannot_be_is_refused_with_its_and_the_fields_name(
    variable: str, text: str, names: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        from_env(**{variable: text})
    assert variable in str(refused.value)
    assert names in str(refused.value)


def test_variables_of_others_are_left_alone() -> None:
    made = from_env(MIRROR_HOME="/srv", MIRROR_TTS="off", MIRROR_ENV="dev", COOLDWN_S="1", MIRROR_MODEL="x")
    assert made.cooldown_s == 10


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    for content, says in ((b"\xff\xfe\x00", "not UTF-8"), (b"  \n", "nothing in it"), (b"x" * 4_194_305, "4 MiB")):
        file = tmp_path / "rules"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=says):
            from_env(MIRROR_POLICIES="", MIRROR_POLICIES_FILE=str(file))


def test_refusals_from_the_environment_do_not_repeat_the_value() -> None:
    with pytest.raises(ConfigError) as refused:
        from_env(MIRROR_INTERVENTION_THRESHOLD="sk-secret")
    assert "sk-secret" not in str(refused.value)


async def test_the_model_comes_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.example/v1")
    rules = {"MIRROR_POLICIES": "A."}
    plain = MirrorConfig.from_env({**rules, "OPENAI_API_KEY": "k"}).llm
    assert isinstance(plain, OpenAIClient)
    assert "api.openai.com" in repr(plain)
    assert plain.model == "gpt-4o-mini"
    own = MirrorConfig.from_env(
        {**rules, "OPENAI_API_KEY": "k", "OPENAI_MODEL": "qwen", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    ).llm
    assert "127.0.0.1:9" in repr(own)
    assert getattr(own, "model", None) == "qwen"
    azure_variables = {
        "AZURE_OPENAI_ENDPOINT": "https://name.openai.azure.com",
        "AZURE_OPENAI_API_KEY": "k",
        "AZURE_OPENAI_DEPLOYMENT": "judge",
        "OPENAI_API_VERSION": "2024-10-21",
    }
    azure = MirrorConfig.from_env({**rules, **azure_variables}).llm
    assert "deployments/judge" in repr(azure)
    for client in (plain, own, azure):
        await client.aclose()  # type: ignore[attr-defined]
    for missing, named in (
        ({}, "OPENAI_API_KEY"),
        ({"AZURE_OPENAI_ENDPOINT": "https://name.openai.azure.com"}, "AZURE_OPENAI_API_KEY"),
        ({**azure_variables, "AZURE_OPENAI_DEPLOYMENT": ""}, "AZURE_OPENAI_DEPLOYMENT"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "not a url"}, "OPENAI_BASE_URL"),
    ):
        with pytest.raises(ConfigError, match=named):
            MirrorConfig.from_env({**rules, **missing})


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_POLICIES", "Be kind.")
    assert MirrorConfig.from_env(llm=ScriptedLLM()).rules[0].text == "Be kind."
