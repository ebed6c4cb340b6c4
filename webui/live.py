"""What a console socket sends: parts of pages, rendered with the pages' own templates.

Everything here is synchronous and runs in a database thread. A topic remembers what its browser has (a seq, the
hashes of larger regions) and reads the rest; the database decides what is sent, a hint only when.
"""

from __future__ import annotations

import threading
import zoneinfo
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar
from urllib.parse import parse_qsl
from uuid import UUID

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone

from supervision.models import CallEvent
from supervision.selectors.approvals import approvals_waiting
from supervision.selectors.call_pages import agent_names, call_changes, call_seq
from supervision.selectors.calls import CallFilters, CallNotFound, call_get, call_list
from tenants.context import tenant_context
from tenants.middleware import session_tenant_id
from tenants.models import User
from tenants.roles import Scope
from tenants.selectors.memberships import membership_get
from webui.call_parts import highlights_in, timeline_news
from webui.forms import CallFilterForm
from webui.lists import call_rows, calls_shown
from webui.presenters.approvals import approval_view
from webui.presenters.calls import CallRow
from webui.presenters.interventions import OUTCOMES
from webui.presenters.pages import CallPage, call_page
from webui.presenters.pieces import Badge
from webui.presenters.turns import NOT_JUDGED
from webui.watch import Standing, mark, session_mark

EVENTS_PER_UPDATE = 200
# More changed calls than this at once, and the list is read anew.
CALLS_PER_UPDATE = 100


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who is looking, in which tenant, what they may do there, in which time zone."""

    user_id: UUID
    tenant_id: UUID
    capabilities: frozenset[str]
    zone: zoneinfo.ZoneInfo | None
    standing: Standing


class ViewerGone(Exception):
    """The person is signed out, no member of the socket's tenant (any more), or has switched to another one."""

    def __init__(self, *, signed_out: bool = False, switched: bool = False) -> None:
        self.signed_out = signed_out
        self.switched = switched
        super().__init__("signed out" if signed_out else "in another tenant" if switched else "no member")


class TopicRefused(Exception):
    """The topic does not exist for this viewer: somebody else's and a missing one are the same."""


def viewer_check(
    *, session_key: str | None, tenant_id: UUID | None, strict: bool, zone: zoneinfo.ZoneInfo | None
) -> Viewer:
    """The session's person as a member. Raises ViewerGone.

    `strict`: of `tenant_id` and no other tenant; otherwise their oldest tenant will do when they are no member there.
    """
    said = session_mark(session_key or "")
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    # As every page asks it: checks the session's hash, so a changed password ends sockets too.
    user = get_user(request)
    if session_key is None or not isinstance(user, User):
        raise ViewerGone(signed_out=True)
    member = membership_get(user_id=user.id, tenant_id=tenant_id)
    if member is None or (strict and member.tenant.id != tenant_id):
        raise ViewerGone
    if strict and session_tenant_id(request.session) not in (None, tenant_id):
        raise ViewerGone(switched=True)
    standing = Standing(
        session_key=session_key,
        session_mark=said,
        user_id=user.id,
        password_mark=mark(user.password),
        membership_id=member.membership_id,
        role=member.role,
    )
    return Viewer(
        user_id=user.id,
        tenant_id=member.tenant.id,
        capabilities=member.capabilities,
        zone=zone,
        standing=standing,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One element of the page: what it now is and which list it belongs to, or that it goes.

    `only` names the elements that a list still holds; the browser drops the others.
    """

    id: str
    html: str | None = None
    into: str | None = None
    only: tuple[str, ...] | None = None

    def message(self) -> dict[str, Any]:
        if self.only is not None:
            return {"id": self.id, "only": self.only}
        if self.html is None:
            return {"id": self.id, "remove": True}
        return {"id": self.id, "html": self.html, **({"into": self.into} if self.into else {})}


@dataclass(frozen=True, slots=True)
class Update:
    """What a browser is sent. `announce` is for screen readers; `more`: there is more to read right away."""

    parts: tuple[Part, ...]
    seq: int | None = None
    announce: tuple[str, ...] = ()
    more: bool = False

    def message(self) -> dict[str, Any]:
        sent: dict[str, Any] = {"parts": [part.message() for part in self.parts]}
        if self.seq is not None:
            sent["seq"] = self.seq
        if self.announce:
            sent["announce"] = self.announce
        return sent


class Topic(ABC):
    """Something a browser follows. `read` is called in a database thread, one call at a time."""

    capability: ClassVar[str]
    """What a viewer needs to follow it."""

    @abstractmethod
    def concerns(self, call_id: UUID) -> bool:
        """Whether a hint about this call is one for this topic; remembers it if so."""

    @abstractmethod
    def recheck(self) -> None:
        """No hint came for a while: look at everything next time."""

    @abstractmethod
    def _read(self) -> Update | None: ...

    def read(self, viewer: Viewer) -> Update | None:
        """What changed since the last read, as `viewer`'s tenant and in their time zone; None for nothing.

        Raises TopicRefused.
        """
        if self.capability not in viewer.capabilities:
            raise TopicRefused
        zone = viewer.zone or timezone.get_default_timezone()
        with tenant_context(viewer.tenant_id), timezone.override(zone):
            return self._read()


# Events after which something else may stand out in a call.
_OUTSTANDING = frozenset(
    {"turn.judged", "tool.decided", "intervention.started", "intervention.ended", "approval.decided", "call.ended"}
)


class CallTopic(Topic):
    """One call. `after` is the newest event that the browser's page includes."""

    capability = Scope.CALLS_READ.value

    def __init__(self, call_id: UUID, after: int) -> None:
        self.call_id = call_id
        self.after = after
        self._regions: dict[str, int] = {}

    def concerns(self, call_id: UUID) -> bool:
        return call_id == self.call_id

    def recheck(self) -> None:
        """Reading by seq finds whatever there is."""

    def _read(self) -> Update | None:
        newest = call_seq(call_id=self.call_id)
        if newest is None:
            raise TopicRefused
        if newest <= self.after:
            return None
        try:
            call = call_get(call_id=self.call_id)
        except CallNotFound as error:
            raise TopicRefused from error
        now = timezone.now()
        record = call_changes(call=call, after_seq=self.after, limit=EVENTS_PER_UPDATE)
        # What stands out is read from the whole call, so only when something may.
        outstanding = any(event.kind in _OUTSTANDING for event in record.events)
        page = call_page(record, now, highlights_in(call) if outstanding else ())
        parts = [*self._region("call-head", "webui/calls/head.html", {"head": page.head})]
        if outstanding:
            context = {"highlights": page.highlights, "none_words": page.no_highlights, "call_id": call.id}
            parts += self._region("highlights", "webui/calls/highlights.html", context)
        for kind, into, items in (
            ("turn", "turns", page.turns),
            ("intervention", "interventions", page.interventions),
            ("tool", "tools", page.tools),
            ("note", "notes", page.notes),
        ):
            parts += [
                Part(item.dom_id, render_to_string(f"webui/calls/{kind}.html", {kind: item}), into) for item in items
            ]
        for tool in page.tools:
            html = render_to_string("webui/calls/loose_tool.html", {"tool": tool}) if tool.loose else None
            parts.append(Part(tool.loose_dom_id, html, "turns"))
        parts += [
            Part(event.dom_id, render_to_string("webui/calls/event.html", {"event": event}), "events")
            for event in page.events
        ]
        news = {"news": timeline_news(record, now=now)}
        parts.append(Part("timeline-news", render_to_string("webui/calls/timeline_news.html", news)))
        self.after = record.seq
        return Update(tuple(parts), record.seq, tuple(_announcements(record.events, page)), record.more_events)

    def _region(self, dom_id: str, template: str, context: dict[str, Any]) -> list[Part]:
        """A region that is sent whole, when it differs from what was sent last."""
        html = render_to_string(template, context)
        if self._regions.get(dom_id) == hash(html):
            return []
        self._regions[dom_id] = hash(html)
        return [Part(dom_id, html)]


def _announcements(events: Iterable[CallEvent], page: CallPage) -> Iterable[str]:
    """What somebody who does not see the page must hear of, and not more."""
    numbers = {str(turn.id): turn.number for turn in page.turns}
    for event in events:
        data = event.data if isinstance(event.data, dict) else {}
        if event.kind == "intervention.started":
            yield f"Intervention started: {data.get('rule') or 'a rule was broken'}"
        elif event.kind == "intervention.ended":
            outcome = str(data.get("outcome", ""))
            yield f"Intervention ended: {OUTCOMES.get(outcome, Badge(outcome)).text}"
        elif event.kind == "tool.decided" and not data.get("allow"):
            yield f"Tool blocked: {data.get('name', '')}"
        elif event.kind == "turn.judged" and data.get("state") in NOT_JUDGED and not data.get("late"):
            yield f"Turn {numbers.get(str(data.get('turn_id')), '')} was not judged"
        elif event.kind == "call.ended":
            yield "The call has ended"


class ApprovalsTopic(Topic):
    """The tool calls that wait for a person, pinned above the calls list. With buttons for who may decide."""

    capability = Scope.CALLS_READ.value

    def __init__(self) -> None:
        # Until the first read it is not known what the page has.
        self._shown: tuple[UUID, ...] | None = None
        self._may_decide = False

    def concerns(self, call_id: UUID) -> bool:
        return True

    def recheck(self) -> None:
        """Reading finds whatever waits, and it is few."""

    def read(self, viewer: Viewer) -> Update | None:
        self._may_decide = Scope.CALLS_WRITE.value in viewer.capabilities
        return super().read(viewer)

    def _read(self) -> Update | None:
        now = timezone.now()
        waiting = [approval_view(approval, now) for approval in approvals_waiting()]
        before, self._shown = self._shown, tuple(approval.id for approval in waiting)
        if before == self._shown:
            return None
        html = render_to_string("webui/calls/approvals.html", {"approvals": waiting, "may_decide": self._may_decide})
        new = () if before is None else tuple(each for each in waiting if each.id not in before)
        return Update((Part("approvals", html),), announce=tuple(f"{each.tool} waits for approval" for each in new))


class ManyCallsTopic(Topic):
    """A page of many calls: remembers which changed since the last read, up to a number; beyond it, all of them."""

    capability = Scope.CALLS_READ.value

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: set[UUID] = set()
        self._everything = True

    def concerns(self, call_id: UUID) -> bool:
        with self._lock:
            if len(self._changed) < CALLS_PER_UPDATE:
                self._changed.add(call_id)
            else:
                self._everything = True
        return True

    def recheck(self) -> None:
        with self._lock:
            self._everything = True

    def _taken(self) -> tuple[bool, frozenset[UUID]]:
        """Whether to look at all calls, and else at which; from here on it is remembered anew."""
        with self._lock:
            everything, changed = self._everything, frozenset(self._changed)
            self._everything, self._changed = False, set()
        return everything, changed


class CallsTopic(ManyCallsTopic):
    """The calls list under the filters of its page's URL (`query`), as its first page shows it."""

    def __init__(self, query: str) -> None:
        super().__init__()
        self._query = query
        self._announced: set[UUID] | None = None

    def _read(self) -> Update | None:
        everything, changed = self._taken()
        try:
            form = CallFilterForm(dict(parse_qsl(self._query, max_num_fields=20)), agents=agent_names())
        except ValueError as error:
            raise TopicRefused from error
        filters = form.filters()
        return self._all(filters) if everything else self._some(filters, changed)

    def _all(self, filters: CallFilters) -> Update:
        shown = calls_shown(filters, cursor=None, now=timezone.now())
        live = tuple(row.dom_id for row in shown.live)
        parts = [Part("calls-live", only=live), *(_row_part(row, filters) for row in (*shown.live, *shown.ended))]
        return Update(tuple(parts), announce=self._started(shown.live))

    def _some(self, filters: CallFilters, changed: frozenset[UUID]) -> Update | None:
        if not changed:
            return None
        calls = call_list(limit=CALLS_PER_UPDATE, filters=replace(filters, ids=changed)).items
        rows = call_rows(calls, timezone.now())
        gone = changed - {row.id for row in rows}
        parts = [*(_row_part(row, filters) for row in rows), *(Part(f"call-{call_id.hex}") for call_id in gone)]
        return Update(tuple(parts), announce=self._started(row for row in rows if row.live))

    def _started(self, live: Iterable[CallRow]) -> tuple[str, ...]:
        """Calls that began since the first read."""
        rows = list(live)
        known = self._announced
        self._announced = (known or set()) | {row.id for row in rows}
        return () if known is None else tuple(f"A call to {row.agent} started" for row in rows if row.id not in known)


def _row_part(row: CallRow, filters: CallFilters) -> Part:
    return Part(row.dom_id, render_to_string("webui/calls/row.html", {"row": row, "said": filters.text}), row.into)
