"""Groups of rows that stay on one side of every cut: patients, sites, days. Whole groups are held out and dealt to folds.

All here follows from the sizes of the groups and the job's seed alone, so that the service counts rows exactly and the worker finds the same ones.
Groups are numbered in rising order of their labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.seeds import seed_at
from regtrain.contract.selection import Selection

Numbers = NDArray[np.int64]
MOST_GROUPS = 100_000
"""Of one dataset."""


@dataclass(frozen=True)
class Parts:
    """Numbers of the groups of each part, in rising order."""

    train: Numbers
    val: Numbers
    test: Numbers


def group_parts(sizes: Sequence[int], *, test: float, validation: float, seed: int) -> Parts:
    """Which groups are held out, where the rows of each are so many.

    Test groups are taken first, then validation groups from the rest. Each share is of rows, rounded to whole rows as without groups. The groups
    come in random order from the job's seed, and each is taken that still fits; where not even one fits, the smallest is taken (of equals the
    first in that order). So a share holds out no more rows than asked for, unless a single group is larger, and at least one group.
    """
    order = np.random.default_rng(seed_at(seed, "split", "groups")).permutation(len(sizes)).tolist()
    tested = _taken(order, sizes, share=test)
    rest = [group for group in order if group not in tested]
    validated = _taken(rest, sizes, share=validation)
    return Parts(train=_rising(group for group in rest if group not in validated), val=_rising(validated), test=_rising(tested))


def group_folds(sizes: Sequence[int] | Numbers, selection: Selection, *, seed: int) -> list[Numbers]:
    """The groups left out by each fold of each repetition, in rising order, where the training rows of each are so many.

    As scikit-learn's GroupKFold: with `shuffle` the groups in random order are cut into folds whose numbers of groups differ by one at most (the
    numbers of rows may differ more); without, the largest group goes to the fold with the fewest rows until now, and so on down (of equal groups
    the last comes first, of equal folds the first takes it).
    """
    assert selection.folds is not None
    if not selection.shuffle:
        fold_of = _balanced(sizes, selection.folds)
        return [np.flatnonzero(fold_of == fold) for fold in range(selection.folds)] * selection.repeats
    orders = (np.random.default_rng(seed_at(seed, "folds", "groups", repeat)).permutation(len(sizes)) for repeat in range(selection.repeats))
    return [np.sort(part) for order in orders for part in np.array_split(order, selection.folds)]


def numbered(labels: Sequence[int | str]) -> tuple[Numbers, tuple[int, ...]]:
    """The number of each row's group, and how many rows each group has."""
    values: list[Any] = sorted(set(labels))
    number = {label: place for place, label in enumerate(values)}
    codes = np.array([number[label] for label in labels], dtype=np.int64)
    return codes, sizes_of(codes)


def sizes_of(codes: Numbers) -> tuple[int, ...]:
    """Rows of each group, from the number of each row's group."""
    return tuple(np.bincount(codes).tolist())


def _taken(order: list[int], sizes: Sequence[int], *, share: float) -> set[int]:
    found, room = set[int](), round(sum(sizes[group] for group in order) * share)
    if share == 0 or not order:
        return found
    for group in order:
        if sizes[group] <= room:
            found.add(group)
            room -= sizes[group]
    return found or {min(order, key=lambda group: sizes[group])}


def _balanced(sizes: Sequence[int] | Numbers, count: int) -> Numbers:
    """The fold of each group.  (G,)"""
    fold_of, rows = np.empty(len(sizes), np.int64), [(0, fold) for fold in range(count)]
    order = np.argsort(sizes, kind="stable")[::-1]  # stable: the same folds on every machine
    for group in map(int, order.tolist()):
        filled, fold = rows[0]
        fold_of[group] = fold
        heapreplace(rows, (filled + int(sizes[group]), fold))
    return fold_of


def _rising(groups: Any) -> Numbers:
    return np.array(sorted(groups), dtype=np.int64)
