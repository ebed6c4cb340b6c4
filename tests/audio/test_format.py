"""The call's format, read from Plivo's `start` and spoken both ways."""

import numpy as np
import pytest

from supervision.audio.format import L16, MULAW, MediaFormat, MediaFormatError
from supervision.audio.pcm import decode_l16, encode_l16, from_float

MULAW_8K = MediaFormat(MULAW, 8000)
L16_8K = MediaFormat(L16, 8000)
L16_16K = MediaFormat(L16, 16000)
TONE = np.rint(9000 * np.sin(np.arange(4800) * 0.1)).astype(np.int16)


@pytest.mark.parametrize(
    ("media_format", "bytes_per_ms", "frame_bytes", "xml"),
    [
        (MULAW_8K, 8, 160, "audio/x-mulaw;rate=8000"),
        (L16_8K, 16, 320, "audio/x-l16;rate=8000"),
        (L16_16K, 32, 640, "audio/x-l16;rate=16000"),
    ],
)
def test_sizes_and_names_are_plivos(media_format, bytes_per_ms, frame_bytes, xml):
    assert media_format.bytes_per_ms == bytes_per_ms
    assert media_format.frame_bytes == frame_bytes
    assert media_format.content_type == media_format.encoding
    assert media_format.xml_content_type == xml
    assert media_format.duration_ms(frame_bytes) == 20
    assert len(media_format.silence(60)) == 3 * frame_bytes
    assert not media_format.decode(media_format.silence(60)).any()


@pytest.mark.parametrize(
    "media_format",
    [
        {"encoding": "audio/x-mulaw", "sampleRate": 8000},
        {"encoding": "audio/x-mulaw", "sampleRate": "8000"},
        {"encoding": "AUDIO/X-MULAW", "sampleRate": 8000, "channels": 1},
        {"encoding": "audio/x-mulaw;rate=8000", "sampleRate": 8000},
    ],
)
def test_the_forms_that_sources_show_are_all_understood(media_format):
    assert MediaFormat.from_start(media_format) == MULAW_8K


@pytest.mark.parametrize(
    ("media_format", "what"),
    [
        (None, "start.mediaFormat is missing"),
        ("audio/x-mulaw", "start.mediaFormat is missing or not an object"),
        ([], "start.mediaFormat"),
        ({}, "mediaFormat.encoding is missing"),
        ({"encoding": 7, "sampleRate": 8000}, "mediaFormat.encoding"),
        ({"encoding": "audio/opus", "sampleRate": 8000}, "'audio/opus' is not known; expected audio/x-mulaw"),
        ({"encoding": "audio/x-mulaw"}, "mediaFormat.sampleRate is missing"),
        ({"encoding": "audio/x-mulaw", "sampleRate": True}, "mediaFormat.sampleRate"),
        ({"encoding": "audio/x-mulaw", "sampleRate": 8000.0}, "mediaFormat.sampleRate"),
        ({"encoding": "audio/x-mulaw", "sampleRate": "8 kHz"}, "mediaFormat.sampleRate"),
        ({"encoding": "audio/x-mulaw", "sampleRate": "9" * 5000}, "mediaFormat.sampleRate"),
        ({"encoding": "audio/x-mulaw", "sampleRate": 16000}, "does not go with audio/x-mulaw; expected 8000"),
        ({"encoding": "audio/x-l16", "sampleRate": 24000}, "expected 8000 or 16000"),
    ],
)
def test_a_format_that_plivo_does_not_have_is_refused_by_field(media_format, what):
    with pytest.raises(MediaFormatError, match=what):
        MediaFormat.from_start(media_format)


@pytest.mark.parametrize("media_format", [L16_8K, L16_16K])
def test_l16_is_little_endian_and_loses_nothing(media_format):
    assert media_format.encode(np.array([1, -2], np.int16), media_format.sample_rate) == b"\x01\x00\xfe\xff"
    encoded = media_format.encode(TONE, media_format.sample_rate)
    assert np.array_equal(media_format.decode(encoded), TONE)


def test_half_a_sample_at_the_end_is_left_out():
    assert L16_8K.decode(b"\x01\x00\x02").tolist() == [1]
    assert decode_l16(b"\x07").tolist() == []


def test_mulaw_keeps_a_signal_to_36_db():
    decoded = MULAW_8K.decode(MULAW_8K.encode(TONE, 8000)).astype(float)
    noise = decoded - TONE
    assert 10 * np.log10((TONE.astype(float) ** 2).mean() / (noise**2).mean()) > 36


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K])
def test_audio_at_another_rate_is_converted_to_the_calls(media_format):
    encoded = media_format.encode(TONE, 24_000)
    assert media_format.duration_ms(len(encoded)) == 200
    back = media_format.decode(encoded).astype(float)
    # 381 Hz stays 381 Hz.
    spectrum = np.abs(np.fft.rfft(back))
    assert np.argmax(spectrum) * media_format.sample_rate / len(back) == pytest.approx(
        24_000 * 0.1 / (2 * np.pi), abs=5
    )


@pytest.mark.parametrize("media_format", [MULAW_8K, L16_8K, L16_16K])
@pytest.mark.parametrize("extra", [0, 1, 17, 159])
def test_padding_fills_up_the_last_frame_with_silence(media_format, extra):
    data = (
        media_format.encode(TONE[: 160 * media_format.sample_rate // 8000], media_format.sample_rate) + b"\x01" * extra
    )
    padded = media_format.pad(data)
    assert padded.startswith(data)
    assert len(padded) % media_format.frame_bytes == 0
    assert len(padded) - len(data) < media_format.frame_bytes
    assert set(padded[len(data) :]) <= set(media_format.silence(20))
    assert media_format.pad(b"") == b""


def test_floats_outside_the_range_are_clipped_and_nan_is_silent():
    assert from_float(np.array([0.0, 1.0, -1.0, 2.0, -2.0, np.nan, np.inf])).tolist()[:6] == [
        0, 32767, -32767, 32767, -32768, 0,
    ]  # fmt: skip
    assert encode_l16(from_float(np.array([0.5]))) == b"\x00\x40"
