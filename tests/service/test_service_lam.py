"""/v1/lambda and the result's `lambda`: a strength in every convention, over HTTP."""

from typing import Any

import numpy as np
import pytest
from serving import Serving, assert_problem

ASKED: dict[str, Any] = {"convention": "sklearn_ridge", "strength": 2.0, "loss": "squared_error", "penalty": "l2", "rows": 50}


def test_a_strength_is_converted_to_all_conventions_with_its_formula(service: Serving) -> None:
    answer = service.http.post("/v1/lambda", json=ASKED)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["loss"], body["penalty"], body["rows"]) == ("squared_error", "l2", 50)
    found = {one["convention"]: one for one in body["conventions"]}
    assert found["sklearn_ridge"]["value"] == 2.0
    assert found["regtrain_squared_error"]["value"] == pytest.approx(0.08)  # A = nλ/2
    assert found["keras"]["value"] == pytest.approx(0.04)  # A = n·l2
    assert (found["glmnet"]["value"], found["glmnet"]["formula"]) == (None, "lambda = s·λ/2")


@pytest.mark.parametrize(
    ("change", "path", "hint"),
    [
        ({"convention": "ridge"}, "convention", "sklearn_ridge"),
        ({"loss": "mse"}, "loss", ""),
        ({"penalty": "l3"}, "penalty", ""),
        ({"rows": 0}, "rows", ""),
        ({"rows": "50"}, "rows", "without quotes"),
        ({"strength": -1}, "strength", ""),
        ({"strength": True}, "strength", ""),
        ({"row": 50}, "row", "rows"),
        ({"penalty": "elastic_net", "convention": "sklearn_elastic_net"}, "l1_ratio", "0 (ridge)"),
        ({"convention": "glmnet"}, "target_deviation", "deviation"),
    ],
)
def test_a_wrong_question_is_refused_with_path_and_hint(service: Serving, change: dict[str, Any], path: str, hint: str) -> None:
    body = assert_problem(service.http.post("/v1/lambda", json={**ASKED, **change}), 422, path=path)
    assert hint in next(error["hint"] for error in body["errors"] if error["path"] == path)


def test_what_is_no_question_is_refused(service: Serving) -> None:
    assert_problem(service.http.post("/v1/lambda", json=[1]), 422)
    assert_problem(service.http.post("/v1/lambda", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert {e["path"] for e in assert_problem(service.http.post("/v1/lambda", json={}), 422)["errors"]} == {"convention", "strength", "loss", "rows"}


def test_a_result_has_its_strengths_in_every_convention(service: Serving) -> None:
    job = service.submit(regularizers=[{"kind": "l2", "lambda": 0.4}, {"kind": "dropout", "rate": 0.1, "on": "inputs"}])
    assert service.job(job)["result"] is None
    service.train(job, {"loss/train": np.ones((2, 1))})
    found = service.job(job)["result"]["lambda"]
    assert list(found) == ["regularizers.0.lambda"]
    values = {one["convention"]: one["value"] for one in found["regularizers.0.lambda"]}
    assert (values["regtrain_half_squared_error"], values["sklearn_ridge"], values["keras"]) == (0.4, 2.0, 0.4)  # five rows, half squared error


def test_a_result_on_rows_that_are_gone_has_none(service: Serving) -> None:
    dataset = service.http.post("/v1/datasets?format=csv", content=b"a,y\n1,2\n2,3\n3,5\n").json()["id"]
    job = service.submit(dataset={"kind": "upload", "id": dataset}, regularizers=[{"kind": "l2", "lambda": 0.4}])
    service.train(job, {"loss/train": np.ones((2, 1))})
    assert service.job(job)["result"]["lambda"]["regularizers.0.lambda"][0]["value"] == pytest.approx(0.8)
    assert service.http.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert service.job(job)["result"]["lambda"] == {}
