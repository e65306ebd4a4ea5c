"""Strengths chosen by cross-validation as scikit-learn chooses them, on the same folds, with every fold solved to its minimum.

λ is per row, so a fold of m rows has scikit-learn's alpha = λm (C = 1/(λm)) where scikit-learn's objective is a sum, and alpha = λ where it is a mean.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LassoCV, LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import KFold
from training_jobs import Outcome, inline, run, spec

X, Y = load_diabetes(return_X_y=True)
N = len(X)
LBFGS = {"kind": "lbfgs"}
RULES = ("best", "one_standard_error")


def table_of(found: Outcome) -> np.ndarray:
    """Mean and standard error of every λ.  (n, 2)"""
    return np.array([(score["mean"], score["standard_error"]) for score in found.finished.result["selection"]["table"]])


def chosen(found: Outcome) -> dict[str, float]:
    """λ of each rule."""
    selection = found.finished.result["selection"]
    return {rule: selection["table"][selection[rule]]["values"]["regularizers.0.lambda"] for rule in RULES}


def by_hand(errors: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """Mean and standard error of rising strengths, and the two choices.  errors: (strengths, folds)"""
    mean, error = errors.mean(1), errors.std(1, ddof=1) / math.sqrt(errors.shape[1])
    best = int(mean.argmin())
    return np.stack([mean, error], 1), {"best": strengths[best], "one_standard_error": strengths[mean <= mean[best] + error[best]].max()}


def folded(dataset: dict[str, Any], loss: str, optimizer: dict[str, Any], penalty: str, strengths: np.ndarray, *, folds: int, steps: int) -> Outcome:
    """As one job, the folds as they stand."""
    regularizer = {"kind": penalty, "lambda": {"values": strengths.tolist()}}
    return run(spec(dataset, {"kind": "linear"}, loss, optimizer, regularizer, epochs=steps, diagnostics="off", selection={"folds": folds, "shuffle": False}))


# ---------------------------------------------------------------- ridge

ALPHAS = np.logspace(-2, 0.5, 51)


@cache
def ridge_errors(per_row: bool) -> np.ndarray:
    """Mean squared error of scikit-learn's Ridge on each of ten folds, alpha the same in all, or the same per row.  (51, 10)"""
    found = np.empty((len(ALPHAS), 10))
    for fold, (train, val) in enumerate(KFold(10).split(X)):
        for place, alpha in enumerate(ALPHAS * len(train) / N if per_row else ALPHAS):
            found[place, fold] = np.square(Ridge(alpha=alpha).fit(X[train], Y[train]).predict(X[val]) - Y[val]).mean()
    return found


def test_ridge_on_diabetes_with_the_same_lambda_per_row_in_every_fold():
    """alpha = λn at the minimum is 0.0501, one standard error from it 0.708. Columns are multiplied with √n, which divides λ by n: here λ is alpha itself."""
    found = folded(inline(X * math.sqrt(N), Y), "half_squared_error", LBFGS, "l2", ALPHAS, folds=10, steps=35)
    table, choice = by_hand(ridge_errors(True), ALPHAS)
    assert table_of(found) * 2 == pytest.approx(table, rel=1e-7)
    assert chosen(found) == pytest.approx(choice, rel=1e-12)
    assert choice == pytest.approx({"best": 0.05011872, "one_standard_error": 0.70794578}, rel=1e-7)


def test_ridge_with_the_same_alpha_in_every_fold_is_another_protocol():
    """scikit-learn's: there the penalty weighs 442/398 times more in a fold than it will on all rows. Its 0.0447 and 0.631 are one place of the grid lower."""
    table, choice = by_hand(ridge_errors(False), ALPHAS)
    assert choice == pytest.approx({"best": 0.04466835921509635, "one_standard_error": 0.6309573444801936}, rel=1e-12)
    assert table[choice["best"] == ALPHAS][0] == pytest.approx([2997.1850412296453, 214.37181373980792], rel=1e-9)
    assert RidgeCV(ALPHAS, cv=KFold(10), scoring="neg_mean_squared_error").fit(X, Y).alpha_ == choice["best"]
    per_row = by_hand(ridge_errors(True), ALPHAS)[1]
    for rule, alpha in choice.items():
        assert per_row[rule] == pytest.approx(alpha * 10**0.05, rel=1e-9)
        assert per_row[rule] * 398 / N == pytest.approx(alpha, rel=0.02)  # what a fold has of it is theirs


# ---------------------------------------------------------------- lasso

STANDARD = (X - X.mean(0)) / X.std(0)


def test_the_lasso_of_lasso_cv():
    """scikit-learn's objective is a mean, SSE/2m + alpha‖w‖₁: λ is its alpha, in every fold."""
    alphas = np.logspace(-1.5, 1.5, 31)
    theirs = LassoCV(alphas=alphas, cv=KFold(5), tol=1e-12, max_iter=100_000).fit(STANDARD, Y)
    found = folded(inline(STANDARD, Y), "half_squared_error", {"kind": "proximal"}, "l1", alphas, folds=5, steps=250)
    table, choice = by_hand(theirs.mse_path_[::-1], alphas)
    assert table_of(found) * 2 == pytest.approx(table, rel=1e-5)
    assert chosen(found) == pytest.approx(choice, rel=1e-12)
    assert choice["best"] == pytest.approx(theirs.alpha_, rel=1e-12)
    refit = found.runs[found.finished.result["chosen_run"]]
    assert refit.coefficients is not None
    assert np.linalg.norm(np.array(refit.coefficients["weights"]) - theirs.coef_) < 1e-6 * np.linalg.norm(theirs.coef_)
    assert [w == 0 for w in refit.coefficients["weights"]] == (theirs.coef_ == 0).tolist()


# ---------------------------------------------------------------- logistic regression


def logistic_errors(strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss and accuracy of scikit-learn's LogisticRegression on each of five folds, standardized inside the fold.  (strengths, 5) each"""
    x, y = load_breast_cancer(return_X_y=True)
    losses, hits = np.empty((len(strengths), 5)), np.empty((len(strengths), 5))
    for fold, (train, val) in enumerate(KFold(5).split(x)):
        mean, scale = x[train].mean(0), x[train].std(0)
        for place, lam in enumerate(strengths):
            model = LogisticRegression(C=1 / (lam * len(train)), tol=1e-9, max_iter=10_000).fit((x[train] - mean) / scale, y[train])
            margin = model.decision_function((x[val] - mean) / scale)
            losses[place, fold] = np.logaddexp(0, -(2 * y[val] - 1) * margin).mean()
            hits[place, fold] = ((margin > 0) == y[val]).mean()
    return losses, hits


@cache
def cancer() -> tuple[np.ndarray, np.ndarray]:
    """The columns of breast_cancer, standardized once, and the diagnosis as a quantity, 0.5 or 1.5."""
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y + 0.5


def test_the_lasso_of_lasso_cv_on_breast_cancer():
    """Both rules, and every score; the one-standard-error choice leaves fewer features than the best."""
    x, y = cancer()
    strengths = np.geomspace(2e-3, 0.2, 8)
    theirs = LassoCV(alphas=strengths, cv=KFold(5), tol=1e-10, max_iter=1_000_000).fit(x, y)
    table, choice = by_hand(theirs.mse_path_[::-1] / 2, strengths)
    found = folded(inline(x, y), "half_squared_error", {"kind": "proximal", "tolerance": 1e-11}, "l1", strengths, folds=5, steps=20_000)
    assert table_of(found) == pytest.approx(table, rel=1e-6)
    assert chosen(found) == pytest.approx(choice, rel=1e-12)
    assert choice["best"] == pytest.approx(theirs.alpha_)
    assert choice["one_standard_error"] > choice["best"]


def test_the_ridge_of_ridge_cv_on_breast_cancer():
    """λ per row against a loop around Ridge; RidgeCV, whose alpha is the same for folds of 455 and 456 rows, has the same choices at this grid."""
    x, y = cancer()
    strengths = np.geomspace(1e-2, 10, 7)
    errors = np.empty((len(strengths), 5))
    for fold, (train, val) in enumerate(KFold(5).split(x)):
        for place, lam in enumerate(strengths):
            errors[place, fold] = np.square(Ridge(alpha=lam * len(train)).fit(x[train], y[train]).predict(x[val]) - y[val]).mean() / 2
    table, choice = by_hand(errors, strengths)
    found = folded(inline(x, y), "half_squared_error", {"kind": "lbfgs", "tolerance": 1e-14}, "l2", strengths, folds=5, steps=300)
    assert table_of(found) == pytest.approx(table, rel=1e-6)
    assert chosen(found) == pytest.approx(choice, rel=1e-12)
    theirs = RidgeCV(alphas=strengths * len(x) * 4 / 5, cv=KFold(5), scoring="neg_mean_squared_error").fit(x, y)
    assert choice["best"] == pytest.approx(theirs.alpha_ / (len(x) * 4 / 5))
    assert choice["one_standard_error"] > choice["best"]


def test_logistic_regression_on_breast_cancer():
    strengths = np.logspace(-4, 0, 13)
    losses, hits = logistic_errors(strengths)
    found = folded({"kind": "breast_cancer", "standardize": True}, "binary", LBFGS, "l2", strengths, folds=5, steps=150)
    table, choice = by_hand(losses, strengths)
    assert table_of(found) == pytest.approx(table, rel=1e-5)
    assert chosen(found) == pytest.approx(choice, rel=1e-12)
    accuracy = np.array([[found.runs[run].metrics["accuracy/val"] for run in score["runs"]] for score in found.finished.result["selection"]["table"]])
    assert accuracy == pytest.approx(hits, rel=1e-14)
