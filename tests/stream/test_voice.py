"""Mirror's voice in a call: armed in one language at a time."""

from __future__ import annotations

import asyncio

import numpy as np

from supervision.audio.format import MediaFormat
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure
from supervision.engine.tts.voice import CallVoice, LineCache
from tests.support.virtual_time import virtual_time


class Voice:
    """Speaks any text as a tone, a second for each ten characters, after a while."""

    def __init__(self, speaks: frozenset[str] | None = None, takes_s: float = 0.0) -> None:
        self.speaks = speaks
        self.takes_s = takes_s
        self.fails = False
        self.asked: list[tuple[str, str]] = []

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        self.asked.append((text, language))
        await asyncio.sleep(self.takes_s)
        if self.fails:
            raise TTSError(TTSFailure.UNAVAILABLE, "the voice is gone")
        samples = np.full(len(text) * 800, 8000, dtype=np.int16)
        around = np.zeros(4000, dtype=np.int16)
        return Speech(np.concatenate([around, samples, around]).tobytes(), 8000)

    def languages(self) -> frozenset[str] | None:
        return self.speaks

    async def aclose(self) -> None:
        pass


def voice_of(tts: Voice | None) -> CallVoice:
    return CallVoice(tts=tts, cache=LineCache(), media_format=MediaFormat())


@virtual_time
async def test_a_voice_is_armed_once_its_lines_are_rendered_and_speaks_no_buffer_line_twice() -> None:
    voice = voice_of(Voice())
    assert not voice.armed
    await voice.arm(buffers=["One second.", "A moment."], fallback="Sorry. What now?", opener="I misspoke.")
    assert voice.armed
    assert [voice.buffer_line().text for _ in range(3)] == ["One second.", "A moment.", "One second."]


@virtual_time
async def test_the_silence_around_a_line_is_cut_off() -> None:
    voice = voice_of(Voice())
    await voice.arm(buffers=["1234567890"], fallback="f", opener="o")
    seconds = len(voice.buffer_line().audio) / 8000
    assert 1.0 <= seconds <= 1.1  # a second of voice; the voice had put half a second before and after it


@virtual_time
async def test_buffer_lines_that_keep_the_caller_waiting_are_left_out_but_for_the_policys_own() -> None:
    voice = voice_of(Voice())
    await voice.arm(buffers=["x" * 30, "y" * 30, "z" * 10], fallback="f", opener="o")
    assert [voice.buffer_line().text[0] for _ in range(2)] == ["x", "z"]


@virtual_time
async def test_changing_the_language_disarms_until_that_language_is_rendered() -> None:
    tts = Voice(speaks=frozenset({"en"}))
    voice = voice_of(tts)
    await voice.arm(buffers=["One second."], fallback="f", opener="o")
    voice.language = "fr"
    await voice.arm(buffers=["Un instant."], fallback="f", opener="o")
    assert not voice.armed
    assert "fr" in voice.unarmed_reason


@virtual_time
async def test_lines_that_come_late_for_the_old_language_are_not_spoken_in_the_new_one() -> None:
    tts = Voice(takes_s=1.0)
    voice = voice_of(tts)
    old = asyncio.create_task(voice.arm(buffers=["One second."], fallback="f", opener="o"))
    await asyncio.sleep(0.5)
    voice.language = "es"
    tts.takes_s = 0.1
    await voice.arm(buffers=["Un momento."], fallback="fe", opener="oe")
    await old
    assert voice.buffer_line().text == "Un momento."
    assert voice.fallback_line().text == "fe"


@virtual_time
async def test_without_lines_or_voice_the_reason_says_why() -> None:
    voice = voice_of(None)
    await voice.arm(buffers=["One second."], fallback="f", opener="o")
    assert voice.unarmed_reason == "no speech provider is configured"
    await voice.arm(buffers=[], fallback="", opener="")
    assert voice.unarmed_reason == "there are no lines in en"
    tts = Voice()
    tts.fails = True
    voice = voice_of(tts)
    await voice.arm(buffers=["One second."], fallback="f", opener="o")
    assert not voice.armed
    assert "the voice is gone" in voice.unarmed_reason
