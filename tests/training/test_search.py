"""What is found by training: paths from λ_max, suggestions, pruning; variants; nested folds. Against scikit-learn and against decisions made by hand."""

import json
import math
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, Ridge, enet_path, lasso_path
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from training_jobs import events, inline, outcome, run, sgd, spec

from regtrain.contract.events import Checkpointed, Event, PackBegun, Points
from regtrain.contract.job import parse
from regtrain.contract.runs import expand, origin_of, packs, wave_of
from regtrain.contract.states import RunState, StopReason
from worker.training.train import train

X, Y = load_diabetes(return_X_y=True)
ROWS = X * math.sqrt(len(X))
"""Columns of unit variance, in place of unit length, which would be a thousandth as steep as the intercept."""
EXACT = {"kind": "proximal", "tolerance": 1e-13}
LAMBDA = "regularizers.0.lambda"


def lasso(penalty: dict[str, Any], *, standardize: bool = False, epochs: int = 20_000, tolerance: float = 1e-13, **rest: Any) -> dict[str, Any]:
    data = {**({"kind": "diabetes", "standardize": True} if standardize else inline(ROWS, Y)), **rest.pop("dataset", {})}
    return spec(data, {"kind": "linear"}, "half_squared_error", {**EXACT, "tolerance": tolerance}, penalty, epochs=epochs, diagnostics="off", **rest)


def strengths(found: Any) -> dict[int, float]:
    return {index: values[LAMBDA] for event in found if isinstance(event, PackBegun) for index, values in zip(event.runs, event.values, strict=True) if LAMBDA in values}


def test_a_path_is_scikit_learns_lasso_path(tmp_path: File) -> None:
    """The same strengths from λ_max down, the same coefficients, the same support at every one of them."""
    found = events(lasso({"kind": "l1", "lambda": {"path": 20, "ratio": 1e-2}}), scratch=tmp_path)
    alphas, coefficients, _ = lasso_path(ROWS, Y - Y.mean(), alphas=20, eps=1e-2, tol=1e-12, max_iter=200_000)
    lams, result = strengths(found), outcome(found)
    np.testing.assert_allclose([lams[index] for index in range(20)], alphas, rtol=1e-9)
    ours = np.array([(end.coefficients or {})["weights"] for _, end in sorted(result.runs.items())])
    centred = ROWS - ROWS.mean(0)
    theirs = lasso_path(centred, Y - Y.mean(), alphas=alphas, tol=1e-12, max_iter=200_000)[1].T
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    np.testing.assert_array_equal(ours[0] == 0, np.ones(10, bool))
    np.testing.assert_array_equal(ours[1:] != 0, theirs[1:] != 0)
    assert coefficients.shape == (10, 20)
    assert {end.stop_reason for end in result.runs.values()} == {StopReason.CONVERGED}
    assert max(end.certificate["relative_gap"] for end in result.runs.values() if end.certificate) < 1e-10  # type: ignore[type-var]


@pytest.mark.parametrize(
    "penalty", [{"kind": "elastic_net", "l1_ratio": 0.3}, {"kind": "group_lasso", "groups": "columns"}, {"kind": "sparse_group_lasso", "groups": "columns", "l1_ratio": 0.4}]
)
@pytest.mark.parametrize("dataset", ["diabetes", "breast_cancer", "iris"])
def test_at_lambda_max_all_weights_are_zero_and_just_below_it_not(penalty: dict[str, Any], dataset: str) -> None:
    loss = {"diabetes": "half_squared_error", "breast_cancer": "binary", "iris": "cross_entropy"}[dataset]
    path = {"path": 2, "ratio": 0.999}
    job = spec({"kind": dataset, "standardize": True}, {"kind": "linear"}, loss, EXACT, {**penalty, "lambda": path}, epochs=300, diagnostics="off")
    found = run(job)
    weights = found.weights["head.weight"]
    assert torch.count_nonzero(weights[0]) == 0
    assert torch.count_nonzero(weights[1]) > 0


@pytest.mark.parametrize("standardize", [False, True])
def test_the_choice_of_a_path_is_lasso_cvs(standardize: bool) -> None:
    """LassoCV's folds, strengths and rule. Where we standardize inside the fold, so does a loop around scikit-learn's Lasso."""
    job = lasso({"kind": "l1", "lambda": {"path": 6, "ratio": 1e-2}}, standardize=standardize, tolerance=1e-11, selection={"folds": 5, "shuffle": False})
    result = run(job).finished.result
    chosen = result["selection"]["table"][result["selection"]["best"]]
    model = LassoCV(alphas=6, eps=1e-2, cv=KFold(5), tol=1e-10, max_iter=200_000).fit(StandardScaler().fit_transform(X) if standardize else ROWS, Y)
    if not standardize:
        np.testing.assert_allclose([score["values"][LAMBDA] for score in result["selection"]["table"]], model.alphas_, rtol=1e-9)
        np.testing.assert_allclose([score["mean"] for score in result["selection"]["table"]], model.mse_path_.mean(1) / 2, rtol=1e-6)
        assert chosen["values"][LAMBDA] == pytest.approx(model.alpha_, rel=1e-9)
        np.testing.assert_allclose(result["coefficients"]["weights"], model.coef_, atol=1e-4 * np.abs(model.coef_).max())
        return
    means = []
    for alpha in [score["values"][LAMBDA] for score in result["selection"]["table"]]:
        errors = []
        for rows, held in KFold(5).split(X):
            scaler = StandardScaler().fit(X[rows])
            w = enet_path(scaler.transform(X[rows]) - 0.0, Y[rows] - Y[rows].mean(), l1_ratio=1.0, alphas=[alpha], tol=1e-12, max_iter=200_000)[1][:, 0]
            errors.append(np.mean((Y[rows].mean() + scaler.transform(X[held]) @ w - Y[held]) ** 2) / 2)
        means.append(np.mean(errors))
    np.testing.assert_allclose([score["mean"] for score in result["selection"]["table"]], means, rtol=1e-6)
    assert result["selection"]["best"] == int(np.argmin(means))


def test_a_path_with_folds_is_refitted_whole_and_the_chosen_run_alone_sees_the_test_rows() -> None:
    job = lasso({"kind": "l1", "lambda": {"path": 6, "ratio": 1e-2}}, tolerance=1e-9, selection={"folds": 3, "rule": "one_standard_error"}, dataset={"test": 0.2})
    found = run(job)
    result = found.finished.result
    assert sorted(found.runs) == list(range(6 * 3 + 6))
    assert result["chosen_run"] == 18 + result["selection"]["chosen"]
    assert [index for index, end in found.runs.items() if "loss/test" in end.metrics] == [result["chosen_run"]]
    zeros = [found.runs[index].zeros["head.weight"] for index in range(18, 24)]
    assert zeros == sorted(zeros, reverse=True)
    assert zeros[0] == 10


def test_waves_begin_at_the_weights_of_the_wave_before() -> None:
    """Nine strengths go in three waves of three; a run of the second wave that makes no update is the last run of the first."""
    assert [wave_of(place, 9) for place in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [origin_of(place, 9) for place in range(9)] == [None] * 3 + [2] * 3 + [5] * 3
    job = lasso({"kind": "l1", "lambda": {"path": 9}}, epochs=3000, standardize=True)
    cold = run({**job, "selection": {"warm_start": False}})
    warm = run(job)
    assert sum(end.steps for end in warm.runs.values()) < sum(end.steps for end in cold.runs.values())
    assert len(cold.started.packs) == 1
    assert warm.started.packs == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    frozen = spec(
        {"kind": "digits"}, {"kind": "mlp", "hidden": [5]}, "cross_entropy", sgd(1e-300),
        {"kind": "l2", "lambda": {"values": [0.1, 3.0, 0.2, 1.0]}}, selection={"warm_start": True}, diagnostics="off",
    )  # fmt: skip
    found = run(frozen)
    assert found.started.packs == [[1, 3], [0, 2]]  # strongest first: 3 and 1, then 0.2 and 0.1 from the weights of 1
    assert all(torch.equal(found.weights["layers.0.weight"][3], found.weights["layers.0.weight"][index]) for index in (0, 2))


def searched(**selection: Any) -> dict[str, Any]:
    return spec(
        {"kind": "diabetes", "standardize": True}, {"kind": "linear"}, "squared_error", {"kind": "lbfgs", "tolerance": 1e-12},
        {"kind": "l2", "lambda": {"suggest": [1e-4, 1e4], "log": True}}, epochs=50, selection={"folds": 5, "trials": 25, **selection}, diagnostics="off",
    )  # fmt: skip


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """25 trials of one seed, in folds as they stand."""
    return events(searched(shuffle=False), scratch=tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """25 trials of two seeds."""
    return events(searched(seeds=2), scratch=tmp_path_factory.mktemp("double"))


def test_a_search_finds_the_minimum_of_the_table_that_it_fills(single: list[Event]) -> None:
    result = outcome(single).finished.result
    lams = strengths(single)
    assert all(1e-4 <= lam <= 1e4 for lam in lams.values())
    assert len({round(math.log(lam), 9) for lam in lams.values()}) == 25
    for score in result["selection"]["table"]:
        errors = []
        for rows, held in KFold(5).split(X):
            scaler = StandardScaler().fit(X[rows])
            model = Ridge(alpha=len(rows) * score["values"][LAMBDA] / 2).fit(scaler.transform(X[rows]), Y[rows])
            errors.append(np.mean((model.predict(scaler.transform(X[held])) - Y[held]) ** 2))
        assert score["mean"] == pytest.approx(np.mean(errors), rel=1e-6)
    best = min(score["mean"] for score in result["selection"]["table"])
    assert result["selection"]["table"][result["selection"]["chosen"]]["mean"] == best
    grid = [float(np.mean([np.mean((Ridge(alpha=len(r) * lam / 2).fit(StandardScaler().fit_transform(X[r]), Y[r]).predict(StandardScaler().fit(X[r]).transform(X[h])) - Y[h]) ** 2) for r, h in KFold(5).split(X)])) for lam in np.geomspace(1e-3, 10, 40)]  # fmt: skip
    assert best <= 1.01 * min(grid)


def test_five_pairs_prune_nothing_and_ten_prune_what_is_clearly_worse(single: list[Event], double: list[Event], tmp_path: File) -> None:
    """With five folds and one seed a set of values has at most four pairs when it could still be left out; with two seeds it has six after the third fold."""
    assert StopReason.PRUNED not in {end.stop_reason for end in outcome(single).runs.values()}
    found = outcome(double)
    pruned = [index for index, end in found.runs.items() if end.stop_reason == StopReason.PRUNED]
    assert pruned
    assert {found.runs[index].state for index in pruned} == {RunState.CANCELLED}
    table = found.finished.result["selection"]["table"]
    for score in table:
        left = [index for index in score["runs"] if index in pruned]
        assert len(left) in (0, 2, 4)  # whole folds, at the earliest the fourth
        assert bool(left) == math.isnan(score["mean"])
    assert not math.isnan(table[found.finished.result["selection"]["chosen"]]["mean"])
    whole = outcome(events(searched(seeds=2, prune=False), scratch=tmp_path))
    assert StopReason.PRUNED not in {end.stop_reason for end in whole.runs.values()}


PATH = lasso({"kind": "l1", "lambda": {"path": 9, "ratio": 1e-2}}, standardize=True, epochs=200, selection={"folds": 3})


def test_a_batch_fills_a_pack_and_a_search_asks_at_least_five_times() -> None:
    job = parse(json.dumps(searched(seeds=2)))
    found = packs(expand(job), job, bytes_of=lambda _: 1000, device="cpu")
    assert [len(members) for members in found] == [10] * 25 + [1]  # 5 sets of values × 2 seeds, 5 folds, 5 batches, the refit
    narrow = packs(expand(job), job, bytes_of=lambda _: 2**22, device="cpu")
    assert max(map(len, narrow)) == 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    return events(PATH, scratch=tmp_path_factory.mktemp("path"))


@pytest.mark.parametrize(("job", "whole"), [(searched(seeds=2), "double"), (PATH, "path")], ids=["search", "path"])
def test_killed_in_the_middle_and_resumed_the_choice_and_the_curves_are_the_same(job: dict[str, Any], whole: str, request: pytest.FixtureRequest, tmp_path: File) -> None:
    found: list[Event] = request.getfixturevalue(whole)
    uninterrupted = outcome(found)
    kept = [event for event in found if isinstance(event, Checkpointed)]
    kept = kept[: len(kept) // 2]
    before = found[: found.index(kept[-1]) + 1]
    after = events(job, scratch=tmp_path, resume={saved.pack: File(saved.path) for saved in kept})
    again = [event for event in after[1:] if not (isinstance(event, Points) and event.pack <= kept[-1].pack)]
    resumed = outcome([*before, *again])
    assert strengths(after) == strengths(found)
    left, right = (json.dumps(one.finished.result["selection"]) for one in (resumed, uninterrupted))
    assert left == right
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in uninterrupted.weights.items())
    for name, runs in uninterrupted.curves.items():
        for index, (steps, values) in runs.items():
            np.testing.assert_array_equal(resumed.curves[name][index][0], steps)
            np.testing.assert_array_equal(resumed.curves[name][index][1], values)


def test_variants_are_the_jobs_that_they_describe() -> None:
    """Each in packs of its own, with its own shape, and to the last bit what the same job gives alone."""
    base = spec({"kind": "digits", "validation": 0.2}, {"kind": "mlp", "hidden": [12]}, "cross_entropy", sgd(0.1), epochs=3, batch_size=64, selection={"seeds": 2})
    changes: list[dict[str, Any]] = [
        {},
        {"model": {"kind": "mlp", "hidden": [8, 6], "activation": "tanh", "init": {"kind": "xavier_normal"}}},
        {"optimizer.lr": {"values": [0.01, 0.3]}, "regularizers.0": {"kind": "l1", "lambda": 1e-3}, "budget.epochs": 2},
        {"dataset.standardize": True},
    ]
    labels = ["as it is", "deep", "rates", "standardized"]
    found = run({**base, "variants": [{"label": label, "set": change} for label, change in zip(labels, changes, strict=True)]})
    first = 0
    for label, change in zip(labels, changes, strict=True):
        alone: dict[str, Any] = json.loads(json.dumps(base))
        for path, value in change.items():
            place, parts = alone, path.split(".")
            for part in parts[:-1]:
                place = place[part]
            if isinstance(place, list):
                place.append(value)
            else:
                place[parts[-1]] = value
        single = run(alone)
        for index, end in single.runs.items():
            assert found.runs[first + index].metrics == end.metrics
            np.testing.assert_array_equal(found.curve("loss/train", first + index), single.curve("loss/train", index))
        for name, tensor in single.weights.items():
            assert torch.equal(found.weights[f"{label}/{name}"], tensor)
        first += len(single.runs)
    result = found.finished.result
    best = min(found.runs, key=lambda index: np.mean([found.runs[i].metrics["loss/val"] for i in result["selection"]["table"][_point(result, index)]["runs"]]))
    assert result["selection"]["chosen"] == _point(result, best)
    assert result["variant"] == result["selection"]["table"][result["selection"]["chosen"]]["variant"]
    assert len(found.runs) == first == 10


def _point(result: dict[str, Any], run: int) -> int:
    return next(place for place, score in enumerate(result["selection"]["table"]) if run in score["runs"])


def test_a_refit_takes_the_shape_of_the_chosen_variant() -> None:
    base = spec({"kind": "diabetes", "standardize": True}, {"kind": "linear"}, "squared_error", sgd(1e-300), epochs=1, selection={"folds": 3})
    variants = [{"label": "stuck", "set": {}}, {"label": "moving", "set": {"model": {"kind": "mlp", "hidden": [4]}, "optimizer": {"kind": "adam", "lr": 0.1}, "budget.epochs": 50}}]
    found = run({**base, "variants": variants})
    result = found.finished.result
    assert (result["variant"], result["chosen_run"]) == ("moving", 6)
    assert found.weights["moving/layers.0.weight"].shape == (4, 4, 10)  # three folds and the refit
    assert found.runs[6].steps == 50


def test_nested_folds_report_what_the_whole_choice_is_worth() -> None:
    """Three outer folds, four inner ones: a loop around scikit-learn's Ridge chooses the same strengths and has the same scores."""
    lams = [1e-3, 0.1, 1.0]
    job = spec(
        {"kind": "diabetes", "standardize": True}, {"kind": "linear"}, "squared_error", {"kind": "lbfgs", "tolerance": 1e-13},
        {"kind": "l2", "lambda": {"values": lams}}, epochs=60, selection={"folds": 4, "outer": 3, "shuffle": False}, diagnostics="off",
    )  # fmt: skip
    found = run(job)

    def error(rows: np.ndarray, held: np.ndarray, lam: float) -> float:
        scaler = StandardScaler().fit(X[rows])
        return float(np.mean((Ridge(alpha=len(rows) * lam / 2).fit(scaler.transform(X[rows]), Y[rows]).predict(scaler.transform(X[held])) - Y[held]) ** 2))

    chosen, scores = [], []
    for rows, held in KFold(3).split(X):
        means = [np.mean([error(rows[inner], rows[out], lam) for inner, out in KFold(4).split(rows)]) for lam in lams]
        chosen.append(lams[int(np.argmin(means))])
        scores.append(error(rows, held, chosen[-1]))
    report = found.finished.result["selection"]["nested"]
    assert [fold["values"][LAMBDA] for fold in report["folds"]] == chosen
    np.testing.assert_allclose([fold["score"] for fold in report["folds"]], scores, rtol=1e-7)
    assert report["mean"] == pytest.approx(np.mean(scores), rel=1e-7)
    assert report["standard_error"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(3), rel=1e-6)
    assert len(found.runs) == 3 * 4 + 1 + 3 * (3 * 4 + 1)


def test_cut_anew_the_folds_choose_again() -> None:
    job = searched(repeats=3, trials=None)
    job["regularizers"] = [{"kind": "l2", "lambda": {"log": [1e-3, 10], "points": 8}}]
    selection = run({**job, "selection": {"folds": 4, "repeats": 3}}).finished.result["selection"]
    assert len(selection["spread"]["chosen"]) == 3
    low, high = selection["spread"]["quantiles"]["min"], selection["spread"]["quantiles"]["max"]
    assert 1e-3 <= low <= selection["spread"]["quantiles"]["median"] <= high <= 10
    assert "within one standard error" in selection["in_words"]


def test_a_job_of_which_every_run_fails_still_says_so(tmp_path: File) -> None:
    job = searched(trials=3)
    job["optimizer"], job["budget"] = sgd(1e200), {"epochs": 30, "batch_size": "all"}
    with pytest.raises(Exception, match="every run became non-finite"):
        list(train(parse(json.dumps(job)), data=tmp_path))
