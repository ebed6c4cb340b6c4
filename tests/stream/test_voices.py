"""A tenant's own speech provider speaks in its calls, and in no other's."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from mirror_saas.egress import egress_http_client
from supervision.audio.format import MediaFormat
from supervision.audio.pcm import encode_l16
from supervision.engine.tts.protocol import TTSError
from supervision.stream import voices as voices_module
from supervision.stream.directory import ProviderSettings
from supervision.stream.voices import Voices
from tests.stream.world import World
from tests.support.virtual_time import virtual_time

ALICE = ProviderSettings("https://speech.alice.example/v1", "tts-a", "key-of-alice")
CHARLIE = ProviderSettings("https://speech.charlie.example/v1", "tts-c", "key-of-charlie")
TONE = encode_l16((np.sin(np.arange(24_000) * 0.2) * 9000).astype(np.int16))


class Speech:
    """A speech server, asked without a socket."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.made = 0

    def client(self) -> httpx2.AsyncClient:
        self.made += 1
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        text = json.loads(request.content)["input"]
        self.asked.append((request.url.host, request.headers["authorization"], text))
        return httpx2.Response(200, content=TONE, headers={"content-type": "audio/pcm"})


async def test_calls_of_one_tenant_share_a_voice_and_its_lines() -> None:
    speech = Speech()
    voices = Voices(speech.client)
    alices, again, charlies = voices.of(ALICE), voices.of(replace(ALICE)), voices.of(CHARLIE)
    assert alices is not None
    assert charlies is not None
    assert alices is again
    assert alices[0] is not charlies[0]
    assert alices[1] is not charlies[1]
    for tts, lines in (alices, charlies, alices):
        await lines.rendered(tts, "One moment.", "en", None, MediaFormat())
    assert [(host, key) for host, key, _ in speech.asked] == [
        ("speech.alice.example", "Bearer key-of-alice"),
        ("speech.charlie.example", "Bearer key-of-charlie"),
    ]
    assert speech.made == 1
    await voices.aclose()


async def test_a_tenants_voice_is_asked_through_the_door() -> None:
    voices = Voices(egress_http_client)
    own = voices.of(ProviderSettings("http://169.254.169.254/v1", "tts-a", "key"))
    assert own is not None
    with pytest.raises(TTSError, match="cannot reach"):
        await own[0].synthesize("One moment.", language="en")
    await voices.aclose()


async def test_the_voices_of_a_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices_module, "_VOICES", 2)
    voices = Voices(Speech().client)
    first = voices.of(ALICE)
    for number in range(3):
        voices.of(replace(CHARLIE, model=f"tts-{number}"))
    assert voices.of(ALICE) is not first
    assert len(voices._known) == 2


async def test_a_credential_without_a_key_falls_back_to_mirrors_voice() -> None:
    assert Voices(Speech().client).of(replace(ALICE, api_key="")) is None


@virtual_time
async def test_a_call_speaks_with_its_tenants_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    speech = Speech()
    world.runtime.voices = Voices(speech.client)
    mirrors = world.runtime.call_voice(world.binding, MediaFormat())
    own = world.runtime.call_voice(replace(world.binding, tts=ALICE), MediaFormat())
    for voice in (mirrors, own):
        await voice.arm(buffers=["Just a moment."], fallback="Let me take that back.", opener="Sorry, I misspoke.")
        assert voice.armed
    assert sorted(text for _, _, text in speech.asked) == sorted(world.tts.spoken)
