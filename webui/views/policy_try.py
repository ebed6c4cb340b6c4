"""Trying a version on a turn, as it stands on the page: typed and not stored, if somebody is writing."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from supervision.engine.context import Verdict
from supervision.selectors.calls import CallNotFound
from supervision.selectors.policies import policy_version_config
from supervision.selectors.turn_scenes import TurnNotFound
from supervision.services.judging import Judge, NothingJudges, judge_of_content, review_count, turn_review
from tenants.api.limits import RateLimited, request_count
from tenants.context import tenant_context
from webui.access import MemberRequest, member_view
from webui.plain import plain
from webui.policy_editor import TypedContent, VersionEditor
from webui.policy_panel import Panel, content_asked, panel_sent, panel_took
from webui.presenters.policy_try import prompts_of
from webui.views.policies import to_version
from webui.views.policy_versions import editor_of, version_get, version_page

# What of the page the browser asks for, when it does not want all of it.
PART = "X-Mirror-Part"


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="judge", in_transaction=False)
def version_try(request: MemberRequest, policy_id: UUID, number: int) -> HttpResponse:
    """Judge a turn by what stands on the page, and show the page with the verdict. Read: back to the version."""
    if request.method != "POST":
        return to_version(policy_id, number)
    tenant = request.membership.tenant
    with tenant_context(tenant.id):
        _, found = version_get(policy_id, number)
        editor = editor_of(request, found)
        try:
            panel, payload = panel_sent(request.POST)
        except (TurnNotFound, CallNotFound) as error:
            raise Http404(str(error)) from error
        content = editor.content() if editor is not None else content_asked(found, anyway=False)
        judge: Judge | None = None
        if payload is not None and content is None:
            panel.refused = "Nothing was judged: something is wrong with the draft. It says so where it is."
        elif payload is not None and content is not None:
            asked = content_asked(content, anyway=bool(request.POST.get("try-anyway")))
            try:
                judge = judge_of_content(tenant=tenant, policy_id=policy_id, number=number, content=asked)
            except NothingJudges as error:
                panel.refused = str(error)
            except ValidationError as error:
                panel.refused = " ".join(plain(text) for text in error.messages)
    status = HTTPStatus.OK
    verdict: Verdict | None = None
    if judge is not None and payload is not None:
        try:
            request_count(request, tenant_id=tenant.id, asker="person", asker_id=request.user.pk)
            verdict = turn_review(judge, payload)
        except RateLimited as error:
            panel.refused = str(error)
            status = HTTPStatus.TOO_MANY_REQUESTS
        except NothingJudges:
            panel.refused = (
                "The settings of this version do not go with its model. Choose another model, or score by one question"
                " about all rules."
            )
    with tenant_context(tenant.id):
        if verdict is not None and judge is not None and payload is not None and content is not None:
            review_count(judge=judge, verdict=verdict, tools=verdict.tools, now=timezone.now())
            model = judge.binding.llm.model if judge.binding.llm is not None else ""
            panel_took(panel, verdict, payload, content, model=model)
        return _answer(request, policy_id, number, editor=editor, panel=panel, content=content, status=status)


def _answer(
    request: MemberRequest,
    policy_id: UUID,
    number: int,
    *,
    editor: VersionEditor | None,
    panel: Panel,
    content: TypedContent | None,
    status: int,
) -> HttpResponse:
    part = request.headers.get(PART, "")
    row, found = version_get(policy_id, number)
    if part == "row" and (past := panel.row()) is not None:
        context = {"past": past, "row": row, "version": found, "refused": panel.refused}
        return render(request, "webui/policies/past_turn.html", context, status=status)
    if part:
        prompts = prompts_of(policy_version_config(content or found))
        context = {"panel": panel, "prompts": prompts, "row": row, "version": found, "editor": editor}
        return render(request, "webui/policies/panel.html", context, status=status)
    return version_page(request, row, found, editor=editor, panel=panel, content=content, status=status)
