"""The speech providers of tenants that have one of their own (`tts` credentials), shared by the calls of a process."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from supervision.engine.tts.openai import OpenAITTS
from supervision.engine.tts.protocol import TTSError, TTSProvider
from supervision.engine.tts.voice import LineCache
from supervision.stream.directory import ProviderSettings

logger = logging.getLogger(__name__)

_VOICES: Final = 256  # known by one process at a time; calls that speak with one keep it


class Voices:
    """Belongs to one event loop; nothing is opened before the first voice."""

    def __init__(self, http_client: Callable[[], Any]) -> None:
        """``http_client`` makes the client whose every connection is checked; it is made once."""
        self._make_client = http_client
        self._client: Any = None
        self._known: OrderedDict[ProviderSettings, tuple[TTSProvider, LineCache]] = OrderedDict()

    def of(self, provider: ProviderSettings) -> tuple[TTSProvider, LineCache] | None:
        """The voice behind this credential, with the lines that it has rendered; None when it cannot be used."""
        if provider not in self._known:
            if self._client is None:
                self._client = self._make_client()
            try:
                tts = OpenAITTS(
                    api_key=provider.api_key,
                    model=provider.model,
                    base_url=provider.base_url or None,
                    http_client=self._client,
                )
            except (TTSError, ValueError) as problem:
                logger.error("A tenant's speech provider cannot be used: %s", problem)
                return None
            self._known[provider] = (tts, LineCache())
            while len(self._known) > _VOICES:
                self._known.popitem(last=False)
        self._known.move_to_end(provider)
        return self._known[provider]

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
