"""Judging a turn while its text still arrives: clause by clause, and as a whole when it is complete.

    turn = StreamedTurn(score, payload, clause_by_clause=True)
    for delta in ...:
        if turn.push(delta): ...           # a clause broke a rule; push never waits
    verdict = await turn.finish()          # the whole turn is judged, its tail included

`ClauseSplitter` finds the clauses. Where it splits depends on the text alone, never on how the deltas were cut.
"""

from __future__ import annotations

import asyncio
import logging
import re
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import replace

from supervision.engine.context import NO_USAGE, JudgingState, TurnPayload, Usage, Verdict
from supervision.engine.llm.limiter import Risk, asking, risk_here
from supervision.engine.policy.compiler import MAX_TURN_CHARS

logger = logging.getLogger(__name__)

# About ten seconds of speech. Text that has no stop for as long is judged up to a word's end all the same.
MAX_CLAUSE_CHARS = 160
# The same for scripts that are written without spaces, in which a character is about a syllable.
MAX_DENSE_CLAUSE_CHARS = 48
# A comma, a colon or a dash ends a clause that has become this long.
LONG_CLAUSE_CHARS = 80
LONG_DENSE_CLAUSE_CHARS = 24

MAX_IN_FLIGHT = 3
"""Questions that one turn has under way at a time. Clauses that end meanwhile are judged together by the next one."""
FREE_CALLS = 8
"""After this many questions the next one is asked only when the turn has grown by a quarter: however long a turn is,
it costs at most 8 + log(MAX_TURN_CHARS / 8) / log(1.25) + 1 = 46 questions."""
GROWTH = 1.25

_GOOD = (JudgingState.JUDGED, JudgingState.SKIPPED)

# Stops after which a space has to follow …
_SPACED = ".!?…;‽⁇⁈⁉\u037e"
# … and stops of scripts in which none has to (CJK, Arabic, Urdu, Devanagari, Armenian, Ethiopic, Myanmar, Khmer …).
_UNSPACED = "。｡．！？；؟۔।॥։።፧፨။។៕།༎᠃᠉"
_SOFT_SPACED = ",:،؛—–"
_SOFT_UNSPACED = "，、：､"
_CLOSERS = "\"'”’»›)]}」』）］】》〉*_`\u200d\ufe0e\ufe0f"
_OPENERS = "\"'“‘„‚«‹([{*_`¿¡"

_CANDIDATE = re.compile(f"[{re.escape(_SPACED + _UNSPACED + _SOFT_SPACED + _SOFT_UNSPACED)}\\n\\r\\u2028\\u2029]")
# Both bounded, so that a text of nothing but stops is not gone over again with every delta.
_RUN = re.compile(f"[{re.escape(_SPACED + _UNSPACED)}]{{1,8}}")
_CLOSING = re.compile(f"[{re.escape(_CLOSERS)}]{{0,4}}")
_SPACES = re.compile(r"\s{1,3}")
_OPENING = re.compile(f"[{re.escape(_OPENERS)}]{{0,2}}")
_LINE_END = frozenset("\n\r\u2028\u2029")

_LAST_WORD = re.compile(r"[^\s\"'“‘„«(\[{¿¡*_`/-]+$")
_LAST_WORD_CHARS = 24
_DOTTED = re.compile(r"(?:[^\W\d_]{1,3}\.)+[^\W\d_]{1,3}")
_ORDINAL = re.compile(r"\d{1,2}")

# What a full stop belongs to although a capital may follow. Not here: words that end sentences as well ("etc.", "no."),
# abbreviations with inner stops ("e.g.", "z.B.", "p.m.") and single letters, which are known by their shape. A wrong
# guess costs little: one question more, or a clause judged together with the next.
_TITLES_AND_THE_LIKE = """
    mr mrs ms mx dr prof sr jr st mt ft rev hon capt lt sgt gov sen rep pres supt messrs ave blvd rd apt dept vs approx
    ext inc ltd corp bros assn acct
    hr fr frl nr str bzw ca evtl ggf inkl exkl zzgl abzgl vgl bsp geb dipl hbf bhf jh mio mrd tsd stk sog allg
    cf mme mlle mmes mlles vve cie éts av boul tél réf
    sra srta sres sras dra dña ud uds vd vds avda núm pág págs depto dpto atte aprox ej exmo exma ilmo séc ltda cia
    sig sigg dott avv rag geom spett egr
    dhr mevr mw drs blz bijv tlf evt fru
    tzn godz inż hab mgr tzv např tj ul nám sl cad bkz
    г гг ул просп пер кв корп стр тел руб коп тыс млн млрд проф акад гр св обл вул буд грн
    κ κα κος δρ τηλ οδ αρ λεωφ
    डॉ श्री रु पं प्रो د أ م ص ت
"""
_BEFORE_NUMBERS = """
    no nos num n° pp p ch fig figs art sec vol para ref ste tel fax kl tlf pag jan feb mar apr jun jul aug sept sep oct
    nov dec okt dez mrz mär janv févr avr juil déc mon tue tues wed thu thur thurs fri sat sun
"""
_ABBREVIATIONS = frozenset(_TITLES_AND_THE_LIKE.split())
_NUMBERED = frozenset(_BEFORE_NUMBERS.split())

_NOTHING = -1
_UNDECIDED = -2


class ClauseSplitter:
    """Splits a text that arrives in deltas into clauses: parts that are worth judging the turn after.

    A clause ends at a full stop, an exclamation or question mark, an ellipsis, a semicolon (of any script, closing
    quotes and brackets included) or a line's end; a long one at a comma, colon or dash; and after
    `MAX_CLAUSE_CHARS` characters at the end of a word in any case. Not at stops inside of numbers, abbreviations,
    ordinals, initials, addresses and the like. Whether a stop at the end of what has arrived ends a clause is decided
    by what comes next. Nothing is lost or changed: the clauses put together are the text, except that the two halves
    of a surrogate pair are joined, and a half without its other one becomes U+FFFD.
    """

    def __init__(self) -> None:
        self.examined = 0
        """How many characters have been looked at so far; it grows in proportion to the text."""
        self._rest = ""
        self._scan = 0
        self._high = ""

    @property
    def rest(self) -> str:
        """What has arrived since the last clause ended."""
        return self._rest

    def push(self, delta: str) -> list[str]:
        """Takes more text, cut anywhere, and returns the clauses that are complete by now. Raises TypeError when
        `delta` is no string."""
        if not isinstance(delta, str):
            raise TypeError(f"delta has to be a string, not {type(delta).__name__}; leave out deltas without text")
        if self._high or not delta.isascii():
            delta = self._joined(delta)
        if not delta:
            return []
        return self._split(self._rest + delta)

    def finish(self) -> str:
        """The text after the last complete clause, possibly empty. The splitter is empty afterwards."""
        # The half of a pair whose other half never came.
        rest = self._rest + ("\ufffd" if self._high else "")
        self._rest, self._scan, self._high = "", 0, ""
        return rest

    def _joined(self, delta: str) -> str:
        delta, self._high = self._high + delta, ""
        if delta and "\ud800" <= delta[-1] <= "\udbff":
            delta, self._high = delta[:-1], delta[-1]
        try:
            delta.encode()
        except UnicodeEncodeError:
            # JSON from UTF-16 systems may cut a character in two; the JSON that goes to the judge could not be encoded.
            delta = delta.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return delta

    def _split(self, text: str) -> list[str]:
        clauses: list[str] = []
        start, scan = 0, self._scan
        while True:
            # Decided from the first characters of the clause alone and before anything else that comes after them, so
            # that it makes no difference how many more have arrived already.
            limit = MAX_CLAUSE_CHARS
            if len(text) - start >= MAX_DENSE_CLAUSE_CHARS and _is_dense(text[start : start + MAX_DENSE_CLAUSE_CHARS]):
                limit = MAX_DENSE_CLAUSE_CHARS
            end = min(len(text), start + limit)
            cut, scan = self._next_end(text, start, scan, end, full=end == start + limit)
            if cut == _UNDECIDED:
                break
            if cut == _NOTHING:
                if end < start + limit:
                    break
                cut = _word_end(text, start, end)
            clauses.append(text[start:cut])
            start = scan = cut
        self._rest, self._scan = text[start:], scan - start
        return clauses

    def _next_end(self, text: str, start: int, scan: int, end: int, *, full: bool) -> tuple[int, int]:
        """Where the first clause in text[start:end] ends, looking from `scan` on, and where to look from next time."""
        while True:
            found = _CANDIDATE.search(text, scan, end)
            if found is None:
                self.examined += end - scan
                return _NOTHING, end
            at = found.start()
            self.examined += at - scan + 1
            cut, behind = self._ends_at(text, start, at, end)
            self.examined += behind - at
            if cut >= 0 and not text[start:cut].isspace():
                return cut, cut
            if cut == _UNDECIDED and not full:
                return _UNDECIDED, at
            scan = max(behind, at + 1)

    @staticmethod
    def _ends_at(text: str, start: int, at: int, end: int) -> tuple[int, int]:
        """Whether the stop at `at` ends a clause, and where; and where to go on looking when it does not. What depends
        on characters at or after `end` is undecided."""
        stop = text[at]
        if stop in _LINE_END:
            return (at if at > start else _NOTHING), at + 1
        if stop in _SOFT_SPACED or stop in _SOFT_UNSPACED:
            if at - start < (LONG_CLAUSE_CHARS if stop in _SOFT_SPACED else LONG_DENSE_CLAUSE_CHARS):
                return _NOTHING, at + 1
            if stop in _SOFT_UNSPACED:
                return at + 1, at + 1
            if at + 1 == end:
                return _UNDECIDED, at + 1
            return (at + 1 if text[at + 1].isspace() else _NOTHING), at + 1
        run = _matched(_RUN, text, at, end)
        behind = _matched(_CLOSING, text, run, end)
        if behind == end:
            return _UNDECIDED, behind
        follows = text[behind]
        stop = text[run - 1]
        if stop in _UNSPACED:
            number = text[at - 1 : at].isdigit() and follows.isdigit()
            return (_NOTHING if number or unicodedata.combining(follows) else behind), behind
        if follows in "¿¡":
            return behind, behind
        if not follows.isspace():
            return _NOTHING, behind
        if stop == ";":
            return behind, behind
        spaces = _matched(_SPACES, text, behind, end)
        if spaces - behind == 3 or not _LINE_END.isdisjoint(text[behind:spaces]):
            return behind, spaces
        if stop not in ".…" and behind == run:
            return behind, behind
        word = _matched(_OPENING, text, spaces, end)
        if word == end:
            return _UNDECIDED, word
        if text[word].islower():
            return _NOTHING, behind
        if text[at:run] == "." and _belongs_to_word(text[max(start, at - _LAST_WORD_CHARS) : at], text[word]):
            return _NOTHING, behind
        return behind, behind


def _matched(pattern: re.Pattern[str], text: str, start: int, end: int) -> int:
    found = pattern.match(text, start, end)
    return found.end() if found else start


def _belongs_to_word(before: str, follows: str) -> bool:
    """Whether a full stop after `before` belongs to the word (an abbreviation, an initial, an ordinal) and ends
    nothing; `follows` is the first character of the next word."""
    found = _LAST_WORD.search(before)
    if found is None:
        return False
    word = found.group()
    if word[-1].isdigit():
        # "am 3. Mai", "2. Stock", "1. Open the app"; but "$59. Shall I", "at 10:30. Then". A digit that follows goes on
        # with the number.
        return follows.isdigit() or _ORDINAL.fullmatch(word) is not None
    if len(word) == 1:
        # An initial, "z. B.", "S. A."; letters without case are words (Korean, for instance).
        return (word != "I" and word.lower() != word.upper()) or word in _ABBREVIATIONS
    word = word.casefold()
    return word in _ABBREVIATIONS or (follows.isdigit() and word in _NUMBERED) or _DOTTED.fullmatch(word) is not None


def _is_dense(text: str) -> bool:
    return not text.isascii() and not any(map(str.isspace, text))


def _word_end(text: str, start: int, end: int) -> int:
    """Where to cut text[start:end], which has no clause's end in it: before its last space, else between two
    characters that do not make one sign together."""
    for at in range(end - 1, start, -1):
        if text[at].isspace():
            if text[start:at].isspace():
                break
            return at
    for at in range(end - 1, max(start, end - 24), -1):
        if not _joined_signs(text[at - 1], text[at]):
            return at
    return end


def _joined_signs(left: str, right: str) -> bool:
    return (
        unicodedata.category(right)[0] == "M"
        or right in "\u200d\u0e33\u0eb3"  # the joiner; Thai and Lao vowels that stand after their consonant
        or left == "\u200d"
        or unicodedata.combining(left) == 9  # a virama: what follows is one sign with it
        or "\u0e40" <= left <= "\u0e44"  # Thai and Lao vowels that stand before their consonant
        or "\u0ec0" <= left <= "\u0ec4"
        or "\u1160" <= right <= "\u11ff"  # the second and third letter of a Korean syllable
        or "\U0001f3fb" <= right <= "\U0001f3ff"  # skin tones
        or ("\U0001f1e6" <= left <= "\U0001f1ff" and "\U0001f1e6" <= right <= "\U0001f1ff")  # flags
    )


class StreamedTurn:
    """One agent turn whose text arrives in deltas.

    With `clause_by_clause`, every clause that ends is judged at once together with all of the turn before it: `score`
    gets `payload` with the turn so far as `agent_text`. Questions do not wait for each other; at most `MAX_IN_FLIGHT`
    are under way, and clauses that end meanwhile share the next one (see also `FREE_CALLS`). Without, only the whole
    turn is judged. `score` must end by a deadline of its own; it makes a verdict of whatever goes wrong.

    `on_violation` gets the first verdict that calls for an intervention as soon as it is there, for whoever does not
    want to wait for the next delta. `on_answer` gets every verdict, with how many characters of the turn it is about;
    `clean_chars` and `violation` know of it by then. Neither may raise. All methods belong to the loop on which the
    turn is judged.

    At most `MAX_TURN_CHARS` + 1 characters are kept, which is one more than can be judged.
    """

    def __init__(
        self,
        score: Callable[[TurnPayload], Awaitable[Verdict]],
        payload: TurnPayload,
        *,
        clause_by_clause: bool,
        on_violation: Callable[[Verdict], object] | None = None,
        on_answer: Callable[[Verdict, int], object] | None = None,
    ) -> None:
        self.calls = 0
        """How many questions were asked so far."""
        self.clean_chars = 0
        """So many characters of the turn, from its beginning, are known to break no rule."""
        self._score = score
        self._payload = payload
        self._clause_by_clause = clause_by_clause
        self._on_violation = on_violation
        self._on_answer = on_answer
        self._splitter = ClauseSplitter()
        self._parts: list[str] = []
        self._chars = 0  # of the complete clauses
        self._asked_chars = 0
        self._worth_asking = False
        self._running: dict[asyncio.Task[Verdict], int] = {}  # and how many characters each is about
        self._whole: asyncio.Task[Verdict] | None = None
        self._newest: asyncio.Task[Verdict] | None = None
        self._violation: Verdict | None = None
        self._worst: Verdict | None = None
        self._usage: Usage = NO_USAGE
        self._finished = False

    @property
    def text(self) -> str:
        """The turn's text so far."""
        return "".join(self._parts) + self._splitter.rest

    @property
    def violation(self) -> Verdict | None:
        """The first verdict of this turn that called for an intervention, if there is one yet."""
        return self._violation

    def push(self, delta: str) -> Verdict | None:
        """Takes more text. Never waits: it returns the first verdict that called for an intervention, once there is
        one, and None until then. Raises TypeError when `delta` is no string, RuntimeError after `finish`."""
        if self._finished:
            raise RuntimeError("this turn is finished; make a new StreamedTurn for the next one")
        room = MAX_TURN_CHARS + 1 - self._chars - len(self._splitter.rest)
        for clause in self._splitter.push(delta[:room] if isinstance(delta, str) else delta):
            self._parts.append(clause)
            self._chars += len(clause)
            self._worth_asking = self._worth_asking or not clause.isspace()
        self._ask_about_clauses()
        return self._violation

    async def finish(self, payload: TurnPayload | None = None) -> Verdict:
        """Judges the whole turn and returns the worst that is known of it.

        That is, of the verdicts that call for an intervention, the one with the highest score (the first of equals),
        whether a clause's or the whole turn's. When there is none it is the whole turn's verdict: a clause that was not
        judged in time does not matter once the turn as a whole was, and clean clauses do not stand in for a whole turn
        that was not. Clauses still under way when the whole turn is judged are late and count no more; when it could
        not be judged, they are waited for. `usage` is the sum over all answers.

        `payload` replaces the one that the turn began with (when its tool calls became known at the end, say); its
        `agent_text` is ignored. Nothing is left running, when this is cancelled neither. Raises RuntimeError the second
        time, and what `score` raises.
        """
        if self._finished:
            raise RuntimeError("this turn is finished already; keep the verdict that finish returned")
        self._finished = True
        tail = self._splitter.finish()
        self._parts.append(tail)
        try:
            whole = self._judged_whole() if payload is None and not tail.strip() else None
            if whole is None:
                whole = self._ask(payload or self._payload)
            self._whole = whole
            await asyncio.wait((whole,))
            verdict = whole.result()
            if verdict.state not in _GOOD and self._worst is None:
                await self._wait_for_clauses()
        finally:
            self._whole = None
            self.cancel()
        return replace(self._worst or verdict, usage=self._usage)

    async def decided(self) -> bool | None:
        """Whether every word that has arrived by now breaks no rule; returns when that is known, at the latest when
        the question about the newest of them is answered. None when it was not: its answer failed. Asks about the
        clause that has not ended, too. Raises nothing but `asyncio.CancelledError`."""
        chars = self._chars + len(self._splitter.rest)
        blank = not self._splitter.rest.strip() and not self._worth_asking
        if self._violation is None and self.clean_chars < chars and not (blank and self.clean_chars >= self._chars):
            task = next((task for task, about in self._running.items() if about >= chars), None)
            if task is None and not self._finished:
                task = self._ask(self._payload, self._splitter.rest)
            if task is not None:
                await asyncio.wait((task,))
        if self._violation is not None:
            return False
        return True if self.clean_chars >= chars or (blank and self.clean_chars >= self._chars) else None

    def cancel(self) -> None:
        """Gives up what is under way, for a turn that nobody will finish. A `finish` under way is given up by
        cancelling that. Idempotent."""
        self._finished = True
        for task in self._running:
            if task is not self._whole:
                task.cancel()

    def _ask_about_clauses(self) -> None:
        if not self._clause_by_clause or self._finished or not self._worth_asking:
            return
        if len(self._running) >= MAX_IN_FLIGHT or self._chars > MAX_TURN_CHARS:
            return
        if self.calls >= FREE_CALLS and self._chars < self._asked_chars * GROWTH:
            return
        with asking(Risk.CLAUSE if risk_here() is Risk.TURN else risk_here()):
            self._newest = self._ask(self._payload)

    def _ask(self, payload: TurnPayload, rest: str = "") -> asyncio.Task[Verdict]:
        """Asks about all complete clauses, and `rest` behind them."""
        self._parts = ["".join(self._parts)]
        self._asked_chars, self._worth_asking = self._chars, False
        self.calls += 1
        text = self._parts[0] + rest
        task = asyncio.get_running_loop().create_task(self._judge(replace(payload, agent_text=text)))
        self._running[task] = len(text)
        task.add_done_callback(self._answered)
        return task

    async def _judge(self, payload: TurnPayload) -> Verdict:
        return await self._score(payload)

    def _judged_whole(self) -> asyncio.Task[Verdict] | None:
        """The question about the newest clause, if it was about the whole turn as it stands and did not fail."""
        task = self._newest
        if task is None or self._worth_asking:
            return None
        if not task.done():
            return task
        answered = not task.cancelled() and task.exception() is None
        return task if answered and task.result().state in _GOOD else None

    async def _wait_for_clauses(self) -> None:
        while self._running and self._worst is None:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    def _answered(self, task: asyncio.Task[Verdict]) -> None:
        chars = self._running.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._take(task.result(), chars)
        elif task is not self._whole:
            # The whole turn's error is raised by `finish`. The message may hold what was said, so it is not kept.
            logger.error("judging a clause raised %s", type(error).__name__)
        self._ask_about_clauses()

    def _take(self, verdict: Verdict, chars: int) -> None:
        self._usage += verdict.usage
        if verdict.state is JudgingState.JUDGED and verdict.score is not None and verdict.score >= verdict.threshold:
            if self._worst is None or self._worst.score is None or verdict.score > self._worst.score:
                self._worst = verdict
            if self._violation is None:
                self._violation = verdict
                if self._on_violation is not None:
                    self._on_violation(verdict)
        elif verdict.state in _GOOD:
            self.clean_chars = max(self.clean_chars, chars)
        if self._on_answer is not None:
            self._on_answer(verdict, chars)
