"""Plivo's own voice, by its REST API: for streams without a way back.

Source: Plivo's voice API, "Speak text on a call" (`POST /v1/Account/{auth_id}/Call/{call_uuid}/Speak/`, 202 when it is
queued) and "Stop speaking" (`DELETE` of the same, 204).
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

from supervision.engine.tts.protocol import TTSError, TTSFailure
from supervision.engine.tts.sink import Spoken

BASE_URL: Final = "https://api.plivo.com"
MAX_CHARS: Final = 3000
TIMEOUT_S: Final = 5.0

Request = Callable[[str, str, Mapping[str, str], "bytes | None"], Awaitable[int]]
"""`await request(method, url, headers, body)` makes one HTTP request and returns the status of the answer."""

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
        for name, value in (("auth_id", auth_id), ("auth_token", auth_token), ("voice", voice)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name}: must not be blank")
        if legs not in ("aleg", "bleg", "both"):
            raise ValueError(f"legs: must be aleg, bleg or both, not {legs!r}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: must be positive, not {timeout_s}")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: must be an http or https URL, not {base_url!r}")
        self.call_id = ""
        if call_id:
            self.bind(call_id)
        self._base_url = base_url.rstrip("/")
        self._account = auth_id.strip()
        token = base64.b64encode(f"{auth_id.strip()}:{auth_token.strip()}".encode()).decode("ascii")
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        self._options: dict[str, Any] = {"voice": voice, "legs": legs, "loop": False, "mix": mix}
        self._timeout_s = timeout_s
        self._request: Request = request or self._by_standard_library

    def bind(self, call_id: str) -> None:
        """Speak on this call from now on. Raises `ValueError` for what is no CallUUID.

        Plivo takes requests without one for requests about all calls of the account.
        """
        if not isinstance(call_id, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", call_id.strip()):
            raise ValueError("call_id: must be Plivo's CallUUID (start.callId of the stream)")
        self.call_id = call_id.strip()

    async def speak(self, text: str, *, language: str) -> Spoken:
        """See TTSSink. Raises TTSError."""
        if not text.strip():
            raise TTSError(TTSFailure.BAD_TEXT, "Plivo Speak: the line is empty")
        if len(text) > MAX_CHARS:
            raise TTSError(
                TTSFailure.BAD_TEXT, f"Plivo Speak: the line has {len(text)} characters; {MAX_CHARS} at most"
            )
        await self._ask("POST", {"text": text, "language": _LANGUAGES.get(language.lower(), language), **self._options})
        return Spoken(None)

    async def clear(self) -> bool:
        """See TTSSink. Raises TTSError. Never True: Plivo does not say when the caller hears nothing any more."""
        await self._ask("DELETE", None)
        return False

    async def _ask(self, method: str, fields: dict[str, Any] | None) -> None:
        if not self.call_id:
            raise TTSError(
                TTSFailure.UNAVAILABLE, "Plivo Speak: no call id is known yet; call bind_call(call_id) first"
            )
        url = f"{self._base_url}/v1/Account/{quote(self._account, safe='')}/Call/{quote(self.call_id, safe='')}/Speak/"
        body = None if fields is None else json.dumps(fields, ensure_ascii=False).encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._request(method, url, self._headers, body)
        except TimeoutError as error:
            raise TTSError(TTSFailure.TIMEOUT, f"Plivo Speak: no answer within {self._timeout_s:g} s") from error
        except Exception as error:
            raise TTSError(
                TTSFailure.CONNECTION,
                f"Plivo Speak: cannot reach {urlsplit(self._base_url).netloc} ({type(error).__name__})",
            ) from error
        if not 200 <= status < 300:
            raise TTSError(TTSFailure.REFUSED, f"Plivo Speak: Plivo answered {status}{_advice(status)}", status=status)

    async def _by_standard_library(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> int:
        return await asyncio.to_thread(_requested, method, url, dict(headers), body, self._timeout_s)


def _requested(method: str, url: str, headers: dict[str, str], body: bytes | None, timeout_s: float) -> int:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    try:
        connection.request(method, parts.path, body, headers)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status
    finally:
        connection.close()


def _advice(status: int) -> str:
    if status == 401:
        return "; check auth_id and auth_token"
    if status == 404:
        return "; the call is over, or call_id is another account's"
    return ""
