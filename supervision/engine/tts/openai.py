"""Speech from any server with OpenAI's `/audio/speech` endpoint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from supervision.audio.resample import RATES
from supervision.engine.llm.endpoint import sdk_class
from supervision.engine.llm.secrets import Key, Secret, SecretResolver, SecretUnavailable
from supervision.engine.tts.protocol import Speech, TTSError, TTSFailure, primary_language

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BASE_URL = "https://api.openai.com/v1"
SAMPLE_RATE = 24000
"""Of `response_format: pcm`, which is little-endian 16-bit mono (OpenAI API reference, "Create speech")."""

MAX_CHARS = 4096  # the endpoint's own limit
_MAX_AUDIO_S = 120


class OpenAITTS:
    """Speaks through OpenAI, or a server that speaks its wire, in any language the model knows.

    The endpoint is not told the language: the model hears it from the text. `languages` narrows what is tried, for
    servers whose model knows only some. Nothing is retried: a late correction is worth less than a template.
    """

    def __init__(
        self,
        *,
        api_key: str | Secret,
        model: str = "gpt-4o-mini-tts",
        voice: str = "alloy",
        base_url: str | None = None,
        instructions: str | None = None,
        languages: frozenset[str] | None = None,
        sample_rate: int = SAMPLE_RATE,
        timeout_s: float = 5.0,
        http_client: Any = None,
    ) -> None:
        """`voice` is spoken when a line names none; `instructions` is how to speak, for models that take it. A key
        that is a `Secret` is looked up by `MirrorConfig.secrets` when it is first needed, and again when it is refused.

        `languages` are primary subtags; `sample_rate` in Hz is for servers whose PCM is not 24 kHz; `timeout_s` is
        for a whole line. `http_client` is an `httpx2.AsyncClient`, which stays the caller's to close; without one the
        SDK's own is used, following no redirects. Raises TTSError (UNAVAILABLE) when the package `openai` is not
        installed, and ValueError for settings that cannot work.
        """
        if not api_key:
            raise ValueError("api_key is empty; servers without keys take any text")
        if sample_rate not in RATES:
            raise ValueError(f"sample_rate {sample_rate} is not supported; use one of {', '.join(map(str, RATES))}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s}")
        self._model, self._voice, self._instructions = model, voice, instructions
        self._languages, self._sample_rate, self._timeout_s = languages, sample_rate, timeout_s
        self._owns_http = http_client is None
        self._key = Key(api_key)
        self._client: AsyncOpenAI = _client(base_url or BASE_URL, http_client)
        self._closed = False

    @property
    def needs_secrets(self) -> str | None:
        """The name of the secret that is the key, while nobody has said how to look secrets up."""
        return self._key.name if self._key.needs_resolver else None

    def use_secrets(self, resolver: SecretResolver) -> None:
        """Says how the key is looked up when it is a `Secret`. The first to say so counts."""
        self._key.use(resolver)

    async def synthesize(self, text: str, *, language: str, voice: str | None = None) -> Speech:
        """See TTSProvider."""
        if self._closed:
            raise TTSError(TTSFailure.UNAVAILABLE, "OpenAI TTS: the provider is closed")
        if self._languages is not None and primary_language(language) not in self._languages:
            spoken = ", ".join(sorted(self._languages))
            raise TTSError(TTSFailure.LANGUAGE, f"OpenAI TTS is configured for {spoken}, not {language!r}")
        if not text.strip():
            raise TTSError(TTSFailure.BAD_TEXT, "OpenAI TTS: the line is empty")
        if len(text) > MAX_CHARS:
            raise TTSError(TTSFailure.BAD_TEXT, f"OpenAI TTS: the line has {len(text)} characters; {MAX_CHARS} at most")
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):
                audio = await self._fetch_with_key(text, voice or self._voice)
        except TimeoutError as error:
            raise self._too_late() from error
        except openai.APIStatusError as error:
            raise TTSError(
                TTSFailure.REFUSED,
                f"OpenAI TTS: the server answered {error.status_code}{_advice(error.status_code)}",
                status=error.status_code,
            ) from error
        except openai.APIConnectionError as error:
            if _timed_out(error):
                raise self._too_late() from error
            raise TTSError(
                TTSFailure.CONNECTION,
                f"OpenAI TTS: cannot reach {self._host()}; check base_url and that the server runs",
            ) from error
        except TTSError:
            raise
        except SecretUnavailable as error:
            raise TTSError(TTSFailure.UNAVAILABLE, f"OpenAI TTS: {error}") from error
        except Exception as error:  # what the HTTP client raises while the body arrives is not wrapped by the SDK
            raise TTSError(
                TTSFailure.CONNECTION, f"OpenAI TTS: the answer of {self._host()} broke off ({type(error).__name__})"
            ) from error
        return self._speech(audio)

    def languages(self) -> frozenset[str] | None:
        """See TTSProvider."""
        return self._languages

    async def aclose(self) -> None:
        """See TTSProvider. An injected HTTP client is left open."""
        self._closed = True
        self._key.cancel()
        if self._owns_http:
            await self._client.close()

    async def _fetch_with_key(self, text: str, voice: str) -> bytes:
        import openai

        key = await self._key.value()
        try:
            return await self._fetch(text, voice, key)
        except openai.AuthenticationError:
            newer = await self._key.renewed(key)
            if newer is None:
                raise
            return await self._fetch(text, voice, newer)

    async def _fetch(self, text: str, voice: str, key: str) -> bytes:
        """The body of the answer, refused as soon as it is longer than any line can be."""
        import openai

        largest = _MAX_AUDIO_S * self._sample_rate * 2
        audio = bytearray()
        async with self._client.audio.speech.with_streaming_response.create(
            model=self._model,
            voice=voice,
            input=text,
            instructions=self._instructions if self._instructions else openai.omit,
            response_format="pcm",
            extra_headers={"Authorization": f"Bearer {key}"},
        ) as response:
            content_type = response.headers.get("content-type", "").split(";")[0].strip().lower()
            if content_type.startswith("text/") or content_type in ("application/json", "application/problem+json"):
                raise TTSError(TTSFailure.BAD_AUDIO, f"OpenAI TTS: the server sent {content_type} instead of audio")
            async for chunk in response.iter_bytes():
                audio += chunk
                if len(audio) > largest:
                    raise TTSError(TTSFailure.BAD_AUDIO, f"OpenAI TTS: the line is longer than {_MAX_AUDIO_S} s")
        return bytes(audio)

    def _speech(self, audio: bytes) -> Speech:
        if audio[:4] in (b"RIFF", b"OggS", b"fLaC") or audio[:3] == b"ID3":
            raise TTSError(
                TTSFailure.BAD_AUDIO,
                "OpenAI TTS: the server sent a file instead of raw samples; it must support response_format pcm",
            )
        if len(audio) < 2:
            raise TTSError(TTSFailure.BAD_AUDIO, "OpenAI TTS: the server sent no audio")
        return Speech(audio[: len(audio) // 2 * 2], self._sample_rate)

    def _too_late(self) -> TTSError:
        return TTSError(
            TTSFailure.TIMEOUT,
            f"OpenAI TTS: no complete answer in time (timeout_s is {self._timeout_s:g}); use a faster model",
        )

    def _host(self) -> str:
        return str(self._client.base_url.host)


def _client(base_url: str, http_client: Any) -> AsyncOpenAI:
    try:
        import openai
    except ImportError as error:
        raise TTSError(
            TTSFailure.UNAVAILABLE, "the package openai is not installed; install the extra `openai`"
        ) from error
    if http_client is None:
        http_client = openai.DefaultAsyncHttpxClient(follow_redirects=False)
    client: AsyncOpenAI = sdk_class()(
        api_key="sent with each request", base_url=base_url, http_client=http_client, max_retries=0
    )
    return client


def _timed_out(error: BaseException | None) -> bool:
    """Whether time ran out. The SDK's type does not tell: with aiohttp below, a refused connection is a timeout too."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _advice(status: int) -> str:
    if status in (401, 403):
        return "; check the API key"
    if status == 404:
        return "; check base_url, model and voice"
    if status == 429:
        return "; the account's rate or quota is used up"
    if 300 <= status < 400:
        return ", a redirect, which is not followed; set base_url to where it leads"
    return ""
