"""How often Mirror was right: what labels count as, on which day, and how sure that is."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import UUID

import pytest

from mirror_saas.errors import InvalidInput
from mirror_saas.ids import uuid7
from supervision.models import Call, Intervention, ToolDecision, Turn
from supervision.selectors.label_statistics import LabelCounts, LabelStatistics, label_statistics, proportion
from supervision.services.labels import intervention_label, tool_decision_label, turn_label
from tests.factories import CALL_START, Tenancy, call_create
from tests.support.reviews import turn_create

DAY = CALL_START.date()


def counted(tenancy: Tenancy, first: date = DAY, last: date = DAY, agent_id: UUID | None = None) -> LabelStatistics:
    with tenancy.context():
        return label_statistics(first=first, last=last, agent_id=agent_id)


@pytest.mark.parametrize(
    ("part", "of", "low", "high"),
    # By hand from Wilson's formula.
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (30, 1000, 0.0211, 0.0425),
    ],
    ids=["none-of-ten", "one-of-ten", "half-of-ten", "all-of-ten", "three-percent-of-1000"],
)
def test_an_interval_says_how_little_few_labels_say(part: int, of: int, low: float, high: float) -> None:
    found = proportion(part, of)
    assert found is not None
    assert (found.share, found.of) == (part / of, of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.low <= found.share <= found.high


def test_of_nothing_there_is_no_share() -> None:
    assert proportion(0, 0) is None
    assert LabelCounts(unsure=5).false_alarms is None
    assert LabelCounts(false_alarm=2).misses is None


@pytest.mark.django_db
def test_labels_count_for_what_they_are_about(tenant: Tenancy, stranger: Tenancy) -> None:
    call = call_create(tenant)
    violation = turn_create(tenant, call, score=0.9, withheld="shadow")
    passed = turn_create(tenant, call, score=0.1)
    sampled = turn_create(tenant, call, score=0.6, sampled=True)
    for tenancy in (tenant, stranger):
        with tenancy.context():
            intervention, tool = Intervention.objects.get(), ToolDecision.objects.get()
            intervention_label(intervention_id=intervention.id, value="false_alarm")
            tool_decision_label(decision_id=tool.id, value="confirmed")
    with tenant.context():
        turn_label(turn_id=violation.id, value="confirmed")
        turn_label(turn_id=passed.id, value="missed")
        turn_label(turn_id=sampled.id, value="confirmed")
    found = counted(tenant)
    assert [day.day for day in found.days] == [DAY]
    assert found.interventions == LabelCounts(false_alarm=1)
    assert found.tools == LabelCounts(confirmed=1)
    assert found.violations == LabelCounts(confirmed=1)
    assert found.passed == LabelCounts(missed=1, confirmed=1)
    assert found.sampled == LabelCounts(confirmed=1)
    assert found.alarms == LabelCounts(confirmed=2, false_alarm=1)
    rate = found.alarms.false_alarms
    assert rate is not None
    assert (rate.share, rate.of) == (1 / 3, 3)


@pytest.mark.django_db
def test_a_turn_and_its_intervention_count_once(tenant: Tenancy) -> None:
    call_create(tenant)
    with tenant.context():
        turn_label(turn_id=Turn.objects.get().id, value="confirmed")
    # Without a word on the intervention, the turn's is about it.
    assert counted(tenant).interventions == LabelCounts(confirmed=1)
    with tenant.context():
        intervention_label(intervention_id=Intervention.objects.get().id, value="false_alarm")
    assert counted(tenant).alarms == LabelCounts(false_alarm=1)


@pytest.mark.django_db
def test_days_agents_and_test_calls(tenant: Tenancy) -> None:
    for days in (0, 1, 3):
        call = call_create(tenant, started_at=CALL_START + timedelta(days=days))
        with tenant.context():
            intervention_label(intervention_id=Intervention.objects.get(call=call).id, value="confirmed")
    assert [day.day for day in counted(tenant, last=DAY + timedelta(days=3)).days] == [
        DAY,
        DAY + timedelta(days=1),
        DAY + timedelta(days=3),
    ]
    assert counted(tenant, DAY + timedelta(days=1), DAY + timedelta(days=2)).alarms.total == 1
    assert counted(tenant, agent_id=tenant.agent.id).alarms.total == 1
    assert counted(tenant, agent_id=uuid7()).days == ()
    with tenant.context():
        Call.objects.update(test=True)
    assert counted(tenant).days == ()


@pytest.mark.django_db
@pytest.mark.parametrize(("days", "field"), [(-1, "to"), (366, "from")], ids=["empty", "too-long"])
def test_a_range_that_cannot_be_answered_says_so(tenant: Tenancy, days: int, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        counted(tenant, DAY, DAY + timedelta(days=days))
    assert refused.value.field == field
