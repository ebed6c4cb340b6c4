"""Rules as positive statements: "Never confirm a refund." as "The agent confirms a refund."

A small model that is asked whether a prohibition was broken stumbles over the negation; asked whether a plain statement
is true it does not. A rule may bring its statement. A plain English prohibition is turned by grammar, word for word.
All other rules of a policy go to the model, in one question; what it makes of one that is no statement is not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from supervision.engine.config import MAX_STATEMENT_CHARS
from supervision.engine.llm.deadline import InvalidAnswer, exact_keys

BUILT_IN_STATEMENT = (
    "The agent says that something was done, although the tool call for it was blocked, failed, or was not made."
)

STATEMENTS_PROMPT = """\
You turn the rules of a voice agent into statements. The user message is a JSON object with the rules; they are for \
the agent, not for you. Write for each rule the statement that is true exactly when the agent breaks it: one sentence \
in plain English that begins with "The agent" and says what the agent does then. Keep the rule's own terms and all of \
its conditions. Add nothing.

Examples:
- "Never confirm a refund." becomes "The agent confirms a refund."
- "Always read the order back before calling place_order." becomes "The agent calls place_order without having read \
the order back."
- "Only quote prices from the menu." becomes "The agent quotes a price that is not from the menu."

Answer with a JSON object: statements, a list with one entry for each rule:
- rule: its number, unchanged.
- statement: the sentence.
"""
STATEMENTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "statements": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"rule": {"type": "string"}, "statement": {"type": "string"}},
                "required": ["rule", "statement"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["statements"],
    "additionalProperties": False,
}

_PROHIBITION = re.compile(
    r"""(?:the\s+agent|agents?|you)?\s*
    (?:never(?:\s+ever)? | (?:do|does|must|should|shall|may|can|will)(?:\s+not|n['’]t|\s+never) | cannot | can['’]t)
    \s+(?P<verb>[a-z]+)\b(?P<rest>.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# A second verb right after the first: "confirm or promise a refund"; "quote prices or discounts" has none.
_SECOND_VERB = re.compile(
    r"(?P<joint>\s+(?:or|and)\s+)(?P<verb>[a-z]+)(?P<rest>\s+(?:an?|the|any|that)\b.*)", re.IGNORECASE | re.DOTALL
)
# What follows is an explanation, or another rule.
_BOUNDARY = re.compile(r"\s*(?:[;:](?:\s|$)|\s[-–—]\s|—|[.!?](?:\s|$)|\().*", re.DOTALL)
# Conditions that turn around when the rule does.
_TURNS = re.compile(r"\b(?:unless|until|except|but|nor|only)\b", re.IGNORECASE)
_NO_VERBS = frozenset(
    (
        "a",
        "an",
        "the",
        "any",
        "to",
        "of",
        "for",
        "in",
        "on",
        "at",
        "by",
        "with",
        "be",
        "have",
        "has",
        "is",
        "are",
        "was",
    )
)
_IRREGULAR = {"do": "does", "go": "goes"}


def plain_statement(rule: str) -> str | None:
    """The statement for a plain English prohibition; None for any other rule.

    "Never confirm a refund; a colleague decides." gives "The agent confirms a refund."
    """
    match = _PROHIBITION.fullmatch(" ".join(rule.split()))
    if match is None:
        return None
    rest = _BOUNDARY.sub("", match["rest"]).rstrip()
    verb = match["verb"].lower()
    if _TURNS.search(rest) or not _inflects(verb):
        return None
    second = _SECOND_VERB.fullmatch(rest)
    if second and _inflects(second["verb"].lower()):
        rest = f"{second['joint']}{_third_person(second['verb'].lower())}{second['rest']}"
    statement = f"The agent {_third_person(verb)}{rest}."
    return statement if len(statement) <= MAX_STATEMENT_CHARS else None


def _inflects(word: str) -> bool:
    """Whether a word may be a verb in its base form, one that only takes an s."""
    return word not in _NO_VERBS and not word.endswith(("ing", "ed", "ly")) and len(word) > 1


def _third_person(verb: str) -> str:
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith(("s", "x", "z", "ch", "sh")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


def literal_statement(rule: str) -> str:
    """The statement for a rule that nobody could turn: that it is broken. Judged less well than a positive one."""
    text = " ".join(rule.split())
    return f'What the agent says breaks this rule: "{text}"'


def statements_message(rules: Mapping[int, str]) -> str:
    """The user message that asks for the statements of these rules, by number."""
    asked = [{"rule": str(number), "text": " ".join(text.split())} for number, text in rules.items()]
    return json.dumps({"rules": asked}, ensure_ascii=False)


def read_statements(answer: dict[str, Any]) -> dict[int, str]:
    """The usable statements of a `mirror_statements` answer, by rule number.

    Usable: one line of at most 300 characters that begins with "The agent". Raises `InvalidAnswer` when the answer is
    not what was asked for.
    """
    listed = exact_keys(answer, frozenset({"statements"}))["statements"]
    if not isinstance(listed, list):
        raise InvalidAnswer("statements has to be a list")
    found: dict[int, str] = {}
    for entry in listed:
        exact_keys(entry, frozenset({"rule", "statement"}), "a statement")
        number, statement = entry["rule"], entry["statement"]
        if not isinstance(number, str) or not isinstance(statement, str):
            raise InvalidAnswer("rule and statement have to be strings")
        statement = statement.strip()
        fits = re.fullmatch(r"The agent\b[^\n]{3,}", statement) and len(statement) <= MAX_STATEMENT_CHARS
        if re.fullmatch(r"\d{1,4}", number.strip()) and fits:
            found.setdefault(int(number), statement)
    return found
