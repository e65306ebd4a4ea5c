"""Recurrent layers over stacked parameters: a loop over time steps of batched products, and backpropagation through time written by hand.
No place is written twice, so tangents go along with it.

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
    states, linear, sums = [_zeros(at_input, weight)], list[Tensor](), list[Tensor]()
    for x in at_input.unbind(2):
        linear.append(_recurred(states[-1], weight, bias))
        sums.append(x + linear[-1])
        states.append(phi.forward(sums[-1]))

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_sums, carried = [*sums], _zeros(at_input, weight)
        for t in reversed(range(len(sums))):
            of_sums[t] = phi.backward(_arrived(carried, delta, t, len(sums)), sums[t], states[t + 1])
            carried = torch.bmm(of_sums[t], weight)
        together = torch.stack(of_sums, 2)
        return together, together

    return Unrolled(torch.stack(states, 2), torch.stack(linear, 2), back)


def _lstm(at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """i, f, o = σ(…), g = tanh(…), c = f ⊙ c + i ⊙ g, h = o ⊙ tanh c"""
    states, cells, linear, gates = [_zeros(at_input, weight)], [_zeros(at_input, weight)], list[Tensor](), list[tuple[Tensor, ...]]()
    for x in at_input.unbind(2):
        linear.append(_recurred(states[-1], weight, bias))
        i, f, g, o = (x + linear[-1]).chunk(4, 2)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        gates.append((i, f, g, o))
        cells.append(f * cells[-1] + i * g)
        states.append(o * cells[-1].tanh())

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_sums, carried, of_cell = [*linear], _zeros(at_input, weight), _zeros(at_input, weight)
        for t in reversed(range(len(gates))):
            (i, f, g, o), squashed, of_state = gates[t], cells[t + 1].tanh(), _arrived(carried, delta, t, len(gates))
            of_cell = of_cell + of_state * o * (1 - squashed.square())
            slopes = (of_cell * g * i * (1 - i), of_cell * cells[t] * f * (1 - f), of_cell * i * (1 - g.square()), of_state * squashed * o * (1 - o))
            of_sums[t] = torch.cat(slopes, 2)
            carried, of_cell = torch.bmm(of_sums[t], weight), of_cell * f
        together = torch.stack(of_sums, 2)
        return together, together

    return Unrolled(torch.stack(states, 2), torch.stack(linear, 2), back)


def _gru(at_input: Tensor, weight: Tensor, bias: Tensor | None) -> Unrolled:
    """r, z = σ(x + u), n = tanh(x + r ⊙ u), h = (1 − z) ⊙ n + z ⊙ h"""
    states, linear, gates = [_zeros(at_input, weight)], list[Tensor](), list[tuple[Tensor, ...]]()
    for x in at_input.unbind(2):
        linear.append(_recurred(states[-1], weight, bias))
        (xr, xz, xn), (ur, uz, un) = x.chunk(3, 2), linear[-1].chunk(3, 2)
        r, z = (xr + ur).sigmoid(), (xz + uz).sigmoid()
        n = (xn + r * un).tanh()
        gates.append((r, z, n, un))
        states.append(n + z * (states[-1] - n))

    def back(delta: Tensor) -> tuple[Tensor, Tensor]:
        of_input, of_state, carried = [*linear], [*linear], _zeros(at_input, weight)
        for t in reversed(range(len(gates))):
            (r, z, n, un), arrived = gates[t], _arrived(carried, delta, t, len(gates))
            of_new = arrived * (1 - z) * (1 - n.square())
            of_reset, of_update = of_new * un * r * (1 - r), arrived * (states[t] - n) * z * (1 - z)
            of_input[t], of_state[t] = torch.cat([of_reset, of_update, of_new], 2), torch.cat([of_reset, of_update, of_new * r], 2)
            carried = torch.baddbmm(arrived * z, of_state[t], weight)
        return torch.stack(of_input, 2), torch.stack(of_state, 2)

    return Unrolled(torch.stack(states, 2), torch.stack(linear, 2), back)


def _zeros(at_input: Tensor, weight: Tensor) -> Tensor:
    """h_0.  (R, B, H)"""
    return at_input.new_zeros(*at_input.shape[:2], weight.shape[2])


def _recurred(state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """U·h_{t−1} (+ b)"""
    return torch.bmm(state, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), state, weight.mT)


def _arrived(carried: Tensor, delta: Tensor, t: int, steps: int) -> Tensor:
    """The gradient at h of step t (from 0): what later steps carry back, and what comes from above."""
    if delta.dim() == 4:
        return carried + delta[:, :, t]
    return delta if t == steps - 1 else carried
