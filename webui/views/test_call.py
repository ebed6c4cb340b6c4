"""The page on which the browser is a telephone."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from mirror_saas.demo.offer import demo_offer
from mirror_saas.headers import permissions_policy
from mirror_saas.pages import MAX_LIMIT
from supervision.selectors.agents import AgentNotFound, agent_get, agent_list
from supervision.stream.phone import MAX_LINE_CHARS, MAX_LINES, MAX_S
from tenants.roles import Scope
from webui.access import MemberRequest, member_view
from webui.presenters.test_call import callees


@require_safe
@member_view(scope="calls:write")
def test_call(request: MemberRequest) -> HttpResponse:
    """Choose an agent, and call it. The agent of the URL, else the newest one, is chosen already."""
    agents = list(agent_list(limit=MAX_LIMIT).items)
    chosen = _agent_id(request.GET.get("agent", ""))
    if chosen is not None and chosen not in {agent.id for agent in agents}:
        try:
            agents.insert(0, agent_get(agent_id=chosen))
        except AgentNotFound:
            # Archived since the link was made, or somebody else's.
            chosen = None
    offer = demo_offer()
    offered = callees(agents, demo_url=offer.agent_url if offer is not None else None)
    response = render(
        request,
        "webui/test_call/page.html",
        {
            "section": "test_call",
            "callees": offered,
            "chosen": next((callee for callee in offered if callee.id == chosen), offered[0] if offered else None),
            "may_create": Scope.ADMIN in request.membership.capabilities,
            "max_lines": MAX_LINES,
            "max_line_chars": MAX_LINE_CHARS,
            "max_minutes": round(MAX_S / 60),
        },
    )
    # The microphone is asked for when somebody wants to speak; its sound plays in answer to a click.
    response["Permissions-Policy"] = permissions_policy("microphone", "autoplay")
    return response


def _agent_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
