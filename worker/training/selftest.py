"""The laws that gradients obey exactly, measured on this machine's device through the engine that trains: how the instruments prove themselves.

Every law trains small jobs and reads the points that their instruments report. Its error is relative to the size of the quantity. A wrong derivative,
a transposed product, a lost micro-batch, a device that rounds wrongly: one of them shows it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import facts_of
from regtrain.contract.events import Points
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.theory import signal
from worker.training.prepare import prepare
from worker.training.running import pack_of
from worker.training.step import step
from worker.training.train import train

Array = NDArray[np.float64]
Curves = dict[str, Array]
"""Series → (R, n) or (R, n, L)."""


@dataclass(frozen=True)
class Law:
    name: str
    formula: str
    tolerance: float
    """The largest relative error that passes."""
    error: Callable[[str], float]
    """Measured on a device."""


@dataclass(frozen=True)
class Checked:
    """One law on this machine."""

    name: str
    formula: str
    error: float
    tolerance: float
    ok: bool
    seconds: float


def selftest(device: str = "cpu") -> Iterator[Checked]:
    """Every law, one after the other. An error that is not a number does not pass."""
    for law in LAWS:
        begin = time.perf_counter()
        error = law.error(device)
        yield Checked(law.name, law.formula, error, law.tolerance, error <= law.tolerance, time.perf_counter() - begin)


# ---------------------------------------------------------------- jobs

_DRAW = np.random.default_rng(11)
X, CLASSES, TARGETS = _DRAW.standard_normal((20, 18)), _DRAW.integers(0, 3, 20), _DRAW.standard_normal(20)
FROZEN = 1e-300
"""A learning rate that moves no weight other than an exact zero."""
PENALTIES = ({"kind": "l2", "lambda": 0.05}, {"kind": "l1", "lambda": 0.001})
IMAGE = {"kind": "cnn", "channels": [4, 3], "image": [2, 3, 3]}


def _job(model: dict[str, Any], *, x: Array = X, y: Any = CLASSES, loss: Any = "cross_entropy", lr: float = 0.1, epochs: int = 5, seeds: int = 3, **rest: Any) -> JobSpec:
    """In float64 and full batch, with every instrument, unless said otherwise."""
    body: dict[str, Any] = {
        "dataset": {"kind": "inline", "x": x.tolist(), "y": np.asarray(y, float).tolist()}, "model": model, "loss": {"kind": loss} if isinstance(loss, str) else loss,
        "optimizer": {"kind": "sgd", "lr": lr, "momentum": rest.pop("momentum", 0.0)}, "regularizers": rest.pop("regularizers", []),
        "budget": {"epochs": epochs, "batch_size": "all", "accumulate": rest.pop("accumulate", 1)}, "selection": {"seeds": seeds}, "dtype": "float64", "diagnostics": "full", **rest,
    }  # fmt: skip
    return parse(json.dumps(body))


def _trained(job: JobSpec, device: str) -> Curves:
    """The curves of all runs, which make the same steps: pack after pack."""
    parts: dict[str, dict[int, list[Array]]] = {}
    for event in train(job, device=device, data=Path()):
        if isinstance(event, Points):
            for name, values in event.values.items():
                parts.setdefault(name, {}).setdefault(event.pack, []).append(values)
    return {name: np.concatenate([np.concatenate(blocks) for blocks in packs.values()], 1).swapaxes(0, 1).astype(np.float64) for name, packs in parts.items()}


def _off(a: Any, b: Any, size: Any = None) -> float:
    """The largest |a − b| over the size of the quantity; infinite where something is not finite."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    scale = np.maximum(np.abs(a), np.abs(b)) if size is None else np.broadcast_to(size, a.shape)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return float(np.divide(np.abs(a - b), scale, out=np.where(a == b, 0.0, np.inf), where=scale > 0).max())


def _sizes(found: Curves) -> Array:
    """‖W_l‖·‖∇W_l‖, the largest that their product can be."""
    return found["weight/norm"] * found["gradient/norm"]


# ---------------------------------------------------------------- laws

_HOMOGENEOUS = [
    *({"kind": "mlp", "hidden": [9, 14, 6, 11], "activation": activation, "init": {"kind": "he_normal"}} for activation in ("relu", "leaky_relu", "identity")),
    *({**IMAGE, "pool": pool, "hidden": [7], "activation": "relu"} for pool in ("max", "average")),
]


def _equal_products(device: str) -> float:
    found = [_trained(_job({**model, "bias": False}, regularizers=PENALTIES), device) for model in _HOMOGENEOUS]
    return max(_off(c["identity/weight_product"], c["identity/weight_product"][..., :1], _sizes(c).max(2, keepdims=True)) for c in found)


def _products_with_biases(device: str) -> float:
    found = [_trained(_job(model, regularizers=PENALTIES), device) for model in _HOMOGENEOUS]
    return max(
        _off(w[..., 1:], (w + b)[..., :-1], _sizes(c).max(2, keepdims=True)) for c in found for w, b in [(c["identity/weight_product"], c["identity/bias_product"])]
    )  # fmt: skip


def _class_sum(device: str) -> float:
    losses = ({"kind": "cross_entropy"}, {"kind": "cross_entropy", "label_smoothing": 0.1})
    found = [_trained(_job({"kind": "mlp", "hidden": [9], "activation": "tanh"}, loss=loss, regularizers=PENALTIES), device) for loss in losses]
    return max(_off(c["identity/class_sum"], 0.0, c["gradient/norm"][..., -1]) for c in found)


def _before_batch_norm(device: str) -> float:
    models = ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {**IMAGE, "hidden": [5], "activation": "tanh"})
    jobs = [_job({**model, "normalization": {"kind": "batch", "eps": eps}}, regularizers=PENALTIES) for model in models for eps in (0.0, 1e-5, 0.3)]
    return max(_off(c["identity/batch_norm"], 0.0, _sizes(c)) for c in (_trained(job, device) for job in jobs))


def _before_layer_norm(device: str) -> float:
    models = ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {**IMAGE, "hidden": [5], "activation": "tanh"})
    found = [_trained(_job({**model, "normalization": {"kind": "layer", "eps": 0.0}}, regularizers=PENALTIES), device) for model in models]
    return max(_off(c["identity/weight_product"][..., :-1], -c["identity/bias_product"][..., :-1], _sizes(c)[..., :-1]) for c in found)


def _under_weight_norm(device: str) -> float:
    models = ({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}, {**IMAGE, "hidden": [5], "activation": "tanh"})
    found = [_trained(_job({**model, "reparametrization": {"kind": "weight_norm"}}, regularizers=PENALTIES), device) for model in models]
    return max(_off(c["identity/weight_product"][..., :-1], 0.0, _sizes(c)[..., :-1]) for c in found)


def _recurrent_products(device: str) -> float:
    """Places: W, U of two recurrent layers, the head."""
    found = [_trained(_job({"kind": "rnn", "cell": cell, "hidden": [5, 4], "sequence": [9, 2]}, regularizers=PENALTIES), device) for cell in ("relu", "identity")]
    return max(
        _off(w[..., above], w[..., above - 2] + b[..., above - 2] + b[..., above - 1], _sizes(c).max(2)) for c in found for w, b in [(c["identity/weight_product"], c["identity/bias_product"])] for above in (2, 4)
    )  # fmt: skip


def _orthogonal_chain(device: str) -> float:
    model = {"kind": "mlp", "hidden": [18] * 20, "activation": "identity", "bias": False, "init": {"kind": "orthogonal"}}
    found = _trained(_job(model, lr=FROZEN, epochs=1), device)
    back = found["signal/backward"] * np.sqrt([18] * 20 + [3])
    return max(_off(back, back[..., -1:]), _off(found["signal/forward"][..., :20] * math.sqrt(20 * 18), np.linalg.norm(X)))


def _recurrent_chain(device: str) -> float:
    def off(rho: float) -> float:
        model = {"kind": "rnn", "cell": "identity", "bias": False, "hidden": [16], "sequence": [9, 2], "init": {"kind": "orthogonal", "scale": rho}}
        delta = _trained(_job(model, lr=FROZEN, epochs=1), device)["signal/time"]
        return _off(delta / delta[..., -1:], rho ** np.arange(8, -1, -1.0))

    return max(off(rho) for rho in (0.7, 1.0, 1.2))


def _norms_add_up(device: str) -> float:
    """The update of plain gradient descent is the gradient times lr, in every layer and over all."""
    found = _trained(_job({"kind": "mlp", "hidden": [9, 7], "activation": "tanh", "bias": False}), device)
    moved = found["update/ratio"] * found["weight/norm"]
    whole = np.square(found["gradient/norm"]).sum(2)
    return max(_off(whole, np.square(found["gradient/total"])), _off(moved, 0.1 * found["gradient/norm"]), _off(np.square(moved).sum(2), 0.01 * whole))


def _norms_are_homogeneous(device: str) -> float:
    model = {"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}
    one, two = (_trained(_job(model, y=TARGETS, loss=loss, lr=FROZEN, epochs=1), device) for loss in ("half_squared_error", "squared_error"))
    return max(_off(two[name], 2 * one[name]) for name in ("gradient/norm", "gradient/total", "gradient/rms", "signal/backward"))


def _accumulated(device: str) -> float:
    series = ("gradient/norm", "gradient/total", "signal/backward", "signal/forward", "update/ratio", "loss/train")

    def off(model: dict[str, Any]) -> float:
        whole, parts = (_trained(_job(model, regularizers=PENALTIES, accumulate=accumulate), device) for accumulate in (1, 3))
        return max(_off(parts[name], whole[name]) for name in series)

    return max(off({"kind": "mlp", "hidden": [9, 7], "activation": "tanh"}), off({**IMAGE, "activation": "tanh"}))


def _quadratic(device: str) -> float:
    """How many of the verdicts are wrong: curvatures 4, 1 and 1/16, and a learning rate a billionth above 2/4 or below."""
    columns = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]]).T * np.array([2.0, 1.0, 0.25])
    model = {"kind": "linear", "bias": False, "init": {"kind": "normal", "std": 1.0}}

    def wrong(excess: float) -> int:
        job = _job(model, x=columns, y=np.zeros(4), loss="half_squared_error", lr=0.5 * (1 + excess), epochs=600, diagnostics="light")
        rises = np.diff(_trained(job, device)["loss/train"][:, 500:]) > 0
        return int((rises != (excess > 0)).sum())

    return float(wrong(1e-9) + wrong(-1e-9))


def _uniform(device: str) -> float:
    found = [
        _trained(_job({"kind": "linear"}, y=y, loss=loss, epochs=1), device)
        for loss, y in (("cross_entropy", CLASSES), ("cross_entropy", np.arange(20) % 7), ("binary", CLASSES > 0))
    ]
    return max(_off(c["loss/train"][:, 0], math.log(classes)) for c, classes in zip(found, (3, 7, 2), strict=True))


def _clipped(device: str) -> float:
    job = _job({"kind": "mlp", "hidden": [9, 7], "activation": "tanh", "bias": False}, lr=0.2, clip={"kind": "global_norm", "max": 0.27})
    found = _trained(job, device)
    total, moved = found["gradient/total"], found["update/ratio"] * found["weight/norm"]
    factor = 0.2 * np.minimum(1, 0.27 / total)
    return max(_off(np.sqrt(np.square(moved).sum(2)), factor * total), _off(moved, factor[..., None] * found["gradient/norm"]))


_SMOOTH = [
    *({"kind": "mlp", "hidden": [9, 7], "activation": a} for a in ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softsign", "softplus", "identity")),
    {"kind": "mlp", "hidden": [9, 9, 9], "activation": "tanh", "residual": True},
    *({"kind": "mlp", "hidden": [9, 7], "activation": "silu", "normalization": {"kind": norm}} for norm in ("batch", "layer")),
    *({**IMAGE, "pool": pool, "hidden": [5], "activation": "gelu"} for pool in ("max", "average", "none")),
    *({"kind": "rnn", "cell": cell, "hidden": [5, 4], "sequence": [9, 2]} for cell in ("tanh", "lstm", "gru")),
]
_LOSSES = [("squared_error", TARGETS), ("half_squared_error", TARGETS), ("binary", CLASSES > 0), ("cross_entropy", CLASSES)]
_REACH = 1e-5


def _differences(device: str) -> float:
    jobs = [_job(model) for model in _SMOOTH] + [_job(_SMOOTH[1], loss=loss, y=y) for loss, y in _LOSSES] + [_job(_SMOOTH[1], accumulate=3)]
    return max(_slope_off(job, device) for job in jobs)


def _slope_off(job: JobSpec, device: str) -> float:
    """(L(w + hv) − L(w − hv))/2h against ⟨g, v⟩, over ‖g‖: v half the gradient's direction and half another, ‖v‖ about 1."""
    ready = prepare(job, device=device, data=Path(), upload=None, scratch=None)
    pack = pack_of(ready, ready.runs)
    start, still = pack.flat.clone(), torch.zeros(pack.size, 1, dtype=pack.dtype, device=pack.device)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        pack.flat.copy_(weights)
        found = step(pack, ready.train.x, ready.train.y, t=0, lr=still)[0]["loss/train"]
        assert isinstance(found, torch.Tensor)
        return found

    loss(start)
    gradient = pack.gradient.clone()
    length = gradient.norm(dim=1, keepdim=True)
    other = torch.cos(torch.arange(start.shape[1], dtype=pack.dtype, device=pack.device)).expand_as(start)
    v = 0.5 * gradient / length + 0.5 * other / other.norm(dim=1, keepdim=True)
    found = (loss(start + _REACH * v) - loss(start - _REACH * v)) / (2 * _REACH)
    return _off(found.cpu().numpy(), (gradient * v).sum(1).cpu().numpy(), length.squeeze(1).cpu().numpy())


def _mean_field(device: str) -> float:
    """Geometric mean of χ over eleven layers and five seeds, against the recursion at that depth."""
    draw = np.random.default_rng(5)
    x = draw.standard_normal((64, 512))
    x = (x * math.sqrt(512) / np.linalg.norm(x, axis=1, keepdims=True)).round(6)
    y = draw.integers(0, 10, 64)

    def off(activation: str) -> float:
        job = _job(
            {"kind": "mlp", "hidden": [512] * 12, "activation": activation, "init": {"kind": "he_normal"}},
            x=x,
            y=y,
            lr=FROZEN,
            epochs=1,
            seeds=5,
            dtype="float32",
            diagnostics="standard",
        )
        back = _trained(job, device)["signal/backward"][:, 0]
        facts = facts_of(job.dataset)
        assert facts is not None
        predicted = np.mean([math.log(layer.chi or math.nan) for layer in signal(job, facts, shape_of(job, facts)).layers[:11]])
        return abs(math.expm1(2 / 11 * float(np.log(back[:, 0] / back[:, 11]).mean()) - predicted))

    return max(off(activation) for activation in ("tanh", "sigmoid", "relu"))


def _batch_norm_explodes(device: str) -> float:
    """Vanilla ReLU nets behind batch norm: layers 10 to 33 of width 128, eight seeds, 256 rows."""
    draw = np.random.default_rng(5)
    job = _job(
        {"kind": "mlp", "hidden": [128] * 34, "bias": False, "normalization": {"kind": "batch"}, "init": {"kind": "he_normal"}},
        x=draw.standard_normal((256, 128)).round(6), y=draw.integers(0, 10, 256), lr=FROZEN, epochs=1, seeds=8, dtype="float32", diagnostics="standard",
    )  # fmt: skip
    back = _trained(job, device)["signal/backward"][:, 0]
    return abs(math.exp(2 / 23 * float(np.log(back[:, 10] / back[:, 33]).mean())) / (math.pi / (math.pi - 1)) - 1)


LAWS: tuple[Law, ...] = (
    Law("equal_products", "⟨W_l, ∇W_l⟩ is the same in all layers of a homogeneous net without biases", 1e-12, _equal_products),
    Law("products_with_biases", "⟨W_{l+1}, ∇W_{l+1}⟩ = ⟨W_l, ∇W_l⟩ + ⟨b_l, ∇b_l⟩ in a homogeneous net", 1e-12, _products_with_biases),
    Law("class_sum", "Σ_c g_c = 0 in the head of softmax cross-entropy", 1e-12, _class_sum),
    Law("before_batch_norm", "⟨w_i, ∇w_i⟩ = ε/(var_i + ε)·γ_i∇γ_i for each unit", 1e-12, _before_batch_norm),
    Law("before_layer_norm", "⟨W, ∇W⟩ + ⟨b, ∇b⟩ = 0 at ε = 0", 1e-12, _before_layer_norm),
    Law("under_weight_norm", "⟨V, ∇V⟩ = 0 where the length of V is taken away", 1e-12, _under_weight_norm),
    Law("recurrent_products", "⟨W_{l+1}, ∇W_{l+1}⟩ = ⟨W_l, ∇W_l⟩ + ⟨b_l, ∇b_l⟩ + ⟨c_l, ∇c_l⟩ through any recurrence of relu or identity cells", 1e-12, _recurrent_products),
    Law("orthogonal_chain", "‖δ_0‖ = ‖δ_L‖ through orthogonal linear layers", 1e-12, _orthogonal_chain),
    Law("recurrent_chain", "‖δ_t‖/‖δ_T‖ = ρ^(T − t) through a recurrence ρQ", 1e-12, _recurrent_chain),
    Law("norms_add_up", "Σ‖g_l‖² = ‖g‖², and ‖Δw_l‖ = η‖g_l‖", 1e-12, _norms_add_up),
    Law("norms_are_homogeneous", "norm(2g) = 2·norm(g)", 1e-12, _norms_are_homogeneous),
    Law("accumulated", "micro-batches give what the whole batch gives", 1e-12, _accumulated),
    Law("quadratic", "gradient descent on a quadratic diverges where η > 2/λ_max and nowhere else: wrong verdicts", 0.0, _quadratic),
    Law("uniform", "the loss at uniform logits is ln C", 1e-12, _uniform),
    Law("clipped", "the clipped norm is min(‖g‖, c), the direction unchanged", 1e-12, _clipped),
    Law("finite_differences", "(L(w + hv) − L(w − hv))/2h = ⟨g, v⟩ + O(h²), every activation, cell, normalization, pool and loss", 1e-8, _differences),
    Law("mean_field", "E‖δ_l‖² = χ_l·E‖δ_{l+1}‖² at width 512 (tanh, sigmoid, ReLU)", 0.01, _mean_field),
    Law("batch_norm_explodes", "behind batch norm ‖δ‖² grows by π/(π − 1) a ReLU layer", 0.03, _batch_norm_explodes),
)
