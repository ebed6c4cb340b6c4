"""How quickly the console shows what happens: `python -m benchmarks.bench_console [--calls 200] [--turns 1000000]`.

Loads turns of one tenant into a PostgreSQL of its own (as bench_api does), closes its days as the schedule does, and
starts `manage.py serve`. Then two things are measured:

- pages: each page of the console that needs no object, and a call's, one request after the other on a connection that
  is kept open; the bar is 200 ms at the 95th percentile of each page;
- the live page: calls run, each with a turn every 8 s that is reported, judged and heard, brought in by the real
  recorder, while browsers' sockets follow all of them (every one acknowledges as the page does) and Chromium shows
  them. A turn's time runs from its recording to the update that has it, and in Chromium to the document that shows it;
  the bar is 1 s at the 99th percentile of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import psycopg

from benchmarks.bench_api import load
from benchmarks.own_mirror import own_mirror

PAGE_BAR_MS: Final = 200.0
LIVE_BAR_MS: Final = 1000.0
TURN_EVERY_S: Final = 8.0
MARK: Final = re.compile(r"mark-\d+-\d+")
# What happens to a turn, and how long after it was reported.
JUDGED_S, HEARD_S = 0.3, 3.0
CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass(frozen=True)
class Shop:
    """The tenant of the benchmark, a session of its owner, and the pages to ask for."""

    tenancy: Any
    session: str
    paths: list[str]


def prepare(turns: int) -> Shop:
    """A tenant with a record, members and keys, and its owner signed in."""
    import django

    django.setup()
    from django.test import Client
    from django.utils import timezone

    from supervision.models import Call, Intervention
    from supervision.services.agents import agent_create
    from supervision.services.usage import latency_days_close, usage_days_close
    from tests.factories import client_sign_in, tenancy_create
    from tests.isolation.sweep import PAGES, PUBLIC

    tenancy = tenancy_create(owner="bench", llm_model="bench")
    with tenancy.context():
        agents = [tenancy.agent.id]
        for n in range(4):
            made = agent_create(name=f"agent {n}", upstream_url="ws://127.0.0.1:1/", policy=tenancy.policy)
            agents.append(made.agent.id)
    with psycopg.connect(
        os.environ["DATABASE_OWNER_URL"], autocommit=True, cursor_factory=psycopg.ClientCursor
    ) as owner:
        load(owner, tenancy.id, agents, tenancy.version, turns)
    with tenancy.context():
        usage_days_close(now=timezone.now())
        latency_days_close(now=timezone.now())
        call_id = Call.objects.order_by("started_at").values_list("id", flat=True)[1]
        # The queue itself leads to its first item.
        item_id = Intervention.objects.order_by("-id").values_list("id", flat=True)[0]
    client = Client()
    client_sign_in(client, tenancy.users["bench"])
    asked = {door.path for door in PAGES if door.method == "GET" and door.needs != PUBLIC and not door.parameters}
    paths = [f"/{path}" for path in sorted(asked)] + [
        "/calls?outcome=failed",
        f"/calls?agent={agents[1]}",
        "/overview?first=" + f"{timezone.now() - timedelta(days=89):%Y-%m-%d}",
        f"/calls/{call_id}",
        f"/review/{item_id}",
        "/review?label=missed",
    ]
    return Shop(tenancy, str(client.session.session_key), paths)


def cookies_of(shop: Shop) -> dict[str, str]:
    from django.conf import settings

    return {settings.SESSION_COOKIE_NAME: shop.session}


# -- pages ------------------------------------------------------------------------------------------------------------


async def pages(url: str, shop: Shop, each: int) -> bool:
    """Ask for every page and print how long it took; whether each is within the bar."""
    times: dict[str, list[float]] = {}
    async with aiohttp.ClientSession(cookies=cookies_of(shop)) as session:
        jobs = [path for path in shop.paths for _ in range(each)]
        random.Random(1).shuffle(jobs)
        for path in [*shop.paths, *shop.paths, *jobs]:
            begun = time.perf_counter()
            async with session.get(f"{url}{path}", allow_redirects=False) as answer:
                await answer.read()
                took = (time.perf_counter() - begun) * 1000
                # A download is as long as what it holds.
                if answer.status != 200 or answer.content_type != "text/html":
                    times.pop(path, None)
                    continue
            times.setdefault(path, []).append(took)
    good = True
    print(f"\n{'pages, ms':52}{'p50':>8}{'p95':>8}{'max':>8}")
    for path, measured in times.items():
        # The first two warm up.
        measured = measured[2:]
        p95 = statistics.quantiles(measured, n=20)[18]
        good = good and p95 <= PAGE_BAR_MS
        mark = "" if p95 <= PAGE_BAR_MS else "  over the bar"
        name = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", path)
        print(f"{name:52}{statistics.median(measured):8.1f}{p95:8.1f}{max(measured):8.1f}{mark}")
    left_out = sorted(set(shop.paths) - set(times))
    if left_out:
        print(f"not measured, they lead elsewhere or are downloads: {', '.join(left_out)}")
    return good


# -- the live page ----------------------------------------------------------------------------------------------------


class Calls(threading.Thread):
    """Running calls: what happens in them is recorded when it is due, and `recorded` says when each turn was."""

    def __init__(self, shop: Shop, number: int, home: Path) -> None:
        super().__init__(daemon=True)
        from tests.webui import story

        self.told = [story.Story(shop.tenancy, story.now()) for _ in range(number)]
        self.recording = story.Recording(dsn=os.environ["DATABASE_URL"], journal_dir=home / "journal")
        self.recorded: dict[str, float] = {}
        self.events = 0
        self.ended = threading.Event()
        # Held while the calls begin, so that a turn's recording waits for nothing but itself.
        self.recording([event for told in self.told for event in told.start()])

    def run(self) -> None:
        """Until `ended`; each call has its own beat."""
        begun = time.monotonic()
        pace = random.Random(2)
        due: list[tuple[float, int, str, int]] = [
            (pace.uniform(0, TURN_EVERY_S), place, "turn", 1) for place in range(len(self.told))
        ]
        while due and not self.ended.is_set():
            due.sort()
            at_s, place, what, number = due.pop(0)
            self.ended.wait(max(0.0, begun + at_s - time.monotonic()))
            told, at_ms = self.told[place], round(at_s * 1000)
            name = f"turn {number}"
            if what == "turn":
                mark = f"mark-{place}-{number}"
                events = told.turn(at_ms + 500, "And when will it be there?", f"It usually takes two days. {mark}")
                due += [
                    (at_s + JUDGED_S, place, "judged", number),
                    (at_s + HEARD_S, place, "heard", number),
                    (at_s + TURN_EVERY_S, place, "turn", number + 1),
                ]
                self.recorded[mark] = time.time()
            elif what == "judged":
                events = told.judged(name, at_ms + 500, pace.random() * 0.65)
            else:
                events = told.heard(name, at_ms + 500, "It usually takes two days.")
            self.events += len(events)
            self.recording.record(events)

    def close(self) -> None:
        self.ended.set()
        self.join()
        self.recording.close()


@dataclass
class Follower:
    """A browser's socket on the topic `live`: when it first had each turn, and what it was sent."""

    seen: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    bytes: int = 0

    async def follow(self, url: str, cookies: dict[str, str], origin: str) -> None:
        """Until cancelled."""
        async with (
            aiohttp.ClientSession(cookies=cookies) as session,
            session.ws_connect(f"{url}/ws/console", origin=origin, max_msg_size=0) as socket,
        ):
            await socket.send_json({"type": "subscribe", "topic": "live", "query": ""})
            async for message in socket:
                now = time.time()
                update = json.loads(message.data)
                if update["type"] != "update":
                    continue
                self.updates += 1
                self.bytes += len(message.data)
                for mark in MARK.findall(message.data):
                    self.seen.setdefault(mark, now)
                await socket.send_json({"type": "ack", "topic": update["topic"], "n": update["n"]})


@contextmanager
def chromium(url: str, cookies: dict[str, str]) -> Iterator[Callable[[], dict[str, float]]]:
    """Chromium on the live page; gives what says when the document first showed each turn, in seconds of the clock."""
    from playwright.sync_api import sync_playwright

    from tests.webui.conftest import CHROMIUM_FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.add_cookies([{"name": name, "value": value, "url": url} for name, value in cookies.items()])
        page = context.new_page()
        page.goto(f"{url}/live")
        page.evaluate(
            """() => {
                window.shown = {};
                const look = (text) => {
                    for (const [mark] of text.matchAll(/mark-\\d+-\\d+/g)) window.shown[mark] ??= Date.now() / 1000;
                };
                new MutationObserver((changes) => {
                    for (const { target, addedNodes } of changes) {
                        for (const node of addedNodes) look(node.textContent);
                        if (target.nodeType === Node.TEXT_NODE) look(target.data);
                    }
                }).observe(document.body, { childList: true, subtree: true, characterData: true });
            }"""
        )
        yield lambda: page.evaluate("window.shown")
        browser.close()


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of what it started."""
    total = 0.0
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


async def follow(url: str, shop: Shop, calls: Calls, sockets: int, seconds: float, pid: int) -> list[Follower]:
    """Let the calls run for `seconds` while `sockets` browsers follow them."""
    followers = [Follower() for _ in range(sockets)]
    tasks = [asyncio.create_task(each.follow(url, cookies_of(shop), url)) for each in followers]
    # The snapshot is not what is measured.
    await asyncio.sleep(2)
    calls.start()
    begun, used = time.monotonic(), cpu_of(pid)
    await asyncio.sleep(seconds)
    lasted = time.monotonic() - begun
    core = (cpu_of(pid) - used) / lasted
    print(
        f"\n{len(calls.told)} running calls, {calls.events / lasted:.0f} events/s, {sockets} sockets and"
        f" {'Chromium' if CHROMIUM else 'no Chromium'}: the server's processes used {core * 100:.0f} % of a core"
    )
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    updates, sent = sum(each.updates for each in followers), sum(each.bytes for each in followers)
    if followers:
        print(
            f"  each socket had {updates / sockets / lasted:.1f} updates/s, {sent / sockets / lasted / 1000:.0f} kB/s"
        )
    return followers


def show(name: str, calls: Calls, seen: dict[str, float], until: float) -> bool:
    """Print how long turns took; whether they are within the bar. Those of the last second are still on their way."""
    took, missing = [], 0
    for mark, at in calls.recorded.items():
        if at > until - LIVE_BAR_MS / 1000:
            continue
        if mark in seen:
            took.append((seen[mark] - at) * 1000)
        else:
            missing += 1
    if len(took) < 2:
        print(f"  {name:32}nothing was seen, {missing} turns")
        return False
    cuts = statistics.quantiles(took, n=100)
    good = not missing and cuts[98] <= LIVE_BAR_MS
    print(
        f"  {name:32}p50 {cuts[49]:6.0f}  p95 {cuts[94]:6.0f}  p99 {cuts[98]:6.0f}  max {max(took):6.0f} ms"
        f"  of {len(took)} turns, {missing} never{'' if good else '  over the bar'}"
    )
    return good


def live(url: str, shop: Shop, number: int, sockets: int, seconds: float, pid: int) -> bool:
    """Measure the live page; whether it is within the bar."""
    home = Path(tempfile.mkdtemp(prefix="mirror-bench-journal-"))
    calls = Calls(shop, number, home)
    try:
        if CHROMIUM:
            with chromium(url, cookies_of(shop)) as shown:
                followers = _in_loop(follow(url, shop, calls, sockets, seconds, pid))
                until, in_page = time.time(), shown()
        else:
            followers = _in_loop(follow(url, shop, calls, sockets, seconds, pid))
            until, in_page = time.time(), {}
        good = all([show("from recording to the socket", calls, each.seen, until) for each in followers[:3]])
        if CHROMIUM:
            good &= show("from recording to Chromium's page", calls, in_page, until)
        return good
    finally:
        calls.close()
        shutil.rmtree(home, ignore_errors=True)


def _in_loop(work: Any) -> Any:
    """Run a coroutine in a thread of its own: Playwright has a loop in this one."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work)))
    thread.start()
    thread.join()
    if not found:
        raise RuntimeError("the sockets failed; see above")
    return found[0]


async def served(url: str) -> None:
    """Return when the server answers."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{url}/livez") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)


def main() -> int:
    """Load, serve, measure and print; 1 when something is over its bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=1_000_000, help="turns of the tenant's record")
    parser.add_argument("--each", type=int, default=40, help="requests of each page")
    parser.add_argument("--calls", type=int, default=200, help="calls that run")
    parser.add_argument("--sockets", type=int, default=3, help="browsers that follow them, beside Chromium")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they run")
    options = parser.parse_args()
    with own_mirror() as mirror:
        begun = time.monotonic()
        shop = prepare(options.turns)
        size = mirror.vacuum()
        print(f"{options.turns:,} turns of one tenant in {time.monotonic() - begun:.0f} s, {size}", flush=True)
        mirror.serve()
        assert mirror.server is not None
        asyncio.run(served(mirror.url))
        good = asyncio.run(pages(mirror.url, shop, options.each))
        good &= live(mirror.url, shop, options.calls, options.sockets, options.seconds, mirror.server.pid)
        print(f"load {os.getloadavg()[0]:.1f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
