"""Policies: the list, making one, and one policy's page with its versions and the agents that it judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from mirror_saas.errors import Conflict, PreconditionFailed
from mirror_saas.pages import MAX_LIMIT, BadCursor
from mirror_saas.preconditions import IfMatch
from supervision.models import Agent, PolicyVersion, ProviderCredential, Track
from supervision.selectors.agents import agent_get, agent_list
from supervision.selectors.credentials import credential_list
from supervision.selectors.policies import (
    PolicyNotFound,
    PolicyRow,
    policy_agents,
    policy_etag,
    policy_get,
    policy_list,
    policy_version_before,
    policy_version_diff,
    policy_version_get,
    policy_version_list,
)
from supervision.services.defaults import default_llm_credential_id
from supervision.services.policies import (
    OVERRIDABLE,
    agent_policy_remove,
    agent_policy_set,
    llm_credential_get,
    policy_archive,
    policy_create,
    policy_rollback,
    policy_update,
    policy_version_copy,
    policy_version_create,
    rules_parse,
)
from webui.access import MemberRequest, member_view, reauthenticated
from webui.formats import count_of
from webui.once import once
from webui.pager import list_url, pager_urls
from webui.plain import plain_errors
from webui.policy_forms import (
    AgentSettingsForm,
    AssignForm,
    PolicyNameForm,
    PolicyNewForm,
    RulesForm,
    settings_initial,
)
from webui.policy_settings import SETTINGS
from webui.presenters.policies import credential_words, policy_lines, rule_lines, setting_lines, version_lines
from webui.presenters.policy_diff import diff_view

PAGE_ROWS = 50
MAY_WRITE = "policies:write"


@never_cache
@require_safe
@member_view(scope="policies:read")
def policies(request: MemberRequest) -> HttpResponse:
    """The tenant's policies, newest first."""
    url = reverse("webui:policies")
    cursor = request.GET.get("cursor")
    try:
        page = policy_list(cursor=cursor, limit=PAGE_ROWS)
    except BadCursor:
        return redirect(url)
    context = {
        "section": "policies",
        "rows": policy_lines(page.items),
        "may_write": MAY_WRITE in request.membership.capabilities,
        **pager_urls(url, cursor=cursor, older=page.next),
    }
    return render(request, "webui/policies/list.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
@once
def policy_new(request: MemberRequest) -> HttpResponse:
    """A policy and its first draft, which comes next."""
    credentials = llm_credentials()
    form = PolicyNewForm(
        request.POST if request.method == "POST" else None,
        credentials=credentials,
        initial={"llm": llm_first(credentials)},
    )
    if request.method == "POST" and form.is_valid():
        rules = rules_parse(form.cleaned_data["rules"])
        try:
            # A policy whose first draft is refused must not stay.
            with transaction.atomic():
                credential = llm_credential_get(form.cleaned_data["llm"])
                made = policy_create(name=form.cleaned_data["name"])
                version = policy_version_create(policy_id=made.id, rules=rules, llm_credential=credential)
        except ValidationError as error:
            form.refuse(plain_errors(error))
        else:
            return to_version(made.id, version.number)
    return render(request, "webui/policies/new.html", {"section": "policies", "form": form})


@never_cache
@require_safe
@member_view(scope="policies:read")
def policy(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """One policy: what judges now, its versions, its agents."""
    return policy_page(request, row_get(policy_id))


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def policy_rename(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """Another name. Read: back to the policy."""
    row = row_get(policy_id)
    if request.method != "POST":
        return to_policy(policy_id)
    form = PolicyNameForm(request.POST)
    if form.is_valid():
        name = form.cleaned_data["name"]
        try:
            policy_update(policy_id=policy_id, name=name, if_match=seen(form.cleaned_data["etag"]))
        except PreconditionFailed:
            row = row_get(policy_id)
            if row.policy.name == name.strip():
                return to_policy(policy_id)
            form.refuse_field(
                "name",
                f"Meanwhile it was changed, and is called {row.policy.name}. Save again to call it {name.strip()}.",
            )
            data = request.POST.copy()
            data["etag"] = policy_etag(row.policy)
            form.data = data
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, "Renamed.")
            return to_policy(policy_id)
    return policy_page(request, row, name=form)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
@reauthenticated
def policy_end(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """Take a policy out of use, after one more question."""
    row = row_get(policy_id)
    refused = ""
    if request.method == "POST":
        try:
            policy_archive(policy_id=policy_id)
        except Conflict as error:
            refused = str(error)
        else:
            messages.success(request, f"{row.policy.name} is out of use. Calls that it judged keep their record.")
            return redirect("webui:policies")
    context = {"section": "policies", "row": row, "agents": policy_agents(policy_id=policy_id), "refused": refused}
    return render(request, "webui/policies/archive.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def rollback(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """The version before is live again, or the one that is named. Read: back to the policy."""
    row = row_get(policy_id)
    if request.method == "POST":
        named = request.POST.get("number", "")
        try:
            back = policy_rollback(
                policy_id=policy_id,
                number=int(named) if named.isdecimal() and len(named) < 10 else None,
                if_match=seen(request.POST.get("etag", "")),
            )
        except PreconditionFailed:
            live = "none" if row.live_number is None else f"version {row.live_number}"
            messages.warning(
                request, f"Nothing was done: the policy was changed since you opened its page. Live now: {live}."
            )
        except PolicyVersion.DoesNotExist as error:
            raise Http404("There is no such version.") from error
        except Conflict as error:
            messages.error(request, str(error))
        else:
            messages.success(
                request,
                f"Version {back.number} is live again; version {row.live_number} was taken back. New calls get it at"
                " once, calls that run go on with what they began with.",
            )
    return to_policy(policy_id)


@never_cache
@require_safe
@member_view(scope="policies:read")
def diff(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """What a version changes in another; both stand in the URL."""
    row = row_get(policy_id)
    numbers = [version.number for version in policy_version_list(policy_id=policy_id, limit=MAX_LIMIT).items]
    newest = numbers[0] if numbers else 0
    before = number_of(request.GET.get("before"), row.live_number or newest)
    after = number_of(request.GET.get("after"), newest)
    try:
        found = policy_version_diff(policy_id=policy_id, number=before, other=after)
    except PolicyNotFound as error:
        raise Http404(str(error)) from error
    context = {
        "section": "policies",
        "row": row,
        "numbers": numbers,
        "before": before,
        "after": after,
        "diff": diff_view(found, credentials=credentials_by_id()),
    }
    return render(request, "webui/policies/diff.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
@once
def version_new(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """A draft: from the version that `number` names, or of rules that are written here."""
    row = row_get(policy_id)
    form = RulesForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and (named := request.POST.get("number")):
        try:
            made = policy_version_copy(policy_id=policy_id, number=number_of(named, 0))
        except PolicyVersion.DoesNotExist as error:
            raise Http404("There is no such version.") from error
        return to_version(policy_id, made.number)
    if request.method == "POST" and form.is_valid():
        try:
            made = policy_version_create(
                policy_id=policy_id,
                rules=rules_parse(form.cleaned_data["rules"]),
                llm_credential=llm_credential_get(default_llm_credential_id()),
            )
        except ValidationError as error:
            form.refuse(plain_errors(error))
        else:
            return to_version(policy_id, made.number)
    return render(request, "webui/policies/version_new.html", {"section": "policies", "row": row, "form": form})


# -- agents ----------------------------------------------------------------------------------------------------------


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def policy_assign(request: MemberRequest, policy_id: UUID) -> HttpResponse:
    """Let the policy judge one more agent. Read: back to the policy."""
    row = row_get(policy_id)
    if request.method != "POST":
        return to_policy(policy_id)
    form = AssignForm(request.POST, agents=_assignable(policy_id))
    if form.is_valid():
        try:
            agent = agent_get(agent_id=form.cleaned_data["agent"])
            agent_policy_set(
                agent_id=agent.id,
                policy_id=policy_id,
                track=Track(form.cleaned_data["track"]),
                overrides=agent.policy_overrides,
            )
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, f"{agent.name}: new calls are judged by {row.policy.name}.")
            return to_policy(policy_id)
    return policy_page(request, row, assign=form)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def policy_agent(request: MemberRequest, policy_id: UUID, agent_id: UUID) -> HttpResponse:
    """Which version an agent's calls get, and what is otherwise for them."""
    row = row_get(policy_id)
    agent = _agent_of(policy_id, agent_id)
    initial = {**settings_initial(agent.policy_overrides), "track": agent.policy_track}
    form = AgentSettingsForm(
        request.POST if request.method == "POST" else None, names=OVERRIDABLE & SETTINGS.keys(), initial=initial
    )
    if request.method == "POST" and form.is_valid():
        try:
            agent_policy_set(
                agent_id=agent_id,
                policy_id=policy_id,
                track=Track(form.cleaned_data["track"]),
                overrides=form.config(),
            )
        except ValidationError as error:
            form.refuse(error)
        else:
            messages.success(request, f"{agent.name}: saved. New calls get it.")
            return to_policy(policy_id)
    return render(
        request, "webui/policies/agent.html", {"section": "policies", "row": row, "agent": agent, "form": form}
    )


@never_cache
@require_POST
@member_view(scope=MAY_WRITE)
def policy_unassign(request: MemberRequest, policy_id: UUID, agent_id: UUID) -> HttpResponse:
    """Judge an agent by no policy any more."""
    row_get(policy_id)
    agent = _agent_of(policy_id, agent_id)
    agent_policy_remove(agent_id=agent_id, policy_id=policy_id)
    messages.success(request, f"{agent.name}: new calls are relayed, and judged by no policy.")
    return to_policy(policy_id)


def _agent_of(policy_id: UUID, agent_id: UUID) -> Agent:
    agent = next((agent for agent in policy_agents(policy_id=policy_id) if agent.id == agent_id), None)
    if agent is None:
        raise Http404("There is no such agent.")
    return agent


def _assignable(policy_id: UUID) -> list[Agent]:
    """Agents that something else judges, or nothing."""
    return [agent for agent in agent_list(limit=MAX_LIMIT).items if agent.policy_id != policy_id]


# -- for the views of versions too -----------------------------------------------------------------------------------


def policy_page(
    request: MemberRequest, row: PolicyRow, *, name: PolicyNameForm | None = None, assign: AssignForm | None = None
) -> HttpResponse:
    """The policy's page; the forms are those with what is wrong in them."""
    policy_id = row.policy.id
    cursor = request.GET.get("cursor")
    url = reverse("webui:policy", kwargs={"policy_id": policy_id})
    try:
        page = policy_version_list(policy_id=policy_id, cursor=cursor, limit=PAGE_ROWS)
    except BadCursor:
        return redirect(list_url(url))
    current = row.live_number if row.live_number is not None else row.shadow_number
    shown = policy_version_get(policy_id=policy_id, number=current) if current is not None else None
    live = shown if shown is not None and shown.status == PolicyVersion.Status.LIVE else None
    may_write = MAY_WRITE in request.membership.capabilities
    context: dict[str, Any] = {
        "section": "policies",
        "row": row,
        "etag": policy_etag(row.policy),
        "may_write": may_write,
        "versions": version_lines(page.items, live=row.live_number),
        "current": shown,
        "current_rules": rule_lines(shown.rules) if shown is not None else [],
        "current_settings": setting_lines(shown.config) if shown is not None else [],
        "current_model": credential_words(shown.llm_credential_id, credentials_by_id()) if shown is not None else "",
        "before": policy_version_before(live) if live is not None else None,
        "agents": [
            {"agent": agent, "own": count_of(len(agent.policy_overrides), "setting") if agent.policy_overrides else ""}
            for agent in policy_agents(policy_id=policy_id)
        ],
        **pager_urls(url, cursor=cursor, older=page.next),
    }
    if may_write:
        context["name_form"] = name or PolicyNameForm(
            initial={"name": row.policy.name, "etag": policy_etag(row.policy)}, auto_id="rename_%s"
        )
        agents = _assignable(policy_id)
        context["assign_form"] = assign or (AssignForm(agents=agents) if agents else None)
    return render(request, "webui/policies/policy.html", context)


def row_get(policy_id: UUID) -> PolicyRow:
    """The policy, or 404."""
    try:
        return policy_get(policy_id=policy_id)
    except PolicyNotFound as error:
        raise Http404(str(error)) from error


def llm_credentials() -> list[ProviderCredential]:
    """What can be chosen as a judge."""
    return list(credential_list(kind=ProviderCredential.Kind.LLM, limit=MAX_LIMIT).items)


def llm_first(credentials: Sequence[ProviderCredential]) -> UUID | None:
    """The judge that a form offers first: the tenant's default, or the only one."""
    return default_llm_credential_id() or (credentials[0].id if len(credentials) == 1 else None)


def credentials_by_id() -> dict[UUID, ProviderCredential]:
    return {credential.id: credential for credential in llm_credentials()}


def seen(etag: str) -> IfMatch:
    """The state that a form is about; a form without one is about none that there is."""
    return IfMatch(frozenset({etag}))


def to_policy(policy_id: UUID) -> HttpResponse:
    return redirect("webui:policy", policy_id=policy_id)


def to_version(policy_id: UUID, number: int) -> HttpResponse:
    return redirect("webui:policy_version", policy_id=policy_id, number=number)


def number_of(text: str | None, default: int) -> int:
    """A version's number that stands in a URL or form; 404 for what is none."""
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise Http404("There is no such version.")
    return int(text)
