"""How the pre-gate's model is made and measured: the same each time, and never on a turn that it was made of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_pregate, train_pregate
from benchmarks.labelled_calls import DataMissing, LabelledTurn, read_turns
from supervision.engine.config import PolicyConfig
from supervision.engine.context import TurnPayload
from supervision.engine.scorer.pregate import read_model
from supervision.engine.scorer.turn_features import NAMES, look_at

CONFIG = PolicyConfig(policies=["Follow the policy."])
ASKS = "Could you give me your name? And your number, please?"
SPELLS = "I see a delay of {n} minutes. Could you spell that again? If you tell me the day, I can look."


def labelled(number: int, text: str, *, bad: bool = False, data_set: str = "tau", group: str = "") -> LabelledTurn:
    return LabelledTurn(
        data_set=data_set,
        source="made up",
        call_id=f"call-{number}",
        group=group or f"task-{number % 25}",
        payload=TurnPayload("K, O, V, A, C, S.", text, (), (), str(number)),
        bad=bad,
        writes=False,
        config=CONFIG,
    )


def made_up() -> list[LabelledTurn]:
    """200 turns of 25 tasks; every tenth is bad."""
    return [
        labelled(number, SPELLS.format(n=number), bad=True, data_set="voice")
        if number % 10 == 0
        else labelled(number, f"{ASKS} It is turn {'a' * (number % 7)}.")
        for number in range(200)
    ]


def test_training_gives_the_same_model_each_time() -> None:
    first, second = (train_pregate.model_of(made_up(), seed=0) for _ in range(2))
    assert first == second


def test_a_model_tells_what_it_was_shown_and_counts_nothing_for_skipping() -> None:
    turns = made_up()
    model = train_pregate.model_of(turns, seed=0)
    assert all(weight >= 0 for weight in model.weights)
    odds = [model.log_odds(look_at(turn.payload, model.known).features) for turn in turns]
    worst_clean = max(value for value, turn in zip(odds, turns, strict=True) if not turn.bad)
    assert worst_clean < min(value for value, turn in zip(odds, turns, strict=True) if turn.bad)


def test_turns_of_one_task_are_in_one_fold_and_folds_are_about_equal() -> None:
    turns = made_up()
    fold = train_pregate.folds_of(turns, seed=3)
    by_group = {
        turn.group: {int(own) for other, own in zip(turns, fold, strict=True) if other.group == turn.group}
        for turn in turns
    }
    assert all(len(folds) == 1 for folds in by_group.values())
    assert sorted(np.bincount(fold)) == [40] * train_pregate.FOLDS


def test_what_is_familiar_comes_from_harmless_turns_of_other_folds_only() -> None:
    turns = [labelled(number, ASKS, group=f"task-{number}") for number in range(9)]
    turns.append(labelled(9, "Xylophones yodel zestfully.", group="task-9"))
    turns.append(labelled(10, "Quokkas vex.", bad=True, group="task-10"))
    assert not train_pregate.known_of([turns[10]])
    fold = train_pregate.folds_of(turns, seed=0)
    found = train_pregate.features_across(turns, fold)
    novel = NAMES.index("novel_pairs")
    # Its own words are in no other fold, so that they are novel to its own features.
    assert found[9, novel] > 0
    assert look_at(turns[9].payload, train_pregate.known_of(turns)).features[novel] == 0


def test_out_of_fold_a_turn_is_never_told_by_a_model_that_was_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = made_up()
    groups: list[set[str]] = []
    real = train_pregate.model_of

    def spy(of: list[LabelledTurn], seed: int, threshold: float = 0.0) -> Any:
        groups.append({turn.group for turn in of})
        return real(of, seed, threshold)

    monkeypatch.setattr(train_pregate, "model_of", spy)
    odds = train_pregate.out_of_fold(turns, seed=0)
    assert odds.shape == (200,)
    fold = train_pregate.folds_of(turns, seed=0)
    for number, seen in enumerate(groups):
        assert seen.isdisjoint({turn.group for turn, own in zip(turns, fold, strict=True) if own == number})


def test_the_threshold_skips_the_share_that_was_asked_for() -> None:
    turns = [labelled(number, ASKS) for number in range(1000)]
    odds = np.arange(1000, dtype=float)
    threshold = train_pregate.threshold_for(turns, odds)
    assert (odds < threshold).mean() == pytest.approx(train_pregate.TAU_SKIPPED, abs=0.001)


# Labelled calls from a folder


def a_turn(index: int, text: str, **label: Any) -> dict[str, Any]:
    calls = label.pop("calls", [])
    return {
        "index": index,
        "customer_text": "Yes.",
        "agent_text": text,
        "tool_calls": calls,
        "label": label or None,
    }


def write_set(folder: Path, name: str, calls: list[dict[str, Any]]) -> None:
    (folder / "calls").mkdir(exist_ok=True)
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "retail.rules.json").write_text(json.dumps(["Never confirm a refund."]))
    with gzip.open(folder / "calls" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(call) + "\n" for call in calls)


def a_call(number: int, turns: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "call_id": f"c{number}",
        "source": "made up",
        "group_id": f"task-{number}",
        "policies": ["policies/retail.md"],
        "write_tools": ["cancel_order"],
        "opening_text": "Hello.",
        "turns": turns,
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cancel = {"name": "cancel_order", "args": {"order": 1}}
    broken = {"name": "cancel_order", "args": "{"}
    booking = {"name": "get", "args": {"x": '"confirmation_number": "QQ11QQ"'}}
    calls = [
        a_call(
            number,
            [
                a_turn(0, "What is your name?", wrong_write=False),
                a_turn(1, "It is cancelled.", wrong_write=number % 2 == 0, calls=[cancel]),
                a_turn(2, "Nobody looked at this one.", calls=[broken]),
                a_turn(3, "You get a refund.", wrong_write=False, quoted_bad=["a refund"] if number == 3 else []),
                a_turn(4, "Goodbye.", agent_error=number == 4, calls=[booking] if number in (5, 6) else []),
            ],
        )
        for number in range(12)
    ]
    calls.append(a_call(99, [a_turn(0, "", wrong_write=False)], policies=[], opening_text=None))
    for name in (*bench_pregate.FITTED, *bench_pregate.OTHERS):
        write_set(tmp_path, name, calls)
    return tmp_path


def test_labelled_calls_become_turns_with_history_label_and_policy(folder: Path) -> None:
    turns = read_turns(folder, "tau")
    assert len(turns) == 12 * 4 + 1
    first, second, third, fourth = turns[:4]
    assert [entry.text for entry in first.payload.history] == ["Hello."]
    assert [(entry.role, entry.text) for entry in third.payload.history][-2:] == [
        ("customer", "Yes."),
        ("agent", "Nobody looked at this one."),
    ]
    assert (first.bad, second.bad, third.bad, fourth.bad) == (False, True, False, False)
    assert (first.writes, second.writes) == (False, True)
    assert [rule.text for rule in first.config.rules] == ["Never confirm a refund."]
    assert first.config.irreversible_tools == ("cancel_order",)
    assert sum(turn.bad for turn in turns) == 6 + 1 + 1
    assert turns[-1].payload.history == ()


def test_calls_about_the_same_booking_are_one_group(folder: Path) -> None:
    groups = {turn.call_id: turn.group for turn in read_turns(folder, "tau")}
    assert groups["c5"] == groups["c6"]
    assert len(set(groups.values())) == 12


def test_a_folder_without_calls_or_rules_says_which_file_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"another\.jsonl\.gz is not there"):
        read_turns(tmp_path, "another")
    calls = [a_call(1, [a_turn(0, "Hello.", wrong_write=False)], policies=["policies/gone.md"])]
    write_set(folder, "gone", calls)
    with pytest.raises(DataMissing, match=r"gone\.rules\.json is not there"):
        read_turns(folder, "gone")


def test_the_trainer_writes_a_model_that_the_engine_reads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name in ("first.json", "second.json"):
        monkeypatch.setattr("sys.argv", ["train_pregate", "--data", str(folder), "--out", str(tmp_path / name)])
        assert train_pregate.main() == 0
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    model = read_model(written[0])
    assert len(model.known) > 10
    assert json.loads(written[0])["about"]["turns"] == {"tau": 49, "voice": 49}
    assert "out of fold" in capsys.readouterr().out


def test_the_trainer_says_when_there_are_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train_pregate", "--data", str(tmp_path), "--out", str(tmp_path / "model.json")])
    assert train_pregate.main() == 1
    assert "Nothing was trained" in capsys.readouterr().out
    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize("data", ["", "nowhere"])
def test_the_benchmark_says_when_there_are_no_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    assert bench_pregate.main(["--data", data and str(tmp_path / data)]) == 2
    said = capsys.readouterr().out
    assert "othing was measured" in said
    assert "make bench-pregate DATA=" in said


def test_the_benchmark_tells_in_sample_from_out_of_fold_and_shows_its_peers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_pregate.main(["--data", str(folder)]) == 0
    said = capsys.readouterr().out
    tau, voice, coffee = (said.partition(f"\n{name}:")[2].partition("\n\n")[0] for name in ("tau", "voice", "coffee"))
    for fitted in (tau, voice):
        assert "as shipped, in sample (flatters)" in fitted
        assert "as shipped, OUT OF FOLD" in fitted
    assert "as shipped (nothing was fitted to these)" in coffee
    # 12 of 49 turns call a tool that writes; a refund that was confirmed and a farewell are bad without one.
    (peer,) = (line for line in tau.splitlines() if "only turns with a call that writes" in line)
    assert peer.split()[-5:] == ["75.5%", "2", "of", "8", "25.0%"]
    assert "p50" in said
