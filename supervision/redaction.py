"""What is taken out of the words of a call before any of it is stored: the journal gets it as little as PostgreSQL.

The judge sees the original, in memory. Card numbers (with their check digit), e-mail addresses, phone numbers
(libphonenumber's rules) and a tenant's own patterns become `[card number]` and so on. Everything takes linear time: own
patterns are RE2, which never backtracks, and what a text holds too much of is taken out by a coarser rule.

Not found are numbers spoken as words, and numbers that several turns say piece by piece.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final
from uuid import UUID

import phonenumbers
import re2
from phonenumbers import Leniency, PhoneNumberMatcher

from supervision.recorder.events import RecordEvent

logger = logging.getLogger(__name__)

KINDS: Final = ("card", "email", "phone")
DEFAULT_REGION: Final = "US"
MAX_PATTERNS: Final = 50
MAX_PATTERN_CHARS: Final = 500
MAX_NAME_CHARS: Final = 40
REGIONS: Final = frozenset(phonenumbers.SUPPORTED_REGIONS)

# Memory that one own pattern may take; RE2 refuses what needs more.
_PATTERN_BYTES: Final = 1 << 20
# Phone numbers that one text may hold before the coarser rule takes over.
_MOST_PHONES: Final = 50
_MOST_CARD_DIGITS: Final = 200
_LONGEST_PHONE: Final = 200
_PHONE_DIGITS: Final = 7
_PHONE: Final = "[phone number]"

_EMAIL: Final = re2.compile(r"[\pL\pN._%+'-]+@(?:[\pL\pN-]+\.)+\pL{2,}")
# Groups of digits with at most one blank, dot or hyphen between them.
_DIGITS: Final = re.compile(r"\d(?:[ .\-\u00a0]?\d)*")
_GROUP: Final = re.compile(r"\d+")
_MANY_DIGITS: Final = re.compile(r"\d(?:[ ./()\-\u00a0]{0,2}\d){6,}")

# Of each kind of event, what was said or done in it. Ids, names of tools and a policy's rules stay as they are.
_WORDS: Final = frozenset(
    {
        "text",
        "customer_text",
        "reason",
        "correction",
        "instruction",
        "detail",
        "message",
        "said",
        "buffer_text",
        "correction_text",
        "args",
        "result",
        "note",
    }
)
# Parts of one text: a number may begin in one and end in the next.
_HEARD: Final = ("heard_text", "uncertain_text", "unheard_text")


class PatternInvalid(ValueError):
    """An own pattern that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class OwnPattern:
    """A tenant's own pattern, in RE2 syntax; what it finds becomes `[name]`."""

    name: str
    pattern: str


@dataclass(frozen=True, slots=True)
class RedactionSettings:
    """What a tenant wants taken out. `region` is how phone numbers without a country code are read."""

    kinds: frozenset[str] = frozenset(KINDS)
    region: str = DEFAULT_REGION
    patterns: tuple[OwnPattern, ...] = ()

    @classmethod
    def from_row(
        cls, kinds: Iterable[str] | None, region: str | None, patterns: Iterable[Mapping[str, str]] | None
    ) -> RedactionSettings:
        """From what is stored; None where nothing is."""
        if kinds is None:
            return cls()
        own = tuple(OwnPattern(pattern["name"], pattern["pattern"]) for pattern in patterns or ())
        return cls(frozenset(kinds), region or DEFAULT_REGION, own)


def pattern_compile(pattern: str) -> Any:
    """An own pattern, ready to use. Raises PatternInvalid."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_BYTES
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise PatternInvalid(_explained(error)) from error
    if compiled.search("") is not None:
        raise PatternInvalid("it finds the empty text, so it would find something everywhere")
    return compiled


def _explained(error: Exception) -> str:
    what = error.args[0] if error.args else ""
    text = what.decode("utf-8", "replace") if isinstance(what, bytes) else str(what)
    return f"it is no RE2 pattern ({text}); RE2 has no look-around and no back-references"


class Redactor:
    """Takes out of texts and JSON what `settings` say."""

    def __init__(self, settings: RedactionSettings) -> None:
        """A stored pattern that cannot be used any more is logged and left out."""
        self.settings = settings
        self._spans: list[Callable[[str], Iterable[tuple[int, int, str]]]] = []
        for own in settings.patterns:
            try:
                compiled = pattern_compile(own.pattern)
            except PatternInvalid as problem:
                logger.error("a redaction pattern is not used: %s", problem)
                continue
            self._spans.append(_finder(compiled, f"[{own.name}]"))
        if "card" in settings.kinds:
            self._spans.append(_cards)
        if "email" in settings.kinds:
            self._spans.append(_emails)
        if "phone" in settings.kinds:
            region = settings.region
            self._spans.append(lambda text: _phones(text, region))

    def text(self, text: str) -> str:
        """`text` without what is to be taken out."""
        return self._parts([text])[0]

    def json(self, value: Any) -> Any:
        """A JSON value without it, in texts, long numbers and names of fields."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            written = str(value)
            redacted = self.text(written)
            return value if redacted == written else redacted
        if isinstance(value, Mapping):
            return {self.text(key) if isinstance(key, str) else key: self.json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.json(item) for item in value]
        return value

    def event(self, event: RecordEvent) -> RecordEvent:
        """The event as it may be stored."""
        if not self._spans:
            return event
        data = dict(event.data)
        for name, value in event.data.items():
            if name in _WORDS:
                data[name] = self.json(value)
            elif name == "tool_calls" and isinstance(value, list):
                data[name] = [self._tool_call(call) for call in value]
        heard = [name for name in _HEARD if isinstance(data.get(name), str)]
        if heard:
            data.update(zip(heard, self._parts([data[name] for name in heard]), strict=True))
        return replace(event, data=data)

    def _tool_call(self, call: Any) -> Any:
        if not isinstance(call, Mapping):
            return self.json(call)
        return {name: self.json(value) if name == "args" else value for name, value in call.items()}

    def _parts(self, parts: Sequence[str]) -> list[str]:
        """Texts that follow each other. What begins in one and ends in another stands in the first of them."""
        made = list(parts)
        for spans in self._spans:
            whole = " ".join(made)
            found = sorted(spans(whole), reverse=True)
            if not found:
                continue
            starts, start = [], 0
            for part in made:
                starts.append(start)
                start += len(part) + 1
            for begin, end, word in found:
                # From the last part to the first, so that what is before stays where it was.
                for index in range(len(made) - 1, -1, -1):
                    low, high = max(begin - starts[index], 0), min(end - starts[index], len(made[index]))
                    if low < high:
                        first = begin >= starts[index]
                        made[index] = made[index][:low] + (word if first else "") + made[index][high:]
        return made


class Redaction:
    """The redactors of a process, by tenant. `learn` belongs to the event loop, `event` to the journal's thread."""

    def __init__(self) -> None:
        self._unknown = Redactor(RedactionSettings())
        self._known: dict[UUID, Redactor] = {}

    def learn(self, tenant_id: UUID, settings: RedactionSettings) -> None:
        """What this tenant wants from now on."""
        known = self._known.get(tenant_id)
        if known is None or known.settings != settings:
            self._known[tenant_id] = Redactor(settings)

    def event(self, event: RecordEvent) -> RecordEvent:
        """The event as its tenant wants it stored; of a tenant that nobody knows, without all that is known."""
        return self._known.get(event.tenant_id, self._unknown).event(event)


def _finder(compiled: Any, word: str) -> Callable[[str], Iterable[tuple[int, int, str]]]:
    def find(text: str) -> list[tuple[int, int, str]]:
        return [(found.start(), found.end(), word) for found in compiled.finditer(text) if found.end() > found.start()]

    return find


def _emails(text: str) -> list[tuple[int, int, str]]:
    if "@" not in text:
        return []
    return [(found.start(), found.end(), "[e-mail address]") for found in _EMAIL.finditer(text)]


def _cards(text: str) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    for run in _DIGITS.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, run.start(), run.end())]
        if sum(end - start for start, end in groups) > _MOST_CARD_DIGITS:
            found.append((run.start(), run.end(), "[card number]"))
            continue
        found += _cards_of(text, groups)
    return found


def _cards_of(text: str, groups: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """Card numbers that begin and end with groups of digits, the longest from the left."""
    found: list[tuple[int, int, str]] = []
    first = 0
    while first < len(groups):
        digits, longest = "", None
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and _luhn(digits):
                longest = last
        if longest is None:
            first += 1
            continue
        found.append((groups[first][0], groups[longest][1], "[card number]"))
        first = longest + 1
    return found


def _luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    values = [int(digit) for digit in reversed(digits)]
    if not any(values):
        return False
    return sum(value if n % 2 == 0 else value * 2 - 9 * (value > 4) for n, value in enumerate(values)) % 10 == 0


def _phones(text: str, region: str) -> list[tuple[int, int, str]]:
    runs = [run.span() for run in islice(_MANY_DIGITS.finditer(text), _MOST_PHONES + 1)]
    if len(runs) > _MOST_PHONES or any(end - start > _LONGEST_PHONE for start, end in runs):
        return [(run.start(), run.end(), _PHONE) for run in _MANY_DIGITS.finditer(text)]
    found: set[tuple[int, int, str]] = set()
    for start, end in runs:
        # With room for what may stand before a number and for an extension after it.
        offset = max(0, start - 4)
        window = text[offset : end + 12]
        for match in PhoneNumberMatcher(window, region, leniency=Leniency.POSSIBLE):
            if sum(character.isdigit() for character in match.raw_string) >= _PHONE_DIGITS:
                found.add((offset + match.start, offset + match.end, _PHONE))
    return _without_overlaps(found)


def _without_overlaps(found: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    kept: list[tuple[int, int, str]] = []
    for start, end, word in sorted(found):
        if kept and start < kept[-1][1]:
            kept[-1] = (kept[-1][0], max(end, kept[-1][1]), word)
        else:
            kept.append((start, end, word))
    return kept
