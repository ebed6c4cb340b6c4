"""What one call remembers, as it goes from one process to another: for a call that moves while it runs.

    carried = CarriedMemory.from_json(call.carried().as_json())
    other_call.carry_on(carried)

A `StateStore` keeps a call's memory where both processes reach it; this hands it over, and leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from supervision.engine.context import HistoryEntry, Role
from supervision.engine.policy.compiler import MAX_HISTORY_CHARS, MAX_HISTORY_ENTRIES
from supervision.engine.scorer.tool_gate import MAX_LEDGER_ENTRIES
from supervision.engine.state.call import MAX_RULES_REMEMBERED, KeptTool

_ROLES = frozenset(get_args(Role))


@dataclass(frozen=True, slots=True)
class CarriedMemory:
    """`notes`: the history, oldest first, each entry with the key that it was noted under ("" for none). `tools`: the
    irreversible tool calls that ran or may run. `acted`: how many seconds ago each rule last led to an intervention."""

    notes: tuple[tuple[str, HistoryEntry], ...] = ()
    tools: tuple[KeptTool, ...] = ()
    acted: tuple[tuple[str | None, float], ...] = ()
    interventions: int = 0

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "notes": [[key, entry.role, entry.text] for key, entry in self.notes],
            "tools": [[t.name, t.args_sha256, t.key, t.tool_id, t.done, t.result] for t in self.tools],
            "acted": [list(rule) for rule in self.acted],
            "interventions": self.interventions,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What `as_json` wrote; raises ValueError for anything else, and takes no more than a call may have."""
        try:
            return cls(
                notes=tuple(_note(*note) for note in value["notes"][-MAX_HISTORY_ENTRIES:]),
                tools=tuple(_tool(*tool) for tool in value["tools"][:MAX_LEDGER_ENTRIES]),
                acted=tuple(_acted(*rule) for rule in value["acted"][-MAX_RULES_REMEMBERED:]),
                interventions=_whole(value["interventions"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not the memory of a call") from error


def _note(key: str, role: str, text: str) -> tuple[str, HistoryEntry]:
    if role not in _ROLES or not isinstance(key, str) or not isinstance(text, str):
        raise ValueError("not a line of a history")
    return key, HistoryEntry(role, text[:MAX_HISTORY_CHARS])  # type: ignore[arg-type]


def _tool(name: str, args_sha256: str, key: str, tool_id: str, done: bool, result: Any) -> KeptTool:
    if not all(isinstance(part, str) for part in (name, args_sha256, key, tool_id)) or not isinstance(done, bool):
        raise ValueError("not a tool call")
    if len(bytes.fromhex(args_sha256)) != 32:
        raise ValueError("not a tool call")
    if isinstance(result, Mapping | list):
        json.dumps(result, allow_nan=False)
    return KeptTool(name, args_sha256, key, tool_id, done, result)


def _acted(rule: str | None, ago_s: float) -> tuple[str | None, float]:
    if not isinstance(rule, str | None) or isinstance(ago_s, bool) or not isinstance(ago_s, int | float):
        raise ValueError("not a rule that led to an intervention")
    return rule, float(ago_s)


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError("not a number of interventions")
    return int(number)
