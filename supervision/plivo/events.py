"""Plivo's stream events, read and written.

Frames of media are recognised without parsing them: a call carries a hundred a second, and all that the relay needs
of them is how long their audio lasts. Everything else is parsed by the caller.

Source: Plivo's "Stream Event Protocol"; field types are those that every known client accepts (integer
``sequenceNumber``, string ``streamId``, all fields present).
"""

from __future__ import annotations

import binascii
import json
import re
from typing import Any, Final

# Only a frame that opens with its event is taken for media unparsed; any other key order is parsed like other frames.
_MEDIA: Final = re.compile(r'\s*\{\s*"event"\s*:\s*"media"\s*[,}]')
_PLAY_AUDIO: Final = re.compile(r'\s*\{\s*"event"\s*:\s*"playAudio"\s*[,}]')
# As they are nearly always written: the expressions above would say the same of these, in four times the time.
_MEDIA_OPENS: Final = ('{"event":"media",', '{"event": "media",')
_PLAY_AUDIO_OPENS: Final = ('{"event":"playAudio",', '{"event": "playAudio",')
_PAYLOAD: Final = re.compile(r'"payload"\s*:\s*"')
_OUTBOUND: Final = re.compile(r'"track"\s*:\s*"outbound"')


def is_media(text: str) -> bool:
    """Whether ``text`` is a media event of Plivo (caller's audio), told from its first bytes."""
    return text.startswith(_MEDIA_OPENS) or _MEDIA.match(text) is not None


def is_callers(text: str) -> bool:
    """Whether a media event is of the caller, not of the track that the caller hears."""
    return _OUTBOUND.search(text) is None


def is_play_audio(text: str) -> bool:
    """Whether ``text`` is a playAudio event of an agent, told from its first bytes."""
    return text.startswith(_PLAY_AUDIO_OPENS) or _PLAY_AUDIO.match(text) is not None


def payload_span(text: str) -> tuple[int, int]:
    """Start and end index of the base64 payload inside a media or playAudio frame; ``(0, 0)`` when there is none."""
    named = text.find('"payload"')
    if named < 0:
        return 0, 0
    if text.startswith((':"', ': "'), named + 9):
        start = text.index('"', named + 9) + 1
    else:
        found = _PAYLOAD.search(text, named)
        if found is None:
            return 0, 0
        start = found.end()
    end = text.find('"', start)
    return (start, end) if end > start else (0, 0)


def base64_length(text: str, start: int, end: int) -> int:
    """Number of bytes that the base64 in ``text[start:end]`` decodes to, without decoding it."""
    length = (end - start) * 3 // 4
    if length and text[end - 1] == "=":
        return max(0, length - (2 if text[end - 2] == "=" else 1))
    return length


def payload(text: str) -> bytes:
    """The audio of a media or playAudio frame; empty when there is none, or it is not base64."""
    start, end = payload_span(text)
    try:
        return binascii.a2b_base64(text[start:end])
    except (binascii.Error, ValueError):
        return b""


def dump(frame: dict[str, Any]) -> str:
    """A frame as compact JSON text."""
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False)


def play_audio(payload: str, *, content_type: str, sample_rate: int, stream_id: str) -> str:
    """A playAudio frame around base64 ``payload``."""
    media = {"contentType": content_type, "sampleRate": sample_rate, "payload": payload}
    return dump({"event": "playAudio", "media": media, "streamId": stream_id})


def checkpoint(name: str, *, stream_id: str) -> str:
    """A checkpoint frame: Plivo answers ``playedStream`` with this name when all audio before it has played."""
    return dump({"event": "checkpoint", "streamId": stream_id, "name": name})


def clear_audio(*, stream_id: str) -> str:
    """A clearAudio frame: Plivo drops all that is queued and answers ``clearedAudio``."""
    return dump({"event": "clearAudio", "streamId": stream_id})


def played_stream(name: str, *, stream_id: str, sequence: int) -> str:
    """The acknowledgement of a checkpoint, in the form that every known client accepts."""
    return dump({"event": "playedStream", "sequenceNumber": sequence, "streamId": stream_id, "name": name})


def cleared_audio(*, stream_id: str, sequence: int) -> str:
    """The acknowledgement of a clearAudio, in the form that every known client accepts."""
    return dump({"event": "clearedAudio", "sequenceNumber": sequence, "streamId": stream_id})
