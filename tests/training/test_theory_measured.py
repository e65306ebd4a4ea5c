"""What theory predicts from a spec, beside what the engine's instruments measure at step 0 of nets that are drawn and do not move."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_jobs import FROZEN, inline, run, sgd, spec

from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse
from regtrain.contract.theory import Signal, signal
from regtrain.contract.theory.scales import entering, target
from worker.training.datasets import load
from worker.training.preprocess import fit


@dataclass(frozen=True)
class Beside:
    """Predicted, and measured in each of the seeds."""

    theory: Signal
    forward: np.ndarray
    """(seeds, L)"""
    backward: np.ndarray
    weight: np.ndarray
    """Norms of weight gradients."""
    loss: np.ndarray
    """(seeds,)"""

    @property
    def ratios(self) -> np.ndarray:
        """rms δ of the first hidden layer over the last one's.  (seeds,)"""
        return self.backward[:, 0] / self.backward[:, -2]


def beside(model: dict[str, Any], *regularizers: dict[str, Any], features: int, rows: int = 64, seeds: int = 5, loss: str = "cross_entropy") -> Beside:
    """A frozen job over rows of mean square 1, each: theory knows the scale of the inputs, not how it differs between rows."""
    draw = np.random.default_rng(5)
    x = draw.standard_normal((rows, features))
    x *= math.sqrt(features) / np.linalg.norm(x, axis=1, keepdims=True)
    y = draw.integers(0, 2 if loss == "binary" else 10, rows)
    job = spec(inline(x.round(6), y), {"kind": "mlp", **model}, loss, sgd(FROZEN), *regularizers, selection={"seeds": seeds}, dtype="float32")
    found, read = run(job), parse(json.dumps(job))
    facts = facts_of(read.dataset)
    assert facts is not None
    curves = [np.stack([found.curve(name, seed)[0] for seed in range(seeds)]) for name in ("signal/forward", "signal/backward", "gradient/norm", "loss/train")]
    return Beside(signal(read, facts, shape_of(read, facts)), *curves)


def mean_of_logs(x: np.ndarray) -> np.ndarray:
    """Geometric mean over the seeds."""
    return np.exp(np.log(x.astype(float)).mean(0))


@pytest.mark.parametrize("init", ["he_normal", "torch"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_chi_at_width_512(activation: str, init: str) -> None:
    """Geometric mean over 11 layers and five seeds, within 1 %."""
    found = beside({"hidden": [512] * 12, "activation": activation, "init": {"kind": init}}, features=512)
    chi = float(mean_of_logs(found.ratios)) ** (2 / 11)
    predicted = np.exp(np.mean([math.log(layer.chi or 0) for layer in found.theory.layers[:11]]))
    assert chi == pytest.approx(predicted, rel=0.01)


NETS: dict[str, tuple[dict[str, Any], ...]] = {
    "widths": ({"hidden": [512, 64, 256, 32], "activation": "elu", "init": {"kind": "xavier_uniform"}},),
    "orthogonal": ({"hidden": [512, 64, 256, 32], "activation": "tanh", "init": {"kind": "orthogonal", "scale": 1.5}},),
    "lsuv": ({"hidden": [256] * 8, "activation": "tanh", "init": {"kind": "lsuv", "scale": 0.7}},),
    "residual": ({"hidden": [256] * 8, "activation": "tanh", "residual": True, "init": {"kind": "lecun_normal"}},),
    "residual, with a mean": ({"hidden": [256] * 8, "activation": "sigmoid", "residual": True},),
    "residual batch norm": ({"hidden": [256] * 8, "residual": True, "normalization": {"kind": "batch"}, "init": {"kind": "he_normal"}},),
    "layer norm": ({"hidden": [256] * 8, "normalization": {"kind": "layer"}, "init": {"kind": "lecun_uniform"}},),
    "batch norm": ({"hidden": [256] * 8, "activation": "gelu", "normalization": {"kind": "batch"}, "init": {"kind": "normal", "std": 0.2}},),
    "dropout": ({"hidden": [256] * 6, "init": {"kind": "he_uniform"}}, {"kind": "dropout", "rate": 0.3}, {"kind": "dropout", "rate": 0.2, "on": "inputs"}),
    "image": ({"kind": "cnn", "channels": [32, 32, 32], "kernel": 5, "stride": 2, "pool": "none", "image": [4, 16, 16], "activation": "tanh", "init": {"kind": "he_normal"}},),
}


@pytest.mark.parametrize("name", NETS)
def test_both_sides_of_every_layer(name: str) -> None:
    """Single layers of finite width scatter by 4 to 10 %, and backward their errors add up."""
    model, *regularizers = NETS[name]
    found = beside(model, *regularizers, features=1024 if "image" in model else 128 if name == "widths" else model["hidden"][0])
    forward = [layer.forward for layer in found.theory.layers]
    assert np.sqrt((found.forward.astype(float) ** 2).mean(0)) == pytest.approx(forward, rel=0.1)
    assert mean_of_logs(found.backward / found.backward[:, -1:]) == pytest.approx([layer.backward for layer in found.theory.layers], rel=0.12)


def test_the_blind_spot() -> None:
    """Glorot relu, 34 layers of 128: on each of 20 seeds the signal is gone, and weight gradients do not say so."""
    found = beside({"hidden": [128] * 34, "bias": False, "init": {"kind": "xavier_normal"}}, features=128, seeds=20)
    assert found.theory.gradient_ratio == pytest.approx(1.08e-5, rel=0.01)
    assert 0.7e-5 < np.median(found.ratios) < 1.3e-5
    assert (found.ratios < 1e-4).all()
    weights = found.weight[:, 0] / found.weight[:, -2]
    low, high = np.quantile(weights, [0.1, 0.9])
    assert 0.3 < low < high < 6


@pytest.mark.parametrize(
    ("model", "measured"),
    [
        ({"init": {"kind": "he_normal"}}, 1.0),
        ({"activation": "selu", "init": {"kind": "lecun_normal"}}, 3.2),
        ({"activation": "tanh", "init": {"kind": "he_normal"}}, 3.7),
    ],
)
def test_remedies_of_thirty_four_layers(model: dict[str, Any], measured: float) -> None:
    """Medians over 20 seeds, beside those measured before and those predicted."""
    found = beside({"hidden": [128] * 34, "bias": False, **model}, features=128, seeds=20)
    assert np.median(found.ratios) == pytest.approx(measured, rel=0.1)
    assert np.median(found.ratios) == pytest.approx(found.theory.gradient_ratio, rel=0.12)


def test_batch_norm_of_thirty_four_layers() -> None:
    """×324 in rms; a layer, 3 %."""
    found = beside({"hidden": [128] * 34, "bias": False, "init": {"kind": "he_normal"}, "normalization": {"kind": "batch"}}, features=128, rows=256, seeds=8)
    assert np.median(found.ratios) == pytest.approx(324, rel=0.15)
    predicted = found.theory.gradient_ratio
    assert predicted is not None
    assert float(mean_of_logs(found.ratios)) ** (2 / 33) == pytest.approx(predicted ** (2 / 33), rel=0.03)
    deep = mean_of_logs(found.backward[:, 10] / found.backward[:, 33]) ** (2 / 23)
    assert deep == pytest.approx(math.pi / (math.pi - 1), rel=0.03)


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ({"hidden": [256], "activation": "tanh", "init": {"kind": "lecun_normal"}}, "cross_entropy"),
        ({"hidden": [256], "activation": "identity", "init": {"kind": "lecun_normal", "scale": 3.0}}, "cross_entropy"),
        ({"hidden": [256], "activation": "softplus", "init": {"kind": "he_normal"}}, "binary"),
        ({"kind": "linear"}, "cross_entropy"),
    ],
)
def test_the_first_loss(model: dict[str, Any], loss: str) -> None:
    found = beside(model, features=256, rows=200, seeds=60, loss=loss)
    error = float(found.loss.std()) / math.sqrt(60)
    assert float(found.loss.mean()) == pytest.approx(found.theory.initial_loss, abs=4 * error + 1e-6)


DATASETS: dict[str, float] = {
    '{"kind": "digits"}': 1e-5, '{"kind": "iris"}': 1e-5, '{"kind": "wine"}': 1e-5, '{"kind": "breast_cancer"}': 1e-5, '{"kind": "diabetes"}': 1e-5,
    '{"kind": "linear", "coefficients": [1, -2], "rows": 20000}': 0.05, '{"kind": "circles", "noise": 0.2, "rows": 20000}': 0.05,
    '{"kind": "blobs", "centers": 20, "features": 300}': 0.05, '{"kind": "adding", "length": 25, "rows": 4000}': 0.05,
    '{"kind": "temporal_order", "length": 30, "rows": 4000}': 0.05, '{"kind": "copying", "memory": 5, "rows": 4000}': 0.05,
    '{"kind": "inline", "x": [[1, 2], [3, 2]], "y": [4, 5]}': 1e-12,
}  # fmt: skip
"""Dataset → how far drawn rows may be from what is expected of them, relative to the mean square."""


@pytest.mark.parametrize("text", DATASETS)
def test_the_scale_of_every_dataset(text: str, tmp_path: Path) -> None:
    """Against the rows themselves, raw and standardized."""

    def read(**rest: Any) -> Any:
        return parse(
            json.dumps({"dataset": {**json.loads(text), **rest}, "model": {"kind": "linear"}, "loss": {"kind": "cross_entropy"}, "optimizer": {"kind": "sgd", "lr": 1}})
        ).dataset

    rows = load(read(), data=tmp_path, upload=None, classify=False)
    x, tolerance = rows.x, DATASETS[text]
    known = entering(read())
    for found, wanted in ((known.square, (x**2).mean()), (known.product, (x.mean(0) ** 2).mean()), (known.mean, x.mean())):
        assert found == pytest.approx(wanted, abs=tolerance * max((x**2).mean(), abs(x.mean())))
    assert entering(read(standardize=True)).square == pytest.approx((fit(x, standardize=True)(x) ** 2).mean(), rel=1e-9)
    if rows.facts.target != "class":
        assert target(read()) == pytest.approx((rows.y**2).mean(), rel=max(tolerance, 1e-6))
