"""The system note that tells an agent what was said in its place, for the next thing that it says."""

from __future__ import annotations

from collections.abc import Sequence

from supervision.engine.context import Verdict


def note_text(
    verdict: Verdict,
    *,
    spoke: bool,
    said: str = "",
    heard: str = "",
    uncertain: str = "",
    dropped: Sequence[str] = (),
) -> str:
    """What to tell an agent about a turn of its own that broke a rule.

    ``spoke`` is False when nothing was done about the turn, so that the agent has to take it back itself. ``said`` is
    what was said in its place; ``heard`` and ``uncertain`` are the parts of the turn that the caller heard, or may
    have heard; ``dropped`` names later turns that were not played.
    """
    rule = verdict.rule or "a rule of this service"
    parts = [f"Your last turn was against this rule: {rule}"]
    if verdict.reason:
        parts.append(f"Why: {verdict.reason}")
    if not spoke:
        parts.append("The caller may have heard it. Take it back first, in your own words.")
        if verdict.correction:
            parts.append(f"For instance: {verdict.correction}")
    else:
        if heard:
            parts.append(f'Of it the caller heard: "{heard}"')
        if uncertain:
            parts.append(f'Of it the caller may have heard: "{uncertain}"')
        if not heard and not uncertain:
            parts.append("The caller heard none of it.")
        if said:
            parts.append(f'In your place this was said, in your voice: "{said}"')
            parts.append("Go on from there. Do not say the withdrawn words again and do not mention this note.")
        else:
            parts.append("Nothing was said in its place. Put it right first, and do not mention this note.")
            if verdict.correction:
                parts.append(f"For instance: {verdict.correction}")
    if dropped:
        parts.append("Turns that you generated before this note were not played; say what still matters of them.")
    return "\n".join(parts)
