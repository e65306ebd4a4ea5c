"""A net with dead units goes on from its own weights, with and without surgery, by real processes: the same loss at the first step, and units that fire again."""

from typing import Any

import pytest
from doors import House

DYING: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16, 16, 16], "init": {"kind": "he_normal", "scale": 3.0}},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.3},
    "budget": {"epochs": 2, "batch_size": 64},
    "dtype": "float64",
}
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
