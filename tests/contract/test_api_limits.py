"""Requests per minute, as programs and people see it: headers, 429, and whose requests count against whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.conf import settings
from django.test import Client

from mirror_saas.limits import Limits
from tenants import limits_redis
from tenants.limits import LIMITS
from tenants.limits_redis import WrongKeys, rates, wrong_keys
from tenants.limits_refused import REFUSALS
from tenants.models import ApiKey
from tenants.roles import ALL_SCOPES
from tenants.services.api_keys import api_key_create
from tests.contract.conftest import tenants_make
from tests.factories import PASSWORD, Tenancy, unique

pytestmark = pytest.mark.django_db

ME = "/api/v1/me"
# Not 127.0.0.1, from where the tests before these may just have sent wrong keys.
ELSEWHERE = "192.0.2.77"
LIMIT, REMAINING, RESET = "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"


@pytest.fixture(autouse=True)
def shared(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The run's Valkey, asked by this test's process as any node would, however slow the machine is."""
    monkeypatch.setattr(limits_redis, "TIMEOUT_S", 10.0)
    monkeypatch.setattr(limits_redis, "_rates", None)
    monkeypatch.setattr(WrongKeys, "PER_MINUTE", 5)
    LIMITS.forget()
    client = redis.Redis.from_url(redis_url)
    yield client
    LIMITS.forget()
    client.close()


@pytest.fixture
def tenants_made(db: None) -> tuple[Tenancy, Tenancy]:
    """Of each test its own: their requests are counted in Valkey."""
    return tenants_make()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the installation's limits: `limits(requests_per_minute=3)`; what is not named is unlimited."""

    def set_(**named: int | None) -> None:
        from dataclasses import replace

        names = ("calls", "judge_calls", "requests_per_minute", "key_requests_per_minute", "storage_mib")
        made = Limits(**(dict.fromkeys(names) | named))
        monkeypatch.setattr(settings, "MIRROR", replace(settings.MIRROR, limits=made))
        LIMITS.forget()

    return set_


def ask(key: str, *, address: str = "192.0.2.1", path: str = ME) -> Any:
    return Client(raise_request_exception=False).get(
        path, headers={"Authorization": f"Bearer {key}"}, REMOTE_ADDR=address
    )


def another_key(tenancy: Tenancy, **columns: Any) -> str:
    with tenancy.context():
        made = api_key_create(name=unique("key"), scopes=ALL_SCOPES)
        if columns:
            ApiKey.objects.filter(id=made.api_key.id).update(**columns)
    return made.key


def some_address(n: int = 0) -> str:
    import secrets

    return f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::{n + 1:x}"


def test_answers_say_how_much_is_left(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=5)
    first, second = ask(tenant.api_key), ask(tenant.api_key)
    assert first.status_code == second.status_code == 200
    assert [first[LIMIT], first[REMAINING], second[REMAINING]] == ["5", "4", "3"]
    assert 1 <= int(first[RESET]) <= 60


def test_refusals_and_errors_say_it_too(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=5)
    missing = ask(tenant.api_key, path="/api/v1/calls/0192d3a0-0000-7000-8000-000000000000")
    assert (missing.status_code, missing[REMAINING]) == (404, "4")


def test_the_request_after_the_last_gets_429(tenant: Tenancy, limits: Any, shared: redis.Redis) -> None:
    limits(requests_per_minute=2)
    answers = [ask(tenant.api_key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    refused = answers[2]
    assert refused["Content-Type"] == "application/problem+json"
    problem = json.loads(refused.content)
    assert (problem["status"], problem["title"]) == (429, "Too Many Requests")
    assert "2 requests a minute from this tenant" in problem["detail"]
    assert refused["Retry-After"] == refused[RESET]
    assert refused[REMAINING] == "0"
    assert REFUSALS.pending(tenant.id)["requests"] == 2


def test_there_is_room_again_when_the_time_that_was_named_has_passed(
    tenant: Tenancy, limits: Any, shared: redis.Redis
) -> None:
    limits(requests_per_minute=3)
    answers = [ask(tenant.api_key) for _ in range(4)]
    wait_s = int(answers[-1]["Retry-After"])
    age(shared, tenant, wait_s - 20)
    assert ask(tenant.api_key).status_code == 429
    age(shared, tenant, 20)
    again = ask(tenant.api_key)
    assert again.status_code == 200
    # What was asked a minute ago slides out one by one, it does not come back all at once.
    assert [ask(tenant.api_key).status_code for _ in range(3)].count(200) < 3


def age(shared: redis.Redis, tenancy: Tenancy, seconds: float) -> None:
    """Let Valkey believe that this much time has passed for the tenant's windows."""
    for name in list(shared.scan_iter(f"*{tenancy.id}*", count=1000)):
        left = shared.pttl(name)
        if left > 0:
            shared.pexpire(name, max(1, left - int(seconds * 1000)))


def test_a_stranger_at_full_rate_uses_up_nothing_of_the_tenants(
    tenant: Tenancy, stranger: Tenancy, limits: Any
) -> None:
    limits(requests_per_minute=3)
    flood = [ask(stranger.api_key).status_code for _ in range(10)]
    assert flood == [200] * 3 + [429] * 7
    answer = ask(tenant.api_key)
    assert (answer.status_code, answer[REMAINING]) == (200, "2")
    assert REFUSALS.pending(tenant.id) == {}


def test_one_key_does_not_use_up_what_the_others_have(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=6, key_requests_per_minute=2)
    busy = [ask(tenant.api_key) for _ in range(9)]
    assert [answer.status_code for answer in busy] == [200] * 2 + [429] * 7
    assert "2 requests a minute from this key" in json.loads(busy[-1].content)["detail"]
    # Refused requests cost the tenant nothing: 4 are left for others.
    others = another_key(tenant), another_key(tenant), another_key(tenant)
    assert [ask(key).status_code for key in (*others, others[0])] == [200] * 4
    assert ask(others[1])[LIMIT] == "6"


def test_a_key_can_have_a_lower_limit_of_its_own_and_not_a_higher_one(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=50, key_requests_per_minute=3)
    low, high = another_key(tenant, requests_per_minute=1), another_key(tenant, requests_per_minute=1000)
    assert [ask(low).status_code for _ in range(2)] == [200, 429]
    assert [ask(high).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_key_gets_its_own_limit_when_it_is_made(tenant: Tenancy, limits: Any) -> None:
    limits(key_requests_per_minute=50)

    def make(value: Any) -> Any:
        return Client(REMOTE_ADDR=ELSEWHERE).post(
            "/api/v1/api-keys",
            {"name": unique("key"), "scopes": ["judge"], "requests_per_minute": value},
            content_type="application/json",
            headers={"Authorization": f"Bearer {tenant.api_key}"},
        )

    made = make(2)
    assert (made.status_code, made.json()["requests_per_minute"]) == (201, 2)
    assert [ask(made.json()["key"]).status_code for _ in range(3)] == [200, 200, 429]
    assert make(None).json()["requests_per_minute"] is None
    for wrong in (0, -1, 10**9, "many", 1.5, True):
        refused = make(wrong)
        assert (refused.status_code, list(refused.json()["errors"])) == (422, ["requests_per_minute"]), wrong


def test_a_person_has_a_limit_like_a_key(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=50, key_requests_per_minute=2)
    client = Client()
    assert client.login(username=tenant.users["alice"].email, password=PASSWORD)
    answers = [client.get(ME) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "from this person" in json.loads(answers[-1].content)["detail"]
    assert ask(tenant.api_key).status_code == 200


def test_without_a_limit_there_is_nothing_to_say(tenant: Tenancy, limits: Any) -> None:
    limits()
    answer = ask(tenant.api_key)
    assert answer.status_code == 200
    assert LIMIT not in answer


def test_none_allowed_is_none(tenant: Tenancy, limits: Any) -> None:
    limits(requests_per_minute=0)
    answer = ask(tenant.api_key)
    assert (answer.status_code, answer[LIMIT], answer[REMAINING]) == (429, "0", "0")
    assert int(answer["Retry-After"]) >= 1


def test_wrong_keys_are_held_up_and_right_ones_are_not(tenant: Tenancy, limits: Any) -> None:
    limits()
    address = some_address()
    assert ask(tenant.api_key, address=address).status_code == 200
    wrong = [ask(wrong_key(n), address=address) for n in range(WrongKeys.PER_MINUTE + 5)]
    statuses = [answer.status_code for answer in wrong]
    assert statuses == [401] * WrongKeys.PER_MINUTE + [429] * 5
    assert int(wrong[-1]["Retry-After"]) >= 1
    assert wrong[-1][LIMIT] == str(WrongKeys.PER_MINUTE)
    assert ask(tenant.api_key, address=address).status_code == 200
    assert ask(wrong_key(99), address=some_address()).status_code == 401


def test_a_held_up_address_costs_no_look_up(tenant: Tenancy, limits: Any, django_assert_num_queries: Any) -> None:
    limits()
    address = some_address()
    for n in range(WrongKeys.PER_MINUTE):
        ask(wrong_key(n), address=address)
    with django_assert_num_queries(0):
        assert ask(wrong_key(99), address=address).status_code == 429


def test_a_key_that_another_node_knows_passes_a_held_up_address(
    tenant: Tenancy, limits: Any, shared: redis.Redis
) -> None:
    limits()
    address = some_address()
    assert ask(tenant.api_key).status_code == 200
    for n in range(WrongKeys.PER_MINUTE + 1):
        ask(wrong_key(n), address=address)
    wrong_keys()._known.clear()  # as in a process that has just started
    assert ask(tenant.api_key, address=address).status_code == 200


def test_an_address_has_the_whole_network_that_it_was_given(tenant: Tenancy, limits: Any) -> None:
    limits()
    network = some_address().rpartition("::")[0]
    statuses = [ask(wrong_key(n), address=f"{network}::{n + 1:x}").status_code for n in range(WrongKeys.PER_MINUTE + 1)]
    assert statuses[-1] == 429


def test_a_revoked_key_is_a_wrong_one(tenant: Tenancy, limits: Any) -> None:
    from django.utils import timezone

    limits()
    address = some_address()
    assert ask(tenant.api_key, address=address).status_code == 200
    with tenant.context():
        ApiKey.objects.update(revoked_at=timezone.now())
    statuses = [ask(tenant.api_key, address=address).status_code for _ in range(WrongKeys.PER_MINUTE + 1)]
    assert statuses == [401] * WrongKeys.PER_MINUTE + [429]


@pytest.mark.parametrize("key", ["", "mk_", "x" * 5000, "mk_é_☎", "\ud800"])
def test_what_is_no_key_at_all_is_401(tenant: Tenancy, key: str) -> None:
    try:
        answer = ask(key, address=some_address())
    except UnicodeEncodeError:
        pytest.skip("no client can send it")
    assert answer.status_code == 401


def wrong_key(n: int) -> str:
    return f"mk_{'a' * 12}_{n:043d}"


def test_limits_hold_in_this_process_while_valkey_is_down(
    tenant: Tenancy, stranger: Tenancy, limits: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:1/0")
    limits(requests_per_minute=3)
    statuses = [ask(tenant.api_key).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert ask(stranger.api_key).status_code == 200
    assert [record.message for record in caplog.records if "Valkey" in record.message] == [
        "Valkey does not answer (ConnectionError): limits count in this process only until it does"
    ]


def test_valkey_is_asked_again_after_a_while(
    tenant: Tenancy, redis_url: str, limits: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    made = limits_redis.RequestRates(redis_url, clock=lambda: now[0])
    window = limits_redis.tenant_window(tenant.id, 100)
    answering = made._shared.windows_take
    monkeypatch.setattr(made._shared, "windows_take", lambda _: (_ for _ in ()).throw(redis.TimeoutError()))
    assert made.take([window]).remaining == 99
    monkeypatch.setattr(made._shared, "windows_take", answering)
    now[0] += 4.9
    assert made.take([window]).remaining == 98  # still by itself
    now[0] += 0.2
    assert made.take([window]).remaining == 99  # the shared count, which had none of these
    assert made.count(window) == 1
    assert caplog.messages[-1] == "Valkey answers again: limits count over all nodes"
    made.close()


def test_two_nodes_share_the_count(tenant: Tenancy, redis_url: str) -> None:
    from tenants.limits_redis import RequestRates, tenant_window

    nodes = [RequestRates(redis_url), RequestRates(redis_url)]
    window = tenant_window(tenant.id, 4)
    allowed = [nodes[n % 2].take([window]).allowed for n in range(6)]
    assert allowed == [True] * 4 + [False] * 2
    for node in nodes:
        node.close()


def test_a_request_is_one_round_trip(tenant: Tenancy, limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limits(requests_per_minute=100, key_requests_per_minute=50)
    ask(tenant.api_key)
    sent: list[Any] = []
    execute = redis.Redis.execute_command

    def counted(self: redis.Redis, *args: Any, **options: Any) -> Any:
        sent.append(args[0])
        return execute(self, *args, **options)

    monkeypatch.setattr(redis.Redis, "execute_command", counted)
    assert ask(tenant.api_key).status_code == 200
    assert sent == ["EVALSHA"]


def test_the_document_says_so_of_every_operation() -> None:
    from mirror_saas.api import api
    from mirror_saas.openapi import resolved

    schema = json.loads(json.dumps(api.get_openapi_schema()))
    operations = [op for path in schema["paths"].values() for op in path.values()]
    assert operations
    for operation in operations:
        limited = resolved(schema, operation["responses"]["429"])
        assert "Retry-After" in limited["headers"]
        assert limited["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
        good = [response for status, response in operation["responses"].items() if int(status) < 400]
        assert all(LIMIT in response["headers"] for response in good)


def test_windows_are_those_of_the_limits_library(tenant: Tenancy, limits: Any) -> None:
    from limits.strategies import SlidingWindowCounterRateLimiter

    from tenants.limits_redis import tenant_window

    shared = rates()._shared
    for _ in range(3):
        rates().take([tenant_window(tenant.id, 10)])
    window = tenant_window(tenant.id, 10)
    before, _, now, left = shared.get_sliding_window(window.key, 60)
    assert (before, now) == (0, 3)
    assert 60 < left <= 120
    assert SlidingWindowCounterRateLimiter(shared)._weighted_count(window.item, before, 0, now) == 3


def test_a_tenant_sees_its_limits_and_its_use(tenant: Tenancy, stranger: Tenancy, limits: Any) -> None:
    from tenants.services.limits import storage_use_set

    limits(calls=7, requests_per_minute=50, storage_mib=2)
    with tenant.context():
        storage_use_set(storage_bytes=1234)
    ask(stranger.api_key)
    ask(tenant.api_key)
    body = ask(tenant.api_key, path="/api/v1/tenant").json()
    assert body["limits"] == {
        "calls": 7,
        "judge_calls": None,
        "requests_per_minute": 50,
        "key_requests_per_minute": None,
        "storage_mib": 2,
    }
    assert body["use"] == {
        "calls": 0,
        "requests_per_minute": 2,
        "storage_bytes": 1234,
        "refused_today": {},
        "refused_30_days": {},
    }


@pytest.mark.parametrize("field", ["limits", "calls", "storage_mib", "use"])
def test_a_tenant_cannot_raise_its_limits(tenant: Tenancy, limits: Any, field: str) -> None:
    limits(calls=7)
    answer = Client(REMOTE_ADDR=ELSEWHERE).patch(
        "/api/v1/tenant",
        {field: {"calls": 1000} if field in ("limits", "use") else 1000},
        content_type="application/json",
        headers={"Authorization": f"Bearer {tenant.api_key}"},
    )
    assert answer.status_code == 422
    assert ask(tenant.api_key, path="/api/v1/tenant").json()["limits"]["calls"] == 7


def test_use_that_lives_in_valkey_is_unknown_while_that_is_down(
    tenant: Tenancy, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(requests_per_minute=50)
    monkeypatch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:1/0")
    body = ask(tenant.api_key, path="/api/v1/tenant").json()
    assert (body["use"]["calls"], body["use"]["requests_per_minute"]) == (None, None)
