"""Wire formats, and what can be asked of what was heard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from supervision.plivo.simulator import (
    L16_8K,
    L16_16K,
    MULAW_8K,
    FormatError,
    Found,
    Heard,
    HeardSegment,
    WireFormat,
    read_wav,
    tone,
    write_wav,
)
from supervision.plivo.simulator.sound import resample

ALL_SAMPLES = np.arange(-32768, 32768, dtype=np.int16)

# From ITU-T G.711: the quietest, the loudest and some in between.
G711 = [(0, 0xFF), (4, 0xFE), (-4, 0x7E), (32635, 0x80), (32767, 0x80), (-32768, 0x00), (16764, 0x8F), (-132, 0x6F)]


@pytest.mark.parametrize(("sample", "code"), G711)
def test_mu_law_codes_are_those_of_g711(sample: int, code: int) -> None:
    assert MULAW_8K.encode(np.array([sample], dtype=np.int16), 8000) == bytes([code])


def test_mu_law_is_the_standard_librarys_where_python_still_has_one() -> None:
    audioop = pytest.importorskip("audioop")
    assert MULAW_8K.encode(ALL_SAMPLES, 8000) == audioop.lin2ulaw(ALL_SAMPLES.tobytes(), 2)
    assert MULAW_8K.decode(bytes(range(256))).tobytes() == audioop.ulaw2lin(bytes(range(256)), 2)


def test_every_mu_law_code_survives_a_round_trip() -> None:
    codes = bytes(code for code in range(256) if code != 0x7F)  # 0x7F is the second zero
    assert MULAW_8K.encode(MULAW_8K.decode(codes), 8000) == codes


@pytest.mark.parametrize("media_format", [L16_8K, L16_16K])
def test_l16_is_little_endian_and_lossless(media_format: WireFormat) -> None:
    assert media_format.encode(np.array([1, -2], dtype=np.int16), media_format.sample_rate) == b"\x01\x00\xfe\xff"
    data = media_format.encode(ALL_SAMPLES, media_format.sample_rate)
    assert np.array_equal(media_format.decode(data), ALL_SAMPLES)
    assert len(media_format.decode(data[:-1])) == len(ALL_SAMPLES) - 1


def test_a_frame_has_plivos_sizes() -> None:
    assert [f.frame_bytes for f in (MULAW_8K, L16_8K, L16_16K)] == [160, 320, 640]
    for media_format in (MULAW_8K, L16_8K, L16_16K):
        assert len(media_format.silence(0.02)) == media_format.frame_bytes
        assert not np.any(media_format.decode(media_format.silence(0.1)))


@pytest.mark.parametrize("text", ["audio/x-mulaw", "audio/x-mulaw;rate=16000", "audio/wav;rate=8000", "", "l16"])
def test_other_formats_are_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(FormatError, match=r"audio/x-l16;rate=16000, audio/x-l16;rate=8000, audio/x-mulaw;rate=8000"):
        WireFormat.parse(text)


@pytest.mark.parametrize("text", ["audio/x-mulaw;rate=8000", "audio/x-l16;rate=8000", "audio/x-l16;rate=16000"])
def test_content_types_read_and_write_the_same(text: str) -> None:
    assert WireFormat.parse(text).content_type == text


@pytest.mark.parametrize(("source", "target"), [(24000, 8000), (24000, 16000), (44100, 8000), (8000, 16000)])
def test_resampling_keeps_what_fits_and_drops_what_does_not(source: int, target: int) -> None:
    kept = resample(tone(1000, 1.0, source), source, target).astype(float)
    wanted = tone(1000, 1.0, target).astype(float)
    middle = slice(target // 10, -target // 10)
    assert len(kept) == target
    assert np.sqrt(np.mean((kept[middle] - wanted[middle]) ** 2)) < 0.01 * np.sqrt(np.mean(wanted**2))
    if source > target:
        folded = resample(tone(target / 2 + 1000, 1.0, source), source, target).astype(float)
        assert np.abs(folded[middle]).max() < 0.01 * 32767


def test_a_wav_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 0.1, 8000), 8000)
    pcm, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000
    assert np.array_equal(pcm, tone(440, 0.1, 8000))


def test_a_file_that_is_no_wav_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF1234WAVE")
    with pytest.raises(FormatError, match="a PCM WAV file is needed"):
        read_wav(tmp_path / "a.wav")
    with pytest.raises(FormatError, match="cannot read"):
        read_wav(tmp_path / "none.wav")


def test_a_tone_that_does_not_fit_the_rate_is_refused() -> None:
    with pytest.raises(FormatError, match="less than 4000 Hz"):
        tone(4000, 1, 8000)


# -- what was heard

HEARD = Heard(
    MULAW_8K,
    (HeardSegment(1.0, 1.02, b"a" * 160), HeardSegment(1.02 + 0.5, 1.56, b"b" * 160 + b"c" * 160)),
    2.0,
)


def test_heard_audio_knows_its_length_and_times() -> None:
    assert HEARD.audio == b"a" * 160 + b"b" * 160 + b"c" * 160
    assert HEARD.seconds == pytest.approx(0.06)
    assert (HEARD.start, HEARD.end) == (1.0, 1.56)
    assert Heard(MULAW_8K, (), 1.0).start is Heard(MULAW_8K, (), 1.0).end is None


def test_silences_between_what_was_heard() -> None:
    (gap,) = HEARD.silences()
    assert (gap.start, gap.end, gap.seconds) == (1.02, 1.52, pytest.approx(0.5))
    assert HEARD.silences(at_least=0.6) == []


def test_bytes_are_found_with_their_times() -> None:
    assert HEARD.find(b"c" * 160) == Found(pytest.approx(1.54), pytest.approx(1.56), contiguous=True)
    assert HEARD.find(b"a" + b"b") == Found(pytest.approx(1.02 - 1 / 8000), pytest.approx(1.52 + 1 / 8000), False)
    assert HEARD.find(b"b" * 160, since=1.0) is not None
    assert HEARD.find(b"a" * 160, since=1.1) is None
    assert HEARD.find(b"x") is None
    assert HEARD.find(b"") is None


def test_what_was_heard_since_a_moment_is_cut_there() -> None:
    later = HEARD.since(1.53)
    assert later.audio == b"b" * 80 + b"c" * 160
    assert later.start == pytest.approx(1.53)
    assert HEARD.since(5.0).segments == ()
    assert HEARD.since(0.0) == HEARD


def test_the_recording_has_the_silence_in_it() -> None:
    pcm = HEARD.pcm()
    assert len(pcm) == 16000
    assert not pcm[:8000].any()
    assert np.array_equal(pcm[8000:8160], MULAW_8K.decode(b"a" * 160))
    assert not pcm[8160 : round(1.52 * 8000)].any()
    assert np.array_equal(pcm[round(1.52 * 8000) : round(1.56 * 8000)], MULAW_8K.decode(b"b" * 160 + b"c" * 160))
    assert len(HEARD.pcm(until=1.01)) == 8080


# -- what the stand-in is made of


def test_the_stand_in_imports_nothing_else_of_mirror_and_no_django() -> None:
    code = (
        "import sys, json, supervision.plivo.simulator, supervision.plivo.simulator.cli;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    ours = {name for name in loaded if name.split(".")[0] in ("supervision", "mirror_saas", "tenants", "webui")}
    assert {n for n in ours if not n.startswith("supervision.plivo.simulator")} == {"supervision", "supervision.plivo"}
    assert not {"django", "channels", "celery", "websockets", "hibari"} & set(loaded)
