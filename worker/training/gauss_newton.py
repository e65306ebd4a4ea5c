"""The generalised Gauss–Newton matrix of the mean loss on whole splits: G = mean over rows of JᵀHJ, J the Jacobian of the outputs in the
parameters, H the second derivative of the row's loss in the outputs (Schraudolph 2002; Martens 2020). It is positive semidefinite, for linear
models it is the Hessian, and like evaluation it is taken without dropout and with the running averages of batch norm.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib import import_module
from math import prod
from typing import assert_never

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError
from regtrain.contract.models import Cnn
from worker.training.evaluate import CHUNK, Part
from worker.training.losses import averaged, curvature, of_rows
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import Net, backward, forward
from worker.training.pack import Pack

MOST_NUMBERS = 2**22
"""Of the gradients of single rows in one convolution or recurrent layer that are held at a time, a run."""


@torch.no_grad()
def loss_and_gradient(pack: Pack, part: Part) -> tuple[Tensor, Tensor]:
    """The mean loss as evaluation has it (R,) in float64, and its gradient (R, P)."""
    gradient = torch.zeros_like(pack.flat)
    net, loss, whole = _beside(pack, gradient), torch.zeros(pack.size, dtype=torch.float64, device=pack.device), size_of(pack.spec.loss, part.y, pack.class_weights)
    for x, y in _chunks(part, CHUNK):
        trace = forward(net, x, running=_running(pack))
        value, slope = averaged(*loss_of(pack.spec.loss, trace.outputs, y, smoothing=pack.smoothing, weights=pack.class_weights), whole)
        loss += value.double()
        backward(net, trace, slope, add=True)
    return loss, gradient


@torch.no_grad()
def product(pack: Pack, part: Part, v: Tensor) -> Tensor:
    """G·v of each run: Jv by a tangent that goes along with the forward pass, Jᵀ by the way back.  (R, P) -> (R, P)"""
    _load_formulas()
    found = torch.zeros_like(pack.flat)
    net = _beside(pack, found)
    for x, y in _chunks(part, CHUNK):
        with forward_ad.dual_level():
            moving = replace(net, tensors=pack.layout.views(forward_ad.make_dual(pack.flat, v)))
            moved = forward_ad.unpack_dual(forward(moving, x, running=_running(pack)).outputs).tangent
        assert moved is not None
        trace = forward(net, x, running=_running(pack))
        backward(net, trace, _bent(pack.spec.loss, trace.outputs, moved) * _share(pack, part, y), add=True)
    return found


@torch.no_grad()
def diagonal(pack: Pack, part: Part) -> Tensor:
    """diag G of weights and biases, 0 in place of norm parameters: one way back for each column of H's root, squared row by row.  -> (R, P)

    Of weights as they are: a reparametrized layer's would need the way from each row's gradient to what is learned.
    """
    assert all(layer.reparametrization is None for layer in pack.shape), "reparametrized layers have no diagonal here"
    found = torch.zeros_like(pack.flat)
    views, net = pack.layout.views(found), _beside(pack, torch.zeros_like(pack.flat))
    for x, y in _chunks(part, _rows_at_a_time(pack)):
        root = _share(pack, part, y) ** 0.5
        for column in range(pack.shape[-1].output[0]):
            trace = forward(net, x, running=_running(pack))  # anew for each: autograd's part of a trace serves once
            deltas = backward(net, trace, _root(pack.spec.loss, trace.outputs, column) * root, add=False)
            for layer, passed, delta in zip(pack.shape, trace.layers, deltas, strict=True):
                of_bias = views.get(f"{layer.name}.bias")
                h, steps = passed.input, layer.recurrence.steps if layer.recurrence else 1
                if steps > 1:
                    _add_squares_in_time(h.unflatten(1, (-1, steps)), delta.unflatten(1, (-1, steps)), views[f"{layer.name}.weight"], of_bias)
                else:
                    _add_squares(pack, h, delta, views[f"{layer.name}.weight"], of_bias)
    return found


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, most: int) -> Tensor:
    """x with ‖b − Ax‖ ≤ tolerance·‖b‖, or the best that `most` products give, run by run; A symmetric and positive (Hestenes & Stiefel 1952).  (R, P) -> (R, P)"""
    x, r = torch.zeros_like(b), b
    p, left = r, _dot(r, r)
    goal = left * tolerance**2
    for _ in range(most):
        going = left > goal
        if b.device.type == "cpu" and not bool(going.any()):
            break
        ap = apply(p)
        bend = _dot(p, ap)
        going = going & (bend > 0)
        step = torch.where(going, left / torch.where(going, bend, 1.0), 0.0)
        x, r = x + step * p, r - step * ap
        later = _dot(r, r)
        p = torch.where(going, r + later / torch.where(left > 0, left, 1.0) * p, p)
        left = torch.where(going, later, torch.zeros_like(left))
    return x


def _add_squares_in_time(h: Tensor, delta: Tensor, of_weight: Tensor, of_bias: Tensor | None) -> None:
    """The same where a row's gradient is a sum over its time steps.  h (R, B, T, in), delta (R, B, T, units)"""
    of_weight += (delta.mT @ h).square().sum(1)
    if of_bias is not None:
        of_bias += delta.sum(2).square().sum(1)


def _add_squares(pack: Pack, h: Tensor, delta: Tensor, of_weight: Tensor, of_bias: Tensor | None) -> None:
    """The squares of each row's gradient, summed over rows."""
    if of_weight.dim() == 3:
        of_weight += torch.bmm(delta.square().mT, h.square())
        if of_bias is not None:
            of_bias += delta.square().sum(1)
        return
    assert isinstance(pack.spec.model, Cnn)
    rows, kernel = len(h), of_weight.shape[-1]
    patches = functional.unfold(h.reshape(rows * pack.size, -1, *h.shape[2:]), kernel, padding=kernel // 2, stride=pack.spec.model.stride)
    places = delta.reshape(rows * pack.size, -1, delta.shape[2] * delta.shape[3])
    of_weight += torch.bmm(places, patches.mT).square().view(rows, *of_weight.shape).sum(0)
    if of_bias is not None:
        of_bias += places.sum(2).square().view(rows, *of_bias.shape).sum(0)


def _root(spec: Loss, outputs: Tensor, column: int) -> Tensor:
    """One column of S, SSᵀ = H.  (R, B, C) -> (R, B, C)"""
    match spec:
        case SquaredError() | HalfSquaredError():
            found = torch.zeros_like(outputs)
            found[..., column] = curvature(spec) ** 0.5
            return found
        case Binary():
            p = outputs.sigmoid()
            return (p * (1 - p)).sqrt()
        case CrossEntropy():  # diag p − ppᵀ = Σ_c p_c(e_c − p)(e_c − p)ᵀ
            p = outputs.softmax(2)
            away = -p
            away[..., column] += 1
            return p[..., column : column + 1].sqrt() * away
        case _:
            assert_never(spec)


def _share(pack: Pack, part: Part, y: Tensor) -> Tensor | float:
    """What each row counts in the mean over the part.  (B,) -> (B, 1), or one number for all"""
    if pack.class_weights is None:
        return 1 / len(part)
    return (of_rows(pack.spec.loss, pack.class_weights, y) / size_of(pack.spec.loss, part.y, pack.class_weights)).unsqueeze(-1)


def _bent(spec: Loss, outputs: Tensor, moved: Tensor) -> Tensor:
    """H times a move of the outputs.  (R, B, C) -> (R, B, C)"""
    match spec:
        case SquaredError() | HalfSquaredError():
            return curvature(spec) * moved
        case Binary():
            p = outputs.sigmoid()
            return p * (1 - p) * moved
        case CrossEntropy():
            p = outputs.softmax(2)
            return p * (moved - (p * moved).sum(2, keepdim=True))
        case _:
            assert_never(spec)


@cache
def _load_formulas() -> None:
    """What torch itself loads with the first tangent, scripted in a way that it has deprecated itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import_module("torch._decomp.decompositions_for_jvp")


def _beside(pack: Pack, gradient: Tensor) -> Net:
    """The pack's net with a gradient of its own."""
    return replace(pack.net, gradients=pack.layout.views(gradient))


def _running(pack: Pack) -> dict[str, Tensor] | None:
    return pack.layout.buffer_views(pack.buffers) or None


def _chunks(part: Part, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(part), size):
        yield part.x[first : first + size], part.y[first : first + size]


def _rows_at_a_time(pack: Pack) -> int:
    """Of what a run needs alone, so that company changes no sum."""
    largest = max((prod(layer.weight) for layer in pack.shape if len(layer.weight) == 4 or layer.recurrence), default=1)
    return max(1, min(CHUNK, MOST_NUMBERS // largest))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(R, P) -> (R, 1), summed in float64."""
    return (a.double() * b.double()).sum(1, keepdim=True).to(a.dtype)
