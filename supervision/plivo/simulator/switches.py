"""The switches of the Plivo stand-in: one for everything that Plivo's documents leave open or that goes wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

__all__ = ["ABSENT", "PlivoSwitches", "SwitchError"]

ABSENT = "absent"
"""Value of `extra_headers` that leaves the field out of every event."""


class SwitchError(ValueError):
    """A switch that does not exist or a value that it does not take; the message names both and what is allowed."""


def _switch(default: Any, help_text: str, *, choices: tuple[Any, ...] = (), low: float | None = None) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices, "low": low})


_CLEARED = ("normal", "lost", "late", "double")


@dataclass(frozen=True, kw_only=True)
class PlivoSwitches:
    """How this Plivo behaves where the documents allow more than one way. Durations are in seconds.

    Raises `SwitchError` on construction when a value is not allowed.
    """

    start_delay_s: float = _switch(0.0, "time from the accepted handshake to `start` (about 3.2 was seen live)", low=0)
    subprotocol: str = _switch("", "subprotocols offered in the handshake, comma-separated, as `audio.drachtio.org`")
    subprotocol_required: bool = _switch(False, "fail the handshake when the server selects none of those offered")
    seq_start: int = _switch(1, "sequenceNumber of `start`", choices=(0, 1))
    extra_headers: str = _switch("", f"text of `extra_headers` in start, media and dtmf; `{ABSENT}` leaves it out")
    played_seq: bool = _switch(True, "playedStream carries sequenceNumber")
    send_stop: str = _switch(
        "off", "`stop` before hanging up: not sent, in full, or only its name", choices=("off", "on", "bare")
    )
    checkpoint_on_empty: str = _switch(
        "fire", "a checkpoint that finds nothing queued is answered or not", choices=("fire", "never")
    )
    pending_checkpoints_on_clear: str = _switch(
        "drop",
        "checkpoints still queued at clearAudio: never answered, answered before clearedAudio, or "
        "pending_checkpoint_delay_s after it",
        choices=("drop", "fire_late", "fire_now"),
    )
    pending_checkpoint_delay_s: float = _switch(1.0, "how late `fire_late` is", low=0)
    cleared_audio: str = _switch(
        "normal",
        "answer to clearAudio: normal, lost, late or double; `lost,normal` loses the first only, the last one repeats",
    )
    cleared_audio_delay_s: float = _switch(1.0, "how late `late` is", low=0)
    bad_audio: str = _switch(
        "ignore",
        "playAudio without media, with bad base64, a foreign format or an odd L16 length: ignored, or playFailed",
        choices=("ignore", "playFailed"),
    )
    delay_s: float = _switch(0.0, "one-way delay between Plivo and the server, in each direction", low=0)
    jitter_s: float = _switch(0.0, "up to this much more delay, even at random, order kept", low=0)
    seed: int = _switch(0, "seed of the jitter")
    reconnects: int = _switch(0, "how often Plivo dials again after a failed or lost connection", choices=(0, 1, 2))
    reconnect_delay_s: float = _switch(0.5, "time before dialling again", low=0)
    reconnect_on: str = _switch(
        "drop",
        "what counts as lost: an end without a close frame, or also close codes other than 1000 and 1001",
        choices=("drop", "abnormal"),
    )
    queue_on_reconnect: str = _switch(
        "lost", "the playout queue when the connection is lost: emptied, or played on", choices=("lost", "kept")
    )
    slow_reader_bytes_s: int = _switch(
        0, "read at most this many bytes a second from the server; 0 reads at once", low=0
    )
    send_buffer_s: float = _switch(
        40.0, "audio kept for a server that does not read; then the stream is dropped", low=0.02
    )
    ping_s: float = _switch(0.0, "send a WebSocket ping this often; 0 never", low=0)
    hang_up_at_s: float = _switch(0.0, "the caller hangs up this long after `start`; 0 never", low=0)

    def __post_init__(self) -> None:
        for item in fields(self):
            value, meta = getattr(self, item.name), item.metadata
            kind = type(item.default)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, item.name, float(value))
                value = float(value)
            if type(value) is not kind:
                raise SwitchError(f"switch {item.name}: {value!r} is not {_KIND_NAMES[kind]}")
            if kind is float and not math.isfinite(value):
                raise SwitchError(f"switch {item.name}: {value!r} is not a finite number")
            if meta["choices"] and value not in meta["choices"]:
                raise SwitchError(f"switch {item.name}: {value!r} is not one of {_spoken(meta['choices'])}")
            if meta["low"] is not None and value < meta["low"]:
                raise SwitchError(f"switch {item.name}: {value!r} is below {meta['low']}")
        for answer in self.cleared_audio.split(","):
            if answer not in _CLEARED:
                raise SwitchError(f"switch cleared_audio: {answer!r} is not one of {_spoken(_CLEARED)}")

    @classmethod
    def names(cls) -> list[str]:
        return [item.name for item in fields(cls)]

    @classmethod
    def describe(cls) -> list[tuple[str, str, str]]:
        """Name, default and meaning of every switch, for help texts."""
        return [(item.name, _text(item.default), str(item.metadata["help"])) for item in fields(cls)]

    def with_text(self, assignments: Iterable[str]) -> PlivoSwitches:
        """A copy with `name=value` texts applied, as `--set` takes them; raises `SwitchError`."""
        values: dict[str, Any] = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise SwitchError(f"{assignment!r} is not of the form switch=value")
            values[name.strip()] = text
        return self.with_values(values)

    def with_values(self, values: dict[str, Any]) -> PlivoSwitches:
        """A copy with values by name; texts are converted to the switch's type. Raises `SwitchError`."""
        kinds = {item.name: type(item.default) for item in fields(self)}
        converted: dict[str, Any] = {}
        for name, value in values.items():
            if name not in kinds:
                raise SwitchError(f"there is no switch {name!r}; the switches are: {', '.join(kinds)}")
            converted[name] = _converted(name, value, kinds[name])
        return replace(self, **converted)

    def cleared_answer(self, index: int) -> str:
        """The answer to the clearAudio number `index`, counted from 0."""
        answers = self.cleared_audio.split(",")
        return answers[min(index, len(answers) - 1)]


_KIND_NAMES = {float: "a number", int: "a whole number", bool: "on or off", str: "text"}
_WORDS = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def _converted(name: str, value: Any, kind: type) -> Any:
    # YAML reads a bare `on` or `off` as a boolean, also where the switch is a text.
    if kind is str and isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, str) or kind is str:
        return value
    text = value.strip()
    try:
        if kind is bool:
            return _WORDS[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise SwitchError(f"switch {name}: {value!r} is not {_KIND_NAMES[kind]}") from None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spoken(choices: Iterable[Any]) -> str:
    return ", ".join(str(choice) for choice in choices)
