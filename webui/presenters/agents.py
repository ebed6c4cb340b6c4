"""What pages say of a voice agent, its stream keys, and what was found when it was tried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import UUID

from supervision.models import Agent, Mode, OnFailure, Track
from supervision.selectors.agents import AgentStanding, url_without_values
from supervision.selectors.stream_keys import StreamKeyRef
from supervision.stream.check import AgentCheck
from webui.formats import count_of, duration
from webui.policy_settings import SETTINGS
from webui.presenters.pieces import Badge, Tone


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent of the list."""

    id: UUID
    name: str
    url: str
    language: str
    policy_id: UUID | None
    policy: str
    shadow: str
    """Why its calls are judged and never acted on; empty when Mirror steps in."""
    reach: Badge
    last_call_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A stream key. `works`: calls pass with it now."""

    id: UUID
    state: Badge
    works: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class CheckView:
    """What was found when the agent was dialled: a sentence, what to do about it, and figures."""

    title: str
    text: str
    tone: Tone
    icon: str
    facts: tuple[tuple[str, str], ...]


def reached_from_here_only(public_url: str) -> bool:
    """Whether an address is this machine's or a private network's, where Plivo cannot come."""
    host = urlsplit(public_url).hostname or ""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def agent_rows(agents: Iterable[Agent], standing: Mapping[UUID, AgentStanding], *, whole: bool) -> tuple[AgentRow, ...]:
    """Needs `policy` loaded. Without `whole`, values in a URL's query are hidden."""
    return tuple(agent_row(agent, standing[agent.id], whole=whole) for agent in agents if agent.id in standing)


def agent_row(agent: Agent, standing: AgentStanding, *, whole: bool) -> AgentRow:
    return AgentRow(
        id=agent.id,
        name=agent.name,
        url=agent.upstream_url if whole else url_without_values(agent.upstream_url),
        language=agent.language,
        policy_id=agent.policy_id,
        policy=agent.policy.name if agent.policy else "",
        shadow=_shadow(agent),
        reach=_reach(standing),
        last_call_at=standing.last_call_at,
    )


def _shadow(agent: Agent) -> str:
    if agent.mode == Mode.SHADOW:
        return "The agent is in shadow mode: its calls are judged, and Mirror never steps in."
    if agent.policy is not None and agent.policy_track == Track.SHADOW:
        return "New calls get the policy’s shadow version while there is one: it judges, and Mirror never steps in."
    return ""


def _reach(standing: AgentStanding) -> Badge:
    if not standing.stream_keys:
        return Badge("No stream key", "alert", "warn", "No call can reach it: make a stream key.")
    works = "works" if standing.stream_keys == 1 else "work"
    return Badge("Ready", "check", "good", f"{count_of(standing.stream_keys, 'stream key')} {works}")


def changed_at(agent: Agent) -> datetime | None:
    """When the agent was last changed; None for one that is as it was made."""
    # The two times of a new row are taken one after the other.
    return agent.updated_at if agent.updated_at - agent.created_at > timedelta(seconds=1) else None


def own_settings(agent: Agent) -> tuple[tuple[str, str], ...]:
    """What is otherwise for this agent than in its policy: each setting's name and value, in the order of the page."""
    return tuple(
        (setting.label, setting.words(agent.policy_overrides[name]))
        for name, setting in SETTINGS.items()
        if name in agent.policy_overrides
    )


def failure_words(agent: Agent) -> str:
    """What happens when the agent fails."""
    again = (
        f"It is dialled again, {count_of(agent.redials, 'time')} at most"
        if agent.redials
        else "It is not dialled again"
    )
    heard = f"then the caller hears “{agent.failure_message}”, and" if agent.failure_message else "then"
    ends = {
        OnFailure.CLOSE: "the stream is closed: Plivo goes on with the XML behind it",
        OnFailure.HANGUP: "the call is hung up",
        OnFailure.TRANSFER: "the call goes on with other XML",
    }
    return f"{again}; {heard} {ends[OnFailure(agent.on_failure)]}."


def key_rows(keys: Iterable[StreamKeyRef]) -> tuple[KeyRow, ...]:
    badges = {
        "active": Badge("Works", "check", "good"),
        "expiring": Badge("Works, ends", "clock", "warn"),
        "expired": Badge("Ended", "clock"),
        "revoked": Badge("Revoked", "ban"),
    }
    return tuple(
        KeyRow(
            id=key.id,
            state=badges[key.state],
            works=key.state in ("active", "expiring"),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )
        for key in keys
    )


def check_view(found: AgentCheck) -> CheckView:
    """What `agent_checked` found, in words."""
    if not found.reachable:
        status = f"It answered with HTTP {found.handshake_status}." if found.handshake_status else ""
        return CheckView(
            "The agent cannot be reached.",
            " ".join(part for part in (_sentence(found.problem or ""), status, "Check its URL and headers.") if part),
            "bad",
            "alert",
            (),
        )
    facts = [("Answered in", duration(found.dial_ms))]
    if found.hello_ms is not None:
        facts.append(("Said hello after", duration(found.hello_ms)))
    if found.audio_ms is not None:
        facts.append(("Audio after", duration(found.audio_ms)))
    if found.close_code is not None:
        facts.append(("Closed with", str(found.close_code)))
    hello = found.hello
    if hello is None:
        return CheckView(
            "It answers, and knows nothing of Mirror.",
            " ".join(
                part
                for part in (
                    _sentence(found.problem or ""),
                    "Calls are relayed to it, and its turns cannot be judged: add supervision.client to the agent.",
                )
                if part
            ),
            "warn",
            "alert",
            tuple(facts),
        )
    facts.append(("It speaks through", hello.sdk))
    if hello.wants:
        facts.append(("It asks for", ", ".join(sorted(hello.wants))))
    if hello.language:
        facts.append(("Language", hello.language))
    if hello.voice:
        facts.append(("Voice", hello.voice))
    return CheckView(
        "It answers, and works with Mirror.",
        "Its turns and tools can be judged.",
        "good",
        "check",
        tuple(facts),
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""
