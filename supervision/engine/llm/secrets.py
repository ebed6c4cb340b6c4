"""Keys that are looked up by name (Vault, a cloud's secret manager) when they are first needed.

    OpenAIClient(api_key=Secret("openai/judge"), model="gpt-4o-mini")     # with MirrorConfig(secrets=look_up)

`look_up` is a function from name to secret: an async one, or a plain one, which runs in a thread and may block.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from supervision.engine.llm.protocol import LLMError

SecretResolver = Callable[[str], str | Awaitable[str]]


class SecretUnavailable(LLMError):
    """A secret could not be looked up. The message has its name, never its value nor what the resolver said."""


@dataclass(frozen=True, slots=True)
class Secret:
    """The name of a secret, in place of the secret itself. Raises `ValueError` when it is blank."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError('a Secret needs the name of the secret, for instance Secret("openai/judge")')


def give_secrets(resolver: SecretResolver | None, user: Any) -> None:
    """Hands a resolver to a client or voice whose key may be a `Secret`. Raises `ValueError` when it is one and there
    is no resolver."""
    use = getattr(user, "use_secrets", None)
    if resolver is not None and callable(use):
        use(resolver)
    wanted = getattr(user, "needs_secrets", None)
    if isinstance(wanted, str):
        raise ValueError(
            f"secrets: the key of {type(user).__name__} is Secret({wanted!r}); give MirrorConfig a function for it"
        )


class Key:
    """An API key: given as it is, or by name. Looked up once, by however many questions need it at the same time."""

    def __init__(self, key: str | Secret) -> None:
        self.name = key.name if isinstance(key, Secret) else None
        """The secret's name; None for a key that was given as it is."""
        self._resolver: SecretResolver | None = None
        self._value = None if isinstance(key, Secret) else key
        self._looking: asyncio.Task[str] | None = None

    def __repr__(self) -> str:
        return f"Key({f'Secret({self.name!r})' if self.name else '…'})"

    @property
    def needs_resolver(self) -> bool:
        """Whether this is a secret's name that nobody has said how to look up."""
        return self.name is not None and self._resolver is None

    @property
    def known(self) -> str | None:
        """The key, once it is known."""
        return self._value

    def use(self, resolver: SecretResolver) -> None:
        """Says how secrets are looked up. The first to say so counts: clients are shared."""
        if self._resolver is None:
            self._resolver = resolver

    async def value(self) -> str:
        """The key. Raises `SecretUnavailable`."""
        return self._value if self._value is not None else await self._look_up()

    async def renewed(self, stale: str) -> str | None:
        """The key looked up again, after the endpoint refused `stale`; None when that is still what it is. Raises
        `SecretUnavailable`."""
        if self.name is None:
            return None
        if self._value == stale:
            self._value = None
        value = await self.value()
        return None if value == stale else value

    def cancel(self) -> None:
        """Gives up looking."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look_up(self) -> str:
        # In a task of its own: a question that runs out of time must not take the others' answer with it.
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._resolve(), name="look up a secret")
            self._looking.add_done_callback(self._looked)
        task = self._looking
        await asyncio.wait((task,))
        if task.cancelled():
            raise SecretUnavailable(f"looking up the secret {self.name!r} was given up")
        return task.result()

    async def _resolve(self) -> str:
        name, resolver = self.name or "", self._resolver
        if resolver is None:
            raise SecretUnavailable(f"nobody said how to look up the secret {name!r}; give MirrorConfig secrets=…")
        try:
            plain = not inspect.iscoroutinefunction(resolver) and not inspect.iscoroutinefunction(
                getattr(resolver, "__call__", None)  # noqa: B004 - an object with an async __call__
            )
            found = await asyncio.to_thread(resolver, name) if plain else resolver(name)
            value = await found if inspect.isawaitable(found) else found
        except Exception as error:
            # What the resolver says may hold the secret, or where it is kept.
            raise SecretUnavailable(f"the secret {name!r} could not be looked up ({type(error).__name__})") from error
        if not isinstance(value, str) or not value.strip():
            raise SecretUnavailable(f"the secret {name!r} is {'blank' if isinstance(value, str) else 'no text'}")
        return value.strip()

    def _looked(self, task: asyncio.Task[str]) -> None:
        self._looking = None
        # Asked for here so that it does not count as dropped when nobody waits any more.
        if not task.cancelled() and task.exception() is None:
            self._value = task.result()
