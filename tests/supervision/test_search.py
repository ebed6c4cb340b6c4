"""Full-text search in transcripts: what is found, that nobody else's is, and that no query can break it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection

from mirror_saas.errors import InvalidInput
from supervision.models import Call, Turn
from supervision.selectors import search
from supervision.selectors.calls import CallFilters, call_list
from tests.factories import CALL_START, Tenancy, call_create
from tests.support.servers import DatabaseUrls

pytestmark = pytest.mark.django_db


def found(tenancy: Tenancy, text: str, **filters: Any) -> list[str]:
    """What the agent said first in the calls that a search finds, newest call first."""
    with tenancy.context():
        page = call_list(filters=CallFilters(text=text, **filters))
        return [Turn.objects.filter(call=call).order_by("index")[0].text for call in page.items]


def test_words_of_the_caller_and_of_the_agent_are_found_whatever_their_case(tenant: Tenancy) -> None:
    call_create(tenant, customer_text="Wo ist mein PAKET?", text="Ihr Paket ist in Köln.")
    call_create(tenant, customer_text="Where is it?", text="I do not know.")
    assert found(tenant, "paket köln") == ["Ihr Paket ist in Köln."]
    assert found(tenant, "WHERE") == ["I do not know."]
    assert found(tenant, "paket where") == []


def test_phrases_alternatives_and_exclusions(tenant: Tenancy) -> None:
    call_create(tenant, customer_text="?", text="The blue car is red.", started_at=CALL_START)
    call_create(tenant, customer_text="?", text="The red car is blue.", started_at=CALL_START + timedelta(hours=1))
    assert found(tenant, '"blue car"') == ["The blue car is red."]
    assert found(tenant, "blue car") == ["The red car is blue.", "The blue car is red."]
    assert found(tenant, '"red car" or "blue car"') == ["The red car is blue.", "The blue car is red."]
    assert found(tenant, 'car -"blue car"') == ["The red car is blue."]


def test_a_call_is_found_once_however_many_of_its_turns_say_it(tenant: Tenancy) -> None:
    call = call_create(tenant, text="refund refund")
    with tenant.context():
        Turn.objects.create(call=call, ref="t2", index=1, at_ms=3000, text="A refund again.")
    assert found(tenant, "refund") == ["refund refund"]


def test_a_text_that_is_written_later_is_found_by_its_new_words(tenant: Tenancy) -> None:
    call = call_create(tenant, text="first")
    with tenant.context():
        Turn.objects.filter(call=call).update(text="second")
    assert found(tenant, "first") == []
    assert found(tenant, "second") == ["second"]


def test_a_search_goes_with_other_filters_and_pages(tenant: Tenancy) -> None:
    for hour in range(5):
        call_create(tenant, text=f"apple {hour}", started_at=CALL_START + timedelta(hours=hour))
    assert found(tenant, "apple", started_from=CALL_START + timedelta(hours=3)) == ["apple 4", "apple 3"]
    with tenant.context():
        first = call_list(limit=2, filters=CallFilters(text="apple"))
        second = call_list(limit=2, filters=CallFilters(text="apple"), cursor=first.next)
        started = [call.started_at for call in first.items + second.items]
    assert started == [CALL_START + timedelta(hours=hour) for hour in (4, 3, 2, 1)]


@pytest.mark.parametrize("most", [2_000, 0], ids=["by the index", "by walking the calls"])
def test_a_stranger_is_never_found(
    tenant: Tenancy, stranger: Tenancy, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(search, "MOST_TURNS", most)
    call_create(tenant, text="a secret of alice's")
    assert found(tenant, "secret") == ["a secret of alice's"]
    assert found(stranger, "secret") == ["charlie's secret answer"]
    assert found(tenant, "charlie") == []
    # The tenant is a word of the index that no text and no query can write.
    for forged in (f"tenant {stranger.id}", f'"tenant {stranger.id}"', f"'tenant {stranger.id}'", str(stranger.id)):
        call_create(tenant, text=forged)
        assert "charlie's secret answer" not in found(tenant, forged)
        assert found(stranger, forged) == []


def test_the_function_finds_nothing_without_a_tenant_and_nothing_of_others_by_itself(
    tenant: Tenancy, stranger: Tenancy
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT call_id FROM turn_search('secret', 100)")
        assert cursor.fetchall() == []
        with tenant.context():
            cursor.execute("SELECT call_id FROM turn_search('secret or charlie or answer', 100)")
            assert cursor.fetchall() == []
        with stranger.context():
            cursor.execute("SELECT call_id FROM turn_search('secret', 100)")
            assert cursor.fetchall() == [(Call.objects.get().id,)]


HOSTILE = [
    "",
    " ",
    "-",
    '"',
    '""',
    '"" -""',
    "'",
    "''",
    "-refund",
    "- - - -",
    "or",
    "or or or",
    "a & | ! <-> :*",
    "!!!(((",
    "\\",
    "\\'; DROP TABLE supervision_turn; --",
    "%s %(x)s {0}",
    "refund:*",
    "<script>",
    "😀",
    "\u202e\ufeff",
    "\ud7ff",
    "x" * 200,
    '"' * 200,
    "-a " * 66,
    "٣٤٥",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("most", [2_000, 0])
def test_no_query_fails(tenant: Tenancy, monkeypatch: pytest.MonkeyPatch, text: str, most: int) -> None:
    monkeypatch.setattr(search, "MOST_TURNS", most)
    call_create(tenant, text="Nothing to see.")
    assert found(tenant, text) in ([], ["Nothing to see."])


@pytest.mark.parametrize("text", ["a" * 201, "a\x00b"])
def test_what_cannot_be_searched_for_is_said(tenant: Tenancy, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        found(tenant, text)
    assert refused.value.field == "text"


@pytest.mark.parametrize(
    "text",
    ["a-" * 16_000, "a.b/" * 8_000, " ".join(f"w{n}" for n in range(6_000)), "x" * 32_000, "😀 " * 16_000],
    ids=["hyphens", "paths", "many words", "one word", "emoji"],
)
def test_the_longest_turns_can_be_stored(tenant: Tenancy, text: str) -> None:
    call_create(tenant, customer_text=text, text=text)


def test_the_index_answers(database_urls: DatabaseUrls, tenant: Tenancy) -> None:
    """As mirror_platform, which the function runs as, row-level security does not keep the index from being used."""
    with psycopg.connect(database_urls.admin) as admin:
        admin.execute("SET ROLE mirror_platform")
        admin.execute("SET enable_seqscan = off")
        plan = "\n".join(
            line
            for (line,) in admin.execute(
                "EXPLAIN SELECT t.call_id FROM public.supervision_turn t WHERE t.tenant_id = gen_random_uuid()"
                " AND t.search @@ ('''tenant x'''::tsquery && 'refund'::tsquery) LIMIT 10"
            )
        )
    assert "Bitmap Index Scan on turn_search" in plan
