"""Double descent, and where it ends: d = 50, ‖β‖ = 1, σ = 0.5. Without a penalty the risk peaks where there are as many rows as columns (Belkin et al. 2019);
with ridge at λn = σ²d/‖β‖² = 12.5 it is lowest, whatever n (Nakkiran et al. 2021)."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_jobs import run, spec

from regtrain.contract.job import parse
from worker.training import datasets

D, NOISE = 50, 0.5
BETA = np.full(D, 1 / math.sqrt(D))
BEST = NOISE**2 * D  # ‖β‖ = 1
TIMES_ROWS = [0.0, *(BEST * 2.0**power for power in range(-3, 4))]
"""λn of each run; λ is per row."""
DRAWS = {25: 24, 50: 8, 100: 16}
"""Rows → how many datasets."""
LBFGS = {25: ({"history": 10}, 50), 50: ({"history": 80}, 120), 100: ({"history": 10}, 50)}
"""With as many rows as columns XᵀX is nearly singular, so it remembers all its steps and takes more of them."""


def job(n: int, draw: int) -> dict[str, Any]:
    rows = {"kind": "linear", "rows": n, "draw": draw, "coefficients": BETA.tolist(), "intercept": 0.0, "noise": NOISE}
    penalty = {"kind": "l2", "lambda": {"values": [k / n for k in TIMES_ROWS]}}
    optimizer, steps = LBFGS[n]
    return spec(rows, {"kind": "linear", "bias": False}, "half_squared_error", {"kind": "lbfgs", **optimizer}, penalty, epochs=steps, diagnostics="off")


def solved(n: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights of every λ, trained and in closed form: (XᵀX + λn)⁻¹Xᵀy, at λ = 0 the solution of least norm.  (R, D) each"""
    of = job(n, draw)
    trained = run(of).weights["head.weight"][:, 0].numpy()
    rows = datasets.load(parse(json.dumps(of)).dataset, data=Path(), upload=None, classify=False)
    square, product = rows.x.T @ rows.x, rows.x.T @ rows.y
    ridge = [np.linalg.solve(square + k * np.eye(D), product) for k in TIMES_ROWS[1:]]
    return trained, np.stack([np.linalg.pinv(rows.x) @ rows.y, *ridge])


@cache
def risks(n: int) -> np.ndarray:
    """E(x·ŵ − x·β)² = ‖ŵ − β‖² of every dataset and λ, for x ~ N(0, I).  (datasets, R)"""
    found = []
    for draw in range(DRAWS[n]):
        trained, exact = solved(n, draw)
        assert (np.linalg.norm(trained - exact, axis=1) < 1e-6 * np.linalg.norm(exact, axis=1)).all()
        found.append(np.square(trained - BETA).sum(1))
    return np.array(found)


@pytest.mark.parametrize("n", DRAWS)
def test_ridge_is_best_at_the_same_lambda_n_for_any_number_of_rows(n):
    """The least mean risk is at 12.5, the vertex of the parabola through it and its neighbours near it, and λ four and more times weaker or stronger is worse
    by more than 2.5 standard errors of the paired differences. (At λ = 0 and n = 50 the risk has no mean, let alone an error.)"""
    found, best = risks(n), TIMES_ROWS.index(BEST)
    mean, near = found.mean(0), slice(best - 1, best + 2)
    assert mean.argmin() == best
    a, b, _ = np.polyfit(np.log(TIMES_ROWS[near]), mean[near], 2)
    assert math.exp(-b / (2 * a)) == pytest.approx(BEST, rel=0.2)
    worse = np.delete(found - found[:, [best]], near, 1)[:, 1:]
    assert (worse.mean(0) > 2.5 * worse.std(0, ddof=1) / math.sqrt(len(found))).all()


def test_without_a_penalty_the_risk_peaks_where_rows_and_columns_are_as_many():
    few, as_many, many = (risks(n)[:, 0] for n in DRAWS)
    assert as_many.min() > max(few.max(), many.max())  # every dataset of 50 rows is worse than any of 25 or 100
    assert as_many.mean() > 10 * max(few.mean(), many.mean())
    assert many.mean() < few.mean() < 1  # 1 is the risk of saying 0
