"""The review queue: what is in it and in which order, that an item is one reviewer's at a time, and labels."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from mirror_saas.ids import uuid7
from supervision.models import Call, Intervention, Label, ReviewReservation, ToolDecision, Turn, Verdict
from supervision.selectors import reviews
from supervision.selectors.reviews import (
    Kind,
    Place,
    ReviewFilters,
    ReviewItemNotFound,
    review_item,
    review_left,
    review_queue,
    review_queue_before,
    review_reserved,
)
from supervision.services.erasure import call_erase
from supervision.services.labels import (
    LabelNotFound,
    ToolDecisionNotFound,
    intervention_label,
    label_remove,
    tool_decision_label,
    turn_label,
)
from supervision.services.reviews import (
    RESERVED_FOR,
    ItemLabelled,
    ItemReserved,
    LabelChanged,
    review_label,
    review_next,
    review_reserve,
    review_undo,
)
from tenants.models import AuditEvent, User
from tests.factories import Tenancy, call_create, tenancy_create
from tests.support.reviews import acting, turn_create

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 5, 9, 0, tzinfo=UTC)
EVERYTHING = ReviewFilters()


@pytest.fixture
def call(tenant: Tenancy) -> Call:
    """A call with an item of every kind; its first turn was corrected, and a tool was blocked."""
    made = call_create(tenant)
    turn_create(tenant, made, score=0.9, withheld="shadow", text="violation")
    turn_create(tenant, made, score=0.55, text="near")
    turn_create(tenant, made, score=0.1, sampled=True, text="sampled")
    turn_create(tenant, made, score=0.1, text="passed")
    return made


def queue(tenancy: Tenancy, filters: ReviewFilters = EVERYTHING, **of: object) -> list[reviews.QueueItem]:
    wanted = {"now": NOW, "reviewer_id": None, "limit": 100, **of}
    with tenancy.context():
        return review_queue(filters=filters, **wanted)  # type: ignore[arg-type]


def turn_of(tenancy: Tenancy, text: str) -> Turn:
    with tenancy.context():
        return Turn.objects.get(text=text)


def place_of(tenancy: Tenancy, text: str) -> Place:
    turn = turn_of(tenancy, text)
    with tenancy.context():
        return review_item(item_id=turn.id).place


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_what_mirror_called_wrong_comes_first_then_what_came_close_then_a_sample(
    tenant: Tenancy, stranger: Tenancy, call: Call
) -> None:
    found = queue(tenant)
    assert [item.place.kind for item in found] == list(Kind)
    with tenant.context():
        intervention, tool = Intervention.objects.get(), ToolDecision.objects.get()
    ids = [turn_of(tenant, text).id for text in ("violation", "near", "sampled")]
    assert [item.item_id for item in found] == [intervention.id, tool.id, *ids]
    assert [item.text for item in found] == ["Never confirm a refund.", "process_payment", "", "near", "sampled"]
    assert [item.score for item in found] == [0.93, 0.9, 0.9, 0.55, 0.1]
    assert {item.call_id for item in found} == {call.id}


def test_the_newest_of_a_kind_comes_first_and_no_turn_comes_twice(tenant: Tenancy, call: Call) -> None:
    # Close, and sampled as well.
    newer = turn_create(tenant, call, score=0.69, sampled=True, text="newer")
    found = queue(tenant, ReviewFilters(kind=Kind.NEAR))
    assert [item.item_id for item in found] == [newer.id, turn_of(tenant, "near").id]
    everything = [item.item_id for item in queue(tenant)]
    assert len(everything) == len(set(everything))


def test_late_answers_and_turns_that_nobody_judged(tenant: Tenancy, call: Call) -> None:
    late = turn_create(tenant, call, score=None, sampled=True, text="not judged")
    assert late.id in [item.item_id for item in queue(tenant, ReviewFilters(kind=Kind.SAMPLED))]
    with tenant.context():
        answer = {"state": "judged", "score": 0.95, "threshold": 0.7, "late": True, "at_ms": 9}
        Verdict.objects.create(call=call, turn=late, **answer)
        # It was a violation after all; nobody acted on it.
        assert review_item(item_id=late.id).place.kind is Kind.VIOLATION
    assert late.id in [item.item_id for item in queue(tenant, ReviewFilters(kind=Kind.VIOLATION))]


def test_a_tool_that_was_blocked_for_no_rule_is_nothing_to_review(tenant: Tenancy, call: Call) -> None:
    with tenant.context():
        ToolDecision.objects.update(code="duplicate")
    assert Kind.TOOL not in {item.place.kind for item in queue(tenant)}


def test_an_intervention_that_is_going_on_is_not_reviewed_yet(tenant: Tenancy, call: Call) -> None:
    with tenant.context():
        Intervention.objects.update(outcome="")
    # Its call is over, so nothing more will come.
    assert Kind.INTERVENTION in {item.place.kind for item in queue(tenant)}
    with tenant.context():
        Call.objects.filter(id=call.id).update(state="live")
    assert Kind.INTERVENTION not in {item.place.kind for item in queue(tenant)}


def test_what_was_labelled_leaves_the_queue_and_is_found_by_its_label(tenant: Tenancy, call: Call) -> None:
    with tenant.context():
        intervention, tool = Intervention.objects.get(), ToolDecision.objects.get()
        # What is said of its turn is said of an intervention.
        assert intervention.turn_id is not None
        turn_label(turn_id=intervention.turn_id, value="confirmed")
        tool_decision_label(decision_id=tool.id, value="false_alarm")
        turn_label(turn_id=turn_of(tenant, "near").id, value="unsure")
    assert [item.place.kind for item in queue(tenant)] == [Kind.VIOLATION, Kind.SAMPLED]
    for label, kinds in (("confirmed", [Kind.INTERVENTION]), ("false_alarm", [Kind.TOOL]), ("unsure", [Kind.NEAR])):
        assert [item.place.kind for item in queue(tenant, ReviewFilters(label=label))] == kinds
    with tenant.context():
        left = review_left(filters=ReviewFilters(kind=Kind.NEAR, label="unsure"))
    assert left == {Kind.INTERVENTION: 0, Kind.TOOL: 0, Kind.VIOLATION: 1, Kind.NEAR: 0, Kind.SAMPLED: 1}


def test_filters_by_agent_time_and_test_calls(tenant: Tenancy, call: Call) -> None:
    assert queue(tenant, ReviewFilters(agent_id=uuid7())) == []
    assert len(queue(tenant, ReviewFilters(agent_id=tenant.agent.id))) == 5
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert queue(tenant, ReviewFilters(made_from=soon)) == []
    assert len(queue(tenant, ReviewFilters(made_to=soon))) == 5
    assert queue(tenant, ReviewFilters(test=True)) == []
    with tenant.context():
        Call.objects.filter(id=call.id).update(test=True)
    assert queue(tenant) == []
    assert len(queue(tenant, ReviewFilters(test=True))) == 5


def test_the_queue_is_read_on_and_back_from_any_place(tenant: Tenancy, call: Call) -> None:
    more = [turn_create(tenant, call, score=0.6, text=f"near {number}") for number in range(4)]
    everything = [item.item_id for item in queue(tenant)]
    assert len(everything) == 9
    for number, item in enumerate(queue(tenant)):
        assert [each.item_id for each in queue(tenant, after=item.place)] == everything[number + 1 :]
        with tenant.context():
            before = review_queue_before(filters=EVERYTHING, now=NOW, reviewer_id=None, before=item.place, limit=3)
            # In pages of two, whatever the kinds' borders are.
            again = reviews.review_candidates(filters=EVERYTHING, now=NOW, reviewer_id=None, after=item.place, batch=2)
            assert [each.item_id for each in again] == everything[number + 1 :]
        assert [each.item_id for each in before] == everything[max(0, number - 3) : number]
    only_near = ReviewFilters(kind=Kind.NEAR)
    assert [item.item_id for item in queue(tenant, only_near, after=place_of(tenant, "near 1"))] == [
        more[0].id,
        turn_of(tenant, "near").id,
    ]


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        (Kind.VIOLATION, "verdict_tenant_near"),
        (Kind.NEAR, "verdict_tenant_near"),
        (Kind.SAMPLED, "verdict_tenant_sampled"),
    ],
    ids=["violation", "near", "sampled"],
)
def test_postgresql_knows_the_queues_indexes_again(tenant: Tenancy, kind: Kind, index: str) -> None:
    """Without them every page would read all verdicts; they only serve a query in their own words."""
    with tenant.context(), connection.cursor() as cursor:
        # So few rows would be read whole.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        rows = reviews._rows(kind, EVERYTHING).order_by("-id")[:30]
        assert index in rows.explain()


def test_a_tool_that_named_no_turn_is_shown_among_the_turns_around_it(tenant: Tenancy, call: Call) -> None:
    with tenant.context():
        tool = ToolDecision.objects.get()
        ToolDecision.objects.update(turn=None, at_ms=6_100)
        item = review_item(item_id=tool.id, around=2)
    assert item.turn is None
    assert item.place == Place(Kind.TOOL, tool.id)
    assert [turn.text for turn in item.turns] == ["Yes, I have refunded it.", "violation", "near", "sampled"]


def test_somebody_elses_and_a_missing_item_are_the_same(tenant: Tenancy, stranger: Tenancy) -> None:
    with stranger.context():
        foreign = [Intervention.objects.get().id, ToolDecision.objects.get().id, Turn.objects.get().id]
    for item_id in (*foreign, uuid7()):
        with acting(tenant, tenant.users["alice"]):
            with pytest.raises(ReviewItemNotFound):
                review_item(item_id=item_id)
            with pytest.raises(ReviewItemNotFound):
                review_label(item_id=item_id, value="confirmed", seen=None, now=NOW)
    with stranger.context():
        assert Label.objects.count() == ReviewReservation.objects.count() == 0


# -- one reviewer at a time ------------------------------------------------------------------------------------------


def take(tenancy: Tenancy, name: str, item_id: UUID, call: Call, now: datetime = NOW) -> datetime:
    with acting(tenancy, tenancy.users[name]):
        return review_reserve(item_id=item_id, call_id=call.id, now=now)


def test_an_item_is_one_reviewers_until_its_time_is_over(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[0].item_id
    assert take(tenant, "alice", item, call) == NOW + RESERVED_FOR
    with pytest.raises(ItemReserved) as refused:
        take(tenant, "bob", item, call)
    assert refused.value.reviewer == tenant.users["alice"].email
    assert refused.value.until == NOW + RESERVED_FOR
    # Looking again makes it last.
    later = NOW + timedelta(minutes=9)
    take(tenant, "alice", item, call, later)
    with pytest.raises(ItemReserved):
        take(tenant, "bob", item, call, NOW + RESERVED_FOR)
    assert take(tenant, "bob", item, call, later + RESERVED_FOR) == later + 2 * RESERVED_FOR
    with pytest.raises(ItemReserved):
        take(tenant, "alice", item, call, later + RESERVED_FOR)


def test_whoever_goes_on_lets_go_of_what_they_had(tenant: Tenancy, call: Call) -> None:
    first, second = (item.item_id for item in queue(tenant)[:2])
    take(tenant, "alice", first, call)
    take(tenant, "alice", second, call)
    take(tenant, "bob", first, call)
    # What was left lying is cleared away by whoever comes by.
    take(tenant, "bob", second, call, NOW + RESERVED_FOR)
    with tenant.context():
        assert [row.item_id for row in ReviewReservation.objects.all()] == [second]


def test_others_items_are_left_out_of_ones_queue(tenant: Tenancy, call: Call) -> None:
    first = queue(tenant)[0]
    take(tenant, "bob", first.item_id, call)
    alice, bob = tenant.users["alice"].id, tenant.users["bob"].id
    assert first.item_id not in [item.item_id for item in queue(tenant, reviewer_id=alice)]
    assert first.item_id in [item.item_id for item in queue(tenant, reviewer_id=bob)]
    assert first.item_id in [item.item_id for item in queue(tenant, reviewer_id=alice, now=NOW + RESERVED_FOR)]
    with tenant.context():
        assert review_reserved(filters=EVERYTHING, now=NOW, reviewer_id=alice) == 1
        assert review_reserved(filters=EVERYTHING, now=NOW, reviewer_id=bob) == 0
        assert review_reserved(filters=EVERYTHING, now=NOW + RESERVED_FOR, reviewer_id=alice) == 0


def test_the_next_item_is_behind_the_one_before_and_then_from_the_start(tenant: Tenancy, call: Call) -> None:
    everything = queue(tenant)
    with acting(tenant, tenant.users["alice"]):
        assert review_next(filters=EVERYTHING, now=NOW) == everything[0].item_id
        assert review_next(filters=EVERYTHING, now=NOW, after=everything[2].place) == everything[3].item_id
        assert review_next(filters=EVERYTHING, now=NOW, after=everything[-1].place) == everything[0].item_id
        assert review_next(filters=ReviewFilters(label="missed"), now=NOW) is None
    with acting(tenant, tenant.users["bob"]):
        assert review_next(filters=EVERYTHING, now=NOW) == everything[1].item_id


@pytest.mark.django_db(transaction=True)
def test_many_reviewers_at_once_get_an_item_each() -> None:
    tenancy = tenancy_create(owner="alice")
    call = call_create(tenancy)
    for number in range(7):
        turn_create(tenancy, call, score=0.6, text=f"near {number}")
    items = queue(tenancy)
    people = [User(id=uuid7(), email=f"r{number}@example.com") for number in range(len(items) + 2)]
    given: list[UUID | None] = []
    ready = threading.Barrier(len(people))

    def work(person: User) -> None:
        try:
            ready.wait(20)
            with acting(tenancy, person):
                given.append(review_next(filters=EVERYTHING, now=NOW))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(item) for item in given if item) == sorted(str(item.item_id) for item in items)
    assert given.count(None) == 2


def test_erasing_a_call_takes_its_reservations_along(tenant: Tenancy, call: Call) -> None:
    take(tenant, "alice", queue(tenant)[0].item_id, call)
    with tenant.context():
        call_erase(call_id=call.id)
        # The foreign keys are checked at the end of the transaction; they delete at once.
        assert ReviewReservation.objects.count() == 0


# -- labels ------------------------------------------------------------------------------------------------------------


def label(tenancy: Tenancy, name: str, item_id: UUID, value: str, **fields: object) -> Label:
    wanted = {"note": "", "seen": None, "now": NOW, **fields}
    with acting(tenancy, tenancy.users[name]):
        return review_label(item_id=item_id, value=value, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_what_can_be_said_of_an_item_depends_on_what_mirror_said(tenant: Tenancy, call: Call, kind: Kind) -> None:
    (item,) = queue(tenant, ReviewFilters(kind=kind))
    alarm = kind in (Kind.INTERVENTION, Kind.TOOL, Kind.VIOLATION)
    for value in ("missed" if alarm else "false_alarm", "", "nonsense"):
        with pytest.raises(ValidationError) as refused:
            label(tenant, "alice", item.item_id, value)
        assert list(refused.value.message_dict) == ["label"]
    made = label(tenant, "alice", item.item_id, "false_alarm" if alarm else "missed", note="See the order.")
    assert (made.note, made.labelled_by) == ("See the order.", tenant.users["alice"].email)
    assert item.item_id not in [each.item_id for each in queue(tenant)]


def test_labelling_lets_go_of_the_item_and_is_in_the_log(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[1]
    take(tenant, "alice", item.item_id, call)
    label(tenant, "alice", item.item_id, "confirmed", note="4111 1111 1111 1111")
    with tenant.context():
        assert ReviewReservation.objects.count() == 0
        event = AuditEvent.objects.get(action="tool_decision.label")
        assert (event.object_id, event.object_label) == (str(item.item_id), "confirmed")
        assert "4111" not in f"{event.before}{event.after}"
        assert "4111" not in Label.objects.get().note


def test_the_same_label_sent_twice_is_given_once(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[0]
    first = label(tenant, "alice", item.item_id, "confirmed", note="Clear.")
    second = label(tenant, "alice", item.item_id, "confirmed", note="Clear.")
    assert (first.id, first.updated_at) == (second.id, second.updated_at)
    with tenant.context():
        assert AuditEvent.objects.filter(action="intervention.label").count() == 1


def test_nobodys_word_is_overwritten_unread(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[0]
    bobs = label(tenant, "bob", item.item_id, "false_alarm")
    with pytest.raises(ItemLabelled, match=r"bob@.* labelled this meanwhile: False alarm"):
        label(tenant, "alice", item.item_id, "confirmed")
    mine = label(tenant, "alice", item.item_id, "confirmed", seen=bobs.updated_at)
    assert (mine.id, mine.value, mine.labelled_by) == (bobs.id, "confirmed", tenant.users["alice"].email)
    with tenant.context():
        label_remove(label_id=mine.id)
    with pytest.raises(ItemLabelled, match="taken back meanwhile"):
        label(tenant, "alice", item.item_id, "unsure", seen=mine.updated_at)


def test_what_somebody_else_looks_at_is_not_labelled_by_another(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[0].item_id
    take(tenant, "bob", item, call)
    with pytest.raises(ItemReserved):
        label(tenant, "alice", item, "confirmed")
    # Bob has left it lying.
    assert label(tenant, "alice", item, "confirmed", now=NOW + RESERVED_FOR).value == "confirmed"


def test_a_label_is_taken_back_by_whoever_gave_it(tenant: Tenancy, call: Call) -> None:
    item = queue(tenant)[0].item_id
    made = label(tenant, "alice", item, "confirmed")

    def undo(name: str, at: datetime) -> UUID:
        with acting(tenant, tenant.users[name]):
            return review_undo(label_id=made.id, labelled_at=at)

    for name, at in (("bob", made.updated_at), ("alice", made.updated_at - timedelta(seconds=1))):
        with pytest.raises(LabelChanged):
            undo(name, at)
    assert undo("alice", made.updated_at) == item
    assert queue(tenant)[0].item_id == item
    with tenant.context():
        event = AuditEvent.objects.get(action="intervention.unlabel")
        assert (event.object_id, event.object_label) == (str(item), "confirmed")
    with pytest.raises(LabelNotFound):
        undo("alice", made.updated_at)


def test_a_tool_decision_is_labelled_by_what_became_of_it(tenant: Tenancy, stranger: Tenancy, call: Call) -> None:
    with stranger.context():
        foreign = ToolDecision.objects.get().id
    with tenant.context():
        blocked = ToolDecision.objects.get()
        with pytest.raises(ValidationError, match="was blocked, so it was not missed"):
            tool_decision_label(decision_id=blocked.id, value="missed")
        assert tool_decision_label(decision_id=blocked.id, value="confirmed").tool_decision_id == blocked.id
        ToolDecision.objects.update(allow=True)
        with pytest.raises(ValidationError, match="was allowed, so it was no alarm"):
            tool_decision_label(decision_id=blocked.id, value="false_alarm")
        assert tool_decision_label(decision_id=blocked.id, value="missed").value == "missed"
        for missing in (foreign, uuid7()):
            with pytest.raises(ToolDecisionNotFound):
                tool_decision_label(decision_id=missing, value="confirmed")
        assert intervention_label(intervention_id=Intervention.objects.get().id, value="unsure").turn_id is None
        assert Label.objects.count() == 2
    with stranger.context():
        assert Label.objects.count() == 0
