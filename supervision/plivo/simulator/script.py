"""What the caller does, read from YAML.

A script is a mapping. All keys but `steps` are optional:

    format: audio/x-mulaw;rate=8000     # or audio/x-l16;rate=8000, audio/x-l16;rate=16000
    from: "15550100001"                 # the caller's number
    to: "15550100002"
    max_seconds: 120                    # then the caller hangs up
    switches: {delay_s: 0.03}           # how this Plivo behaves, see PlivoSwitches
    steps:
      - say: "Hi, I would like to cancel my order."
      - say: "Yes, please."
        after: agent_silent 0.8
      - press: "5"
        after: wait 1
      - hang_up:
        after: agent_silent 2

Each step is one action and optionally when it begins; steps run one after the other.

Actions: `say: text` (spoken by the offline voice, English), `wav: file` (relative to the script), `tone: hz seconds`,
`silence: seconds`, `press: keys`, `hang_up:`, `drop_connection:` (the network breaks; Plivo may dial again).

When: `at: seconds` since the stream started, or one `after`:
- `wait S`: S seconds after the step before has ended (the default is 0);
- `agent_silent S`: the agent has spoken since the step before ended, and has been silent for S seconds;
- `agent_speaking S`: the agent has spoken for S seconds since the step before ended; what follows interrupts it;
- `heard S`: S seconds of audio were played, silent or not, since the step before ended.
`timeout: seconds` (default 30) is how long an `after` may take; then the call fails, or with `optional: true` the step
is done all the same.

A script that ends without `hang_up` waits for the agent to end the call, or for `max_seconds`; a script that is not
through by `max_seconds` (default 120) has failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .call import CallFailed, SimulatedCall
from .sound import FRAME_MS, MULAW_8K, FormatError, Pcm, WireFormat, read_wav, tone
from .speech import SpeechUnavailable, speak
from .switches import PlivoSwitches, SwitchError

__all__ = ["DEFAULT_SCRIPT", "Script", "ScriptError", "Step", "load_script", "parse_script"]

DEFAULT_SCRIPT = """\
steps:
  - say: "Hello, can you help me?"
    after: agent_silent 0.8
    timeout: 8
    optional: true
  - say: "Thank you. Goodbye."
    after: agent_silent 1.2
  - hang_up:
    after: wait 0.5
"""

_AUDIBLE_DBFS = -50.0
"""A 20 ms frame louder than this (RMS, relative to full scale) is the agent speaking."""
_CONDITIONS = ("wait", "agent_silent", "agent_speaking", "heard")
_ACTIONS = ("say", "wav", "tone", "silence", "press", "hang_up", "drop_connection")
_STEP_KEYS = (*_ACTIONS, "at", "after", "timeout", "optional")
_SCRIPT_KEYS = ("format", "from", "to", "max_seconds", "switches", "steps")
_KEYS = frozenset("0123456789*#ABCD")


class ScriptError(Exception):
    """A script that cannot be used; the message names the file, line and field, and what is allowed there."""


@dataclass(frozen=True, slots=True)
class Step:
    """One action of the caller. `condition` is `at` or one of the `after` words, `seconds` its figure."""

    action: str
    value: str | float | tuple[float, float] | None
    where: str
    condition: str = "wait"
    seconds: float = 0.0
    timeout_s: float = 30.0
    optional: bool = False
    audio: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Script:
    """A checked script. `prepare` renders its speech; `run` then drives a call with it."""

    steps: tuple[Step, ...]
    media_format: WireFormat = MULAW_8K
    from_number: str = "15550100001"
    to_number: str = "15550100002"
    max_seconds: float = 120.0
    switches: PlivoSwitches = field(default_factory=PlivoSwitches)

    def prepare(self, media_format: WireFormat | None = None) -> Script:
        """A copy with every sound rendered for `media_format` (default: the script's own), before the call, so that
        synthesis does not disturb its timing. Raises `ScriptError` when speech cannot be rendered. Takes a while."""
        wanted = media_format or self.media_format
        return replace(
            self, media_format=wanted, steps=tuple(replace(s, audio=_rendered(s, wanted)) for s in self.steps)
        )

    async def run(self, call: SimulatedCall) -> None:
        """Do the steps on a call that has started; give this to `SimulatedCall` as its script."""
        if any(step.audio is None for step in self.steps if step.action in ("say", "wav", "tone", "silence")):
            raise RuntimeError("prepare() the script before the call")
        over = f"max_seconds ({self.max_seconds:g}) are over"
        ear = Ear(call)
        step: Step | None = None
        try:
            async with asyncio.timeout(self.max_seconds):
                for step in self.steps:
                    await self._due(step, call, ear)
                    await self._do(step, call)
                    ear.mark()
                step = None
                await call.wait_for(lambda record: False, None, "the end of the call")
        except TimeoutError:
            if step is not None:
                raise CallFailed(f"{step.where}: {over} and this step is not done") from None
            call.hang_up(over)

    async def _due(self, step: Step, call: SimulatedCall, ear: Ear) -> None:
        """Wait until the step may begin."""
        if step.condition == "wait":
            await asyncio.sleep(step.seconds)
        elif step.condition == "at":
            await asyncio.sleep(max(0.0, (call.record.started_t or 0.0) + step.seconds - call.now))
        else:
            try:
                await call.wait_for(lambda record: ear.meets(step.condition, step.seconds), step.timeout_s)
            except TimeoutError:
                if not step.optional:
                    late = f"not within {step.timeout_s:g} s: {step.condition} {step.seconds:g}"
                    raise CallFailed(f"{step.where}: {late}") from None

    async def _do(self, step: Step, call: SimulatedCall) -> None:
        if step.audio is not None:
            label = str(step.value) if step.action in ("say", "wav") else step.action
            await call.say(step.audio, label=label)
        elif step.action == "press":
            call.press(str(step.value))
        elif step.action == "hang_up":
            call.hang_up()
        elif step.action == "drop_connection":
            call.drop_connection()


class Ear:
    """Tells speech from silence in what the caller hears."""

    def __init__(self, call: SimulatedCall) -> None:
        self._call = call
        self._format = call.format
        self._cursor = (0, 0)
        self._speaking = 0.0  # seconds of audible frames so far
        self._last_audible: float | None = None  # when the last audible frame ended
        self._marked_speaking = 0.0
        self._marked_heard = 0.0

    def mark(self) -> None:
        """Count from here."""
        self._listen()
        self._marked_speaking = self._speaking
        self._marked_heard = self._call.heard_seconds()

    def meets(self, condition: str, seconds: float) -> bool:
        if condition == "heard":
            return self._call.heard_seconds() - self._marked_heard >= seconds - 1e-9
        self._listen()
        spoken = self._speaking - self._marked_speaking
        if condition == "agent_speaking":
            return spoken >= seconds - 1e-9
        if spoken <= 0 or self._last_audible is None:
            return False
        return self._call.now - self._last_audible >= seconds

    def _listen(self) -> None:
        self._cursor, pieces = self._call.heard_since(self._cursor)
        for start, audio in pieces:
            samples = self._format.decode(audio).astype(np.float32)
            size = self._format.sample_rate * FRAME_MS // 1000
            for begin in range(0, len(samples), size):
                frame = samples[begin : begin + size]
                if not len(frame):
                    continue
                level = float(np.sqrt(np.mean(frame * frame)))
                if level > 32768 * 10 ** (_AUDIBLE_DBFS / 20):
                    self._speaking += len(frame) / self._format.sample_rate
                    self._last_audible = start + (begin + len(frame)) / self._format.sample_rate


def load_script(path: Path) -> Script:
    """Read and check a script file. Raises `ScriptError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"cannot read the script {path}: {error}") from error
    return parse_script(text, name=str(path), folder=path.parent)


def parse_script(text: str, *, name: str = "script", folder: Path | None = None) -> Script:
    """Check the text of a script; `name` is used in errors, `folder` is where its `wav` files are. Raises
    `ScriptError`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ScriptError(f"{name}{line}: this is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ScriptError(f"{name}: this is not YAML: {error}") from error
    if root is None:
        raise ScriptError(f"{name}: the script is empty; it needs `steps`, a list of what the caller does")
    return _Reader(name, folder or Path()).script(root)


class _Reader:
    """Turns YAML nodes into a script. Nodes know their lines, which plain values do not."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder

    def script(self, root: yaml.Node) -> Script:
        found = self._mapping(root, "the script", _SCRIPT_KEYS)
        if "steps" not in found:
            raise self._error(root, "the script", "`steps` is missing: a list of what the caller does")
        values: dict[str, Any] = {}
        if "format" in found:
            node = found["format"]
            values["media_format"] = self._tried(
                node, "format", FormatError, lambda: WireFormat.parse(self._text(node, "format"))
            )
        for key, attribute in (("from", "from_number"), ("to", "to_number")):
            if key in found:
                values[attribute] = self._text(found[key], key)
        if "max_seconds" in found:
            values["max_seconds"] = self._number(found["max_seconds"], "max_seconds")
        if "switches" in found:
            values["switches"] = self._switches(found["switches"])
        steps = found["steps"]
        if not isinstance(steps, yaml.SequenceNode):
            raise self._error(steps, "steps", "must be a list, each item one action of the caller")
        values["steps"] = tuple(self._step(node, f"steps[{index}]") for index, node in enumerate(steps.value))
        return Script(**values)

    def _switches(self, node: yaml.Node) -> PlivoSwitches:
        switches = PlivoSwitches()
        for key, value in self._mapping(node, "switches", None).items():
            try:
                switches = switches.with_values({key: self._plain(value)})
            except SwitchError as error:
                raise self._error(value, "switches", str(error)) from error
        return switches

    def _step(self, node: yaml.Node, field_name: str) -> Step:
        if isinstance(node, yaml.ScalarNode) and node.value in ("hang_up", "drop_connection"):
            return Step(node.value, None, self._where(node, field_name))
        found = self._mapping(node, field_name, _STEP_KEYS)
        actions = [key for key in found if key in _ACTIONS]
        if len(actions) != 1:
            given = "none" if not actions else " and ".join(actions)
            raise self._error(node, field_name, f"needs exactly one of {', '.join(_ACTIONS)}; it has {given}")
        if "at" in found and "after" in found:
            raise self._error(found["after"], field_name, "has both `at` and `after`; use one")
        action = actions[0]
        values: dict[str, Any] = {}
        if "at" in found:
            values |= {"condition": "at", "seconds": self._number(found["at"], f"{field_name}.at", zero=True)}
        if "after" in found:
            condition, seconds = self._condition(found["after"], f"{field_name}.after")
            values |= {"condition": condition, "seconds": seconds}
        if "timeout" in found:
            values["timeout_s"] = self._number(found["timeout"], f"{field_name}.timeout")
        if "optional" in found:
            values["optional"] = self._plain(found["optional"])
            if not isinstance(values["optional"], bool):
                raise self._error(found["optional"], f"{field_name}.optional", "must be true or false")
        value = self._value(action, found[action], f"{field_name}.{action}")
        return Step(action, value, self._where(node, field_name), **values)

    def _value(self, action: str, node: yaml.Node, field_name: str) -> str | float | tuple[float, float] | None:
        if action in ("hang_up", "drop_connection"):
            if self._plain(node) not in (None, True):
                raise self._error(node, field_name, "takes no value")
            return None
        if action == "silence":
            return self._number(node, field_name)
        text = self._text(node, field_name)
        if action == "say":
            return text
        if action == "wav":
            path = self._folder / text
            self._tried(node, field_name, FormatError, lambda: read_wav(path))
            return str(path)
        if action == "press":
            if not _KEYS.issuperset(text):
                raise self._error(node, field_name, f"{text!r} cannot be dialled; the keys are 0-9 * # A-D")
            return text
        return self._tone(node, text, field_name)

    def _tone(self, node: yaml.Node, text: str, field_name: str) -> tuple[float, float]:
        words = text.split()
        try:
            hz, seconds = (float(word) for word in words)
        except ValueError:
            raise self._error(node, field_name, f"{text!r} is not of the form `hz seconds`, as `440 1.5`") from None
        if not (0 < hz < 4000 and 0 < seconds <= 600):
            raise self._error(node, field_name, "needs a frequency below 4000 Hz and at most 600 seconds")
        return hz, seconds

    def _condition(self, node: yaml.Node, field_name: str) -> tuple[str, float]:
        words = self._text(node, field_name).split()
        allowed = ", ".join(f"`{name} SECONDS`" for name in _CONDITIONS)
        if not words or words[0] not in _CONDITIONS:
            raise self._error(node, field_name, f"there is no condition {' '.join(words)!r}; use one of {allowed}")
        try:
            (seconds,) = (float(word) for word in words[1:])
        except ValueError:
            raise self._error(node, field_name, f"`{words[0]}` needs a number of seconds behind it") from None
        if not 0 <= seconds <= 3600:
            raise self._error(node, field_name, "needs 0 to 3600 seconds")
        return words[0], seconds

    # -- nodes

    def _mapping(self, node: yaml.Node, field_name: str, keys: tuple[str, ...] | None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, field_name, "must be a mapping (`key: value` lines)")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if keys is not None and name not in keys:
                raise self._error(key, field_name, f"does not know {name!r}; allowed are {', '.join(keys)}")
            if name in found:
                raise self._error(key, field_name, f"has {name!r} twice")
            found[name] = value
        return found

    def _plain(self, node: yaml.Node) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._error(node, "value", f"cannot be read: {error}") from error

    def _text(self, node: yaml.Node, field_name: str) -> str:
        # The text as written: a bare 5 or 0042 is what was meant to be pressed or dialled, not a number.
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self._error(node, field_name, "needs a text")
        return str(node.value).strip()

    def _number(self, node: yaml.Node, field_name: str, *, zero: bool = False) -> float:
        value = self._plain(node)
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not 0 <= value <= 86400 or (value == 0 and not zero):
            raise self._error(node, field_name, f"needs a number of seconds {'of 0 or more' if zero else 'above 0'}")
        return float(value)

    def _tried(self, node: yaml.Node, field_name: str, error: type[Exception], read: Callable[[], Any]) -> Any:
        try:
            return read()
        except error as problem:
            raise self._error(node, field_name, str(problem)) from problem

    def _where(self, node: yaml.Node, field_name: str) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}: {field_name}"

    def _error(self, node: yaml.Node, field_name: str, message: str) -> ScriptError:
        return ScriptError(f"{self._where(node, field_name)}: {message}")


def _rendered(step: Step, media_format: WireFormat) -> bytes | None:
    pcm: Pcm
    try:
        if step.action == "say":
            pcm, rate = speak(str(step.value))
        elif step.action == "wav":
            pcm, rate = read_wav(Path(str(step.value)))
        elif step.action == "tone":
            assert isinstance(step.value, tuple)
            rate = media_format.sample_rate
            pcm = tone(step.value[0], step.value[1], rate)
        elif step.action == "silence":
            assert isinstance(step.value, float)
            return media_format.silence(step.value)
        else:
            return None
    except (SpeechUnavailable, FormatError) as error:
        raise ScriptError(f"{step.where}: {error}") from error
    return media_format.encode(pcm, rate)
