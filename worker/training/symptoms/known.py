"""What is known of the runs of a pack before their first update: sizes, the losses of a model that knows nothing and of the best constant, the columns."""

from dataclasses import dataclass, replace
from math import log, prod
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.base import is_object
from regtrain.contract.job import JobSpec
from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import BatchNorm, Cnn, Layer, times
from regtrain.contract.optimizers import Adam, Constant, Sgd
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import L1, L2, Box, EarlyStopping, ElasticNet, L2Ball, MaxNorm, NonNegative, UnitNorm, WeightDecay
from regtrain.contract.runs import Run
from worker.training.evaluate import Part
from worker.training.prepare import Job
from worker.training.preprocess import spread

Array = NDArray[np.float64]
FAR_OFF = log(100)
"""Nats that a first loss may be above ln C: 3·ln C of ten classes. He's outputs have a deviation of √2 and, in narrow nets, of several times that."""
ROWS = 4096
"""Training rows of which columns are looked at."""


@dataclass(frozen=True)
class Columns:
    """The input columns that are not constant."""

    names: tuple[str, ...]
    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Known:
    """R runs, in the order of the stored pack. The two losses are in the unit of the run's own loss, so that a scaled loss scales them along."""

    pack: int
    runs: tuple[int, ...]
    """Their indices."""
    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    """Numbers in a row's linear output of each layer: what turns an rms into a norm."""
    nothing: Array
    """Loss of outputs 0.  (R,)"""
    constant: Array
    """Loss of the best constant.  (R,)"""
    rows: int
    batch: int
    per_epoch: int
    steps: int
    first_bound: float = 3.0
    """How many times `nothing` a first loss may be."""
    held: Array | None = None
    """Loss of the best constant of the training rows on the validation rows; None without those.  (R,)"""
    feedforward: bool = True
    residual: bool = False
    times: tuple[tuple[str, int], ...] = ()
    """Recurrent layers and their time steps, as `signal/time` lists them."""
    normalized: bool = False
    fresh: bool = True
    """The weights are initial ones, not those of a warm start."""
    columns: Columns | None = None
    input_rms: float | None = None
    """Of nets with hidden layers whose rows are neither images nor sequences."""
    unordered: int = 0
    """Classes whose labels a squared loss takes for numbers; 0 where there are none, or two."""
    class_rows: tuple[int, ...] = ()
    """Training rows of each class, where classes count alike."""
    majority: float = float("nan")
    """Share of the largest class among the validation rows."""
    wasted: str | None = None
    """The first penalised layer in front of a batch normalization."""
    decoupled: bool = False
    """Weight decay beside Adam, whose strength is no matter of the gradient's."""
    pinned: bool = False
    """Constraints or proximal steps may hold weights still."""
    constrained: tuple[str, ...] = ()
    """Layers whose weights a constraint holds within bounds."""
    restores: bool = False
    """Early stopping gives back the best weights."""
    stable: Array | None = None
    """Learning rate times sharpness up to which plain descent is stable, where that is known.  (R,)"""
    own_steps: bool = False
    """The optimizer chooses its step sizes itself."""
    rounding: float = float(np.finfo(np.float32).eps)
    folds: tuple["Known", ...] = ()
    """Of runs of several folds, each one's own: columns and classes are those of its rows.  (R,)"""

    def own(self, place: int) -> "Known":
        """What is known of one run's rows."""
        return self.folds[place] if self.folds else self


def known_of(job: Job, pack: int, members: list[int], runs: list[Run], *, fresh: bool) -> Known:
    """`members`: the indices of the stored pack; `runs`: those of them that train, `job` as they see it."""
    if not job.folds:
        return _known(job, pack, members, runs, fresh=fresh)
    each = {fold: _known(own, pack, members, runs, fresh=fresh) for fold, own in job.folds.items()}
    first, folds = next(iter(each.values())), {run.index: run.fold for run in runs}
    own = tuple(first if (fold := folds.get(index)) is None else each[fold] for index in members)
    held = None if first.held is None else np.array([one.held[place] for place, one in enumerate(own) if one.held is not None])
    nothing = np.array([one.nothing[place] for place, one in enumerate(own)])
    constant = np.array([one.constant[place] for place, one in enumerate(own)])
    return replace(first, folds=own, nothing=nothing, constant=constant, held=held)


def _known(job: Job, pack: int, members: list[int], runs: list[Run], *, fresh: bool) -> Known:
    """Of runs that share their rows."""
    spec, shape = runs[0].spec, job.shape
    by_index = {run.index: run.spec for run in runs}
    specs = [by_index.get(index, spec) for index in members]
    classes = job.rows.facts.classes or 0
    losses = np.array([_losses(one, job.train, classes) for one in specs])
    held = np.array([_constant_on(one, job.train, job.val, classes) for one in specs]) if len(job.val) else None
    hidden = len(shape) > 1
    unscaled = job.rows.facts.image is None and job.rows.facts.sequence is None and not isinstance(spec.model, Cnn) and not spec.dataset.standardize
    columns = _columns(job) if unscaled else None
    squared = isinstance(spec.loss, SquaredError | HalfSquaredError)
    return Known(
        pack=pack, runs=tuple(members), layers=tuple(layer.name for layer in shape), sizes=tuple(prod(layer.signal) for layer in shape),
        nothing=losses[:, 0], constant=losses[:, 1], rows=len(job.train), batch=job.batch, per_epoch=job.per_epoch, steps=job.steps, first_bound=10.0 if squared else 1 + FAR_OFF / log(max(classes, 2)),
        held=held, residual=any(layer.residual for layer in shape), times=tuple(times(shape).items()),
        feedforward=all(layer.recurrence is None for layer in shape), normalized=any(layer.normalization is not None for layer in shape), fresh=fresh,
        columns=columns, input_rms=float(np.sqrt(np.mean(columns.mean**2 + columns.deviation**2))) if columns is not None and hidden and len(columns.mean) else None,
        unordered=classes if squared and job.rows.facts.target == "class" and classes > 2 else 0,
        class_rows=_class_rows(spec, job), majority=_majority(spec, job.val),
        wasted=_wasted(spec, shape), decoupled=isinstance(spec.optimizer, Adam) and any(isinstance(r, WeightDecay) for r in spec.regularizers),
        pinned=any(isinstance(r, NonNegative | Box | L2Ball | MaxNorm | UnitNorm | L1 | ElasticNet) for r in spec.regularizers),
        constrained=_constrained(spec, shape), restores=any(isinstance(r, EarlyStopping) and r.restore for r in spec.regularizers), stable=_stable(specs), own_steps=not isinstance(spec.optimizer, Sgd | Adam),
        rounding=float(np.finfo(np.float64 if spec.dtype == "float64" else np.float32).eps),
    )  # fmt: skip


def _losses(spec: JobSpec, train: Part, classes: int) -> tuple[float, float]:
    """Of outputs 0, and of the best constant: entropy of the shares of the classes, or variance of the target."""
    match spec.loss:
        case CrossEntropy():
            shares = _shares(spec, train, classes)
            smoothing = concrete(spec.loss.label_smoothing)
            return log(len(shares)), _entropy((1 - smoothing) * shares + smoothing / len(shares))
        case Binary():
            return log(2), _entropy(_shares(spec, train, classes))
        case SquaredError() | HalfSquaredError():
            y = train.y.double()
            half = 0.5 if isinstance(spec.loss, HalfSquaredError) else 1.0
            return half * float(y.square().mean()), half * float(y.var(correction=0))
        case _:
            assert_never(spec.loss)


def _constant_on(spec: JobSpec, train: Part, val: Part, classes: int) -> float:
    """What the best constant of the training rows has as its loss on the validation rows: −Σ q ln p, or the mean square around the training mean. A class that
    the training rows lack has p = 1e-12."""
    match spec.loss:
        case CrossEntropy() | Binary():
            smoothing = concrete(spec.loss.label_smoothing) if isinstance(spec.loss, CrossEntropy) else 0.0
            p, q = ((1 - smoothing) * shares + smoothing / len(shares) for shares in (_shares(spec, train, classes), _shares(spec, val, classes)))
            return float(-(q[q > 0] * np.log(np.fmax(p[q > 0], 1e-12))).sum())
        case SquaredError() | HalfSquaredError():
            half = 0.5 if isinstance(spec.loss, HalfSquaredError) else 1.0
            return half * float((val.y.double() - train.y.double().mean(0)).square().mean())
        case _:
            assert_never(spec.loss)


def _labels(spec: JobSpec, part: Part) -> NDArray[np.int64]:
    return ((part.y > 0).long() if isinstance(spec.loss, Binary) else part.y).cpu().numpy()


def _shares(spec: JobSpec, part: Part, classes: int) -> Array:
    """What each class weighs among the rows of a part."""
    assert isinstance(spec.loss, CrossEntropy | Binary)
    rows = np.bincount(_labels(spec, part), minlength=max(classes, 2)).astype(np.float64)
    weights = spec.loss.class_weights
    weighed = (rows > 0).astype(np.float64) if weights == "balanced" else rows if weights is None else rows * np.resize(np.array(weights, np.float64), len(rows))
    return weighed / max(weighed.sum(), 1e-300)


def _entropy(shares: Array) -> float:
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def _class_rows(spec: JobSpec, job: Job) -> tuple[int, ...]:
    if not isinstance(spec.loss, CrossEntropy | Binary) or spec.loss.class_weights is not None:
        return ()
    return tuple(np.bincount(_labels(spec, job.train), minlength=job.rows.facts.classes or 2).tolist())


def _majority(spec: JobSpec, val: Part) -> float:
    if not isinstance(spec.loss, CrossEntropy | Binary) or not len(val):
        return float("nan")
    return float(np.bincount(_labels(spec, val)).max() / len(val))


def _columns(job: Job) -> Columns:
    mean, deviation = spread(job.train.x[:ROWS])
    varying = np.flatnonzero(deviation > 1e-12 * np.abs(mean))
    names = job.rows.facts.feature_names or tuple(f"x{column}" for column in range(len(mean)))
    return Columns(tuple(names[column] for column in varying), mean[varying], deviation[varying])


def _wasted(spec: JobSpec, shape: list[Layer]) -> str | None:
    invariant = [layer.name for layer in shape if isinstance(layer.normalization, BatchNorm)]
    on = [r.on for r in spec.regularizers if isinstance(r, L1 | L2 | ElasticNet)]  # weight decay is how such nets hold their step size
    return next((name for name in invariant if any(one in ("weights", "all") or (isinstance(one, tuple) and name in one) for one in on)), None)


def _constrained(spec: JobSpec, shape: list[Layer]) -> tuple[str, ...]:
    on = [r.on for r in spec.regularizers if isinstance(r, NonNegative | Box | L2Ball | MaxNorm | UnitNorm)]
    return tuple(layer.name for layer in shape if any(one in ("weights", "all") or (isinstance(one, tuple) and layer.name in one) for one in on))


def _stable(specs: list[JobSpec]) -> Array | None:
    """2 plain, 2(1 + μ) heavy ball, (2 + 2μ)/(1 + 2μ) Nesterov: what lr·λ_max may be on a quadratic."""
    if any(not isinstance(spec.optimizer, Sgd) or not isinstance(spec.optimizer.schedule, Constant) or is_object(spec.optimizer.lr) for spec in specs):
        return None
    bounds: list[float] = []
    for spec in specs:
        assert isinstance(spec.optimizer, Sgd)
        mu = concrete(spec.optimizer.momentum)
        bounds.append((2 + 2 * mu) / (1 + 2 * mu) if spec.optimizer.nesterov else 2 * (1 + mu))
    return np.array(bounds)


def has_hidden(known: Known) -> bool:
    return len(known.layers) > 1
