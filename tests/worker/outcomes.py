"""What a job has left behind, read through the store: two executions of one spec must not differ in it by a bit."""

import hashlib
from typing import Any

import numpy as np
from worker_houses import House

from regtrain.store import runs, series


def outcome(house: House, job: str) -> dict[str, Any]:
    """Every point and bucket of every curve, every run, and the hash of the weights."""
    names = series.names(house.db, job)
    curves = {(points, curve.series, curve.run): curve for points in (None, 40) for curve in series.read(house.db, job, series=sorted(names), points=points)}
    listed, _ = runs.listing(house.db, job, limit=5000)
    (model,) = (house.data / "jobs" / job).glob("*/model.safetensors")
    return {"names": sorted(names), "curves": curves, "runs": listed, "metrics": house.job(job).metrics, "weights": hashlib.sha256(model.read_bytes()).hexdigest()}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Fails at the first difference."""
    assert one["names"] == other["names"]
    assert one["curves"].keys() == other["curves"].keys()
    for key, curve in one["curves"].items():
        for name in ("x", "y", "last", "min", "max", "count", "nonfinite"):
            mine, theirs = getattr(curve, name), getattr(other["curves"][key], name)
            assert (mine is None) == (theirs is None), (key, name)
            assert mine is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=True)), (key, name)
    assert repr(one["runs"]) == repr(other["runs"])
    assert repr(one["metrics"]) == repr(other["metrics"])
    assert one["weights"] == other["weights"]


def complete(house: House, job: str) -> None:
    """Each series that precedes updates has one point at each step that its run has made: none is missing, none stands twice."""
    listed, _ = runs.listing(house.db, job, limit=5000)
    for curve in series.read(house.db, job, series=["loss/train"]):
        assert np.array_equal(curve.x, np.arange(listed[curve.run].steps)), curve.run
