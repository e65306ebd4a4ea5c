"""Every penalty on weights: its value, its gradient and its proximal step, stacked over runs.

w has shape (R, n): the penalised parameters of each run in a row. lam and step have shape (R, 1), or (R, n) where the
optimizer's step differs by coordinate. `step` is the optimizer's effective step: lr for plain SGD, lr/(1 − μ) with momentum μ,
else the prox would solve for (1 − μ)λ.
"""

from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.regularizers import L1, L2, Dropout, EarlyStopping, ElasticNet, Regularizer, StepPenalty, WeightDecay

WeightPenalty = L1 | L2 | ElasticNet | WeightDecay


def penalty(spec: WeightPenalty, w: Tensor, lam: Tensor, ratio: Tensor | None = None) -> Tensor:
    """λ·R(w) of each run.  (R, n) -> (R,). `ratio`: the L1 share of an elastic net, (R, 1)"""
    match spec:
        case L1():
            return (lam * w.abs().sum(1, keepdim=True)).squeeze(1)
        case L2() | WeightDecay():
            return (lam * 0.5 * w.square().sum(1, keepdim=True)).squeeze(1)
        case ElasticNet():
            assert ratio is not None
            return (lam * (ratio * w.abs().sum(1, keepdim=True) + (1 - ratio) * 0.5 * w.square().sum(1, keepdim=True))).squeeze(1)
        case _:
            assert_never(spec)


def gradient(spec: WeightPenalty, w: Tensor, lam: Tensor, ratio: Tensor | None = None) -> Tensor:
    """λ∇R(w), with sign(0) = 0 where R has a kink.  (R, n) -> (R, n)"""
    match spec:
        case L1():
            return lam * w.sign()
        case L2() | WeightDecay():
            return lam * w
        case ElasticNet():
            assert ratio is not None
            return lam * (ratio * w.sign() + (1 - ratio) * w)
        case _:
            assert_never(spec)


def prox(spec: L1 | ElasticNet, w: Tensor, lam: Tensor, step: Tensor, ratio: Tensor | None = None) -> Tensor:
    """argmin_u ½‖u − w‖² + step·λ·R(u) of each run.  (R, n) -> (R, n)"""
    match spec:
        case L1():
            return soft_threshold(w, step * lam)
        case ElasticNet():
            assert ratio is not None
            return soft_threshold(w, step * lam * ratio) / (1 + step * lam * (1 - ratio))
        case _:
            assert_never(spec)


def soft_threshold(w: Tensor, threshold: Tensor) -> Tensor:
    """sign(w)·max(0, |w| − threshold): what is left of w outside ±threshold, exact zeros inside."""
    return w - w.clamp(-threshold, threshold)


def is_proximal(spec: Regularizer) -> bool:
    """Whether the penalty acts after the update, by its proximal step."""
    return isinstance(spec, ElasticNet) or (isinstance(spec, L1) and spec.method == "proximal")


def is_coupled(spec: Regularizer) -> bool:
    """Whether the penalty acts by joining the gradient."""
    match spec:
        case L2():
            return True
        case L1():
            return spec.method == "subgradient"
        case ElasticNet() | WeightDecay() | StepPenalty() | Dropout() | EarlyStopping():
            return False
        case _:
            assert_never(spec)


def shortened(direction: Tensor, *, alpha: Tensor, lr: Tensor, squared: bool) -> Tensor:
    """The optimizer's direction under a step penalty.  (R, P), alpha and lr (R, 1).

    Squared: direction/(1 + lr·α). Unsquared: direction·max(0, 1 − α/‖direction‖), nothing while ‖direction‖ ≤ α.
    """
    if squared:
        return direction / (1 + lr * alpha)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return direction * torch.where(length > alpha, 1 - alpha / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
