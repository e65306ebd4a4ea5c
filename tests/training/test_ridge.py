"""Ridge for every strength at once: against scikit-learn, against refits, and against reference values with their protocols."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge, RidgeCV
from sklearn.linear_model import Ridge as SklearnRidge

from worker.training import ridge
from worker.training.ridge import decomposed, held_out, lowest

X, Y = load_diabetes(return_X_y=True)
MACKAY = {"iterations": 16, "weight_precision": 1.1462293303115878e-05, "noise_precision": 0.0003410195056986496, "alpha": 0.03361184070580649, "gamma": 8.579288722928231}
"""BayesianRidge with all hyperpriors 0 on diabetes."""
STRENGTHS = np.geomspace(1e-4, 1e2, 7)


def of(x=X, y=Y, *, intercept=True):
    found = decomposed(torch.from_numpy(x), torch.from_numpy(y), intercept=intercept)
    assert found is not None
    return found


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("intercept", [True, False])
def test_weights_and_errors_are_those_of_a_fit(intercept):
    x = X + 0.01  # a mean that an intercept has to take up
    found = of(x, Y, intercept=intercept)
    for a in STRENGTHS:
        fit = SklearnRidge(alpha=a, fit_intercept=intercept, solver="svd").fit(x, Y)
        residual = Y - fit.predict(x)
        np.testing.assert_allclose(found.weights(tensor(a))[0], fit.coef_, rtol=1e-9)
        assert float(found.weights_squared(tensor(a))) == pytest.approx(float(fit.coef_ @ fit.coef_), rel=1e-9)
        assert float(found.squares(tensor(a))) == pytest.approx(float(residual @ residual), rel=1e-9)
        centred = x - x.mean(0) * intercept
        hat = np.trace(centred @ np.linalg.solve(centred.T @ centred + a * np.eye(10), centred.T))
        assert float(found.freedom(tensor(a))) == pytest.approx(hat, rel=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_is_that_of_refits_and_of_scikit_learn(intercept):
    x, y = X[:40], Y[:40]
    found = of(x, y, intercept=intercept)
    for a in (0.001, 0.1):
        errors = [float((y[i] - SklearnRidge(alpha=a, fit_intercept=intercept, solver="svd").fit(np.delete(x, i, 0), np.delete(y, i)).predict(x[i : i + 1]))[0]) for i in range(40)]
        assert float(ridge.leave_one_out(found, tensor(a))) == pytest.approx(np.square(errors).mean(), rel=1e-9)
    theirs = RidgeCV(alphas=STRENGTHS, fit_intercept=intercept, store_cv_results=True, gcv_mode="svd").fit(X, Y)
    np.testing.assert_allclose(ridge.leave_one_out(of(intercept=intercept), torch.from_numpy(STRENGTHS)), theirs.cv_results_.mean(0), rtol=1e-9)


def test_generalized_cross_validation_is_leave_one_out_with_the_mean_of_all_leverages():
    found = of()
    for a in STRENGTHS:
        centred = X - X.mean(0)
        hat = centred @ np.linalg.solve(centred.T @ centred + a * np.eye(10), centred.T) + 1 / 442
        residual = Y - hat @ Y
        assert float(ridge.generalized(found, tensor(a))) == pytest.approx(np.mean(residual**2) / (1 - np.trace(hat) / 442) ** 2, rel=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
def test_evidence_is_that_of_scikit_learn(intercept):
    """All hyperpriors 0. Its score is at its last precisions, ours at the fixed point, where the score is flat."""
    flat = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    theirs = BayesianRidge(tol=1e-12, max_iter=1000, compute_score=True, fit_intercept=intercept, **flat).fit(X, Y)
    found = of(intercept=intercept)
    best = lowest(found, lambda a: -ridge.log_evidence(found, a))
    assert best.a == pytest.approx(theirs.lambda_ / theirs.alpha_, rel=1e-6)
    assert -best.score == pytest.approx(theirs.scores_[-1], rel=1e-9)
    assert float(ridge.log_evidence_slope(found, tensor(best.a))) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.weights(tensor(best.a))[0], theirs.coef_, rtol=1e-5)


def test_evidence_is_the_density_of_the_targets():
    """ln N(y; 0, σ²(I + XXᵀ/A)) with the most likely σ², written out without an intercept."""
    found, a = of(X, Y - Y.mean(), intercept=False), 0.3
    y = Y - Y.mean()
    covariance = np.eye(442) + X @ X.T / a
    variance = y @ np.linalg.solve(covariance, y) / 442
    by_hand = -0.5 * (442 * np.log(2 * np.pi * variance) + np.linalg.slogdet(covariance)[1] + 442)
    assert float(ridge.log_evidence(found, tensor(a))) == pytest.approx(by_hand, rel=1e-10)


def test_slopes_are_those_of_finite_differences():
    found = of(X[:300], Y[:300])
    other = held_out(found, torch.from_numpy(X[300:]), torch.from_numpy(Y[300:]))
    h = 1e-5
    for a in STRENGTHS:
        ends = tensor(a * np.exp(h), a * np.exp(-h))
        for value, slope in ((other.loss, other.slope), (lambda s: ridge.log_evidence(found, s), lambda s: ridge.log_evidence_slope(found, s))):
            up, down = value(ends)
            assert float(slope(tensor(a))) == pytest.approx(float((up - down) / (2 * h)), rel=1e-4, abs=1e-5)


def test_held_out_loss_is_that_of_a_fit():
    found = of(X[:300], Y[:300])
    other = held_out(found, torch.from_numpy(X[300:]), torch.from_numpy(Y[300:]))
    for a in STRENGTHS:
        fit = SklearnRidge(alpha=a, solver="svd").fit(X[:300], Y[:300])
        assert float(other.loss(tensor(a))) == pytest.approx(np.square(Y[300:] - fit.predict(X[300:])).mean(), rel=1e-9)


def test_reference_values_of_diabetes():
    """In scikit-learn's alpha, the columns as they are: leave-one-out (hat matrix plus 1/n), GCV (df + 1), evidence (flat hyperpriors), first 300 rows against last 142."""
    found = of()
    assert lowest(found, lambda a: ridge.leave_one_out(found, a)).a == pytest.approx(0.004151, rel=2e-4)
    assert lowest(found, lambda a: ridge.generalized(found, a)).a == pytest.approx(0.007387, rel=2e-4)
    assert lowest(found, lambda a: -ridge.log_evidence(found, a)).a == pytest.approx(MACKAY["alpha"], rel=1e-6)
    train = of(X[:300], Y[:300])
    other = held_out(train, torch.from_numpy(X[300:]), torch.from_numpy(Y[300:]))
    best = lowest(train, other.loss)
    assert best.a == pytest.approx(0.1351470503, rel=1e-6)
    assert best.score == pytest.approx(2781.144, abs=5e-4)
    edge = lowest(train, lambda a: torch.where(a < 0.1, -other.loss(a), torch.inf))
    assert edge.a == pytest.approx(0.01145, rel=1e-3)  # the maximum below which descent runs towards 0


def test_mackays_iteration_ends_at_the_fixed_point_from_everywhere():
    found, want = of(), MACKAY
    a = tensor(1e-3, 1.0, 30.0, 6000.0)
    for _ in range(int(want["iterations"])):
        a = ridge.mackay(found, a)
    np.testing.assert_allclose(a, want["alpha"], rtol=1e-9)
    assert float(found.freedom(a)[0]) == pytest.approx(want["gamma"], rel=1e-9)
    assert float(found.freedom(a)[0] / found.weights_squared(a)[0]) == pytest.approx(want["weight_precision"], rel=1e-9)
    assert float((442 - found.freedom(a)[0]) / found.squares(a)[0]) == pytest.approx(want["noise_precision"], rel=1e-9)


def test_minima_at_the_ends_are_said_to_be_there():
    draw = np.random.default_rng(0)
    x = draw.standard_normal((30, 3))
    exact = of(x, x @ [1.0, -2.0, 3.0] + 5)
    assert lowest(exact, lambda a: ridge.leave_one_out(exact, a)).a == 0
    noise = np.linalg.qr(np.column_stack([np.ones(30), x, draw.standard_normal(30)]))[0][:, -1]
    nothing = of(x, noise)  # orthogonal to all columns: every weight is 0 already, and leaves no noise
    assert lowest(nothing, lambda a: ridge.generalized(nothing, a)).a == float("inf")


def test_columns_that_repeat_each_other_count_once_and_constant_ones_not_at_all():
    x = np.column_stack([X[:, :2], X[:, 0] + X[:, 1], np.ones(442)])
    found = of(x, Y)
    assert len(found.s) == 2
    np.testing.assert_allclose(found.weights(tensor(0.5))[0], SklearnRidge(alpha=0.5, solver="svd").fit(x, Y).coef_, rtol=1e-9, atol=1e-9)
    assert decomposed(torch.ones(5, 2), torch.arange(5.0), intercept=True) is None


def test_more_columns_than_rows():
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((12, 40)), draw.standard_normal(12)
    found = of(x, y)
    theirs = RidgeCV(alphas=[0.1, 1.0, 10.0], store_cv_results=True).fit(x, y)
    np.testing.assert_allclose(ridge.leave_one_out(found, tensor(0.1, 1.0, 10.0)), theirs.cv_results_.mean(0), rtol=1e-8)
    assert torch.isinf(ridge.leave_one_out(found, tensor(0.0))).all()
    assert torch.isinf(ridge.generalized(found, tensor(0.0))).all()
