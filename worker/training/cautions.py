"""What only the rows can tell before the first update: strengths that leave nothing, learning rates that diverge, columns of very different size,
clips that never act. Known exactly for linear models alone; computed on the host, in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from regtrain.contract.errors import Warned
from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import Cnn, LinearModel
from regtrain.contract.optimizers import Constant, GlobalNorm, Sgd
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import L1, L2, Dropout, EarlyStopping, ElasticNet, StepPenalty
from regtrain.contract.runs import Run
from worker.training.losses import curvature
from worker.training.prepare import Job
from worker.training.preprocess import spread
from worker.training.strengths import CHUNK, lambda_max

MOST_COLUMNS = 1000
"""Of a Gram matrix whose largest eigenvalue is looked for."""
MOST_STRENGTHS = 32
"""Different strengths of L2 for which it is; beyond, the bound without L2 serves, which is never lower."""
UNEVEN = 100.0
"""Columns whose deviations, or mean and deviation, differ by such a factor do not share one learning rate and one λ."""


def of_data(job: Job) -> list[Warned]:
    """All of them, in the order of the spec; about runs of the first variant whose values are known before training."""
    first = job.runs[0]
    known = [run for run in job.runs if run.variant == first.variant and not run.open]
    job = replace(job, spec=first.spec, runs=known)
    return [*_uneven_columns(job), *(() if not known else (*_all_zero(job), *_unstable(job), *_idle_clip(job)))]


def stable_lr(optimizer: Sgd, curvature: float) -> float:
    """The learning rate above which gradient descent on a quadratic of this largest curvature diverges.

    2/L plain, 2(1 + μ)/L heavy ball (Polyak 1964), (2 + 2μ)/((1 + 2μ)·L) Nesterov; none where every column is 0.
    """
    if curvature <= 0:
        return math.inf
    mu = concrete(optimizer.momentum)
    return (2 + 2 * mu) / ((1 + 2 * mu) * curvature) if optimizer.nesterov else 2 * (1 + mu) / curvature


def _uneven_columns(job: Job) -> Iterator[Warned]:
    facts = job.rows.facts
    if job.spec.dataset.standardize or facts.image is not None or facts.sequence is not None or isinstance(job.spec.model, Cnn):
        return
    mean, deviation = (torch.from_numpy(column) for column in spread(job.train.x))
    varying = deviation > 1e-12 * mean.abs()
    if not bool(varying.any()):
        return
    names, places = facts.feature_names, torch.arange(len(mean))[varying]
    low, high = (int(places[at]) for at in (deviation[varying].argmin(), deviation[varying].argmax()))
    far = int(places[(mean.abs() / deviation)[varying].argmax()])

    def name(column: int) -> str:
        return names[column] if names else f"x{column}"

    if deviation[high] > UNEVEN * deviation[low]:
        sizes = f"column {name(high)} has deviation {float(deviation[high]):.3g} and column {name(low)} {float(deviation[low]):.3g}"
        yield Warned("dataset.standardize", f"{sizes}: one learning rate and one λ do not fit both; set dataset.standardize", "data")
    elif mean[far].abs() > UNEVEN * deviation[far]:
        sizes = f"column {name(far)} has mean {float(mean[far]):.3g} and deviation {float(deviation[far]):.3g}"
        yield Warned("dataset.standardize", f"{sizes}: it is nearly the intercept's column, and training is slow; set dataset.standardize", "data")


def _all_zero(job: Job) -> Iterator[Warned]:
    for index, regularizer in enumerate(job.spec.regularizers):
        if not isinstance(regularizer, L1 | ElasticNet) or not isinstance(job.spec.model, LinearModel) or regularizer.on == "all":
            continue
        limits = {_smoothing(run): lambda_max(job, run) for run in {_smoothing(run): run for run in job.runs}.values()}
        empty = [limit for run in job.runs if (limit := limits[_smoothing(run)]) is not None and _l1_strength(run, index) >= limit]
        if empty:
            some = "" if len(job.runs) == 1 else f" in {len(empty)} of {len(job.runs)} runs"
            what = "λ·l1_ratio" if isinstance(regularizer, ElasticNet) else "λ"
            yield Warned(f"regularizers.{index}.lambda", f"{what} is not below λ_max = {min(empty):.4g}{some}: there all weights are zero at the minimum", "data")


def _unstable(job: Job) -> Iterator[Warned]:
    spec = job.spec
    known = isinstance(spec.model, LinearModel) and isinstance(spec.loss, SquaredError | HalfSquaredError) and job.per_epoch == 1 and job.train.x.shape[1] <= MOST_COLUMNS
    if (
        not known
        or not isinstance(spec.optimizer, Sgd)
        or not isinstance(spec.optimizer.schedule, Constant)
        or any(isinstance(r, StepPenalty | Dropout) for r in spec.regularizers)
    ):
        return
    assert isinstance(spec.model, LinearModel)
    gram = _gram(job, bias=spec.model.bias)
    strengths = {run.index: _l2_strengths(run) for run in job.runs}
    few = len(set(strengths.values())) <= MOST_STRENGTHS
    largest = {pair: _largest(gram, *pair, bias=spec.model.bias) for pair in (set(strengths.values()) if few else {(0.0, 0.0)})}
    beyond: list[tuple[float, float]] = []
    for run in job.runs:
        assert isinstance(run.spec.optimizer, Sgd)
        bound = stable_lr(run.spec.optimizer, largest[strengths[run.index] if few else (0.0, 0.0)])
        if concrete(run.spec.optimizer.lr) > bound:
            beyond.append((concrete(run.spec.optimizer.lr), bound))
    if beyond:
        lr, bound = max(beyond, key=lambda pair: pair[0] / pair[1])
        some = "" if len(job.runs) == 1 else f", and {len(beyond)} of {len(job.runs)} runs are beyond theirs"
        yield Warned("optimizer.lr", f"lr {lr:.4g} is above the stability bound {bound:.4g} of these rows{some}: it diverges; choose less", "data")


def _idle_clip(job: Job) -> Iterator[Warned]:
    """A softmax row's gradient at the outputs is at most √2 long, a logistic one's 1: that bounds the whole gradient by the longest row."""
    spec = job.spec
    if spec.clip is None or not isinstance(spec.model, LinearModel) or not isinstance(spec.loss, CrossEntropy | Binary):
        return
    if any(not isinstance(r, EarlyStopping | L1 | ElasticNet) or (isinstance(r, L1) and r.method == "subgradient") for r in spec.regularizers):
        return  # what joins the gradient before the clip, or changes the rows
    ones = 1.0 if spec.model.bias else 0.0
    by_norm = isinstance(spec.clip, GlobalNorm)
    longest = max(float((_wide(job, part).square().sum(1) + ones).sqrt().max() if by_norm else _wide(job, part).abs().max().clamp(min=ones)) for part in _parts(job))
    bound = longest * (2**0.5 if by_norm and isinstance(spec.loss, CrossEntropy) else 1.0)
    limits = [concrete(run.spec.clip.max) for run in job.runs if run.spec.clip is not None]
    if min(limits) >= bound:
        what = "norm" if by_norm else "entry"
        yield Warned("clip.max", f"the clip never acts: on these rows no gradient has a larger {what} than {bound:.4g}", "data")


def _l1_strength(run: Run, index: int) -> float:
    """What multiplies Σ|w|."""
    regularizer = run.spec.regularizers[index]
    assert isinstance(regularizer, L1 | ElasticNet)
    return concrete(regularizer.lam) * (concrete(regularizer.l1_ratio) if isinstance(regularizer, ElasticNet) else 1.0)


def _smoothing(run: Run) -> float:
    return concrete(run.spec.loss.label_smoothing) if isinstance(run.spec.loss, CrossEntropy) else 0.0


def _l2_strengths(run: Run) -> tuple[float, float]:
    """λ of the coupled L2 penalties on the weights alone, and on weights and bias."""
    found = [(r.on == "all", concrete(r.lam)) for r in run.spec.regularizers if isinstance(r, L2)]
    return sum(lam for every, lam in found if not every), sum(lam for every, lam in found if every)


def _gram(job: Job, *, bias: bool) -> Tensor:
    """Curvature of the mean loss in weights and bias.  (features + bias, features + bias)"""
    assert isinstance(job.spec.loss, SquaredError | HalfSquaredError)
    wide = job.train.x.shape[1] + bias
    total = torch.zeros(wide, wide, dtype=torch.float64)
    for part in _parts(job):
        x = _wide(job, part)
        rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1) if bias else x
        total += rows.T @ rows
    return curvature(job.spec.loss) * total / len(job.train)


def _largest(gram: Tensor, of_weights: float, of_all: float, *, bias: bool) -> float:
    """L: the largest eigenvalue with the penalties' own curvature."""
    own = torch.full((len(gram),), of_weights, dtype=torch.float64)
    if bias:
        own[-1] = 0.0
    return float(torch.linalg.eigvalsh(gram + torch.diag(own))[-1]) + of_all


def _parts(job: Job) -> Iterator[slice]:
    yield from (slice(first, first + CHUNK) for first in range(0, len(job.train), CHUNK))


def _wide(job: Job, part: slice) -> Tensor:
    return job.train.x[part].cpu().double()
