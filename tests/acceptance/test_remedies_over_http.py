"""A job with a known fault: diagnosed, its remedies tried against it as it is, one confirmed over eight paired seeds; over HTTP and in the terminal."""

from typing import Any

import pytest
from doors import House
from user_side import regtrain

DEEP: dict[str, Any] = {
    "dataset": {"kind": "blobs", "rows": 200, "std": 2.0, "standardize": True},
    "model": {"kind": "mlp", "hidden": [16] * 8, "activation": "sigmoid"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "budget": {"epochs": 6, "batch_size": 32},
    "remedy": "try",
}
"""Eight sigmoids with torch's own init: by theory the first layer gets 1e-6 of the last one's signal gradient, and the net learns nothing."""
BEST = "normalization batch, residual, activation relu, init he_normal"


@pytest.fixture(scope="module")
def cured(house: House) -> tuple[str, dict[str, Any]]:
    """The ID of the job, and its trial when that has ended."""
    job = house.trained(DEEP)
    assert job["diagnosis"]["root"] == "vanishing_signal"
    (trial,) = remedies(house, job["id"])["trials"]
    return job["id"], house.until(trial["job"])


def remedies(house: House, job: str) -> dict[str, Any]:
    return house.http.get(f"/v1/jobs/{job}/remedies").raise_for_status().json()


def test_the_trial_that_the_job_asked_for_confirms_a_remedy(house: House, cured: tuple[str, dict[str, Any]]) -> None:
    job, trial = cured
    assert trial["state"] == "succeeded", trial["error"]
    said = trial["result"]["trial"]
    assert said["of"] == job
    assert said["control"]["shown"] == 1.0
    assert said["confirmed"] == BEST
    best = next(verdict for verdict in said["verdicts"] if verdict["label"] == BEST)
    assert (best["pairs"], best["shown"], best["p"]) == (8, 0.0, 6 / 256)
    assert best["difference"] > 0.5  # of ln 3 = 1.1
    assert remedies(house, job)["trials"][0]["in_words"] == said["in_words"]
    assert house.http.post(f"/v1/jobs/{job}/remedies").json()["id"] == trial["id"]


def test_runs_of_the_trial_say_who_was_left_out(house: House, cured: tuple[str, dict[str, Any]]) -> None:
    _, trial = cured
    runs = house.runs(trial["id"])
    assert len(runs) == 13 * 8
    pruned = [run for run in runs if run["stop_reason"] == "pruned"]
    kept = {verdict["label"]: verdict["pairs"] for verdict in trial["result"]["trial"]["verdicts"]}
    assert len(pruned) == sum(8 - pairs for pairs in kept.values())
    assert sorted(kept.values()) == [2] * 6 + [4] * 2 + [8] * 4


def test_in_the_terminal(house: House, cured: tuple[str, dict[str, Any]]) -> None:
    job, trial = cured
    shown = regtrain("remedies", job, "--url", house.url)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("remedies for vanishing_signal\n")
    assert f"{trial['id']} (succeeded): {BEST} is confirmed: vanishing_signal is gone" in shown.stdout
    again = regtrain("remedies", job, "--try", "--url", house.url)
    assert again.returncode == 0, again.stderr
    assert trial["id"] in again.stdout
    assert regtrain("remedies", "job_nobody", "--url", house.url).returncode == 1
    assert regtrain("remedies", job, "--symptom", "flu", "--url", house.url).returncode == 2


def test_in_turn_the_first_that_is_confirmed_ends_the_trial(house: House, cured: tuple[str, dict[str, Any]]) -> None:
    """The list begins with what the other trial has confirmed; whatever is tried before the first that is confirmed has left, and nothing is tried behind it."""
    job, other = cured
    trial = house.until(house.http.post(f"/v1/jobs/{job}/remedies", json={"order": "in_turn"}).raise_for_status().json()["id"])
    assert trial["state"] == "succeeded", trial["error"]
    said = [(verdict["verdict"], verdict["pairs"]) for verdict in trial["result"]["trial"]["verdicts"] if not verdict["label"].startswith("random ")]
    assert said == [("confirmed", 8), *[("not_tried", 0)] * 5]
    assert trial["result"]["trial"]["confirmed"] in {verdict["label"] for verdict in other["result"]["trial"]["verdicts"] if verdict["verdict"] == "confirmed"}
    runs = house.runs(trial["id"])
    assert sum(run["stop_reason"] != "pruned" for run in runs) <= 24
    assert [run["variant"] for run in runs if run["stop_reason"] != "pruned"][:16] == ["as it is"] * 8 + [trial["result"]["trial"]["confirmed"]] * 8


def test_a_job_stopped_by_its_symptom_is_repaired_at_the_cost_of_the_remedy(house: House) -> None:
    job = house.trained({**DEEP, "dataset": {**DEEP["dataset"], "validation": 0.2}, "on_symptom": {"vanishing_signal": "stop"}, "remedy": "quick"})
    (listed,) = remedies(house, job["id"])["trials"]
    trial = house.until(listed["job"])
    stopped, control, first = house.runs(job["id"])[0], *house.runs(trial["id"])[:2]
    assert (stopped["steps"], control["steps"], first["steps"]) == (1, 0, 30)  # of 160 rows in batches of 32, six epochs
    assert trial["spec"]["trial"]["known"] == {"metric": stopped["metrics"]["loss/val"], "shown": True}
    (newest,) = remedies(house, job["id"])["trials"]
    assert (newest["order"], newest["confirmed"], newest["helps"]) == ("in_turn", None, trial["result"]["trial"]["helps"])
    assert newest["helps"] is not None
    assert "1 pair cannot confirm it, 8 can" in newest["in_words"]


def test_in_turn_in_the_terminal(house: House, cured: tuple[str, dict[str, Any]]) -> None:
    job, _ = cured
    shown = regtrain("remedies", job, "--try", "--in-turn", "--seeds", "1", "--url", house.url)
    assert shown.returncode == 0, shown.stderr
    assert " helps: vanishing_signal is gone and loss/val is better than the control's by " in shown.stdout
    few = regtrain("remedies", job, "--try", "--seeds", "5", "--url", house.url)
    assert few.returncode == 2
    assert "seeds" in few.stderr
    assert "in_turn" in few.stderr
    for option in (("--in-turn",), ("--seeds", "1")):
        alone = regtrain("remedies", job, *option, "--url", house.url)
        assert alone.returncode == 2
        assert "give --try too" in alone.stderr
