"""Where in a turn a violation begins."""

from __future__ import annotations

import pytest

from supervision.engine.intervention.clauses import quotes, violation_starts

TEXT = "Let me look. I have refunded it to your card. Anything else?"


@pytest.mark.parametrize(
    ("reason", "clean_chars", "begins"),
    [
        ('It says "refunded it".', 0, 12),
        ("It says “I have refunded it”.", 0, 12),
        ('It says "refunded it".', 12, 12),
        ('The caller said "my card"; it says "refunded" and "anything else".', 0, 12),
        ("It confirms a refund.", 0, 0),
        ("It confirms a refund.", 12, 12),
        ('It says "let me look".', 12, 12),
        ('It says "anything else".', 12, 45),
        ('It says "something that is not there".', 0, 0),
    ],
)
def test_a_violation_begins_with_the_clause_that_is_quoted(reason: str, clean_chars: int, begins: int) -> None:
    assert violation_starts(TEXT, reason, clean_chars) == begins


def test_what_is_behind_the_last_stop_is_a_clause_too() -> None:
    assert violation_starts("It is on its way. You will have a refund", 'It says "will have a refund".') == 17


def test_quotes_are_those_of_the_reason() -> None:
    assert list(quotes('It says "a b" and “c d”, not "x".')) == ["a b", "c d"]
    assert list(quotes("")) == []
