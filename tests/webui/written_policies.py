"""A policy that was worked on, for whoever looks at its pages."""

from __future__ import annotations

from supervision.services.policies import agent_policy_set, policy_version_create, policy_version_shadow
from tests.factories import Tenancy

RULES = (
    {
        "text": "Never confirm or promise a refund; a colleague decides about refunds.",
        "severity": "high",
        "statement": "The agent confirms a refund.",
    },
    {
        "text": "Never charge a card with an amount that the customer did not name.",
        "severity": "high",
        "tools": ["charge_card", "process_payment"],
    },
    {"text": "Never promise a delivery date or time.", "severity": "medium"},
    {"text": "Offer the newsletter only when the customer asks for it.", "severity": "low", "enabled": False},
)
SHADOW, DRAFT = 2, 3


def policy_written(tenancy: Tenancy) -> None:
    """The tenancy's policy gets a shadow version and a draft, and its agent a setting of its own."""
    with tenancy.context():
        for number, threshold, note in (
            (SHADOW, 0.6, "Delivery dates go wrong at lower scores, too."),
            (DRAFT, 0.65, "Payments were judged too late: name the tools."),
        ):
            policy_version_create(
                policy_id=tenancy.policy.id,
                rules=RULES,
                config={"intervention_threshold": threshold, "pregate_always": ["amount"]},
                llm_credential=tenancy.credential,
                note=note,
            )
            if number == SHADOW:
                policy_version_shadow(policy_id=tenancy.policy.id, number=number)
        agent_policy_set(
            agent_id=tenancy.agent.id, policy_id=tenancy.policy.id, overrides={"intervention_threshold": 0.8}
        )
