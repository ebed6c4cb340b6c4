"""What a call takes along when its stream comes back on another socket, on this node or on another.

The node that had the call writes it, the one that goes on reads it. Between nodes it travels sealed, through Valkey,
and nothing of it stays there. Where the old node is silent, `from_record.py` makes one of what PostgreSQL knows.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import orjson

from supervision.engine.context import JudgingState, ToolCallIntent, ToolCode, ToolVerdict
from supervision.engine.state.carried import CarriedMemory
from tenants.sealing import SealBroken, key_ring

MAX_NOTES: Final = 16
_FIELD: Final = "stream.carried_call"


class CarriedInvalid(ValueError):
    """What came is not what a node of this version hands over."""


@dataclass(frozen=True, slots=True)
class CarriedTurn:
    """A turn that was reported before; the same one reported again is the same turn. `text` is None where nobody knows
    any more what it said exactly."""

    ref: str
    turn_id: UUID
    text: str | None
    tool_calls: tuple[ToolCallIntent, ...] = ()


@dataclass(frozen=True, slots=True)
class CarriedTool:
    """A tool call that was asked about, and what was decided."""

    intent: ToolCallIntent
    decision_id: UUID
    verdict: ToolVerdict
    turn_ref: str | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedCall:
    """A call as it stood when its last socket was lost.

    `age_ms` is how long ago it began, by a clock that never jumps where there is one. `last_seq` is the number of the
    last event that its owner recorded, None when that owner could not be asked. `notes` are those that no turn of the
    agent has answered, each with the fields of `mirror.note`.
    """

    call_id: UUID
    epoch: int
    started_at: datetime
    age_ms: int
    last_seq: int | None = None
    policy_version_id: UUID | None = None
    mode: str = ""
    language: str = ""
    from_number: str = ""
    to_number: str = ""
    turn_count: int = 0
    turns: tuple[CarriedTurn, ...] = ()
    tools: tuple[CarriedTool, ...] = ()
    notes: tuple[dict[str, Any], ...] = ()
    memory: CarriedMemory = field(default_factory=CarriedMemory)

    def seal(self, tenant_id: UUID) -> str:
        """As text that only a node with the operator's key can read, and only for this tenant."""
        sealed = key_ring().transient_seal(orjson.dumps(self._as_json()), tenant_id=tenant_id, field=_FIELD)
        return b64encode(sealed).decode("ascii")

    @classmethod
    def unseal(cls, text: str, tenant_id: UUID) -> Self:
        """What `seal` wrote. Raises CarriedInvalid."""
        try:
            plain = key_ring().transient_open(b64decode(text, validate=True), tenant_id=tenant_id, field=_FIELD)
            return cls._from_json(orjson.loads(plain))
        except SealBroken as error:
            raise CarriedInvalid("it was not sealed with this operator's key for this tenant") from error
        except (binascii.Error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CarriedInvalid(f"it cannot be read: {type(error).__name__}") from error

    def _as_json(self) -> dict[str, Any]:
        return {
            "call_id": self.call_id,
            "epoch": self.epoch,
            "started_at": self.started_at,
            "age_ms": self.age_ms,
            "last_seq": self.last_seq,
            "policy_version_id": self.policy_version_id,
            "mode": self.mode,
            "language": self.language,
            "from_number": self.from_number,
            "to_number": self.to_number,
            "turn_count": self.turn_count,
            "turns": [
                [turn.ref, turn.turn_id, turn.text, [_intent_json(call) for call in turn.tool_calls]]
                for turn in self.turns
            ],
            "tools": [
                [_intent_json(tool.intent), tool.decision_id, _verdict_json(tool.verdict), tool.turn_ref, tool.finished]
                for tool in self.tools
            ],
            "notes": list(self.notes),
            "memory": self.memory.as_json(),
        }

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Self:
        version = value["policy_version_id"]
        return cls(
            call_id=UUID(value["call_id"]),
            epoch=int(value["epoch"]),
            started_at=datetime.fromisoformat(value["started_at"]),
            age_ms=int(value["age_ms"]),
            last_seq=None if value["last_seq"] is None else int(value["last_seq"]),
            policy_version_id=None if version is None else UUID(version),
            mode=str(value["mode"]),
            language=str(value["language"]),
            from_number=str(value["from_number"]),
            to_number=str(value["to_number"]),
            turn_count=int(value["turn_count"]),
            turns=tuple(_turn(*turn) for turn in value["turns"]),
            tools=tuple(
                CarriedTool(_intent(intent), UUID(decision_id), _verdict(verdict), turn_ref, bool(finished))
                for intent, decision_id, verdict, turn_ref, finished in value["tools"]
            ),
            notes=tuple(dict(note) for note in value["notes"][-MAX_NOTES:]),
            memory=CarriedMemory.from_json(value["memory"]),
        )


def _turn(ref: str, turn_id: str, text: str | None, calls: list[list[Any]]) -> CarriedTurn:
    said = None if text is None else str(text)
    return CarriedTurn(str(ref), UUID(turn_id), said, tuple(_intent(call) for call in calls))


def _intent_json(intent: ToolCallIntent) -> list[Any]:
    return [intent.id, intent.name, intent.args, intent.irreversible, intent.error]


def _intent(value: list[Any]) -> ToolCallIntent:
    tool_id, name, args, irreversible, error = value
    return ToolCallIntent(id=str(tool_id), name=str(name), args=args, irreversible=bool(irreversible), error=error)


def _verdict_json(verdict: ToolVerdict) -> list[Any]:
    return [
        *(verdict.id, verdict.name, verdict.allow, verdict.code.value, verdict.state.value, verdict.score),
        *(verdict.reason, verdict.instruction, verdict.stored_result, verdict.valid_ms, verdict.latency_ms),
    ]


def _verdict(value: list[Any]) -> ToolVerdict:
    tool_id, name, allow, code, state, score, reason, instruction, stored_result, valid_ms, latency_ms = value
    return ToolVerdict(
        id=str(tool_id),
        name=str(name),
        allow=bool(allow),
        code=ToolCode(code),
        state=JudgingState(state),
        score=score,
        reason=str(reason),
        instruction=str(instruction),
        stored_result=stored_result,
        valid_ms=int(valid_ms),
        latency_ms=int(latency_ms),
    )
