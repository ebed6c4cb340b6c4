"""Small pieces that several presenters are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

Tone = Literal["plain", "good", "warn", "bad", "mirror", "live"]


@dataclass(frozen=True, slots=True)
class Badge:
    """A state as an icon and a word; `tone` is only the colour that goes with them."""

    text: str
    icon: str = "dash"
    tone: Tone = "plain"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure of the head: its name, its value, and one line of why."""

    name: str
    value: str
    why: str = ""
    tone: Tone = "plain"
    icon: str = ""
    elapsed_ms: int | None = None


def order_key(at_ms: int, row_id: UUID) -> str:
    """Sorts as text in the browser the way (at_ms, id) sorts here."""
    return f"{at_ms:012d}-{row_id.hex}"
