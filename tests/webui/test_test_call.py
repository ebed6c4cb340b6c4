"""The page of the browser's telephone: whom it offers, what is chosen, and who sees it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from mirror_saas.demo.conversation import caller_lines
from supervision.models import Agent, Call, Mode
from supervision.services.agents import agent_archive, agent_create, agent_update
from tenants.models import User
from tests.factories import Tenancy, call_create, tenancy_create

pytestmark = pytest.mark.django_db


def page(user: User, query: str = "") -> Any:
    client = Client()
    client.force_login(user)
    return client.get(f"/test-call{query}")


def offered(html: str) -> list[tuple[str, str]]:
    """Names of the agents, and which one is chosen."""
    return re.findall(r"<option value=[^>]*?( selected)?>([^<]*)</option>", unescape(html))


def test_the_newest_agent_is_chosen_or_the_one_of_the_url(tenant: Tenancy, stranger: Tenancy) -> None:
    with tenant.context():
        newest = agent_create(name="The newest", upstream_url="ws://127.0.0.1:1/new").agent
        gone = agent_create(name="Gone", upstream_url="ws://127.0.0.1:1/gone").agent
        agent_archive(agent_id=gone.id)
    alice = tenant.users["alice"]
    first = f"{tenant.agent.name} · {tenant.policy.name}"
    assert offered(page(alice).content.decode()) == [(" selected", newest.name), ("", first)]
    chosen = page(alice, f"?agent={tenant.agent.id}").content.decode()
    assert offered(chosen) == [("", newest.name), (" selected", first)]
    # Somebody else's, an archived one and nonsense choose nothing.
    for query in (stranger.agent.id, gone.id, "x"):
        html = page(alice, f"?agent={query}").content.decode()
        assert offered(html) == [(" selected", newest.name), ("", first)]
        assert stranger.agent.name not in unescape(html)


def test_the_demos_agent_is_given_the_lines_that_it_knows(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"demo_agent_url": tenant.agent.upstream_url, "demo_judge_url": "http://127.0.0.1:1/v1"}
    assert caller_lines()[0] not in page(tenant.users["alice"]).content.decode()
    monkeypatch.setattr(settings, "MIRROR", replace(settings.MIRROR, **urls))
    assert caller_lines()[0] in page(tenant.users["alice"]).content.decode()


def test_the_page_says_what_to_know_before_calling(tenant: Tenancy) -> None:
    def hint(**fields: Any) -> str:
        with tenant.context():
            agent_update(agent_id=tenant.agent.id, **fields)
            assert Agent.objects.count() == 1
        found = re.search(r'data-hint="([^"]*)"', page(tenant.users["alice"]).content.decode())
        assert found is not None
        return found.group(1)

    assert hint(bidirectional=True) == ""
    assert "never steps in" in hint(mode=Mode.SHADOW)
    assert "you will not hear it" in hint(bidirectional=False)
    assert "nothing is judged" in hint(policy_id=None)


def test_only_this_page_may_use_the_microphone(tenant: Tenancy) -> None:
    assert "microphone=(self)" in page(tenant.users["alice"]).headers["Permissions-Policy"]
    assert "camera=()" in page(tenant.users["alice"]).headers["Permissions-Policy"]


def test_without_an_agent_it_says_what_to_do(tenant: Tenancy) -> None:
    with tenant.context():
        agent_archive(agent_id=tenant.agent.id)
    html = page(tenant.users["alice"]).content.decode()
    assert "No agent yet" in html
    assert 'href="/welcome"' in html
    assert "<test-call" not in html


def test_who_may_not_place_calls_is_neither_shown_nor_given_the_page(tenant: Tenancy) -> None:
    bob = tenant.users["bob"]
    assert page(bob).status_code == 403
    client = Client()
    client.force_login(bob)
    assert "/test-call" not in client.get("/calls").content.decode()
    charlie = tenancy_create(owner="charlie")
    assert tenant.agent.name not in unescape(page(charlie.users["charlie"]).content.decode())


def test_calls_say_that_they_are_tests_and_are_filtered_by_it(tenant: Tenancy, stranger: Tenancy) -> None:
    placed, rung = call_create(tenant), call_create(tenant)
    with tenant.context():
        Call.objects.filter(id=placed.id).update(test=True)
    client = Client()
    client.force_login(tenant.users["bob"])

    def listed(query: str) -> list[str]:
        return re.findall(r'href="/calls/([0-9a-f-]{36})"', client.get(f"/calls{query}").content.decode())

    assert set(listed("")) == {str(placed.id), str(rung.id)}
    assert listed("?test=yes") == [str(placed.id)]
    assert listed("?test=no") == [str(rung.id)]
    for call, says in ((placed, True), (rung, False)):
        assert ("Test call</span>" in client.get(f"/calls/{call.id}").content.decode()) is says
