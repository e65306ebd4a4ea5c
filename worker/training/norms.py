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
    return x.numpy() if x.is_cpu else x


def norm(x: Tensor) -> Tensor:
    """Of each run.  (R, …) -> (R,) float64"""
    return _tensor(squares([array(x.flatten(1))])[:, 0]).sqrt()


def product(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each run.  (R, n) -> (R,)"""
    return _tensor(products([array(a)], [array(b)])[:, 0])


def squares(parts: list[Array]) -> Array:
    """Σx² along the last axis of every part, side by side.  (n, …, numbers) each -> (n, all that the axes between hold) float64

    In float32 a row whose sum is near an end of the range is added up once more, in float64; looking costs next to nothing on a CPU, and would cost a
    synchronisation on a GPU, which adds in float64 at once.
    """
    if isinstance(parts[0], Tensor):
        return beside([torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64).square() for part in parts])
    with np.errstate(all="ignore"):
        sums = [_dots(part, part) for part in parts]
        found = beside(sums)
        if parts[0].dtype == np.float32 and not (found.min() > LOW and found.max() < HIGH):
            return beside([_mended(part, of_part) for part, of_part in zip(parts, sums, strict=True)])
    return found


def products(a: list[Array], b: list[Array]) -> Array:
    """⟨a, b⟩ along the last axis of every pair, as `squares`; in float64 unless rows are LARGE float32 ones on a CPU."""
    with np.errstate(all="ignore"):
        return beside([_product(*pair) for pair in zip(a, b, strict=True)])


def beside(parts: list[Array]) -> Array:
    """Side by side.  (n, …) each -> (n, all that the other axes hold) float64"""
    if isinstance(parts[0], Tensor):
        return torch.cat([part.reshape(len(part), -1).double() for part in parts], 1)
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1, dtype=np.float64)


def _tensor(x: Array) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def _product(a: Array, b: Array) -> Array:
    if isinstance(a, Tensor):
        return (a.double() * b.double()).sum(-1)
    if a.shape[-1] < LARGE:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return _dots(a, b)


def _mended(part: Array, sums: Array) -> Array:
    """Rows of float32 near an end of the range once more, in float64."""
    doubtful = ~((sums > LOW) & (sums < HIGH))
    again, sums = part[doubtful].astype(np.float64), sums.astype(np.float64)
    sums[doubtful] = _dots(again, again)
    return sums


def _dots(a: Array, b: Array) -> Array:
    """By stretches of WIDTH, whose sums are added up in float64."""
    n = a.shape[-1]
    if n <= WIDTH:
        return np.vecdot(a, b)
    rest = n % WIDTH
    stretches = (*a.shape[:-1], n // WIDTH, WIDTH)
    found = np.vecdot(a[..., : n - rest].reshape(stretches), b[..., : n - rest].reshape(stretches)).sum(-1, dtype=np.float64)
    return found + np.vecdot(a[..., n - rest :], b[..., n - rest :]) if rest else found
