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
    """What was asked for does not go with the state that the object is in. The message says what would."""


class PreconditionFailed(RuntimeError):
    """The object is not as the asker last saw it: somebody changed it meanwhile. `etag` is what it is now."""

    def __init__(self, etag: str) -> None:
        self.etag = etag
        super().__init__(
            "Somebody changed this since you read it. Read it again, look at what changed, and send your change with "
            "the new ETag in If-Match."
        )


class PreconditionRequired(ValueError):
    """A change that has to say which state of the object it is about, and does not."""

    def __init__(self) -> None:
        super().__init__(
            "Send If-Match with the ETag that the object had when you read it, so that nobody's change is overwritten."
        )


class UpstreamFailed(RuntimeError):
    """A server of the tenant's, such as its language model, gave no usable answer. The message repeats none of it."""
