"""Every loss, per run: the mean over the rows of each run. The spec says which; per-run numbers come beside it."""

import math
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError


def loss(spec: Loss, outputs: Tensor, y: Tensor, *, smoothing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum over rows of each row's loss, and its gradient at the outputs.

    outputs (R, B, C), y (B,) or (R, B), smoothing (R, 1) or None for 0 -> (R,), (R, B, C). The caller divides both by the rows
    of the whole batch, so that micro-batches add up to it.
    """
    match spec:
        case SquaredError():
            error = outputs - y.unsqueeze(-1)
            return error.square().sum((1, 2)), 2 * error
        case HalfSquaredError():
            error = outputs - y.unsqueeze(-1)
            return 0.5 * error.square().sum((1, 2)), error
        case CrossEntropy():
            return _cross_entropy(outputs, y, smoothing)
        case Binary():
            margin = y.unsqueeze(-1) * outputs
            return F.softplus(-margin).sum((1, 2)), -y.unsqueeze(-1) * torch.sigmoid(-margin)
        case _:
            assert_never(spec)


def correct(spec: Loss, outputs: Tensor, y: Tensor) -> Tensor | None:
    """How many rows are classified correctly, None for a quantity.  -> (R,)"""
    match spec:
        case CrossEntropy():
            return (outputs.argmax(2) == y).sum(1)
        case Binary():
            return ((outputs.squeeze(2) > 0) == (y > 0)).sum(1)
        case SquaredError() | HalfSquaredError():
            return None
        case _:
            assert_never(spec)


def target(spec: Loss, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets as the loss wants them: class numbers as int64, two classes as −1/+1, quantities in the job's dtype.  (n,) float64 -> (n,)"""
    match spec:
        case CrossEntropy():
            return y.to(torch.int64)
        case Binary():
            return (2 * y - 1).to(dtype)
        case SquaredError() | HalfSquaredError():
            return y.to(dtype)
        case _:
            assert_never(spec)


def curvature(spec: Loss) -> float:
    """The largest second derivative of one row's loss along any direction of its outputs."""
    match spec:
        case SquaredError():
            return 2.0
        case HalfSquaredError():
            return 1.0
        case CrossEntropy():
            return 0.5  # of diag(p) − ppᵀ (Böhning 1992)
        case Binary():
            return 0.25
        case _:
            assert_never(spec)


def at_uniform(spec: Loss, classes: int) -> float | None:
    """The loss of a model that knows nothing: ln C."""
    return math.log(classes) if isinstance(spec, CrossEntropy) else math.log(2) if isinstance(spec, Binary) else None


def _cross_entropy(outputs: Tensor, y: Tensor, smoothing: Tensor | None) -> tuple[Tensor, Tensor]:
    """−Σ_c q_c log p_c and p − q, with q = (1 − s)·onehot(y) + s/C."""
    runs, rows, classes = outputs.shape
    labels = y.expand(runs, rows).unsqueeze(2)
    log_p = outputs.log_softmax(2)
    of_label = -log_p.gather(2, labels).sum((1, 2))
    slope = log_p.exp()
    if smoothing is None:
        return of_label, slope.scatter_add_(2, labels, slope.new_full((1, 1, 1), -1.0).expand(runs, rows, 1))
    s = smoothing.unsqueeze(2)
    value = (1 - smoothing.squeeze(1)) * of_label - smoothing.squeeze(1) * log_p.mean(2).sum(1)
    return value, slope.sub_(s / classes).scatter_add_(2, labels, (s - 1).expand(runs, rows, 1))
