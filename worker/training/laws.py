"""The laws of gradients that every job with `full` is watched by, from numbers that its instruments have: on the host, once a report.

There is no threshold to tune. A law holds but for rounding, so what it misses is measured in units of a rounding bound: FACTOR·ε times the
sums whose parts cancel. Beyond 1 something is wrong with the way back, or with the machine. What is watched:

- homogeneous nets, ⟨W_{l+1}, ∇⟩ = ⟨W_l, ∇⟩ + ⟨b_l, ∇⟩: both sides are Σ⟨z, δ⟩ over the rows, at most ‖z‖·‖δ‖;
- softmax cross-entropy, Σ_c ∇W_c = 0: a mean over rows of h·Σ_c(p − q), at most the norm of what the head reads;
- units in front of batch norm, ⟨w_i, ∇w_i⟩ = ε/(var_i + ε)·γ_i∇γ_i: Σ⟨z, δ⟩ again.

They are laws of the weights that layers work with: where those are functions of what is learned (weight and spectral norm), nothing is watched.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regtrain.contract.losses import CrossEntropy
from regtrain.contract.models import BatchNorm, Layer
from worker.training.pack import Pack

EXCESS, HEAD = "identity/excess", "signal/head"
"""The series that this module makes, and the norm of what the head reads, which is measured for it alone."""
FACTOR = 256
"""In float32 a bound of 3e-5 of the sums. Measured on a CPU: at most 4 in place of 256, in nets of up to 34 layers, trained to a loss of 1e-6, without
scaled inputs, with targets of 1e6, one row at a time."""
NORMED = 65_536
"""The same for batch norm, which loses as many digits as a unit's mean has over its deviation: 13,000 were measured where the inputs were 1e5 ± 1."""
HOMOGENEOUS = ("relu", "leaky_relu", "identity")


def excess(pack: Pack, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """How far each layer is beyond the rounding bound of the laws that hold there, in units of it.  values: norms of signals, (n, R, L) -> (n, R, L)"""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = values["signal/forward"] * values["signal/backward"]
        found = np.zeros(sums.shape)
        if _homogeneous(pack.shape):
            weights, biases = values["identity/weight_product"], values["identity/bias_product"]
            found[..., 1:] = _over(pack, weights[..., 1:] - (weights + biases)[..., :-1], sums[..., 1:] + sums[..., :-1])
        if isinstance(pack.spec.loss, CrossEntropy) and pack.shape[-1].reparametrization is None:
            found[..., -1] = np.maximum(found[..., -1], _over(pack, values["identity/class_sum"], values[HEAD]))
        if "identity/batch_norm" in values:
            normed = [isinstance(layer.normalization, BatchNorm) and layer.reparametrization is None for layer in pack.shape]
            found[..., normed] = np.maximum(found[..., normed], _over(pack, values["identity/batch_norm"], sums, factor=NORMED)[..., normed])
    return found


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
    hidden = shape[:-1]
    return all(layer.reparametrization is None for layer in shape) and all(
        layer.activation in HOMOGENEOUS and layer.normalization is None and not layer.residual and layer.recurrence is None for layer in hidden
    )
