"""What a user does with a running house, over HTTP: data, jobs, curves, models, and a worker that dies."""

import io
import json
import os
import signal
from typing import Any

import numpy as np
import pytest
from doors import PATIENCE, House, eventually
from safetensors.numpy import load
from sklearn.datasets import load_digits, load_iris

LINEAR: dict[str, Any] = {
    "dataset": {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "optimizer": {"kind": "sgd", "lr": 0.05},
    "budget": {"epochs": 20, "batch_size": "all"},
}
ENDLESS = {**LINEAR, "budget": {"epochs": 5_000_000, "batch_size": "all"}, "diagnostics": "off"}
NET: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16, 8]},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "l1", "lambda": 1e-4}],
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "budget": {"epochs": 2, "batch_size": 64},
}


def test_a_csv_becomes_a_model(house: House) -> None:
    """As `curl --data-binary @prices.csv` sends it. The coefficients are those of numpy's least squares, in the units of the file."""
    draw = np.random.default_rng(1)
    rooms, area, age = draw.integers(1, 7, 60), draw.normal(90, 30, 60).round(1), draw.normal(40, 20, 60).round(2)
    price = (30 * rooms + 2.5 * area - 0.7 * age + 55 + draw.normal(0, 5, 60)).round(3)
    text = "rooms,price,area,age\n" + "".join(f"{r},{p},{a},{g}\n" for r, p, a, g in zip(rooms, price, area, age, strict=True))
    answer = house.http.post(
        "/v1/datasets",
        params={"format": "csv", "target": "price", "name": "prices"},
        content=text.encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 201, answer.text
    dataset = answer.json()
    assert (dataset["facts"]["rows"], dataset["facts"]["features"], dataset["facts"]["feature_names"]) == (60, 3, ["rooms", "area", "age"])
    spec = {**LINEAR, "dataset": {"kind": "upload", "id": dataset["id"], "standardize": True}, "optimizer": {"kind": "sgd", "lr": 0.5}, "dtype": "float64"}
    job = house.trained({**spec, "budget": {"epochs": 200, "batch_size": "all"}})

    expected = np.linalg.lstsq(np.c_[rooms, area, age, np.ones(60)], price, rcond=None)[0]
    found = job["result"]["coefficients"]
    assert found["features"] == ["rooms", "area", "age"]
    np.testing.assert_allclose([*found["weights"], found["intercept"]], expected, rtol=1e-9)

    assert house.http.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert house.http.get(f"/v1/datasets/{dataset['id']}").status_code == 404
    assert house.job(job["id"])["result"] == job["result"], "a trained job outlives its rows"


def test_uploaded_images_train_a_cnn(house: House) -> None:
    """The file says that a row is an image of 8 × 8: the spec need not."""
    (x, y), file = load_digits(return_X_y=True), io.BytesIO()
    np.savez(file, x=x[:300].reshape(-1, 8, 8) / 16, y=y[:300])
    answer = house.http.post("/v1/datasets", content=file.getvalue(), headers={"content-type": "application/x-npz"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["facts"]["image"] == [1, 8, 8]
    dataset = {"kind": "upload", "id": answer.json()["id"], "validation": 0.2, "split": "stratified"}
    job = house.trained(
        {**NET, "dataset": dataset, "model": {"kind": "cnn", "channels": [4], "hidden": [16]}, "optimizer": {"kind": "adam", "lr": 0.01}, "budget": {"epochs": 8, "batch_size": 16}}
    )
    assert job["metrics"]["accuracy/val"] > 0.3


def test_a_job_is_found_again(house: House) -> None:
    ids = [house.submit({**LINEAR, "name": f"one of three: {i}", "metadata": {"team": "search", "number": str(i)}})["id"] for i in range(3)]
    for job in ids:
        assert house.until(job)["state"] == "succeeded"
    pages, cursor = [], None
    while True:
        page = house.http.get("/v1/jobs", params={"metadata.team": "search", "limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        pages.append([job["id"] for job in page["jobs"]])
        assert all("spec" not in job and job["terminal"] for job in page["jobs"])
        if (cursor := page["next_cursor"]) is None:
            break
    assert pages == [[ids[2], ids[1]], [ids[0]]]
    assert [job["id"] for job in house.http.get("/v1/jobs", params={"name": "one of three: 1"}).json()["jobs"]] == [ids[1]]
    assert house.http.get("/v1/jobs", params={"metadata.team": "search", "state": "queued,running"}).json()["jobs"] == []


def test_cancel_delete_retry(house: House) -> None:
    running = house.moving(ENDLESS)
    waiting = house.submit(LINEAR)["id"]
    assert house.http.delete(f"/v1/jobs/{running}").status_code == 409
    assert house.http.post(f"/v1/jobs/{running}/retry").status_code == 409
    assert house.http.post(f"/v1/jobs/{waiting}/cancel").json()["state"] == "cancelled", "a job that waits is cancelled at once"

    asked = house.http.post(f"/v1/jobs/{running}/cancel").json()
    assert asked["state"] == "cancelled" or asked["intent"] == "cancelling"
    ended = house.until(running)
    assert (ended["state"], ended["intent"]) == ("cancelled", None)
    steps = list(house.curve(running, "loss/train"))
    assert steps == list(range(len(steps))), "the curve is kept, up to where it was cancelled"
    assert house.http.post(f"/v1/jobs/{running}/cancel").json() == ended, "to cancel again changes nothing"
    assert house.http.get(f"/v1/jobs/{running}/model").status_code == 409

    again = house.http.post(f"/v1/jobs/{waiting}/retry")
    assert (again.status_code, again.json()["retry_of"]) == (201, waiting)
    assert house.until(again.json()["id"])["state"] == "succeeded"

    assert house.http.delete(f"/v1/jobs/{running}").status_code == 204
    for path in ("", "/curves", "/runs", "/model"):
        assert house.http.get(f"/v1/jobs/{running}{path}").status_code == 404
    assert not (house.data / "jobs" / running).exists()


def test_the_job_says_what_it_is_and_how_it_went(house: House) -> None:
    submitted = house.submit({**NET, "name": "a net"})
    assert {name: submitted[name] for name in ("state", "terminal", "reason", "attempt", "result", "error", "finished_at")} == {
        "state": "queued", "terminal": False, "reason": None, "attempt": 0, "result": None, "error": None, "finished_at": None,
    }  # fmt: skip
    assert submitted["spec"]["optimizer"] == {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "schedule": {"kind": "constant", "warmup_steps": 0}}
    assert (submitted["origin"]["optimizer.lr"], submitted["origin"]["optimizer.nesterov"]) == ("given", "default")
    job = house.until(submitted["id"])
    assert job["progress"] == {"step": 46, "steps": 46, "epoch": 2, "runs": 1, "eta_seconds": 0.0}  # ⌈1438/64⌉ = 23 steps × 2 epochs
    assert job["metrics"].keys() >= {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "penalty/l1", "objective/train"}
    assert job["result"]["step_order"][0] == "gather"
    assert job["result"]["environment"].keys() >= {"device", "torch"}
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    for name, link in job["links"].items():
        assert house.http.get(link).status_code == 200, name


def read_of(updates: int) -> list[int]:
    """The updates in which `standard` reads the layers: the first 32, every 8th up to 256, and every 32nd."""
    return [t for t in range(updates) if t < 32 or t % 32 == 0 or (t < 256 and t % 8 == 0)]


def test_curves_and_gradients_have_the_documented_shape(house: House) -> None:
    job = house.trained(NET)["id"]
    curves = house.http.get(f"/v1/jobs/{job}/curves").json()
    assert curves["job"] == job
    assert curves["x"] == "step"
    names = {curve["series"] for curve in curves["series"]}
    assert names >= {"loss/train", "loss/val", "accuracy/val", "objective/train", "penalty/l1", "learning_rate", "gradient/total"}
    for curve in curves["series"]:
        assert (curve["run"], curve["exact"]) == (0, True)
        each = {"gradient/total": read_of(46), "loss/val": [0, 23, 46], "accuracy/val": [0, 23, 46]}
        assert curve["x"] == each.get(curve["series"], list(range(46)))
        assert len(curve["y"]) == len(curve["x"])
        assert all(isinstance(y, float) for y in curve["y"])

    gradients = house.http.get(f"/v1/jobs/{job}/gradients").json()
    assert gradients["layers"] == ["layers.0", "layers.1", "head"]
    names = {curve["series"] for curve in gradients["series"]}
    assert names >= {"gradient/norm", "gradient/rms", "signal/backward", "signal/forward", "weight/norm", "update/ratio", "penalty_gradient/norm", "penalty_gradient/cosine"}
    for curve in gradients["series"]:
        assert curve["x"] == ([0, 46] if curve["series"] == "activation/silent" else read_of(46))
        assert np.array(curve["y"], float).shape == (len(curve["x"]), 3)
    total = next(c["y"] for c in curves["series"] if c["series"] == "gradient/total")
    layers = np.array(next(c["y"] for c in gradients["series"] if c["series"] == "gradient/norm"))
    assert (np.sqrt((layers**2).sum(1)) <= np.array(total) * (1 + 1e-6)).all(), "the weights' gradients are a part of the whole"

    one = house.http.get(f"/v1/jobs/{job}/gradients", params={"series": "weight/norm", "layers": "head", "from": 10, "to": 12}).json()
    assert (one["layers"], one["series"][0]["x"], np.shape(one["series"][0]["y"])) == (["head"], [10, 11, 12], (3, 1))


def test_how_far_back_a_recurrent_net_is_told_what_to_change(house: House) -> None:
    """The gradient at each time step, once an epoch, beside what Ω costs: the file has the tensors by the names that the reference gives."""
    spec = {
        **NET, "dataset": {"kind": "temporal_order", "rows": 60, "length": 12}, "model": {"kind": "rnn", "hidden": [6, 5]},
        "regularizers": [{"kind": "vanishing_gradient", "lambda": 0.1}], "clip": {"kind": "global_norm", "max": 1.0}, "budget": {"epochs": 3, "batch_size": 20},
    }  # fmt: skip
    job = house.trained(spec)["id"]
    found = house.http.get(f"/v1/jobs/{job}/gradients", params={"series": "signal/time"}).json()
    assert found["layers"] == [f"layers.{layer}.t{step}" for layer in range(2) for step in range(1, 13)]
    assert found["series"][0]["x"] == [0, 3, 6]
    assert np.array(found["series"][0]["y"], float).shape == (3, 24)
    last = house.http.get(f"/v1/jobs/{job}/gradients", params={"series": "signal/time", "layers": "layers.1.t12", "format": "csv"}).text.splitlines()
    assert len(last) == 4
    layers = house.http.get(f"/v1/jobs/{job}/gradients", params={"series": "weight/norm"}).json()["layers"]
    assert layers == ["layers.0.input", "layers.0.recurrent", "layers.1.input", "layers.1.recurrent", "head"]
    assert house.http.get(f"/v1/jobs/{job}/curves", params={"series": "penalty/vanishing_gradient"}).json()["series"][0]["y"][0] > 0
    model = load(house.http.get(f"/v1/jobs/{job}/model").content)
    assert model["layers.1.recurrent.weight"].shape == (1, 5, 5)


def test_a_long_curve_comes_in_buckets_that_lose_nothing(house: House) -> None:
    job = house.trained({**LINEAR, "budget": {"epochs": 3000, "batch_size": "all"}, "diagnostics": "off"})["id"]
    exact = np.array(list(house.curve(job, "loss/train").values()))
    (short,) = house.http.get(f"/v1/jobs/{job}/curves", params={"series": "loss/train", "points": 500}).json()["series"]
    assert not short["exact"]
    assert 3 <= len(short["x"]) <= 500
    assert sum(short["count"]) == 3000
    ends = [*short["x"][1:], 3000]
    for i, (first, end) in enumerate(zip(short["x"], ends, strict=True)):
        bucket = exact[first:end]
        assert (short["count"][i], short["nonfinite"][i]) == (len(bucket), 0)
        assert (short["min"][i], short["max"][i], short["last"][i]) == (bucket.min(), bucket.max(), bucket[-1])


def test_the_faces_of_a_curve(house: House) -> None:
    job = house.trained(LINEAR)["id"]
    url = f"/v1/jobs/{job}/curves"
    text = house.http.get(url, params={"series": "loss/train", "format": "text"}).text
    assert "loss/train" in text
    rows = house.http.get(url, params={"series": "loss/train"}, headers={"accept": "text/csv"}).text.splitlines()
    assert rows[0].startswith("series,run,layer,step,epoch,value")
    assert len(rows) == 21
    lines = [json.loads(line) for line in house.http.get(url, params={"series": "loss/train", "format": "jsonl"}).text.splitlines()]
    assert [line["value"] for line in lines] == list(house.curve(job, "loss/train").values())


def test_a_sweep_is_many_runs(house: House) -> None:
    spec = {**LINEAR, "model": {"kind": "linear", "init": {"kind": "normal", "std": 1}}, "regularizers": [{"kind": "l2", "lambda": {"values": [0, 0.1, 1, 10]}}]}
    job = house.trained({**spec, "selection": {"seeds": 2}})
    assert job["runs"] == 8
    runs = house.runs(job["id"])
    assert [(run["index"], run["values"], run["seed"]) for run in runs] == [
        (2 * i + seed, {"regularizers.0.lambda": lam}, seed) for i, lam in enumerate([0, 0.1, 1, 10]) for seed in (0, 1)
    ]
    assert all((run["state"], run["steps"], run["stop_reason"]) == ("succeeded", 20, "budget") for run in runs)
    losses = [run["metrics"]["loss/train"] for run in house.runs(job["id"], sort="-loss/train")]
    assert losses == sorted(losses, reverse=True)
    page = house.http.get(f"/v1/jobs/{job['id']}/runs", params={"limit": 3, "sort": "-regularizers.0.lambda"}).json()
    rest = house.http.get(f"/v1/jobs/{job['id']}/runs", params={"limit": 5, "sort": "-regularizers.0.lambda", "cursor": page["next_cursor"]}).json()
    assert sorted(run["index"] for run in page["runs"] + rest["runs"]) == list(range(8))
    curves = house.http.get(f"/v1/jobs/{job['id']}/curves", params={"series": "loss/train", "runs": "1,4-5"}).json()["series"]
    assert [curve["run"] for curve in curves] == [1, 4, 5]


def test_the_model_file_predicts_what_was_reported(house: House) -> None:
    """The numbers of the file, in numpy, on the raw rows, with the scaling in its metadata, give the loss and accuracy in the job."""
    x, y = load_iris(return_X_y=True)
    spec = {
        "dataset": {"kind": "inline", "x": x.tolist(), "y": y.tolist(), "standardize": True},
        "model": {"kind": "mlp", "hidden": [8], "activation": "tanh"},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "adam", "lr": 0.01},
        "budget": {"epochs": 20, "batch_size": 16},
        "selection": {"seeds": 3},
        "dtype": "float64",
    }
    job = house.trained(spec)["id"]
    answer = house.http.get(f"/v1/jobs/{job}/model")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job}.safetensors"'
    tensors, about = load(answer.content), metadata(answer.content)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"layers.0.weight": (3, 8, 4), "layers.0.bias": (3, 8), "head.weight": (3, 3, 8), "head.bias": (3, 3)}
    scaling = json.loads(about["preprocess"])
    scaled = (x - np.array(scaling["mean"])) / np.array(scaling["scale"])
    for run in house.runs(job):
        w = {name: tensor[run["index"]] for name, tensor in tensors.items()}
        logits = np.tanh(scaled @ w["layers.0.weight"].T + w["layers.0.bias"]) @ w["head.weight"].T + w["head.bias"]
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
        assert run["metrics"]["loss/train"] == pytest.approx(losses.mean(), rel=1e-12)
        assert run["metrics"]["accuracy/train"] == pytest.approx((logits.argmax(1) == y).mean(), rel=1e-12)


def metadata(file: bytes) -> dict[str, str]:
    """Of a safetensors file: eight bytes with the length of a JSON header."""
    return json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])["__metadata__"]


def test_a_killed_worker_costs_nothing_but_time(house: House) -> None:
    """kill -9 in mid-run, after a checkpoint: the next worker finishes the job, and its curves have no seam."""
    ended = struck(house, {**NET, "budget": {"epochs": 120, "batch_size": 64}, "model": {"kind": "mlp", "hidden": [32]}})
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2), ended["error"]
    job, steps = ended["id"], 120 * 23
    for kind, series in (("curves", "loss/train"), ("curves", "penalty/l1"), ("gradients", "gradient/norm"), ("gradients", "update/ratio")):
        (curve,) = house.http.get(f"/v1/jobs/{job}/{kind}", params={"series": series, "points": 100_000}).json()["series"]
        assert curve["exact"]
        assert curve["x"] == (list(range(steps)) if kind == "curves" else read_of(steps)), series
    assert list(house.curve(job, "loss/val")) == list(range(0, steps + 1, 23))


def struck(house: House, spec: dict[str, Any]) -> dict[str, Any]:
    """A job whose worker was killed after a checkpoint, at its end. One that ended before it was hit shows nothing: then another."""
    for _ in range(5):
        job = house.submit(spec)["id"]
        eventually(lambda job=job: list((house.data / "jobs" / job).glob("*/checkpoint-*")) or house.job(job)["terminal"], "there was no checkpoint")
        os.kill(house.worker.pid, signal.SIGKILL)
        house.worker.wait(PATIENCE)
        house.new_worker()
        ended = house.until(job)
        if ended["attempt"] > 1:
            return ended
    raise AssertionError("the jobs ended before their worker was killed")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"optimizer": {"kind": "sgd", "lr": -0.1}}, "optimizer.lr"),
        ({"optimizer": {"kind": "adamw", "lr": 0.1}}, "optimizer.kind"),
        ({"regularizers": [{"kind": "l2", "lambda": {"values": [0.1, -1]}}]}, "regularizers.0.lambda.values.1"),
        ({"loss": {"kind": "cross_entropy"}, "dataset": {"kind": "diabetes"}}, "loss.kind"),
        ({"dataset": {"kind": "upload", "id": "ds_01JD3QZ7M8XK5T2V9R4C6B1N0P"}}, "dataset.id"),
        ({"lambda": 1}, "lambda"),
    ],
)
def test_a_wrong_spec_says_where_and_changes_nothing(house: House, change: dict[str, Any], path: str) -> None:
    before = everything(house)
    answer = house.http.post("/v1/jobs", json={**LINEAR, **change})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["path"] == path
    assert error["message"]
    assert error["hint"]
    assert everything(house) == before


def everything(house: House) -> tuple[list[str], list[str], set[str]]:
    """The jobs, the datasets, and the files of jobs, datasets and unfinished uploads."""
    jobs = [job["id"] for job in house.http.get("/v1/jobs", params={"limit": 500}).json()["jobs"]]
    datasets = [dataset["id"] for dataset in house.http.get("/v1/datasets", params={"limit": 500}).json()["datasets"]]
    return jobs, datasets, {str(path) for folder in ("jobs", "datasets", "incoming") for path in (house.data / folder).rglob("*")}


def test_the_same_submission_twice_is_one_job(house: House) -> None:
    headers = {"Idempotency-Key": "acceptance-1"}
    first, second = (house.http.post("/v1/jobs", json=LINEAR, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    other = house.http.post("/v1/jobs", json={**LINEAR, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["errors"][0]["path"]) == (422, "Idempotency-Key")
    house.until(first.json()["id"])


def test_a_wait_ends_when_the_loss_is_low_enough(house: House) -> None:
    job = house.submit(ENDLESS)["id"]
    seen = house.until(job, "loss/train:lt:1", met=lambda seen: seen["metrics"].get("loss/train", 2) < 1)
    assert seen["state"] == "running"
    house.http.post(f"/v1/jobs/{job}/cancel")
    assert house.until(job)["state"] == "cancelled"


def test_what_the_house_says_about_itself(house: House) -> None:
    assert house.http.get("/healthz").status_code == 200
    assert house.http.get("/readyz").status_code == 200
    eventually(lambda: house.http.get("/v1/workers").json()["workers"], "the worker has not registered")
    assert {worker["device"] for worker in house.http.get("/v1/workers").json()["workers"]} == {"cpu"}
    assert house.http.get("/v1/schema/job").json()["properties"].keys() >= NET.keys()
    assert "l1" in json.dumps(house.http.get("/v1/catalog").json())
    assert "http" not in "".join(line for line in house.http.get("/docs").text.splitlines() if "src=" in line or "href=" in line), "the docs page needs no internet"
