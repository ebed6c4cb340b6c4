"""Screenshots of every page, wide and narrow, light and dark: `python -m tests.webui.screenshots [FOLDER] [NAME…]`.

They are taken from a real server with a tenant whose calls came through the real recorder, and written to
`build/screenshots` unless FOLDER says otherwise; with names of PAGES and EMPTY_PAGES, or `forms`, only those, in two
sizes. Look at them: what a person sees is no test's to judge.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

if TYPE_CHECKING:
    from tests.factories import Tenancy
    from tests.webui.set_up import SetUp


@dataclass(frozen=True)
class Scene:
    """What there is to be seen: a tenant with calls of every kind, and one without."""

    tenancy: Tenancy
    empty: Tenancy
    corrected: UUID
    live: UUID
    silent: UUID
    failed: UUID
    set_up: SetUp


# The pages that alice, an owner, sees: a picture's name, and its path or what makes it of the scene. A row each.
PAGES: list[tuple[str, str | Callable[[Scene], str]]] = [
    ("live", "/live"),
    ("live-no-match", "/live?risk=high&agent=none"),
    ("approvals", "/approvals"),
    ("overview", "/overview"),
    ("overview-wrong-range", "/overview?first=2020-01-01"),
    ("usage", "/usage"),
    ("calls", "/calls"),
    ("calls-filtered", "/calls?state=ended&outcome=failed"),
    ("calls-no-match", "/calls?state=live&outcome=failed"),
    ("call", lambda scene: f"/calls/{scene.corrected}"),
    ("call-live", lambda scene: f"/calls/{scene.live}"),
    ("call-at", lambda scene: f"/calls/{scene.corrected}?at=24600"),
    ("call-erase", lambda scene: f"/calls/{scene.corrected}/erase"),
    ("call-silent", lambda scene: f"/calls/{scene.silent}"),
    ("call-failed", lambda scene: f"/calls/{scene.failed}"),
    ("review", "/review"),
    ("review-tool", "/review?kind=tool"),
    ("review-close-call", "/review?kind=near"),
    ("review-no-match", "/review?label=missed"),
    ("test-call", "/test-call"),
    ("not-found", lambda scene: f"/calls/{scene.tenancy.id}"),
    ("policies", "/policies"),
    ("policy", lambda scene: f"/policies/{scene.tenancy.policy.id}"),
    ("policy-new", "/policies/new"),
    ("policy-derive", "/policies/derive"),
    ("policy-diff", lambda scene: f"/policies/{scene.tenancy.policy.id}/diff?before=1&after=2"),
    ("policy-agent", lambda scene: f"/policies/{scene.tenancy.policy.id}/agents/{scene.tenancy.agent.id}"),
    ("policy-version", lambda scene: f"/policies/{scene.tenancy.policy.id}/versions/1"),
    ("policy-draft", lambda scene: f"/policies/{scene.tenancy.policy.id}/versions/3?call={scene.corrected}"),
    ("policy-publish", lambda scene: f"/policies/{scene.tenancy.policy.id}/versions/3/publish"),
    ("policy-archive", lambda scene: f"/policies/{scene.tenancy.policy.id}/archive"),
    ("agents", "/agents"),
    ("agents-no-match", "/agents?name=nobody"),
    ("agent", lambda scene: f"/agents/{scene.tenancy.agent.id}"),
    ("agent-new", "/agents/new"),
    ("agent-edit", lambda scene: f"/agents/{scene.tenancy.agent.id}/edit"),
    ("agent-stream-key", lambda scene: f"/agents/{scene.tenancy.agent.id}/stream-key"),
    ("agent-signing-secret", lambda scene: f"/agents/{scene.tenancy.agent.id}/signing-secret"),
    ("agent-archive", lambda scene: f"/agents/{scene.tenancy.agent.id}/archive"),
    ("welcome-agent", lambda scene: f"/welcome/{scene.tenancy.agent.id}"),
    ("sign-up-tenant", "/sign-up"),
    ("api-keys", "/api-keys"),
    ("api-key-new", "/api-keys/new"),
    ("credentials", "/credentials"),
    ("credential-kinds", "/credentials/new"),
    ("credential-new", "/credentials/new?kind=llm"),
    ("credential", lambda scene: f"/credentials/{scene.tenancy.credential.id}"),
    ("credential-edit", lambda scene: f"/credentials/{scene.tenancy.credential.id}/edit"),
    ("webhooks", "/webhooks"),
    ("webhook-new", "/webhooks/new"),
    ("webhook", lambda scene: f"/webhooks/{scene.set_up.webhook}"),
    ("webhook-secret", lambda scene: f"/webhooks/{scene.set_up.webhook}/secret"),
    ("webhook-delivery", lambda scene: f"/webhooks/{scene.set_up.webhook}/deliveries/{scene.set_up.delivery}"),
    ("settings", "/settings"),
    ("settings-privacy", "/settings/privacy"),
    ("settings-models", "/settings/models"),
    ("settings-alarms", "/settings/alarms"),
    ("alarm-mails", "/alarm-mails"),
    ("audit", "/audit"),
    ("audit-verify", "/audit/verify"),
    ("account", "/account"),
    ("members", "/members"),
    ("leave", "/members/leave"),
    ("password", "/account/password"),
    ("confirm", "/account/confirm"),
]

# Those that erin sees, whose tenant is new.
EMPTY_PAGES: list[tuple[str, str]] = [
    ("live-empty", "/live"),
    ("approvals-empty", "/approvals"),
    ("overview-empty", "/overview"),
    ("calls-empty", "/calls"),
    ("welcome", "/welcome"),
    ("review-empty", "/review"),
]

# What is seen on the way through menus and forms of one's own account.
FORMS = "forms"

SIZES = {"wide": (1440, 900), "huge": (2560, 1300), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main(folder: Path, names: frozenset[str]) -> None:
    unknown = names - {FORMS, *(name for name, _ in [*PAGES, *EMPTY_PAGES])}
    if unknown:
        sys.exit(f"No such pages: {', '.join(sorted(unknown))}")
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    from channels.layers import channel_layers
    from django.conf import settings
    from django.db import connections
    from playwright.sync_api import Page, sync_playwright

    from mirror_saas.databases import database_settings
    from tests.factories import PASSWORD, approval_create, tenancy_create
    from tests.support import servers as support
    from tests.support.ports import free_port
    from tests.support.totp import totp
    from tests.webui import story
    from tests.webui.conftest import CHROMIUM, CHROMIUM_FLAGS, Console, let_sign_in
    from tests.webui.set_up import set_up
    from tests.webui.written_policies import policy_written

    servers = support.servers_start()
    urls = support.database_create(servers)
    settings.DATABASE_URL = urls.app
    connections["default"].settings_dict.update(database_settings(urls.app))
    layers: Any = settings.CHANNEL_LAYERS
    layers["default"]["CONFIG"]["hosts"][0]["address"] = servers.redis_url
    channel_layers.backends.clear()
    home = tempfile.TemporaryDirectory(prefix="mirror-screenshots-")
    console = Console(
        {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "mirror_saas.settings",
            "DATABASE_URL": urls.app,
            "DATABASE_OWNER_URL": urls.owner,
            "REDIS_URL": servers.redis_url,
            "MIRROR_HOME": home.name,
        },
        free_port(),
    )
    recording: story.Recording | None = None
    try:
        now = story.now()
        tenancy = tenancy_create(owner="alice", llm_model="demo-script")
        with tenancy.context():
            tenancy.agent.name = "Coffee shop hotline"
            tenancy.agent.save(update_fields=["name"])
            type(tenancy.policy).objects.filter(id=tenancy.policy.id).update(name="Customer care")
        policy_written(tenancy)
        empty = tenancy_create(owner="erin")
        for each in (tenancy, empty):
            let_sign_in(each)
        main_call = story.corrected_call(tenancy, now - timedelta(minutes=7))
        live = story.live_call(tenancy, now - timedelta(seconds=14), from_number="+442079460123")
        quiet = story.silent_call(tenancy, now - timedelta(hours=3), from_number="+33140205050")
        failed = story.failed_call(tenancy, now - timedelta(hours=5), from_number="+14085550155")
        stories = [main_call, live, quiet, failed]
        stories += [
            story.clean_call(
                tenancy,
                now - timedelta(minutes=40 * number + 11),
                duration_ms=29_000 + 13_337 * number,
                from_number=f"+4915112345{number:02d}",
            )
            for number in range(1, 9)
        ]
        made = set_up(tenancy, now)
        stories += story.running_calls(tenancy, now)
        story.days_gone_by(tenancy, now.date())
        approval_create(
            tenancy, call_id=live.call_id, within=timedelta(minutes=30), args={"order": "4417", "amount": 189}
        )
        approval_create(tenancy, call_id=quiet.call_id, tool="send_sms", state="approved", irreversible=False,
                        requested_at=now - timedelta(minutes=40), decided_at=now - timedelta(minutes=39, seconds=48),
                        decided_by=tenancy.users["alice"].email, note="The number was confirmed.")  # fmt: skip
        approval_create(tenancy, call_id=failed.call_id, state="expired", requested_at=now - timedelta(hours=2),
                        decided_at=now - timedelta(hours=2) + timedelta(seconds=45))  # fmt: skip
        scene = Scene(tenancy, empty, main_call.call_id, live.call_id, quiet.call_id, failed.call_id, made)
        events = [event for each in stories for event in each.events]
        recording = story.Recording(dsn=urls.app, journal_dir=Path(home.name) / "journal-of-screenshots")
        recording(events)
        connections.close_all()
        console.start()
        folder.mkdir(parents=True, exist_ok=True)

        def shoot(page: Page, name: str, path: str) -> None:
            page.goto(console.url + path)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=folder / f"{name}.png", full_page=True)

        def sign_in(page: Page, email: str) -> None:
            page.goto(console.url + "/sign-in?next=/calls")
            page.get_by_label("Email").fill(email)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/calls")

        def forms_shoot(page: Page, end: str) -> None:
            """What is seen on the way through forms and menus."""
            page.goto(console.url + "/calls")
            page.get_by_text("Set up", exact=True).click()
            page.screenshot(path=folder / f"set-up-{end}.png")
            page.keyboard.press("Escape")
            page.get_by_label("Your account").click()
            page.screenshot(path=folder / f"menu-{end}.png")
            page.goto(console.url + "/members")
            page.get_by_label("Email").fill(f"new-{end}@example.com")
            page.get_by_role("button", name="Invite", exact=True).click()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=folder / f"members-invited-{end}.png", full_page=True)
            link = urlsplit(page.locator("#fresh-link").input_value())
            shoot(page, f"invitation-of-another-{end}", link.path)
            shoot(page, f"two-factor-{end}", "/account/two-factor")
            page.get_by_label("Code that the app shows").fill(totp(page.locator("code.secret").inner_text()))
            page.get_by_role("button", name="Turn it on").click()
            page.wait_for_url("**/recovery-codes")
            page.screenshot(path=folder / f"recovery-codes-{end}.png", full_page=True)
            shoot(page, f"account-two-factor-{end}", "/account")
            shoot(page, f"two-factor-off-{end}", "/account/two-factor/off")
            page.get_by_role("button", name="Turn it off").click()
            page.wait_for_url("**/account")
            page.context.clear_cookies()
            shoot(page, f"forgot-password-{end}", "/forgot-password")

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
            for size, (width, height) in SIZES.items():
                if names and size == "huge":
                    continue
                for scheme in SCHEMES:
                    view = browser.new_context(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,
                        timezone_id="Europe/Berlin",
                    )
                    page = view.new_page()
                    end = f"{size}-{scheme}"
                    if not names:
                        shoot(page, f"sign-in-{end}", "/sign-in")
                        page.get_by_label("Email").fill("alice@example.com")
                        page.get_by_role("button", name="Sign in").click()
                        page.wait_for_load_state("networkidle")
                        page.screenshot(path=folder / f"sign-in-wrong-{end}.png", full_page=True)
                    sign_in(page, tenancy.users["alice"].email)
                    for name, path in PAGES:
                        if name in names or not names:
                            shoot(page, f"{name}-{end}", path if isinstance(path, str) else path(scene))
                    if FORMS in names or not names:
                        forms_shoot(page, end)
                    empty_pages = [(name, path) for name, path in EMPTY_PAGES if name in names or not names]
                    if empty_pages:
                        view.clear_cookies()
                        sign_in(page, empty.users["erin"].email)
                    for name, path in empty_pages:
                        shoot(page, f"{name}-{end}", path)
                    view.close()
            browser.close()
    finally:
        if recording is not None:
            recording.close()
        console.stop()
        connections.close_all()
        support.database_drop(servers, urls.name)
        support.servers_stop(servers)
        home.cleanup()
    print(f"{len(list(folder.glob('*.png')))} screenshots in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/screenshots"), frozenset(sys.argv[2:]))
