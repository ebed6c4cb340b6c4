"""Media frames told and measured without parsing agree with what parsing says, however they are written."""

from __future__ import annotations

import json
import re
from base64 import b64encode

import numpy as np
import pytest

from supervision.audio.format import L16, MULAW, MediaFormat
from supervision.plivo import events

SPACES = ["", " ", "\n\t "]


@pytest.mark.parametrize("event", ["media", "playAudio", "checkpoint", "mediaX", "playAudioX"])
@pytest.mark.parametrize("a", SPACES)
@pytest.mark.parametrize("b", SPACES)
@pytest.mark.parametrize("c", SPACES)
def test_an_event_is_told_from_the_first_bytes_however_it_is_spaced(event: str, a: str, b: str, c: str) -> None:
    for end in ("}", ', "media": {}}'):
        text = f'{a}{{{b}"event"{c}:{b}"{event}"{c}{end}'
        assert json.loads(text)["event"] == event
        assert events.is_media(text) is (event == "media")
        assert events.is_play_audio(text) is (event == "playAudio")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"event":"media"', '{"event":"media";', '{"event":media}', '["event":"media"]']
)
def test_what_only_looks_like_an_event_is_none(text: str) -> None:
    assert not events.is_media(text)
    assert not events.is_play_audio(text)


@pytest.mark.parametrize("between", [":", ": ", " : ", ":\n", "\t:"])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 160])
def test_a_payload_is_found_and_measured_as_parsing_would(between: str, length: int) -> None:
    audio = bytes(range(length))
    text = f'{{"event":"playAudio","media":{{"note":"payload","payload"{between}"{b64encode(audio).decode()}"}}}}'
    start, end = events.payload_span(text)
    assert text[start:end] == json.loads(text)["media"]["payload"]
    assert events.base64_length(text, start, end) == length if length else (start, end) == (0, 0)
    assert events.payload(text) == audio


@pytest.mark.parametrize("text", ["", "{}", '"payload"', '"payload":', '"payload":7', '"payload": "', '"payload":""'])
def test_a_frame_without_a_payload_has_no_span(text: str) -> None:
    assert events.payload_span(text) == (0, 0)
    assert re.search(r'"payload"\s*:\s*"[^"]', text) is None


@pytest.mark.parametrize("peak", [0, 330, 5_000, 32_767])
@pytest.mark.parametrize("encoding", [MULAW, L16])
def test_loudness_is_that_of_the_loudest_sample(encoding: str, peak: int) -> None:
    spoken = MediaFormat(encoding, 8000)
    for sample in (0, 1, 329, 330, 331, 400, -331, -400, 4_999, 6_000, -6_000, 32_767, -32_768):
        data = spoken.encode(np.array([0, sample, 0], np.int16), 8000)
        loudest = int(np.abs(spoken.decode(data).astype(np.int32)).max())
        assert spoken.louder_than(data, peak) is (loudest > peak)
    assert not spoken.louder_than(b"", peak)
