"""The laws that watch every run with `full`: silent on sound runs of every kind, and heard where the way back has been made wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_selftest import FAULTS
from training_jobs import events, inline, joined, sgd, spec

from regtrain.contract.events import Log, Points, Started

DRAW = np.random.default_rng(8)
X, Y = DRAW.standard_normal((60, 18)), DRAW.integers(0, 3, 60)
IMAGE = {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3]}


def watched(folder: Path, model: dict[str, Any], *regularizers: dict[str, Any], x: Any = X, y: Any = Y, loss: str = "cross_entropy", **rest: Any) -> tuple[list[str], np.ndarray]:
    """The warnings of a job of three seeds in float32, and `identity/excess` of all its runs, (R, n, L)."""
    rest = {"epochs": 20, "batch_size": 16, "dtype": "float32", "diagnostics": "full", "selection": {"seeds": 3}, "optimizer": sgd(0.05, 0.9), **rest}
    found = events(spec(inline(x, y), model, loss, rest.pop("optimizer"), *regularizers, **rest), scratch=folder)
    started = found[0]
    assert isinstance(started, Started)
    curves = joined(started.packs, [event for event in found if isinstance(event, Points)])["identity/excess"]
    return [event.message for event in found if isinstance(event, Log)], np.stack([values for _, values in curves.values()])


SOUND: dict[str, dict[str, Any]] = {
    **{f"{kind}, {dtype}": {"model": {"kind": "mlp", "hidden": [32, 16, 8], "activation": kind}, "dtype": dtype} for kind in ("relu", "leaky_relu", "identity") for dtype in ("float32", "float64")},
    "34 layers": {"model": {"kind": "mlp", "hidden": [32] * 33, "bias": False, "init": {"kind": "xavier_normal"}}, "epochs": 3},
    "signals that underflow": {"model": {"kind": "mlp", "hidden": [32] * 12, "init": {"kind": "normal", "std": 1e-5}}, "epochs": 3},
    "inputs of a million": {"model": {"kind": "mlp", "hidden": [32, 16]}, "x": X + 1e6, "optimizer": sgd(1e-13)},
    "targets of a million": {"model": {"kind": "mlp", "hidden": [32, 16]}, "y": 1e6 + X[:, 0], "loss": "squared_error", "optimizer": {"kind": "adam", "lr": 0.01}},
    "batch norm": {"model": {"kind": "mlp", "hidden": [32, 16], "normalization": {"kind": "batch"}}},
    "batch norm of an offset": {"model": {"kind": "mlp", "hidden": [32, 16], "normalization": {"kind": "batch"}}, "x": X + 1e4},
    "layer norm": {"model": {"kind": "mlp", "hidden": [32, 16], "normalization": {"kind": "layer"}}},
    **{f"layer norm, ε = {eps:g}": {"model": {"kind": "mlp", "hidden": [32, 16], "activation": "tanh", "normalization": {"kind": "layer", "eps": eps}}} for eps in (0.0, 0.1)},
    "layer norm of an offset": {"model": {"kind": "mlp", "hidden": [32, 16], "normalization": {"kind": "layer", "eps": 0.0}}, "x": X + 1e3},
    "layer norm of images": {"model": {**IMAGE, "pool": "max", "normalization": {"kind": "layer", "eps": 0.0}}},
    "weight norm": {"model": {"kind": "mlp", "hidden": [32, 16], "reparametrization": {"kind": "weight_norm"}}},
    "weight norm of images": {"model": {**IMAGE, "pool": "max", "reparametrization": {"kind": "weight_norm"}}, "dtype": "float64"},
    **{f"recurrent {cell}, {dtype}": {"model": {"kind": "rnn", "cell": cell, "hidden": [6, 5], "sequence": [9, 2]}, "dtype": dtype} for cell in ("relu", "identity") for dtype in ("float32", "float64")},
    "recurrent with dropout": {"model": {"kind": "rnn", "cell": "relu", "hidden": [6, 5], "sequence": [9, 2]}, "regularizers": [{"kind": "dropout", "rate": 0.4}], "accumulate": 2},
    "gates": {"model": {"kind": "rnn", "cell": "gru", "hidden": [6], "sequence": [9, 2]}},
    "images": {"model": {**IMAGE, "pool": "max", "hidden": [8]}},
    "images behind batch norm": {"model": {**IMAGE, "pool": "average", "normalization": {"kind": "batch"}}},
    "residual": {"model": {"kind": "mlp", "hidden": [18, 18], "residual": True}},
    "recurrent": {"model": {"kind": "rnn", "cell": "relu", "hidden": [6], "sequence": [9, 2]}},
    "linear": {"model": {"kind": "linear"}},
    **{f"{norm} norm of weights": {"model": {"kind": "mlp", "hidden": [32, 16], "reparametrization": {"kind": f"{norm}_norm"}, "normalization": {"kind": "batch"}}} for norm in ("weight", "spectral")},
    "micro-batches and dropout": {"model": {"kind": "mlp", "hidden": [32, 16]}, "accumulate": 3, "regularizers": [{"kind": "dropout", "rate": 0.4}, {"kind": "l1", "lambda": 0.01}]},
    "one row at a time": {"model": {"kind": "mlp", "hidden": [32, 16]}, "batch_size": 1, "epochs": 3, "optimizer": sgd(0.001)},
    "an orthogonal start": {"model": {"kind": "mlp", "hidden": [32, 16], "init": {"kind": "orthogonal"}}, "clip": {"kind": "value", "max": 0.01}},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_runs_are_not_warned_of(name, tmp_path):
    job = dict(SOUND[name])
    warnings, excess = watched(tmp_path, job.pop("model"), *job.pop("regularizers", []), **job)
    assert warnings == []
    assert (excess < 0.5).all()
    assert (excess >= 0).all()


HEARD = {
    "half of relu's derivative": {"kind": "mlp", "hidden": [32, 16], "activation": "relu"},
    "relu's derivative where z < 0": {"kind": "mlp", "hidden": [32, 16], "activation": "relu"},
    "leaky relu without its leak": {"kind": "mlp", "hidden": [32, 16], "activation": "leaky_relu"},
    "a transposed product": {"kind": "mlp", "hidden": [16, 16], "activation": "relu"},
    "no gradient of biases": {"kind": "mlp", "hidden": [32, 16], "activation": "relu"},
    "half the gradient of biases": {"kind": "mlp", "hidden": [32, 16], "activation": "relu"},
    "constant batch moments": {"kind": "mlp", "hidden": [32, 16], "activation": "tanh", "normalization": {"kind": "batch"}},
    "constant layer moments": {"kind": "mlp", "hidden": [32, 16], "activation": "tanh", "normalization": {"kind": "layer"}},
    "one step in time too few": {"kind": "rnn", "cell": "identity", "hidden": [6, 5], "sequence": [9, 2], "init": {"kind": "orthogonal", "scale": 0.6}},
    "the length's gradient left in": {"kind": "mlp", "hidden": [32, 16], "activation": "tanh", "reparametrization": {"kind": "weight_norm"}},
    "lost labels": {"kind": "mlp", "hidden": [32], "activation": "tanh"},
}


@pytest.mark.parametrize("fault", HEARD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_way_back_is_warned_of_once(fault, dtype, tmp_path, monkeypatch):
    FAULTS[fault][0](monkeypatch)
    warnings, excess = watched(tmp_path, HEARD[fault], dtype=dtype)
    assert (excess > 1).any()
    assert len(warnings) == 1
    assert "a law of gradients does not hold in " in warnings[0]
    assert " at step 0 of run " in warnings[0]
    assert "regtrain selftest" in warnings[0]


def test_a_small_error_is_heard_in_float64(tmp_path, monkeypatch):
    FAULTS["identity by a millionth"][0](monkeypatch)
    model = {"kind": "mlp", "hidden": [32, 16], "activation": "identity"}
    assert watched(tmp_path, model, dtype="float64")[0]
