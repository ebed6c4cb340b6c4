"""Every HTTP path that Mirror serves, read from Django's own resolver."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.urls import URLPattern, URLResolver, get_resolver

_PARAMETER = re.compile(r"<(?:(?P<kind>[^>:]+):)?(?P<name>[^>]+)>")
PLAIN = {"uuid": str(UUID(int=7)), "uuidstr": str(UUID(int=7)), "int": "7", "str": "x", "slug": "x", "path": "x/y"}


@dataclass(frozen=True)
class HTTPRoute:
    """One path; `template` has Django's parameters, such as `calls/<uuid:call_id>`."""

    template: str
    view: Callable[..., Any]
    name: str

    def path(self, value: str | None = None) -> str:
        """The path, each parameter being `value`, or something of its kind that exists nowhere."""
        return "/" + _PARAMETER.sub(
            lambda found: PLAIN[found["kind"] or "str"] if value is None else value, self.template
        )

    @property
    def parameters(self) -> int:
        return len(_PARAMETER.findall(self.template))


def http_routes() -> list[HTTPRoute]:
    """All of them, in the order in which Django tries them."""
    return list(_walk(get_resolver().url_patterns, "", ""))


def _walk(patterns: list[Any], prefix: str, space: str) -> Iterator[HTTPRoute]:
    for pattern in patterns:
        template = prefix + str(pattern.pattern).lstrip("^").rstrip("$")
        if isinstance(pattern, URLResolver):
            inner = f"{space}{pattern.namespace}:" if pattern.namespace else space
            yield from _walk(pattern.url_patterns, template, inner)
        elif isinstance(pattern, URLPattern):
            yield HTTPRoute(template, pattern.callback, space + (pattern.name or ""))
