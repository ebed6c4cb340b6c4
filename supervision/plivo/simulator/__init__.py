"""A stand-in for Plivo's audio streaming: dials a stream as Plivo does and records what the caller heard."""

from .answer import AnswerClient, AnswerError, Callback, StreamElement, parse_answer
from .call import CallEnded, CallFailed, SimulatedCall
from .line import DirectLine, Line
from .microphone import Microphone
from .playout import Cleared, HeardSegment, Playout, Reached
from .record import CallRecord, Event, Found, Heard, RawFrame, Silence
from .script import Script, ScriptError, load_script, parse_script
from .sound import L16_8K, L16_16K, MULAW_8K, FormatError, WireFormat, read_wav, tone, write_wav
from .switches import ABSENT, PlivoSwitches, SwitchError

__all__ = [
    "ABSENT",
    "L16_8K",
    "L16_16K",
    "MULAW_8K",
    "AnswerClient",
    "AnswerError",
    "CallEnded",
    "CallFailed",
    "CallRecord",
    "Callback",
    "Cleared",
    "DirectLine",
    "Event",
    "FormatError",
    "Found",
    "Heard",
    "HeardSegment",
    "Line",
    "Microphone",
    "Playout",
    "PlivoSwitches",
    "RawFrame",
    "Reached",
    "Script",
    "ScriptError",
    "Silence",
    "SimulatedCall",
    "StreamElement",
    "SwitchError",
    "WireFormat",
    "load_script",
    "parse_answer",
    "parse_script",
    "read_wav",
    "tone",
    "write_wav",
]
