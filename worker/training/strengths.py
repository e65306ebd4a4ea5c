"""The least strength at which all weights of a linear model are zero at the minimum: where a path begins, and beyond which a strength leaves nothing.

At W = 0, with the bias at its minimum, U = 1/n·Σᵢ rᵢxᵢᵀ is the gradient of the mean loss, rᵢ the derivative of row i's loss at the outputs. Zero is the
minimum as long as −U is a subgradient of the penalty there. Computed on the host, in float64.
"""

import torch
from torch import Tensor

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import LinearModel
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import L1, Dropout, ElasticNet, GroupLasso, Regularizer, SparseGroupLasso
from regtrain.contract.runs import Run
from worker.training.losses import curvature, of_rows
from worker.training.pack import Pack
from worker.training.prepare import Job
from worker.training.regularizers import Groups, soft_threshold

CHUNK = 8192
"""Rows that are widened to float64 at a time."""
BISECTIONS = 100
ROUNDINGS = 64
"""By so many roundings a path begins above λ_max, so that its first solution is empty to the last bit."""


def lambda_max(job: Job, run: Run) -> float | None:
    """The least λ of an L1 penalty at which all weights of this run's linear model are zero: max |U|. None for other models and stochastic objectives."""
    slopes = slopes_at_zero(job, run)
    return None if slopes is None else float(slopes.abs().max())


def strongest(job: Job, run: Run, index: int, pack: Pack) -> float:
    """λ_max of regularizer `index`, whatever penalty with a kink at zero it is. `pack`: with this run alone, for the groups of its weights."""
    slopes = slopes_at_zero(job, run)
    assert slopes is not None, "checked at submission"
    groups = next(p.groups for p in pack.penalties if p.index == index)
    return _strongest(run.spec.regularizers[index], slopes.flatten().unsqueeze(0), groups) * (1 + ROUNDINGS * torch.finfo(pack.dtype).eps)


def empty(job: Job, run: Run, pack: Pack) -> Tensor:
    """The weights of a run that a path begins with: all zero, the bias at its minimum.  (P,)"""
    flat = torch.zeros_like(pack.flat)
    bias = pack.layout.views(flat).get("head.bias")
    if bias is not None:
        bias.copy_(_bias_at_zero(job, run))
    return flat[0].cpu()


def slopes_at_zero(job: Job, run: Run) -> Tensor | None:
    """U of this run.  (outputs, features)"""
    if not isinstance(run.spec.model, LinearModel) or any(isinstance(r, Dropout) for r in run.spec.regularizers):
        return None
    residual = _residual_at_zero(job, run)
    total = torch.zeros(residual.shape[1], job.train.x.shape[1], dtype=torch.float64)
    for first in range(0, len(job.train), CHUNK):
        part = slice(first, first + CHUNK)
        total += residual[part].T @ job.train.x[part].cpu().double()
    smoothing = concrete(run.spec.loss.label_smoothing) if isinstance(run.spec.loss, CrossEntropy) else 0.0
    return total / len(job.train) * (1 - smoothing)


def _strongest(spec: Regularizer, u: Tensor, groups: Groups | None) -> float:
    """u: (1, n), in the order of the weights."""
    match spec:
        case L1():
            return float(u.abs().max())
        case ElasticNet():
            return float(u.abs().max()) / concrete(spec.l1_ratio)
        case GroupLasso():
            assert groups is not None
            return float((groups.norms(u) / groups.factor.cpu()).max())
        case SparseGroupLasso():
            assert groups is not None
            return _of_sparse_groups(u, groups, concrete(spec.l1_ratio))
        case _:
            raise TypeError(f"{spec.kind} has no strength at which all weights are zero")


def _of_sparse_groups(u: Tensor, groups: Groups, ratio: float) -> float:
    """The least λ with ‖S(u_g, λρ)‖ ≤ λ(1 − ρ)√d_g in every group, by bisection: the left side falls in λ, the right side rises (Simon et al. 2013)."""
    factor = groups.factor.to(u.device)
    low, high = 0.0, float(u.abs().max()) / ratio if ratio > 0 else float((groups.norms(u) / factor).max())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = groups.norms(soft_threshold(u, u.new_tensor(middle * ratio)))
        low, high = (low, middle) if bool((left <= middle * (1 - ratio) * factor).all()) else (middle, high)
    return high


def _residual_at_zero(job: Job, run: Run) -> Tensor:
    """Derivative of n times the mean loss at each row's outputs, where all weights are 0 and the bias is at its minimum; without smoothing.  (n, outputs)"""
    spec, target, each = run.spec, _targets(job, run), _row_weights(job, run)
    assert isinstance(spec.model, LinearModel)
    match spec.loss:
        case SquaredError() | HalfSquaredError():
            return curvature(spec.loss) * ((target.mean(0) if spec.model.bias else 0.0) - target)
        case Binary():
            return each * (((each * target).mean(0) if spec.model.bias else 0.5) - target)
        case CrossEntropy():
            return each * (((each * target).mean(0) if spec.model.bias else 1 / target.shape[1]) - target)


def _row_weights(job: Job, run: Run) -> Tensor:
    """The weight of each training row, of mean 1.  (n, 1)"""
    y = job.train.y.cpu()
    found = torch.ones(len(y), dtype=torch.float64) if job.class_weights is None else of_rows(run.spec.loss, job.class_weights.cpu(), y)
    return (found / found.mean()).unsqueeze(1)


def _bias_at_zero(job: Job, run: Run) -> Tensor:
    """Mean, log odds, or logarithms of the shares of the classes.  (outputs,)"""
    mean, loss = (_row_weights(job, run) * _targets(job, run)).mean(0), run.spec.loss
    match loss:
        case SquaredError() | HalfSquaredError():
            return mean
        case Binary():
            return mean.logit()
        case CrossEntropy():
            smoothing = concrete(loss.label_smoothing)
            return ((1 - smoothing) * mean + smoothing / len(mean)).log()


def _targets(job: Job, run: Run) -> Tensor:
    """Quantities, or classes as zeros and ones.  (n, outputs)"""
    y = job.train.y.cpu()
    match run.spec.loss:
        case SquaredError() | HalfSquaredError():
            return y.double().unsqueeze(1)
        case Binary():
            return (y.double().unsqueeze(1) + 1) / 2
        case CrossEntropy():
            return torch.nn.functional.one_hot(y, job.shape[-1].output[0]).double()
