"""One call: its page, the parts of it that are asked for one by one, labels, and its erasure."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from supervision.models import Call
from supervision.selectors.call_pages import CallTurnNotFound
from supervision.selectors.calls import CallNotFound, call_get
from supervision.services.erasure import CallRunning, call_erase
from supervision.services.labels import intervention_label, tool_decision_label, turn_label
from tenants.roles import Scope
from webui.access import MemberRequest, member_view, reauthenticated
from webui.call_parts import CallShown, call_shown, events_before, turn_shown, turns_around, turns_beyond
from webui.label_forms import LabelForm
from webui.once import once
from webui.presenters.calls import call_row
from webui.presenters.chosen import ChosenTurn
from webui.presenters.labels import LABELS, Refused

_FAR_MS = 2**53


@require_safe
@member_view(scope="calls:read")
def call_detail(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """One call around the turn that the URL names. Somebody else's and a missing one are the same 404."""
    return _page(request, call_id, turn_id=_uuid(request.GET.get("turn")))


@require_safe
@member_view(scope="calls:read")
def call_turn(request: MemberRequest, call_id: UUID, turn_id: UUID) -> HttpResponse:
    """The panel of one turn, for a page that shows it in place."""
    if _is_opened(request):
        return redirect(_url_of(call_id, turn_id))
    try:
        return _panel(request, turn_shown(call_id=call_id, turn_id=turn_id))
    except (CallNotFound, CallTurnNotFound) as error:
        raise Http404(str(error)) from error


@require_safe
@member_view(scope="calls:read")
def call_turns(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """Other turns: more of the list, before the turn `before` or after the turn `after`; else the list around `around`,
    from the first turn on without it."""
    around, before, after = (_uuid(request.GET.get(name)) for name in ("around", "before", "after"))
    if _is_opened(request):
        return redirect(_url_of(call_id, around or before or after))
    more = before is not None or after is not None
    try:
        if more:
            window = turns_beyond(call_id=call_id, before=before, after=after)
        else:
            window = turns_around(call_id=call_id, turn_id=around)
    except (CallNotFound, CallTurnNotFound) as error:
        raise Http404(str(error)) from error
    template = "webui/calls/turns_more.html" if more else "webui/calls/turn_list.html"
    return render(request, template, {"window": window, "call_id": call_id, "before": before is not None})


@require_safe
@member_view(scope="calls:read")
def call_events(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """The end of the log, or what was before the event `before`."""
    if _is_opened(request):
        return redirect(_url_of(call_id, None))
    try:
        window = events_before(call_id=call_id, before_seq=_ms(request.GET.get("before")))
    except CallNotFound as error:
        raise Http404(str(error)) from error
    return render(request, "webui/calls/events_more.html", {"window": window, "call_id": call_id})


@require_POST
@member_view(scope="labels:write")
def call_label(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """Say of something in this call whether Mirror was right. Then back to the turn that shows it."""
    form = LabelForm(request.POST)
    if not form.names_something:
        raise Http404("There is nothing to label.")
    about, subject_id, turn_id = (form.cleaned_data[name] for name in ("about", "subject_id", "turn"))
    try:
        shown = turn_shown(call_id=call_id, turn_id=turn_id)
    except (CallNotFound, CallTurnNotFound) as error:
        raise Http404(str(error)) from error
    if subject_id not in _labelled_in(shown, about):
        raise Http404("There is no such thing in this turn.")
    wrong = [str(message) for messages_of in form.errors.values() for message in messages_of]
    if not wrong:
        try:
            _label(about, subject_id, form.cleaned_data["label"], form.cleaned_data["note"])
        except ValidationError as error:
            wrong = error.messages
    refused = Refused(subject_id, request.POST.get("note", ""), " ".join(wrong)) if wrong else None
    if "HX-Request" in request.headers:
        return _panel(request, turn_shown(call_id=call_id, turn_id=turn_id, refused=refused))
    if refused is not None:
        return _page(request, call_id, turn_id=turn_id, refused=refused)
    messages.success(request, f"Labelled: {LABELS[form.cleaned_data['label']].text}.")
    return redirect(_url_of(call_id, turn_id))


@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="calls:write")
@reauthenticated
@once
def call_erasure(request: MemberRequest, call_id: UUID) -> HttpResponse:
    """Erase a call, after one more question."""
    try:
        call = call_get(call_id=call_id)
        if request.method == "POST":
            call_erase(call_id=call_id)
            messages.success(request, "The call is erased. What it had cost is still counted, without anything of it.")
            return redirect("webui:calls")
    except CallNotFound as error:
        raise Http404(str(error)) from error
    except CallRunning as error:
        messages.error(request, str(error))
        return redirect("webui:call", call_id=call_id)
    context = {"section": "calls", "row": call_row(call, timezone.now()), "running": call.state == Call.State.LIVE}
    return render(request, "webui/calls/erase.html", context)


def _page(
    request: MemberRequest, call_id: UUID, *, turn_id: UUID | None, refused: Refused | None = None
) -> HttpResponse:
    before = _ms(request.GET.get("before"))
    try:
        shown = call_shown(
            call_id=call_id,
            turn_id=turn_id,
            at_ms=_ms(request.GET.get("at")),
            now=timezone.now(),
            said=request.GET.get("said", ""),
            events_before_seq=before,
            refused=refused,
        )
    except CallNotFound as error:
        raise Http404(str(error)) from error
    context = {**_context(request, shown), "section": "calls", "older_log": before is not None}
    return render(request, "webui/calls/call.html", context)


def _context(request: MemberRequest, shown: CallShown) -> dict[str, object]:
    return {
        "shown": shown,
        "page": shown.page,
        "chosen": shown.chosen,
        "may_label": Scope.LABELS_WRITE in request.membership.capabilities,
        "may_erase": Scope.CALLS_WRITE in request.membership.capabilities and not shown.page.head.live,
    }


def _panel(request: MemberRequest, chosen: ChosenTurn) -> HttpResponse:
    may_label = Scope.LABELS_WRITE in request.membership.capabilities
    return render(request, "webui/calls/chosen.html", {"chosen": chosen, "may_label": may_label})


def _labelled_in(shown: ChosenTurn, about: str) -> set[UUID]:
    """What the panel has label buttons for."""
    views = [shown.label, *(label for _, label in shown.interventions), *(label for _, label in shown.tools)]
    return {view.id for view in views if view is not None and view.subject == about}


def _label(about: str, subject_id: UUID, value: str, note: str) -> None:
    if about == "turn":
        turn_label(turn_id=subject_id, value=value, note=note)
    elif about == "intervention":
        intervention_label(intervention_id=subject_id, value=value, note=note)
    else:
        tool_decision_label(decision_id=subject_id, value=value, note=note)


def _is_opened(request: MemberRequest) -> bool:
    """Whether a browser opens it as a page, of which it is only a part."""
    return request.headers.get("Sec-Fetch-Mode") == "navigate"


def _url_of(call_id: UUID, turn_id: UUID | None) -> str:
    url = reverse("webui:call", kwargs={"call_id": call_id})
    return f"{url}?{urlencode({'turn': turn_id})}#chosen" if turn_id else url


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None


def _ms(text: str | None) -> int | None:
    """A whole number from 0 that a database and a browser can hold."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 16:
        return None
    return min(int(text), _FAR_MS)
