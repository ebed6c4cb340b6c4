"""The offline voice speaks real words, at a level that a call can use."""

import asyncio
import sys

import numpy as np
import pytest

from supervision.audio.levels import rms_dbfs
from supervision.engine.tts.offline import LEVEL_DBFS, HibariTTS
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure, primary_language
from tests.support.speech import say
from tests.support.stt import transcribe

LINE = "Let me correct that. I cannot issue a refund, but I can open a ticket for you."


@pytest.fixture
async def tts():
    provider = HibariTTS()
    yield provider
    await provider.aclose()


async def test_a_line_comes_back_as_24_khz_speech_at_the_usual_level(tts):
    speech = await tts.synthesize(LINE, language="en-GB", voice="some other vendor's voice")
    assert speech.sample_rate == 24_000
    assert 3000 < speech.duration_ms < 9000
    assert speech.duration_ms == len(speech.samples) / 24
    assert abs(rms_dbfs(speech.samples, 24_000) - LEVEL_DBFS) < 2
    assert np.abs(speech.samples.astype(int)).max() < 32767


def test_a_recogniser_understands_the_line_as_a_call_carries_it():
    heard = transcribe(say(LINE)).lower()
    assert "correct that" in heard
    assert "cannot issue a refund" in heard.replace("can not", "cannot")
    assert "ticket for you" in heard


async def test_the_same_line_is_the_same_audio_and_the_level_can_be_chosen(tts):
    assert await tts.synthesize(LINE, language="en") == await tts.synthesize(LINE, language="en")
    quiet = HibariTTS(level_dbfs=-30)
    assert abs(rms_dbfs((await quiet.synthesize(LINE, language="en")).samples, 24_000) + 30) < 2
    await quiet.aclose()


async def test_the_event_loop_goes_on_while_a_line_is_rendered(tts):
    await tts.warm_up()
    line = asyncio.create_task(tts.synthesize(LINE * 8, language="en"))
    turns = 0
    while not line.done():
        turns += 1
        await asyncio.sleep(0)
    assert (await line).duration_ms > 20_000
    assert turns > 50


async def test_several_lines_at_once_are_all_spoken(tts):
    lines = ["One moment.", "Let me check.", "Sorry about that."]
    spoken = await asyncio.gather(*(tts.synthesize(line, language="en") for line in lines))
    assert [speech == tts.render(line) for speech, line in zip(spoken, lines, strict=True)] == [True] * 3


async def test_only_english_is_offered(tts):
    assert tts.languages() == {"en"}
    with pytest.raises(TTSError, match="English only, not 'hi-IN'") as caught:
        await tts.synthesize("नमस्ते", language="hi-IN")
    assert caught.value.failure is TTSFailure.LANGUAGE


@pytest.mark.parametrize("line", ["", "   ", "\u4f60\u597d", "a" * 2001])
async def test_a_line_with_nothing_to_say_or_too_much_is_refused_without_repeating_it(tts, line):
    with pytest.raises(TTSError) as caught:
        await tts.synthesize(line, language="en")
    assert caught.value.failure is TTSFailure.BAD_TEXT
    assert not line.strip() or line not in str(caught.value)


async def test_after_closing_nothing_is_spoken_but_what_was_asked_for_arrives(tts):
    asked = asyncio.create_task(tts.synthesize("One moment.", language="en"))
    await asyncio.sleep(0)  # let it reach the worker
    await tts.aclose()
    assert (await asked).duration_ms > 300
    with pytest.raises(TTSError, match="closed"):
        await tts.synthesize("Hello.", language="en")


async def test_without_the_package_the_extra_is_named(tts, monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(TTSError, match="install the extra `local-speech`") as caught:
        await tts.synthesize("Hello.", language="en")
    assert caught.value.failure is TTSFailure.UNAVAILABLE


def test_importing_the_providers_loads_neither_model_nor_sdk():
    import subprocess

    code = (
        "import sys, supervision.engine.tts.offline, supervision.engine.tts.openai; "
        "print([name for name in ('hibari', 'onnxruntime', 'openai', 'django') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("tag", "primary"), [("en", "en"), ("en-US", "en"), ("EN_gb", "en"), (" pt-BR ", "pt"), ("", "")]
)
def test_the_primary_language_of_a_tag(tag, primary):
    assert primary_language(tag) == primary


def test_speech_knows_its_length():
    assert Speech(b"\x00\x00" * 2400, 24_000).duration_ms == 100
