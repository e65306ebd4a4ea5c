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
