"""Rules as people write them into text files."""

from __future__ import annotations


def rule_lines(text: str) -> list[tuple[int, str]]:
    """The rules of a text, one a line, each with the number of its line from 1; blank lines and lines that begin with #
    are left out, and so is a byte order mark."""
    lines = ((number, line.strip()) for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]
