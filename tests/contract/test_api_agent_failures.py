"""What becomes of a call whose agent fails, as an agent's settings say it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.client import ask, errors
from tests.factories import Tenancy

pytestmark = pytest.mark.django_db

BODY = {"name": "Front desk", "upstream_url": "wss://agents.example/desk"}
SETTINGS = {
    "redials": 1,
    "failure_message": "I am sorry, please call again.",
    "on_failure": "transfer",
    "failure_transfer_url": "https://example.com/people.xml?token=t0k3n",
    "bidirectional": False,
}


def test_an_agents_failure_settings_are_kept_and_changed(tenant: Tenancy, stranger: Tenancy) -> None:
    plain = ask(tenant, "POST", "/agents", BODY).json()
    defaults = {
        "redials": 2,
        "failure_message": "",
        "on_failure": "close",
        "failure_transfer_url": "",
        "bidirectional": True,
    }
    assert defaults.items() <= plain.items()
    made = ask(
        tenant, "POST", "/agents", {**BODY, **SETTINGS, "failure_message": "  I am sorry,\n please call again. "}
    )
    assert made.status_code == 201, made.content
    assert SETTINGS.items() <= made.json().items()
    path = f"/agents/{made.json()['id']}"
    changed = ask(tenant, "PATCH", path, {"on_failure": "hangup", "failure_transfer_url": "", "redials": 0})
    assert changed.status_code == 200, changed.content
    expected = {**SETTINGS, "on_failure": "hangup", "failure_transfer_url": "", "redials": 0}
    assert expected.items() <= changed.json().items()
    assert ask(stranger, "PATCH", path, {"on_failure": "close"}).status_code == 404
    assert ask(tenant, "GET", path).json()["on_failure"] == "hangup"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"redials": -1}, "redials"),
        ({"redials": 6}, "redials"),
        ({"redials": None}, "redials"),
        ({"redials": "many"}, "redials"),
        ({"failure_message": "x" * 301}, "failure_message"),
        ({"failure_message": None}, "failure_message"),
        ({"on_failure": "message"}, "on_failure"),
        ({"on_failure": None}, "on_failure"),
        ({"on_failure": "transfer"}, "failure_transfer_url"),
        ({"on_failure": "transfer", "failure_transfer_url": " "}, "failure_transfer_url"),
        ({"failure_transfer_url": "ftp://example.com/x"}, "failure_transfer_url"),
        ({"failure_transfer_url": "https://"}, "failure_transfer_url"),
        ({"failure_transfer_url": "https://a b/x"}, "failure_transfer_url"),
        ({"failure_transfer_url": "https://x.example/" + "x" * 2000}, "failure_transfer_url"),
        ({"bidirectional": "perhaps"}, "bidirectional"),
        ({"bidirectional": None}, "bidirectional"),
    ],
)
def test_a_wrong_setting_is_named(tenant: Tenancy, change: dict[str, Any], field: str) -> None:
    agent = ask(tenant, "POST", "/agents", BODY).json()
    for method, path, body in (("POST", "/agents", BODY), ("PATCH", f"/agents/{agent['id']}", {})):
        answer = ask(tenant, method, path, {**body, **change})
        assert answer.status_code == 422, answer.content
        assert field in errors(answer)


def test_an_agent_that_transfers_keeps_somewhere_to_transfer_to(tenant: Tenancy) -> None:
    agent = ask(tenant, "POST", "/agents", {**BODY, **SETTINGS}).json()
    answer = ask(tenant, "PATCH", f"/agents/{agent['id']}", {"failure_transfer_url": ""})
    assert (answer.status_code, list(errors(answer))) == (422, ["failure_transfer_url"])
