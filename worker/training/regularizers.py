"""Every penalty on weights: its value, its gradient and its proximal step, stacked over runs; and the projections of the constraints.

w has shape (R, n): the penalised parameters of each run in a row. lam and step have shape (R, 1), or (R, n) where the
optimizer's step differs by coordinate. `step` is the optimizer's effective step: lr for plain SGD, lr/(1 − μ) with momentum μ,
else the prox would solve for (1 − μ)λ.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from regtrain.contract.regularizers import (
    L1,
    L2,
    Box,
    Dropout,
    EarlyStopping,
    ElasticNet,
    GroupLasso,
    L2Ball,
    MaxNorm,
    NonNegative,
    Regularizer,
    SparseGroupLasso,
    StepPenalty,
    UnitNorm,
    VanishingGradient,
    WeightDecay,
)

WeightPenalty = L1 | L2 | ElasticNet | GroupLasso | SparseGroupLasso | WeightDecay
Proximal = L1 | ElasticNet | GroupLasso | SparseGroupLasso
Constraint = NonNegative | Box | L2Ball | MaxNorm | UnitNorm
PART = Literal["l1", "group", "l2"]


@dataclass(frozen=True)
class Groups:
    """Which of n neighbouring parameters belong together. Reads are gathers, never scattered sums, so the same bits come out every time."""

    of: Tensor
    """(n,) the group of each parameter."""
    members: Tensor
    """(G, largest) the parameters of each group, filled up with n, which stands for a zero."""
    factor: Tensor
    """(1, G) √d, or 1."""

    def norms(self, w: Tensor) -> Tensor:
        """‖w_g‖ of each group, in float64: squares of small float32 numbers underflow.  (R, n) -> (R, G)"""
        padded = torch.cat([w, w.new_zeros(len(w), 1)], 1)
        return torch.linalg.vector_norm(padded[:, self.members], dim=2, dtype=torch.float64)

    def spread(self, of_group: Tensor) -> Tensor:
        """One number a group to all its parameters.  (R, G) -> (R, n)"""
        return of_group[:, self.of]


def groups_of(of: Tensor, *, factor: bool) -> Groups:
    """From the group number of each parameter, 0 … G−1; with `factor` a group of d weighs √d.  (n,) -> Groups"""
    sizes = torch.bincount(of)
    order = torch.argsort(of, stable=True)
    place = torch.arange(len(of), device=of.device) - (sizes.cumsum(0) - sizes)[of[order]]
    members = torch.full((len(sizes), int(sizes.max())), len(of), dtype=torch.int64, device=of.device)
    members[of[order], place] = order
    return Groups(of, members, (sizes.double().sqrt() if factor else torch.ones_like(sizes, dtype=torch.float64)).unsqueeze(0))


def penalty(spec: WeightPenalty, w: Tensor, lam: Tensor, ratio: Tensor | None = None, groups: Groups | None = None) -> Tensor:
    """λ·R(w) of each run.  (R, n) -> (R,). `ratio`: the L1 share of an elastic net or a sparse group lasso, (R, 1)"""
    match spec:
        case L1():
            return (lam * w.abs().sum(1, keepdim=True)).squeeze(1)
        case L2() | WeightDecay():
            return (lam * 0.5 * w.square().sum(1, keepdim=True)).squeeze(1)
        case ElasticNet():
            assert ratio is not None
            return (lam * (ratio * w.abs().sum(1, keepdim=True) + (1 - ratio) * 0.5 * w.square().sum(1, keepdim=True))).squeeze(1)
        case GroupLasso():
            return (lam * _of_groups(w, groups)).squeeze(1)
        case SparseGroupLasso():
            assert ratio is not None
            return (lam * (ratio * w.abs().sum(1, keepdim=True) + (1 - ratio) * _of_groups(w, groups))).squeeze(1)
        case _:
            assert_never(spec)


def gradient(spec: WeightPenalty, w: Tensor, lam: Tensor, ratio: Tensor | None = None, groups: Groups | None = None) -> Tensor:
    """λ∇R(w), with sign(0) = 0 where R has a kink, and 0 in a group of zeros.  (R, n) -> (R, n)"""
    match spec:
        case L1():
            return lam * w.sign()
        case L2() | WeightDecay():
            return lam * w
        case ElasticNet():
            assert ratio is not None
            return lam * (ratio * w.sign() + (1 - ratio) * w)
        case GroupLasso():
            return lam * _towards(w, groups)
        case SparseGroupLasso():
            assert ratio is not None
            return lam * (ratio * w.sign() + (1 - ratio) * _towards(w, groups))
        case _:
            assert_never(spec)


def prox(spec: Proximal, w: Tensor, lam: Tensor, step: Tensor, ratio: Tensor | None = None, groups: Groups | None = None) -> Tensor:
    """argmin_u ½‖u − w‖² + step·λ·R(u) of each run.  (R, n) -> (R, n)"""
    for part in ("l1", "group", "l2"):
        w = prox_of_part(spec, part, w, lam, step, ratio, groups)
    return w


def prox_of_part(spec: Proximal, part: PART, w: Tensor, lam: Tensor, step: Tensor, ratio: Tensor | None = None, groups: Groups | None = None) -> Tensor:
    """The share that one part of the penalty has in its proximal step. L1, then groups, then squares is exact, for one penalty and for several on the same weights."""
    match spec, part:
        case L1(), "l1":
            return soft_threshold(w, step * lam)
        case ((ElasticNet() | SparseGroupLasso()), "l1"):
            assert ratio is not None
            return soft_threshold(w, step * lam * ratio)
        case GroupLasso(), "group":
            return _shrunk(w, step * lam, groups)
        case SparseGroupLasso(), "group":
            assert ratio is not None
            return _shrunk(w, step * lam * (1 - ratio), groups)
        case ElasticNet(), "l2":
            assert ratio is not None
            return w / (1 + step * lam * (1 - ratio))
        case _:
            return w


def soft_threshold(w: Tensor, threshold: Tensor) -> Tensor:
    """sign(w)·max(0, |w| − threshold): what is left of w outside ±threshold, exact zeros inside."""
    return w - w.clamp(-threshold, threshold)


def projected(spec: Constraint, w: Tensor, low: Tensor, high: Tensor, groups: Groups | None = None) -> Tensor:
    """The nearest point of the constraint's set.  (R, n), `low` and `high` (R, 1): a box's ends; `high` is the largest norm -> (R, n)

    A norm that is not above its limit leaves the bits of w as they are.
    """
    match spec:
        case NonNegative():
            return w.clamp(min=0)
        case Box():
            return w.clamp(low, high)
        case L2Ball() | MaxNorm():
            assert groups is not None
            norms = groups.norms(w)
            return w * groups.spread(torch.where(norms > high, high.double() / norms, torch.ones_like(norms)).to(w.dtype))
        case UnitNorm():
            assert groups is not None
            norms = groups.norms(w)
            return w / groups.spread(torch.where(norms == 0, torch.ones_like(norms), norms).to(w.dtype))
        case _:
            assert_never(spec)


def _of_groups(w: Tensor, groups: Groups | None) -> Tensor:
    """Σ_g √d_g‖w_g‖.  -> (R, 1)"""
    assert groups is not None
    return (groups.norms(w) * groups.factor).sum(1, keepdim=True).to(w.dtype)


def _towards(w: Tensor, groups: Groups | None) -> Tensor:
    """√d_g·w_g/‖w_g‖, 0 where the group is zero.  (R, n) -> (R, n)"""
    assert groups is not None
    norms = groups.norms(w)
    return w * groups.spread(torch.where(norms == 0, torch.zeros_like(norms), groups.factor / norms).to(w.dtype))


def _shrunk(w: Tensor, threshold: Tensor, groups: Groups | None) -> Tensor:
    """Every group shortened by √d_g·threshold, to exact zeros where it is not longer than that.  (R, n), threshold (R, 1)"""
    assert groups is not None
    norms = groups.norms(w)
    share = 1 - threshold.double() * groups.factor / norms.clamp(min=torch.finfo(torch.float64).tiny)
    return w * groups.spread(share.clamp(min=0).to(w.dtype))


def is_proximal(spec: Regularizer) -> bool:
    """Whether the penalty acts after the update, by its proximal step."""
    return isinstance(spec, ElasticNet | GroupLasso | SparseGroupLasso) or (isinstance(spec, L1) and spec.method == "proximal")


def is_coupled(spec: Regularizer) -> bool:
    """Whether the penalty acts by joining the gradient."""
    match spec:
        case L2():
            return True
        case L1():
            return spec.method == "subgradient"
        case ElasticNet() | GroupLasso() | SparseGroupLasso() | WeightDecay() | StepPenalty() | VanishingGradient() | Dropout() | EarlyStopping():
            return False
        case NonNegative() | Box() | L2Ball() | MaxNorm() | UnitNorm():
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
