"""What the relay knows of a call's audio: whose it is, what waits at Mirror, and which answers are owed for it.

Times are seconds of the running loop, positions and durations seconds of audio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from supervision.engine.adapters.hold import Hold
from supervision.engine.adapters.playout import AudioRuns


@dataclass(slots=True, eq=False)
class TurnAudio:
    """The audio of one agent turn, from its report to its last sample."""

    turn_id: UUID
    ref: str
    reported_at: float
    seen: str | None = None
    text: str = ""
    runs: AudioRuns = field(default_factory=AudioRuns)
    audio: bytearray = field(default_factory=bytearray)
    received_s: float = 0.0
    muted: bool = False
    kept_s: float = 0.0  # of a muted turn: its beginning up to here is innocent, and is heard
    hold: Hold | None = None  # until its words are judged; None for turns that are never held
    growing: bool = False  # more of its text may come
    started: bool = False
    ended: bool = False
    anchored: bool = False
    cut_at: float | None = None
    cut_low_s: float | None = None
    cut_high_s: float | None = None
    marks: list[tuple[float, int]] = field(default_factory=list)
    heard_reported: bool = False
    rivals: tuple[TurnAudio, ...] = ()  # reported too when its audio began: without marks it may be theirs

    def trade_names(self, other: TurnAudio) -> None:
        """Let this audio be the other turn's, and the other's be this turn's."""
        for name in ("turn_id", "ref", "reported_at", "seen", "text", "growing"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs)
            setattr(other, name, mine)

    @property
    def ends_at(self) -> float | None:
        """Time at which the last sample that will be heard has played; None before any was sent."""
        ends_at = self.runs.ends_at
        return ends_at if ends_at is None or self.cut_at is None else min(ends_at, self.cut_at)

    def heard_span(self, now: float) -> tuple[float, float]:
        """Least and most seconds of this turn that the caller can have heard by ``now``."""
        position = self.runs.position(now)
        low = position if self.cut_low_s is None else min(position, self.cut_low_s)
        high = position if self.cut_high_s is None else min(position, self.cut_high_s)
        return low, max(low, high)


@dataclass(slots=True)
class Begun:
    """Audio that began after a silence while no reported turn waited: perhaps of a turn that is reported late."""

    at: float
    before: TurnAudio | None  # to which it is counted meanwhile
    hold: Hold | None = None
    runs: AudioRuns = field(default_factory=AudioRuns)
    audio: bytearray = field(default_factory=bytearray)
    received_s: float = 0.0


@dataclass(slots=True)
class Queued:
    """An agent's frame that waits at Mirror."""

    text: str
    duration: float = 0.0
    turn: TurnAudio | None = None
    name: str | None = None  # of a checkpoint
    arrived_at: float = 0.0
    position: float = 0.0  # where in its turn it begins, in seconds
    hold: Hold | None = None

    def kept(self) -> bool:
        """Whether it is of a muted turn's innocent beginning."""
        kept_s = self.turn.kept_s if self.turn is not None else 0.0
        return kept_s > 0.0 and self.position + self.duration <= kept_s + 0.001


@dataclass(slots=True)
class Injected:
    """A frame of Mirror's own, waiting to be paced out."""

    text: str
    duration: float = 0.0
    name: str | None = None
    on_sent: Callable[[float], None] | None = None
    agents: bool = False  # a checkpoint of the agent's, within a line that it speaks for Mirror


@dataclass(slots=True, eq=False)
class AgentLine:
    """A line of Mirror's in the agent's own voice: its audio is what comes between its begin and its end, and it takes
    its place behind what Mirror has said. Times are given in seconds of the running loop."""

    on_sent: Callable[[float], None] = lambda at: None  # at which its first sample will play
    on_played: Callable[[float], None] = lambda at: None
    received_s: float = 0.0
    last_at: float = 0.0
    discarded: bool = False  # nothing more of it is heard


@dataclass(slots=True)
class Owed:
    """An agent's checkpoint whose audio was cleared or muted: Mirror answers it at hand-back."""

    name: str
    due_at: float
    answered: bool = False  # the genuine acknowledgement came meanwhile and was kept back
