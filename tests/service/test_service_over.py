"""`over=seeds` and `over=folds`: what the server answers equals numpy over the numbers that were reported, in every form."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from serving import Serving, assert_problem

from regtrain.contract.events import Points, Started
from regtrain.store import jobs

NAN = float("nan")
SEEDS = 3
RNG = np.random.default_rng(0)
LOSS = RNG.lognormal(size=(5, 2 * SEEDS))
NORMS = RNG.lognormal(size=(5, 2 * SEEDS, 2))
SWEEP: dict[str, Any] = {"regularizers": [{"kind": "l2", "lambda": {"values": [0.1, 1]}}], "selection": {"seeds": SEEDS}}


@pytest.fixture(scope="module")
def trained(service: Serving) -> str:
    job = service.submit(SWEEP)
    service.train(job, {"loss/train": LOSS, "gradient/norm": NORMS}, layers=["layers.0", "head"], steps_per_epoch=2)
    return job


def answer(service: Serving, job: str, query: str = "", *, of: str = "curves") -> Any:
    got = service.http.get(f"/v1/jobs/{job}/{of}?over=seeds{query}")
    assert got.status_code == 200, got.text
    return json.loads(got.content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def of_numpy(values: NDArray[Any]) -> dict[str, Any]:
    """Statistics over the second axis: points × runs (× layers)."""
    return {
        "mean": values.mean(1),
        "min": values.min(1),
        "max": values.max(1),
        "standard_error": values.std(1, ddof=1) / np.sqrt(values.shape[1]),
    }


def assert_spread(found: dict[str, Any], values: NDArray[Any]) -> None:
    for name, expected in of_numpy(values).items():
        np.testing.assert_allclose(np.array(found[name]), expected, rtol=1e-13, err_msg=name)
    assert np.array(found["n"]).tolist() == np.full(np.delete(values.shape, 1), values.shape[1]).tolist()
    assert not np.any(found["nonfinite"])


def test_runs_that_share_all_searched_values_are_one_curve_that_equals_numpy(service: Serving, trained: str) -> None:
    body = answer(service, trained)
    assert (body["over"], body["recorded"]) == ("seeds", ["loss/train"])
    assert [(s["values"], s["runs"]) for s in body["series"]] == [({"regularizers.0.lambda": 0.1}, [0, 1, 2]), ({"regularizers.0.lambda": 1.0}, [3, 4, 5])]
    for place, spread in enumerate(body["series"]):
        assert (spread["series"], spread["unit"], spread["exact"], spread["x"]) == ("loss/train", "loss", True, [0, 1, 2, 3, 4])
        assert_spread(spread, LOSS[:, place * SEEDS : (place + 1) * SEEDS])
    assert service.http.get(f"/v1/jobs/{trained}/curves").json()["over"] is None


def test_layers_are_aggregated_one_by_one(service: Serving, trained: str) -> None:
    body = answer(service, trained, of="gradients")
    assert body["layers"] == ["layers.0", "head"]
    assert_spread(body["series"][1], NORMS[:, SEEDS:, :])
    head = answer(service, trained, "&layers=head&from=1&to=2&x=epoch", of="gradients")
    assert (head["layers"], head["series"][0]["x"]) == (["head"], [0.5, 1.0])
    assert_spread(head["series"][0], NORMS[1:3, :SEEDS, 1:])


def test_chosen_runs_alone(service: Serving, trained: str) -> None:
    body = answer(service, trained, "&runs=0,2,4")
    assert [spread["runs"] for spread in body["series"]] == [[0, 2], [4]]
    assert_spread(body["series"][0], LOSS[:, [0, 2]])
    alone = body["series"][1]
    assert alone["mean"] == alone["min"] == alone["max"] == LOSS[:, 4].tolist()
    assert (alone["standard_error"], alone["n"]) == ([None] * 5, [1] * 5)


def test_a_job_without_a_search_is_one_group_without_a_label(service: Serving) -> None:
    job = service.submit(selection={"seeds": 4})
    values = RNG.normal(size=(3, 4))
    service.train(job, {"loss/train": values})
    (spread,) = answer(service, job)["series"]
    assert (spread["values"], spread["runs"]) == ({}, [0, 1, 2, 3])
    assert_spread(spread, values)


def test_runs_of_different_folds_stay_apart(service: Serving) -> None:
    """Their validation rows are different ones: what differs between them is not the seed."""
    job = service.submit(selection={"seeds": 2, "folds": 2})
    runs = service.job(job)["runs"]
    values = RNG.normal(size=(3, runs))
    service.train(job, {"loss/train": values})
    found = answer(service, job)["series"]
    assert [(s["fold"], s["runs"]) for s in found[:2]] == [(0, [0, 1]), (1, [2, 3])]
    assert_spread(found[1], values[:, 2:4])


def test_over_folds_the_runs_of_all_folds_and_seeds_are_one_curve_and_the_refit_another(service: Serving) -> None:
    job = service.submit(selection={"seeds": 2, "folds": 2})
    values = RNG.normal(size=(3, service.job(job)["runs"]))
    service.train(job, {"loss/train": values})
    body = service.http.get(f"/v1/jobs/{job}/curves?over=folds").json()
    assert body["over"] == "folds"
    assert [(s["fold"], s["runs"]) for s in body["series"]] == [(None, [0, 1, 2, 3]), (None, [4])]
    assert_spread(body["series"][0], values[:, :4])
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{job}/curves?over=folds&format=csv").text)))
    np.testing.assert_allclose([float(row["mean"]) for row in rows[:3]], values[:, :4].mean(1), rtol=1e-13)


def test_a_run_that_has_stopped_drops_out_of_n(service: Serving) -> None:
    job = service.submit(selection={"seeds": 3})
    values = np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 9.0], [5.0, 7.0, 9.0], [6.0, 9.0, 9.0]])
    begin(service, job, {"loss/train": values}, counts=[4, 4, 1])
    (spread,) = answer(service, job)["series"]
    assert spread["n"] == [3, 2, 2, 2]
    assert spread["mean"] == [7 / 3, 2.0, 6.0, 7.5]
    assert spread["max"] == [4.0, 3.0, 7.0, 9.0]
    np.testing.assert_allclose(spread["standard_error"], [np.std([1, 2, 4], ddof=1) / np.sqrt(3), 1.0, 1.0, 1.5], rtol=1e-13)


def test_numbers_that_are_not_finite_are_counted_and_in_no_mean(service: Serving) -> None:
    job = service.submit(selection={"seeds": 3})
    values = np.array([[1.0, 2.0, 3.0], [1.0, NAN, np.inf], [NAN, NAN, NAN]])
    service.train(job, {"loss/train": values})
    (spread,) = answer(service, job)["series"]
    assert (spread["mean"], spread["n"], spread["nonfinite"], spread["first_nonfinite"]) == ([2.0, 1.0, None], [3, 1, 0], [0, 2, 3], 1)
    assert spread["standard_error"] == [np.sqrt(1 / 3), None, None]
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{job}/curves?over=seeds&format=csv").text)))
    assert [(row["mean"], row["standard_error"], row["nonfinite"]) for row in rows[1:]] == [("1.0", "", "2"), ("NaN", "", "3")]


def test_long_curves_are_aggregated_by_the_last_values_of_their_buckets(service: Serving) -> None:
    job = service.submit(selection={"seeds": 3})
    values = RNG.normal(size=(20_000, 3))
    begin(service, job, {"loss/train": values}, counts=[20_000, 20_000, 1000])
    (spread,) = answer(service, job, "&points=50")["series"]
    width = spread["x"][1] - spread["x"][0]
    assert (spread["exact"], width) == (False, 512)
    ends = np.append(np.array(spread["x"][1:]), 20_000) - 1
    assert spread["n"] == [3] + [2] * (len(ends) - 1)  # the third run stopped within the second bucket: its last value there is of an earlier step
    np.testing.assert_allclose(spread["mean"][1:], values[ends[1:], :2].mean(1), rtol=1e-13)
    np.testing.assert_allclose(spread["mean"][0], values[511].mean(), rtol=1e-13)
    assert "last of each 512 steps" in service.http.get(f"/v1/jobs/{job}/curves?over=seeds&points=50&format=text").text


def test_seeds_in_packs_that_are_not_equally_far_meet_at_the_wider_bucket(service: Serving) -> None:
    job = service.submit(selection={"seeds": 2})
    values = RNG.normal(size=(4096, 2))
    claim = service.claim(job)
    started = Started(runs=2, packs=[[0], [1]], steps=4096, steps_per_epoch=1, layers=["head"], series=["loss/train"], penalised={}, step_order=[], environment={})
    jobs.report(service.database, claim, [started, points({"loss/train": values[:, :1]}, [4096]), points({"loss/train": values[:100, 1:]}, [100], pack=1)])
    (spread,) = answer(service, job, "&points=128")["series"]
    width = spread["x"][1]
    whole = 100 // width
    assert (width, spread["n"]) == (32, [2] * whole + [1] * (4096 // width - whole))
    np.testing.assert_allclose(spread["mean"][:whole], values[width - 1 : 100 : width][:whole].mean(1), rtol=1e-13)
    np.testing.assert_allclose(spread["mean"][whole:], values[width - 1 :: width, 0][whole:], rtol=1e-13)


def test_every_face_has_the_same_numbers(service: Serving, trained: str) -> None:
    spread = answer(service, trained)["series"][1]
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{trained}/curves?over=seeds&format=csv").text)))
    mine = [row for row in rows if row["regularizers.0.lambda"] == "1.0"]
    assert len(rows) == 10
    assert [float(row["mean"]) for row in mine] == spread["mean"]
    assert [float(row["standard_error"]) for row in mine] == spread["standard_error"]
    assert {row["n"] for row in rows} == {"3"}
    lines = [json.loads(line) for line in service.http.get(f"/v1/jobs/{trained}/gradients?over=seeds&format=jsonl").text.splitlines()]
    assert len(lines) == 20
    np.testing.assert_allclose([line["mean"] for line in lines if line["layer"] == "head" and line["regularizers.0.lambda"] == 0.1], NORMS[:, :SEEDS, 1].mean(1))
    text = service.http.get(f"/v1/jobs/{trained}/curves?over=seeds&format=text").text.splitlines()
    assert text[0] == "loss/train [loss], regularizers.0.lambda = 0.1, mean over 3 runs"
    assert any(line.split() == ["step", "mean", "min", "max", "±", "s.e.", "n"] for line in text)
    assert "±" in service.http.get(f"/v1/jobs/{trained}/gradients?over=seeds&format=text").text
    waiting = service.submit(SWEEP)
    assert service.http.get(f"/v1/jobs/{waiting}/curves?over=seeds&format=text").text == f"{waiting}: no points yet\n"
    assert answer(service, waiting)["series"] == []


def test_what_cannot_be_aggregated_over_is_refused(service: Serving, trained: str) -> None:
    assert_problem(service.http.get(f"/v1/jobs/{trained}/curves?over=layers"), 422, path="over")


def begin(service: Serving, job: str, values: dict[str, np.ndarray], *, counts: list[int]) -> None:
    """Claims a job of one pack and reports points, of run r only the first counts[r]; the job goes on."""
    claim = service.claim(job)
    n, runs = next(iter(values.values())).shape[:2]
    started = Started(
        runs=runs, packs=[list(range(runs))], steps=n, steps_per_epoch=1, layers=["head"], series=list(values), penalised={}, step_order=[], environment={}
    )  # fmt: skip
    jobs.report(service.database, claim, [started, points(values, counts)])


def points(values: dict[str, np.ndarray], counts: list[int], *, pack: int = 0) -> Points:
    n = len(next(iter(values.values())))
    return Points(pack=pack, step=n, steps=dict.fromkeys(values, np.arange(n)), values=values, counts=dict.fromkeys(values, np.array(counts)))
