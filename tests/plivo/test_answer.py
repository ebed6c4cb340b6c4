"""Calls that begin at an answer URL: the request, the XML, the status callbacks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode
from xml.sax.saxutils import escape, quoteattr

import pytest
from aiohttp import web
from plivo import plivoxml
from plivo.utils.signature_v3 import validate_v3_signature

from supervision.plivo.simulator import (
    L16_8K,
    L16_16K,
    MULAW_8K,
    AnswerClient,
    AnswerError,
    PlivoSwitches,
    StreamElement,
    parse_answer,
)
from supervision.plivo.simulator.answer import sign_v3

from .agents import Agent, agent_server, listen, settle


def answer(url: str = "wss://host/stream", *, before: str = "", after: str = "", **attributes: str) -> bytes:
    given = {"bidirectional": "true", "keepCallAlive": "true"} | attributes
    shown = "".join(f" {name}={quoteattr(value)}" for name, value in given.items())
    return f"<Response>{before}<Stream{shown}>{escape(url)}</Stream>{after}</Response>".encode()


@dataclass
class Web:
    """An answer URL and a status URL, and what came to them."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    content_type: str = "application/xml"
    requests: list[tuple[str, str, list[tuple[str, str]], dict[str, str]]] = field(default_factory=list)

    def states(self) -> list[dict[str, str]]:
        return [dict(fields) for _, path, fields, _ in self.requests if path.startswith("/status")]


@asynccontextmanager
async def web_server(on_status: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[Web]:
    site = Web()

    async def handle(request: web.Request) -> web.Response:
        fields = [(key, str(value)) for key, value in (await request.post()).items()] or list(request.query.items())
        site.requests.append((request.method, request.path_qs, fields, dict(request.headers)))
        if request.path == "/status":
            if on_status is not None:
                await on_status()
            return web.Response(status=site.status)
        return web.Response(body=site.body, status=site.status, content_type=site.content_type)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield site
    finally:
        await runner.cleanup()


# -- the XML


def test_a_stream_element_is_read_as_plivo_documents_it() -> None:
    element = parse_answer(
        answer(
            "wss://host/stream?token=abc&x=1",
            audioTrack="inbound",
            contentType="audio/x-mulaw;rate=8000",
            streamTimeout="3600",
            statusCallbackUrl="https://host/status",
            statusCallbackMethod="GET",
            extraHeaders="userId=12345,sessionId=abc",
        )
    )
    assert element == StreamElement(
        url="wss://host/stream?token=abc&x=1",
        bidirectional=True,
        keep_call_alive=True,
        media_format=MULAW_8K,
        stream_timeout_s=3600,
        status_url="https://host/status",
        status_method="GET",
        extra_headers="userId=12345;sessionId=abc",
    )


def test_what_is_left_out_has_plivos_defaults() -> None:
    element = parse_answer(b"<Response><Stream>wss://host/s</Stream><Wait length='60'/></Response>")
    assert element == StreamElement(url="wss://host/s", media_format=L16_8K)


def test_what_plivos_own_library_writes_is_read() -> None:
    response = plivoxml.ResponseElement().add(
        plivoxml.StreamElement(
            "wss://host/s?a=1&b=2",
            bidirectional=True,
            keepCallAlive=True,
            audioTrack="inbound",
            streamTimeout=120,
            contentType="audio/x-l16;rate=16000",
            extraHeaders="a=b",
            statusCallbackUrl="https://host/status",
            statusCallbackMethod="POST",
        )
    )
    element = parse_answer(response.to_string().encode())
    assert element.url == "wss://host/s?a=1&b=2"
    assert element.media_format == L16_16K
    assert element.keep_call_alive
    assert element.stream_timeout_s == 120
    assert element.extra_headers == "a=b"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not XML"),
        (b"<Response><Stream></Response>", "not XML"),
        (b"hello", "not XML"),
        (b"<Reply/>", "root element is <Reply>, not <Response>"),
        (b"<Response><Hangup/></Response>", "no <Stream>"),
        (b"<Response><Dial><Stream>wss://h</Stream></Dial></Response>", "no <Stream>"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><Response/>", "document type declaration"),
        (b"<Response>" + b" " * 110_000 + b"</Response>", "110021 bytes; Plivo takes 102400"),
        (answer("https://host/s"), "must be a ws:// or wss:// URL"),
        (answer(""), "must be a ws:// or wss:// URL"),
        (answer(url="wss:///s"), "must be a ws:// or wss:// URL"),
        (answer(bidirektional="true"), "no attribute bidirektional; it has audioTrack, bidirectional"),
        (answer(bidirectional="yes"), "bidirectional 'yes' is not one of false, true"),
        (answer(bidirectional="false"), 'keepCallAlive="true" needs bidirectional="true"'),
        (answer(keepCallAlive="1"), "keepCallAlive '1' is not one of false, true"),
        (answer(keepCallAlive="false"), "the call would end at once"),
        (answer(audioTrack="left"), "audioTrack 'left' is not one of inbound, outbound, both"),
        (answer(audioTrack="both"), "must be inbound when bidirectional"),
        (answer(audioTrack="outbound", bidirectional="false", keepCallAlive="false"), "not simulated; use inbound"),
        (answer(contentType="audio/x-mulaw"), "contentType: Plivo has no content type 'audio/x-mulaw'; use one of"),
        (answer(contentType="audio/x-mulaw;rate=16000"), "contentType: Plivo has no format audio/x-mulaw;rate=16000"),
        (answer(streamTimeout="0"), "streamTimeout '0' is not a whole number"),
        (answer(streamTimeout="1.5"), "streamTimeout '1.5'"),
        (answer(statusCallbackUrl="ftp://x"), "statusCallbackUrl must be an http"),
        (answer(statusCallbackMethod="PUT"), "statusCallbackMethod 'PUT' is not one of POST, GET"),
        (answer(extraHeaders="a"), "not of the form key=value"),
        (answer(extraHeaders="a=" + "b" * 511), "longer than 512 bytes"),
    ],
)
def test_what_plivo_would_not_stream_is_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(body)
    assert message in str(caught.value)


# -- the calls


async def test_the_answer_url_is_asked_and_its_stream_dialled_in_its_format() -> None:
    words = bytes(range(256)) * 5

    async def agent(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(words, "audio/x-l16", 16000)
        await agent.checkpoint("end")
        await agent.until("playedStream")

    async with agent_server(agent) as server, web_server() as site:
        site.body = answer(server.url + "/s?mt=1", contentType="audio/x-l16;rate=16000", extraHeaders="a=b,c=d")
        async with AnswerClient(site.url + "/answer#ct=2000", from_number="+15550100007") as plivo:
            call = await plivo.answer(None, PlivoSwitches())
            record = await settle(asyncio.ensure_future(call.run()))
    ((method, path, fields, headers),) = site.requests
    asked = dict(fields)
    assert (method, path) == ("POST", "/answer")
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert (asked["CallUUID"], asked["From"], asked["To"]) == (record.call_id, "15550100007", "15550100002")
    assert (asked["Direction"], asked["CallStatus"], asked["Event"]) == ("inbound", "in-progress", "StartApp")
    assert record.outcome == "completed"
    assert record.heard.audio == words
    start = server.agents[0].start
    assert start["start"]["callId"] == asked["CallUUID"]
    assert start["start"]["mediaFormat"] == {"encoding": "audio/x-l16", "sampleRate": 16000}
    assert start["extra_headers"] == "a=b;c=d"
    request = server.agents[0].socket.request
    assert request is not None
    assert request.path == "/s?mt=1"


async def test_answer_by_get_puts_the_fields_into_the_query() -> None:
    async with web_server() as site:
        site.body = answer()
        async with AnswerClient(site.url + "/answer?x=1", method="GET") as plivo:
            await plivo.fetch()
    ((method, path, fields, _),) = site.requests
    assert method == "GET"
    assert path.startswith("/answer?x=1&CallUUID=")
    assert dict(fields)["CallUUID"] == plivo.call_id


async def test_status_callbacks_arrive_in_order_with_plivos_fields() -> None:
    async def agent(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(b"\x10" * 800)
        await agent.checkpoint("turn-1")
        await agent.until("playedStream")
        await agent.clear()
        await agent.until("clearedAudio")
        await agent.read_on()

    slow = 0.0

    async def on_status() -> None:
        nonlocal slow  # the first answer takes longest: order must not depend on speed
        slow = slow - 0.03 if slow else 0.1
        await asyncio.sleep(slow)

    async with agent_server(agent) as server, web_server(on_status) as site:
        site.body = answer(server.url, contentType="audio/x-mulaw;rate=8000", statusCallbackUrl=site.url + "/status")
        async with AnswerClient(site.url + "/answer") as plivo:
            call = await plivo.answer()
            running = asyncio.ensure_future(call.run())
            await call.wait_for(lambda record: record.of("clearedAudio"))
            call.hang_up()
            record = await settle(running)
    states = site.states()
    assert [state["Event"] for state in states] == ["StartStream", "PlayedStream", "ClearedAudio", "StopStream"]
    assert states[1]["Name"] == "turn-1"
    for state in states:
        assert state["CallUUID"] == record.call_id
        assert state["StreamID"] == record.stream_ids[0]
        assert state["ServiceURL"] == server.url
        assert {"From", "To", "Timestamp", "ParentAuthID"} <= set(state)
    assert [(c.event, c.status) for c in plivo.callbacks] == [(state["Event"], 200) for state in states]


async def test_status_callbacks_by_get() -> None:
    async with agent_server(listen) as server, web_server() as site:
        site.body = answer(server.url, statusCallbackUrl=site.url + "/status?k=1", statusCallbackMethod="GET")
        async with AnswerClient(site.url + "/answer") as plivo:
            call = await plivo.answer(None, PlivoSwitches(hang_up_at_s=0.05))
            await settle(asyncio.ensure_future(call.run()))
    assert [(method, dict(fields)["Event"]) for method, path, fields, _ in site.requests if "k=1" in path] == [
        ("GET", "StartStream"),
        ("GET", "StopStream"),
    ]


async def test_a_stream_that_cannot_be_connected_is_reported_as_dropped() -> None:
    async with web_server() as site:
        site.body = answer("ws://127.0.0.1:9/s", statusCallbackUrl=site.url + "/status")
        async with AnswerClient(site.url + "/answer") as plivo:
            call = await plivo.answer()
            record = await settle(asyncio.ensure_future(call.run()))
    assert record.outcome == "failed"
    assert [(state["Event"], state["Error"]) for state in site.states()] == [("DroppedStream", record.reason)]


async def test_a_status_url_that_is_gone_does_not_harm_the_call() -> None:
    async with agent_server(listen) as server, web_server() as site:
        site.body = answer(server.url, statusCallbackUrl="http://127.0.0.1:9/status")
        async with AnswerClient(site.url + "/answer") as plivo:
            call = await plivo.answer(None, PlivoSwitches(hang_up_at_s=0.05))
            record = await settle(asyncio.ensure_future(call.run()))
    assert record.outcome == "completed"
    assert [(callback.event, callback.status) for callback in plivo.callbacks] == [
        ("StartStream", None),
        ("StopStream", None),
    ]
    assert all(callback.error for callback in plivo.callbacks)


@pytest.mark.parametrize(
    ("status", "content_type", "message"),
    [
        (403, "application/xml", "answered with HTTP 403"),
        (302, "application/xml", "answered with HTTP 302"),
        (200, "text/html", "text/html, not application/xml"),
    ],
)
async def test_an_answer_that_is_none_is_named(status: int, content_type: str, message: str) -> None:
    async with web_server() as site:
        site.body, site.status, site.content_type = answer(), status, content_type
        async with AnswerClient(site.url) as plivo:
            with pytest.raises(AnswerError, match=message):
                await plivo.answer()


async def test_an_answer_url_that_cannot_be_reached_is_named() -> None:
    async with AnswerClient("http://127.0.0.1:9/answer") as plivo:
        with pytest.raises(AnswerError, match="cannot be reached"):
            await plivo.answer()


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async with web_server() as site:
        site.body = b"<Response>" + b" " * 5_000_000
        async with AnswerClient(site.url) as plivo:
            with pytest.raises(AnswerError, match="Plivo takes 102400"):
                await plivo.answer()


# -- signatures

TOKEN = "Y2Q2ZDgxZmY5YWRiOTI5YmQ1Njg0MTAxZWIyOTc4"
NONCE = "31627761595286130198"
URL = "https://plivobin.non-prod.plivops.com/api/v1/validate_signature03.xml"
_UUID = "3e82ae9d-2c78-4d85-b1a4-6eae7dbafb36"
FIELDS = [
    ("Direction", "outbound"),
    ("From", "19792014278"),
    ("CallStatus", "in-progress"),
    ("BillRate", "0.002"),
    ("Event", "StartApp"),
    ("ParentAuthID", "MANWVLYTK4ZWU1YTY4QA"),
    ("SessionStart", "2020-04-08 11:34:33.238707"),
    ("ALegUUID", _UUID),
    ("ALegRequestUUID", _UUID),
    ("CallUUID", _UUID),
    ("RequestUUID", _UUID),
    ("To", "sip:PlivoSignature382029104058171078704104@phone-qa.voice.plivodev.com"),
    ("SIP-H-To", "<sip:PlivoSignature382029104058171078704104@52.9.11.55;transport=udp>;tag=1"),
]


@pytest.mark.parametrize(
    ("method", "url", "fields", "expected"),
    [
        ("POST", URL + "/?a=b&c=d", FIELDS, "k7Pusd4OxCIjR5IfA9iedDNu/h/gbdYqdzG/MiYtd1c="),
        ("POST", URL, FIELDS, "iAjE5QqI37mbkYe4w3jTMudqEzbDufdqi7sYwTu64e0="),
        ("GET", URL + "/?a=b&c=d&" + urlencode(FIELDS), [], "UBq8jAtd32wR8EK9VgxbBn4n5rpI/l1H9iN4WfSEHFQ="),
        ("GET", URL + "?" + urlencode(FIELDS), [], "i/MQsaQSAd6fiKhOh2qeeeLHZ9faldADSb3/7+Akfbc="),
    ],
)
def test_signatures_are_plivos(method: str, url: str, fields: list[tuple[str, str]], expected: str) -> None:
    """The vectors of plivo-go."""
    assert sign_v3(TOKEN, method, url, NONCE, fields) == expected


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_plivos_own_library_accepts_our_signature(method: str) -> None:
    async with web_server() as site:
        site.body = answer()
        async with AnswerClient(site.url + "/a%20b/answer?q=x%20y", auth_token="secret", method=method) as plivo:
            await plivo.fetch()
    ((_, path, fields, headers),) = site.requests
    signature, nonce = headers["X-Plivo-Signature-V3"], headers["X-Plivo-Signature-V3-Nonce"]
    assert len(base64.b64decode(signature)) == 32
    given = dict(fields) if method == "POST" else {}
    good = validate_v3_signature(method, site.url + path, nonce, "secret", signature, given)
    assert good
    assert not validate_v3_signature(method, site.url + path, nonce, "another", signature, given)


async def test_without_a_token_nothing_is_signed() -> None:
    async with web_server() as site:
        site.body = answer()
        async with AnswerClient(site.url) as plivo:
            await plivo.fetch()
    assert not [name for name in site.requests[0][3] if name.lower().startswith("x-plivo")]
