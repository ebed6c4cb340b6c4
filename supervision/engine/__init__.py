"""The supervision library: judges what a voice agent says and does. Usable with no server, database or settings."""

from supervision.engine.approval import Approval, ApprovalRequest
from supervision.engine.config import MirrorConfig, PolicyConfig, Rule
from supervision.engine.context import (
    Correction,
    HistoryEntry,
    JudgingState,
    SupervisorContext,
    ToolCallIntent,
    ToolCode,
    ToolVerdict,
    TurnOutcome,
    TurnPayload,
    Usage,
    Verdict,
)
from supervision.engine.environment import ConfigError
from supervision.engine.intervention.orchestrator import Outcome, Report
from supervision.engine.llm.secrets import Secret
from supervision.engine.scorer.tool_gate import ToolDenied
from supervision.engine.state.memory import MemoryStateStore
from supervision.engine.supervisor import CallSupervisor, Supervisor
from supervision.engine.tool_loop import AgentModelError, LoopResult, ToolNotRun

__all__ = [
    "AgentModelError",
    "Approval",
    "ApprovalRequest",
    "CallSupervisor",
    "ConfigError",
    "Correction",
    "HistoryEntry",
    "JudgingState",
    "LoopResult",
    "MemoryStateStore",
    "MirrorConfig",
    "Outcome",
    "PolicyConfig",
    "Report",
    "Rule",
    "Secret",
    "Supervisor",
    "SupervisorContext",
    "ToolCallIntent",
    "ToolCode",
    "ToolDenied",
    "ToolNotRun",
    "ToolVerdict",
    "TurnOutcome",
    "TurnPayload",
    "Usage",
    "Verdict",
]
