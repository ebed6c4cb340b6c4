"""Voices that speak by themselves: sinks of users' own, Plivo's REST API, and the forms in which voices come."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from supervision.audio.format import L16, MediaFormat
from supervision.engine import MirrorConfig, Supervisor
from supervision.engine.attached import AttachedCall
from supervision.engine.intervention.orchestrator import Outcome
from supervision.engine.tts.forms import UserVoice
from supervision.engine.tts.plivo_speak import PlivoRESTTTSSink
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure
from supervision.engine.tts.sink import Spoken, TTSSink, estimated_s
from tests.engine.attached_calls import CALL_ID, GOOD, RIGHT, WRONG, Plivo, judge
from tests.engine.llms import ScriptedLLM
from tests.support.speech import say
from tests.support.virtual_time import virtual_time

BUFFER = "Sorry, let me make sure I got that right..."


class OwnSink:
    """A voice of a user's own, which says how long it takes, or does not."""

    def __init__(self, *, words_per_s: float | None = 4.0, latency_s: float = 0.0) -> None:
        self.said: list[tuple[str, str, float]] = []
        self.cleared: list[float] = []
        self.fails: Exception | None = None
        self.certain: bool | None = True
        self._words_per_s = words_per_s
        self._latency_s = latency_s

    async def speak(self, text: str, *, language: str) -> Spoken | None:
        await asyncio.sleep(self._latency_s)
        if self.fails is not None:
            raise self.fails
        self.said.append((text, language, asyncio.get_running_loop().time()))
        return Spoken(len(text.split()) / self._words_per_s) if self._words_per_s else None

    async def clear(self) -> bool | None:
        if self.fails is not None:
            raise self.fails
        self.cleared.append(asyncio.get_running_loop().time())
        return self.certain

    @property
    def texts(self) -> list[str]:
        return [text for text, _, _ in self.said]


def make_supervisor(judge_s: float = 0.0, **config: Any) -> Supervisor:
    llm = ScriptedLLM(turn=judge, delay_s=judge_s)
    config.setdefault("tiered_scoring_enabled", False)
    return Supervisor(MirrorConfig(llm=llm, policies=["Never confirm a refund."], **config))


@contextlib.asynccontextmanager
async def attached(sink: TTSSink, judge_s: float = 0.0, **config: Any) -> AsyncIterator[AttachedCall]:
    async with make_supervisor(judge_s, **config).attach(tts_sink=sink, call_id="c-1") as call:
        await asyncio.sleep(0)
        yield call


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_a_clean_turn_is_spoken_and_its_end_is_waited_for() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        outcome = await call.review_and_speak(customer_text="Where is it?", primary_text=GOOD)
        assert (outcome.intervened, outcome.spoken_text) == (False, GOOD)
        began = now()
        speaking = await call.speak("Anything else?")
        await speaking.played()
        assert now() - began == pytest.approx(12 / 4, abs=0.01)
        assert sink.texts == [GOOD, "Anything else?"]
        assert sink.said[1][2] - sink.said[0][2] == pytest.approx(10 / 4)


@virtual_time
async def test_a_wrong_turn_is_stopped_and_corrected_and_times_are_called_estimated() -> None:
    sink = OwnSink()
    async with attached(sink, judge_s=0.5) as call:
        outcome = await call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        assert outcome.intervened
        assert sink.texts == [WRONG, BUFFER, RIGHT]
        assert len(sink.cleared) == 1
        assert sink.said[2][2] - sink.said[1][2] == pytest.approx(9 / 4)
        heard = call.heard(outcome.verdict.turn_id)
        assert heard is not None
        assert heard.unheard_text.endswith("today.")
        assert heard.basis.value == "estimated"
        note = await call.consume_override()
        assert note is not None
        assert RIGHT in note


@virtual_time
async def test_a_report_says_that_its_times_are_estimated() -> None:
    async with attached(OwnSink()) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        report = await call.intervene(verdict)
        assert report.estimated
        assert report.outcome is Outcome.COMPLETED
        assert report.silence_proof == "not_needed"


@virtual_time
async def test_w1_a_sink_that_fails_ends_the_intervention_as_failed() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        sink.fails = ConnectionError("no way out")
        report = await call.intervene(verdict)
        assert report.outcome is Outcome.FAILED
        assert "ConnectionError" in report.detail
        assert await call.consume_override() is not None
        speaking = await call.speak(GOOD)
        await speaking.played()
        assert sink.said == []


@virtual_time
async def test_w4_a_sink_that_hangs_is_not_waited_for_for_ever() -> None:
    sink = OwnSink(latency_s=1_000.0)
    async with attached(sink) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        began = now()
        report = await call.intervene(verdict)
        assert now() - began < estimated_s(BUFFER) + estimated_s(RIGHT) + 2.0
        assert report.outcome is Outcome.COMPLETED


@virtual_time
async def test_w6_turns_said_meanwhile_wait_and_stale_ones_are_dropped() -> None:
    sink = OwnSink()
    async with attached(sink, judge_s=0.3) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        running = asyncio.create_task(call.intervene(verdict))
        await asyncio.sleep(0.1)
        await call.speak("A stale turn.")
        again = await call.intervene(verdict)
        assert again.detail == "in_progress"
        await asyncio.sleep(1.5)
        await call.speak(GOOD)
        assert (await running).outcome is Outcome.COMPLETED
        await asyncio.sleep(5)
        assert sink.texts == [BUFFER, RIGHT, GOOD]


@virtual_time
async def test_a_turn_that_waits_behind_another_is_replaced_in_its_place() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        await call.speak(GOOD)
        await asyncio.sleep(0.1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await call.speak(WRONG)
        report = await call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        assert sink.texts == [GOOD, BUFFER, RIGHT]
        assert sink.cleared == []


@virtual_time
async def test_a_turn_that_has_just_been_said_is_taken_back_and_an_older_one_is_not() -> None:
    sink = OwnSink()
    async with attached(sink, cooldown_s=0) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await (await call.speak(WRONG)).played()
        assert (await call.intervene(verdict)).outcome is Outcome.COMPLETED
        assert sink.texts == [WRONG, "Sorry, I misspoke.", RIGHT]
        second = await call.review_turn(customer_text="Money back!", primary_text=f"{WRONG} Yes.")
        await (await call.speak(f"{WRONG} Yes.")).played()
        await asyncio.sleep(3)
        assert (await call.intervene(second)).detail == "late"


@virtual_time
async def test_j10_a_late_verdict_does_not_stop_the_turn_that_is_being_said() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await (await call.speak(WRONG)).played()
        await asyncio.sleep(1)
        await call.speak(GOOD)
        assert (await call.intervene(verdict)).detail == "late"
        assert sink.cleared == []


@virtual_time
async def test_a_line_that_is_just_being_accepted_is_stopped_after_it() -> None:
    sink = OwnSink(latency_s=2.0)
    async with attached(sink, judge_s=0.5) as call:
        await call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
        await asyncio.sleep(5)
        accepted = next(at for text, _, at in sink.said if text == WRONG)
        assert any(at >= accepted for at in sink.cleared)


@virtual_time
async def test_w3_with_a_stream_to_listen_to_hanging_up_stops_the_sink() -> None:
    sink, plivo = OwnSink(), Plivo()
    async with make_supervisor().attach(plivo.websocket, tts_sink=sink) as call:
        reading = asyncio.create_task(drain(plivo))
        plivo.start()
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        running = asyncio.create_task(call.intervene(verdict))
        await asyncio.sleep(0.5)
        plivo.hang_up()
        assert (await running).outcome is Outcome.CALLER_GONE
        assert call.context.call_id == CALL_ID
        await reading


@virtual_time
async def test_w10_with_a_stream_to_listen_to_a_key_stops_the_sink() -> None:
    sink, plivo = OwnSink(), Plivo()
    async with make_supervisor().attach(plivo.websocket, tts_sink=sink) as call:
        reading = asyncio.create_task(drain(plivo))
        plivo.start()
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        running = asyncio.create_task(call.intervene(verdict))
        await asyncio.sleep(0.5)
        plivo.press()
        report = await running
        assert report.outcome is Outcome.INTERRUPTED
        assert len(sink.cleared) == 1
        assert sink.texts == [BUFFER]
        reading.cancel()


@virtual_time
async def test_w10_without_a_stream_the_callers_words_stop_the_sink() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        running = asyncio.create_task(call.intervene(verdict))
        await asyncio.sleep(0.5)
        call.note_customer_turn("Stop that.")
        assert (await running).outcome is Outcome.INTERRUPTED
        call.caller_gone()
        assert (await call.intervene(verdict)).outcome is Outcome.CALLER_GONE


@virtual_time
async def test_a_turn_that_waits_behind_the_wrong_one_is_dropped_with_it() -> None:
    sink = OwnSink()
    async with attached(sink) as call:
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await call.speak(WRONG)
        await call.speak(GOOD)
        await asyncio.sleep(0.5)
        report = await call.intervene(verdict)
        assert report.outcome is Outcome.COMPLETED
        await asyncio.sleep(5)
        assert sink.texts == [WRONG, BUFFER, RIGHT]
        assert "not played" in (await call.consume_override() or "")


@virtual_time
async def test_while_the_caller_speaks_the_sink_is_silenced_and_says_nothing() -> None:
    sink, plivo = OwnSink(), Plivo()
    async with make_supervisor().attach(plivo.websocket, tts_sink=sink) as call:
        reading = asyncio.create_task(drain(plivo))
        plivo.start()
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await call.speak(WRONG)
        speaking = asyncio.create_task(plivo.says(say("No, I want to talk to somebody about my money, now!")))
        await asyncio.sleep(1.2)
        sink.certain = None
        report = await call.intervene(verdict)
        assert (report.outcome, report.detail) == (Outcome.INTERRUPTED, "the caller is speaking")
        await speaking
        assert (sink.texts, len(sink.cleared)) == ([WRONG], 1)
        reading.cancel()


@virtual_time
async def test_a_sink_that_cannot_be_silenced_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sink, plivo = OwnSink(), Plivo()
    async with make_supervisor().attach(plivo.websocket, tts_sink=sink) as call:
        reading = asyncio.create_task(drain(plivo))
        plivo.start()
        await asyncio.sleep(1)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        await call.speak(WRONG)
        speaking = asyncio.create_task(plivo.says(say("No, I want to talk to somebody about my money, now!")))
        await asyncio.sleep(1.2)
        sink.fails = ConnectionError("no way out")
        assert (await call.intervene(verdict)).outcome is Outcome.INTERRUPTED
        await speaking
        assert "could not be told to stop: ConnectionError" in caplog.text
        reading.cancel()


@virtual_time
async def test_a_language_without_lines_leaves_the_call_unarmed() -> None:
    async with make_supervisor().attach(tts_sink=OwnSink(), call_id="c", language="tlh") as call:
        await asyncio.sleep(0)
        verdict = await call.review_turn(customer_text="Money back!", primary_text=WRONG)
        assert (await call.intervene(verdict)).detail == "unarmed: there are no lines in tlh"


async def drain(plivo: Plivo) -> None:
    await plivo.websocket.accept()
    async for _ in plivo.websocket.iter_text():
        pass


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0.0, 0.0),
        ("Just a moment.", 0.8, 1.6),
        ("I can connect you with a colleague. Shall I do that?", 3.0, 5.5),
        ("Ihre Bestellung ist in Arbeit.", 1.5, 3.2),
        ("我可以帮您转接同事吗？", 1.5, 4.0),
        ("Your number is 4 9 1 2 7 7.", 2.0, 5.0),
    ],
)
def test_how_long_words_take_is_estimated(text: str, least: float, most: float) -> None:
    assert least <= estimated_s(text) <= most


# Plivo's REST API --------------------------------------------------------------------------------


@dataclass
class PlivoAPI:
    """Plivo's voice API as it documents Speak: 202 when queued, 204 when stopped, 404 for calls that are over."""

    url: str = ""
    requests: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)
    status: int | None = None
    delay_s: float = 0.0
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.Response:
        kind, _, credentials = request.headers.get("Authorization", "").partition(" ")
        user = base64.b64decode(credentials).decode() if kind == "Basic" else ""
        body = json.loads(await request.read() or b"{}")
        self.requests.append((request.method, request.path, user, body))
        self.seen.set()
        await asyncio.sleep(self.delay_s)
        if self.status is not None:
            return web.json_response({"error": "as told"}, status=self.status)
        if user != "MA123:secret":
            return web.json_response({"error": "authentication failed"}, status=401)
        if request.match_info["uuid"] != CALL_ID:
            return web.json_response({"error": "not found"}, status=404)
        if request.method == "POST":
            return web.json_response({"api_id": "a", "message": "speak started"}, status=202)
        return web.Response(status=204)

    def said(self) -> list[str]:
        return [body["text"] for method, _, _, body in self.requests if method == "POST"]


@contextlib.asynccontextmanager
async def plivo_api() -> AsyncIterator[PlivoAPI]:
    api, app = PlivoAPI(), web.Application()
    app.router.add_route("*", "/v1/Account/{auth_id}/Call/{uuid}/Speak/", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    api.url = f"http://{host}:{port}"
    try:
        yield api
    finally:
        await runner.cleanup()


def rest_sink(api: PlivoAPI, call_id: str = CALL_ID, **options: Any) -> PlivoRESTTTSSink:
    return PlivoRESTTTSSink("MA123", "secret", call_id, base_url=api.url, **options)


async def test_plivo_speaks_and_stops_as_its_api_is_documented() -> None:
    async with plivo_api() as api:
        sink = rest_sink(api)
        assert isinstance(sink, TTSSink)
        assert await sink.speak("One moment.", language="en") == Spoken(None)
        assert await sink.clear() is False
        path = f"/v1/Account/MA123/Call/{CALL_ID}/Speak/"
        spoken = {"text": "One moment.", "language": "en-US", "voice": "WOMAN", "legs": "aleg", "loop": False}
        assert api.requests == [
            ("POST", path, "MA123:secret", {**spoken, "mix": False}),
            ("DELETE", path, "MA123:secret", {}),
        ]


async def test_a_turn_is_reviewed_corrected_and_spoken_through_plivos_api() -> None:
    async with plivo_api() as api:
        sink = rest_sink(api, call_id="")
        async with make_supervisor(0.2).attach(tts_sink=sink) as call:
            call.bind_call(CALL_ID)
            outcome = await call.review_and_speak(customer_text="Money back!", primary_text=WRONG)
            assert outcome.intervened
            assert RIGHT in outcome.spoken_text
        assert api.said() == [WRONG, BUFFER, RIGHT]
        assert [method for method, *_ in api.requests] == ["POST", "DELETE", "POST", "POST"]


@pytest.mark.parametrize(
    ("status", "failure", "message"),
    [
        (401, TTSFailure.REFUSED, "Plivo answered 401; check auth_id and auth_token"),
        (404, TTSFailure.REFUSED, "Plivo answered 404; the call is over"),
        (500, TTSFailure.REFUSED, "Plivo answered 500"),
    ],
)
async def test_what_plivo_refuses_is_told_and_not_tried_again(status: int, failure: TTSFailure, message: str) -> None:
    async with plivo_api() as api:
        api.status = status
        with pytest.raises(TTSError, match=message) as caught:
            await rest_sink(api).speak("One moment.", language="en")
        assert (caught.value.failure, caught.value.status) == (failure, status)
        assert len(api.requests) == 1
        assert "One moment" not in str(caught.value)


async def test_a_plivo_that_does_not_answer_or_is_not_there_is_told() -> None:
    async with plivo_api() as api:
        api.delay_s = 5.0
        with pytest.raises(TTSError, match=r"no answer within 0\.2 s") as caught:
            await rest_sink(api, timeout_s=0.2).speak("One moment.", language="en")
        assert caught.value.failure is TTSFailure.TIMEOUT
    with pytest.raises(TTSError, match=r"cannot reach 127\.0\.0\.1:9") as caught:
        await PlivoRESTTTSSink("MA1", "t", CALL_ID, base_url="http://127.0.0.1:9").speak("Hi.", language="en")
    assert caught.value.failure is TTSFailure.CONNECTION


async def test_an_empty_call_id_is_never_sent() -> None:
    async with plivo_api() as api:
        sink = rest_sink(api, call_id="")
        with pytest.raises(TTSError, match=r"call bind_call\(call_id\) first"):
            await sink.clear()
        for wrong in ("", "   ", "a/b", "..", "?"):
            with pytest.raises(ValueError, match="call_id: must be Plivo's CallUUID"):
                sink.bind(wrong)
        assert api.requests == []


async def test_texts_that_plivo_would_not_speak_are_not_sent() -> None:
    async with plivo_api() as api:
        sink = rest_sink(api)
        for text in ("  ", "x" * 3001):
            with pytest.raises(TTSError) as caught:
                await sink.speak(text, language="en")
            assert caught.value.failure is TTSFailure.BAD_TEXT
        assert api.requests == []


async def test_the_http_client_can_be_the_users_own() -> None:
    asked: list[tuple[str, str]] = []

    async def request(method: str, url: str, headers: Any, body: bytes | None) -> int:
        asked.append((method, url))
        return 202

    sink = PlivoRESTTTSSink("MA1", "t", "c-1", base_url="https://api.example.com/", request=request)
    await sink.speak("Hi.", language="sv-SE")
    assert asked == [("POST", "https://api.example.com/v1/Account/MA1/Call/c-1/Speak/")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auth_id": " "}, "auth_id: must not be blank"),
        ({"auth_token": ""}, "auth_token: must not be blank"),
        ({"voice": ""}, "voice: must not be blank"),
        ({"legs": "cleg"}, "legs: must be aleg, bleg or both"),
        ({"timeout_s": 0}, "timeout_s: must be positive"),
        ({"base_url": "api.plivo.com"}, "base_url: must be an http or https URL"),
        ({"call_id": "a b"}, "call_id: must be Plivo's CallUUID"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlivoRESTTTSSink(**({"auth_id": "MA1", "auth_token": "t"} | arguments))


@virtual_time
async def test_a_call_id_that_plivo_cannot_have_does_not_end_the_call() -> None:
    async def request(*_: Any) -> int:
        return 202

    sink = PlivoRESTTTSSink("MA1", "t", request=request)
    async with make_supervisor().attach(tts_sink=sink) as call:
        call.bind_call("not a uuid")
        assert sink.call_id == ""


# The forms of a voice ----------------------------------------------------------------------------

MULAW = MediaFormat()
TONE = MULAW.encode((8000 * np.sin(np.arange(4000) / 4)).astype(np.int16), 8000)


class Provider:
    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        return Speech(np.ones(2400, np.int16).tobytes(), 24000)

    def languages(self) -> frozenset[str]:
        return frozenset({"en"})


class Plain:
    def synthesize(self, text: str) -> bytes:
        return TONE


class Named:
    """Takes a language, and no voice."""

    def __init__(self) -> None:
        self.languages_asked: list[str] = []

    def synthesize(self, text: str, language: str) -> bytes:
        self.languages_asked.append(language)
        return TONE


async def coroutine(text: str) -> bytes:
    return TONE


async def in_pieces(text: str) -> AsyncIterator[bytes]:
    for at in range(0, len(TONE), 1000):
        yield TONE[at : at + 1000]


def later(text: str) -> Any:
    return coroutine(text)


@pytest.mark.parametrize(
    "voice",
    [coroutine, in_pieces, later, lambda text: TONE, lambda text: bytearray(TONE), Plain(), Named()],
    ids=["coroutine", "pieces", "awaitable", "function", "bytearray", "object", "object-with-language"],
)
async def test_every_form_of_a_voice_speaks_as_it_is(voice: Any) -> None:
    spoken = UserVoice(voice, MULAW)
    assert await spoken.audio("Hello.", language="en") == TONE
    speech = await spoken.synthesize("Hello.", language="en", voice="v")
    assert (speech.sample_rate, len(speech.samples)) == (8000, len(TONE))
    assert spoken.languages() is None
    await spoken.aclose()


async def test_a_provider_is_brought_into_the_calls_codec() -> None:
    spoken = UserVoice(Provider(), MediaFormat(L16, 16000))
    assert len(await spoken.audio("Hello.", language="en")) == 2 * 1600
    assert (await spoken.synthesize("Hello.", language="en")).sample_rate == 24000
    assert spoken.languages() == frozenset({"en"})


def broken(text: str) -> bytes:
    raise RuntimeError("secret words")


async def refuses(text: str) -> bytes:
    raise TTSError(TTSFailure.REFUSED, "no credit")


@pytest.mark.parametrize(
    ("voice", "failure", "message"),
    [
        (broken, TTSFailure.UNAVAILABLE, "tts_provider failed on a line: RuntimeError"),
        (refuses, TTSFailure.REFUSED, "no credit"),
        (lambda text: None, TTSFailure.BAD_AUDIO, "gave a NoneType"),
        (lambda text: b"", TTSFailure.BAD_AUDIO, "gave no audio"),
        (lambda text: b"RIFF" + TONE, TTSFailure.BAD_AUDIO, "gave a file"),
        (lambda text: b"ID3" + TONE, TTSFailure.BAD_AUDIO, "gave a file"),
    ],
)
async def test_what_a_voice_gets_wrong_is_told(voice: Callable[..., Any], failure: TTSFailure, message: str) -> None:
    with pytest.raises(TTSError, match=message) as caught:
        await UserVoice(voice, MULAW).audio("Hello.", language="en")
    assert caught.value.failure is failure
    assert "secret words" not in str(caught.value)


async def test_functions_that_cannot_be_looked_into_are_taken() -> None:
    voice = UserVoice(dict(hello=TONE).__getitem__, MULAW)
    assert await voice.audio("hello", language="en") == TONE
