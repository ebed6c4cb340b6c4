"""Keys by name: looked up when first needed, once, and again when the endpoint refuses them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from supervision.engine import JudgingState, MirrorConfig, Supervisor, SupervisorContext
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.llm.protocol import LLMTimeout
from supervision.engine.llm.secrets import Key, Secret, SecretUnavailable, give_secrets
from supervision.engine.tts.openai import OpenAITTS
from supervision.engine.tts.protocol import TTSError
from tests.engine.test_llm_endpoint import ask
from tests.standins.llm import LLMStandIn
from tests.support.virtual_time import virtual_time


@pytest.fixture
async def llm() -> AsyncIterator[LLMStandIn]:
    async with LLMStandIn(api_key="sk-1") as standin:
        yield standin


class Vault:
    """Knows one key at a time and counts who asks for it."""

    def __init__(self, key: Any = "sk-1") -> None:
        self.key = key
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Any:
        self.asked.append(name)
        await asyncio.sleep(0)
        if isinstance(self.key, BaseException):
            raise self.key
        return self.key


async def test_the_supervisor_hands_the_resolver_on_and_the_key_is_looked_up_once(llm: LLMStandIn) -> None:
    vault = Vault()
    client = OpenAIClient(api_key=Secret("openai/judge"), model="m", base_url=llm.base_url)
    assert client.needs_secrets == "openai/judge"
    config = MirrorConfig(llm=client, policies=["No refunds."], secrets=vault, tiered_scoring_enabled=False)
    supervisor = Supervisor(config)
    assert client.needs_secrets is None
    assert vault.asked == []
    call = supervisor.call(SupervisorContext(call_id="c"))
    verdicts = await asyncio.gather(
        *(call.judge_turn(call.payload(customer_text="Hi", agent_text=f"Hello {n}.")) for n in range(5))
    )
    assert {verdict.state for verdict in verdicts} == {JudgingState.JUDGED}
    assert vault.asked == ["openai/judge"]
    assert {request.headers["Authorization"] for request in llm.requests} == {"Bearer sk-1"}
    assert "sk-1" not in repr(client)
    assert "sk-1" not in repr(client._key)
    await supervisor.aclose()


def test_j13_a_secret_that_nobody_can_look_up_is_refused_at_construction() -> None:
    client = OpenAIClient(api_key=Secret("openai/judge"), model="m")
    with pytest.raises(ValidationError, match=r"secrets\n.*Secret\('openai/judge'\)"):
        MirrorConfig(llm=client, policies=["No refunds."])
    with pytest.raises(ValidationError, match=r"secrets\n.*give a function .* got str"):
        MirrorConfig(llm=client, policies=["No refunds."], secrets="vault://x")  # type: ignore[arg-type]
    for blank in ("", " ", None):
        with pytest.raises(ValueError, match="needs the name of the secret"):
            Secret(blank)  # type: ignore[arg-type]


async def test_a_rotated_key_is_looked_up_again_when_the_old_one_is_refused(llm: LLMStandIn) -> None:
    vault = Vault()
    client = OpenAIClient(api_key=Secret("a"), model="m", base_url=llm.base_url)
    client.use_secrets(vault)
    await ask(client)
    llm.api_key = vault.key = "sk-2"
    results = await asyncio.gather(*(ask(client) for _ in range(4)))
    assert len(results) == 4
    # Once for all that were refused, however many they were.
    assert vault.asked == ["a", "a"]
    assert llm.requests[-1].headers["Authorization"] == "Bearer sk-2"
    await client.aclose()


async def test_a_key_that_stays_refused_is_looked_up_again_once_per_question(llm: LLMStandIn) -> None:
    vault = Vault("sk-wrong")
    client = OpenAIClient(api_key=Secret("a"), model="m", base_url=llm.base_url)
    client.use_secrets(vault)
    with pytest.raises(Exception, match="401"):
        await ask(client)
    assert vault.asked == ["a", "a"]
    assert len(llm.requests) == 1
    vault.key = "sk-wrong-too"
    with pytest.raises(Exception, match="401"):
        await ask(client)
    assert len(llm.requests) == 3
    await client.aclose()


async def test_a_key_that_was_given_as_it_is_is_not_looked_up(llm: LLMStandIn) -> None:
    client = OpenAIClient(api_key="sk-other", model="m", base_url=llm.base_url)
    assert client.needs_secrets is None
    client.use_secrets(Vault())
    with pytest.raises(Exception, match="401"):
        await ask(client)
    assert len(llm.requests) == 1
    await client.aclose()


async def test_a_plain_function_may_block() -> None:
    threads: list[threading.Thread] = []

    def look_up(name: str) -> str:
        threads.append(threading.current_thread())
        return f" key-of-{name}\n"

    key = Key(Secret("x"))
    key.use(look_up)
    key.use(Vault())
    assert await key.value() == "key-of-x"
    assert threads[0] is not threading.main_thread()


async def test_a_plain_function_may_return_something_to_await() -> None:
    vault = Vault("v")
    key = Key(Secret("x"))
    key.use(lambda name: vault(name))
    assert await key.value() == "v"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (KeyError("vault://internal/token=abc"), r"could not be looked up \(KeyError\)"),
        ("", "is blank"),
        (None, "is no text"),
        (b"bytes", "is no text"),
    ],
)
@virtual_time
async def test_a_secret_that_cannot_be_had_is_an_error_that_names_it_only(found: Any, said: str) -> None:
    vault = Vault(found)
    key = Key(Secret("openai/judge"))
    key.use(vault)
    for _ in range(2):
        with pytest.raises(SecretUnavailable, match=f"the secret 'openai/judge' {said}") as raised:
            await key.value()
        assert "token" not in str(raised.value)
    # It is asked for again every time: the vault may be back.
    assert len(vault.asked) == 2


@virtual_time
async def test_without_a_resolver_the_error_says_what_to_give() -> None:
    with pytest.raises(SecretUnavailable, match="give MirrorConfig secrets="):
        await Key(Secret("a")).value()


@virtual_time
async def test_a_question_that_runs_out_of_time_takes_no_other_with_it() -> None:
    known = asyncio.Event()

    async def slow(_name: str) -> str:
        await known.wait()
        return "late"

    key = Key(Secret("a"))
    key.use(slow)
    patient = asyncio.create_task(key.value())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await key.value()
    known.set()
    assert await patient == "late"
    assert await key.renewed("older") == "late"


@virtual_time
async def test_looking_up_is_inside_the_questions_deadline_and_ends_with_the_client() -> None:
    async def never(_name: str) -> str:
        await asyncio.Event().wait()
        return ""

    client = OpenAIClient(api_key=Secret("a"), model="m", base_url="http://127.0.0.1:9/v1")
    client.use_secrets(never)
    with pytest.raises(LLMTimeout, match="the API key could not be looked up in time"):
        await client.complete_json(
            system="", user="", schema_name="mirror_turn", schema={}, max_tokens=9, timeout_s=1.0
        )
    waiting = asyncio.create_task(client._key.value())
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(SecretUnavailable, match="given up"):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Voices


class SpeechServer:
    """`/audio/speech` that wants one key."""

    def __init__(self) -> None:
        self.key = "tts-1"
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def __aenter__(self) -> "SpeechServer":
        app = web.Application()
        app.router.add_post("/v1/audio/speech", self._speak)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._runner.cleanup()

    async def _speak(self, request: web.Request) -> web.Response:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no"}}, status=401)
        return web.Response(body=b"\0\0" * 240, content_type="audio/pcm")


async def test_a_voices_key_is_looked_up_and_again_when_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-operator")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer operators\nX-Operator: yes")
    vault = Vault("tts-1")
    async with SpeechServer() as server:
        voice = OpenAITTS(api_key=Secret("tts"), base_url=server.url)
        with pytest.raises(ValueError, match=r"secrets: the key of OpenAITTS is Secret\('tts'\)"):
            give_secrets(None, voice)
        give_secrets(vault, voice)
        give_secrets(vault, object())
        assert (await voice.synthesize("Hello", language="en")).sample_rate == 24000
        server.key = vault.key = "tts-2"
        await voice.synthesize("Hello", language="en")
        assert vault.asked == ["tts", "tts"]
        server.key = "tts-3"
        with pytest.raises(TTSError, match="401"):
            await voice.synthesize("Hello", language="en")
        assert "operator" not in str(server.headers)
        vault.key = KeyError("gone")
        with pytest.raises(TTSError, match="the secret 'tts' could not be looked up"):
            await voice.synthesize("Hello", language="en")
        await voice.aclose()
