"""A lasso path with folds as a user asks for it, against scikit-learn: strengths, support, order of the features, scores, choice."""

import csv
import io
from typing import Any

import numpy as np
import pytest
from doors import House, example
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, lars_path, lasso_path
from sklearn.model_selection import KFold

ROWS: Any = load_diabetes()
X, Y, NAMES = ROWS.data * np.sqrt(len(ROWS.data)), ROWS.target, ROWS.feature_names
LAMBDA = "regularizers.0.lambda"
POINTS, RATIO = 16, 0.02


@pytest.fixture(scope="module")
def lasso(house: House) -> tuple[str, dict[str, Any]]:
    """ID and path of the example on columns as they come, from a file, in folds as they stand: what LassoCV does."""
    file = "\n".join(",".join(map(str, row)) for row in [[*NAMES, "progression"], *np.c_[X, Y].tolist()])
    dataset = house.http.post("/v1/datasets", params={"format": "csv", "target": "progression"}, content=file.encode()).raise_for_status().json()["id"]
    spec = example("diabetes_lasso_path")
    spec |= {"dataset": {"kind": "upload", "id": dataset}, "regularizers": [{"kind": "l1", "lambda": {"path": POINTS, "ratio": RATIO}}]}
    job = house.trained({**spec, "optimizer": {"kind": "proximal", "tolerance": 1e-8}, "selection": {**spec["selection"], "shuffle": False}})["id"]
    return job, house.http.get(f"/v1/jobs/{job}/path").json()


def test_strengths_support_and_coefficients_are_those_of_lasso_path(lasso: tuple[str, dict[str, Any]]) -> None:
    _, found = lasso
    entries = found["paths"][0]["entries"]
    alphas: Any = np.array([entry["strength"] for entry in entries])
    np.testing.assert_allclose(alphas, np.geomspace(1, RATIO, POINTS) * np.abs((X - X.mean(0)).T @ (Y - Y.mean())).max() / len(Y), rtol=1e-12)
    theirs = lasso_path(X - X.mean(0), Y - Y.mean(), alphas=alphas, tol=1e-14, max_iter=1_000_000)[1].T
    ours = np.array([entry["weights"]["coefficients"]["weights"] for entry in entries])
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert found["features"] == NAMES
    assert [entry["weights"]["surviving"] for entry in entries[1:]] == [[name for name, weight in zip(NAMES, row, strict=True) if weight] for row in theirs[1:]]
    assert entries[0]["weights"]["surviving"] == []
    assert {entry["weights"]["of"] for entry in entries} == {"refit"}
    assert found["certificates"]["runs"] == POINTS * 6
    assert found["certificates"]["relative_gap"] < 1e-6


def test_features_enter_and_leave_where_least_angle_regression_says(lasso: tuple[str, dict[str, Any]]) -> None:
    """LARS knows the λ of every change exactly; on the grid a change is seen at the next λ below it."""
    path = lasso[1]["paths"][0]
    grid = [entry["strength"] for entry in path["entries"]]
    breaks, _, weights = lars_path(X - X.mean(0), Y - Y.mean(), method="lasso")
    expected: dict[str, list[float]] = {}
    for feature, name in enumerate(NAMES):
        at = [float(np.interp(-lam, -breaks, weights[feature])) for lam in grid]  # the path is linear between its breaks
        alive = [False, *(abs(weight) > 1e-9 for weight in at)]
        expected[name] = [lam for lam, before, now in zip(grid, alive, alive[1:], strict=False) if before != now]
    order = path["entry_order"]
    assert {one["feature"]: sorted([one["strength"], *one["leaves"], *one["returns"]], reverse=True) for one in order} == {name: at for name, at in expected.items() if at}
    entered = [float(breaks[np.flatnonzero(weights[NAMES.index(one["feature"])])[0] - 1]) for one in order]
    assert [one["feature"] for one in order][:4] == ["bmi", "s5", "bp", "s3"]
    seen = [one["strength"] for one in order]
    assert seen == sorted(seen, reverse=True)
    assert all(at >= lam for at, lam in zip(entered, seen, strict=True))


def test_scores_and_choice_are_those_of_lasso_cv(house: House, lasso: tuple[str, dict[str, Any]]) -> None:
    job, found = lasso
    entries = found["paths"][0]["entries"]
    alphas: Any = np.array([entry["strength"] for entry in entries])
    theirs = LassoCV(alphas=alphas, cv=KFold(5), tol=1e-12, max_iter=1_000_000).fit(X, Y)
    errors = theirs.mse_path_ / 2
    np.testing.assert_allclose([entry["score"] for entry in entries], errors.mean(1), rtol=1e-6)
    np.testing.assert_allclose([entry["standard_error"] for entry in entries], errors.std(1, ddof=1) / np.sqrt(5), rtol=1e-5)
    taken = {rule: entry["strength"] for entry in entries for rule in entry["taken_by"]}
    assert taken["best"] == theirs.alpha_
    best = int(errors.mean(1).argmin())
    assert taken["one_standard_error"] == alphas[errors.mean(1) <= errors.mean(1)[best] + errors[best].std(ddof=1) / np.sqrt(5)].max()
    (chosen,) = [entry for entry in entries if entry["chosen"]]
    told = house.job(job)["result"]
    assert chosen["strength"] == taken["one_standard_error"] == told["values"][LAMBDA]
    assert chosen["weights"]["runs"] == [told["chosen_run"]]
    assert found["in_words"] == told["selection"]["in_words"]
    assert found["choice"] == {name: told["selection"][name] for name in ("best", "one_standard_error", "median", "chosen")}
    assert chosen["conventions"][LAMBDA]["sklearn_lasso"] == chosen["strength"]
    assert {one["convention"]: one["value"] for one in told["lambda"][LAMBDA]} == chosen["conventions"][LAMBDA]


def test_in_a_terminal_and_as_a_table(house: House, lasso: tuple[str, dict[str, Any]]) -> None:
    job, found = lasso
    text = house.http.get(f"/v1/jobs/{job}/path", headers={"Accept": "text/plain"}).text
    assert "M best, S one standard error" in text
    assert "features that are left" in text
    assert "features enter: bmi" in text
    assert max(len(line) for line in text.splitlines() if line.startswith(" ")) <= 100
    rows = list(csv.DictReader(io.StringIO(house.http.get(f"/v1/jobs/{job}/path?format=csv").text)))
    assert [float(row["score"]) for row in rows] == [entry["score"] for entry in found["paths"][0]["entries"]]
    assert [float(row["weight/bmi"]) for row in rows] == [entry["weights"]["coefficients"]["weights"][2] for entry in found["paths"][0]["entries"]]


def test_a_net_has_zeros_and_penalties_in_place_of_coefficients(house: House) -> None:
    """Two seeds of three strengths: the mean over seeds."""
    spec = {
        "dataset": {"kind": "iris", "validation": 0.3}, "model": {"kind": "mlp", "hidden": [8]}, "loss": {"kind": "cross_entropy"},
        "regularizers": [{"kind": "l1", "lambda": {"values": [0.001, 1, 0.03]}}], "optimizer": {"kind": "sgd", "lr": 0.1}, "budget": {"epochs": 20, "batch_size": 16},
        "selection": {"seeds": 2},
    }  # fmt: skip
    job = house.trained(spec)["id"]
    found, runs = house.http.get(f"/v1/jobs/{job}/path").json(), house.runs(job)
    entries = found["paths"][0]["entries"]
    assert [entry["strength"] for entry in entries] == [1, 0.03, 0.001]
    assert found["paths"][0]["entry_order"] is None
    for entry in entries:
        of = [run for run in runs if run["point"] == entry["place"]]
        assert entry["weights"]["of"] == "seeds"
        assert entry["weights"]["zeros"] == {name: np.mean([run["zeros"][name] for run in of]) for name in of[0]["zeros"]}
        assert entry["weights"]["penalties"]["penalty/l1"] == pytest.approx(np.mean([run["metrics"]["penalty/l1"] for run in of]))
        assert "linear models" in entry["weights"]["reason"]
        assert entry["score"] == pytest.approx(np.mean([run["metrics"]["loss/val"] for run in of]))
    assert "exact zeros, over λ" in house.http.get(f"/v1/jobs/{job}/path?format=text").text


def test_what_cannot_be_asked(house: House, lasso: tuple[str, dict[str, Any]]) -> None:
    assert house.http.get("/v1/jobs/job_00/path").status_code == 404
    refused = house.http.get(f"/v1/jobs/{lasso[0]}/path?format=png")
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "format")
