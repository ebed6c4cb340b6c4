from supervision.models.agents import Agent, Mode, OnFailure, ProviderCredential, StreamKey, Track
from supervision.models.alarms import Alarm, AlarmRecipient
from supervision.models.calls import (
    AgentNote,
    Call,
    CallEvent,
    Intervention,
    ToolDecision,
    Turn,
    Verdict,
)
from supervision.models.defaults import ModelDefaults
from supervision.models.labels import Label
from supervision.models.policies import Policy, PolicyVersion
from supervision.models.privacy import PrivacySettings
from supervision.models.reviews import ReviewReservation
from supervision.models.tools import Approval, LedgerEntry
from supervision.models.usage import ErasedCall, JudgeLatencyDay, UsageDay
from supervision.models.webhooks import WebhookAttempt, WebhookDelivery, WebhookEndpoint

__all__ = [
    "Agent",
    "AgentNote",
    "Alarm",
    "AlarmRecipient",
    "Approval",
    "Call",
    "CallEvent",
    "ErasedCall",
    "Intervention",
    "JudgeLatencyDay",
    "Label",
    "LedgerEntry",
    "Mode",
    "ModelDefaults",
    "OnFailure",
    "Policy",
    "PolicyVersion",
    "PrivacySettings",
    "ProviderCredential",
    "ReviewReservation",
    "StreamKey",
    "ToolDecision",
    "Track",
    "Turn",
    "UsageDay",
    "Verdict",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
]
