"""Sweeps of 64 runs and more, killed in the middle: whatever is found while training goes on is found again, and the choice and every curve are the same."""

import json
from typing import Any

import pytest
from outcomes import complete, outcome, same
from test_kills import Pair
from worker_houses import House, child_of

from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse, resolved
from regtrain.contract.remedies import Request, patient, trial_of
from regtrain.contract.states import State, StopReason

LINEAR: dict[str, Any] = {
    "dataset": {"kind": "diabetes", "standardize": True},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "optimizer": {"kind": "proximal", "tolerance": 1e-8},
    "budget": {"epochs": 400, "batch_size": "all"},
    "diagnostics": "light",
}
SWEEPS: dict[str, dict[str, Any]] = {
    "grid": {
        "dataset": {"kind": "digits", "validation": 0.2},
        "model": {"kind": "mlp", "hidden": [16]},
        "loss": {"kind": "cross_entropy"},
        "regularizers": [{"kind": "l1", "lambda": {"log": [1e-6, 1e-1], "points": 32}}, {"kind": "early_stopping", "patience": 5}],
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
        "budget": {"epochs": 40, "batch_size": 64},
        "selection": {"seeds": 2},
        "diagnostics": "light",
    },
    "path": {**LINEAR, "regularizers": [{"kind": "l1", "lambda": {"path": 16, "ratio": 1e-2}}], "selection": {"folds": 3, "rule": "one_standard_error"}},
    "search": {
        **LINEAR,
        "regularizers": [{"kind": "l1", "lambda": {"suggest": [1e-3, 50], "log": True}}],
        "selection": {"folds": 4, "seeds": 2, "trials": 12},
        "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    },
}

DEEP: dict[str, Any] = {
    "dataset": {"kind": "blobs", "rows": 200, "std": 2.0, "standardize": True},
    "model": {"kind": "mlp", "hidden": [16] * 8, "activation": "sigmoid"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.02},
    "budget": {"epochs": 10, "batch_size": 32},
}


def trial(**asked: Any) -> dict[str, Any]:
    """Of remedies for a vanishing signal over eight seeds."""
    spec = parse(json.dumps(DEEP))
    facts = facts_of(spec.dataset)
    assert facts is not None
    return resolved(trial_of(patient("job_1", spec, "vanishing_signal", variant=None, values={}), facts, Request.model_validate(asked))[0])


VAIN = [{"label": f"lr ÷ {factor}", "set": {"optimizer.lr": 0.02 / factor}} for factor in (2, 4, 8)]
CURE = {"model.activation": "relu", "model.init": {"kind": "he_normal"}, "model.normalization": {"kind": "batch"}, "model.residual": True}
SWEEPS["trial"] = trial()
"""Thirteen contestants, halved twice."""
SWEEPS["in_turn"] = trial(order="in_turn", remedies=(*VAIN, {"label": "cure", "set": CURE}, {"label": "late", "set": {"optimizer.lr": 1.0}}))
"""Three that leave with two seeds, one that is confirmed, one that is not tried, and those that chance has drawn."""


@pytest.fixture(scope="module")
def pair(house: House) -> Pair:
    one = Pair(house)
    one.complete()
    return one


@pytest.mark.parametrize("name", SWEEPS)
def test_killed_in_the_middle_of_a_sweep_the_choice_and_the_curves_are_the_same(house: House, pair: Pair, name: str) -> None:
    pair.complete()
    whole = house.ended(house.submit(SWEEPS[name]))
    assert (whole.state, whole.attempt) == (State.SUCCEEDED, 1)
    expected = outcome(house, whole.id)
    assert len(expected["runs"]) >= 64
    if name in ("search", "trial", "in_turn"):
        assert StopReason.PRUNED in {run.stop_reason for run in expected["runs"]}
    least = (0.3 if len(whole.packs or []) == 1 else 0.4) * whole.progress["steps"]
    ended = pair.struck(SWEEPS[name], when=lambda job: house.checkpoints(job) and house.job(job).progress["step"] >= least, blow=lambda worker: child_of(worker).kill())
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    complete(house, ended.id)
    same(outcome(house, ended.id), expected)
    for answer in ("selection", "trial"):
        assert (ended.result or {})[answer] == (whole.result or {})[answer]
    assert (ended.result or {})["trial"] is None or (ended.result or {})["trial"]["confirmed"] is not None
