"""Plivo's REST API as a call uses it: what is asked for, what is asked again, and what is never asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import pytest

from supervision.plivo.rest import (
    MAX_RETRY_AFTER_S,
    PlivoAccount,
    PlivoAnswer,
    PlivoFailure,
    PlivoRest,
    PlivoRestError,
    retry_after_s,
)
from tests.standins.plivo_rest import AUTH_ID, AUTH_TOKEN, Answered, PlivoStandIn
from tests.support.virtual_time import virtual_time

CALL = "f4a1c0de-1111-4222-8333-444455556666"
XML = "https://example.com/people.xml"


def rest(plivo: PlivoStandIn, token: str = AUTH_TOKEN, **options: float) -> PlivoRest:
    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        answered = await plivo.answer(method, urlsplit(url).path, headers, body)
        return PlivoAnswer(answered.status, retry_after_s(answered.headers.get("Retry-After")))

    return PlivoRest(PlivoAccount(AUTH_ID, token), request=request, **options)


@pytest.fixture
def plivo() -> PlivoStandIn:
    made = PlivoStandIn()
    made.call(CALL)
    made.call("somebody-elses-call")
    return made


REQUESTS: list[tuple[str, Callable[[PlivoRest, str], Awaitable[None]]]] = [
    ("speak", lambda client, call: client.speak(call, "One moment.", language="en-US")),
    ("stop_speaking", lambda client, call: client.stop_speaking(call)),
    ("transfer", lambda client, call: client.transfer(call, XML)),
    ("hangup", lambda client, call: client.hangup(call)),
]


@pytest.mark.parametrize(("action", "ask"), REQUESTS)
@virtual_time
async def test_every_request_is_one_that_plivo_takes(
    plivo: PlivoStandIn, action: str, ask: Callable[[PlivoRest, str], Awaitable[None]]
) -> None:
    await ask(rest(plivo), CALL)
    (asked,) = plivo.asked
    assert (asked.action, asked.call_id) == (action, CALL)


@pytest.mark.parametrize(("action", "ask"), REQUESTS)
@pytest.mark.parametrize("call_id", ["", "  ", ".", "..", "a/b", "x/", "a?b", "%2F", "é", None, 7])
@virtual_time
async def test_nothing_is_asked_without_a_call_id(
    plivo: PlivoStandIn, action: str, ask: Callable[[PlivoRest, str], Awaitable[None]], call_id: str
) -> None:
    """A request without one is about all calls of the account."""
    with pytest.raises(ValueError, match="call_id"):
        await ask(rest(plivo), call_id)
    assert not plivo.asked
    assert len(plivo.live) == 2


@virtual_time
async def test_what_is_spoken_and_where_a_call_goes_stand_in_the_body(plivo: PlivoStandIn) -> None:
    client = rest(plivo)
    await client.speak(CALL, "Un moment, é \ud83d.", language="fr-FR")
    await client.transfer(CALL, XML)
    spoken, transferred = plivo.asked
    assert spoken.fields["text"].startswith("Un moment, é")
    assert (spoken.fields["language"], spoken.fields["legs"], spoken.fields["mix"]) == ("fr-FR", "aleg", False)
    assert transferred.fields == {"legs": "aleg", "aleg_url": XML, "aleg_method": "POST"}


@pytest.mark.parametrize("url", ["", "ftp://x/y", "example.com", "https://", "https://a b/", "javascript:1", None])
@virtual_time
async def test_a_call_is_transferred_to_a_url_only(plivo: PlivoStandIn, url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        await rest(plivo).transfer(CALL, url)
    assert not plivo.asked


@virtual_time
async def test_a_call_that_is_over_is_hung_up_and_cannot_be_transferred(plivo: PlivoStandIn) -> None:
    client = rest(plivo)
    await client.hangup("gone")
    await client.stop_speaking("gone")
    with pytest.raises(PlivoRestError, match="over") as caught:
        await client.transfer("gone", XML)
    assert (caught.value.failure, caught.value.status) == (PlivoFailure.GONE, 404)


@virtual_time
async def test_a_wrong_token_is_named_and_not_shown(plivo: PlivoStandIn) -> None:
    with pytest.raises(PlivoRestError, match="auth_token") as caught:
        await rest(plivo, token="wrong-token-of-mallory").hangup(CALL)
    assert caught.value.failure is PlivoFailure.LOGIN
    assert "mallory" not in str(caught.value)
    assert "mallory" not in repr(PlivoAccount(AUTH_ID, "wrong-token-of-mallory"))


@pytest.mark.parametrize(("action", "ask"), REQUESTS[2:])
@virtual_time
async def test_a_busy_plivo_is_asked_again_when_it_says(
    plivo: PlivoStandIn, action: str, ask: Callable[[PlivoRest, str], Awaitable[None]]
) -> None:
    plivo.next_answers.extend([Answered(429, {"Retry-After": "2"}), Answered(429)])
    await ask(rest(plivo), CALL)
    first, second, third = plivo.of(action)
    assert second.at - first.at == pytest.approx(2.0)
    assert third.at - second.at == pytest.approx(1.0)


@virtual_time
async def test_nobody_waits_long_for_a_busy_plivo(plivo: PlivoStandIn) -> None:
    plivo.next_answers.append(Answered(429, {"Retry-After": str(MAX_RETRY_AFTER_S + 1)}))
    with pytest.raises(PlivoRestError) as caught:
        await rest(plivo).hangup(CALL)
    assert caught.value.failure is PlivoFailure.BUSY
    assert len(plivo.asked) == 1


@virtual_time
async def test_a_hangup_is_asked_for_again_and_a_transfer_is_not(plivo: PlivoStandIn) -> None:
    """Twice hung up is hung up; a call that is transferred twice hears its XML begin twice."""
    client = rest(plivo)
    plivo.next_answers.append(Answered(503))
    await client.hangup(CALL)
    assert [asked.action for asked in plivo.asked] == ["hangup", "hangup"]
    plivo.next_answers.append(Answered(503))
    with pytest.raises(PlivoRestError, match="503"):
        await client.transfer("somebody-elses-call", XML)
    plivo.next_answers.append(Answered(500))
    with pytest.raises(PlivoRestError, match="500"):
        await client.speak("somebody-elses-call", "Hello.", language="en-US")
    assert [len(plivo.of(action)) for action in ("transfer", "speak")] == [1, 1]


@virtual_time
async def test_a_plivo_that_does_not_answer_is_given_up(plivo: PlivoStandIn) -> None:
    plivo.next_answers.extend([Answered(204, after_s=60)] * 3)
    began = asyncio.get_running_loop().time()
    with pytest.raises(PlivoRestError, match="within 2 s") as caught:
        await rest(plivo, timeout_s=2.0).hangup(CALL)
    assert caught.value.failure is PlivoFailure.TIMEOUT
    assert asyncio.get_running_loop().time() - began == pytest.approx(7.0)  # three times, half a second between


@virtual_time
async def test_a_client_that_fails_is_a_connection_that_failed() -> None:
    async def request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> PlivoAnswer:
        raise RuntimeError(f"secret {headers['Authorization']}")

    with pytest.raises(PlivoRestError, match=r"cannot reach api\.plivo\.com \(RuntimeError\)$"):
        await PlivoRest(PlivoAccount(AUTH_ID, AUTH_TOKEN), request=request).transfer(CALL, XML)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0", 0.0), ("-1", None), ("nan", None), ("inf", None), (None, None), ("Mon", None)],
)
def test_when_to_ask_again_is_seconds_or_nothing(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds


@pytest.mark.parametrize("field", ["auth_id", "auth_token", "base_url"])
def test_an_account_without_a_login_is_none(field: str) -> None:
    fields = {"auth_id": AUTH_ID, "auth_token": AUTH_TOKEN, "base_url": "https://api.plivo.com/v1", field: " "}
    with pytest.raises(ValueError, match=field):
        PlivoAccount(**fields)
