"""Runs that have stopped leave their pack at fixed steps, and nothing about the others can tell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_jobs import events, outcome, sgd, spec

from regtrain.contract.events import Checkpointed, Event, Points
from regtrain.contract.job import parse
from worker.training import points, running
from worker.training.train import train

LRS = [0.3, 0.001, 0.2, 5.0, 0.002, 0.25, 0.3, 0.2]
"""One run diverges, the quick ones run out of patience early, the slow ones train on."""
JOB = spec(
    {"kind": "linear", "rows": 40, "coefficients": [1.0, -2.0], "validation": 0.25},
    {"kind": "mlp", "hidden": [3], "activation": "tanh"},
    "squared_error",
    sgd({"values": LRS}, 0.5),
    {"kind": "dropout", "rate": 0.1},
    {"kind": "early_stopping", "patience": 20},
    epochs=300,
    batch_size=10,
)
ALONE = [[run] for run in range(len(LRS))]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "COMPACT", 32)
    monkeypatch.setattr(points, "MOST_STEPS", 16)


def narrowed(found: list[Event]) -> bool:
    """Whether a block of points came from a part of the pack only: the places of the others hold no numbers at all."""
    blocks = [event for event in found if isinstance(event, Points) and "learning_rate" in event.values]
    return any(np.isnan(block.values["learning_rate"]).any() for block in blocks)


def test_a_run_says_the_same_in_a_pack_that_shrinks_and_alone(tmp_path: Path) -> None:
    together, apart = (events(JOB, scratch=tmp_path, packs=packs) for packs in ([list(range(len(LRS)))], ALONE))
    assert narrowed(together)
    assert not narrowed(apart)
    company, alone = outcome(together), outcome(apart)
    assert len({run.steps for run in alone.runs.values()}) >= 4
    for run, end in alone.runs.items():
        assert (company.runs[run].steps, company.runs[run].stop_reason, company.runs[run].best.get("step")) == (end.steps, end.stop_reason, end.best.get("step"))
        for name in alone.curves:
            for ours, theirs in zip(company.curves[name][run], alone.curves[name][run], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=f"{name} of run {run}")
        if end.state == "succeeded":
            assert torch.allclose(company.flat(run), alone.flat(run), rtol=1e-10, atol=1e-13)


def test_a_pack_that_has_shrunk_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    for folder in (whole, first, second):
        folder.mkdir()
    uninterrupted = outcome(events(JOB, scratch=whole))
    before = until_shrunk(JOB, first)
    checkpoint = before[-1]
    assert isinstance(checkpoint, Checkpointed)
    after = events(JOB, scratch=second, resume={0: Path(checkpoint.path)})
    resumed = outcome([*before, *after[1:]])
    for name, runs in uninterrupted.curves.items():
        for run, (steps, values) in runs.items():
            np.testing.assert_array_equal(resumed.curves[name][run][0], steps)
            np.testing.assert_array_equal(resumed.curves[name][run][1], values)
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in uninterrupted.weights.items())


def until_shrunk(job: dict[str, Any], scratch: Path) -> list[Event]:
    """The events up to the first checkpoint of a pack that has lost runs."""
    found: list[Event] = []
    for event in train(parse(json.dumps(job)), data=scratch, scratch=scratch, wants_checkpoint=lambda: narrowed(found), checkpoint_seconds=1e9):
        found.append(event)
        if isinstance(event, Checkpointed):
            break
    return found
