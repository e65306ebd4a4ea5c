"""What the articles describe, and the numbers that must come out: closed forms in tests/reference/articles.json."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, inline, reference, run, sgd, spec, torch_order

REFERENCE = reference("articles")


def line(found: Outcome, r: int = 0) -> tuple[float, float]:
    """Slope and intercept."""
    coefficients = found.runs[r].coefficients
    assert coefficients is not None
    return coefficients["weights"][0], coefficients["intercept"]


# ---------------------------------------------------------------- 001: five points, L1, L2 and the learning rate

FIVE = inline([[1], [2], [3], [4], [5]], [2, 4, 7, 11, 16])


def five(*regularizers: dict[str, Any], loss: str = "half_squared_error", epochs: int = 1500, optimizer: Any = None, bias: bool = True) -> Outcome:
    return run(spec(FIVE, {"kind": "linear", "bias": bias}, loss, optimizer or sgd(0.1, 0.5), *regularizers, epochs=epochs, diagnostics="off"))


def test_001_least_squares_is_three_and_a_half_x_minus_two_and_a_half():
    assert line(five()) == pytest.approx(REFERENCE["article001"]["ols"], rel=1e-12)


def test_001_l1_gives_seven_minus_lambda_over_two_and_exactly_zero_from_seven_on():
    """Sxx/m = 2, Sxy/m = 7: w = max(0, 7 − λ)/2, b = 8 − 3w. At λ = 7 itself zero is the limit and the last bit decides:
    with momentum 0.9 the intercept swings past 8, and w is inside its threshold when it comes to rest."""
    strengths = [0.0, 0.5, 1.0, 3.0, 6.9, 7.0, 8.0, 100.0]
    found = five({"kind": "l1", "lambda": {"values": strengths}}, optimizer=sgd(0.1, 0.9))
    assert five({"kind": "l1", "lambda": 7 * (1 + 1e-9)}).runs[0].zeros["head.weight"] == 1
    for r, lam in enumerate(strengths):
        w = max(0.0, 7 - lam) / 2
        assert line(found, r) == pytest.approx((w, 8 - 3 * w), rel=1e-11)
        assert found.runs[r].zeros["head.weight"] == (lam >= 7)
        assert (line(found, r)[0] == 0.0) == (lam >= 7)
    assert line(found, 2) == pytest.approx(REFERENCE["article001"]["lasso(1/2m SSE+lam|w|) lam=1"], rel=1e-11)
    assert line(found, 5) == pytest.approx(REFERENCE["article001"]["lasso lam=7"], rel=1e-11)


def test_001_l2_in_the_three_conventions():
    """λ/2m: w = 35/(10 + λ); λ/2 outside the mean: 7/(2 + λ); Ludwig's and Keras' mean SSE + λw²: 7/(2 + λ) too."""
    strengths = [0.0, 1.0, 2.0, 10.0, 90.0]
    over_m = five({"kind": "l2", "lambda": {"values": [lam / 5 for lam in strengths]}}, optimizer=sgd(0.05, 0.9), epochs=1500)
    for r, lam in enumerate(strengths):
        assert line(over_m, r)[0] == pytest.approx(35 / (10 + lam), rel=1e-11)
    assert line(over_m, 1) == pytest.approx(REFERENCE["article001"]["ridge 1/2m+lam/2m w2 lam=1"], rel=1e-11)
    assert line(five({"kind": "l2", "lambda": 1})) == pytest.approx(REFERENCE["article001"]["ridge 1/2m+lam/2 w2 lam=1"], rel=1e-11)
    keras = five({"kind": "l2", "lambda": 2}, loss="squared_error", optimizer=sgd(0.05, 0.5))
    assert line(keras)[0] == pytest.approx(REFERENCE["article001"]["ludwig/keras mean SSE + lam*w2, lam=1"][0], rel=1e-11)


@pytest.mark.parametrize(("bias", "lam", "bound"), [(False, 0, 0.1818), (False, 1, 0.1667), (True, 0, 0.1690), (True, 1, 0.1567)])
def test_001_l2_lowers_the_largest_stable_learning_rate(bias, lam, bound):
    """2/λ_max of the Hessian: Σx²/m = 11 and 12, with intercept [[11 + λ, 3], [3, 1]]."""
    hessian = np.array([[11.0 + lam, 3.0], [3.0, 1.0]]) if bias else np.array([[11.0 + lam]])
    exact = 2 / np.linalg.eigvalsh(hessian).max()
    assert exact == pytest.approx(bound, abs=5e-5)
    for factor, stable in ((1 - 1e-3, True), (1 + 1e-3, False)):
        found = five({"kind": "l2", "lambda": lam}, optimizer=sgd(exact * factor), epochs=2000, bias=bias)
        objective = found.curve("objective/train")
        assert (objective[-1] < objective[0]) == stable
        assert (abs(objective[-1] - objective[-2]) < 1e-3) == stable


def test_001_reference_bounds_are_those_of_the_closed_form():
    of = REFERENCE["stability"]
    assert pytest.approx(of["lr without intercept, lambda 0 and 1"], rel=1e-15) == [2 / 11, 2 / 12]
    assert [11, np.linalg.eigvalsh(np.array([[11.0, 3.0], [3.0, 1.0]])).max()] == pytest.approx(of["L without, with intercept"], rel=1e-15)


def test_001_l2_does_not_cure_an_explosion_that_it_causes():
    """lr = 0.17 without intercept: stable at λ = 0, explodes at λ = 1."""
    found = five({"kind": "l2", "lambda": {"values": [0, 1]}}, optimizer=sgd(0.17), epochs=1000, bias=False)
    assert found.curve("loss/train", 0)[-1] < found.curve("loss/train", 0)[0]
    assert found.curve("loss/train", 1)[-1] > 1e6 * found.curve("loss/train", 1)[0]


# ---------------------------------------------------------------- 003: a hundred points around 2x + 1


def hundred() -> dict[str, Any]:
    draw = np.random.RandomState(0)  # the article's own numbers
    x = draw.randn(100, 1)
    return inline(x, (2 * x + 1 + draw.randn(100, 1) * 0.5)[:, 0])


def test_003_converges_to_its_closed_forms():
    """λ/2m with λ = 0.01 is 1e-4 here; the intercept is not penalised."""
    without, with_intercept = (
        run(spec(hundred(), {"kind": "linear", "bias": bias}, "half_squared_error", sgd(0.5), {"kind": "l2", "lambda": 1e-4}, epochs=400, diagnostics="off"))
        for bias in (False, True)
    )
    assert line(without)[0] == pytest.approx(REFERENCE["article003"]["closed_no_bias"], rel=1e-13)
    assert line(with_intercept) == pytest.approx(REFERENCE["article003"]["closed_with_bias"], rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "lam", "name"), [("half_squared_error", 1e-4, "correct grad of stated J (1/m) 1000 it"), ("squared_error", 2e-4, "article_code_with_m_fixed(2/m) 1000 it")]
)
def test_003_after_a_thousand_iterations_from_its_own_start(loss, lam, name):
    """The 1/m gradient of the stated objective is 8.8e-5 away after 1000 iterations; the article's code has twice the gradient."""
    start = REFERENCE["article003"]["theta0"]
    drawn = {"kind": "linear", "bias": False, "init": {"kind": "uniform", "bound": 1.0}}
    first = run(spec(hundred(), drawn, loss, sgd(FROZEN), seed=1)).weights["head.weight"].item()
    assert first < 0, "choose a seed whose draw has the sign of the article's start"
    model = {**drawn, "init": {"kind": "uniform", "bound": 1.0, "scale": start / first}}
    found = run(spec(hundred(), model, loss, sgd(0.01), {"kind": "l2", "lambda": lam}, epochs=1000, seed=1, diagnostics="off"))
    assert line(found)[0] == pytest.approx(REFERENCE["article003"][name], rel=1e-12)
    if loss == "half_squared_error":
        assert abs(line(found)[0] - REFERENCE["article003"]["closed_no_bias"]) == pytest.approx(8.8e-5, abs=1e-6)


def test_003_a_grid_over_lambda_gives_the_closed_form_at_each():
    rows = hundred()
    x, y = np.array(rows["x"])[:, 0], np.array(rows["y"])
    found = run(
        spec(rows, {"kind": "linear", "bias": False}, "half_squared_error", sgd(0.3), {"kind": "l2", "lambda": {"log": [1e-4, 1.0], "points": 9}}, epochs=300, diagnostics="off")
    )
    for r, lam in enumerate(np.geomspace(1e-4, 1, 9)):
        assert line(found, r)[0] == pytest.approx(x @ y / (x @ x + 100 * lam), rel=1e-12)


# ---------------------------------------------------------------- 000: the step penalty

TEN = np.random.default_rng(1).standard_normal((30, 10))
ONE = TEN @ np.arange(10) / 5
NESTEROV = sgd(0.01, 0.9, nesterov=True)


def ten(*regularizers: dict[str, Any], steps: int = 1, optimizer: Any = NESTEROV) -> torch.Tensor:
    return run(spec(inline(TEN, ONE), {"kind": "linear", "init": {"kind": "torch"}}, "squared_error", optimizer, *regularizers, epochs=steps)).flat()


def test_000_unsquared_step_penalty_moves_by_what_the_direction_has_beyond_alpha():
    """The first Nesterov direction is (1 + μ)g; Δ = −η·max(0, 1 − α/‖d‖)·d."""
    start, plain = ten(optimizer=sgd(FROZEN)), ten()
    direction = (start - plain) / 0.01
    size = direction.norm().item()
    for alpha in (0.1 * size, 0.5 * size, 2.0 * size):
        moved = start - ten({"kind": "step_penalty", "lambda": alpha})
        assert torch.allclose(moved, 0.01 * max(0.0, 1 - alpha / size) * direction, rtol=1e-9, atol=1e-14)


def test_000_squared_step_penalty_is_the_learning_rate_over_one_plus_lr_alpha():
    penalised = ten({"kind": "step_penalty", "lambda": 50.0, "squared": True}, steps=200)
    assert torch.allclose(penalised, ten(steps=200, optimizer=sgd(0.01 / 1.5, 0.9, nesterov=True)), rtol=1e-10)


def test_000_softmax_of_784_columns_follows_the_loop_that_it_means():
    """784 → 10, cross-entropy, lr 0.001, momentum 0.9, batches of 64, 5 epochs: the article's second program, on rows of that size."""
    draw = np.random.default_rng(2)
    x, y = draw.uniform(0, 1, (80, 784)), draw.integers(0, 10, 80)
    job = spec(inline(x, y), {"kind": "linear", "init": {"kind": "torch"}}, "cross_entropy", sgd(0.001, 0.9), batch_size=64, epochs=5)
    found, start = run(job), run({**job, "optimizer": sgd(FROZEN), "budget": {"epochs": 1, "batch_size": "all"}}).weights
    net = nn.Linear(784, 10).double()
    net.weight.data.copy_(start["head.weight"][0])
    net.bias.data.copy_(start["head.bias"][0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for rows in torch_order(job, rows=80, epochs=5):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(torch.tensor(x[rows])), torch.tensor(y[rows]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.curve("loss/train") == pytest.approx(losses, rel=1e-11)
    assert torch.allclose(found.weights["head.weight"][0], net.weight, rtol=1e-9, atol=1e-13)


def test_000_labels_of_minus_one_and_one_are_learned():
    y = np.where(TEN[:, 0] + TEN[:, 1] > 0, 1, -1)
    found = run(spec(inline(TEN, y), {"kind": "linear"}, "binary", sgd(0.5, 0.9), epochs=200))
    assert found.runs[0].metrics["accuracy/train"] == 1.0
    margin = y * (TEN @ found.weights["head.weight"][0, 0].numpy() + found.weights["head.bias"].item())
    assert found.runs[0].metrics["loss/train"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-12)


# ---------------------------------------------------------------- 004: a penalty beside a loss


def of_mnist_size() -> dict[str, Any]:
    """64 rows of 784 pixels, a fifth of them lit, 10 classes."""
    draw = np.random.default_rng(3)
    return inline(draw.uniform(0, 1, (64, 784)) * (draw.uniform(0, 1, (64, 784)) < 0.2), np.arange(64) % 10)


def test_004_the_first_penalty_dwarfs_the_loss_and_the_job_says_so():
    """784·128 weights uniform in ±1/28: Σ|w| = 100,352/56 = 1792, times 0.01; the loss is ln 10 = 2.30."""
    job = spec(
        of_mnist_size(), {"kind": "mlp", "hidden": [128]}, "cross_entropy", sgd(0.01), {"kind": "l1", "lambda": 0.01, "on": ["layers.0"]}, {"kind": "dropout", "rate": 0.2},
        epochs=2, dtype="float32", selection={"seeds": 3},
    )  # fmt: skip
    found = run(job)
    for r in range(3):
        assert found.curve("penalty/l1", r)[0] == pytest.approx(17.92, abs=0.13)  # four deviations of 0.033
        assert found.curve("loss/train", r)[0] == pytest.approx(2.30, abs=0.05)
        assert found.curve("objective/train", r)[0] == pytest.approx(found.curve("penalty/l1", r)[0] + found.curve("loss/train", r)[0], rel=1e-6)
    assert np.mean([found.curve("penalty/l1", r)[0] for r in range(3)]) == pytest.approx(17.92, abs=0.06)
    (warning,) = found.started.warnings
    assert (warning.path, warning.source) == ("regularizers.0.lambda", "data")
    assert "far too strong" in warning.message
    assert f"{found.curve('penalty/l1')[0]:.4g}" in warning.message
    weak = run({**job, "regularizers": [{"kind": "l1", "lambda": 1e-5}, {"kind": "l2", "lambda": 0.01}]})
    assert not weak.started.warnings


def test_004_the_proximal_form_has_exact_zeros_and_the_articles_own_has_none():
    job = spec(of_mnist_size(), {"kind": "mlp", "hidden": [128]}, "cross_entropy", sgd(0.01), epochs=20, dtype="float32", diagnostics="standard")
    proximal, subgradient, l2 = (
        run({**job, "regularizers": [{**penalty, "lambda": 0.01, "on": ["layers.0"]}]}) for penalty in ({"kind": "l1"}, {"kind": "l1", "method": "subgradient"}, {"kind": "l2"})
    )
    share = proximal.runs[0].zeros["layers.0.weight"] / (784 * 128)
    assert share == pytest.approx(20 * 0.01 * 0.01 * 28, rel=0.1)  # 20 thresholds of 1e-4 out of weights up to 1/28
    assert subgradient.runs[0].zeros["layers.0.weight"] == l2.runs[0].zeros["layers.0.weight"] == 0
    assert proximal.curve("penalty/l1")[-1] < proximal.curve("penalty/l1")[0]
    ledger = proximal.curve("penalty_gradient/norm")[:, 0]
    assert ledger[0] == pytest.approx(0.01 * (784 * 128) ** 0.5, rel=1e-4)
    assert (ledger > 5 * proximal.curve("gradient/norm")[:, 0]).all()  # it shows who leads
