"""OpenAITTS against a server that speaks the wire of `/audio/speech`."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import openai
import pytest
from aiohttp import web

from supervision.audio.pcm import encode_l16
from supervision.engine.tts.openai import OpenAITTS
from supervision.engine.tts.protocol import TTSError, TTSFailure

TONE = encode_l16((np.sin(np.arange(12_000) * 0.2) * 9000).astype(np.int16))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SpeechServer:
    """A local `/v1/audio/speech`; `answer` decides what the next request gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict, dict]] = []
        self.answer: Handler = self.speak
        self.disconnected = asyncio.Event()
        self.base_url = ""

    async def speak(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=TONE, content_type="audio/pcm")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((json.loads(await request.read()), dict(request.headers)))
        return await self.answer(request)

    def answers(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=body, content_type=content_type, headers=headers)

        self.answer = answer


@pytest.fixture
async def server() -> AsyncIterator[SpeechServer]:
    fake = SpeechServer()
    app = web.Application()
    app.router.add_post("/v1/audio/speech", fake.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.base_url = f"http://{host}:{port}/v1"
    yield fake
    await runner.cleanup()


@pytest.fixture(params=["httpx", "aiohttp"])
async def http_client(request) -> AsyncIterator[object]:
    make = {"httpx": openai.DefaultAsyncHttpxClient, "aiohttp": openai.DefaultAioHttpClient}[request.param]
    async with make(follow_redirects=False) as client:
        yield client


@pytest.fixture
async def tts(server, http_client) -> AsyncIterator[OpenAITTS]:
    provider = OpenAITTS(
        api_key="sk-secret", model="tts-x", base_url=server.base_url, http_client=http_client, timeout_s=5
    )
    yield provider
    await provider.aclose()


async def failure_of(provider: OpenAITTS, line: str = "Let me correct that.", language: str = "en") -> TTSError:
    with pytest.raises(TTSError) as caught:
        await provider.synthesize(line, language=language)
    assert "sk-secret" not in str(caught.value)
    assert "correct that" not in str(caught.value)
    return caught.value


async def test_a_line_is_asked_for_as_raw_samples_and_comes_back_as_speech(server, tts, monkeypatch):
    speech = await tts.synthesize("Let me correct that.", language="en-US", voice="nova")
    assert speech.pcm == TONE
    assert speech.sample_rate == 24_000
    assert speech.duration_ms == 500
    body, headers = server.requests[0]
    assert body == {"model": "tts-x", "voice": "nova", "input": "Let me correct that.", "response_format": "pcm"}
    assert headers["Authorization"] == "Bearer sk-secret"


async def test_the_configured_voice_and_instructions_are_used_when_the_line_names_no_voice(server, http_client):
    tts = OpenAITTS(
        api_key="k", model="m", base_url=server.base_url, http_client=http_client, voice="sage", instructions="Calmly."
    )
    await tts.synthesize("Hello.", language="en")
    assert server.requests[0][0]["voice"] == "sage"
    assert server.requests[0][0]["instructions"] == "Calmly."


async def test_the_operators_own_account_is_not_named_to_a_tenants_server(server, http_client, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-operator")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-operator")
    tts = OpenAITTS(api_key="k", base_url=server.base_url, http_client=http_client)
    await tts.synthesize("Hello.", language="en")
    assert not [value for value in server.requests[0][1].values() if "operator" in value]


async def test_audio_that_comes_in_odd_pieces_is_put_together(server, tts):
    async def pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await response.prepare(request)
        for at in range(0, len(TONE), 1111):
            await response.write(TONE[at : at + 1111])
        await response.write(b"\x01")  # half a sample, which is no sound
        return response

    server.answer = pieces
    assert (await tts.synthesize("Hello.", language="en")).pcm == TONE


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "answered 400"), (401, "check the API key"), (404, "check base_url, model and voice"),
     (429, "rate or quota"), (500, "answered 500"), (503, "answered 503")],
)  # fmt: skip
async def test_an_error_of_the_server_names_its_status_and_is_not_retried(server, tts, status, advice):
    server.answers(status, b'{"error": {"message": "no", "type": "x", "code": null, "param": null}}')
    error = await failure_of(tts)
    assert error.failure is TTSFailure.REFUSED
    assert error.status == status
    assert advice in str(error)
    assert len(server.requests) == 1


async def test_a_redirect_is_not_followed(server, tts):
    server.answers(307, b"", "text/plain", Location=f"{server.base_url}/audio/speech")
    error = await failure_of(tts)
    assert error.failure is TTSFailure.REFUSED
    assert error.status == 307
    assert "not followed" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("content_type", "body", "what"),
    [
        ("application/json", b'{"audio": "AAAA"}', "application/json instead of audio"),
        ("text/html", b"<html>hi</html>", "text/html instead of audio"),
        ("audio/wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "a file instead of raw samples"),
        ("audio/mpeg", b"ID3\x04\x00\x00", "a file instead of raw samples"),
        ("audio/pcm", b"", "sent no audio"),
        ("audio/pcm", b"\x00", "sent no audio"),
    ],
)
async def test_an_answer_that_is_not_the_audio_asked_for_is_named(server, tts, content_type, body, what):
    server.answers(200, body, content_type)
    error = await failure_of(tts)
    assert error.failure is TTSFailure.BAD_AUDIO
    assert what in str(error)


async def test_audio_without_end_is_cut_off(server, tts):
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 18))
        finally:
            server.disconnected.set()

    server.answer = endless
    error = await failure_of(tts)
    assert error.failure is TTSFailure.BAD_AUDIO
    assert "longer than 120 s" in str(error)
    async with asyncio.timeout(5):
        await server.disconnected.wait()


@pytest.mark.parametrize("begins", [False, True], ids=["before the headers", "in the middle of the body"])
async def test_a_server_that_hangs_is_given_up_at_the_deadline(server, http_client, begins):
    async def hang(request: web.Request) -> web.StreamResponse:
        try:
            if begins:
                response = web.StreamResponse(headers={"Content-Type": "audio/pcm"})
                await response.prepare(request)
                await response.write(TONE)
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        finally:
            server.disconnected.set()

    tts = OpenAITTS(api_key="sk-secret", base_url=server.base_url, http_client=http_client, timeout_s=0.2)
    # The first request loads and connects; on a busy machine that takes all of the time before the server is asked.
    await OpenAITTS(api_key="k", base_url=server.base_url, http_client=http_client).synthesize("Hello.", language="en")
    server.answer = hang
    error = await failure_of(tts)
    assert error.failure is TTSFailure.TIMEOUT
    assert "timeout_s is 0.2" in str(error)
    async with asyncio.timeout(5):
        await server.disconnected.wait()


@pytest.mark.parametrize("make", [openai.DefaultAsyncHttpxClient, openai.DefaultAioHttpClient])
async def test_the_http_clients_own_timeout_is_a_timeout_too(server, make):
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server.answer = hang
    async with make(timeout=0.1) as http_client:
        error = await failure_of(OpenAITTS(api_key="sk-secret", base_url=server.base_url, http_client=http_client))
    assert error.failure is TTSFailure.TIMEOUT


async def test_a_line_that_is_given_up_by_its_caller_closes_the_connection(server, tts):
    arrived = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        arrived.set()
        try:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        finally:
            server.disconnected.set()

    server.answer = hang
    line = asyncio.create_task(tts.synthesize("Hello.", language="en"))
    await arrived.wait()
    line.cancel()
    with pytest.raises(asyncio.CancelledError):
        await line
    async with asyncio.timeout(5):
        await server.disconnected.wait()


@pytest.mark.parametrize("begins", [False, True], ids=["before the headers", "in the middle of the body"])
async def test_a_connection_that_breaks_is_named_with_its_host(server, tts, begins):
    async def hang_up(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "audio/pcm", "Content-Length": str(len(TONE))})
        if begins:
            await response.prepare(request)
            await response.write(TONE[:500])
        request.transport.abort()
        return response

    server.answer = hang_up
    error = await failure_of(tts)
    assert error.failure is TTSFailure.CONNECTION
    assert "127.0.0.1" in str(error)


async def test_a_server_that_is_not_there_is_named(unused_tcp_port, http_client):
    tts = OpenAITTS(api_key="sk-secret", base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", http_client=http_client)
    error = await failure_of(tts)
    assert error.failure is TTSFailure.CONNECTION
    assert "cannot reach 127.0.0.1" in str(error)


async def test_only_configured_languages_are_tried(server, http_client):
    tts = OpenAITTS(
        api_key="sk-secret", base_url=server.base_url, http_client=http_client, languages=frozenset({"en", "de"})
    )
    assert tts.languages() == {"en", "de"}
    error = await failure_of(tts, language="fr-CA")
    assert error.failure is TTSFailure.LANGUAGE
    assert server.requests == []
    await tts.synthesize("Einen Moment.", language="DE_at")
    assert len(server.requests) == 1


@pytest.mark.parametrize("line", ["", "  \n", "a" * 4097])
async def test_a_line_that_cannot_be_spoken_is_not_sent(server, tts, line):
    error = await failure_of(tts, line=line)
    assert error.failure is TTSFailure.BAD_TEXT
    assert server.requests == []


async def test_after_closing_nothing_is_spoken_but_an_injected_client_stays_open(server, tts, http_client):
    await tts.aclose()
    assert (await failure_of(tts)).failure is TTSFailure.UNAVAILABLE
    assert not http_client.is_closed


async def test_without_an_injected_client_the_own_one_is_closed(server):
    tts = OpenAITTS(api_key="k", base_url=server.base_url)
    assert (await tts.synthesize("Hello.", language="en")).pcm == TONE
    await tts.aclose()
    assert tts._client.is_closed()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"api_key": ""}, "api_key is empty"),
        ({"api_key": "k", "sample_rate": 12345}, "sample_rate 12345"),
        ({"api_key": "k", "timeout_s": 0}, "timeout_s must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, what):
    with pytest.raises(ValueError, match=what):
        OpenAITTS(**settings)
