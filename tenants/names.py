"""Names that people give to things: one line of text that every page, log and export can show."""

from __future__ import annotations

import unicodedata

from django.core.exceptions import ValidationError

NAME_CHARS = 200
# Control characters, halves of surrogate pairs, and line and paragraph separators.
_UNUSABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def name_clean(name: str, *, field: str = "name") -> str:
    """`name` without blanks around it. Raises ValidationError (`field`) when it is empty, too long or unprintable."""
    name = name.strip()
    if not name:
        raise ValidationError({field: "Give a name."})
    if len(name) > NAME_CHARS:
        raise ValidationError({field: f"Give a name of at most {NAME_CHARS} characters; this has {len(name)}."})
    if any(unicodedata.category(character) in _UNUSABLE for character in name):
        raise ValidationError({field: "Give a name in one line, without control characters."})
    return name
