"""The last updates before a failure, made again from a copy: they are those that were, number by number, and no other run notices."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_jobs import Outcome, events, inline, run, sgd, spec, torch_order

from regtrain.contract.errors import Diverged
from regtrain.contract.events import Checkpointed, Event, RunFinished
from regtrain.contract.job import parse
from worker.training import points as reporting
from worker.training import running
from worker.training.train import train

MEASURED = ("loss/train", "learning_rate", "gradient/total", "gradient/norm", "signal/forward", "signal/backward", "weight/norm", "update/ratio")
DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(400, 4)), DRAW.normal(size=400)
FEW = inline(X[:20], Y[:20])


def failure(job: dict[str, Any]) -> dict[str, Any]:
    """What the only run of a job, which fails, says of it."""
    ends: list[RunFinished] = []
    with tempfile.TemporaryDirectory() as folder, pytest.raises(Diverged):
        ends.extend(event for event in train(parse(json.dumps(job)), data=Path(folder)) if isinstance(event, RunFinished))
    assert ends[0].first_nonfinite is not None
    return ends[0].first_nonfinite


def sound(last: dict[str, Any]) -> bool:
    """Whether all numbers of the failed update by which a failure is noticed are finite."""
    return bool(np.isfinite([last["loss/train"][-1], *last["gradient/norm"][-1]]).all())


def as_they_were(last: dict[str, Any], of: Outcome, *, index: int = 0, tolerance: float = 0.0) -> None:
    """The updates in front of the failure are the last points of a run's curves: the same numbers, or within a relative tolerance."""
    for name in MEASURED:
        steps, values = of.curves[name][index]
        at = np.isin(last["steps"], steps) & (np.array(last["steps"]) < last["steps"][-1])
        told, was = np.array(last[name], values.dtype)[at], values[np.isin(steps, np.array(last["steps"])[at])]
        assert told.shape == was.shape
        assert len(told) >= min(27, last["steps"][-1])  # but for those of an epoch that was not begun
        if tolerance:
            assert told == pytest.approx(was, rel=tolerance, abs=1e-12), name
        else:
            assert np.array_equal(told, was), name


MLP = {"kind": "mlp", "hidden": [6, 5], "activation": "tanh"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "momentum, a proximal step": (MLP, sgd(0.05, 0.9), [{"kind": "l1", "lambda": 0.01}], {}),
    "batch norm, adam, dropout": ({**MLP, "normalization": {"kind": "batch"}}, {"kind": "adam", "lr": 0.01}, [{"kind": "dropout", "rate": 0.3}], {}),
    "spectral norm": ({**MLP, "reparametrization": {"kind": "spectral_norm"}}, sgd(0.05), [], {}),
    "lstm, clipped": ({"kind": "rnn", "cell": "lstm", "hidden": [5], "sequence": [4, 1]}, sgd(0.1), [], {"clip": {"kind": "global_norm", "max": 0.5}}),
    "light": (MLP, sgd(0.05), [], {"diagnostics": "light"}),
}


@pytest.mark.parametrize(("kind", "t"), [*((next(iter(KINDS)), t) for t in (0, 5, 31, 32, 62, 63, 64, 95, 190)), *((kind, 75) for kind in KINDS)])
def test_they_are_the_updates_of_the_run_that_does_not_fail(kind: str, t: int) -> None:
    """A row that is infinite in float32 fails the update that first sees it; with that row tame, the same job goes through the same updates before."""
    model, optimizer, regularizers, rest = KINDS[kind]
    job = spec(inline(X, Y), model, "squared_error", optimizer, *regularizers, batch_size=2, epochs=1, dtype="float32", **rest)
    bad = X.copy()
    bad[torch_order(job, rows=400, epochs=1)[t][0], 0] = 1e300
    found = failure({**job, "dataset": inline(bad, Y)})
    last = found["last"]
    assert found["step"] == t
    assert last["steps"] == list(range(max(0, t - 31), t + 1))
    assert not sound(last)
    whole = run({**job, "diagnostics": "full"})
    assert last["layers"] == whole.started.layers
    as_they_were(last, whole)


LONG = DRAW.normal(size=(24, 30))
ADAPTING = {"kind": "l2", "lambda": {"adapt": "validation_gradient", "start": 0.01}}
GROWING: dict[str, dict[str, Any]] = {
    "a rate too high, the whole batch": spec(FEW, {"kind": "linear"}, "squared_error", sgd(1.0), epochs=400, dtype="float32"),
    "a rate too high, in float64": spec(FEW, {"kind": "linear"}, "squared_error", sgd(3.0), epochs=4000),
    "a rate too high, batches": spec(FEW, {"kind": "linear"}, "squared_error", sgd(0.8), batch_size=4, epochs=400, dtype="float32"),
    "a rate too high, a strength that adapts": spec({**FEW, "validation": 0.25}, {"kind": "linear"}, "squared_error", sgd(0.7), ADAPTING, epochs=400, dtype="float32"),
    "recurrence that explodes": spec(
        inline(LONG, Y[:24]), {"kind": "rnn", "cell": "identity", "hidden": [6], "sequence": [30, 1]}, "squared_error", sgd(0.2), epochs=400, dtype="float32"
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_they_are_the_updates_of_the_job_that_ends_before_it_fails(name: str) -> None:
    job = GROWING[name]
    found = failure(job)
    last, t, per_epoch = found["last"], found["step"], 5 if "batches" in name else 1
    assert t > 40, "the copy is not that of the beginning"
    assert last["steps"] == list(range(t - 31, t + 1))
    assert not sound(last)
    as_they_were(last, run({**job, "budget": {**job["budget"], "epochs": t // per_epoch}, "diagnostics": "full"}))


PACK = spec(FEW, {"kind": "linear"}, "squared_error", sgd({"values": [0.01, 1.2, 1.0, 0.9, 0.85, 0.02, 1.1, 3.0]}), epochs=400, dtype="float32", diagnostics="full")
"""Two runs that are sound and six that fail, one after the other."""


@pytest.mark.parametrize("every", [256, 8])
def test_runs_of_a_pack_are_those_of_its_curves(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the runs that are left go on in a smaller pack."""
    monkeypatch.setattr(running, "COMPACT", every)
    found = run(PACK)
    lost = {index: ended.first_nonfinite for index, ended in found.runs.items() if ended.first_nonfinite}
    assert set(lost) == {1, 2, 3, 4, 6, 7}
    assert len({seen["step"] for seen in lost.values()}) == 6
    for index, seen in lost.items():
        assert seen["last"]["steps"] == list(range(max(0, seen["step"] - 31), seen["step"] + 1))
        as_they_were(seen["last"], found, index=index, tolerance=1e-6)


def test_sound_runs_do_not_notice() -> None:
    """Nothing is copied with `off`, and nobody fails where bad updates are left out."""
    with_copies, without, skipping = run({**PACK, "diagnostics": "standard"}), run({**PACK, "diagnostics": "off"}), run({**PACK, "on_nonfinite": "skip_step"})
    for index in (0, 5):
        assert with_copies.flat(index).numpy().tobytes() == without.flat(index).numpy().tobytes() == skipping.flat(index).numpy().tobytes()
    for index in (1, 2, 3, 4, 6, 7):
        lost = without.runs[index].first_nonfinite
        assert lost is not None
        assert "operation" in lost
        assert "last" not in lost
        assert skipping.runs[index].first_nonfinite is None


@pytest.mark.parametrize("step", [20, 40, 60, 80])
def test_a_job_that_was_killed_reaches_back_to_its_checkpoint(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run 1 fails at update 105, run 2 at 53. A checkpoint after a failure has what was told of it; from one before it the copies begin anew."""
    monkeypatch.setattr(reporting, "MOST_STEPS", 10)
    monkeypatch.setattr(reporting, "SECONDS", 1e9)
    job = {**PACK, "optimizer": sgd({"values": [0.01, 0.75, 1.0]})}
    whole = events(job, scratch=tmp_path, wants_checkpoint=lambda: True)
    saved = next(event for event in whole if isinstance(event, Checkpointed) and event.step == step)
    before, after = told(whole), told(events(job, scratch=tmp_path, resume={0: Path(saved.path)}, packs=[[0, 1, 2]]))
    assert {index: last["steps"][-1] for index, last in before.items()} == {1: 105, 2: 53}
    for index, last in before.items():
        missing = sum(at < step <= last["steps"][-1] for at in last["steps"])
        assert missing == {(40, 2): 18, (80, 1): 6}.get((step, index), 0)
        assert json.dumps(after[index]) == json.dumps({name: values if name == "layers" else values[missing:] for name, values in last.items()})


def told(found: list[Event]) -> dict[int, dict[str, Any]]:
    """Run → its last updates, of those that failed."""
    return {event.run: event.first_nonfinite["last"] for event in found if isinstance(event, RunFinished) and event.first_nonfinite}
