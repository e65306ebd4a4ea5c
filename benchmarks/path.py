"""A lasso path of 100 λ: one job of proximal gradient steps against scikit-learn's coordinate descent, warm along the path (lasso_path) and cold (100 fits of Lasso).

OMP_NUM_THREADS=1 python benchmarks/path.py [--quick: two rounds, nothing kept]

λ from λ_max, where all weights are zero, down to λ_max/1000, float64. Each contestant's time stands beside what it reached: the largest excess of its
objective over the least one found, relative to it, over all λ, and in how many of the weights of the whole path its support differs from the minimum's.
The minimum is lasso_path's with a tolerance of 1e-12. A job has a budget of steps for each λ, with all λ from zero weights (cold) or along the path
(`{"path": 100}`, warm); it is measured in this process, from loading the rows to its result.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleaved, publish, quartiles, ratios, timed
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, lasso_path

from regtrain.contract.events import RunFinished
from regtrain.contract.job import parse
from worker.training import preprocess
from worker.training.datasets import load
from worker.training.train import train

Array = NDArray[np.float64]
POINTS, RATIO = 100, 1e-3
SPARSE = [(-1.0) ** j * (1 + j / 10) if j < 10 else 0.0 for j in range(1000)]
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "diabetes, 442 × 10": ({"kind": "diabetes", "standardize": True}, (30, 100, 300)),
    "sparse, 200 × 1000": ({"kind": "linear", "rows": 200, "coefficients": SPARSE, "noise": 1.0, "standardize": True}, (30, 100, 300)),
}
"""Dataset, and the steps that a job may make for each λ."""


@dataclass(frozen=True)
class Problem:
    """½‖y − Xw‖²/n + λ‖w‖₁ with centred columns and targets, which is what an intercept comes to; λ in rising order."""

    x: Array
    y: Array
    lambdas: Array

    def objectives(self, w: Array) -> Array:
        """One for each λ.  w: (λ, features)"""
        return ((self.y - w @ self.x.T) ** 2).mean(1) / 2 + self.lambdas * np.abs(w).sum(1)


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # what was reached is measured
    rows = [row for name, (dataset, budgets) in CASES.items() for row in measured(name, dataset, budgets, rounds=2 if quick else 5)]
    publish("path", rows, keep=not quick)


def measured(name: str, dataset: dict[str, Any], budgets: tuple[int, ...], *, rounds: int) -> list[dict[str, Any]]:
    problem = problem_of(dataset)
    least = descended(problem, tolerance=1e-12)
    found: dict[str, Array] = {}

    def contestant(name: str, search: Callable[[], Array]) -> Callable[[], float]:
        return lambda: timed(lambda: found.update({name: search()}))

    contestants: dict[str, Callable[[], Array]] = {
        "lasso_path": lambda: descended(problem, tolerance=1e-4),
        "lasso_path, tol 1e-8": lambda: descended(problem, tolerance=1e-8),
        "100 cold Lasso": lambda: cold(problem),
        **{
            f"ours, {'warm' if warmed else 'cold'}, {steps} steps": lambda steps=steps, warmed=warmed: ours(dataset, problem, steps, warm=warmed)
            for steps in budgets
            for warmed in (True, False)
        },
    }
    taken = interleaved({name: contestant(name, search) for name, search in contestants.items()}, rounds=rounds)
    minimum = problem.objectives(least)
    return [
        {
            "rows": name, "what": what, "runs": rounds, "seconds": quartiles(taken[what]), "to_lasso_path": quartiles(ratios(taken[what], taken["lasso_path"])),
            "largest_excess": float(np.max(problem.objectives(w) / minimum - 1)), "weights_of_other_support": int(((w == 0) != (least == 0)).sum()), "of": w.size,
        }
        for what, w in found.items()
    ]  # fmt: skip


def problem_of(dataset: dict[str, Any]) -> Problem:
    spec = parse(json.dumps(spec_of(dataset, lam=1.0, steps=1)))
    rows = load(spec.dataset, data=Path("."), upload=None, classify=False)
    x, y = preprocess.fit(rows.x, standardize=True)(rows.x), rows.y - rows.y.mean()
    largest = float(np.abs(x.T @ y).max()) / len(y)
    return Problem(x, y, np.geomspace(RATIO * largest, largest, POINTS))


def ours(dataset: dict[str, Any], problem: Problem, steps: int, *, warm: bool) -> Array:
    """One row for each λ. Cold: every λ from zero weights, all in one pack. Warm: about √100 waves from λ_max down, each from the last weights of the one before."""
    lam = {"path": POINTS, "ratio": RATIO} if warm else {"log": [float(problem.lambdas[0]), float(problem.lambdas[-1])], "points": POINTS}
    runs = sorted((event for event in train(parse(json.dumps(spec_of(dataset, lam=lam, steps=steps)))) if isinstance(event, RunFinished)), key=lambda run: run.run)
    weights = np.array([run.coefficients["trained"]["weights"] for run in runs if run.coefficients])
    return weights[::-1] if warm else weights


def spec_of(dataset: dict[str, Any], *, lam: Any, steps: int) -> dict[str, Any]:
    return {
        "dataset": dataset, "model": {"kind": "linear", "init": {"kind": "zeros"}}, "loss": {"kind": "half_squared_error"}, "regularizers": [{"kind": "l1", "lambda": lam}],
        "optimizer": {"kind": "proximal"}, "budget": {"epochs": steps, "batch_size": "all"}, "dtype": "float64", "diagnostics": "off",
    }  # fmt: skip


def descended(problem: Problem, *, tolerance: float) -> Array:
    falling: Any = problem.lambdas[::-1]
    _, w, _ = lasso_path(problem.x, problem.y, alphas=falling, tol=tolerance, max_iter=1_000_000)
    return w.T[::-1]


def cold(problem: Problem) -> Array:
    return np.array([Lasso(alpha=lam, fit_intercept=False, max_iter=1_000_000).fit(problem.x, problem.y).coef_ for lam in problem.lambdas])


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
