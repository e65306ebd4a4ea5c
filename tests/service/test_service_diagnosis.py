"""The diagnosis of a job, in every form, while it trains and after."""

import csv
import io
import json
import math
import threading

import numpy as np
import pytest
from serving import Serving, assert_problem, report

from regtrain.client import Client
from regtrain.contract.events import Noticed, RunFinished
from regtrain.contract.states import RunState, StopReason
from regtrain.contract.symptoms import BY_NAME
from regtrain.store import jobs

FIGURES = {"seen": 1e-5, "chi": 0.25, "chi_low": 0.24, "chi_high": 0.26, "layers": 34.0, "last": "layers.33"}
SIGNAL = Noticed(0, "vanishing_signal", "layers.0", 0, 1e-5, 0.05, "critical", 0.99, FIGURES, done=1)
PLATEAU = Noticed(0, "plateau", None, 128, 0.99, 0.9, "warning", 0.55, {"loss": 2.3, "constant": 2.303}, done=256)


@pytest.fixture
def claim(service: Serving) -> jobs.Claim:
    """A job of one run that trains and shows nothing yet."""
    claim = service.claim(service.submit())
    report(service.database, claim, {"loss/train": np.ones((300, 1))}, layers=["layers.0", "head"])
    return claim


def test_before_training_there_is_none(service: Serving) -> None:
    job = service.submit()
    assert service.job(job)["diagnosis"] is None
    answer = service.http.get(f"/v1/jobs/{job}/diagnosis").json()
    assert (answer["verdict"], answer["root"], answer["symptoms"], answer["runs"]) == (None, None, [], [])
    assert service.http.get(f"/v1/jobs/{job}/diagnosis?format=text").text == "The job has not begun to train.\n"
    service.http.post(f"/v1/jobs/{job}/cancel")


def test_a_job_that_shows_nothing_is_healthy(service: Serving, claim: jobs.Claim) -> None:
    assert service.job(claim.job)["diagnosis"] == {"verdict": "healthy", "root": None, "symptoms": 0}
    answer = service.http.get(service.job(claim.job)["links"]["diagnosis"]).json()
    assert (answer["verdict"], answer["summary"]) == ("healthy", "No symptom.")
    assert set(answer["judged"]) | set(answer["not_judged"]) == set(BY_NAME)
    assert "saturated" in answer["not_judged"], "its series is one of full"


def test_the_root_and_what_it_brings_about(service: Serving, claim: jobs.Claim) -> None:
    jobs.report(service.database, claim, [PLATEAU, SIGNAL])
    assert service.job(claim.job)["diagnosis"] == {"verdict": "symptoms", "root": "vanishing_signal", "symptoms": 2}
    answer = service.http.get(f"/v1/jobs/{claim.job}/diagnosis").json()
    assert [one["symptom"] for one in answer["symptoms"]] == ["vanishing_signal", "plateau"]
    [run] = answer["runs"]
    [root] = run["roots"]
    assert (root["symptom"], root["cause"], root["layer"], root["evidence"]) == ("vanishing_signal", "suspected", "layers.0", FIGURES)
    assert [inner["symptom"] for inner in root["under"]] == ["plateau"]
    assert root["sentence"].startswith("The gradient that reaches layers.0 is 1e-05 of that at layers.33: it falls by a factor of 0.5 a layer")
    with Client(service.url) as client:
        assert client.diagnosis(claim.job) == answer
        assert client.diagnosis(claim.job, run=1)["verdict"] == "healthy"


def test_the_other_faces(service: Serving, claim: jobs.Claim) -> None:
    jobs.report(service.database, claim, [PLATEAU, SIGNAL])
    path = f"/v1/jobs/{claim.job}/diagnosis"
    text = service.http.get(path, headers={"Accept": "text/plain"}).text
    assert text.startswith("symptoms, root vanishing_signal\n")
    assert text.index("vanishing_signal (critical, step 0, confidence 0.99, suspected cause of what follows)") < text.index("      plateau (warning, step 128")
    rows = list(csv.DictReader(io.StringIO(service.http.get(f"{path}?format=csv").text)))
    assert [(row["symptom"], row["under"], row["layer"]) for row in rows] == [("vanishing_signal", "", "layers.0"), ("plateau", "vanishing_signal", "")]
    lines = [json.loads(line) for line in service.http.get(f"{path}?format=jsonl").text.splitlines()]
    assert [(line["symptom"], line["value"], line["cause"]) for line in lines] == [("vanishing_signal", 1e-5, "suspected"), ("plateau", 0.99, None)]


def test_a_failure_is_told_with_what_led_there(service: Serving, claim: jobs.Claim) -> None:
    """Numbers that are not finite are null, and stand beside by name; the text has the last update, those 1, 3, 7, 15 and 31 before it, and the layer that moved most, where any did."""
    n, end = 20, 19
    last = {
        "steps": list(range(50, 50 + n)), "layers": ["layers.0", "head"], "loss/train": [10.0**at for at in range(end)] + [math.inf],
        "gradient/total": [2.0] * n, "update/ratio": [[0.25, 0.125]] * (n - 2) + [[0.25, math.inf], [0.0, 0.0]],
    }  # fmt: skip
    where = {"step": 69, "series": "loss/train", "operation": "loss", "in_words": "at step 69 the loss is not finite", "last": last}
    ended = RunFinished(0, RunState.FAILED, StopReason.DIVERGED, 69, {}, first_nonfinite=where)
    jobs.report(service.database, claim, [Noticed(0, "non_finite", None, 69, 1.0, 0.0, "critical", 1.0, {"loss": "inf"}, done=70), ended])
    path = f"/v1/jobs/{claim.job}/diagnosis"
    told = service.http.get(path).json()["runs"][0]["first_nonfinite"]
    assert told == service.http.get(f"/v1/jobs/{claim.job}/runs").json()["runs"][0]["first_nonfinite"]
    assert told["last"]["loss/train"] == [*last["loss/train"][:end], None]
    assert told["last"]["nonfinite"] == {"loss/train.19": "Infinity", "update/ratio.18.1": "Infinity"}
    lines = service.http.get(f"{path}?format=text").text.splitlines()
    place = lines.index("  at step 69 the loss is not finite")
    assert [line.split() for line in lines[place + 1 : place + 7]] == [
        ["step", "loss/train", "gradient/total", "update/ratio", "of", "layer"], ["54", "10000", "2", "0.25", "layers.0"], ["62", "1e+12", "2", "0.25", "layers.0"],
        ["66", "1e+16", "2", "0.25", "layers.0"], ["68", "1e+18", "2", "Infinity", "head"], ["69", "Infinity", "2", "-", "-"],
    ]  # fmt: skip


def test_who_waits_for_a_symptom_is_answered_when_it_is_noticed(service: Serving, claim: jobs.Claim) -> None:
    threading.Timer(0.2, lambda: jobs.report(service.database, claim, [SIGNAL])).start()
    answer = service.http.get(f"/v1/jobs/{claim.job}?wait=30&until=symptom").json()
    assert (answer["state"], answer["diagnosis"]["root"]) == ("running", "vanishing_signal")


def test_what_is_wrong_with_the_question_is_said(service: Serving, claim: jobs.Claim) -> None:
    assert_problem(service.http.get("/v1/jobs/job_01JD3QZ7M8XK5T2V9R4C6B1N0P/diagnosis"), 404)
    assert_problem(service.http.get(f"/v1/jobs/{claim.job}/diagnosis?run=-1"), 422)
    assert_problem(service.http.get(f"/v1/jobs/{claim.job}/diagnosis?format=xml"), 422)
    assert_problem(service.http.post("/v1/jobs", json={"on_symptom": {"vanishing_signl": "stop"}}), 422, path="on_symptom.vanishing_signl")
