"""What the engine converges to: closed forms, scikit-learn's numbers, and torch's optimizers where they are right.

Diabetes has ten columns of Euclidean norm 1. Standardized, each is multiplied with √442, which makes the problem well conditioned for
gradient descent and moves every strength by a known factor: with raw weights w and standardized ones v, w = √n·v. Hence Ridge(A), that
is ‖y − Xw‖² + A‖w‖², is λ = A on `half_squared_error`; Lasso(α) is λ = α√n; ElasticNet(α, ρ) is an L1 part αρ√n and an L2 part α(1 − ρ)n.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, distance, inline, reference, run, sgd, spec

from regtrain.contract.errors import SpecRefused

N = 442
DIABETES = {"kind": "diabetes", "standardize": True}
LINEAR = {"kind": "linear"}
REFERENCE = reference("diabetes")
METHODS = {
    "plain": (lambda scale=1.0: sgd(0.45 * scale), 6000),
    "momentum": (lambda scale=1.0: sgd(0.15 * scale, 0.9), 1500),
    "nesterov": (lambda scale=1.0: sgd(0.15 * scale, 0.9, nesterov=True), 1500),
}
"""Full batch. The largest curvature of the standardized problem is 4.02 (442 times 0.0091), the smallest 0.0086."""


def diabetes(optimizer: dict[str, Any], *regularizers: dict[str, Any], steps: int) -> Outcome:
    return run(spec(DIABETES, LINEAR, "half_squared_error", optimizer, *regularizers, epochs=steps, diagnostics="off"))


def coefficients(found: Outcome, r: int) -> np.ndarray:
    of = found.runs[r].coefficients
    assert of is not None
    return np.array([*of["weights"], of["intercept"]])


def known(name: str) -> np.ndarray:
    return np.array([*REFERENCE[name]["coef"], REFERENCE[name]["intercept"]])


def same(found: np.ndarray, want: np.ndarray, *, rel: float = 1e-9) -> None:
    """Equal in relative norm, and the same coefficients are exactly zero."""
    assert np.linalg.norm(found - want) <= rel * np.linalg.norm(want)
    assert ((found == 0) == (want == 0)).all()


@pytest.mark.parametrize("method", METHODS)
def test_ridge_equals_the_closed_form(method):
    make, steps = METHODS[method]
    found = diabetes(make(0.8), {"kind": "l2", "lambda": {"values": [0.01, 0.1, 1]}}, steps=steps)
    for r, alpha in enumerate(("0.01", "0.1", "1")):
        same(coefficients(found, r), known(f"ridge_{alpha}"))
    strong = diabetes(make(0.25), {"kind": "l2", "lambda": 10}, steps=500)  # λ adds to the curvature: a third of the rate is stable
    same(coefficients(strong, 0), known("ridge_10"))


@pytest.mark.parametrize("method", METHODS)
def test_ordinary_least_squares(method):
    make, steps = METHODS[method]
    found = diabetes(make(), steps=steps)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["OLS"]))


@pytest.mark.parametrize("method", METHODS)
def test_lasso_equals_scikit_learn(method):
    make, steps = METHODS[method]
    strengths = ("0.05", "0.1", "0.5", "1", "2")
    found = diabetes(make(), {"kind": "l1", "lambda": {"values": [float(s) * math.sqrt(N) for s in strengths]}}, steps=steps)
    for r, alpha in enumerate(strengths):
        same(coefficients(found, r), known(f"lasso_{alpha}"))
        assert found.runs[r].zeros == {"head.weight": 10 - REFERENCE[f"lasso_{alpha}"]["nnz"]}


def test_all_coefficients_are_zero_from_the_largest_lambda_on():
    top = REFERENCE["lambda_max_l1_(1/2n)"] * math.sqrt(N)
    found = diabetes(sgd(0.2), {"kind": "l1", "lambda": {"values": [top * (1 - 1e-6), top * (1 + 1e-9)]}}, steps=500)
    assert [found.runs[r].zeros["head.weight"] for r in range(2)] == [9, 10]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("alpha", "ratio"), [(0.1, 0.5), (0.01, 0.5), (0.01, 0.9)])
def test_elastic_net_equals_scikit_learn(method, alpha, ratio):
    make, steps = METHODS[method]
    l1, l2 = alpha * ratio * math.sqrt(N), alpha * (1 - ratio) * N
    found = diabetes(make(), {"kind": "elastic_net", "lambda": l1 + l2, "l1_ratio": l1 / (l1 + l2)}, steps=steps // 3)
    same(coefficients(found, 0), known(f"enet_{alpha}_{ratio}"))


def test_elastic_net_is_l1_and_l2_together():
    """The same minimum from the coupled L2 and the proximal L1 as two regularizers."""
    l1, l2 = 0.01 * 0.5 * math.sqrt(N), 0.01 * 0.5 * N
    found = diabetes(sgd(0.15, 0.9), {"kind": "l1", "lambda": l1}, {"kind": "l2", "lambda": l2}, steps=1500)
    same(coefficients(found, 0), known("enet_0.01_0.5"))


@pytest.mark.parametrize("optimizer", [sgd(0.1), sgd(0.1, 0.9), {"kind": "adam", "lr": 0.5}], ids=["sgd", "momentum", "adam"])
def test_proximal_penalties_on_the_same_weights_add_up(optimizer):
    """Two elastic nets and an L1: one elastic net with the sum of their L1 parts (0.6 + 2 + 3) and of their L2 parts (0.4 + 0.5)."""
    parts = ({"kind": "elastic_net", "lambda": 1.0, "l1_ratio": 0.6}, {"kind": "l1", "lambda": 3.0}, {"kind": "elastic_net", "lambda": 2.5, "l1_ratio": 0.8})
    whole = {"kind": "elastic_net", "lambda": 6.5, "l1_ratio": 5.6 / 6.5}
    several, one = diabetes(optimizer, *parts, steps=60), diabetes(optimizer, whole, steps=60)
    same(coefficients(several, 0), coefficients(one, 0), rel=1e-13)
    assert several.runs[0].zeros["head.weight"] > 0
    assert several.runs[0].metrics["objective/train"] == pytest.approx(one.runs[0].metrics["objective/train"], rel=1e-13)


GROUPS = [{"name": "person", "features": ["age", "sex"]}, {"name": "body", "features": ["bmi", "bp"]}, {"name": "blood", "features": ["s1", "s2", "s3", "s4", "s5", "s6"]}]


@pytest.mark.parametrize("method", METHODS)
def test_group_lasso_on_groups_of_features(method):
    """SSE/2n + λ Σ √d_g‖w_g‖; standardized, λ√n."""
    make, steps = METHODS[method]
    strengths = ("0.3", "0.6", "1", "1.4")
    found = diabetes(make(), {"kind": "group_lasso", "lambda": {"values": [float(s) * math.sqrt(N) for s in strengths]}, "groups": GROUPS}, steps=steps)
    for r, strength in enumerate(strengths):
        want = REFERENCE[f"group_lasso_{strength}"]
        same(coefficients(found, r)[:10], np.array(want["coef"]), rel=1e-8)
        assert found.runs[r].metrics["objective/train"] == pytest.approx(want["obj"], rel=1e-12)


def test_sparse_group_lasso_is_lasso_at_one_end_and_group_lasso_at_the_other():
    ends = diabetes(sgd(0.15, 0.9), {"kind": "sparse_group_lasso", "lambda": 0.5 * math.sqrt(N), "l1_ratio": 1.0, "groups": GROUPS}, steps=1500)
    same(coefficients(ends, 0), known("lasso_0.5"))
    ends = diabetes(sgd(0.15, 0.9), {"kind": "sparse_group_lasso", "lambda": 0.6 * math.sqrt(N), "l1_ratio": 0.0, "groups": GROUPS}, steps=1500)
    same(coefficients(ends, 0)[:10], np.array(REFERENCE["group_lasso_0.6"]["coef"]), rel=1e-8)


def test_sparse_group_lasso_meets_its_optimality_conditions_and_is_l1_and_group_lasso_together():
    """In a group that is zero ‖soft(g, λ₁)‖ ≤ λ₂√d; elsewhere g + λ₂√d·w/‖w‖ + λ₁·sign(w) = 0, and |g + …| ≤ λ₁ where w = 0."""
    lam, ratio = 1.0 * math.sqrt(N), 0.4
    found = diabetes(sgd(0.15, 0.9), {"kind": "sparse_group_lasso", "lambda": lam, "l1_ratio": ratio, "groups": GROUPS}, steps=1500)
    x, y = standardized()
    w = found.weights["head.weight"][0, 0].numpy()
    g = x.T @ (x @ w - y) / N
    zero_groups = 0
    for columns in ([0, 1], [2, 3], [4, 5, 6, 7, 8, 9]):
        of, slope, factor = w[columns], g[columns], lam * (1 - ratio) * math.sqrt(len(columns))
        if not of.any():
            zero_groups += 1
            assert np.linalg.norm(np.maximum(np.abs(slope) - lam * ratio, 0)) <= factor
            continue
        rest = slope + factor * of / np.linalg.norm(of)
        assert np.abs(rest + lam * ratio * np.sign(of))[of != 0].max() < 1e-8
        assert (np.abs(rest)[of == 0] <= lam * ratio).all()
    assert zero_groups > 0
    assert found.runs[0].zeros["head.weight"] > 2 * zero_groups
    both = ({"kind": "group_lasso", "lambda": lam * (1 - ratio), "groups": GROUPS}, {"kind": "l1", "lambda": lam * ratio})
    same(coefficients(diabetes(sgd(0.15, 0.9), *both, steps=1500), 0), coefficients(found, 0), rel=1e-10)


def standardized() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), y - y.mean()


@pytest.mark.parametrize("method", METHODS)
def test_unsquared_norm_of_the_whole_tensor(method):
    make, steps = METHODS[method]
    found = diabetes(
        make(), {"kind": "group_lasso", "lambda": {"values": [0.5 * math.sqrt(N), 1 * math.sqrt(N), 2 * math.sqrt(N), 4.43 * math.sqrt(N)]}, "groups": "tensor"}, steps=steps
    )
    for r, strength in enumerate(("0.5", "1", "2")):
        same(coefficients(found, r)[:10], np.array(REFERENCE[f"unsq_l2_{strength}"]["coef"]), rel=1e-6)
        assert found.runs[r].metrics["objective/train"] == pytest.approx(REFERENCE[f"unsq_l2_{strength}"]["obj"], rel=1e-11)
    assert found.runs[3].zeros["head.weight"] == 10  # beyond ‖Xᵀy‖/n = 4.424


@pytest.mark.parametrize("optimizer", [sgd(0.45), sgd(0.15, 0.9), {"kind": "adam", "lr": 1.0, "schedule": {"kind": "cosine"}}], ids=["sgd", "momentum", "adam"])
def test_non_negative_least_squares(optimizer):
    found = diabetes(optimizer, {"kind": "non_negative"}, steps=3000)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["nonneg_ols"]["coef"]), rel=1e-6)
    assert found.runs[0].zeros["head.weight"] == 5


@pytest.mark.parametrize("method", METHODS)
def test_least_squares_inside_a_ball(method):
    """‖w‖ ≤ 300 is ‖v‖ ≤ 300/√n in standardized weights."""
    make, steps = METHODS[method]
    found = diabetes(make(), {"kind": "l2_ball", "radius": 300 / math.sqrt(N)}, steps=steps // 2)
    same(coefficients(found, 0)[:10], np.array(REFERENCE["l2ball_300"]["coef"]), rel=1e-8)
    assert found.weights["head.weight"].norm().item() == pytest.approx(300 / math.sqrt(N), rel=1e-13)


def test_box_constrained_least_squares():
    from scipy.optimize import lsq_linear

    x, y = standardized()
    want = lsq_linear(x, y, bounds=(-5.0, 12.0), tol=1e-15).x
    found = diabetes(sgd(0.15, 0.9), {"kind": "box", "low": -5.0, "high": 12.0}, steps=1500)
    assert found.weights["head.weight"][0, 0].numpy() == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_l1_and_signs_together_are_the_positive_lasso():
    from sklearn.linear_model import Lasso

    x, y = standardized()
    want = Lasso(alpha=2.0, positive=True, tol=1e-14, max_iter=100_000, fit_intercept=False).fit(x, y).coef_
    found = diabetes(sgd(0.15, 0.9), {"kind": "l1", "lambda": 2.0}, {"kind": "non_negative"}, steps=1500)
    assert found.weights["head.weight"][0, 0].numpy() == pytest.approx(want, rel=1e-8, abs=1e-10)
    assert ((found.weights["head.weight"][0, 0].numpy() == 0) == (want == 0)).all()


def test_adam_with_a_decaying_rate_reaches_the_same_objective_and_support():
    """scikit-learn's objective is SSE/2n + α‖w‖₁ (+ the elastic net's parts), which is ours."""
    adam = {"kind": "adam", "lr": 5.0, "schedule": {"kind": "cosine"}}
    strengths = ("0.1", "0.5", "1", "2")
    lasso = diabetes(adam, {"kind": "l1", "lambda": {"values": [float(s) * math.sqrt(N) for s in strengths]}}, steps=1500)
    for r, alpha in enumerate(strengths):
        want = REFERENCE[f"lasso_{alpha}"]
        assert lasso.runs[r].metrics["objective/train"] == pytest.approx(want["obj"], rel=1e-6)
        assert ((coefficients(lasso, r)[:10] == 0) == (np.array(want["coef"]) == 0)).all()
    l1, l2 = 0.01 * 0.5 * math.sqrt(N), 0.01 * 0.5 * N
    net = diabetes(adam, {"kind": "elastic_net", "lambda": l1 + l2, "l1_ratio": l1 / (l1 + l2)}, steps=1500)
    want = REFERENCE["enet_0.01_0.5"]
    assert net.runs[0].metrics["objective/train"] == pytest.approx(want["obj"], rel=1e-6)
    assert ((coefficients(net, 0)[:10] == 0) == (np.array(want["coef"]) == 0)).all()


@pytest.mark.parametrize("optimizer", [sgd(0.2), sgd(0.1, 0.9), {"kind": "adam", "lr": 1.0}], ids=["sgd", "momentum", "adam"])
def test_proximal_l1_has_exact_zeros_and_subgradient_has_none(optimizer):
    strength = 0.5 * math.sqrt(N)
    proximal, subgradient = (diabetes(optimizer, {"kind": "l1", "lambda": strength, "method": method}, steps=800) for method in ("proximal", "subgradient"))
    assert proximal.runs[0].zeros["head.weight"] == 6  # nnz 4 of scikit-learn's Lasso(0.5)
    assert subgradient.runs[0].zeros["head.weight"] == 0


# ---------------------------------------------------------------- decay, as torch

ROWS = np.random.default_rng(5).standard_normal((30, 4))
LABELS = np.arange(30) % 3
MLP = {"kind": "mlp", "hidden": [7], "activation": "tanh"}


def against_torch(optimizer: dict[str, Any], regularizer: dict[str, Any], make: Any, *, steps: int = 50) -> float:
    """Relative distance between our weights and those of a plain torch loop with the same start."""
    job = spec(inline(ROWS, LABELS), MLP, "cross_entropy", optimizer, {**regularizer, "on": "all"}, epochs=steps)
    start = run({**job, "optimizer": sgd(FROZEN), "regularizers": [], "budget": {"epochs": 1, "batch_size": "all"}}).weights
    net = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    names = ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    for name, p in zip(names, net.parameters(), strict=True):
        p.data.copy_(start[name][0])
    opt, x, y = make(net.parameters()), torch.tensor(ROWS), torch.tensor(LABELS)
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    found = run(job).weights
    return distance(torch.cat([found[n][0].flatten() for n in names]), torch.cat([p.detach().flatten() for p in net.parameters()]))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.9, True)])
def test_l2_is_the_weight_decay_of_torch_sgd(momentum, nesterov):
    make = lambda p: torch.optim.SGD(p, lr=0.2, momentum=momentum, nesterov=nesterov, weight_decay=0.03)  # noqa: E731
    assert against_torch(sgd(0.2, momentum, nesterov=nesterov), {"kind": "l2", "lambda": 0.03}, make) < 1e-13


def test_weight_decay_with_adam_is_adamw_and_l2_with_adam_is_adam():
    adam = {"kind": "adam", "lr": 0.02}
    decay, l2 = {"kind": "weight_decay", "lambda": 0.3}, {"kind": "l2", "lambda": 0.3}
    adamw = lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3)  # noqa: E731
    coupled = lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.3)  # noqa: E731
    assert against_torch(adam, decay, adamw) < 1e-12
    assert against_torch(adam, l2, coupled) < 1e-12
    assert against_torch(adam, decay, coupled) > 1e-2
    assert against_torch(adam, l2, adamw) > 1e-2


def test_decoupled_decay_equals_l2_for_plain_sgd_only():
    jobs = {m: [run(spec(inline(ROWS, LABELS), MLP, "cross_entropy", sgd(0.2, m), {"kind": k, "lambda": 0.03}, epochs=50)) for k in ("l2", "weight_decay")] for m in (0.0, 0.9)}
    assert distance(jobs[0.0][0].flat(), jobs[0.0][1].flat()) < 1e-13
    assert distance(jobs[0.9][0].flat(), jobs[0.9][1].flat()) > 1e-3


def test_one_adamw_step_with_a_zero_gradient():
    """From 1 with lr 0.1 and decay 0.3, a step without gradient: AdamW gives 0.97, Adam with L2 gives 0.9 (and a little: ε)."""
    rows = inline([[1.0], [1.0]], [1.0, 1.0])
    start = {"kind": "linear", "bias": False, "init": {"kind": "uniform", "bound": 1.0}}
    w = run(spec(rows, start, "squared_error", sgd(FROZEN))).weights["head.weight"].item()
    rows = inline([[1.0], [1.0]], [w, w])  # fitted: the gradient is 0
    found = [run(spec(rows, start, "squared_error", {"kind": "adam", "lr": 0.1}, {"kind": k, "lambda": 0.3})).weights["head.weight"].item() for k in ("weight_decay", "l2")]
    assert found[0] == pytest.approx(0.97 * w, rel=1e-15)
    assert found[1] == pytest.approx(w - 0.1 * 0.3 * w / (abs(0.3 * w) + 1e-8), rel=1e-14)


def test_adamw_under_a_schedule_decays_with_the_rate_of_the_step():
    """torch's AdamW shrinks by 1 − η_t·λ with the rate of each step."""

    class Scheduled(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            self.t = getattr(self, "t", -1) + 1
            for group in self.param_groups:
                group["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * self.t / 50))
            return super().step(closure)

    adam = {"kind": "adam", "lr": 0.02, "schedule": {"kind": "cosine"}}
    assert against_torch(adam, {"kind": "weight_decay", "lambda": 0.3}, lambda p: Scheduled(p, weight_decay=0.3)) < 1e-12


@pytest.mark.parametrize("optimizer", [sgd(0.1), sgd(0.1, 0.8), sgd(0.1, 0.8, nesterov=True)], ids=["plain", "momentum", "nesterov"])
def test_a_step_does_everything_in_the_documented_order(optimizer):
    """Coupled penalties join the gradient before it is clipped; decay shrinks the old weights; prox comes last, with the effective step."""
    limit, coupled, decay, lasso, ratio = 0.2, 0.3, 0.5, 0.02, 0.6
    regularizers = (
        {"kind": "elastic_net", "lambda": lasso, "l1_ratio": ratio}, {"kind": "weight_decay", "lambda": decay, "on": "all"},
        {"kind": "l2", "lambda": coupled}, {"kind": "l1", "lambda": 0.001, "method": "subgradient"}, {"kind": "l1", "lambda": 0.003},
    )  # fmt: skip
    job = spec(
        inline(ROWS, LABELS), {"kind": "linear", "init": {"kind": "torch"}}, "cross_entropy", optimizer, *regularizers, clip={"kind": "global_norm", "max": limit}, epochs=40
    )
    found = run(job)
    start = run({**job, "optimizer": sgd(FROZEN), "regularizers": [], "clip": None, "budget": {"epochs": 1, "batch_size": "all"}}).weights
    w, b = start["head.weight"][0].numpy().copy(), start["head.bias"][0].numpy().copy()
    lr, mu, nesterov = optimizer["lr"], optimizer["momentum"], optimizer["nesterov"]
    vw, vb, onehot, clips = np.zeros_like(w), np.zeros_like(b), np.eye(3)[LABELS], []
    for _ in range(40):
        z = ROWS @ w.T + b
        p = np.exp(z - z.max(1, keepdims=True))
        delta = (p / p.sum(1, keepdims=True) - onehot) / len(ROWS)
        gw, gb = delta.T @ ROWS + coupled * w + 0.001 * np.sign(w), delta.sum(0)
        norm = math.sqrt((gw**2).sum() + (gb**2).sum())
        clips.append(norm > limit)
        gw, gb = gw * min(1, limit / norm), gb * min(1, limit / norm)
        vw, vb = mu * vw + gw, mu * vb + gb
        dw, db = (gw + mu * vw, gb + mu * vb) if nesterov else (vw, vb)
        w, b = w * (1 - lr * decay) - lr * dw, b * (1 - lr * decay) - lr * db
        reach = lr / (1 - mu)
        w = np.sign(w) * np.maximum(np.abs(w) - reach * (0.003 + lasso * ratio), 0) / (1 + reach * lasso * (1 - ratio))
    assert any(clips)
    assert not all(clips)
    assert found.weights["head.weight"][0].numpy() == pytest.approx(w, rel=1e-11, abs=1e-15)
    assert found.weights["head.bias"][0].numpy() == pytest.approx(b, rel=1e-11, abs=1e-15)
    assert found.curve("gradient/clipped").astype(bool).tolist() == clips
    assert (w == 0).any()


# ---------------------------------------------------------------- exact twins of noise, batches and steps


def test_input_dropout_approaches_its_ridge():
    """p = 0.5: penalty p/(1−p)·Σx² = 1 a raw column, Ridge(1). Masks are independent of the weights, so the mean over seeds obeys ridge's own
    gradient descent exactly, at every step and not only in the limit."""
    seeds = 128
    job = spec(DIABETES, LINEAR, "half_squared_error", sgd(0.1), {"kind": "dropout", "rate": 0.5, "on": "inputs"}, epochs=120, diagnostics="off", selection={"seeds": seeds})
    found = run(job)
    w = np.array([coefficients(found, r) for r in range(seeds)])
    mean, error = w.mean(0), w.std(0, ddof=1) / math.sqrt(seeds)
    want = np.array(REFERENCE["input_dropout_0.5_marginal_ridge"])
    assert want == pytest.approx(np.array(REFERENCE["ridge_1"]["coef"]), rel=1e-9)
    z = (mean[:10] - want) / error[:10]
    assert (np.abs(z) < 3).all()
    assert np.square(z).mean() < 2  # and together
    assert np.linalg.norm(error[:10]) < 0.01 * np.linalg.norm(want)
    assert abs(mean[10] - REFERENCE["y_mean"]) < 3 * error[10] + 1e-3


@pytest.mark.parametrize(
    "regularizer", [[], [{"kind": "l2", "lambda": 0.1}], [{"kind": "l1", "lambda": 0.01}], [{"kind": "dropout", "rate": 0.4}]], ids=["none", "l2", "l1", "dropout"]
)
@pytest.mark.parametrize(
    "model", [MLP, {**MLP, "normalization": {"kind": "layer"}}, {"kind": "cnn", "channels": [3], "image": [1, 2, 2], "hidden": [4]}], ids=["mlp", "layer norm", "cnn"]
)
def test_accumulation_of_4_4_and_2_rows_equals_one_batch_of_10(model, regularizer):
    job = spec(inline(ROWS[:10], LABELS[:10]), model, "cross_entropy", sgd(0.2, 0.9), *regularizer, epochs=20, clip={"kind": "global_norm", "max": 0.3}, diagnostics="full")
    whole = run(job)
    parts = run({**job, "budget": {"epochs": 20, "batch_size": 10, "accumulate": 3}})
    whole10 = run({**job, "budget": {"epochs": 20, "batch_size": 10}})
    assert torch.equal(whole.flat(), whole10.flat())
    assert distance(parts.flat(), whole.flat()) < 1e-13
    for name, of in whole.curves.items():
        if not name.startswith("identity/"):
            assert parts.curve(name) == pytest.approx(of[0][1], rel=1e-11, abs=1e-15), name


def test_rows_weigh_alike_whatever_their_batch():
    """The mean over an epoch of batch losses, weighted by rows, is the loss of the epoch: the short last batch counts by its rows."""
    job = spec(inline(ROWS, LABELS), MLP, "cross_entropy", sgd(FROZEN), batch_size=8)
    losses = run(job).curve("loss/train")
    assert np.average(losses, weights=[8, 8, 8, 6]) == pytest.approx(run({**job, "budget": {"epochs": 1, "batch_size": "all"}}).curve("loss/train")[0], rel=1e-14)


def weights_after(steps: int, *regularizers: dict[str, Any], optimizer: dict[str, Any]) -> Tensor:
    return run(spec(inline(ROWS, LABELS), MLP, "cross_entropy", optimizer, *regularizers, epochs=steps)).flat()


def test_unsquared_step_penalty_shortens_the_direction_and_stops_at_its_strength():
    """−η·max(0, 1 − α/‖g‖)·g."""
    start, plain = weights_after(1, optimizer=sgd(FROZEN)), weights_after(1, optimizer=sgd(0.2))
    g = (start - plain) / 0.2
    size = g.norm().item()
    for alpha in (0.0, 0.3 * size, 0.999 * size):
        found = weights_after(1, {"kind": "step_penalty", "lambda": alpha}, optimizer=sgd(0.2))
        assert torch.allclose(start - found, 0.2 * (1 - alpha / size) * g, rtol=1e-10, atol=1e-15)
    for alpha in (1.001 * size, 10.0):
        found = weights_after(30, {"kind": "step_penalty", "lambda": alpha}, optimizer=sgd(0.2))
        assert torch.equal(found, weights_after(30, {"kind": "step_penalty", "lambda": 100.0}, optimizer=sgd(0.2)))
        assert distance(found, start) < 1e-15


@pytest.mark.parametrize(
    "optimizer", [sgd, lambda lr: sgd(lr, 0.9), lambda lr: sgd(lr, 0.9, nesterov=True), lambda lr: {"kind": "adam", "lr": lr}], ids=["sgd", "momentum", "nesterov", "adam"]
)
def test_squared_step_penalty_is_a_smaller_learning_rate(optimizer):
    """lr η/(1 + ηα): here 0.1/(1 + 0.1·5) = 0.0666…"""
    penalised = weights_after(40, {"kind": "step_penalty", "lambda": 5.0, "squared": True}, optimizer=optimizer(0.1))
    assert distance(penalised, weights_after(40, optimizer=optimizer(0.1 / 1.5))) < 1e-12


def test_step_penalty_has_no_gradient_that_reaches_the_loss():
    """Momentum goes on underneath: the velocity is that of the unpenalised gradients at the weights that were reached."""
    found = run(spec(inline(ROWS, LABELS), MLP, "cross_entropy", sgd(0.2, 0.9), {"kind": "step_penalty", "lambda": 0.05}, epochs=30))
    x, y = torch.tensor(ROWS), torch.tensor(LABELS)
    start = run(spec(inline(ROWS, LABELS), MLP, "cross_entropy", sgd(FROZEN))).weights
    net = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    names = ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    for name, p in zip(names, net.parameters(), strict=True):
        p.data.copy_(start[name][0])
    velocity = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    for t in range(30):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        velocity = 0.9 * velocity + torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        delta = -0.2 * max(0.0, 1 - 0.05 / velocity.norm().item()) * velocity
        assert found.curve("penalty/step_penalty")[t] == pytest.approx(0.05 * delta.norm().item(), rel=1e-10)
        place = 0
        for p in net.parameters():
            p.data += delta[place : place + p.numel()].view_as(p)
            place += p.numel()
    assert distance(torch.cat([found.weights[n][0].flatten() for n in names]), torch.cat([p.detach().flatten() for p in net.parameters()])) < 1e-12


def test_a_step_penalty_beside_a_proximal_one_is_refused_by_the_checks():
    import json

    from regtrain.contract.checks import check
    from regtrain.contract.datasets import facts_of
    from regtrain.contract.job import parse

    job = parse(json.dumps(spec(inline(ROWS, LABELS), MLP, "cross_entropy", sgd(0.1), {"kind": "l1", "lambda": 0.1}, {"kind": "step_penalty", "lambda": 0.1})))
    facts = facts_of(job.dataset)
    assert facts is not None
    with pytest.raises(SpecRefused, match="step penalty"):
        check(job, facts)


# ---------------------------------------------------------------- classification against scikit-learn


LOGISTIC = {"l2": ((0.01, 0.1, 1), 0.95, "obj_C*sumNLL+.5||w||2"), "l1": ((0.01, 0.05, 0.1), 0.98, "obj_C*sumNLL+|w|1")}
"""C, momentum, and the name of the objective in the reference. C·ΣNLL + penalty is our mean objective with λ = 1/(C·n)."""


@pytest.mark.parametrize("penalty", LOGISTIC)
def test_logistic_regression_equals_scikit_learn(penalty):
    (strengths, momentum, objective), want, n = LOGISTIC[penalty], reference("breast_cancer"), 569
    job = spec(
        {"kind": "breast_cancer", "standardize": True}, LINEAR, "binary", sgd(0.3, momentum, nesterov=True), {"kind": penalty, "lambda": {"values": [1 / (c * n) for c in strengths]}},
        epochs=1500, diagnostics="off",
    )  # fmt: skip
    found = run(job)
    for r, c in enumerate(strengths):
        of = want[f"{penalty}_C={c}"]
        assert found.runs[r].coefficients is not None
        trained = found.runs[r].coefficients["trained"]
        same(np.array(trained["weights"]), np.array(of["coef"]), rel=1e-8)
        assert trained["intercept"] == pytest.approx(of["intercept"], rel=1e-6)
        assert found.runs[r].metrics["objective/train"] * c * n == pytest.approx(of[objective], rel=1e-11)
        assert found.runs[r].metrics["accuracy/train"] == pytest.approx(of["train_acc"], rel=1e-14)


def test_softmax_regression_equals_scikit_learn():
    """First 1297 digits train, last 500 test; C·ΣNLL + ½‖W‖²."""
    want, strengths = reference("digits"), (0.01, 0.1)
    rows = {"kind": "digits", "test": 500 / 1797, "split": "last"}
    job = spec(rows, LINEAR, "cross_entropy", sgd(0.2, 0.97, nesterov=True), epochs=1200, diagnostics="off")
    found = [run({**job, "regularizers": [{"kind": "l2", "lambda": 1 / (c * 1297)}]}) for c in strengths]  # test rows are measured once a job
    for c, one in zip(strengths, found, strict=True):
        of, metrics = want[f"softmax_l2_C={c}"], one.runs[0].metrics
        assert metrics["loss/train"] == pytest.approx(of["mean_nll_train"], rel=1e-6)
        assert one.weights["head.weight"][0].norm().item() == pytest.approx(of["w_norm"], rel=1e-6)
        assert metrics["accuracy/test"] == pytest.approx(of["test_acc"], rel=1e-14)
        assert metrics["accuracy/train"] == pytest.approx(of["train_acc"], rel=1e-14)
