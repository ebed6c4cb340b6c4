"""What the example agents share: a small pizza shop that can speak, take turns and run two tools.

It stands where an agent of yours has its vendors, so that the examples run with no key and no network:
`think` where the LLM is called, `speak` where the TTS is (real speech, from hibari-tts), `Ears` where turns are
detected. There is no speech recogniser: `Ears` hears only when the caller begins and stops to speak, and `CALLER` says
what the caller is taken to have said then. Nothing in here knows of Mirror.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from hibari import Hibari
from numpy.typing import NDArray

RATE = 8000
"""Samples a second on a telephone line."""

Pcm = NDArray[np.int16]
Message = dict[str, str]

CALLER = (
    "My pizza came cold yesterday and I want my money back.",
    "Then charge my card twelve dollars for a new one.",
    "One large margherita to five Main Street, please.",
)

GREETING = "Hello, this is Slice House. How can I help?"
GOODBYE = "Is there anything else I can do for you?"


# Thinking ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    name: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the LLM answers: words, or a tool it wants run first."""

    text: str = ""
    tool: ToolCall | None = None


# As wrong as a real agent can be: it promises a refund that it may not give, and charges what nobody asked for.
ANSWERS: tuple[Reply | ToolCall, ...] = (
    Reply("I am very sorry about your cold pizza. I have already refunded the full amount to your card."),
    ToolCall("charge_card", {"amount_usd": 45.0}),
    ToolCall("place_order", {"item": "large margherita", "quantity": 1, "address": "5 Main Street"}),
)
AFTER_TOOL = {
    ("charge_card", True): "I have charged your card. What would you like?",
    ("charge_card", False): "I have not charged anything. The new pizza is twelve dollars. Which one would you like?",
    ("place_order", True): "Thank you. One large margherita is on its way to five Main Street.",
    ("place_order", False): "I could not place the order yet. Shall I try again?",
}


def think(messages: list[Message]) -> Reply:
    """The next reply to a conversation in the usual form: a list of `{"role", "content"}`.

    A system message that arrived since the last reply is taken into account, as an LLM would.
    """
    heard = sum(message["role"] == "user" for message in messages)
    if heard == 0:
        return Reply(GREETING)
    if heard > len(ANSWERS):
        return Reply(GOODBYE)
    answer = ANSWERS[heard - 1]
    if isinstance(answer, Reply):
        return answer
    last = messages[-1]
    if last["role"] != "tool":
        return Reply(tool=answer)
    since = itertools.takewhile(lambda message: message["role"] != "assistant", reversed(messages))
    told = any(message["role"] == "system" for message in since)
    text = AFTER_TOOL[answer.name, '"not_done"' not in last["content"]]
    return Reply(f"As I said, a colleague decides about your refund. {text}" if told else text)


def run_tool(call: ToolCall) -> dict[str, Any]:
    """What the shop's own systems would do."""
    return {"status": "done", "tool": call.name, **call.args}


# Speaking ----------------------------------------------------------------------------------------


@functools.cache
def _voice() -> Hibari:
    return Hibari()


@functools.cache
def _low_pass() -> NDArray[np.float64]:
    """24 kHz to 8 kHz needs nothing above 4 kHz left: a windowed sinc of 47 taps, -6 dB at 3.6 kHz."""
    offsets = np.arange(47) - 23
    taps: NDArray[np.float64] = np.sinc(offsets * 2 * 3600 / 24000) * np.hamming(47)
    taps /= taps.sum()
    return taps


@functools.lru_cache(maxsize=64)
def _render(text: str) -> Pcm:
    speech = np.convolve(_voice()(text, seed=0), _low_pass(), "same")[::3]
    loud = speech * (0.5 / max(float(np.abs(speech).max()), 1e-6))
    pcm: Pcm = np.round(loud * 32767).astype(np.int16)
    return pcm


async def speak(text: str) -> Pcm:
    """Real speech, 8 kHz mono samples."""
    return await asyncio.to_thread(_render, text)


# Telephone audio (G.711 mu-law) ------------------------------------------------------------------


def from_mulaw(encoded: bytes) -> Pcm:
    bits = ~np.frombuffer(encoded, np.uint8)
    exponent, mantissa = (bits >> 4) & 7, (bits & 15).astype(np.int16)
    size = (((mantissa << 3) + 132) << exponent) - 132
    pcm: Pcm = np.where(bits & 128, -size, size).astype(np.int16)
    return pcm


def to_mulaw(pcm: Pcm) -> bytes:
    size = np.minimum(np.abs(pcm.astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(size)).astype(np.int32) - 7
    mantissa = (size >> (exponent + 3)) & 15
    return bytes(~(np.where(pcm < 0, 128, 0) | (exponent << 4) | mantissa).astype(np.uint8))


# Taking turns ------------------------------------------------------------------------------------


@dataclass
class Ears:
    """Says when the caller begins and stops to speak, by loudness alone. Telephone silence is below -50 dBFS."""

    threshold_dbfs: float = -45.0
    begins_after_ms: float = 100.0
    stops_after_ms: float = 900.0
    voiced_ms: float = field(default=0.0, init=False)
    silent_ms: float = field(default=0.0, init=False)
    speaking: bool = field(default=False, init=False)

    def hear(self, pcm: Pcm) -> Literal["began", "stopped"] | None:
        """Take the caller's next samples, any number of them, at 8 kHz."""
        if not len(pcm):
            return None
        duration_ms = len(pcm) * 1000 / RATE
        level = 10 * math.log10(float(np.mean((pcm / 32768.0) ** 2)) + 1e-12)
        if level >= self.threshold_dbfs:
            self.voiced_ms, self.silent_ms = self.voiced_ms + duration_ms, 0.0
        else:
            self.silent_ms += duration_ms
            if not self.speaking and self.silent_ms >= 200:
                self.voiced_ms = 0.0
        if not self.speaking and self.voiced_ms >= self.begins_after_ms:
            self.speaking = True
            return "began"
        if self.speaking and self.silent_ms >= self.stops_after_ms:
            self.speaking, self.voiced_ms = False, 0.0
            return "stopped"
        return None


def caller_lines() -> Iterable[str]:
    """What the caller is taken to have said, one line after the other; then nothing that could be understood."""
    return itertools.chain(CALLER, itertools.repeat("(unclear)"))
