"""Rules about groups of rows: what a spec may ask of a dataset with or without them, how small whole groups make a fold, and when they are cut apart."""

from collections.abc import Iterator
from math import ceil

import numpy as np

from regtrain.contract.datasets import Facts, Mnist, counts, parts_of
from regtrain.contract.errors import Problem, Warned
from regtrain.contract.groups import Numbers, group_folds
from regtrain.contract.job import JobSpec
from regtrain.contract.selection import Selection

NAME_THEM = "name them: dataset.groups of inline rows, groups=COLUMN at the upload of a CSV, an array groups in an NPZ"


def fewest(spec: JobSpec, facts: Facts) -> int:
    """Training rows of the run that has fewest: without folds all, else those outside of the largest fold."""
    train, count, sizes = counts(spec.dataset, facts, seed=spec.seed).train, spec.selection.folds, training_sizes(spec, facts)
    if count is None:
        return train
    if spec.selection.outer and not spec.selection.grouped:
        train -= ceil(train / spec.selection.outer)
    if not spec.selection.grouped or sizes is None or len(sizes) < count:
        return train - ceil(train / count)
    return int(sizes.sum()) - max(int(sizes[fold].sum()) for fold in group_folds(sizes, spec.selection, seed=spec.seed))


def held_out(spec: JobSpec, facts: Facts) -> dict[int | None, list[int]]:
    """Outer fold, None for the job itself → how many rows each fold of each repetition leaves out. Empty without folds."""
    selection, train, sizes = spec.selection, counts(spec.dataset, facts, seed=spec.seed).train, training_sizes(spec, facts)
    if selection.folds is None:
        return {}
    outer = selection.model_copy(update={"folds": selection.outer, "repeats": 1}) if selection.outer else None
    if not selection.grouped or sizes is None:
        rest: dict[int | None, int] = {None: train, **{n: train - held for n, held in enumerate(_even(train, outer) if outer else [])}}
        return {n: _even(rows, selection) for n, rows in rest.items()}
    left = {None: sizes, **{n: np.delete(sizes, fold) for n, fold in enumerate(group_folds(sizes, outer, seed=spec.seed) if outer else [])}}
    return {n: [int(of[fold].sum()) for fold in group_folds(of, selection, seed=spec.seed)] for n, of in left.items()}


def _even(rows: int, selection: Selection) -> list[int]:
    """Rows of each fold where they are dealt out one by one or cut evenly, class by class or not: the first ones have one more where they do not come out even."""
    count = selection.folds or 1
    return [rows // count + (fold < rows % count) for fold in range(count)] * selection.repeats


def smallest_outer(spec: JobSpec, facts: Facts) -> int:
    """Rows, or groups where folds hold whole groups, that are left beside the outer fold that takes most of them."""
    train, outer, sizes = counts(spec.dataset, facts, seed=spec.seed).train, spec.selection.outer or 1, training_sizes(spec, facts)
    if not spec.selection.grouped or sizes is None:
        return train - ceil(train / outer)
    if len(sizes) < outer:
        return 0
    cut = group_folds(sizes, spec.selection.model_copy(update={"folds": outer, "repeats": 1}), seed=spec.seed)
    return len(sizes) - max(len(fold) for fold in cut)


def training_sizes(spec: JobSpec, facts: Facts) -> Numbers | None:
    """Rows of each group that is not held out; None where the dataset has no groups."""
    if facts.group_sizes is None:
        return None
    sizes, parts = np.array(facts.group_sizes), parts_of(spec.dataset, facts, seed=spec.seed)
    return sizes if parts is None else sizes[parts.train]


def split_refusals(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    """What is wrong with holding out whole groups."""
    dataset = spec.dataset
    if isinstance(dataset, Mnist) or dataset.split != "grouped":
        return
    if facts.groups is None:
        yield Problem("dataset.split", f"grouped needs groups of rows; dataset {dataset.kind} has none", f'{NAME_THEM}; or use "random"')
        return
    wanted = 1 + (dataset.test > 0) + (dataset.validation > 0)
    if facts.groups < wanted:
        yield Problem("dataset.split", f"{facts.groups} groups cannot be cut into {wanted} parts: training rows and what is held out", "hold out less, or give more groups")


def fold_refusals(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    """What is wrong with folds of whole groups."""
    selection, dataset = spec.selection, spec.dataset
    if not selection.grouped:
        return
    if selection.folds is None:
        yield Problem("selection.grouped", "there are no folds to hold whole groups", 'set selection.folds, such as 5; for held-out rows use dataset "split": "grouped"')
    if selection.stratified:
        yield Problem("selection.stratified", "a fold of whole groups takes the classes as the groups have them: it cannot have the same share of every class", "keep one of them")
    if (sizes := training_sizes(spec, facts)) is None:
        yield Problem("selection.grouped", f"grouped folds need groups of rows; dataset {dataset.kind} has none", NAME_THEM)
        return
    if not isinstance(dataset, Mnist) and dataset.test > 0 and dataset.split != "grouped":
        reason = f"folds hold whole groups and the test rows do not ({dataset.split}): the choice would be tested on rows of groups that it was trained on"
        yield Problem("dataset.split", reason, 'use "split": "grouped"')
    elif selection.folds is not None and selection.folds > len(sizes):
        yield Problem("selection.folds", f"{len(sizes)} groups of training rows cannot be cut into {selection.folds} folds of whole groups", "use fewer folds")


def warnings(spec: JobSpec, facts: Facts) -> Iterator[Warned]:
    """Groups that stand on both sides of a cut."""
    dataset, reason = spec.dataset, "rows of one group stand on both sides, and what is held out looks better than new groups will"
    if facts.groups is None or isinstance(dataset, Mnist):
        return
    if spec.selection.folds is not None and not spec.selection.grouped:
        yield Warned("selection.grouped", f"the dataset has {facts.groups} groups, and the folds cut through them: {reason}")
    if (dataset.test > 0 or dataset.validation > 0) and dataset.split != "grouped":
        yield Warned("dataset.split", f"the dataset has {facts.groups} groups, and {dataset.split} held-out rows cut through them: {reason}")
