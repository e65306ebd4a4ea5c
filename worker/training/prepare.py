"""From a spec to what all packs of its job share: rows on the device, shapes, counts."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import Counts, Facts
from regtrain.contract.job import JobSpec, batch_size, digest, steps, steps_per_epoch
from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.models import Cnn, Layer, LinearModel
from regtrain.contract.optimizers import Proximal
from regtrain.contract.runs import Run, expand
from regtrain.contract.variants import specs_of
from worker.training import datasets, losses, preprocess
from worker.training.device import device_of
from worker.training.evaluate import Part


@dataclass(frozen=True)
class Beginning:
    """From what a run begins that does not draw its weights: parameters (P,) and running averages (Q,) on the CPU, and what was done to them."""

    flat: Tensor
    buffers: Tensor
    done: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Job:
    """What the runs of a pack share: all packs of a job, but for rows, what is fitted on them, and shapes where there are folds and variants."""

    spec: JobSpec
    digest: str
    runs: list[Run]
    shape: list[Layer]
    rows: datasets.Rows
    split: datasets.Split
    scaling: preprocess.Scaling
    train: Part
    val: Part
    test: Part
    device: torch.device
    scratch: Path | None
    """Where checkpoints and the model are written; None where nothing is."""
    steps: int
    """Updates of a run that uses its whole budget."""
    per_epoch: int
    batch: int
    curvature: float | None = None
    """Largest curvature of the mean loss of a linear model on the training rows, where the optimizer takes its step from it."""
    class_weights: Tensor | None = None
    """How much a row of each class counts, (C,); None where all count alike."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("data", "step", "evaluate", "report", "save"), 0.0))
    """Where the time of this attempt went."""
    folds: dict[int, "Job"] = field(default_factory=dict)
    """Of folds that train in one pack: the job as each of them sees it. The rows of train and val then have an axis of folds, in this order."""
    recent: dict[Any, "Job"] = field(default_factory=dict)
    """What the last run saw: waves of a path and batches of a search come back to it."""
    origins: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Earlier job → its model file, of those whose weights runs begin from."""
    beginnings: dict[int, Beginning] = field(default_factory=dict[int, Beginning])
    """Run → what it began from, of those that did not draw their weights."""

    def own(self, run: Run) -> "Job":
        """As this run of a pack sees it by itself."""
        return self if run.fold is None else self.folds.get(run.fold, self)


def prepare(spec: JobSpec, *, device: str, data: Path, upload: Path | None, scratch: Path | None, origins: Mapping[str, Path] | None = None) -> Job:
    """Loads, splits and scales the rows and puts them onto the device.

    Raises:
        DataError: rows are missing or unfit.
        ResourceError: there is no such device.
    """
    begin, where = time.perf_counter(), device_of(device)
    rows = datasets.load(spec.dataset, data=data, upload=upload, classify=isinstance(spec.loss, CrossEntropy | Binary))
    split = datasets.split(spec.dataset, rows, seed=spec.seed)
    runs = [replace(run, spec=_seeing(run.spec, rows.facts)) for run in expand(spec)]
    first = next(variant for _, variant in specs_of(spec))
    job = Job(
        spec=spec, digest=digest(spec), runs=runs, rows=rows, split=split, device=where, scratch=scratch, origins=origins or {}, **_fitted(first, rows, split, where),
    )  # fmt: skip
    job.seconds["data"] = time.perf_counter() - begin
    return job


def _seeing(spec: JobSpec, facts: Facts) -> JobSpec:
    """The spec of a run with the shape of its images, where the rows say it."""
    if not isinstance(spec.model, Cnn) or spec.model.image is not None:
        return spec
    return spec.model_copy(update={"model": spec.model.model_copy(update={"image": facts.image})})


def for_run(job: Job, run: Run) -> Job:
    """The job as a run sees it: the rows and the shape of its variant, its fold or the refit, and everything that is fitted on them."""
    if run.fold is None and not run.refit and run.outer is None and run.variant is None:
        return job
    key = (run.variant, run.fold, run.outer, run.refit)
    if key not in job.recent or (run.refit and run.point is None):  # the refit of a choice has the shape and the budget of what was chosen
        begin = time.perf_counter()
        job.recent.clear()
        job.recent[key] = replace(job, **_fitted(run.spec, job.rows, split_of(job, run), job.device), recent={})
        job.seconds["data"] += time.perf_counter() - begin
    return job.recent[key]


def for_pack(job: Job, runs: list[Run]) -> Job:
    """The job as the runs of one pack see it: folds that leave out as many rows as each other have theirs beside each other."""
    first, folds = runs[0], list(dict.fromkeys(run.fold for run in runs))
    if len(folds) == 1:
        return for_run(job, first)
    key = (first.variant, tuple(folds), first.outer, first.refit)
    if key not in job.recent:
        each = {run.fold: for_run(job, run) for run in {run.fold: run for run in runs}.values() if run.fold is not None}
        job.recent.clear()
        job.recent[key] = _joined(each)
    return job.recent[key]


def _joined(folds: dict[int, Job]) -> Job:
    """What they share is the first one's. Here alone sizes are seen to agree: rows of different number cannot be stacked."""
    train, val = (
        Part(torch.stack([part.x for part in parts]), torch.stack([part.y for part in parts])) for parts in zip(*((one.train, one.val) for one in folds.values()), strict=True)
    )
    own = {fold: replace(one, train=Part(train.x[n], train.y[n]), val=Part(val.x[n], val.y[n])) for n, (fold, one) in enumerate(folds.items())}
    return replace(next(iter(own.values())), train=train, val=val, folds=own)


def split_of(job: Job, run: Run) -> datasets.Split:
    """Which rows a run trains on and which it is measured on. The refit of an outer fold is measured on that fold, in place of the test rows."""
    train, val, test = job.split.train, job.split.val, job.split.test
    if run.outer is not None:
        test = _cut(job, train, folds=job.spec.selection.outer, repeats=1, purpose="outer")[run.outer]
        train = np.setdiff1d(train, test)
    if run.refit:
        train, val = np.sort(np.concatenate([train, val])), val[:0]
    elif run.fold is not None:
        val = _cut(job, train)[run.fold]
        train = np.setdiff1d(train, val)
    return datasets.Split(train, val, test)


def _cut(job: Job, train: NDArray[np.int64], *, purpose: str = "folds", **how: Any) -> list[NDArray[np.int64]]:
    selection = job.spec.selection.model_copy(update=how)
    return datasets.folds(train, job.rows.y, selection, groups=job.rows.groups, seed=job.spec.seed, purpose=purpose)


def _fitted(spec: JobSpec, rows: datasets.Rows, split: datasets.Split, device: torch.device) -> dict[str, Any]:
    """The rows of each part on the device, scaled as the training rows say, and the counts that follow from theirs."""
    scaling = preprocess.fit(rows.x[split.train], standardize=spec.dataset.standardize)
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32

    def part(which: NDArray[np.int64]) -> Part:
        x, y = torch.from_numpy(scaling(rows.x[which])), torch.from_numpy(rows.y[which])
        return Part(x.to(device, dtype), losses.target(spec.loss, y, dtype).to(device))

    sizes, train = Counts(train=len(split.train), val=len(split.val), test=len(split.test)), part(split.train)
    weights = losses.class_weights(spec.loss, train.y, rows.facts.classes or 1)
    return {
        "shape": shape_of(spec, rows.facts), "scaling": scaling, "train": train, "val": part(split.val), "test": part(split.test),
        "steps": steps(spec, sizes), "per_epoch": steps_per_epoch(spec, sizes), "batch": batch_size(spec, sizes),
        "class_weights": weights, "curvature": _curvature(spec, scaling, rows.x, split.train, None if weights is None else losses.of_rows(spec.loss, weights, train.y)),
    }  # fmt: skip


LARGEST_SQUARE = 4096
"""Rows or columns, whichever are fewer, up to which all eigenvalues of their products are computed."""


def _curvature(spec: JobSpec, scaling: preprocess.Scaling, x: NDArray[np.float64], train: NDArray[np.int64], weights: Tensor | None) -> float | None:
    """λ_max(XᵀWX)/Σw times that of one row's loss, X the scaled training rows with a column of ones for the intercept, W their weights.  weights: (n,), None for 1"""
    model, optimizer = spec.model, spec.optimizer
    if not (isinstance(optimizer, Proximal) and optimizer.step == "auto" and isinstance(model, LinearModel)) or not len(train):
        return None
    x = scaling(x[train])
    x = np.column_stack([x, np.ones(len(x))]) if model.bias else x
    if min(x.shape) > LARGEST_SQUARE:
        return None
    if weights is not None:
        x = x * (weights / weights.mean()).sqrt().cpu().numpy()[:, None]
    square = x @ x.T if len(x) < x.shape[1] else x.T @ x
    largest = float(np.linalg.eigvalsh(square)[-1]) / len(x) * losses.curvature(spec.loss)
    return largest if largest > 0 and np.isfinite(largest) else None
