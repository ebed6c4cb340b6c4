"""The HTTP side of a call: Plivo asks the answer URL what to do, dials the `<Stream>` and reports its states.

Only what a stream needs is here. Other elements of the answer are not executed; the call begins with its `<Stream>`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urldefrag, urlencode, urlsplit

import aiohttp
from yarl import URL

from .call import SimulatedCall
from .sound import L16_8K, FormatError, WireFormat
from .switches import PlivoSwitches

__all__ = ["AnswerClient", "AnswerError", "Callback", "StreamElement", "parse_answer", "sign_v3"]

MAX_ANSWER_BYTES = 100 * 1024
_ATTRIBUTES = {
    "bidirectional",
    "audioTrack",
    "streamTimeout",
    "statusCallbackUrl",
    "statusCallbackMethod",
    "contentType",
    "extraHeaders",
    "keepCallAlive",
    "noiseCancellation",
    "noiseCancellationLevel",
}
_XML_TYPES = ("application/xml", "text/xml")


class AnswerError(Exception):
    """The answer URL gave nothing that Plivo could stream with; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class StreamElement:
    """A `<Stream>` as Plivo reads it. `extra_headers` is in the form of the wire (`k=v;k2=v2`)."""

    url: str
    bidirectional: bool = False
    keep_call_alive: bool = False
    media_format: WireFormat = L16_8K
    stream_timeout_s: int = 86400
    status_url: str | None = None
    status_method: str = "POST"
    extra_headers: str = ""


@dataclass(frozen=True, slots=True)
class Callback:
    """A status callback that was sent: its fields, and the HTTP status of the answer or why there was none."""

    event: str
    fields: dict[str, str]
    status: int | None
    error: str = ""


def parse_answer(body: bytes) -> StreamElement:
    """Read answer XML as strictly as Plivo's documents are (sections "Stream element" and "XML request").

    Raises `AnswerError`. Elements before and after `<Stream>` are allowed and not executed.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise AnswerError(f"the answer has {len(body)} bytes; Plivo takes {MAX_ANSWER_BYTES}")
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise AnswerError("the answer has a document type declaration; Plivo XML has none")
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - without a DTD there are no entities to expand
    except ElementTree.ParseError as error:
        raise AnswerError(f"the answer is not XML: {error}") from error
    if root.tag != "Response":
        raise AnswerError(f"the answer's root element is <{root.tag}>, not <Response>")
    children = list(root)
    found = [index for index, child in enumerate(children) if child.tag == "Stream"]
    if not found:
        raise AnswerError("the answer has no <Stream>")
    element = _stream(children[found[0]])
    if not element.keep_call_alive and found[0] == len(children) - 1:
        raise AnswerError(
            'the call would end at once: without keepCallAlive="true" Plivo goes on to the next element, and nothing '
            "follows <Stream>"
        )
    return element


def _stream(node: ElementTree.Element) -> StreamElement:
    given = node.attrib
    unknown = sorted(set(given) - _ATTRIBUTES)
    if unknown:
        raise AnswerError(f"<Stream> has no attribute {unknown[0]}; it has {', '.join(sorted(_ATTRIBUTES))}")
    url = (node.text or "").strip()
    if urlsplit(url).scheme not in ("ws", "wss") or not urlsplit(url).netloc or len(node):
        raise AnswerError("the text of <Stream> must be a ws:// or wss:// URL")
    bidirectional = _choice(given, "bidirectional", ("false", "true")) == "true"
    keep_call_alive = _choice(given, "keepCallAlive", ("false", "true")) == "true"
    if keep_call_alive and not bidirectional:
        raise AnswerError('keepCallAlive="true" needs bidirectional="true"')
    track = _choice(given, "audioTrack", ("inbound", "outbound", "both"))
    if track != "inbound":
        why = "must be inbound when bidirectional" if bidirectional else "is not simulated; use inbound"
        raise AnswerError(f"audioTrack {track!r} {why}")
    media_format = L16_8K
    if "contentType" in given:
        try:
            media_format = WireFormat.parse(given["contentType"])
        except FormatError as error:
            raise AnswerError(f"contentType: {error}") from error
    timeout = given.get("streamTimeout", "86400")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", timeout):
        raise AnswerError(f"streamTimeout {timeout!r} is not a whole number of seconds")
    status_url = given.get("statusCallbackUrl")
    if status_url is not None and urlsplit(status_url).scheme not in ("http", "https"):
        raise AnswerError("statusCallbackUrl must be an http:// or https:// URL")
    return StreamElement(
        url=url,
        bidirectional=bidirectional,
        keep_call_alive=keep_call_alive,
        media_format=media_format,
        stream_timeout_s=int(timeout),
        status_url=status_url,
        status_method=_choice(given, "statusCallbackMethod", ("POST", "GET")),
        extra_headers=_extra_headers(given.get("extraHeaders", "")),
    )


def _choice(given: dict[str, str], name: str, choices: tuple[str, ...]) -> str:
    """An attribute's value; the first choice is its default."""
    value = given.get(name, choices[0])
    if value not in choices:
        raise AnswerError(f"{name} {value!r} is not one of {', '.join(choices)}")
    return value


def _extra_headers(text: str) -> str:
    if len(text.encode()) > 512:
        raise AnswerError("extraHeaders is longer than 512 bytes")
    pairs = [pair.strip() for pair in text.split(",")] if text else []
    for pair in pairs:
        if not re.fullmatch(r"[^=\s]+=.*", pair):
            raise AnswerError("extraHeaders is not of the form key=value,key2=value2")
    return ";".join(pairs)


def sign_v3(auth_token: str, method: str, url: str, nonce: str, fields: Sequence[tuple[str, str]] = ()) -> str:
    """`X-Plivo-Signature-V3` of a request: base64 of HMAC-SHA256 over URL, fields and nonce (Plivo, "Request
    validation"). `fields` are the decoded body fields of a POST."""
    parts = urlsplit(url)
    query = sorted(parse_qsl(parts.query, keep_blank_values=True))
    signed = f"{parts.scheme}://{parts.netloc}{parts.path}"
    if query or (fields and method.upper() != "GET"):
        signed += "?" + "&".join(f"{key}={value}" for key, value in query)
    if query and fields:
        signed += "."
    signed += "".join(key + value for key, value in sorted(fields))
    digest = hmac.new(auth_token.encode(), f"{signed}.{nonce}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


class AnswerClient:
    """A call that begins at an answer URL:

        async with AnswerClient("http://127.0.0.1:8000/plivo/demo/sk_…/answer") as plivo:
            call = await plivo.answer(script, switches)
            record = await call.run()
        plivo.callbacks  # what was sent to the status callback URL

    Leaving the context waits until all status callbacks have been sent. With `auth_token`, requests are signed as
    Plivo signs them.
    """

    def __init__(
        self,
        url: str,
        *,
        from_number: str = "15550100001",
        to_number: str = "15550100002",
        call_id: str | None = None,
        account_id: str = "MAXXXXXXXXXXXXXXXXXX",
        method: str = "POST",
        auth_token: str | None = None,
        timeout_s: float = 15.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = urldefrag(url).url  # the fragment holds Plivo's own retry settings and is never sent
        self.call_id = call_id or str(uuid.uuid4())
        self.callbacks: list[Callback] = []
        self.element: StreamElement | None = None
        self._from = from_number.removeprefix("+")
        self._to = to_number.removeprefix("+")
        self._account_id = account_id
        self._method = method
        self._auth_token = auth_token
        self._timeout_s = timeout_s
        self._wall_clock = wall_clock
        self._session: aiohttp.ClientSession
        self._pending: asyncio.Queue[tuple[str, dict[str, str]] | None] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AnswerClient:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._sender is not None:
                self._pending.put_nowait(None)
                await self._sender
        finally:
            await self._session.close()

    async def answer(
        self,
        script: Callable[[SimulatedCall], Awaitable[None]] | None = None,
        switches: PlivoSwitches | None = None,
        **options: Any,
    ) -> SimulatedCall:
        """Ask the answer URL, unless `fetch` has done so, and return the call that its `<Stream>` describes, ready
        to run. `options` go to `SimulatedCall`. Raises `AnswerError`."""
        element = self.element or await self.fetch()
        if element.status_url is not None:
            self._sender = asyncio.get_running_loop().create_task(self._send_callbacks(element))
        return SimulatedCall(
            element.url,
            script,
            switches,
            media_format=element.media_format,
            from_number=self._from,
            to_number=self._to,
            call_id=self.call_id,
            account_id=self._account_id,
            extra_headers=element.extra_headers or None,
            bidirectional=element.bidirectional,
            stream_timeout_s=element.stream_timeout_s,
            on_status=None if element.status_url is None else self._report,
            **options,
        )

    async def fetch(self) -> StreamElement:
        """Ask the answer URL as Plivo does when the call is answered. Raises `AnswerError`."""
        started = datetime.fromtimestamp(self._wall_clock(), UTC)
        fields = {
            "CallUUID": self.call_id,
            "From": self._from,
            "To": self._to,
            "CallStatus": "in-progress",
            "Direction": "inbound",
            "ALegUUID": self.call_id,
            "ALegRequestUUID": self.call_id,
            "RequestUUID": self.call_id,
            "Event": "StartApp",
            "BillRate": "0.0055",
            "ParentAuthID": self._account_id,
            "SessionStart": started.strftime("%Y-%m-%d %H:%M:%S.%f"),
        }
        try:
            status, content_type, body = await self._request(self._method, self.url, fields)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AnswerError(f"the answer URL cannot be reached: {error or type(error).__name__}") from error
        if status != 200:
            raise AnswerError(f"the answer URL answered with HTTP {status}")
        if content_type not in _XML_TYPES:
            raise AnswerError(f"the answer is {content_type}, not {' or '.join(_XML_TYPES)}")
        self.element = parse_answer(body)
        return self.element

    def _report(self, event: str, fields: dict[str, str]) -> None:
        stamp = str(round(self._wall_clock() * 1000))
        assert self.element is not None
        common = {
            "Event": event,
            "CallUUID": self.call_id,
            "From": self._from,
            "To": self._to,
            "Timestamp": stamp,
            "ServiceURL": self.element.url,
            "ParentAuthID": self._account_id,
        }
        self._pending.put_nowait((event, common | fields))

    async def _send_callbacks(self, element: StreamElement) -> None:
        """Send what `_report` queued, one after the other, so that they arrive in order."""
        assert element.status_url is not None
        while (item := await self._pending.get()) is not None:
            event, fields = item
            try:
                status, _, _ = await self._request(element.status_method, element.status_url, fields)
                self.callbacks.append(Callback(event, fields, status))
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.callbacks.append(Callback(event, fields, None, str(error) or type(error).__name__))

    async def _request(self, method: str, url: str, fields: dict[str, str]) -> tuple[int, str, bytes]:
        body: dict[str, str] | None = fields
        if method == "GET":
            url += ("&" if urlsplit(url).query else "?") + urlencode(fields)
            body = None
        headers: dict[str, str] = {}
        if self._auth_token is not None:
            nonce = str(secrets.randbelow(10**20))
            signature = sign_v3(self._auth_token, method, url, nonce, list((body or {}).items()))
            headers = {
                "X-Plivo-Signature-V3": signature,
                "X-Plivo-Signature-Ma-V3": signature,
                "X-Plivo-Signature-V3-Nonce": nonce,
            }
        # aiohttp would quote a str anew, and the signature is over the URL as it is written.
        async with self._session.request(
            method, URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
        ) as answer:
            content = bytearray()
            async for chunk in answer.content.iter_any():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    break
            return answer.status, answer.content_type, bytes(content)
