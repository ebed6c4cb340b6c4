"""What users of the engine see: every public name is documented, and their code type-checks."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import supervision.engine

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(supervision.engine.__path__, "supervision.engine.")
    if not module.name.rpartition(".")[2].startswith("_")
)


def own_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module itself defines without an underscore, or lists in `__all__`."""
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if value.__module__ == module.__name__ or hasattr(module, "__all__"):
            yield f"{module.__name__}.{name}", value


def own_members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines, without what its dataclass or enum makes."""
    for member, value in vars(cls).items():
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if isinstance(value, property):
            value = value.fget
        if not member.startswith("_") and inspect.isfunction(value):
            yield f"{name}.{member}", value


def documented_above(cls: type, member: str) -> bool:
    """Whether a base class says what an overriding method does."""
    return any(getattr(vars(base).get(member), "__doc__", None) for base in cls.__mro__[1:])


def undocumented() -> Iterator[str]:
    for module_name in ["supervision.engine", *MODULES]:
        module = importlib.import_module(module_name)
        if not inspect.getdoc(module) and Path(module.__file__ or "").stat().st_size:
            yield module_name
        for name, value in own_names(module):
            made = inspect.isclass(value) and (value.__doc__ or "").startswith(f"{value.__name__}(")
            if not (value.__doc__ or "").strip() or made:
                yield name
            if inspect.isclass(value):
                yield from (
                    member_name
                    for member_name, member in own_members(name, value)
                    if not (member.__doc__ or "").strip() and not documented_above(value, member.__name__)
                )


def test_every_public_name_has_a_docstring() -> None:
    assert sorted(set(undocumented())) == []


def test_every_field_of_the_configuration_says_what_it_is() -> None:
    source = (ROOT / "supervision" / "engine" / "config.py").read_text(encoding="utf-8")
    for name in supervision.engine.MirrorConfig.model_fields:
        _, found, after = source.partition(f"\n    {name}: ")
        assert found, name
        declaration, quotes, _ = after.partition('"""')
        assert quotes, name
        assert "\n\n" not in declaration, f"{name} has no docstring below it"


def test_the_public_names_are_there() -> None:
    for name in supervision.engine.__all__:
        assert hasattr(supervision.engine, name)
    assert list(supervision.engine.__all__) == sorted(supervision.engine.__all__)


def test_annotations_of_the_public_surface_can_be_read() -> None:
    """Tools that read annotations at run time (documentation, dependency injection) must not fail on them."""
    for name in supervision.engine.__all__:
        value = getattr(supervision.engine, name)
        typing.get_type_hints(value if inspect.isfunction(value) else value.__init__, include_extras=True)


USER = """
from collections.abc import Mapping
from typing import Any

from plivo_stream import PlivoFastAPIStreamingHandler

from supervision.engine import MirrorConfig, Supervisor, ToolCallIntent, Verdict
from supervision.engine.adapters.raw_ws import RawPlivoWSAdapter
from supervision.engine.llm.openai import OpenAIClient
from supervision.engine.policy.derive import DerivedPolicy, derive_policy


async def my_tts(text: str) -> bytes:
    return text.encode()


supervisor = Supervisor(
    MirrorConfig(
        llm=OpenAIClient(api_key="...", model="gpt-4o-mini"),
        policies=["Never confirm a refund — transfer to a human supervisor."],
        intervention_threshold=0.7,
    )
)


async def call(handler: PlivoFastAPIStreamingHandler, agent_text: str, call_id: str) -> float | None:
    async with supervisor.attach(handler, tts_provider=my_tts) as sup:
        sup.bind_call(call_id)
        sup.note_customer_turn("Hello?")
        verdict = await sup.review_turn(
            customer_text="Refund me.",
            primary_text=agent_text,
            tool_calls=[{"name": "place_order", "args": {"items": 1}}, ToolCallIntent(name="look", args={})],
        )
        if verdict.should_intervene:
            await sup.intervene(verdict)
        else:
            await sup.speak(agent_text)
        note: str | None = await sup.consume_override()
        flushed: Verdict = await sup.flush_stream(customer_text="Hello?")
        outcome = await sup.review_and_speak(customer_text="Hello?", primary_text=agent_text)
        intervened: bool = outcome.intervened
        gated = await sup.gate_tool_call(customer_text="Do it", intents=[{"name": "charge_card", "arguments": "{}"}])
        allowed: list[bool] = [tool.allow for tool in gated.tools]
        print(note, flushed.state, intervened, allowed)
        return verdict.score


async def raw(websocket: Any, frame: Mapping[str, Any]) -> None:
    adapter = RawPlivoWSAdapter(websocket)
    async with supervisor.attach(adapter, tts_provider=my_tts) as sup:
        adapter.set_stream_id("s-1")
        await adapter.dispatch_inbound(frame)
        await sup.speak("Hello.")


async def derived(prompt: str) -> DerivedPolicy:
    verdict = await supervisor.review(customer_text="Hi.", primary_text="Hello.")
    print(verdict.reason)
    return await derive_policy(prompt, supervisor.config.llm)
"""
WRONG = """
from supervision.engine import Supervisor

async def wrong(supervisor: Supervisor) -> int:
    return await supervisor.review(customer_text=5, primary_text="Hello.")
"""


@pytest.mark.timeout(300)  # seconds; without a cache it takes ten of CPU
def test_a_users_script_type_checks_strictly(tmp_path: Path) -> None:
    """As with an installed package: the user's own mypy settings, and ours only through `py.typed`."""
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    config = tmp_path / "mypy.ini"
    # What is not ours to check, and large, is not looked into.
    config.write_text(
        "[mypy]\n[mypy-plivo_stream.*]\nignore_missing_imports = True\nfollow_untyped_imports = True\n"
        "[mypy-openai.*,httpx2.*,psycopg.*,psycopg_pool.*,redis.*,numpy.*,starlette.*,fastapi.*]\n"
        "follow_imports = skip\nfollow_imports_for_stubs = True\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(config)]
    command += ["--cache-dir", str(ROOT / ".mypy_cache" / "user"), *map(str, sorted(tmp_path.glob("*.py")))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [error for error in found if "right.py" in error] == [], done.stdout + done.stderr
    assert len([error for error in found if "wrong.py" in error]) == 2, done.stdout
