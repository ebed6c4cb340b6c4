"""The command `python -m supervision.engine.replay`.

Exit status: 0 when everything was judged (or no more failed than `--fail-over` allows), 1 when more failed, 2 when what
was given cannot be used, 3 when the judge could not be reached, 130 when stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO
from urllib.parse import urlsplit

import pydantic

from supervision.engine.config import MAX_RULES, MirrorConfig
from supervision.engine.llm.protocol import LLMClient
from supervision.engine.policy.rule_lines import rule_lines
from supervision.engine.replay.recordings import RecordedCall, RecordingError, read_calls
from supervision.engine.replay.report import Prices, as_csv, as_table, details, is_labelled, summarize
from supervision.engine.replay.runner import Replayed, question_count, replay
from supervision.engine.scorer.pregate import PreGateModelError

if TYPE_CHECKING:
    from supervision.engine.llm.openai import OpenAIClient

OK, TOO_MANY_ERRORS, UNUSABLE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

DEFAULT_MODEL = "gpt-4o-mini"
REDRAW_S = 0.1


class Unusable(Exception):
    """Something that was given cannot be used; the message says what and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _options(argv)
    try:
        calls = [call for path in options.recordings for call in read_calls(path)]
        labelled = is_labelled(turn.label for call in calls for turn in call.turns)
        if options.labels and not labelled:
            raise Unusable('--labels: no turn has a "label": true when it was bad, false when it was good')
        prices = _prices(options)
        replayed, model = asyncio.run(_replay(options, calls))
        prices = prices or Prices.listed(model)
        summary = summarize(replayed, thresholds=options.thresholds, prices=prices, model=model)
        if options.details is not None:
            _write_details(options.details, replayed)
    except (Unusable, RecordingError, PreGateModelError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("replay: stopped", file=sys.stderr)
        return INTERRUPTED
    if options.format == "json":
        print(json.dumps({**summary, "details": details(replayed)}, ensure_ascii=False, indent=2))
    elif options.format == "csv":
        print(as_csv(summary), end="")
    else:
        print(as_table(summary, replayed, show=options.show), end="")
    return _status(summary, options.fail_over)


def _status(summary: dict[str, Any], fail_over: float) -> int:
    errors = summary["errors"]
    if summary["judge_unreachable"]:
        why = "; ".join(list(errors["why"])[:3])
        print(f"replay: the judge could not be reached: {summary['judge_unreachable']} ({why})", file=sys.stderr)
        return UNREACHABLE
    if errors["share"] > fail_over:
        missing = f"verdicts missing: {errors['count']} ({errors['share'] * 100:.1f} %)"
        print(f"replay: {missing}; --fail-over allows {fail_over * 100:.1f} %", file=sys.stderr)
        return TOO_MANY_ERRORS
    return OK


async def _replay(options: argparse.Namespace, calls: Sequence[RecordedCall]) -> tuple[Replayed, str]:
    """What the replay came to, and the model that judged."""
    llm = _client(options)
    try:
        config = _config(options, llm)
        with Progress(sys.stderr, question_count(calls, options.tools)) as progress:
            replayed = await replay(
                calls,
                config,
                concurrency=options.concurrency,
                tools=options.tools,
                pregate=options.pregate,
                on_progress=progress.update,
            )
            return replayed, llm.model
    finally:
        await llm.aclose()


def _client(options: argparse.Namespace) -> OpenAIClient:
    """The judge: the server of `--base-url`, else what the environment names (Azure's variables before OpenAI's)."""
    from supervision.engine.llm.openai import OpenAIClient

    def named(variable: str) -> str | None:
        return os.environ.get(variable, "").strip() or None

    try:
        if options.base_url is None and named("AZURE_OPENAI_ENDPOINT"):
            return OpenAIClient.from_env(model=options.model)
        base_url = options.base_url or named("OPENAI_BASE_URL")
        key = named("OPENAI_API_KEY")
        if key is None and base_url is None:
            raise Unusable("OPENAI_API_KEY is not set; set it, or name another server with --base-url")
        model = options.model or named("OPENAI_MODEL") or DEFAULT_MODEL
        # Servers on one's own machine ask for no key.
        return OpenAIClient(api_key=key or "none", model=model, base_url=base_url)
    except (ImportError, ValueError) as error:
        raise Unusable(f"the judge: {error}") from error


def _config(options: argparse.Namespace, llm: LLMClient) -> MirrorConfig:
    limits = {
        "semantic_review_timeout_s": options.timeout,
        "tool_gate_timeout_ms": round(options.timeout * 1000),
        # The lowest: what is flagged at any of them gets a reason.
        "intervention_threshold": min(options.thresholds),
        "scoring": options.scoring,
    }
    path: Path = options.judging_prompt_file or options.policies
    text = _read(path)
    if options.judging_prompt_file is not None:
        if options.policies is not None:
            print("replay: the judging prompt takes the place of --policies", file=sys.stderr)
        what: dict[str, Any] = {"judging_prompt": text}
        where: Callable[[int], str] = lambda _index: ""  # noqa: E731
    else:
        rules, where = _rules(path, text)
        what = {"policies": rules}
    try:
        return MirrorConfig(llm=llm, **what, **limits)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = problem["loc"]
        index = next((item for item in place if isinstance(item, int)), None)
        located = where(index) if index is not None else ""
        raise Unusable(": ".join(part for part in (str(path), located, problem["msg"]) if part)) from error


def _rules(path: Path, text: str) -> tuple[list[Any], Callable[[int], str]]:
    """The rules of a file, and how to say where in it the rule with an index is: one rule a line, or a JSON list."""
    if text.lstrip().startswith("["):
        try:
            rules = json.loads(text)
        except ValueError as error:
            raise Unusable(f"{path}: it is not JSON: {error}") from error
        return rules, lambda index: f"rule {index + 1}"
    lines = rule_lines(text)
    if len(lines) > MAX_RULES:
        raise Unusable(f"{path}: it has {len(lines)} rules; at most {MAX_RULES} can be judged by")
    return [line for _, line in lines], lambda index: f"line {lines[index][0]}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise Unusable(f"{path}: it cannot be read: {error.strerror or error}") from error


def _prices(options: argparse.Namespace) -> Prices | None:
    if (options.price_in is None) != (options.price_out is None):
        raise Unusable("--price-in and --price-out belong together; give both")
    if options.price_in is None:
        if options.price_cached is not None:
            raise Unusable("--price-cached needs --price-in and --price-out; give all three")
        return None
    cached = options.price_in if options.price_cached is None else options.price_cached
    return Prices(options.price_in, cached, options.price_out)


def _write_details(path: Path, replayed: Replayed) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            for turn in details(replayed):
                file.write(json.dumps(turn, ensure_ascii=False) + "\n")
    except OSError as error:
        raise Unusable(f"--details: {path} cannot be written: {error.strerror or error}") from error


class Progress:
    """A bar on a terminal, and nothing anywhere else."""

    def __init__(self, stream: TextIO, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream.isatty() else None
        self._total = total
        self._clock = clock
        self._started = clock()
        self._drawn_at = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._stream is not None and self._drawn_at > -math.inf:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def update(self, done: int, errors: int) -> None:
        """Draws the bar anew, at most ten times a second."""
        now = self._clock()
        if self._stream is None or (now - self._drawn_at < REDRAW_S and done < self._total):
            return
        self._drawn_at = now
        left = (now - self._started) / done * (self._total - done) if done else 0.0
        filled = round(30 * done / self._total) if self._total else 30
        failed = f", errors: {errors}" if errors else ""
        bar = "█" * filled + "░" * (30 - filled)
        self._stream.write(f"\r\x1b[K{bar} {done}/{self._total}{failed}, {left:.0f} s left")
        self._stream.flush()


# Options


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m supervision.engine.replay",
        description="Judges recorded calls by a policy, and says what would have happened at each threshold.",
        epilog="Exit status: 0 all judged; 1 more errors than --fail-over allows; 2 unusable input; 3 the judge could "
        "not be reached.",
    )
    parser.add_argument(
        "recordings", nargs="+", type=Path, metavar="calls.json", help="calls or turns: JSON or JSON lines, gzip or not"
    )
    parser.add_argument("--policies", type=Path, metavar="FILE", help="rules, one a line (# for comments), or JSON")
    parser.add_argument(
        "--judging-prompt-file", type=Path, metavar="FILE", help="a judging prompt, in the place of --policies"
    )
    sweep = parser.add_mutually_exclusive_group()
    sweep.add_argument(
        "--threshold-sweep",
        type=_thresholds,
        metavar="T,T,…",
        dest="thresholds",
        help="thresholds to compare, more than 0 and at most 1; every turn is judged once for all of them",
    )
    sweep.add_argument("--threshold", type=_thresholds, metavar="T", dest="thresholds", help="one threshold (0.7)")
    parser.add_argument("--model", help=f"by default OPENAI_MODEL, else {DEFAULT_MODEL}")
    parser.add_argument(
        "--base-url",
        type=_url,
        metavar="URL",
        help="an OpenAI-compatible server, by default OPENAI_BASE_URL, else OpenAI's; the key is OPENAI_API_KEY. "
        "Without it AZURE_OPENAI_ENDPOINT and its variables name one of Azure's",
    )
    parser.add_argument(
        "--concurrency", type=_whole(1, 1_000), default=16, metavar="N", help="questions at a time (%(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=_number(0.1, 60),
        default=30.0,
        metavar="S",
        help="seconds to wait for an answer (%(default)g)",
    )
    parser.add_argument(
        "--scoring",
        choices=("json", "logprob"),
        default="json",
        help="json: one question about all rules; logprob: one token per rule, by its probability (%(default)s)",
    )
    parser.add_argument(
        "--tools",
        choices=("all", "irreversible", "off"),
        default="all",
        help="which tool calls to put before the gate (%(default)s)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--all",
        action="store_false",
        dest="pregate",
        help="judge every turn, and tell what the pre-gate would skip in live calls (the default)",
    )
    which.add_argument("--pregate", action="store_true", help="do not ask about turns that the pre-gate skips")
    parser.set_defaults(pregate=False)
    parser.add_argument(
        "--labels", action="store_true", help="insist on labels: without any in the recordings, stop (exit status 2)"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: %(default)s")
    parser.add_argument(
        "--show", type=_whole(0, 1_000_000), default=20, metavar="N", help="flagged turns in the table (%(default)s)"
    )
    parser.add_argument("--details", type=Path, metavar="FILE", help="write every turn's verdicts as JSON lines")
    parser.add_argument(
        "--fail-over",
        type=_number(0, 1),
        default=0.0,
        metavar="R",
        help="share of verdicts (0 to 1) that may be missing before the exit status is 1 (%(default)g)",
    )
    for name, what in (
        ("in", "of input"),
        ("cached", "of cached input (by default as other input)"),
        ("out", "of output"),
    ):
        parser.add_argument(
            f"--price-{name}",
            type=_number(0, 100_000),
            metavar="USD",
            help=f"price of a million tokens {what}; without it OpenAI's list price, where its model is known",
        )
    options = parser.parse_args(argv)
    if options.policies is None and options.judging_prompt_file is None:
        parser.error("give the rules with --policies FILE, or a prompt with --judging-prompt-file FILE")
    options.thresholds = options.thresholds or [0.7]
    return options


def _thresholds(text: str) -> list[float]:
    found: list[float] = []
    for part in text.split(","):
        value = _float(part)
        if not 0 < value <= 1:
            _wrong(f"{part.strip()!r} is no threshold; they are more than 0 and at most 1, such as 0.5,0.6,0.7")
        if value not in found:
            found.append(value)
    return found


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        _wrong(f"{text!r} is not the URL of a server; it has to look like http://127.0.0.1:8080/v1")
    return text


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = _float(text)
        if not low <= value <= high:
            _wrong(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _float(text)
        if value != round(value) or not low <= value <= high:
            _wrong(f"{text!r} is not a whole number from {low} to {high}")
        return int(value)

    return parse


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        _wrong(f"{text.strip()!r} is not a number")
    return value if math.isfinite(value) else -1.0


def _wrong(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)


if __name__ == "__main__":
    sys.exit(main())
