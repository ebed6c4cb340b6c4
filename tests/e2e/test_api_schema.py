"""The API does what its OpenAPI document says, whatever it is sent: schemathesis against a real server.

Requests are made from the document that the server serves, valid ones and broken ones, and every answer is checked
against it: no failure of ours, no status, header, media type or shape that is not written down. `make fuzz-api` sends
many more requests than a run of the tests (`FUZZ_EXAMPLES`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command

from supervision.services.agents import agent_create
from tests.e2e.conftest import ROOT, MirrorServer, server_start
from tests.factories import Tenancy, call_create, tenancy_create
from tests.isolation.sweep import API, Door
from tests.standins.llm import LLMStandIn

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(3600)]

# Of requests to each operation. More are made than these: the document's examples, and one for each of its bounds.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2"))
SEED = int(os.environ.get("FUZZ_SEED", "20260304"))
# How often an id in a path is that of an object that there is.
KNOWN = 0.85
# Requests that are one step inside or outside each bound of the document: those inside are few, all are thousands.
# With all of them come sequences too: what one request made, the next one changes, erases and asks for again.
BOUNDS = os.environ.get("FUZZ_BOUNDS", "positive")
PHASES = "examples,coverage,fuzzing" if BOUNDS == "positive" else "examples,coverage,fuzzing,stateful"
# They ask a server that somebody named, and in a sequence that is any server that was made up.
DIAL = ["agent_check", "policy_derive", "turn_review", "tool_review"]


@pytest.fixture(scope="module")
def server(
    database_urls: Any, redis_url: str, django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MirrorServer]:
    """A Mirror of its own: wrong keys hold up the address that they come from."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_urls.app,
        "DATABASE_OWNER_URL": database_urls.owner,
        "REDIS_URL": redis_url,
        "MIRROR_TRUSTED_PROXIES": "127.0.0.1",
    }
    started = server_start(environment, tmp_path_factory.mktemp("fuzzed") / "home")
    yield started
    started.stop()


def seeded(tenancy: Tenancy, door: Door) -> dict[str, str]:
    """Values of the parameters in an operation's path: objects that there are."""
    with tenancy.context():
        made = dict(door.made(tenancy))
        # Whoever changes or erases one gets one of their own, so that the others find theirs as it was.
        if door.method != "GET" and "agent_id" in door.parameters and "stream_key_id" not in door.parameters:
            agent = agent_create(name="Fuzzed", upstream_url="ws://127.0.0.1:1/", policy=tenancy.policy)
            made["agent_id"] = agent.agent.id
        if door.method == "DELETE" and "call_id" in door.parameters:
            made["call_id"] = call_create(tenancy).id
    return {name: str(made[name]) for name in door.parameters}


def configuration(tenancy: Tenancy) -> str:
    """schemathesis.toml: where ids come from, and which answers are right to what."""
    lines = [
        'hooks = "tests.support.fuzz_hooks"',
        "[[operations]]",
        f"include-operation-id = {json.dumps(DIAL)}",
        "[operations.phases.stateful]",
        "enabled = false",
        "[phases.coverage.generation]",
        f'mode = "{BOUNDS}"',
        "[checks.positive_data_acceptance]",
        # What no schema can say: that a name is taken, a pattern no RE2, a draft unfinished, an ETag old, and that
        # somebody got mails enough.
        'expected-statuses = ["2xx", "401", "403", "404", "409", "412", "422", "429"]',
        "[checks.missing_required_header]",
        'expected-statuses = ["401", "422", "428"]',
        "[checks.negative_data_rejection]",
        'expected-statuses = ["400", "401", "403", "404", "405", "412", "413", "415", "422", "428"]',
    ]
    bindings: list[str] = []
    for index, door in enumerate(API):
        values = seeded(tenancy, door) if door.parameters else {}
        for name, value in values.items():
            lines += [f"[dictionaries.d{index}_{name}]", f"values = [{json.dumps(_number(value))}]"]
        if values:
            bindings += [
                "[[operations]]",
                f"include-name = {json.dumps(f'{door.method} /api/v1{plain(door.path)}')}",
                "[operations.parameters]",
                *(f'"path.{name}" = {{ dictionary = "d{index}_{name}", probability = {KNOWN} }}' for name in values),
            ]
    return "\n".join([*lines, *bindings]) + "\n"


def plain(path: str) -> str:
    """The path as the document has it."""
    return path.replace("{uuid:", "{").replace("{int:", "{")


def _number(value: str) -> int | str:
    return int(value) if value.isdigit() else value


def fuzz(
    server: MirrorServer,
    folder: Path,
    tenancy: Tenancy,
    headers: Mapping[str, str],
    phases: str = PHASES,
    examples: int = EXAMPLES,
) -> str:
    """Run schemathesis with all its checks; what it said, which is that nothing is wrong."""
    file = folder / "schemathesis.toml"
    file.write_text(configuration(tenancy))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(file)),
        *("run", f"{server.http}/api/v1/openapi.json", "--checks", "all", "--max-examples", str(examples)),
        *("--phases", phases, "--seed", str(SEED), "--generation-database", "none", "--no-shrink"),
        *("--report", "har", "--report-har-path", str(folder / "answers.har")),
        *("--continue-on-failure", "--suppress-health-check", "all", "--no-color", "--request-timeout", "60"),
        *(argument for name, value in headers.items() for argument in ("--header", f"{name}: {value}")),
    ]
    known = {
        "agent_id": tenancy.agent.id,
        "policy_id": tenancy.policy.id,
        "llm_credential_id": tenancy.credential.id,
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FUZZ_KNOWN": json.dumps({name: str(value) for name, value in known.items()}),
    }
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = f"{run.stdout}\n{run.stderr}"
    assert run.returncode == 0, said[-30000:]
    assert "Traceback" not in (log := server.log.read_text()), log[-6000:]
    return said


def succeeded(har: Path) -> set[str]:
    """The operations that a run has seen succeed."""
    paths = {re.compile(re.sub(r"{\w+}", "[^/]+", f"/api/v1{plain(door.path)}")): door for door in API}
    found = set()
    for entry in json.loads(har.read_text())["log"]["entries"]:
        if 200 <= entry["response"]["status"] < 300:
            method, path = entry["request"]["method"], urlsplit(entry["request"]["url"]).path
            found |= {f"{method} {door.path}" for pattern, door in paths.items() if pattern.fullmatch(path)}
    return found


def test_every_answer_is_as_documented(server: MirrorServer, tmp_path: Path) -> None:
    with LLMStandIn().in_thread() as llm:
        # Of the prompt that the document has as an example.
        rule = {"text": "Never promise a delivery time.", "citation": "Never promise a delivery time."}
        llm.derive(lambda _question: [rule])
        tenancy = tenancy_create(llm_base_url=llm.base_url)
        call_create(tenancy)
        call_command(
            "tenant_limits", tenancy.slug, requests_per_minute="unlimited", key_requests_per_minute="unlimited"
        )
        said = fuzz(server, tmp_path, tenancy, {"Authorization": f"Bearer {tenancy.api_key}"})
    assert f"Operations:       {len(API)} selected / {len(API)} total" in said
    # What only ever refuses is hardly tested. No call runs here, and which of the others fare ill is chance.
    refusing = {f"{door.method} {door.path}" for door in API} - succeeded(tmp_path / "answers.har")
    assert len(refusing) < len(API) / 10, refusing


def test_without_a_key_every_operation_says_so(server: MirrorServer, tmp_path: Path) -> None:
    tenancy = tenancy_create()
    call_create(tenancy)
    # Who asks is looked at before what they ask for, so few questions will do.
    few: dict[str, Any] = {} if BOUNDS == "all" else {"phases": "fuzzing", "examples": 1}
    said = fuzz(server, tmp_path, tenancy, {}, **few)
    assert f"Operations:       {len(API)} selected / {len(API)} total" in said
