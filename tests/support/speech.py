"""Real speech for tests: each line is rendered once per test process, as the bytes that a call carries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from supervision.audio.format import MULAW, MediaFormat
from supervision.audio.levels import frame_levels
from supervision.engine.tts.offline import HibariTTS
from supervision.engine.tts.protocol import Speech


@cache
def _voice() -> HibariTTS:
    return HibariTTS()


@cache
def render(line: str) -> Speech:
    """`line` in English as the offline voice speaks it, 24 kHz. Blocks: some 10 ms per second of speech."""
    return _voice().render(line)


@cache
def say(line: str, *, encoding: str = MULAW, sample_rate: int = 8000) -> bytes:
    """`line` in English, encoded for a call (8 kHz mu-law unless told otherwise) and padded to whole 20 ms frames."""
    media_format = MediaFormat(encoding, sample_rate)
    speech = render(line)
    return media_format.pad(media_format.encode(speech.samples, speech.sample_rate))


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word with its true times in milliseconds from the start of the rendered line."""

    word: str
    start_ms: float
    end_ms: float


@cache
def true_words(line: str) -> tuple[TimedWord, ...]:
    """When each word of `render(line)` is really spoken, from the durations that the voice model itself decides on.

    The model gives a pause to the sound before it, so a word ends where its sound is last audible. Raises ValueError
    for a line whose words cannot be told apart in its phonemes.
    """
    voice, model = _duration_model()
    speech = render(line)
    audible = frame_levels(speech.samples, speech.sample_rate, 5) >= -52.0
    words: list[TimedWord] = []
    sentence_ms = 0.0
    for sentence in voice.split_sentences(line):
        phonemes = voice.g2p(sentence)
        ids = voice.ids(phonemes)
        durations = model.run(
            ["/Clip_output_0"], {"ids": np.asarray([ids], np.int64), "speed": np.asarray([1.0], np.float32)}
        )[0].ravel()
        ends = sentence_ms + np.cumsum(durations) * 25.0  # the model counts in 25 ms
        starts = ends - durations * 25.0
        sentence_ms = float(ends[-1])
        groups = phonemes.split(" ")
        spoken = sentence.split()
        lengths = [len(voice.g2p(word).split(" ")) for word in spoken]
        if sum(lengths) != len(groups):
            raise ValueError(f"{sentence!r}: words and phonemes do not match one to one; use another line")
        places: list[tuple[int, int]] = []  # first and last sound of each group, by their ids
        at = 1
        for group in groups:
            symbols = [symbol for symbol in group if symbol in voice.vocab]
            sounds = [number for number, symbol in enumerate(symbols) if symbol.isalpha()]
            places.append((at + sounds[0], at + sounds[-1]))
            at += len(symbols) + 1
        group = 0
        for word, length in zip(spoken, lengths, strict=True):
            start = float(starts[places[group][0]])
            end = float(ends[places[group + length - 1][1]])
            heard = np.flatnonzero(audible[int(start / 5) : int(end / 5)])
            words.append(TimedWord(word, start, start + (float(heard[-1]) + 1) * 5 if len(heard) else end))
            group += length
    return tuple(words)


@cache
def _duration_model() -> tuple[Any, Any]:
    """hibari's voice, and its model with the durations made an output."""
    import onnxruntime
    from hibari import Hibari

    voice = Hibari(voice="heart")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Protobuf messages are merged by appending: ModelProto.graph (7) . output (12) . ValueInfoProto.name (1).
    name = b"/Clip_output_0"
    for field in (1, 12, 7):
        name = bytes([field << 3 | 2, len(name)]) + name
    return voice, onnxruntime.InferenceSession(
        Path(voice.model_path).read_bytes() + name, options, providers=["CPUExecutionProvider"]
    )
