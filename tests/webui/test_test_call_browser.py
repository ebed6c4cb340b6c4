"""A test call from Chromium: a script that is supervised, then a microphone, and one that is not allowed."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import expect
from pytest_django import DjangoDbBlocker

from supervision.audio.format import MediaFormat
from tests.e2e.agents import Agent, AgentCall
from tests.e2e.agents import agent as agent_server
from tests.factories import Tenancy, tenancy_create
from tests.standins.llm import LLMStandIn, words
from tests.webui.browser import OpenPage, barriers_of, overflow_of
from tests.webui.conftest import in_thread, let_sign_in

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

GREETING = "Hello, how can I help you?"
PROMISE = "Of course. I have refunded the whole amount to your card, you will see it there tomorrow."
CORRECTION = "I cannot refund that myself. Shall I ask a colleague?"


def tone(seconds: float) -> bytes:
    at = np.arange(round(seconds * 8000)) / 8000
    return MediaFormat().encode(np.rint(8000 * np.sin(2 * np.pi * 300 * at)).astype(np.int16), 8000)


def loud(call: AgentCall) -> int:
    """How many frames of the caller's have been loud so far."""
    frames = [base64.b64decode(event["media"]["payload"]) for event in call.of("media")]
    return sum(MediaFormat().louder_than(frame, 1500) for frame in frames)


async def promises(call: AgentCall) -> None:
    """Greets, and promises a refund to whoever has said something and is silent."""
    await call.hello()
    await call.send("mirror.turn", turn_id="t1", text=GREETING, customer_text="")
    await call.speak(tone(0.4))
    heard = -1
    async with asyncio.timeout(60):
        while not heard or heard != loud(call):
            heard = loud(call)
            await asyncio.sleep(0.7)
    await call.send("mirror.turn", turn_id="t2", text=PROMISE, customer_text="I want my money back.")
    await call.speak(tone(6.0))
    await call.send("checkpoint", streamId=call.stream_id, name="promised")
    await call.wait("never", timeout_s=None)  # type: ignore[arg-type]


@contextmanager
def agent_in_thread(script: Callable[[AgentCall], object]) -> Iterator[Agent]:
    """The agent on a loop of its own, beside a browser that is driven from this one."""
    made: list[Agent] = []
    ready, finish = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with agent_server(script) as agent:  # type: ignore[arg-type]
            made.append(agent)
            ready.set()
            await finish.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(20)
    try:
        yield made[0]
    finally:
        loop.call_soon_threadsafe(finish.set)
        thread.join(20)


def until(what: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for something outside of the page."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def llm() -> Iterator[LLMStandIn]:
    with LLMStandIn().in_thread() as standin:
        standin.judge(words({"refunded": {"rule": 1, "correction": CORRECTION}}))
        standin.correct(lambda question: CORRECTION)
        yield standin


def test_a_test_call_is_placed_supervised_and_spoken(
    open_page: OpenPage, django_db_setup: None, django_db_blocker: DjangoDbBlocker, llm: LLMStandIn
) -> None:
    with agent_in_thread(promises) as agent:
        made: list[Tenancy] = []

        def make() -> None:
            made.append(tenancy_create(owner="alice", upstream_url=agent.url, llm_base_url=llm.base_url))
            let_sign_in(made[0])

        with django_db_blocker.unblock():
            in_thread(make)
        watched = open_page(permissions=["microphone"])
        watched.sign_in(made[0])
        page = watched.open("/test-call")

        # One click, for the agent is chosen and the script is there.
        page.get_by_label("What the scripted caller says").fill("I want my money back.")
        page.get_by_role("button", name="Start a scripted call").click()
        expect(page.locator("#turns")).to_contain_text(GREETING, timeout=20_000)
        expect(page.get_by_role("log", name="The caller’s lines")).to_contain_text("I want my money back.")
        expect(page.locator("#turns")).to_contain_text("refunded the whole amount", timeout=20_000)
        expect(page.locator("#interventions")).to_contain_text(CORRECTION, timeout=20_000)
        page.get_by_text("Plivo’s wire", exact=True).click()
        expect(page.get_by_label("Plivo’s wire")).to_contain_text("Mirror’s correction")
        page.set_viewport_size({"width": 390, "height": 844})
        assert overflow_of(page) == []
        assert barriers_of(page) == []
        page.set_viewport_size({"width": 1440, "height": 900})
        expect(page.get_by_role("status").filter(has_text="The caller hung up.")).to_be_visible(timeout=30_000)
        opened = page.get_by_role("link", name="Open the call").get_attribute("href")
        assert opened is not None
        assert opened.startswith("/calls/")
        (scripted,) = agent.calls
        assert 10 < loud(scripted) < 400

        # The browser's microphone beeps once a second.
        page.get_by_role("button", name="Call again").click()
        page.get_by_role("button", name="Speak yourself").click()
        expect(page.get_by_text("Speak now.")).to_be_visible(timeout=20_000)
        until(lambda: len(agent.calls) == 2 and loud(agent.calls[1]) > 10)
        page.get_by_text("Microphone and loudspeaker").click()
        page.get_by_label("Microphone", exact=True).select_option(index=1)
        so_far = loud(agent.calls[1])
        until(lambda: loud(agent.calls[1]) > so_far + 10)
        mute = page.get_by_role("button", name="Mute")
        mute.click()
        expect(mute).to_have_attribute("aria-pressed", "true")
        page.get_by_text("Keys", exact=True).click()
        page.get_by_role("button", name="5", exact=True).click()
        page.get_by_label("Say a line").fill("Are you there?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("log", name="The caller’s lines")).to_contain_text("Are you there?")
        until(lambda: [event["dtmf"]["digit"] for event in agent.calls[1].of("dtmf")] == ["5"])
        page.get_by_role("button", name="Hang up").click()
        expect(page.get_by_role("button", name="Call again")).to_be_visible(timeout=20_000)
        until(lambda: agent.calls[1].closed == 1000)
        watched.open("/calls?test=yes")
        expect(page.get_by_text("Test", exact=True)).to_have_count(2)

        # Another browser, whose microphone nobody allowed.
        other = open_page()
        other.sign_in(made[0])
        page = other.open("/test-call")
        page.get_by_role("button", name="Speak yourself").click()
        expect(page.get_by_role("alert").filter(has_text="may not use the microphone")).to_be_visible()
        expect(page.get_by_role("button", name="Start a scripted call")).to_be_enabled()
        assert len(agent.calls) == 2
