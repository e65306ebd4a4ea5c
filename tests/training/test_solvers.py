"""Optimizers that choose their own steps: against scikit-learn, torch and slow obvious loops; alone, in company and resumed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_exactness import DIABETES, GROUPS, LINEAR, LOGISTIC, REFERENCE, coefficients, diabetes, known, same, standardized
from training_jobs import distance, events, inline, outcome, reference, run, sgd, spec

from regtrain.contract.events import Checkpointed, RunFinished
from regtrain.contract.job import parse
from worker.training import points
from worker.training.train import train

N = 442
ROWS = np.random.default_rng(5).standard_normal((30, 4))
LABELS = np.arange(30) % 3
MLP = {"kind": "mlp", "hidden": [7], "activation": "tanh"}
PROXIMAL: dict[str, dict[str, Any]] = {
    "fista": {"kind": "proximal"},
    "fista with backtracking": {"kind": "proximal", "step": "backtracking"},
    "ista": {"kind": "proximal", "accelerated": False},
    "ista with backtracking": {"kind": "proximal", "accelerated": False, "step": "backtracking"},
}


def steps_of(how: str) -> int:
    return 250 if how.startswith("fista") else 2500


@pytest.mark.parametrize("how", PROXIMAL)
def test_lasso_and_elastic_net_equal_scikit_learn(how):
    strengths = ("0.1", "0.5", "1", "2")
    found = diabetes(PROXIMAL[how], {"kind": "l1", "lambda": {"values": [float(s) * math.sqrt(N) for s in strengths]}}, steps=steps_of(how))
    for r, alpha in enumerate(strengths):
        same(coefficients(found, r), known(f"lasso_{alpha}"))
    l1, l2 = 0.01 * 0.5 * math.sqrt(N), 0.01 * 0.5 * N
    for parts in ([{"kind": "elastic_net", "lambda": l1 + l2, "l1_ratio": l1 / (l1 + l2)}], [{"kind": "l1", "lambda": l1}, {"kind": "l2", "lambda": l2}]):
        same(coefficients(diabetes(PROXIMAL[how], *parts, steps=200), 0), known("enet_0.01_0.5"))


@pytest.mark.parametrize("how", ["fista", "fista with backtracking"])
def test_groups_signs_and_balls_equal_their_references(how):
    found = diabetes(PROXIMAL[how], {"kind": "group_lasso", "lambda": 0.6 * math.sqrt(N), "groups": GROUPS}, steps=250)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["group_lasso_0.6"]["coef"]), rel=1e-8)
    found = diabetes(PROXIMAL[how], {"kind": "non_negative"}, steps=250)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["nonneg_ols"]["coef"]), rel=1e-6)
    found = diabetes(PROXIMAL[how], {"kind": "l2_ball", "radius": 300 / math.sqrt(N)}, steps=150)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["l2ball_300"]["coef"]), rel=1e-8)


@pytest.mark.parametrize("penalty", LOGISTIC)
def test_logistic_regression_equals_scikit_learn(penalty):
    (strengths, _, objective), want, n = LOGISTIC[penalty], reference("breast_cancer"), 569
    optimizer, steps = ({"kind": "lbfgs"}, 200) if penalty == "l2" else ({"kind": "proximal"}, 1200)
    regularizer = {"kind": penalty, "lambda": {"values": [1 / (c * n) for c in strengths]}}
    found = run(spec({"kind": "breast_cancer", "standardize": True}, LINEAR, "binary", optimizer, regularizer, epochs=steps, diagnostics="off"))
    for r, c in enumerate(strengths):
        of, trained = want[f"{penalty}_C={c}"], found.runs[r].coefficients
        assert trained is not None
        same(np.array(trained["trained"]["weights"]), np.array(of["coef"]), rel=1e-8)
        assert found.runs[r].metrics["objective/train"] * c * n == pytest.approx(of[objective], rel=1e-11)


def test_softmax_regression_equals_scikit_learn():
    """C·ΣNLL + ½‖W‖²; first 1297 digits train."""
    want, strengths = reference("digits"), (0.01, 0.1)
    penalty = {"kind": "l2", "lambda": {"values": [1 / (c * 1297) for c in strengths]}}
    found = run(spec({"kind": "digits", "test": 500 / 1797, "split": "last"}, LINEAR, "cross_entropy", {"kind": "lbfgs"}, penalty, epochs=150, diagnostics="off"))
    for r, c in enumerate(strengths):
        of = want[f"softmax_l2_C={c}"]
        assert found.runs[r].metrics["loss/train"] == pytest.approx(of["mean_nll_train"], rel=1e-6)
        assert found.weights["head.weight"][r].norm().item() == pytest.approx(of["w_norm"], rel=1e-6)


@pytest.mark.parametrize("history", [1, 5, 10])
def test_lbfgs_reaches_ridge_and_least_squares(history):
    optimizer = {"kind": "lbfgs", "history": history}
    found = diabetes(optimizer, {"kind": "l2", "lambda": {"values": [0.01, 0.1, 1, 10]}}, steps=400 if history == 1 else 120)
    for r, alpha in enumerate(("0.01", "0.1", "1", "10")):
        same(coefficients(found, r), known(f"ridge_{alpha}"))
    same(coefficients(diabetes(optimizer, steps=500 if history == 1 else 150), 0)[:10], np.array(REFERENCE["OLS"]), rel=1e-8)


def slow(x: np.ndarray, y: np.ndarray, lam: float, *, steps: int, accelerated: bool) -> np.ndarray:
    """FISTA with gradient restart on SSE/2n + λ‖w‖₁, written out."""
    rate = 1 / np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    w = before = np.zeros(x.shape[1])
    t = 1.0
    for _ in range(steps):
        later = (1 + math.sqrt(1 + 4 * t * t)) / 2
        at = w + (t - 1) / later * (w - before) if accelerated else w
        moved = at - rate * x.T @ (x @ at - y) / len(x)
        after = np.sign(moved) * np.maximum(np.abs(moved) - rate * lam, 0)
        t = 1.0 if (at - after) @ (after - w) > 0 else later
        before, w = w, after
    return w


@pytest.mark.parametrize("accelerated", [True, False])
def test_each_step_is_that_of_a_loop_written_out(accelerated):
    x, y = standardized()
    job = spec(inline(x, y), {"kind": "linear", "bias": False}, "half_squared_error", {"kind": "proximal", "accelerated": accelerated}, {"kind": "l1", "lambda": 2.0})
    for steps in (1, 2, 3, 30, 60):  # beyond the first restarts
        found = run({**job, "budget": {"epochs": steps, "batch_size": "all"}})
        assert found.weights["head.weight"][0, 0].numpy() == pytest.approx(slow(x, y, 2.0, steps=steps, accelerated=accelerated), rel=1e-9, abs=1e-9)
        assert found.curve("learning_rate") == pytest.approx(1 / np.linalg.eigvalsh(x.T @ x / N)[-1], rel=1e-12)


def test_the_step_follows_from_the_loss_and_from_l2():
    """1/(c·λ_max(XᵀX/n) + λ): c = 2 for squared, 1 for half squared, 1/4 for logistic, 1/2 for softmax; the intercept is a column of ones."""
    x, y = ROWS, LABELS
    largest = np.linalg.eigvalsh(np.column_stack([x, np.ones(30)]).T @ np.column_stack([x, np.ones(30)]) / 30)[-1]
    two = LABELS % 2
    for loss, target, c in (("squared_error", y + 0.5, 2.0), ("half_squared_error", y + 0.5, 1.0), ("binary", two, 0.25), ("cross_entropy", y, 0.5)):
        found = run(spec(inline(x, target), LINEAR, loss, {"kind": "proximal"}, {"kind": "l2", "lambda": {"values": [0.0, 3.0]}}, epochs=2))
        assert [found.curve("learning_rate", r)[0] for r in range(2)] == pytest.approx([1 / (c * largest), 1 / (c * largest + 3)], rel=1e-12)


@pytest.mark.parametrize("optimizer", [{"kind": "lbfgs"}, {"kind": "proximal"}], ids=["lbfgs", "proximal"])
@pytest.mark.parametrize("model", [MLP, {**MLP, "normalization": {"kind": "batch"}}, {"kind": "cnn", "channels": [3], "image": [1, 2, 2]}], ids=["mlp", "batch norm", "cnn"])
def test_nets_descend(model, optimizer):
    """L-BFGS never rises; both go far below where gradient descent is after as many steps."""
    job = spec(inline(ROWS, LABELS), model, "cross_entropy", optimizer, {"kind": "l2", "lambda": 1e-3}, epochs=60)
    objective = run(job).curve("objective/train")
    if optimizer["kind"] == "lbfgs":
        assert (np.diff(objective) <= 1e-12).all()
    assert objective[-1] < run({**job, "optimizer": sgd(0.1)}).curve("objective/train")[-1]


def test_lbfgs_finds_the_minimum_that_torch_finds():
    """From the same start, a strictly convex problem: softmax regression with L2."""
    found = run(spec(inline(ROWS, LABELS), LINEAR, "cross_entropy", {"kind": "lbfgs"}, {"kind": "l2", "lambda": 0.05}, epochs=40))
    w, b = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x, y = torch.tensor(ROWS), torch.tensor(LABELS)
    theirs = torch.optim.LBFGS([w, b], lr=1, max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        theirs.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ w.T + b, y) + 0.025 * w.square().sum()
        value.backward()
        return value

    theirs.step(closure)
    ours = found.weights["head.weight"][0]
    assert distance(ours, w.detach()) < 1e-7  # torch stops earlier
    residual = torch.softmax(x @ ours.T + found.weights["head.bias"][0], 1) - torch.nn.functional.one_hot(y)
    assert (residual.T @ x / 30 + 0.05 * ours).norm() < 1e-15


@pytest.mark.parametrize("optimizer", [{"kind": "lbfgs"}, {"kind": "proximal"}, {"kind": "proximal", "step": "backtracking"}], ids=["lbfgs", "proximal", "backtracking"])
@pytest.mark.parametrize("model", [LINEAR, MLP], ids=["linear", "mlp"])
def test_runs_in_company_equal_those_alone(model, optimizer):
    """Strengths and seeds search each for themselves: nobody's trials change another's step."""
    regularizer = {"kind": "l2", "lambda": {"values": [0.0, 1e-3, 0.1]}}
    model = {**model, "init": {"kind": "torch", "scale": {"values": [0.1, 3.0]}}}
    job = spec(inline(ROWS, LABELS), model, "cross_entropy", optimizer, regularizer, epochs=25, selection={"seeds": 2})
    company, alone = run(job), run(job, packs=[[r] for r in range(12)])
    for r in range(12):
        assert distance(company.flat(r), alone.flat(r)) < 1e-9
        assert company.curve("learning_rate", r)[:10] == pytest.approx(alone.curve("learning_rate", r)[:10], rel=1e-6)
    assert len({tuple(company.curve("learning_rate", r)) for r in range(12)}) > 1


@pytest.mark.parametrize("optimizer", [{"kind": "lbfgs", "history": 3}, {"kind": "proximal"}], ids=["lbfgs", "proximal"])
def test_a_resumed_job_ends_with_the_same_bits(optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(points, "SECONDS", 0.0)  # a checkpoint after every step
    job = spec(inline(ROWS, LABELS), MLP, "cross_entropy", optimizer, {"kind": "l2", "lambda": {"values": [1e-3, 0.1]}}, epochs=40)
    whole = run(job)
    first = train(parse(json.dumps(job)), data=tmp_path, scratch=tmp_path, wants_checkpoint=lambda: True, checkpoint_seconds=0.0)
    kept = next(event for event in first if isinstance(event, Checkpointed) and event.step == 13)
    first.close()
    resumed = events(job, scratch=tmp_path, resume={0: Path(kept.path)})
    ends = {e.run: e for e in resumed if isinstance(e, RunFinished)}
    assert {r: e.metrics for r, e in ends.items()} == {r: e.metrics for r, e in whole.runs.items()}
    assert outcome(resumed).finished.sha256 == whole.finished.sha256


@pytest.mark.parametrize("optimizer", [{"kind": "lbfgs"}, {"kind": "proximal"}], ids=["lbfgs", "proximal"])
def test_a_run_that_diverges_leaves_the_others_alone(optimizer):
    model = {**MLP, "activation": "identity", "init": {"kind": "torch", "scale": {"values": [1e200, 1.0]}}}
    job = spec(inline(ROWS, LABELS + 0.5), model, "squared_error", optimizer, epochs=20)
    found = run(job)
    assert [found.runs[r].stop_reason for r in range(2)] == ["diverged", "budget"]
    healthy = run({**job, "model": {**model, "init": {"kind": "torch", "scale": {"values": [0.5, 1.0]}}}})
    assert distance(found.flat(1), healthy.flat(1)) < 1e-12


def test_micro_batches_do_not_change_the_objective():
    job = spec(inline(ROWS, LABELS), MLP, "cross_entropy", {"kind": "lbfgs"}, {"kind": "l2", "lambda": 0.01}, epochs=15)
    parts = run({**job, "budget": {"epochs": 15, "batch_size": "all", "accumulate": 4}})
    assert distance(parts.flat(), run(job).flat()) < 1e-8


def test_float32_comes_as_near_as_float32_can():
    l1 = 0.5 * math.sqrt(N)
    for optimizer in ({"kind": "proximal"}, {"kind": "proximal", "step": "backtracking"}):
        found = run(spec(DIABETES, LINEAR, "half_squared_error", optimizer, {"kind": "l1", "lambda": l1}, epochs=250, dtype="float32"))
        assert coefficients(found, 0) == pytest.approx(known("lasso_0.5"), rel=1e-4, abs=1e-3)
        assert found.runs[0].zeros["head.weight"] == 6
    ridge = run(spec(DIABETES, LINEAR, "half_squared_error", {"kind": "lbfgs"}, {"kind": "l2", "lambda": 0.1}, epochs=100, dtype="float32"))
    assert np.linalg.norm(coefficients(ridge, 0) - known("ridge_0.1")) < 1e-3 * np.linalg.norm(known("ridge_0.1"))
