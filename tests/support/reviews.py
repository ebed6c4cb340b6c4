"""Turns with verdicts of every kind that the review queue knows, and reviewers who act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from mirror_saas.ids import uuid7
from supervision.models import Call, Turn, Verdict
from tenants.actors import Actor, actor_context
from tenants.models import User
from tests.factories import Tenancy


def sampled_id(*, sampled: bool = True) -> UUID:
    """An id of a verdict that is, or is not, picked as a sample."""
    return UUID(int=uuid7().int & ~0xFF | (0x01 if sampled else 0xC8))


def turn_create(
    tenancy: Tenancy, call: Call, *, score: float | None = 0.1, sampled: bool = False, **fields: Any
) -> Turn:
    """A turn that was judged with `score`, against a threshold of 0.7; None: not in time. `fields` are the verdict's,
    but for `index`, `text` and `customer_text`."""
    said = {name: fields.pop(name) for name in ("index", "text", "customer_text") if name in fields}
    with tenancy.context():
        values: dict[str, Any] = {"index": Turn.objects.filter(call=call).count(), "text": "It is open until six."}
        values.update(said)
        turn = Turn.objects.create(
            call=call, at_ms=3_000 + 2_000 * values["index"], ref=f"t{values['index']}", **values
        )
        verdict: dict[str, Any] = {
            "state": "judged" if score is not None else "timed_out",
            "score": score,
            "threshold": 0.7,
            "reason": "It says so.",
            "latency_ms": 200,
            "at_ms": turn.at_ms + 200,
        }
        Verdict.objects.create(id=sampled_id(sampled=sampled), call=call, turn=turn, **{**verdict, **fields})
        return turn


@contextmanager
def acting(tenancy: Tenancy, user: User) -> Iterator[None]:
    """Run a block as this member of the tenancy."""
    with tenancy.context(), actor_context(Actor(kind="user", id=user.id, label=user.email)):
        yield
