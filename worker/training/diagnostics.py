"""The instruments: what one step says about every layer, reduced on the device. Nothing here changes a weight.

An update whose layers are read keeps what it would overwrite and leaves the rest as it is: many are reduced together, and what each says does not depend on which.
Measurements that a step makes itself are (R,) tensors, lists of them where they are per layer; they are stacked when they are reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.diagnostics import Diagnostics, includes
from regtrain.contract.models import BatchNorm, Layer, LayerNorm
from worker.training import activations, laws
from worker.training.models import Moments
from worker.training.norms import Array, array, product, products, squares
from worker.training.pack import Pack

Measured = dict[str, Tensor | list[Tensor]]
"""Series name → (R,), or one (R,) a layer."""

Sums = list[Array]
"""What readings add up to: numbers that are not finite (n, R, L), then (n, sums) in front of the update, of products, behind it, as `told` takes them apart."""


@dataclass(slots=True)
class Reading:
    """What an update leaves behind whose layers are read: the tensors whose norms are reported.

    A reduction costs the same few µs whether it is of one update or of many, so updates wait for each other. Where their tensors are too large to wait,
    they are reduced on the spot, into `sums`.
    """

    both: Tensor
    """Weights and the data's own gradient in front of the update, (2, R, P); with `light` the gradient alone, (1, R, P)."""
    sides: list[Tensor]
    """Every layer's linear output, then the gradient that comes back to it, as they lie in memory; with `full` what the head reads, too."""
    penalties: Tensor | None
    """The gradient of all weight penalties together, (R, weights or more)."""
    update: Tensor | None = None
    sums: Sums | None = None


def read(pack: Pack, rows: int, sides: list[Tensor], penalties: Tensor | None) -> Reading:
    """In front of the update."""
    both = pack.both if includes(pack.spec.diagnostics, "standard") else pack.both[1:]
    if pack.together(rows) > 1:
        return Reading(both.clone(), sides, penalties)
    reading = Reading(both, sides, penalties)
    reading.sums = _in_front(pack, [reading])
    return reading


def read_update(pack: Pack, reading: Reading) -> None:
    """Behind it."""
    reading.update = pack.update
    if reading.sums is not None:
        reading.sums += _behind(pack, [reading])


def reduced(pack: Pack, readings: list[Reading]) -> Sums:
    """All that readings of one shape add up to. Where they are reduced on the spot, there is one."""
    return readings[0].sums or _in_front(pack, readings) + _behind(pack, readings)


def _in_front(pack: Pack, readings: list[Reading]) -> Sums:
    """Of every layer the numbers of its gradient that are not finite; squares of its weights and gradient, of the other gradients, of the sides and of the
    penalties' gradient; the product of that with the loss's."""
    both = _stacked([r.both for r in readings])  # (n, 1 or 2, R, P)
    layers, others = pack.layout.alike(both), [both[:, -1, :, pack.other_start :]] if pack.has_others else []
    gradients = [part[:, -1] for part in layers]
    sides = [_rows(_stacked(of_all), pack.size) for of_all in zip(*[r.sides for r in readings], strict=True)]
    penalties = [r.penalties for r in readings if r.penalties is not None]
    parts = pack.layout.alike(_stacked(penalties)) if penalties else []
    sums = squares([*layers, *others, *sides, *parts])
    return [_nonfinite(gradients, sums), sums, *([products(gradients, parts)] if parts else [])]


def _behind(pack: Pack, readings: list[Reading]) -> Sums:
    """Squares of every layer's update."""
    if not includes(pack.spec.diagnostics, "standard"):
        return []
    return [squares(pack.layout.alike(_stacked([r.update for r in readings if r.update is not None])))]


def told(pack: Pack, found: list[Sums]) -> dict[str, NDArray[Any]]:
    """The series that the sums of many readings make.  -> (n, R) or (n, R, L)

    Norms of signals become rms, those of updates ratios and products cosines in `finish`.
    """
    nonfinite, squared, *rest = [_host(parts) for parts in zip(*found, strict=True)]
    preset, runs, each = pack.spec.diagnostics, pack.size, pack.size * len(pack.shape)
    standard, full = includes(preset, "standard"), includes(preset, "full")
    widths = [each * (2 if standard else 1), runs * pack.has_others, each * standard, each * standard, runs * full]
    layers, others, forward, backward, head, penalties = np.split(np.sqrt(squared), np.cumsum(widths), 1)
    both = _by_layer(pack, layers)  # (n, 1 or 2, R, L)
    values = {"gradient/nonfinite": nonfinite, "gradient/norm": both[:, -1]} | ({"gradient/total": others} if pack.has_others else {})
    if standard:
        *of_products, update = rest
        sides = {name: side.reshape(len(side), -1, runs).swapaxes(1, 2) for name, side in (("signal/forward", forward), ("signal/backward", backward))}
        values |= {"weight/norm": both[:, 0], **sides, "update/ratio": np.sqrt(_by_layer(pack, update)[:, 0])}
        if of_products:
            values |= {"penalty_gradient/norm": _by_layer(pack, penalties)[:, 0], "penalty_gradient/cosine": _by_layer(pack, of_products[0])[:, 0]}
    return values | ({laws.HEAD: head} if full else {})


def _rows(sides: Array, runs: int) -> Array:
    """Dense (n, R, B, units) or images (n, B, R·C, height, width) -> (n, R, numbers)"""
    if sides.ndim == 4:
        return sides.reshape(len(sides), runs, -1)
    n, rows, channels = sides.shape[:3]
    return sides.reshape(n, rows, runs, channels // runs, -1).swapaxes(1, 2).reshape(n, runs, -1)


def _by_layer(pack: Pack, sums: NDArray[Any]) -> NDArray[Any]:
    """Sums of `alike` layers side by side, layer by layer.  (n, some·R·L) -> (n, some, R, L)"""
    counts = [count for _, count in pack.layout.neighbours]
    parts = np.split(sums, np.cumsum(counts)[:-1] * (sums.shape[1] // len(pack.shape)), 1)
    return np.concatenate([part.reshape(len(part), -1, pack.size, count) for part, count in zip(parts, counts, strict=True)], -1)


def _nonfinite(gradients: list[Array], sums: Array) -> Array:
    """How many numbers of each layer's gradient are not finite, which can only be where a sum is not.  `alike` -> (n, R, L)"""
    if isinstance(sums, Tensor):
        return torch.cat([torch.count_nonzero(part - part, dim=-1) for part in gradients], -1)
    if np.isfinite(sums).all():
        return np.zeros((*gradients[0].shape[:2], sum(part.shape[2] for part in gradients)))
    return np.concatenate([np.count_nonzero(~np.isfinite(part), axis=-1) for part in gradients], -1)


def _stacked(tensors: Sequence[Tensor]) -> Array:
    """(…) each -> (n, …)"""
    return array(torch.stack(list(tensors))) if len(tensors) > 1 else array(tensors[0])[None]


def _host(parts: Sequence[Array]) -> NDArray[Any]:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(list(parts)).cpu().numpy()


def of_time(shape: list[Layer], deltas: list[Tensor]) -> Measured:
    """The gradient that comes back to every time step of every recurrent layer, at the linear output of its input; norms become rms when reported."""
    halves = [(delta, layer.recurrence.steps) for layer, delta in zip(shape, deltas, strict=True) if layer.recurrence is not None and layer.recurrence.half == "input"]
    if not halves:
        return {}
    norms = [torch.linalg.vector_norm(delta.unflatten(1, (-1, steps)), dim=(1, 3), dtype=torch.float64) for delta, steps in halves]
    return {"signal/time": [step for of_layer in norms for step in of_layer.unbind(1)]}


def finish(pack: Pack, values: dict[str, NDArray[Any]], rows: NDArray[np.int64], looked: NDArray[np.int64]) -> None:
    """What follows from other measurements is computed on the host, once a report, in float64.  values: (n, R, …), in place; rows: (n,) of the batches whose
    layers were read, `looked`: of those at which what is measured once an epoch was.

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
        values["signal/time"] = values["signal/time"] / np.sqrt(looked[:, None, None] * np.array(units))
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
