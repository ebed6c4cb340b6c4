"""Which turns need no judge: a decision in well under a millisecond, before a question to a model that takes seconds.

    gate = PreGate(config)
    decision = gate.decide(turn)  # PreGateDecision(score=False, reason="only asks")

Rules come first, each of which sends a turn to the judge whatever the rest of it is like: a tool call that may change
something, a class of turns that the policy names, words of one of the policy's prohibitions, an unfamiliar language, a
claim that something was done, a promise, a turn that states and asks nothing. What is left goes by a small model: how
likely a turn like this one is to be bad, by 15 features of `turn_features`, none of which ever speaks for skipping.

The model's weights, and the word pairs that it calls familiar, are in `pregate_model.json`, which
`benchmarks/train_pregate.py` makes. Deterministic: the same turn and policy always get the same decision.
"""

from __future__ import annotations

import base64
import json
import math
import re
from array import array
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from sys import byteorder
from typing import Any
from zlib import crc32

from supervision.engine.config import PolicyConfig
from supervision.engine.context import ToolCallIntent, TurnPayload
from supervision.engine.scorer import turn_words as w
from supervision.engine.scorer.turn_features import (
    ASKING,
    MAX_CHARS,
    NAMES,
    Kind,
    Sentence,
    Turn,
    hands_off,
    look_at,
    only_reads,
)

MODEL_PATH = Path(__file__).with_name("pregate_model.json")
MAX_TOOL_CALLS = 128
"""A turn with more tool calls than this is judged without being looked at."""

# Above this share of words that no harmless training turn has, a turn is taken to be in another language, or about
# something else altogether. Turns of the training calls: 99.9 % below. English about other trades: around 0.1 to 0.3.
UNFAMILIAR = 0.35
# The novelty from which a statement is judged when nothing follows but an offer of more help, and in any case.
NOVEL_BEFORE_CLOSING = 0.4
NOVEL_AT_ALL = 0.75
MIN_PAIRS_OF_NOVEL = 5
# The novelty from which anything but a question is judged in a turn of at most so many sentences.
BRIEF_TURN = 3
NOVEL_IN_BRIEF_TURN = 0.4
# The novelty from which a statement that names what a rule prohibits is judged.
NOVEL_WITH_RULE = 0.15
# Up to so many sentences, a turn of statements alone is judged, and so is one that states a cost or a benefit beside
# a question; a longer turn of statements alone has to say something new.
SHORT_TURN = 2
NOVEL_IN_LONG_TURN = 0.2
# A question in another language is skipped up to this length: a long one may say more than it asks.
MAX_FOREIGN_QUESTION_WORDS = 14
MAX_FOREIGN_QUESTION_CHARS = 90


class PreGateModelError(RuntimeError):
    """`pregate_model.json` is missing, or does not fit this version of the engine."""


@dataclass(frozen=True, slots=True)
class PreGateDecision:
    """Whether a turn needs to be judged (`score`), and why or why not (`reason`, a few words, none of the turn's)."""

    score: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Model:
    """A logistic regression over `turn_features.NAMES`, and what is familiar to it.

    `weights` (never negative), `bias` and `threshold` are in log-odds; `known` holds the keys of the words and word
    pairs of harmless turns.
    """

    weights: tuple[float, ...]
    bias: float
    threshold: float
    known: frozenset[int]

    def log_odds(self, features: Sequence[float]) -> float:
        """How likely a turn with these features is to be bad, in log-odds up to a constant."""
        return self.bias + sum(weight * value for weight, value in zip(self.weights, features, strict=True) if value)


@cache
def shipped_model() -> Model:
    """The model that comes with the engine; read once. Raises `PreGateModelError`."""
    try:
        return read_model(MODEL_PATH.read_text(encoding="utf-8"))
    except OSError as error:
        raise PreGateModelError(
            f"{MODEL_PATH.name} cannot be read ({error.strerror}); install the package again, or set "
            "tiered_scoring_enabled to false"
        ) from error


def read_model(text: str) -> Model:
    """Reads a model from JSON. Raises `PreGateModelError` when it does not fit."""
    try:
        data: dict[str, Any] = json.loads(text)
        if list(data["weights"]) != list(NAMES):
            raise ValueError("its features are not those of this version")
        known = array("I", base64.b64decode(data["known"], validate=True))
        if byteorder == "big":
            known.byteswap()
        return Model(
            tuple(float(weight) for weight in data["weights"].values()),
            float(data["bias"]),
            float(data["threshold"]),
            frozenset(known),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreGateModelError(
            f"the pre-gate's model does not fit: {error}; make it anew, or install again"
        ) from error


def model_text(model: Model, about: dict[str, Any]) -> str:
    """A model as `read_model` reads it; `about` says what it was trained on."""
    known = array("I", sorted(model.known))
    if byteorder == "big":
        known.byteswap()
    data = {
        "about": about,
        "weights": dict(zip(NAMES, model.weights, strict=True)),
        "bias": model.bias,
        "threshold": model.threshold,
        "known": base64.b64encode(known.tobytes()).decode(),
    }
    return json.dumps(data, indent=1) + "\n"


class PreGate:
    """Decides for one policy which turns are judged. Shared by all calls under it; keeps nothing of any turn."""

    def __init__(self, config: PolicyConfig, model: Model | None = None) -> None:
        self._enabled = config.tiered_scoring_enabled
        self._always: frozenset[str] = frozenset(config.pregate_always)
        self._irreversible = frozenset(name.casefold() for name in config.irreversible_tools)
        self._prohibitions = _Prohibitions([rule.text for rule in config.rules])
        self._model = model or (shipped_model() if self._enabled else None)

    def decide(self, turn: TurnPayload) -> PreGateDecision:
        """Whether a turn needs to be judged.

        A turn with a tool call that may change something always does, and so does every turn when the policy's
        `tiered_scoring_enabled` is off.
        """
        log_odds, reason = self.assess(turn)
        if self._model is not None and log_odds < self._model.threshold:
            return PreGateDecision(False, reason)
        return PreGateDecision(True, reason)

    def assess(self, turn: TurnPayload) -> tuple[float, str]:
        """How likely a turn is to be bad, in log-odds up to a constant, and what says so.

        Infinite when a rule sends the turn to the judge, minus infinite when it says nothing at all.
        """
        if self._model is None or not self._enabled:
            return math.inf, "the pre-gate is off"
        if len(turn.tool_calls) > MAX_TOOL_CALLS:
            return math.inf, "many tool calls"
        if any(self.may_change(call) for call in turn.tool_calls):
            return math.inf, "a tool call may change something"
        if len(turn.agent_text) > MAX_CHARS:
            return math.inf, "a long turn"
        seen = look_at(turn, self._model.known)
        forced = self._always & seen.classes
        if forced:
            return math.inf, f"the policy wants these judged: {', '.join(sorted(forced))}"
        if not seen.sentences:
            return -math.inf, "no speech"
        foreign = seen.wordy > 0 and seen.unknown > UNFAMILIAR
        must = self._must(turn, seen, foreign, self._model)
        if must:
            return math.inf, must
        if foreign:
            return -math.inf, "only asks, or a pleasantry, in another language"
        log_odds = self._model.log_odds(seen.features)
        return log_odds, _at_risk(self._model, seen) if log_odds >= self._model.threshold else _harmless(seen)

    def may_change(self, call: ToolCallIntent) -> bool:
        """Whether a tool call may change something: it is irreversible, or its name does not say that it only reads.

        Handing the call over to a person changes nothing.
        """
        if call.irreversible or call.name.strip().casefold() in self._irreversible or call.error is not None:
            return True
        return not only_reads(call) and not hands_off(call)

    def _must(self, turn: TurnPayload, seen: Turn, foreign: bool, model: Model) -> str:
        """Why a turn has to be judged whatever else it does; empty when it has not."""
        rule = self._prohibitions.touched(seen.sentences, turn.agent_text, model.known)
        if rule:
            return f"speaks of what rule {rule} prohibits"
        if foreign:
            return "" if _foreign_but_harmless(seen.sentences) else "unfamiliar words or language"
        if "done" in seen.classes:
            return "says that something was done"
        if "promise" in seen.classes:
            return "promises something"
        if _states_only(seen):
            return "states and asks nothing"
        if len(seen.sentences) <= SHORT_TURN and any(_briefly_claims(sentence) for sentence in seen.sentences):
            return "briefly states a cost, a benefit or an absolute"
        if _is_unusual(seen):
            return "says something unusual"
        if seen.features[_UNGROUNDED]:
            return "a tool argument is not what the customer said"
        return ""


_UNGROUNDED = NAMES.index("ungrounded_argument")

_TOLD = {
    "statement_last": "ends with a statement",
    "statement_after_question": "states something after its question",
    "conditional_last": "ends with a conditional offer",
    "novel_pairs": "unusual statements",
    "novelty_beside": "an unusual question or offer",
    "money": "speaks of money",
    "unended": "breaks off",
    "customer_spells": "the customer spelled something",
    "agrees_to_demand": "agrees to a demand",
    "asks_to_repeat": "asks to repeat or spell",
    "asked_to_spell_before": "asked to spell before",
    "ungrounded_argument": "a tool argument is not what the customer said",
    "hands_off": "hands the call over",
    "for_the_ear": "says numbers",
    "reads_out": "reads out what it looked up",
}


def _at_risk(model: Model, seen: Turn) -> str:
    """Names the two features that weigh most."""
    shares = sorted(
        ((weight * value, name) for weight, value, name in zip(model.weights, seen.features, NAMES, strict=True)),
        reverse=True,
    )
    return "at risk: " + ", ".join(_TOLD[name] for share, name in shares[:2] if share > 0)


def _harmless(seen: Turn) -> str:
    kinds = {sentence.kind for sentence in seen.sentences}
    if kinds <= {Kind.POLITE}:
        return "a pleasantry"
    if Kind.STATEMENT in kinds:
        return "nothing unusual"
    return "only asks" if kinds & ASKING else "only lists"


def _states_only(seen: Turn) -> bool:
    """The turn makes a statement, and asks, requests and offers nothing, or nothing but whether there is more."""
    asking = [sentence for sentence in seen.sentences if sentence.kind in ASKING]
    kinds = {sentence.kind for sentence in seen.sentences}
    if Kind.STATEMENT not in kinds:
        # "Good news: your money is back already" has the form of an entry.
        return Kind.ENTRY in kinds and not asking and len(seen.sentences) <= SHORT_TURN
    if not asking:
        return len(seen.sentences) <= SHORT_TURN or seen.novelty >= NOVEL_IN_LONG_TURN
    return all(sentence.closes for sentence in asking) and seen.novelty >= NOVEL_BEFORE_CLOSING


def _briefly_claims(sentence: Sentence) -> bool:
    """States a cost, a benefit or an absolute; or tells the customer to do something, and what will come of it."""
    if sentence.kind is Kind.REQUEST:
        return not w.OUTCOMES.isdisjoint(sentence.words)
    return sentence.kind is Kind.STATEMENT and not w.BENEFITS.isdisjoint(sentence.words)


def _is_unusual(seen: Turn) -> bool:
    """The turn says something, not a question, that no harmless turn resembles; in a short turn less is enough."""
    if seen.novelty >= NOVEL_AT_ALL and any(
        s.kind is Kind.STATEMENT and s.pairs >= MIN_PAIRS_OF_NOVEL and s.novelty >= NOVEL_AT_ALL for s in seen.sentences
    ):
        return True
    return len(seen.sentences) <= BRIEF_TURN and any(
        s.kind in (Kind.STATEMENT, Kind.REQUEST, Kind.CONDITIONAL) and s.novelty >= NOVEL_IN_BRIEF_TURN
        for s in seen.sentences
    )


def _foreign_but_harmless(sentences: Sequence[Sentence]) -> bool:
    """Nothing but short questions and pleasantries."""
    for sentence in sentences:
        if w.PLEASANTRIES.issuperset(sentence.words):
            continue
        long = len(sentence.words) > MAX_FOREIGN_QUESTION_WORDS
        long = long or sum(map(len, sentence.words)) > MAX_FOREIGN_QUESTION_CHARS
        claims_first = any(_may_claim(sentence.words[:at], sentence.words[at:]) for at in sentence.commas)
        if sentence.kind is not Kind.QUESTION or long or claims_first:
            return False
    return True


def _may_claim(before: list[str], after: list[str]) -> bool:
    """Whether the words before a comma may be a claim, and those after it the question."""
    if w.PLEASANTRIES.issuperset(before) or w.PLEASANTRIES.issuperset(after):
        return False
    # Chinese and Japanese have no spaces between words.
    return len(before) > 1 or before[0] >= _FIRST_CJK


_FIRST_CJK = "\u2e80"

# The policy's own rules

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_QUOTED = re.compile(r"[\"“«„]([^\"”»“]{3,80})[\"”»“]")
_STEM = 5
_MAX_TERMS = 6
# A turn that takes more comparisons with prohibitions than this is judged, so that a decision stays quick.
_MAX_COMPARED = 2_000
_ENOUGH = 0.6


class _Prohibitions:
    """What a policy's rules forbid, as words: short prohibitions ("Never confirm a refund"), rare words, quotations."""

    def __init__(self, rules: Iterable[str]) -> None:
        self._by_stem: dict[str, list[tuple[int, frozenset[str], bool]]] = {}
        self._words: dict[str, int] = {}
        self._quoted: list[tuple[str, int]] = []
        for number, rule in enumerate(rules, 1):
            for part in re.split(r"[;.]\s", rule):
                self._add(number, part)

    def _add(self, number: int, part: str) -> None:
        said = [word.lower().replace("’", "'") for word in _WORD.findall(part)]
        prohibits = not w.PROHIBITIONS.isdisjoint(said) or any(pair in w.PROHIBITIVE_PAIRS for pair in pairwise(said))
        if not prohibits:
            return
        for match in _QUOTED.finditer(part):
            self._quoted.append((match[1].strip().casefold(), number))
        speaking = not w.SPEAKING_VERBS.isdisjoint(said)
        content = [
            word
            for word in said
            if len(word) > 3
            and word not in w.RULE_STOPWORDS
            and word not in w.SPEAKING_VERBS
            and word not in w.PROHIBITIONS
        ]
        for word in content:
            self._words.setdefault(word, number)
        for terms in self._alternatives(part, content, speaking):
            if 0 < len(terms) <= _MAX_TERMS:
                for stem in terms:
                    self._by_stem.setdefault(stem, []).append((number, terms, speaking))

    @staticmethod
    def _alternatives(part: str, content: list[str], speaking: bool) -> list[frozenset[str]]:
        """A rule about saying may list several things ("a card number, a password or a code"): each is one."""
        if not speaking:
            return [frozenset(word[:_STEM] for word in content)]
        kept = set(content)
        pieces = re.split(r",|\bor\b|\band\b|\boder\b|\bo\b|\bou\b", part.lower())
        return [frozenset(word[:_STEM] for word in _WORD.findall(piece) if word in kept) for piece in pieces]

    def touched(self, sentences: Sequence[Sentence], text: str, known: Set[int]) -> int:
        """The number of a rule whose prohibition a turn seems to speak of; 0 when there is none."""
        if self._quoted:
            folded = text.casefold()
            for quoted, number in self._quoted:
                if quoted in folded:
                    return number
        compared = 0
        for sentence in sentences:
            for word in sentence.words:
                if word in self._words and crc32(word.encode()) not in known:
                    return self._words[word]
            claims = sentence.kind is Kind.STATEMENT and sentence.novelty >= NOVEL_WITH_RULE
            stems = {word[:_STEM] for word in sentence.words if len(word) > 3}
            for stem in sorted(stems & self._by_stem.keys()):
                for number, terms, speaking in self._by_stem[stem]:
                    compared += 1
                    speaks = claims or (speaking and len(terms) > 1)
                    if compared > _MAX_COMPARED or (speaks and len(terms & stems) >= _ENOUGH * len(terms)):
                        return number
        return 0
