"""`manage.py simulate_call` as a user runs it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import wave
from pathlib import Path

import pytest

from supervision.management.commands.simulate_call import Command

from .agents import Agent, agent_server, listen
from .test_answer import answer, web_server

ROOT = Path(__file__).resolve().parents[2]
WORDS = bytes(range(256)) * 10


async def simulate(*arguments: str) -> tuple[int, str, str]:
    """Run the command in a thread; returns exit code, output and errors."""

    def run() -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with pytest.raises(SystemExit) as left:
            Command(stdout=out, stderr=errors, no_color=True).run_from_argv(["manage.py", "simulate_call", *arguments])
        assert isinstance(left.value.code, int)
        return left.value.code, out.getvalue(), errors.getvalue()

    return await asyncio.to_thread(run)


async def simulate_as_process(*arguments: str) -> tuple[int, str, str]:
    """Run `manage.py simulate_call` with no database in reach; returns exit code, output and errors."""
    nowhere = {name: "postgresql://nobody@127.0.0.1:9/none" for name in ("DATABASE_URL", "DATABASE_OWNER_URL")}
    environment = {**os.environ, **nowhere, "REDIS_URL": "redis://127.0.0.1:9/0", "MIRROR_ENV": "development"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "manage.py"),
        "simulate_call",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def say_and_close(agent: Agent) -> None:
    await agent.until("start")
    await agent.play(WORDS)
    await agent.checkpoint("end")
    await agent.until("playedStream")


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "call.yaml"
    path.write_text(text)
    return str(path)


async def test_a_completed_call_prints_its_timeline_and_exits_0(tmp_path: Path) -> None:
    async with agent_server(say_and_close) as server:
        code, out, errors = await simulate_as_process(
            server.url, "--script", script(tmp_path, "steps: [{press: 5}]"), "--wav", str(tmp_path / "heard.wav")
        )
    assert (code, errors) == (0, "")
    for word in ("dialling", "start callId=", "dtmf digit=5", "checkpoint name=end", "playedStream name=end", "hears"):
        assert word in out
    assert "completed: the server closed the stream with code 1000" in out
    assert "1 playAudio, 0.3 s heard" in out
    with wave.open(str(tmp_path / "heard.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert file.getnframes() / 8000 == pytest.approx(0.35, abs=0.15)


async def test_json_has_one_event_a_line_and_a_summary(tmp_path: Path) -> None:
    async with agent_server(say_and_close) as server:
        code, out, _ = await simulate(server.url, "--json", "--script", script(tmp_path, "steps: [{press: 5}]"))
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["kind"] for line in lines][:2] == ["dialling", "start"]
    assert all({"t", "source", "kind"} <= set(line) for line in lines[:-1])
    summary = lines[-1]
    assert (summary["kind"], summary["outcome"], summary["ended_by"]) == ("summary", "completed", "agent")
    assert summary["heard_seconds"] == pytest.approx(len(WORDS) / 8000)
    assert summary["play_audio_bytes"] == len(WORDS)


async def test_switches_are_set_and_win_over_the_scripts(tmp_path: Path) -> None:
    path = script(tmp_path, "switches: {seq_start: 1, extra_headers: secret=1}\nsteps: []")
    async with agent_server(listen) as server:
        code, out, _ = await simulate(
            server.url, "--json", "--script", path, "--set", "seq_start=0", "--set", "hang_up_at_s=0.1"
        )
    assert code == 0
    assert server.agents[0].start["sequenceNumber"] == 0
    assert server.agents[0].start["extra_headers"] == "secret=1"
    assert "secret" not in out


async def test_a_failed_call_exits_1() -> None:
    code, out, _ = await simulate_as_process("ws://127.0.0.1:9/stream")
    assert code == 1
    assert "failed: cannot connect" in out


async def test_a_bad_script_or_switch_exits_2_and_dials_nobody(tmp_path: Path) -> None:
    bad = script(tmp_path, "steps:\n  - sya: hello")
    async with agent_server(listen) as server:
        results = [
            await simulate(server.url, "--script", bad),
            await simulate_as_process(server.url, "--script", str(tmp_path / "none.yaml")),
            await simulate(server.url, "--set", "reconnects=9"),
            await simulate(server.url, "--wav", str(tmp_path / "no" / "folder.wav")),
            await simulate("localhost:8000"),
        ]
        assert server.agents == []
    assert [code for code, _, _ in results] == [2] * len(results)
    messages = [errors for _, _, errors in results]
    assert f"{bad}, line 2: steps[0]: does not know 'sya'; allowed are say, wav" in messages[0]
    assert "none.yaml" in messages[1]
    assert "reconnects: 9 is not one of 0, 1, 2" in messages[2]
    assert "folder.wav" in messages[3]
    assert "neither a stream URL" in messages[4]
    assert not any("Traceback" in message for message in messages)


async def test_an_answer_url_is_followed_in_its_own_format(tmp_path: Path) -> None:
    async def agent(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(WORDS, "audio/x-l16", 16000)
        await agent.checkpoint("end")
        await agent.read_on()

    path = script(tmp_path, "steps: [{tone: 440 0.1, after: heard 0.05}, {hang_up: , after: wait 0.1}]")
    async with agent_server(agent) as server, web_server() as site:
        site.body = answer(server.url, contentType="audio/x-l16;rate=16000", statusCallbackUrl=site.url + "/status")
        code, out, _ = await simulate(site.url + "/answer", "--script", path)
    assert code == 0
    assert "audio/x-l16;rate=16000" in out
    assert [state["Event"] for state in site.states()] == ["StartStream", "PlayedStream", "StopStream"]


async def test_an_answer_that_is_none_exits_1_with_the_reason() -> None:
    async with web_server() as site:
        site.body = b"<Response/>"
        code, _, errors = await simulate(site.url + "/answer")
    assert (code, errors.strip()) == (1, "the answer has no <Stream>")


async def test_the_default_script_talks_with_an_agent() -> None:
    """The caller answers a greeting, and says goodbye after the reply."""

    async def agent(agent: Agent) -> None:
        await agent.until("start")
        voice = bytes([0x10, 0x90] * 80) * 10
        await agent.play(voice)
        heard = 0
        for _ in range(2):
            while not any(byte != 0xFF for byte in agent.said()[heard:]):
                await agent.receive()
            quiet = 0
            while quiet < 25:  # until the caller has been silent for half a second
                await agent.receive()
                quiet = quiet + 1 if set(agent.said()[-160:]) == {0xFF} else 0
            heard = len(agent.said())
            await agent.play(voice)
        await agent.read_on()

    async with agent_server(agent) as server:
        code, out, errors = await simulate(server.url)
    assert (code, errors) == (0, "")
    assert "label=Hello, can you help me?" in out
    assert "label=Thank you. Goodbye." in out
    assert "completed: the caller hung up" in out


async def test_help_explains_scripts_and_switches(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = await simulate("--help")
    assert code == 0
    shown = capsys.readouterr().out
    assert "pending_checkpoints_on_clear=drop" in shown
    assert "after: agent_silent 0.8" in shown


async def test_a_wrong_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = await simulate("ws://127.0.0.1:9", "--skript", "x")
    assert code == 2
    assert "--skript" in capsys.readouterr().err
