"""The instruments: what one step says about every layer, reduced on the device. Nothing here changes a weight.

Norms are reduced in float64 whatever the dtype of the job: squares of 1e-24 underflow in float32, and deep sigmoid signals are near 1e-28.
Per-layer measurements are lists of (R,) tensors; they are stacked when they are reported, four times a second, not in the step.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.diagnostics import Diagnostics, includes
from regtrain.contract.models import BatchNorm, Layer, LayerNorm
from worker.training import activations, laws
from worker.training.models import Moments, by_run
from worker.training.pack import Pack

Measured = dict[str, Tensor | list[Tensor]]
"""Series name → (R,), or one (R,) a layer."""


LARGE, WIDTH = 2**14, 512
"""Numbers in a tensor from which reducing in float64 costs more than looking at the float32 result; numbers that are added up in float32 at a time."""


def norm(x: Tensor) -> Tensor:
    """L2 norm of each run, safe against underflow and overflow of squares.  (R, …) -> (R,)

    Reduced in float64. Large float32 tensors on a CPU are reduced in float32 by stretches of WIDTH numbers first, in a fifth of the time (100,000
    numbers: 11.5 µs against 54, 4e-9 off; in one stretch it would be 4e-5): where every run's norm lies far inside the range of squares, what
    underflowed cannot have mattered. Looking at it costs nothing there, and would cost a synchronisation on a GPU.
    """
    dims = tuple(range(1, x.dim()))
    if x.numel() >= LARGE * len(x) and x.dtype == torch.float32 and x.device.type == "cpu":
        quick = _by_stretches(x.flatten(1))
        low, high = torch.aminmax(quick)
        if low.item() > 1e-12 and high.item() < 1e18:
            return quick
    return torch.linalg.vector_norm(x, dim=dims, dtype=torch.float64)


def _by_stretches(rows: Tensor) -> Tensor:
    """Norm of each row, from the float32 norms of its stretches.  (R, n) -> (R,) float64"""
    whole = rows.shape[1] // WIDTH * WIDTH
    norms = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, WIDTH)), dim=2)
    if whole < rows.shape[1]:
        norms = torch.cat([norms, torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)], 1)
    return torch.linalg.vector_norm(norms, dim=1, dtype=torch.float64)


def product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each run, in float64 unless it is a large float32 one on a CPU.  (R, n) -> (R,)"""
    if not (a.numel() >= LARGE * len(a) and a.device.type == "cpu"):
        a, b = a.double(), b.double()
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).flatten()


def of_gradient(preset: Diagnostics, pack: Pack, *, clean: bool) -> Measured:
    """The data's own gradient, as it stands in the pack. `clean`: it is known to be finite."""
    if not includes(preset, "light"):
        return {}
    measured: Measured = {"gradient/norm": [norm(g) for g in pack.weight_gradients]}
    if pack.other_gradients.shape[1]:
        measured["gradient/total"] = norm(pack.other_gradients)
    measured["gradient/nonfinite"] = [pack.none] * len(pack.shape) if clean else [torch.count_nonzero(g - g, dim=1) for g in pack.weight_gradients]
    return measured


def of_signals(preset: Diagnostics, signals: list[Tensor], deltas: list[Tensor], runs: int) -> Measured:
    """Both sides of every layer's linear output: the signal that goes forward and the gradient that comes back; norms become rms when reported."""
    if not includes(preset, "standard"):
        return {}
    return {"signal/forward": [norm(by_run(h, runs)) for h in signals], "signal/backward": [norm(by_run(d, runs)) for d in deltas]}


def of_time(preset: Diagnostics, shape: list[Layer], deltas: list[Tensor]) -> Measured:
    """The gradient that comes back to every time step of every recurrent layer, at the linear output of its input; norms become rms when reported."""
    halves = [(delta, layer.recurrence.steps) for layer, delta in zip(shape, deltas, strict=True) if layer.recurrence is not None and layer.recurrence.half == "input"]
    if not (halves and includes(preset, "standard")):
        return {}
    norms = [torch.linalg.vector_norm(delta.unflatten(1, (-1, steps)), dim=(1, 3), dtype=torch.float64) for delta, steps in halves]
    return {"signal/time": [step for of_layer in norms for step in of_layer.unbind(1)]}


def of_penalties(preset: Diagnostics, pack: Pack, penalties: Tensor) -> Measured:
    """What the penalties do to the gradient: their own gradient's norm, and its product with the loss's, which becomes a cosine when reported.

    penalties: (R, weights or more), the gradient of all weight penalties together.
    """
    if not includes(preset, "standard"):
        return {}
    parts = [penalties[:, s.start : s.stop] for s in pack.layout.weights]
    return {"penalty_gradient/norm": [norm(p) for p in parts], "penalty_gradient/cosine": [product(g, p) for g, p in zip(pack.weight_gradients, parts, strict=True)]}


def of_weights(preset: Diagnostics, pack: Pack) -> Measured:
    """Weights before the update."""
    return {"weight/norm": [norm(w) for w in pack.weights]} if includes(preset, "standard") else {}


def of_update(preset: Diagnostics, pack: Pack) -> Measured:
    """How far the update moves every layer; it becomes a ratio when reported."""
    return {"update/ratio": [norm(u) for u in pack.weight_updates]} if includes(preset, "standard") else {}


def finish(pack: Pack, values: dict[str, NDArray[Any]], rows: NDArray[np.int64], looked: NDArray[np.int64]) -> None:
    """What follows from other measurements is computed on the host, once a report, in float64.  values: (n, R, …), in place; rows: (n,) of each batch,
    `looked`: the places of those at which what is measured once an epoch was.

    An update ratio is infinite for a layer that was zero and moved, 0 if it did not move; a cosine is 0 where one side is 0.
    """
    if laws.HEAD in values:
        values[laws.EXCESS] = laws.excess(pack, values)
        del values[laws.HEAD]
        values.pop(laws.SHIFT, None)
    norms = values.get("gradient/norm")
    if norms is not None:
        rest = values.get("gradient/total", np.zeros(norms.shape[:2]))
        values["gradient/total"] = np.hypot.reduce(np.concatenate([norms, rest[..., None]], 2), 2)  # scale-safe
    if norms is None or "weight/norm" not in values:
        return
    values["gradient/rms"] = norms / np.array([math.sqrt(s.stop - s.start) for s in pack.layout.weights])
    outputs = np.array([math.prod(layer.signal) for layer in pack.shape])
    for name in ("signal/forward", "signal/backward"):
        values[name] = values[name] / np.sqrt(rows[:, None, None] * outputs)
    if "signal/time" in values:
        units = [layer.signal[1] for layer in pack.shape if layer.recurrence and layer.recurrence.half == "input" for _ in range(layer.recurrence.steps)]
        values["signal/time"] = values["signal/time"] / np.sqrt(rows[looked][:, None, None] * np.array(units))
    for name in values.keys() & set(activations.names(pack.shape)):
        values[name] = values[name] / np.array([activations.shares(name, pack.shape, int(n)) for n in rows])[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values["update/ratio"] = np.where(values["update/ratio"] == 0, 0.0, values["update/ratio"] / values["weight/norm"])
        if "penalty_gradient/cosine" in values:
            lengths = norms * values["penalty_gradient/norm"]
            values["penalty_gradient/cosine"] = np.where(lengths == 0, 0.0, values["penalty_gradient/cosine"] / lengths)


def of_identities(preset: Diagnostics, pack: Pack, moments: Moments | None) -> Measured:
    """The inner products of the exact laws of homogeneous and of scale-invariant layers, with the data's own gradient.

    Without `moments`, where each micro-batch was normalised by its own, batch norm's law is not measured.
    """
    if not includes(preset, "full"):
        return {}
    w, g = pack.net.tensors, pack.net.gradients
    nothing = torch.zeros(pack.size, dtype=torch.float64, device=pack.device)
    measured: Measured = {
        "identity/weight_product": [product(a, b) for a, b in zip(pack.weights, pack.weight_gradients, strict=True)],
        "identity/bias_product": [product(w[f"{layer.name}.bias"], g[f"{layer.name}.bias"]) if layer.bias else nothing for layer in pack.shape],
        "identity/class_sum": g["head.weight"].double().sum(1).abs().amax(1),
    }
    if any(isinstance(layer.normalization, LayerNorm) for layer in pack.shape):
        shifts = [layer.bias and isinstance(layer.normalization, LayerNorm) for layer in pack.shape]
        measured[laws.SHIFT] = [g[f"{layer.name}.bias"].double().sum(1).abs() if there else nothing for layer, there in zip(pack.shape, shifts, strict=True)]
    if moments is not None:
        measured["identity/batch_norm"] = [_scale_residual(layer, moments, w, g) if isinstance(layer.normalization, BatchNorm) else nothing for layer in pack.shape]
    return measured


def _scale_residual(layer: Layer, moments: Moments, w: Mapping[str, Tensor], g: Mapping[str, Tensor]) -> Tensor:
    """max over units of |⟨w_i, ∇w_i⟩ − ε/(var_i + ε)·γ_i∇γ_i|.  -> (R,)

    Scaling a unit's weights by α scales v and leaves only ε/(var + ε) of the change in the normalised value u, and ⟨∂L/∂u, u⟩ = γ∇γ.
    """
    assert isinstance(layer.normalization, BatchNorm)
    eps, variance = layer.normalization.eps, moments[layer.name][1].double()
    products = (w[f"{layer.name}.weight"].double() * g[f"{layer.name}.weight"].double()).flatten(2).sum(2)
    through = w[f"{layer.name}.norm.weight"].double() * g[f"{layer.name}.norm.weight"].double() * (eps / (variance + eps))
    return (products - through).abs().amax(1)
