from supervision.models.agents import Agent, Mode, ProviderCredential, StreamKey, Track
from supervision.models.calls import (
    AgentNote,
    Call,
    CallEvent,
    Intervention,
    ToolDecision,
    Turn,
    Verdict,
)
from supervision.models.policies import Policy, PolicyVersion

__all__ = [
    "Agent",
    "AgentNote",
    "Call",
    "CallEvent",
    "Intervention",
    "Mode",
    "Policy",
    "PolicyVersion",
    "ProviderCredential",
    "StreamKey",
    "Track",
    "ToolDecision",
    "Turn",
    "Verdict",
]
