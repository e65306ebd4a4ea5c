"""Every loss, per run: the mean over the rows of each run. The spec says which; per-run numbers come beside it."""

import math
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError


def loss(spec: Loss, outputs: Tensor, y: Tensor, *, smoothing: Tensor | None = None) -> Tensor:
    """Sum over rows of each row's loss.  outputs (R, B, C), y (B,) or (R, B), smoothing (R, 1) or None for 0 -> (R,)

    The caller divides by the rows of the whole batch, so that micro-batches add up to it.
    """
    match spec:
        case SquaredError():
            return (outputs.squeeze(2) - y).square().sum(1)
        case HalfSquaredError():
            return 0.5 * (outputs.squeeze(2) - y).square().sum(1)
        case CrossEntropy():
            return _cross_entropy(outputs, y, smoothing)
        case Binary():
            return F.softplus(-y * outputs.squeeze(2)).sum(1)
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


def at_uniform(spec: Loss, classes: int) -> float | None:
    """The loss of a model that knows nothing: ln C."""
    return math.log(classes) if isinstance(spec, CrossEntropy) else math.log(2) if isinstance(spec, Binary) else None


def _cross_entropy(outputs: Tensor, y: Tensor, smoothing: Tensor | None) -> Tensor:
    runs, rows, classes = outputs.shape
    labels = y.expand(runs, rows)
    if smoothing is None:
        return F.cross_entropy(outputs.reshape(-1, classes), labels.reshape(-1), reduction="none").view(runs, rows).sum(1)
    log_p = outputs.log_softmax(2)
    of_label = -log_p.gather(2, labels.unsqueeze(2)).squeeze(2)
    return ((1 - smoothing) * of_label - smoothing * log_p.mean(2)).sum(1)
