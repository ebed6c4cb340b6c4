"""The settings of a policy's version as people meet them: what each is called, its unit, and what it does.

What values are right is the engine's to say (`supervision.engine.config.PolicyConfig`); this is about words and fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import annotated_types

from supervision.engine.config import DEFAULT_BUFFER_TEXT, PolicyConfig

# A unit that only says what the figures go from and to.
RANGE: Final = "0 to 1"

Kind = Literal["number", "whole", "choice", "switch", "names", "classes", "line", "url", "prompt"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `choices` are the engine's values with their words."""

    name: str
    label: str
    kind: Kind
    about: str
    unit: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    unset: str = ""
    """What it means that nothing is said, where that is more than the engine's default."""

    @property
    def default(self) -> Any:
        """What the engine takes when nothing is said."""
        default = PolicyConfig.model_fields[self.name].default
        return list(default) if isinstance(default, tuple) else default

    @property
    def default_words(self) -> str:
        return self.unset or self.words(self.default)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value that the engine takes; of those above a value, that value."""
        least, greatest = -math.inf, math.inf
        for limit in PolicyConfig.model_fields[self.name].metadata:
            match limit:
                case annotated_types.Ge(ge=value) | annotated_types.Gt(gt=value):
                    least = float(str(value))
                case annotated_types.Le(le=value):
                    greatest = float(str(value))
        return least, greatest

    @property
    def max_chars(self) -> int | None:
        lengths = [m.max_length for m in PolicyConfig.model_fields[self.name].metadata if hasattr(m, "max_length")]
        return lengths[0] if lengths else None

    def words(self, value: Any) -> str:
        """A value as a person reads it, with its unit."""
        if value is None and self.kind == "switch":
            return self.default_words
        if value is None:
            return "Mirror’s own lines" if self.kind == "line" else "none"
        if self.kind == "switch":
            return "on" if value else "off"
        if self.kind in ("names", "classes"):
            return ", ".join(value) or "none"
        if self.kind == "choice":
            return dict(self.choices).get(value, str(value))
        if self.kind in ("number", "whole"):
            unit = "" if self.unit == RANGE else self.unit
            return f"{value:g} {unit}".rstrip() if isinstance(value, int | float) else str(value)
        return str(value)


@dataclass(frozen=True, slots=True)
class Group:
    """Settings that belong together."""

    key: str
    title: str
    about: str
    settings: tuple[Setting, ...]


TURN_CLASSES: Final = (
    ("amount", "names a number, a price or money"),
    ("disclosure", "speaks of personal data: address, e-mail, account"),
    ("done", "says that something was done"),
    ("handoff", "hands the call over to a person"),
    ("policy", "speaks of rules, eligibility, entitlements"),
    ("promise", "promises or guarantees something"),
    ("question", "asks a question"),
    ("refusal", "says that something cannot be done"),
    ("statement", "says anything that is no question, request or pleasantry"),
    ("time", "says when, or how long"),
    ("tool_call", "calls any tool"),
)

GROUPS: Final = (
    Group(
        "judging",
        "Judging",
        "Which turns the judge is asked about, and from which score on Mirror steps in.",
        (
            Setting(
                "intervention_threshold",
                "Threshold",
                "number",
                "A score at or above it calls for an intervention. Lower finds more, and is wrong more often.",
                unit=RANGE,
            ),
            Setting(
                "semantic_review_timeout_s",
                "Time to judge a turn",
                "number",
                "An answer that takes longer counts as none: the turn is recorded as timed out, and passes.",
                unit="s",
            ),
            Setting(
                "judge_max_tokens",
                "Longest answer of the judge",
                "whole",
                "Models that think before they answer need more.",
                unit="tokens",
            ),
            Setting(
                "scoring",
                "How turns are scored",
                "choice",
                "By probabilities, each rule is asked about by itself; the model has to tell token probabilities.",
                choices=(
                    ("json", "One question about all rules"),
                    ("logprob", "One token per rule, by its probability"),
                ),
            ),
            Setting(
                "tiered_scoring_enabled",
                "Pre-gate",
                "switch",
                "Lets turns that cannot break a rule pass without asking the judge. Off: every turn is judged.",
            ),
            Setting(
                "pregate_always",
                "Never let these turns pass unasked",
                "classes",
                "Turns that the pre-gate has to put to the judge, whatever it makes of them. Recognised in English.",
                choices=TURN_CLASSES,
            ),
            Setting(
                "streaming_mode",
                "Judge while the turn is spoken",
                "switch",
                "At clause boundaries, for agents that stream their text. Earlier verdicts, more questions.",
                unset="when the agent streams",
            ),
        ),
    ),
    Group(
        "acting",
        "Stepping in",
        "What happens when a turn reaches the threshold.",
        (
            Setting(
                "mode",
                "Mode",
                "choice",
                "In shadow mode everything is judged and recorded, and nothing is cut, said or blocked.",
                choices=(("live", "Live: judges and steps in"), ("shadow", "Shadow: judges, and never steps in")),
            ),
            Setting(
                "cooldown_s",
                "Cooldown",
                "number",
                "After an intervention the same rule does not act again for so long, unless its severity is high.",
                unit="s",
            ),
            Setting(
                "max_interventions_per_call",
                "Most interventions per call",
                "whole",
                "After so many, words lead to no more. Tools are still gated.",
            ),
            Setting(
                "buffer_text",
                "First words",
                "line",
                "Spoken at once while the correction is prepared; best under 1.6 s of speech.",
                unset=f"“{DEFAULT_BUFFER_TEXT}” in English calls, Mirror’s own lines in others",
            ),
            Setting(
                "escalation",
                "When that is not enough",
                "choice",
                "Instead of one intervention too many, or after two without a clean turn between them. To transfer or"
                " hang up needs a Plivo account.",
                choices=(
                    ("note", "Tell the agent"),
                    ("transfer", "Transfer the call"),
                    ("hangup", "Hang up"),
                ),
            ),
            Setting(
                "escalation_url",
                "Transfer to",
                "url",
                "The URL of the XML that a transferred call goes on with.",
            ),
            Setting(
                "escalation_text",
                "Words before it",
                "line",
                "What the caller is told before the call is transferred or hung up.",
            ),
        ),
    ),
    Group(
        "delivery",
        "Delivery",
        "Whether a turn is heard before its verdict is there.",
        (
            Setting(
                "delivery",
                "When a turn is played",
                "choice",
                "Holding makes calls slower, and lets nothing of a violation be heard when the judge is quick enough.",
                choices=(
                    ("stream_first", "At once, and cut when it is a violation"),
                    ("hold_risky", "Turns that the pre-gate finds risky wait for their verdict"),
                    ("hold_all", "Every turn waits for its verdict"),
                ),
            ),
            Setting(
                "hold_budget_ms",
                "Longest wait",
                "whole",
                "A turn that is held is played after this time, verdict or not.",
                unit="ms",
            ),
        ),
    ),
    Group(
        "tools",
        "Tools",
        "Which tool calls are judged before they run, and which a person decides about.",
        (
            Setting(
                "irreversible_tools",
                "Irreversible tools",
                "names",
                "Always judged, and run once: a repeat gets the first result. One name a line; “none” for none.",
            ),
            Setting(
                "tool_gate_enabled",
                "Judge the other tools too",
                "switch",
                "Off: only irreversible tools are judged, and those that a rule names.",
            ),
            Setting(
                "tool_gate_on_failure",
                "Irreversible, and the judge does not answer",
                "choice",
                "Other tools are allowed then.",
                choices=(("block", "Block the call"), ("allow", "Allow the call")),
            ),
            Setting(
                "tool_gate_timeout_ms",
                "Time to judge a tool call",
                "whole",
                "The agent waits for so long at most.",
                unit="ms",
            ),
            Setting(
                "approval_tools",
                "Tools that a person approves",
                "names",
                "Asked on the Live page, each time, after the judge let the call pass. One name a line.",
            ),
            Setting(
                "approval_timeout_ms",
                "Time to approve",
                "whole",
                "Less when the agent waits for less.",
                unit="ms",
            ),
            Setting(
                "approval_on_silence",
                "Nobody has decided by then",
                "choice",
                "",
                choices=(("deny", "Deny the call"), ("allow", "Allow the call")),
            ),
            Setting(
                "approval_hold_text",
                "Words while a person decides",
                "line",
                "Said to the caller at most every 8 s, and never over anybody.",
            ),
        ),
    ),
    Group(
        "prompt",
        "A prompt of your own",
        "In place of the rules, for judging prompts that exist already. What is said in a call never becomes part of"
        " it: {customer_text}, {primary_response}, {tool_calls_json} and {history_summary} become the names of the"
        " fields in which the judge finds these.",
        (
            Setting(
                "judging_prompt",
                "Judging prompt",
                "prompt",
                "Leave it empty to judge by the rules above.",
            ),
        ),
    ),
)

SETTINGS: Final[Mapping[str, Setting]] = {setting.name: setting for group in GROUPS for setting in group.settings}


def settings_of(config: Mapping[str, Any]) -> Iterator[tuple[Setting, Any]]:
    """The settings that a version has otherwise than the engine, in the order of the page."""
    for name, setting in SETTINGS.items():
        if name in config and (setting.unset or config[name] != setting.default):
            yield setting, config[name]
