"""`manage.py demo`: everything on this machine, with a demo tenant, a demo agent and a simulated call."""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from mirror_saas.demo.ports import free_port
from mirror_saas.embedded import write_private
from mirror_saas.env import Environment
from mirror_saas.processes import ProcessError, ProcessGroup, ProcessSpec
from mirror_saas.stack import StackError, beat_spec, manage, migrate_spec, stack_run, web_spec, worker_spec

DEMO_FILE = "demo.json"
DEMO_FIELDS = ("console_url", "email", "password", "tenant", "api_key", "stream_url", "answer_url")
CALL_SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "call.yaml"

SCRIPTED_JUDGE = (
    "No model is judging: OPENAI_API_KEY is not set, so a local server answers from a script for the demo's call."
)


class Command(BaseCommand):
    help = (
        "Run Mirror with a demo tenant, a demo agent and one simulated call, and print the console's login."
        " Data and login stay in MIRROR_HOME; demo.json there has them for scripts."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-call", action="store_true", help="do not place the simulated call")
        # The parent cannot use the database: its settings were read before the embedded servers ran.
        parser.add_argument("--seed", metavar="JSON", help="(used by this command itself) seed the demo and end")

    def handle(self, *args: Any, **options: Any) -> None:
        environment: Environment = settings.MIRROR
        if options["seed"]:
            demo_seed_and_write(environment, **json.loads(options["seed"]))
            return
        if os.environ.get("MIRROR_ENV", "development") != "development":
            raise CommandError("The demo's agent runs on this machine, which MIRROR_ENV=production forbids; unset it.")
        try:
            stack_run(environment, self._body(environment, call=not options["no_call"]), write=self._write)
        except StackError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(130)

    def _body(self, environment: Environment, *, call: bool) -> Callable[[ProcessGroup], Any]:
        env = {"MIRROR_HOME": str(environment.home), "MIRROR_ENV": "development"}
        scripted = environment.openai_api_key is None

        async def body(group: ProcessGroup) -> None:
            await group.run(migrate_spec(env))
            agent_port, judge_port = free_port(), free_port()
            seed: dict[str, Any] = {"agent_url": f"ws://127.0.0.1:{agent_port}/", "judge_base_url": None}
            if scripted:
                self._write(SCRIPTED_JUDGE)
                await group.start(_demo_spec("judge", judge_port, env))
                seed["judge_base_url"] = f"http://127.0.0.1:{judge_port}/v1"
            await group.run(ProcessSpec(name="seed", command=manage("demo", "--seed", json.dumps(seed)), env=env))
            await group.start(
                _demo_spec("agent", agent_port, env),
                web_spec(environment, env),
                worker_spec(env),
                beat_spec(env),
            )
            demo = json.loads((environment.home / DEMO_FILE).read_text(encoding="utf-8"))
            if call:
                self._write(
                    f"Placing a simulated call; watch it at {demo['console_url']}"
                    f" (login {demo['email']}, password {demo['password']})"
                )
                await self._call(group, demo["answer_url"], env)
            self._tell(environment, demo, scripted)

        return body

    async def _call(self, group: ProcessGroup, answer_url: str, env: dict[str, str]) -> None:
        command = manage("simulate_call", answer_url, "--script", str(CALL_SCRIPT))
        try:
            await group.run(ProcessSpec(name="call", command=command, env=env))
        except ProcessError as error:
            if error.name != "call":
                raise
            # The console is worth looking at all the same; it shows what became of the call.
            self._write(f"The simulated call did not complete: {error}")

    def _tell(self, environment: Environment, demo: dict[str, str], scripted: bool) -> None:
        judged = SCRIPTED_JUDGE if scripted else f"Judged by {environment.openai_model}."
        self._write(
            "\n".join(
                (
                    "",
                    f"  Console    {demo['console_url']}",
                    f"  Login      {demo['email']}",
                    f"  Password   {demo['password']}",
                    "",
                    f"  {judged}",
                    f"  For scripts: {environment.home / DEMO_FILE}",
                    f"  Another call: {sys.executable} manage.py simulate_call {demo['answer_url']}"
                    f" --script {CALL_SCRIPT}",
                    "  Ctrl-C stops everything; the next start continues with the same data.",
                    "",
                )
            )
        )

    def _write(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def demo_seed_and_write(environment: Environment, *, agent_url: str, judge_base_url: str | None) -> None:
    """Seed the demo tenant (again) and write MIRROR_HOME/demo.json, readable by us alone."""
    from mirror_saas.demo.seed import demo_seed

    path = environment.home / DEMO_FILE
    try:
        previous = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        previous = None
    except ValueError as error:
        raise CommandError(f"{path} is not JSON; delete it, and the demo gets a new login.") from error
    seeded = demo_seed(
        agent_url=agent_url,
        judge_base_url=judge_base_url or environment.openai_base_url,
        judge_model="scripted" if judge_base_url else environment.openai_model,
        judge_api_key="scripted" if judge_base_url else environment.openai_api_key,
        model_judges=judge_base_url is None,
        public_url=environment.public_url,
        previous=previous,
    )
    demo = {"console_url": f"{environment.public_url}/", **seeded}
    write_private(path, json.dumps({name: demo[name] for name in DEMO_FIELDS}, indent=2) + "\n")


def _demo_spec(name: str, port: int, env: dict[str, str]) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-m", f"mirror_saas.demo.{name}", "--port", str(port)),
        env=env,
        ready_line="ready",
    )
