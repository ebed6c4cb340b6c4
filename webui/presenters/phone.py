"""What a browser that is a telephone is told of its call."""

from __future__ import annotations

import re
from typing import Any

from supervision.plivo.simulator import CallRecord, Event

# What Plivo's wire carries beside audio, as a developer of an agent looks for it.
_WIRE = frozenset({"start", "dtmf", "playedStream", "clearedAudio", "checkpoint", "clearAudio", "sendDTMF", "ignored"})
_DETAIL_CHARS = 120
# Mirror's own checkpoints have a prefix that nobody else is to know.
_OWN = re.compile(r"^__mirror_[0-9a-f]+_([a-z]+)_\d+$")


def event_message(event: Event) -> dict[str, Any] | None:
    """The message about something that happened at the caller's end, None for what nobody needs to see."""
    at_ms = round(event.t * 1000)
    match event.kind:
        case "caller_speaks":
            seconds = event.data["seconds"]
            return {"type": "caller", "at_ms": at_ms, "text": event.data["label"], "ms": round(seconds * 1000)}
        case "hears":
            return {"type": "agent", "at_ms": at_ms, "speaks": True}
        case "heard":
            return {"type": "agent", "at_ms": at_ms, "speaks": False}
        case kind if kind in _WIRE:
            return {"type": "wire", "at_ms": at_ms, "from": event.source, "event": kind, "detail": _detail(event)}
    return None


def _detail(event: Event) -> str:
    data = event.data
    match event.kind:
        case "start":
            media = data["start"]["mediaFormat"]
            words = f"{media['encoding']}, {media['sampleRate']} Hz"
        case "checkpoint" | "playedStream":
            words = _OWN.sub(r"Mirror’s \1", str(data["name"]))
        case "clearAudio":
            words = f"{data['bytes']} bytes dropped"
        case "dtmf":
            words = str(data["dtmf"]["digit"])
        case "sendDTMF":
            words = str(data.get("dtmf") or "")
        case "ignored":
            words = f"{data['event']}: {data['why']}"
        case _:
            words = ""
    return words[:_DETAIL_CHARS]


def ended_message(record: CallRecord, *, why: str, max_s: float) -> dict[str, Any]:
    """How a call ended, in words; `why` is what Mirror's record says of a failed one."""
    if record.ended_by == "caller":
        words = "The caller hung up."
    elif record.ended_by == "plivo":
        words = f"The call was ended after {max_s / 60:g} minutes, the most that a test call may take."
    elif record.outcome == "completed":
        words = "The agent ended the call."
    elif why:
        words = f"The call failed: {why}."
    else:
        words = "The call failed: Mirror or the agent ended it."
    return {
        "type": "ended",
        "words": words,
        "failed": record.outcome != "completed",
        "heard_ms": round(record.heard.seconds * 1000),
        "cleared_ms": round(record.cleared_bytes * 1000 / record.format.bytes_per_second),
    }
