"""What an adapting strength follows, as a function of ln λ: the evidence of the training rows, or the loss on the validation rows.

In closed form where the job is a ridge; else at the current weights, with the generalised Gauss–Newton matrix G in place of the Hessian.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, expm1
from math import log as ln

import torch
from torch import Tensor

from regtrain.contract.losses import HalfSquaredError, SquaredError
from regtrain.contract.models import LinearModel
from regtrain.contract.ranges import Adapt
from regtrain.contract.regularizers import L2
from regtrain.contract.runs import Run
from worker.training import gauss_newton, ridge
from worker.training.evaluate import Part, evaluate
from worker.training.losses import curvature
from worker.training.pack import Pack
from worker.training.penalties import Penalty
from worker.training.prepare import Job
from worker.training.ridge import HeldOut, Ridge
from worker.training.selectors import is_ridge

STEP = 1e-3
"""Of finite differences in ln λ."""
DAMPING = 1e-5
"""Share of G's size that holds parameters which no penalty holds: biases of units that are never on are left where they are."""


@dataclass(frozen=True)
class Look:
    """What is followed, around a strength: all (R,), float64."""

    slope: Tensor
    """Its derivative in ln λ."""
    difference: Tensor
    """The same by finite differences."""
    bend: Tensor
    """Its second derivative, by finite differences."""
    rounding: Tensor
    """How large a second derivative is by rounding alone."""
    held: Tensor
    """How much the strength holds the weights: 0 where a larger or smaller one would change nothing, 1 where it alone sets their length."""


@dataclass(frozen=True)
class RidgeEvidence:
    """The evidence of a ridge, exactly, whatever the weights are."""

    of: Ridge
    shift: float
    """ln A − ln λ."""

    def following(self, log: Tensor) -> Tensor:
        """The next ln λ of MacKay's iteration.  (R,) -> (R,)"""
        return ridge.mackay(self.of, (log + self.shift).exp()).log() - self.shift

    def look(self, log: Tensor, make: Callable[[list[Run]], Pack]) -> Look:
        a = (log + self.shift).exp()
        held = 1 - self.of.freedom(a) / len(self.of.s)
        return _looked(lambda a: ridge.log_evidence(self.of, a), a, ridge.log_evidence_slope(self.of, a), held)


@dataclass(frozen=True)
class LaplaceEvidence:
    """The evidence in Laplace's approximation at the current weights, with the diagonal of G (MacKay 1992; Immer et al. 2021).

    α = nλ, h = n·diag G, γ = Σ h/(h + α). For squared losses all in units of the noise's precision β, at its most likely value n/Q, Q twice the objective's sum over rows.
    """

    pack: Pack
    part: Part
    penalty: Penalty

    def following(self, log: Tensor) -> Tensor:
        """α ← γ/‖w‖².  (R,) -> (R,)"""
        alpha, h, squared, noise = self._measured(log)
        freedom = (h / (h + alpha.unsqueeze(1))).sum(1)
        return (freedom / squared * (noise / len(self.part))).log() - self._shift

    def look(self, log: Tensor, make: Callable[[list[Run]], Pack]) -> Look:
        """Weights and curvature stay as they are."""
        alpha, h, squared, noise = self._measured(log)
        n, share = len(self.part), h / (h + alpha.unsqueeze(1))
        rest = noise - alpha * squared

        def evidence(a: Tensor) -> Tensor:
            fit = -0.5 * n * (rest + a * squared).log() if self._is_squared else -0.5 * a * squared
            return fit - 0.5 * torch.log1p(h / a.unsqueeze(1)).sum(1)

        slope = 0.5 * (share.sum(1) - n * alpha * squared / (noise if self._is_squared else n))
        return _looked(evidence, alpha, slope, 1 - share.sum(1) / (h > 0).sum(1))

    def _measured(self, log: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """α (R,), h (R, k), ‖w‖² (R,), and Q (R,), or n where there is no noise to estimate."""
        unit = curvature(self.pack.spec.loss) if self._is_squared else 1.0
        n, c = len(self.part), self.penalty.columns
        h = torch.cat([gauss_newton.diagonal(self.pack, self.part)[:, s] for s in c], 1).double() * (n / unit)
        squared = torch.cat([self.pack.flat[:, s] for s in c], 1).double().square().sum(1)
        noise = torch.full_like(squared, n)
        if self._is_squared:
            penalties = torch.stack([p.value(self.pack.flat).double() for p in self.pack.penalties]).sum(0)
            noise = 2 * n / unit * (evaluate(self.pack, self.part, "train")["loss/train"] + penalties)
        return (log + self._shift).exp(), h, squared, noise

    @property
    def _is_squared(self) -> bool:
        return isinstance(self.pack.spec.loss, SquaredError | HalfSquaredError)

    @property
    def _shift(self) -> float:
        return ln(len(self.part)) - (ln(curvature(self.pack.spec.loss)) if self._is_squared else 0.0)


@dataclass(frozen=True)
class RidgeHeldOut:
    """The loss of a ridge on the validation rows, exactly, whatever the weights are."""

    held_out: HeldOut
    shift: float
    unit: float
    """The job's loss over the squared error."""

    def slope(self, log: Tensor) -> Tensor:
        """(R,) -> (R,)"""
        return self.unit * self.held_out.slope((log + self.shift).exp())

    def look(self, log: Tensor, make: Callable[[list[Run]], Pack]) -> Look:
        a = (log + self.shift).exp()
        return _looked(lambda a: self.unit * self.held_out.loss(a), a, self.slope(log), self.held_out.of.held(a))


@dataclass(frozen=True)
class ImplicitGradient:
    """The loss on the validation rows as the weights follow the strength by the implicit function theorem: dw/d ln λ = −λ(G + Λ)⁻¹w at the current weights,
    by conjugate gradients (Larsen et al. 1996; Pedregosa 2016; Lorraine et al. 2020 truncate a Neumann series, whose sign is wrong at small λ)."""

    pack: Pack
    train: Part
    val: Part
    penalty: Penalty
    tolerance: float = 1e-3
    most: int = 30

    def slope(self, log: Tensor) -> Tensor:
        """−λ⟨w, (G + Λ)⁻¹∇L_val⟩.  (R,) -> (R,)"""
        _, gradient = gauss_newton.loss_and_gradient(self.pack, self.val)
        return self._slope(log, gradient, self._holding(gradient))

    def look(self, log: Tensor, make: Callable[[list[Run]], Pack]) -> Look:
        """In float64, and the differences by another way: solved for dw/d ln λ, along which the weights are moved."""
        exact = self._doubled(make)
        own, flat, (_, gradient) = exact._own(), exact.pack.flat.clone(), gauss_newton.loss_and_gradient(exact.pack, exact.val)
        holding = exact._holding(gradient)
        slope, response = exact._slope(log, gradient, holding), -log.exp().unsqueeze(1) * exact._solved(own, holding)

        def moved(h: float) -> Tensor:
            exact.pack.flat.copy_(flat + expm1(h) * response)
            return evaluate(exact.pack, exact.val, "val")["loss/val"]

        return _differences(moved, slope, exact._only(response).norm(dim=1) / own.norm(dim=1))

    def _doubled(self, make: Callable[[list[Run]], Pack]) -> "ImplicitGradient":
        twin = make([replace(run, spec=run.spec.model_copy(update={"dtype": "float64"})) for run in self.pack.runs])
        twin.flat.copy_(self.pack.flat)
        twin.buffers.copy_(self.pack.buffers)
        for ours, theirs in zip(twin.penalties, self.pack.penalties, strict=True):
            ours.lam.copy_(theirs.lam)
        parts = [Part(part.x.double(), part.y.double() if part.y.is_floating_point() else part.y) for part in (self.train, self.val)]
        return ImplicitGradient(twin, parts[0], parts[1], next(p for p in twin.penalties if p.index == self.penalty.index), tolerance=1e-8, most=300)

    def _slope(self, log: Tensor, gradient: Tensor, holding: Tensor) -> Tensor:
        return -(log.exp() * (self._solved(gradient, holding).double() * self._own().double()).sum(1))

    def _holding(self, gradient: Tensor) -> Tensor:
        """Λ, the strengths of all l2 on their weights; where there is none, a small share of G's size along the gradient.  (R, P)"""
        found = torch.zeros_like(gradient)
        for p in self.pack.penalties:
            for c in p.columns:
                found[:, c] += p.lam
        tiny = torch.finfo(gradient.dtype).tiny
        size = (gauss_newton.product(self.pack, self.train, gradient) * gradient).sum(1, keepdim=True) / gradient.square().sum(1, keepdim=True).clamp(min=tiny)
        return torch.where(found > 0, found, DAMPING * size)

    def _solved(self, b: Tensor, holding: Tensor) -> Tensor:
        """(G + Λ)⁻¹b.  (R, P) -> (R, P)"""
        return gauss_newton.conjugate_gradients(lambda v: gauss_newton.product(self.pack, self.train, v) + holding * v, b, tolerance=self.tolerance, most=self.most)

    def _own(self) -> Tensor:
        """The weights that the strength acts on, 0 elsewhere.  (R, P)"""
        return self._only(self.pack.flat)

    def _only(self, flat: Tensor) -> Tensor:
        found = torch.zeros_like(flat)
        for c in self.penalty.columns:
            found[:, c] = flat[:, c]
        return found


Followed = RidgeEvidence | LaplaceEvidence | RidgeHeldOut | ImplicitGradient


def followed(job: Job, pack: Pack, penalty: Penalty, decomposed: Ridge | None) -> Followed:
    """What the strength of this penalty follows. `decomposed`: the training rows, where the job is a ridge that can be solved."""
    assert isinstance(penalty.spec, L2)
    assert isinstance(penalty.spec.lam, Adapt)
    evidence = penalty.spec.lam.adapt == "evidence"
    if decomposed is None:
        return LaplaceEvidence(pack, job.train, penalty) if evidence else ImplicitGradient(pack, job.train, job.val, penalty)
    c = curvature(pack.spec.loss)
    shift = ln(decomposed.n / c)
    return RidgeEvidence(decomposed, shift) if evidence else RidgeHeldOut(ridge.held_out(decomposed, job.val.x, job.val.y), shift, c / 2)


def decomposed(job: Job, pack: Pack) -> Ridge | None:
    """The training rows of a ridge, on the pack's device; None for other jobs, and where they are too many or none varies."""
    if not is_ridge(pack.spec):
        return None
    assert isinstance(pack.spec.model, LinearModel)
    found = ridge.decomposed(job.train.x, job.train.y, intercept=pack.spec.model.bias)
    return found and found.on(pack.device)


def _looked(value: Callable[[Tensor], Tensor], a: Tensor, slope: Tensor, held: Tensor) -> Look:
    return _differences(lambda h: value(a * exp(h)), slope, held)


def _differences(at: Callable[[float], Tensor], slope: Tensor, held: Tensor) -> Look:
    """`at`: what is followed, so far from here in ln λ. Five points, exact for polynomials of degree four."""
    lower, low, here, high, higher = (at(steps * STEP) for steps in (-2, -1, 0, 1, 2))
    difference = (8 * (high - low) - (higher - lower)) / (12 * STEP)
    return Look(slope, difference, (high - 2 * here + low) / STEP**2, 8 * torch.finfo(torch.float64).eps * here.abs() / STEP**2, held)
