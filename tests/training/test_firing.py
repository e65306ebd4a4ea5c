"""Firing counts beside the same net in torch, row by row; when they are taken; and what they say of sparse and of dead units."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, inline, run, sgd, spec

from regtrain.contract.series import BINS
from worker.training.firing import EVERY, FEW, MANY, ROWS, due

DRAW = np.random.default_rng(7)


def trained(model: dict[str, Any], x: np.ndarray, *regularizers: dict[str, Any], optimizer: Any = None, **rest: Any) -> Outcome:
    rest = {"selection": {"seeds": 3}, "dtype": "float64", **rest}
    return run(spec(inline(x, DRAW.integers(0, 3, len(x))), model, "cross_entropy", optimizer or sgd(0.3), *regularizers, **rest))


def word(rate: float) -> str:
    return "0" if rate == 0 else f"2^{math.floor(math.log2(rate))}"


def check(found: Outcome, r: int, place: int, on: torch.Tensor) -> None:
    """on: (rows, units), whether a unit fires on a row."""
    rates = on.double().mean(0).tolist()
    bins = found.curve("histogram/firing", r)[-1].reshape(-1, len(BINS))[place]
    assert {name: int(n) for name, n in zip(BINS, bins, strict=True) if n} == {name: sum(word(rate) == name for rate in rates) for name in map(word, rates)}
    if "activation/silent" in found.curves:
        assert found.curve("activation/silent", r)[-1, place] == pytest.approx(sum(rate == 0 for rate in rates) / len(rates))


@pytest.mark.parametrize(("kind", "rows"), [("relu", 50), ("leaky_relu", 50), ("relu", ROWS + 1000)])
def test_dense_units(kind: str, rows: int) -> None:
    """Trained with dropout and in batches; counted without, over the rows of the data: of 3,995 those that are evenly spaced, or few of them where they clear a net."""
    x = DRAW.standard_normal((rows, 6)).astype(np.float32).astype(float)
    model = {"kind": "mlp", "hidden": [12, 9], "activation": kind, "init": {"kind": "normal", "std": 1.5}}
    found = trained(model, x, {"kind": "dropout", "rate": 0.3}, budget={"epochs": 3, "batch_size": rows // 2}, optimizer=sgd(0.5))
    assert len(found.curve("histogram/firing", 0)) == 2, "before the first update, and behind the last"
    for r in range(3):
        spread = torch.tensor(x[np.arange(min(rows, ROWS)) * rows // min(rows, ROWS)])
        on = [layer > 0 for layer in _activations(found, r, spread[:: -(-len(spread) // FEW)], kind)]
        if any((~layer.any(0)).double().mean() > MANY for layer in on):
            on = [layer > 0 for layer in _activations(found, r, spread, kind)]
        for place, layer in enumerate(on):
            check(found, r, place, layer)
        assert not found.curve("histogram/firing", r)[-1].reshape(3, -1)[2].any(), "the head has no activation"


def _activations(found: Outcome, r: int, h: torch.Tensor, kind: str) -> list[torch.Tensor]:
    """Linear outputs of both hidden layers.  (rows, units) each"""
    first = h @ found.weights["layers.0.weight"][r].double().T + found.weights["layers.0.bias"][r].double()
    h = F.relu(first) if kind == "relu" else F.leaky_relu(first)
    return [first, h @ found.weights["layers.1.weight"][r].double().T + found.weights["layers.1.bias"][r].double()]


def test_a_channel_fires_where_one_of_its_pixels_does_and_batch_norm_has_its_running_averages() -> None:
    model = {"kind": "cnn", "channels": [7], "image": [2, 3, 3], "pool": "max", "activation": "relu", "normalization": {"kind": "batch"}}
    x = DRAW.standard_normal((40, 18)).astype(np.float32).astype(float)
    found = trained(model, x, budget={"epochs": 4, "batch_size": 10}, optimizer=sgd(0.5))
    for r in range(3):
        w = {name: tensor[r].double() for name, tensor in found.weights.items()}
        z = F.conv2d(torch.tensor(x).view(-1, 2, 3, 3), w["layers.0.weight"], w["layers.0.bias"], padding=1)
        z = F.batch_norm(z, w["layers.0.norm.running_mean"], w["layers.0.norm.running_var"], w["layers.0.norm.weight"], w["layers.0.norm.bias"])
        check(found, r, 0, (z > 0).flatten(2).any(2))


def test_rows_that_few_would_miss() -> None:
    """Unit 0 fires on one row of 3,995 that is not among the first to be looked at. Beside 3 units of 16 that never fire it counts as silent; beside 12 all
    rows are looked at, and it does not."""
    x = -np.ones((ROWS + 1000, 16))
    spread = np.arange(ROWS) * len(x) // ROWS
    one = next(row for place, row in enumerate(spread) if place % -(-ROWS // FEW))
    model = {"kind": "mlp", "hidden": [16], "activation": "relu", "bias": False, "init": {"kind": "identity"}}
    for firing, silent in ((12, 4 / 16), (3, 12 / 16)):
        x[:, 1 : 1 + firing] = 1.0
        x[one, 0] = 1.0
        found = trained(model, x, optimizer=sgd(FROZEN), budget={"epochs": 1, "batch_size": "all"})
        assert all(found.curve("activation/silent", r)[-1, 0] == silent for r in range(3))
        x[:] = -1.0


def test_three_quarters_sparse_is_not_dead() -> None:
    """One-hot rows of four kinds in front of weights that are the identity: every unit is 0 on three rows of four, and none is dead; of inputs −1 all are."""
    x = np.eye(4)[np.arange(40) % 4]
    model = {"kind": "rnn", "cell": "identity", "hidden": [4], "sequence": [1, 4]}
    assert "activation/silent" not in trained(model, x).curves, "a recurrent state is no ReLU layer"
    dense = {"kind": "mlp", "hidden": [4], "activation": "relu", "bias": False, "init": {"kind": "identity"}}
    sparse, dead = (trained(dense, rows, optimizer=sgd(FROZEN), budget={"epochs": 2, "batch_size": 1}) for rows in (x, -np.ones((40, 4))))
    assert all(sparse.curve("activation/silent", r)[-1, 0] == 0 for r in range(3))
    assert all(dead.curve("activation/silent", r)[-1, 0] == 1 for r in range(3))


def test_when_units_are_counted() -> None:
    """At epochs of 50 updates: before the first, behind 128, behind every 4,096, and at the last of 9,000."""
    at = [done for done in range(0, 9001, 50) if due(done, per_epoch=50, steps=9000)]
    assert at == [0, 150, *(50 * math.ceil(k * EVERY / 50) for k in (1, 2)), 9000]
