"""Voice agents: the list, making and changing one, and one agent's page."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from mirror_saas.pages import MAX_LIMIT, BadCursor
from supervision.models import Agent, ProviderCredential, Track
from supervision.selectors.agents import AgentNotFound, agent_address, agent_get, agent_list, agents_standing
from supervision.selectors.credentials import credential_list
from supervision.selectors.policies import policy_list
from supervision.selectors.stream_keys import agent_stream_key_list
from supervision.services.agents import agent_archive, agent_create, agent_update
from supervision.services.defaults import default_tts_credential_id
from supervision.services.policies import agent_policy_set
from supervision.stream.check import agent_check
from tenants.context import tenant_context
from tenants.roles import Scope
from webui.access import MemberRequest, member_view, reauthenticated
from webui.agent_forms import (
    AgentFilterForm,
    AgentForm,
    AgentPolicyForm,
    Choices,
    SigningSecretForm,
    StreamKeyForm,
)
from webui.once import once
from webui.pager import list_url, pager_urls
from webui.presenters.agents import (
    agent_row,
    agent_rows,
    changed_at,
    check_view,
    failure_words,
    key_rows,
    own_settings,
    reached_from_here_only,
)
from webui.shown_once import shown_once_keep, shown_once_take

PAGE_ROWS = 50
# What a new stream key, and a new signing secret, wait under until the agent's page shows them.
STREAM_KEY, SIGNING_SECRET = "stream_key", "signing_secret"
# What was found when an agent was dialled waits in the session for the page that comes next.
_CHECK = "agent_check"


@never_cache
@require_safe
@member_view(scope="policies:read")
def agents(request: MemberRequest) -> HttpResponse:
    """Agents in use, newest first; what is filtered stands in the URL."""
    policies = policy_choices()
    form = AgentFilterForm(request.GET, policies=policies)
    url, query, cursor = reverse("webui:agents"), form.query(), request.GET.get("cursor")
    try:
        page = agent_list(
            policy_id=form.cleaned_data.get("policy"),
            name=form.cleaned_data.get("name") or "",
            cursor=cursor,
            limit=PAGE_ROWS,
        )
    except BadCursor:
        return redirect(list_url(url, query))
    return render(
        request,
        "webui/agents/list.html",
        {
            "section": "agents",
            "form": form,
            "rows": agent_rows(
                page.items, agents_standing(agent_ids=[agent.id for agent in page.items]), whole=_may_change(request)
            ),
            "may_change": _may_change(request),
            **pager_urls(url, query, cursor=cursor, older=page.next),
        },
    )


@never_cache
@sensitive_post_parameters("headers", "signing_secret")
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@once
def agent_new(request: MemberRequest) -> HttpResponse:
    """Make an agent. Its page, which comes next, shows its signing secret."""
    initial = {"tts_credential_id": default_tts_credential_id()}
    form = AgentForm(
        request.POST if request.method == "POST" else None,
        policies=policy_choices(),
        voices=_voice_choices(),
        initial=initial,
    )
    if request.method != "POST" or not form.is_valid():
        return _form_page(request, form)
    try:
        made = agent_create(
            name=form.cleaned_data["name"],
            upstream_url=form.cleaned_data["upstream_url"],
            signing_secret=form.cleaned_data["signing_secret"] or None,
            **form.all(),  # type: ignore[misc]
        )
    except ValidationError as error:
        form.refuse(error)
        return _form_page(request, form)
    shown_once_keep(request, kind=SIGNING_SECRET, object_id=made.agent.id, secrets={"secret": made.signing_secret})
    return redirect("webui:agent", agent_id=made.agent.id)


@never_cache
@sensitive_variables("fresh_key", "fresh_secret")
@require_safe
@member_view(scope="policies:read")
def agent(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """One agent. What was just made of it is shown the first time, and never again."""
    return _page(request, agent_or_404(agent_id))


@never_cache
@sensitive_post_parameters("headers")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
def agent_edit(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Change an agent, from its next call on."""
    found = agent_or_404(agent_id)
    form = AgentForm(
        request.POST if request.method == "POST" else None,
        policies=policy_choices(found),
        voices=_voice_choices(),
        agent=found,
    )
    if request.method != "POST" or not form.is_valid():
        return _form_page(request, form, found)
    try:
        agent_update(agent_id=agent_id, **form.changed())
    except Agent.DoesNotExist as error:
        raise Http404("There is no such agent.") from error
    except ValidationError as error:
        form.refuse(error)
        return _form_page(request, form, found)
    messages.success(request, "Saved. It counts from the agent’s next call on.")
    return redirect("webui:agent", agent_id=agent_id)


@never_cache
@require_POST
@member_view(scope="policies:write")
def agent_policy(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Let another policy judge the agent’s new calls. The settings that are the agent’s own stay."""
    found = agent_or_404(agent_id)
    form = AgentPolicyForm(request.POST, policies=policy_choices(found))
    if not form.is_valid():
        return _page(request, found, policy_form=form)
    try:
        changed = agent_policy_set(
            agent_id=agent_id,
            policy_id=form.cleaned_data["policy_id"],
            track=Track(form.cleaned_data["policy_track"]),
            overrides=found.policy_overrides,
        )
    except Agent.DoesNotExist as error:
        raise Http404("There is no such agent.") from error
    except ValidationError as error:
        form.refuse(error)
        return _page(request, found, policy_form=form)
    by = changed.policy.name if changed.policy else ""
    messages.success(
        request, f"New calls are judged by {by}." if by else "New calls are not judged: the agent has no policy."
    )
    return redirect("webui:agent", agent_id=agent_id)


@never_cache
@require_POST
@member_view(scope="admin", in_transaction=False)
def agent_tried(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Dial the agent as a call would, which takes up to 8 s; its page says what was found."""
    with tenant_context(request.membership.tenant.id):
        try:
            address = agent_address(agent_id=agent_id)
        except AgentNotFound as error:
            raise Http404(str(error)) from error
    view = check_view(asyncio.run(agent_check(address)))
    request.session[_CHECK] = {
        "id": str(agent_id),
        "title": view.title,
        "text": view.text,
        "tone": view.tone,
        "icon": view.icon,
        "facts": [list(fact) for fact in view.facts],
    }
    return redirect(f"{reverse('webui:agent', kwargs={'agent_id': agent_id})}#check")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def agent_end(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Take an agent out of use, after one more question."""
    found = agent_or_404(agent_id)
    if request.method == "POST":
        agent_archive(agent_id=agent_id)
        messages.success(
            request, f"{found.name} is out of use: its stream keys are revoked. Its calls stay under Calls."
        )
        return redirect("webui:agents")
    keys = [key for key in key_rows(agent_stream_key_list(agent_id=agent_id)) if key.works]
    return render(
        request, "webui/agents/archive.html", {"section": "agents", "agent": found, "working_keys": len(keys)}
    )


# -- parts --------------------------------------------------------------------------------------------------------


def agent_or_404(agent_id: UUID) -> Agent:
    """An agent of the member's tenant that is in use. Somebody else's and a missing one are the same 404."""
    try:
        return agent_get(agent_id=agent_id)
    except AgentNotFound as error:
        raise Http404(str(error)) from error


def policy_choices(found: Agent | None = None) -> Choices:
    """The tenant's policies by id, newest first, and the one that `found` has, whatever became of it."""
    policies = [row.policy for row in policy_list(limit=MAX_LIMIT).items]
    if found is not None and found.policy is not None and found.policy not in policies:
        policies.append(found.policy)
    return [(str(policy.id), policy.name) for policy in policies]


def _voice_choices() -> Choices:
    voices = credential_list(kind=ProviderCredential.Kind.TTS.value, limit=MAX_LIMIT).items
    return [(str(credential.id), f"{credential.name} ({credential.model})") for credential in voices]


def _may_change(request: MemberRequest) -> bool:
    return Scope.ADMIN.value in request.membership.scopes


def _form_page(request: MemberRequest, form: AgentForm, found: Agent | None = None) -> HttpResponse:
    return render(request, "webui/agents/form.html", {"section": "agents", "form": form, "agent": found})


def _page(request: MemberRequest, found: Agent, *, policy_form: AgentPolicyForm | None = None) -> HttpResponse:
    may_change = _may_change(request)
    capabilities = request.membership.capabilities
    standing = agents_standing(agent_ids=[found.id])[found.id]
    context: dict[str, Any] = {
        "section": "agents",
        "agent": found,
        "row": agent_row(found, standing, whole=may_change),
        "changed_at": changed_at(found),
        "own_settings": own_settings(found),
        "when_it_fails": failure_words(found),
        "may_change": may_change,
        "may_call": Scope.CALLS_WRITE.value in capabilities,
        "policy_form": None,
    }
    if Scope.POLICIES_WRITE.value in capabilities:
        context["policy_form"] = policy_form or AgentPolicyForm(
            policies=policy_choices(found), initial={"policy_id": found.policy_id, "policy_track": found.policy_track}
        )
    if may_change:
        context |= {
            "keys": key_rows(agent_stream_key_list(agent_id=found.id)),
            "key_form": StreamKeyForm(),
            "secret_form": SigningSecretForm(),
            "check": _check_of(request, found.id),
            "fresh_key": shown_once_take(request, kind=STREAM_KEY, object_id=found.id),
            "here_only": reached_from_here_only(settings.MIRROR.public_url),
            "fresh_secret": shown_once_take(request, kind=SIGNING_SECRET, object_id=found.id),
        }
    return render(request, "webui/agents/agent.html", context)


def _check_of(request: HttpRequest, agent_id: UUID) -> dict[str, Any] | None:
    """What the last check of the agent found, once."""
    kept = request.session.get(_CHECK)
    if not isinstance(kept, dict) or kept.get("id") != str(agent_id):
        return None
    del request.session[_CHECK]
    return kept
