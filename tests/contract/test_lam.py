"""Every row of the table of conventions, proved where it counts: the strength that it names has the same minimum.

For each convention the test writes down that tool's own objective, and looks whether its gradient vanishes where scikit-learn (or
ours, where scikit-learn is asked) has found the minimum: nothing of the table's arithmetic is used.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from torch import Tensor
from torch.nn import functional as F

from regtrain.contract.checks import counts
from regtrain.contract.datasets import BUNDLED
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import parse
from regtrain.contract.lam import CONVENTIONS, Converted, Loss, Question, convert, of_result

REFERENCE = json.loads((Path(__file__).parent.parent / "reference" / "lambda.json").read_text())
RATIO = 0.3


def standardized(x: Any) -> Any:
    return (x - x.mean(0)) / x.std(0)


X = standardized(load_diabetes().data)
Y = load_diabetes().target - load_diabetes().target.mean()
N, DEVIATION = len(Y), float(Y.std())
Parts = tuple[Tensor, float]
"""The smooth part of an objective, and what multiplies Σ|w| in it."""


def parts(value: float, ratio: float | None, penalty: str, w: Tensor, *, half: bool = True) -> Parts:
    """value·(share·Σ|w| + (1 − share)·½Σw²), or with Σw² unhalved."""
    share = {"l1": 1.0, "l2": 0.0}.get(penalty, ratio)
    assert share is not None
    return value * (1 - share) * w.square().sum() * (0.5 if half else 1.0), value * share


def squared(convention: str, value: float, ratio: float | None, penalty: str) -> Callable[[Tensor], Parts]:
    """Each tool's objective as its documentation has it."""
    x, y = torch.tensor(X), torch.tensor(Y)

    def objective(w: Tensor) -> Parts:
        error = x @ w - y
        smooth, kink = parts(value, ratio, penalty, w)
        match convention:
            case "regtrain_squared_error":
                return error.square().mean() + smooth, kink
            case "torch":
                return F.mse_loss(x @ w, y) + smooth, kink
            case "keras":
                return error.square().mean() + parts(value, ratio, penalty, w, half=False)[0], kink
            case "regtrain_half_squared_error" | "sklearn_lasso" | "sklearn_elastic_net" | "article_004":
                return error.square().sum() / (2 * N) + smooth, kink
            case "sklearn_ridge":
                return error.square().sum() + value * w.square().sum(), 0.0
            case "article_003":
                return error.square().sum() / (2 * N) + value / (2 * N) * w.square().sum(), 0.0
            case "glmnet":  # the targets are divided by s, λ too; the coefficients are multiplied by s again
                scaled = w / DEVIATION
                smooth, kink = parts(value / DEVIATION, ratio, penalty, scaled)
                return (x @ scaled - y / DEVIATION).square().sum() / (2 * N) + smooth, kink / DEVIATION
        raise AssertionError(convention)

    return objective


def residual(objective: Callable[[Tensor], Parts], at: Any) -> float:
    """How far the minimum of an objective is from a point: the largest violation of its optimality, over the size of its gradient at 0."""
    w = torch.tensor(at, requires_grad=True)
    smooth, kink = objective(w)
    (gradient,) = torch.autograd.grad(smooth, w)
    zero = torch.zeros_like(w, requires_grad=True)
    (size,) = torch.autograd.grad(objective(zero)[0], zero)
    off = torch.where(w.detach() == 0, (gradient.abs() - kink).clamp(min=0), (gradient + kink * w.detach().sign()).abs())
    return float(off.max() / size.abs().max())


def minimum(penalty: str, alpha: float) -> Any:
    """scikit-learn's minimum under ElasticNet's alpha."""
    match penalty:
        case "l2":
            return Ridge(alpha=alpha * N, fit_intercept=False, tol=1e-14).fit(X, Y).coef_
        case "l1":
            return Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(X, Y).coef_
        case _:
            return ElasticNet(alpha=alpha, l1_ratio=RATIO, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(X, Y).coef_


def asked(convention: str, strength: float, loss: Loss, penalty: str = "l2", **more: Any) -> dict[str, Converted]:
    question = Question.model_validate({"convention": convention, "strength": strength, "loss": loss, "penalty": penalty, **{"rows": N, **more}})
    return {one.convention: one for one in convert(question)}


@pytest.mark.parametrize("loss", ["squared_error", "half_squared_error"])
@pytest.mark.parametrize("penalty", ["l1", "l2", "elastic_net"])
def test_every_squared_convention_has_its_minimum_where_scikit_learn_has(loss: Loss, penalty: str) -> None:
    alpha, ratio = 0.9, RATIO if penalty == "elastic_net" else None
    found = asked(
        {"l2": "sklearn_ridge", "l1": "sklearn_lasso"}.get(penalty, "sklearn_elastic_net"),
        alpha * (N if penalty == "l2" else 1),
        loss,
        penalty,
        l1_ratio=ratio,
        target_deviation=DEVIATION,
    )
    expected = {c.name for c in CONVENTIONS if loss in c.losses and (c.ratio if penalty == "elastic_net" else getattr(c, penalty))}
    assert set(found) == expected
    w = minimum(penalty, alpha)
    assert (w == 0).any() == (penalty == "l1")
    for name, one in found.items():
        assert one.value is not None
        objective = squared(name, one.value, one.l1_ratio, penalty)
        assert residual(objective, w) < 1e-9, (name, one)
        assert residual(squared(name, one.value * 1.001, one.l1_ratio, penalty), w) > 1e-7, f"the measure cannot see a wrong strength of {name}"


@pytest.mark.parametrize("penalty", ["l1", "l2", "elastic_net"])
@pytest.mark.parametrize(("loss", "classes"), [("binary", 2), ("cross_entropy", 2), ("cross_entropy", 3)])
def test_every_convention_of_classes_has_its_minimum_where_scikit_learn_has(loss: Loss, classes: int, penalty: str) -> None:
    data = load_iris() if classes == 3 else load_breast_cancer()
    x, y = standardized(data.data)[:, :4], data.target
    ratio = RATIO if penalty == "elastic_net" else None
    found = asked("sklearn_logistic", 0.05, loss, penalty, rows=len(y), classes=classes, l1_ratio=ratio)
    share = {"l1": 1.0, "l2": 0.0}.get(penalty, RATIO)
    trained = LogisticRegression(C=0.05, l1_ratio=share, fit_intercept=False, solver="lbfgs" if penalty == "l2" else "saga", tol=1e-10, max_iter=200_000, random_state=0).fit(x, y)
    w = trained.coef_ if loss == "binary" or classes > 2 else np.concatenate([-trained.coef_, trained.coef_]) / 2
    rows, labels = torch.tensor(x), torch.tensor(y)

    def objective(name: str, value: float, share: float | None) -> Callable[[Tensor], Parts]:
        def parted(w: Tensor) -> Parts:
            outputs = rows @ w.T
            mean = F.softplus(-(2 * labels - 1) * outputs[:, 0]).mean() if loss == "binary" else F.cross_entropy(outputs, labels)
            if name == "sklearn_logistic":  # Ω + C·Σ loss; the share and C are its own, of one vector where there are two classes
                one = w if len(w) != 2 else w[1:] - w[:1]
                smooth, kink = parts(1.0, share, penalty, one)
                return smooth + value * len(y) * mean, kink
            smooth, kink = parts(value, share, penalty, w, half=name != "keras")
            return (mean + value / (2 * len(y)) * w.square().sum(), 0.0) if name == "article_003" else (mean + smooth, kink)

        return parted

    assert {f"regtrain_{loss}", "sklearn_logistic", "glmnet"} <= set(found)
    assert (found["sklearn_logistic"].value, found["sklearn_logistic"].l1_ratio) == (pytest.approx(0.05), pytest.approx(ratio) if ratio else None)
    for name, one in found.items():
        assert one.value is not None
        if name == "sklearn_logistic" and w.shape[0] == 2:
            continue  # its own objective is of another vector; it gave w
        assert residual(objective(name, one.value, one.l1_ratio), w) < 2e-6, (name, one)
        assert residual(objective(name, one.value * 1.01, one.l1_ratio), w) > 1e-4, f"the measure cannot see a wrong strength of {name}"


def test_torch_s_own_optimizer_stands_still_at_the_minimum() -> None:
    """weight_decay as torch.optim.SGD applies it, not as an objective describes it."""
    w = torch.tensor(minimum("l2", 0.9), requires_grad=True)
    decay = asked("sklearn_ridge", 0.9 * N, "squared_error")["torch"].value
    assert decay is not None
    optimizer = torch.optim.SGD([w], lr=0.1, weight_decay=decay)
    before = w.detach().clone()
    F.mse_loss(torch.tensor(X) @ w, torch.tensor(Y)).backward()
    optimizer.step()
    assert float((w.detach() - before).abs().max() / before.abs().max()) < 1e-13


def test_the_equivalents_of_ridge_1_and_c_1() -> None:
    n = REFERENCE["rows"]
    found = asked("sklearn_ridge", 1.0, "half_squared_error", rows=n, target_deviation=1.0)
    for name, expected in REFERENCE["at sklearn Ridge(1)"].items():
        value = found[name].value
        assert value is not None
        assert (value * n if "strength · n" in expected else value) == pytest.approx(expected.get("strength · n", expected.get("strength")), rel=1e-15)
    value = asked("sklearn_logistic", 1.0, "binary", rows=n)["torch"].value
    assert value is not None
    assert value * n == pytest.approx(REFERENCE["at sklearn LogisticRegression(C=1)"]["torch"]["strength · n"])


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("penalty", ["l1", "l2", "elastic_net"])
def test_there_and_back_is_the_same_number(loss: Loss, penalty: str) -> None:
    more: dict[str, Any] = {"target_deviation": 3.0, "l1_ratio": RATIO if penalty == "elastic_net" else None, "classes": 2 if loss in ("binary", "cross_entropy") else None}
    there = asked("regtrain", 0.37, loss, penalty, **more)
    for name, one in there.items():
        assert one.value is not None
        back = asked(name, one.value, loss, penalty, **{**more, "l1_ratio": one.l1_ratio})[f"regtrain_{loss}"]
        assert back.value == pytest.approx(0.37, rel=1e-14)
        assert back.l1_ratio == (pytest.approx(RATIO, rel=1e-14) if penalty == "elastic_net" else None)


def test_the_table_of_the_documentation() -> None:
    """A of ‖y − Xw‖² + A‖w‖² is Ridge's alpha: the rows of the table, as formulas."""
    formulas = {name: one.formula for name, one in asked("regtrain", 1.0, "half_squared_error").items()}
    assert formulas == {
        "regtrain_squared_error": "lambda = 2·λ",
        "regtrain_half_squared_error": "lambda = λ",
        "sklearn_ridge": "alpha = n·λ",
        "sklearn_elastic_net": "alpha = λ",
        "article_003": "lambda = n·λ",
        "article_004": "lambda = λ",
        "glmnet": "lambda = s·λ",
        "torch": "weight_decay = 2·λ",
        "keras": "l2 = λ",
    }
    assert asked("regtrain", 1.0, "squared_error")["sklearn_ridge"].formula == "alpha = n·λ/2"
    assert asked("regtrain", 1.0, "cross_entropy")["sklearn_logistic"].formula == "C = 1/(n·λ)"
    assert asked("regtrain", 1.0, "cross_entropy", classes=2)["sklearn_logistic"].formula == "C = 2/(n·λ)"


def test_what_is_not_known_or_infinite_is_none() -> None:
    assert asked("regtrain", 1.0, "half_squared_error")["glmnet"].value is None
    assert asked("regtrain", 1.0, "half_squared_error", "l1")["glmnet"].value == 1.0
    assert asked("regtrain", 0.0, "binary")["sklearn_logistic"].value is None
    assert asked("regtrain", 1e308, "half_squared_error")["sklearn_ridge"].value is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"convention": "sklearn_lasso"}, "convention"),
        ({"convention": "nobody"}, "convention"),
        ({"convention": "regtrain_binary"}, "convention"),
        ({"convention": "glmnet"}, "target_deviation"),
        ({"penalty": "elastic_net", "convention": "regtrain"}, "l1_ratio"),
        ({"l1_ratio": 0.5}, "l1_ratio"),
        ({"classes": 3}, "classes"),
        ({"loss": "binary", "convention": "regtrain", "classes": 3}, "classes"),
        ({"loss": "binary", "convention": "sklearn_logistic", "strength": 0.0}, "strength"),
    ],
)
def test_what_cannot_be_converted_is_refused(change: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecRefused) as refused:
        asked(**{"convention": "sklearn_ridge", "strength": 1.0, "loss": "half_squared_error", **change})
    assert [problem.path for problem in refused.value.problems] == [path]
    assert all(problem.hint for problem in refused.value.problems)


def test_a_job_s_own_strengths() -> None:
    spec = parse(
        json.dumps(
            {
                "dataset": {"kind": "diabetes", "test": 0.2},
                "model": {"kind": "linear"},
                "loss": {"kind": "half_squared_error"},
                "regularizers": [
                    {"kind": "l2", "lambda": {"values": [0.1, 1]}},
                    {"kind": "elastic_net", "lambda": 0.2, "l1_ratio": {"values": [0.5, 1]}},
                    {"kind": "weight_decay", "lambda": 0.3},
                    {"kind": "dropout", "rate": 0.1, "on": "inputs"},
                ],
                "optimizer": {"kind": "sgd", "lr": 0.1},
            }
        )
    )
    facts = BUNDLED["diabetes"]
    found = of_result(spec, facts, {"regularizers.0.lambda": 1.0, "regularizers.1.l1_ratio": 0.5})
    assert list(found) == ["regularizers.0.lambda", "regularizers.1.lambda", "regularizers.2.lambda"]
    ridge = {one.convention: one.value for one in found["regularizers.0.lambda"]}
    assert ridge["sklearn_ridge"] == counts(spec.dataset, facts, seed=spec.seed).train == 354
    net = {one.convention: one for one in found["regularizers.1.lambda"]}["sklearn_elastic_net"]
    assert (net.value, net.l1_ratio) == (0.2, 0.5)
    with_momentum = spec.model_copy(update={"optimizer": spec.optimizer.model_copy(update={"momentum": 0.9})})
    assert list(of_result(with_momentum, facts, {"regularizers.0.lambda": 1.0, "regularizers.1.l1_ratio": 0.5})) == ["regularizers.0.lambda", "regularizers.1.lambda"]
