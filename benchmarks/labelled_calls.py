"""Labelled real calls as the engine's own turns, for `bench_pregate` and `train_pregate`.

A data set is a file `calls/<name>.jsonl.gz` of calls (see the README beside it); none of it is part of the project. A
turn is bad when its label says `wrong_write` or `agent_error`, or has a `quoted_bad`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from supervision.engine.config import PolicyConfig
from supervision.engine.context import HistoryEntry, ToolCallIntent, TurnPayload

BAD = ("wrong_write", "agent_error", "quoted_bad")
NO_RULES = ("Follow the policy.",)


@dataclass(frozen=True)
class LabelledTurn:
    """A turn of a labelled call. `group` is the same for turns that share a task, a booking, or anything of either."""

    data_set: str
    source: str
    call_id: str
    group: str
    payload: TurnPayload
    bad: bool
    writes: bool
    config: PolicyConfig
    quotes: tuple[str, ...] = ()
    """Words of it that its label quotes as bad."""


class DataMissing(Exception):
    """The labelled calls are not where they should be; the message says where that is."""


def read_turns(folder: Path, data_set: str) -> list[LabelledTurn]:
    """All turns of a data set, each with the history before it, as the engine would be given it.

    Calls without any labels are left out. Raises `DataMissing`.
    """
    path = folder / "calls" / f"{data_set}.jsonl.gz"
    if not path.is_file():
        raise DataMissing(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        calls = [json.loads(line) for line in lines]
    turns: list[LabelledTurn] = []
    groups = _groups(calls)
    for call in calls:
        turns += _turns_of(folder, data_set, call, groups[call["group_id"]])
    return turns


def _turns_of(folder: Path, data_set: str, call: dict[str, Any], group: str) -> Iterator[LabelledTurn]:
    writing = frozenset(call["write_tools"])
    config = _config(folder, tuple(call["policies"]), tuple(sorted(writing)))
    history = [HistoryEntry("agent", call["opening_text"])] if call.get("opening_text") else []
    for turn in call["turns"]:
        tools = tuple(
            ToolCallIntent(str(number), tool["name"], tool["args"] if isinstance(tool["args"], dict) else None)
            for number, tool in enumerate(turn["tool_calls"])
        )
        if turn["label"] is not None:
            payload = TurnPayload(
                turn["customer_text"], turn["agent_text"], tools, tuple(history[-60:]), str(turn["index"])
            )
            yield LabelledTurn(
                data_set,
                call["source"],
                call["call_id"],
                group,
                payload,
                bad=any(turn["label"].get(name) for name in BAD),
                writes=any(tool.name in writing for tool in tools),
                config=config,
                quotes=tuple(turn["label"].get("quoted_bad") or ()),
            )
        for role, text in (("customer", turn["customer_text"]), ("agent", turn["agent_text"])):
            if text.strip():
                history.append(HistoryEntry("customer" if role == "customer" else "agent", text))


@cache
def _config(folder: Path, policies: tuple[str, ...], writing: tuple[str, ...]) -> PolicyConfig:
    rules = list(NO_RULES) if not policies else []
    for policy in policies:
        path = folder / policy.replace(".md", ".rules.json")
        if not path.is_file():
            raise DataMissing(f"{path} is not there")
        rules += json.loads(path.read_text(encoding="utf-8"))
    return PolicyConfig(policies=rules, irreversible_tools=writing)


_BOOKING = re.compile(r'"confirmation_number\\*": \\*"([A-Z0-9]{6})\\*"')
_NO_BOOKINGS = frozenset(("ABC123", "UNKNOW"))


def _groups(calls: list[dict[str, Any]]) -> dict[str, str]:
    """By group id, the group that it belongs to: calls about the same booking are of one group.

    That is stricter than the data's own groups: it keeps a scenario that was recorded twice out of its own test.
    """
    parent: dict[str, str] = {}

    def find(group: str) -> str:
        while parent.setdefault(group, group) != group:
            group = parent[group]
        return group

    bookings: dict[str, str] = {}
    for call in calls:
        find(call["group_id"])
        for booking in set(_BOOKING.findall(json.dumps(call["turns"]))) - _NO_BOOKINGS:
            parent[find(call["group_id"])] = find(bookings.setdefault(booking, call["group_id"]))
    return {call["group_id"]: find(call["group_id"]) for call in calls}
