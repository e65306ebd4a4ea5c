"""The generalised Gauss–Newton matrix, its diagonal and its products, against JᵀHJ written out with autograd's Jacobians, and against the Hessian where they are equal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.functional import hessian
from torch.nn import functional as F
from training_jobs import inline, sgd, spec

from regtrain.contract.job import parse
from worker.training.gauss_newton import conjugate_gradients, diagonal, loss_and_gradient, product
from worker.training.models import forward
from worker.training.prepare import prepare
from worker.training.running import pack_of

DRAW = np.random.default_rng(0)
ROWS = 9
IMAGES = inline(DRAW.standard_normal((ROWS, 32)), DRAW.integers(0, 3, ROWS))
CLASSES = inline(DRAW.standard_normal((ROWS, 4)), np.arange(ROWS) % 3)
TWO = inline(DRAW.standard_normal((ROWS, 4)), np.arange(ROWS) % 2)
REAL = inline(DRAW.standard_normal((ROWS, 4)), DRAW.standard_normal(ROWS))
MLP = {"kind": "mlp", "hidden": [5, 5], "activation": "tanh"}
CNN = {"kind": "cnn", "image": [2, 4, 4], "channels": [3, 4], "kernel": 3, "activation": "tanh", "pool": "max"}
NETS: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "tanh, squares": (REAL, MLP, "squared_error"),
    "half squares": (REAL, MLP, "half_squared_error"),
    "two classes": (TWO, MLP, "binary"),
    "three classes": (CLASSES, MLP, "cross_entropy"),
    "smoothed": (CLASSES, MLP, {"kind": "cross_entropy", "label_smoothing": 0.3}),
    "residual": (CLASSES, {**MLP, "residual": True}, "cross_entropy"),
    "layer norm": (CLASSES, {**MLP, "normalization": {"kind": "layer"}}, "cross_entropy"),
    "batch norm": (CLASSES, {**MLP, "normalization": {"kind": "batch"}}, "cross_entropy"),
    "images": (IMAGES, CNN, "cross_entropy"),
    "strided images": (IMAGES, {**CNN, "pool": "none", "stride": 2}, "cross_entropy"),
    "weighted classes": (CLASSES, MLP, {"kind": "cross_entropy", "class_weights": [1.0, 2.0, 0.5]}),
    "two weighted classes": (TWO, MLP, {"kind": "binary", "class_weights": [1.0, 3.0]}),
    "recurrent": (CLASSES, {"kind": "rnn", "hidden": [3, 4], "sequence": [4, 1]}, "cross_entropy"),
    "lstm": (CLASSES, {"kind": "rnn", "hidden": [3], "cell": "lstm", "sequence": [2, 2]}, "cross_entropy"),
    "gru": (REAL, {"kind": "rnn", "hidden": [3, 2], "cell": "gru", "sequence": [2, 2]}, "squared_error"),
    "linear": (CLASSES, {"kind": "linear"}, "cross_entropy"),
}


def pack(dataset, model, loss, seeds=2):
    text = json.dumps(spec(dataset, model, loss, sgd(0.1), selection={"seeds": seeds}))
    job = prepare(parse(text), device="cpu", data=Path(), upload=None, scratch=None)
    made = pack_of(job, job.runs)
    made.flat.add_(0.1 * torch.from_numpy(np.random.default_rng(1).standard_normal(made.flat.shape)))  # no bias is 0
    made.buffers.add_(0.1 * torch.from_numpy(np.random.default_rng(2).random(made.buffers.shape)))
    return job, made


def outputs_of(made, x, flat, r):
    """Outputs as a function of one run's parameters, by tangents: the way back of a net that autograd does not see."""
    whole = made.flat.clone()
    whole[r] = flat
    from dataclasses import replace

    return forward(replace(made.net, tensors=made.layout.views(whole)), x, running=made.layout.buffer_views(made.buffers) or None).outputs[r]


def jacobian(made, x, r):
    """(B, C, P) by central differences: nothing of ours but the forward pass."""
    h, columns = 1e-5, []
    for p in range(made.flat.shape[1]):
        move = torch.zeros_like(made.flat[r])
        move[p] = h
        columns.append((outputs_of(made, x, made.flat[r] + move, r) - outputs_of(made, x, made.flat[r] - move, r)) / (2 * h))
    return torch.stack(columns, 2)


def row_loss(loss, f, y):
    name = loss if isinstance(loss, str) else loss["kind"]
    match name:
        case "squared_error":
            return (f[0] - y).square()
        case "half_squared_error":
            return 0.5 * (f[0] - y).square()
        case "binary":
            return F.softplus(-y * f[0])
        case _:
            return F.cross_entropy(f, y, label_smoothing=0.0 if isinstance(loss, str) else loss.get("label_smoothing", 0.0))


def matrix(job, made, loss, r):
    """G by its definition, H by autograd's Hessian of each row's loss in the outputs."""
    x, y = job.train.x, job.train.y
    jac, out = jacobian(made, x, r), outputs_of(made, x, made.flat[r], r)
    weights = torch.tensor([1.0] * 3 if isinstance(loss, str) else loss.get("class_weights") or [1.0] * 3, dtype=torch.float64)
    each = weights[y.clamp(min=0).long()] if isinstance(loss, dict) else torch.ones(len(x), dtype=torch.float64)
    parts = [each[i] * jac[i].T @ hessian(lambda f, i=i: row_loss(loss, f, y[i]), out[i]) @ jac[i] for i in range(len(x))]
    return torch.stack(parts).sum(0) / each.sum()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("of", ["dense", "images"])
def test_products_of_reparametrized_layers(kind, of):
    dataset, model, loss = NETS["three classes" if of == "dense" else "images"]
    job, made = pack(dataset, {**model, "reparametrization": {"kind": kind}}, loss)
    v = torch.from_numpy(np.random.default_rng(3).standard_normal(made.flat.shape))
    ours = product(made, job.train, v)
    for r in range(2):
        torch.testing.assert_close(ours[r], matrix(job, made, loss, r) @ v[r], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("net", NETS)
def test_products_and_diagonal_are_those_of_the_matrix_written_out(net):
    dataset, model, loss = NETS[net]
    job, made = pack(dataset, model, loss)
    v = torch.from_numpy(np.random.default_rng(3).standard_normal(made.flat.shape))
    ours, on_diagonal, own_gradient = product(made, job.train, v), diagonal(made, job.train), made.gradient.clone()
    for r in range(2):
        g = matrix(job, made, loss, r)
        torch.testing.assert_close(ours[r], g @ v[r], rtol=1e-6, atol=1e-8)
        known = [slot for slot in made.layout.slots if ".norm." not in slot.name]
        for slot in known:
            torch.testing.assert_close(on_diagonal[r, slot.start : slot.stop], g.diagonal()[slot.start : slot.stop], rtol=1e-6, atol=1e-9)
        assert all(float(on_diagonal[r, slot.start : slot.stop].sum()) == 0 for slot in made.layout.slots if slot not in known)
    assert torch.equal(own_gradient, made.gradient)


def test_of_linear_models_it_is_the_hessian():
    """By autograd, twice, of the loss in torch's own words."""
    job, made = pack(CLASSES, {"kind": "linear"}, "cross_entropy", seeds=1)
    x, y = job.train.x, job.train.y

    def loss(flat):
        return F.cross_entropy(x @ flat[:12].view(3, 4).T + flat[12:], y)

    want = hessian(loss, made.flat[0])
    identity = torch.eye(15, dtype=torch.float64)
    torch.testing.assert_close(torch.stack([product(made, job.train, e.unsqueeze(0))[0] for e in identity]), want)
    torch.testing.assert_close(diagonal(made, job.train)[0], want.diagonal())


@pytest.mark.parametrize("net", ["tanh, squares", "smoothed", "weighted classes", "batch norm", "images"])
def test_the_gradient_is_that_of_finite_differences(net):
    dataset, model, loss = NETS[net]
    job, made = pack(dataset, model, loss)
    _, gradient = loss_and_gradient(made, job.train)
    v = torch.from_numpy(np.random.default_rng(4).standard_normal(made.flat.shape))
    ends = []
    for sign in (1, -1):
        made.flat.add_(sign * 1e-5 * v)
        ends.append(loss_and_gradient(made, job.train)[0])
        made.flat.sub_(sign * 1e-5 * v)
    torch.testing.assert_close((gradient * v).sum(1), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_conjugate_gradients_solve_every_system_by_itself():
    draw = np.random.default_rng(5)
    root = torch.from_numpy(draw.standard_normal((3, 20, 20)))
    a = root @ root.mT + torch.tensor([1e-3, 1.0, 100.0], dtype=torch.float64).view(3, 1, 1) * torch.eye(20, dtype=torch.float64)
    b = torch.from_numpy(draw.standard_normal((3, 20)))
    b[2] = 0
    found = conjugate_gradients(lambda v: torch.bmm(a, v.unsqueeze(2)).squeeze(2), b, tolerance=1e-12, most=400)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-9)
    alone = conjugate_gradients(lambda v: v @ a[1].T, b[1:2], tolerance=1e-12, most=400)
    torch.testing.assert_close(found[1:2], alone, rtol=1e-12, atol=1e-14)
