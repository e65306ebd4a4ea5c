"""Folds, the choice, the refit and the test rows: against scikit-learn, closed forms, and choices made by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from training_jobs import Outcome, events, outcome, run, sgd, spec

from regtrain.contract.events import Checkpointed, Points
from regtrain.contract.job import parse
from regtrain.contract.runs import expand
from regtrain.contract.selection import Selection, choose, scores, strength
from regtrain.contract.states import RunState
from worker.training import datasets

LAMBDAS = [1e-3, 0.1, 0.5, 2.0, 10.0]
X, Y = load_diabetes(return_X_y=True)
TRAIN = 354
"""Rows in front of the last fifth, which is the test split."""


def ridge_job(**selection: object) -> dict[str, object]:
    """Ridge in regtrain's λ on standardized columns; the test rows are the last fifth."""
    return spec(
        {"kind": "diabetes", "standardize": True, "test": 0.2, "split": "last"},
        {"kind": "linear"},
        "squared_error",
        sgd(0.1, 0.9),
        {"kind": "l2", "lambda": {"values": LAMBDAS}},
        epochs=1300,
        selection={"folds": 10, "shuffle": False, **selection},
        diagnostics="light",
    )


def ridge(x: np.ndarray, y: np.ndarray, lam: float) -> tuple[Ridge, np.ndarray, np.ndarray]:
    """scikit-learn's Ridge on columns standardized with x's own statistics: alpha = nλ/2."""
    mean, scale = x.mean(0), x.std(0)
    return Ridge(alpha=len(x) * lam / 2).fit((x - mean) / scale, y), mean, scale


@pytest.fixture(scope="module")
def found() -> Outcome:
    return run(ridge_job(rule="one_standard_error"))


def test_every_fold_is_standardized_and_solved_by_itself_and_the_table_is_scikit_learns(found: Outcome) -> None:
    table = found.finished.result["selection"]["table"]
    expected = []
    for lam in LAMBDAS:
        errors = []
        for train, val in KFold(10).split(X[:TRAIN]):
            model, mean, scale = ridge(X[train], Y[train], lam)
            errors.append(float(np.mean((model.predict((X[val] - mean) / scale) - Y[val]) ** 2)))
        expected.append((np.mean(errors), np.std(errors, ddof=1) / math.sqrt(10)))
    np.testing.assert_allclose([(score["mean"], score["standard_error"]) for score in table], expected, rtol=1e-9)
    best = int(np.argmin([mean for mean, _ in expected]))
    limit = sum(expected[best])
    assert found.finished.result["selection"]["best"] == best
    assert found.finished.result["selection"]["chosen"] == max(place for place, (mean, _) in enumerate(expected) if mean <= limit)


def test_the_refit_has_seen_all_training_rows_and_alone_the_test_rows(found: Outcome) -> None:
    result = found.finished.result
    lam = result["selection"]["table"][result["selection"]["chosen"]]["values"]["regularizers.0.lambda"]
    last = found.runs[result["chosen_run"]]
    assert result["chosen_run"] == len(LAMBDAS) * 10 == max(found.runs)
    assert result["values"] == {"regularizers.0.lambda": lam}
    model, mean, scale = ridge(X[:TRAIN], Y[:TRAIN], lam)
    np.testing.assert_allclose(result["coefficients"]["weights"], model.coef_ / scale, rtol=1e-9)
    np.testing.assert_allclose(last.metrics["loss/test"], np.mean((model.predict((X[TRAIN:] - mean) / scale) - Y[TRAIN:]) ** 2), rtol=1e-9)
    assert [index for index, end in found.runs.items() if "loss/test" in end.metrics] == [result["chosen_run"]]


def test_without_refit_the_chosen_run_alone_is_measured_on_the_test_rows() -> None:
    job = ridge_job(folds=None, shuffle=True)
    job["dataset"] |= {"validation": 0.25}  # type: ignore[operator]
    found = run(job)
    chosen = found.finished.result["chosen_run"]
    assert chosen == min(found.runs, key=lambda index: found.runs[index].metrics["loss/val"])
    assert [index for index, end in found.runs.items() if "loss/test" in end.metrics] == [chosen]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("repeats", [1, 3])
def test_folds_are_disjoint_complete_even_and_seeded(stratified: bool, repeats: int) -> None:
    y = load_breast_cancer(return_X_y=True)[1].astype(float)
    train = np.arange(3, 500)
    cut = datasets.folds(train, y, Selection(folds=7, repeats=repeats, stratified=stratified), seed=5)
    assert len(cut) == 7 * repeats
    for repeat in range(repeats):
        parts = cut[7 * repeat : 7 * repeat + 7]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), train)
        assert {len(part) for part in parts} == {71}
        if stratified:
            sizes = [int(y[part].sum()) for part in parts]
            theirs = [int(y[train][val].sum()) for _, val in StratifiedKFold(7).split(train, y[train])]
            assert max(sizes) - min(sizes) <= max(1, max(theirs) - min(theirs))
    assert all(np.array_equal(a, b) for a, b in zip(cut, datasets.folds(train, y, Selection(folds=7, repeats=repeats, stratified=stratified), seed=5), strict=True))
    assert len({tuple(part) for part in cut}) == len(cut)


def test_folds_as_they_stand_are_scikit_learns() -> None:
    train = np.arange(100, 203)
    ours = datasets.folds(train, np.zeros(203), Selection(folds=5, shuffle=False), seed=0)
    for mine, (_, theirs) in zip(ours, KFold(5).split(train), strict=True):
        np.testing.assert_array_equal(mine, train[theirs])


def test_runs_are_ordered_by_grid_then_fold_then_seed_and_the_refit_is_last() -> None:
    job = parse(__import__("json").dumps({**ridge_job(folds=3, seeds=2, shuffle=True, repeats=2), "diagnostics": "off"}))
    runs = expand(job)
    assert [(r.index, r.fold, r.seed) for r in runs[:7]] == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 2, 0), (5, 2, 1), (6, 3, 0)]
    assert len(runs) == len(LAMBDAS) * 12 + 1
    assert runs[-1].refit
    assert not any(run.refit for run in runs[:-1])


def test_rules_by_hand() -> None:
    """Means 3, 2, 2.4, 9 at λ 1 … 4, the best with standard error 0.5: one standard error reaches 2.4 at λ = 3. Medians 3, 2.5, 2, 9."""
    runs = {1.0: [3.0, 3.0, 3.0], 2.0: [1.0, 2.5, 2.5], 3.0: [2.0, 2.0, 3.2], 4.0: [9.0, 9.0, 9.0]}
    table = scores([(None, {"regularizers.0.lambda": lam}, list(enumerate(metrics))) for lam, metrics in runs.items()])
    found = choose(table, higher_is_better=False)
    assert (found.best, found.one_standard_error, found.median) == (1, 2, 2)
    assert table[1].standard_error == pytest.approx(0.5)
    assert choose(table, higher_is_better=True).best == 3


def test_a_set_of_values_with_a_failed_run_is_not_chosen() -> None:
    table = scores([(None, {"a.lambda": 1.0}, [(0, 1.0), (1, math.nan)]), (None, {"a.lambda": 2.0}, [(2, 5.0), (3, 6.0)])])
    assert choose(table, higher_is_better=False).best == 1
    nothing = choose(table[:1], higher_is_better=False)
    assert (nothing.best, nothing.median, nothing.one_standard_error) == (None, None, None)


def test_only_one_searched_strength_says_what_is_stronger() -> None:
    assert strength(["optimizer.lr", "regularizers.0.lambda"]) == "regularizers.0.lambda"
    assert strength(["regularizers.0.lambda", "regularizers.1.rate"]) is None
    assert strength(["optimizer.lr"]) is None


def test_where_nothing_can_be_chosen_there_is_no_refit() -> None:
    job = ridge_job()
    job["optimizer"] = sgd({"values": [10.0, 20.0]}, 0.9)
    job["regularizers"] = [{"kind": "early_stopping", "patience": 1000}]
    with pytest.raises(Exception, match="every run became non-finite"):
        run(job)


def test_a_refit_after_early_stopping_trains_as_long_as_the_chosen_runs_were_best() -> None:
    job = spec(
        {"kind": "diabetes", "standardize": True}, {"kind": "mlp", "hidden": [16], "activation": "tanh"}, "squared_error", sgd(0.01, 0.9),
        {"kind": "dropout", "rate": {"values": [0.0, 0.1]}}, {"kind": "early_stopping", "patience": 5}, epochs=100, batch_size=64, selection={"folds": 4},
    )  # fmt: skip
    found = run(job)
    result = found.finished.result
    members = result["selection"]["table"][result["selection"]["chosen"]]["runs"]
    epochs = [found.runs[index].best["step"] / 6 for index in members]  # 331 or 332 training rows: 6 batches
    assert found.runs[result["chosen_run"]].steps == max(1, round(float(np.median(epochs)))) * 7  # 442 rows: 7 batches


def test_killed_between_folds_and_resumed_the_choice_and_the_curves_are_the_same(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    job = {**ridge_job(), "budget": {"epochs": 20, "batch_size": 64}}
    found = events(job, scratch=first)
    uninterrupted = outcome(found)
    kept = [event for event in found if isinstance(event, Checkpointed)][:4]
    before = found[: found.index(kept[-1]) + 1]
    after = events(job, scratch=second, resume={saved.pack: Path(saved.path) for saved in kept})
    again = [event for event in after[1:] if not (isinstance(event, Points) and event.pack <= kept[-1].pack)]
    resumed = outcome([*before, *again])
    assert resumed.finished.result["selection"] == uninterrupted.finished.result["selection"]
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in uninterrupted.weights.items())
    for name, runs in uninterrupted.curves.items():
        for index, (steps, values) in runs.items():
            np.testing.assert_array_equal(resumed.curves[name][index][0], steps)
            np.testing.assert_array_equal(resumed.curves[name][index][1], values)
    assert all(end.state == RunState.SUCCEEDED for end in resumed.runs.values())
