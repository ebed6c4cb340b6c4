"""Tool calls that wait for a person: pinned above other pages, listed on their own, and decided."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from mirror_saas.errors import Conflict
from supervision.selectors.approvals import ApprovalNotFound, approval_list, approvals_waiting
from supervision.selectors.pages import BadCursor
from supervision.services.approvals import approval_decide
from tenants.roles import Scope
from webui.access import MemberRequest, member_view
from webui.approval_forms import ApprovalFilterForm
from webui.pager import list_url, pager_urls
from webui.presenters.approvals import ApprovalView, approval_view, decided_view

PAGE_ROWS = 50


def approvals_pinned(request: MemberRequest) -> dict[str, object]:
    """What `approvals/pinned.html` needs: what waits, whether this member may decide, and the way back here."""
    now = timezone.now()
    return {
        "approvals": [approval_view(approval, now) for approval in approvals_waiting()],
        "may_decide": Scope.CALLS_WRITE in request.membership.capabilities,
        "back": request.get_full_path(),
    }


@require_safe
@member_view(scope="calls:read")
def approvals(request: MemberRequest) -> HttpResponse:
    """What waits, and what became of the others."""
    return _page(request)


def _page(request: MemberRequest, refused: dict[UUID, tuple[str, str]] | None = None) -> HttpResponse:
    """`refused`: notes that cannot be stored, each with what is wrong with it, by the decision they are about."""
    form = ApprovalFilterForm(request.GET)
    cursor = request.GET.get("cursor")
    url, query = reverse("webui:approvals"), form.query()
    try:
        page = approval_list(cursor=cursor, limit=PAGE_ROWS, state=form.state_chosen())
    except BadCursor:
        return redirect(list_url(url, query))
    pinned = approvals_pinned(request)
    if refused:
        pinned["approvals"] = _waiting(refused)
    return render(
        request,
        "webui/approvals/list.html",
        {
            "section": "approvals",
            "form": form,
            "decided": [decided_view(approval) for approval in page.items],
            "first_page": cursor is None,
            **pinned,
            **pager_urls(url, query, cursor=cursor, older=page.next),
        },
        status=HTTPStatus.UNPROCESSABLE_ENTITY if refused else HTTPStatus.OK,
    )


@require_POST
@member_view(scope="calls:write")
def approval_decision(request: MemberRequest) -> HttpResponse:
    """Approve or deny the tool call that a button named; the call hears of it at once.

    A page whose script asks (`X-Mirror-Part`) is told what to say and what still waits; others are sent back to where
    they were.
    """
    approve = "approve" in request.POST
    in_place = request.headers.get("X-Mirror-Part") == "approvals"
    try:
        decision_id = UUID(request.POST.get("approve" if approve else "deny", ""))
    except ValueError as error:
        raise Http404("There is no such tool call that needs an approval.") from error
    note = request.POST.get(f"note-{decision_id}", "")
    try:
        approval = approval_decide(decision_id=decision_id, approve=approve, note=note)
    except ApprovalNotFound as error:
        raise Http404(str(error)) from error
    except ValidationError as error:
        said = " ".join(error.messages)
        refused = {decision_id: (note, said)}
        return _part(said, _waiting(refused), good=False) if in_place else _page(request, refused)
    except Conflict as error:
        if in_place:
            return _part(str(error), _waiting({}), good=False)
        messages.error(request, str(error))
    else:
        said = f"{approval.tool} was {approval.state}."
        if in_place:
            return _part(said, _waiting({}), good=True)
        messages.success(request, said)
    return redirect(_back(request))


def _waiting(refused: dict[UUID, tuple[str, str]]) -> list[ApprovalView]:
    now = timezone.now()
    shown = []
    for approval in approvals_waiting():
        note, error = refused.get(approval.id, ("", ""))
        shown.append(approval_view(approval, now, note=note, error=error))
    return shown


def _part(said: str, waiting: list[ApprovalView], *, good: bool) -> JsonResponse:
    html = render_to_string("webui/calls/approvals.html", {"approvals": waiting, "may_decide": True})
    return JsonResponse({"said": said, "good": good, "html": html})


def _back(request: MemberRequest) -> str:
    """The page of ours that the buttons stood on."""
    back = request.POST.get("next", "")
    if back.startswith("/") and url_has_allowed_host_and_scheme(back, allowed_hosts=None):
        return back
    return reverse("webui:approvals")
