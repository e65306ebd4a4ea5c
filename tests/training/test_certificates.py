"""Certificates: against scikit-learn's duality gap, KKT conditions written out, closed forms, and the definition of a bound."""

import math
from typing import Any

import numpy as np
import pytest
from test_exactness import DIABETES, GROUPS, LINEAR, REFERENCE, diabetes, standardized
from training_jobs import FROZEN, Outcome, inline, run, sgd, spec

N = 442
FISTA = {"kind": "proximal"}
CLASSES = {
    "half_squared_error": DIABETES,
    "squared_error": DIABETES,
    "binary": {"kind": "breast_cancer", "standardize": True},
    "cross_entropy": {"kind": "iris", "standardize": True},
}
PENALTIES: dict[str, list[dict[str, Any]]] = {
    "l1": [{"kind": "l1", "lambda": 0.03}],
    "l2": [{"kind": "l2", "lambda": 0.03}],
    "elastic_net": [{"kind": "elastic_net", "lambda": 0.03}],
    "group_lasso": [{"kind": "group_lasso", "lambda": 0.02, "groups": "columns"}],
    "sparse_group_lasso": [{"kind": "sparse_group_lasso", "lambda": 0.02, "groups": "columns"}],
    "tensor": [{"kind": "group_lasso", "lambda": 0.05, "groups": "tensor"}],
    "groups and squares": [{"kind": "sparse_group_lasso", "lambda": 0.02, "groups": "rows"}, {"kind": "l2", "lambda": 0.01}],
}


def certificate(found: Outcome, r: int = 0) -> dict[str, float]:
    of = found.runs[r].certificate
    assert of is not None
    return {name: value for name, value in of.items() if value is not None}


@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gap_bounds_what_is_left_and_closes(loss, penalty):
    """At every stage P − P* ≤ gap, P* the objective after many steps, whose own gap is zero up to rounding."""
    job = spec(CLASSES[loss], LINEAR, loss, FISTA, *PENALTIES[penalty], diagnostics="off")
    end = certificate(run({**job, "budget": {"epochs": 1500, "batch_size": "all"}}))
    assert abs(end["relative_gap"]) < 1e-10
    assert end["kkt_violation"] < 1e-6 * max(1.0, end["objective"])
    for steps in (1, 10, 60):
        early = run({**job, "budget": {"epochs": steps, "batch_size": "all"}})
        of = certificate(early)
        assert of["objective"] == pytest.approx(early.runs[0].metrics["objective/train"], rel=1e-12)
        assert of["relative_gap"] == pytest.approx(of["duality_gap"] / of["objective"], rel=1e-12)
        assert of["objective"] - end["objective"] <= of["duality_gap"] + 1e-9 * of["objective"]
        assert of["duality_gap"] < of["objective"]
        assert of["kkt_violation"] > end["kkt_violation"]


@pytest.mark.parametrize("passes", [1, 3, 10])
def test_the_gap_of_lasso_is_that_of_scikit_learn(passes):
    """The same weights, which scikit-learn has after a few passes, judged by both: ours start at them and do not move.

    Its gap is of SSE/2n + α‖w‖₁ with the residual shortened to ‖Xᵀr‖∞ ≤ nα, as ours.
    """
    import warnings

    from sklearn.linear_model import Lasso

    x, y = standardized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Lasso(alpha=5.0, fit_intercept=False, max_iter=passes, tol=1e-30).fit(x, y)
    residual = y - x @ theirs.coef_
    c = min(1.0, 5.0 * N / np.abs(x.T @ residual).max())
    by_hand = (residual @ residual * (1 + c * c) / 2 - c * residual @ y) / N + 5.0 * np.abs(theirs.coef_).sum()
    assert gap_at(x, y, theirs.coef_, {"kind": "l1", "lambda": 5.0}) == pytest.approx(by_hand, rel=1e-9)
    assert gap_at(x, y, theirs.coef_, {"kind": "l1", "lambda": 5.0}) == pytest.approx(theirs.dual_gap_, rel=1e-6)


def gap_at(x: np.ndarray, y: np.ndarray, w: np.ndarray, penalty: dict[str, Any]) -> float:
    """The certificate's gap at given weights."""
    import json
    import tempfile
    from pathlib import Path

    import torch

    from regtrain.contract.job import parse
    from worker.training.certificates import certifier
    from worker.training.prepare import prepare
    from worker.training.running import pack_of

    text = json.dumps(spec(inline(x, y), {"kind": "linear", "bias": False}, "half_squared_error", sgd(FROZEN), penalty))
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(parse(text), device="cpu", data=Path(folder), upload=None, scratch=None)
    pack = pack_of(job, job.runs)
    pack.flat.copy_(torch.tensor(w).unsqueeze(0))
    found = certifier(pack, job.train, lambda runs: pack_of(job, runs))(0)
    assert found is not None
    assert found["duality_gap"] is not None
    return found["duality_gap"]


def test_solved_jobs_are_certified_as_well_as_the_reference():
    """scikit-learn's solutions have KKT violations near 1e-15 in raw units, group lasso's reference up to 2e-14; √n in standardized ones."""
    strengths = ("0.1", "0.5", "1", "2")
    found = diabetes(FISTA, {"kind": "l1", "lambda": {"values": [float(s) * math.sqrt(N) for s in strengths]}}, steps=300)
    for r, alpha in enumerate(strengths):
        of = certificate(found, r)
        assert REFERENCE[f"lasso_{alpha}"]["kkt_max_viol"] < 1e-14
        assert of["kkt_violation"] < 1e-12
        assert of["objective"] == pytest.approx(REFERENCE[f"lasso_{alpha}"]["obj"], rel=1e-12)
        assert abs(of["duality_gap"]) < 1e-10
    found = diabetes(FISTA, {"kind": "group_lasso", "lambda": 0.6 * math.sqrt(N), "groups": GROUPS}, steps=300)
    assert REFERENCE["group_lasso_0.6"]["kkt"] < 1e-13
    assert certificate(found)["kkt_violation"] < 1e-11


@pytest.mark.parametrize("steps", [20, 60, 120])
def test_the_violation_of_lasso_is_the_distance_to_its_subgradients(steps):
    """|g + λ·sign(w)| where w ≠ 0, max(0, |g| − λ) where w = 0."""
    x, y = standardized()
    found = run(spec(inline(x, y), {"kind": "linear", "bias": False}, "half_squared_error", FISTA, {"kind": "l1", "lambda": 5.0}, epochs=steps))
    w = found.weights["head.weight"][0, 0].numpy()
    g = x.T @ (x @ w - y) / N
    by_hand = np.where(w != 0, np.abs(g + 5.0 * np.sign(w)), np.maximum(0, np.abs(g) - 5.0)).max()
    assert certificate(found)["kkt_violation"] == pytest.approx(by_hand, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("loss", ["half_squared_error", "squared_error"])
def test_distance_to_ridge_and_least_squares(loss):
    """After a few steps it is the distance to the reference, as one computes it from the coefficients; at the end it is rounding."""
    scale = 1 if loss == "half_squared_error" else 2
    for steps in (15, 200):
        found = run(spec(DIABETES, LINEAR, loss, {"kind": "lbfgs"}, {"kind": "l2", "lambda": {"values": [0.0, 0.1 * scale]}}, epochs=steps, diagnostics="off"))
        for r, want in enumerate((REFERENCE["OLS"], REFERENCE["ridge_0.1"]["coef"])):
            of = found.runs[r].coefficients
            assert of is not None
            best = np.append(np.array(want) / math.sqrt(N), REFERENCE["y_mean"])
            by_hand = np.linalg.norm(np.append(of["trained"]["weights"], of["trained"]["intercept"]) - best) / np.linalg.norm(best)
            assert certificate(found, r)["closed_form_distance"] == pytest.approx(by_hand, rel=1e-5, abs=1e-11)
    assert "duality_gap" not in certificate(found, 0)  # nothing holds the weights: no dual point is known
    assert abs(certificate(found, 1)["relative_gap"]) < 1e-12


def test_a_minimum_that_is_not_unique_has_no_distance():
    found = run(spec(inline([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [1.0, 2.0, 4.0]), LINEAR, "squared_error", FISTA, epochs=50))
    assert set(certificate(found)) == {"objective", "kkt_violation"}


@pytest.mark.parametrize("bound", [{"kind": "non_negative"}, {"kind": "box", "low": -5.0, "high": 12.0}, {"kind": "l2_ball", "radius": 14.0}], ids=lambda b: b["kind"])
def test_constraints_are_certified_by_their_kkt_conditions(bound):
    early, late = (certificate(diabetes(FISTA, bound, steps=steps)) for steps in (20, 300))
    assert set(early) == {"objective", "kkt_violation"}
    assert early["kkt_violation"] > 1e-4
    assert late["kkt_violation"] < 1e-10


def test_float32_and_subgradients_are_judged_by_the_same_measure():
    """The best that float32 can do is not the minimum, and the subgradient method is far from it."""
    penalty = {"kind": "l1", "lambda": 0.5 * math.sqrt(N)}
    single = run(spec(DIABETES, LINEAR, "half_squared_error", FISTA, penalty, epochs=300, dtype="float32"))
    assert 0 <= certificate(single)["relative_gap"] < 1e-4
    plain = diabetes(sgd(0.1), {**penalty, "method": "subgradient"}, steps=300)
    exact = diabetes(sgd(0.1), penalty, steps=300)
    assert certificate(plain)["kkt_violation"] > 100 * certificate(exact)["kkt_violation"]


def test_jobs_that_are_not_convex_or_minimise_something_else_have_none():
    rows = inline(np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2)
    net = spec(rows, {"kind": "mlp", "hidden": [4]}, "binary", sgd(0.1))
    linear = spec(rows, LINEAR, "binary", sgd(0.1))
    for job in (
        net,
        *({**linear, "regularizers": [r]} for r in ({"kind": "dropout", "rate": 0.5, "on": "inputs"}, {"kind": "weight_decay", "lambda": 0.1}, {"kind": "unit_norm"})),
    ):
        found = run(job)
        assert found.runs[0].certificate is None
        assert found.finished.result["certificate"] is None
    assert run(linear).finished.result["certificate"] == run(linear).runs[0].certificate


def test_separable_classes_without_a_penalty_have_no_gap_and_a_run_that_diverged_no_certificate():
    rows = inline([[-1.0], [1.0]], [0, 1])
    assert "duality_gap" not in certificate(run(spec(rows, LINEAR, "binary", FISTA, epochs=20)))
    found = run(spec(inline([[-1.0], [1.0]], [0.5, 1.5]), LINEAR, "squared_error", sgd({"values": [1e200, 0.1]}), {"kind": "l2", "lambda": 0.1}, epochs=20))
    assert found.runs[0].certificate is None
    assert certificate(found, 1)["relative_gap"] < 0.5


def test_a_penalised_bias_and_penalties_that_know_no_dual_are_certified_by_kkt_alone():
    found = diabetes(sgd(0.1), {"kind": "l2", "lambda": 0.1, "on": "all"}, steps=50)
    assert set(certificate(found)) == {"objective", "kkt_violation"}


EXPECTED: list[tuple[dict[str, Any], float, float]] = [
    (FISTA, 1e-13, 1e-13),
    ({"kind": "proximal", "accelerated": False}, 5.3e-8, 1e-13),
    (sgd(0.2), 8.6e-7, 1e-13),
    (sgd(0.15, 0.9, nesterov=True), 1.4e-5, 1e-13),
    ({"kind": "adam", "lr": 5.0, "schedule": {"kind": "cosine"}}, 6.3e-4, 1.6e-7),
]


@pytest.mark.parametrize(("optimizer", "after_100", "after_300"), EXPECTED, ids=["fista", "ista", "sgd", "nesterov", "adam"])
def test_the_table_of_the_docs(optimizer, after_100, after_300):
    """docs/exactness.md: orders of magnitude, and never more."""
    for steps, most in ((100, after_100), (300, after_300)):
        gap = certificate(diabetes(optimizer, {"kind": "l1", "lambda": 0.5 * math.sqrt(N)}, steps=steps))["relative_gap"]
        assert gap < 1.5 * most
        assert most == 1e-13 or gap > 0.5 * most


def test_the_rest_of_the_table_of_the_docs():
    for steps in (100, 300):
        found = diabetes(sgd(0.2), {"kind": "l1", "lambda": 0.5 * math.sqrt(N), "method": "subgradient"}, steps=steps)
        assert 0.02 < certificate(found)["relative_gap"] < 0.3
        assert found.runs[0].zeros["head.weight"] == 0
    for steps, most in ((20, 1e-7), (40, 1e-13)):
        assert certificate(diabetes({"kind": "lbfgs"}, {"kind": "l2", "lambda": 0.1}, steps=steps))["closed_form_distance"] < most


def test_each_fold_is_certified_on_its_own_rows():
    found = run(spec(DIABETES, LINEAR, "half_squared_error", FISTA, {"kind": "l1", "lambda": {"values": [2.0, 5.0]}}, epochs=300, selection={"folds": 3}))
    ends = [certificate(found, r) for r in found.runs]
    assert len(ends) >= 6
    assert all(abs(of["relative_gap"]) < 1e-12 and of["kkt_violation"] < 1e-10 for of in ends)
    assert len({round(of["objective"], 6) for of in ends}) == len(ends)


def test_classes_that_share_no_bias_and_smoothed_labels():
    """Without an intercept every θ is feasible; smoothing moves the targets."""
    for model in (LINEAR, {"kind": "linear", "bias": False}):
        loss = {"kind": "cross_entropy", "label_smoothing": {"values": [0.0, 0.2]}}
        job = spec(CLASSES["cross_entropy"], model, loss, FISTA, {"kind": "l1", "lambda": 0.02}, diagnostics="off")
        early, late = (run({**job, "budget": {"epochs": steps, "batch_size": "all"}}) for steps in (10, 800))
        for r in range(2):
            assert abs(certificate(late, r)["relative_gap"]) < 1e-11
            left = certificate(early, r)["objective"] - certificate(late, r)["objective"]
            assert 0 < left <= certificate(early, r)["duality_gap"]


def test_a_penalty_under_which_every_weight_is_zero():
    found = diabetes(FISTA, {"kind": "l1", "lambda": 100.0}, steps=50)
    assert found.runs[0].zeros["head.weight"] == 10
    assert abs(certificate(found)["relative_gap"]) < 1e-12
