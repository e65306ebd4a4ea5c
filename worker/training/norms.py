"""Sums of squares and inner products of many rows at once, safe against underflow and overflow. A row says the same whatever rows stand beside it.

On a CPU numpy hands each row to BLAS by itself, which is several times as fast as torch's own norms, in float32 and even more against float64, and rounds
alike however many rows there are. Elsewhere the arrays are tensors.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array on a CPU, a tensor elsewhere: what is asked of them here is spelled alike."""

WIDTH = 4096
"""Numbers that are added up in the dtype of the job; beyond them sums are added in float64. At most 1e-7 off in float32."""
LARGE = 2**14
"""Numbers of a row from which float32 products are not worth their copy in float64."""
LOW, HIGH = 1e-24, 1e36
"""Between these a sum of float32 squares has lost nothing that matters: what underflowed was below 1e-38."""


def array(x: Tensor) -> Array:
    """Sharing memory."""
    return x.numpy() if x.device.type == "cpu" else x


def norm(x: Tensor) -> Tensor:
    """Of each run.  (R, …) -> (R,) float64"""
    return _tensor(squares([array(x.flatten(1))])[0]).sqrt()


def product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each run.  (R, n) -> (R,)"""
    return _tensor(products(array(a), array(b)))


def squares(parts: list[Array]) -> list[Array]:
    """Σx² along the last axis.  (…, n) -> (…) float64, each

    In float32 a row whose sum is near an end of the range is added up once more, in float64; looking costs next to nothing on a CPU, and would cost a
    synchronisation on a GPU, which adds in float64 at once.
    """
    if isinstance(parts[0], Tensor):
        return [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64).square() for part in parts]
    with np.errstate(all="ignore"):
        found = [_dots(part, part) for part in parts]
        if parts[0].dtype == np.float32:
            every = np.concatenate([sums.ravel() for sums in found])
            if not (every.min() > LOW and every.max() < HIGH):
                for part, sums in zip(parts, found, strict=True):
                    doubtful = ~((sums > LOW) & (sums < HIGH))
                    again = part[doubtful].astype(np.float64)
                    sums[doubtful] = _dots(again, again)
    return found


def products(a: Array, b: Array) -> Array:
    """⟨a, b⟩ along the last axis, in float64 unless rows are LARGE float32 ones on a CPU.  (…, n) -> (…) float64"""
    if isinstance(a, Tensor):
        return (a.double() * b.double()).sum(-1)
    if a.shape[-1] < LARGE:
        a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        return _dots(a, b)


def _tensor(x: Array) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def _dots(a: Array, b: Array) -> Array:
    """By stretches of WIDTH."""
    n, rest = a.shape[-1], a.shape[-1] % WIDTH
    if n <= WIDTH:
        return np.vecdot(a, b).astype(np.float64)
    stretches = (*a.shape[:-1], n // WIDTH, WIDTH)
    found = np.vecdot(a[..., : n - rest].reshape(stretches), b[..., : n - rest].reshape(stretches)).sum(-1, dtype=np.float64)
    return found + np.vecdot(a[..., n - rest :], b[..., n - rest :]) if rest else found
