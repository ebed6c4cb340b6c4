"""A version of a policy: to read, to write while it is a draft, and to put to work."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from mirror_saas.errors import Conflict, PreconditionFailed
from supervision.models import PolicyVersion
from supervision.selectors.policies import (
    PolicyNotFound,
    PolicyRow,
    policy_agents,
    policy_content_diff,
    policy_version_config,
    policy_version_etag,
    policy_version_get,
    policy_version_list,
)
from supervision.services.policies import (
    policy_version_copy,
    policy_version_publish,
    policy_version_shadow,
    policy_version_update,
)
from webui.access import MemberRequest, member_view
from webui.policy_editor import TypedContent, VersionEditor
from webui.policy_panel import Panel, panel_kept, panel_opened
from webui.presenters.policies import credential_words, rule_lines, setting_lines, version_line
from webui.presenters.policy_diff import diff_view
from webui.presenters.policy_try import prompts_of
from webui.shown_once import shown_again
from webui.views.policies import MAY_WRITE, credentials_by_id, llm_credentials, row_get, seen, to_version

# What a derivation found, kept for the page of the draft that it made.
DERIVED = "policy_derived"


@never_cache
@require_safe
@member_view(scope="policies:read")
def version(request: MemberRequest, policy_id: UUID, number: int) -> HttpResponse:
    """One version: the editor of a draft, or what a published one says."""
    row, found = version_get(policy_id, number)
    editor = VersionEditor(found, credentials=llm_credentials()) if _may_edit(request, found) else None
    panel = panel_opened(request.GET) if _may_judge(request) else None
    return version_page(request, row, found, editor=editor, panel=panel)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def version_save(request: MemberRequest, policy_id: UUID, number: int) -> HttpResponse:
    """Store what the editor has, or do what one of its rows' buttons asks. Read: back to the version."""
    row, found = version_get(policy_id, number)
    if request.method != "POST":
        return to_version(policy_id, number)
    editor = VersionEditor(found, credentials=llm_credentials(), data=request.POST)
    panel = panel_kept(request.POST) if _may_judge(request) else None
    if do := request.POST.get("do"):
        editor.do(do)
        return version_page(request, row, found, editor=editor, panel=panel)
    content = editor.content()
    if content is None:
        return version_page(request, row, found, editor=editor, panel=panel)
    fields: Any = {
        "rules": content.rules,
        "config": content.config,
        "llm_credential_id": content.llm_credential_id,
        "fallback_credential_id": content.fallback_credential_id,
        "note": content.note,
    }
    try:
        if request.POST.get("then") == "copy":
            # Sent twice, it is one draft.
            newest = policy_version_list(policy_id=policy_id, limit=1).items[0]
            if newest.status == PolicyVersion.Status.DRAFT and content.same_as(newest):
                return to_version(policy_id, newest.number)
            copied = policy_version_copy(policy_id=policy_id, number=number, **fields)
            messages.success(request, f"Saved as version {copied.number}, a new draft.")
            return to_version(policy_id, copied.number)
        etag = _etag_now(editor.form.cleaned_data["etag"], found)
        policy_version_update(policy_id=policy_id, number=number, if_match=seen(etag), **fields)
    except PreconditionFailed:
        _, now = version_get(policy_id, number)
        if not content.same_as(now):
            return _conflict_page(request, row, now, editor=editor, content=content, panel=panel)
    except Conflict:
        return _conflict_page(request, row, found, editor=editor, content=content, panel=panel)
    except ValidationError as error:
        editor.refuse(error)
        return version_page(request, row, found, editor=editor, panel=panel)
    if request.POST.get("then") == "publish":
        return _to_publish(policy_id, number)
    messages.success(request, "Saved.")
    there = to_version(policy_id, number)
    if panel is not None and panel.call is not None:
        there["Location"] += f"?call={panel.call.id}"
    return there


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def version_publish(request: MemberRequest, policy_id: UUID, number: int) -> HttpResponse:
    """Make a version what new calls get, after a look at what changes for them."""
    row, found = version_get(policy_id, number)
    if found.status == PolicyVersion.Status.LIVE:
        messages.info(request, f"Version {number} is live.")
        return to_version(policy_id, number)
    warning = ""
    if request.method == "POST":
        try:
            policy_version_publish(policy_id=policy_id, number=number, if_match=seen(request.POST.get("etag", "")))
        except PreconditionFailed:
            row, found = version_get(policy_id, number)
            warning = (
                "Nothing was published: this version, or what is live, was changed since you opened this page. Below is"
                " what it would change now."
            )
        except Conflict as error:
            messages.error(request, str(error))
            return to_version(policy_id, number)
        else:
            messages.success(
                request,
                f"Version {number} is live. New calls get it at once; calls that run go on with what they began with.",
            )
            return to_version(policy_id, number)
    live = policy_version_get(policy_id=policy_id, number=row.live_number) if row.live_number is not None else None
    credentials = credentials_by_id()
    context = {
        "section": "policies",
        "row": row,
        "version": version_line(found, live=row.live_number),
        "etag": policy_version_etag(found),
        "warning": warning,
        "diff": diff_view(policy_content_diff(before=live, after=found), credentials=credentials) if live else None,
        "rules": rule_lines(found.rules),
        "agents": policy_agents(policy_id=policy_id),
        "publishable": found.status in (PolicyVersion.Status.DRAFT, PolicyVersion.Status.SHADOW),
    }
    status = HTTPStatus.CONFLICT if warning else HTTPStatus.OK
    return render(request, "webui/policies/publish.html", context, status=status)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE)
def version_shadow(request: MemberRequest, policy_id: UUID, number: int) -> HttpResponse:
    """Let a draft judge without acting. Read: back to the version."""
    row, found = version_get(policy_id, number)
    if request.method == "POST" and found.status != PolicyVersion.Status.SHADOW:
        try:
            policy_version_shadow(policy_id=policy_id, number=number, if_match=seen(request.POST.get("etag", "")))
        except PreconditionFailed:
            messages.warning(
                request, "Nothing was done: this version, or what is live, was changed since you opened the page."
            )
        except Conflict as error:
            messages.error(request, str(error))
        else:
            whose = (
                "agents that follow the shadow version"
                if row.live_number is not None
                else "all agents of the policy, as no version is live"
            )
            messages.success(request, f"Version {number} judges new calls of {whose}, and never steps in.")
    return to_version(policy_id, number)


def version_get(policy_id: UUID, number: int) -> tuple[PolicyRow, PolicyVersion]:
    """A policy and one of its versions, or 404."""
    row = row_get(policy_id)
    try:
        return row, policy_version_get(policy_id=policy_id, number=number)
    except PolicyNotFound as error:
        raise Http404(str(error)) from error


def version_page(
    request: MemberRequest,
    row: PolicyRow,
    found: PolicyVersion,
    *,
    editor: VersionEditor | None,
    panel: Panel | None,
    content: TypedContent | None = None,
    conflict: dict[str, Any] | None = None,
    status: int = HTTPStatus.OK,
) -> HttpResponse:
    """The page of a version: with `editor` to write, with `panel` to try. `content` is what was typed, if it is right:
    the prompts are those of it."""
    credentials = credentials_by_id()
    derived = shown_again(request, kind=DERIVED, object_id=found.id)
    context = {
        "section": "policies",
        "row": row,
        "version": version_line(found, live=row.live_number),
        "etag": policy_version_etag(found),
        "may_write": MAY_WRITE in request.membership.capabilities,
        "editor": editor,
        "panel": panel,
        "prompts": prompts_of(policy_version_config(content or found)),
        "conflict": conflict,
        "rules": rule_lines(found.rules),
        "own_prompt": found.config.get("judging_prompt", ""),
        "settings": [line for line in setting_lines(found.config) if line.label != "Judging prompt"],
        "model": credential_words(found.llm_credential_id, credentials),
        "fallback": credential_words(found.fallback_credential_id, credentials),
        "derived": json.loads(derived["found"]) if "found" in derived else None,
    }
    return render(request, "webui/policies/version.html", context, status=status)


def editor_of(request: MemberRequest, found: PolicyVersion) -> VersionEditor | None:
    """What somebody sent from the editor of a version that they may write; None for one that they read."""
    if not _may_edit(request, found):
        return None
    return VersionEditor(found, credentials=llm_credentials(), data=request.POST)


def _conflict_page(
    request: MemberRequest,
    row: PolicyRow,
    now: PolicyVersion,
    *,
    editor: VersionEditor,
    content: TypedContent,
    panel: Panel | None,
) -> HttpResponse:
    """Somebody else was faster: both texts, and the way on from either."""
    editor.etag_renew(policy_version_etag(now))
    conflict = {
        "draft": now.status == PolicyVersion.Status.DRAFT,
        "status": now.status,
        "diff": diff_view(policy_content_diff(before=now, after=content), credentials=credentials_by_id()),
        "rules": rule_lines(now.rules),
        "updated_at": now.updated_at,
    }
    return version_page(
        request, row, now, editor=editor, panel=panel, content=content, conflict=conflict, status=HTTPStatus.CONFLICT
    )


def _etag_now(etag: str, found: PolicyVersion) -> str:
    """The state that a save is about. What goes live elsewhere in the policy changes a version's ETag, and nothing of
    what stands in the editor."""
    now = policy_version_etag(found)
    return now if etag.strip('"').rpartition(".")[2] == now.strip('"').rpartition(".")[2] else etag


def _to_publish(policy_id: UUID, number: int) -> HttpResponse:
    return redirect("webui:policy_publish", policy_id=policy_id, number=number)


def _may_edit(request: MemberRequest, found: PolicyVersion) -> bool:
    return found.status == PolicyVersion.Status.DRAFT and MAY_WRITE in request.membership.capabilities


def _may_judge(request: MemberRequest) -> bool:
    return "judge" in request.membership.capabilities
