"""The rules of a policy as rows of a form.

A row's fields are `rule.<key>.text`, `.severity`, `.tools`, `.statement` and `.on`. The order of the rows is that in
which the browser sends them, as they stand on the page: moving a row moves its element, and nothing else. Without
JavaScript the same buttons are sent as `do=up.<key>`, `do=down.<key>`, `do=remove.<key>` and `do=add`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from django.http import QueryDict

from supervision.engine.config import MAX_RULES
from webui.plain import plain

SEVERITIES: Final = (("low", "Low"), ("medium", "Medium"), ("high", "High"))
_TEXT = re.compile(r"rule\.(\w{1,20})\.text")
# As the service says which rule is meant.
_PLACE = re.compile(r"rule (\d+): (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule as it was typed; `tools` are separated by commas."""

    key: str
    text: str = ""
    severity: str = "medium"
    tools: str = ""
    statement: str = ""
    on: bool = True
    errors: tuple[str, ...] = field(default=())

    @property
    def blank(self) -> bool:
        return not (self.text.strip() or self.tools.strip() or self.statement.strip())

    @property
    def severities(self) -> tuple[tuple[str, str, bool], ...]:
        return tuple((value, word, value == self.severity) for value, word in SEVERITIES)

    def rule(self) -> dict[str, Any]:
        """As services take it."""
        return {
            "text": self.text,
            "severity": self.severity if self.severity in dict(SEVERITIES) else "medium",
            "statement": self.statement.strip() or None,
            "tools": names_of(self.tools),
            "enabled": self.on,
        }


def names_of(text: str) -> list[str]:
    """Names that were typed one a line or with commas between them."""
    return [name for name in (part.strip() for part in re.split(r"[,\n]", text)) if name]


def rows_of_rules(rules: Sequence[Mapping[str, Any]]) -> list[RuleRow]:
    """Stored rules as rows."""
    return [
        RuleRow(
            key=f"r{number}",
            text=rule["text"],
            severity=rule.get("severity", "medium"),
            tools=", ".join(rule.get("tools", ())),
            statement=rule.get("statement") or "",
            on=rule.get("enabled", True),
        )
        for number, rule in enumerate(rules)
    ]


def rows_of_form(data: QueryDict) -> list[RuleRow]:
    """The rows that were sent, in their order, as many as a policy can have and one more, so that it is noticed."""
    keys = [match[1] for name in data if (match := _TEXT.fullmatch(name))]
    return [
        RuleRow(
            key=key,
            # A form sends line ends as CR LF.
            text=str(data[f"rule.{key}.text"]).replace("\r\n", "\n"),
            severity=data.get(f"rule.{key}.severity", "medium"),
            tools=data.get(f"rule.{key}.tools", ""),
            statement=data.get(f"rule.{key}.statement", ""),
            on=f"rule.{key}.on" in data,
        )
        for key in keys[: MAX_RULES + 1]
    ]


def rows_done(rows: Sequence[RuleRow], do: str) -> list[RuleRow]:
    """The rows after what a button asked for; what makes no sense changes nothing."""
    found = list(rows)
    verb, _, key = do.partition(".")
    at = next((index for index, row in enumerate(found) if row.key == key), None)
    if verb == "add":
        taken = {row.key for row in found}
        found.append(RuleRow(key=next(name for number in range(len(found) + 1) if (name := f"a{number}") not in taken)))
    elif at is not None and verb == "remove":
        del found[at]
    elif at is not None and verb in ("up", "down"):
        to = max(0, min(len(found) - 1, at + (1 if verb == "down" else -1)))
        found.insert(to, found.pop(at))
    return found


def rows_refused(rows: Sequence[RuleRow], messages: Sequence[str]) -> tuple[list[RuleRow], list[str]]:
    """What the service says of rules, at the rows that it is about; second, what is about no row."""
    found, others = list(rows), []
    for message in messages:
        match = _PLACE.fullmatch(message)
        if match and 0 < int(match[1]) <= len(found):
            row = found[int(match[1]) - 1]
            found[int(match[1]) - 1] = replace(row, errors=(*row.errors, plain(match[2])))
        else:
            others.append(message)
    return found, others
