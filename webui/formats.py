"""How the console writes figures: durations, offsets, shares, telephone numbers. Pure."""

from __future__ import annotations

from decimal import Decimal

MINUTE_MS = 60_000
HOUR_MS = 3_600_000

UNKNOWN = "–"


def duration(ms: int | None) -> str:
    """A duration in ms as a person reads it: `420 ms`, `3.1 s`, `1 min 12 s`, `2 h 05 min`; a dash for None."""
    if ms is None:
        return UNKNOWN
    if ms < 0:
        return f"-{duration(-ms)}"
    if ms < 1000:
        return f"{ms} ms"
    # Tenths are cut, not rounded: 59,960 ms must not read as 60.0 s.
    if ms < MINUTE_MS:
        return f"{ms // 100 / 10:.1f} s"
    if ms < HOUR_MS:
        return f"{ms // MINUTE_MS} min {ms % MINUTE_MS // 1000:02d} s"
    return f"{ms // HOUR_MS} h {ms % HOUR_MS // MINUTE_MS:02d} min"


def offset(ms: int | None) -> str:
    """A position in a call, in ms from its start, as a player shows it: `0:04.2`, `12:31.0`, `1:02:31.0`."""
    if ms is None:
        return UNKNOWN
    sign = "-" if ms < 0 else ""
    tenths = abs(ms) // 100
    seconds, tenth = divmod(tenths, 10)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{sign}{hours}:{minute:02d}:{second:02d}.{tenth}"
    return f"{sign}{minute}:{second:02d}.{tenth}"


def relative(ms: int) -> str:
    """How far off a moment is, in ms from now: `just now`, `3 min ago`, `2 h ago`, `in 5 days`.

    What is past is rounded down and what is to come up, so that 30 days from now are not called 29 a moment later.
    """
    if ms <= 0:
        minutes = -ms // MINUTE_MS
        return f"{_far(minutes, minutes // 60, minutes // 1440)} ago" if minutes else "just now"
    minutes = -(-ms // MINUTE_MS)
    return f"in {_far(minutes, -(-minutes // 60), -(-minutes // 1440))}"


def _far(minutes: int, hours: int, days: int) -> str:
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h" if minutes < 48 * 60 else f"{days} days"


def share(value: float | None) -> str:
    """A share from 0 to 1 in per cent. Cut, not rounded: only a whole 1 reads as `100 %`."""
    if value is None:
        return UNKNOWN
    return f"{int(value * 100 + 1e-9)} %"


def number(value: int | None) -> str:
    """A count with narrow blanks between its thousands: `1 234 567`; a dash for None."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def money(dollars: Decimal | None) -> str:
    """US dollars: `$12.34`; what is less than a cent keeps two digits that are not zero: `$0.0042`."""
    if dollars is None:
        return UNKNOWN
    if dollars < 0:
        return f"-{money(-dollars)}"
    if dollars == 0 or dollars >= Decimal("0.01"):
        return f"${dollars:,.2f}".replace(",", "\u202f")
    return f"${dollars:.{1 - dollars.adjusted()}f}"


def score(value: float | None) -> str:
    """A judge's score from 0 to 1 with two decimals."""
    return UNKNOWN if value is None else f"{value:.2f}"


def number_masked(number: str) -> str:
    """A caller's number with its middle hidden (`+49 ••• 671`), or a SIP address with its user hidden.

    Enough to tell two callers of a list apart, too little to ring one up.
    """
    number = number.strip()
    if not number:
        return "unknown"
    if "@" in number:
        user, _, host = number.partition("@")
        scheme, colon, name = user.rpartition(":")
        return f"{scheme}{colon}{name[:1]}•••@{host}"
    if len(number) < 6:
        return "•••"
    head = number[:3] if number.startswith("+") else number[:1]
    return f"{head} ••• {number[-3:]}"


def count_of(count: int, one: str, many: str | None = None) -> str:
    """`1 turn`, `3 turns`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}".replace(",", "\u202f")


def sentence_of(word: str) -> str:
    """A code such as `caller_gone` as words: `Caller gone`."""
    words = word.replace("_", " ").replace(".", " ").strip()
    return words[:1].upper() + words[1:]
