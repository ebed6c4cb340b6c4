"""What Mirror says of its own: short lines, in every language that it can act in without a model's help.

- buffer lines fill the moment between a cut and the correction; at most 1.6 seconds when spoken;
- retraction openers begin a correction of something that the caller has heard to its end;
- hold lines tell the caller that a tool waits for a person's word;
- correction lines speak when no text of a model is there, clean and in time. They take back whatever was said and ask
  what to do next, so they fit any rule, and with an opener stay within 20 words and 6 seconds.

None of them says anything about checks, systems or rules, and none of them gives the speaker a gender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of one language. Of each kind the first is used first, and none twice while there is another."""

    buffers: tuple[str, ...]
    openers: tuple[str, ...]
    corrections: tuple[str, ...]
    holds: tuple[str, ...]
    transfer: str
    hangup: str


# Measured with the offline English voice, without the silence around the words: buffer lines 0.8 to 1.6 s, an opener
# with a correction line at most 5.2 s.
_LINES: dict[str, Lines] = {
    "en": Lines(
        buffers=(
            "Sorry, let me check that for you.",
            "Sorry, let me get that right.",
            "Let me look at that.",
            "Just a moment.",
        ),
        openers=("Sorry, I misspoke.", "I'm sorry, that was wrong."),
        corrections=(
            "Let me take that back. What can I help you with?",
            "I have to take that back. What do you need?",
        ),
        holds=("One moment please, this needs a quick confirmation.", "Thanks for waiting, it will only be a moment."),
        transfer="I'm connecting you with a colleague now.",
        hangup="I'm sorry, I have to end this call here. Please call again later.",
    ),
    "es": Lines(
        buffers=("Un momento.", "Un segundo.", "Un instante.", "Permítame."),
        openers=("Perdone, me expresé mal.", "Disculpe, eso no era correcto."),
        corrections=(
            "Permítame retirar eso. ¿En qué puedo ayudarle?",
            "Tengo que retirar lo que dije. ¿Qué necesita?",
        ),
        holds=("Un momento, por favor, falta una confirmación.", "Gracias por esperar, ya casi está."),
        transfer="Ahora le paso con otra persona.",
        hangup="Lo siento, tengo que terminar la llamada aquí. Por favor, llame más tarde.",
    ),
    "fr": Lines(
        buffers=("Un instant.", "Un moment.", "Une seconde.", "Un petit instant."),
        openers=("Pardon, c'était inexact.", "Excusez-moi, je me trompe."),
        corrections=(
            "Je retire ce que j'ai dit. Comment puis-je vous aider ?",
            "Je dois revenir sur cela. Que vous faut-il ?",
        ),
        holds=("Un instant, il me faut une confirmation.", "Merci de patienter, cela ne sera pas long."),
        transfer="Je vous passe quelqu'un tout de suite.",
        hangup="Je regrette, je dois terminer cet appel ici. Merci de rappeler plus tard.",
    ),
    "de": Lines(
        buffers=("Moment, bitte.", "Einen Augenblick.", "Eine Sekunde.", "Kleinen Moment."),
        openers=("Entschuldigung, das war falsch.", "Verzeihung, ich habe mich versprochen."),
        corrections=(
            "Das nehme ich zurück. Wobei kann ich Ihnen helfen?",
            "Das muss ich zurücknehmen. Was brauchen Sie?",
        ),
        holds=("Einen Moment bitte, das muss noch bestätigt werden.", "Danke für Ihre Geduld, es dauert nicht lange."),
        transfer="Ich verbinde Sie jetzt mit jemandem aus dem Team.",
        hangup="Es tut mir leid, ich muss das Gespräch hier beenden. Bitte rufen Sie später noch einmal an.",
    ),
    "pt": Lines(
        buffers=("Um momento.", "Um segundo.", "Um instante.", "Só um momento."),
        openers=("Desculpe, me expressei mal.", "Desculpe, isso não estava certo."),
        corrections=(
            "Vou retirar o que eu disse. Em que posso ajudar?",
            "Preciso voltar atrás nisso. Do que você precisa?",
        ),
        holds=("Um momento, por favor, falta uma confirmação.", "Obrigado por aguardar, é só mais um instante."),
        transfer="Vou passar a ligação para outra pessoa.",
        hangup="Sinto muito, preciso encerrar a ligação aqui. Por favor, ligue mais tarde.",
    ),
    "hi": Lines(
        buffers=("एक पल।", "एक क्षण।", "ज़रा रुकिए।", "बस एक पल।"),
        openers=("माफ़ कीजिए, वह सही नहीं था।", "क्षमा कीजिए, वह ग़लत था।"),
        corrections=(
            "वह बात रहने दीजिए। मैं आपकी क्या मदद करूँ?",
            "मेरी वह बात छोड़ दीजिए। आपको क्या चाहिए?",
        ),
        holds=("कृपया एक पल रुकिए, इसकी पुष्टि होनी है।", "प्रतीक्षा के लिए धन्यवाद, बस थोड़ी देर और।"),
        transfer="अब आपकी बात हमारी टीम से होगी।",
        hangup="माफ़ कीजिए, यह कॉल यहीं समाप्त करनी होगी। कृपया बाद में फिर कॉल करें।",
    ),
    "it": Lines(
        buffers=("Un momento.", "Un attimo.", "Un secondo.", "Solo un attimo."),
        openers=("Scusi, mi correggo.", "Mi scusi, non era esatto."),
        corrections=(
            "Ritiro quello che ho detto. Come posso aiutarla?",
            "Devo ritirare quello che ho detto. Di che cosa ha bisogno?",
        ),
        holds=("Un momento, per favore, serve una conferma.", "Grazie per l'attesa, ci vuole solo un attimo."),
        transfer="Ora le passo un'altra persona.",
        hangup="Mi dispiace, devo terminare qui la chiamata. La prego di richiamare più tardi.",
    ),
    "nl": Lines(
        buffers=("Een moment.", "Een seconde.", "Een ogenblik.", "Momentje."),
        openers=("Sorry, dat klopte niet.", "Excuses, ik versprak me."),
        corrections=(
            "Dat neem ik terug. Waarmee kan ik u helpen?",
            "Dat moet ik terugnemen. Wat heeft u nodig?",
        ),
        holds=("Een moment, dit moet nog bevestigd worden.", "Bedankt voor het wachten, het duurt niet lang."),
        transfer="Ik verbind u nu door met een collega.",
        hangup="Het spijt me, ik moet dit gesprek hier beëindigen. Belt u later nog eens.",
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


def escalation_line(kind: Literal["transfer", "hangup"], language: str, own: str | None = None) -> str:
    """What the caller is told before the call is transferred or hung up, a policy's own first
    (`MirrorConfig.escalation_text`); empty when the language has no line."""
    lines = lines_for(language)
    known = "" if lines is None else lines.transfer if kind == "transfer" else lines.hangup
    return own or known


def hold_lines(language: str, own: str | None = None) -> tuple[str, ...]:
    """Hold lines in order of use, a policy's own (`MirrorConfig.approval_hold_text`) alone. Empty when there are
    none."""
    lines = lines_for(language)
    return (own,) if own else lines.holds if lines else ()
