"""What `/metrics` tells of judging and recording: places, waits, what was shed, how the models' endpoints do, and what
became of what happened in calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from supervision.engine.llm.breaker import BreakerState
from supervision.engine.llm.fallback import COUNTS, FallbackCounts
from supervision.engine.llm.openai import EndpointFigures
from supervision.engine.llm.pool import WAIT_BOUNDS_S, PoolFigures
from supervision.recorder.recorder import RecorderCounts


class JudgingCollector(Collector):
    """Reads the process's pool of questions, and its connections to models."""

    def collect(self) -> Iterable[Metric]:
        """The figures as of now."""
        from supervision.stream.supervisors import llm_pools, scoring_pool

        yield from pool_metrics(scoring_pool().figures())
        yield from endpoint_metrics([pool.figures() for pool in llm_pools()])
        yield from fallback_metrics(COUNTS)


class RecordingCollector(Collector):
    """Reads the process's recorder, and its door."""

    def collect(self) -> Iterable[Metric]:
        """The figures as of now; nothing of a recorder in a process that carries no calls."""
        from mirror_saas.throttle import throttle
        from supervision.stream.runtime import recorder_counts

        counts = recorder_counts()
        if counts is not None:
            yield from recorder_metrics(counts)
        yield CounterMetricFamily(
            "mirror_connections_turned_away",
            "Connections that were closed unread, because their addresses' handshakes keep being refused.",
            value=throttle.turned_away,
        )


def recorder_metrics(counts: RecorderCounts) -> Iterator[Metric]:
    """What became of the events of calls."""
    events = CounterMetricFamily(
        "mirror_recorder_events",
        "Events of calls: recorded, written to the journal, stored in PostgreSQL; detail that was left out of a full"
        " journal, events that were lost, and those that PostgreSQL refuses.",
        labels=("fate",),
    )
    writer, drain = counts.writer, counts.drain
    for fate, number in (
        ("recorded", writer.recorded),
        ("written", writer.written),
        ("stored", drain.stored),
        ("detail_dropped", writer.detail_dropped),
        ("lost", writer.lost),
        ("refused", drain.refused),
    ):
        events.add_metric((fate,), number)
    yield events
    yield CounterMetricFamily("mirror_recorder_outages", "Times that PostgreSQL could not be had.", value=drain.outages)
    yield CounterMetricFamily(
        "mirror_journal_failures", "Times that the journal could not be written.", value=writer.failures
    )


def pool_metrics(figures: PoolFigures) -> Iterator[Metric]:
    """The pool of questions to judges."""
    for name, text, value in (
        ("mirror_judge_in_flight", "Questions that are with models.", figures.in_flight),
        ("mirror_judge_waiting", "Questions that wait for a place.", figures.waiting),
        ("mirror_judge_tenants", "Tenants with a question that is under way or waits.", figures.tenants),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    places = float("inf") if figures.limit is None else figures.limit
    yield GaugeMetricFamily("mirror_judge_places", "Questions that may be with models at a time.", value=places)

    questions = CounterMetricFamily(
        "mirror_judge_questions",
        "Questions by how they fared: placed, shed (no place in time, or overtaken by riskier ones), or out of time.",
        labels=("tenant_class", "risk", "outcome"),
    )
    for (whose, risk), count in sorted(figures.placed.items()):
        questions.add_metric((whose, risk.name.lower(), "placed"), count)
    for (whose, risk, cause), count in sorted(figures.shed.items()):
        questions.add_metric((whose, risk.name.lower(), f"shed_{cause}"), count)
    for whose, count in sorted(figures.timed_out.items()):
        questions.add_metric((whose, "irreversible", "timed_out"), count)
    yield questions

    waits = HistogramMetricFamily(
        "mirror_judge_wait_seconds", "How long questions that got a place waited for it.", labels=("tenant_class",)
    )
    for whose, counts in sorted(figures.waits.items()):
        bounds = [*map(str, WAIT_BOUNDS_S), "+Inf"]
        waits.add_metric((whose,), list(zip(bounds, accumulate(counts), strict=True)), figures.waited_s[whose])
    yield waits


def endpoint_metrics(pools: list[EndpointFigures]) -> Iterator[Metric]:
    """The endpoints of models, and the circuit breakers before them."""
    endpoints = sum(pool.endpoints for pool in pools)
    yield GaugeMetricFamily("mirror_llm_endpoints", "Addresses and keys with open connections.", value=endpoints)
    breakers = GaugeMetricFamily("mirror_llm_breakers", "Circuit breakers by state.", labels=("state",))
    for state in BreakerState:
        breakers.add_metric((state.value,), sum(pool.breakers[state] for pool in pools))
    yield breakers
    opened = sum(pool.opened for pool in pools)
    yield CounterMetricFamily("mirror_llm_breaker_opened", "How often a circuit breaker opened.", value=opened)
    probes = CounterMetricFamily("mirror_llm_probes", "Probes of half-open breakers.", labels=("outcome",))
    probes.add_metric(("answered",), sum(pool.probes_answered for pool in pools))
    probes.add_metric(("failed",), sum(pool.probes_failed for pool in pools))
    yield probes
    questions = CounterMetricFamily(
        "mirror_llm_questions", "Questions to endpoints by how they ended.", labels=("outcome",)
    )
    for outcome in sorted({outcome for pool in pools for outcome in pool.outcomes}):
        questions.add_metric((outcome,), sum(pool.outcomes.get(outcome, 0) for pool in pools))
    yield questions


def fallback_metrics(counts: FallbackCounts) -> Iterator[Metric]:
    """Second providers."""
    asked = CounterMetricFamily(
        "mirror_llm_fallback_questions",
        "Questions to second providers, because the first did not answer, by how they ended.",
        labels=("outcome",),
    )
    asked.add_metric(("answered",), counts.answered)
    asked.add_metric(("failed",), counts.failed)
    yield asked
