"""/metrics: who may read it, and that it tells what judging does without naming anybody."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from django.test import Client
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from supervision.engine.llm.breaker import BreakerState
from supervision.engine.llm.fallback import FallbackCounts
from supervision.engine.llm.limiter import Risk
from supervision.engine.llm.openai import EndpointFigures, OpenAIPool
from supervision.engine.llm.pool import ScoringPool
from supervision.metrics import endpoint_metrics, fallback_metrics, pool_metrics
from tests.support.virtual_time import virtual_time

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def token(settings: Any) -> str:
    made = "a-token-of-the-operators"
    settings.MIRROR = replace(settings.MIRROR, metrics_token=made)
    return made


def samples(text: str) -> Samples:
    """By name and labels, read as Prometheus reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_this_machine_may_read_the_figures() -> None:
    answer = Client().get("/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.content.decode())
    assert found["mirror_judge_places", ()] == 1000
    assert ("process_resident_memory_bytes", ()) in found


@pytest.mark.parametrize(
    "request_of",
    [
        {"REMOTE_ADDR": "203.0.113.7"},
        {"REMOTE_ADDR": ""},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        {"HTTP_VIA": "1.1 proxy"},
    ],
)
def test_nobody_else_may(request_of: dict[str, str]) -> None:
    answer = Client(**request_of).get("/metrics")
    assert answer.status_code == 404
    assert b"mirror_" not in answer.content


def test_with_a_token_it_is_the_token_that_counts(token: str) -> None:
    def status(**extra: str) -> int:
        return Client(**extra).get("/metrics").status_code

    assert status() == 404
    assert status(HTTP_AUTHORIZATION="Bearer wrong") == 404
    assert status(HTTP_AUTHORIZATION=token) == 404
    assert status(HTTP_AUTHORIZATION="Bearer \u00e9") == 404
    assert status(HTTP_AUTHORIZATION=f"Bearer {token}", REMOTE_ADDR="203.0.113.7") == 200


@virtual_time
async def test_the_pool_is_told_by_class_and_risk_and_names_no_tenant() -> None:
    pool = ScoringPool(limit=8)
    share = pool.share("acme-gmbh")
    assert [await share.acquire(within_s=0.2, risk=Risk.TURN) for _ in range(9)] == [True] * 7 + [False] * 2
    assert [await share.acquire(within_s=0.2, risk=Risk.IRREVERSIBLE) for _ in range(2)] == [True, False]
    waiting = asyncio.create_task(share.acquire(within_s=9.0, risk=Risk.TOOL))
    await asyncio.sleep(0.1)
    share.release()
    assert await waiting
    text = _rendered(pool)
    assert "acme" not in text
    found = samples(text)
    assert found["mirror_judge_in_flight", ()] == 8

    def questions(whose: str, risk: str, outcome: str) -> float:
        labels = (("outcome", outcome), ("risk", risk), ("tenant_class", whose))
        return found["mirror_judge_questions_total", labels]

    assert questions("within_share", "turn", "placed") == 7
    assert questions("over_share", "turn", "shed_no_place") == 2
    assert questions("over_share", "irreversible", "placed") == 1
    assert questions("over_share", "irreversible", "timed_out") == 1
    assert questions("over_share", "tool", "placed") == 1
    over = (("tenant_class", "over_share"),)
    assert found["mirror_judge_wait_seconds_count", over] == 2
    assert found["mirror_judge_wait_seconds_sum", over] == pytest.approx(0.1)
    assert found["mirror_judge_wait_seconds_bucket", (("le", "0.05"), *over)] == 1
    assert found["mirror_judge_wait_seconds_bucket", (("le", "0.25"), *over)] == 2


def _rendered(pool: ScoringPool) -> str:
    class Only(Collector):
        def collect(self) -> Any:
            yield from pool_metrics(pool.figures())
            yield from endpoint_metrics([OpenAIPool().figures(), ENDPOINTS])
            yield from fallback_metrics(FallbackCounts(answered=5, failed=3))

    registry = CollectorRegistry()
    registry.register(Only())
    return generate_latest(registry).decode()


ENDPOINTS = EndpointFigures(
    endpoints=3,
    breakers={BreakerState.CLOSED: 2, BreakerState.OPEN: 1, BreakerState.HALF_OPEN: 0},
    opened=4,
    refused=9,
    probes_answered=2,
    probes_failed=1,
    outcomes={"answered": 70, "not_asked": 9},
)


def test_endpoints_are_told_by_state_and_outcome() -> None:
    found = samples(_rendered(ScoringPool(limit=None)))
    assert found["mirror_llm_endpoints", ()] == 3
    assert found["mirror_llm_breakers", (("state", "open"),)] == 1
    assert found["mirror_llm_breakers", (("state", "half_open"),)] == 0
    assert found["mirror_llm_breaker_opened_total", ()] == 4
    assert found["mirror_llm_probes_total", (("outcome", "failed"),)] == 1
    assert found["mirror_llm_questions_total", (("outcome", "not_asked"),)] == 9
    assert found["mirror_llm_fallback_questions_total", (("outcome", "answered"),)] == 5
    assert found["mirror_llm_fallback_questions_total", (("outcome", "failed"),)] == 3
    assert found["mirror_judge_places", ()] == float("inf")
