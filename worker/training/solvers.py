"""Optimizers that choose their own steps on the full batch: proximal gradient (ISTA, FISTA) and L-BFGS, stacked over runs.

Every run searches by itself: trials are masked, bounded in number, and computed for all runs together. On a CPU a search ends when no run
needs another trial; the trials that are left out would have changed nothing.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from regtrain.contract.optimizers import Lbfgs, Proximal

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights (R, P) -> the smooth part of each run's objective (R,), its gradient (R, P)."""
Settle = Callable[[Tensor, Tensor], Tensor]
"""Weights (R, P) and a step (R, 1) -> the proximal step and the projections of all penalties and constraints, (R, P)."""
HALVINGS = 12
"""Trials of one backtracking; a step that is still too long is shortened further at the next update."""
TRIALS = 24
"""Trials of one line search."""
GROWTH = 1.1
SUFFICIENT, CURVED = 0.1, 0.9
"""The share of the expected decrease that is enough, and of the slope that may be left."""


class Solver(Protocol):
    """The state of an optimizer: tensors of one row a run."""

    state: dict[str, Tensor]


def proximal_step(
    spec: Proximal, solver: Solver, w: Tensor, gradient: Tensor, smooth: Objective, settle: Settle, *, curvature: Tensor | None, idle: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights after one update, the steps taken, and the largest slope that was left, max|w − y|/s. Runs that are `idle` (R, 1) need no search.
    gradient (R, P): of the smooth part at w; curvature (R, 1): L where it is known -> (R, P), (R, 1), (R, 1)

    w ← prox_s(y − s∇f(y)) with y = w + (t − 1)/t′·(w − before), t′ = (1 + √(1 + 4t²))/2; t restarts at 1 when ⟨y − w′, w′ − w⟩ > 0.
    """
    before, t = solver.state["before"], solver.state["inertia"]
    later = (1 + (1 + 4 * t.square()).sqrt()) / 2
    y = w + (t - 1) / later * (w - before) if spec.accelerated else w
    slope = smooth(y)[1] if spec.accelerated else gradient
    step = 1 / curvature if curvature is not None else solver.state["step"] * GROWTH
    after = settle(y - step * slope, step)
    if curvature is None:
        step, after = _backtracked(w, y, slope, step, after, smooth, settle, idle)
    against = _dot(y - after, after - w) > 0
    solver.state |= {"before": w.clone(), "inertia": torch.where(against, torch.ones_like(t), later), "step": step}
    return after, step, (after - y).abs().amax(1, keepdim=True) / step


def _backtracked(w: Tensor, y: Tensor, slope: Tensor, step: Tensor, after: Tensor, smooth: Objective, settle: Settle, good: Tensor) -> tuple[Tensor, Tensor]:
    """Halves the step of each run until its curvature along the move is at most 1/step. By gradients, not by values, whose differences are lost
    in rounding near the minimum. A run that finds none stays where it is, with the shorter step for its next update.  -> step (R, 1), after (R, P)
    """
    least = (4 * torch.finfo(w.dtype).eps) ** 2 * _dot(y, y)
    for _ in range(HALVINGS):
        move = after - y
        bend = _dot(smooth(after)[1] - slope, move)
        good = good | (bend * step <= _dot(move, move)) | (_dot(move, move) <= least)
        if w.device.type == "cpu" and bool(good.all()):
            break
        step = torch.where(good, step, step / 2)
        after = torch.where(good, after, settle(y - step * slope, step))
    return step, torch.where(good, after, w)


def lbfgs_step(spec: Lbfgs, solver: Solver, w: Tensor, value: Tensor, gradient: Tensor, smooth: Objective, *, idle: Tensor) -> tuple[Tensor, Tensor]:
    """The weights after one update, and the step sizes.  value (R,) and gradient (R, P) at w -> (R, P), (R, 1)"""
    _remember(solver, w, gradient)
    direction, first = _direction(solver, gradient)
    descends = _dot(direction, gradient) < 0
    direction = torch.where(descends, direction, -gradient)
    start = torch.where(first, 1 / gradient.abs().sum(1, keepdim=True).clamp(min=1.0), 1.0)
    step = _line_search(w, value.unsqueeze(1), gradient, direction, start, smooth, idle)
    stuck = step == 0
    solver.state |= {"before": w.clone(), "slope": gradient.clone(), "begun": torch.where(stuck, 0.0, torch.ones_like(step))}
    solver.state["products"] = torch.where(stuck, 0.0, solver.state["products"])  # steepest descent next
    return w + step * direction, step


def _remember(solver: Solver, w: Tensor, gradient: Tensor) -> None:
    """The move and the change of gradient since the last update, the newest last, where their product is clearly positive.  (R, history, P)"""
    state = solver.state
    move, bend = w - state["before"], gradient - state["slope"]
    product = _dot(move, bend)
    new = (state["begun"] > 0) & (product > torch.finfo(w.dtype).eps * _dot(bend, bend))
    for name, value in (("moves", move.unsqueeze(1)), ("bends", bend.unsqueeze(1)), ("products", product)):
        shape = new.view(-1, *[1] * (value.dim() - 1))
        state[name] = torch.where(shape, torch.cat([state[name][:, 1:], value], 1), state[name])


def _direction(solver: Solver, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """−H·g by the two-loop recursion; what is not remembered has a product of 0 and no effect.  -> (R, P), whether nothing is remembered (R, 1)"""
    moves, bends, products = (solver.state[name] for name in ("moves", "bends", "products"))
    known = products > 0
    inverse = torch.where(known, 1 / torch.where(known, products, 1.0), 0.0)
    q, shares = gradient, list[Tensor]()
    for i in reversed(range(moves.shape[1])):
        shares.append(inverse[:, i : i + 1] * _dot(moves[:, i], q))
        q = q - shares[-1] * bends[:, i]
    newest = bends[:, -1]
    scale = torch.where(known[:, -1:], products[:, -1:] / torch.where(known[:, -1:], _dot(newest, newest), 1.0), 1.0)
    q = q * scale
    for i in range(moves.shape[1]):
        q = q + moves[:, i] * (shares[-1 - i] - inverse[:, i : i + 1] * _dot(bends[:, i], q))
    return -q, ~known[:, -1:]


def _line_search(w: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, step: Tensor, smooth: Objective, idle: Tensor) -> Tensor:
    """A step of each run with enough decrease and little slope left, by doubling and bisection.  (R, 1); 0 where there is none.

    Near the minimum values differ by rounding alone: there a slope between (2c − 1)φ′(0) and 0.9·φ′(0) is enough.
    """
    slope = _dot(gradient, direction)
    rounding = 1e-3 * torch.finfo(w.dtype).eps ** 0.5 * value.abs()
    low, high, found = torch.zeros_like(step), torch.full_like(step, torch.inf), torch.zeros_like(step)
    done = idle | (slope >= 0)
    for _ in range(TRIALS):
        there, gradients = smooth(w + step * direction)
        there, slope_there = there.unsqueeze(1), _dot(gradients, direction)
        enough = (there <= value + SUFFICIENT * step * slope) | ((there <= value + rounding) & (slope_there <= (2 * SUFFICIENT - 1) * slope))
        level = slope_there >= CURVED * slope
        found = torch.where(~done & enough, step, found)
        done = done | (enough & level)
        if w.device.type == "cpu" and bool(done.all()):
            break
        low, high = torch.where(enough, step, low), torch.where(enough, high, step)
        step = torch.where(done, step, torch.where(high == torch.inf, 2 * low, (low + high) / 2))
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each run, in float64.  (R, P) -> (R, 1)"""
    return (a.double() * b.double()).sum(1, keepdim=True).to(a.dtype)
