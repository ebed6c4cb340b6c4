"""What `manage.py simulate_call` does: place one call, tell what happens, and say with the exit code how it went."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from . import script
from .answer import AnswerClient, AnswerError
from .call import SimulatedCall
from .record import CallRecord, Event
from .script import DEFAULT_SCRIPT, Script, ScriptError, load_script, parse_script
from .sound import FRAME_MS, write_wav
from .switches import PlivoSwitches, SwitchError

__all__ = ["COMPLETED", "FAILED", "UNUSABLE", "script_help", "simulate_call", "switches_help"]

COMPLETED = 0
FAILED = 1
UNUSABLE = 2

_HIDDEN = ("extra_headers",)
"""Fields that may hold secrets of the caller's session and have no place on a screen."""


class Output(Protocol):
    """Where texts go: an open file, or Django's wrapper around one."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def simulate_call(
    url: str,
    *,
    out: Output,
    errors: Output,
    script_file: Path | None = None,
    settings: Sequence[str] = (),
    as_json: bool = False,
    wav_file: Path | None = None,
) -> int:
    """Place a call to a stream URL (`ws`, `wss`) or an answer URL (`http`, `https`) and write its timeline to `out`.

    `settings` are `switch=value` texts, which win over the script's switches. Returns the exit code: 0 when the call
    completed, 1 when it failed, 2 when URL, script, switches or WAV file cannot be used (then nothing was dialled).
    """
    try:
        if urlsplit(url).scheme not in ("ws", "wss", "http", "https") or not urlsplit(url).netloc:
            raise ScriptError(f"{url!r} is neither a stream URL (ws://, wss://) nor an answer URL (http://, https://)")
        written = parse_script(DEFAULT_SCRIPT) if script_file is None else load_script(script_file)
        prepared = replace(written, switches=written.switches.with_text(settings)).prepare()
        if wav_file is not None:
            wav_file.open("ab").close()  # better to know before the call than after it
    except (ScriptError, SwitchError) as error:
        errors.write(f"{error}\n")
        return UNUSABLE
    except (OSError, ValueError) as error:
        errors.write(f"cannot be used: {error}\n")
        return UNUSABLE

    def show(event: Event) -> None:
        out.write((_json_line(event) if as_json else _text_line(event)) + "\n")
        out.flush()

    placing = _by_answer_url if urlsplit(url).scheme in ("http", "https") else _directly
    try:
        record = asyncio.run(placing(url, prepared, show))
    except (AnswerError, ScriptError) as error:
        errors.write(f"{error}\n")
        return FAILED
    except KeyboardInterrupt:
        errors.write("interrupted\n")
        return FAILED
    out.write((json.dumps(_summary(record)) if as_json else _closing_lines(record)) + "\n")
    if wav_file is not None:
        try:
            write_wav(wav_file, record.heard.pcm(), record.format.sample_rate)
        except OSError as error:
            errors.write(f"cannot write {wav_file}: {error}\n")
            return FAILED
    return COMPLETED if record.outcome == "completed" else FAILED


def script_help() -> str:
    """How a script is written."""
    return script.__doc__ or ""


def switches_help() -> str:
    """Two lines for each switch: name and default, meaning."""
    return "\n".join(
        f"  {name}={default or '(empty)'}\n      {text}" for name, default, text in PlivoSwitches.describe()
    )


_Show = Callable[[Event], None]


async def _directly(url: str, caller: Script, show: _Show) -> CallRecord:
    call = SimulatedCall(
        url,
        caller.run,
        caller.switches,
        media_format=caller.media_format,
        from_number=caller.from_number,
        to_number=caller.to_number,
        on_event=show,
    )
    return await call.run()


async def _by_answer_url(url: str, caller: Script, show: _Show) -> CallRecord:
    async with AnswerClient(url, from_number=caller.from_number, to_number=caller.to_number) as plivo:
        element = await plivo.fetch()
        if element.media_format != caller.media_format:
            caller = await asyncio.to_thread(caller.prepare, element.media_format)
        call = await plivo.answer(caller.run, caller.switches, on_event=show)
        return await call.run()


def _shown(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.data.items() if key not in _HIDDEN}


def _json_line(event: Event) -> str:
    return json.dumps(
        {"t": round(event.t, 3), "source": event.source, "kind": event.kind, **_shown(event)}, default=str
    )


_ARROWS = {"plivo": "plivo > server", "server": "plivo < server", "call": "call          "}


_WIRE_NUMBERS = ("sequenceNumber", "streamId", "timestamp", "track")
"""Left out of the text for people; --json has them."""


def _text_line(event: Event) -> str:
    fields = _shown(event)
    if event.source == "plivo":
        for name in ("start", "dtmf", "stop"):
            fields |= fields.pop(name, {})
    fields |= fields.pop("mediaFormat", {})
    details = " ".join(f"{key}={_brief(value)}" for key, value in fields.items() if key not in _WIRE_NUMBERS)
    return f"{event.t:9.3f}  {_ARROWS[event.source]}  {event.kind} {details}".rstrip()


def _brief(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _summary(record: CallRecord) -> dict[str, Any]:
    return {
        "kind": "summary",
        "outcome": record.outcome,
        "ended_by": record.ended_by,
        "reason": record.reason,
        "call_id": record.call_id,
        "stream_ids": record.stream_ids,
        "format": record.format.content_type,
        "handshake_status": record.handshake_status,
        "close_code": record.close_code,
        "started_t": None if record.started_t is None else round(record.started_t, 3),
        "ended_t": None if record.ended_t is None else round(record.ended_t, 3),
        "media_sent": len(record.media_sent_at),
        "play_audio_received": len(record.play_bytes),
        "play_audio_bytes": sum(record.play_bytes),
        "cleared_bytes": record.cleared_bytes,
        "heard_seconds": round(record.heard.seconds, 3),
        "heard": [[round(segment.start, 3), round(segment.end, 3)] for segment in record.heard.segments],
    }


def _closing_lines(record: CallRecord) -> str:
    seconds = len(record.media_sent_at) * FRAME_MS / 1000
    return "\n".join(
        [
            "",
            f"{record.outcome}: {record.reason}",
            f"call {record.call_id}, {record.format.content_type}, {seconds:.1f} s of caller audio sent",
            f"{len(record.play_bytes)} playAudio, {record.heard.seconds:.1f} s heard, "
            f"{record.cleared_bytes / record.format.bytes_per_second:.1f} s cleared unheard",
        ]
    )
