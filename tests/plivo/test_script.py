"""Scripts: what they may say, what is said about a bad one, and what the caller then does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from supervision.plivo.simulator import (
    L16_16K,
    MULAW_8K,
    CallRecord,
    PlivoSwitches,
    Script,
    ScriptError,
    SimulatedCall,
    load_script,
    parse_script,
    tone,
    write_wav,
)
from supervision.plivo.simulator.script import DEFAULT_SCRIPT
from supervision.plivo.simulator.speech import speak

from .agents import Agent, agent_server, listen, settle

SPEECH = MULAW_8K.encode(tone(300, 0.5, 8000), 8000)
QUIET = MULAW_8K.silence(0.5)


async def act(handler: object, script: Script, **options: object) -> tuple[CallRecord, Agent]:
    async with agent_server(handler) as server:  # type: ignore[arg-type]
        ready = script.prepare()
        call = SimulatedCall(server.url, ready.run, ready.switches, media_format=ready.media_format, **options)  # type: ignore[arg-type]
        record = await settle(asyncio.ensure_future(call.run()))
    return record, server.agents[0]


async def greet(agent: Agent) -> None:
    """Say half a second, then be silent."""
    await agent.until("start")
    await agent.play(SPEECH)
    await agent.read_on()


# -- reading


def test_everything_a_script_can_say() -> None:
    script = parse_script(
        """
        format: audio/x-l16;rate=16000
        from: 15550100009
        to: "+15550100008"
        max_seconds: 60
        switches: {delay_s: 0.03, send_stop: on, cleared_audio: "lost,normal"}
        steps:
          - say: Hello there.
          - tone: 440 1.5
            at: 0
          - silence: 0.25
            after: agent_silent 0.8
            timeout: 5
          - press: 0042
            after: heard 1
            optional: true
          - drop_connection:
            after: agent_speaking 0.5
          - hang_up
        """
    )
    assert script.media_format == L16_16K
    assert (script.from_number, script.to_number, script.max_seconds) == ("15550100009", "+15550100008", 60.0)
    assert script.switches == PlivoSwitches(delay_s=0.03, send_stop="on", cleared_audio="lost,normal")
    told = [(s.action, s.value, s.condition, s.seconds, s.timeout_s, s.optional) for s in script.steps]
    assert told == [
        ("say", "Hello there.", "wait", 0.0, 30.0, False),
        ("tone", (440.0, 1.5), "at", 0.0, 30.0, False),
        ("silence", 0.25, "agent_silent", 0.8, 5.0, False),
        ("press", "0042", "heard", 1.0, 30.0, True),
        ("drop_connection", None, "agent_speaking", 0.5, 30.0, False),
        ("hang_up", None, "wait", 0.0, 30.0, False),
    ]


def test_the_default_script_and_the_one_in_the_documentation_are_good() -> None:
    import supervision.plivo.simulator.script as module

    assert parse_script(DEFAULT_SCRIPT).steps[-1].action == "hang_up"
    assert module.__doc__ is not None
    example = "\n".join(line for line in module.__doc__.splitlines() if line.startswith("    "))
    assert [step.action for step in parse_script(example).steps] == ["say", "say", "press", "hang_up"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the script is empty; it needs `steps`"),
        ("a: [", "line 1: this is not YAML"),
        ("a: b: c", "line 1: this is not YAML"),
        ("- say: x", r"line 1: the script: must be a mapping"),
        ("steps:\n  - say: x\nsetps: 1", r"line 3: the script: does not know 'setps'; allowed are format, from"),
        ("format: audio/x-mulaw;rate=8000", "`steps` is missing"),
        ("steps: {say: x}", "line 1: steps: must be a list"),
        (
            "steps: []\nformat: mp3",
            r"line 2: format: Plivo has no content type 'mp3'; use one of: audio/x-l16;rate=16000",
        ),
        ("steps: []\nmax_seconds: soon", "line 2: max_seconds: needs a number of seconds above 0"),
        ("steps: []\nmax_seconds: 0", "line 2: max_seconds: needs a number of seconds above 0"),
        ("steps: []\nmax_seconds: .nan", "line 2: max_seconds: needs a number"),
        ("steps: []\nfrom: [1]", "line 2: from: needs a text"),
        ("steps: []\nswitches:\n  delay_s: long", r"line 3: switches: switch delay_s: 'long' is not a number"),
        (
            "steps: []\nswitches: {delya: 1}",
            "line 2: switches: there is no switch 'delya'; the switches are: start_delay_s",
        ),
        ("steps:\n  - say: x\n    press: 1", r"line 2: steps\[0\]: needs exactly one of say, .*; it has say and press"),
        ("steps:\n  - say: x\n  - after: wait 1", r"line 3: steps\[1\]: needs exactly one of .*; it has none"),
        ("steps:\n  - say: x\n    afetr: wait 1", r"line 3: steps\[0\]: does not know 'afetr'; allowed are say, wav"),
        ("steps:\n  - say: x\n    say: y", r"steps\[0\]: has 'say' twice"),
        ("steps:\n  - say:", r"line 2: steps\[0\]\.say: needs a text"),
        ("steps:\n  - dance", r"line 2: steps\[0\]: must be a mapping"),
        ("steps:\n  - hang_up: 3", r"steps\[0\]\.hang_up: takes no value"),
        ("steps:\n  - press: 5x", r"steps\[0\]\.press: '5x' cannot be dialled; the keys are 0-9"),
        ("steps:\n  - tone: high", r"steps\[0\]\.tone: 'high' is not of the form `hz seconds`"),
        ("steps:\n  - tone: 9000 1", r"steps\[0\]\.tone: needs a frequency below 4000 Hz"),
        ("steps:\n  - silence: -1", r"steps\[0\]\.silence: needs a number of seconds above 0"),
        ("steps:\n  - wav: none.wav", r"steps\[0\]\.wav: cannot read .*none\.wav"),
        ("steps:\n  - say: x\n    at: -0.5", r"line 3: steps\[0\]\.at: needs a number of seconds of 0 or more"),
        ("steps:\n  - say: x\n    at: 1\n    after: wait 1", r"line 4: steps\[0\]: has both `at` and `after`"),
        (
            "steps:\n  - say: x\n    after: agent_slient 1",
            r"line 3: steps\[0\]\.after: there is no condition 'agent_slient 1'; use one of `wait SECONDS`, ",
        ),
        ("steps:\n  - say: x\n    after: agent_silent", r"`agent_silent` needs a number of seconds behind it"),
        ("steps:\n  - say: x\n    after: wait 1 2", r"`wait` needs a number of seconds behind it"),
        ("steps:\n  - say: x\n    after: wait nan", r"needs 0 to 3600 seconds"),
        ("steps:\n  - say: x\n    timeout: 0", r"steps\[0\]\.timeout: needs a number of seconds above 0"),
        ("steps:\n  - say: x\n    optional: 3", r"steps\[0\]\.optional: must be true or false"),
    ],
)
def test_a_bad_script_is_told_where_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ScriptError, match=message) as caught:
        parse_script(text, name="call.yaml")
    assert str(caught.value).startswith("call.yaml")


def test_a_script_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="cannot read the script"):
        load_script(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScriptError, match="cannot read the script"):
        load_script(tmp_path / "binary.yaml")


def test_yaml_tags_cannot_run_code() -> None:
    with pytest.raises(ScriptError, match="max_seconds"):
        parse_script("steps: []\nmax_seconds: !!python/object/apply:os.getcwd []")


def test_without_the_offline_voice_the_step_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from supervision.plivo.simulator import speech

    monkeypatch.setitem(sys.modules, "hibari", None)
    speech._voice.cache_clear()
    try:
        with pytest.raises(ScriptError, match=r"line 2: steps\[0\]: `say` needs the offline voice; install it with"):
            parse_script("steps:\n  - say: Hello.").prepare()
    finally:
        speech._voice.cache_clear()


# -- rendering


def test_text_is_spoken_loud_enough_and_without_clipping() -> None:
    pcm, rate = speak("Hi, I would like to cancel my order.")
    seconds = len(pcm) / rate
    assert 1.0 < seconds < 5.0
    assert np.abs(pcm.astype(np.int32)).max() < 32767
    frames = pcm[: len(pcm) // 480 * 480].reshape(-1, 480).astype(float)
    levels = 20 * np.log10(np.sqrt((frames**2).mean(axis=1)) / 32768 + 1e-9)
    assert np.percentile(levels, 90) > -23


def test_every_sound_is_rendered_before_the_call_in_the_calls_format(tmp_path: Path) -> None:
    write_wav(tmp_path / "hello.wav", tone(440, 0.3, 44100), 44100)
    (tmp_path / "call.yaml").write_text("steps: [{wav: hello.wav}, {tone: 440 0.2}, {silence: 0.1}, {press: 1}]")
    script = load_script(tmp_path / "call.yaml").prepare(L16_16K)
    lengths = [None if step.audio is None else len(step.audio) for step in script.steps]
    assert lengths == [9600, 6400, 3200, None]
    assert script.media_format == L16_16K


# -- acting


async def test_the_caller_says_the_steps_one_after_the_other_and_hangs_up() -> None:
    script = parse_script("steps: [{tone: 440 0.2}, {silence: 0.1}, {tone: 880 0.1}, {press: 7}, hang_up]")
    record, agent = await act(listen, script)
    words = [step.audio for step in script.prepare().steps if step.audio]
    assert b"".join(words) in agent.said()
    assert [m["dtmf"]["digit"] for m in agent.of("dtmf")] == ["7"]
    assert (record.outcome, record.ended_by) == ("completed", "caller")
    assert record.ended_t is not None
    assert record.started_t is not None
    assert record.ended_t - record.started_t == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize("after", [0.2, 0.4])
async def test_wait_and_at_count_from_the_last_step_and_from_the_start(after: float) -> None:
    script = parse_script(f"steps: [{{tone: 440 0.1, at: {after}}}, {{hang_up: , after: wait {after}}}]")
    record, _ = await act(listen, script)
    assert record.started_t is not None
    assert record.ended_t is not None
    assert record.of("caller_speaks")[0].t - record.started_t == pytest.approx(after, abs=0.05)
    assert record.ended_t - record.started_t == pytest.approx(2 * after + 0.1, abs=0.08)


async def test_agent_silent_waits_for_speech_and_then_for_silence() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(MULAW_8K.silence(0.6))  # silence that is played is not speech
        await agent.play(SPEECH)
        await agent.play(QUIET)
        await agent.read_on()

    record, _ = await act(handler, parse_script("steps: [{hang_up: , after: agent_silent 0.3}]"))
    start = record.heard.start
    assert start is not None
    assert record.ended_t is not None
    assert record.ended_t - start == pytest.approx(0.6 + 0.5 + 0.3, abs=0.06)


async def test_agent_speaking_interrupts_in_the_middle() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(SPEECH * 6)
        await agent.read_on()

    record, _ = await act(
        handler, parse_script("steps: [{tone: 440 0.1, after: agent_speaking 0.4}, {hang_up: , after: wait 0.1}]")
    )
    start = record.heard.start
    assert start is not None
    assert record.of("caller_speaks")[0].t - start == pytest.approx(0.4, abs=0.06)
    assert record.heard.seconds < 1.0


async def test_heard_counts_played_audio_of_any_loudness() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(QUIET)
        await agent.until("media", 50)
        await agent.play(QUIET)
        await agent.read_on()

    record, _ = await act(handler, parse_script("steps: [{hang_up: , after: heard 0.7}]"))
    assert record.heard.seconds == pytest.approx(0.7, abs=0.06)


async def test_a_condition_counts_from_the_end_of_the_step_before() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("start")
        await agent.play(SPEECH)
        while not any(byte != 0xFF for byte in agent.said()):  # until the caller speaks
            await agent.receive()
        await agent.until("media", len(agent.of("media")) + 25)
        await agent.play(SPEECH)
        await agent.read_on()

    script = "steps: [{tone: 440 0.2, after: agent_silent 0.2}, {hang_up: , after: agent_silent 0.2}]"
    record, _ = await act(handler, parse_script(script))
    assert record.heard.audio == SPEECH + SPEECH


async def test_a_condition_that_never_comes_fails_the_call_and_names_the_step() -> None:
    script = parse_script("steps:\n  - hang_up:\n    after: agent_silent 0.1\n    timeout: 0.2", name="call.yaml")
    record, _ = await act(listen, script)
    assert record.outcome == "failed"
    assert record.reason == "call.yaml, line 2: steps[0]: not within 0.2 s: agent_silent 0.1"


async def test_an_optional_step_is_done_when_its_condition_never_comes() -> None:
    script = parse_script("steps: [{press: 3, after: agent_silent 0.1, timeout: 0.1, optional: true}, hang_up]")
    record, agent = await act(listen, script)
    assert record.outcome == "completed"
    assert len(agent.of("dtmf")) == 1


async def test_the_agent_may_end_the_call_before_the_script_does() -> None:
    async def handler(agent: Agent) -> None:
        await agent.until("media", 3)

    record, _ = await act(handler, parse_script("steps: [{hang_up: , after: agent_silent 5}]"))
    assert (record.outcome, record.ended_by) == ("completed", "agent")


async def test_a_script_without_hang_up_stays_until_max_seconds() -> None:
    record, _ = await act(listen, parse_script("max_seconds: 0.3\nsteps: [{press: 1}]"))
    assert (record.outcome, record.reason) == ("completed", "max_seconds (0.3) are over")


async def test_a_script_that_is_not_through_by_max_seconds_has_failed() -> None:
    record, _ = await act(listen, parse_script("max_seconds: 0.2\nsteps: [{tone: 440 5}]", name="call.yaml"))
    assert record.outcome == "failed"
    assert record.reason == "call.yaml, line 2: steps[0]: max_seconds (0.2) are over and this step is not done"


async def test_a_script_can_break_the_connection() -> None:
    script = parse_script(
        "switches: {reconnects: 1, reconnect_delay_s: 0.02}\n"
        "steps: [drop_connection, {press: 4, after: wait 0.3}, hang_up]"
    )
    async with agent_server(listen, greet) as server:
        ready = script.prepare()
        record = await settle(asyncio.ensure_future(SimulatedCall(server.url, ready.run, ready.switches).run()))
    assert record.outcome == "completed"
    assert [m["dtmf"]["digit"] for m in server.agents[1].of("dtmf")] == ["4"]


async def test_a_script_has_to_be_prepared() -> None:
    async with agent_server(listen) as server:
        call = SimulatedCall(server.url, parse_script("steps: [{tone: 440 1}]").run)
        with pytest.raises(RuntimeError, match="prepare"):
            await settle(asyncio.ensure_future(call.run()))
