"""What the documents say of the library is so: their code runs, their tables are the code's."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest

from supervision.engine import MirrorConfig, Supervisor, ToolCode, Verdict
from supervision.engine.attached import AttachedCall
from supervision.engine.llm.protocol import close_client
from supervision.engine.state.postgres import PostgresStateStore
from supervision.engine.state.redis import RedisStateStore
from tests.engine.attached_calls import Agent, Plivo, Tones
from tests.standins.llm import LLMStandIn, words

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8").partition("## In your own process")[2].partition("\n## ")[0]
WRONG = "Of course, your refund is confirmed."


@dataclass(frozen=True)
class Block:
    """A block of code: its language, text, the line on which it begins, and the heading that it stands under."""

    language: str
    code: str
    line: int
    heading: str


def blocks(document: str) -> Iterator[Block]:
    heading, start, language, lines = "", 0, None, list[str]()
    for number, line in enumerate(document.split("\n"), 1):
        if language is None and line.startswith("```"):
            language, start, lines = line[3:].strip(), number + 1, []
        elif language is not None and line == "```":
            yield Block(language, "\n".join(lines), start, heading)
            language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()


class MyAgent:
    """Hears one turn in the caller's first audio; takes it back when it gets a note."""

    def __init__(self, text: str) -> None:
        self.text: str | None = text
        self.notes: list[str] = []

    def turn(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(customer_text="I want my money back.", text=text, tool_calls=[])

    def hear(self, _audio: bytes) -> SimpleNamespace | None:
        text, self.text = self.text, None
        return self.turn(text) if text else None

    def again(self, note: str) -> SimpleNamespace:
        self.notes.append(note)
        return self.turn("A colleague will call you.")


@dataclass
class Reader:
    """Somebody who types in what a document says, with an agent, a caller and a model at hand."""

    judge: LLMStandIn
    agents_model: LLMStandIn
    names: dict[str, Any] = field(default_factory=dict)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.voice = Tones()
        self.names = {
            "my_tts": self.voice,
            "my_agent": MyAgent(WRONG),
            "my_model": self.deltas,
            "started": SimpleNamespace(wait=self.started),
            "RULES": ["Never confirm a refund."],
            "AGENT_URL": self.agents_model.base_url,
            "AGENT_PROMPT": "You are Ada. Never confirm a refund; a supervisor decides. Opening hours: 9 to 5.",
        }

    async def deltas(self, _customer_text: str) -> AsyncIterator[str]:
        for word in WRONG.split():
            yield f"{word} "
            await asyncio.sleep(0)

    async def started(self) -> None:
        self.spawn(Agent(self.plivo.websocket).run())
        self.plivo.start()
        await until(lambda: self.names["sup"].armed)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def read(self, block: Block, file: str) -> None:
        self.plivo = Plivo()
        self.names["websocket"] = self.plivo.websocket
        code: CodeType = compile(
            "\n" * (block.line - 1) + block.code, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        running = eval(code, self.names)
        if inspect.iscoroutine(running):
            await running

    async def call(self) -> None:
        """The quickstart's route, with a caller on the line who hangs up after the correction."""
        plivo, agent = Plivo(), self.names["my_agent"]
        route = self.spawn(self.names["call"](plivo.websocket))
        plivo.start()
        plivo.media(b"\xff" * 160)
        await until(lambda: len(plivo.words(self.voice)) >= 2)
        assert WRONG not in plivo.words(self.voice)
        assert agent.notes == []
        plivo.hang_up()
        await asyncio.wait_for(route, 30)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        configs = [value.config if isinstance(value, Supervisor) else value for value in self.names.values()]
        for config in configs:
            if isinstance(config, MirrorConfig):
                await close_client(config.llm)


async def until(condition: Any) -> None:
    # What is waited for is real audio, of which nothing says that it has played; looking at it takes a while, too.
    async with asyncio.timeout(45):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    async with LLMStandIn() as judge, LLMStandIn() as agents_model:
        judge.judge(words({"refund is confirmed": {"correction": "I can connect you with a colleague. Shall I?"}}))
        judge.correct(lambda _question: "I can connect you with a colleague. Shall I do that?")
        judge.derive(lambda _question: [{"text": "Never confirm a refund.", "citation": "Never confirm a refund"}])
        tool = {"id": "x1", "type": "function", "function": {"name": "place_order", "arguments": '{"items": ["one"]}'}}
        agents_model.once(message={"role": "assistant", "content": None, "tool_calls": [tool]})
        agents_model.once(message={"role": "assistant", "content": "Is there anything else?"})
        for name in [name for name in os.environ if name.startswith(("OPENAI_", "AZURE_", "MIRROR_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("OPENAI_BASE_URL", judge.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        reader = Reader(judge, agents_model)
        yield reader
        await reader.close()


@pytest.mark.parametrize(
    ("file", "document", "least"),
    [("docs/library.md", LIBRARY, 10), ("README.md", README, 1)],
    ids=["library", "readme"],
)
async def test_the_code_of_the_documents_runs(reader: Reader, file: str, document: str, least: int) -> None:
    python = [block for block in blocks(document) if block.language == "python"]
    assert len(python) >= least
    for block in python:
        await reader.read(block, file)
        if "async def call(websocket" in block.code:
            await reader.call()
    assert reader.judge.asked("mirror_turn")


async def test_the_commands_of_the_documents_run(reader: Reader, tmp_path: Path) -> None:
    turns = [{"customer_text": "Money back!", "agent_text": WRONG, "label": True}]
    (tmp_path / "calls.json").write_text(json.dumps([{"call_id": "c-1", "turns": turns}]))
    (tmp_path / "policies.txt").write_text("Never confirm a refund.\n")
    (tmp_path / "prompt.txt").write_text("Is {primary_response} a confirmed refund?")
    commands = [
        shlex.split(line)
        for block in blocks(LIBRARY + README)
        if block.language == "sh"
        for line in block.code.splitlines()
        if "supervision.engine.replay" in line
    ]
    assert len(commands) >= 4
    for command in commands:
        assert command[0] == "python"
        done = await asyncio.create_subprocess_exec(
            sys.executable,
            *command[1:],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await done.communicate()
        assert done.returncode == 0, (command, err.decode())
        assert out
    assert (tmp_path / "turns.jsonl").exists()


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    section = re.split(r"^## ", LIBRARY, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{heading}\n"))
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_table_of_the_configuration_has_every_field_and_its_default() -> None:
    told: dict[str, str] = {}
    for names, defaults, _ in rows("Configuration")[1:]:
        fields = re.findall(r"`(\w+)`", names)
        told.update(zip(fields, [defaults] if len(fields) == 1 else defaults.split(", "), strict=True))
    assert set(told) == set(MirrorConfig.model_fields)
    for name, info in MirrorConfig.model_fields.items():
        if name in ("llm", "policies", "judging_prompt", "irreversible_tools", "buffer_text"):
            continue
        assert ast.literal_eval(told[name].strip("`")) == info.default, name
    assert told["buffer_text"] == f'"{MirrorConfig.model_fields["buffer_text"].default}"'


def test_the_tables_name_what_there_is() -> None:
    fields = [name for row in rows("What a verdict says")[1:] for name in re.findall(r"`(\w+)`", row[0])]
    assert fields
    assert all(hasattr(Verdict, name) or name in Verdict.__dataclass_fields__ for name in fields)
    codes = {code for row in rows("Tools")[1:] for code in re.findall(r"`(\w+)`", row[0])}
    assert codes == {str(code) for code in ToolCode}
    methods = [name for row in rows("A call with audio")[1:] for name in re.findall(r"`(\w+)[(`]", row[0])]
    for name in methods:
        if name not in ("stream_first", "hold_risky", "hold_all", "delivery"):
            assert hasattr(AttachedCall, name), name


@pytest.mark.parametrize(
    "method",
    [
        *("bind_call", "review_turn", "review_and_speak", "review_stream_delta", "flush_stream", "gate_tool_call"),
        *("intervene", "speak", "consume_override", "note_customer_turn", "note_agent_turn", "run_supervised_loop"),
        *("tool_done", "correct", "coverage", "degraded", "armed", "unarmed_reason", "heard"),
    ],
)
def test_what_users_call_is_there_and_in_the_guide(method: str) -> None:
    assert hasattr(AttachedCall, method)
    assert re.search(rf"\b{method}\b", LIBRARY)


def test_every_module_that_is_named_exists() -> None:
    for name in re.findall(r"`(supervision\.engine[\w.]*)`", LIBRARY):
        module = ROOT / name.replace(".", "/")
        shorter = ROOT / name.rpartition(".")[0].replace(".", "/")
        assert any(path.exists() for path in (module, module.with_suffix(".py"), shorter.with_suffix(".py"))), name


def test_the_links_inside_the_guide_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in LIBRARY.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(#([^)]+)\)", LIBRARY):
        assert target in headings


def test_what_the_guide_says_of_the_stores_is_so() -> None:
    for store in (RedisStateStore("redis://h/0", ttl_s=3600), PostgresStateStore("postgresql://u@h/d", ttl_s=86400)):
        assert hasattr(store, "claim")
    assert hasattr(PostgresStateStore, "create_table")
