"""Classes that count differently: against torch's weighted mean, rows written several times, and scikit-learn's balanced classes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from training_jobs import distance, gradient_at, inline, run, sgd, spec

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import parse
from regtrain.contract.lam import of_result
from worker.training import gauss_newton
from worker.training.evaluate import Part

DRAW = np.random.default_rng(2)
ROWS = DRAW.standard_normal((30, 4))
LABELS = np.repeat([0, 1, 2], [15, 9, 6])
GIVEN = [1.0, 3.0, 2.0]
LINEAR = {"kind": "linear"}
MLP = {"kind": "mlp", "hidden": [7], "activation": "tanh"}


def weighted(kind: str = "cross_entropy", weights: Any = GIVEN, **rest: Any) -> dict[str, Any]:
    return {"kind": kind, "class_weights": weights, **rest}


def test_the_loss_is_the_weighted_mean_of_torch():
    """Σ w_y·nll / Σ w_y, not Σ w_y·nll / n."""
    w = torch.tensor(DRAW.standard_normal((3, 4)))
    pack, measured = gradient_at(spec(inline(ROWS, LABELS), {**LINEAR, "bias": False}, weighted(), sgd(0.1)), {"head.weight": w})
    leaf, x, y = w.clone().requires_grad_(), torch.tensor(ROWS), torch.tensor(LABELS)
    theirs = F.cross_entropy(x @ leaf.T, y, weight=torch.tensor(GIVEN, dtype=torch.float64))
    theirs.backward()
    each = np.array(GIVEN)[LABELS]
    nll = F.cross_entropy(x @ w.T, y, reduction="none").numpy()
    assert measured["loss/train"].item() == pytest.approx(theirs.item(), rel=1e-14)
    assert measured["loss/train"].item() == pytest.approx((each * nll).sum() / each.sum(), rel=1e-14)
    assert leaf.grad is not None
    assert distance(pack.net.gradients["head.weight"][0], leaf.grad) < 1e-14


def test_two_classes_as_torch():
    w = torch.tensor(DRAW.standard_normal((1, 4)))
    pack, measured = gradient_at(spec(inline(ROWS, LABELS > 0), {**LINEAR, "bias": False}, weighted("binary", [0.5, 4.0]), sgd(0.1)), {"head.weight": w})
    leaf, y = w.clone().requires_grad_(), torch.tensor(LABELS > 0).double()
    each = 0.5 + 3.5 * y
    theirs = F.binary_cross_entropy_with_logits((torch.tensor(ROWS) @ leaf.T)[:, 0], y, weight=each, reduction="sum") / each.sum()
    theirs.backward()
    assert measured["loss/train"].item() == pytest.approx(theirs.item(), rel=1e-14)
    assert leaf.grad is not None
    assert distance(pack.net.gradients["head.weight"][0], leaf.grad) < 1e-14


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("optimizer", [sgd(0.3, 0.9), {"kind": "lbfgs"}, {"kind": "proximal"}], ids=["sgd", "lbfgs", "proximal"])
@pytest.mark.parametrize("model", [LINEAR, MLP], ids=["linear", "mlp"])
def test_a_weight_of_three_is_a_row_that_stands_three_times(model, optimizer, smoothing):
    """The same curves and weights; accuracy counts rows as they are."""
    repeated = np.repeat(np.arange(30), np.array(GIVEN, int)[LABELS])
    job = spec(inline(ROWS, LABELS), model, weighted(label_smoothing=smoothing), optimizer, {"kind": "l2", "lambda": 0.01}, epochs=20)
    ours = run(job)
    twin = run({**job, "dataset": inline(ROWS[repeated], LABELS[repeated]), "loss": {"kind": "cross_entropy", "label_smoothing": smoothing}})
    assert distance(ours.flat(), twin.flat()) < 1e-9
    for series in ("loss/train", "gradient/norm", "learning_rate"):
        assert ours.curve(series) == pytest.approx(twin.curve(series), rel=1e-7)
    assert ours.runs[0].metrics["loss/train"] == pytest.approx(twin.runs[0].metrics["loss/train"], rel=1e-11)
    assert ours.runs[0].metrics["accuracy/train"] * 30 == pytest.approx(round(ours.runs[0].metrics["accuracy/train"] * 30), abs=1e-12)
    if model == LINEAR:
        ours_end, twin_end = ours.runs[0].certificate, twin.runs[0].certificate
        assert ours_end is not None
        assert twin_end is not None
        assert ours_end["objective"] == pytest.approx(twin_end["objective"], rel=1e-11)
        assert ours_end["kkt_violation"] == pytest.approx(twin_end["kkt_violation"], rel=1e-6, abs=1e-9)
        assert ours_end["duality_gap"] is None


def test_curvature_too_counts_a_row_three_times():
    """Products and diagonal of the Gauss-Newton matrix, and the loss beside them, as with the rows repeated."""
    repeated = np.repeat(np.arange(30), np.array(GIVEN, int)[LABELS])
    job = spec(inline(ROWS, LABELS), MLP, weighted(), sgd(0.1))
    found = []
    for one in (job, {**job, "dataset": inline(ROWS[repeated], LABELS[repeated]), "loss": {"kind": "cross_entropy"}}):
        pack, _ = gradient_at(one, {})
        part = Part(torch.tensor(one["dataset"]["x"], dtype=torch.float64), torch.tensor(one["dataset"]["y"]).long())
        v = torch.linspace(-1, 1, pack.flat.shape[1], dtype=torch.float64).unsqueeze(0)
        found.append([*gauss_newton.loss_and_gradient(pack, part), gauss_newton.product(pack, part, v), gauss_newton.diagonal(pack, part)])
    for ours, twin in zip(*found, strict=True):
        assert distance(ours, twin) < 1e-13


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_micro_batches_weigh_by_the_sum_of_their_weights(kind):
    """4 + 4 + 2 rows of very different classes equal one batch of 10."""
    labels, weights = (np.array([0] * 4 + [1] * 4 + [2, 0]), GIVEN) if kind == "cross_entropy" else (np.array([0] * 7 + [1] * 3), [1.0, 9.0])
    job = spec(inline(ROWS[:10], labels), MLP, weighted(kind, weights), sgd(0.2, 0.9), epochs=20)
    whole = run(job)
    parts = run({**job, "budget": {"epochs": 20, "batch_size": 10, "accumulate": 3}})
    assert distance(parts.flat(), whole.flat()) < 1e-13
    assert parts.curve("loss/train") == pytest.approx(whole.curve("loss/train"), rel=1e-13)


def test_each_batch_divides_by_its_own_weights_and_each_seed_by_its_own_rows():
    """Batches of 7 in another order a seed: each run's first loss is torch's on its own rows."""
    from worker.training.draws import row_order

    job = spec(inline(ROWS, LABELS), {"kind": "mlp", "hidden": [7]}, weighted(), sgd(1e-300), batch_size=7, selection={"seeds": 3})
    found = run(job)
    for r in range(3):
        w = {name: tensor[r] for name, tensor in found.weights.items()}
        for t, part in enumerate(row_order(job=0, run=r, epoch=0, rows=30).split(7)):
            hidden = (torch.tensor(ROWS)[part] @ w["layers.0.weight"].T + w["layers.0.bias"]).relu()
            theirs = F.cross_entropy(hidden @ w["head.weight"].T + w["head.bias"], torch.tensor(LABELS)[part], weight=torch.tensor(GIVEN, dtype=torch.float64))
            assert found.curve("loss/train", r)[t] == pytest.approx(theirs.item(), rel=1e-13)


def test_balanced_logistic_regression_is_that_of_scikit_learn():
    x, y = load_breast_cancer(return_X_y=True)
    x, strengths = (x - x.mean(0)) / x.std(0), (1.0, 0.1)
    penalty = {"kind": "l2", "lambda": {"values": [1 / (c * len(x)) for c in strengths]}}
    for optimizer, steps in (({"kind": "lbfgs"}, 120), ({"kind": "proximal"}, 1500)):
        found = run(spec({"kind": "breast_cancer", "standardize": True}, LINEAR, weighted("binary", "balanced"), optimizer, penalty, epochs=steps, diagnostics="off"))
        for r, c in enumerate(strengths):
            theirs = LogisticRegression(C=c, class_weight="balanced", tol=1e-12, solver="newton-cholesky").fit(x, y)
            of = found.runs[r]
            assert of.coefficients is not None
            assert np.linalg.norm(np.array(of.coefficients["trained"]["weights"]) - theirs.coef_[0]) < 1e-6 * np.linalg.norm(theirs.coef_)
            assert of.metrics["accuracy/train"] == theirs.score(x, y)
            assert of.certificate is not None
            assert of.certificate["kkt_violation"] < 1e-6


def test_balanced_softmax_regression_is_that_of_scikit_learn():
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000).fit(x, y)
    penalty = {"kind": "l2", "lambda": 1 / (0.1 * len(x))}
    found = run(spec({"kind": "wine", "standardize": True}, LINEAR, weighted(weights="balanced"), {"kind": "lbfgs"}, penalty, epochs=100, diagnostics="off"))
    assert distance(found.weights["head.weight"][0], torch.tensor(theirs.coef_)) < 1e-6
    given = compute_class_weight("balanced", classes=np.arange(3), y=y).tolist()
    same = run(spec({"kind": "wine", "standardize": True}, LINEAR, weighted(weights=given), {"kind": "lbfgs"}, penalty, epochs=100, diagnostics="off"))
    assert distance(same.flat(), found.flat()) < 1e-10


@pytest.mark.parametrize("kind", ["cross_entropy", "binary"])
def test_above_the_lambda_max_of_the_warning_all_weights_are_zero_and_below_it_not(kind):
    """At λ_max the weighted gradient at zero weights and the best bias has λ_max as its largest entry."""
    labels = LABELS if kind == "cross_entropy" else LABELS > 0
    weights = np.array(GIVEN if kind == "cross_entropy" else [1.0, 5.0])
    each = weights[labels.astype(int)]
    hot = np.eye(len(weights))[labels.astype(int)]
    mean = (each[:, None] * hot).sum(0) / each.sum()
    top = np.abs(ROWS.T @ (each[:, None] * (mean - hot)) / each.sum()).max()
    job = spec(inline(ROWS, labels), LINEAR, weighted(kind, weights.tolist()), {"kind": "proximal"}, {"kind": "l1", "lambda": {"values": [top * 0.999, top * 1.001]}}, epochs=800)
    found = run(job)
    assert [found.runs[r].zeros["head.weight"] == found.weights["head.weight"][r].numel() for r in range(2)] == [False, True]
    told = [w.message for w in found.started.warnings if w.path == "regularizers.0.lambda"]
    assert [f"λ_max = {top:.4g}" in message for message in told] == [True]


def test_held_out_rows_are_weighed_too_and_balance_is_that_of_the_training_rows_of_each_fold():
    job = spec(inline(ROWS, LABELS), {**LINEAR, "init": {"kind": "torch"}}, weighted(weights="balanced"), sgd(0.1), epochs=3, selection={"folds": 3, "shuffle": False})
    found = run(job)
    for r in range(3):
        val = np.arange(10 * r, 10 * r + 10)
        train = np.setdiff1d(np.arange(30), val)
        rows = np.bincount(LABELS[train], minlength=3)
        balanced = 20 / (3 * np.maximum(rows, 1))
        logits = torch.tensor(ROWS) @ found.weights["head.weight"][r].T + found.weights["head.bias"][r]
        for name, part in (("train", train), ("val", val)):
            theirs = F.cross_entropy(logits[part], torch.tensor(LABELS[part]), weight=torch.tensor(balanced))
            assert found.runs[r].metrics[f"loss/{name}"] == pytest.approx(theirs.item(), rel=1e-13)
            hits = (logits[part].argmax(1).numpy() == LABELS[part]).mean()
            assert found.runs[r].metrics[f"accuracy/{name}"] == pytest.approx(hits, rel=1e-14)


def checked(job: dict[str, Any]) -> None:
    found = parse(json.dumps(job))
    facts = facts_of(found.dataset)
    assert facts is not None
    check(found, facts)


@pytest.mark.parametrize(
    ("loss", "path", "message"),
    [
        (weighted(weights=[1.0, 2.0]), "loss.class_weights", "2 weights for the 3 classes"),
        (weighted(weights=[1.0, 2.0, 3.0, 4.0]), "loss.class_weights", "4 weights for the 3 classes"),
        (weighted(weights=[1.0, 0.0, 2.0]), "loss.class_weights.1", "greater than 0"),
        (weighted(weights=[1.0, -2.0, 2.0]), "loss.class_weights.1", "greater than 0"),
        (weighted(weights=[]), "loss.class_weights", "at least 2"),
        (weighted(weights="Balanced"), "loss.class_weights", "balanced"),
        (weighted(weights={"values": [1, 2]}), "loss.class_weights", "found an object"),
        ({"kind": "squared_error", "class_weights": "balanced"}, "loss.class_weights", "unknown key"),
    ],
)
def test_weights_that_do_not_fit_are_refused_where_they_stand(loss, path, message):
    with pytest.raises(SpecRefused) as refused:
        checked(spec(inline(ROWS, LABELS), LINEAR, loss, sgd(0.1)))
    assert [problem.path for problem in refused.value.problems] == [path]
    assert message in refused.value.problems[0].message


def test_strengths_in_other_conventions_are_told_for_balanced_classes_alone():
    """C = 1/(λ·Σw), and Σw = n where classes are balanced."""
    penalty = {"kind": "l2", "lambda": 0.01}
    for weights, told in (("balanced", True), (GIVEN, False)):
        job = parse(json.dumps(spec(inline(ROWS, LABELS), LINEAR, weighted(weights=weights), sgd(0.1), penalty)))
        facts = facts_of(job.dataset)
        assert facts is not None
        assert bool(of_result(job, facts, {})) == told
