"""Where `OpenAIClient` asks: OpenAI, Azure in both of its ways, and endpoints that do not mean well."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web

from supervision.engine import Usage
from supervision.engine.llm.endpoint import MAX_RESPONSE_BYTES, STARTS_PER_ROUND, Address, Turnstile, find_address
from supervision.engine.llm.openai import OpenAIClient, OpenAIPool, Secret
from supervision.engine.llm.protocol import LLMBadAnswer, LLMClient, LLMRejected, LLMResult
from supervision.engine.policy.compiler import TURN_SCHEMA
from tests.standins.llm import LLMStandIn
from tests.support.virtual_time import virtual_time

ROOT = Path(__file__).resolve().parents[2]
AZURE_VARIABLES = ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_DEPLOYMENT", "OPENAI_API_VERSION")
OPENAI_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*AZURE_VARIABLES, *OPENAI_VARIABLES):
        monkeypatch.delenv(name, raising=False)


async def ask(client: LLMClient, user: str = "{}") -> LLMResult:
    return await client.complete_json(
        system="The rules.", user=user, schema_name="mirror_turn", schema=TURN_SCHEMA, max_tokens=99, timeout_s=10.0
    )


# Addresses


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Address("https://api.openai.com/v1")),
        ({"base_url": "http://127.0.0.1:8080/v1/"}, Address("http://127.0.0.1:8080/v1")),
        ({"base_url": "http://127.0.0.1:8080"}, Address("http://127.0.0.1:8080")),
        ({"base_url": "https://gw.example/llm/chat/completions"}, Address("https://gw.example/llm")),
        ({"base_url": "https://gw.example/v1?team=a"}, Address("https://gw.example/v1", (("team", "a"),))),
        # Azure by its hosts: without a version its v1 API …
        ({"base_url": "https://n.openai.azure.com"}, Address("https://n.openai.azure.com/openai/v1", azure=True)),
        (
            {"base_url": "https://n.openai.azure.com/openai/v1/"},
            Address("https://n.openai.azure.com/openai/v1", (), True),
        ),
        (
            {"base_url": "https://n.services.ai.azure.com/openai/v1?api-version=preview"},
            Address("https://n.services.ai.azure.com/openai/v1", (("api-version", "preview"),), azure=True),
        ),
        (
            {"azure_endpoint": "https://n.openai.azure.com/openai"},
            Address("https://n.openai.azure.com/openai/v1", (), True),
        ),
        # … with one the deployment's path.
        (
            {"base_url": "https://n.cognitiveservices.azure.com/", "api_version": "2024-10-21"},
            Address(
                "https://n.cognitiveservices.azure.com/openai/deployments/judge", (("api-version", "2024-10-21"),), True
            ),
        ),
        (
            {
                "azure_endpoint": "https://n.openai.azure.com",
                "api_version": "2024-10-21",
                "azure_deployment": "my judge",
            },
            Address("https://n.openai.azure.com/openai/deployments/my%20judge", (("api-version", "2024-10-21"),), True),
        ),
        (
            {
                "base_url": "https://n.openai.azure.com/openai/deployments/d1/chat/completions"
                "?api-version=2025-01-01-preview"
            },
            Address("https://n.openai.azure.com/openai/deployments/d1", (("api-version", "2025-01-01-preview"),), True),
        ),
        # Behind a gateway of one's own.
        (
            {"azure_endpoint": "https://api.example/azure", "api_version": "2024-10-21"},
            Address("https://api.example/azure/openai/deployments/judge", (("api-version", "2024-10-21"),), True),
        ),
        # The environment, when nothing else was said.
        ({"environ": {"OPENAI_BASE_URL": "http://llm.example/v1"}}, Address("http://llm.example/v1")),
        (
            {"environ": {"AZURE_OPENAI_ENDPOINT": "https://az.example/", "OPENAI_API_VERSION": "2024-10-21"}},
            Address("https://az.example/openai/deployments/judge", (("api-version", "2024-10-21"),), True),
        ),
        (
            {"environ": {"AZURE_OPENAI_ENDPOINT": "https://az.example", "OPENAI_BASE_URL": "http://llm.example/v1"}},
            Address("https://az.example/openai/v1", (), True),
        ),
        (
            {"base_url": "http://llm.example/v1", "environ": {"AZURE_OPENAI_ENDPOINT": "https://az.example"}},
            Address("http://llm.example/v1"),
        ),
        (
            {
                "base_url": "https://n.openai.azure.com/openai/v1",
                "environ": {"OPENAI_API_VERSION": "2024-10-21"},
            },
            Address("https://n.openai.azure.com/openai/v1", (), True),
        ),
    ],
)
def test_the_address_follows_from_what_was_said_else_from_the_environment(
    given: dict[str, Any], expected: Address
) -> None:
    assert find_address(model="judge", **given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "http://a", "azure_endpoint": "http://b"}, "base_url and azure_endpoint exclude each other"),
        ({"base_url": "api.example.com/v1"}, "base_url has to start with .* write https://api.example.com/v1"),
        ({"base_url": "ftp://x"}, "base_url has to start with http:// or https:// and name a host$"),
        ({"base_url": 7}, "base_url has to start"),
        ({"base_url": "http://k:secret@host/v1"}, "base_url must not hold a name or a password"),
        ({"base_url": "http://host:99999/v1"}, "base_url has a port that is none"),
        ({"base_url": "http://host:0/v1"}, "base_url has to name a host and, if any, a port"),
        ({"base_url": "http://:80/v1"}, "base_url has to name a host"),
        ({"api_version": "2024-10-21"}, "azure_endpoint is missing: give it, or set AZURE_OPENAI_ENDPOINT"),
        ({"environ": {"OPENAI_BASE_URL": "nope"}}, "OPENAI_BASE_URL has to start"),
        ({"environ": {"AZURE_OPENAI_ENDPOINT": "nope"}}, "AZURE_OPENAI_ENDPOINT has to start"),
        ({"base_url": "https://n.openai.azure.com/openai/deployments/d"}, "api_version is missing"),
        (
            {"base_url": "https://n.openai.azure.com/openai/v1", "api_version": "2024-10-21"},
            "api_version 2024-10-21 is not for base_url that ends in /openai/v1",
        ),
    ],
)
def test_j13_an_address_that_cannot_work_is_refused_by_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        find_address(model="judge", **given)
    assert "secret" not in str(raised.value)


# Azure, over the wire


@dataclass
class AzureStandIn:
    """Azure OpenAI as far as a chat completion shows: its paths, its query, its header, its errors."""

    key: str = "azure-key"
    deployment: str = "judge"
    version: str = "2024-10-21"
    url: str = ""
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> "AzureStandIn":
        app = web.Application()
        app.router.add_post("/openai/deployments/{deployment}/chat/completions", self._dated)
        app.router.add_post("/openai/v1/chat/completions", self._v1)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _dated(self, request: web.Request) -> web.Response:
        body = await self._taken(request)
        if request.query.get("api-version") != self.version:
            return web.json_response({"error": {"code": "404", "message": "Resource not found"}}, status=404)
        return self._answer(request, request.match_info["deployment"], body)

    async def _v1(self, request: web.Request) -> web.Response:
        body = await self._taken(request)
        if request.query.get("api-version", "preview") not in ("preview", "v1"):
            return web.json_response({"error": {"code": "BadRequest", "message": "API version"}}, status=400)
        return self._answer(request, body["model"], body)

    async def _taken(self, request: web.Request) -> dict[str, Any]:
        self.seen.append(request)
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        return body

    def _answer(self, request: web.Request, deployment: str, body: dict[str, Any]) -> web.Response:
        if request.headers.get("api-key") != self.key or "Authorization" in request.headers:
            error = {"code": "401", "message": f"Access denied due to invalid subscription key {self.key}"}
            return web.json_response({"error": error}, status=401)
        if deployment != self.deployment:
            error = {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}
            return web.json_response({"error": error}, status=404)
        if "boom" in body["messages"][-1]["content"]:
            error = {"code": "content_filter", "message": "The response was filtered", "param": "prompt"}
            return web.json_response({"error": error}, status=400)
        message = {"role": "assistant", "content": '{"score": 0}'}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if "filtered" in body["messages"][-1]["content"]:
            choice |= {"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        return web.json_response({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


@pytest.fixture
async def azure() -> AsyncIterator[AzureStandIn]:
    async with AzureStandIn() as standin:
        yield standin


async def test_azure_is_asked_by_deployment_version_and_its_own_header(azure: AzureStandIn) -> None:
    client = OpenAIClient(
        api_key="azure-key", azure_endpoint=azure.url, azure_deployment="judge", api_version="2024-10-21"
    )
    assert await ask(client) == LLMResult('{"score": 0}', Usage(5, 2))
    (request,) = azure.seen
    assert request.path_qs == "/openai/deployments/judge/chat/completions?api-version=2024-10-21"
    assert azure.bodies[0]["response_format"]["json_schema"]["name"] == "mirror_turn"
    assert "azure-key" not in repr(client)
    await client.aclose()


async def test_azure_is_found_in_the_environment(azure: AzureStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f" {azure.url}/ ")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    monkeypatch.setenv("AZURE_OPENAI_DEPLOYMENT", "judge")
    for client in (
        OpenAIClient.from_env(),
        OpenAIClient(model="judge"),
        OpenAIClient(api_key="azure-key", model="judge"),
    ):
        assert (await ask(client)).text == '{"score": 0}'
        await client.aclose()
    assert {request.path_qs for request in azure.seen} == {
        "/openai/deployments/judge/chat/completions?api-version=2024-10-21"
    }


@pytest.mark.parametrize(
    "arguments", [{"base_url": "{}/openai/v1", "api_version": "preview"}, {"azure_endpoint": "{}"}]
)
async def test_azures_v1_needs_no_version_and_takes_the_deployment_as_the_model(
    azure: AzureStandIn, arguments: dict[str, str]
) -> None:
    given = {name: value.format(azure.url) for name, value in arguments.items()}
    client = OpenAIClient(api_key="azure-key", model="judge", **given)  # type: ignore[arg-type]
    assert (await ask(client)).text == '{"score": 0}'
    assert azure.seen[0].path == "/openai/v1/chat/completions"
    assert azure.bodies[0]["model"] == "judge"
    await client.aclose()


async def test_azure_through_an_http_client_of_ones_own_and_the_pool(azure: AzureStandIn) -> None:
    async with httpx2.AsyncClient(headers={"X-Team": "a"}) as http_client:
        client = OpenAIClient(
            api_key="azure-key",
            azure_endpoint=azure.url,
            model="judge",
            api_version="2024-10-21",
            http_client=http_client,
        )
        assert (await ask(client)).text == '{"score": 0}'
        await client.aclose()
    assert azure.seen[0].headers["X-Team"] == "a"
    assert azure.seen[0].path_qs == "/openai/deployments/judge/chat/completions?api-version=2024-10-21"
    pool = OpenAIPool()
    pooled = pool.client(api_key="azure-key", azure_endpoint=azure.url, model="judge", api_version="2024-10-21")
    assert (await ask(pooled)).text == '{"score": 0}'
    await pooled.aclose()
    await pool.aclose()


@pytest.mark.parametrize(
    ("changed", "user", "words"),
    [
        ({"api_key": "other"}, "{}", ("401", "check the API key")),
        ({"model": "nobody"}, "{}", ("404, DeploymentNotFound", "the deployment's name")),
        ({"api_version": "2020-01-01"}, "{}", ("404", "api_version")),
        ({}, "boom", ("400, content_filter",)),
        ({}, "filtered", ("content filter held the model's answer back",)),
    ],
)
async def test_azures_errors_say_what_to_do(
    azure: AzureStandIn, changed: dict[str, str], user: str, words: tuple[str, ...]
) -> None:
    given = {"api_key": "azure-key", "model": "judge", "api_version": "2024-10-21", **changed}
    client = OpenAIClient(azure_endpoint=azure.url, **given)  # type: ignore[arg-type]
    with pytest.raises((LLMRejected, LLMBadAnswer)) as raised:
        await ask(client, user)
    assert all(word in str(raised.value) for word in words)
    assert "azure-key" not in str(raised.value)
    await client.aclose()


# What comes from the environment, and what must not


async def test_a_client_for_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async with LLMStandIn(api_key="k-env") as llm:
        monkeypatch.setenv("OPENAI_API_KEY", "k-env")
        monkeypatch.setenv("OPENAI_BASE_URL", llm.base_url)
        default, named = OpenAIClient.from_env(), OpenAIClient.from_env(model="other")
        monkeypatch.setenv("OPENAI_MODEL", "judge-7")
        chosen = OpenAIClient.from_env()
        for client in (default, named, chosen):
            await ask(client)
            await client.aclose()
        assert [request.body["model"] for request in llm.requests] == ["gpt-4o-mini", "other", "judge-7"]


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({}, "OPENAI_API_KEY"),
        ({"AZURE_OPENAI_ENDPOINT": "https://az.example"}, "AZURE_OPENAI_DEPLOYMENT"),
        ({"AZURE_OPENAI_ENDPOINT": "https://az.example", "AZURE_OPENAI_DEPLOYMENT": "d"}, "AZURE_OPENAI_API_KEY"),
    ],
)
def test_j13_what_the_environment_lacks_is_named(
    environ: dict[str, str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=missing):
        OpenAIClient.from_env()


def test_a_key_of_the_environment_is_not_for_an_endpoint_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "operators")
    with pytest.raises(ValueError, match="api_key is blank"):
        OpenAIClient(model="m", base_url="http://tenant.example/v1")
    with pytest.raises(ValueError, match="model is missing"):
        OpenAIClient(api_key="k")
    with pytest.raises(ValueError, match="azure_deployment is blank"):
        OpenAIClient(api_key="k", model="m", azure_endpoint="http://x", azure_deployment=" ")
    with pytest.raises(ValueError, match="no header can carry"):
        OpenAIClient(api_key="schlüssel", model="m")


@pytest.mark.parametrize("own_http_client", [False, True])
async def test_the_operators_account_does_not_go_along_with_a_tenants_key(
    own_http_client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-operator")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-operator")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer operators\nX-Operator: yes\nCookie: a=b")
    monkeypatch.setenv("OPENAI_API_KEY", "operators")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "operators-admin")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "operators-azure")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "operators-token")
    http_client = httpx2.AsyncClient(headers={"X-Own": "1"}) if own_http_client else None
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="tenants", model="m", base_url=llm.base_url, http_client=http_client)
        await ask(client)
        await client.aclose()
        headers = {name.lower(): value for name, value in llm.requests[0].headers.items()}
    if http_client is not None:
        await http_client.aclose()
    assert headers["authorization"] == "Bearer tenants"
    assert "operator" not in json.dumps(headers)
    assert not {"openai-organization", "openai-project", "x-operator", "cookie", "api-key"} & headers.keys()
    assert headers.get("x-own") == ("1" if own_http_client else None)


async def test_the_pool_takes_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://operator.example/v1")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://operator.example")
    monkeypatch.setenv("OPENAI_API_KEY", "operators")
    pool = OpenAIPool()
    client = pool.client(api_key="tenants", model="m")
    assert "base_url='https://api.openai.com/v1'" in repr(client)
    with pytest.raises(ValueError, match="api_key is blank"):
        pool.client(api_key="", model="m")
    await client.aclose()
    await pool.aclose()


# Endpoints that do not mean well


def completion(padding: int) -> bytes:
    body = {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}], "padding": "x" * padding}
    return json.dumps(body).encode()


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("own_http_client", [False, True])
async def test_an_answer_without_end_is_not_read_to_its_end(status: int, chunked: bool, own_http_client: bool) -> None:
    sent = 0
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        await request.read()
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"})
        if not chunked:
            response.content_length = 2**40
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65_536)
                sent += 65_536
        finally:
            gone.set()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", endless)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    http_client = httpx2.AsyncClient(headers={"X-Own": "1"}) if own_http_client else None
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    client = OpenAIClient(api_key="k", model="m", base_url=url, http_client=http_client)
    with pytest.raises(LLMBadAnswer, match="more than 2048 KiB"):
        await ask(client)
    await asyncio.wait_for(gone.wait(), 10)
    # What the kernel holds between the two of us comes on top of what was read.
    assert sent < 5 * MAX_RESPONSE_BYTES
    await client.aclose()
    if http_client is not None:
        await http_client.aclose()
    await runner.cleanup()


async def test_an_answer_of_just_that_size_is_read() -> None:
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        padding = MAX_RESPONSE_BYTES - len(completion(0))
        llm.once(body=completion(padding))
        assert (await ask(client)).text == "{}"
        llm.once(body=completion(padding + 1))
        with pytest.raises(LLMBadAnswer, match="more than 2048 KiB"):
            await ask(client)
        assert (await ask(client)).text
        await client.aclose()


async def test_a_compressed_answer_is_refused_before_it_is_unpacked() -> None:
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        llm.once(body=b"not even gzip", headers={"Content-Encoding": "gzip"})
        with pytest.raises(LLMBadAnswer, match="compressed answer"):
            await ask(client)
        assert llm.requests[0].headers["Accept-Encoding"] == "identity"
        await client.aclose()


async def test_an_http_client_that_is_shared_is_bounded_for_completions_only() -> None:
    async def files(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * (MAX_RESPONSE_BYTES + 1))

    app = web.Application()
    app.router.add_get("/file", files)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with httpx2.AsyncClient() as http_client:
        for _ in range(2):
            OpenAIClient(api_key="k", model="m", http_client=http_client)
        assert len(http_client.event_hooks["response"]) == 1
        got = await http_client.get(f"http://127.0.0.1:{runner.addresses[0][1]}/file")
        assert len(got.content) == MAX_RESPONSE_BYTES + 1
    await runner.cleanup()


async def test_half_a_character_is_asked_about_as_a_question_mark() -> None:
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        await ask(client, json.dumps({"agent_text": "Fine \ud83d"}, ensure_ascii=False))
        assert json.loads(llm.requests[0].body["messages"][1]["content"])["agent_text"] == "Fine ?"
        await client.aclose()


async def test_what_else_one_asks_the_package_for_is_asked_as_ever() -> None:
    # The lean way of building requests is for chat completions alone.
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        with pytest.raises(openai.NotFoundError):
            await client._endpoint.sdk.get("/models", cast_to=object)
        await client.aclose()


# Loading


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import supervision.engine.llm.endpoint, supervision.engine.llm.secrets, supervision.engine.scorer.streaming\n"
        "from supervision.engine.llm.openai import OpenAIClient\n"
        "try: OpenAIClient(api_key='k', model='m')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "OpenAIClient needs the openai package: install mirror[openai]"


def test_a_secret_is_no_key_for_the_pool() -> None:
    with pytest.raises(ValueError, match="the pool needs the key itself"):
        asyncio.run(_pooled_secret())


async def _pooled_secret() -> None:
    OpenAIPool().client(api_key=Secret("a"), model="m")  # type: ignore[arg-type]


# Many at once


@virtual_time
async def test_a_few_questions_begin_at_once_and_many_in_their_order() -> None:
    turnstile, began = Turnstile(), list[int]()

    async def begin(number: int) -> None:
        await turnstile.enter()
        began.append(number)

    waiting = [asyncio.create_task(begin(number)) for number in range(5 * STARTS_PER_ROUND)]
    rounds = []
    while len(began) < len(waiting):
        await asyncio.sleep(0)
        rounds.append(len(began))
    assert began == list(range(len(waiting)))
    steps = [later - earlier for earlier, later in zip([0, *rounds], rounds, strict=False)]
    assert max(steps) == STARTS_PER_ROUND
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Few again: nobody waits for another round.
    coroutine = turnstile.enter()
    with pytest.raises(StopIteration):
        coroutine.send(None)


@virtual_time
async def test_who_gives_up_waiting_costs_the_others_nothing() -> None:
    turnstile = Turnstile()
    tasks = [asyncio.create_task(turnstile.enter()) for _ in range(4 * STARTS_PER_ROUND)]
    await asyncio.sleep(0)
    for task in tasks[STARTS_PER_ROUND : 2 * STARTS_PER_ROUND]:
        task.cancel()
    await asyncio.wait(tasks)
    assert sum(task.cancelled() for task in tasks) == STARTS_PER_ROUND


def test_a_loop_that_was_closed_leaves_nobody_waiting_on_the_next() -> None:
    turnstile = Turnstile()

    async def crowd() -> None:
        tasks = [asyncio.create_task(turnstile.enter()) for _ in range(STARTS_PER_ROUND + 1)]
        await asyncio.sleep(0)
        assert not tasks[-1].done()

    asyncio.run(crowd())
    asyncio.run(asyncio.wait_for(turnstile.enter(), 5))


async def test_of_a_thousand_questions_the_first_are_answered_while_the_last_begin() -> None:
    async with LLMStandIn() as llm:
        client = OpenAIClient(api_key="k", model="m", base_url=llm.base_url)
        done: list[int] = []

        async def one(number: int) -> None:
            await ask(client)
            done.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(400)]
        await llm.until(lambda: len(done) > 0)
        begun = len(llm.requests)
        await asyncio.gather(*tasks)
        assert begun < 300
        # … and so connections are used again instead of each question opening its own.
        assert len({request.peer for request in llm.requests}) < 400
        await client.aclose()
