"""Symptoms of nets that are trained: faults are found in the right layer, healthy ones are left alone, and watching changes nothing."""

import itertools
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_jobs as jobs

from regtrain.contract.diagnosis import diagnose
from regtrain.contract.errors import Diverged, SpecRefused
from regtrain.contract.events import Checkpointed, Event, Noticed, RunFinished
from regtrain.contract.job import parse
from regtrain.contract.states import StopReason
from worker.training.train import train

DIGITS = {"kind": "digits", "validation": 0.2, "standardize": True}
SEEDS = 20


def net(depth: int, width: int, activation: str, init: str, **more: Any) -> dict[str, Any]:
    return {"kind": "mlp", "hidden": [width] * depth, "activation": activation, "init": {"kind": init, **more}}


def digits(model: dict[str, Any], *regularizers: Any, optimizer: Any = None, **rest: Any) -> dict[str, Any]:
    given = {"epochs": 10, "batch_size": 64, "dtype": "float32", **rest}
    return jobs.spec(given.pop("dataset", DIGITS), model, given.pop("loss", "cross_entropy"), optimizer or jobs.sgd(0.05, 0.9), *regularizers, **given)


def noticed(job: dict[str, Any]) -> list[Noticed]:
    with tempfile.TemporaryDirectory() as folder:
        found: list[Noticed] = []
        with suppress(Diverged):
            found.extend(event for event in train(parse(json.dumps(job)), data=Path(folder), scratch=Path(folder)) if isinstance(event, Noticed))
        return found


def grave(job: dict[str, Any]) -> list[tuple[int, str, str | None]]:
    return [(one.run, one.symptom, one.layer) for one in noticed(job) if one.severity != "note"]


def test_the_blind_spot_is_seen_at_step_0_on_every_seed() -> None:
    """34 layers of Glorot ReLU without bias: ‖δ‖ falls to 2^(−33/2) = 1.08e-5 while the weight gradients of first and last layer are alike."""
    job = digits({**net(34, 128, "relu", "xavier_normal"), "bias": False}, optimizer=jobs.sgd(jobs.FROZEN), selection={"seeds": SEEDS}, batch_size="all", epochs=1)
    found = [one for one in noticed(job) if one.symptom == "vanishing_signal"]
    assert sorted(one.run for one in found) == list(range(SEEDS))
    assert {(one.layer, one.step, one.done) for one in found} == {("layers.0", 0, 1)}
    assert np.median([one.value for one in found]) == pytest.approx(2 ** (-33 / 2), rel=0.5)
    assert all(one.evidence["chi_low"] < 0.5 < one.evidence["chi_high"] or abs(one.evidence["chi"] - 0.5) < 0.05 for one in found)
    assert min(one.confidence for one in found) > 0.999


def test_he_of_the_same_depth_is_healthy_on_every_seed() -> None:
    job = digits({**net(34, 128, "relu", "he_normal"), "bias": False}, optimizer=jobs.sgd(jobs.FROZEN), selection={"seeds": SEEDS}, batch_size="all", epochs=1)
    assert grave(job) == []


INLINE = np.random.default_rng(0)
SPARSE_X = np.where(INLINE.random((400, 30)) < 0.75, 0.0, INLINE.normal(size=(400, 30)))
SPARSE = jobs.inline(SPARSE_X, (SPARSE_X[:, 0] + SPARSE_X[:, 1] > 0).astype(float), validation=0.2)
BLOBS = {"kind": "blobs", "rows": 600, "validation": 0.2, "standardize": True}
CIRCLES = {"kind": "circles", "rows": 600, "validation": 0.2}
HEALTHY: dict[str, dict[str, Any]] = {
    "three layers": digits(net(3, 64, "relu", "he_normal")),
    "always-zero pixels": digits(net(2, 64, "relu", "he_normal"), dataset={"kind": "digits", "validation": 0.2}),
    "full": digits(net(3, 48, "relu", "he_normal"), diagnostics="full"),
    "tanh, full": digits(net(3, 48, "tanh", "xavier_normal"), diagnostics="full"),
    "sparse rows": digits(net(2, 16, "relu", "he_normal"), dataset=SPARSE, epochs=10, diagnostics="full"),
    "sparse units by L1": digits(net(2, 64, "relu", "he_normal"), {"kind": "l1", "lambda": 1e-3}, diagnostics="full"),
    "label smoothing": digits(net(2, 64, "relu", "he_normal"), loss={"kind": "cross_entropy", "label_smoothing": 0.1}),
    "warm-up": digits(net(2, 64, "relu", "he_normal"), optimizer=jobs.sgd(0.05, 0.9, kind="constant", warmup_steps=150)),
    "batch size 1": digits(net(1, 32, "relu", "he_normal"), optimizer=jobs.sgd(0.003), batch_size=1, epochs=2, diagnostics="full"),
    "batch size 1, three epochs": digits(
        net(3, 32, "tanh", "xavier_normal"), dataset={"kind": "breast_cancer", "validation": 0.3, "split": "stratified", "standardize": True}, optimizer=jobs.sgd(0.01), batch_size=1, epochs=3
    ),
    "He, two classes": digits(net(3, 32, "relu", "he_normal"), dataset=BLOBS | {"centers": 2}, epochs=3),
    "converged": digits(net(2, 32, "tanh", "xavier_normal"), dataset=BLOBS, epochs=100, batch_size="all", optimizer=jobs.sgd(0.3, 0.9)),
    "95 % in the first epoch": digits(net(2, 64, "relu", "he_normal"), optimizer={"kind": "adam", "lr": 0.005}),
    "AdamW": digits(net(2, 64, "relu", "he_normal"), {"kind": "weight_decay", "lambda": 0.01}, optimizer={"kind": "adam", "lr": 0.002}),
    "circles": digits(net(3, 16, "relu", "he_normal"), dataset=CIRCLES, epochs=60, batch_size=32, optimizer={"kind": "adam", "lr": 0.005}),
    "deep batch norm": digits({**net(10, 32, "relu", "he_normal"), "normalization": {"kind": "batch"}}, epochs=5),
    "dropout and L2": digits(net(2, 64, "relu", "he_normal"), {"kind": "dropout", "rate": 0.3}, {"kind": "l2", "lambda": 1e-4}),
    "clip": digits(net(2, 64, "relu", "he_normal"), clip={"kind": "global_norm", "max": 1.0}),
    "frozen by intent": digits(net(2, 64, "relu", "he_normal"), optimizer={"kind": "adam", "lr": 0.001}, epochs=1),
}  # fmt: skip


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_net_raises_no_alarm(case: str) -> None:
    assert grave(HEALTHY[case] | {"selection": {"seeds": 5}}) == []


CHANCE = jobs.inline(INLINE.normal(size=(300, 20)), INLINE.integers(0, 2, 300).astype(float), validation=0.3)
RARE = jobs.inline(INLINE.normal(size=(600, 5)), (np.arange(600) % 40 == 0).astype(float), validation=0.3, split="stratified")
FEW_X = INLINE.normal(size=(160, 30))
FEW = jobs.inline(FEW_X, np.where(INLINE.random(160) < 0.2, FEW_X[:, 0] < 0, FEW_X[:, 0] > 0).astype(float), validation=0.5)
ORDER = {"kind": "temporal_order", "rows": 400, "length": 30, "validation": 0.25}
RECURRENT = {"kind": "rnn", "hidden": [12], "init": {"kind": "orthogonal", "scale": 0.4}}
FAULTS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "deep sigmoid": (digits(net(8, 32, "sigmoid", "torch"), epochs=2), "vanishing_signal", "layers.0"),
    "large deep init": (digits(net(12, 64, "relu", "he_normal", scale=2.0), epochs=1, optimizer=jobs.sgd(1e-6)), "exploding_signal", "layers.0"),
    "raw wine": (digits(net(2, 32, "relu", "he_normal"), dataset={"kind": "wine", "validation": 0.2}, epochs=20), "unscaled_inputs", None),
    "a large last layer": (digits(net(2, 32, "relu", "normal", std=1.0), epochs=2), "poor_first_loss", "head"),
    "lr 50": (digits(net(2, 32, "relu", "he_normal"), optimizer=jobs.sgd(50.0)), "rate_too_high", None),
    "lr 1e-7": (digits(net(2, 32, "relu", "torch"), optimizer=jobs.sgd(1e-7)), "rate_too_low", None),
    "saturated tanh": (digits(net(3, 32, "tanh", "xavier_normal", scale=20.0), epochs=2, diagnostics="full"), "saturated", "layers.0"),
    "λ of 10": (digits(net(2, 32, "relu", "he_normal"), {"kind": "l1", "lambda": 10.0}), "penalty_dominates", None),
    "zeros": (digits(net(2, 32, "relu", "zeros")), "equal_units", "layers.0"),
    "zeros of tanh": (digits(net(3, 32, "tanh", "zeros"), epochs=2), "no_gradient", "layers.2"),
    "a layer held at 1e-4": (digits(net(3, 32, "tanh", "xavier_normal"), {"kind": "max_norm", "max": 1e-4, "on": ["layers.1"]}, epochs=3), "penalty_dominates", "layers.1"),
    "Adam at 3, single rows": (digits(net(2, 32, "tanh", "xavier_normal"), optimizer={"kind": "adam", "lr": 3.0}, batch_size=1, epochs=1), "rate_too_high", None),
    "labels drawn by chance": (digits(net(1, 64, "relu", "he_normal"), dataset=CHANCE, optimizer={"kind": "adam", "lr": 0.01}, epochs=60, batch_size=32), "label_noise", None),
    "a class that is never answered": (digits(net(1, 8, "tanh", "xavier_normal"), dataset=RARE, epochs=8, batch_size=32), "class_imbalance", None),
    "80 rows by heart": (digits(net(1, 64, "relu", "he_normal"), dataset=FEW, optimizer={"kind": "adam", "lr": 0.01}, epochs=60, batch_size=16), "overfitting", None),
    "30 steps at a radius of 0.4": (digits(RECURRENT, dataset=ORDER, optimizer=jobs.sgd(0.1), epochs=6, batch_size=32), "vanishing_gradient", "layers.0"),
    "squared digits": (
        digits(net(1, 16, "relu", "he_normal"), dataset={"kind": "digits", "validation": 0.2}, loss="squared_error", optimizer=jobs.sgd(1e-3), epochs=2),
        "wrong_output",
        "head",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_broken_net_has_its_symptom(case: str) -> None:
    job, symptom, layer = FAULTS[case]
    found = [one for one in noticed(job | {"selection": {"seeds": 3}}) if one.symptom == symptom]
    assert sorted(one.run for one in found) == [0, 1, 2]
    assert layer is None or {one.layer for one in found} == {layer}


ROOTS: dict[str, tuple[dict[str, Any], str]] = {
    "a clip at 1e-6": (digits(net(2, 32, "relu", "torch"), clip={"kind": "global_norm", "max": 1e-6}, epochs=4), "clip_always"),
    "Adam at 3": (digits(net(3, 16, "tanh", "xavier_normal"), dataset=BLOBS, optimizer={"kind": "adam", "lr": 3.0}, batch_size=32, epochs=12, diagnostics="full"), "rate_too_high"),
    "12 layers, weights × 5": (digits(net(12, 32, "relu", "he_normal", scale=5.0), epochs=2), "exploding_signal"),
    "a layer of zeros": (digits(net(3, 32, "relu", "he_normal"), {"kind": "box", "low": 0.0, "high": 0.0, "on": ["layers.2"]}, epochs=4, diagnostics="full"), "penalty_dominates"),
    "all weights 0": (digits(net(3, 32, "relu", "zeros"), epochs=4, diagnostics="full"), "equal_units"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOTS)
def test_the_root_is_what_was_done_and_not_what_follows(case: str) -> None:
    job, root = ROOTS[case]
    assert diagnose(noticed(job | {"selection": {"seeds": 3}}), runs=3, preset=job.get("diagnostics", "standard")).root == root


def test_a_whole_run_with_a_scaled_loss_has_the_same_symptoms() -> None:
    """half_squared_error is squared_error halved: with lr doubled, and λ and clip halved, the same run, so the same symptoms to the last digit."""
    x, y = np.linspace(-1, 1, 64)[:, None], np.sin(3 * np.linspace(-1, 1, 64))

    def job(loss: str, factor: float) -> list[Any]:
        given = digits(
            net(8, 16, "sigmoid", "torch"), {"kind": "l2", "lambda": 1e-3 * factor}, dataset=jobs.inline(x, y, validation=0.25), loss=loss, optimizer=jobs.sgd(0.05 / factor),
            clip={"kind": "global_norm", "max": 0.5 * factor}, epochs=300, batch_size="all", dtype="float64",
        )  # fmt: skip
        return [(one.symptom, one.layer, one.step, one.severity, pytest.approx(one.value, rel=1e-6)) for one in noticed(given)]

    found = job("half_squared_error", 1.0)
    assert {one[0] for one in found} >= {"vanishing_signal", "plateau"}
    assert job("squared_error", 2.0) == found


def outcome(events: list[Event]) -> tuple[Any, ...]:
    return [event for event in events if isinstance(event, Noticed)], {e.run: (e.steps, e.stop_reason, e.metrics) for e in events if isinstance(e, RunFinished)}  # pyright: ignore[reportReturnType]


def test_a_symptom_stops_its_run_at_a_fixed_step() -> None:
    """Of four learning rates the two that diverge stop at the end of the window that shows it; the others go on as if nothing had been asked."""
    job = digits(net(2, 16, "relu", "he_normal"), optimizer=jobs.sgd({"values": [0.01, 0.03, 30.0, 100.0]}), epochs=20)
    _, free = outcome(list(_run(job)))
    found, stopped = outcome(list(_run(job | {"on_symptom": {"rate_too_high": "stop"}})))
    for run in (2, 3):
        [at] = [one.done for one in found if (one.run, one.symptom) == (run, "rate_too_high")]
        assert stopped[run][:2] == (at, StopReason.SYMPTOM)
        assert at in (32, 128, 256)
    for run in (0, 1):
        assert stopped[run][:2] == free[run][:2]
        assert stopped[run][2] == pytest.approx(free[run][2], rel=1e-5)


def test_watching_and_stopping_do_not_depend_on_when_reports_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    job = digits(net(8, 16, "sigmoid", "torch"), optimizer=jobs.sgd({"values": [0.01, 40.0]}), epochs=12, on_symptom={"plateau": "stop"}, diagnostics="full")
    expected = outcome(list(_run(job)))
    assert {one.symptom for one in expected[0]} >= {"vanishing_signal", "plateau"}
    for seconds, most in ((0.0, 1024), (1e9, 7)):
        monkeypatch.setattr("worker.training.points.SECONDS", seconds)
        monkeypatch.setattr("worker.training.points.MOST_STEPS", most)
        assert outcome(list(_run(job))) == expected


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_resumed_job_says_what_the_uninterrupted_one_says(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that was noticed up to a checkpoint, and what the job says after it, is what it says without a break."""
    monkeypatch.setattr("worker.training.points.SECONDS", 1e9)
    monkeypatch.setattr("worker.training.points.MOST_STEPS", 50)
    job = digits(net(8, 16, "sigmoid", "torch"), optimizer=jobs.sgd({"values": [0.01, 40.0]}), epochs=16, on_symptom={"oscillating": "stop"})
    whole = list(_run(job, tmp_path, checkpoint_seconds=0.0))
    places = [place for place, event in enumerate(whole) if isinstance(event, Checkpointed)]
    checkpoint = whole[places[at]]
    assert isinstance(checkpoint, Checkpointed)
    before = [event for event in whole[: places[at]] if isinstance(event, Noticed)]
    assert all(one.done <= checkpoint.step for one in before), "what lies beyond a checkpoint has been noticed after it"
    after = list(_run(job, tmp_path, checkpoint_seconds=1e9, resume={0: Path(checkpoint.path)}))
    assert before + outcome(after)[0] == outcome(whole)[0]
    assert outcome(after)[1] == outcome(whole)[1]


def test_a_symptom_that_there_is_not_is_refused_at_its_path() -> None:
    with pytest.raises(SpecRefused) as refused:
        parse(json.dumps(digits(net(1, 8, "relu", "he_normal"), on_symptom={"vanishing_signl": "stop", "plateau": "halt"})))
    told = {problem.path: problem for problem in refused.value.problems}
    assert set(told) == {"on_symptom.vanishing_signl", "on_symptom.plateau"}
    assert "vanishing_signal" in told["on_symptom.vanishing_signl"].hint
    assert "'continue' or 'stop'" in told["on_symptom.plateau"].message


def _run(job: dict[str, Any], folder: Path | None = None, **how: Any) -> itertools.chain[Event]:
    with tempfile.TemporaryDirectory() as temporary:
        return itertools.chain(list(train(parse(json.dumps(job)), data=Path(temporary), scratch=folder or Path(temporary), **how)))
