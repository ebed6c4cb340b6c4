"""ETags and `If-Match` (RFC 9110): a change says which state of an object it is about.

A service that changes an object checks the ETag after it has locked the row, so that of two editors who read the same
state only one can write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from mirror_saas.errors import InvalidInput, PreconditionFailed, PreconditionRequired

# An entity tag: what stands between the quotes is anything visible but a quote.
_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_LIST = re.compile(rf"\s*{_TAG.pattern}(\s*,\s*{_TAG.pattern})*\s*")


def etag_of(*revisions: int) -> str:
    """The ETag of an object with these counters: `"3"`, `"3.1"`."""
    return f'"{".".join(map(str, revisions))}"'


@dataclass(frozen=True, slots=True)
class IfMatch:
    """The states that a change may be about; `tags` is None for `*`, any state."""

    tags: frozenset[str] | None

    @classmethod
    def parse(cls, header: str) -> Self:
        """The header's value. Raises InvalidInput (field `If-Match`)."""
        if header.strip() == "*":
            return cls(None)
        if not _LIST.fullmatch(header):
            raise InvalidInput("If-Match", 'Give the ETag as it was answered, quotes included, such as "3".')
        # A weak tag never matches here: what it stands for may have changed.
        return cls(frozenset(tag for weak, tag in _TAG.findall(header) if not weak))

    @classmethod
    def required(cls, header: str | None) -> Self:
        """Like `parse`. Raises PreconditionRequired without a header."""
        if header is None or not header.strip():
            raise PreconditionRequired
        return cls.parse(header)

    def check(self, etag: str) -> None:
        """Raises PreconditionFailed when the object, whose ETag is `etag`, is in none of these states."""
        if self.tags is not None and etag not in self.tags:
            raise PreconditionFailed(etag)
