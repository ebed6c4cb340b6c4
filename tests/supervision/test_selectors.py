"""Selectors: what the API's tests do not reach through its URLs."""

from __future__ import annotations

import pytest

from mirror_saas.ids import uuid7
from supervision.errors import InvalidInput
from supervision.models import Turn
from supervision.selectors.calls import (
    CallNotFound,
    call_get,
    call_interventions,
    call_list,
    call_timeline,
    call_tool_decisions,
    call_turns,
)
from supervision.selectors.pages import BadCursor, cursor_decode, cursor_encode
from tenants.context import TenantContextMissing
from tests.factories import Tenancy, call_create

pytestmark = pytest.mark.django_db


def test_selectors_need_a_tenant() -> None:
    for select in (call_get, call_turns, call_timeline, call_tool_decisions, call_interventions):
        with pytest.raises(TenantContextMissing):
            select(call_id=uuid7())
    with pytest.raises(TenantContextMissing):
        call_list()


def test_a_call_that_is_not_there_is_not_found_by_any(tenant: Tenancy) -> None:
    with tenant.context():
        for select in (call_get, call_turns, call_timeline, call_tool_decisions, call_interventions):
            with pytest.raises(CallNotFound, match=r"There is no such call\."):
                select(call_id=uuid7())


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_a_page_has_1_to_200_rows(tenant: Tenancy, limit: int) -> None:
    with tenant.context(), pytest.raises(InvalidInput) as error:
        call_list(limit=limit)
    assert error.value.field == "limit"


def test_turns_and_events_can_be_asked_for_from_where_one_was(tenant: Tenancy) -> None:
    call = call_create(tenant)
    with tenant.context():
        Turn.objects.create(call=call, ref="t2", index=1, at_ms=9_000)
        assert [detail.turn.ref for detail in call_turns(call_id=call.id, after_index=0)] == ["t2"]
        assert [detail.turn.ref for detail in call_turns(call_id=call.id, limit=1)] == ["t1"]
        assert [event.seq for event in call_timeline(call_id=call.id, after_seq=3)] == [4, 5]
        assert len(call_interventions(call_id=call.id)) == 1
        assert len(call_tool_decisions(call_id=call.id)) == 1


def test_cursors_come_back_as_they_went() -> None:
    assert cursor_decode(cursor_encode("ä", 7), str, int) == ("ä", 7)
    for types in ((str,), (int, str), (str, int, int)):
        with pytest.raises(BadCursor):
            cursor_decode(cursor_encode("ä", 7), *types)
    for text in ("", "%%", "bm90IGpzb24", "W1tbW1tbW1tbW10", cursor_encode(True, 1)):
        with pytest.raises(BadCursor):
            cursor_decode(text, str, int)
