"""Telling the caller something when no agent speaks any more."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from supervision.engine.adapters.playback import play_line
from supervision.engine.adapters.relay import CallRelay
from supervision.engine.intervention.orchestrator import Line, played_in_time
from supervision.engine.tts.protocol import TTSError
from supervision.engine.tts.sink import estimated_s
from supervision.engine.tts.voice import CallVoice
from supervision.stream.plivo_rest import PlivoCall

logger = logging.getLogger(__name__)

WAITS_S: Final = 5.0  # what still plays, or is being rendered, for longer is not waited for


async def announce(text: str, *, relay: CallRelay, voice: CallVoice, plivo: PlivoCall | None, way_back: bool) -> bool:
    """Say ``text`` behind what still plays; what plays longer than 5 s is cut. With no ``way_back`` on the stream, or
    no voice for it, Plivo reads it. Returns when it has been said, or False when nobody can. Never raises."""
    if way_back and (line := await _rendered(text, voice)) is not None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(min(WAITS_S, relay.unplayed_s(loop.time())))
        if relay.unplayed_s(loop.time()) > 0.0:
            relay.silence(loop.time())
        await played_in_time(play_line(relay, line, "announcement"))
        return True
    if plivo is None:
        return False
    try:
        await plivo.voice().speak(text, language=voice.language)
    except TTSError as problem:
        logger.warning("An announcement could not be spoken: %s", problem)
        return False
    # Plivo says when it has queued a line, not when it has spoken it.
    await asyncio.sleep(estimated_s(text))
    return True


async def _rendered(text: str, voice: CallVoice) -> Line | None:
    try:
        async with asyncio.timeout(WAITS_S):
            return await voice.spoken(Line(text, b""))
    except (TTSError, TimeoutError) as problem:
        logger.warning("An announcement could not be rendered: %s", problem or f"it took longer than {WAITS_S:g} s")
    except Exception:
        logger.exception("An announcement could not be rendered")
    return None
