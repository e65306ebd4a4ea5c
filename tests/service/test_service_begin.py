"""Jobs that begin from an earlier one's weights: what is refused, what is filled in, and that nothing that a job needs can be deleted."""

import json
import re
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import Serving, assert_problem

from regtrain.contract.events import Finished, RunFinished
from regtrain.contract.states import RunState, StopReason
from regtrain.store import files, jobs

IRIS: dict[str, Any] = {
    "dataset": {"kind": "iris", "validation": 0.2, "standardize": True},
    "model": {"kind": "mlp", "hidden": [5], "activation": "relu"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "selection": {"seeds": 2},
}
SHAPES = {"layers.0.weight": (5, 4), "layers.0.bias": (5,), "head.weight": (3, 5), "head.bias": (3,)}


def finish(service: Serving, job: str, *, chosen: int | None = 1) -> str:
    """Ends a job of two runs, of which the first failed, as a worker would; the sha256 of its model."""
    claim = service.claim(job)
    ends = [
        RunFinished(run=0, state=RunState.FAILED, stop_reason=StopReason.DIVERGED, steps=1, metrics={}),
        RunFinished(run=1, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=1, metrics={}),
    ]
    jobs.report(service.database, claim, ends)
    temporary = files.scratch(service.data, job, claim.attempt) / "model.safetensors"
    about = json.dumps([{"index": index, "variant": None} for index in range(2)])
    save_file({name: np.ones((2, *shape), np.float32) for name, shape in SHAPES.items()}, temporary, metadata={"runs": about})
    digest = sha256(temporary.read_bytes()).hexdigest()
    place = files.publish(service.data, temporary, job=job, attempt=claim.attempt, name="model.safetensors")
    jobs.finish(service.database, claim, Finished(result={"chosen_run": chosen}, path=str(place), sha256=digest), place)
    return digest


@pytest.fixture
def ended(service: Serving) -> tuple[str, str]:
    job = service.submit(IRIS)
    return job, finish(service, job)


def test_run_and_sha256_are_filled_in_and_the_worker_gets_the_file(service: Serving, ended: tuple[str, str]) -> None:
    origin, digest = ended
    job = service.submit(IRIS, begin={"job": origin})
    assert service.job(job)["spec"]["begin"] == {"job": origin, "run": 1, "sha256": digest, "surgery": []}
    claim = service.claim(job)
    assert sha256(claim.origins[origin].read_bytes()).hexdigest() == digest
    planned = service.http.post("/v1/plan", json={**IRIS, "begin": {"job": origin, "surgery": [{"kind": "revive"}]}}).json()
    assert planned["spec"]["begin"]["sha256"] == digest
    assert planned["warnings"] == []


def test_variants_begin_where_they_say(service: Serving, ended: tuple[str, str]) -> None:
    origin, digest = ended
    variants = [
        {"label": "anew", "set": {}},
        {"label": "on", "set": {"begin": {"job": origin}}},
        {"label": "less", "set": {"optimizer.lr": 0.01, "begin": {"job": origin, "run": 1}}},
    ]
    spec = service.job(service.submit(IRIS, variants=variants))["spec"]
    filled = {"job": origin, "run": 1, "sha256": digest, "surgery": []}
    assert [variant["set"] for variant in spec["variants"]] == [{}, {"begin": filled}, {"optimizer.lr": 0.01, "begin": filled}]
    both = [{"label": "as it is", "set": {}}, {"label": "revived", "set": {"begin.surgery": [{"kind": "revive"}]}}]
    spec = service.job(service.submit(IRIS, begin={"job": origin}, variants=both))["spec"]
    assert spec["begin"] == filled
    assert spec["variants"][1]["set"] == {"begin": {**filled, "surgery": [{"kind": "revive"}]}}


def test_other_rows_are_warned_of(service: Serving, ended: tuple[str, str]) -> None:
    job = service.submit(IRIS, begin={"job": ended[0]}, seed=7)
    assert [warned["path"] for warned in service.job(job)["warnings"]] == ["begin.job"]


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"begin": {"job": "job_nobody"}}, "begin.job", "there is no job"),
        ({"begin": {"job": "ds_1"}}, "begin.job", "expected text that matches"),
        ({"begin": {}}, "begin.job", "required"),
        ({"begin": {"run": 0}}, "begin.run", "run 0 .* has no weights"),
        ({"begin": {"run": 5}}, "begin.run", "run 5 .* has no weights"),
        ({"begin": {"sha256": "0" * 64}}, "begin.sha256", "has the sha256"),
        ({"model.hidden": [6]}, "model", r"layers.0.weight is 5 × 4, here it is 6 × 4"),
        ({"model.hidden": [5, 5]}, "model", r"layers.1.weight is missing, here it is 5 × 5"),
        ({"model.bias": False}, "model", r"bias is \d, here it is missing"),
        ({"begin": {"surgery": [{"kind": "heal"}]}}, "begin.surgery.0.kind", "unknown kind"),
        ({"model.activation": "tanh", "begin": {"surgery": [{"kind": "rebalance"}]}}, "begin.surgery.0", r"tanh\(c·v\) is not c·tanh\(v\)"),
        ({"model.activation": "tanh", "begin": {"surgery": [{"kind": "rescale"}]}}, "begin.surgery.0", "any scale changes the function"),
        ({"model.activation": "leaky_relu", "begin": {"surgery": [{"kind": "revive"}]}}, "begin.surgery.0", "nowhere exactly 0"),
        ({"model.normalization": {"kind": "layer"}, "begin": {"surgery": [{"kind": "rebalance"}]}}, "begin.surgery.0", "layer normalization stands between"),
        ({"model.reparametrization": {"kind": "weight_norm"}, "begin": {"surgery": [{"kind": "rescale"}]}}, "begin.surgery.0", "makes the weights from other numbers"),
        ({"model.hidden": [4], "model.residual": True, "begin": {"surgery": [{"kind": "revive"}]}}, "begin.surgery.0", "residual path"),
        ({"model": {"kind": "linear"}, "begin": {"surgery": [{"kind": "rebalance"}]}}, "begin.surgery.0", "no hidden units"),
        ({"regularizers": [{"kind": "max_norm", "max": 2.0}], "begin": {"surgery": [{"kind": "rebalance"}]}}, "begin.surgery.0", "max_norm would move the weights again"),
        ({"model.init": {"kind": "zeros"}, "begin": {"surgery": [{"kind": "revive"}]}}, "begin.surgery.0", "the init draws zeros"),
        ({"variants": [{"label": "a", "set": {"model.hidden": [7]}}]}, "variants.0.set.model", "7 × 4"),
        ({"variants": [{"label": "a", "set": {"begin.run": 0}}]}, "variants.0.set.begin.run", "has no weights"),
    ],
)
def test_what_cannot_be_begun_from_is_refused_with_a_path(service: Serving, ended: tuple[str, str], changes: dict[str, Any], path: str, words: str) -> None:
    body = {**IRIS, "begin": {"job": ended[0], **changes.get("begin", {})} if changes.get("begin") != {} else {}}
    for at, value in changes.items():
        if at.startswith("model."):
            body["model"] = {**body["model"], at.removeprefix("model."): value}
        elif at != "begin":
            body[at] = value
    answer = service.http.post("/v1/jobs", json=body)
    assert_problem(answer, 422, path=path)
    assert any(re.search(words, problem["message"]) for problem in answer.json()["errors"]), answer.text


def test_a_job_without_a_model_or_a_choice_has_no_weights(service: Serving) -> None:
    job = service.submit(IRIS)
    assert_problem(service.http.post("/v1/jobs", json={**IRIS, "begin": {"job": job}}), 422, path="begin.job")
    finish(service, job, chosen=None)
    assert_problem(service.http.post("/v1/jobs", json={**IRIS, "begin": {"job": job}}), 422, path="begin.run")
    assert service.http.post("/v1/jobs", json={**IRIS, "begin": {"job": job, "run": 1}}).status_code == 201


def test_what_a_job_needs_cannot_be_deleted_before_it_has_ended(service: Serving, ended: tuple[str, str]) -> None:
    origin, _ = ended
    job = service.submit(IRIS, begin={"job": origin})
    refused = service.http.delete(f"/v1/jobs/{origin}")
    assert_problem(refused, 409)
    assert job in refused.json()["detail"]
    service.http.post(f"/v1/jobs/{job}/cancel")
    assert service.http.delete(f"/v1/jobs/{origin}").status_code == 204
    assert service.job(job)["spec"]["begin"]["job"] == origin
    assert_problem(service.http.post(f"/v1/jobs/{job}/retry"), 422, path="begin.job")


def test_an_origin_that_is_deleted_between_check_and_submission_is_no_job(service: Serving, ended: tuple[str, str]) -> None:
    from regtrain.contract.errors import SpecRefused
    from regtrain.contract.job import parse

    origin, digest = ended
    spec = parse(json.dumps({**IRIS, "begin": {"job": origin, "run": 1, "sha256": digest}}))
    jobs.delete(service.database, origin)
    with pytest.raises(SpecRefused, match=r"begin\.job: there is no job"):
        jobs.submit(service.database, spec, given={}, warnings=[])
