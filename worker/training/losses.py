"""Every loss, per run: the mean over the rows of each run. The spec says which; per-run numbers come beside it."""

import math
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError


def loss(spec: Loss, outputs: Tensor, y: Tensor, *, smoothing: Tensor | None = None, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum over rows of each row's loss times the weight of its class, and its gradient at the outputs.

    outputs (R, B, C), y (B,) or (R, B), smoothing (R, 1) or None for 0, weights (C,), (R, C) or None for 1 -> (R,), (R, B, C). `averaged` divides both
    by the size of the whole batch, so that micro-batches add up to it.
    """
    match spec:
        case SquaredError():
            error = outputs - y.unsqueeze(-1)
            return error.square().sum((1, 2)), 2 * error
        case HalfSquaredError():
            error = outputs - y.unsqueeze(-1)
            return 0.5 * error.square().sum((1, 2)), error
        case CrossEntropy():
            return _cross_entropy(outputs, y, smoothing, None if weights is None else of_rows(spec, weights, y))
        case Binary():
            margin = y.unsqueeze(-1) * outputs
            return _summed(F.softplus(-margin), -y.unsqueeze(-1) * torch.sigmoid(-margin), None if weights is None else of_rows(spec, weights, y))
        case _:
            assert_never(spec)


def of_rows(spec: Loss, weights: Tensor, y: Tensor) -> Tensor:
    """The weight of each row.  (C,), (…) -> (…), or (R, C), (R, B) -> (R, B)"""
    labels = (y > 0).long() if isinstance(spec, Binary) else y
    return weights[labels] if weights.dim() == 1 else weights.gather(1, labels)


def size(spec: Loss, y: Tensor, weights: Tensor | None) -> Tensor | int:
    """What a mean over these rows divides by: how many they are, or the sum of their weights.  (B,) or (R, B) -> (1,) or (R,)"""
    return y.shape[-1] if weights is None else of_rows(spec, weights, y).sum(-1).view(-1)


def averaged(value: Tensor, slope: Tensor, whole: Tensor | int) -> tuple[Tensor, Tensor]:
    """Sum and slope of some rows, as shares of the mean over the whole batch of this size. In place of `slope`."""
    return value / whole, slope.div_(whole if isinstance(whole, int) else whole.view(-1, 1, 1))


def class_weights(spec: Loss, y: Tensor, classes: int) -> Tensor | None:
    """The weight of each class, from the training rows where it is balanced.  (n,) -> (C,) float64"""
    if not isinstance(spec, CrossEntropy | Binary) or spec.class_weights is None:
        return None
    if spec.class_weights == "balanced":
        rows = torch.bincount((y > 0).long() if isinstance(spec, Binary) else y, minlength=classes).double()
        return len(y) / (classes * rows.clamp(min=1))
    return torch.tensor(spec.class_weights, dtype=torch.float64, device=y.device)


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


def _cross_entropy(outputs: Tensor, y: Tensor, smoothing: Tensor | None, each: Tensor | None) -> tuple[Tensor, Tensor]:
    """−Σ_c q_c log p_c and p − q, with q = (1 − s)·onehot(y) + s/C."""
    runs, rows, classes = outputs.shape
    labels = y.expand(runs, rows).unsqueeze(2)
    log_p = outputs.log_softmax(2)
    of_label = -log_p.gather(2, labels)
    slope = log_p.exp()
    if smoothing is None:
        return _summed(of_label, slope.scatter_add_(2, labels, slope.new_full((1, 1, 1), -1.0).expand(runs, rows, 1)), each)
    s = smoothing.unsqueeze(2)
    value = (1 - s) * of_label - s * log_p.mean(2, keepdim=True)
    return _summed(value, slope.sub_(s / classes).scatter_add_(2, labels, (s - 1).expand(runs, rows, 1)), each)


def _summed(value: Tensor, slope: Tensor, each: Tensor | None) -> tuple[Tensor, Tensor]:
    """Over rows, each with its weight.  (R, B, 1), (R, B, C), (B,) or (R, B)"""
    if each is None:
        return value.sum((1, 2)), slope
    return (value * each.unsqueeze(-1)).sum((1, 2)), slope * each.unsqueeze(-1)
