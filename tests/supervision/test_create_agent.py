"""`manage.py create_agent`, as a person runs it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command

from mirror_saas.demo.seed import JUDGE_NAME, demo_rules
from supervision.models import Agent, PolicyVersion, ProviderCredential, StreamKey
from supervision.services.agents import stream_key_hash
from supervision.services.credentials import credential_create
from tenants.sealing import unseal_text
from tests.factories import Tenancy
from tests.support.servers import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

UPSTREAM = "ws://127.0.0.1:9001/agent"
LLM = ("--llm-base-url", "http://127.0.0.1:9/v1", "--llm-model", "m-1", "--llm-api-key", "llm-key-1")


@pytest.fixture
def create_agent(server_environment: dict[str, str]) -> Any:
    """Run the command with these arguments."""

    def run(*arguments: str, public_url: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = server_environment | ({"MIRROR_PUBLIC_URL": public_url} if public_url else {})
        return subprocess.run(
            [sys.executable, "manage.py", "create_agent", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_agent_can_take_calls_with_what_is_printed(tenant: Tenancy, create_agent: Any, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("# refunds\nNever confirm a refund.\n\n   Never say {curly} things.  \n#last\n", encoding="utf-8")
    done = create_agent(
        *("--tenant", tenant.slug, "--name", "Front desk", "--upstream", UPSTREAM),
        *("--policies", str(rules), *LLM, "--json"),
        public_url="https://mirror.example",
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed) == ["agent_id", "stream_url", "answer_url", "signing_secret"]

    prefix, key = printed["stream_url"].rsplit("/", 1)
    assert prefix == f"wss://mirror.example/stream/{tenant.slug}"
    assert printed["answer_url"] == f"https://mirror.example/plivo/{tenant.slug}/{key}/answer"
    assert key.startswith("sk_")
    with tenant.context():
        agent = Agent.objects.get(id=UUID(printed["agent_id"]))
        assert (agent.name, agent.upstream_url, agent.mode) == ("Front desk", UPSTREAM, "live")
        assert bytes(StreamKey.objects.get(agent=agent).key_hash) == stream_key_hash(key)
        sealed_as = f"supervision_agent.signing_secret_sealed:{agent.id}"
        secret = unseal_text(agent.signing_secret_sealed, tenant_id=tenant.id, field=sealed_as)
        assert secret == printed["signing_secret"]
        version = PolicyVersion.objects.get(policy_id=agent.policy_id)
        assert version.status == "live"
        assert [rule["text"] for rule in version.rules] == ["Never confirm a refund.", "Never say {curly} things."]
        judge = version.llm_credential
        assert (judge.base_url, judge.model) == ("http://127.0.0.1:9/v1", "m-1")
        sealed_as = f"supervision_providercredential.api_key_sealed:{judge.id}"
        assert unseal_text(judge.api_key_sealed, tenant_id=tenant.id, field=sealed_as) == "llm-key-1"


def test_without_flags_it_gets_the_demos_rules_and_judge_and_this_machines_address(
    tenant: Tenancy, create_agent: Any
) -> None:
    with tenant.context():
        judge = credential_create(
            name=JUDGE_NAME,
            kind=ProviderCredential.Kind.LLM,
            base_url="http://127.0.0.1:8/v1",
            model="demo",
            api_key="k",
        )
    made = [create_agent("--tenant", tenant.slug, "--name", "Twin", "--upstream", UPSTREAM, "--json") for _ in range(2)]
    assert [done.returncode for done in made] == [0, 0], made[1].stderr
    first, second = (json.loads(done.stdout) for done in made)
    assert first["stream_url"].startswith(f"ws://127.0.0.1:8000/stream/{tenant.slug}/sk_")
    assert first["stream_url"] != second["stream_url"]
    with tenant.context():
        for printed in (first, second):
            agent = Agent.objects.get(id=UUID(printed["agent_id"]))
            version = PolicyVersion.objects.get(policy_id=agent.policy_id, status="live")
            assert [rule["text"] for rule in version.rules] == demo_rules()
            assert version.llm_credential_id == judge.id


def test_without_json_the_same_four_are_printed_for_people(tenant: Tenancy, create_agent: Any) -> None:
    done = create_agent("--tenant", tenant.slug, "--name", "N", "--upstream", UPSTREAM, *LLM)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "agent_id",
        "stream_url",
        "answer_url",
        "signing_secret",
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--tenant": "no-such-tenant"}, "--tenant: There is no tenant 'no-such-tenant'."),
        ({"--name": "  "}, "--name: "),
        ({"--name": "n" * 201}, "--name: "),
        ({"--upstream": "http://127.0.0.1/agent"}, "--upstream: Give the agent's WebSocket URL"),
        ({"--upstream": "ws://"}, "--upstream: "),
        ({"--upstream": "ws://h:port/"}, "--upstream: "),
        ({"--policies": "EMPTY"}, "--policies: "),
        ({"--policies": "BINARY"}, "--policies: "),
        ({"--policies": "MISSING"}, "--policies: "),
        ({"--policies": "LONG"}, "--policies: "),
        ({"--policies": "NUL"}, "--policies: "),
        ({"--llm-base-url": "api.openai.com"}, "--llm-base-url: "),
        ({"--llm-base-url": None}, "--llm-base-url is missing"),
        ({"--llm-model": None}, "--llm-model is missing"),
        ({flag: None for flag in LLM[::2]}, "--llm-base-url and --llm-model are missing"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag_and_nothing_is_made(
    tenant: Tenancy, tmp_path: Path, changed: dict[str, str | None], said: str
) -> None:
    (tmp_path / "EMPTY").write_text("# nothing\n\n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "LONG").write_text("x" * 5_000)
    (tmp_path / "NUL").write_text("Never \x00 this.")
    arguments = {
        "--tenant": tenant.slug,
        "--name": "N",
        "--upstream": UPSTREAM,
        **dict(zip(LLM[::2], LLM[1::2], strict=True)),
        **changed,
    }
    if "--policies" in changed:
        arguments["--policies"] = str(tmp_path / str(changed["--policies"]))
    flat = [part for flag, value in arguments.items() if value is not None for part in (flag, value)]
    with pytest.raises(CommandError) as error:
        call_command("create_agent", *flat, "--json")
    assert "\n" not in str(error.value)
    assert said in str(error.value)
    with tenant.context():
        assert list(Agent.objects.all()) == [tenant.agent]
        assert PolicyVersion.objects.count() == 1
        assert ProviderCredential.objects.count() == 1


def test_a_mistake_ends_the_process_with_that_line_and_no_output(tenant: Tenancy, create_agent: Any) -> None:
    done = create_agent("--tenant", tenant.slug, "--name", "N", "--upstream", "127.0.0.1:9001", *LLM, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "--upstream: Give the agent's WebSocket URL" in done.stderr


def test_without_a_database_it_says_to_start_mirror(create_agent: Any, server_environment: dict[str, str]) -> None:
    server_environment["DATABASE_URL"] = "postgresql://mirror_app@127.0.0.1:1/mirror"
    done = create_agent("--tenant", "demo", "--name", "N", "--upstream", UPSTREAM, *LLM)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1, done.stderr
    assert "The database does not answer" in done.stderr
