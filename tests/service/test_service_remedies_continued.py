"""Remedies that go on from a job's own weights, over HTTP: listed beside those that begin anew, tried when asked for, and refused where nothing could be compared."""

import json
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import Serving, assert_problem

from regtrain.contract.events import Finished, Noticed, RunFinished, Started
from regtrain.contract.states import RunState, StopReason
from regtrain.contract.symptoms import SymptomName
from regtrain.store import files, jobs

IRIS: dict[str, Any] = {
    "dataset": {"kind": "iris", "validation": 0.2, "standardize": True},
    "model": {"kind": "mlp", "hidden": [5], "activation": "relu"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 5, "batch_size": 16},
}
SHAPES = {"layers.0.weight": (5, 4), "layers.0.bias": (5,), "head.weight": (3, 5), "head.bias": (3,)}
CONTINUE = {"continue": True}


def ended(service: Serving, *shown: SymptomName, state: RunState = RunState.SUCCEEDED, **changes: Any) -> tuple[str, str]:
    """A job that a worker has ended with these symptoms, and the sha256 of its model."""
    job = service.submit(IRIS, **changes)
    claim = service.claim(job)
    started = Started(runs=1, packs=[[0]], steps=5, steps_per_epoch=1, layers=["layers.0", "head"], series=[], penalised={}, step_order=[], environment={})
    noticed = [Noticed(run=0, symptom=name, layer="layers.0", step=0, value=0.9, bound=0.5, severity="critical", confidence=0.9, pack=0) for name in shown]
    jobs.report(service.database, claim, [started, *noticed, RunFinished(run=0, state=state, stop_reason=StopReason.BUDGET, steps=5, metrics={})])
    temporary = files.scratch(service.data, job, claim.attempt) / "model.safetensors"
    save_file({name: np.ones((1, *shape), np.float32) for name, shape in SHAPES.items()}, temporary, metadata={"runs": json.dumps([{"index": 0, "variant": None}])})
    digest = sha256(temporary.read_bytes()).hexdigest()
    place = files.publish(service.data, temporary, job=job, attempt=claim.attempt, name="model.safetensors")
    jobs.finish(service.database, claim, Finished(result={"chosen_run": 0}, path=str(place), sha256=digest), place)
    return job, digest


def listed(service: Serving, job: str, **query: Any) -> dict[str, Any]:
    answer = service.http.get(f"/v1/jobs/{job}/remedies", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def continued(service: Serving, job: str, **body: Any) -> Any:
    return service.http.post(f"/v1/jobs/{job}/remedies", json={**CONTINUE, **body})


def test_surgery_is_listed_behind_what_begins_anew_with_all_that_a_spec_needs(service: Serving) -> None:
    job, _ = ended(service, "dead_units")
    found = listed(service, job)["remedies"]
    first = next(place for place, one in enumerate(found) if one["continues"])
    assert first > 0
    assert all(one["continues"] for one in found[first:])
    revive = found[first]
    assert revive["set"] == {"begin": {"job": job, "run": 0, "surgery": [{"kind": "revive"}]}}
    assert revive["why"].startswith("continues what was learned: ")
    submitted = service.submit(IRIS, variants=[{"label": "as it is", "set": {}}, {"label": "revived", "set": revive["set"]}])
    assert service.job(submitted)["state"] == "queued"
    assert "\ncontinued: revive " in service.http.get(f"/v1/jobs/{job}/remedies", params={"format": "text"}).text


@pytest.mark.parametrize("changes", [{"dataset": {"kind": "iris"}}, {"model": {"kind": "mlp", "hidden": [5], "activation": "tanh"}}])
def test_none_is_listed_where_none_could_be_tried_or_the_function_would_change(service: Serving, changes: dict[str, Any]) -> None:
    job, _ = ended(service, "dead_units", **changes)
    assert [one for one in listed(service, job)["remedies"] if one["continues"]] == []


def test_a_continued_trial_is_another_job_than_one_that_begins_anew(service: Serving) -> None:
    job, digest = ended(service, "exploding_signal", "dead_units")
    trial = continued(service, job).json()
    assert trial["spec"]["begin"] == {"job": job, "run": 0, "sha256": digest, "surgery": []}
    assert trial["spec"]["trial"] == {"of": job, "symptom": "dead_units", "control": "as it is", "order": "together", "known": None}
    assert [one["set"] for one in trial["spec"]["variants"][:2]] == [{}, {"begin": {"job": job, "run": 0, "sha256": digest, "surgery": [{"kind": "revive"}]}}]
    assert "what the weights have kept of it is dead_units" in next(warned["message"] for warned in trial["warnings"] if warned["path"] == "trial.symptom")
    assert continued(service, job).json()["id"] == trial["id"]
    anew = service.http.post(f"/v1/jobs/{job}/remedies").json()
    assert anew["id"] != trial["id"]
    assert anew["spec"]["begin"] is None
    assert {one["job"]: one["continues"] for one in listed(service, job)["trials"]} == {anew["id"]: False, trial["id"]: True}
    assert_problem(service.http.delete(f"/v1/jobs/{job}"), 409)


@pytest.mark.parametrize(
    ("changes", "body", "path"),
    [
        ({"dataset": {"kind": "iris"}}, {}, "continue"),
        ({"budget": {"batch_size": "all"}}, {}, "budget.batch_size"),
        ({}, {"symptom": "vanishing_signal"}, "symptom"),
        ({}, {"remedies": [{"label": "wider", "set": {"model.hidden": [6]}}]}, "continue"),
        ({"model": {"kind": "mlp", "hidden": [4], "activation": "relu"}}, {}, "continue"),
        ({}, {"continue": "yes"}, "continue"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_with_a_path_and_a_hint(service: Serving, changes: dict[str, Any], body: dict[str, Any], path: str) -> None:
    job, _ = ended(service, "dead_units", **changes)
    assert_problem(continued(service, job, **body), 422, path=path)


def test_a_job_without_weights_cannot_be_gone_on_from(service: Serving) -> None:
    job = service.submit(IRIS)
    service.http.post(f"/v1/jobs/{job}/cancel")
    assert_problem(continued(service, job), 422, path="continue")
    assert [one for one in listed(service, job, symptom="dead_units")["remedies"] if one["continues"]] == []


def test_a_job_that_began_from_weights_is_tried_without_other_shapes(service: Serving) -> None:
    origin, digest = ended(service, "dead_units")
    job, _ = ended(service, "dead_units", begin={"job": origin})
    trial = service.http.post(f"/v1/jobs/{job}/remedies").json()
    assert trial["spec"]["begin"] == {"job": origin, "run": 0, "sha256": digest, "surgery": []}
    assert not any(path.startswith("model") for one in trial["spec"]["variants"] for path in one["set"])
    assert listed(service, job)["trials"][0]["continues"] is False


def test_a_plan_predicts_no_initial_signal_for_trained_weights(service: Serving) -> None:
    job, _ = ended(service, "dead_units")
    answer = service.http.post("/v1/plan", json={**IRIS, "begin": {"job": job}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["signal"] is None
