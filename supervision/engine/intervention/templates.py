"""What Mirror says of its own: short lines, in every language that it can act in without a model's help.

- buffer lines fill the moment between a cut and the correction; at most 1.6 seconds when spoken;
- retraction openers begin a correction of something that the caller has heard to its end;
- correction lines speak when no text of a model is there, clean and in time. They take back whatever was said and ask
  what to do next, so they fit any rule; at most 14 words, so that an opener and a line stay within 20.

None of them says anything about checks, systems or rules, and none of them gives the speaker a gender.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of one language. Of each kind the first is used first, and none twice while there is another."""

    buffers: tuple[str, ...]
    openers: tuple[str, ...]
    corrections: tuple[str, ...]


_LINES: dict[str, Lines] = {
    "en": Lines(
        buffers=("Sorry, one moment.", "Just a second, please.", "One moment, please.", "Sorry, bear with me."),
        openers=("Sorry, I misspoke.", "I'm sorry, I got that wrong."),
        corrections=(
            "Let me take that back and start again. What can I help you with?",
            "I need to take that back. Could you tell me again what you need?",
        ),
    ),
    "es": Lines(
        buffers=("Perdone, un momento.", "Un segundo, por favor.", "Un momento, por favor.", "Disculpe, un instante."),
        openers=("Perdone, me he expresado mal.", "Disculpe, eso no era correcto."),
        corrections=(
            "Permítame retirar eso y empezar de nuevo. ¿En qué puedo ayudarle?",
            "Tengo que retirar lo que dije. ¿Puede decirme otra vez qué necesita?",
        ),
    ),
    "fr": Lines(
        buffers=("Pardon, un instant.", "Une seconde, je vous prie.", "Un instant, merci.", "Excusez-moi, un moment."),
        openers=("Pardon, je me suis mal exprimé.", "Excusez-moi, c'était inexact."),
        corrections=(
            "Je retire cela et je recommence. Comment puis-je vous aider ?",
            "Je dois revenir sur cela. Pouvez-vous me redire ce qu'il vous faut ?",
        ),
    ),
    "de": Lines(
        buffers=("Moment, bitte.", "Einen Augenblick, bitte.", "Entschuldigung, Moment.", "Eine Sekunde, bitte."),
        openers=("Entschuldigung, das war falsch.", "Verzeihung, ich habe mich versprochen."),
        corrections=(
            "Ich nehme das zurück und fange noch einmal an. Wobei kann ich helfen?",
            "Das muss ich zurücknehmen. Sagen Sie mir bitte noch einmal, was Sie brauchen?",
        ),
    ),
    "pt": Lines(
        buffers=("Desculpe, um momento.", "Um segundo, por favor.", "Um momento, por favor.", "Só um instante."),
        openers=("Desculpe, eu me expressei mal.", "Desculpe, isso não estava certo."),
        corrections=(
            "Vou retirar isso e começar de novo. Em que posso ajudar?",
            "Preciso retirar o que eu disse. Pode me dizer de novo o que precisa?",
        ),
    ),
    "hi": Lines(
        buffers=("माफ़ कीजिए, एक पल।", "एक मिनट दीजिए।", "कृपया एक पल रुकिए।", "ज़रा एक क्षण।"),
        openers=("माफ़ कीजिए, वह सही नहीं था।", "क्षमा कीजिए, मुझसे ग़लती हुई।"),
        corrections=(
            "वह बात रहने दीजिए, फिर से शुरू करते हैं। मैं क्या मदद करूँ?",
            "मैं वह बात वापस लूँ, यह ज़रूरी है। आपको क्या चाहिए?",
        ),
    ),
    "it": Lines(
        buffers=("Scusi, un momento.", "Un attimo, per favore.", "Un momento, per favore.", "Solo un secondo."),
        openers=("Scusi, mi correggo.", "Mi scusi, non era esatto."),
        corrections=(
            "Ritiro quello che ho detto e ricomincio. Come posso aiutarla?",
            "Devo tornare indietro su questo. Può ripetermi di che cosa ha bisogno?",
        ),
    ),
    "nl": Lines(
        buffers=("Sorry, een moment.", "Een seconde, alstublieft.", "Een ogenblik, alstublieft.", "Momentje, graag."),
        openers=("Sorry, dat klopte niet.", "Excuses, ik versprak me."),
        corrections=(
            "Ik neem dat terug en begin opnieuw. Waarmee kan ik u helpen?",
            "Dat moet ik terugnemen. Kunt u mij nog eens zeggen wat u nodig heeft?",
        ),
    ),
}


def primary_language(tag: str) -> str:
    """The language of a BCP 47 tag, in lower case: `en` of `en-US`."""
    return tag.replace("_", "-").split("-", 1)[0].strip().lower()


def languages() -> frozenset[str]:
    """The languages that have lines."""
    return frozenset(_LINES)


def lines_for(language: str) -> Lines | None:
    """The lines for a BCP 47 tag, None when its language has none."""
    return _LINES.get(primary_language(language))


def buffer_lines(language: str, own: str | None = None) -> tuple[str, ...]:
    """Buffer lines in order of use, a policy's own (`MirrorConfig.buffer_text`) first. Empty when there are none."""
    lines = lines_for(language)
    known = lines.buffers if lines else ()
    return (own, *(line for line in known if line != own)) if own else known


def opener_lines(language: str) -> tuple[str, ...]:
    """Retraction openers in order of use. Empty when the language has none."""
    lines = lines_for(language)
    return lines.openers if lines else ()


def correction_lines(language: str) -> tuple[str, ...]:
    """Correction lines in order of use. Empty when the language has none."""
    lines = lines_for(language)
    return lines.corrections if lines else ()
