"""Ω of Pascanu, Mikolov & Bengio (2013): what keeps the gradient's length from step to step through a recurrent layer, and its immediate derivative.

Lengths are taken in float64 and directions at length 1: a gradient of 1e-30 after fifty steps has a ratio like any other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.layers import ACTIVATIONS
from worker.training.models import Net, Passed


@dataclass(frozen=True)
class Vanishing:
    """λΩ of each run (R,), and its gradients (R, n) in the columns of the recurrent matrices."""

    value: Tensor
    gradients: list[Tensor]


def vanishing(net: Net, layers: list[list[Passed]], deltas: list[list[Tensor]], *, lam: Tensor, rows: int) -> Vanishing:
    """layers and deltas: of every micro-batch, of every layer; lam: (R, 1); rows: of the whole batch."""
    value, gradients = torch.zeros(net.runs, dtype=torch.float64, device=lam.device), list[Tensor]()
    for place, layer in enumerate(net.shape):
        if layer.recurrence is None or layer.recurrence.half == "input":
            continue
        matrix = net.tensors[f"{layer.name}.weight"]
        found = torch.zeros_like(matrix)
        for passed, back in zip(layers, deltas, strict=True):
            z = passed[place - 1].signal + passed[place].signal
            phi = ACTIVATIONS[layer.recurrence.cell]
            slope = phi.backward(torch.ones_like(z), z, phi.forward(z))
            of_part, gradient = _between(slope.unflatten(1, (-1, layer.recurrence.steps)), back[place].unflatten(1, (-1, layer.recurrence.steps)), matrix)
            value, found = value + of_part, found + gradient
        gradients.append((lam * found.flatten(1)) / rows)
    return Vanishing((lam.squeeze(1) * value / rows).to(lam.dtype), gradients)


def _between(slope: Tensor, delta: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Σ over rows and steps of (‖v‖ − 1)², v = (δ_{t+1}/‖δ_{t+1}‖)·U ⊙ φ′(z_t), and its gradient in U with everything else held. A δ of 0 has no length to keep.

    slope, delta: (R, B, T, H), matrix: (R, H, H) -> (R,), (R, H, H)
    """
    later, slope = delta[:, :, 1:].flatten(1, 2), slope[:, :, :-1].flatten(1, 2)
    length = torch.linalg.vector_norm(later, dim=2, keepdim=True, dtype=torch.float64)
    unit = torch.where(length > 0, later / length, 0.0).to(later.dtype)
    v = torch.bmm(unit, matrix) * slope
    ratio = torch.linalg.vector_norm(v, dim=2, keepdim=True, dtype=torch.float64)
    away = torch.where(length > 0, ratio - 1, 0.0)
    pull = torch.where(ratio > 0, 2 * away / ratio * v, 0.0).to(v.dtype) * slope
    return away.square().sum((1, 2)), torch.bmm(unit.mT, pull)
