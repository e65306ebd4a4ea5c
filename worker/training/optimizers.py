"""From gradients to updates, one flat row a run: directions, learning-rate tables and clipping."""

import math
from collections.abc import Callable
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.optimizers import Adam, Clip, ClipValue, Constant, Cosine, GlobalNorm, Lbfgs, Optimizer, Proximal, Schedule, Sgd, Step
from regtrain.contract.ranges import concrete

Stack = Callable[[Callable[[Optimizer], float]], Tensor]
"""Reads one number from each run's own optimizer: (R, 1)."""


class Directions:
    """The optimizer of a pack with its state: gradients in, directions out. The learning rate is applied by the caller."""

    def __init__(self, spec: Optimizer, stack: Stack, flat: Tensor) -> None:
        self.spec = spec
        self.state: dict[str, Tensor] = {}
        match spec:
            case Sgd():
                self.momentum = stack(lambda o: concrete(o.momentum) if isinstance(o, Sgd) else 0.0)
                if bool((self.momentum != 0).any()):
                    self.state = {"velocity": torch.zeros_like(flat)}
            case Adam():
                self.beta1 = stack(lambda o: concrete(o.beta1) if isinstance(o, Adam) else 0.0).double()
                self.beta2 = stack(lambda o: concrete(o.beta2) if isinstance(o, Adam) else 0.0).double()
                self.eps = stack(lambda o: concrete(o.eps) if isinstance(o, Adam) else 0.0)
                self.state = {"mean": torch.zeros_like(flat), "square": torch.zeros_like(flat), "updates": torch.zeros_like(self.beta1)}
            case Proximal():
                one = torch.ones_like(flat[:, :1])
                self.state = {"before": flat.clone(), "inertia": one, "step": one.clone()}
                self.state |= {"converged": one * 0} if spec.tolerance else {}
            case Lbfgs(history=history):
                many = flat.new_zeros(len(flat), history, flat.shape[1])
                self.state = {
                    "moves": many,
                    "bends": many.clone(),
                    "products": many[:, :, 0].clone(),
                    "before": flat.clone(),
                    "slope": torch.zeros_like(flat),
                    "begun": flat[:, :1] * 0,
                }
                self.state |= {"converged": flat[:, :1] * 0} if spec.tolerance else {}
            case _:
                assert_never(spec)

    def __call__(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The direction d of w ← w − lr·d, and the factor by which lr becomes the effective step of a proximal operator.

        gradient (R, P) -> d (R, P), factor (R, 1) or (R, P): 1/(1 − μ) for SGD, 1/(√v̂ + ε) for Adam.
        """
        match self.spec:
            case Sgd() if not self.state:
                return gradient, torch.ones_like(self.momentum)
            case Sgd():
                velocity = self.state["velocity"].mul_(self.momentum).add_(gradient)
                direction = gradient + self.momentum * velocity if self.spec.nesterov else velocity
                return direction, 1 / (1 - self.momentum)
            case Adam():
                return self._adam(gradient)
            case Proximal() | Lbfgs():
                raise TypeError(f"{self.spec.kind} chooses its own steps: see solvers.py")
            case _:
                assert_never(self.spec)

    def _adam(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        beta1, beta2 = self.beta1.to(gradient.dtype), self.beta2.to(gradient.dtype)
        updates = self.state["updates"].add_(1)
        mean = self.state["mean"].mul_(beta1).addcmul_(gradient, 1 - beta1)
        square = self.state["square"].mul_(beta2).addcmul_(gradient * gradient, 1 - beta2)
        corrected = (square / (1 - self.beta2**updates).to(gradient.dtype)).sqrt_().add_(self.eps)
        return mean / (1 - self.beta1**updates).to(gradient.dtype) / corrected, 1 / corrected


def factors(schedule: Schedule, *, first: int, last: int, steps: int) -> NDArray[np.float64]:
    """What the learning rate is multiplied with at steps first … last − 1 of a budget of `steps`.  (last − first,)"""
    t = np.arange(first, last, dtype=np.float64)
    warm = np.minimum((t + 1) / (schedule.warmup_steps + 1), 1.0)
    after = np.maximum(t - schedule.warmup_steps, 0.0)
    match schedule:
        case Constant():
            return warm
        case Step(every=every, factor=factor):
            return warm * concrete(factor) ** np.floor(after / every)
        case Cosine(low=low):
            share = np.minimum(after / max(1, steps - schedule.warmup_steps), 1.0)
            return warm * (concrete(low) + (1 - concrete(low)) * 0.5 * (1 + np.cos(math.pi * share)))
        case _:
            assert_never(schedule)


def clipped(spec: Clip, gradient: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient within its limit, and whether that changed it.  (R, P), limit (R, 1) -> (R, P), (R,)"""
    match spec:
        case GlobalNorm():
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float64)
            factor = (limit / norm).clamp(max=1.0).to(gradient.dtype)
            return gradient * factor, (norm > limit).squeeze(1)
        case ClipValue():
            return gradient.clamp(-limit, limit), (gradient.abs().amax(1, keepdim=True) > limit).squeeze(1)
        case _:
            assert_never(spec)
