"""A net with dead units goes on from its own weights, with and without surgery, by real processes: the same loss at the first step, units that fire again, and a trial
that confirms it over eight seeds."""

from typing import Any

import pytest
from doors import House
from dying import DYING
from user_side import regtrain

GOES_ON: dict[str, Any] = {**DYING, "optimizer": {"kind": "sgd", "lr": 0.01}}


def test_a_job_goes_on_from_an_earlier_ones_weights_with_and_without_surgery(house: House) -> None:
    first = house.trained(DYING)
    begin = {"job": first["id"]}
    as_it_is, revived = (house.trained({**GOES_ON, "begin": {**begin, "surgery": surgery}}) for surgery in ([], [{"kind": "revive"}]))
    (told,) = revived["result"]["begin"]
    assert told["sha256"] == house.http.get(f"/v1/jobs/{first['id']}/model").headers["etag"].strip('"')
    (done,) = told["operations"]
    assert (done["kind"], done["applied"], done["difference"]) == ("revive", True, 0.0)
    assert done["fire"] == sum(done["units"].values()) > 0
    assert as_it_is["result"]["begin"][0]["operations"] == []
    starts = [house.curve(job["id"], "loss/train")[0] for job in (as_it_is, revived)]
    assert starts[0] == pytest.approx(starts[1], rel=1e-12)
    assert revived["metrics"]["loss/val"] < as_it_is["metrics"]["loss/val"] - 0.2  # of ln 10 = 2.3, which the collapsed net keeps


def test_a_continued_trial_confirms_surgery_and_leaves_the_control_as_it_is(house: House) -> None:
    job = house.trained({**DYING, "dtype": "float32", "budget": {"epochs": 8, "batch_size": 64}, "seed": 1})["id"]
    shown = regtrain("remedies", job, "--try", "--continue", "--url", house.url)
    assert shown.returncode == 0, shown.stderr
    (tried,) = house.http.get(f"/v1/jobs/{job}/remedies").json()["trials"]
    assert (tried["continues"], tried["symptom"], tried["confirmed"]) == (True, "dead_units", "revive, clip at norm 1")
    assert f"{tried['job']} (succeeded, continued): revive, clip at norm 1 is confirmed: dead_units is gone" in shown.stdout
    best = next(verdict for verdict in tried["verdicts"] if verdict["label"] == tried["confirmed"])
    assert (best["pairs"], best["shown"], best["symptom_p"]) == (8, 0.0, 1 / 256)
    assert best["difference"] > 0.3
    began = {told["variant"]: told for told in house.job(tried["job"])["result"]["begin"]}
    assert (began["as it is"]["job"], began["as it is"]["operations"]) == (job, [])
    (revived,) = began["revive"]["operations"]
    assert revived["applied"]
    starts = {run["variant"]: house.curve(tried["job"], "loss/train", run=run["index"])[0] for run in house.runs(tried["job"]) if run["seed"] == 0}
    assert starts["revive"] == pytest.approx(starts["as it is"], rel=1e-5)
    assert regtrain("remedies", job, "--continue", "--url", house.url).returncode == 2
