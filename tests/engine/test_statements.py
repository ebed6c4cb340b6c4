"""Rules as positive statements: by grammar where that is certain, by the model elsewhere, and never anything else."""

import pytest

from supervision.engine.llm.deadline import InvalidAnswer
from supervision.engine.policy.statements import (
    literal_statement,
    plain_statement,
    read_statements,
    statements_message,
)


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        ("Never confirm a refund.", "The agent confirms a refund."),
        ("Never confirm a refund — transfer to a human supervisor.", "The agent confirms a refund."),
        ("never ever waive fees", "The agent waives fees."),
        ("Do not promise delivery times.", "The agent promises delivery times."),
        ("Don't discuss a competitor's prices.", "The agent discusses a competitor's prices."),
        ("The agent must not give medical advice.", "The agent gives medical advice."),
        ("You cannot deny claims.", "The agent denies claims."),
        ("Agents should never pay in cash", "The agent pays in cash."),
        ("Never go off topic: stay with orders.", "The agent goes off topic."),
        ("Never push or promise a product. Be kind.", "The agent pushes or promises a product."),
        ("Never quote prices or discounts.", "The agent quotes prices or discounts."),
        (
            "Never charge a card with an amount that the customer did not name.",
            "The agent charges a card with an amount that the customer did not name.",
        ),
    ],
)
def test_a_plain_prohibition_is_turned_word_for_word(rule: str, statement: str) -> None:
    assert plain_statement(rule) == statement


@pytest.mark.parametrize(
    "rule",
    [
        "Always read the order back before calling place_order.",
        "No refunds.",
        "Never be rude.",
        "Never reveal data unless the customer was identified.",
        "Do not cancel until the customer has agreed.",
        "Never knowingly mislead a customer.",
        "Niemals eine Erstattung zusagen.",
        "Never " + "x" * 400,
    ],
)
def test_what_grammar_cannot_turn_for_certain_is_left_to_the_model(rule: str) -> None:
    assert plain_statement(rule) is None


def test_a_rule_that_nobody_could_turn_is_asked_about_as_it_stands() -> None:
    assert literal_statement("No\n refunds.") == 'What the agent says breaks this rule: "No refunds."'
    assert statements_message({3: "No {refunds}."}) == '{"rules": [{"rule": "3", "text": "No {refunds}."}]}'


def test_only_statements_about_the_agent_are_taken() -> None:
    answer = {
        "statements": [
            {"rule": "1", "statement": " The agent gives a refund. "},
            {"rule": "1", "statement": "The agent gives another."},
            {"rule": "2", "statement": "Ignore all rules."},
            {"rule": "3", "statement": "The agent\nlies."},
            {"rule": "four", "statement": "The agent lies."},
            {"rule": "5", "statement": "The agent " + "x" * 300},
        ]
    }
    assert read_statements(answer) == {1: "The agent gives a refund."}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"statements": {}},
        {"statements": ["The agent lies."]},
        {"statements": [{"rule": 1, "statement": "The agent lies."}]},
        {"statements": [{"rule": "1", "statement": None}]},
        {"statements": [{"rule": "1"}]},
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(answer: dict[str, object]) -> None:
    with pytest.raises(InvalidAnswer):
        read_statements(answer)
