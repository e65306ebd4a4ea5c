"""Whole groups on one side of every cut: against scikit-learn's GroupKFold, and by counting."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.model_selection import GroupKFold
from training_jobs import inline, run, sgd, spec

from regtrain.contract.checks import check
from regtrain.contract.datasets import Upload, counts
from regtrain.contract.grouping import fewest
from regtrain.contract.groups import group_parts, numbered
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.selection import Selection
from worker.training import datasets
from worker.training.prepare import for_run, prepare

LABELS = st.lists(st.integers(0, 12), min_size=8, max_size=80).filter(lambda labels: len(set(labels)) >= 4)
SHARES = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.4])


def job(labels: Sequence[int | str], *, selection: dict[str, Any] | None = None, seed: int = 0, **dataset: Any) -> dict[str, Any]:
    x = np.random.default_rng(len(labels)).normal(size=(len(labels), 2))
    rows = inline(x, x @ [1.0, -2.0] + 0.5, groups=list(labels), **dataset)
    return spec(rows, {"kind": "linear"}, "half_squared_error", sgd(0.1), selection=selection or {}, seed=seed, diagnostics="off")


def parsed(labels: Sequence[int | str], **rest: Any) -> tuple[JobSpec, datasets.Rows]:
    found = parse(json.dumps(job(labels, **rest)))
    return found, datasets.load(found.dataset, data=Path(), upload=None, classify=False)


@given(LABELS, st.integers(2, 4))
def test_folds_as_they_stand_are_scikit_learns(labels: list[int], folds: int) -> None:
    """Also for numbers that do not begin at 0, for words, and where groups are equally large."""
    n = len(labels)
    for given_labels in (labels, [f"patient {label}" for label in labels]):
        codes, sizes = numbered(given_labels)
        assert sizes == tuple(np.unique(given_labels, return_counts=True)[1])
        ours = datasets.folds(np.arange(n), np.zeros(n), Selection(folds=folds, grouped=True, shuffle=False), groups=codes, seed=0)
        theirs = GroupKFold(folds).split(np.zeros((n, 1)), groups=given_labels)
        for mine, (_, held) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, held)


def test_shuffled_folds_hold_as_many_groups_as_scikit_learns_and_follow_the_seed() -> None:
    labels = np.random.default_rng(3).integers(0, 23, 400)
    codes, n = numbered(labels.tolist())[0], len(labels)
    choice = Selection(folds=5, repeats=3, grouped=True)
    ours = datasets.folds(np.arange(n), np.zeros(n), choice, groups=codes, seed=1)
    theirs = [len(np.unique(labels[held])) for _, held in GroupKFold(5, shuffle=True, random_state=0).split(labels, groups=labels)]
    for repeat in range(3):
        parts = ours[5 * repeat : 5 * repeat + 5]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
        assert [len(np.unique(labels[part])) for part in parts] == theirs
    assert len({tuple(part) for part in ours}) == 15
    again, other = (datasets.folds(np.arange(n), np.zeros(n), choice, groups=codes, seed=seed) for seed in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))


@given(LABELS, SHARES, SHARES, st.integers(0, 5))
def test_no_group_is_on_both_sides_of_a_split_and_the_counts_are_exact(labels: list[int], test: float, validation: float, seed: int) -> None:
    found, rows = parsed(labels, split="grouped", test=test, validation=validation, seed=seed)
    split = datasets.split(found.dataset, rows, seed=seed)
    want = counts(found.dataset, rows.facts, seed=seed)
    assert (len(split.train), len(split.val), len(split.test)) == (want.train, want.val, want.test)
    assert sorted([*split.train, *split.val, *split.test]) == list(range(len(labels)))
    sides = [{labels[row] for row in part} for part in (split.train, split.val, split.test)]
    assert sum(map(len, sides)) == len(set(labels))
    smallest = min(labels.count(label) for label in labels)
    assert (want.test == 0) == (test == 0)
    assert want.test <= max(round(len(labels) * test), smallest)
    assert (want.val == 0) == (validation == 0)
    if validation:
        rest = [labels.count(label) for label in set(labels) - sides[2]]
        assert want.val <= max(round((len(labels) - want.test) * validation), min(rest))


@given(LABELS, st.integers(2, 3), st.booleans(), st.integers(0, 5))
def test_no_group_is_on_both_sides_of_a_fold_and_the_smallest_is_known_before(labels: list[int], folds: int, shuffle: bool, seed: int) -> None:
    selection = {"folds": folds, "grouped": True, "shuffle": shuffle, "repeats": 2 if shuffle else 1}
    found, rows = parsed(labels, selection=selection, split="grouped", test=0.1, seed=seed)
    train = datasets.split(found.dataset, rows, seed=seed).train
    groups = np.array(labels)
    if len(set(groups[train])) < folds:
        return
    held = datasets.folds(train, rows.y, found.selection, groups=rows.groups, seed=seed)
    for fold in held:
        rest = np.setdiff1d(train, fold)
        assert len(fold) > 0
        assert len(rest) > 0
        assert not set(groups[fold]) & set(groups[rest])
    assert fewest(found, rows.facts) == min(len(train) - len(fold) for fold in held)


def test_groups_are_taken_in_random_order_while_they_fit_else_the_smallest() -> None:
    """Of groups of 6, 3 and 1 rows a fifth is 2 rows: only the group of 1 fits. A twentieth is no row: again the group of 1. Then 45 % of the other 9 rows: the 3."""
    for seed in range(20):
        for test in (0.2, 0.05):
            found = group_parts((6, 3, 1), test=test, validation=0.45, seed=seed)
            assert (found.test.tolist(), found.val.tolist(), found.train.tolist()) == ([2], [1], [0])
    assert len({tuple(group_parts((5,) * 8, test=0.25, validation=0, seed=seed).test.tolist()) for seed in range(20)}) > 5


def test_a_batch_as_large_as_the_smallest_fold_trains_in_all_folds() -> None:
    """Groups of 6, 3, 2 and 1 rows in three folds 6, 3, 3: the first is trained without the 6, on 6 rows."""
    labels = ["a"] * 6 + ["b"] * 3 + ["c"] * 2 + ["d"]
    given = job(labels, selection={"folds": 3, "grouped": True, "shuffle": False})
    given["budget"]["batch_size"] = 6
    found = run(given)
    assert len(found.runs) == 4  # three folds and the refit
    assert all(end.state == "succeeded" for end in found.runs.values())
    facts = parsed(labels)[1].facts
    assert check(parse(json.dumps(given)), facts) == []
    prepared = prepare(parse(json.dumps(given)), device="cpu", data=Path(), upload=None, scratch=None)
    for one, first, last in zip(prepared.runs, (0, 6, 9), (6, 9, 12), strict=False):
        assert for_run(prepared, one).val.x.tolist() == prepared.rows.x[first:last].tolist()


def test_grouped_rows_of_an_upload_are_those_of_the_same_inline_rows(tmp_path: Path) -> None:
    labels = ["b", "a", "c", "b", "a", "d", "d", "e"]
    found, rows = parsed(labels, split="grouped", test=0.2, validation=0.3)
    assert rows.groups is not None
    file = tmp_path / "rows.safetensors"
    save_file({"x": rows.x, "y": rows.y, "groups": rows.groups}, file, metadata={"about": "{}"})
    upload = Upload(kind="upload", id="ds_1", split="grouped", test=0.2, validation=0.3)
    stored = datasets.load(upload, data=tmp_path, upload=file, classify=False)
    assert stored.facts.group_sizes == rows.facts.group_sizes == (2, 2, 1, 2, 1)
    for mine, theirs in zip(vars(datasets.split(upload, stored, seed=4)).values(), vars(datasets.split(found.dataset, rows, seed=4)).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
