"""Remedies over HTTP: candidates, the job that tries them, its verdicts, and what is refused."""

import json
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import LINEAR, Serving, assert_problem

from regtrain.contract.events import Finished
from regtrain.store import files, jobs

DIGITS: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16] * 8, "activation": "sigmoid"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 1, "batch_size": 64},
}
OWN = {"remedies": [{"label": "slower", "set": {"optimizer.lr": 0.01}}]}


def finish(service: Serving, job: str, result: dict[str, Any] | None = None) -> None:
    """Ends a job as a worker would, with this result."""
    claim = service.claim(job)
    temporary = files.scratch(service.data, job, claim.attempt) / "model.safetensors"
    save_file({"head.weight": np.ones((1, 1, 1), np.float32)}, temporary)
    digest = sha256(temporary.read_bytes()).hexdigest()
    place = files.publish(service.data, temporary, job=job, attempt=claim.attempt, name="model.safetensors")
    jobs.finish(service.database, claim, Finished(result={"chosen_run": 0, **(result or {})}, path=str(place), sha256=digest), place)


@pytest.fixture
def ended(service: Serving) -> str:
    job = service.submit(DIGITS)
    finish(service, job)
    return job


def tried(service: Serving, job: str, body: Any = None) -> dict[str, Any]:
    answer = service.http.post(f"/v1/jobs/{job}/remedies", json=body) if body is not None else service.http.post(f"/v1/jobs/{job}/remedies")
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()


def listed(service: Serving, job: str, **query: Any) -> dict[str, Any]:
    answer = service.http.get(f"/v1/jobs/{job}/remedies", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def verdict(label: str, says: str) -> dict[str, Any]:
    return {"label": label, "verdict": says, "pairs": 8, "shown": 0.0, "symptom_p": 1 / 256, "metric": 0.1, "difference": 0.5, "p": 1 / 256, "confidence": 255 / 256}


def test_candidates_say_what_they_change_what_they_are_expected_to_do_and_why(service: Serving, ended: str) -> None:
    found = listed(service, ended, symptom="vanishing_signal")
    assert (found["job"], found["symptom"], found["trials"]) == (ended, "vanishing_signal", [])
    first = found["remedies"][0]
    assert first["set"] == {"model.residual": True}
    assert first["expects"] == {"signal/backward": "even"}
    assert first["why"].startswith("theory: ")
    assert listed(service, ended)["symptom"] is None


def test_a_trial_is_a_job_that_says_whose_it_is_and_is_found_by_it(service: Serving, ended: str) -> None:
    trial = tried(service, ended, {"symptom": "vanishing_signal"})
    assert trial["state"] == "queued"
    assert trial["spec"]["trial"] == {"of": ended, "symptom": "vanishing_signal", "control": "as it is", "order": "together", "known": None}
    assert trial["metadata"]["remedy_of"] == ended
    assert trial["runs"] == 13 * 8
    assert listed(service, ended)["trials"][0] == {
        "job": trial["id"], "state": "queued", "terminal": False, "continues": False, "order": "together", "symptom": "vanishing_signal", "confirmed": None, "helps": None,
        "in_words": None, "verdicts": [],
    }  # fmt: skip
    found = service.http.get("/v1/jobs", params={"metadata.remedy_of": ended}).json()["jobs"]
    assert [job["id"] for job in found] == [trial["id"]]


def test_repeated_it_is_the_same_trial_and_another_request_is_another(service: Serving, ended: str) -> None:
    first = tried(service, ended)["id"]
    assert tried(service, ended)["id"] == tried(service, ended, {})["id"] == first
    assert tried(service, ended, {"seeds": 9})["id"] != first
    other = service.submit(DIGITS)
    finish(service, other)
    assert tried(service, other)["id"] != first


def test_own_remedies_take_the_place_of_the_candidates(service: Serving, ended: str) -> None:
    trial = tried(service, ended, {**OWN, "seeds": 10, "epochs": 2})
    assert [one["label"] for one in trial["spec"]["variants"]] == ["as it is", "slower", "random 1"]
    assert trial["spec"]["selection"]["seeds"] == 10
    assert trial["spec"]["budget"]["epochs"] == 2


def test_in_turn_over_eight_seeds_everything_is_listed_and_fewer_draw_nothing_at_random(service: Serving, ended: str) -> None:
    trial = tried(service, ended, {"symptom": "vanishing_signal", "order": "in_turn"})
    assert (trial["spec"]["trial"]["order"], trial["runs"], trial["spec"]["on_symptom"]) == ("in_turn", 13 * 8, {})
    quick = tried(service, ended, {"symptom": "vanishing_signal", "order": "in_turn", "seeds": 2})
    assert (quick["runs"], quick["spec"]["trial"]["known"]) == (7 * 2, None)
    ends = ["no_change", "plateau", "rate_too_low", "underfitting", "vanishing_gradient", "vanishing_signal"]
    assert quick["spec"]["on_symptom"] == dict.fromkeys(ends, "stop")
    assert [trial["order"] for trial in listed(service, ended)["trials"]] == ["in_turn", "in_turn"]


def test_what_helped_is_answered_and_fewer_pairs_hide_no_verdict(service: Serving, ended: str) -> None:
    labels = [one["label"] for one in listed(service, ended, symptom="oscillating")["remedies"]]
    whole = tried(service, ended, {"symptom": "oscillating"})["id"]
    finish(service, whole, {"trial": {"of": ended, "symptom": "oscillating", "verdicts": [verdict(labels[1], "left_out"), verdict(labels[3], "confirmed")]}})
    quick = tried(service, ended, {"symptom": "oscillating", "order": "in_turn", "seeds": 1})["id"]
    said = [
        *({**verdict(label, "helps"), "pairs": 1} for label in (labels[0], labels[3])),
        *({**verdict(label, "not_tried"), "pairs": 0, "shown": None, "difference": None} for label in labels[1:3]),
    ]
    finish(service, quick, {"trial": {"of": ended, "symptom": "oscillating", "confirmed": None, "helps": labels[0], "in_words": "…", "verdicts": said}})
    newest = listed(service, ended, symptom="oscillating")["trials"][0]
    assert (newest["job"], newest["confirmed"], newest["helps"]) == (quick, None, labels[0])
    rows = service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "oscillating", "format": "jsonl"}).text.splitlines()
    assert [json.loads(row).get("verdict") for row in rows[:4]] == ["confirmed", "helps", "left_out", "not_tried"]


def test_verdicts_come_with_the_candidates_and_what_was_confirmed_comes_first_ever_after(service: Serving, ended: str) -> None:
    before = [one["label"] for one in listed(service, ended, symptom="oscillating")["remedies"]]
    trial = tried(service, ended, {"symptom": "oscillating"})["id"]
    said = {
        "of": ended,
        "symptom": "oscillating",
        "confirmed": before[3],
        "in_words": f"{before[3]} is confirmed: …",
        "verdicts": [verdict(before[3], "confirmed"), verdict(before[0], "not_better")],
    }
    finish(service, trial, {"trial": said})
    found = listed(service, ended, symptom="oscillating")
    assert [one["label"] for one in found["remedies"]] == [before[3], *(label for label in before if label != before[3])]
    assert found["trials"][0]["confirmed"] == before[3]
    assert found["trials"][0]["verdicts"] == said["verdicts"]
    other = service.submit(DIGITS)
    assert listed(service, other, symptom="oscillating")["remedies"][0]["label"] == before[3]
    assert listed(service, other, symptom="rate_too_high")["remedies"][0]["label"] != before[3]
    text = service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "oscillating", "format": "text"}).text
    line = next(line for line in text.splitlines() if line.startswith(before[3]))
    assert line.split()[-5:] == ["confirmed", "8", "0", "0.5", "0.0039062"]
    assert f"{trial} (succeeded): {before[3]} is confirmed" in text


def test_other_faces(service: Serving, ended: str) -> None:
    rows = service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "plateau", "format": "jsonl"}).text.splitlines()
    assert json.loads(rows[0])["label"] == "adam"
    table = service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "plateau"}, headers={"Accept": "text/csv"}).text
    assert table.startswith("label,set,expects,trial,verdict,pairs,shown,difference,p")
    text = service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "label_noise", "format": "text"}).text
    assert text.startswith("remedies for label_noise\n")
    assert text.endswith("not tried yet\n")


def test_a_deleted_trial_can_be_made_again(service: Serving, ended: str) -> None:
    first = tried(service, ended)["id"]
    service.http.post(f"/v1/jobs/{first}/cancel")
    assert service.http.delete(f"/v1/jobs/{first}").status_code == 204
    assert tried(service, ended)["id"] != first


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"seeds": 5}, "seeds"),
        ({"seeds": 0, "order": "in_turn"}, "seeds"),
        ({"seeds": 65, "order": "in_turn"}, "seeds"),
        ({"seeds": 5, "order": "together"}, "seeds"),
        ({"order": "at_once"}, "order"),
        ({"symptom": "flu"}, "symptom"),
        ({"remedies": [{"label": "a", "set": {"dataset.test": 0.5}}]}, "remedies.0.set.dataset.test"),
        ({"remedies": [{"label": "a", "set": {"model.hidden": "wide"}}]}, "remedies.0.set.model.hidden"),
        ({"remedy": []}, "remedy"),
        ({"symptom": "penalty_dominates"}, "remedies"),
    ],
)
def test_what_cannot_be_tried_is_refused_with_a_path_and_a_hint(service: Serving, ended: str, body: dict[str, Any], path: str) -> None:
    assert_problem(service.http.post(f"/v1/jobs/{ended}/remedies", json=body), 422, path=path)


def test_a_job_that_has_not_ended_cannot_be_cured_yet(service: Serving) -> None:
    job = service.submit(DIGITS)
    assert_problem(service.http.post(f"/v1/jobs/{job}/remedies"), 409)
    assert listed(service, job)["trials"] == []


def test_rows_too_few_to_compare_on(service: Serving) -> None:
    """Of two rows a fifth is none: there is nothing to hold out."""
    job = service.submit({"dataset": {**LINEAR["dataset"], "x": [[1], [2]], "y": [2, 4]}})
    finish(service, job)
    assert_problem(service.http.post(f"/v1/jobs/{job}/remedies"), 422, path="dataset.validation")


def test_errors_of_the_request_itself(service: Serving, ended: str) -> None:
    assert_problem(service.http.post("/v1/jobs/job_nobody/remedies"), 404)
    assert_problem(service.http.get("/v1/jobs/job_nobody/remedies"), 404)
    assert_problem(service.http.post(f"/v1/jobs/{ended}/remedies", content=b"{", headers={"Content-Type": "application/json"}), 422)
    assert_problem(service.http.post(f"/v1/jobs/{ended}/remedies", content=b"seeds=8", headers={"Content-Type": "text/plain"}), 415)
    assert_problem(service.http.get(f"/v1/jobs/{ended}/remedies", params={"symptom": "flu"}), 422, path="symptom")
