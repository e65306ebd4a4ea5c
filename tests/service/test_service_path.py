"""/path: a job whose runs are reported by hand. Scores and rules against numpy, the order of features against the weights, in every form."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from serving import Serving, assert_problem, report

from regtrain.contract.events import Finished, RunFinished
from regtrain.contract.runs import expand
from regtrain.contract.states import RunState, StopReason
from regtrain.store import files, jobs

LAMBDA = "regularizers.0.lambda"
LAMS = (1.0, 8.0, 0.0, 4.0, 2.0)
FOLDS = 3
HELD = {8.0: (9.0, 9.5, 10.0), 4.0: (5.0, 6.2, 5.6), 2.0: (5.0, 6.0, 5.5), 1.0: (4.9, 6.1, 5.35), 0.0: (7.0, 7.0, 7.6)}
"""λ → loss on each fold. The best mean is 5.45 at λ = 1 with a standard error of 0.3500; 5.5 at λ = 2 and 5.6 at λ = 4 lie within it."""
WEIGHTS = {8.0: (0.0, 0.0, 0.0), 4.0: (0.0, 1.0, 0.0), 2.0: (0.0, 2.0, -1.0), 1.0: (0.5, 2.5, 0.0), 0.0: (0.7, 3.0, 0.4)}
"""b enters at 4, c at 2, which leaves at 1 and returns at 0; a enters at 1."""
SPEC: dict[str, Any] = {
    "name": "by hand",
    "dataset": {"kind": "inline", "x": [[1, 0, 2], [2, 1, 0], [3, 0, 1], [4, 2, 0], [5, 1, 1], [6, 0, 0]], "y": [2, 4, 7, 11, 16, 12]},
    "regularizers": [{"kind": "l1", "lambda": {"values": list(LAMS)}}],
    "selection": {"folds": FOLDS, "rule": "one_standard_error", "refit": "all"},
}


def end(run: Any, lam: float) -> RunFinished:
    metrics = {"loss/train": 1.0, "penalty/l1": float(np.abs(WEIGHTS[lam]).sum()), **({} if run.refit else {"loss/val": HELD[lam][run.fold]})}
    coefficients = {"features": ["a", "b", "c"], "weights": list(WEIGHTS[lam]), "intercept": lam, "trained": {"weights": list(WEIGHTS[lam]), "intercept": lam}}
    zeros = {"head.weight": WEIGHTS[lam].count(0.0)}
    certificate = {"objective": 1.0, "duality_gap": None, "relative_gap": 1e-12 * (1 + run.index), "kkt_violation": 1e-9, "closed_form_distance": None}
    return RunFinished(run.index, RunState.SUCCEEDED, StopReason.BUDGET, 1, metrics, zeros=zeros, coefficients=coefficients, certificate=certificate)


def trained(service: Serving, spec: dict[str, Any], *, refits: bool = True, folds: int = FOLDS, finish: bool = True) -> str:
    """The ID of a job whose runs have ended as far as is said."""
    job = service.submit(spec)
    claim = service.claim(job)
    planned = expand(claim.spec)
    report(service.database, claim, {"loss/train": np.ones((1, len(planned)))}, layers=["head"])
    ended = [end(run, run.values[LAMBDA]) for run in planned if (refits if run.refit else (run.fold or 0) < folds)]
    jobs.report(service.database, claim, ended)
    if finish:
        place = files.publish(service.data, written(service, claim), job=job, attempt=claim.attempt, name="model.safetensors")
        selection = {"spread": None, "nested": {"folds": [], "mean": 5.8, "standard_error": 0.4}, "closed": {"gcv": {"lambda": 0.5, "score": 1.0}}}
        jobs.finish(service.database, claim, Finished(result={"chosen_run": 18, "values": {LAMBDA: 4.0}, "selection": selection}, path=str(place), sha256="of no matter"), place)
    return job


def written(service: Serving, claim: jobs.Claim) -> Any:
    temporary = files.scratch(service.data, claim.job, claim.attempt) / "part"
    temporary.write_bytes(b"weights")
    return temporary


@pytest.fixture(scope="module")
def whole(service: Serving) -> str:
    return trained(service, SPEC)


def answer(service: Serving, job: str) -> dict[str, Any]:
    got = service.http.get(f"/v1/jobs/{job}/path")
    assert got.status_code == 200, got.text
    return json.loads(got.content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_scores_zeros_and_coefficients_from_the_strongest_down(service: Serving, whole: str) -> None:
    found = answer(service, whole)
    (path,) = found["paths"]
    assert (path["ordered_by"], path["variant"], path["fixed"], path["reason"]) == (LAMBDA, None, {}, None)
    assert [entry["strength"] for entry in path["entries"]] == sorted(LAMS, reverse=True)
    assert found["features"] == ["a", "b", "c"]
    for entry in path["entries"]:
        lam, held = entry["strength"], np.array(HELD[entry["strength"]])
        assert LAMS[entry["place"]] == lam
        assert (entry["values"], entry["n"], entry["of"], entry["state"]) == ({LAMBDA: lam}, FOLDS, FOLDS, "done")
        np.testing.assert_allclose([entry["score"], entry["standard_error"], entry["median"]], [held.mean(), held.std(ddof=1) / np.sqrt(FOLDS), np.median(held)], rtol=1e-14)
        weights = entry["weights"]
        assert (weights["of"], weights["runs"]) == ("refit", [FOLDS * len(LAMS) + entry["place"]])
        assert weights["coefficients"] == {"weights": list(WEIGHTS[lam]), "intercept": lam}
        assert (weights["zeros"], weights["zeros_in_all"]) == ({"head.weight": WEIGHTS[lam].count(0.0)}, WEIGHTS[lam].count(0.0))
        assert weights["surviving"] == [name for name, weight in zip("abc", WEIGHTS[lam], strict=True) if weight]
        assert weights["penalties"] == {"penalty/l1": sum(map(abs, WEIGHTS[lam]))}


def test_what_each_rule_takes(service: Serving, whole: str) -> None:
    found = answer(service, whole)
    at = {entry["strength"]: entry for entry in found["paths"][0]["entries"]}
    assert found["choice"] == {"best": 0, "one_standard_error": 3, "median": 0, "chosen": 3}
    assert (at[1.0]["taken_by"], at[4.0]["taken_by"], at[8.0]["taken_by"]) == (["best", "median"], ["one_standard_error"], [])
    assert [lam for lam, entry in at.items() if entry["chosen"]] == [4.0]
    assert "regularizers.0.lambda from 1 to 4" in found["in_words"]
    assert (found["complete"], found["state"], found["rule"], found["metric"], found["higher_is_better"]) == (True, "succeeded", "one_standard_error", "loss/val", False)


def test_the_order_in_which_features_enter_leave_and_return(service: Serving, whole: str) -> None:
    order = answer(service, whole)["paths"][0]["entry_order"]
    assert order == [
        {"feature": "b", "strength": 4.0, "leaves": [], "returns": []},
        {"feature": "c", "strength": 2.0, "leaves": [1.0], "returns": [0.0]},
        {"feature": "a", "strength": 1.0, "leaves": [], "returns": []},
    ]


def test_certificates_conventions_and_what_the_worker_stored(service: Serving, whole: str) -> None:
    found = answer(service, whole)
    assert found["certificates"] == {"runs": 20, "relative_gap": pytest.approx(20e-12), "kkt_violation": 1e-9}
    entry = found["paths"][0]["entries"][0]
    assert entry["relative_gap"] == pytest.approx(1e-12 * 6)  # of place 1 the runs 3, 4, 5
    assert entry["conventions"][LAMBDA]["sklearn_lasso"] == 8.0
    assert entry["conventions"][LAMBDA]["torch"] == 16.0
    titles = {one["convention"]: one["formula"] for one in found["paths"][0]["conventions"][LAMBDA]}
    assert titles["torch"] == "lambda = 2·λ"
    assert set(titles) == set(entry["conventions"][LAMBDA])
    assert (found["spread"], found["nested"]["mean"], found["closed"]) == (None, 5.8, {"gcv": {"lambda": 0.5, "score": 1.0}})


def test_as_a_table_and_as_lines(service: Serving, whole: str) -> None:
    as_csv = service.http.get(f"/v1/jobs/{whole}/path?format=csv")
    assert as_csv.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert [float(row["strength"]) for row in rows] == sorted(LAMS, reverse=True)
    assert [row["surviving"] for row in rows] == ["", "b", "b c", "a b", "a b c"]
    assert [float(row["weight/b"]) for row in rows] == [0, 1, 2, 2.5, 3]
    assert [row["chosen"] for row in rows] == ["False", "True", "False", "False", "False"]
    assert float(rows[1][f"{LAMBDA}/torch"]) == 8.0
    lines = [json.loads(line) for line in service.http.get(f"/v1/jobs/{whole}/path", headers={"Accept": "application/jsonl"}).text.splitlines()]
    assert [line["strength"] for line in lines] == sorted(LAMS, reverse=True)
    assert lines[3]["taken_by"] == "best median"


def test_in_a_terminal(service: Serving, whole: str) -> None:
    text = service.http.get(f"/v1/jobs/{whole}/path?format=text").text
    lines = [line.split() for line in text.splitlines()]
    assert ["λ", "loss/val", "±", "s.e.", "n", "zeros", "features"] in lines
    assert ["4", "5.6", "0.346", "3", "2", "1", "chosen,", "one_standard_error", "+b"] in lines
    assert ["1", "5.45", "0.35", "3", "1", "2", "best,", "median", "+a", "−c"] in lines
    assert "M best, S one standard error" in text
    assert text.count("└") == 2
    assert "λ = 0 has no place on a logarithmic axis" in text
    assert "chosen: regularizers.0.lambda = 4; left: b" in text
    assert "features enter: b 4, c 2 (leaves at 1, returns at 0), a 1" in text
    assert "scikit-learn Lasso alpha 4" in text
    assert "nested folds: 5.8 ± 0.4" in text
    assert "closed forms: gcv λ = 0.5" in text


def test_while_it_trains_the_runs_that_have_ended_speak(service: Serving) -> None:
    """After two folds of three: means of two, no coefficients yet, since every run lacks a fold."""
    found = answer(service, trained(service, SPEC, refits=False, folds=2, finish=False))
    assert (found["complete"], found["state"]) == (False, "running")
    entries = found["paths"][0]["entries"]
    for entry in entries:
        assert entry["score"] == pytest.approx(np.mean(HELD[entry["strength"]][:2]))
        assert (entry["n"], entry["of"], entry["state"]) == (2, 3, "training")
        assert (entry["weights"]["of"], entry["weights"]["coefficients"], entry["weights"]["surviving"]) == ("folds", None, None)
        assert 'refit "all"' in entry["weights"]["reason"]
    assert found["paths"][0]["entry_order"] is None
    assert found["choice"]["best"] == LAMS.index(1.0) or found["choice"]["best"] == LAMS.index(2.0)


def test_before_it_trains_there_is_nothing_to_tell_but_what_is_searched(service: Serving) -> None:
    found = answer(service, job := service.submit(SPEC))
    assert (found["complete"], found["state"], found["in_words"]) == (False, "queued", None)
    assert found["choice"] == dict.fromkeys(("best", "one_standard_error", "median", "chosen"))
    assert [(entry["strength"], entry["score"], entry["weights"], entry["n"], entry["state"]) for entry in found["paths"][0]["entries"]] == [
        (lam, None, None, 0, "waiting") for lam in sorted(LAMS, reverse=True)
    ]
    assert "so far 0 of 15 runs" in service.http.get(f"/v1/jobs/{job}/path?format=text").text
    assert service.job(job)["links"]["path"] == f"/v1/jobs/{job}/path"


def test_values_that_training_has_still_to_find(service: Serving) -> None:
    path = answer(service, service.submit(SPEC, regularizers=[{"kind": "l1", "lambda": {"path": 4}}]))["paths"][0]
    assert path["ordered_by"] == LAMBDA
    assert [(entry["place"], entry["strength"], entry["conventions"]) for entry in path["entries"]] == [(place, None, {}) for place in range(4)]


def test_with_nothing_searched_there_is_one_entry(service: Serving) -> None:
    job = service.submit()
    service.train(job, {"loss/train": np.ones((2, 1))})
    found = answer(service, job)
    (entry,) = found["paths"][0]["entries"]
    assert (entry["values"], entry["score"], entry["chosen"], entry["n"]) == ({}, None, True, 1)
    assert found["paths"][0]["reason"] == "no strength is searched: the results stand in the order of the grid"
    assert "the only set of values" in service.http.get(f"/v1/jobs/{job}/path?format=text").text


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({"optimizer": {"kind": "sgd", "lr": {"values": [0.1, 0.01]}}}, [({"optimizer.lr": 0.1}, LAMBDA, 5), ({"optimizer.lr": 0.01}, LAMBDA, 5)]),
        ({"regularizers": [{"kind": "l1", "lambda": {"values": [1, 2]}}, {"kind": "l2", "lambda": {"values": [1, 2]}}], "selection": {}}, [({}, None, 4)]),
        (
            {"variants": [{"label": "lasso", "set": {}}, {"label": "plain", "set": {"regularizers": []}}], "selection": {}},
            [({}, LAMBDA, 5), ({}, None, 1)],
        ),
        ({"regularizers": [{"kind": "l1", "lambda": {"suggest": [0.1, 1]}}], "optimizer": {"kind": "sgd", "lr": {"suggest": [0.01, 0.1]}}, "selection": {"folds": 3, "trials": 6}}, [({}, LAMBDA, 6)]),
    ],
)  # fmt: skip
def test_one_path_for_each_variant_and_each_other_value(service: Serving, change: dict[str, Any], paths: list[Any]) -> None:
    found = answer(service, service.submit({**SPEC, **change}))
    assert [(path["fixed"], path["ordered_by"], len(path["entries"])) for path in found["paths"]] == paths
    assert all((path["reason"] is None) == (path["ordered_by"] is not None) for path in found["paths"])


def test_variants_with_other_penalties_have_other_conventions(service: Serving) -> None:
    """The lasso has no Ridge, and Keras calls its strength otherwise."""
    ridge = {"label": "ridge", "set": {"regularizers.0": {"kind": "l2", "lambda": {"values": [2, 1]}}}}
    job = service.submit({**SPEC, "variants": [{"label": "lasso", "set": {}}, ridge], "selection": {}})
    first, second = answer(service, job)["paths"]
    assert {one["convention"] for one in second["conventions"][LAMBDA]} - {one["convention"] for one in first["conventions"][LAMBDA]} == {"sklearn_ridge", "article_003"}
    assert [next(one["parameter"] for one in path["conventions"][LAMBDA] if one["convention"] == "keras") for path in (first, second)] == ["l1", "l2"]
    assert second["entries"][0]["conventions"][LAMBDA]["sklearn_ridge"] == pytest.approx(12)  # n·λ, of six rows
    assert "variant ridge, by" in service.http.get(f"/v1/jobs/{job}/path?format=text").text


def test_several_strengths_have_no_order_and_that_is_said(service: Serving) -> None:
    (path,) = answer(
        service, service.submit({**SPEC, "regularizers": [{"kind": "l1", "lambda": {"values": [1, 2]}}, {"kind": "l2", "lambda": {"values": [1, 2]}}], "selection": {}})
    )["paths"]
    assert path["reason"].startswith("2 strengths are searched (regularizers.0.lambda, regularizers.1.lambda)")
    assert [entry["place"] for entry in path["entries"]] == [0, 1, 2, 3]


def test_bad_requests(service: Serving, whole: str) -> None:
    assert_problem(service.http.get("/v1/jobs/job_0000/path"), 404)
    assert_problem(service.http.get(f"/v1/jobs/{whole}/path?format=xml"), 422, path="format")
    assert_problem(service.http.get(f"/v1/jobs/{whole}/path?points=3"), 422, path="points")
