"""Folds of one size in one pack against every fold in a pack of its own: the same job, the same numbers, other packs.

OMP_NUM_THREADS=1 python benchmarks/folds.py [--quick: one round of two cases, nothing kept]

`settled` is what a job does by itself, `all` joins all folds of one size whatever they take. Diagnostics are standard.
"""

import json
import sys
from typing import Any

import torch
from harness import interleaved, publish, quartiles, ratios, timed

from regtrain.contract.datasets import facts_of
from regtrain.contract.grouping import held_out
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.plan import members_of, run_bytes
from regtrain.contract.runs import Run, expand, packs
from worker.training.train import train

CASES = {
    "10-16-1 on diabetes, 5 folds × 20": ("diabetes", [16], 20, 5, 20),
    "10-16-1 on diabetes, 10 folds × 20": ("diabetes", [16], 20, 10, 10),
    "30-32-2 on breast_cancer, 5 folds × 5": ("breast_cancer", [32], 5, 5, 20),
    "64-32-10 on digits, 5 folds × 5": ("digits", [32], 5, 5, 5),
    "64-32-10 on digits, 5 folds × 20": ("digits", [32], 20, 5, 3),
    "64-128-10 on digits, 5 folds × 10": ("digits", [128], 10, 5, 2),
}
"""Dataset, hidden layers, strengths, folds, epochs."""


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    cases = dict(list(CASES.items())[:2]) if quick else CASES
    publish("folds", [row for name, case in cases.items() for row in measured(name, *case, rounds=1 if quick else 5)], keep=not quick)


def measured(name: str, dataset: str, hidden: list[int], points: int, folds: int, epochs: int, *, rounds: int) -> list[dict[str, Any]]:
    spec = parse(json.dumps({
        "dataset": {"kind": dataset, "standardize": True}, "model": {"kind": "mlp", "hidden": hidden}, "loss": {"kind": "half_squared_error" if dataset == "diabetes" else "cross_entropy"},
        "regularizers": [{"kind": "l2", "lambda": {"log": [1e-3, 1], "points": points}}], "optimizer": {"kind": "sgd", "lr": 0.001, "momentum": 0.9},
        "budget": {"epochs": epochs, "batch_size": 64}, "selection": {"folds": folds},
    }))  # fmt: skip
    ways = arrangements(spec)
    taken = interleaved({way: lambda members=members: timed(lambda: list(train(spec, packs=members))) for way, members in ways.items()}, rounds=rounds)
    return [
        {"net": name, "packs": way, "runs_of_packs": [len(pack) for pack in ways[way]], "runs": rounds, "seconds": quartiles(taken[way]), "ratio": quartiles(ratios(taken[way], taken["apart"]))}
        for way in ways
    ]  # fmt: skip


def arrangements(spec: JobSpec) -> dict[str, list[list[int]]]:
    """Way → the runs of each pack; ways that are the same stand once."""
    facts, runs = facts_of(spec.dataset), expand(spec)
    assert facts is not None
    found = {
        "apart": packs(runs, spec, bytes_of=lambda variant: run_bytes(variant, facts), device="cpu"),
        "settled": members_of(runs, spec, facts, device="cpu"),
        "all": whole(runs, held_out(spec, facts)[None]),
    }
    return {way: members for place, (way, members) in enumerate(found.items()) if members not in list(found.values())[:place]}


def whole(runs: list[Run], sizes: list[int]) -> list[list[int]]:
    """All runs whose folds leave out as many rows, fold by fold; the refit by itself."""
    folds = [[run.index for fold, rows in enumerate(sizes) if rows == size for run in runs if run.fold == fold] for size in dict.fromkeys(sizes)]
    return [*folds, [run.index for run in runs if run.refit]]


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
