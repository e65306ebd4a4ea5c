"""/v1/plan: what a submission would come to, and nothing stored."""

import json
from typing import Any

import numpy as np
import pytest
from serving import LINEAR, Serving, assert_problem
from sqlalchemy import func, select

from regtrain.contract.events import Finished, Points, RunFinished, Started
from regtrain.contract.states import RunState, StopReason
from regtrain.store import files, jobs, rates, tables

NET: dict[str, Any] = {
    "dataset": {"kind": "digits", "test": 0.2, "validation": 0.1},
    "model": {"kind": "mlp", "hidden": [32], "normalization": {"kind": "batch"}},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "l2", "lambda": {"log": [1e-5, 1e-1], "points": 5}}],
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 3, "batch_size": 64},
    "selection": {"seeds": 2},
}


def planned(service: Serving, spec: dict[str, Any]) -> dict[str, Any]:
    answer = service.http.post("/v1/plan", json=spec)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_plan_counts_what_a_submission_makes(service: Serving) -> None:
    plan = planned(service, NET)
    assert (plan["runs"], plan["packs"]) == (10, {"cpu": [10], "cuda": [10]})
    assert plan["rows"] == {"train": 1294, "val": 144, "test": 359}  # 1797 − 359, of which a tenth
    assert (plan["steps_per_epoch"], plan["steps"]) == (21, 63)  # ⌈1294/64⌉
    assert plan["parameters"] == 64 * 32 + 3 * 32 + 32 * 10 + 10  # weights, bias, γ, β; head
    assert plan["layers"] == [{"name": "layers.0", "output": [32]}, {"name": "head", "output": [10]}]
    assert plan["run_bytes"] >= 4 * (6 * plan["parameters"] + 3 * 64 * (32 + 10))
    assert plan["pack_bytes"]["cpu"] == 10 * plan["run_bytes"]
    assert plan["rows_bytes"] == 4 * 1797 * 65
    assert plan["expected_seconds"] == {"cpu": None, "cuda": None}
    job = service.job(service.submit(NET))
    for name in ("spec", "origin", "warnings", "runs"):
        assert plan[name] == job[name], name
    assert [warning["path"] for warning in plan["warnings"]] == ["regularizers.0"]


def test_a_plan_predicts_the_signal(service: Serving) -> None:
    deep = {**NET, "model": {"kind": "mlp", "hidden": [128] * 34, "bias": False, "init": {"kind": "xavier_normal"}}, "dataset": {"kind": "digits", "standardize": True}}
    found = planned(service, deep)
    signal = found["signal"]
    assert signal["gradient_ratio"] == pytest.approx(2 ** (-33 / 2))  # relu halves ‖δ‖² in each of 33 steps
    assert [layer["name"] for layer in signal["layers"]] == [layer["name"] for layer in found["layers"]]
    assert (signal["chi"], signal["initial_loss"]) == (pytest.approx(0.5), pytest.approx(np.log(10), abs=1e-6))
    best = signal["remedies"][0]
    assert best == {"set": {"model.init": {"kind": "he_normal"}}, "gradient_ratio": pytest.approx(1)}
    assert "vanish" in next(warning["message"] for warning in found["warnings"] if warning["path"] == "model.activation")
    cured = planned(service, {**deep, "model": {**deep["model"], "init": best["set"]["model.init"]}})
    assert cured["signal"]["gradient_ratio"] == pytest.approx(best["gradient_ratio"])
    assert [warning for warning in cured["warnings"] if warning["path"] == "model.activation"] == []


def test_packs_are_those_that_memory_makes(service: Serving) -> None:
    many = planned(service, {**NET, "regularizers": [{"kind": "l2", "lambda": {"linear": [0.1, 1], "points": 600}}], "selection": {"seeds": 1}})
    assert sum(many["packs"]["cpu"]) == sum(many["packs"]["cuda"]) == 600
    assert many["packs"]["cuda"] == [512, 88]
    assert many["pack_bytes"]["cpu"] <= 2**24 < many["pack_bytes"]["cpu"] + many["run_bytes"]


def test_nothing_is_stored(service: Serving) -> None:
    def jobs_stored() -> int:
        with service.database.read() as connection:
            return connection.execute(select(func.count()).select_from(tables.jobs)).scalar_one()

    before = jobs_stored()
    planned(service, LINEAR)
    assert jobs_stored() == before


def test_a_plan_is_refused_as_a_submission_is(service: Serving) -> None:
    wrong = {**NET, "model": {"kind": "mpl"}, "budget": {"epochs": 0}}
    plan, job = (assert_problem(service.http.post(f"/v1/{path}", json=wrong), 422, path="model.kind") for path in ("plan", "jobs"))
    assert plan["errors"] == job["errors"]
    assert_problem(service.http.post("/v1/plan", json={**NET, "loss": {"kind": "squared_error"}}), 422, path="loss.kind")
    assert_problem(service.http.post("/v1/plan", json={**NET, "dataset": {"kind": "upload", "id": "ds_1"}}), 422, path="dataset.id")
    assert_problem(service.http.post("/v1/plan", content=b"{}", headers={"Content-Type": "text/plain"}), 415)


def train(service: Serving, job: str, *, stopped_at: int | None = None) -> None:
    """Trains a job of one pack by hand, on a device of kind cpu."""
    claim = service.claim(job)
    runs, steps = service.job(job)["runs"], 100
    started = Started(
        runs=runs, packs=[list(range(runs))], steps=steps, steps_per_epoch=1, layers=["head"], series=["loss/train"], penalised={}, step_order=[], environment={"device_kind": "cpu"}
    )  # fmt: skip
    point = Points(pack=0, step=steps, steps={"loss/train": np.arange(1)}, values={"loss/train": np.ones((1, runs))}, counts={"loss/train": np.ones(runs, np.int64)})
    ends = [RunFinished(run=r, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=stopped_at or steps, metrics={"loss/train": 1.0}) for r in range(runs)]
    jobs.report(service.database, claim, [started, point, *ends])
    temporary = files.scratch(service.data, job, claim.attempt) / "model.safetensors"
    temporary.write_bytes(b"weights")
    place = files.publish(service.data, temporary, job=job, attempt=claim.attempt, name="model.safetensors")
    jobs.finish(service.database, claim, Finished(result={"chosen_run": None}, path=str(place), sha256="0"), place)


def test_the_expected_time_is_that_of_a_job_of_the_same_shape(service: Serving) -> None:
    spec = {**LINEAR, "dtype": "float64", "regularizers": [{"kind": "l2", "lambda": {"values": [0.1, 1]}}]}
    train(service, service.submit(spec), stopped_at=7)
    assert planned(service, spec)["expected_seconds"] == {"cpu": None, "cuda": None}  # runs that stopped early say nothing
    job = service.submit(spec)
    train(service, job)
    found = planned(service, spec)["expected_seconds"]
    took = 100 * stored(service)
    assert found["cuda"] is None
    assert found["cpu"] == pytest.approx(took)
    assert 0 < took < 60
    other = {**spec, "name": "longer, elsewhere", "seed": 5, "regularizers": [{"kind": "l2", "lambda": {"values": [3, 4]}}], "budget": {"epochs": 300, "batch_size": "all"}}
    assert planned(service, other)["expected_seconds"]["cpu"] == pytest.approx(3 * took)
    for change in ({"dtype": "float32"}, {"selection": {"seeds": 2}}, {"budget": {"epochs": 100, "batch_size": 2}}, {"diagnostics": "off"}, {"loss": {"kind": "squared_error"}}):
        assert planned(service, {**spec, **change})["expected_seconds"] == {"cpu": None, "cuda": None}, change


def stored(service: Serving) -> float:
    """Seconds a step of the only rate there is."""
    with service.database.read() as connection:
        (row,) = connection.execute(select(tables.rates)).all()
    found = rates.seconds_a_step(service.database, row.key, device="cpu")
    assert found is not None
    assert json.loads(json.dumps(row.nanoseconds)) == round(found * 1e9)
    return found


def test_the_time_of_an_upload_is_known_too(service: Serving) -> None:
    dataset = service.http.post("/v1/datasets?format=csv", content=b"a,y\n1,2\n2,3\n3,5\n").json()["id"]
    spec = {**LINEAR, "dataset": {"kind": "upload", "id": dataset}, "diagnostics": "light"}
    assert planned(service, spec)["expected_seconds"]["cpu"] is None
    train(service, service.submit(spec))
    assert planned(service, spec)["expected_seconds"]["cpu"] > 0
