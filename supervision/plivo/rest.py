"""Plivo's REST API, as much of it as a call needs: speak, stop speaking, transfer, hang up.

Source: Plivo's voice API under `https://api.plivo.com/v1/Account/{auth_id}/Call/{call_uuid}/`, HTTP Basic with auth id
and auth token, JSON bodies: `POST Speak/` (202), `DELETE Speak/` (204), `POST` of the call with `aleg_url` (202),
`DELETE` of the call (204, or 404 when it is over already). With an empty call id the last two would be requests about
every call of the account, so no request is made without one.

The HTTP client is injected (`Request`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

BASE_URL: Final = "https://api.plivo.com/v1"
TIMEOUT_S: Final = 5.0  # for one request
MAX_SPOKEN_CHARS: Final = 3000
ATTEMPTS: Final = 3  # of a request that may be made again
RETRY_AFTER_S: Final = 0.5  # before it is, where Plivo names no time
MAX_RETRY_AFTER_S: Final = 3.0  # a caller does not wait longer for what Plivo is too busy for
MAX_ANSWER_BYTES: Final = 64 * 1024

_CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class PlivoAnswer:
    """What an HTTP client got: the status, and after how many seconds to ask again (429 and 503), if it was told."""

    status: int
    retry_after_s: float | None = None


Request = Callable[[str, str, Mapping[str, str], "bytes | None"], Awaitable[PlivoAnswer]]
"""`await request(method, url, headers, body)` makes one HTTP request. It may raise whatever its client raises."""


class PlivoFailure(StrEnum):
    """Why Plivo did not do it."""

    CONNECTION = "connection"  # Plivo could not be reached
    TIMEOUT = "timeout"
    LOGIN = "login"  # 401 and 403: the auth id or the auth token is wrong
    GONE = "gone"  # 404: the call is over, or another account's
    BUSY = "busy"  # 429: too many requests of this account
    REFUSED = "refused"  # any other status


class PlivoRestError(Exception):
    """A request that Plivo did not accept. The message names the request and what to do, never the token; `status` is
    the HTTP status, if there was one."""

    def __init__(self, failure: PlivoFailure, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status


def call_id_checked(call_id: object) -> str:
    """A CallUUID as it may stand in a URL. Raises `ValueError` for an empty one and for what is none."""
    if not isinstance(call_id, str) or not _CALL_ID.fullmatch(call_id.strip()):
        raise ValueError("call_id: must be Plivo's CallUUID (start.callId of the stream)")
    return call_id.strip()


def web_url_checked(url: object) -> str:
    """A URL that Plivo can be sent to. Raises `ValueError`."""
    plain = isinstance(url, str) and len(url) <= 2000 and re.fullmatch(r"[^\x00-\x20\x7f\\]+", url) is not None
    try:
        parts = urlsplit(str(url))
        usable = plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be a URL that starts with https:// (or http://) and names a host")
    return str(url)


@dataclass(frozen=True, slots=True)
class PlivoAccount:
    """A Plivo account or sub-account, as its console shows it. `base_url` is another only where something stands in for
    Plivo."""

    auth_id: str
    auth_token: str = field(repr=False)
    base_url: str = BASE_URL

    def __post_init__(self) -> None:
        for name, value in (("auth_id", self.auth_id), ("auth_token", self.auth_token)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name}: must not be blank")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: must be an http or https URL, not {self.base_url!r}")


class PlivoRest:
    """Requests about the calls of one account. Every method raises :class:`PlivoRestError`, and `ValueError` for a call
    id or a URL that is none; nothing is sent then."""

    def __init__(self, account: PlivoAccount, *, request: Request, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` is for one request, in seconds."""
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: must be positive, not {timeout_s}")
        self._base = f"{account.base_url.rstrip('/')}/Account/{quote(account.auth_id.strip(), safe='')}/Call/"
        token = base64.b64encode(f"{account.auth_id.strip()}:{account.auth_token.strip()}".encode()).decode("ascii")
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        self._host = urlsplit(account.base_url).netloc
        self._timeout_s = timeout_s
        self._request = request

    async def speak(
        self,
        call_id: str,
        text: str,
        *,
        language: str,
        voice: str = "WOMAN",
        legs: Literal["aleg", "bleg", "both"] = "aleg",
        mix: bool = False,
    ) -> None:
        """Let Plivo read `text` to the caller; returns when it is queued. `language` is Plivo's name, such as `en-US`.
        `mix` false silences what else plays on the call.

        Asked once: a line that is spoken twice is worse than one that is not.
        """
        if not text.strip() or len(text) > MAX_SPOKEN_CHARS:
            raise ValueError(f"text: 1 to {MAX_SPOKEN_CHARS} characters that are not blank")
        fields = {"text": text, "language": language, "voice": voice, "legs": legs, "loop": False, "mix": mix}
        await self._ask("Speak", "POST", call_id, "Speak/", fields)

    async def stop_speaking(self, call_id: str) -> None:
        """Stop what `speak` began. A call that is over says nothing any more, so that is no error."""
        await self._ask("Stop speaking", "DELETE", call_id, "Speak/", None, gone_is_done=True)

    async def transfer(self, call_id: str, url: str) -> None:
        """Let the call go on with the XML at `url`, which Plivo asks for by POST. The call's stream ends.

        Asked again only where Plivo said that it did nothing (429): a call that is transferred twice begins its XML
        twice.
        """
        fields = {"legs": "aleg", "aleg_url": web_url_checked(url), "aleg_method": "POST"}
        await self._ask("Transfer", "POST", call_id, "", fields, again_when_busy=True)

    async def hangup(self, call_id: str) -> None:
        """End the call; one that is over already has ended, too. Asked again when Plivo fails: twice is as good as
        once."""
        await self._ask("Hangup", "DELETE", call_id, "", None, gone_is_done=True, again_when_busy=True, again=True)

    async def _ask(
        self,
        what: str,
        method: str,
        call_id: str,
        path: str,
        fields: Mapping[str, Any] | None,
        *,
        gone_is_done: bool = False,
        again_when_busy: bool = False,
        again: bool = False,
    ) -> None:
        url = f"{self._base}{quote(call_id_checked(call_id), safe='')}/{path}"
        body = None if fields is None else json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        for attempt in range(1, ATTEMPTS + 1):
            wait_s = RETRY_AFTER_S
            try:
                answer = await self._answered(what, method, url, body)
            except PlivoRestError:
                if not again or attempt == ATTEMPTS:
                    raise
            else:
                if 200 <= answer.status < 300 or (answer.status == 404 and gone_is_done):
                    return
                worth = again_when_busy if answer.status == 429 else again and answer.status >= 500
                wait_s = answer.retry_after_s if answer.retry_after_s is not None else RETRY_AFTER_S * attempt
                if not worth or attempt == ATTEMPTS or wait_s > MAX_RETRY_AFTER_S:
                    raise _refused(what, answer.status)
            await asyncio.sleep(wait_s)

    async def _answered(self, what: str, method: str, url: str, body: bytes | None) -> PlivoAnswer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._request(method, url, self._headers, body)
        except TimeoutError as error:
            message = f"Plivo {what}: no answer within {self._timeout_s:g} s"
            raise PlivoRestError(PlivoFailure.TIMEOUT, message) from error
        except Exception as error:
            message = f"Plivo {what}: cannot reach {self._host} ({type(error).__name__})"
            raise PlivoRestError(PlivoFailure.CONNECTION, message) from error


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; None for none, and for a date, which a call cannot wait for anyway."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _refused(what: str, status: int) -> PlivoRestError:
    failure, advice = PlivoFailure.REFUSED, ""
    if status in (401, 403):
        failure, advice = PlivoFailure.LOGIN, "; check auth_id and auth_token"
    elif status == 404:
        failure, advice = PlivoFailure.GONE, "; the call is over, or call_id is another account's"
    elif status == 429:
        failure, advice = PlivoFailure.BUSY, "; the account makes too many requests"
    return PlivoRestError(failure, f"Plivo {what}: Plivo answered {status}{advice}", status=status)
