"""The agents that a test call can be placed to, each with the lines that a scripted caller begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from mirror_saas.demo.conversation import caller_lines
from supervision.models import Agent

# For an agent that nobody here knows anything about.
LINES = ("Hello, can you help me?", "Could you tell me what you can do for me?", "Thank you. Goodbye.")


@dataclass(frozen=True, slots=True)
class Callee:
    """An agent, as the page offers it. `hint` is what to know before calling it."""

    id: UUID
    name: str
    policy: str
    hint: str
    lines: str


def callees(agents: Sequence[Agent], *, demo_url: str | None) -> list[Callee]:
    """Needs `policy` loaded. `demo_url` is where the demo's agent listens, None where the operator runs none."""
    demo = None if demo_url is None else demo_url.rstrip("/")
    return [_callee(agent, agent.upstream_url.rstrip("/") == demo) for agent in agents]


def _callee(agent: Agent, is_demo: bool) -> Callee:
    # The demo's agent has no ears for words: it takes it that these lines are said.
    lines = caller_lines() if is_demo else LINES
    hints = []
    if agent.policy is None:
        hints.append("It has no policy: the call is relayed and nothing is judged.")
    elif agent.mode == "shadow":
        hints.append("It is in shadow mode: Mirror judges and never steps in.")
    if not agent.bidirectional:
        hints.append("Its stream has no way back for audio: you will not hear it.")
    return Callee(
        id=agent.id,
        name=agent.name,
        policy=agent.policy.name if agent.policy is not None else "",
        hint=" ".join(hints),
        lines="\n".join(lines),
    )
