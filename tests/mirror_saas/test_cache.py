"""The shared cache: one for all nodes, and a way out when its server is away."""

from __future__ import annotations

import logging

import pytest
import redis
from django.core.cache.backends.redis import RedisCache

from mirror_saas.cache import RETRY_AFTER_S, SharedCache
from tests.factories import unique


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def cache_of(url: str, clock: Clock | None = None) -> SharedCache:
    options = {"clock": clock} if clock is not None else {}
    return SharedCache(url, {"KEY_PREFIX": "mirror:cache", "OPTIONS": options})


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that refuses connections, of which this process knows nothing yet."""
    return f"redis://127.0.0.1:1/0?client_name={unique('down')}"


def test_two_nodes_see_the_same_counter(redis_url: str) -> None:
    one, other, key = cache_of(redis_url), cache_of(redis_url), unique("counter")
    one.set(key, 1, 30)
    assert other.incr(key) == 2
    assert one.get(key) == 2
    assert other.add(key, 9, 30) is False
    other.delete(key)
    assert one.get(key, "gone") == "gone"


def test_values_are_json_under_a_name_of_ours(redis_url: str) -> None:
    cache, key = cache_of(redis_url), unique("value")
    cache.set(key, [1.5, "é", True, None, {"a": 1}], 30)
    assert cache.get(key) == [1.5, "é", True, None, {"a": 1}]
    with redis.Redis.from_url(redis_url) as server:
        [name] = server.keys(f"*{key}*")
        assert name.startswith(b"mirror:cache:")
        stored = server.get(name)
    assert stored == b'[1.5,"\\u00e9",true,null,{"a":1}]'


def test_what_somebody_else_wrote_is_data_and_never_code(redis_url: str) -> None:
    cache, key = cache_of(redis_url), unique("pickle")
    with redis.Redis.from_url(redis_url) as server:
        server.set(f"mirror:cache:1:{key}", b"cos\nsystem\n(S'false'\ntR.", ex=30)
    with pytest.raises(ValueError, match="Expecting value"):
        cache.get(key)


def test_without_the_server_a_process_counts_by_itself_and_says_so_once(
    nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache, key = cache_of(nowhere, Clock()), unique("counter")
    with caplog.at_level(logging.INFO, "mirror_saas.cache"):
        assert cache.add(key, 1) is True
        assert cache.add(key, 1) is False
        assert cache.incr(key) == 2
        # Another thread of the process has a cache object of its own and the same memory.
        assert cache_of(nowhere, Clock()).get(key) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ConnectionError" in caplog.text
    assert "127.0.0.1" not in caplog.text


def test_a_server_that_is_away_is_left_alone_for_a_while_and_noticed_when_it_is_back(
    nowhere: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock, key = Clock(), unique("value")
    cache = cache_of(nowhere, clock)
    with caplog.at_level(logging.INFO, "mirror_saas.cache"):
        cache.set(key, "local")
        cache.shared = RedisCache(redis_url, {"KEY_PREFIX": "mirror:cache"})
        assert cache.get(key) == "local"
        clock.now += RETRY_AFTER_S
        assert cache.get(key) is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_wrong_value_is_still_an_error_and_no_outage(redis_url: str) -> None:
    cache, key = cache_of(redis_url), unique("word")
    with pytest.raises(TypeError):
        cache.set(key, object())
    with pytest.raises(ValueError, match="not found"):
        cache.incr(unique("missing"))


def test_nobody_empties_the_server_that_queues_share(redis_url: str) -> None:
    with pytest.raises(NotImplementedError):
        cache_of(redis_url).clear()
