"""Recurrent nets: the gradient at every time step, the law of linear chains in time, and everything else that a net can do."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_conformance import plain, rows_of_classes
from torch import Tensor
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, distance, inline, run, sgd, spec

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import parse
from worker.training.draws import row_order
from worker.training.prepare import prepare
from worker.training.running import pack_of

CELLS = ("tanh", "relu", "identity", "lstm", "gru")
STEPS, CHANNELS = 9, 2


def rnn(cell: str = "tanh", **rest: Any) -> dict[str, Any]:
    return {"kind": "rnn", "cell": cell, "hidden": [5, 4], "sequence": [STEPS, CHANNELS], **rest}


def sequences(n: int = 14) -> tuple[Tensor, Tensor]:
    return rows_of_classes(n, STEPS * CHANNELS, 3)


def at_start(job: dict[str, Any]) -> Outcome:
    return run({**job, "optimizer": sgd(FROZEN), "budget": {"epochs": 1, "batch_size": "all"}})


# ---------------------------------------------------------------- every linear output and its gradient, against autograd


def slowly(cell: str, x: Tensor, w: dict[str, Tensor], signals: dict[str, list[Tensor]], masks: dict[str, Tensor] | None = None) -> Tensor:
    """The same net step by step in torch's own operations; every linear output is kept with its gradient. masks: place → (B, *output)"""

    def kept(name: str, value: Tensor) -> Tensor:
        value.retain_grad()
        signals.setdefault(name, []).append(value)
        return value

    def after(a: Tensor, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        width = h.shape[1]
        if cell == "lstm":
            i, f, g, o = (a + u).split(width, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        if cell == "gru":
            (ar, az, an), (ur, uz, un) = a.split(width, 1), u.split(width, 1)
            z = torch.sigmoid(az + uz)
            return (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h, c
        return {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda v: v}[cell](a + u), c

    masks = masks or {}
    read = list((x * masks.get("inputs", 1.0)).unflatten(1, (STEPS, CHANNELS)).unbind(1))
    for name in ("layers.0", "layers.1"):
        h = c = torch.zeros(len(x), w[f"{name}.recurrent.weight"].shape[1], dtype=x.dtype)
        for t, step in enumerate(read):
            a = kept(f"{name}.input", step @ w[f"{name}.input.weight"].T + w[f"{name}.input.bias"])
            u = kept(f"{name}.recurrent", h @ w[f"{name}.recurrent.weight"].T + w.get(f"{name}.recurrent.bias", 0))
            h, c = after(a, u, h, c)
            mask = masks.get(f"{name}.recurrent")
            read[t] = h if mask is None else h * (mask[:, t] if mask.dim() == 3 else mask)
    return kept("head", read[-1] @ w["head.weight"].T + w["head.bias"])


@pytest.mark.parametrize("cell", CELLS)
def test_signals_of_every_time_step_equal_those_of_autograd(cell):
    x, y = sequences()
    found = at_start(spec(inline(x, y), rnn(cell), "cross_entropy", sgd(0.1), selection={"seeds": 2}))
    assert found.started.layers == ["layers.0.input", "layers.0.recurrent", "layers.1.input", "layers.1.recurrent", "head"]
    assert found.started.times == {"layers.0": STEPS, "layers.1": STEPS}
    for r in range(2):
        signals: dict[str, list[Tensor]] = {}
        w = {name: value[r].clone().requires_grad_() for name, value in found.weights.items()}
        loss = F.cross_entropy(slowly(cell, x, w, signals), y)
        loss.backward()
        assert found.curve("loss/train", r)[0] == pytest.approx(loss.item(), rel=1e-13)
        forward = [torch.stack(signals[layer]).square().mean().sqrt().item() for layer in found.started.layers]
        assert found.curve("signal/forward", r)[0] == pytest.approx(forward, rel=1e-12)
        slopes = {layer: torch.stack([torch.zeros_like(s) if s.grad is None else s.grad for s in signals[layer]]) for layer in found.started.layers}
        assert found.curve("signal/backward", r)[0] == pytest.approx([slopes[layer].square().mean().sqrt().item() for layer in found.started.layers], rel=1e-12)
        each = [slopes[f"layers.{i}.input"][t].square().mean().sqrt().item() for i in range(2) for t in range(STEPS)]
        assert found.curve("signal/time", r)[0] == pytest.approx(each, rel=1e-12)


@pytest.mark.parametrize("rho", [0.7, 1.0, 1.2])
def test_a_linear_net_of_orthogonal_recurrence_shrinks_the_gradient_by_rho_at_every_step(rho):
    """h_t = W x_t + ρQ h_{t−1}: δ_t = ρ Qᵀ δ_{t+1}, and Q turns without shortening."""
    draw = np.random.default_rng(0)
    steps = 60
    x, y = draw.standard_normal((10, steps * 3)), draw.standard_normal(10)
    model = {"kind": "rnn", "cell": "identity", "bias": False, "hidden": [16], "sequence": [steps, 3], "init": {"kind": "orthogonal", "scale": rho}}
    found = at_start(spec(inline(x, y), model, "squared_error", sgd(0.1), selection={"seeds": 3}))
    for r in range(3):
        delta = found.curve("signal/time", r)[0]
        assert delta / delta[-1] == pytest.approx(rho ** np.arange(steps - 1, -1, -1.0), rel=1e-12)


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_micro_batches_measure_the_same_time_steps(cell):
    x, y = sequences()
    whole = at_start(spec(inline(x, y), rnn(cell), "cross_entropy", sgd(0.1), diagnostics="full"))
    parts = run(spec(inline(x, y), rnn(cell), "cross_entropy", sgd(FROZEN), accumulate=4, diagnostics="full"))
    for name in ("signal/time", "signal/backward", "signal/forward", "gradient/norm"):
        assert parts.curve(name)[0] == pytest.approx(whole.curve(name)[0], rel=1e-12)


def test_time_steps_are_measured_on_the_first_batch_of_every_epoch():
    """24 rows in batches of 7: updates 0, 4, 8. The second run has a first loss that is not finite, and one point."""
    x, y = sequences(24)
    job = spec(inline(x, y), rnn(init={"kind": "torch", "scale": {"values": [1.0, 1e200]}}, cell="identity"), "cross_entropy", sgd(0.1), batch_size=7, epochs=3)
    found = run(job)
    steps, values = found.curves["signal/time"][0]
    assert steps.tolist() == [0, 4, 8]
    assert values.shape == (3, 2 * STEPS)
    assert found.curves["signal/time"][1][0].tolist() == [0]
    assert [found.runs[r].stop_reason for r in range(2)] == ["budget", "diverged"]
    first = row_order(job=0, run=0, epoch=0, rows=24)[:7]
    alone = at_start(spec(inline(x[first], y[first]), job["model"] | {"init": {"kind": "torch"}}, "cross_entropy", sgd(0.1)))
    assert values[0] == pytest.approx(alone.curve("signal/time")[0], rel=1e-12)


@pytest.mark.parametrize("preset", ["off", "light", "standard", "full"])
def test_what_is_reported_of_a_recurrent_net_is_what_was_announced(preset):
    x, y = sequences()
    found = run(spec(inline(x, y), rnn("lstm"), "cross_entropy", sgd(0.1), diagnostics=preset, epochs=2))
    assert set(found.started.series) == set(found.curves)
    assert ("signal/time" in found.curves) == (preset in ("standard", "full"))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("cell", CELLS)
def test_thirty_clipped_and_penalised_steps_equal_those_of_torch(cell):
    x, y = sequences(20)
    penalty = {"kind": "l2", "lambda": 0.02, "on": ["layers.0.recurrent", "layers.1.recurrent"]}
    job = spec(inline(x, y), rnn(cell), "cross_entropy", sgd(0.5, 0.9), penalty, epochs=30, clip={"kind": "value", "max": 0.02})
    found, start = run(job), at_start({**job, "regularizers": [], "clip": None})
    net, named = plain(job["model"], start.weights)
    optimizer = torch.optim.SGD(named.values(), lr=0.5, momentum=0.9)
    losses, clips = [], []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        (loss + 0.01 * (named["layers.0.recurrent.weight"].square().sum() + named["layers.1.recurrent.weight"].square().sum())).backward()
        clips.append(any(bool((value.grad.abs() > 0.02).any()) for value in named.values() if value.grad is not None))
        torch.nn.utils.clip_grad_value_(named.values(), 0.02)
        optimizer.step()
        losses.append(loss.item())
    assert found.curve("loss/train") == pytest.approx(losses, rel=1e-9)
    assert found.curve("gradient/clipped").tolist() == clips
    assert any(clips)
    assert all(distance(found.weights[name][0], value.detach()) < 1e-9 for name, value in named.items())


def test_l1_on_the_recurrence_leaves_exact_zeros_there_alone():
    x, y = sequences(20)
    found = run(spec(inline(x, y), rnn(), "cross_entropy", sgd(0.1), {"kind": "l1", "lambda": 0.05, "on": ["layers.0.recurrent"]}, epochs=40))
    assert found.started.penalised == {"regularizers.0": ["layers.0.recurrent.weight"]}
    assert found.runs[0].zeros["layers.0.recurrent.weight"] > 10
    assert int((found.weights["layers.0.input.weight"] == 0).sum()) == 0


def test_dropout_acts_on_what_is_read_of_a_layer_and_not_on_its_recurrence():
    """At rate 1 − 1e-12 on layers.0 the second layer reads zeros, and the first layer's own states stay as they were."""
    x, y = sequences()
    job = spec(inline(x, y), rnn("gru"), "cross_entropy", sgd(FROZEN))
    free, dropped = run(job), run({**job, "regularizers": [{"kind": "dropout", "rate": 1 - 1e-12, "on": ["layers.0.recurrent"]}]})
    assert dropped.curve("signal/forward")[0][:2] == pytest.approx(free.curve("signal/forward")[0][:2], rel=1e-14)
    w = dropped.weights["layers.1.input.bias"][0]
    assert dropped.curve("signal/forward")[0][2] == pytest.approx(w.square().mean().sqrt().item(), rel=1e-13)
    last = run({**job, "regularizers": [{"kind": "dropout", "rate": 1 - 1e-12, "on": ["layers.1.recurrent"]}]})
    assert last.curve("loss/train")[0] == pytest.approx(F.cross_entropy(last.weights["head.bias"][0].expand(14, 3), y).item(), rel=1e-13)
    hidden = run({**job, "regularizers": [{"kind": "dropout", "rate": 1 - 1e-12}]})
    assert hidden.curve("loss/train")[0] == last.curve("loss/train")[0]


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_under_dropout_equal_those_of_autograd_under_the_same_masks(cell):
    x, y = sequences()
    job = spec(inline(x, y), rnn(cell), "cross_entropy", sgd(FROZEN), {"kind": "dropout", "rate": 0.4}, {"kind": "dropout", "rate": 0.2, "on": "inputs"})
    before, after = run(job), run({**job, "optimizer": sgd(1.0)})
    prepared = prepare(parse(json.dumps(job)), device="cpu", data=Path(), upload=None, scratch=None)
    kept = pack_of(prepared, prepared.runs).kept(0, len(y))
    assert kept is not None
    assert {place: tuple(mask.shape[1:]) for place, mask in kept.items()} == {"inputs": (14, 18), "layers.0.recurrent": (14, 9, 5), "layers.1.recurrent": (14, 4)}
    w = {name: value[0].clone().requires_grad_() for name, value in before.weights.items()}
    loss = F.cross_entropy(slowly(cell, x, w, {}, {place: mask[0] for place, mask in kept.items()}), y)
    loss.backward()
    assert before.curve("loss/train")[0] == pytest.approx(loss.item(), rel=1e-13)
    for name, value in w.items():
        assert value.grad is not None
        assert (before.weights[name][0] - after.weights[name][0] - value.grad).abs().max() < 1e-13, name


@pytest.mark.parametrize(
    "dataset", [{"kind": "adding", "rows": 60, "length": 6}, {"kind": "temporal_order", "rows": 60, "length": 10}, {"kind": "copying", "rows": 60, "memory": 2, "blanks": 3}]
)
def test_generators_say_their_own_sequence(dataset):
    loss = "squared_error" if dataset["kind"] == "adding" else "cross_entropy"
    found = run(spec({**dataset, "test": 0.2, "validation": 0.2}, {"kind": "rnn", "hidden": [6]}, loss, {"kind": "adam", "lr": 0.01}, epochs=3, batch_size=10))
    facts = facts_of(parse(json.dumps(spec(dataset, {"kind": "linear"}, loss, sgd(0.1)))).dataset)
    assert facts is not None
    assert facts.sequence is not None
    assert found.started.times == {"layers.0": facts.sequence[0]}
    assert found.weights["layers.0.input.weight"].shape[2] == facts.sequence[1]
    assert all(math.isfinite(value) for value in found.runs[0].metrics.values())


def test_a_plain_net_learns_the_adding_problem_of_a_few_steps():
    """Below a tenth of the constant answer's error, which is 1/6."""
    job = spec({"kind": "adding", "rows": 500, "length": 4, "test": 0.2}, {"kind": "rnn", "hidden": [16]}, "squared_error", {"kind": "adam", "lr": 0.02}, epochs=30, batch_size=20)
    assert run(job).runs[0].metrics["loss/test"] < 1 / 60


# ---------------------------------------------------------------- Ω of Pascanu et al.


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("cell", ["tanh", "relu", "identity"])
def test_omega_and_its_immediate_derivative_equal_those_of_autograd(cell, accumulate):
    """Two strengths × two seeds in one pack: autograd derives Σ_t (‖δ_{t+1} U diag φ′(z_t)‖/‖δ_{t+1}‖ − 1)² in U with δ and z held."""
    x, y = sequences()
    omega = {"kind": "vanishing_gradient", "lambda": {"values": [0.3, 2.0]}}
    job = spec(inline(x, y), rnn(cell), "cross_entropy", sgd(FROZEN), omega, selection={"seeds": 2}, accumulate=accumulate)
    before, after = run(job), run({**job, "optimizer": sgd(1.0)})
    free = run({**job, "optimizer": sgd(1.0), "regularizers": []})
    assert before.started.penalised == {"regularizers.0": ["layers.0.recurrent.weight", "layers.1.recurrent.weight"]}
    for r, lam in enumerate((0.3, 0.3, 2.0, 2.0)):
        signals: dict[str, list[Tensor]] = {}
        w = {name: value[r].clone().requires_grad_() for name, value in before.weights.items()}
        F.cross_entropy(slowly(cell, x, w, signals), y).backward()
        total, gradients = torch.zeros((), dtype=torch.float64), []
        for name in ("layers.0", "layers.1"):
            matrix, of = w[f"{name}.recurrent.weight"].detach().clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
            for t in range(STEPS - 1):
                z = (signals[f"{name}.input"][t] + signals[f"{name}.recurrent"][t]).detach()
                slope = {"tanh": 1 - torch.tanh(z) ** 2, "relu": (z > 0).double(), "identity": torch.ones_like(z)}[cell]
                later = signals[f"{name}.input"][t + 1].grad
                assert later is not None
                lengths = later.norm(dim=1)
                seen = lengths > 0
                of = of + ((((later @ matrix) * slope).norm(dim=1)[seen] / lengths[seen] - 1) ** 2).sum() / len(y)
            gradients.append(torch.autograd.grad(lam * of, matrix)[0])
            total = total + of.detach()
        assert before.curve("penalty/vanishing_gradient", r)[0] == pytest.approx(lam * total.item(), rel=1e-12)
        assert before.curve("objective/train", r)[0] == pytest.approx(before.curve("loss/train", r)[0] + lam * total.item(), rel=1e-13)
        assert before.curve("penalty_gradient/norm", r)[0] == pytest.approx([0, gradients[0].norm().item(), 0, gradients[1].norm().item(), 0], rel=1e-11)
        for name, value in w.items():
            own = {f"layers.{i}.recurrent.weight": g for i, g in enumerate(gradients)}.get(name, torch.zeros_like(value))
            assert (free.weights[name][r % 2] - after.weights[name][r] - own).abs().max() < 1e-12, name
        assert before.curve("gradient/norm", r) == pytest.approx(free.curve("gradient/norm", r % 2), rel=1e-13)  # the data's own


def test_omega_of_a_linear_net_of_orthogonal_recurrence_in_closed_form():
    """Each step shortens by ρ: Ω = (T − 1)(ρ − 1)², and its slope along U is 2(T − 1)(ρ − 1)ρ, so that ρ moves towards 1 from both sides."""
    x, y = sequences()
    for rho in (0.6, 1.0, 1.5):
        model = rnn("identity", bias=False, hidden=[8], init={"kind": "orthogonal", "scale": rho})
        job = spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), {"kind": "vanishing_gradient", "lambda": 0.1})
        found, moved, free = run(job), run({**job, "optimizer": sgd(1.0)}), run({**job, "optimizer": sgd(1.0), "regularizers": []})
        assert found.curve("penalty/vanishing_gradient")[0] == pytest.approx(0.1 * (STEPS - 1) * (rho - 1) ** 2, rel=1e-12, abs=1e-25)
        name = "layers.0.recurrent.weight"
        along = ((free.weights[name] - moved.weights[name]) * found.weights[name]).sum().item()
        assert along == pytest.approx(0.1 * 2 * (STEPS - 1) * (rho - 1) * rho, rel=1e-10, abs=1e-13)


def test_omega_of_gradients_whose_squares_underflow():
    """Plain tanh over 60 steps in float32: δ₁ is near 1e-26, and the ratio between steps is what it is in float64."""
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((6, 60)), np.arange(6) % 3
    model = {"kind": "rnn", "hidden": [7], "sequence": [60, 1], "init": {"kind": "orthogonal", "scale": 0.4}}
    job = spec(inline(x, y), model, "cross_entropy", sgd(FROZEN), {"kind": "vanishing_gradient", "lambda": 1.0})
    double, single = run(job), run({**job, "dtype": "float32"})
    assert double.curve("signal/time")[0, 0] < 1e-20
    assert single.curve("penalty/vanishing_gradient")[0] == pytest.approx(double.curve("penalty/vanishing_gradient")[0], rel=1e-5)
    assert single.curve("penalty_gradient/norm")[0, 1] == pytest.approx(double.curve("penalty_gradient/norm")[0, 1], rel=1e-4)


def test_omega_lengthens_what_comes_back_to_the_first_step():
    job = spec(
        {"kind": "temporal_order", "rows": 80, "length": 20}, {"kind": "rnn", "hidden": [10], "init": {"kind": "orthogonal", "scale": 0.8}}, "cross_entropy", sgd(0.02),
        {"kind": "vanishing_gradient", "lambda": {"values": [0.0, 0.5]}}, batch_size=20, epochs=15, clip={"kind": "global_norm", "max": 1.0},
    )  # fmt: skip
    found = run(job)
    ratios = [found.curve("signal/time", r)[-1, 0] / found.curve("signal/time", r)[-1, -1] for r in range(2)]
    assert ratios[1] > 5 * ratios[0]


# ---------------------------------------------------------------- initial weights


@pytest.mark.parametrize("cell", CELLS)
def test_initial_weights_of_recurrent_layers_are_drawn_gate_by_gate(cell):
    x, y = sequences()
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)

    def drawn(kind: str) -> dict[str, Tensor]:
        return at_start(spec(inline(x, y), rnn(cell, hidden=[40], init={"kind": kind}), "cross_entropy", sgd(0.1))).weights

    torchs, orthogonal, xavier = (drawn(kind) for kind in ("torch", "orthogonal", "xavier_normal"))
    for name, value in torchs.items():
        if name.startswith("layers"):  # torch.nn.RNN, LSTM, GRU: uniform in ±1/√hidden, whatever the tensor
            assert value.abs().max() <= 1 / math.sqrt(40)
            assert value.abs().max() > 0.9 / math.sqrt(40)
    for gate in orthogonal["layers.0.recurrent.weight"][0].chunk(gates):
        assert (gate @ gate.T - torch.eye(40, dtype=torch.float64)).abs().max() < 1e-12
    assert xavier["layers.0.recurrent.weight"].square().mean() == pytest.approx(2 / 80, rel=4 * math.sqrt(2 / (1600 * gates)))
    assert xavier["layers.0.input.weight"].square().mean() == pytest.approx(2 / 42, rel=4 * math.sqrt(2 / (80 * gates)))


def test_recurrent_relu_with_identity_keeps_its_state():
    """IRNN (Le et al. 2015): without input the state stays as it is, so δ_t is the same at every step."""
    x, y = sequences()
    found = at_start(spec(inline(x.abs(), y), rnn("relu", hidden=[6], init={"kind": "identity", "std": 0.1}), "cross_entropy", sgd(0.1)))
    assert (found.weights["layers.0.recurrent.weight"][0] - torch.eye(6, dtype=torch.float64)).abs().max() < 1e-290
    assert (found.weights["layers.0.input.weight"] != 0).all()
    gates = at_start(spec(inline(x, y), rnn("gru", hidden=[6], init={"kind": "identity", "scale": 0.5}), "cross_entropy", sgd(0.1))).weights["layers.0.recurrent.weight"][0]
    assert all((gate - 0.5 * torch.eye(6, dtype=torch.float64)).abs().max() < 1e-290 for gate in gates.chunk(3))
    still = at_start(spec(inline(x, y), rnn("identity", hidden=[6], bias=False, init={"kind": "identity"}), "cross_entropy", sgd(0.1))).curve("signal/time")[0]
    assert still == pytest.approx(np.full(STEPS, still[0]), rel=1e-13)


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "no sequence": (rnn() | {"sequence": None}, (), "model.sequence", "set model.sequence"),
    "another length": (rnn(sequence=[5, 2]), (), "model.sequence", "10 numbers"),
    "dropout on an input half": (rnn(), ({"kind": "dropout", "rate": 0.5, "on": ["layers.0.input"]},), "regularizers.0.on.0", "layers.0.input"),
    "dropout on the head": (rnn(), ({"kind": "dropout", "rate": 0.5, "on": ["head"]},), "regularizers.0.on.0", "head"),
    "lsuv": (rnn(init={"kind": "lsuv"}), (), "model.init.kind", "unit variance"),
    "a layer that has two halves": (rnn(), ({"kind": "l2", "lambda": 0.1, "on": ["layers.0"]},), "regularizers.0.on.0", "layers.0"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_does_not_fit_is_refused_at_its_path(how):
    model, regularizers, path, words = REFUSED[how]
    x, y = sequences()
    job = parse(json.dumps(spec(inline(x, y), model, "cross_entropy", sgd(0.1), *regularizers)))
    facts = facts_of(job.dataset)
    assert facts is not None
    with pytest.raises(SpecRefused) as refusal:
        check(job, facts)
    assert [(p.path, words in p.message) for p in refusal.value.problems] == [(path, True)]
    assert refusal.value.problems[0].hint


@pytest.mark.parametrize(
    ("fields", "path"),
    [({"cell": "elman"}, "model.cell"), ({"hidden": []}, "model.hidden"), ({"sequence": [9]}, "model.sequence"), ({"normalization": {"kind": "batch"}}, "model.normalization")],
)
def test_fields_that_an_rnn_does_not_have_are_refused(fields, path):
    x, y = sequences()
    with pytest.raises(SpecRefused) as refusal:
        parse(json.dumps(spec(inline(x, y), rnn() | fields, "cross_entropy", sgd(0.1))))
    assert refusal.value.problems[0].path.startswith(path)
