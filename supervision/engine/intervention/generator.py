"""The text of a correction: written by the model, checked, judged like any other turn, or else a template."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from supervision.engine.config import PolicyConfig
from supervision.engine.context import NO_USAGE, Correction, JudgingState, ToolCallIntent, TurnPayload, Verdict
from supervision.engine.intervention.templates import primary_language
from supervision.engine.llm.deadline import Answer, DeadlineAsker, InvalidAnswer, exact_keys, text_of
from supervision.engine.llm.limiter import Risk, asking
from supervision.engine.policy.compiler import CORRECTION_SCHEMA, CompiledPolicy, user_message
from supervision.engine.scorer.protocol import TurnScorer

# What six seconds of speech hold.
MAX_WORDS = 20
MAX_CHARS = 240
MAX_TOKENS = 120

# How `Correction.detail` begins when the words are those that the judge suggested in its verdict.
SUGGESTED = "the judge's suggestion"

OnCandidate = Callable[[Correction], None]

_TEXT_KEYS = frozenset(CORRECTION_SCHEMA["properties"])

# Words by which a correction would give away that something stands behind the agent, per language. "Let me check your
# order" and "I'll connect you with a supervisor" are what agents say; "a check flagged this" is not.
_BEHIND_THE_SCENES = {
    "en": (
        r"systems?|guard-?rails?|language model|artificial intelligence|as an? (?:ai|assistant|bot)|an ai|"
        r"(?:internal|automatic|automated|policy|safety|quality|compliance|routine) checks?|"
        r"checks? (?:has|have|had|found|shows?|showed|failed|flagged|says?|said)|flagged|"
        r"(?:was|been|were) (?:corrected|blocked|stopped|reviewed|told)|my (?:instructions|prompt|rules)|supervision|"
        r"supervisors? (?:says?|said|told|stopped|corrected|flagged|has|have|had|reviewed|blocked|intervened)|"
        r"(?:told|stopped|corrected|reviewed|blocked|monitored|watched) by (?:\w+ ){0,2}supervisors?"
    ),
    "es": r"sistemas?|modelo de lenguaje|inteligencia artificial|verificación automática|mis instrucciones",
    "fr": r"systèmes?|modèle de langage|intelligence artificielle|vérification automatique|mes instructions",
    "de": r"systeme?s?|sprachmodell|künstliche intelligenz|eine ki|prüfung|überprüfung|meine anweisungen|aufsicht",
    "pt": r"sistemas?|modelo de linguagem|inteligência artificial|verificação automática|minhas instruções",
    "hi": r"सिस्टम|जाँच प्रणाली|कृत्रिम बुद्धिमत्ता|एआई",
    "it": r"sistem[ai]|modello linguistico|intelligenza artificiale|controllo automatico|le mie istruzioni",
    "nl": r"syste(?:em|men)|taalmodel|kunstmatige intelligentie|automatische controle|mijn instructies",
}

# Speech about the two on the phone instead of from one to the other.
_THIRD_PERSON = {
    "en": r"the (?:agent|assistant|customer|caller|user|bot)(?:'s)?",
    "es": r"(?:el|la|al|del) (?:agente|asistente|cliente)",
    "fr": r"l'(?:agent|assistant|assistante)|(?:le|la|au|du) (?:client|cliente)",
    "de": r"(?:der|den|dem|des) (?:agent|agenten|assistent|assistenten|kunde|kunden)",
    "pt": r"(?:o|a|ao|do|da) (?:agente|assistente|cliente)",
    "hi": r"एजेंट|ग्राहक",
    "it": r"(?:l'|all'|dell')(?:agente|assistente)|(?:il|al|del) cliente",
    "nl": r"(?:de|aan de) (?:agent|assistent|klant)",
}

# How a sentence begins, or what it contains, that says what comes next.
_NEXT_STEP = {
    "en": (
        r"let me|let's|let us|i'll|i will|i'm going to|i am going to|i can|i'd like to|i would like to|we'll|we will|"
        r"we can|please|one moment|just a moment|give me|could you|can you|may i|shall i|"
        r"i'm (?:transferring|connecting|checking|looking)|(?:a|an|our|my|one of our) (?:\w+ ){1,2}will"
    ),
    "es": r"permítame|déjeme|voy a|vamos a|puedo|podemos|por favor|le (?:paso|comunico|transfiero)|enseguida",
    "fr": r"je vais|je peux|laissez-moi|permettez-moi|nous allons|nous pouvons|veuillez|s'il vous plaît|je vous",
    "de": (r"ich (?:werde|kann|verbinde|sehe|schaue|gebe)|lassen sie (?:mich|uns)|wir (?:werden|können)|bitte|gerne"),
    "pt": r"vou|posso|podemos|deixe-me|permita-me|vamos|por favor",
    "hi": r"मैं|कृपया|चलिए|आइए|दीजिए|बताइए",
    "it": r"mi permetta|mi lasci|posso|possiamo|vediamo|per favore|la (?:passo|collego|metto)|ora",
    "nl": r"laat me|laat mij|laten we|ik zal|ik kan|ik ga|we gaan|we kunnen|alstublieft|ik verbind",
}

_QUOTED = re.compile(r'"([^"]{2,400})"|“([^”]{2,400})”|„([^“”]{2,400})[“”]|«([^»]{2,400})»')
_MARKUP = re.compile(
    r"[{}\[\]<>*`|_~\\]|https?:|^\s*(?:#|(?:agent|assistant|operator|mirror|correction|answer|say|text)\s*:)",
    re.IGNORECASE,
)
_QUESTION_MARKS = ("?", "？", "؟", ";")


class CorrectionWriter:
    """Writes corrections under one policy. Shared by all its calls; keeps nothing of any of them."""

    def __init__(
        self,
        asker: DeadlineAsker,
        scorer: TurnScorer,
        policy: CompiledPolicy,
        config: PolicyConfig,
        irreversible: Callable[[ToolCallIntent], bool],
    ) -> None:
        self._asker = asker
        self._scorer = scorer
        self._policy = policy
        self._config = config
        self._irreversible = irreversible

    async def write(
        self,
        payload: TurnPayload,
        verdict: Verdict,
        *,
        opener: str,
        template: str,
        timeout_s: float,
        on_candidate: OnCandidate,
    ) -> Correction:
        """The words to speak instead of a violating turn, within `timeout_s` seconds.

        There are three candidates, each better than the one before: `template`; what the judge suggested in its
        verdict; and what the model writes now. The suggestion is judged while the model writes, the model's text when
        it is written: two verdicts at most. The best that is clean in time is returned; `on_candidate` gets each
        candidate as soon as it may be spoken. `opener`, if any, becomes each text's beginning.

        Raises nothing but `asyncio.CancelledError`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        wrong = offending_words(verdict.reason, payload.agent_text)
        fallback = _joined(opener, template)
        # What a refused tool call leaves is addressed to the agent: the model may use it, nobody speaks it.
        seed = _plain(verdict.correction) if verdict.violates else ""
        suggestion = _joined(opener, seed) if seed else ""
        usage = NO_USAGE

        async def problem_with(text: str) -> str | None:
            """Why a text may not be spoken, completing "the text …", or None when it may."""
            nonlocal usage
            complaint = complaint_about(text, wrong=wrong, language=payload.language) if text else "is empty"
            if complaint is not None:
                return complaint
            judged = await self._judged(payload, text, deadline)
            usage += judged.usage
            if judged.state is not JudgingState.JUDGED:
                return f"could not be judged: {judged.detail}"
            return f"breaks a rule itself: {judged.rule}" if judged.violates else None

        async def suggest() -> str | None:
            problem = await problem_with(suggestion)
            if problem is None:
                detail = f"{SUGGESTED}; the model's text was not ready in time"
                on_candidate(Correction(suggestion, "llm", detail, usage))
            return problem

        on_candidate(Correction(fallback, "template", "no text of the model was ready in time"))
        suggesting = loop.create_task(suggest())
        try:
            answer = await self._written(payload, verdict, opener, deadline)
            usage += answer.usage
            if answer.value is None:
                problem: str | None = f"was not written: {answer.detail}"
            elif (text := _joined(opener, answer.value)) == suggestion:
                problem = None  # but for what its verdict says, which is on the way
            elif (problem := await problem_with(text)) is None:
                correction = Correction(text, "llm", "", usage)
                on_candidate(correction)
                return correction
            problem_with_suggestion = await suggesting
        finally:
            suggesting.cancel()
        if problem_with_suggestion is None:
            detail = f"{SUGGESTED}; the model's text {problem}" if problem else ""
            return Correction(suggestion, "llm", detail, usage)
        detail = f"the model's text {problem or problem_with_suggestion}; {SUGGESTED} {problem_with_suggestion}"
        return Correction(fallback, "template", detail, usage)

    async def _written(self, payload: TurnPayload, verdict: Verdict, opener: str, deadline: float) -> Answer[str]:
        return await self._asker.ask(
            system=self._policy.correction_prompt,
            user=user_message(
                customer_text=payload.customer_text,
                agent_text=payload.agent_text,
                tool_calls=((call, self._irreversible(call)) for call in payload.tool_calls),
                history=payload.history,
                verdict={
                    "rule": verdict.rule,
                    "reason": verdict.reason,
                    "suggestion": verdict.correction,
                    "language": payload.language,
                    "opener": opener,
                    "max_words": MAX_WORDS - word_count(opener),
                },
            ),
            schema_name="mirror_correction",
            schema=CORRECTION_SCHEMA,
            max_tokens=max(MAX_TOKENS, self._config.judge_max_tokens),
            deadline=deadline,
            validate=_text,
            risk=Risk.CORRECTION,
        )

    async def _judged(self, payload: TurnPayload, text: str, deadline: float) -> Verdict:
        """The verdict on a text as if the agent had said it."""
        with asking(Risk.CORRECTION):
            return await self._scorer.score(
                TurnPayload(
                    customer_text=payload.customer_text,
                    agent_text=text,
                    history=payload.history,
                    turn_id=payload.turn_id,
                    language=payload.language,
                ),
                timeout_s=deadline - asyncio.get_running_loop().time(),
            )


def _text(answer: dict[str, Any]) -> str:
    exact_keys(answer, _TEXT_KEYS)
    text = _plain(text_of(answer["text"], "text", 2_000))
    if not text:
        raise InvalidAnswer("text is empty")
    return text


def _plain(text: str) -> str:
    """A text on one line, without the quotation marks that models put around what somebody should say."""
    text = " ".join(text.split())
    if len(text) > 1 and text[0] in "\"“«„'" and text[-1] in "\"”»“'":
        text = text[1:-1].strip()
    return text


def _joined(opener: str, text: str) -> str:
    return f"{opener} {text}" if opener and text else opener or text


def complaint_about(text: str, *, wrong: list[str] | tuple[str, ...] = (), language: str = "en") -> str | None:
    """Why a text is not something to say to a customer as a correction, or None when it is.

    `wrong` are the words that it must not repeat. The answer completes the sentence "the model's text …".
    """
    if word_count(text) > MAX_WORDS or len(text) > MAX_CHARS:
        return f"has more than {MAX_WORDS} words"
    if _MARKUP.search(text):
        return "is not plain speech"
    primary = primary_language(language)
    folded = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    if _says(_BEHIND_THE_SCENES.get(primary), folded):
        return "speaks of a check or a system"
    if _says(_THIRD_PERSON.get(primary), folded):
        return "is not said by the agent to the customer"
    spoken = _words(text)
    if any(_contains(spoken, _words(words)) for words in wrong):
        return "repeats the offending words"
    ending = folded.rstrip(" \"'”»)")
    if not ending.endswith(_QUESTION_MARKS):
        last = re.split(r"(?<=[.!?।。])\s+", ending)[-1]
        next_step = _NEXT_STEP.get(primary)
        if next_step is not None and not _says(next_step, last):
            return "ends with neither a question nor the next step"
    return None


def offending_words(reason: str, agent_text: str) -> list[str]:
    """The words that a judge quoted in its reason, as far as the agent did say them.

    Single short words are left out: a correction that has to do without "you" or "is" cannot be spoken.
    """
    said = _words(agent_text)
    found = []
    for match in _QUOTED.finditer(reason):
        quoted = next(group for group in match.groups() if group is not None)
        for piece in re.split(r"\.\.\.|…", quoted):
            words = _words(piece)
            telling = sum(map(len, words)) >= (6 if len(words) > 1 else 4) or any(w[0].isdigit() for w in words)
            if words and telling and _contains(said, words):
                found.append(piece.strip())
    return found


def word_count(text: str) -> int:
    """Words as a speaker counts them; in scripts without spaces two characters are taken for one word."""
    words = text.split()
    dense = sum(1 for character in text if "\u3040" <= character <= "\u9fff" or "\u0e00" <= character <= "\u0e7f")
    return len(words) + dense // 2


def _says(pattern: str | None, folded: str) -> bool:
    return pattern is not None and re.search(rf"(?<!\w)(?:{pattern})(?!\w|'t\b)", folded) is not None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _contains(words: list[str], part: list[str]) -> bool:
    size = len(part)
    return size > 0 and any(words[start : start + size] == part for start in range(len(words) - size + 1))
