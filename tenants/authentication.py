"""How long ago a person proved who they are: asked before dangerous things, by pages and the API alike."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

from allauth.account.authentication import get_authentication_records
from django.http import HttpRequest

RECENT: Final = timedelta(minutes=5)


class RecentAuthenticationMissing(PermissionError):
    """A dangerous thing was asked for by a session whose person proved who they are too long ago."""

    def __init__(self) -> None:
        super().__init__(
            "This needs a recent sign-in. Confirm at /account/confirm that it is you, then send the request again"
            " within five minutes."
        )


def recently_authenticated(request: HttpRequest, *, now: float | None = None) -> bool:
    """Whether the session's person signed in, or confirmed who they are, within `RECENT`.

    `now` is in seconds since the epoch, as time.time() gives it. False for somebody who is not signed in.
    """
    user = request.user
    if not user.is_authenticated:
        return False
    proofs = [record["at"] for record in get_authentication_records(request, user)]
    age_s = (time.time() if now is None else now) - max(proofs, default=float("-inf"))
    # A proof of the future (the clock was set back) proves nothing; a second is what clocks of nodes may differ by.
    return -1 <= age_s < RECENT.total_seconds()
