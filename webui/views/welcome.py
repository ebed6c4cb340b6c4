"""The first run: an agent, its addresses, and a test call that is supervised."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_safe

from mirror_saas.demo.offer import DemoOffer, demo_agent_add, demo_agent_get, demo_offer
from supervision.services.agents import SupervisedAgent
from supervision.services.defaults import default_llm_credential_id
from supervision.services.first_run import first_agent_create
from webui.access import MemberRequest, member_view
from webui.once import once
from webui.presenters.agents import reached_from_here_only
from webui.shown_once import shown_once_take
from webui.views.agent_keys import stream_key_show
from webui.views.agents import STREAM_KEY, agent_or_404
from webui.welcome_forms import FirstAgentForm


@never_cache
@sensitive_post_parameters("judge_key")
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@once
def welcome(request: MemberRequest) -> HttpResponse:
    """Choose an agent: the demo's, or one's own. Posted: it is made, and the next page has its addresses."""
    offer = demo_offer()
    demo = request.method == "POST" and request.POST.get("agent") == "demo"
    if demo and offer is not None:
        return _demo(request, offer)
    sent = request.POST if request.method == "POST" and not demo else None
    form = FirstAgentForm(sent, has_judge=default_llm_credential_id() is not None)
    if sent is None or not form.is_valid():
        return _page(request, offer, form)
    try:
        made = first_agent_create(
            tenant=request.membership.tenant, public_url=settings.MIRROR.public_url, **form.cleaned_data
        )
    except ValidationError as error:
        form.refuse(error)
        return _page(request, offer, form)
    return _made(request, made)


@never_cache
@sensitive_variables("fresh_key")
@require_safe
@member_view(scope="admin")
def welcome_agent(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """The agent is there: its addresses, shown this once, and a test call."""
    found = agent_or_404(agent_id)
    offer = demo_offer()
    return render(
        request,
        "webui/welcome/agent.html",
        {
            "section": "agents",
            "agent": found,
            "is_demo": offer is not None and found.upstream_url == offer.agent_url,
            "fresh_key": shown_once_take(request, kind=STREAM_KEY, object_id=agent_id),
            "here_only": reached_from_here_only(settings.MIRROR.public_url),
        },
    )


def _demo(request: MemberRequest, offer: DemoOffer) -> HttpResponse:
    there = demo_agent_get(offer=offer)
    if there is not None:
        # Whoever comes back finds what they made the first time.
        return redirect("webui:welcome_agent", agent_id=there.id)
    try:
        made = demo_agent_add(offer=offer, tenant=request.membership.tenant, public_url=settings.MIRROR.public_url)
    except ValidationError as error:
        return _page(request, offer, None, why=" ".join(error.messages))
    return _made(request, made)


def _made(request: MemberRequest, made: SupervisedAgent) -> HttpResponse:
    key = made.stream_url.rpartition("/")[2]
    stream_key_show(request, agent=made.agent, key=key)
    return redirect("webui:welcome_agent", agent_id=made.agent.id)


def _page(
    request: MemberRequest, offer: DemoOffer | None, form: FirstAgentForm | None, *, why: str = ""
) -> HttpResponse:
    context: dict[str, Any] = {
        "section": "agents",
        "has_demo": offer is not None,
        "form": form or FirstAgentForm(has_judge=default_llm_credential_id() is not None),
        "why": why,
    }
    return render(request, "webui/welcome/welcome.html", context)
