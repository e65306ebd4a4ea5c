"""Folds of one size train in one pack, and none of their runs can tell: each has the rows, the scaling and the numbers that it has alone."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.model_selection import GroupKFold, KFold
from training_jobs import distance, events, inline, outcome, sgd, spec

from regtrain.contract.datasets import facts_of
from regtrain.contract.events import Checkpointed, Event, Finished, Noticed, Points, RunFinished, Started
from regtrain.contract.grouping import held_out
from regtrain.contract.job import parse
from regtrain.contract.plan import plan
from regtrain.contract.runs import expand
from worker.training import points, running
from worker.training.prepare import prepare, split_of

EXACT = 1e-12
GROUPS = np.repeat(np.arange(12), [3, 5, 4, 4, 5, 3, 4, 4, 3, 5, 4, 4]).tolist()
DRAW = np.random.default_rng(7)
X = DRAW.standard_normal((48, 3)) * [1.0, 5.0, 0.2] + 2.0
"""Columns of different size: every fold has means and deviations of its own."""
QUANTITY, LABEL = X @ [1.0, -0.3, 2.0] + DRAW.standard_normal(48), np.digitize(X[:, 0] + DRAW.standard_normal(48), [1.5, 3.0]).astype(float)
LAMBDAS = {"values": [1e-3, 0.03, 0.3]}


def folded(dataset: dict[str, Any], *parts: Any, folds: int = 5, rest: dict[str, Any] | None = None, **selection: Any) -> dict[str, Any]:
    return spec({"standardize": True, **dataset}, *parts, **{"selection": {"folds": folds, **selection}, "diagnostics": "full", **(rest or {})})


NET = ({"kind": "mlp", "hidden": [5], "activation": "tanh"}, "cross_entropy", sgd(0.2, 0.9), {"kind": "l2", "lambda": LAMBDAS})
LINEAR = ({"kind": "linear"}, "half_squared_error")
JOBS = {
    "unequal folds": folded(inline(X, LABEL), *NET, {"kind": "dropout", "rate": 0.2}, seeds=2, rest={"batch_size": 8, "epochs": 4}),
    "stratified and weighed": folded(
        inline(X, LABEL), {**NET[0], "normalization": {"kind": "batch"}}, {"kind": "cross_entropy", "class_weights": "balanced"}, *NET[2:], folds=6, stratified=True,
        rest={"batch_size": 10, "accumulate": 2, "epochs": 4},
    ),
    "groups": folded(inline(X, LABEL, groups=GROUPS), *NET, folds=4, grouped=True, shuffle=False, rest={"batch_size": 16, "epochs": 4}),
    "repeated": folded(inline(X, QUANTITY), NET[0], "squared_error", *NET[2:], {"kind": "early_stopping", "patience": 3}, folds=4, repeats=2, rest={"batch_size": 12, "epochs": 40}),
    "nested": folded(inline(X, QUANTITY), *LINEAR, {"kind": "lbfgs"}, {"kind": "l2", "lambda": LAMBDAS}, folds=3, outer=2, rest={"epochs": 12}),
    "a path in waves": folded(inline(X, QUANTITY), *LINEAR, {"kind": "proximal"}, {"kind": "l1", "lambda": {"path": 6, "ratio": 0.01}}, folds=3, rest={"epochs": 30}),
    "two classes": folded(
        inline(X, LABEL > 1), {"kind": "linear"}, {"kind": "binary", "class_weights": "balanced"}, {"kind": "proximal"}, {"kind": "l1", "lambda": LAMBDAS}, folds=4, rest={"epochs": 30}
    ),
    "from the first batch": folded(inline(X, QUANTITY), {**NET[0], "init": {"kind": "lsuv"}}, "squared_error", *NET[2:], folds=4, rest={"batch_size": 12, "epochs": 2}),
    "images": folded(
        {"kind": "blobs", "rows": 40, "features": 4, "std": 5.0}, {"kind": "cnn", "channels": [2], "kernel": 3, "image": [1, 2, 2], "hidden": [3]}, *NET[1:], folds=4,
        rest={"batch_size": 12, "epochs": 2},
    ),
    "a row that is lost": folded(
        inline(np.where(np.arange(48)[:, None] == 29, 1e300, X), LABEL, standardize=False), {"kind": "linear"}, "cross_entropy", sgd({"values": [0.1, 0.2]}), folds=4, shuffle=False, seeds=3,
        rest={"batch_size": 12, "epochs": 4},
    ),
    "unscaled and rare": folded(
        inline(X * [1, 1e3, 1e-3], np.arange(48) % 24 == 5, standardize=False), {"kind": "mlp", "hidden": [3]}, "cross_entropy", sgd({"values": [1e-9, 2e-9]}), folds=4, shuffle=False,
        rest={"batch_size": 12, "epochs": 8},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "COMPACT", 32)
    monkeypatch.setattr(points, "MOST_STEPS", 16)


@pytest.mark.parametrize("name", JOBS)
def test_a_run_of_joined_folds_is_the_run_alone(name: str, tmp_path: Path) -> None:
    together = events(JOBS[name], scratch=tmp_path)
    packs = started(together).packs
    assert any(len({run.fold for run in expand(parse(json.dumps(JOBS[name]))) if run.index in members}) > 1 for members in packs)
    alone = events(JOBS[name], scratch=tmp_path, packs=[[run] for members in packs for run in members])
    a, b = outcome(together), outcome(alone)
    assert a.runs.keys() == b.runs.keys()
    for tensor in a.weights:
        assert all(distance(one, other) <= EXACT for one, other in zip(a.weights[tensor], b.weights[tensor], strict=True) if bool(other.any()))
    for index in a.runs:
        alike(plain(a.runs[index]), plain(b.runs[index]))
    for series in a.curves.keys() - {"identity/excess"}:  # that one is rounding by its nature
        for run, (steps, values) in a.curves[series].items():
            others = b.curves[series].get(run, (steps[:0], values[:0]))  # a run that was gone before the first point has none
            np.testing.assert_array_equal(steps, others[0])
            np.testing.assert_allclose(values, others[1], rtol=1e-9, atol=1e-12 * np.nanmax(np.abs(values[np.isfinite(values)]), initial=1.0), err_msg=series)
    assert told(together) == told(alone)
    alike(a.finished.result["selection"], b.finished.result["selection"])


def test_what_symptoms_know_is_of_the_rows_of_each_fold(tmp_path: Path) -> None:
    """Two rare rows stand in two of four folds: the share of the largest class is another in each, and so is every column's deviation."""
    found = [event for event in events(JOBS["unscaled and rare"], scratch=tmp_path) if isinstance(event, Noticed)]
    ratios = {event.run: event.value for event in found if event.symptom == "unscaled_inputs"}
    for fold, (train, _) in enumerate(KFold(4).split(X)):
        deviation = (X[train] * [1, 1e3, 1e-3]).std(0)
        for run in (fold, 4 + fold):
            assert ratios[run] == pytest.approx(deviation.max() / deviation.min(), rel=1e-9)


def test_a_failed_run_names_the_rows_of_its_own_fold(tmp_path: Path) -> None:
    """Row 29 of the dataset is another row of each fold's training rows, and of the third fold none."""
    job = JOBS["a row that is lost"]
    found, runs = outcome(events(job, scratch=tmp_path)), expand(parse(json.dumps(job)))
    lost = {run.index: seen for run in runs if (seen := found.runs[run.index].first_nonfinite)}
    assert {runs[index].fold for index in lost} == {0, 1, 3}
    assert {tuple(seen["rows"]) for seen in lost.values()} == {(29,)}


@pytest.mark.parametrize("name", ["repeated", "a path in waves"])
def test_killed_in_the_middle_of_a_joined_pack_and_resumed_it_is_the_same(name: str, tmp_path: Path) -> None:
    whole, first, second = (tmp_path / folder for folder in ("whole", "first", "second"))
    for folder in (whole, first, second):
        folder.mkdir()
    uninterrupted = outcome(events(JOBS[name], scratch=whole))
    found = events(JOBS[name], scratch=first, wants_checkpoint=lambda: True)
    saved = [event for event in found if isinstance(event, Checkpointed)]
    cut = next(later for before, later in pairwise(saved) if before.pack == later.pack == 0 or later.pack == 1)
    upto = found[: found.index(cut) + 1]
    newest = {event.pack: Path(event.path) for event in upto if isinstance(event, Checkpointed)}
    after = events(JOBS[name], scratch=second, resume=newest, packs=started(found).packs)
    kept = [event for event in upto if not isinstance(event, Finished)]
    resumed = outcome([*kept, *(event for event in after[1:] if not (isinstance(event, Points) and event.pack < cut.pack))])
    for index in uninterrupted.runs:
        assert plain(resumed.runs[index]) == plain(uninterrupted.runs[index])
    assert joined_of(resumed) == joined_of(uninterrupted)
    a, b = (load_file(one.finished.path) for one in (resumed, uninterrupted))
    assert all(a[tensor].equal(b[tensor]) for tensor in b)


# ---------------------------------------------------------------- the rule


def sizes_of(job: dict[str, Any], device: str = "cpu") -> list[int]:
    checked = parse(json.dumps(job))
    facts = facts_of(checked.dataset)
    assert facts is not None
    return plan(checked, facts).packs[device]


def small(model: dict[str, Any], penalty: dict[str, Any], *, dataset: str = "diabetes", **selection: Any) -> dict[str, Any]:
    loss = "half_squared_error" if dataset == "diabetes" else "cross_entropy"
    return {**spec({"kind": dataset}, model, loss, sgd(0.01), penalty, batch_size=64, selection={"folds": 5, **selection}), "dtype": "float32"}


def test_folds_of_one_size_are_joined_as_far_as_the_cache_goes() -> None:
    """442 = 2·89 + 3·88. 20 runs of 10-16-1 take 0.4 MiB a fold; of 64-32-10 they take 2, and neither two of those nor one of a large net fit beside another in 4."""
    strengths = {"kind": "l2", "lambda": {"log": [1e-3, 1], "points": 20}}
    assert sizes_of(small({"kind": "mlp", "hidden": [16]}, strengths)) == [40, 60, 1]
    assert sizes_of(small({"kind": "mlp", "hidden": [32]}, strengths, dataset="digits")) == [20] * 5 + [1]
    assert sizes_of(small({"kind": "mlp", "hidden": [32]}, {**strengths, "lambda": {"log": [1e-3, 1], "points": 5}}, dataset="digits")) == [10, 15, 1]
    assert sizes_of(small({"kind": "mlp", "hidden": [512]}, strengths)) == [20] * 5 + [1]
    assert sizes_of(small({"kind": "mlp", "hidden": [512]}, strengths), "cuda") == [40, 60, 1]


def test_folds_that_wait_for_each_other_stay_apart() -> None:
    """A pruned search looks at its proposals after every fold; a strength that adapts follows the rows of its fold."""
    net, search = {"kind": "mlp", "hidden": [8]}, {"kind": "l2", "lambda": {"suggest": [1e-3, 1], "log": True}}
    assert sizes_of(small(net, search, trials=10)) == [2] * 25 + [1]
    assert sizes_of(small(net, search, trials=10, prune=False)) == [4, 6] * 5 + [1]
    assert sizes_of(small(net, {"kind": "l2", "lambda": {"adapt": "validation_gradient", "start": 0.1}})) == [1] * 6


@pytest.mark.parametrize(
    "selection", [{"shuffle": False}, {"stratified": True}, {"repeats": 2}, {"outer": 3}, {"grouped": True}, {"grouped": True, "shuffle": False, "outer": 2}, {"grouped": True, "repeats": 3}],
    ids=str,
)  # fmt: skip
def test_plan_and_worker_know_the_same_sizes_of_folds(selection: dict[str, Any], tmp_path: Path) -> None:
    job = parse(json.dumps(folded(inline(X[:47], LABEL[:47], groups=GROUPS[:47]), *NET, folds=4, **selection)))
    prepared = prepare(job, device="cpu", data=tmp_path, upload=None, scratch=None)
    known = held_out(job, prepared.rows.facts)
    for run in prepared.runs:
        if run.fold is not None:
            assert known[run.outer][run.fold] == len(split_of(prepared, run).val)
    if selection == {"grouped": True, "shuffle": False, "outer": 2}:
        assert known[None] == [len(val) for _, val in GroupKFold(4).split(X[:47], groups=GROUPS[:47])]


# ---------------------------------------------------------------- helpers


def started(found: list[Event]) -> Started:
    assert isinstance(found[0], Started)
    return found[0]


def told(found: list[Event]) -> set[tuple[Any, ...]]:
    return {(event.run, event.symptom, event.layer, event.step, event.severity) for event in found if isinstance(event, Noticed)}


def plain(end: RunFinished) -> dict[str, Any]:
    return {name: getattr(end, name) for name in ("state", "stop_reason", "steps", "metrics", "best", "zeros", "coefficients", "first_nonfinite", "certificate")}


def joined_of(found: Any) -> dict[str, Any]:
    return {series: {run: (steps.tolist(), values.tobytes()) for run, (steps, values) in of.items()} for series, of in found.curves.items()}


def alike(a: Any, b: Any) -> None:
    """The same words, and numbers up to rounding; certificates are differences that vanish."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            alike(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            alike(one, other)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-11, nan_ok=True)
    elif not (isinstance(a, str) and " ± " in a):
        assert a == b
