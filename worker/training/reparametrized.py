"""Weights as functions of what is learned: weight and spectral normalization, stacked over runs, with their pull-backs.

Everything else of a layer sees the weight that comes out; the optimizer, penalties and instruments of weights see what is learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.models import Layer, SpectralNorm, WeightNorm
from worker.training.draws import generator
from worker.training.layers import put

FIRST_ITERATIONS = 15
"""Of the power method on the initial weights, as in torch."""


@dataclass(frozen=True)
class Made:
    """The weight that a layer works with, and what it was made from; `factor` multiplies what is learned, a number a unit or one a run."""

    weight: Tensor
    factor: Tensor


def made(layer: Layer, tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Made:
    """tensors and buffers: of all layers, by name.  -> weight (R, out, …)"""
    learned = tensors[f"{layer.name}.weight"]
    match layer.reparametrization:
        case None:
            return Made(learned, learned)
        case WeightNorm():
            factor = _over(tensors[f"{layer.name}.gain"], _norms(learned)).view(*learned.shape[:2], *[1] * (learned.dim() - 2))
        case SpectralNorm():
            left, right = (buffers[f"{layer.name}.running_{side}"].to(learned.dtype) for side in ("left", "right"))
            sigma = torch.bmm(torch.bmm(left.unsqueeze(1), learned.flatten(2)), right.unsqueeze(2))
            factor = _over(torch.ones_like(sigma), sigma).view(-1, *[1] * (learned.dim() - 1))
        case _:
            assert_never(layer.reparametrization)
    return Made(learned * factor, factor)


def pull_back(layer: Layer, of: Made, gradient: Tensor, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *, add: bool) -> None:
    """From the gradient of the weight that came out, (R, out, …), to those of what is learned, into their places or on top of what is there."""
    name, learned = layer.name, tensors[f"{layer.name}.weight"]
    match layer.reparametrization:
        case None:
            return
        case WeightNorm():
            along = (gradient * learned).flatten(2).sum(2)
            norms = _norms(learned)
            direction = learned * _over(along, norms.square()).view(of.factor.shape)
            put(gradients[f"{name}.weight"], of.factor * (gradient - direction), add=add)
            put(gradients[f"{name}.gain"], _over(along, norms), add=add)
        case SpectralNorm():
            outer = buffers[f"{name}.running_left"].unsqueeze(2) * buffers[f"{name}.running_right"].unsqueeze(1)
            along = (gradient * of.weight).flatten(1).sum(1).view(of.factor.shape)
            put(gradients[f"{name}.weight"], of.factor * (gradient - along * outer.view_as(gradient)), add=add)
        case _:
            assert_never(layer.reparametrization)


def iterate(shape: list[Layer], tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], active: Tensor) -> None:
    """One iteration of the power method for every spectrally normalized layer: u ← Wv/‖Wv‖, v ← Wᵀu/‖Wᵀu‖, in place, of the runs that are `active` (R,)."""
    for layer in shape:
        if isinstance(layer.reparametrization, SpectralNorm):
            left, right = buffers[f"{layer.name}.running_left"], buffers[f"{layer.name}.running_right"]
            matrix, moves = tensors[f"{layer.name}.weight"].flatten(2), active.unsqueeze(1)
            new = _unit(torch.bmm(matrix, right.unsqueeze(2)).squeeze(2))
            left.copy_(torch.where(moves, new, left))
            right.copy_(torch.where(moves, _unit(torch.bmm(matrix.mT, new.unsqueeze(2)).squeeze(2)), right))


def start(shape: list[Layer], tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *, job: int, runs: list[int]) -> None:
    """The first singular vectors of the initial weights, nearly: v drawn from the seeds of job and run, then FIRST_ITERATIONS of the power method.  runs: (R,) seeds"""
    for layer in shape:
        if isinstance(layer.reparametrization, SpectralNorm):
            right = buffers[f"{layer.name}.running_right"]
            drawn = [torch.randn(right.shape[1], generator=generator(job, run, "spectral", layer.name), dtype=torch.float64) for run in runs]
            right.copy_(_unit(torch.stack(drawn)))
    everyone = torch.ones(len(runs), dtype=torch.bool, device=next(iter(tensors.values())).device)
    for _ in range(FIRST_ITERATIONS):
        iterate(shape, tensors, buffers, everyone)


def _norms(weight: Tensor) -> Tensor:
    """Of each unit's weights.  (R, out, …) -> (R, out)"""
    return torch.linalg.vector_norm(weight.flatten(2), dim=2)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a/b, and 0 where b is 0: a unit whose weights a penalty has made zero stays zero."""
    return torch.where(b == 0, 0.0, a / b)


def _unit(x: Tensor) -> Tensor:
    """Each row at length 1, with torch's floor of 1e-12 under the length."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)
