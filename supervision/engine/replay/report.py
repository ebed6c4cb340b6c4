"""What a replay says: figures per threshold, speech and tools apart, and errors never among the allowed."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from supervision.engine.context import JudgingState, ToolVerdict, Usage
from supervision.engine.replay.recordings import Label
from supervision.engine.replay.runner import Replayed, TurnResult, is_error

PRICES_AS_OF = "2026-06"
"""When the list prices below were compared with what is published (YYYY-MM)."""

# OpenAI's list prices for the models that judge well at a low price, USD per million tokens (input, cached input,
# output), standard tier. Source: https://developers.openai.com/api/docs/pricing, as quoted with that source by several
# price lists of March to June 2026. They change: `--price-in` and `--price-out` of the command take their place.
LIST_PRICES: dict[str, tuple[float, float, float]] = {
    "gpt-4o": (2.50, 1.25, 10.00),
    "gpt-4o-mini": (0.15, 0.075, 0.60),
    "gpt-4.1": (2.00, 0.50, 8.00),
    "gpt-4.1-mini": (0.40, 0.10, 1.60),
    "gpt-4.1-nano": (0.10, 0.025, 0.40),
}


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens. `basis` says where the figures come from."""

    input: float
    cached: float
    output: float
    basis: str = "the prices given"

    @classmethod
    def listed(cls, model: str) -> Prices | None:
        """OpenAI's list prices for a model, also by the name of a dated version of it; None for one that is unknown.
        They are what OpenAI charges, not what a server of somebody else's under the same name does."""
        name = re.sub(r"-20\d\d-\d\d-\d\d$", "", model)
        prices = LIST_PRICES.get(name)
        return cls(*prices, f"OpenAI's list prices for {name}, {PRICES_AS_OF}") if prices else None

    def cost(self, usage: Usage) -> float:
        """USD for these tokens; cached ones are part of the prompt's."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        fresh = usage.prompt_tokens - cached
        return (fresh * self.input + cached * self.cached + usage.completion_tokens * self.output) / 1_000_000


@dataclass(slots=True)
class _Matrix:
    """What was flagged against what people called bad, over what has both a verdict and a label."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0
    unjudged: int = 0

    def add(self, flagged: bool | None, bad: bool | None) -> None:
        """`flagged` is None for what has no verdict, `bad` for what has no label."""
        if bad is None:
            return
        if flagged is None:
            self.unjudged += 1
        elif flagged:
            self.true_positives += bad
            self.false_positives += not bad
        else:
            self.false_negatives += bad
            self.true_negatives += not bad

    def figures(self) -> dict[str, Any]:
        """Precision and recall with the counts behind them; None where there is nothing to divide by."""
        if not any((self.true_positives, self.false_positives, self.false_negatives, self.true_negatives)):
            return {"precision": None, "recall": None, "labelled": 0, "labelled_unjudged": self.unjudged}
        flagged = self.true_positives + self.false_positives
        bad = self.true_positives + self.false_negatives
        return {
            "precision": _share(self.true_positives, flagged),
            "recall": _share(self.true_positives, bad),
            "labelled": flagged + self.false_negatives + self.true_negatives,
            "labelled_unjudged": self.unjudged,
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
            "true_negatives": self.true_negatives,
        }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _spoken(turn: TurnResult, threshold: float) -> bool | None:
    """Whether the turn's speech calls for an intervention at a threshold; None when there is no verdict on it."""
    if turn.speech is None:
        return None
    if turn.speech.state is JudgingState.SKIPPED:
        return False
    if turn.speech.state is not JudgingState.JUDGED or turn.speech.score is None:
        return None
    return turn.speech.score >= threshold


def _blocked(verdicts: Sequence[ToolVerdict]) -> bool | None:
    """Whether any of a turn's tool calls was blocked; None when none was, and not all were decided."""
    if any(not verdict.allow and not is_error(verdict) for verdict in verdicts):
        return True
    return None if not verdicts or any(map(is_error, verdicts)) else False


def _either(one: bool | None, other: bool | None) -> bool | None:
    if one or other:
        return True
    return None if one is None and other is None else False


def _flagged(turn: TurnResult, threshold: float) -> bool | None:
    """Whether anything of the turn was flagged; None when nothing was and a part of it has no verdict."""
    spoken, blocked = _spoken(turn, threshold), _blocked(turn.tools)
    if not (spoken or blocked) and ((turn.speech is not None and spoken is None) or any(map(is_error, turn.tools))):
        return None
    return _either(spoken, blocked)


def is_labelled(labels: Iterable[Label]) -> bool:
    """Whether any of these labels says anything."""
    return any(label != Label() for label in labels)


def summarize(
    replayed: Replayed, *, thresholds: Sequence[float], prices: Prices | None = None, **about: Any
) -> dict[str, Any]:
    """The report as plain data, ready for JSON. `about` goes to its top. `cost_usd` is None without prices.

    Rates are shares from 0 to 1, None where there is nothing to divide by. A rate per turn is over the turns with
    speech that came to a verdict; a rate per call is over the calls of which all turns did, or one was flagged. Turns
    without a verdict are `errors`, and in no rate. `pregate` is what the policy's pre-gate would have skipped in a live
    call, None when it has none; `missed_by_pregate` of a threshold are the interventions among those turns.
    """
    turns = replayed.turns
    speech = [turn.speech for turn in turns if turn.speech is not None]
    tools = [verdict for turn in turns for verdict in turn.tools]
    spoken_states = Counter(verdict.state for verdict in speech)
    tool_errors = [verdict for verdict in tools if is_error(verdict)]
    why = Counter(v.detail for v in speech if v.state not in (JudgingState.JUDGED, JudgingState.SKIPPED))
    why.update(verdict.reason.removesuffix("; allowed all the same") for verdict in tool_errors)
    errors = why.total()
    tool_matrix = _Matrix()
    for turn in turns:
        tool_matrix.add(_blocked(turn.tools), turn.label.tools if turn.tools else None)
    refused = Counter(str(verdict.code) for verdict in tools if not verdict.allow and not is_error(verdict))
    return {
        **about,
        "calls": replayed.calls,
        "turns": len(turns),
        "seconds": round(replayed.seconds, 3),
        "judge_unreachable": replayed.judge_unreachable,
        "speech": {
            "turns": len(speech),
            "judged": spoken_states[JudgingState.JUDGED],
            "skipped": spoken_states[JudgingState.SKIPPED],
            "errors": errors - len(tool_errors),
        },
        "tools": {
            "tool_calls": len(tools),
            "judged": sum(v.state is JudgingState.JUDGED and not is_error(v) for v in tools),
            "skipped": sum(v.state is JudgingState.SKIPPED and not is_error(v) for v in tools),
            "errors": len(tool_errors),
            "blocked": refused.total(),
            "block_rate": _share(refused.total(), len(tools) - len(tool_errors)),
            "blocked_by_code": dict(refused),
            **tool_matrix.figures(),
        },
        "pregate": _pregate(turns),
        "errors": {
            "count": errors,
            "share": _share(errors, len(speech) + len(tools)) or 0.0,
            "why": dict(why.most_common()),
        },
        "thresholds": [_at_threshold(replayed, threshold) for threshold in thresholds],
        "questions": replayed.questions,
        "usage": {
            "prompt_tokens": replayed.usage.prompt_tokens,
            "cached_tokens": replayed.usage.cached_tokens,
            "completion_tokens": replayed.usage.completion_tokens,
        },
        "cost_usd": round(prices.cost(replayed.usage), 6) if prices is not None else None,
        "cost_basis": prices.basis if prices is not None else None,
    }


def _pregate(turns: Sequence[TurnResult]) -> dict[str, Any] | None:
    """What the pre-gate would have skipped, and how many of the bad ones among it; None when it was not asked."""
    asked = [turn for turn in turns if turn.pregate is not None]
    if not asked:
        return None
    skipped = [turn for turn in asked if turn.pregate is not None and not turn.pregate.score]
    return {
        "turns": len(asked),
        "skips": len(skipped),
        "skip_rate": _share(len(skipped), len(asked)),
        "labelled_bad": sum(turn.label.speech is True for turn in asked),
        "labelled_bad_skipped": sum(turn.label.speech is True for turn in skipped),
        "reasons": dict(Counter(turn.pregate.reason for turn in skipped if turn.pregate is not None).most_common()),
    }


def _at_threshold(replayed: Replayed, threshold: float) -> dict[str, Any]:
    interventions = verdicts = missed = 0
    speech_matrix, turn_matrix = _Matrix(), _Matrix()
    calls: set[int] = set()
    unsure: set[int] = set()
    for turn in replayed.turns:
        spoken = _spoken(turn, threshold)
        verdicts += spoken is not None
        if spoken:
            interventions += 1
            calls.add(turn.call)
            missed += turn.pregate is not None and not turn.pregate.score
        elif spoken is None and turn.speech is not None:
            unsure.add(turn.call)
        speech_matrix.add(spoken, turn.label.speech if turn.speech is not None else None)
        turn_matrix.add(_flagged(turn, threshold), turn.label.turn)
    return {
        "threshold": threshold,
        "interventions": interventions,
        "rate_per_turn": _share(interventions, verdicts),
        "calls_with_intervention": len(calls),
        "rate_per_call": _share(len(calls), replayed.calls - len(unsure - calls)),
        "interventions_per_call": _share(interventions, replayed.calls - len(unsure - calls)),
        "missed_by_pregate": missed,
        "speech": speech_matrix.figures(),
        "speech_and_tools": turn_matrix.figures(),
    }


def details(replayed: Replayed) -> list[dict[str, Any]]:
    """Every turn with its verdicts, as plain data. What was said is not repeated, save where the judge quotes it."""
    return [
        {
            "call_id": turn.call_id,
            "turn": turn.index,
            "bad": turn.label.turn,
            "pregate": None if turn.pregate is None else {"judge": turn.pregate.score, "reason": turn.pregate.reason},
            "speech": None
            if turn.speech is None
            else {
                "state": turn.speech.state,
                "score": turn.speech.score,
                "rule": turn.speech.rule,
                "reason": turn.speech.reason,
                "correction": turn.speech.correction,
                "detail": turn.speech.detail,
                "latency_ms": turn.speech.latency_ms,
            },
            "tools": [
                {
                    "name": verdict.name,
                    "allow": None if is_error(verdict) else verdict.allow,
                    "code": verdict.code,
                    "state": verdict.state,
                    "score": verdict.score,
                    "reason": verdict.reason,
                    "latency_ms": verdict.latency_ms,
                }
                for verdict in turn.tools
            ],
        }
        for turn in replayed.turns
    ]


# For people


def as_table(summary: dict[str, Any], replayed: Replayed, *, show: int) -> str:
    """The report as text for a terminal, with up to `show` of the flagged turns."""
    speech, tools, errors, usage = (summary[name] for name in ("speech", "tools", "errors", "usage"))
    lines = [
        f"{summary['calls']} calls, {summary['turns']} agent turns, judged in {summary['seconds']:.1f} s",
        "",
        f"Speech   {speech['turns']} turns: {speech['judged']} judged, {speech['skipped']} skipped, "
        f"{speech['errors']} errors",
        f"Tools    {tools['tool_calls']} calls: {tools['judged']} judged, {tools['skipped']} skipped, "
        f"{tools['errors']} errors; {tools['blocked']} blocked, at any threshold{_codes(tools['blocked_by_code'])}",
        f"Errors   {errors['count']} ({_percent(errors['share'])}); they are in no rate below",
        *(f"         {count} × {why}" for why, count in errors["why"].items()),
        f"Tokens   {usage['prompt_tokens']} in ({usage['cached_tokens']} cached), {usage['completion_tokens']} out, "
        f"{summary['questions']} questions",
        f"Cost     {_cost(summary)}",
        *_pregate_line(summary),
        "",
        "Interventions because of speech, before cooldown and the limit per call:",
        "",
    ]
    labelled = any(row[name]["labelled"] for row in summary["thresholds"] for name in ("speech", "speech_and_tools"))
    header = ["threshold", "interventions", "per turn", "calls with one", "share of calls", "per call"]
    live = summary["pregate"] is not None and not speech["skipped"]
    if live:
        header.append("in turns it skips")
    if labelled:
        header += ["precision", "recall", "with tools: precision", "recall"]
    rows = [header]
    for row in summary["thresholds"]:
        cells = [
            f"{row['threshold']:g}",
            str(row["interventions"]),
            _percent(row["rate_per_turn"]),
            str(row["calls_with_intervention"]),
            _percent(row["rate_per_call"]),
            "–" if row["interventions_per_call"] is None else f"{row['interventions_per_call']:.2f}",
        ]
        if live:
            cells.append(str(row["missed_by_pregate"]))
        if labelled:
            for name in ("speech", "speech_and_tools"):
                cells += [_percent(row[name]["precision"]), _percent(row[name]["recall"])]
        rows.append(cells)
    lines += _columns(rows)
    if tools["labelled"]:
        lines += ["", f"Tools    precision {_percent(tools['precision'])}, recall {_percent(tools['recall'])}"]
    lines += _flagged_turns(summary, replayed, show)
    if summary["judge_unreachable"]:
        lines += ["", f"The judge could not be reached: {summary['judge_unreachable']}"]
    return "\n".join(lines) + "\n"


def _flagged_turns(summary: dict[str, Any], replayed: Replayed, show: int) -> list[str]:
    lowest = min(row["threshold"] for row in summary["thresholds"])
    rows: list[tuple[float, str]] = []
    for turn in replayed.turns:
        where = f"{turn.call_id} turn {turn.index}"
        if turn.speech is not None and _spoken(turn, lowest):
            assert turn.speech.score is not None
            rule = _line(turn.speech.rule or "no rule named", 60)
            rows.append((turn.speech.score, f"{turn.speech.score:.2f}  {where}: {_line(turn.speech.reason)} [{rule}]"))
        for verdict in turn.tools:
            if not verdict.allow and not is_error(verdict):
                score = 1.0 if verdict.score is None else verdict.score
                rows.append((score, f"tool  {where}: {verdict.name} {verdict.code}: {_line(verdict.reason)}"))
    rows.sort(key=lambda row: -row[0])
    if not rows or not show:
        return []
    title = f"Turns at {lowest:g} or more, and blocked tool calls"
    more = f" (the first {show} of {len(rows)}; --show or --details for all)" if len(rows) > show else ""
    return ["", f"{title}{more}:", "", *(text for _, text in rows[:show])]


def _codes(codes: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {code}' for code, count in codes.items())})" if codes else ""


def _cost(summary: dict[str, Any]) -> str:
    if summary["cost_usd"] is None:
        return "unknown: give --price-in and --price-out, in USD per million tokens"
    return f"{summary['cost_usd']:.4f} USD at {summary['cost_basis']}"


def _pregate_line(summary: dict[str, Any]) -> list[str]:
    pregate = summary["pregate"]
    if pregate is None:
        return []
    share = f"{pregate['skips']} of {pregate['turns']} turns ({_percent(pregate['skip_rate'])})"
    line = f"Pre-gate skipped {share}" if summary["speech"]["skipped"] else f"Pre-gate would skip {share} in live calls"
    if pregate["labelled_bad"]:
        line += f", {pregate['labelled_bad_skipped']} of the {pregate['labelled_bad']} labelled bad"
    return [line]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f} %"


def _line(text: str, limit: int = 120) -> str:
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


# For spreadsheets

_CSV_FIELDS = (
    *("threshold", "kind", "items", "judged", "skipped", "errors", "flagged", "rate", "calls_flagged", "rate_per_call"),
    *("precision", "recall", "labelled"),
    *("true_positives", "false_positives", "false_negatives", "true_negatives"),
    *("missed_by_pregate", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd"),
)


def as_csv(summary: dict[str, Any]) -> str:
    """The report as CSV: a line for the speech and one for the tools of each threshold."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    speech, tools = summary["speech"], summary["tools"]
    # Of the whole replay, so the same in every line.
    spent = {**summary["usage"], "cost_usd": "" if summary["cost_usd"] is None else summary["cost_usd"]}
    for row in summary["thresholds"]:
        counts = {name: speech[name] for name in ("judged", "skipped", "errors")}
        writer.writerow(
            {
                "threshold": row["threshold"],
                "kind": "speech",
                "items": speech["turns"],
                **counts,
                "flagged": row["interventions"],
                "rate": row["rate_per_turn"],
                "calls_flagged": row["calls_with_intervention"],
                "rate_per_call": row["rate_per_call"],
                "missed_by_pregate": row["missed_by_pregate"] if summary["pregate"] is not None else "",
                **row["speech"],
                **spent,
            }
        )
        writer.writerow(
            {
                "threshold": row["threshold"],
                "kind": "tools",
                "items": tools["tool_calls"],
                "flagged": tools["blocked"],
                "rate": tools["block_rate"],
                **tools,
                **spent,
            }
        )
    return out.getvalue()
