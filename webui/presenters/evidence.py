"""The words of a turn that a verdict quotes, where they stand in it."""

from __future__ import annotations

from dataclasses import dataclass

from supervision.audio.spans import find_span
from supervision.engine.intervention.clauses import quotes


@dataclass(frozen=True, slots=True)
class EvidenceSpan:
    """A stretch of a turn's text, and whether the judge quoted it."""

    text: str
    quoted: bool


def evidence_of(text: str, reason: str) -> tuple[EvidenceSpan, ...]:
    """`text` cut where what `reason` quotes begins and ends; a quote that does not stand in it marks nothing."""
    places = sorted(place for quote in quotes(reason) if (place := find_span(text, quote)) is not None)
    spans: list[EvidenceSpan] = []
    done = 0
    for start, end in places:
        start = max(start, done)
        if end <= start:
            continue
        if start > done:
            spans.append(EvidenceSpan(text[done:start], False))
        spans.append(EvidenceSpan(text[start:end], True))
        done = end
    if done < len(text):
        spans.append(EvidenceSpan(text[done:], False))
    return tuple(spans)
