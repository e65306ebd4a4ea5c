"""Recurrent layers over stacked parameters: a loop over time steps of batched products, and backpropagation through time written by hand.

Sequences are (R, B, T, units): a row's steps lie together, as they do in the dataset. The gates of a cell lie side by side in `units`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.models import Cell
from worker.training.layers import ACTIVATIONS, Activation


@dataclass(frozen=True)
class Unrolled:
    """What a recurrent layer did with a batch of sequences."""

    states: Tensor
    """h_0 = 0, h_1 … h_T.  (R, B, T + 1, H)"""
    linear: Tensor
    """U·h_{t−1} (+ b) at every step.  (R, B, T, units)"""
    back: Callable[[Tensor], tuple[Tensor, Tensor]]
    """From the gradient at h_1 … h_T (R, B, T, H), or at h_T alone (R, B, H), to those at the linear outputs of input and recurrence, (R, B, T, units) each."""


def unrolled(cell: Cell, at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """at_input: W·x_t + b, (R, B, T, units); weight: U, (R, units, H); bias: of U, (R, units)"""
    match cell:
        case "tanh" | "relu" | "identity":
            return _plain(ACTIVATIONS[cell], at_input, weight, bias)
        case "lstm":
            return _lstm(at_input, weight, bias)
        case "gru":
            return _gru(at_input, weight, bias)
        case _:
            assert_never(cell)


def _plain(phi: Activation, at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """h = φ(x + u)"""
    states, linear, z = *_room(at_input, weight), torch.empty_like(at_input)
    for t in range(at_input.shape[2]):
        _recur(states, linear, t, weight, bias)
        torch.add(at_input[:, :, t], linear[:, :, t], out=z[:, :, t])
        states[:, :, t + 1] = phi.forward(z[:, :, t])

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_z, carried = torch.empty_like(z), torch.zeros_like(states[:, :, 0])
        for t in reversed(range(z.shape[2])):
            of_z[:, :, t] = phi.backward(_arrived(carried, delta, t, z.shape[2]), z[:, :, t], states[:, :, t + 1])
            carried = torch.bmm(of_z[:, :, t], weight)
        return of_z, of_z

    return Unrolled(states, linear, back)


def _lstm(at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """i, f, o = σ(…), g = tanh(…), c = f ⊙ c + i ⊙ g, h = o ⊙ tanh c"""
    states, linear = _room(at_input, weight)
    gates, cells, width = torch.empty_like(at_input), torch.zeros_like(states), weight.shape[2]
    new = slice(2 * width, 3 * width)
    for t in range(at_input.shape[2]):
        _recur(states, linear, t, weight, bias)
        z = at_input[:, :, t] + linear[:, :, t]
        gates[:, :, t] = z.sigmoid()
        gates[:, :, t, new] = z[:, :, new].tanh()
        i, f, g, o = gates[:, :, t].chunk(4, 2)
        cells[:, :, t + 1] = torch.addcmul(f * cells[:, :, t], i, g)
        states[:, :, t + 1] = o * cells[:, :, t + 1].tanh()

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_z, carried, of_cell = torch.empty_like(gates), torch.zeros_like(states[:, :, 0]), torch.zeros_like(states[:, :, 0])
        for t in reversed(range(gates.shape[2])):
            i, f, g, o = gates[:, :, t].chunk(4, 2)
            squashed, of_state = cells[:, :, t + 1].tanh(), _arrived(carried, delta, t, gates.shape[2])
            of_cell = of_cell + of_state * o * (1 - squashed.square())
            of_gates = torch.cat([of_cell * g, of_cell * cells[:, :, t], of_cell * i, of_state * squashed], 2)
            slopes = gates[:, :, t] * (1 - gates[:, :, t])
            slopes[:, :, new] = 1 - g.square()
            of_z[:, :, t] = of_gates * slopes
            carried, of_cell = torch.bmm(of_z[:, :, t], weight), of_cell * f
        return of_z, of_z

    return Unrolled(states, linear, back)


def _gru(at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """r, z = σ(x + u), n = tanh(x + r ⊙ u), h = (1 − z) ⊙ n + z ⊙ h"""
    states, linear = _room(at_input, weight)
    gates, width = torch.empty_like(at_input), weight.shape[2]
    new = slice(2 * width, 3 * width)
    for t in range(at_input.shape[2]):
        _recur(states, linear, t, weight, bias)
        gates[:, :, t, : 2 * width] = (at_input[:, :, t, : 2 * width] + linear[:, :, t, : 2 * width]).sigmoid()
        r, z, _ = gates[:, :, t].chunk(3, 2)
        n = gates[:, :, t, new] = torch.addcmul(at_input[:, :, t, new], r, linear[:, :, t, new]).tanh()
        states[:, :, t + 1] = torch.addcmul(n, z, states[:, :, t] - n)

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_input, of_state, carried = torch.empty_like(gates), torch.empty_like(gates), torch.zeros_like(states[:, :, 0])
        for t in reversed(range(gates.shape[2])):
            r, z, n = gates[:, :, t].chunk(3, 2)
            arrived = _arrived(carried, delta, t, gates.shape[2])
            of_new = arrived * (1 - z) * (1 - n.square())
            of_reset, of_update = of_new * linear[:, :, t, new] * r * (1 - r), arrived * (states[:, :, t] - n) * z * (1 - z)
            of_input[:, :, t] = torch.cat([of_reset, of_update, of_new], 2)
            of_state[:, :, t] = torch.cat([of_reset, of_update, of_new * r], 2)
            carried = torch.baddbmm(arrived * z, of_state[:, :, t], weight)
        return of_input, of_state

    return Unrolled(states, linear, back)


def _room(at_input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Place for the states, h_0 = 0 in it, and for the recurrent linear outputs."""
    runs, rows, steps, _ = at_input.shape
    states = at_input.new_empty(runs, rows, steps + 1, weight.shape[2])
    states[:, :, 0] = 0
    return states, torch.empty_like(at_input)


def _recur(states: Tensor, linear: Tensor, t: int, weight: Tensor, bias: Tensor | None) -> None:
    """linear_t = U·h_{t−1} (+ b)"""
    if bias is None:
        torch.bmm(states[:, :, t], weight.mT, out=linear[:, :, t])
    else:
        torch.baddbmm(bias.unsqueeze(1), states[:, :, t], weight.mT, out=linear[:, :, t])


def _arrived(carried: Tensor, delta: Tensor, t: int, steps: int) -> Tensor:
    """The gradient at h of step t (from 0): what later steps carry back, and what comes from above."""
    if delta.dim() == 4:
        return carried + delta[:, :, t]
    return delta if t == steps - 1 else carried
