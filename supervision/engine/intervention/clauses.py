"""Where in a turn's text a violation begins: verdicts are about clauses, and what comes before a clause is innocent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from supervision.audio.spans import find_span
from supervision.engine.scorer.streaming import ClauseSplitter

_QUOTED: Final = re.compile(r'"([^"]{2,400})"|“([^”]{2,400})”')


def quotes(reason: str) -> Iterator[str]:
    """What the reason of a verdict quotes."""
    for found in _QUOTED.finditer(reason):
        yield found.group(1) or found.group(2)


def violation_starts(text: str, reason: str, clean_chars: int = 0) -> int:
    """The character of ``text`` at which the clause begins that breaks a rule: the first one behind ``clean_chars``
    that the ``reason`` quotes from. ``clean_chars`` itself when it quotes nothing that stands there."""
    places = [place for quote in quotes(reason) if (place := find_span(text, quote)) is not None]
    behind = [start for start, end in places if end > clean_chars]
    if not behind:
        return clean_chars
    first, begins = min(behind), 0
    for clause in ClauseSplitter().push(text):
        if begins + len(clause) > first:
            break
        begins += len(clause)
    return max(clean_chars, begins)
