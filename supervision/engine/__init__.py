"""The supervision library: judges what a voice agent says and does. Usable with no server, database or settings."""

from supervision.engine.config import MirrorConfig, PolicyConfig, Rule
from supervision.engine.context import (
    Correction,
    HistoryEntry,
    JudgingState,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    ToolVerdict,
    TurnPayload,
    Usage,
    Verdict,
)
from supervision.engine.scorer.tool_gate import ToolDenied
from supervision.engine.supervisor import CallSupervisor, Supervisor

__all__ = [
    "CallSupervisor",
    "Correction",
    "HistoryEntry",
    "JudgingState",
    "MirrorConfig",
    "PolicyConfig",
    "Rule",
    "Supervisor",
    "SupervisorContext",
    "ToolCallIntent",
    "ToolCode",
    "ToolDenied",
    "ToolVerdict",
    "TurnPayload",
    "Usage",
    "Verdict",
]
