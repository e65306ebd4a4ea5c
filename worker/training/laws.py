"""The laws of gradients that every job with `full` is watched by, from numbers that its instruments have: on the host, once a report.

There is no threshold to tune. A law holds but for rounding, so what it misses is measured in units of a rounding bound: FACTOR·ε times the
sums whose parts cancel. Beyond 1 something is wrong with the way back, or with the machine. What is watched:

- homogeneous nets, ⟨W_{l+1}, ∇⟩ = ⟨W_l, ∇⟩ + ⟨b_l, ∇⟩: both sides are Σ⟨z, δ⟩ over the rows, at most ‖z‖·‖δ‖;
- softmax cross-entropy, Σ_c ∇W_c = 0: a mean over rows of h·Σ_c(p − q), at most the norm of what the head reads;
- units in front of batch norm, ⟨w_i, ∇w_i⟩ = ε/(var_i + ε)·γ_i∇γ_i: Σ⟨z, δ⟩ again;
- in front of layer norm, Σ_i ∇b_i = 0 for any ε, since what is added to all units of a row is taken away again: a sum of δ; and at ε = 0, where no scale
  passes, ⟨W, ∇W⟩ + ⟨b, ∇b⟩ = 0;
- weight norm, ⟨V, ∇V⟩ = 0, since the length of what is learned is taken away: the parts are ⟨w_i, ∇w_i⟩;
- recurrent nets of relu or identity cells. δ_t the gradient at z_t = Wx_t + b + Uh_{t−1} + c, e_t what comes to h_t from above: h_t = φ(z_t) is homogeneous, so
  ⟨δ_t, z_t⟩ = ⟨e_t + Uᵀδ_{t+1}, h_t⟩. Summed over t the products ⟨δ_{t+1}, Uh_t⟩ = ⟨U, ∇U⟩ stand on both sides, h_0 = 0, and Σ⟨e_t, h_t⟩ is ⟨W, ∇W⟩ of whatever
  reads the states: ⟨W_{l+1}, ∇⟩ = ⟨W_l, ∇⟩ + ⟨b_l, ∇⟩ + ⟨c_l, ∇⟩, whatever U is. Gates and tanh are not homogeneous: nothing like it holds there.

But for weight norm they are laws of the weights that layers work with: where those are functions of what is learned, the others are not watched.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regtrain.contract.losses import CrossEntropy
from regtrain.contract.models import BatchNorm, Layer, LayerNorm, WeightNorm
from worker.training.pack import Pack

EXCESS, HEAD, SHIFT = "identity/excess", "signal/head", "identity/shift"
"""The series that this module makes; the norm of what the head reads, and |Σ_i ∇b_i| of each layer, which are measured for it alone."""
FACTOR = 256
"""In float32 a bound of 3e-5 of the sums. Measured on a CPU: at most 4 in place of 256, in nets of up to 34 layers, trained to a loss of 1e-6, without
scaled inputs, with targets of 1e6, one row at a time."""
NORMED = 65_536
"""The same for batch and layer norm, which lose as many digits as a mean has over its deviation: 13,000 were measured where the inputs were 1e5 ± 1."""
HOMOGENEOUS = ("relu", "leaky_relu", "identity")


def excess(pack: Pack, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """How far each layer is beyond the rounding bound of the laws that hold there, in units of it.  values: norms of signals, (n, R, L) -> (n, R, L)"""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = values["signal/forward"] * values["signal/backward"]
        found = np.zeros(sums.shape)
        if _homogeneous(pack.shape):
            _homogeneous_excess(pack, values["identity/weight_product"], values["identity/bias_product"], sums, found)
        if isinstance(pack.spec.loss, CrossEntropy) and pack.shape[-1].reparametrization is None:
            found[..., -1] = np.maximum(found[..., -1], _over(pack, values["identity/class_sum"], values[HEAD]))
        if "identity/batch_norm" in values:
            normed = [isinstance(layer.normalization, BatchNorm) and layer.reparametrization is None for layer in pack.shape]
            found[..., normed] = np.maximum(found[..., normed], _over(pack, values["identity/batch_norm"], sums, factor=NORMED)[..., normed])
        for place, layer in enumerate(pack.shape):
            for missed, of, factor in _invariant(layer, place, values, sums):
                found[..., place] = np.maximum(found[..., place], _over(pack, missed, of, factor=factor))
    return found


def _homogeneous_excess(pack: Pack, weights: NDArray[Any], biases: NDArray[Any], sums: NDArray[Any], found: NDArray[np.float64]) -> None:
    """Between each layer and the one that reads it; of a recurrent layer the own recurrence counts with its bias alone."""
    reads = [place for place, layer in enumerate(pack.shape) if layer.recurrence is None or layer.recurrence.half == "input"]
    for below, above in pairwise(reads):
        between = slice(below + 1, above)
        put = weights[..., below] + biases[..., below] + biases[..., between].sum(-1)
        found[..., above] = _over(pack, weights[..., above] - put, sums[..., above] + sums[..., below] + sums[..., between].sum(-1))


def _invariant(layer: Layer, place: int, values: Mapping[str, NDArray[Any]], sums: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any], int]]:
    """Of a layer whose scale or mean is taken away: what should be 0, the size of what should cancel, and the factor of its bound."""
    product, shift = values["identity/weight_product"][..., place], values["identity/bias_product"][..., place]
    if isinstance(layer.reparametrization, WeightNorm):
        yield product, sums[..., place] + values["weight/norm"][..., place] * values["gradient/norm"][..., place], FACTOR
    elif isinstance(layer.normalization, LayerNorm) and layer.reparametrization is None:
        yield values[SHIFT][..., place], values["signal/backward"][..., place], NORMED
        if layer.normalization.eps == 0:
            yield product + shift, sums[..., place], NORMED


def broken(values: NDArray[np.float64], runs: NDArray[np.bool_]) -> tuple[int, int, int] | None:
    """The first row, run and layer that is beyond its bound, of the runs that took part in the row.  values: (n, R, L), runs: (n, R)"""
    found = np.argwhere((values > 1) & runs[..., None])
    return tuple(found[0].tolist()) if len(found) else None


def _over(pack: Pack, missed: NDArray[Any], sums: NDArray[Any], *, factor: int = FACTOR) -> NDArray[np.float64]:
    return np.abs(missed) / (factor * _epsilon(pack) * sums + torch.finfo(pack.dtype).tiny)


def _epsilon(pack: Pack) -> float:
    """Of the products: a GPU may round the factors of float32 convolutions to 11 bits (TF32)."""
    short = pack.device.type == "cuda" and pack.dtype == torch.float32 and torch.backends.cudnn.allow_tf32 and any(len(layer.weight) == 4 for layer in pack.shape)
    return 2.0**-11 if short else torch.finfo(pack.dtype).eps


def _homogeneous(shape: list[Layer]) -> bool:
    """Whether scaling what any layer puts out scales what the net puts out, but for biases."""
    return all(layer.reparametrization is None for layer in shape) and all(
        (layer.recurrence.cell if layer.recurrence else layer.activation) in HOMOGENEOUS and layer.normalization is None and not layer.residual for layer in shape[:-1]
    )
