"""Which words of a turn the caller heard, from the turn's text, its audio and where the audio was cut.

Nobody tells Mirror when which word is spoken, unless the agent sends marks. What the audio itself tells is when there
is voice and when there is a pause, and pauses mostly fall on punctuation. So pauses are matched, in order, to the
punctuation of the text, and the words between two matches are spread over the voiced time between them by how long
they take to say. That leaves an error of some tenths of a second (`python -m benchmarks.bench_heard`); words nearer to
the cut than MARGIN_MS are therefore called neither heard nor unheard.

All functions are pure, never raise on any text or audio, and take a few milliseconds for a turn of half a minute:
call them in a worker thread.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from supervision.audio.levels import frame_levels
from supervision.audio.pcm import Pcm
from supervision.audio.spans import UNSPACED, find_span

MARGIN_MS = 400.0
"""How far from the cut a word must lie for us to say that it was heard, or was not."""

DRIFT = 0.15
"""What the margin grows by per ms of audio behind the last anchor, when the end of the turn is not there to be one."""

PAUSE_MS = 120.0
"""A gap in the voice this long or longer is a pause; shorter ones are the closures of p, t and k."""

SYLLABLE_MS = 50.0
LETTER_MS = 40.0
"""What a syllable and a letter add to the length of a word: least squares over 372 words of hibari-tts, whose true
times its model tells. By letters alone the error per word is 6 % larger, by syllables alone 34 %."""

_FRAME_MS = 10
_FLOOR_DBFS = -55.0
_VOICE_RANGE_DB = 32.0  # quieter endings of words are still voice
_OVER_NOISE_DB = 6.0
_NOISE_RANGE_DB = 18.0

# What the matching of pauses to the ends of words weighs, tuned on hibari-tts with its pauses as they are, halved and
# cut to a third. Costs are in half squared standard deviations, so 0.5 is one deviation.
_SPREAD_MS = 80.0  # deviation of any stretch, and the part of its variance that grows with its length
_SPREAD_PER_MS = 45.0
_NO_PUNCTUATION = 1.5  # a pause where there is no punctuation
_SKIPPED_PUNCTUATION = (0.0, 0.8, 3.0)  # no pause after a word, a comma, a sentence
_PACE_PRIOR_MS = 1500.0
_REACH_MS = 800.0  # a pause this far, and by this share of the time so far, from where a word should end is not its end
_REACH_SHARE = 0.3
_REACH_PAUSES = 6  # pauses in a row that may be left out
_MAX_PAUSES = 150  # bounds the work for endless audio, as does
_MAX_OPTIONS = 60  # the number of words that are tried per pause


class Basis(StrEnum):
    """What a statement about heard words rests on."""

    MARKS = "marks"  # the agent said where in its text the audio was
    PAUSES = "pauses"  # pauses and the ends of the voice, matched to punctuation
    ESTIMATED = "estimated"  # an average pace, or a position that no checkpoint anchored


@dataclass(frozen=True, slots=True)
class Mark:
    """The agent's own word on its audio: at `position_ms` in the turn's audio, `chars` of its text had been spoken."""

    position_ms: float
    chars: int


@dataclass(frozen=True, slots=True)
class Heard:
    """The turn's text in three parts, in order: heard, cut or uncertain, never heard."""

    heard_text: str
    uncertain_text: str
    unheard_text: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class WordTime:
    """A word of the text, its place in it as [start, end) characters, and when it is spoken."""

    word: str
    start_ms: float
    end_ms: float
    start: int
    end: int


def estimate_heard(
    text: str,
    pcm: Pcm | None,
    sample_rate: int,
    low_ms: float,
    high_ms: float,
    marks: Sequence[Mark] = (),
    anchored: bool = True,
    *,
    complete: bool = True,
) -> Heard:
    """Split `text` by a cut between `low_ms` and `high_ms` of the turn's audio.

    `pcm` is the turn's audio from its first sample, int16 at `sample_rate` Hz; None or empty when it is not known.
    `complete` says that it goes to the end of the turn; False when the agent was cut off while still sending, so that
    `text` may go on behind it. `low_ms` is what was played for certain, `high_ms` what at most was played, both in
    milliseconds of that audio; infinity for both when all of it was. `anchored` is False when no checkpoint confirmed
    the position; the basis is ESTIMATED then.
    """
    timeline = _timeline(text, pcm, sample_rate, marks, complete)
    basis = timeline.basis if anchored else Basis.ESTIMATED
    words = timeline.words
    low = -math.inf if math.isnan(low_ms) else low_ms
    high = math.inf if math.isnan(high_ms) else high_ms
    low, high = min(low, high), max(low, high)
    if not complete and pcm is not None and len(pcm) and sample_rate > 0:
        audio_ms = len(pcm) * 1000.0 / sample_rate
        low, high = min(low, audio_ms), min(high, audio_ms)  # what has not been sent has not been heard
    # Where the voice begins and ends is read off the audio and needs no margin, besides the faint end of a last "s".
    if high <= timeline.voice_start_ms:
        heard, unheard = 0, 0
    elif complete and low >= timeline.voice_end_ms:
        heard, unheard = len(words), len(words)
    else:
        heard = sum(1 for word in words if word.end_ms + timeline.margin_ms(word.end_ms) <= low)
        unheard = sum(1 for word in words if word.start_ms - timeline.margin_ms(word.start_ms) < high)
    at = words[heard].start if heard < len(words) else len(text)
    until = words[unheard].start if unheard < len(words) else len(text)
    return Heard(text[:at].strip(), text[at:until].strip(), text[until:].strip(), basis)


def word_times(
    text: str, pcm: Pcm | None, sample_rate: int, marks: Sequence[Mark] = (), *, complete: bool = True
) -> list[WordTime]:
    """When each word of `text` is spoken, in milliseconds from the first sample of `pcm`. See `estimate_heard`.

    Times never decrease. A word is what stands between blanks; in scripts written without blanks, one character.
    """
    return _timeline(text, pcm, sample_rate, marks, complete).words


def span_times(
    text: str, span: str, pcm: Pcm | None, sample_rate: int, marks: Sequence[Mark] = (), *, complete: bool = True
) -> tuple[float, float] | None:
    """Start and end, in milliseconds of `pcm`, of the words `span` quoted from `text`; None when they are not in it.

    Case, punctuation, blanks and accents do not matter; "..." in the quote stands for words left out.
    """
    found = find_span(text, span)
    if found is None:
        return None
    first, last = found
    words = [word for word in word_times(text, pcm, sample_rate, marks, complete=complete) if word.end > first]
    words = [word for word in words if word.start < last]
    return (words[0].start_ms, words[-1].end_ms) if words else None


# --- text -------------------------------------------------------------------------------------------------------------

_SENTENCE_END = ".!?…。！？।؟"
_CLAUSE_END = ",;:、，；：،—–"
_TRAILING = ".,!?;:"
_CLOSING = "\"'”’»)]}」』*_"
_VOWELS = frozenset("aeiouyæøœıаеиоуыэюяєіѵαεηιουω")
_SYMBOL_MS = {
    "$": 280.0,
    "€": 220.0,
    "£": 220.0,
    "¥": 180.0,
    "₹": 250.0,
    "%": 300.0,
    "&": 150.0,
    "@": 120.0,
    "+": 200.0,
}
_DIGIT_MS = 220.0  # between the "nineteen" of 1984 and the "forty-five thousand" of 45,000
_SPELT_MS = 200.0  # a letter of an abbreviation
_UNSPACED_MS = 200.0  # a character of Chinese or Japanese
_CONSONANT_MS = 120.0  # a letter where vowels are marks upon it, or are not written
_SHORTEST_MS = 40.0


@dataclass(frozen=True, slots=True)
class _Token:
    """A word of the text: its characters, how long it takes at an average pace, and what follows it."""

    start: int
    end: int
    nominal_ms: float
    punctuation: int  # 0 none, 1 as a comma, 2 as a full stop


def _tokens(text: str) -> list[_Token]:
    return [
        _Token(start, end, _nominal_ms(text[start:end]), _punctuation(text[start:end]))
        for match in re.finditer(r"\S+", text)
        for start, end in _pieces(text, *match.span())
    ]


def _pieces(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A run without blanks, cut after each character of a script that writes without them (and its punctuation)."""
    if not UNSPACED.search(text, start, end):
        return [(start, end)]
    cuts = [start]
    for at in range(start + 1, end):
        breaks = UNSPACED.match(text[at]) or UNSPACED.match(text[at - 1])
        if breaks and unicodedata.category(text[at])[0] in "LN":
            cuts.append(at)
    return list(zip(cuts, [*cuts[1:], end], strict=True))


def _punctuation(word: str) -> int:
    last = word.rstrip(_CLOSING)[-1:]
    if not last:
        return 0
    return 2 if last in _SENTENCE_END else 1 if last in _CLAUSE_END else 0


def _nominal_ms(word: str) -> float:
    """About how long it takes to say `word` at an average pace, in milliseconds. Only the proportions matter much."""
    ms = 0.0
    letters = vowels = 0
    in_vowels = False
    for char in unicodedata.normalize("NFD", word.casefold()):
        category = unicodedata.category(char)
        if category == "Mn":
            continue
        is_vowel = char in _VOWELS
        if is_vowel and not in_vowels:
            ms += SYLLABLE_MS
        in_vowels = is_vowel
        if category[0] == "L":
            letters += 1
            vowels += is_vowel
            if char < "\u0530":  # Latin, Greek, Cyrillic: a letter is about a sound
                ms += LETTER_MS
            else:
                ms += _UNSPACED_MS if UNSPACED.match(char) else _CONSONANT_MS
        elif category[0] == "N":
            ms += _DIGIT_MS
        else:
            ms += _SYMBOL_MS.get(char, 0.0)
    spelt = letters == 1 or not vowels
    if spelt and word.isascii() and word.isupper() and word.rstrip(_TRAILING) not in ("A", "I"):
        return max(ms, letters * _SPELT_MS)
    return max(ms, _SHORTEST_MS)


# --- audio ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Voice:
    """Stretches of voice, and the clock that runs only while there is voice."""

    starts: npt.NDArray[np.float64]  # in ms of the audio
    ends: npt.NDArray[np.float64]
    clock: npt.NDArray[np.float64]  # voiced ms at the end of each stretch
    audio_ms: float

    @property
    def total_ms(self) -> float:
        return float(self.clock[-1])

    def voiced_before(self, ms: float) -> float:
        """Voiced time up to `ms` of the audio."""
        at = int(np.searchsorted(self.starts, ms, side="right")) - 1
        if at < 0:
            return 0.0
        before = float(self.clock[at - 1]) if at else 0.0
        return before + min(ms, float(self.ends[at])) - float(self.starts[at])

    def time_of(self, voiced_ms: float, *, begins: bool) -> float:
        """When `voiced_ms` of voice have passed. On a pause: its end for a word that begins there, else its start."""
        at = int(np.searchsorted(self.clock, voiced_ms, side="right" if begins else "left"))
        if at >= len(self.clock):
            return self._next_voice_ms() + voiced_ms - self.total_ms
        before = float(self.clock[at - 1]) if at else 0.0
        return float(self.starts[at]) + voiced_ms - before

    def pauses(self, *, complete: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Where the pauses are, in voiced ms, and how long; with silence at the end if the turn goes on after it."""
        gaps = np.append(self.starts[1:], self._next_voice_ms()) - self.ends
        inner = slice(0, len(gaps) if not complete and gaps[-1] > 0 else -1)
        return self.clock[inner], gaps[inner]

    def _next_voice_ms(self) -> float:
        """When the voice goes on, at the earliest, behind the end of the audio."""
        silence = self.audio_ms - float(self.ends[-1])
        return self.audio_ms if silence >= PAUSE_MS else float(self.ends[-1])


def _voice(pcm: Pcm | None, sample_rate: int) -> _Voice | None:
    """The stretches of voice in `pcm`, gaps shorter than PAUSE_MS closed; None when there is no voice."""
    if pcm is None or not len(pcm) or sample_rate < 1000 // _FRAME_MS:
        return None
    levels = frame_levels(pcm, sample_rate, _FRAME_MS)
    if not len(levels):
        return None
    quiet, loud = (float(level) for level in np.percentile(levels, (5, 95)))
    # Some agents mix an office into their voice; then what is a little louder than the office is voice.
    threshold = max(_FLOOR_DBFS, loud - _VOICE_RANGE_DB, min(quiet + _OVER_NOISE_DB, loud - _NOISE_RANGE_DB))
    voiced = levels >= threshold
    edges = np.flatnonzero(np.diff(np.concatenate(([False], voiced, [False])).astype(np.int8)))
    if not len(edges):
        return None
    frame_ms = sample_rate * _FRAME_MS // 1000 * 1000.0 / sample_rate
    starts = np.asarray(edges[::2] * frame_ms, dtype=np.float64)
    ends = np.asarray(edges[1::2] * frame_ms, dtype=np.float64)
    apart = starts[1:] - ends[:-1] >= PAUSE_MS
    starts, ends = starts[np.concatenate(([True], apart))], ends[np.concatenate((apart, [True]))]
    return _Voice(starts, ends, np.cumsum(ends - starts), len(pcm) * 1000.0 / sample_rate)


# --- matching ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Timeline:
    words: list[WordTime]
    basis: Basis
    voice_start_ms: float
    voice_end_ms: float
    drifts_from_ms: float  # where the last anchor is, when the text goes on behind the audio; else infinity

    def margin_ms(self, ms: float) -> float:
        """How far from the cut a word at `ms` must lie: more where no anchor follows."""
        return MARGIN_MS + DRIFT * max(0.0, ms - self.drifts_from_ms)


def _timeline(text: str, pcm: Pcm | None, sample_rate: int, marks: Sequence[Mark], complete: bool) -> _Timeline:
    tokens = _tokens(text)
    voice = _voice(pcm, sample_rate)
    said = np.concatenate(([0.0], np.cumsum([token.nominal_ms for token in tokens])))  # before each token
    fixed = _fixed_points(tokens, said, marks, voice)
    if voice is None:
        # Only a pace, and the marks if there are any: time is taken as all voice.
        anchors = [(0.0, 0.0), *fixed]
        complete = False
        matched = 0
    else:
        anchors, matched = _anchors(tokens, said, voice, fixed, complete)
    pace = _pace(anchors)
    at, when = np.array([nominal for nominal, _ in anchors]), np.array([ms for _, ms in anchors])
    voiced = np.interp(said, at, when)
    beyond = said > at[-1]
    voiced[beyond] = when[-1] + (said[beyond] - at[-1]) * pace
    words = []
    latest = 0.0
    for number, token in enumerate(tokens):
        start, end = float(voiced[number]), float(voiced[number + 1])
        if voice is not None:
            start, end = voice.time_of(start, begins=True), voice.time_of(end, begins=False)
        start = max(start, latest)
        latest = max(end, start)
        words.append(WordTime(text[token.start : token.end], start, latest, token.start, token.end))
    if fixed:
        basis = Basis.MARKS
    elif voice is not None and (complete or matched):
        basis = Basis.PAUSES
    else:
        basis = Basis.ESTIMATED
    last_ms = anchors[-1][1]
    if voice is None:
        return _Timeline(words, basis, 0.0, math.inf, last_ms)
    drifts_from = math.inf if complete else voice.time_of(last_ms, begins=False)
    voice_end = min(float(voice.ends[-1]) + PAUSE_MS, voice.audio_ms)
    return _Timeline(words, basis, float(voice.starts[0]), voice_end, drifts_from)


def _fixed_points(
    tokens: list[_Token], said: npt.NDArray[np.float64], marks: Sequence[Mark], voice: _Voice | None
) -> list[tuple[float, float]]:
    """The marks that make sense, as (nominal ms, voiced ms), both rising."""
    points: list[tuple[float, float]] = []
    starts = [token.start for token in tokens]
    for mark in sorted(marks, key=lambda mark: mark.chars):
        number = bisect_right(starts, mark.chars) - 1
        if number < 0 or not math.isfinite(mark.position_ms):
            continue
        token = tokens[number]
        share = min(1.0, (mark.chars - token.start) / (token.end - token.start))
        nominal = float(said[number]) + share * token.nominal_ms
        voiced = mark.position_ms if voice is None else voice.voiced_before(mark.position_ms)
        last = points[-1] if points else (0.0, 0.0)
        if nominal > last[0] and voiced > last[1]:
            points.append((nominal, voiced))
    return points


def _pace(anchors: list[tuple[float, float]]) -> float:
    """Voiced per nominal time up to the last anchor, drawn towards 1 when there is little to go by."""
    nominal, voiced = anchors[-1]
    return (voiced + _PACE_PRIOR_MS) / (nominal + _PACE_PRIOR_MS)


def _anchors(
    tokens: list[_Token],
    said: npt.NDArray[np.float64],
    voice: _Voice,
    fixed: list[tuple[float, float]],
    complete: bool,
) -> tuple[list[tuple[float, float]], int]:
    """Points where text and voice meet, as (nominal ms, voiced ms), and how many of them are pauses."""
    ends = said[1:-1]
    punctuation = np.array([token.punctuation for token in tokens[:-1]])
    places, gaps = voice.pauses(complete=complete)
    total = float(said[-1])
    goals: list[tuple[float, float] | None] = [*fixed]
    if not complete:
        goals.append(None)
    elif tokens and (not fixed or (fixed[-1][0] < total and fixed[-1][1] < voice.total_ms)):
        goals.append((total, voice.total_ms))
    anchors = [(0.0, 0.0)]
    matched = 0
    for goal in goals:
        start = anchors[-1]
        end = goal or (total, voice.total_ms)
        words = (ends > start[0]) & (ends < end[0])
        pauses = (places > start[1]) & ((places < end[1]) if goal else (places <= end[1]))
        piece = _Piece(start, end, ends[words], punctuation[words], places[pauses], gaps[pauses])
        if goal is not None:
            found = piece.match((end[1] - start[1]) / (end[0] - start[0]), open_end=False)
            anchors += [*found, goal]
        else:
            # The first match tells the pace, the second is made with it.
            found = piece.match(_pace(anchors), open_end=True)
            found = piece.match(_pace([*anchors, *found]), open_end=True)
            anchors += found
        matched += len(found)
    return anchors, matched


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text and voice between two points where they are known to meet."""

    start: tuple[float, float]  # (nominal ms, voiced ms)
    end: tuple[float, float]
    words: npt.NDArray[np.float64]  # nominal ms at the ends of words
    punctuation: npt.NDArray[np.float64]  # 0, 1 or 2 for each of them
    pauses: npt.NDArray[np.float64]  # voiced ms at the pauses
    gaps: npt.NDArray[np.float64]  # how long each of them is, in ms

    def match(self, pace: float, *, open_end: bool) -> list[tuple[float, float]]:
        """Match pauses to ends of words in order; returns the pairs as (nominal ms, voiced ms).

        Finds the cheapest way (dynamic programming over the pauses): it pays for a stretch between two matches whose
        voiced time is unlikely for its words at this `pace`, for a pause where there is no punctuation, for punctuation
        without a pause and for a pause that is left out. With `open_end` the audio stops somewhere in the text.
        """
        if not len(self.words) or not len(self.pauses):
            return []
        chosen = np.sort(np.argsort(-self.gaps, kind="stable")[:_MAX_PAUSES])
        pauses, gaps = self.pauses[chosen], self.gaps[chosen]
        # Number 0 is the start, in words and in pauses.
        words = np.concatenate(([self.start[0]], self.words))
        times = np.concatenate(([self.start[1]], pauses))
        silent = np.concatenate(([0.0], np.cumsum(np.choose(self.punctuation.astype(int), _SKIPPED_PUNCTUATION))))
        left_out = np.concatenate(([0.0], np.cumsum(_skipped_pause(gaps))))
        unmarked = np.concatenate(([0.0], np.where(self.punctuation > 0, 0.0, _NO_PUNCTUATION)))
        expected = self.start[1] + (words - self.start[0]) * pace

        options = [np.zeros(1, dtype=np.intp)]  # for each pause, the words that may end at it
        costs = [np.zeros(1)]
        origins: list[npt.NDArray[np.intp]] = [np.zeros((1, 2), dtype=np.intp)]
        for number in range(1, len(times)):
            off = np.abs(times[number] - expected)
            near = np.flatnonzero(off <= _REACH_MS + _REACH_SHARE * (times[number] - self.start[1]))
            near = near[near > 0]
            if len(near) > _MAX_OPTIONS:
                near = np.sort(near[np.argsort(off[near], kind="stable")[:_MAX_OPTIONS]])
            cheapest = np.full(len(near), np.inf)
            origin = np.zeros((len(near), 2), dtype=np.intp)
            for before in {0, *range(max(0, number - 1 - _REACH_PAUSES), number)}:
                back = options[before]
                cost = (
                    costs[before][:, None]
                    + _unlikely(words[near][None, :] - words[back][:, None], times[number] - times[before], pace)
                    + silent[near - 1][None, :]
                    - silent[back][:, None]
                    + left_out[number - 1]
                    - left_out[before]
                )
                cost[back[:, None] >= near[None, :]] = np.inf
                best = cost.argmin(axis=0) if len(back) else np.zeros(len(near), dtype=np.intp)
                if len(back):
                    value = cost[best, np.arange(len(near))]
                    better = value < cheapest
                    cheapest[better] = value[better]
                    origin[better] = np.stack((np.full(better.sum(), before), best[better]), axis=1)
            options.append(near)
            costs.append(cheapest + unmarked[near])
            origins.append(origin)

        at, total = (0, 0), np.inf
        for number, (near, cost) in enumerate(zip(options, costs, strict=True)):
            if not len(near):
                continue
            rest, ms = self.end[0] - words[near], self.end[1] - times[number]
            last = np.full(len(near), len(words) - 1)
            if open_end:
                # Punctuation that may just not have been reached yet is not missing a pause.
                surely = max(0.0, ms - 2 * math.sqrt(_SPREAD_MS**2 + _SPREAD_PER_MS * ms)) / pace
                last = np.maximum(np.searchsorted(words, words[near] + surely, side="right") - 1, near)
                rest = np.minimum(rest, ms / pace)
            final = cost + _unlikely(rest, ms, pace) + silent[last] - silent[near] + left_out[-1] - left_out[number]
            if final.min() < total:
                at, total = (number, int(final.argmin())), float(final.min())
        found = []
        while at[0]:
            number, option = at
            found.append((float(words[options[number][option]]), float(times[number])))
            at = (int(origins[number][option][0]), int(origins[number][option][1]))
        return found[::-1]


def _unlikely(
    nominal_ms: npt.NDArray[np.float64], voiced_ms: float | npt.NDArray[np.float64], pace: float
) -> npt.NDArray[np.float64]:
    """How unlikely it is that words of `nominal_ms` take `voiced_ms`: half the square of the distance in spreads."""
    expected = np.maximum(nominal_ms, 0.0) * pace
    return np.asarray((voiced_ms - expected) ** 2 / (2 * (_SPREAD_MS**2 + _SPREAD_PER_MS * expected)))


def _skipped_pause(gap_ms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.minimum(4.0, 0.4 + (gap_ms - PAUSE_MS) / 100)
