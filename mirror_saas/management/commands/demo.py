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

from mirror_saas.demo.ports import kept_ports
from mirror_saas.embedded import write_private
from mirror_saas.env import Environment
from mirror_saas.local_model import QWEN, READY_WITHIN_S, LocalModelError, model_fetch, models_folder
from mirror_saas.ports import free_port
from mirror_saas.processes import ProcessError, ProcessGroup, ProcessSpec
from mirror_saas.stack import StackError, beat_spec, manage, migrate_spec, stack_run, web_spec, worker_spec

DEMO_FILE = "demo.json"
PORTS_FILE = "demo-ports.json"
DEMO_FIELDS = ("console_url", "email", "password", "tenant", "api_key", "stream_url", "answer_url")
CALL_SCRIPT = Path(__file__).resolve().parents[2] / "demo" / "call.yaml"

LOCAL_JUDGE = (
    "Judged by a small model on this machine ({model}). On a CPU it needs seconds for a turn, so corrections come late."
)
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
        parser.add_argument(
            "--model",
            choices=("local",),
            help="judge with a small model on this machine, fetched once (1.1 GB); needs the extra local-llm",
        )
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
            local = options["model"] == "local"
            if local:
                model_fetch(models_folder(), say=self._write)
            body = self._body(environment, call=not options["no_call"], local=local)
            stack_run(environment, body, write=self._write)
        except LocalModelError as error:
            raise CommandError(f"local model: {error}") from error
        except StackError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            sys.exit(130)

    def _body(self, environment: Environment, *, call: bool, local: bool) -> Callable[[ProcessGroup], Any]:
        env = {"MIRROR_HOME": str(environment.home), "MIRROR_ENV": "development"}
        scripted = environment.openai_api_key is None and not local

        async def body(group: ProcessGroup) -> None:
            await group.run(migrate_spec(env))
            ports = kept_ports(environment.home / PORTS_FILE, ("agent", "judge"))
            agent_url, script_url = f"ws://127.0.0.1:{ports['agent']}/", f"http://127.0.0.1:{ports['judge']}/v1"
            seed: dict[str, Any] = {"agent_url": agent_url, "judge_base_url": None}
            # Whoever signs up tries Mirror with the script, whatever judges the demo's own tenant.
            await group.start(_demo_spec("judge", ports["judge"], env))
            if local:
                model_port = free_port()
                base_url = f"http://127.0.0.1:{model_port}/v1"
                await group.start(local_model_spec(model_port, env))
                warm = (sys.executable, "-m", "mirror_saas.demo.warm", "--base-url", base_url)
                await group.run(ProcessSpec(name="warm", command=warm, env=env))
                seed |= {"judge_base_url": base_url, "local": True}
            elif scripted:
                self._write(SCRIPTED_JUDGE)
                seed["judge_base_url"] = script_url
            await group.run(ProcessSpec(name="seed", command=manage("demo", "--seed", json.dumps(seed)), env=env))
            await group.start(
                _demo_spec("agent", ports["agent"], env),
                web_spec(environment, {**env, "MIRROR_DEMO_AGENT_URL": agent_url, "MIRROR_DEMO_JUDGE_URL": script_url}),
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
            judged = SCRIPTED_JUDGE if scripted else f"Judged by {environment.openai_model}."
            self._tell(environment, demo, LOCAL_JUDGE.format(model=QWEN.name) if local else judged)

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

    def _tell(self, environment: Environment, demo: dict[str, str], judged: str) -> None:
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


def demo_seed_and_write(
    environment: Environment, *, agent_url: str, judge_base_url: str | None, local: bool = False
) -> None:
    """Seed the demo tenant (again) and write MIRROR_HOME/demo.json, readable by us alone.

    `judge_base_url` is that of a judge on this machine: the local model when `local` is true, else the script.
    """
    from mirror_saas.demo.seed import LOCAL_POLICY_CONFIG, demo_seed

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
        judge_model=QWEN.name if local else "scripted" if judge_base_url else environment.openai_model,
        judge_api_key="scripted" if judge_base_url else environment.openai_api_key,
        model_judges=local or judge_base_url is None,
        policy_config=LOCAL_POLICY_CONFIG if local else None,
        public_url=environment.public_url,
        previous=previous,
    )
    demo = {"console_url": f"{environment.public_url}/", **seeded}
    write_private(path, json.dumps({name: demo[name] for name in DEMO_FIELDS}, indent=2) + "\n")


def local_model_spec(port: int, env: dict[str, str]) -> ProcessSpec:
    """The local model's server; it checks the model and reads it before it is ready."""
    return ProcessSpec(
        name="model",
        command=(sys.executable, "-m", "mirror_saas.local_model", "--port", str(port), "--with-parent"),
        env=env,
        ready_line="ready on",
        ready_within_s=READY_WITHIN_S,
    )


def _demo_spec(name: str, port: int, env: dict[str, str]) -> ProcessSpec:
    return ProcessSpec(
        name=name,
        command=(sys.executable, "-m", f"mirror_saas.demo.{name}", "--port", str(port)),
        env=env,
        ready_line="ready",
    )
