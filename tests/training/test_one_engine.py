"""A run is the same run whatever trains beside it, whatever measures it, and however often it was interrupted."""

import hashlib
import json
import math
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from training_jobs import FROZEN, distance, events, inline, joined, run, sgd, spec, torch_order

from regtrain.contract.catalog import FAMILIES
from regtrain.contract.errors import Diverged
from regtrain.contract.events import Checkpointed, Event, Finished, Points, RunFinished, Started
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.ranges import Searchable
from regtrain.contract.series import places, series_named
from regtrain.contract.states import RunState, StopReason
from worker.training import points as reporting
from worker.training import running
from worker.training.datasets import load, split
from worker.training.train import train

BLOBS = {"kind": "blobs", "rows": 120, "features": 4, "std": 5.0}
"""Three clouds that overlap."""
MLP = {"kind": "mlp", "hidden": [12, 8], "activation": "tanh"}
CNN = {"kind": "cnn", "channels": [3], "kernel": 3, "image": [1, 2, 2], "hidden": [6], "activation": "tanh"}
BATCH_NORM = {**MLP, "normalization": {"kind": "batch"}}
RNNS = {cell: {"kind": "rnn", "cell": cell, "hidden": [7, 6], "sequence": [4, 1]} for cell in ("tanh", "lstm", "gru")}
SPECTRAL, WEIGHTED = ({**MLP, "reparametrization": {"kind": kind}} for kind in ("spectral_norm", "weight_norm"))
RESIDUAL = {**MLP, "hidden": [12, 12, 12], "residual": True}


def two_labels(n: int = 24, features: int = 4) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    return inline(draw.standard_normal((n, features)), np.arange(n) % 2)


# ---------------------------------------------------------------- alone and in company


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
@pytest.mark.parametrize(
    "model", [MLP, CNN, BATCH_NORM, RESIDUAL, SPECTRAL, WEIGHTED, *RNNS.values()], ids=["mlp", "cnn", "batch norm", "residual", "spectral norm", "weight norm", *RNNS]
)
def test_a_run_in_a_pack_of_64_equals_the_run_alone(model, dtype, tolerance):
    """16 strengths × 4 seeds, 100 steps with dropout, momentum and early stops at different steps.

    The training is tame: L1 that kills whole units in front of batch norm, or inputs of size 10, amplify the last bit of float32 a
    thousandfold in 100 steps, whoever computes them.
    """
    strongest, patience = (0.005, 8) if {"normalization", "residual", "reparametrization", "cell"} & set(model) else (0.02, 5)
    lr, patience = {"tanh": (0.05, 6), "lstm": (0.1, 8), "gru": (0.1, 8)}.get(model.get("cell", ""), (0.05, patience))
    job = spec(
        {**BLOBS, "validation": 0.25, "standardize": True}, model, "cross_entropy", sgd(lr, 0.9),
        {"kind": "l1", "lambda": {"log": [1e-4, strongest], "points": 16}}, {"kind": "dropout", "rate": 0.2}, {"kind": "early_stopping", "patience": patience, "restore": False},
        batch_size=18, epochs=20, selection={"seeds": 4}, dtype=dtype,
    )  # fmt: skip
    alone = [0, 7, 14, 21, 34, 43, 52, 63]
    company, each = run(job, packs=[list(range(64))]), run(job, packs=[[r] for r in alone] + [[r for r in range(64) if r not in alone]])
    stops = [company.runs[r].steps for r in range(64)]
    assert len(set(stops)) >= 3
    assert max(stops) == 100
    assert len({stops[r] for r in alone}) > 1
    assert stops == [each.runs[r].steps for r in range(64)]
    worst = max(distance(company.flat(r), each.flat(r)) for r in range(64))
    assert worst < tolerance
    for name in ("loss/train", "loss/val", "gradient/norm", "signal/backward"):
        for r in range(64):
            assert np.array_equal(company.curves[name][r][0], each.curves[name][r][0])
            assert np.linalg.norm(company.curve(name, r) - each.curve(name, r)) <= 10 * tolerance * np.linalg.norm(each.curve(name, r))


OWN_NUMBERS: dict[str, tuple[str, list[float], dict[str, Any]]] = {
    "sgd.lr": ("optimizer.lr", [0.01, 0.1, 0.2], {}),
    "sgd.momentum": ("optimizer.momentum", [0.0, 0.5, 0.9], {}),
    "adam.lr": ("optimizer.lr", [0.01, 0.02, 0.1], {"optimizer": {"kind": "adam"}}),
    "adam.beta1": ("optimizer.beta1", [0.0, 0.5, 0.9], {"optimizer": {"kind": "adam", "lr": 0.02}}),
    "adam.beta2": ("optimizer.beta2", [0.0, 0.9, 0.999], {"optimizer": {"kind": "adam", "lr": 0.02}}),
    "adam.eps": ("optimizer.eps", [1e-8, 1e-3, 1.0], {"optimizer": {"kind": "adam", "lr": 0.02}}),
    "step.factor": ("optimizer.schedule.factor", [0.1, 0.5, 1.0], {"optimizer": sgd(0.1, kind="step", every=5)}),
    "cosine.low": ("optimizer.schedule.low", [0.0, 0.5, 1.0], {"optimizer": sgd(0.1, kind="cosine")}),
    "l1.lambda": ("regularizers.0.lambda", [0.0, 1e-3, 0.1], {"regularizers": [{"kind": "l1"}]}),
    "l2.lambda": ("regularizers.0.lambda", [0.0, 1e-2, 1.0], {"regularizers": [{"kind": "l2"}]}),
    "elastic_net.lambda": ("regularizers.0.lambda", [0.0, 1e-2, 0.1], {"regularizers": [{"kind": "elastic_net"}]}),
    "elastic_net.l1_ratio": ("regularizers.0.l1_ratio", [0.0, 0.5, 1.0], {"regularizers": [{"kind": "elastic_net", "lambda": 0.05}]}),
    "group_lasso.lambda": ("regularizers.0.lambda", [0.0, 1e-3, 1e-2], {"regularizers": [{"kind": "group_lasso"}]}),
    "sparse_group_lasso.lambda": ("regularizers.0.lambda", [0.0, 1e-3, 1e-2], {"regularizers": [{"kind": "sparse_group_lasso"}]}),
    "sparse_group_lasso.l1_ratio": ("regularizers.0.l1_ratio", [0.0, 0.5, 1.0], {"regularizers": [{"kind": "sparse_group_lasso", "lambda": 0.01}]}),
    "box.low": ("regularizers.0.low", [-0.3, -0.1, 0.0], {"regularizers": [{"kind": "box", "high": 0.2}]}),
    "box.high": ("regularizers.0.high", [0.05, 0.1, 0.3], {"regularizers": [{"kind": "box", "low": -0.2}]}),
    "l2_ball.radius": ("regularizers.0.radius", [0.1, 0.5, 1.0], {"regularizers": [{"kind": "l2_ball"}]}),
    "max_norm.max": ("regularizers.0.max", [0.1, 0.3, 0.5], {"regularizers": [{"kind": "max_norm"}]}),
    "weight_decay.lambda": ("regularizers.0.lambda", [0.0, 1e-2, 1.0], {"regularizers": [{"kind": "weight_decay"}]}),
    "step_penalty.lambda": ("regularizers.0.lambda", [0.0, 0.1, 0.3], {"regularizers": [{"kind": "step_penalty"}]}),
    "vanishing_gradient.lambda": ("regularizers.0.lambda", [0.0, 0.01, 0.1], {"model": RNNS["tanh"], "regularizers": [{"kind": "vanishing_gradient"}]}),
    "dropout.rate": ("regularizers.0.rate", [0.0, 0.2, 0.7], {"regularizers": [{"kind": "dropout"}]}),
    "cross_entropy.label_smoothing": ("loss.label_smoothing", [0.0, 0.1, 0.5], {}),
    "global_norm.max": ("clip.max", [0.1, 0.3, 10.0], {"clip": {"kind": "global_norm"}}),
    "value.max": ("clip.max", [0.01, 0.05, 10.0], {"clip": {"kind": "value"}}),
    "init.scale": ("model.init.scale", [0.5, 1.0, 2.0], {"model": {**MLP, "init": {"kind": "he_normal"}}}),
}
"""kind.field → its path, values, and the rest of the job."""


def with_value(job: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    if isinstance(job, list):
        return [with_value(v, rest, value) if str(i) == first else v for i, v in enumerate(job)]
    return {**job, first: with_value(job.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize("name", OWN_NUMBERS)
def test_each_run_of_a_pack_has_its_own_number(name):
    """A range in place of a number gives, run by run, what the jobs with that number give."""
    path, values, rest = OWN_NUMBERS[name]
    job = spec(two_labels(), MLP, "cross_entropy", sgd(0.1), epochs=10, batch_size=10, selection={"seeds": 2}) | rest
    company = run(with_value(job, path, {"values": values}))
    singles = [run(with_value(job, path, value)) for value in values]
    for i, single in enumerate(singles):
        assert company.runs[2 * i].metrics == pytest.approx(single.runs[0].metrics, rel=1e-12, abs=1e-15)
        for seed in range(2):
            assert distance(company.flat(2 * i + seed), single.flat(seed)) < 1e-12
            assert company.curve("loss/train", 2 * i + seed) == pytest.approx(single.curve("loss/train", seed), rel=1e-12)
    flats = [company.flat(2 * i) for i in range(3)]
    assert min(distance(a, b) for a, b in pairwise(flats)) > 1e-6  # and the number matters


def test_every_number_that_may_be_searched_stands_in_that_table():
    found = set()
    for family, union in FAMILIES.items():
        for part in union.__args__[0].__args__ if hasattr(union.__args__[0], "__args__") else ():
            for field, info in part.model_fields.items():
                if any(isinstance(m, Searchable) for m in info.metadata):
                    kind = "init" if family == "init" else part.model_fields["kind"].annotation.__args__[0]
                    found.add(f"{kind}.{info.alias or field}")
    assert found == set(OWN_NUMBERS)


# ---------------------------------------------------------------- measuring changes nothing, repeating repeats

EVERYTHING = spec(
    {**BLOBS, "validation": 0.25}, BATCH_NORM, {"kind": "cross_entropy", "label_smoothing": 0.1}, sgd(0.1, 0.9, nesterov=True, kind="cosine", warmup_steps=3),
    {"kind": "l2", "lambda": 1e-3}, {"kind": "l1", "lambda": {"values": [0, 1e-3]}}, {"kind": "weight_decay", "lambda": 1e-2, "on": ["head"]}, {"kind": "dropout", "rate": 0.3},
    {"kind": "early_stopping", "patience": 3}, clip={"kind": "global_norm", "max": 0.5}, batch_size=20, accumulate=2, epochs=8, selection={"seeds": 2},
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "model",
    [MLP, CNN, BATCH_NORM, RESIDUAL, SPECTRAL, WEIGHTED, *RNNS.values(), {**CNN, "normalization": {"kind": "layer"}}],
    ids=["mlp", "cnn", "batch norm", "residual", "spectral norm", "weight norm", *RNNS, "cnn layer norm"],
)
def test_measuring_never_changes_a_weight_by_a_bit(model, dtype):
    found = {preset: run({**EVERYTHING, "model": model, "dtype": dtype, "diagnostics": preset}) for preset in ("off", "light", "standard", "full")}
    for preset in ("light", "standard", "full"):
        assert all(torch.equal(w, found[preset].weights[name]) for name, w in found["off"].weights.items())
        assert found[preset].runs[0].metrics == found["off"].runs[0].metrics
        assert np.array_equal(found[preset].curve("loss/train"), found["off"].curve("loss/train"))
        assert set(found["off"].curves) < set(found[preset].curves)


@pytest.mark.parametrize("preset", ["off", "light", "standard", "full"])
def test_gradients_whose_squares_overflow_are_judged_alike(preset):
    """float32: the loss of 1e38 and entries of 2e38 are finite, their squares are not, and nor is their sum."""
    job = spec(inline([[1e19, 1e19]], [-1e19]), {"kind": "linear", "bias": False}, "squared_error", sgd(1e-30), epochs=2, dtype="float32", diagnostics=preset)
    with pytest.raises(Diverged, match="at step 0"):
        run(job)


@pytest.mark.parametrize("preset", ["off", "light", "standard", "full"])
def test_what_is_reported_is_what_was_announced(preset):
    plain = {**EVERYTHING, "model": {"kind": "linear"}, "regularizers": [], "dataset": BLOBS}
    for job in (EVERYTHING, {**EVERYTHING, "regularizers": [], "clip": None}, plain, {**plain, "budget": {"epochs": 257, "batch_size": "all"}}):
        found = run({**job, "diagnostics": preset})
        assert set(found.started.series) == set(found.curves)
        shapes = {name: found.curve(name).shape[1:] for name in found.curves}
        for name, shape in shapes.items():
            declared = series_named(name)
            assert declared is not None
            assert shape == ((len(numbers),) if (numbers := places(declared.shape, layers=found.started.layers, times=found.started.times)) else ())


def test_the_same_spec_twice_gives_the_same_model_file():
    one, two = run(EVERYTHING), run(EVERYTHING)
    assert one.finished.sha256 == two.finished.sha256
    assert {**one.finished.result, "seconds": 0} == {**two.finished.result, "seconds": 0}
    assert run({**EVERYTHING, "seed": 1}).finished.sha256 != one.finished.sha256


def test_runs_that_differ_in_strength_share_their_rows_and_masks():
    job = spec(BLOBS, MLP, "cross_entropy", sgd(0.1), {"kind": "l2", "lambda": {"values": [0, 1e-12]}}, {"kind": "dropout", "rate": 0.5}, batch_size=7, epochs=2)
    found = run(job)
    assert found.curve("loss/train", 0) == pytest.approx(found.curve("loss/train", 1), rel=1e-9)


# ---------------------------------------------------------------- against plain torch loops


class Twin:
    """A plain torch module for one run of an MLP job, started from the job's own initial weights."""

    def __init__(self, start: dict[str, Tensor], r: int, activation: type[nn.Module] = nn.Tanh) -> None:
        names = [name.removesuffix(".weight") for name in start if name.endswith("weight")]
        order = sorted((n for n in names if n != "head"), key=lambda n: int(n.split(".")[1])) + ["head"] * ("head" in names)
        self.layers: dict[str, nn.Linear] = {}
        for name in order:
            out, features = start[f"{name}.weight"].shape[1:]
            layer = nn.Linear(features, out, dtype=start[f"{name}.weight"].dtype)
            layer.weight.data.copy_(start[f"{name}.weight"][r])
            layer.bias.data.copy_(start[f"{name}.bias"][r])
            self.layers[name] = layer
        modules: list[nn.Module] = [m for layer in self.layers.values() for m in (layer, activation())]
        self.net = nn.Sequential(*modules[:-1])

    @property
    def flat(self) -> Tensor:
        return torch.cat([getattr(self.layers[name], own).detach().flatten() for name in sorted(self.layers, key=str) for own in ("bias", "weight")])


def starting(job: dict[str, Any]) -> dict[str, Tensor]:
    """The initial weights of every run."""
    frozen = {**job, "optimizer": sgd(FROZEN), "regularizers": [], "clip": None, "budget": {"epochs": 1, "batch_size": "all"}}
    lrs = job["optimizer"]["lr"]
    return run({**frozen, "optimizer": sgd({"values": [FROZEN * (i + 1) for i in range(len(lrs["values"]))]} if isinstance(lrs, dict) else FROZEN)}).weights


def rows_of(job: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.tensor(job["dataset"]["x"], dtype=torch.float64), torch.tensor(job["dataset"]["y"]).long()


def test_each_run_follows_plain_torch():
    """Three learning rates × two seeds, batches of 7 in the run's own order: 100 updates, the last batch of an epoch short."""
    job = spec(two_labels(), MLP, "cross_entropy", sgd({"values": [0.05, 0.1, 0.2]}), batch_size=7, epochs=25, selection={"seeds": 2}, diagnostics="full")
    found, start, (x, y) = run(job), starting(job), rows_of(job)
    for r, (lr, seed) in enumerate(product([0.05, 0.1, 0.2], range(2))):
        twin = Twin(start, r)
        optimizer = torch.optim.SGD(twin.net.parameters(), lr=lr)
        losses, norms = [], []
        for rows in torch_order(job, rows=24, epochs=25, seed=seed):
            optimizer.zero_grad()
            loss = F.cross_entropy(twin.net(x[rows]), y[rows])
            loss.backward()
            losses.append(loss.item())
            norms.append([layer.weight.grad.norm().item() for layer in twin.layers.values()])
            optimizer.step()
        assert len(losses) == 100
        assert found.curve("loss/train", r) == pytest.approx(losses, rel=1e-11)
        assert np.array(found.curve("gradient/norm", r)) == pytest.approx(np.array(norms), rel=1e-10)
        assert distance(found.flat(r), twin.flat) < 1e-11


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (3, 0.0), (3, 0.02), (100, 0.0)])
@pytest.mark.parametrize("metric", ["loss/val", "accuracy/val"])
def test_early_stopping_follows_a_loop_written_by_hand(metric, patience, min_delta, restore):
    rows = {**two_labels(40), "validation": 0.25, "split": "last"}
    job = spec(
        rows, MLP, "cross_entropy", sgd({"values": [0.02, 0.3, 1.0]}),
        {"kind": "early_stopping", "metric": metric, "patience": patience, "min_delta": min_delta, "restore": restore}, batch_size=8, epochs=20,
    )  # fmt: skip
    found, start, (x, y) = run(job), starting({**job, "regularizers": []}), rows_of(job)
    for r, lr in enumerate([0.02, 0.3, 1.0]):
        twin, best, kept, bad, done, curve = Twin(start, r), math.inf, None, 0, 0, []
        order = torch_order(job, rows=30, epochs=20)
        for epoch in range(20):
            for batch in order[epoch * 4 : epoch * 4 + 4]:
                twin.net.zero_grad()
                F.cross_entropy(twin.net(x[batch]), y[batch]).backward()
                with torch.no_grad():
                    for p in twin.net.parameters():
                        p -= lr * p.grad
                done += 1
            with torch.no_grad():
                out = twin.net(x[30:])
                value = F.cross_entropy(out, y[30:]).item() if metric == "loss/val" else -(out.argmax(1) == y[30:]).double().mean().item()
            curve.append(value)
            if value < best - min_delta:
                best, kept, bad, at = value, twin.flat.clone(), 0, done
            else:
                bad += 1
            if bad >= patience:
                break
        sign = 1 if metric == "loss/val" else -1
        finished = found.runs[r]
        assert finished.steps == done
        assert finished.stop_reason == (StopReason.EARLY_STOPPING if bad >= patience else StopReason.BUDGET)
        assert len(found.curve("loss/train", r)) == done
        assert found.curve(metric, r)[1:] == pytest.approx([sign * v for v in curve], rel=1e-10)
        assert finished.best == {"step": at, metric: pytest.approx(sign * best, rel=1e-10)}
        assert kept is not None
        assert distance(found.flat(r), kept if restore else twin.flat) < 1e-10


# ---------------------------------------------------------------- interrupted and continued


def until_checkpoint(job: dict[str, Any], folder: Path, after: int, *, packs: list[list[int]] | None = None, resume: dict[int, Path] | None = None) -> list[Event]:
    """The events of a job up to its checkpoint after so many questions for one; then the generator is closed."""
    asked = iter(range(1, 10**9))
    found: list[Event] = []
    training = train(parse(json.dumps(job)), data=folder, scratch=folder, packs=packs, resume=resume, wants_checkpoint=lambda: next(asked) >= after)
    for event in training:
        found.append(event)
        if isinstance(event, Checkpointed) and (event.pack, event.step) != (0, 0) and not _is_final(found):
            break
    training.close()
    return found


def _is_final(found: list[Event]) -> bool:
    return len(found) > 1 and isinstance(found[-2], RunFinished)


@pytest.fixture
def every_step(monkeypatch):
    """Points are copied out, and a checkpoint is asked for, after every update."""
    monkeypatch.setattr(reporting, "SECONDS", -1.0)


def same_events(whole: list[Event], parts: list[Event]) -> None:
    """Curves, results and the model's bytes are equal to the last bit."""
    assert isinstance(whole[0], Started)
    packs = whole[0].packs
    a, b = (joined(packs, [e for e in found if isinstance(e, Points)]) for found in (whole, parts))
    assert a.keys() == b.keys()
    for name in a:
        for r in a[name]:
            assert np.array_equal(a[name][r][0], b[name][r][0]), (name, r)
            assert np.array_equal(a[name][r][1], b[name][r][1], equal_nan=True), (name, r)
    finished = [
        [(e.run, e.state, e.stop_reason, e.steps, json.dumps([e.metrics, e.best, e.zeros, e.first_nonfinite])) for e in found if isinstance(e, RunFinished)]
        for found in (whole, parts)
    ]
    assert finished[0] == finished[1]
    ends = [found[-1] for found in (whole, parts)]
    assert isinstance(ends[0], Finished)
    assert isinstance(ends[1], Finished)
    assert ends[0].sha256 == ends[1].sha256


STATEFUL = {
    "dropout": {"regularizers": [{"kind": "dropout", "rate": 0.3}]},
    "early stopping": {"regularizers": [{"kind": "early_stopping", "patience": 1}]},
    "batch norm": {"model": BATCH_NORM},
    "rnn": {"model": RNNS["lstm"]},
    "omega": {"model": RNNS["tanh"], "regularizers": [{"kind": "vanishing_gradient", "lambda": 0.1}, {"kind": "dropout", "rate": 0.3}]},
    "lsuv": {"model": {**MLP, "init": {"kind": "lsuv"}}},
    "spectral norm": {"model": SPECTRAL},
    "accumulate": {"model": BATCH_NORM, "budget": {"epochs": 4, "batch_size": 20, "accumulate": 3}},
    "skip step": {"on_nonfinite": "skip_step", "dtype": "float32"},
    "all": {
        "model": BATCH_NORM,
        "regularizers": [{"kind": "dropout", "rate": 0.3}, {"kind": "early_stopping", "patience": 1}, {"kind": "l1", "lambda": 1e-3}],
        "clip": {"kind": "value", "max": 0.02},
    },
}
OPTIMIZERS = {
    "sgd": sgd({"values": [0.05, 0.4]}),
    "momentum": sgd({"values": [0.05, 0.4]}, 0.9),
    "nesterov": sgd({"values": [0.05, 0.4]}, 0.9, nesterov=True),
    "adam": {"kind": "adam", "lr": {"values": [0.01, 0.1]}},
}
SCHEDULES = {"constant": {"kind": "constant", "warmup_steps": 8}, "step": {"kind": "step", "every": 3}, "cosine": {"kind": "cosine"}}


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("state", STATEFUL)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_job_equals_the_uninterrupted_one(optimizer, schedule, state, tmp_path):
    rows = {**BLOBS, "validation": 0.25}
    if state == "skip step":
        x, y = np.random.default_rng(0).standard_normal((90, 4)), np.arange(90) % 3
        x[5, 0] = 1e300  # infinite in float32: the batch with this row is left out
        rows = inline(x, y)
    job = spec(rows, MLP, "cross_entropy", {**OPTIMIZERS[optimizer], "schedule": SCHEDULES[schedule]}, batch_size=20, epochs=4, selection={"seeds": 2}) | STATEFUL[state]
    after = 6 + list(product(OPTIMIZERS, SCHEDULES, STATEFUL)).index((optimizer, schedule, state)) % 7
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    before = until_checkpoint(job, tmp_path / "a", after)
    checkpoint = before[-1]
    assert isinstance(checkpoint, Checkpointed)
    assert checkpoint.step == after
    rest = events(job, scratch=tmp_path / "b", resume={0: Path(checkpoint.path)}, packs=before[0].packs)
    assert (rest[0].pack, rest[0].step) == (0, after)
    same_events(events(job, scratch=tmp_path / "b"), before[:-1] + rest[1:])
    assert all(int(x.max(initial=-1)) < after for e in before if isinstance(e, Points) for name, x in e.steps.items() if "val" not in name)


@pytest.mark.usefixtures("every_step")
def test_every_update_is_a_place_to_stop(tmp_path):
    """Interrupted after each update in turn, five attempts in a row, epochs' ends included."""
    job = {**EVERYTHING, "budget": {"epochs": 3, "batch_size": 20, "accumulate": 2}, "diagnostics": "full"}
    whole = events(job, scratch=tmp_path)
    found: list[Event] = []
    resume: dict[int, Path] = {}
    for step in range(1, whole[0].steps):
        part = until_checkpoint(job, tmp_path, 1, resume=resume)
        assert isinstance(part[-1], Checkpointed)
        assert part[-1].step == step
        found += part[:-1]
        resume = {0: Path(part[-1].path)}
    same_events(whole, found + events(job, scratch=tmp_path, resume=resume)[1:])


@pytest.mark.usefixtures("every_step")
def test_a_finished_pack_is_not_trained_again(tmp_path):
    packs = [[0, 3], [1, 2]]
    job = {**EVERYTHING, "regularizers": [{"kind": "dropout", "rate": 0.2}], "optimizer": sgd({"values": [0.1, 0.2]}, 0.9)}
    whole = events(job, scratch=tmp_path, packs=packs)
    first = next(e for e in whole if isinstance(e, Checkpointed))
    assert (first.pack, first.step) == (0, whole[0].steps)
    rest = events(job, scratch=tmp_path, packs=packs, resume={0: Path(first.path)})
    assert (rest[0].pack, rest[0].step) == (1, 0)
    assert {e.pack for e in rest if isinstance(e, Points)} == {1}
    same_events(whole, [e for e in whole if isinstance(e, Points) and e.pack == 0] + rest[1:])


def test_points_do_not_depend_on_when_they_were_reported(tmp_path, monkeypatch):
    whole = events(EVERYTHING, scratch=tmp_path)
    monkeypatch.setattr(reporting, "MOST_STEPS", 3)
    same_events(whole, events(EVERYTHING, scratch=tmp_path))


@pytest.mark.parametrize("preset", ["standard", "full"])
def test_points_stand_at_their_steps_and_none_stands_twice(preset):
    """Losses, penalties and clips at every update; what is read of layers at the first 32 and ever more rarely, with `full` at every one as well."""
    found = run({**EVERYTHING, "diagnostics": preset})
    of_layers = {"gradient/norm", "gradient/total", "gradient/nonfinite", "gradient/rms", "weight/norm", "update/ratio", "signal/forward", "signal/backward"}
    assert of_layers <= found.curves.keys()
    for name, of in found.curves.items():
        if not name.startswith(("histogram/", "curvature/", "noise/", "decrease/")) and name not in (
            "activation/silent",
            "gradient/validation_cosine",
            "gradient/successive_cosine",
        ):
            for r, (steps, values) in of.items():
                done = found.runs[r].steps
                evaluated = range(0, done + 1, found.started.steps_per_epoch)
                sparse = name in of_layers or name.startswith("penalty_gradient/")
                read = [*range(32), *range(32, min(done, 256), 8), *range(256, done, 32)] if sparse and preset == "standard" else range(done)
                assert steps.tolist() == list(evaluated if name.endswith("/val") else read), name
                assert len(values) == len(steps)


def test_an_update_that_is_read_says_the_same_with_standard_as_with_full():
    standard, full = (run({**EVERYTHING, "diagnostics": preset}) for preset in ("standard", "full"))
    for name, of in standard.curves.items():
        for r, (steps, values) in of.items():
            among, theirs = full.curves[name][r]
            assert np.array_equal(values, theirs[np.isin(among, steps)], equal_nan=True), name


def test_a_run_that_fails_is_read_in_the_update_in_which_it_fails():
    """Of two runs one grows beyond all numbers at an update that is not among those read anyway; the other goes on."""
    body = spec(
        inline(np.linspace(-1, 1, 40).reshape(20, 2), np.linspace(0, 1, 20)), {"kind": "linear"}, "half_squared_error", sgd({"values": [0.01, 4.2]}), budget={"epochs": 200}
    )
    found = run({**body, "dtype": "float32"})
    (updates, losses), (read, _) = found.curves["loss/train"][1], found.curves["gradient/norm"][1]
    died = int(updates[-1])
    assert found.runs[0].steps == 200
    assert np.isfinite(losses).tolist() == [True] * died + [False]
    assert read.tolist() == [*range(32), *range(32, died, 8), died]
    assert died > 32
    assert died % 8


def test_a_checkpoint_of_another_spec_is_refused(tmp_path):
    from regtrain.contract.errors import DataError

    checkpoint = next(e for e in events(EVERYTHING, scratch=tmp_path) if isinstance(e, Checkpointed))
    with pytest.raises(DataError, match="another spec"):
        events({**EVERYTHING, "seed": 5}, scratch=tmp_path, resume={0: Path(checkpoint.path)})
    Path(checkpoint.path).write_bytes(Path(checkpoint.path).read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        events(EVERYTHING, scratch=tmp_path, resume={0: Path(checkpoint.path)})


def test_every_report_says_up_to_where_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "MOST_STEPS", 3)
    found = events(EVERYTHING, scratch=tmp_path)
    seen = 0
    for event in found:
        if isinstance(event, Points):
            for name, steps in event.steps.items():
                assert steps.max() <= event.step - (0 if name.endswith("/val") else 1), name
            assert event.step >= seen
            seen = event.step
        if isinstance(event, Checkpointed):
            assert event.step == seen


# ---------------------------------------------------------------- results


def test_metrics_are_means_over_all_rows_of_their_split():
    """5,000 training rows: more than are evaluated at a time."""
    job = spec({"kind": "linear", "rows": 6250, "validation": 0.1, "test": 0.1}, {"kind": "linear"}, "squared_error", sgd(0.1), epochs=3)
    found = run(job)
    rows = load(parse(json.dumps(job)).dataset, data=Path(), upload=None, classify=False)
    parts = split(parse(json.dumps(job)).dataset, rows, seed=0)
    w, b = found.weights["head.weight"].item(), found.weights["head.bias"].item()
    for name, part in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
        error = rows.x[part, 0] * w + b - rows.y[part]
        assert found.runs[0].metrics[f"loss/{name}"] == pytest.approx(np.square(error).mean(), rel=1e-12)
    assert found.curve("loss/val")[-1] == pytest.approx(found.runs[0].metrics["loss/val"], rel=1e-13)


def test_the_chosen_run_is_the_best_on_the_validation_rows():
    job = exploding(1e30, dtype="float32")
    found = run(job)
    losses = {r: found.runs[r].metrics["loss/val"] for r in (0, 2)}
    chosen = min(losses, key=lambda r: losses[r])
    assert found.finished.result["chosen_run"] == chosen
    assert found.finished.result["chosen_by"] == "loss/val"
    assert found.finished.result["values"] == {"optimizer.lr": [0.01, 1e30, 0.02][chosen]}
    assert run({**job, "dataset": two_labels()}).finished.result["chosen_run"] is None
    alone = run({**job, "dataset": two_labels(), "optimizer": sgd(0.01)}).finished.result
    assert (alone["chosen_run"], alone["values"]) == (0, {})


def test_the_model_file_says_what_it_holds(tmp_path):
    job = {**EVERYTHING, "dataset": {**BLOBS, "standardize": True, "validation": 0.25}}
    finished = events(job, scratch=tmp_path)[-1]
    assert isinstance(finished, Finished)
    with safe_open(finished.path, "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items()}
        assert {file.get_tensor(name).shape[0] for name in file.keys()} == {4}  # noqa: SIM118 - no mapping
    assert JobSpec.model_validate_json(json.dumps(about["spec"])) == parse(json.dumps(job))
    assert [r["values"] for r in about["runs"]] == [{"regularizers.1.lambda": lam} for lam in (0, 0, 1e-3, 1e-3)]
    assert [r["seed"] for r in about["runs"]] == [0, 1, 0, 1]
    rows = load(parse(json.dumps(job)).dataset, data=Path(), upload=None, classify=True)
    train = split(parse(json.dumps(job)).dataset, rows, seed=0).train
    assert about["preprocess"]["mean"] == pytest.approx(rows.x[train].mean(0).tolist(), rel=1e-14)
    assert about["preprocess"]["scale"] == pytest.approx(rows.x[train].std(0).tolist(), rel=1e-14)
    assert hashlib.sha256(Path(finished.path).read_bytes()).hexdigest() == finished.sha256


def test_a_float64_job_draws_the_masks_rows_and_weights_of_the_float32_one():
    job = spec(
        BLOBS | {"standardize": True}, MLP, "cross_entropy", sgd(0.05), {"kind": "dropout", "rate": 0.3}, {"kind": "dropout", "rate": 0.1, "on": "inputs"}, batch_size=16, epochs=3
    )
    single, double = (run({**job, "dtype": dtype}) for dtype in ("float32", "float64"))
    assert single.curve("loss/train") == pytest.approx(double.curve("loss/train"), rel=1e-5)


# ---------------------------------------------------------------- numbers that are not finite


def exploding(bad: float, **rest: Any) -> dict[str, Any]:
    return spec({**two_labels(), "validation": 0.25}, rest.pop("model", MLP | {"activation": "relu"}), "squared_error", rest.pop("optimizer", sgd({"values": [0.01, bad, 0.02]})), *rest.pop("regularizers", ()),
                batch_size=6, epochs=10, **rest)  # fmt: skip


COMPANIONS = {
    "momentum": {"optimizer": lambda bad: sgd({"values": [0.01, bad, 0.02]}, 0.9)},
    "adam": {"optimizer": lambda bad: {"kind": "adam", "lr": {"values": [0.01, bad, 0.02]}}},
    "proximal": {"regularizers": [{"kind": "elastic_net", "lambda": 1e-3}, {"kind": "weight_decay", "lambda": 1e-3}]},
    "clip": {"clip": {"kind": "value", "max": 1e30}},
    "batch norm": {"model": BATCH_NORM},
    "cnn": {"model": CNN | {"activation": "relu"}},
    "early stopping": {"regularizers": [{"kind": "early_stopping", "patience": 3}, {"kind": "dropout", "rate": 0.2}]},
}


@pytest.mark.parametrize("how", COMPANIONS)
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip_step"])
def test_a_run_that_diverges_does_not_reach_another(how, on_nonfinite):
    rest = {**COMPANIONS[how]}
    optimizer = rest.pop("optimizer", lambda bad: sgd({"values": [0.01, bad, 0.02]}))
    sick, healthy = (run(exploding(bad, **rest, optimizer=optimizer(bad), on_nonfinite=on_nonfinite, diagnostics="full", dtype="float32")) for bad in (1e30, 0.015))
    assert not sick.flat(1).isnan().any()
    for r in (0, 2):
        assert torch.equal(sick.flat(r), healthy.flat(r))
        assert sick.runs[r].metrics == healthy.runs[r].metrics
        for name in healthy.curves:
            assert np.array_equal(sick.curve(name, r), healthy.curve(name, r)), name
    if on_nonfinite == "stop":
        finished = sick.runs[1]
        assert (finished.state, finished.stop_reason) == (RunState.FAILED, StopReason.DIVERGED)
        assert finished.first_nonfinite is not None
        step = finished.first_nonfinite["step"]
        assert finished.steps == step
        curve = sick.curve("loss/train", 1)
        assert len(curve) == step + 1  # the point of the update that was not taken is the last one
        assert np.isfinite(curve[:-1]).all()
        if finished.first_nonfinite["series"] == "loss/train":
            assert not np.isfinite(curve[-1])
        else:
            assert finished.first_nonfinite["layer"] in sick.started.layers
            assert not np.isfinite(sick.curve("gradient/norm", 1)[-1]).all()
    else:
        assert sick.runs[1].first_nonfinite is None
        assert not np.isfinite(sick.curve("loss/train", 1)[-1])
        assert not sick.curve("update/ratio", 1)[-1].any()


def test_a_diverged_run_keeps_its_last_finite_weights_and_averages():
    sick = run(exploding(1e30, model=BATCH_NORM, dtype="float32"))
    assert sick.runs[1].state == RunState.FAILED
    assert all(bool(torch.isfinite(w).all()) for w in sick.weights.values())


def test_a_job_of_which_every_run_diverges_says_so():
    with pytest.raises(Diverged, match=r"Lower optimizer.lr"):
        run({**exploding(1e30), "optimizer": sgd(1e30), "dtype": "float32"})


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("normalization", [None, "batch"])
def test_skip_step_follows_a_loop_that_leaves_bad_batches_out(optimizer, normalization):
    x, y = np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) % 2
    x[5, 0] = 1e300  # infinite in float32
    model = MLP | ({"normalization": {"kind": "batch"}, "bias": False} if normalization else {})
    job = spec(
        inline(x, y), model, "cross_entropy", {"sgd": sgd(0.1), "momentum": sgd(0.1, 0.9), "adam": {"kind": "adam", "lr": 0.01}}[optimizer],
        batch_size=5, epochs=6, dtype="float32", on_nonfinite="skip_step",
    )  # fmt: skip
    found, start = run(job), starting(job)
    bias = not normalization
    hidden = [m for i, o in ((4, 12), (12, 8)) for m in (nn.Linear(i, o, bias=bias), *([nn.BatchNorm1d(o)] if normalization else []), nn.Tanh())]
    net = nn.Sequential(*hidden, nn.Linear(8, 2, bias=bias))
    names = [n for layer in ("layers.0", "layers.1", "head") for n in (f"{layer}.weight", f"{layer}.bias", f"{layer}.norm.weight", f"{layer}.norm.bias") if n in start]
    for name, p in zip(names, net.parameters(), strict=True):
        p.data.copy_(start[name][0])
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1), "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=0.01)}
    opt = make[optimizer](net.parameters())
    rows, labels, skipped = torch.tensor(x).float(), torch.tensor(y), 0
    for batch in torch_order(job, rows=20, epochs=6):
        if bool(torch.isinf(rows[batch]).any()):
            skipped += 1
            continue
        opt.zero_grad()
        F.cross_entropy(net(rows[batch]), labels[batch]).backward()
        opt.step()
    assert skipped == 6
    assert int((found.curve("gradient/nonfinite").sum(1) > 0).sum()) == 6
    assert int((found.curve("update/ratio").sum(1) == 0).sum()) == 6
    for name, p in zip(names, net.parameters(), strict=True):
        assert torch.allclose(found.weights[name][0], p.detach(), rtol=1e-4, atol=1e-6), name
    for i, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm1d)):
        assert torch.allclose(found.weights[f"layers.{i}.norm.running_mean"][0], norm.running_mean, rtol=1e-4, atol=1e-6)
        assert torch.allclose(found.weights[f"layers.{i}.norm.running_var"][0], norm.running_var, rtol=1e-4, atol=1e-6)


def test_a_nan_is_a_point_of_its_curve():
    x, y = np.random.default_rng(0).standard_normal((20, 2)), np.arange(20) % 2
    x[3, 0] = 1e300
    found = run(spec(inline(x, y), {"kind": "linear"}, "cross_entropy", sgd(0.1), batch_size=5, epochs=2, dtype="float32", on_nonfinite="skip_step"))
    assert int((~np.isfinite(found.curve("loss/train"))).sum()) == 2
    assert found.curve("gradient/nonfinite").sum() > 0
    assert [bool(v) for v in found.curve("gradient/nonfinite")[:, 0] > 0] == (~np.isfinite(found.curve("gradient/norm")[:, 0])).tolist()


# ---------------------------------------------------------------- what both sides of the gradient see


def test_the_signal_sees_what_weight_gradients_hide():
    """34 ReLU layers with Glorot's variance: χ = 1/2 a layer, and the weight gradients look healthy."""
    draw = np.random.default_rng(7)
    job = spec(
        inline(draw.standard_normal((128, 128)), draw.integers(0, 10, 128)), {"kind": "mlp", "hidden": [128] * 33, "bias": False, "init": {"kind": "xavier_normal"}},
        "cross_entropy", sgd(FROZEN), selection={"seeds": 5}, dtype="float32",
    )  # fmt: skip
    found = run(job)
    signal, norms = (np.stack([found.curve(name, r)[0] for r in range(5)]) for name in ("signal/backward", "gradient/norm"))
    ratio = np.exp(np.log(signal[:, 0] / signal[:, -2]).mean())  # over 32 layers and five seeds
    assert ratio ** (2 / 32) == pytest.approx(0.5, abs=0.02)
    assert 0.3 < np.exp(np.log(norms[:, 0] / norms[:, -2]).mean()) < 3


# ---------------------------------------------------------------- runs that leave their pack

STOPPING = spec(
    {**BLOBS, "validation": 0.25, "standardize": True}, BATCH_NORM, "cross_entropy", sgd({"values": [0.02, 1e30, 0.3, 1.0]}, 0.9),
    {"kind": "early_stopping", "patience": 2}, {"kind": "dropout", "rate": 0.2}, batch_size=23, epochs=12, selection={"seeds": 2}, diagnostics="full",
)  # fmt: skip
"""Four updates an epoch: runs stop early at the ends of different epochs, and two diverge."""


@pytest.mark.parametrize("every", [1, 3, 4, 8])
def test_leaving_a_pack_changes_nothing(every, monkeypatch):
    """Also where a run stops at the very step at which the pack is made smaller (4 and 8)."""
    stayed = run(STOPPING)
    monkeypatch.setattr(running, "COMPACT", every)
    left = run(STOPPING)
    stops = [stayed.runs[r].steps for r in range(8)]
    assert len(set(stops)) > 3
    assert [left.runs[r].steps for r in range(8)] == stops
    for r in range(8):
        assert left.runs[r].stop_reason == stayed.runs[r].stop_reason
        assert left.runs[r].first_nonfinite == stayed.runs[r].first_nonfinite
        assert left.runs[r].best == pytest.approx(stayed.runs[r].best, rel=1e-11)
        assert distance(left.flat(r), stayed.flat(r)) < 1e-11
        for name in stayed.curves:
            assert np.array_equal(left.curves[name][r][0], stayed.curves[name][r][0]), name
            assert left.curve(name, r) == pytest.approx(stayed.curve(name, r), rel=1e-9, abs=1e-13, nan_ok=True), name


def test_a_job_ends_when_its_last_run_has_stopped(monkeypatch):
    monkeypatch.setattr(running, "COMPACT", 4)
    monkeypatch.setattr(reporting, "MOST_STEPS", 1)
    found = run({**STOPPING, "budget": {"epochs": 400, "batch_size": 23}, "diagnostics": "off"})
    assert max(found.runs[r].steps for r in range(8)) < 1600
    last = max(int(x[-1]) for name in found.curves for x, _ in found.curves[name].values())
    assert last < 1600


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("every", [3, 4])
def test_runs_that_have_left_are_in_every_checkpoint(every, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "COMPACT", every)
    whole = events(STOPPING, scratch=tmp_path)
    for after in (2, 5, 8, 9, 12, 13, 17):
        before = until_checkpoint(STOPPING, tmp_path, after)
        assert isinstance(before[-1], Checkpointed)
        same_events(whole, before[:-1] + events(STOPPING, scratch=tmp_path, resume={0: Path(before[-1].path)})[1:])
