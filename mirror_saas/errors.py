"""What can be wrong with a question, in types that every door turns into its own words."""

from __future__ import annotations


class NotFound(LookupError):
    """There is no such object for the current tenant: somebody else's and a missing one are the same."""


class InvalidInput(ValueError):
    """A value that was given cannot be used; `field` names it, the message says what to do."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class Conflict(RuntimeError):
    """What is asked for cannot be done as things stand; the message says what has to change first."""
