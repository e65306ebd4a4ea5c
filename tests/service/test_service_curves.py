"""/curves and /gradients: the numbers that were reported, in every form, always valid JSON."""

import csv
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from serving import Serving, assert_problem

from regtrain.contract.series import BINS

NAN, INF = float("nan"), float("inf")
LOSS = np.array([[2.0, 4.0], [1.0, 3.0], [0.5, 2.5], [0.25, 2.25]])
NORMS = np.arange(4 * 2 * 2, dtype=np.float64).reshape(4, 2, 2) / 8


@pytest.fixture(scope="module")
def trained(service: Serving) -> str:
    job = service.submit(regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1]}}])
    service.train(job, {"loss/train": LOSS, "penalty/l2": LOSS / 10, "gradient/norm": NORMS}, layers=["layers.0", "head"], steps_per_epoch=2)
    return job


def strict(answer: httpx.Response) -> Any:
    """The body, which must be JSON in the strict sense."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    assert answer.status_code == 200, answer.text
    return json.loads(answer.content, parse_constant=refuse)


def test_curves_are_what_was_reported(service: Serving, trained: str) -> None:
    body = strict(service.http.get(f"/v1/jobs/{trained}/curves"))
    assert (body["job"], body["x"], body["recorded"], body["layers"]) == (trained, "step", ["loss/train", "penalty/l2"], None)
    assert [(c["series"], c["run"]) for c in body["series"]] == [("loss/train", 0), ("loss/train", 1), ("penalty/l2", 0), ("penalty/l2", 1)]
    first = body["series"][1]
    assert first == {"series": "loss/train", "run": 1, "unit": "loss", "exact": True, "x": [0, 1, 2, 3], "y": [4.0, 3.0, 2.5, 2.25], "nonfinite": [], "first_nonfinite": None}


def test_gradients_are_one_number_a_layer(service: Serving, trained: str) -> None:
    body = strict(service.http.get(f"/v1/jobs/{trained}/gradients?series=gradient/norm&runs=1"))
    assert body["layers"] == ["layers.0", "head"]
    assert body["series"][0]["y"] == NORMS[:, 1, :].tolist()
    head = strict(service.http.get(f"/v1/jobs/{trained}/gradients?layers=head&runs=0"))
    assert head["layers"] == ["head"]
    assert head["series"][0]["y"] == NORMS[:, 0, 1:].tolist()


def test_histograms_are_counts_a_layer_and_bin(service: Serving) -> None:
    counts = np.zeros((3, 2, 2, len(BINS)))
    counts[:, 1, :, BINS.index("-2^-3")] = [[5, 6], [7, 8], [9, 10]]
    counts[2, 1, 0, BINS.index("nonfinite")] = 2
    job = service.submit(regularizers=[{"kind": "l2", "lambda": {"values": [0.1, 1]}}])
    service.train(job, {"histogram/gradient": counts.reshape(3, 2, -1), "gradient/norm": NORMS}, layers=["layers.0", "head"])
    body = strict(service.http.get(f"/v1/jobs/{job}/gradients?series=histogram/gradient&runs=1"))
    assert (body["layers"], body["bins"], body["recorded"]) == (["layers.0", "head"], list(BINS), ["histogram/gradient"])
    assert body["series"][0]["y"] == counts[:, 1].tolist()
    head = strict(service.http.get(f"/v1/jobs/{job}/gradients?series=histogram/gradient&runs=1&layers=head"))
    assert (head["layers"], head["series"][0]["y"]) == (["head"], counts[:, 1, 1:].tolist())
    few = strict(service.http.get(f"/v1/jobs/{job}/gradients?series=histogram/gradient&runs=1&points=1"))["series"][0]
    assert (few["exact"], few["last"], few["count"]) == (False, [counts[2, 1].tolist()], [3])
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{job}/gradients?series=histogram/gradient&runs=1&format=csv").text)))
    assert [(row["layer"], row["step"], row["value"]) for row in rows if float(row["value"])][:3] == [
        ("layers.0.-2^-3", "0", "5.0"),
        ("head.-2^-3", "0", "6.0"),
        ("layers.0.-2^-3", "1", "7.0"),
    ]
    text = service.http.get(f"/v1/jobs/{job}/gradients?series=histogram/gradient&runs=1&format=text").text
    assert "head.-2^-3" in text
    assert "2^8" not in text
    assert strict(service.http.get(f"/v1/jobs/{job}/gradients"))["recorded"] == ["gradient/norm"]


def test_histograms_that_cannot_be_shown(service: Serving, trained: str) -> None:
    url = f"/v1/jobs/{trained}/gradients?series=histogram/weight"
    assert strict(service.http.get(url))["series"] == []
    assert_problem(service.http.get(f"{url}&over=seeds"), 422, path="over")
    assert_problem(service.http.get(f"{url},gradient/norm"), 422, path="series")
    assert_problem(service.http.get(f"{url}&layers=nobody"), 422, path="layers")
    assert_problem(service.http.get(f"/v1/jobs/{trained}/curves?series=histogram/weight"), 422, path="series")


def test_a_stretch_of_some_runs_over_epochs(service: Serving, trained: str) -> None:
    body = strict(service.http.get(f"/v1/jobs/{trained}/curves?series=loss/train&runs=1&from=1&to=2&x=epoch"))
    assert [(c["run"], c["x"], c["y"]) for c in body["series"]] == [(1, [0.5, 1.0], [3.0, 2.5])]
    both = strict(service.http.get(f"/v1/jobs/{trained}/curves?series=loss/train&runs=0-1&from=3"))
    assert [(c["run"], c["y"]) for c in both["series"]] == [(0, [0.25]), (1, [2.25])]
    assert strict(service.http.get(f"/v1/jobs/{trained}/curves?series=loss/val"))["series"] == []


def test_numbers_that_are_not_finite_are_null_and_named(service: Serving) -> None:
    job = service.submit()
    loss = np.ones((10, 1))
    loss[[7, 8, 9], 0] = NAN, INF, -INF
    norms = np.ones((10, 1, 2))
    norms[7, 0, 1] = NAN
    service.train(job, {"loss/train": loss, "gradient/norm": norms}, layers=["layers.0", "head"])
    curve = strict(service.http.get(f"/v1/jobs/{job}/curves"))["series"][0]
    assert curve["y"] == [1.0] * 7 + [None] * 3
    assert curve["nonfinite"] == [{"x": 7, "value": "NaN"}, {"x": 8, "value": "Infinity"}, {"x": 9, "value": "-Infinity"}]
    assert curve["first_nonfinite"] == 7
    layers = strict(service.http.get(f"/v1/jobs/{job}/gradients"))["series"][0]
    assert layers["y"][7] == [1.0, None]
    assert layers["nonfinite"] == [{"x": 7, "value": "NaN", "layer": "head"}]
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{job}/curves?format=csv").text)))
    assert [row["value"] for row in rows[6:]] == ["1.0", "NaN", "Infinity", "-Infinity"]
    assert [row["nonfinite"] for row in rows[6:]] == ["0", "1", "1", "1"]
    lines = [strict(httpx.Response(200, text=line)) for line in service.http.get(f"/v1/jobs/{job}/curves?format=jsonl").text.splitlines()]
    assert (lines[7]["value"], lines[7]["nonfinite_value"]["value"]) == (None, "NaN")
    assert "step 7" in service.http.get(f"/v1/jobs/{job}/curves?format=text").text
    assert strict(service.http.get(f"/v1/jobs/{job}/runs"))["runs"]
    assert strict(service.http.get(f"/v1/jobs/{job}"))["terminal"]


def test_a_long_curve_comes_in_buckets_that_equal_numpy(service: Serving) -> None:
    job = service.submit()
    y = np.random.default_rng(0).normal(size=20_000)
    y[4321] = NAN
    service.train(job, {"loss/train": y[:, None]})
    curve = strict(service.http.get(f"/v1/jobs/{job}/curves?points=50"))["series"][0]
    assert curve["exact"] is False
    assert 25 <= len(curve["x"]) <= 50
    edges = [*curve["x"], len(y)]
    for i in range(len(curve["x"])):
        stretch = y[edges[i] : edges[i + 1]]
        finite = stretch[np.isfinite(stretch)]
        assert (curve["min"][i], curve["max"][i], curve["last"][i]) == (finite.min(), finite.max(), stretch[-1])
        assert (curve["count"][i], curve["nonfinite"][i]) == (len(stretch), len(stretch) - len(finite))
    assert curve["first_nonfinite"] == 4321
    assert strict(service.http.get(f"/v1/jobs/{job}/curves?points=50&from=4000&to=4020"))["series"][0]["exact"] is True
    everything = strict(service.http.get(f"/v1/jobs/{job}/curves?points=20000"))["series"][0]
    assert everything["y"] == [None if i == 4321 else value for i, value in enumerate(y.tolist())]
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{job}/curves?points=50&format=csv").text)))
    assert [float(row["max"]) for row in rows] == curve["max"]
    assert [int(row["count"]) for row in rows] == curve["count"]
    assert "last of each" in service.http.get(f"/v1/jobs/{job}/curves?points=50&format=text").text


def test_a_bucket_without_a_finite_number_is_null(service: Serving) -> None:
    job = service.submit()
    service.train(job, {"loss/train": np.full((2000, 1), NAN)})
    curve = strict(service.http.get(f"/v1/jobs/{job}/curves?points=10"))["series"][0]
    assert set(curve["min"] + curve["max"] + curve["last"]) == {None}
    assert curve["count"] == curve["nonfinite"]
    assert "no finite points" in service.http.get(f"/v1/jobs/{job}/curves?points=10&format=text").text


def test_the_form_follows_format_and_accept(service: Serving, trained: str) -> None:
    def kind(query: str = "", accept: str = "*/*") -> str:
        answer = service.http.get(f"/v1/jobs/{trained}/curves{query}", headers={"Accept": accept})
        assert answer.headers["vary"] == "Accept"
        return answer.headers["content-type"].partition(";")[0]

    assert kind() == "application/json"
    assert kind(accept="text/csv") == "text/csv"
    assert kind(accept="text/html,application/xhtml+xml,*/*;q=0.8") == "application/json"
    assert kind(accept="text/plain;q=0.5, application/x-ndjson") == "application/jsonl"
    assert kind(accept="text/csv;q=0") == "application/json"
    assert kind(accept="text/csv;q=nonsense") == "application/json"
    assert kind("?format=text", accept="text/csv") == "text/plain"


def test_csv_has_one_row_a_point_and_layer(service: Serving, trained: str) -> None:
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"/v1/jobs/{trained}/gradients?format=csv&runs=1").text)))
    assert [(row["layer"], int(row["step"]), float(row["epoch"]), float(row["value"])) for row in rows[:3]] == [
        ("layers.0", 0, 0.0, 0.25),
        ("head", 0, 0.0, 0.375),
        ("layers.0", 1, 0.5, 0.75),
    ]
    assert len(rows) == 8


def test_text_can_be_read_in_a_terminal(service: Serving, trained: str) -> None:
    text = service.http.get(f"/v1/jobs/{trained}/curves?series=loss/train&runs=0&format=text").text
    lines = text.splitlines()
    assert lines[0] == "loss/train [loss], run 0"
    assert sum(line.count("•") for line in lines) == 4
    assert lines[1].endswith("│•")
    assert lines[1].strip().startswith("2 ")
    assert "log scale" in text
    assert lines[-1].split() == ["value", "2", "1", "0.5", "0.25"]
    assert max(map(len, lines)) <= 100
    layers = service.http.get(f"/v1/jobs/{trained}/gradients?runs=0&format=text").text.splitlines()
    assert layers[1].split() == ["step", "layers.0", "head"]
    assert layers[2].split() == ["0", "0", "0.125"]
    waiting = service.submit()
    assert service.http.get(f"/v1/jobs/{waiting}/curves?format=text").text == f"{waiting}: no points yet\n"


@pytest.mark.parametrize(
    ("query", "path", "words"),
    [
        ("series=loss/trian", "series", "did you mean 'loss/train'"),
        ("series=gradient/norm", "series", "/gradients"),
        ("series=", "series", "leave series out"),
        ("runs=2", "runs", "0 to 1"),
        ("runs=a", "runs", "runs=0-7"),
        ("runs=1-0", "runs", "runs=0-7"),
        ("runs=-1", "runs", "runs=0-7"),
        ("runs=99999999999999999999", "runs", "runs=0-7"),
        ("from=3&to=1", "from", "greater"),
        ("from=-1", "from", "/docs"),
        ("points=0", "points", "/docs"),
        ("points=1000000&series=loss/train,penalty/l2", "points", "fewer points"),
        ("x=hours", "x", "/docs"),
        ("format=xml", "format", "/docs"),
        ("layers=head", "layers", "allowed"),
        ("serie=loss/train", "serie", "did you mean 'series'"),
        ("runs=0&runs=1", "runs", "commas"),
    ],
)
def test_a_wrong_question_is_refused_with_its_place(service: Serving, trained: str, query: str, path: str, words: str) -> None:
    body = assert_problem(service.http.get(f"/v1/jobs/{trained}/curves?{query}"), 422, path=path)
    assert words in next(error["hint"] for error in body["errors"] if error["path"] == path)


def test_time_steps_of_recurrent_layers_are_read_like_layers(service: Serving) -> None:
    job, steps = service.submit(), np.arange(2.0 * 5).reshape(2, 1, 5)
    service.train(job, {"signal/time": steps, "gradient/norm": np.ones((2, 1, 2))}, layers=["layers.0.input", "head"], times={"layers.0": 3, "layers.1": 2})
    asked = f"/v1/jobs/{job}/gradients"
    body = strict(service.http.get(f"{asked}?series=signal/time"))
    assert (body["layers"], body["recorded"]) == (["layers.0.t1", "layers.0.t2", "layers.0.t3", "layers.1.t1", "layers.1.t2"], ["signal/time"])
    assert body["series"][0]["y"] == steps[:, 0].tolist()
    some = strict(service.http.get(f"{asked}?series=signal/time&layers=layers.1.t2,layers.0.t1"))
    assert (some["layers"], some["series"][0]["y"]) == (["layers.1.t2", "layers.0.t1"], [[4.0, 0.0], [9.0, 5.0]])
    table = service.http.get(f"{asked}?series=signal/time&layers=layers.0.t3&format=csv").text.splitlines()
    assert table[1].startswith("signal/time,0,layers.0.t3,0,0.0,2.0")
    assert strict(service.http.get(asked))["recorded"] == ["gradient/norm"]
    refused = assert_problem(service.http.get(f"{asked}?series=signal/time&layers=layers.0.t4"), 422, path="layers")
    assert "layers.0.t" in refused["errors"][0]["hint"]
    for beside in ("signal/time,gradient/norm", "gradient/norm,signal/time"):
        both = assert_problem(service.http.get(f"{asked}?series={beside}"), 422, path="series")
        assert (both["errors"][0]["message"], both["errors"][0]["hint"]) == (
            "signal/time has one number a time step",
            "read it at /v1/jobs/{id}/gradients, without others beside it",
        )
    assert_problem(service.http.get(f"/v1/jobs/{job}/curves?series=signal/time"), 422, path="series")


def test_layers_and_shapes_are_checked_for_gradients_too(service: Serving, trained: str) -> None:
    body = assert_problem(service.http.get(f"/v1/jobs/{trained}/gradients?layers=haed"), 422, path="layers")
    assert "did you mean 'head'" in body["errors"][0]["hint"]
    assert_problem(service.http.get(f"/v1/jobs/{trained}/gradients?series=loss/train"), 422, path="series")
    assert_problem(service.http.get("/v1/jobs/job_nobody/gradients"), 404)


def test_more_curves_than_an_answer_may_have_are_refused_with_a_way_out(service: Serving) -> None:
    job = service.submit(regularizers=[{"kind": "l2", "lambda": {"linear": [0.1, 1], "points": 4096}}])
    layers = [f"layers.{i}" for i in range(30)]
    service.train(job, {"gradient/norm": np.ones((1, 4096, 30), np.float32)}, layers=layers)
    body = assert_problem(service.http.get(f"/v1/jobs/{job}/gradients"), 422, path="runs")
    assert "runs=0-7" in body["errors"][0]["hint"]
    assert len(strict(service.http.get(f"/v1/jobs/{job}/gradients?runs=0-7"))["series"]) == 8
