"""The review queue: one item after the other, each for one reviewer at a time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from supervision.selectors.call_pages import agent_names
from supervision.selectors.label_statistics import label_statistics
from supervision.selectors.reviews import (
    ReviewFilters,
    ReviewItem,
    ReviewItemNotFound,
    review_begun,
    review_item,
    review_label_newest,
    review_labels_since,
    review_left,
    review_queue,
    review_queue_before,
    review_reserved,
)
from supervision.services.labels import LabelNotFound
from supervision.services.reviews import (
    ItemLabelled,
    ItemReserved,
    LabelChanged,
    review_label,
    review_next,
    review_reserve,
    review_undo,
)
from webui.access import MemberRequest, member_view
from webui.once import once
from webui.pager import Query, list_url
from webui.presenters.review import item_page, item_url, last_view, progress_view, queue_rows, rates_of
from webui.review_forms import LabelForm, ReviewFilterForm, UndoForm

BEFORE, AFTER = 4, 16
STATISTICS_DAYS: Final = 30
# After that long it is history, and the call's page is where to look for it.
LAST_FOR: Final = timedelta(minutes=30)


@never_cache
@require_safe
@member_view(scope="labels:write")
def review(request: MemberRequest) -> HttpResponse:
    """On to the next item under the filters of the URL; without any, what was done and what else there is."""
    form = _filter_form(request)
    filters, query = form.filters(), form.query()
    now = timezone.now()
    item_id = review_next(filters=filters, now=now)
    if item_id is not None:
        return redirect(item_url(item_id, query))
    today = now.date()
    return render(
        request,
        "webui/review/done.html",
        {
            **_around(request, form, filters, now),
            "reserved": review_reserved(filters=filters, now=now, reviewer_id=request.user.id),
            "begun": review_begun(),
            "rates": rates_of(label_statistics(first=today - timedelta(days=STATISTICS_DAYS - 1), last=today)),
        },
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="labels:write")
def item(request: MemberRequest, item_id: UUID) -> HttpResponse:
    """One item, which is the viewer's for some minutes; or their word on it, and on to the next."""
    filter_form = _filter_form(request)
    filters, query = filter_form.filters(), filter_form.query()
    now = timezone.now()
    try:
        shown = review_item(item_id=item_id)
    except ReviewItemNotFound as error:
        raise Http404(str(error)) from error
    form = LabelForm(request.POST) if request.method == "POST" else None
    changed = ""
    if form is not None and form.is_valid():
        try:
            review_label(
                item_id=item_id,
                value=form.cleaned_data["label"],
                note=form.cleaned_data["note"],
                seen=form.cleaned_data["seen"],
                now=now,
            )
        except ValidationError as error:
            form.refuse(error)
        except ItemLabelled as error:
            changed = f"{error} Nothing of yours was saved. Label it again to replace that, or go on to the next."
        except ItemReserved:
            # The page says who has it.
            pass
        else:
            after = review_next(filters=filters, now=now, after=shown.place)
            return redirect(item_url(after, query) if after else list_url(reverse("webui:review"), query))
        shown = review_item(item_id=item_id)
    return render(
        request,
        "webui/review/item.html",
        {
            **_around(request, filter_form, filters, now, current=shown),
            **_reservation(shown, now),
            "page": item_page(shown, chosen=form.data.get("label", "") if form is not None else ""),
            "form": form or LabelForm(initial={"note": shown.label.note if shown.label else ""}),
            "changed": changed,
        },
        status=409 if changed else 200,
    )


@require_POST
@member_view(scope="labels:write")
@once
def undo(request: MemberRequest) -> HttpResponse:
    """Take back the label that the viewer gave last, and back to its item."""
    query = _filter_form(request).query()
    form = UndoForm(request.POST)
    if not form.is_valid() or form.cleaned_data["at"] is None:
        raise Http404("There is no such label.")
    try:
        item_id = review_undo(label_id=form.cleaned_data["label"], labelled_at=form.cleaned_data["at"])
    except LabelNotFound as error:
        raise Http404(str(error)) from error
    except LabelChanged as error:
        messages.error(request, str(error))
        return redirect(list_url(reverse("webui:review"), query))
    messages.success(request, "Your label was taken back.")
    return redirect(item_url(item_id, query))


def _filter_form(request: MemberRequest) -> ReviewFilterForm:
    return ReviewFilterForm(request.GET, agents=agent_names())


def _reservation(shown: ReviewItem, now: datetime) -> dict[str, Any]:
    """Until when the item is the viewer's, or whose it is."""
    try:
        until = review_reserve(item_id=shown.item_id, call_id=shown.call.id, now=now)
    except ItemReserved as error:
        return {"taken_by": error.reviewer, "left_ms": (error.until - now) // timedelta(milliseconds=1)}
    return {"taken_by": "", "left_ms": (until - now) // timedelta(milliseconds=1)}


def _around(
    request: MemberRequest,
    form: ReviewFilterForm,
    filters: ReviewFilters,
    now: datetime,
    current: ReviewItem | None = None,
) -> dict[str, Any]:
    """What stands around an item: the filters, the queue, how far it is, and what was said last."""
    query: Query = form.query()
    email = request.user.email
    today = timezone.localtime(now).replace(hour=0, minute=0, second=0, microsecond=0)
    mine, everybody = review_labels_since(since=today, labelled_by=email)
    last = review_label_newest(labelled_by=email, since=now - LAST_FOR)
    reviewer_id = request.user.id
    before, after = [], []
    if current is not None:
        place = current.place
        before = review_queue_before(filters=filters, now=now, reviewer_id=reviewer_id, before=place, limit=BEFORE)
        after = review_queue(filters=filters, now=now, reviewer_id=reviewer_id, after=place, limit=AFTER)
    return {
        "section": "review",
        "filter_form": form,
        "query": list_url("", query),
        "progress": progress_view(review_left(filters=filters), labelled=everybody, kind=filters.kind, query=query),
        "mine": mine,
        "everybody": everybody,
        "last": last_view(last, query) if last is not None else None,
        "before": queue_rows(before, current=None, query=query),
        "after": queue_rows(after, current=None, query=query),
    }
