"""The current tenant's running calls as they are watched: each with its newest turn, its newest verdicts, and whether
Mirror is stepping in right now. Three queries, however many calls.

Every function runs inside `tenants.context.tenant_context` and raises TenantContextMissing outside of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import connection

from supervision.models import Call
from supervision.recorder.outbox import DEGRADED_TURNS
from tenants.context import tenant_id_required

# More calls than anybody watches at once; the newest ones are given.
MOST_CALLS: Final = 500
NEWEST_VERDICTS: Final = DEGRADED_TURNS
_TEXT_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class NewestTurn:
    """The turn that the agent reported last; its texts are cut at 400 characters."""

    at_ms: int
    customer_text: str
    text: str


@dataclass(frozen=True, slots=True)
class NewestVerdict:
    """How a turn was judged, as far as a watcher asks."""

    state: str
    score: float | None
    threshold: float | None
    rule: str
    intervene: bool
    detail: str


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A running call with its agent loaded. `verdicts` are those of its newest turns that were in time, newest first,
    at most three; `acting_on` is the rule that Mirror is stepping in for at this moment, None when it is not."""

    call: Call
    turn: NewestTurn | None
    verdicts: tuple[NewestVerdict, ...]
    acting_on: str | None


def live_call_list(*, ids: frozenset[UUID] | None = None) -> list[LiveCall]:
    """Running calls, the newest first, at most 500; only those of `ids` if it is given."""
    calls = Call.objects.select_related("agent").filter(state=Call.State.LIVE).order_by("-started_at", "-id")
    if ids is not None:
        calls = calls.filter(id__in=ids)
    found = list(calls[:MOST_CALLS])
    wanted = [call.id for call in found]
    turns, acting, verdicts = _turns(wanted), _acting(wanted), _verdicts(wanted)
    return [LiveCall(call, turns.get(call.id), tuple(verdicts.get(call.id, ())), acting.get(call.id)) for call in found]


def live_call_count() -> int:
    """How many calls are running."""
    return Call.objects.filter(state=Call.State.LIVE).count()


def _rows(sql: str, calls: Sequence[UUID], **parameters: int) -> list[tuple[object, ...]]:
    if not calls:
        return []
    with connection.cursor() as cursor:
        cursor.execute(sql, {"tenant": tenant_id_required("Calls"), "calls": list(calls), **parameters})
        found: list[tuple[object, ...]] = cursor.fetchall()
    return found


def _turns(calls: Sequence[UUID]) -> dict[object, NewestTurn]:
    rows = _rows(_NEWEST_TURN, calls, chars=_TEXT_CHARS)
    return {call_id: NewestTurn(*values) for call_id, *values in rows}  # type: ignore[arg-type]


def _acting(calls: Sequence[UUID]) -> dict[object, str]:
    return {call_id: str(rule) for call_id, rule in _rows(_ACTING, calls)}


def _verdicts(calls: Sequence[UUID]) -> dict[object, list[NewestVerdict]]:
    found: defaultdict[object, list[NewestVerdict]] = defaultdict(list)
    for call_id, *values in _rows(_NEWEST_VERDICTS, calls, most=NEWEST_VERDICTS):
        found[call_id].append(NewestVerdict(*values))  # type: ignore[arg-type]
    return found


_NEWEST_TURN: Final = """
SELECT wanted.id, t.at_ms, left(t.customer_text, %(chars)s), left(t.text, %(chars)s)
  FROM unnest(%(calls)s::uuid[]) AS wanted(id),
       LATERAL (SELECT at_ms, customer_text, text FROM supervision_turn
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.id ORDER BY index DESC LIMIT 1) AS t
"""
# What only leads to a note to the agent is no stepping in.
_ACTING: Final = """
SELECT DISTINCT ON (call_id) call_id, coalesce(rule, '') FROM supervision_intervention
 WHERE tenant_id = %(tenant)s AND call_id = ANY(%(calls)s::uuid[]) AND outcome = '' AND plan <> 'note_only'
 ORDER BY call_id, at_ms DESC
"""
_NEWEST_VERDICTS: Final = """
SELECT wanted.id, v.state, v.score, v.threshold, coalesce(v.rule, ''), v.intervene, v.detail
  FROM unnest(%(calls)s::uuid[]) AS wanted(id),
       LATERAL (SELECT * FROM supervision_verdict
                 WHERE tenant_id = %(tenant)s AND call_id = wanted.id AND NOT late
                 ORDER BY at_ms DESC, id DESC LIMIT %(most)s) AS v
 ORDER BY wanted.id, v.at_ms DESC, v.id DESC
"""
