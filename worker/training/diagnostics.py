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
from regtrain.contract.models import BatchNorm, Layer
from worker.training.models import Layout, Moments, by_run

Measured = dict[str, Tensor | list[Tensor]]
"""Series name → (R,), or one (R,) a layer."""


def norm(x: Tensor) -> Tensor:
    """L2 norm of each run, safe against underflow and overflow of squares.  (R, …) -> (R,)

    Reduced in float64. Large float32 tensors on a CPU are tried in float32 first, in a third of the time: where every run's norm lies far
    inside the range of squares, what underflowed cannot have mattered. Looking at it costs nothing there, and would cost a synchronisation on a GPU.
    """
    rows = x.flatten(1)
    if rows.dtype == torch.float32 and rows.shape[1] >= LARGE and rows.device.type == "cpu":
        quick = torch.linalg.vector_norm(rows, dim=1)
        if bool(((quick > 1e-12) & (quick < 1e18)).all()):
            return quick
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


LARGE = 2**14
"""Numbers in a tensor from which reducing in float64 costs more than looking at the float32 result."""


def rms(x: Tensor) -> Tensor:
    """Root mean square of each run.  (R, …) -> (R,) float64"""
    return norm(x) / math.sqrt(math.prod(x.shape[1:]))


def by_layer(layout: Layout, flat: Tensor) -> list[Tensor]:
    """Norm of the weight tensor of each layer.  (R, P) -> L × (R,)"""
    return [norm(flat[:, s.start : s.stop]) for s in layout.weights]


def of_gradient(preset: Diagnostics, layout: Layout, gradient: Tensor) -> Measured:
    """The data's own gradient: of every layer's weight tensor, and of all parameters together.  gradient: (R, P)"""
    if not includes(preset, "light"):
        return {}
    norms = by_layer(layout, gradient)
    rest = gradient[:, layout.weights[-1].stop :]
    parts = [*norms, norm(rest)] if rest.shape[1] else norms
    measured: Measured = {"gradient/norm": norms, "gradient/total": torch.linalg.vector_norm(torch.stack(parts), dim=0)}
    if includes(preset, "standard"):
        measured["gradient/nonfinite"] = _nonfinite(layout, gradient, norms)
    return measured


def of_signals(preset: Diagnostics, signals: list[Tensor], gradients: list[Tensor], runs: int) -> Measured:
    """Both sides of every layer's linear output: the signal that goes forward and the gradient that comes back."""
    if not includes(preset, "standard"):
        return {}
    return {"signal/forward": [rms(by_run(h, runs)) for h in signals], "signal/backward": [rms(by_run(d, runs)) for d in gradients]}


def of_penalties(preset: Diagnostics, layout: Layout, gradient: Tensor, penalties: Tensor) -> Measured:
    """What the penalties do to the gradient: their own gradient's norm, and its product with the loss's.  gradient, penalties: (R, P)

    The cosine is finished from product and norms when it is reported.
    """
    if not includes(preset, "standard"):
        return {}
    products = [product(gradient[:, s.start : s.stop], penalties[:, s.start : s.stop]) for s in layout.weights]
    return {"penalty_gradient/norm": by_layer(layout, penalties), "penalty_gradient/cosine": products}


def of_update(preset: Diagnostics, layout: Layout, weights: Tensor, update: Tensor) -> Measured:
    """Weights before the update, and how far it moves them; the ratio is finished when it is reported.  (R, P)"""
    if not includes(preset, "standard"):
        return {}
    return {"weight/norm": by_layer(layout, weights), "update/ratio": by_layer(layout, update)}


def finish(layout: Layout, values: dict[str, NDArray[Any]]) -> None:
    """What follows from other measurements is computed on the host, once a report, in float64.  values: (n, R, L), in place

    An update ratio is infinite for a layer that was zero and moved, 0 if it did not move; a cosine is 0 where one side is 0.
    """
    norms = values.get("gradient/norm")
    if norms is not None and "weight/norm" in values:
        values["gradient/rms"] = norms / np.array([math.sqrt(s.stop - s.start) for s in layout.weights])
    with np.errstate(divide="ignore", invalid="ignore"):
        if "update/ratio" in values:
            moved = values["update/ratio"]
            values["update/ratio"] = np.where(moved == 0, 0.0, moved / values["weight/norm"])
        if norms is not None and "penalty_gradient/cosine" in values:
            lengths = norms * values["penalty_gradient/norm"]
            values["penalty_gradient/cosine"] = np.where(lengths == 0, 0.0, values["penalty_gradient/cosine"] / lengths)


def of_identities(preset: Diagnostics, layout: Layout, shape: list[Layer], moments: Moments, weights: Tensor, gradient: Tensor) -> Measured:
    """The inner products of the exact laws of homogeneous and of scale-invariant layers.  weights, gradient: (R, P)"""
    if not includes(preset, "full"):
        return {}
    w, g = layout.views(weights), layout.views(gradient)
    return {
        "identity/weight_product": [product(w[s.name], g[s.name]) for s in layout.weights],
        "identity/bias_product": [product(w[f"{layer.name}.bias"], g[f"{layer.name}.bias"]) if layer.bias else _zero(weights) for layer in shape],
        "identity/class_sum": g["head.weight"].double().sum(1).abs().amax(1),
        "identity/batch_norm": [_scale_residual(layer, moments, w, g) if isinstance(layer.normalization, BatchNorm) else _zero(weights) for layer in shape],
    }


def product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each run.  (R, …) -> (R,) float64"""
    return torch.bmm(a.flatten(1).double().unsqueeze(1), b.flatten(1).double().unsqueeze(2)).flatten()


def _scale_residual(layer: Layer, moments: Moments, w: Mapping[str, Tensor], g: Mapping[str, Tensor]) -> Tensor:
    """max over units of |⟨w_i, ∇w_i⟩ − ε/(var_i + ε)·γ_i∇γ_i|.  -> (R,)

    Scaling a unit's weights by α scales v and leaves only ε/(var + ε) of the change in the normalised value u, and ⟨∂L/∂u, u⟩ = γ∇γ.
    """
    assert isinstance(layer.normalization, BatchNorm)
    eps, variance = layer.normalization.eps, moments[layer.name][1].double()
    products = (w[f"{layer.name}.weight"].double() * g[f"{layer.name}.weight"].double()).flatten(2).sum(2)
    through = w[f"{layer.name}.norm.weight"].double() * g[f"{layer.name}.norm.weight"].double() * (eps / (variance + eps))
    return (products - through).abs().amax(1)


def _nonfinite(layout: Layout, gradient: Tensor, norms: list[Tensor]) -> list[Tensor]:
    """How many entries of each layer's weight gradient are NaN or infinite: x − x is 0 for every other number.  (R, P) -> L × (R,)

    On a CPU a finite norm answers first.
    """
    if gradient.device.type == "cpu" and all(bool(torch.isfinite(n).all()) for n in norms):
        return [torch.zeros(len(gradient), dtype=torch.int64)] * len(norms)
    rest = gradient - gradient
    return [torch.count_nonzero(rest[:, s.start : s.stop], dim=1) for s in layout.weights]


def _zero(like: Tensor) -> Tensor:
    return torch.zeros(len(like), dtype=torch.float64, device=like.device)
