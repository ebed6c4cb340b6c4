"""What the settings' pages say of limits and alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse

from mirror_saas.limits import Limits
from supervision.alarms import alarm_text
from supervision.models import Alarm
from tenants.limits import MIB
from tenants.selectors.limits import Use
from webui.presenters.pieces import Badge

_NEAR = 0.8


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A limit: what may be, what is, and how often more was refused. `share` is None where either is not known."""

    name: str
    about: str
    limit: str
    used: str
    share: float | None
    state: Badge | None
    refused_today: int
    refused_30_days: int


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """An alarm that there was; `mailed_at` is None while it waits for a mail."""

    at: datetime
    kind: str
    text: str
    url: str
    mailed_at: datetime | None


def limit_rows(limits: Limits, use: Use) -> tuple[LimitRow, ...]:
    storage = f"{use.storage_bytes / MIB:,.1f} MiB"
    rows: list[tuple[str, str, int | None, float | None, str, str]] = [
        ("Calls", "at the same time", limits.calls, use.calls, _number(use.calls), "calls"),
        (
            "Requests",
            "to the API in a minute, of all keys and people",
            limits.requests_per_minute,
            use.requests_per_minute,
            _number(use.requests_per_minute),
            "requests",
        ),
        (
            "Requests of one",
            "to the API in a minute, of each key and person",
            limits.key_requests_per_minute,
            None,
            "",
            "",
        ),
        ("Questions to judges", "at the same time, in each process", limits.judge_calls, None, "", "judge_calls"),
        ("Storage", "for the record of calls", limits.storage_mib, use.storage_bytes / MIB, storage, "storage"),
    ]
    return tuple(
        LimitRow(
            name=name,
            about=about,
            limit=_limit(limit, " MiB" if kind == "storage" else ""),
            used=shown,
            share=_share(used, limit),
            state=_state(_share(used, limit)),
            refused_today=use.refused_today.get(kind, 0),
            refused_30_days=use.refused_30_days.get(kind, 0),
        )
        for name, about, limit, used, shown, kind in rows
    )


def alarm_rows(alarms: Iterable[Alarm], *, names: Mapping[str, str], agents: Mapping[str, str]) -> tuple[AlarmRow, ...]:
    """`names` are those of the kinds, `agents` those of agents by id."""
    return tuple(
        AlarmRow(
            at=alarm.occurred_at,
            kind=names.get(alarm.kind, alarm.kind),
            text=alarm_text(alarm.kind, alarm.data, agents=agents),
            url=reverse("webui:call", args=[alarm.data["call_id"]]) if "call_id" in alarm.data else "",
            mailed_at=alarm.mailed_at,
        )
        for alarm in alarms
    )


def _limit(limit: int | None, unit: str) -> str:
    return "none" if limit is None else f"{limit:,}{unit}"


def _number(value: int | None) -> str:
    return "not known now" if value is None else f"{value:,}"


def _share(used: float | None, limit: int | None) -> float | None:
    if used is None or limit is None:
        return None
    return min(1.0, used / limit) if limit else 1.0


def _state(share: float | None) -> Badge | None:
    if share is None or share < _NEAR:
        return None
    return Badge("Reached", "alert", "bad") if share >= 1 else Badge("Nearly reached", "alert", "warn")
