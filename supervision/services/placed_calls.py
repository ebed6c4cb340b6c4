"""Test calls that members place from the console."""

from __future__ import annotations

from uuid import UUID

from supervision.selectors.agents import AgentNotFound
from supervision.stream.directory import AgentBinding, agent_binding
from tenants.selectors.tenants import TenantRef
from tenants.services.audit import auditevent_record


def call_place(*, tenant: TenantRef, agent_id: UUID, scripted: bool) -> AgentBinding:
    """Write down that somebody places a test call to an agent, and return what the call runs under.

    Raises AgentNotFound, and DirectoryUnavailable when the agent's secrets cannot be opened.
    """
    binding = agent_binding(tenant=tenant, agent_id=agent_id)
    if binding is None:
        raise AgentNotFound
    auditevent_record(
        action="agent.test_call",
        object_id=agent_id,
        object_label=binding.agent_name,
        after={"caller": "script" if scripted else "microphone"},
    )
    return binding
