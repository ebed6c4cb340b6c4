"""Frames that make no sense, from a seed: the same seed gives the same frames, on any machine.

Most are valid frames with something wrong in one place, because those get furthest; the rest is noise. Hypothesis finds
small examples of what it thinks of (tests/stream/test_fuzz.py); this makes very many, quickly.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Frame = str | bytes

_TEXTS = ("", "t1", "t2", "Good day.", "\x00", "\ud83d", "\u202e", "é" * 40, "x" * 5000, "mirror.", '{"event":', "null")
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, 5e-324, "", "0", [], {}, [[]], [None], {"a": {}},
    {"event": "media"}, ["t1"] * 50,
)  # fmt: skip

_FROM_AGENT: tuple[dict[str, Any], ...] = (
    {"event": "mirror.hello", "v": 1, "sdk": "x/1", "wants": ["notes"], "language": "en", "voice": "", "marks": False},
    {"event": "mirror.transcript", "role": "customer", "text": "Hello.", "final": True, "language": "en"},
    {"event": "mirror.turn", "turn_id": "t1", "customer_text": "Hi.", "text": "Good day.", "tool_calls": []},
    {"event": "mirror.turn", "turn_id": "t2", "text": "Yes.", "tool_calls": [{"id": "c9", "name": "n", "args": {}}]},
    {"event": "mirror.delta", "turn_id": "d1", "text": "Good ", "final": False},
    {"event": "mirror.audio", "turn_id": "t1", "state": "mark", "chars": 3},
    {"event": "mirror.tool", "id": "c1", "name": "look_up", "args": {"a": 1}, "timeout_ms": 100, "key": "k"},
    {"event": "mirror.tool_done", "id": "c1", "ok": True, "result": {}, "cancelled": False},
    {"event": "mirror.said", "id": "s1"},
    {"event": "playAudio", "media": {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": "EJCQkJCQkJA="}},
    {"event": "checkpoint", "streamId": "s", "name": "one"},
    {"event": "clearAudio", "streamId": "s"},
    {"event": "sendDTMF", "dtmf": {"digit": "1"}},
)
_FROM_PLIVO: tuple[dict[str, Any], ...] = (
    {"event": "media", "sequenceNumber": 4, "streamId": "s", "extra_headers": "",
     "media": {"track": "inbound", "timestamp": "1705312200000", "chunk": 3, "payload": "/////w=="}},
    {"event": "dtmf", "sequenceNumber": 5, "streamId": "s", "dtmf": {"track": "inbound", "digit": "5"}},
    {"event": "playedStream", "sequenceNumber": 6, "streamId": "s", "name": "one"},
    {"event": "clearedAudio", "sequenceNumber": 7, "streamId": "s"},
    {"event": "start", "sequenceNumber": 1, "start": {"callId": "x", "streamId": "y", "mediaFormat": {}}},
    {"event": "error", "reason": "?"},
    {"event": "playFailed", "reason": "?"},
)  # fmt: skip


def fuzz_frames(seed: int, number: int, *, side: str) -> Iterator[Frame]:
    """`number` frames as `side`, `agent` or `plivo`, might send them; text may hold what is not UTF-8 as surrogates."""
    rng = random.Random(f"{seed} {side}")
    valid = _FROM_AGENT if side == "agent" else _FROM_PLIVO
    ways: tuple[Callable[[random.Random, tuple[dict[str, Any], ...]], Frame], ...] = (
        _one_field_wrong, _one_field_wrong, _one_field_wrong, _one_field_gone, _as_it_is, _cut, _byte_flipped, _noise,
        _deep, _binary,
    )  # fmt: skip
    for _ in range(number):
        yield rng.choice(ways)(rng, valid)


def _as_it_is(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    return json.dumps(rng.choice(valid))


def _one_field_wrong(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    frame = json.loads(json.dumps(rng.choice(valid)))
    inside = frame
    while True:
        name = rng.choice(list(inside))
        if isinstance(inside[name], dict) and inside[name] and rng.random() < 0.7:
            inside = inside[name]
            continue
        inside[name] = rng.choice(_TEXTS) if rng.random() < 0.4 else rng.choice(_VALUES)
        return json.dumps(frame)


def _one_field_gone(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    frame = dict(rng.choice(valid))
    del frame[rng.choice(list(frame))]
    return json.dumps(frame)


def _cut(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    text = json.dumps(rng.choice(valid))
    return text[: rng.randrange(len(text))]


def _byte_flipped(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    text = bytearray(json.dumps(rng.choice(valid)).encode())
    text[rng.randrange(len(text))] = rng.randrange(32, 127)
    return text.decode()


def _noise(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    return "".join(
        chr(rng.choice((rng.randrange(1, 128), rng.randrange(128, 0xD800)))) for _ in range(rng.randrange(60))
    )


def _deep(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    depth = rng.choice((3, 40, 2000))
    event = rng.choice(("mirror.turn", "media", "?"))
    return f'{{"event":"{event}","x":{"[" * depth}{"]" * depth}}}'


def _binary(rng: random.Random, valid: tuple[dict[str, Any], ...]) -> Frame:
    return rng.randbytes(rng.randrange(80))
