"""Template tags of the console: icons, times in the viewer's zone, figures."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from webui import formats
from webui.once import FIELD as ONCE_FIELD

register = template.Library()

# Drawn on a 16 × 16 grid, stroked; each next to a word, never alone in its meaning.
ICONS = {
    "alert": "M8 2.2 14.4 13.4H1.6L8 2.2ZM8 6.4v3.2M8 11.6v.01",
    "arrow-left": "M13 8H3M7 4 3 8l4 4",
    "arrow-right": "M3 8h10M9 4l4 4-4 4",
    "ban": "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM3.8 3.8l8.4 8.4",
    "check": "M3 8.6 6.4 12 13 4.6",
    "clock": "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM8 4.8V8l2.2 1.6",
    "cross": "M4 4l8 8M12 4l-8 8",
    "cut": "M2 12 12 2M2 6.5 6.5 2M7.5 14 14 7.5",
    "dash": "M4 8h8",
    "down": "M4 6.4 8 10.4 12 6.4",
    "filter": "M2 4h12M4.5 8h7M7 12h2",
    "grip": "M6 3.5v.01M6 8v.01M6 12.5v.01M10 3.5v.01M10 8v.01M10 12.5v.01",
    "info": "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12ZM8 7.4V11M8 5v.01",
    "key": "M5.2 13.2a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4ZM7.6 7.8 13 2.4M10.6 4.8l2.2 2.2",
    "mirror": "M3 2.5v11M13 2.5v11M6 6.2v3.6M10 6.2v3.6M8 4.4v7.2",
    "moon": "M13.2 9.6A5.6 5.6 0 0 1 6.4 2.8a5.6 5.6 0 1 0 6.8 6.8Z",
    "note": "M3.5 2.5h9v11h-9zM6 5.8h4M6 8.2h4M6 10.6h2.2",
    "person": "M8 8a2.7 2.7 0 1 0 0-5.4A2.7 2.7 0 0 0 8 8ZM2.8 13.6c.5-2.6 2.6-3.8 5.2-3.8s4.7 1.2 5.2 3.8",
    "phone": "M4.2 2.4 6 2.6l.9 2.8-1.4 1.2a8 8 0 0 0 3.9 3.9l1.2-1.4 2.8.9.2 1.8c0 1-.9 1.8-1.9 1.7A11 11 0 0 1 2.5"
    " 4.3c-.1-1 .7-1.9 1.7-1.9Z",
    "plus": "M8 3v10M3 8h10",
    "robot": "M3 6.2h10v6.6H3zM8 6.2V3.4M8 3.4v-.01M6 9.2v.01M10 9.2v.01",
    "shield": "M8 1.8 13 3.6v4c0 3.2-2 5.4-5 6.6-3-1.2-5-3.4-5-6.6v-4L8 1.8Z",
    "sign-out": "M6.4 2.6H3v10.8h3.4M10.4 5l3 3-3 3M13.2 8H6.6",
    "skip": "M3 4l5 4-5 4ZM8.6 4l5 4-5 4Z",
    "sun": "M8 10.8a2.8 2.8 0 1 0 0-5.6 2.8 2.8 0 0 0 0 5.6ZM8 1.4v1.2M8 13.4v1.2M1.4 8h1.2M13.4 8h1.2M3.3 3.3l.9.9"
    "M11.8 11.8l.9.9M3.3 12.7l.9-.9M11.8 4.2l.9-.9",
    "system": "M2 3h12v8H2zM6 13.6h4",
    "tool": "M9.6 6.4a3.2 3.2 0 0 1 3.9-3.9l-1.9 1.9.4 1.6 1.6.4 1.9-1.9a3.2 3.2 0 0 1-4.3 3.6l-5 5a1.4 1.4 0 0 1-2-2Z",
    "undo": "M3 6.4h6.6a3.4 3.4 0 0 1 0 6.8H6M6 3.4l-3 3 3 3",
    "up": "M4 9.6 8 5.6 12 9.6",
    "wave": "M2 8h1.4M5 5v6M7.4 2.6v10.8M9.8 4.6v6.8M12.2 6.4v3.2M14 8h.01",
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """The icon `name`, hidden from screen readers: a word always stands beside it."""
    return format_html(
        '<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false"><path d="{}"/></svg>', ICONS[name]
    )


@register.simple_tag
def once() -> SafeString:
    """The hidden token by which a form that is sent twice is done once (see webui.once)."""
    return format_html('<input type="hidden" name="{}" value="{}">', ONCE_FIELD, uuid4())


@register.simple_tag
def when(value: datetime | None, style: str = "full") -> SafeString | str:
    """A `<time>` in the viewer's zone with UTC on hover. `style` is `full` (22 Nov 2025, 14:03:22) or `clock`.

    The browser rewrites it where it knows its zone better than we do (see time.js).
    """
    if value is None:
        return formats.UNKNOWN
    utc = value.astimezone(UTC)
    local = timezone.localtime(value)
    text = local.strftime("%H:%M:%S") if style == "clock" else f"{local.day} {local:%b %Y, %H:%M:%S}"
    return format_html(
        '<local-time look="{}"><time datetime="{}" title="{} UTC">{}</time></local-time>',
        style,
        utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        utc.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        text,
    )


@register.simple_tag
def relative(value: datetime | None, never: str = formats.UNKNOWN) -> SafeString | str:
    """How long ago a moment was, or how far off it is, with the moment on hover; `never` for None."""
    if value is None:
        return never
    off = value - timezone.now()
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        formats.relative(off // timedelta(milliseconds=1)),
    )


@register.simple_tag(takes_context=True)
def viewer_zone(context: template.Context) -> str:
    """The zone that this page's times are in, by its IANA name."""
    return timezone.get_current_timezone_name()


@register.filter
def duration(ms: int | None) -> str:
    return formats.duration(ms)


@register.filter
def offset(ms: int | None) -> str:
    return formats.offset(ms)


@register.filter
def share(value: float | None) -> str:
    return formats.share(value)


@register.filter
def number(value: int | None) -> str:
    return formats.number(value)


@register.filter
def money(value: Decimal | None) -> str:
    return formats.money(value)


@register.filter
def score(value: float | None) -> str:
    return formats.score(value)


@register.filter
def masked(number: str) -> str:
    return formats.number_masked(number)


@register.filter
def words(code: str) -> str:
    return formats.sentence_of(code)


@register.filter
def as_json(value: Any) -> str:
    """JSON for people: indented, keys as they came, other scripts unescaped. Autoescaping still applies."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


# Nothing of it can end the element that it stands in, or begin another.
_NO_MARKUP = {ord(char): f"\\u{ord(char):04X}" for char in "<>&"}


@register.simple_tag
def json_data(value: Any, dom_id: str) -> SafeString:
    """`value` as JSON for a script, in an element that is not shown. No inline script: the policy allows none."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_NO_MARKUP)
    return format_html('<data id="{}" hidden>{}</data>', dom_id, mark_safe(text))  # noqa: S308 - _NO_MARKUP


@register.simple_tag
def meter(value: float | None, threshold: float | None) -> SafeString:
    """A score against its threshold, drawn to scale; the figures stand beside it as text."""
    if value is None:
        return mark_safe("")
    reached = threshold is not None and value >= threshold
    mark = (
        format_html('<line class="meter-at" x1="{0}%" x2="{0}%" y1="-2" y2="14"/>', f"{threshold * 100:.1f}")
        if threshold is not None
        else ""
    )
    return format_html(
        '<svg class="meter{}" aria-hidden="true" focusable="false">'
        '<rect class="meter-track" width="100%" height="100%" rx="3"/>'
        '<rect class="meter-fill" width="{}%" height="100%" rx="3"/>{}</svg>',
        " meter-over" if reached else "",
        f"{max(0.0, min(1.0, value)) * 100:.1f}",
        mark,
    )
