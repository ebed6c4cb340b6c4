"""What a turn does, in numbers: the first half of the pre-gate. Pure Python, no model, no I/O.

A turn is cut into sentences, and each is told apart by its form: a question, a request, something on condition of
what the customer says next, a pleasantry, an entry of a list, or a statement. Statements are what can be wrong. How
unusual they are is measured against word pairs of real calls, so that what was never heard before, in any language,
stands out without a word list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from enum import IntEnum
from zlib import crc32

from supervision.engine.context import ToolCallIntent, TurnPayload
from supervision.engine.scorer import turn_words as w

MAX_CHARS = 8_000
"""A turn of more characters than this is judged without being looked at, so that a decision stays quick."""
MAX_CUSTOMER_CHARS = 2_000
MAX_HEARD_BEFORE = 12
MAX_ARGUMENTS = 64
MAX_NAME_CHARS = 128


class Kind(IntEnum):
    """The form of a sentence."""

    STATEMENT = 0
    QUESTION = 1
    REQUEST = 2
    CONDITIONAL = 3
    POLITE = 4
    ENTRY = 5


ASKING = frozenset((Kind.QUESTION, Kind.REQUEST, Kind.CONDITIONAL))


@dataclass(slots=True)
class Sentence:
    """One sentence: its `words` in lower case, the same `masked` (numbers as "#", names as "@"), and what is in it.

    `numbers` counts all numbers, codes and spelled names, `aloud` those that are words ("forty").

    `unseen` of `pairs` word pairs, and `unknown` of `wordy` words, are in no harmless turn of the training calls.
    """

    kind: Kind = Kind.STATEMENT
    words: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    commas: list[int] = field(default_factory=list)
    ended: bool = False
    numbers: int = 0
    aloud: int = 0
    currency: bool = False
    unseen: int = 0
    pairs: int = 0
    unknown: int = 0
    wordy: int = 0

    @property
    def novelty(self) -> float:
        """The share (0 to 1) of word pairs that no harmless turn of the training calls has."""
        return self.unseen / max(self.pairs, 4)

    @property
    def closes(self) -> bool:
        """It only offers more help: "Anything else?", "If you have questions, let me know."."""
        return "else" in self.words or "questions" in self.words


# Text into sentences

# The parts of an e-mail address are as long as they may be (RFC 5321, 4.5.3.1), which keeps the search linear.
_TOKEN = re.compile(
    r"(?P<id>[^\s@,;()<>]{1,64}@[^\s@,;()<>]{1,255}\.\w+|[A-Za-z]*[\d_][0-9A-Za-z_#]*(?:[.,:/-]\d+)*)"
    r"|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)"
    r"|(?P<end>[.!?…]+(?=[\s\"”’')*\]]|$)|[。！？।؟]+)"
    r"|(?P<currency>[$€£¥₹₩₽₺₴₦])"
    r"|(?P<comma>[,;—–，、،]|\s-\s)"
    r"|(?P<turned>[¿¡])"
)
# A bullet, a number, a row of a table, a line of code or data; or "Name: value" without a sentence in it.
_ENTRY = re.compile(r"\s*(?:[-*•|#>({\"}`]|\d{1,2}[.)]\s|[a-z][.)]\s)|[^.!?]{1,40}:\s[^.!?]*$")
# Two digits, a sign or a list: written to be read.
_WRITTEN = re.compile(r"[*|#$]|\d{2}|^\s*(?:[-•]|\d{1,2}[.)])\s", re.MULTILINE)
_SPELLED = re.compile(r"[^\W_](?:-[^\W_])+")
_QUESTION_MARKS = frozenset("?？؟")
# How many words of a question may stand before the question itself and still be no claim: "Thanks, Anna, could you".
_MIN_CLAIM_WORDS = 4


def spoken_text(text: str) -> tuple[str, bool]:
    """The words of a turn, and whether they stand in the order in which they are meant.

    Some agents answer with a JSON object; then the sentences are its strings, in no order.
    """
    if text[:1] == "{" and text.rstrip()[-1:] == "}":
        try:
            strings = list(_strings(json.loads(text)))
        except (ValueError, RecursionError):
            return text.replace("\\n", "\n"), False
        return "\n".join(strings), len(strings) == 1
    return text, True


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if " " in value.strip():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def sentences(text: str) -> list[Sentence]:
    """Cuts a turn's text into sentences, each with its kind."""
    found: list[Sentence] = []
    for line in text.split("\n"):
        if not line or line.isspace():
            continue
        entry = _ENTRY.match(line) is not None
        current = Sentence()
        for token in _TOKEN.finditer(line):
            group = token.lastgroup
            if group == "word":
                _add_word(current, token[0])
            elif group == "id":
                current.numbers += 1
                current.words.append("#")
                if not current.masked or current.masked[-1] != "#":
                    current.masked.append("#")
            elif group == "comma":
                current.commas.append(len(current.words))
            elif group == "currency":
                current.currency = True
            elif current.words:
                # The end of a sentence; or "¿" and "¡", which begin another.
                current.ended = group == "end"
                found += _finished(current, token[0] if group == "end" else "", entry)
                current = Sentence()
        if current.words:
            tail = line.rstrip()[-1:]
            current.ended = not (tail.isalnum() or tail == "-")
            found += _finished(current, "", entry or "**" in line or tail == ":")
    return found


def _add_word(sentence: Sentence, word: str) -> None:
    low = word.lower()
    if "’" in low:
        low = low.replace("’", "'")
    masked = sentence.masked
    if (len(word) == 1 and low not in w.ONE_LETTER_WORDS) or low in w.NUMBER_WORDS or _SPELLED.fullmatch(word):
        sentence.numbers += 1
        sentence.aloud += low in w.NUMBER_WORDS
        sign = "#"
    elif sentence.words and word[0].isupper() and low != "i" and low[:2] != "i'":
        sign = "@"
    else:
        masked.append(low)
        sentence.words.append(low)
        return
    sentence.words.append(low)
    if not masked or masked[-1] != sign:
        masked.append(sign)


def _finished(sentence: Sentence, end: str, entry: bool) -> list[Sentence]:
    """Tells the kind of a sentence; "I've sent it back, anything else?" is a statement and a question."""
    if _QUESTION_MARKS.isdisjoint(end):
        sentence.kind = _kind(sentence, entry)
        return [sentence]
    sentence.kind = Kind.QUESTION
    said = sentence.words
    start = int(said[0] in w.CLAIM_LEAD_INS)
    for at in reversed(sentence.commas):
        if at < _MIN_CLAIM_WORDS or said[start] not in w.CLAIM_STARTS:
            break
        if at < len(said) and said[at] in w.QUESTION_STARTS:
            claim = Sentence(Kind.STATEMENT, said[:at], said[:at], [], True)
            claim.masked = ["#" if word == "#" or word in w.NUMBER_WORDS else word for word in said[:at]]
            rest = Sentence(Kind.QUESTION, said[at:], said[at:], [], True, sentence.numbers, sentence.currency)
            claim.kind = _kind(claim, entry)
            return [claim, rest]
    return [sentence]


def _kind(sentence: Sentence, entry: bool) -> Kind:
    said = sentence.words
    if entry or (len(sentence.masked) == 1 and sentence.masked[0] in "#@"):
        return Kind.REQUEST if "please" in said else Kind.ENTRY
    if w.PLEASANTRIES.issuperset(said):
        return Kind.POLITE
    start = 2 if said[:2] == ["don't", "worry"] and len(said) > 2 else 0
    while start < len(said) - 1 and (said[start] in w.POLITE_WORDS or said[start] in w.LEAD_INS):
        start += 1
    first = said[start]
    near = said[start : start + 5]
    second = near[1] if len(near) > 1 else ""
    if first in w.CONDITION_STARTS or said[0] in w.CONDITION_STARTS:
        return Kind.CONDITIONAL if w.OFFER_WORDS.isdisjoint(said) else Kind.REQUEST
    if (first == "let" and second == "me") or first == "let's":
        return Kind.REQUEST if "know" in near else Kind.POLITE
    if "will" in said and "with" in said and not w.HANDOFF_PEOPLE.isdisjoint(said[:3]):
        # "A human agent will be with you shortly."
        return Kind.POLITE
    if (
        said[:2] == ["you're", "welcome"]
        or said[:3] == ["talk", "to", "you"]
        or first in w.WISHING_VERBS
        or (first == "have" and second in ("a", "an"))
        or (first in ("safe", "take") and second in ("travels", "care"))
    ):
        return Kind.POLITE
    if "please" in said or (first in w.REQUEST_STARTS and second not in ("i", "we", "a", "that", "is", "was")):
        return Kind.REQUEST
    if ("let" in said and "know" in said) or ("need" in said and not {"i'll", "i", "we'll", "we"}.isdisjoint(said)):
        return Kind.REQUEST
    if first in ("i", "we", "i'll", "we'll", "i'd", "i'm"):
        offers = first != "we" and not w.OFFERING_VERBS.isdisjoint(near)
        looks = first in ("i'll", "we'll") and not w.LOOKING_VERBS.isdisjoint(near[1:3])
        looks = looks or (second == "can" and not w.LOOKING_VERBS.isdisjoint(near[2:4]))
        if offers or looks or second in ("understand", "appreciate", "hope", "wish"):
            return Kind.POLITE
    if "didn't" in said and ("catch" in said or "hear" in said) and len(said) <= 8:
        return Kind.POLITE
    if ("use" in near and "look" in said) or ("looking" in said[:2] and "forward" in said) or "thank" in said[:3]:
        return Kind.POLITE
    if said[0] in ("this", "that", "these", "with"):
        purpose = "will" in said[1:4] or "helps" in said or said[1:2] == ["way"]
        if purpose and not w.PURPOSE_VERBS.isdisjoint(said[1:5]):
            return Kind.POLITE
    # "Okay, it's free then" is short and begins politely, and is none of it.
    brief = w.CLAIM_SUBJECTS.isdisjoint(said)
    if brief and len(said) <= 4 and said[0] in w.POLITE_WORDS:
        return Kind.POLITE
    if brief and len(said) <= 3 and said[0] in ("yes", "no", "of", "got", "looking"):
        return Kind.POLITE
    return Kind.STATEMENT


# Sentences into numbers

NAMES = (
    "statement_last",
    "statement_after_question",
    "conditional_last",
    "novel_pairs",
    "novelty_beside",
    "money",
    "unended",
    "customer_spells",
    "agrees_to_demand",
    "asks_to_repeat",
    "asked_to_spell_before",
    "ungrounded_argument",
    "hands_off",
    "for_the_ear",
    "reads_out",
)
"""The features of `Turn.features`, in order. Each is 0 or more, and more of it never makes a turn less risky:

- the turn ends with a statement; with one after a question; with something on condition ("If you tell me …, I can …");
- ln(1 + how many word pairs of its statements no harmless training turn has); the share of such pairs (0 to 1) in
  its most unusual sentence that is no statement;
- a statement speaks of money; the text breaks off;
- the customer spelled something out; demanded something, and the agent begins by agreeing;
- the agent asks to repeat or spell; asked to spell before;
- a name, address or number among the tools' arguments is not what the customer gave; the agent hands the call over;
- it says numbers in words and nothing that only a screen can show; ln(1 + how many words of its statements are such
  numbers), when a tool was called.
"""


@dataclass(slots=True)
class Turn:
    """What a turn does.

    `features` has a number for each of `NAMES`; `classes` are those of `PolicyConfig.pregate_always`. `unknown` is the
    share (0 to 1) of its `wordy` words that are in no harmless turn of the training calls: near 1 in another language.
    `novelty` is that of its most unusual statement.
    """

    sentences: list[Sentence]
    features: list[float]
    classes: set[str]
    unknown: float
    wordy: int
    novelty: float


def look_at(turn: TurnPayload, known: Set[int]) -> Turn:
    """Looks at a turn. `known` are the CRC-32s of the words and word pairs of harmless turns (`keys_of`)."""
    text, ordered = spoken_text(turn.agent_text)
    found = sentences(text)
    unknown = wordy = novel = 0
    novelty = beside = 0.0
    classes: set[str] = set()
    money = asks_to_repeat = False
    for sentence in found:
        _compare(sentence, known)
        unknown += sentence.unknown
        wordy += sentence.wordy
        bag = set(sentence.words)
        if sentence.kind is Kind.STATEMENT:
            novel += sentence.unseen
            novelty = max(novelty, sentence.novelty)
            money = money or sentence.currency or not bag.isdisjoint(w.MONEY_WORDS)
        elif sentence.kind is not Kind.ENTRY:
            beside = max(beside, sentence.novelty)
            if sentence.kind in (Kind.QUESTION, Kind.REQUEST) and not bag.isdisjoint(w.REPAIR_WORDS):
                asks_to_repeat = True
        _classify(sentence, bag, classes)
    value = dict.fromkeys(NAMES, 0.0)
    value["novel_pairs"] = math.log1p(novel)
    value["novelty_beside"] = beside
    value["money"] = float(money)
    value["asks_to_repeat"] = float(asks_to_repeat)
    if found:
        value["unended"] = float(ordered and any(not s.ended and s.kind is not Kind.ENTRY for s in found))
        _ending(found, ordered, value)
    aloud = math.log1p(sum(sentence.aloud for sentence in found if sentence.kind is Kind.STATEMENT))
    value["for_the_ear"] = float(any(sentence.aloud for sentence in found) and not _WRITTEN.search(turn.agent_text))
    value["reads_out"] = aloud if turn.tool_calls else 0.0
    _exchange(turn, found, value, classes)
    return Turn(found, list(value.values()), classes, unknown / wordy if wordy else 0.0, wordy, novelty)


def keys_of(sentence: Sentence) -> Iterator[int]:
    """The keys by which `look_at` knows a sentence again: CRC-32 of each word, and of each two that follow."""
    left = "^"
    for right in [*sentence.masked, "$"]:
        yield crc32(f"{left} {right}".encode())
        if right not in "#@$":
            yield crc32(right.encode())
        left = right


def _compare(sentence: Sentence, known: Set[int]) -> None:
    left = "^"
    unseen = unknown = wordy = 0
    for right in sentence.masked:
        if right != "#" and right != "@":
            wordy += 1
            if crc32(right.encode()) not in known:
                unknown += 1
        if crc32(f"{left} {right}".encode()) not in known:
            unseen += 1
        left = right
    sentence.unseen = unseen + (crc32(f"{left} $".encode()) not in known)
    sentence.pairs = len(sentence.masked) + 1
    sentence.unknown = unknown
    sentence.wordy = wordy


def _ending(found: list[Sentence], ordered: bool, value: dict[str, float]) -> None:
    last = found[-1]
    if not ordered:
        last = next((sentence for sentence in found if sentence.kind in (Kind.QUESTION, Kind.REQUEST)), last)
    if last.kind is Kind.STATEMENT:
        value["statement_last"] = 1.0
        value["statement_after_question"] = float(ordered and any(s.kind is Kind.QUESTION for s in found))
    elif last.kind is Kind.CONDITIONAL and last.words[0] != "once":
        # "Once I have that, I can look it up" asks for something; "If you tell me …, I can …" offers something.
        value["conditional_last"] = float(any(s.kind is Kind.STATEMENT for s in found))


def _classify(sentence: Sentence, bag: set[str], classes: set[str]) -> None:
    kind = sentence.kind
    if kind is Kind.STATEMENT:
        classes.add("statement")
    elif kind is Kind.QUESTION:
        classes.add("question")
    if sentence.currency or sentence.numbers or not bag.isdisjoint(w.MONEY_WORDS):
        classes.add("amount")
    if not bag.isdisjoint(w.POLICY_WORDS):
        classes.add("policy")
    if not bag.isdisjoint(w.PERSONAL_WORDS):
        classes.add("disclosure")
    if not bag.isdisjoint(w.REFUSALS):
        classes.add("refusal")
    if not bag.isdisjoint(w.TIME_WORDS) or (not bag.isdisjoint(w.TIME_UNITS) and ("in" in bag or "within" in bag)):
        classes.add("time")
    if kind is Kind.QUESTION or kind is Kind.CONDITIONAL:
        return
    if not bag.isdisjoint(w.PROMISES) and kind is not Kind.POLITE and bag.isdisjoint(w.DENIALS):
        classes.add("promise")
    if says_done(sentence.words) and not ("transfer" in bag and "human" in bag):
        classes.add("done")


# Words between "I" or "been" and what was done, at most; a denial may stand twice as far before.
_REACH = 12


def says_done(said: list[str]) -> bool:
    """Whether a sentence says that something was changed: "I've cancelled it", "has been refunded", "all set"."""
    for index, word in enumerate(said):
        if word in w.PENDING_WORDS and said[index + 1 : index + 2] != ["i"]:
            return False
        at = index + 1
        if at == len(said):
            break
        if word in ("i", "we", "i've", "we've"):
            if said[at] in ("have", "had") and at < len(said) - 1:
                at += 1
            ahead = False
            while at < min(len(said) - 1, index + _REACH) and said[at] in w.ADVERBS:
                ahead = ahead or said[at] == "ahead"
                at += 1
            verb = said[at]
            if ahead or ((verb[-2:] == "ed" or verb in w.IRREGULAR_PAST) and verb not in w.LOOKUP_VERBS):
                return True
        elif word == "been":
            before = said[max(0, index - 2) : index]
            while at < min(len(said) - 1, index + _REACH) and said[at] in w.ADVERBS:
                at += 1
            denied = not w.DENIALS.isdisjoint(said[max(0, index - 2 * _REACH) : index])
            denied = denied or any(other[-3:] == "n't" for other in before)
            cared_for = said[at] == "taken" and "care" in said[at : at + _REACH]
            if not denied and (cared_for or said[at] in w.DONE_STATES):
                return True
        elif word == "all" and said[at] == "set" and said[at + 1 : at + 2] != ["with"]:
            return True
    return said == ["done"]


# The turn among what was said before

_GIVEN = re.compile(r"name|mail|zip|postal|phone")
_HEARD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def _exchange(turn: TurnPayload, found: list[Sentence], value: dict[str, float], classes: set[str]) -> None:
    """What the customer said, what the tools were given of it, and what was asked before."""
    customer = turn.customer_text[:MAX_CUSTOMER_CHARS]
    heard = _HEARD.findall(customer.lower().replace("’", "'"))
    run = longest = 0
    for word in heard:
        run = run + 1 if len(word) == 1 or word in w.DIGITS else 0
        longest = max(longest, run)
    value["customer_spells"] = float(longest >= 3)
    if found and found[0].words[0] in w.AGREEMENTS and not w.DEMANDS.isdisjoint(heard):
        value["agrees_to_demand"] = 1.0
    if turn.tool_calls:
        classes.add("tool_call")
        if any(hands_off(call) for call in turn.tool_calls):
            value["hands_off"] = 1.0
            classes.add("handoff")
        value["ungrounded_argument"] = float(_ungrounded(turn, customer))
    if any(sentence.kind in (Kind.QUESTION, Kind.REQUEST) for sentence in found):
        before = (e.text[:MAX_CHARS].lower() for e in turn.history[-6:] if e.role == "agent")
        value["asked_to_spell_before"] = float(any("spell" in text for text in before))


def _ungrounded(turn: TurnPayload, customer: str) -> bool:
    """Whether a name, e-mail address, postcode or phone number in a tool's arguments is not what the customer gave."""
    said = ""
    for call in turn.tool_calls:
        if call.args and len(call.args) > MAX_ARGUMENTS:
            return True
        for key, argument in (call.args or {}).items():
            if isinstance(argument, str) and 2 <= len(argument) <= 60 and _GIVEN.search(key[:MAX_NAME_CHARS].lower()):
                if not said:
                    before = [
                        e.text[:MAX_CUSTOMER_CHARS] for e in turn.history[-MAX_HEARD_BEFORE:] if e.role == "customer"
                    ]
                    said = _joined(" ".join([*before, customer]).replace(" dot ", " ").replace(" at ", " "))
                if _SPELLED.fullmatch(argument) or _joined(argument) not in said:
                    return True
    return False


def _joined(text: str) -> str:
    """All letters and digits of a text in one string, spoken digits as digits: "J, O, five" is "jo5"."""
    return "".join(w.DIGITS.get(word, word) for word in re.findall(r"[^\W_]+", text.lower()))


# Tools

_NAME_WORD = re.compile(r"[^\W\d_A-Z]+|[A-Z]+(?![a-z])|[A-Z][^\W\d_A-Z]+")


def name_words(name: str) -> list[str]:
    """The words of a tool's name, in lower case: the same for `getOrder`, `get_order` and `get-order`.

    None for a name that is longer than a name can be.
    """
    return [part.lower() for part in _NAME_WORD.findall(name)] if len(name) <= MAX_NAME_CHARS else []


def hands_off(call: ToolCallIntent) -> bool:
    """Whether a tool, by its name, hands the call over to a person."""
    parts = name_words(call.name)
    return not w.HANDOFF_VERBS.isdisjoint(parts) and not w.HANDOFF_PEOPLE.isdisjoint(parts)


def only_reads(call: ToolCallIntent) -> bool:
    """Whether a tool's name says that it changes nothing. One that does not say so may change something."""
    parts = name_words(call.name)
    return bool(parts) and (parts[0] in w.READING_VERBS or parts[-1] in ("lookup", "search", "query"))


def familiar(texts: Iterable[str]) -> Iterator[int]:
    """The keys of everything in the texts of harmless turns, for `look_at`."""
    for text in texts:
        for sentence in sentences(spoken_text(text)[0]):
            yield from keys_of(sentence)
