"""Plivo's REST API for the calls of this process: the tenant's account, through the door for outbound requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervision.engine.tts.plivo_speak import PlivoRESTTTSSink
from supervision.plivo.rest import (
    MAX_ANSWER_BYTES,
    TIMEOUT_S,
    PlivoAccount,
    PlivoAnswer,
    PlivoRest,
    Request,
    call_id_checked,
    retry_after_s,
)

if TYPE_CHECKING:
    from mirror_saas.egress_http import EgressClient

logger = logging.getLogger(__name__)


class PlivoDoor:
    """The requests of one process. Belongs to one event loop; nothing is opened before the first request."""

    def __init__(self) -> None:
        self._client: EgressClient | None = None

    async def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        """See `supervision.plivo.rest.Request`."""
        if self._client is None:
            from mirror_saas.egress_http import EgressClient

            self._client = EgressClient()
        answer = await self._client.request(
            method, url, headers=headers, body=body, timeout_s=TIMEOUT_S, max_bytes=MAX_ANSWER_BYTES, max_redirects=0
        )
        return PlivoAnswer(answer.status, retry_after_s(answer.headers.get("retry-after")))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


@dataclass(frozen=True, slots=True)
class PlivoCall:
    """One call at Plivo, and the account that may decide about it."""

    call_id: str
    account: PlivoAccount
    request: Request

    async def hangup(self) -> None:
        """End the call. Raises PlivoRestError."""
        await PlivoRest(self.account, request=self.request).hangup(self.call_id)

    async def transfer(self, url: str) -> None:
        """Let the call go on with the XML at `url`. Raises PlivoRestError, and ValueError for what is no URL."""
        await PlivoRest(self.account, request=self.request).transfer(self.call_id, url)

    def voice(self) -> PlivoRESTTTSSink:
        """Plivo's own voice on this call."""
        account = self.account
        return PlivoRESTTTSSink(
            account.auth_id, account.auth_token, self.call_id, base_url=account.base_url, request=self.request
        )


def plivo_call(
    accounts: Sequence[PlivoAccount], *, account_id: str, call_id: str, request: Request
) -> PlivoCall | None:
    """The call `call_id` of the account `account_id` (`start`'s), by the tenant's stored accounts: that one, else the
    one stored last, for a main account decides about the calls of its sub-accounts too.

    None when none is stored, and for an id that could not stand in a request.
    """
    if not accounts:
        return None
    account = next((account for account in accounts if account.auth_id == account_id), accounts[0])
    try:
        return PlivoCall(call_id_checked(call_id), account, request)
    except ValueError:
        logger.warning("A call cannot be spoken on, transferred or hung up by REST: its id is no CallUUID")
        return None
