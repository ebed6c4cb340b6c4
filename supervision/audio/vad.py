"""Is the caller speaking? WebRTC's voice activity detector, and the rule that makes speech a barge-in."""

from __future__ import annotations

from collections import deque

import webrtcvad

from supervision.audio.format import MediaFormat
from supervision.audio.pcm import encode_l16

FRAME_MS = 20
MODE = 2
"""WebRTC's aggressiveness, 0 to 3. At 2, telephone speech over noise of up to -40 dBFS is told from that noise;
music with a melody is taken for speech, with any mode."""


class SpeechDetector:
    """Finds speech in one direction of a call, payload by payload (2 to 5 microseconds per 20 ms).

    Keeps what is left of a payload that is not whole 20 ms frames for the next one. Not for two threads at once.
    """

    def __init__(self, media_format: MediaFormat) -> None:
        self._format = media_format
        self._vad = webrtcvad.Vad(MODE)
        self._rest = b""
        self._speaking = False

    def frames(self, payload: bytes) -> list[bool]:
        """For each 20 ms frame that `payload` completes: is it speech?"""
        data = self._rest + payload
        size = self._format.frame_bytes
        whole = len(data) // size * size
        self._rest = data[whole:]
        rate = self._format.sample_rate
        samples = encode_l16(self._format.decode(data[:whole]))
        step = rate * FRAME_MS // 1000 * 2
        found = [self._vad.is_speech(samples[at : at + step], rate) for at in range(0, len(samples), step)]
        if found:
            self._speaking = found[-1]
        return found

    def push(self, payload: bytes) -> bool:
        """Take the next audio of the call; True when its newest whole 20 ms frame is speech.

        A payload too short to complete a frame gives the answer of the frame before.
        """
        self.frames(payload)
        return self._speaking


class BargeIn:
    """Tells a caller who wants to speak from one who says "mhm" or coughs: enough speech within a short window.

    Counted in received audio, not in arrival time, so that frames that a slow network delivers in a heap count once.
    """

    def __init__(self, media_format: MediaFormat, *, window_ms: int = 600, need_ms: int = 400) -> None:
        """Raises ValueError when `need_ms` is not between one frame and the window."""
        if not FRAME_MS <= need_ms <= window_ms:
            raise ValueError(f"need_ms must be from {FRAME_MS} to window_ms ({window_ms}), not {need_ms}")
        self._detector = SpeechDetector(media_format)
        self._window: deque[bool] = deque(maxlen=window_ms // FRAME_MS)
        self._need_ms = need_ms

    @property
    def speech_ms(self) -> int:
        """Speech within the newest `window_ms` of audio."""
        return sum(self._window) * FRAME_MS

    def push(self, payload: bytes, *, need_ms: int | None = None) -> bool:
        """Take the caller's next audio; True when it holds a barge-in by now.

        `need_ms` replaces the usual need for this payload, as when the agent has cleared its audio too.
        """
        need = self._need_ms if need_ms is None else need_ms
        found = self.speech_ms >= need
        for speech in self._detector.frames(payload):
            self._window.append(speech)
            found = found or self.speech_ms >= need
        return found

    def reset(self) -> None:
        """Forget the speech so far; what the detector has learned of the line's noise stays."""
        self._window.clear()
