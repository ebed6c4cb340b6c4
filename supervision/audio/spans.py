"""Where quoted words stand in a text. No samples, so judging can use it without what audio needs."""

from __future__ import annotations

import re
import unicodedata

# Scripts that are written without blanks between words.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ELLIPSIS = re.compile(r"\.{3,}|…")
_SPOKEN_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "Sc", "Sm"))


def find_span(text: str, span: str) -> tuple[int, int] | None:
    """Where in `text` the quoted `span` stands, as [start, end) characters; None when it does not.

    Looks for whole words first, then for a quote that ends inside a word ("refund" of "refunds").
    """
    folded, places = _fold(text)
    pieces = [piece for piece in (_fold(part)[0].strip() for part in _ELLIPSIS.split(span)) if piece]
    if not pieces:
        return None
    for whole_words in (True, False):
        first = last = -1
        at = 0
        for piece in pieces:
            pattern = r"(?<!\S)" + re.escape(piece) + (r"(?!\S)" if whole_words else "")
            match = re.compile(pattern).search(folded, at)
            if match is None:
                break
            first = match.start() if first < 0 else first
            last = at = match.end()
        else:
            return places[first], places[last - 1] + 1
    return None


def _fold(text: str) -> tuple[str, list[int]]:
    """`text` without case, accents and punctuation, single blanks between words; and each character's place in it."""
    folded: list[str] = []
    places: list[int] = []

    def blank(place: int) -> None:
        if folded and folded[-1] != " ":
            folded.append(" ")
            places.append(place)

    for place, char in enumerate(text):
        alone = UNSPACED.match(char) is not None
        if alone or char.isspace() or char in "-–—/":
            blank(place)
        for part in unicodedata.normalize("NFKD", char).casefold():
            if unicodedata.category(part) in _SPOKEN_CATEGORIES:
                folded.append(part)
                places.append(place)
        if alone:
            blank(place)
    return "".join(folded), places
