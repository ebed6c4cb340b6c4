"""Makes the pre-gate's model: `python -m benchmarks.train_pregate --data FOLDER`, with the labelled calls in FOLDER.

Reads the sets `tau` and `voice`. What a harmless turn is made of (words and word pairs) comes from turns that are not
bad and call no tool that writes; the weights from a logistic regression on the turns without a writing tool, whose
weights may not be negative. Both are fitted across folds: the features of a turn never know its own text.

The threshold is the lowest at which the tau calls still skip their share (`TAU_SKIPPED`) out of fold, over several
ways to cut the folds. Deterministic. Takes two minutes on one core; the model is written where the engine reads it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.labelled_calls import DataMissing, LabelledTurn, read_turns
from supervision.engine.scorer.pregate import MODEL_PATH, Model, PreGate, model_text
from supervision.engine.scorer.turn_features import NAMES, familiar, look_at

DATA_SETS = ("tau", "voice")
FOLDS = 5
SEEDS = (0, 1, 2)
TAU_SKIPPED = 0.805
# A bad turn counts as many harmless ones: there are 37 in 4,300.
WEIGHT_OF_BAD = 20.0
PENALTY = 15.0
STEPS = 800

Floats = npt.NDArray[np.float64]


def known_of(turns: Iterable[LabelledTurn]) -> frozenset[int]:
    """The keys of everything in harmless turns."""
    return frozenset(familiar(turn.payload.agent_text for turn in turns if not turn.bad and not turn.writes))


def folds_of(turns: Sequence[LabelledTurn], seed: int) -> npt.NDArray[np.int_]:
    """A fold (0 to 4) for each turn; turns of one group are in one fold."""
    groups = sorted({turn.group for turn in turns})
    random.Random(seed).shuffle(groups)
    fold = {group: number % FOLDS for number, group in enumerate(groups)}
    return np.array([fold[turn.group] for turn in turns])


def features_across(turns: Sequence[LabelledTurn], fold: npt.NDArray[np.int_]) -> Floats:
    """The features of each turn, with nothing familiar that is only in its own fold. Shape (turns, features)."""
    found = np.zeros((len(turns), len(NAMES)))
    for number in np.unique(fold):
        known = known_of(turn for turn, own in zip(turns, fold, strict=True) if own != number)
        for index in np.flatnonzero(fold == number).tolist():
            found[index] = look_at(turns[index].payload, known).features
    return found


def fit(features: Floats, bad: Floats) -> tuple[Floats, float]:
    """Weights (never negative) and bias of a logistic regression with an L2 penalty on weights of scaled features.

    Accelerated projected gradient (Nesterov 1983; Beck and Teboulle 2009).
    """
    scale = features.std(axis=0) + 1e-9
    scaled = features / scale
    share = np.where(bad == 1, WEIGHT_OF_BAD, 1.0)
    step = 1 / (0.25 * (np.linalg.norm(scaled * np.sqrt(share)[:, None], 2) ** 2 + share.sum()) + PENALTY)
    weights = ahead = np.zeros(features.shape[1])
    bias = ahead_bias = float(np.log(share @ bad / (share @ (1 - bad))))
    speed = 1.0
    for _ in range(STEPS):
        error = share * (1 / (1 + np.exp(-(scaled @ ahead + ahead_bias))) - bad)
        next_weights = np.maximum(ahead - step * (scaled.T @ error + PENALTY * ahead), 0)
        next_bias = ahead_bias - step * float(error.sum())
        next_speed = (1 + np.sqrt(1 + 4 * speed * speed)) / 2
        ahead = next_weights + (speed - 1) / next_speed * (next_weights - weights)
        ahead_bias = next_bias + (speed - 1) / next_speed * (next_bias - bias)
        weights, bias, speed = next_weights, next_bias, next_speed
    return weights / scale, bias


def model_of(turns: Sequence[LabelledTurn], seed: int, threshold: float = 0.0) -> Model:
    """A model fitted to these turns."""
    spoken = np.array([not turn.writes for turn in turns])
    bad = np.array([float(turn.bad) for turn in turns])
    features = features_across(turns, folds_of(turns, seed))
    weights, bias = fit(features[spoken], bad[spoken])
    return Model(tuple(weights.tolist()), bias, threshold, known_of(turns))


def out_of_fold(turns: Sequence[LabelledTurn], seed: int) -> Floats:
    """What `PreGate.assess` says of each turn, by a model that was fitted to the other groups only."""
    fold = folds_of(turns, seed)
    log_odds = np.zeros(len(turns))
    for number in range(FOLDS):
        model = model_of([turn for turn, own in zip(turns, fold, strict=True) if own != number], seed + 100)
        for index in np.flatnonzero(fold == number).tolist():
            log_odds[index] = PreGate(turns[index].config, model).assess(turns[index].payload)[0]
    return log_odds


def threshold_for(turns: Sequence[LabelledTurn], log_odds: Floats) -> float:
    """The lowest threshold at which `TAU_SKIPPED` of the tau turns are skipped."""
    tau = np.sort(log_odds[[turn.data_set == "tau" for turn in turns]])
    return float(np.nextafter(tau[int(np.ceil(TAU_SKIPPED * len(tau))) - 1], np.inf))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with calls/*.jsonl.gz and policies/")
    parser.add_argument("--out", type=Path, default=MODEL_PATH)
    arguments = parser.parse_args()
    try:
        turns = [turn for name in DATA_SETS for turn in read_turns(arguments.data, name)]
    except DataMissing as missing:
        print(f"Nothing was trained: {missing}. Give the folder of the labelled calls with --data.")
        return 1
    counts = Counter((turn.data_set, turn.writes, turn.bad) for turn in turns)
    thresholds = []
    for seed in SEEDS:
        log_odds = out_of_fold(turns, seed)
        thresholds.append(threshold_for(turns, log_odds))
        judged = log_odds >= thresholds[-1]
        for name in DATA_SETS:
            own = np.array([turn.data_set == name for turn in turns])
            bad = np.array([turn.bad for turn in turns])
            print(
                f"seed {seed}, out of fold, threshold {thresholds[-1]:.2f}: {name} skips {1 - judged[own].mean():.1%}, "
                f"misses {(bad & own & ~judged).sum()} of {(bad & own).sum()}"
            )
    model = model_of(turns, SEEDS[0], float(np.mean(thresholds)))
    about = {
        "made_by": "benchmarks/train_pregate.py",
        "turns": {name: sum(n for (of, _, _), n in counts.items() if of == name) for name in DATA_SETS},
        "bad_turns": {name: sum(n for (of, _, bad), n in counts.items() if of == name and bad) for name in DATA_SETS},
        "familiar": len(model.known),
        "licence": "statistics of tau-bench and tau2-bench (MIT, Sierra Research) and EVA (MIT, ServiceNow)",
    }
    rounded = Model(
        tuple(round(x, 4) for x in model.weights), round(model.bias, 4), round(model.threshold, 4), model.known
    )
    arguments.out.write_text(model_text(rounded, about), encoding="utf-8")
    for name, weight in sorted(zip(NAMES, rounded.weights, strict=True), key=lambda pair: -pair[1]):
        print(f"{weight:8.3f}  {name}")
    print(f"bias {rounded.bias}, threshold {rounded.threshold}; {arguments.out} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
