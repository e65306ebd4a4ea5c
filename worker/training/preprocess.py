"""Steps that are fitted on training rows and belong to the model: standardization, and the way back to raw units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

PIECE = 2**17
"""Numbers that are widened to float64 at a time: 1 MiB, which stays in a cache. Whole matrices take 13 times as long on 6,400 rows of 784 columns."""


@dataclass(frozen=True)
class Scaling:
    """x ↦ (x − mean)/scale, one mean and scale a column."""

    mean: Array
    scale: Array

    def __call__(self, x: Array) -> Array:
        if not self.mean.any() and (self.scale == 1).all():
            return x  # the same bits, and on MNIST half a second
        return (x - self.mean) / self.scale


def fit(x: Array, *, standardize: bool) -> Scaling:
    """Mean and population deviation of each column (1 where a column is constant), or the identity.  x: (n, features)"""
    if not standardize:
        return Scaling(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    deviation = x.std(0)
    return Scaling(x.mean(0), np.where(deviation > 0, deviation, 1.0))


def spread(x: Tensor) -> tuple[Array, Array]:
    """Mean and population deviation of each column, in float64 whatever the rows are in.  (n, features) -> (features,) each"""
    parts = x.cpu().split(max(1, PIECE // max(1, x.shape[1])))
    nothing = torch.zeros(x.shape[1], dtype=torch.float64)
    mean = sum((part.double().sum(0) for part in parts), nothing) / len(x)
    square = sum(((part.double() - mean).square().sum(0) for part in parts), nothing)
    return mean.numpy(), (square / len(x)).sqrt().numpy()


def coefficients(weight: Array, bias: Array | None, scaling: Scaling, names: tuple[str, ...] | None) -> dict[str, Any]:
    """A linear model in the units of the raw columns, and of the columns that it was trained on.  weight: (outputs, features), bias: (outputs,)"""
    raw = weight / scaling.scale
    offset = np.zeros(len(weight)) if bias is None else bias
    return {
        "features": list(names or (f"x{i}" for i in range(weight.shape[1]))),
        "weights": _plain(raw),
        "intercept": _plain(offset - raw @ scaling.mean),
        "trained": {"weights": _plain(weight), "intercept": _plain(offset)},
    }


def _plain(values: Array) -> Any:
    """One output is a plain list or number."""
    return values[0].tolist() if len(values) == 1 else values.tolist()
