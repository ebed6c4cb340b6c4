"""Plivo's own voice, by its REST API: for streams without a way back.

Source: Plivo's voice API, "Speak text on a call" (`POST /v1/Account/{auth_id}/Call/{call_uuid}/Speak/`, 202 when it is
queued) and "Stop speaking" (`DELETE` of the same, 204).
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

from supervision.engine.tts.protocol import TTSError, TTSFailure
from supervision.engine.tts.sink import Spoken
from supervision.plivo.rest import (
    MAX_ANSWER_BYTES,
    MAX_SPOKEN_CHARS,
    TIMEOUT_S,
    PlivoAccount,
    PlivoAnswer,
    PlivoFailure,
    PlivoRest,
    PlivoRestError,
    call_id_checked,
    retry_after_s,
)

BASE_URL: Final = "https://api.plivo.com"
MAX_CHARS: Final = MAX_SPOKEN_CHARS

Request = Callable[[str, str, Mapping[str, str], "bytes | None"], Awaitable["int | PlivoAnswer"]]
"""`await request(method, url, headers, body)` makes one HTTP request and returns the status of the answer."""

_FAILURES: Final = {PlivoFailure.TIMEOUT: TTSFailure.TIMEOUT, PlivoFailure.CONNECTION: TTSFailure.CONNECTION}

# Plivo's names for the languages that Mirror has lines in; any other tag is passed on as it is.
_LANGUAGES: Final = {
    "en": "en-US",
    "es": "es-ES",
    "fr": "fr-FR",
    "de": "de-DE",
    "pt": "pt-BR",
    "hi": "hi-IN",
    "it": "it-IT",
    "nl": "nl-NL",
}


class PlivoRESTTTSSink:
    """Speaks on one call through Plivo's Speak API.

    Plivo says when it has queued a line, never when it has played: how long a line lasts is estimated from its words,
    and reports say so. Nothing is retried: a line that is spoken twice is worse than one that is not.
    """

    def __init__(
        self,
        auth_id: str,
        auth_token: str,
        call_id: str = "",
        *,
        voice: str = "WOMAN",
        legs: Literal["aleg", "bleg", "both"] = "aleg",
        mix: bool = False,
        base_url: str = BASE_URL,
        timeout_s: float = TIMEOUT_S,
        request: Request | None = None,
    ) -> None:
        """`call_id` is Plivo's CallUUID; left empty, it is the one that the call is bound to (`bind_call`, or Plivo's
        `start`). `mix` false silences what else plays on the call. `timeout_s` is for one request, in seconds.

        `request` makes the HTTP requests in place of the standard library's client; see `Request`.
        Raises `ValueError` naming the field that is wrong.
        """
        if not isinstance(voice, str) or not voice.strip():
            raise ValueError("voice: must not be blank")
        if legs not in ("aleg", "bleg", "both"):
            raise ValueError(f"legs: must be aleg, bleg or both, not {legs!r}")
        account = PlivoAccount(auth_id, auth_token, f"{base_url.rstrip('/').removesuffix('/v1')}/v1")
        self._rest = PlivoRest(
            account, request=_answering(request or _by_standard_library(timeout_s)), timeout_s=timeout_s
        )
        self.call_id = ""
        if call_id:
            self.bind(call_id)
        self._voice = voice
        self._legs = legs
        self._mix = mix

    def bind(self, call_id: str) -> None:
        """Speak on this call from now on. Raises `ValueError` for what is no CallUUID.

        Plivo takes requests without one for requests about all calls of the account.
        """
        self.call_id = call_id_checked(call_id)

    async def speak(self, text: str, *, language: str) -> Spoken:
        """See TTSSink. Raises TTSError."""
        if not text.strip():
            raise TTSError(TTSFailure.BAD_TEXT, "Plivo Speak: the line is empty")
        if len(text) > MAX_CHARS:
            raise TTSError(
                TTSFailure.BAD_TEXT, f"Plivo Speak: the line has {len(text)} characters; {MAX_CHARS} at most"
            )
        await self._done(
            self._rest.speak(
                self._call(),
                text,
                language=_LANGUAGES.get(language.lower(), language),
                voice=self._voice,
                legs=self._legs,
                mix=self._mix,
            )
        )
        return Spoken(None)

    async def clear(self) -> bool:
        """See TTSSink. Raises TTSError. Never True: Plivo does not say when the caller hears nothing any more."""
        await self._done(self._rest.stop_speaking(self._call()))
        return False

    def _call(self) -> str:
        if not self.call_id:
            raise TTSError(
                TTSFailure.UNAVAILABLE, "Plivo Speak: no call id is known yet; call bind_call(call_id) first"
            )
        return self.call_id

    async def _done(self, asked: Awaitable[None]) -> None:
        try:
            await asked
        except PlivoRestError as problem:
            failure = _FAILURES.get(problem.failure, TTSFailure.REFUSED)
            raise TTSError(failure, str(problem), status=problem.status) from problem


def _answering(request: Request) -> Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[PlivoAnswer]]:
    async def answered(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        answer = await request(method, url, headers, body)
        return answer if isinstance(answer, PlivoAnswer) else PlivoAnswer(answer)

    return answered


def _by_standard_library(timeout_s: float) -> Request:
    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        return await asyncio.to_thread(_requested, method, url, dict(headers), body, timeout_s)

    return request


def _requested(method: str, url: str, headers: dict[str, str], body: bytes | None, timeout_s: float) -> PlivoAnswer:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    try:
        connection.request(method, parts.path, body, headers)
        with connection.getresponse() as answer:
            answer.read(MAX_ANSWER_BYTES)
            return PlivoAnswer(answer.status, retry_after_s(answer.headers.get("Retry-After")))
    finally:
        connection.close()
