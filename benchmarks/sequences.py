"""Recurrent nets where plain SGD has its trouble: temporal order and the adding problem, with plain SGD, with a clip, and with a clip and Ω.

OMP_NUM_THREADS=1 python benchmarks/sequences.py [--part exact temporal_order adding] [--lengths 20 50 100 200] [--epochs 12] [--seeds 3] [--quick]

exact:          a linear net h_t = W x_t + ρQ h_{t−1} over 200 steps, Q orthogonal, in float64: rms δ_t/δ_T is ρ^(T−t), whatever the rows. The largest relative error.
temporal_order, adding: the set-up of Pascanu et al. (2013): 50 tanh units, plain SGD with lr 0.01, batch 20, clip at norm 1. One job a length, its variants
                are the METHODS. A seed means the same initial weights (orthogonal) and batches in every variant. 4,000 rows to train on, drawn once, 1,000 held out;
                longer sequences get fewer epochs, so that each length costs about the same.

Recorded: accuracy or squared error on the held-out rows when the budget ends, and rms δ_t, ∂loss/∂(linear output) at time step t, on the first batch of the first
epoch (initial weights) and of the last one. --quick: two short lengths, two epochs, two seeds, nothing kept.

`docs/results.py` writes docs/results.md from what is kept in benchmarks/results/sequences.json.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import publish
from numpy.typing import NDArray

from regtrain.contract.events import PackBegun, Points, RunFinished, Started
from regtrain.contract.job import parse
from worker.training.train import train

PROBLEMS = ("temporal_order", "adding")
PARTS = ("exact", *PROBLEMS)
LENGTHS, HIDDEN, BATCH, LR, ROWS, VALIDATION = (20, 50, 100, 200), 50, 20, 0.01, 5000, 0.2
CLIP = {"kind": "global_norm", "max": 1.0}
OMEGA = 0.5
"""λ of Ω; not searched."""
METHODS: dict[str, dict[str, Any]] = {
    "plain SGD": {},
    "clip": {"clip": CLIP},
    "clip and Ω": {"clip": CLIP, "regularizers": [{"kind": "vanishing_gradient", "lambda": OMEGA}]},
}
RHOS, EXACT_LENGTH = (0.9, 1.0, 1.1), 200
PLACES = (0.0, 0.25, 0.5, 0.75)
"""Where the profile of δ_t over time is kept, as shares of the way from the first time step to the last."""


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    lengths: tuple[int, ...] = LENGTHS
    epochs: int = 12
    """Of sequences of up to 50 steps."""
    seeds: int = 3

    def epochs_at(self, length: int) -> int:
        """Longer sequences are trained for fewer epochs, so that each length costs about the same."""
        return max(2, self.epochs * 50 // max(50, length))


QUICK = Scale(lengths=(10, 20), epochs=2, seeds=2)


@dataclass(frozen=True)
class Trained:
    """One run of a job."""

    variant: str
    delta: NDArray[np.float64]
    """rms δ_t of its first point and of its last.  (2, T)"""
    finished: RunFinished


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    scale = QUICK if arguments.quick else Scale(lengths=tuple(arguments.lengths), epochs=arguments.epochs, seeds=arguments.seeds)
    rows = [exact(rho) for rho in RHOS] if "exact" in arguments.part else []
    rows += [row for problem in PROBLEMS if problem in arguments.part for length in scale.lengths for row in learned(problem, length, scale)]
    publish("sequences", rows, keep=not arguments.quick)
    return 0


def exact(rho: float) -> dict[str, Any]:
    """How far the gradient of a linear net is from the closed form, over all time steps and three seeds."""
    runs = trained({
        "dataset": {"kind": "adding", "length": EXACT_LENGTH, "rows": 20}, "loss": {"kind": "squared_error"}, "optimizer": {"kind": "sgd", "lr": 1e-6},
        "model": {"kind": "rnn", "cell": "identity", "bias": False, "hidden": [HIDDEN], "init": {"kind": "orthogonal", "scale": rho}},
        "budget": {"epochs": 1, "batch_size": 20}, "dtype": "float64", "selection": {"seeds": 3},
    })  # fmt: skip
    law = rho ** np.arange(EXACT_LENGTH - 1, -1, -1.0)
    error = max(float(np.abs(run.delta[0] / run.delta[0, -1] / law - 1).max()) for run in runs)
    return {"part": "exact", "rho": rho, "length": EXACT_LENGTH, "seeds": len(runs), "ratio": float(law[0]), "error": error}


def learned(problem: str, length: int, scale: Scale) -> list[dict[str, Any]]:
    """A row for each method, with one number a seed of everything."""
    begin = time.perf_counter()
    runs = trained(spec(problem, length, scale))
    seconds = time.perf_counter() - begin
    print(f"{problem}, {length} steps: {len(runs)} runs in {seconds:.0f} s", file=sys.stderr)
    places = [round(place * (length - 1)) for place in PLACES]
    metric = "accuracy/val" if problem == "temporal_order" else "loss/val"
    return [
        {
            "part": problem, "length": length, "method": method, "lambda": OMEGA if "regularizers" in METHODS[method] else None, "seconds": seconds,
            "updates": scale.epochs_at(length) * round(ROWS * (1 - VALIDATION)) // BATCH, "times": [1 + place for place in places],
            "score": [_finite(run.finished.metrics.get(metric)) for run in mine], "diverged": sum(run.finished.stop_reason == "diverged" for run in mine),
            **{when: [[_ratio(run.delta[point, place], run.delta[point, -1]) for place in places] for run in mine] for point, when in enumerate(("before", "after"))},
        }
        for method in METHODS
        if (mine := [run for run in runs if run.variant == method])
    ]  # fmt: skip


def spec(problem: str, length: int, scale: Scale) -> dict[str, Any]:
    """The job of one problem and length."""
    return {
        "dataset": {"kind": problem, "length": length, "rows": ROWS, "validation": VALIDATION},
        "model": {"kind": "rnn", "hidden": [HIDDEN], "cell": "tanh", "init": {"kind": "orthogonal"}},
        "loss": {"kind": "cross_entropy" if problem == "temporal_order" else "squared_error"},
        "optimizer": {"kind": "sgd", "lr": LR},
        "budget": {"epochs": scale.epochs_at(length), "batch_size": BATCH},
        "variants": [{"label": label, "set": changes} for label, changes in METHODS.items()],
        "selection": {"seeds": scale.seeds},
    }


def trained(body: dict[str, Any]) -> list[Trained]:
    """The runs of a job, in their order."""
    packs, labels, deltas, finished = list[list[int]](), dict[int, str](), dict[int, list[NDArray[np.float64]]](), dict[int, RunFinished]()
    with TemporaryDirectory() as folder:
        for event in train(parse(json.dumps(body)), data=Path(folder)):
            match event:
                case Started():
                    packs = event.packs
                case PackBegun():
                    labels.update(dict.fromkeys(event.runs, event.variant or ""))
                case Points() if "signal/time" in event.values:
                    for slot, run in enumerate(packs[event.pack]):
                        count = int(event.counts["signal/time"][slot])
                        deltas.setdefault(run, []).extend(event.values["signal/time"][:count, slot].astype(float))
                case RunFinished():
                    finished[event.run] = event
                case _:
                    pass
    return [Trained(labels[run], np.stack([deltas[run][0], deltas[run][-1]]), finished[run]) for run in sorted(finished)]


def _ratio(early: float, late: float) -> float | None:
    return _finite(early / late) if late > 0 else None


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Temporal order and the adding problem with plain SGD, with a clip, with a clip and Ω.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: everything)")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="time steps, one job each and problem (default: 20 50 100 200)")
    parser.add_argument("--epochs", type=int, default=Scale.epochs, help="of 200 updates each, for sequences of up to 50 steps; fewer for longer ones (default: 12)")
    parser.add_argument("--seeds", type=int, default=Scale.seeds, help="runs of each method, at least 2 (default: 3)")
    parser.add_argument("--quick", action="store_true", help="two short lengths, two epochs, two seeds; nothing is kept")
    asked = parser.parse_args()
    if asked.seeds < 2 or asked.epochs < 2 or min(asked.lengths) < 10:
        parser.error("a standard error takes 2 seeds, a first and a last epoch are 2, and temporal order needs 10 steps")
    sys.exit(main(asked))
