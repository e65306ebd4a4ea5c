"""What the rows say before the first update: each bound against training itself, or against scikit-learn, from both sides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import Lasso, LogisticRegression
from training_jobs import inline, run, sgd, spec

from regtrain.contract.errors import Warned
from regtrain.contract.job import parse
from regtrain.contract.states import RunState
from worker.training.cautions import of_data
from worker.training.prepare import prepare

LINE = inline([[1], [2], [3], [4], [5]], [2, 4, 7, 11, 16])
LINEAR = {"kind": "linear"}
WITHOUT_BIAS = {"kind": "linear", "bias": False}


def cautions(job: dict[str, Any]) -> list[Warned]:
    return of_data(prepare(parse(json.dumps(job)), device="cpu", data=Path("nowhere"), upload=None, scratch=None))


def at(path: str, job: dict[str, Any]) -> str:
    """The warning at a path, or nothing. All come from the data."""
    found = cautions(job)
    assert all(warned.source == "data" for warned in found)
    return "".join(warned.message for warned in found if warned.path == path)


@pytest.mark.parametrize("model", [LINEAR, WITHOUT_BIAS], ids=["bias", "no bias"])
@pytest.mark.parametrize("loss", ["squared_error", "half_squared_error"])
def test_lambda_max_of_squared_losses_is_where_scikit_learn_s_lasso_becomes_empty(model: dict[str, Any], loss: str) -> None:
    x, y = load_diabetes(return_X_y=True)
    centred = model is LINEAR
    expected = np.abs((x - x.mean(0) * centred).T @ (y - y.mean() * centred)).max() / len(y)
    for share, empty in ((0.999, False), (1.001, True)):
        assert (Lasso(alpha=expected * share, fit_intercept=centred, tol=1e-12, max_iter=100_000).fit(x, y).coef_ == 0).all() == empty
        lam = expected * share * (2 if loss == "squared_error" else 1)
        told = at("regularizers.0.lambda", spec({"kind": "diabetes"}, model, loss, sgd(0.1), {"kind": "l1", "lambda": lam}))
        assert ("all weights are zero" in told) == empty
        told = at("regularizers.0.lambda", spec({"kind": "diabetes"}, model, loss, sgd(0.1), {"kind": "elastic_net", "lambda": lam / 0.4, "l1_ratio": 0.4}))
        assert ("all weights are zero" in told) == empty


@pytest.mark.parametrize(("loss", "dataset", "rows"), [("binary", "breast_cancer", load_breast_cancer), ("cross_entropy", "iris", load_iris)])
def test_lambda_max_of_classes_is_where_scikit_learn_s_logistic_regression_becomes_empty(loss: str, dataset: str, rows: Any) -> None:
    x, y = rows(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    hot = np.eye(y.max() + 1)[y]
    expected = np.abs(x.T @ (hot - hot.mean(0))).max() / len(y)
    for share, empty in ((0.99, False), (1.01, True)):
        trained = LogisticRegression(C=1 / (expected * share * len(y)), l1_ratio=1, solver="saga", tol=1e-9, max_iter=100_000, random_state=0).fit(x, y)
        assert (np.abs(trained.coef_) < 1e-6).all() == empty
        job = spec({"kind": dataset, "standardize": True}, LINEAR, loss, sgd(0.1), {"kind": "l1", "lambda": expected * share})
        assert ("all weights are zero" in at("regularizers.0.lambda", job)) == empty


def test_smoothed_labels_pull_less() -> None:
    x, y = load_iris(return_X_y=True)
    hot = np.eye(3)[y]
    full = np.abs((x - x.mean(0)).T @ (hot - hot.mean(0))).max() / len(y)
    for lam, empty in ((0.69 * full, False), (0.71 * full, True)):
        job = spec({"kind": "iris"}, LINEAR, {"kind": "cross_entropy", "label_smoothing": 0.3}, sgd(0.01), {"kind": "l1", "lambda": lam})
        assert ("all weights are zero" in at("regularizers.0.lambda", job)) == empty


def test_the_zeros_come_about_in_training_and_a_sweep_says_how_many() -> None:
    job = spec(LINE, LINEAR, "half_squared_error", sgd(0.1, 0.9), {"kind": "l1", "lambda": {"values": [1, 6.9, 7, 8]}}, epochs=1000)
    done = run(job)
    (told,) = [warned for warned in done.started.warnings if "all weights" in warned.message]
    assert "λ_max = 7 in 2 of 4 runs" in told.message  # article 001: 0 from λ = 7
    assert [finished.zeros["head.weight"] for _, finished in sorted(done.runs.items())] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("optimizer", "bound"),
    [
        ({}, 2 / 11),
        ({"momentum": 0.9}, 2 * 1.9 / 11),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / (2.8 * 11)),
    ],
    ids=["plain", "heavy ball", "Nesterov"],
)
def test_above_the_stability_bound_training_diverges_and_below_it_does_not(optimizer: dict[str, Any], bound: float) -> None:
    """Without intercept L = Σx²/n = 11; article 001's 2/11 = 0.1818."""
    for share, unstable in ((0.98, False), (1.02, True)):
        job = spec(LINE, WITHOUT_BIAS, "half_squared_error", {"kind": "sgd", "lr": bound * share, **optimizer}, epochs=1000)
        assert (f"{bound:.4g}" in at("optimizer.lr", job)) == unstable
        loss = run({**job, "diagnostics": "off"}).curve("loss/train")
        assert (loss[-1] > 1e6) == unstable


@pytest.mark.parametrize(("model", "lam", "bound"), [(WITHOUT_BIAS, 1.0, 2 / 12), (LINEAR, 0.0, 2 / 11.830951894845299), (LINEAR, 1.0, 0.15671)])
def test_l2_and_intercept_lower_the_bound(model: dict[str, Any], lam: float, bound: float) -> None:
    """Article 001: with L2 the largest stable lr falls, 0.1818 → 0.1667 without intercept, 0.1690 → 0.1567 with it."""
    for share, unstable in ((0.999, False), (1.001, True)):
        job = spec(LINE, model, "half_squared_error", sgd(bound * share), {"kind": "l2", "lambda": lam})
        assert (f"{bound:.4g}" in at("optimizer.lr", job)) == unstable
        doubled = spec(LINE, model, "squared_error", sgd(bound * share / 2), {"kind": "l2", "lambda": 2 * lam})
        assert ("diverges" in at("optimizer.lr", doubled)) == unstable


def test_a_sweep_of_rates_says_how_many_are_beyond() -> None:
    job = spec(LINE, WITHOUT_BIAS, "half_squared_error", sgd({"values": [0.1, 0.2, 0.3]}), {"kind": "l2", "lambda": {"linear": [0, 1], "points": 50}})
    assert "100 of 150 runs" in at("optimizer.lr", job)
    states = run({**spec(LINE, WITHOUT_BIAS, "half_squared_error", sgd({"values": [0.1, 0.2, 0.3]}), epochs=4000), "diagnostics": "off"}).runs
    assert [states[index].state for index in range(3)] == [RunState.SUCCEEDED, RunState.FAILED, RunState.FAILED]


def test_where_the_curvature_is_not_known_nothing_is_said() -> None:
    fast = sgd(10.0)
    assert at("optimizer.lr", spec(LINE, LINEAR, "half_squared_error", fast, batch_size=2)) == ""
    assert at("optimizer.lr", spec(LINE, {"kind": "mlp", "hidden": [2]}, "half_squared_error", fast)) == ""
    assert at("optimizer.lr", spec({"kind": "iris", "standardize": True}, LINEAR, "cross_entropy", fast)) == ""
    assert at("optimizer.lr", spec(LINE, LINEAR, "half_squared_error", {"kind": "adam", "lr": 10.0})) == ""


@pytest.mark.parametrize("nesterov", [False, True])
def test_rows_of_zeros_have_no_curvature_and_no_bound(nesterov: bool) -> None:
    assert cautions(spec(inline(np.zeros((3, 2)), np.ones(3)), WITHOUT_BIAS, "squared_error", sgd(1e6, 0.5, nesterov=nesterov))) == []


def test_columns_of_very_different_size_are_seen_in_the_rows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=50)
    for factor, told in ((50, False), (500, True)):
        job = spec(inline(x * [1, factor, 1], y), LINEAR, "half_squared_error", sgd(1e-9))
        assert ("x1 has deviation" in at("dataset.standardize", job)) == told
    assert "mean 1e+03" in at("dataset.standardize", spec(inline(x + np.array([0, 0, 1000]), y), LINEAR, "half_squared_error", sgd(1e-9)))
    scaled = spec(inline(x * [1, 500, 1], y, standardize=True), LINEAR, "half_squared_error", sgd(1e-9))
    assert at("dataset.standardize", scaled) == ""
    constant = spec(inline(x * [1, 0, 1] + [0, 7, 0], y), LINEAR, "half_squared_error", sgd(1e-9))
    assert at("dataset.standardize", constant) == ""
    assert at("dataset.standardize", spec({"kind": "digits"}, LINEAR, "cross_entropy", sgd(0.1))) == ""


@pytest.mark.parametrize("kind", ["global_norm", "value"])
@pytest.mark.parametrize(("loss", "dataset"), [("binary", "breast_cancer"), ("cross_entropy", "iris")])
def test_a_clip_that_cannot_act_is_named_and_does_not_act(kind: str, loss: str, dataset: str) -> None:
    def job(limit: float, *regularizers: dict[str, Any]) -> dict[str, Any]:
        return spec({"kind": dataset, "standardize": True}, LINEAR, loss, sgd(0.5), *regularizers, clip={"kind": kind, "max": limit}, epochs=20, batch_size=1, diagnostics="light")

    told = at("clip.max", job(1000))
    assert "the clip never acts" in told
    bound = float(told.rpartition(" than ")[2])
    assert run(job(bound * 1.001)).curve("gradient/clipped").sum() == 0
    assert at("clip.max", job(bound * 0.9)) == ""
    assert at("clip.max", job(1000, {"kind": "l2", "lambda": 1.0})) == ""
