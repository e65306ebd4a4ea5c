"""Where a training loop in torch goes wrong without a word: what happens at each of these places here. Figures of torch are in tests/reference/traps.json."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F
from training_jobs import FROZEN, gradient_at, inline, reference, run, sgd, spec

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import Diverged, SpecRefused
from regtrain.contract.job import parse
from regtrain.contract.losses import HalfSquaredError, SquaredError
from worker.training.losses import loss as loss_of
from worker.training.prepare import prepare
from worker.training.running import pack_of
from worker.training.step import step

TORCH = reference("traps")
DOUBLE = torch.float64
WITHOUT_BIAS = {"kind": "linear", "bias": False}
ROWS = np.random.default_rng(5).standard_normal((30, 4))
LABELS = np.arange(30) % 3
MLP = {"kind": "mlp", "hidden": [7], "activation": "tanh"}


def start_of(job: dict[str, Any]) -> dict[str, Tensor]:
    """The weights before the first update."""
    return {name: w[0] for name, w in run({**job, "optimizer": sgd(FROZEN), "regularizers": [], "clip": None, "budget": {"epochs": 1, "batch_size": "all"}}).weights.items()}


def from_one(rows: dict[str, Any], *rest: Any, **more: Any) -> float:
    """The only weight of y = w·x after one update from w = 1."""
    model = {**WITHOUT_BIAS, "init": {"kind": "uniform", "bound": 1.0}}
    drawn = start_of(spec(rows, model, "half_squared_error", sgd(0.1)))["head.weight"].item()
    model["init"]["scale"] = 1 / abs(drawn)
    w = run(spec(rows, model, "half_squared_error", *rest, **more)).weights["head.weight"].item()
    return math.copysign(1, drawn) * w


# ---------------------------------------------------------------- decay


def test_l2_is_half_the_square_and_not_the_square():
    """λ/2‖w‖² by autograd in a plain loop: torch's weight_decay. λ‖w‖² is twice as strong, and elsewhere after twenty steps."""
    job = spec(inline(ROWS, LABELS), {"kind": "linear", "init": {"kind": "torch"}}, "cross_entropy", sgd(0.2), {"kind": "l2", "lambda": 0.5, "on": "all"}, epochs=20)
    start, found = start_of(job), run(job).flat()

    def loop(factor: float) -> Tensor:
        w, b = (start[f"head.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
        opt = torch.optim.SGD([w, b], lr=0.2)
        for _ in range(20):
            opt.zero_grad()
            (F.cross_entropy(torch.tensor(ROWS) @ w.T + b, torch.tensor(LABELS)) + factor * (w.square().sum() + b.square().sum())).backward()
            opt.step()
        return torch.cat([b, w.flatten()]).detach()

    assert (found - loop(0.5 / 2)).abs().max() < 1e-14
    assert (found - loop(0.5)).abs().max() > 1e-2


def test_decoupled_decay_from_one_is_not_that_of_adam():
    """Rows of zeros: the loss has no gradient. 1 − 0.1·0.3 = 0.97; Adam divides the penalty's gradient by its own size: 1 − 0.1."""
    rows, adam = inline([[0.0], [0.0]], [0.0, 0.0]), {"kind": "adam", "lr": 0.1}
    decoupled, coupled = (from_one(rows, adam, {"kind": kind, "lambda": 0.3}) for kind in ("weight_decay", "l2"))
    assert decoupled == pytest.approx(TORCH["adamw: one step without gradient from 1, lr 0.1, decay 0.3"], rel=1e-15)
    assert coupled == pytest.approx(TORCH["adam with weight_decay: the same"], rel=1e-15)


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize(
    "penalty",
    [
        {"kind": "group_lasso", "groups": "tensor"},
        {"kind": "group_lasso", "groups": "rows"},
        {"kind": "sparse_group_lasso", "groups": "columns"},
        {"kind": "l1"},
        {"kind": "l1", "method": "subgradient"},
        {"kind": "elastic_net"},
    ],
    ids=str,
)
def test_at_a_norm_of_zero_a_penalty_has_the_gradient_zero(penalty):
    """sqrt(Σw²) has NaN there. The linear model starts at 0 and leaves it, and everything that is measured is finite."""
    found = run(spec(inline(ROWS, LABELS), {"kind": "linear"}, "cross_entropy", sgd(0.5), {**penalty, "lambda": 0.01}, epochs=5, diagnostics="full"))
    assert found.curve("penalty_gradient/norm")[0] == 0
    assert found.curve("penalty_gradient/norm")[-1].max() > 0
    assert {name for name, of in found.curves.items() if not np.isfinite(of[0][1]).all()} <= {"update/ratio", "noise/scale"}  # of weights of norm 0, and of no gradient, at step 0
    assert found.flat().isfinite().all()


@pytest.mark.parametrize("squared", [False, True])
def test_a_step_penalty_of_a_step_of_zero_is_zero(squared):
    """In a fitted problem nothing moves, and nothing becomes NaN."""
    penalty = {"kind": "step_penalty", "lambda": 0.3, "squared": squared}
    job = spec(inline(np.zeros((3, 2)), np.zeros(3)), {**WITHOUT_BIAS, "init": {"kind": "torch"}}, "squared_error", sgd(0.1, 0.9), penalty, epochs=3)
    found = run(job)
    assert torch.equal(found.weights["head.weight"][0], start_of(job)["head.weight"])
    assert found.curve("penalty/step_penalty").tolist() == [0.0, 0.0, 0.0]


def test_the_norm_of_a_matrix_is_frobenius_and_l1_the_sum_of_its_entries():
    """torch.linalg.norm(W, 2) of a matrix is the spectral norm, torch.linalg.norm(W, 1) its largest column: neither is a penalty here."""
    w = torch.randn(3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    want = TORCH["W = randn(3, 4) of seed 0"]
    assert torch.linalg.matrix_norm(w, 2).item() == pytest.approx(want["spectral"], rel=1e-14)
    assert torch.linalg.matrix_norm(w, 1).item() == pytest.approx(want["induced 1-norm"], rel=1e-14)
    penalties = ({"kind": "group_lasso", "lambda": 1.0, "groups": "tensor"}, {"kind": "l1", "lambda": 1.0})
    _, measured = gradient_at(spec(inline(ROWS, LABELS), WITHOUT_BIAS, "cross_entropy", sgd(0.1), *penalties), {"head.weight": w})
    assert measured["penalty/group_lasso"].item() == pytest.approx(want["frobenius"], rel=1e-14)
    assert measured["penalty/l1"].item() == pytest.approx(want["sum of |w|"], rel=1e-14)


# ---------------------------------------------------------------- zeros

X, Y = load_diabetes(return_X_y=True)
LASSO = TORCH["lasso on diabetes, raw columns, λ = 0.5, from 0"]
MINIMUM = reference("diabetes")["lasso_0.5"]["obj"]
BOUND = float(np.linalg.eigvalsh(X.T @ X / len(X))[-1])
HOW: dict[str, tuple[dict[str, Any], str]] = {
    "ista, 1/L": ({"kind": "proximal", "accelerated": False}, "proximal"),
    "fista, 1/L": ({"kind": "proximal"}, "proximal"),
    "subgradient, 1/L": (sgd(1 / BOUND), "subgradient"),
    "subgradient of adam, lr 1": ({"kind": "adam", "lr": 1.0}, "subgradient"),
}


@pytest.mark.parametrize(("how", "steps"), [(how, steps) for how in HOW for steps in LASSO[how]])
def test_proximal_steps_reach_the_minimum_and_its_zeros_and_subgradients_neither(how, steps):
    """SSE/2n + λ‖w‖₁. Torch's loops, from the same start with the same step: the subgradient's figures are met digit for digit."""
    optimizer, method = HOW[how]
    penalty = {"kind": "l1", "lambda": 0.5, "method": method}
    found = run(spec(inline(X, Y - Y.mean()), WITHOUT_BIAS, "half_squared_error", optimizer, penalty, epochs=int(steps), diagnostics="off"))
    want, gap = LASSO[how][steps], found.runs[0].metrics["objective/train"] - MINIMUM
    assert found.runs[0].zeros == {"head.weight": want["zeros"]}
    if method == "subgradient":
        assert gap == pytest.approx(want["gap"], rel=1e-6)
    else:
        assert abs(gap) <= max(1e-10, want["gap"])
        assert 10 - want["zeros"] == LASSO["nonzero"]


# ---------------------------------------------------------------- batch norm


def test_batch_norm_does_not_see_the_size_of_the_weights_in_front_of_it():
    """Ten times the weights: the same loss, a tenth of the gradient, which is orthogonal to them (but for ε)."""
    job = spec(inline(ROWS, LABELS), {**MLP, "normalization": {"kind": "batch"}}, "cross_entropy", sgd(0.1))
    start = {name: w for name, w in start_of(job).items() if "running" not in name}
    losses, gradients = [], []
    for s in (1.0, 10.0):
        w = {**start, "layers.0.weight": s * start["layers.0.weight"]}
        pack, measured = gradient_at(job, w)
        losses.append(measured["loss/train"].item())
        gradients.append(pack.net.gradients["layers.0.weight"][0])
        assert abs((w["layers.0.weight"] * gradients[-1]).sum()) < 1e-3 * w["layers.0.weight"].norm() * gradients[-1].norm()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gradients[1].norm().item() == pytest.approx(gradients[0].norm().item() / 10, rel=1e-3)


def test_the_batch_is_normalised_with_the_biased_variance_and_the_running_one_is_unbiased():
    """0 and 2: variance 1 in the batch, hence ±1/√(1 + ε); 2 in the running average."""
    want, running = TORCH["batch norm of 0 and 2: outputs, running variance"]
    model = {"kind": "mlp", "hidden": [1], "activation": "identity", "bias": False, "normalization": {"kind": "batch", "momentum": 1.0}}
    job = spec(inline([[0.0], [2.0]], [5.0, 3.0]), model, "half_squared_error", sgd(FROZEN))
    w = {"layers.0.weight": torch.ones(1, 1, dtype=DOUBLE), "head.weight": torch.ones(1, 1, dtype=DOUBLE)}
    pack, measured = gradient_at(job, w)
    assert pack.layout.buffer_views(pack.buffers)["layers.0.norm.running_var"].item() == pytest.approx(running, rel=1e-15)
    assert measured["loss/train"].item() == pytest.approx(np.mean([0.5 * (out - y) ** 2 for out, y in zip(want, (5.0, 3.0), strict=True)]), rel=1e-14)


@pytest.mark.parametrize("budget", [{"batch_size": 1}, {"batch_size": 4, "accumulate": 4}])
def test_batch_norm_of_one_row_is_refused_at_submission(budget):
    job = parse(json.dumps(spec(inline(ROWS, LABELS), {**MLP, "normalization": {"kind": "batch"}}, "cross_entropy", sgd(0.1), **budget)))
    facts = facts_of(job.dataset)
    assert facts is not None
    with pytest.raises(SpecRefused) as refused:
        check(job, facts)
    assert [problem.path for problem in refused.value.problems] == ["budget.batch_size"]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm1d(4)(torch.zeros(1, 4))


# ---------------------------------------------------------------- dropout


def test_dropout_keeps_the_mean_in_training_and_is_off_in_evaluation():
    """y = w·m·1 + b with w = 1, b = 0 and targets 0: the bias moves by −lr·mean(m), and the final evaluation sees m = 1."""
    n = 20_000
    job = spec(inline(np.ones((n, 1)), np.zeros(n)), {"kind": "linear"}, "half_squared_error", sgd(1.0), {"kind": "dropout", "rate": 0.5, "on": "inputs"})
    one = {"head.weight": torch.ones(1, 1, dtype=DOUBLE), "head.bias": torch.zeros(1, dtype=DOUBLE)}
    pack, measured = gradient_at(job, one)
    assert pack.net.gradients["head.bias"].item() == pytest.approx(1, abs=5 / math.sqrt(n))  # five deviations of a mean of 0s and 2s
    assert measured["loss/train"].item() == pytest.approx(0.5 * 2, abs=5 / math.sqrt(n))  # E m²/2 = 1
    found = run({**job, "budget": {"epochs": 3, "batch_size": "all"}})
    w, b = found.weights["head.weight"].item(), found.weights["head.bias"].item()
    assert found.runs[0].metrics["loss/train"] == pytest.approx(0.5 * (w + b) ** 2, rel=1e-13)


# ---------------------------------------------------------------- accumulation


def test_micro_batches_weigh_by_their_rows():
    """4 + 4 + 2 rows, the last two far out. The mean of the means, as `loss.backward()` on each gives it, is another gradient."""
    x = ROWS[:10] * np.array([1.0] * 8 + [5.0] * 2)[:, None]
    job = spec(inline(x, LABELS[:10]), {"kind": "linear", "init": {"kind": "torch"}}, "cross_entropy", sgd(0.1), batch_size=10, accumulate=3)
    start = start_of({**job, "budget": {"epochs": 1, "batch_size": "all"}})

    def by_torch(part: slice) -> Tensor:
        w, b = (start[f"head.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
        F.cross_entropy(torch.tensor(x[part]) @ w.T + b, torch.tensor(LABELS[:10][part])).backward()
        assert w.grad is not None
        return w.grad

    whole, of_means = by_torch(slice(0, 10)), torch.stack([by_torch(slice(i, i + 4)) for i in (0, 4, 8)]).mean(0)
    found = gradient_at(job, start)[0].net.gradients["head.weight"][0]
    assert (found - whole).norm() / whole.norm() < 1e-15
    assert (of_means - whole).norm() / whole.norm() > 0.2


# ---------------------------------------------------------------- clip

THREE_FOUR = inline([[3.0, 4.0]] * 2, [-1.0] * 2)
"""From w = 0 the gradient of ½(w·x + 1)² is x."""


def test_clipped_gradients_are_three_and_four_fifths_or_ones():
    """torch divides by ‖g‖ + 1e-6, which is left out here."""
    want = TORCH["clip [3, 4] at 1"]
    for kind, by_hand, of_torch in (("global_norm", [0.6, 0.8], want["norm"]), ("value", [1.0, 1.0], want["value"])):
        moved = -run(spec(THREE_FOUR, WITHOUT_BIAS, "half_squared_error", sgd(1.0), clip={"kind": kind, "max": 1.0})).weights["head.weight"][0, 0].numpy()
        assert moved == pytest.approx(by_hand, rel=1e-15)
        assert moved == pytest.approx(of_torch, rel=1e-6)


def test_the_clip_comes_after_coupled_penalties_and_before_the_optimizer():
    """At w = (1, 0), targets w·x + 1: loss gradient (3, 4)·(−1); with λ = 9 the L2 makes it (6, −4). Decoupled decay is not clipped; momentum sums clipped gradients."""
    one = {"head.weight": torch.tensor([[1.0, 0.0]], dtype=DOUBLE)}
    job = spec(inline([[3.0, 4.0]] * 2, [4.0] * 2), WITHOUT_BIAS, "half_squared_error", sgd(1.0), clip={"kind": "value", "max": 5.0})

    def step_of(*regularizers: dict[str, Any], optimizer: Any = None) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            prepared = prepare(
                parse(json.dumps({**job, "regularizers": regularizers, "optimizer": optimizer or sgd(1.0)})), device="cpu", data=Path(folder), upload=None, scratch=None
            )
        pack = pack_of(prepared, prepared.runs)
        pack.net.tensors["head.weight"][0] = one["head.weight"]
        step(pack, prepared.train.x, prepared.train.y, t=0, lr=torch.ones(1, 1, dtype=DOUBLE))
        return (one["head.weight"] - pack.net.tensors["head.weight"][0])[0].tolist()

    assert step_of() == [-3.0, -4.0]
    assert step_of({"kind": "l2", "lambda": 9.0}) == [5.0, -4.0]
    assert step_of({"kind": "l2", "lambda": 9.0}, optimizer=sgd(1.0, 0.5, nesterov=True)) == [7.5, -6.0]  # (1 + μ)·(5, −4): not clipped again
    assert step_of({"kind": "weight_decay", "lambda": 9.0}) == [6.0, -4.0]  # 9·1 − 3: decay is beyond the clip


@pytest.mark.parametrize("kind", ["global_norm", "value"])
@pytest.mark.parametrize("bad", [[[1e300], [1e300]], [[1e300], [-1e300]]], ids=["inf", "nan"])
def test_a_gradient_that_is_not_finite_never_passes_the_clip_in_silence(kind, bad):
    """clip_grad_norm_ turns one NaN into all NaN, and inf into NaN and zeros; clip_grad_value_ turns inf into the limit. Here the run stops, or the step is left out."""
    model = {"kind": "linear", "init": {"kind": "torch"}}
    job = spec(inline(bad, [1e300, 1e300]), model, "half_squared_error", sgd(0.1), epochs=3, clip={"kind": kind, "max": 1.0}, diagnostics="light")
    with pytest.raises(Diverged, match="non-finite"):
        run(job)
    skipping = {**job, "on_nonfinite": "skip_step"}
    found, start = run(skipping), start_of(job | {"on_nonfinite": "skip_step"})
    assert torch.equal(found.flat(), torch.cat([start["head.bias"].flatten(), start["head.weight"].flatten()]))
    assert not np.isfinite(found.curve("loss/train")).any()


# ---------------------------------------------------------------- losses


def test_smoothed_labels_are_those_of_torch():
    """(1 − s)·nll + s·mean(−log p)."""
    w = torch.tensor(np.random.default_rng(3).standard_normal((3, 4)))
    job = spec(inline(ROWS, LABELS), WITHOUT_BIAS, {"kind": "cross_entropy", "label_smoothing": 0.1}, sgd(0.1))
    pack, measured = gradient_at(job, {"head.weight": w})
    leaf, x, y = w.clone().requires_grad_(), torch.tensor(ROWS), torch.tensor(LABELS)
    theirs = F.cross_entropy(x @ leaf.T, y, label_smoothing=0.1)
    theirs.backward()
    log_p = (x @ w.T).log_softmax(1)
    by_hand = 0.9 * -log_p[torch.arange(30), y].mean() - 0.1 * log_p.mean()
    assert measured["loss/train"].item() == pytest.approx(theirs.item(), rel=1e-14)
    assert by_hand.item() == pytest.approx(theirs.item(), rel=1e-14)
    assert leaf.grad is not None
    assert (pack.net.gradients["head.weight"][0] - leaf.grad).abs().max() < 1e-15


def test_one_output_and_one_target_are_compared_row_by_row():
    """MSELoss of outputs (n, 1) against targets (n,) compares every row with every target, with a warning: 12/9 for a perfect fit."""
    y = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
    with pytest.warns(UserWarning, match="broadcasting"):
        assert F.mse_loss(y.unsqueeze(1), y).item() == pytest.approx(TORCH["MSELoss of (n, 1) against (n,), both 1, 2, 3"], rel=1e-15)
    for loss in ("squared_error", "half_squared_error"):
        _, measured = gradient_at(spec(inline([[1.0], [2.0], [3.0]], [1.0, 2.0, 3.0]), WITHOUT_BIAS, loss, sgd(0.1)), {"head.weight": torch.ones(1, 1, dtype=DOUBLE)})
        assert measured["loss/train"].item() == 0


def test_squares_are_means_over_rows_and_sums_over_outputs():
    """torch's mean is over all numbers: 1 where every output is off by 1, of however many outputs. Ours is 3 of three, and half of it."""
    mean, total = TORCH["MSELoss of 3 outputs that are off by 1; sum over outputs"]
    outputs, y = torch.zeros(1, 5, 3, dtype=DOUBLE), torch.ones(5, dtype=DOUBLE)
    assert F.mse_loss(outputs[0], torch.ones(5, 3, dtype=DOUBLE)).item() == mean
    assert loss_of(SquaredError(kind="squared_error"), outputs, y)[0].item() / 5 == total
    assert loss_of(HalfSquaredError(kind="half_squared_error"), outputs, y)[0].item() / 5 == total / 2
    job = spec(inline(ROWS, ROWS @ [1.0, 2.0, 3.0, 4.0]), WITHOUT_BIAS, "squared_error", sgd(0.1))
    _, measured = gradient_at(job, {"head.weight": torch.zeros(1, 4, dtype=DOUBLE)})
    assert measured["loss/train"].item() == pytest.approx(F.mse_loss(torch.zeros(30, dtype=DOUBLE), torch.tensor(ROWS @ [1.0, 2.0, 3.0, 4.0])).item(), rel=1e-14)
