"""One suite over each union: a row for each kind, by hand or from torch, and laws that hold for all of them."""

import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, distance, events, inline, outcome, run, sgd, spec

from regtrain.contract.catalog import FAMILIES
from regtrain.contract.datasets import BUNDLED, Dataset, Facts, counts, facts_of
from regtrain.contract.errors import DataError
from regtrain.contract.losses import Loss
from regtrain.contract.models import Activation
from regtrain.contract.regularizers import FeatureGroup, Regularizer
from worker.training import datasets as rows_of
from worker.training.draws import row_order
from worker.training.losses import loss as loss_of
from worker.training.losses import target
from worker.training.models import Slot
from worker.training.optimizers import clipped
from worker.training.penalties import groups_in, norms_in
from worker.training.regularizers import Groups, gradient, penalty, projected, prox, shortened

DOUBLE = torch.float64
DATA = Path(__file__).parent


def kinds(family: str) -> set[str]:
    return {get_args(part.model_fields["kind"].annotation)[0] for part in get_args(get_args(FAMILIES[family])[0])}


def read(union: Any, value: dict[str, Any]) -> Any:
    return TypeAdapter(union).validate_json(json.dumps(value))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE).unsqueeze(1)


def rows_of_classes(n: int, features: int, classes: int, seed: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, features, generator=draw, dtype=DOUBLE), torch.arange(n) % classes
    return x, y


# ---------------------------------------------------------------- regularizers on weights

W = torch.tensor([[3.0, -4.0, 0.0, 0.5]], dtype=DOUBLE)

BY_HAND: dict[str, tuple[dict[str, Any], float]] = {
    "l1": ({"method": "proximal"}, 7.5),  # 3 + 4 + 0 + 0.5
    "l2": ({}, 12.625),  # (9 + 16 + 0 + 0.25) / 2
    "elastic_net": ({"l1_ratio": 0.25}, 11.34375),  # 0.25·7.5 + 0.75·12.625
    "group_lasso": ({}, math.sqrt(2) * 5.5),  # W as two rows of two: √2·(5 + 0.5)
    "sparse_group_lasso": ({"l1_ratio": 0.25}, 0.25 * 7.5 + 0.75 * math.sqrt(2) * 5.5),
    "weight_decay": ({}, 12.625),  # the ledger's λ·½Σw²
}
NOT_ON_WEIGHTS = {"step_penalty": {"lambda": 0.5}, "vanishing_gradient": {"lambda": 0.5}, "dropout": {"rate": 0.5}, "early_stopping": {}}
"""Proved further below, early stopping in test_one_engine.py, Ω in test_recurrent.py."""
CONSTRAINTS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "non_negative": ({}, [3.0, 0.0, 0.0, 0.5]),
    "box": ({"low": -1.0, "high": 2.0}, [2.0, -1.0, 0.0, 0.5]),
    "l2_ball": ({"radius": 2.0}, [2 / math.sqrt(25.25) * w for w in (3.0, -4.0, 0.0, 0.5)]),
    "max_norm": ({"max": 2.0}, [1.2, -1.6, 0.0, 0.5]),  # ‖(3, −4)‖ = 5, ‖(0, 0.5)‖ = 0.5
    "unit_norm": ({}, [0.6, -0.8, 0.0, 1.0]),
}
"""Fields, and the projection of W as two rows of two."""
PROXIMAL = ("l1", "elastic_net", "group_lasso", "sparse_group_lasso")
ROWS_OF_W = [Slot("head.weight", 0, 4, (2, 2))]


def on_weights(kind: str) -> tuple[Any, Tensor | None, Groups | None]:
    regularizer = read(Regularizer, {"kind": kind, "lambda": 1.0, **BY_HAND[kind][0]})
    ratio = torch.tensor([[regularizer.l1_ratio]], dtype=DOUBLE) if hasattr(regularizer, "l1_ratio") else None
    return regularizer, ratio, groups_in(ROWS_OF_W, "rows", (), torch.device("cpu")) if "group" in kind else None


@pytest.mark.parametrize("kind", BY_HAND)
def test_penalty_by_hand_and_linear_in_lambda(kind):
    regularizer, *of = on_weights(kind)
    stacked = penalty(regularizer, W.expand(3, -1), column(0.0, 1.0, 2.0), *of)
    by_hand = BY_HAND[kind][1]
    assert stacked.tolist() == pytest.approx([0.0, by_hand, 2 * by_hand], rel=1e-14)


@pytest.mark.parametrize("kind", BY_HAND)
def test_penalty_is_zero_at_zero_and_never_negative(kind):
    regularizer, *of = on_weights(kind)
    draw = torch.Generator().manual_seed(0)
    assert penalty(regularizer, torch.zeros(1, 4, dtype=DOUBLE), column(3.0), *of).item() == 0.0
    assert all(penalty(regularizer, torch.randn(1, 4, generator=draw, dtype=DOUBLE), column(0.3), *of) > 0 for _ in range(50))


@pytest.mark.parametrize("kind", BY_HAND)
def test_penalty_gradient_by_finite_differences(kind):
    regularizer, *of = on_weights(kind)
    w = W + 0.1  # away from the kink at 0
    lam, h = column(0.7), 1e-5
    found = gradient(regularizer, w, lam, *of)
    for i in range(4):
        e = torch.zeros_like(w)
        e[0, i] = h
        slope = (penalty(regularizer, w + e, lam, *of) - penalty(regularizer, w - e, lam, *of)) / (2 * h)
        assert found[0, i].item() == pytest.approx(slope.item(), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("kind", PROXIMAL)
@pytest.mark.parametrize(("lam", "step"), [(0.7, 0.3), (5.0, 0.8), (0.0, 1.0)])
def test_prox_beats_every_neighbour(kind, lam, step):
    regularizer, *of = on_weights(kind)
    u = prox(regularizer, W, column(lam), column(step), *of)

    def cost(v: Tensor) -> float:
        return (0.5 * (v - W).square().sum() + step * penalty(regularizer, v, column(lam), *of)).item()

    draw = torch.Generator().manual_seed(0)
    assert all(cost(u) <= cost(u + scale * torch.randn(u.shape, generator=draw, dtype=DOUBLE)) for scale in (1e-4, 1e-2, 1.0) for _ in range(200))


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_run_in_a_stack_equals_the_run_alone(kind):
    regularizer, *of = on_weights(kind)
    w = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    lam, step = column(0, 0.1, 1, 2, 9), column(1, 1, 0.5, 0.5, 0.1)
    each = [slice(r, r + 1) for r in range(5)]
    assert torch.equal(penalty(regularizer, w, lam, *of), torch.cat([penalty(regularizer, w[r], lam[r], *of) for r in each]))
    assert torch.equal(gradient(regularizer, w, lam, *of), torch.cat([gradient(regularizer, w[r], lam[r], *of) for r in each]))
    if kind in PROXIMAL:
        assert torch.equal(prox(regularizer, w, lam, step, *of), torch.cat([prox(regularizer, w[r], lam[r], step[r], *of) for r in each]))


GROUPINGS: dict[str, tuple[Any, tuple[int, ...], float]] = {
    "rows": ("rows", (2, 2), math.sqrt(2) * 5.5),
    "columns": ("columns", (2, 2), math.sqrt(2) * (3 + math.sqrt(16.25))),  # (3, 0) and (−4, 0.5)
    "tensor": ("tensor", (2, 2), math.sqrt(25.25)),
    "features": ((FeatureGroup(name="ends", features=("a", "d")), FeatureGroup(name="one", features=("b",)), FeatureGroup(name="zero", features=("c",))), (1, 4),
                 math.sqrt(2) * math.sqrt(9.25) + 4),  # (3, 0.5), (−4), (0)
    "filters": ("rows", (2, 1, 1, 2), math.sqrt(2) * 5.5),
    "channels": ("columns", (1, 2, 1, 2), math.sqrt(2) * 5.5),
    "rows of a bias": ("rows", (4,), 7.5),
    "columns of a bias": ("columns", (4,), 2 * math.sqrt(25.25)),
}  # fmt: skip


@pytest.mark.parametrize("how", GROUPINGS)
def test_groups_by_hand(how):
    by, shape, value = GROUPINGS[how]
    groups = groups_in([Slot("head.weight", 0, 4, shape)], by, tuple("abcd"), torch.device("cpu"))
    group_lasso = read(Regularizer, {"kind": "group_lasso", "lambda": 1.0})
    assert penalty(group_lasso, W, column(1.0), None, groups).item() == pytest.approx(value, rel=1e-14)


def test_groups_of_two_tensors_side_by_side_do_not_mix():
    both = groups_in([Slot("a", 0, 4, (2, 2)), Slot("b", 4, 6, (1, 2))], "rows", (), torch.device("cpu"))
    assert both.norms(torch.tensor([[3.0, 4, 5, 12, 8, 15]])).tolist() == [[5, 13, 17]]
    assert both.spread(torch.tensor([[1.0, 2, 3]])).tolist() == [[1, 1, 2, 2, 3, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("kind", ["group_lasso", "sparse_group_lasso"])
def test_groups_shrink_to_exact_zeros_and_no_norm_is_divided_by_zero(kind, dtype):
    """‖(3, −4)‖ = 5 is shortened by √2·λ·step; (0, 0.5), a group of zeros, and one so small that its squares underflow become zero."""
    regularizer, ratio, _ = on_weights(kind)
    groups = groups_in([Slot("head.weight", 0, 8, (4, 2))], "rows", (), torch.device("cpu"))
    w = torch.tensor([[3.0, -4.0, 0.0, 0.5, 0.0, 0.0, 1e-30, -1e-30]], dtype=dtype)
    zero = None if ratio is None else torch.zeros_like(ratio)
    u = prox(regularizer, w, column(1.0).to(dtype), column(1.0).to(dtype), zero, groups)
    shorter = 1 - math.sqrt(2) / 5
    assert u[0].tolist() == pytest.approx([3 * shorter, -4 * shorter, 0, 0, 0, 0, 0, 0], rel=1e-6)
    assert torch.count_nonzero(u) == 2
    assert torch.equal(prox(regularizer, w, column(0.0).to(dtype), column(1.0).to(dtype), zero, groups), w)
    assert bool(gradient(regularizer, torch.zeros_like(w), column(1.0).to(dtype), zero, groups).eq(0).all())


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_projection_by_hand_is_the_nearest_point_and_leaves_it_alone(kind):
    fields, want = CONSTRAINTS[kind]
    constraint = read(Regularizer, {"kind": kind, **fields})
    of = (column(fields.get("low", 0.0)), column(next((v for k, v in fields.items() if k != "low"), 0.0)), norms_in(constraint, ROWS_OF_W, torch.device("cpu")))
    found = projected(constraint, W, *of)
    assert found[0].tolist() == pytest.approx(want, rel=1e-14)
    assert projected(constraint, found, *of)[0].tolist() == pytest.approx(want, rel=1e-14)
    draw = torch.Generator().manual_seed(0)
    others = [projected(constraint, found + scale * torch.randn(W.shape, generator=draw, dtype=DOUBLE), *of) for scale in (1e-4, 1e-2, 1.0) for _ in range(100)]
    assert all((found - W).norm() <= (other - W).norm() * (1 + 1e-12) for other in others)
    zeros = torch.zeros_like(W)
    assert torch.equal(projected(constraint, zeros, *of), zeros)
    assert bool(projected(constraint, torch.full_like(W, math.nan), *of).isnan().any())


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_a_constraint_holds_after_every_update_in_every_run(kind):
    x, y = rows_of_classes(24, 5, 3)
    fields, _ = CONSTRAINTS[kind]
    limit = {"box": {"low": {"values": [-0.2, -0.1]}, "high": 0.1}, "l2_ball": {"radius": {"values": [0.5, 0.7]}}, "max_norm": {"max": {"values": [0.2, 0.3]}}}.get(kind, {})
    job = spec(inline(x, y), {"kind": "mlp", "hidden": [4]}, "cross_entropy", sgd(0.5, 0.9), {"kind": kind, **fields, **limit}, epochs=7, selection={"seeds": 2})
    found = run(job)
    assert found.started.penalised["regularizers.0"] == ["layers.0.weight", "head.weight"]
    for r, of in found.runs.items():
        high = next((v["values"][r // 2] for v in limit.values() if isinstance(v, dict)), None)
        tensors = [found.weights[name][r] for name in ("layers.0.weight", "head.weight")]
        rows = torch.cat([w.norm(dim=1) for w in tensors])
        everything = torch.cat([w.flatten() for w in tensors])
        holds = {
            "non_negative": everything.min() >= 0, "box": everything.min() >= (high or 0) and everything.max() <= 0.1,
            "l2_ball": everything.norm() <= (high or 0) * (1 + 1e-14), "max_norm": rows.max() <= (high or 0) * (1 + 1e-14), "unit_norm": (rows - 1).abs().max() < 1e-14,
        }  # fmt: skip
        assert bool(holds[kind]), kind
        assert of.metrics["loss/train"] > 0
        assert not any(name.startswith("penalty/") for name in of.metrics)


def test_a_run_that_does_not_move_is_not_projected():
    """Its first loss is infinite: it keeps its initial weights, which the constraint forbids."""
    x, y = rows_of_classes(24, 5, 3)
    model = {"kind": "mlp", "hidden": [4], "activation": "identity", "init": {"kind": "torch", "scale": {"values": [1e200, 1.0]}}}
    found = run(spec(inline(x, y), model, "squared_error", sgd(0.01), {"kind": "non_negative"}, epochs=3))
    assert [found.runs[r].stop_reason for r in range(2)] == ["diverged", "budget"]
    assert found.flat(0).min() < 0 <= found.weights["layers.0.weight"][1].min()


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("on", ["weights", "all", ["layers.1"]])
def test_the_ledger_of_a_job_equals_the_penalty_of_its_weights(kind, on):
    """penalty/<kind> at step t is λR of the weights before update t: here of the weights that a job of t updates ends with."""
    x, y = rows_of_classes(12, 3, 3)
    regularizer = {"kind": kind, "lambda": 0.01, "on": on, **BY_HAND[kind][0]}
    job = spec(inline(x, y), {"kind": "mlp", "hidden": [5, 4], "activation": "tanh", "init": {"kind": "torch"}}, "cross_entropy", sgd(0.1), regularizer)
    short, long = run({**job, "budget": {"epochs": 3, "batch_size": "all"}}), run({**job, "budget": {"epochs": 4, "batch_size": "all"}})
    names = {"weights": [n for n in short.weights if n.endswith("weight")], "all": list(short.weights)}.get(str(on), ["layers.1.weight"])
    w = torch.cat([short.weights[n][0].flatten() for n in names]).numpy()
    of_rows = sum(
        math.sqrt(t[0].numel()) * t.flatten(1).norm(dim=1).sum().item()
        for t in (short.weights[n][0].unflatten(0, (-1, 1)) if short.weights[n].dim() == 2 else short.weights[n][0] for n in names)
    )
    by_kind = {
        "l1": np.abs(w).sum(),
        "elastic_net": 0.25 * np.abs(w).sum() + 0.375 * (w**2).sum(),
        "group_lasso": of_rows,
        "sparse_group_lasso": 0.25 * np.abs(w).sum() + 0.75 * of_rows,
    }
    value = by_kind.get(kind, 0.5 * (w**2).sum())
    assert long.curve(f"penalty/{kind}")[3] == pytest.approx(0.01 * value, rel=1e-13)
    assert short.runs[0].metrics[f"penalty/{kind}"] == pytest.approx(0.01 * value, rel=1e-13)
    assert long.curve("objective/train") == pytest.approx(long.curve("loss/train") + long.curve(f"penalty/{kind}"), rel=1e-14)
    assert sorted(short.started.penalised["regularizers.0"]) == sorted(names)


@pytest.mark.parametrize("kind", [*BY_HAND, *CONSTRAINTS, *NOT_ON_WEIGHTS])
def test_regularizer_survives_the_round_trip_through_json(kind):
    given = {
        "kind": kind,
        **({"lambda": {"log": [1e-4, 1.0], "points": 5}} | BY_HAND[kind][0] if kind in BY_HAND else CONSTRAINTS[kind][0] if kind in CONSTRAINTS else NOT_ON_WEIGHTS[kind]),
    }
    regularizer = read(Regularizer, given)
    assert TypeAdapter(Regularizer).validate_json(regularizer.model_dump_json()) == regularizer
    assert set(given) <= set(regularizer.model_dump(mode="json"))


# ---------------------------------------------------------------- step penalty and dropout


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 3.0, 6.0])
def test_step_penalty_beats_every_neighbour(squared, alpha):
    """Δ = −η·shortened(g) minimises ⟨g,Δ⟩ + ‖Δ‖²/2η + α‖Δ‖, or + (α/2)‖Δ‖².  ‖g‖ = 5."""
    g, eta = torch.tensor([[3.0, 0.0, -4.0]], dtype=DOUBLE), 0.3
    best = -eta * shortened(g, alpha=column(alpha), lr=column(eta), squared=squared)

    def cost(d: Tensor) -> float:
        size = d.norm()
        return ((g * d).sum() + size**2 / (2 * eta) + (alpha / 2 * size**2 if squared else alpha * size)).item()

    draw = torch.Generator().manual_seed(0)
    assert all(cost(best) <= cost(best + scale * torch.randn(g.shape, generator=draw, dtype=DOUBLE)) for scale in (1e-4, 1e-2, 1.0) for _ in range(100))


def test_dropout_factors_are_zero_or_one_over_one_minus_rate():
    """With weight 1 and y = 0 the gradient of half_squared_error tells each factor: x = e_i picks it. Read from the loss: ½ mean factor²."""
    n = 2000
    for rate in (0.0, 0.2, 0.5):
        job = spec(
            inline(np.ones((n, 1)), np.zeros(n)), {"kind": "linear", "bias": False, "init": {"kind": "uniform", "bound": 1.0}}, "half_squared_error", sgd(FROZEN),
            {"kind": "dropout", "rate": rate, "on": "inputs"}, epochs=40,
        )  # fmt: skip
        found = run(job)
        w = found.weights["head.weight"].item()
        kept = 2 * found.curve("loss/train") / w**2 * (1 - rate) ** 2 * n  # how many rows were kept at each step
        assert np.abs(kept - kept.round()).max() < 1e-8
        assert kept.mean() / n == pytest.approx(1 - rate, abs=4 * math.sqrt(rate * (1 - rate) / (40 * n)) + 1e-12)
        assert rate == 0 or len(np.unique(kept.round())) > 10
        assert found.runs[0].metrics["loss/train"] == pytest.approx(w**2 / 2, rel=1e-14)  # off in evaluation


def test_dropout_leaves_the_way_around_a_residual_layer_open():
    """At rate 1 − 1e-12 nothing is kept of φ(W₁h + b₁): what remains is the net without layers.1."""
    x, y = rows_of_classes(8, 6, 3)
    model = {"kind": "mlp", "hidden": [5, 5], "activation": "tanh", "residual": True, "init": {"kind": "torch"}}
    found = run(spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), {"kind": "dropout", "rate": 1 - 1e-12, "on": ["layers.1"]}))
    w = {name: value[0] for name, value in found.weights.items()}
    outputs = torch.tanh(x @ w["layers.0.weight"].T + w["layers.0.bias"]) @ w["head.weight"].T + w["head.bias"]
    assert found.curve("loss/train")[0] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-13)


def test_dropout_acts_on_the_named_layers():
    x, y = rows_of_classes(40, 6, 3)
    job = spec(inline(x, y), {"kind": "mlp", "hidden": [16, 16], "activation": "relu"}, "cross_entropy", sgd(FROZEN))
    forward = {on: run({**job, "regularizers": [{"kind": "dropout", "rate": 0.5, "on": on}]}).curve("signal/forward")[0] for on in ("inputs", "hidden")}
    named = run({**job, "regularizers": [{"kind": "dropout", "rate": 0.5, "on": ["layers.1"]}]}).curve("signal/forward")[0]
    plain = run(job).curve("signal/forward")[0]
    assert [bool(a == b) for a, b in zip(named, plain, strict=True)] == [True, True, False]
    assert [bool(a == b) for a, b in zip(forward["hidden"], plain, strict=True)] == [True, False, False]
    assert forward["inputs"][0] != plain[0]


# ---------------------------------------------------------------- losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]], dtype=DOUBLE)
ONE = torch.tensor([[1.5], [-0.5], [3.0]], dtype=DOUBLE)

LOSSES: dict[str, tuple[dict[str, Any], Tensor, Tensor, float, Callable[[Tensor, Tensor], Tensor]]] = {
    "squared_error": ({}, ONE, torch.tensor([1.0, 0.5, 3.0]), 1.25, lambda f, y: F.mse_loss(f[:, 0], y, reduction="sum")),  # 0.25 + 1 + 0
    "half_squared_error": ({}, ONE, torch.tensor([1.0, 0.5, 3.0]), 0.625, lambda f, y: F.mse_loss(f[:, 0], y, reduction="sum") / 2),
    "cross_entropy": ({}, LOGITS, torch.tensor([0, 2]), 0.2413113 + math.log(3), lambda f, y: F.cross_entropy(f, y, reduction="sum")),  # −2 + ln(e² + e⁻¹ + e^½)
    "binary": ({}, ONE, torch.tensor([1.0, 0.0, 0.0]), math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-0.5)) + math.log1p(math.exp(3)),
               lambda f, y: F.binary_cross_entropy_with_logits(f[:, 0], (y + 1) / 2, reduction="sum")),
}  # fmt: skip


def value_of(kind: str, f: Tensor, y: Tensor, smoothing: Tensor | None = None) -> Tensor:
    return loss_of(read(Loss, {"kind": kind}), f, y, smoothing=smoothing)[0]


def targets(kind: str) -> Tensor:
    return target(read(Loss, {"kind": kind}), LOSSES[kind][2].double(), DOUBLE)


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_by_hand_and_as_torch(kind):
    _, f, _, by_hand, of_torch = LOSSES[kind]
    y, leaf = targets(kind), f.clone().requires_grad_()
    of_torch(leaf, y).backward()
    value, slope = loss_of(read(Loss, {"kind": kind}), f[None], y)
    assert value.item() == pytest.approx(by_hand, rel=1e-7)
    assert value.item() == pytest.approx(of_torch(f, y).item(), rel=1e-14)
    assert torch.allclose(slope[0], leaf.grad, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("smoothing", [None, 0.2])
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_gradient_by_finite_differences(kind, smoothing):
    _, f, _, _, _ = LOSSES[kind]
    y, share, h = targets(kind), None if smoothing is None else column(smoothing), 1e-5
    slope = loss_of(read(Loss, {"kind": kind}), f[None], y, smoothing=share)[1][0]
    for i, j in np.ndindex(*f.shape):
        e = torch.zeros_like(f)
        e[i, j] = h
        by_difference = (value_of(kind, (f + e)[None], y, share) - value_of(kind, (f - e)[None], y, share)) / (2 * h)
        assert slope[i, j].item() == pytest.approx(by_difference.item(), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("kind", LOSSES)
def test_stacked_losses_equal_those_alone_and_are_never_negative(kind):
    _, f, _, _, _ = LOSSES[kind]
    of, y, stacked = read(Loss, {"kind": kind}), targets(kind), torch.stack([f, 2 * f, f - 1])
    value, slope = loss_of(of, stacked, y)
    alone = [loss_of(of, s[None], y) for s in stacked]
    assert torch.equal(value, torch.cat([v for v, _ in alone]))
    assert torch.equal(slope, torch.cat([g for _, g in alone]))
    assert bool((value >= 0).all())
    own_targets = loss_of(of, stacked, torch.stack([y, y, y.flip(0)]))[0]
    assert own_targets[2].item() == value_of(kind, (f - 1)[None], y.flip(0)).item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_as_torch(smoothing):
    y = torch.tensor([0, 2])
    ours, slope = loss_of(read(Loss, {"kind": "cross_entropy"}), LOGITS.expand(2, -1, -1), y, smoothing=column(smoothing, 0.3))
    for r, s in enumerate((smoothing, 0.3)):
        leaf = LOGITS.clone().requires_grad_()
        theirs = F.cross_entropy(leaf, y, reduction="sum", label_smoothing=s)
        theirs.backward()
        assert ours[r].item() == pytest.approx(theirs.item(), rel=1e-14)
        assert torch.allclose(slope[r], leaf.grad, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1), (3, 8)])
def test_two_classes_may_be_named_by_any_two_numbers(labels):
    x, y = rows_of_classes(30, 2, 2)
    found = run(spec(inline(x, np.where(y == 0, *labels)), {"kind": "linear"}, "binary", sgd(0.5), epochs=20))
    same = run(spec(inline(x, y), {"kind": "linear"}, "binary", sgd(0.5), epochs=20))
    assert torch.equal(found.flat(), same.flat())


def test_a_confident_wrong_answer_costs_a_finite_loss():
    f = torch.tensor([[[-800.0]], [[800.0]]], dtype=DOUBLE)
    assert value_of("binary", f, torch.ones(1, dtype=DOUBLE)).tolist() == [800.0, 0.0]


# ---------------------------------------------------------------- models against plain torch modules

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU,
    "gelu": nn.GELU, "silu": nn.SiLU, "softsign": nn.Softsign, "softplus": nn.Softplus, "identity": nn.Identity,
}  # fmt: skip
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
IMAGE_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": lambda channels: nn.GroupNorm(1, channels)}
POOLS: dict[str, Callable[[], nn.Module]] = {"max": lambda: nn.MaxPool2d(2), "average": lambda: nn.AvgPool2d(2), "none": nn.Identity}


class Around(nn.Module):
    """h + branch(h)"""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class Linearly(nn.Module):
    """h_t = W x_t + U h_{t−1} + b, a cell that torch.nn.RNN does not have."""

    def __init__(self, features: int, width: int, *, bias: bool, **_: Any) -> None:
        super().__init__()
        self.weight_ih_l0, self.weight_hh_l0 = nn.Parameter(torch.empty(width, features)), nn.Parameter(torch.empty(width, width))
        if bias:
            self.bias_ih_l0, self.bias_hh_l0 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h, states = x.new_zeros(len(x), len(self.weight_hh_l0)), []
        for step in x.unbind(1):
            h = step @ self.weight_ih_l0.T + h @ self.weight_hh_l0.T + (self.bias_ih_l0 if hasattr(self, "bias_ih_l0") else 0)
            states.append(h)
        return torch.stack(states, 1), None


CELLS: dict[str, Callable[..., nn.Module]] = {
    "tanh": nn.RNN, "relu": lambda *sizes, **how: nn.RNN(*sizes, nonlinearity="relu", **how), "identity": Linearly, "lstm": nn.LSTM, "gru": nn.GRU,
}  # fmt: skip


class Recurrent(nn.Module):
    """torch's own recurrent modules, one a layer, and a linear head on the last state."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Tensor], run: int) -> None:
        super().__init__()
        self.steps, self.named = model["sequence"][0], dict[str, Tensor]()
        self.parts = nn.ModuleList()
        for index in range(len(model["hidden"])):
            name, bias = f"layers.{index}", model.get("bias", True)
            width, features = weights[f"{name}.recurrent.weight"].shape[2], weights[f"{name}.input.weight"].shape[2]
            part = CELLS[model.get("cell", "tanh")](features, width, bias=bias, batch_first=True).double()
            for ours, theirs in (("input.weight", "weight_ih_l0"), ("recurrent.weight", "weight_hh_l0"), ("input.bias", "bias_ih_l0"), ("recurrent.bias", "bias_hh_l0")):
                if f"{name}.{ours}" in weights:
                    self.named[f"{name}.{ours}"] = getattr(part, theirs)
                    self.named[f"{name}.{ours}"].data.copy_(weights[f"{name}.{ours}"][run])
                elif bias:
                    getattr(part, theirs).data.zero_()
            self.parts.append(part)
        self.head = nn.Linear(width, weights["head.weight"].shape[1], bias="head.bias" in weights).double()
        for own, value in self.head.named_parameters():
            value.data.copy_(weights[f"head.{own}"][run])
            self.named[f"head.{own}"] = value

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(1, (self.steps, -1))
        for part in self.parts:
            h, _ = part(h)
        return self.head(h[:, -1])


def with_weight_norm(part: nn.Module, name: str, weights: dict[str, Tensor], run: int) -> dict[str, Tensor]:
    own = nn.utils.parametrizations.weight_norm(part).parametrizations.weight
    own.original0.data.copy_(weights[f"{name}.gain"][run].view_as(own.original0))
    return {f"{name}.weight": own.original1, f"{name}.gain": own.original0}


def with_spectral_norm(part: nn.Module, name: str, weights: dict[str, Tensor], run: int) -> dict[str, Tensor]:
    """With the singular vectors of the last update: `eval()` takes them as they are, `train()` makes one iteration more."""
    own = nn.utils.parametrizations.spectral_norm(part).parametrizations.weight
    own[0]._u.copy_(weights[f"{name}.running_left"][run])
    own[0]._v.copy_(weights[f"{name}.running_right"][run])
    part.eval()
    return {f"{name}.weight": own.original}


REPARAMETRIZATIONS: dict[str, Callable[..., dict[str, Tensor]]] = {"weight_norm": with_weight_norm, "spectral_norm": with_spectral_norm}


def plain(model: dict[str, Any], weights: dict[str, Tensor], run: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same model of torch's own modules with copied weights, and name → its parameter."""
    if model.get("kind") == "rnn":
        recurrent = Recurrent(model, weights, run)
        return recurrent, recurrent.named
    steps: list[nn.Module] = []
    named: dict[str, Tensor] = {}
    dense = weights["head.weight"].dim()
    norm = (model.get("normalization") or {}).get("kind")
    layers = sorted({name.rsplit(".", 1)[0] for name in weights if name.endswith("weight") and ".norm" not in name})
    layers = [*sorted((n for n in layers if n != "head"), key=lambda n: int(n.split(".")[1])), "head"]
    flat = False
    for name in layers:
        shape = weights[f"{name}.weight"].shape[1:]
        image = len(shape) == 4
        if not image and not flat:
            steps.append(nn.Flatten())
            flat = True
        bias, begin = f"{name}.bias" in weights, len(steps)
        made = nn.Conv2d(shape[1], shape[0], shape[2], stride=model.get("stride", 1), padding=shape[2] // 2, bias=bias) if image else nn.Linear(shape[1], shape[0], bias=bias)
        steps.append(made)
        parts: list[tuple[str, nn.Module]] = [(name, made)]
        if name != "head":
            if norm:
                parts.append((f"{name}.norm", (IMAGE_NORMS if image else NORMS)[norm](shape[0])))
                steps.append(parts[-1][1])
            steps.append(ACTIVATIONS[model.get("activation", "relu")]())
            if image:
                steps.append(POOLS[model.get("pool", "max")]())
            if model.get("residual") and shape[0] == shape[1]:
                steps[begin:] = [Around(nn.Sequential(*steps[begin:]))]
        for prefix, part in parts:
            part.double()
            for own, value in part.named_parameters():
                value.data.copy_(weights[f"{prefix}.{own}"][run])
                named[f"{prefix}.{own}"] = value
        if model.get("reparametrization"):
            named |= REPARAMETRIZATIONS[model["reparametrization"]["kind"]](made, name, weights, run)
    assert dense == 3
    return nn.Sequential(*steps), named


MODELS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"bias": False}],
    "mlp": [
        {"hidden": [7]},
        {"hidden": [7, 5], "bias": False},
        {"hidden": [6, 6], "normalization": {"kind": "batch"}},
        {"hidden": [6, 5], "normalization": {"kind": "layer"}},
        {"hidden": [72, 6, 6, 5, 5], "activation": "tanh", "residual": True},
        {"hidden": [6, 6, 6], "normalization": {"kind": "batch"}, "residual": True, "bias": False},
        {"hidden": [6, 6], "normalization": {"kind": "layer"}, "residual": True},
        {"hidden": [7, 5], "reparametrization": {"kind": "weight_norm"}},
        {"hidden": [7, 7], "reparametrization": {"kind": "weight_norm"}, "normalization": {"kind": "layer"}, "residual": True, "bias": False},
        {"hidden": [7, 5], "reparametrization": {"kind": "spectral_norm"}, "activation": "tanh"},
        {"hidden": [6, 6], "reparametrization": {"kind": "spectral_norm"}, "normalization": {"kind": "batch"}, "residual": True},
    ],
    "cnn": [
        {"channels": [3]},
        {"channels": [3, 4], "pool": "average", "hidden": [5], "activation": "tanh"},
        {"channels": [4], "pool": "none", "stride": 2, "kernel": 5},
        {"channels": [3, 2], "normalization": {"kind": "batch"}, "hidden": [4]},
        {"channels": [3, 2], "normalization": {"kind": "layer"}, "hidden": [4], "bias": False},
        {"channels": [3, 2], "hidden": [4], "reparametrization": {"kind": "weight_norm"}},
        {"channels": [3, 2], "hidden": [4], "reparametrization": {"kind": "spectral_norm"}, "pool": "average"},
    ],
    "rnn": [{"sequence": [12, 6], "hidden": hidden, "cell": cell, "bias": bias} for cell in CELLS for hidden, bias in (([5], True), ([6], False), ([4, 7, 3], True))],
}
EACH_MODEL = [pytest.param({"kind": kind, **fields}, id=f"{kind}-{i}") for kind, rows in MODELS.items() for i, fields in enumerate(rows)]


def one_update(model: dict[str, Any], *, validation: float = 0.0, x: Tensor | None = None, y: Tensor | None = None) -> tuple[Outcome, Outcome, Tensor, Tensor]:
    """The job before and after one update of plain gradient descent with lr = 1: its gradient is the difference of its weights."""
    if x is None or y is None:
        x, y = rows_of_classes(20, 2 * 6 * 6, 3)
    model = {**model, "init": {"kind": "torch"}, **({"image": [2, 6, 6]} if model["kind"] == "cnn" else {})}
    job = spec(inline(x, y, validation=validation, split="last"), model, "cross_entropy", sgd(FROZEN), diagnostics="full", selection={"seeds": 2})
    return run(job), run({**job, "optimizer": sgd(1.0)}), x, y


@pytest.mark.parametrize("model", EACH_MODEL)
def test_loss_and_every_gradient_equal_those_of_plain_torch(model):
    before, after, x, y = one_update(model)
    for r in range(2):
        net, named = plain(model, before.weights, r)
        loss = F.cross_entropy(net(x.view(20, 2, 6, 6) if model["kind"] == "cnn" else x), y)
        loss.backward()
        assert before.curve("loss/train", r)[0] == pytest.approx(loss.item(), rel=1e-13)
        assert set(named) == {n for n in before.weights if "running" not in n}
        for name, value in named.items():
            assert value.grad is not None
            ours = (before.weights[name][r] - after.weights[name][r]).view_as(value)
            assert (ours - value.grad).abs().max() < 1e-13, name
        by_layer = [named[f"{layer}.weight"].grad for layer in before.started.layers]
        norms = [g.norm().item() for g in by_layer if g is not None]
        assert before.curve("gradient/norm", r)[0] == pytest.approx(norms, rel=1e-12)
        assert before.curve("gradient/rms", r)[0] == pytest.approx([n / math.sqrt(g.numel()) for n, g in zip(norms, by_layer, strict=True) if g is not None], rel=1e-12)
        everything = torch.cat([v.grad.flatten() for v in named.values() if v.grad is not None])
        assert before.curve("gradient/total", r)[0] == pytest.approx(everything.norm().item(), rel=1e-12)


@pytest.mark.parametrize("model", [m for m in EACH_MODEL if "rnn" not in str(m.id)])
def test_signals_equal_those_of_plain_torch(model):
    before, _, x, y = one_update(model)
    net, named = plain(model, before.weights)
    signals: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        signals.append(output)

    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(keep)
    F.cross_entropy(net(x.view(20, 2, 6, 6) if model["kind"] == "cnn" else x), y).backward()
    assert before.curve("signal/forward")[0] == pytest.approx([s.square().mean().sqrt().item() for s in signals], rel=1e-12)
    assert before.curve("signal/backward")[0] == pytest.approx([s.grad.square().mean().sqrt().item() for s in signals if s.grad is not None], rel=1e-12)
    assert before.curve("weight/norm")[0] == pytest.approx([named[f"{layer}.weight"].norm().item() for layer in before.started.layers], rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_equals_that_of_torch(activation):
    before, after, x, y = one_update({"kind": "mlp", "hidden": [9, 8], "activation": activation})
    net, named = plain({"activation": activation}, before.weights)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    assert before.curve("loss/train")[0] == pytest.approx(loss.item(), rel=1e-13)
    for name, value in named.items():
        assert value.grad is not None
        assert (before.weights[name][0] - after.weights[name][0] - value.grad).abs().max() < 1e-14, name


@pytest.mark.parametrize("model", [m for m in EACH_MODEL if "batch" in str(m.values)])
def test_running_statistics_equal_those_of_torch_and_serve_the_evaluation(model):
    x, y = rows_of_classes(20, 72, 3)
    before, after, _, _ = one_update(model, validation=0.25, x=x, y=y)
    net, _ = plain(model, before.weights)
    shaped = x.view(20, 2, 6, 6) if model["kind"] == "cnn" else x
    net(shaped[:15])  # as made: in training mode, but for spectral norm's vectors
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    running = [name for name in after.weights if name.endswith("running_mean")]
    assert len(running) == len(norms) > 0
    for name, norm in zip(running, norms, strict=True):
        assert torch.allclose(after.weights[name][0], norm.running_mean, rtol=1e-13, atol=1e-15)
        assert torch.allclose(after.weights[name.replace("mean", "var")][0], norm.running_var, rtol=1e-13, atol=1e-15)
    net.eval()
    assert before.curve("loss/val")[1] == pytest.approx(F.cross_entropy(net(shaped[15:]), y[15:]).item(), rel=1e-13)


@pytest.mark.parametrize("model", [m for m in EACH_MODEL if "batch" in str(m.values)])
def test_accumulation_with_batch_norm_equals_torch_over_its_micro_batches(model):
    """20 rows in micro-batches of 7, 7 and 6: each is normalised by its own statistics, and each enters the running averages."""
    x, y = rows_of_classes(20, 72, 3)
    model = {**model, "init": {"kind": "torch"}, **({"image": [2, 6, 6]} if model["kind"] == "cnn" else {})}
    job = spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), accumulate=3)
    before, after = run(job), run({**job, "optimizer": sgd(1.0)})
    net, named = plain(model, before.weights)
    shaped, losses = x.view(20, 2, 6, 6) if model["kind"] == "cnn" else x, []
    for part in (slice(0, 7), slice(7, 14), slice(14, 20)):
        loss = F.cross_entropy(net(shaped[part]), y[part], reduction="sum") / 20
        loss.backward()
        losses.append(loss.item())
    assert before.curve("loss/train")[0] == pytest.approx(sum(losses), rel=1e-13)
    for name, value in named.items():
        assert value.grad is not None
        assert (before.weights[name][0] - after.weights[name][0] - value.grad).abs().max() < 1e-13, name
    for name, norm in zip([n for n in after.weights if n.endswith("running_mean")], [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)], strict=True):
        assert torch.allclose(after.weights[name][0], norm.running_mean, rtol=1e-13, atol=1e-15)
        assert torch.allclose(after.weights[name.replace("mean", "var")][0], norm.running_var, rtol=1e-13, atol=1e-15)


WEIGHT_NORM = {"kind": "mlp", "hidden": [7, 5], "activation": "relu", "init": {"kind": "torch"}, "reparametrization": {"kind": "weight_norm"}}
SPECTRAL_NORM = {**WEIGHT_NORM, "reparametrization": {"kind": "spectral_norm"}}


@pytest.mark.parametrize(
    "model", [WEIGHT_NORM, SPECTRAL_NORM, {**SPECTRAL_NORM, "kind": "cnn", "channels": [3], "hidden": [4], "image": [2, 3, 3]}], ids=["weight", "spectral", "spectral cnn"]
)
def test_thirty_reparametrized_steps_equal_those_of_torch(model):
    """Momentum and one iteration of the power method at each update; penalties act on what is learned."""
    x, y = rows_of_classes(20, 18, 3)
    job = spec(inline(x, y, validation=0.2, split="last"), model, "cross_entropy", sgd(0.2, 0.9), {"kind": "l2", "lambda": 0.01}, epochs=30)
    found, start = run(job), run({**job, "optimizer": sgd(FROZEN), "regularizers": [], "budget": {"epochs": 1, "batch_size": "all"}}).weights
    net, named = plain(model, start)
    learned = [value for name, value in named.items() if name.endswith("weight")]
    shaped = x.view(20, 2, 3, 3) if model["kind"] == "cnn" else x
    optimizer = torch.optim.SGD(named.values(), lr=0.2, momentum=0.9)
    losses, held = [], []
    for t in range(30):
        net.train(t > 0)  # the vectors that were copied have made the first update's iteration
        optimizer.zero_grad()
        loss = F.cross_entropy(net(shaped[:16]), y[:16])
        (loss + 0.005 * sum(w.square().sum() for w in learned)).backward()
        optimizer.step()
        losses.append(loss.item())
        net.eval()
        held.append(F.cross_entropy(net(shaped[16:]), y[16:]).item())
    assert found.curve("loss/train") == pytest.approx(losses, rel=1e-10)
    assert found.curve("loss/val")[1:] == pytest.approx(held, rel=1e-10)
    assert all(distance(found.weights[name][0].view_as(value), value.detach()) < 1e-10 for name, value in named.items())


def test_weights_under_spectral_norm_have_largest_singular_value_one():
    """After many updates that move nothing the power method has converged: against the singular values of LAPACK."""
    x, y = rows_of_classes(20, 18, 3)
    found = run(spec(inline(x, y), SPECTRAL_NORM, "cross_entropy", sgd(FROZEN), epochs=400, diagnostics="off"))
    for name in ("layers.0", "layers.1", "head"):
        w, u, v = (found.weights[f"{name}.{part}"][0] for part in ("weight", "running_left", "running_right"))
        assert torch.linalg.svdvals(w / (u @ w @ v))[0] == pytest.approx(1, rel=1e-9)


def test_weights_under_weight_norm_start_as_they_were_drawn_and_their_length_is_free():
    x, y = rows_of_classes(20, 18, 3)
    job = spec(inline(x, y), WEIGHT_NORM, "cross_entropy", sgd(FROZEN))
    plainly = run({**job, "model": {**WEIGHT_NORM, "reparametrization": None}})
    before, after = run(job), run({**job, "optimizer": sgd(1.0)})
    assert before.curve("loss/train")[0] == pytest.approx(plainly.curve("loss/train")[0], rel=1e-14)
    assert before.curve("signal/backward")[0] == pytest.approx(plainly.curve("signal/backward")[0], rel=1e-12)
    for name in ("layers.0.weight", "layers.1.weight", "head.weight"):
        v, gradient = before.weights[name][0], before.weights[name][0] - after.weights[name][0]
        assert (v * gradient).sum(1).abs().max() < 1e-15  # ⟨v, ∇v⟩ = 0 for each unit
        assert torch.equal(v, plainly.weights[name][0])
        assert before.weights[name.replace("weight", "gain")][0].tolist() == pytest.approx(v.norm(dim=1).tolist(), rel=1e-14)


def test_lsuv_under_weight_norm_scales_the_gains():
    x, y = rows_of_classes(20, 18, 3)
    found = run(spec(inline(x, y), {**WEIGHT_NORM, "bias": False, "init": {"kind": "lsuv"}}, "cross_entropy", sgd(FROZEN)))
    assert (found.curve("signal/forward")[0] > 0.999).all()  # rms² = variance + mean²
    net, _ = plain(WEIGHT_NORM, found.weights)
    assert net[:2](x).var(correction=0).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_a_unit_whose_weights_a_penalty_makes_zero_stays_zero(kind):
    x, y = rows_of_classes(20, 18, 3)
    model = {**WEIGHT_NORM, "reparametrization": {"kind": kind}}
    found = run(spec(inline(x, y), model, "cross_entropy", sgd(0.1), {"kind": "group_lasso", "lambda": 0.5, "on": ["layers.0"]}, epochs=60))
    assert found.runs[0].zeros["layers.0.weight"] == 7 * 18
    assert found.runs[0].stop_reason == "budget"
    assert np.isfinite(found.curve("gradient/norm")).all()


@pytest.mark.parametrize("model", [WEIGHT_NORM, SPECTRAL_NORM])
def test_reparametrized_micro_batches_add_up(model):
    x, y = rows_of_classes(20, 18, 3)
    whole, parts = (run(spec(inline(x, y), model, "cross_entropy", sgd(0.3), epochs=5, accumulate=n)) for n in (1, 3))
    assert distance(parts.flat(), whole.flat()) < 1e-13
    assert parts.curve("loss/train") == pytest.approx(whole.curve("loss/train"), rel=1e-13)


PENALISED = [
    [{"kind": "l2", "lambda": 0.3}],
    [{"kind": "l1", "lambda": 0.2}, {"kind": "l2", "lambda": 0.3, "on": ["layers.1"]}],
    [{"kind": "elastic_net", "lambda": 0.2, "on": "all"}, {"kind": "weight_decay", "lambda": 0.1}, {"kind": "l1", "lambda": 0.2, "method": "subgradient", "on": ["head"]}],
    [{"kind": "l2", "lambda": 0.0}],
]


@pytest.mark.parametrize("regularizers", PENALISED)
def test_the_ledger_of_gradients_equals_that_of_autograd(regularizers):
    """‖λ∇R‖ of all penalties together and its cosine with the loss's own gradient, layer by layer."""
    x, y = rows_of_classes(20, 6, 3)
    model = {"kind": "mlp", "hidden": [5, 4], "activation": "tanh", "init": {"kind": "torch"}}
    found = run(spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), *regularizers))
    net, named = plain(model, found.weights)
    F.cross_entropy(net(x), y).backward()
    for place, layer in enumerate(found.started.layers):
        own = named[f"{layer}.weight"]
        assert own.grad is not None
        w = own.detach().clone().requires_grad_()
        value = w.sum() * 0
        for r in regularizers:
            if r.get("on", "weights") in ("weights", "all") or layer in r["on"]:
                parts = {"l1": w.abs().sum(), "l2": w.square().sum() / 2, "weight_decay": w.square().sum() / 2, "elastic_net": (w.abs().sum() + w.square().sum() / 2) / 2}
                value = value + r["lambda"] * parts[r["kind"]]
        (of_penalty,) = torch.autograd.grad(value, w)
        cosine = F.cosine_similarity(of_penalty.flatten(), own.grad.flatten(), dim=0).item() if bool(of_penalty.any()) else 0.0
        assert found.curve("penalty_gradient/norm")[0, place] == pytest.approx(of_penalty.norm().item(), rel=1e-12)
        assert found.curve("penalty_gradient/cosine")[0, place] == pytest.approx(cosine, rel=1e-10)


def test_the_second_penalty_of_a_kind_has_a_series_of_its_own():
    x, y = rows_of_classes(20, 6, 3)
    found = run(spec(inline(x, y), {"kind": "linear", "init": {"kind": "torch"}}, "cross_entropy", sgd(0.1), *({"kind": "l1", "lambda": lam} for lam in (0.1, 0.2, 0.4))))
    assert [n for n in found.started.series if n.startswith("penalty/")] == ["penalty/l1", "penalty/l1.2", "penalty/l1.3"]
    one, two, three = (found.curve(f"penalty/l1{n}")[0] for n in ("", ".2", ".3"))
    assert (two, three) == (pytest.approx(2 * one, rel=1e-14), pytest.approx(4 * one, rel=1e-14))


def test_convolutions_take_their_image_from_the_dataset():
    found = run(spec({"kind": "digits"}, {"kind": "cnn", "channels": [2]}, "cross_entropy", sgd(0.1), batch_size=600))
    assert found.weights["head.weight"].shape == (1, 10, 2 * 4 * 4)


# ---------------------------------------------------------------- initial weights

INITS: dict[str, tuple[dict[str, Any], Callable[[int, int], float], str]] = {
    "torch": ({}, lambda i, _: 1 / (3 * i), "uniform"),
    "uniform": ({"bound": 0.07}, lambda i, o: 0.07**2 / 3, "uniform"),
    "normal": ({"std": 0.3}, lambda i, o: 0.09, "normal"),
    "xavier_uniform": ({}, lambda i, o: 2 / (i + o), "uniform"),
    "xavier_normal": ({}, lambda i, o: 2 / (i + o), "normal"),
    "he_uniform": ({}, lambda i, o: 2 / i, "uniform"),
    "he_normal": ({}, lambda i, o: 2 / i, "normal"),
    "lecun_uniform": ({}, lambda i, o: 1 / i, "uniform"),
    "lecun_normal": ({}, lambda i, o: 1 / i, "normal"),
    "orthogonal": ({}, lambda i, o: 1 / max(i, o), "orthogonal"),
    "identity": ({"std": 0.02}, lambda i, o: 0.0004, "normal"),  # of what is not square
    "lsuv": ({}, lambda i, o: 0.0, "data"),  # proved below
    "zeros": ({}, lambda i, o: 0.0, "zeros"),
}
"""Fields, variance from fan_in and fan_out, family."""


def drawn(model: dict[str, Any], *, features: int = 72, **rest: Any) -> dict[str, Tensor]:
    x, y = rows_of_classes(4, features, 3)
    return run(spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), diagnostics="off", **rest)).weights


@pytest.mark.parametrize("kind", [kind for kind, row in INITS.items() if row[2] != "data"])
@pytest.mark.parametrize("convolution", [False, True])
def test_initial_weights_have_their_variance_and_bounds(kind, convolution):
    fields, variance, family = INITS[kind]
    init = {"kind": kind, **fields}
    model = {"kind": "cnn", "channels": [150], "kernel": 5, "image": [8, 3, 3], "init": init} if convolution else {"kind": "mlp", "hidden": [160], "init": init}
    weights = drawn(model)
    w = weights["layers.0.weight"][0]
    fan_in, fan_out = (8 * 25, 150 * 25) if convolution else (72, 160)
    want, n = variance(fan_in, fan_out), w.numel()
    excess = {"uniform": 0.8, "normal": 2.0, "orthogonal": 2.0, "zeros": 0.0}[family]  # variance of w²/σ²: 4/5 uniform, 2 normal
    if family == "orthogonal":
        flat = w.flatten(1)
        gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
        assert (gram - torch.eye(len(gram), dtype=DOUBLE)).abs().max() < 1e-12
    else:
        assert abs(w.mean()) <= 4 * math.sqrt(want / n)
        assert w.square().mean() == pytest.approx(want, rel=4 * math.sqrt(excess / n))
    if family == "uniform":
        bound = math.sqrt(3 * want)
        assert 0.999 * bound < w.abs().max() <= bound
    if family == "normal":
        assert w.pow(4).mean() / want**2 == pytest.approx(3, rel=4 * math.sqrt(96 / 9 / n))  # kurtosis 3: variance of w⁴/σ⁴ is 96
    b = weights["layers.0.bias"][0]
    assert bool((b.abs() <= 1 / math.sqrt(fan_in)).all())
    assert bool(b.abs().max() > 0.9 / math.sqrt(fan_in)) if kind == "torch" else bool((b.abs() < 1e-290).all())


@pytest.mark.parametrize("kind", INITS)
def test_scale_multiplies_every_drawn_weight(kind):
    fields, _, _ = INITS[kind]
    one, three = (drawn({"kind": "mlp", "hidden": [6], "init": {"kind": kind, **fields, "scale": scale}}) for scale in (1.0, 3.0))
    assert torch.allclose(three["layers.0.weight"], 3 * one["layers.0.weight"], rtol=1e-15, atol=1e-290)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonal_rows_or_columns(shape):
    out, features = shape
    w = drawn({"kind": "mlp", "hidden": [out], "init": {"kind": "orthogonal"}}, features=features)["layers.0.weight"][0]
    gram = w @ w.T if out <= features else w.T @ w
    assert (gram - torch.eye(min(shape), dtype=DOUBLE)).abs().max() < 1e-13


def test_identity_is_the_identity_where_a_matrix_is_square():
    weights = drawn({"kind": "mlp", "hidden": [6, 5, 5, 6], "init": {"kind": "identity", "scale": 2.0}}, features=6)
    for name, width in (("layers.0", 6), ("layers.2", 5)):
        assert (weights[f"{name}.weight"][0] - 2 * torch.eye(width, dtype=DOUBLE)).abs().max() < 1e-290
    assert 0 < weights["layers.1.weight"].abs().max() < 0.01


UNIT_VARIANCE = {
    "mlp": {"kind": "mlp", "hidden": [30, 30, 20], "activation": "relu"},
    "residual": {"kind": "mlp", "hidden": [30, 30, 30], "activation": "tanh", "residual": True},
    "batch norm": {"kind": "mlp", "hidden": [30, 20], "normalization": {"kind": "batch"}},
    "cnn": {"kind": "cnn", "channels": [5, 4], "hidden": [9], "image": [2, 6, 6]},
    "linear": {"kind": "linear"},
}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("model", UNIT_VARIANCE)
def test_lsuv_gives_every_linear_output_unit_variance_on_the_first_batch(model, scale):
    """Against torch's own modules, in packs of two seeds with batches of their own; the direction of each weight tensor is that of `orthogonal`."""
    x, y = rows_of_classes(40, 72, 3)
    job = spec(inline(3 * x + 1, y), {**UNIT_VARIANCE[model], "init": {"kind": "lsuv", "scale": scale}}, "cross_entropy", sgd(FROZEN), batch_size=16, selection={"seeds": 2})
    found, orthogonal = run(job), run({**job, "model": {**job["model"], "init": {"kind": "orthogonal"}}})
    for r in range(2):
        net, named = plain(job["model"], found.weights, r)
        deviations: list[float] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, deviations: list[float] = deviations) -> None:
            deviations.append(output.var(correction=0).sqrt().item())

        for part in net.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.register_forward_hook(keep)
        first = (3 * x + 1)[row_order(job=0, run=r, epoch=0, rows=40)[:16]]
        net(first.view(-1, 2, 6, 6) if model == "cnn" else first)
        assert deviations == pytest.approx([scale] * len(deviations), rel=1e-12)
        for name in named:
            if name.endswith("weight") and ".norm" not in name:
                assert F.cosine_similarity(found.weights[name][r].flatten(), orthogonal.weights[name][r].flatten(), dim=0) == pytest.approx(1, abs=1e-14)


def test_lsuv_is_the_same_alone_and_in_a_pack():
    x, y = rows_of_classes(40, 6, 3)
    model = {"kind": "mlp", "hidden": [9, 8], "init": {"kind": "lsuv", "scale": {"values": [1.0, 2.0]}}}
    job = spec(inline(x, y), model, "cross_entropy", sgd(0.1), batch_size=16, epochs=3, selection={"seeds": 2, "folds": 2})
    company, alone = run(job), run(job, packs=[[r] for r in range(8)])
    assert all(distance(company.flat(r), alone.flat(r)) < 1e-12 for r in range(8))
    assert len({tuple(company.curve("signal/forward", r)[0]) for r in range(8)}) == 8


def test_lsuv_leaves_a_layer_alone_whose_outputs_do_not_vary():
    found = run(spec(inline(np.zeros((4, 3)), [0, 1, 0, 1]), {"kind": "mlp", "hidden": [3], "init": {"kind": "lsuv"}}, "cross_entropy", sgd(FROZEN)))
    gram = found.weights["layers.0.weight"][0] @ found.weights["layers.0.weight"][0].T
    assert (gram - torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-13


def test_layers_and_seeds_draw_different_weights_and_the_width_of_one_layer_does_not_change_another():
    weights = drawn({"kind": "mlp", "hidden": [5, 5, 5]}, features=5, selection={"seeds": 3})
    wide = drawn({"kind": "mlp", "hidden": [5, 5, 5, 9]}, features=5, selection={"seeds": 3})
    each = [weights[f"layers.{i}.weight"][r] for i in range(3) for r in range(3)]
    assert len({tuple(w.flatten().tolist()) for w in each}) == 9
    assert torch.equal(weights["layers.1.weight"], wide["layers.1.weight"])


def test_float32_weights_are_the_rounded_float64_ones():
    double, single = (drawn({"kind": "mlp", "hidden": [6]}, **({} if d == "float64" else {"dtype": d})) for d in ("float64", "float32"))
    assert torch.equal(double["layers.0.weight"].float(), single["layers.0.weight"])


# ---------------------------------------------------------------- optimizers × schedules against torch.optim

OPTIMIZERS: dict[str, list[tuple[dict[str, Any], Callable[[list[Tensor]], torch.optim.Optimizer]]]] = {
    "sgd": [
        ({"lr": 0.2}, lambda p: torch.optim.SGD(p, lr=0.2)),
        ({"lr": 0.2, "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)),
        ({"lr": 0.2, "momentum": 0.7, "nesterov": True}, lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.7, nesterov=True)),
    ],
    "adam": [
        ({"lr": 0.02}, lambda p: torch.optim.Adam(p, lr=0.02)),
        ({"lr": 0.02, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3}, lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.5, 0.9), eps=1e-3)),
    ],
}
SCHEDULES: dict[str, list[tuple[dict[str, Any], Callable[[int], float]]]] = {
    "constant": [({}, lambda t: 1.0), ({"warmup_steps": 8}, lambda t: min(1, (t + 1) / 9))],
    "step": [({"every": 10, "factor": 0.5}, lambda t: 0.5 ** (t // 10)), ({"every": 10, "warmup_steps": 4}, lambda t: (t + 1) / 5 if t < 4 else 0.1 ** ((t - 4) // 10))],
    "cosine": [
        ({}, lambda t: 0.5 * (1 + math.cos(math.pi * t / 50))),
        ({"low": 0.2, "warmup_steps": 5}, lambda t: (t + 1) / 6 if t < 5 else 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (t - 5) / 45))),
    ],
}
EACH_PAIR = [
    pytest.param({"kind": o, **fields, "schedule": {"kind": s, **of}}, make, factor, id=f"{o}{i}-{s}{j}")
    for o, rows in OPTIMIZERS.items() for i, (fields, make) in enumerate(rows) for s, schedules in SCHEDULES.items() for j, (of, factor) in enumerate(schedules)
]  # fmt: skip


def torch_curve(job: dict[str, Any], start: dict[str, Tensor], make: Callable[[list[Tensor]], torch.optim.Optimizer], factor: Callable[[int], float], x: Tensor, y: Tensor,
                *, steps: int, between: Callable[[dict[str, Tensor]], None] = lambda named: None) -> tuple[list[float], dict[str, Tensor]]:  # fmt: skip
    """Losses and final parameters of a plain torch loop over the same full batch."""
    net, named = plain(job["model"], start)
    optimizer = make(list(named.values()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        between(named)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, named


@pytest.mark.parametrize(("optimizer", "make", "factor"), EACH_PAIR)
def test_fifty_steps_equal_those_of_torch(optimizer, make, factor):
    x, y = rows_of_classes(24, 5, 3)
    job = spec(inline(x, y), {"kind": "mlp", "hidden": [8], "activation": "tanh"}, "cross_entropy", optimizer, epochs=50, diagnostics="standard")
    found, start = run(job), run({**job, "optimizer": sgd(FROZEN), "budget": {"epochs": 1, "batch_size": "all"}}).weights
    losses, named = torch_curve(job, start, make, factor, x, y, steps=50)
    assert found.curve("loss/train") == pytest.approx(losses, rel=1e-10)
    assert found.curve("learning_rate") == pytest.approx([optimizer["lr"] * factor(t) for t in range(50)], rel=1e-13)
    assert all(distance(found.weights[name][0], value.detach()) < 1e-10 for name, value in named.items())


# ---------------------------------------------------------------- clip

CLIPS: dict[str, Callable[[Tensor, float], None]] = {
    "global_norm": lambda p, limit: nn.utils.clip_grad_norm_(p, limit) and None,
    "value": lambda p, limit: nn.utils.clip_grad_value_(p, limit),
}


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("limit", [0.01, 0.05, 100.0])
def test_clipping_equals_that_of_torch(kind, limit):
    """To about 1e-6/‖g‖ for the norm: torch adds 1e-6 to its denominator."""
    x, y = rows_of_classes(24, 5, 3)
    job = spec(inline(x, y), {"kind": "mlp", "hidden": [8], "activation": "tanh"}, "cross_entropy", sgd(0.5), epochs=20, clip={"kind": kind, "max": limit})
    found, start = run(job), run({**job, "optimizer": sgd(FROZEN), "budget": {"epochs": 1, "batch_size": "all"}}).weights
    clip_in_torch: list[bool] = []

    def between(named: dict[str, Tensor]) -> None:
        grads = [v.grad.clone() for v in named.values() if v.grad is not None]
        CLIPS[kind](list(named.values()), limit)
        clip_in_torch.append(any(not torch.equal(a, v.grad) for a, v in zip(grads, named.values(), strict=True) if v.grad is not None))

    losses, named = torch_curve(job, start, lambda p: torch.optim.SGD(p, lr=0.5), lambda t: 1.0, x, y, steps=20, between=between)
    tolerance = 1e-12 if kind == "value" or limit == 100.0 else 1e-5
    assert found.curve("loss/train") == pytest.approx(losses, rel=tolerance)
    assert all(distance(found.weights[name][0], value.detach()) < 10 * tolerance for name, value in named.items())
    assert found.curve("gradient/clipped").tolist() == clip_in_torch
    assert any(clip_in_torch) == (limit < 100)


@pytest.mark.parametrize("kind", CLIPS)
def test_clip_by_hand_stacked_and_for_a_gradient_that_is_not_finite(kind):
    g = torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]], dtype=DOUBLE)
    found, changed = clipped(read(FAMILIES["clip"], {"kind": kind, "max": 1.0}), g, column(1, 1, 1, 1, 1))
    by_hand = {"global_norm": [[0.6, -0.8], [0.3, 0.4], [0.0, 0.0]], "value": [[1.0, -1.0], [0.3, 0.4], [0.0, 0.0]]}[kind]
    assert found[:3].numpy() == pytest.approx(np.array(by_hand), rel=1e-15)
    assert changed[:3].tolist() == [True, False, False]
    assert bool(found[3].isnan().any())


# ---------------------------------------------------------------- datasets

GENERATED: dict[str, dict[str, Any]] = {
    "inline": {"x": [[1, 2], [3, 4], [5, 6], [7, 8]], "y": [0, 1, 1, 0]},
    "linear": {"rows": 500, "coefficients": [1.5, -2.0, 0.0], "intercept": 4.0, "noise": 0.1},
    "blobs": {"rows": 300, "centers": 4, "features": 3},
    "circles": {"rows": 400, "noise": 0.05, "factor": 0.4},
    "adding": {"rows": 4000, "length": 11},
    "temporal_order": {"rows": 4000, "length": 37},
    "copying": {"rows": 4000, "memory": 5, "alphabet": 4, "blanks": 6},
}
FROM_SKLEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
FROM_FILES = {"upload": {"id": "ds_1"}, "mnist": {}}


def loaded(given: dict[str, Any], **where: Any) -> rows_of.Rows:
    dataset = read(Dataset, given)
    facts = facts_of(dataset)
    return rows_of.load(dataset, data=where.get("data", DATA), upload=where.get("upload"), classify=facts is not None and facts.target != "real")


@pytest.mark.parametrize("kind", [*GENERATED, *FROM_SKLEARN])
def test_rows_are_what_the_facts_say(kind):
    found = loaded({"kind": kind, **GENERATED.get(kind, {})})
    facts = BUNDLED.get(kind) or facts_of(read(Dataset, {"kind": kind, **GENERATED[kind]}))
    assert facts is not None
    assert found.x.shape == (facts.rows, facts.features)
    assert found.y.shape == (facts.rows,)
    assert np.isfinite(found.x).all()
    if facts.classes is not None:
        assert np.array_equal(np.unique(found.y), np.arange(facts.classes))
        assert facts.class_names is not None
        assert len(facts.class_names) == facts.classes
    assert facts.feature_names is None or len(facts.feature_names) == facts.features


@pytest.mark.parametrize("kind", FROM_SKLEARN)
def test_names_and_rows_equal_those_of_scikit_learn(kind):
    from sklearn import datasets

    theirs = getattr(datasets, f"load_{kind}")()
    facts, ours = BUNDLED[kind], loaded({"kind": kind})
    assert np.array_equal(ours.x, theirs.data / (16 if kind == "digits" else 1))
    assert np.array_equal(ours.y, theirs.target)
    assert facts.feature_names is not None
    if kind != "digits":
        assert list(facts.feature_names) == list(theirs.feature_names)
    if facts.class_names is not None:
        assert list(facts.class_names) == [str(name) for name in theirs.target_names]


def test_generated_rows_have_their_law():
    linear = loaded({"kind": "linear", **GENERATED["linear"]})
    fit = np.linalg.lstsq(np.column_stack([linear.x, np.ones(500)]), linear.y, rcond=None)[0]
    assert fit == pytest.approx([1.5, -2.0, 0.0, 4.0], abs=5 * 0.1 / math.sqrt(500))
    circles = loaded({"kind": "circles", **GENERATED["circles"]})
    radius = np.hypot(*circles.x.T)
    assert radius[circles.y == 0].mean() == pytest.approx(1.0, abs=0.02)
    assert radius[circles.y == 1].mean() == pytest.approx(0.4, abs=0.02)
    blobs = loaded({"kind": "blobs", **GENERATED["blobs"]})
    assert all(blobs.x[blobs.y == c].std(0).mean() == pytest.approx(1.0, abs=0.15) for c in range(4))


def test_adding_is_the_sum_of_the_marked_numbers_and_a_constant_errs_by_a_sixth():
    found = loaded({"kind": "adding", **GENERATED["adding"]})
    assert found.facts.sequence == (11, 2)
    values, marks = np.moveaxis(found.x.reshape(4000, 11, 2), 2, 0)
    assert np.isin(marks, (0, 1)).all()
    assert np.array_equal(marks[:, :5].sum(1), np.ones(4000))
    assert np.array_equal(marks[:, 5:].sum(1), np.ones(4000))
    assert (marks.sum(0) > 0).all()  # at every step of each half
    assert found.y == pytest.approx((values * marks).sum(1), rel=1e-15)
    # (y − 1)² has mean 1/6 and fourth moment E = ∫∫(u + v − 1)⁴ = 1/15, so deviation √(1/15 − 1/36)
    assert np.square(found.y - 1).mean() == pytest.approx(1 / 6, abs=4 * math.sqrt((1 / 15 - 1 / 36) / 4000))


def test_temporal_order_has_two_symbols_in_their_tenths_and_distractors_elsewhere():
    found = loaded({"kind": "temporal_order", **GENERATED["temporal_order"]})
    assert found.facts.sequence == (37, 6)
    channels = found.x.reshape(4000, 37, 6)
    assert np.array_equal(channels.sum(2), np.ones((4000, 37)))
    rows, steps, symbols = np.nonzero(channels[:, :, :2])
    assert np.array_equal(rows, np.repeat(np.arange(4000), 2))  # two a row, in the order of time
    assert set(steps[::2]) == {3, 4, 5, 6}  # 37/10 … 2·37/10
    assert set(steps[1::2]) == {14, 15, 16, 17}  # 4·37/10 … 5·37/10
    assert found.facts.class_names == ("AA", "AB", "BA", "BB")
    assert np.array_equal(found.y, 2 * symbols[::2] + symbols[1::2])
    assert np.bincount(found.y.astype(int)).tolist() == [1000] * 4
    assert channels[:, :, 2:].sum((0, 1)) / 4000 == pytest.approx(35 / 4, rel=0.02)


def test_copying_asks_for_one_of_the_symbols_by_its_place():
    found = loaded({"kind": "copying", **GENERATED["copying"]})
    assert found.facts.sequence == (5 + 6 + 1, 4 + 1 + 5)
    channels = found.x.reshape(4000, 12, 10)
    assert np.array_equal(channels.sum(2), np.ones((4000, 12)))
    symbols, asked = channels[:, :5, :4].argmax(2), channels[:, 11, 5:].argmax(1)
    assert np.array_equal(channels[:, :5, :4].sum((1, 2)), np.full(4000, 5.0))
    assert np.array_equal(channels[:, 5:11, 4], np.ones((4000, 6)))
    assert np.array_equal(channels[:, 11, 5:].sum(1), np.ones(4000))
    assert np.array_equal(found.y, symbols[np.arange(4000), asked])
    assert np.bincount(asked) / 4000 == pytest.approx(1 / 5, rel=0.15)
    other = symbols[np.arange(4000), (asked + 1) % 5]
    assert abs(np.corrcoef(other, found.y)[0, 1]) < 4 / math.sqrt(4000)  # the other symbols say nothing


@pytest.mark.parametrize("kind", ["linear", "blobs", "circles", "adding", "temporal_order", "copying"])
def test_generated_rows_follow_from_draw_alone(kind):
    one, same, other = (loaded({"kind": kind, **GENERATED[kind], "draw": draw}).x for draw in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("how", ["random", "stratified", "last"])
@pytest.mark.parametrize("kind", ["digits", "iris", "wine", "breast_cancer", "circles", "blobs"])
def test_splits_are_disjoint_and_complete(kind, how):
    dataset = read(Dataset, {"kind": kind, "test": 0.2, "validation": 0.25, "split": how})
    rows = loaded({"kind": kind})
    split = rows_of.split(dataset, rows, seed=1)
    want = counts(dataset, rows.facts, seed=1)
    assert (len(split.train), len(split.val), len(split.test)) == (want.train, want.val, want.test)
    assert np.array_equal(np.sort(np.concatenate([split.train, split.val, split.test])), np.arange(len(rows.y)))
    if how == "stratified":
        for part in (split.train, split.val, split.test):
            share = np.bincount(rows.y[part].astype(int)) / len(part)
            assert share == pytest.approx(np.bincount(rows.y.astype(int)) / len(rows.y), abs=2 / len(part))
    if how == "last":
        assert split.train.max() < split.val.min()
        assert split.val.max() < split.test.min()
    again = rows_of.split(dataset, rows, seed=1)
    other = rows_of.split(dataset, rows, seed=2)
    assert np.array_equal(split.test, again.test)
    assert np.array_equal(split.test, other.test) == (how == "last")


def test_standardize_looks_at_training_rows_only():
    x, y = rows_of_classes(10, 2, 2)
    x = x.clone()
    x[8:] += 1e6  # held-out rows that would spoil every mean
    found = run(spec(inline(x, y, standardize=True, test=0.2, split="last"), {"kind": "linear"}, "binary", sgd(0.1)))
    mean, scale = x[:8].mean(0).numpy(), x[:8].std(0, correction=0).numpy()
    z = (x.numpy()[:8] - mean) / scale
    t = 2 * y.numpy()[:8] - 1
    grad = -(t[:, None] * z).mean(0) / 2  # of mean log(1 + exp(−t f)) at f = 0
    assert found.weights["head.weight"][0, 0].numpy() == pytest.approx(-0.1 * grad, rel=1e-12)
    coefficients = found.runs[0].coefficients
    assert coefficients is not None
    assert coefficients["weights"] == pytest.approx(coefficients["trained"]["weights"] / scale, rel=1e-14)
    assert coefficients["intercept"] == pytest.approx(coefficients["trained"]["intercept"] - np.dot(coefficients["weights"], mean), rel=1e-12)


def test_a_constant_column_is_left_alone_by_standardize():
    found = run(spec(inline([[1, 5], [2, 5], [3, 5]], [1, 2, 3.5], standardize=True), {"kind": "linear"}, "squared_error", sgd(0.1), epochs=3))
    assert found.weights["head.weight"][0, 0, 1] == 0


def test_an_upload_is_read_from_its_canonical_file(tmp_path):
    from safetensors.numpy import save_file

    x, y = rows_of_classes(30, 4, 3)
    save_file({"x": x.numpy(), "y": (10 * y + 5).double().numpy()}, tmp_path / "rows.safetensors")
    job = spec({"kind": "upload", "id": "ds_1"}, {"kind": "linear"}, "cross_entropy", sgd(0.1), epochs=5)
    found = outcome(events(job, scratch=tmp_path, upload=tmp_path / "rows.safetensors"))
    assert torch.equal(found.weights["head.weight"], run({**job, "dataset": inline(x, y)}).weights["head.weight"])


def test_an_upload_whose_file_is_gone_says_so(tmp_path):
    with pytest.raises(DataError, match=r"ds_1.*upload it again"):
        loaded({"kind": "upload", "id": "ds_1"}, upload=tmp_path / "gone")


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zero bytes, type 8 (unsigned byte), number of axes, big-endian lengths, data."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def small_mnist(folder: Path, *, train: int = 3, test: int = 2, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train, "t10k": test}
    for part, n in parts.items():
        for name, array in ((f"{part}-images-idx3-ubyte", np.full((n, 28, 28), 255)), (f"{part}-labels-idx1-ubyte", np.arange(n) % 10)):
            (folder / (name + ".gz" if gz else name)).write_bytes(gzip.compress(idx(array)) if gz else idx(array))


def test_mnist_that_is_not_there_says_where_to_put_it(tmp_path):
    with pytest.raises(DataError) as error:
        loaded({"kind": "mnist"}, data=tmp_path)
    assert str(tmp_path / "mnist") in str(error.value)
    assert "train-images-idx3-ubyte" in str(error.value)


@pytest.mark.parametrize("gz", [False, True])
def test_mnist_of_another_size_is_refused_with_its_folder(tmp_path, gz):
    small_mnist(tmp_path / "mnist", gz=gz)
    with pytest.raises(DataError, match=r"60,000 and 10,000") as error:
        loaded({"kind": "mnist"}, data=tmp_path)
    assert str(tmp_path / "mnist") in str(error.value)


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
BROKEN: dict[str, dict[str, bytes | None]] = {
    "shorter than its header": {IMAGES: b"\0\0\x08"},
    "no whole number of images": {IMAGES: idx(np.zeros((2, 28, 28))) + b"x"},
    "labels where images belong": {IMAGES: idx(np.arange(10))},
    "fewer labels than images": {LABELS: idx(np.arange(1))},
    "no gzip": {IMAGES: None, f"{IMAGES}.gz": b"not gzip at all"},
    "a torn gzip": {IMAGES: None, f"{IMAGES}.gz": gzip.compress(idx(np.zeros((3, 28, 28))))[:-12]},
    "a gzip with a flipped byte": {IMAGES: None, f"{IMAGES}.gz": gzip.compress(bytes(range(256)) * 20)[:40] + b"\xff" * 40},
    "no npz": {"mnist.npz": b"PK\3\4 and then nothing"},
    "an npz with other names": {"mnist.npz": npz(a=np.zeros(3))},
    "an npz of objects": {"mnist.npz": npz(**{n: np.array([{}], object) for n in NPZ_NAMES})},
    "an npz of words": {"mnist.npz": npz(**{n: np.array(["seven"]) for n in NPZ_NAMES})},
    "an npz of another shape": {"mnist.npz": npz(x_train=np.zeros(7), y_train=np.zeros(3), x_test=np.zeros(7), y_test=np.zeros(3))},
    "an npz of numbers without axes": {"mnist.npz": npz(**dict.fromkeys(NPZ_NAMES, np.array(1)))},
    "a torn npz": {"mnist.npz": npz(**dict.fromkeys(NPZ_NAMES, np.arange(100)))[:-30]},
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_mnist_files_are_data_errors_that_say_where(tmp_path, how):
    small_mnist(tmp_path / "mnist")
    for name, content in BROKEN[how].items():
        path = tmp_path / "mnist" / name
        path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
    with pytest.raises(DataError) as error:
        loaded({"kind": "mnist"}, data=tmp_path)
    assert str(tmp_path / "mnist") in str(error.value)


@pytest.mark.parametrize("npz", [False, True])
def test_mnist_is_read_in_the_order_of_its_files(tmp_path, npz):
    folder = tmp_path / "mnist"
    folder.mkdir()
    train, test = np.zeros((60_000, 28, 28), np.uint8), np.zeros((10_000, 28, 28), np.uint8)
    train[:, 0, 1], test[:, 27, 27] = 51, 255
    labels = np.arange(60_000) % 10
    if npz:
        np.savez_compressed(folder / "mnist.npz", x_train=train, y_train=labels, x_test=test, y_test=labels[:10_000])
    else:
        arrays = {"train-images-idx3-ubyte": train, "train-labels-idx1-ubyte": labels, "t10k-images-idx3-ubyte": test, "t10k-labels-idx1-ubyte": labels[:10_000]}
        for name, array in arrays.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
    found = loaded({"kind": "mnist"}, data=tmp_path)
    assert found.x.shape == (70_000, 784)
    assert (found.x[0, 1], found.x[59_999, 1], found.x[60_000, 1], found.x[60_000, 783]) == (0.2, 0.2, 0.0, 1.0)
    assert np.array_equal(found.y, np.concatenate([labels, labels[:10_000]]))
    split = rows_of.split(read(Dataset, {"kind": "mnist", "validation": 0.1}), found, seed=0)
    assert (len(split.train), len(split.val), split.test.min(), len(split.test)) == (54_000, 6_000, 60_000, 10_000)


# ---------------------------------------------------------------- no kind without a row


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("regularizers", {*BY_HAND, *CONSTRAINTS, *NOT_ON_WEIGHTS}),
        ("losses", set(LOSSES)),
        ("models", set(MODELS)),
        ("normalization", set(NORMS) & set(IMAGE_NORMS)),
        ("reparametrization", set(REPARAMETRIZATIONS)),
        ("init", set(INITS)),
        ("optimizers", {*OPTIMIZERS, "proximal", "lbfgs"}),  # those two in test_solvers.py
        ("schedules", set(SCHEDULES)),
        ("clip", set(CLIPS)),
        ("surgery", {"rebalance", "rescale", "revive"}),  # in test_surgery.py
        ("datasets", {*GENERATED, *FROM_SKLEARN, *FROM_FILES}),
    ],
)
def test_every_kind_has_a_row(family, rows):
    assert rows == kinds(family)


def test_every_family_and_every_activation_has_its_table():
    assert set(FAMILIES) == {"regularizers", "losses", "models", "normalization", "reparametrization", "init", "optimizers", "schedules", "clip", "surgery", "datasets"}
    assert set(ACTIVATIONS) == set(get_args(Activation))
    assert {f["kind"] for m in MODELS.values() for r in m if (f := r.get("normalization"))} == kinds("normalization")


def test_facts_are_those_of_the_table():
    assert set(BUNDLED) == {*FROM_SKLEARN, "mnist"}
    assert all(isinstance(f, Facts) for f in BUNDLED.values())
