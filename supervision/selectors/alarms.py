"""Reading who gets alarm mails in the current tenant, and what alarms there were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.db import connection

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.models import Agent, Alarm, AlarmRecipient
from supervision.selectors.pages import newest_page
from tenants.models import Membership

# A tenant with more members gives the rest their choice on their own pages.
MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class AlarmChoice:
    """What a member wants to be mailed of."""

    membership: Membership
    kinds: frozenset[str]


def alarm_kinds_of(*, membership_id: UUID) -> frozenset[str]:
    """The kinds of alarms that a member is mailed of."""
    kinds = AlarmRecipient.objects.filter(membership_id=membership_id).values_list("kinds", flat=True).first()
    return frozenset(kinds or ())


def alarm_kinds_wanted() -> frozenset[str]:
    """The kinds of alarms that somebody of the current tenant is mailed of."""
    return frozenset(kind for kinds in AlarmRecipient.objects.values_list("kinds", flat=True) for kind in kinds)


def alarm_choice_list() -> list[AlarmChoice]:
    """The current tenant's members with their choices, by email; the first 200."""
    chosen = dict(AlarmRecipient.objects.values_list("membership_id", "kinds"))
    members = Membership.objects.select_related("user").order_by("user__email")[:MOST_SHOWN]
    return [AlarmChoice(member, frozenset(chosen.get(member.id, ()))) for member in members]


def alarm_list(*, cursor: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Alarm]:
    """A page of the alarms, newest first. Raises InvalidInput and BadCursor."""
    return newest_page(Alarm.objects.all(), cursor=cursor, limit=limit)


def alarm_agents(alarms: Iterable[Alarm]) -> dict[str, str]:
    """The names of the agents that alarms are about, by id."""
    ids = {alarm.data["agent_id"] for alarm in alarms if "agent_id" in alarm.data}
    return {str(agent_id): name for agent_id, name in Agent.objects.filter(id__in=ids).values_list("id", "name")}


def alarm_tenants_waiting() -> list[UUID]:
    """The tenants with alarms that nobody was mailed of yet: for the schedule that tells them to."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT alarm_tenants_waiting()")
        return [row[0] for row in cursor.fetchall()]
