"""Which calls have certain words in their transcript, for the current tenant.

Under row-level security PostgreSQL does not use a full-text index (`@@` is not leakproof), so the index is asked by the
SECURITY DEFINER function `turn_search`, which takes the tenant from the setting and gives out ids only. What is in too
many turns to name them all is looked for in the calls as a list walks through them: then it is in most of the next.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from mirror_saas.errors import InvalidInput
from supervision.models import Call, Turn
from tenants.context import tenant_id_required

MAX_QUERY_CHARS: Final = 200
# Turns that are named one by one; beyond, calls are walked.
MOST_TURNS: Final = 2_000


def turn_saying(*, call_id: UUID, text: str) -> UUID | None:
    """The first turn of the call in which the caller or the agent said `text`; None also for a text that cannot be
    searched for."""
    if len(text) > MAX_QUERY_CHARS or "\x00" in text:
        return None
    said = RawSQL("search @@ websearch_to_tsquery('simple', %s)", [text], output_field=BooleanField())
    turns = Turn.objects.filter(said, call_id=call_id)
    found: UUID | None = turns.order_by("at_ms", "id").values_list("id", flat=True).first()
    return found


def calls_saying(calls: QuerySet[Call], text: str) -> QuerySet[Call]:
    """Those of `calls` in which the caller or the agent said `text`.

    Words in any order, `"a phrase"`, `or`, and `-word` for calls with a turn that has the rest without it; whatever
    else it contains is no error. Raises InvalidInput (field `text`) for more than 200 characters.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise InvalidInput("text", f"Search for at most {MAX_QUERY_CHARS} characters.")
    if "\x00" in text:
        raise InvalidInput("text", "The character U+0000 cannot be searched for.")
    tenant_id_required("A search")
    with connection.cursor() as cursor:
        cursor.execute("SELECT call_id FROM turn_search(%s, %s)", [text, MOST_TURNS + 1])
        found = [call_id for (call_id,) in cursor.fetchall()]
    if len(found) <= MOST_TURNS:
        return calls.filter(id__in=set(found))
    # OFFSET keeps the planner from looking through all turns before it looks at the first call.
    said = RawSQL(
        "EXISTS (SELECT 1 FROM supervision_turn AS said WHERE said.tenant_id = supervision_call.tenant_id"
        " AND said.call_id = supervision_call.id AND said.search @@ websearch_to_tsquery('simple', %s) OFFSET 0)",
        [text],
        output_field=BooleanField(),
    )
    return calls.filter(said)
