"""`/alarms` and `/members/{id}/alarm-mails`: what went wrong, and who is mailed of it."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from django.http import HttpRequest
from ninja import Query, Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out, PageOut, PageQuery
from supervision.alarms import KINDS, alarm_text
from supervision.models import Alarm
from supervision.selectors.alarms import alarm_agents, alarm_kinds_of, alarm_list
from supervision.services.alarms import alarm_kinds_set
from tenants.api.auth import requires
from tenants.api.writes import writes
from tenants.roles import Scope
from tenants.selectors.memberships import member_get

router = Router(tags=["alarms"])

Kind = Literal["coverage", "call", "webhook", "limit"]
_KINDS = " ".join(f"`{kind}`: {when}" for kind, when in KINDS.items())


class AlarmOut(Out):
    """Something that went wrong while somebody wanted to be mailed of its kind. Kept for 30 days."""

    id: UUID
    kind: str = Field(description=_KINDS)
    text: str
    """In words, as the mail has it."""
    data: dict[str, object]
    """Ids and facts, as webhooks have them: `call_id` and `agent_id` of what happened in a call."""
    occurred_at: datetime
    mailed_at: datetime | None
    """Null while it waits for the next mail."""

    @classmethod
    def of(cls, alarm: Alarm, agents: dict[str, str]) -> "AlarmOut":
        return cls(
            id=alarm.id,
            kind=alarm.kind,
            text=alarm_text(alarm.kind, alarm.data, agents=agents),
            data=alarm.data,
            occurred_at=alarm.occurred_at,
            mailed_at=alarm.mailed_at,
        )


class AlarmMailsIn(In):
    """What a member is mailed of."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kinds": ["coverage", "call"]}]})

    kinds: list[Kind] = Field(max_length=len(KINDS), description=f"{_KINDS} None of them: no alarm mails.")


class AlarmMailsOut(Out):
    """What a member is mailed of."""

    kinds: list[str]

    @classmethod
    def of(cls, membership_id: UUID) -> "AlarmMailsOut":
        wanted = alarm_kinds_of(membership_id=membership_id)
        return cls(kinds=[kind for kind in KINDS if kind in wanted])


@router.get(
    "/alarms",
    response={200: PageOut[AlarmOut], **problem_responses(401, 403, 422)},
    operation_id="alarm_list",
    summary="List alarms",
)
@requires(Scope.ADMIN)
def alarms(request: HttpRequest, query: Query[PageQuery]) -> PageOut[AlarmOut]:
    """What went wrong in the last 30 days, the newest first. Of a kind that nobody is mailed of there are none."""
    page = alarm_list(cursor=query.cursor, limit=query.limit)
    agents = alarm_agents(page.items)
    return PageOut[AlarmOut](items=[AlarmOut.of(alarm, agents) for alarm in page.items], next=page.next)


@router.get(
    "/members/{uuid:member_id}/alarm-mails",
    response={200: AlarmMailsOut, **problem_responses(401, 403, 404)},
    operation_id="alarm_mails_get",
    summary="What a member is mailed of",
)
@requires(Scope.ADMIN)
def alarm_mails(request: HttpRequest, member_id: UUID) -> AlarmMailsOut:
    """The kinds of alarms that a member is mailed of; nobody is mailed of any until somebody chose so."""
    return AlarmMailsOut.of(member_get(membership_id=member_id).id)


@router.put(
    "/members/{uuid:member_id}/alarm-mails",
    response={200: AlarmMailsOut, **problem_responses(400, 401, 403, 404, 422)},
    operation_id="alarm_mails_update",
    summary="Choose what a member is mailed of",
)
@writes(Scope.ADMIN)
def alarm_mails_put(request: HttpRequest, member_id: UUID, body: AlarmMailsIn) -> AlarmMailsOut:
    """From now on. Members can choose for themselves in the console, and stop their mails by the link in each."""
    alarm_kinds_set(membership_id=member_id, kinds=body.kinds)
    return AlarmMailsOut.of(member_id)
