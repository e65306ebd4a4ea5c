"""The instruments: what one step says about every layer, reduced on the device. Nothing here changes a weight.

Norms are reduced in float64 whatever the dtype of the job: squares of 1e-24 underflow in float32, and deep sigmoid signals are near 1e-28.
Per-layer measurements are lists of (R,) tensors; they are stacked when they are reported, four times a second, not in the step.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from regtrain.contract.diagnostics import Diagnostics, includes
from regtrain.contract.models import BatchNorm, Layer
from worker.training.models import Layout, Moments, by_run

Measured = dict[str, Tensor | list[Tensor]]
"""Series name → (R,), or one (R,) a layer."""


def norm(x: Tensor) -> Tensor:
    """L2 norm of each run.  (R, …) -> (R,) float64"""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each run.  (R, …) -> (R,) float64"""
    return norm(x) / math.sqrt(math.prod(x.shape[1:]))


def by_layer(layout: Layout, flat: Tensor) -> list[Tensor]:
    """Norm of the weight tensor of each layer.  (R, P) -> L × (R,)"""
    return [torch.linalg.vector_norm(flat[:, s.start : s.stop], dim=1, dtype=torch.float64) for s in layout.weights]


def of_gradient(preset: Diagnostics, layout: Layout, gradient: Tensor) -> Measured:
    """The data's own gradient: of every layer's weight tensor, and of all parameters together.  gradient: (R, P)"""
    if not includes(preset, "light"):
        return {}
    norms = by_layer(layout, gradient)
    rest = gradient[:, layout.weights[-1].stop :]
    parts = [*norms, norm(rest)] if rest.shape[1] else norms
    measured: Measured = {"gradient/norm": norms, "gradient/total": torch.linalg.vector_norm(torch.stack(parts), dim=0)}
    if includes(preset, "standard"):
        measured["gradient/nonfinite"] = _nonfinite(layout, gradient)
    return measured


def of_signals(preset: Diagnostics, signals: list[Tensor], gradients: list[Tensor], runs: int) -> Measured:
    """Both sides of every layer's linear output: the signal that goes forward and the gradient that comes back."""
    if not includes(preset, "standard"):
        return {}
    return {"signal/forward": [rms(by_run(h, runs)) for h in signals], "signal/backward": [rms(by_run(d, runs)) for d in gradients]}


def of_penalties(preset: Diagnostics, layout: Layout, gradient: Tensor, penalties: Tensor, norms: list[Tensor]) -> Measured:
    """What the penalties do to the gradient.  gradient, penalties: (R, P), of the loss and of all weight penalties; norms: L × (R,) of the loss."""
    if not includes(preset, "standard"):
        return {}
    lengths = by_layer(layout, penalties)
    products = [product(gradient[:, s.start : s.stop], penalties[:, s.start : s.stop]) for s in layout.weights]
    return {"penalty_gradient/norm": lengths, "penalty_gradient/cosine": [_cosine(p, a, b) for p, a, b in zip(products, lengths, norms, strict=True)]}


def of_update(preset: Diagnostics, layout: Layout, weights: Tensor, update: Tensor) -> Measured:
    """Weights before the update, and how far it moves them: infinite for a layer that is zero and moves, 0 if it does not.  (R, P)"""
    if not includes(preset, "standard"):
        return {}
    lengths, moved = by_layer(layout, weights), by_layer(layout, update)
    return {"weight/norm": lengths, "update/ratio": [(m / w).nan_to_num_(nan=0.0, posinf=math.inf) for m, w in zip(moved, lengths, strict=True)]}


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


def _cosine(dot: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Cosine from a dot product and two norms, 0 where one of them is 0."""
    return torch.where((a > 0) & (b > 0), dot / (a * b), 0.0)


def _nonfinite(layout: Layout, gradient: Tensor) -> list[Tensor]:
    """How many entries of each layer's weight gradient are NaN or infinite: x − x is 0 for every other number.  (R, P) -> L × (R,)"""
    rest = gradient - gradient
    return [torch.count_nonzero(rest[:, s.start : s.stop], dim=1) for s in layout.weights]


def _zero(like: Tensor) -> Tensor:
    return torch.zeros(len(like), dtype=torch.float64, device=like.device)
