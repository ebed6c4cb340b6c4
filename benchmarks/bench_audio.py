"""What the audio conversions cost: `python -m benchmarks.bench_audio`.

Median and worst of 50 runs each, in milliseconds of one core for 2 s of audio. What stays far below 5 ms may run on the
event loop. Also what the sample-rate conversion lets through, beside taking every third sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from supervision.audio import mulaw
from supervision.audio.format import MediaFormat
from supervision.audio.levels import match_level, rms_dbfs
from supervision.audio.resample import RATES, Resampler, resample
from supervision.audio.vad import SpeechDetector

SECONDS = 2


def cost(title: str, work: Callable[[], object]) -> None:
    """Print how long `work` takes."""
    work()
    spent = []
    for _ in range(50):
        began = time.perf_counter()
        work()
        spent.append((time.perf_counter() - began) * 1000)
    print(f"{title:46} median {np.median(spent):6.2f} ms   worst {max(spent):6.2f} ms")


def attenuation(convert: Callable[[np.ndarray], np.ndarray]) -> float:
    """The least attenuation in dB of tones from 4.5 to 12 kHz on the way from 24 to 8 kHz."""
    worst = -200.0
    for hz in range(4500, 12_000, 25):
        tone = np.rint(16_000 * np.sin(2 * np.pi * hz * np.arange(24_000) / 24_000)).astype(np.int16)
        out = convert(tone)[100:].astype(float)
        worst = max(worst, 10 * np.log10(max((out**2).mean(), 1e-3) / (16_000**2 / 2)))
    return -worst


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(1)

    def audio(rate: int) -> np.ndarray:
        return np.clip(rng.normal(0, 3000, SECONDS * rate), -32768, 32767).astype(np.int16)

    line = audio(8000)
    encoded = mulaw.encode(line)
    cost("mu-law encode", lambda: mulaw.encode(line))
    cost("mu-law decode", lambda: mulaw.decode(encoded))
    for rate in RATES:
        if rate != 8000:
            other = audio(rate)
            cost(f"{rate} Hz to 8000 Hz", lambda other=other, rate=rate: resample(other, rate, 8000))  # type: ignore[misc]
    cost("8000 Hz to 48000 Hz", lambda: resample(line, 8000, 48_000))
    high = audio(24_000)
    cost("MediaFormat.encode, 24000 Hz to mu-law", lambda: MediaFormat().encode(high, 24_000))
    cost("rms_dbfs, 8000 Hz", lambda: rms_dbfs(line, 8000))
    cost("match_level, 8000 Hz, 12 dB up and limited", lambda: match_level(line, 8000, -9.0))
    cost("match_level, 24000 Hz", lambda: match_level(high, 24_000, -20.0))
    detector = SpeechDetector(MediaFormat())
    frames = [encoded[at : at + 160] for at in range(0, len(encoded), 160)]
    cost("speech detection, 100 frames", lambda: [detector.push(frame) for frame in frames])
    stream = Resampler(24_000, 8000)
    chunks = [high[at : at + 480] for at in range(0, len(high), 480)]
    cost("streamed 24000 to 8000 Hz, 100 frames", lambda: [stream.push(chunk) for chunk in chunks])
    ours, plain = attenuation(lambda tone: resample(tone, 24_000, 8000)), attenuation(lambda tone: tone[::3])
    print(f"least attenuation from 4.5 kHz up, 24 to 8 kHz: {ours:.0f} dB; every third sample: {plain:.0f} dB")


if __name__ == "__main__":
    main()
