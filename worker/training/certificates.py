"""How far a convex job is from its minimum, in numbers that need no other solver: duality gap, KKT violation, distance to the closed form.

For linear models the objective is P(W, b) = mean ℓ(Wx + b) + Ω(W). Any θ with Σᵢθᵢ = 0 (b is free) bounds it from below by
D(θ) = −mean ℓ*(−θᵢ) − Ω*(θᵀX/n) (Fenchel). θ is the negative slope of the loss at W and the best b for that W, shortened
until Ω* is finite, or to the best bound, so P − D bounds how much lower the objective can get. Everything in float64, once, at the end of a run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from torch import Tensor

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError
from regtrain.contract.models import LinearModel
from regtrain.contract.regularizers import L1, L2, Dropout, ElasticNet, GroupLasso, Regularizer, SparseGroupLasso, UnitNorm, WeightDecay
from regtrain.contract.runs import Run
from worker.training.evaluate import CHUNK, Part
from worker.training.losses import averaged, curvature, of_rows
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import backward, forward
from worker.training.pack import Pack
from worker.training.regularizers import Groups, is_coupled, soft_threshold

LARGEST_SYSTEM = 4096
"""Features up to which the normal equations are solved."""
BISECTIONS = 60
NEWTON = 50
ROUNDING = 1e-15
"""A relative gap, or a relative rest of a sum, that no better bound or bias makes smaller."""


def certifier(pack: Pack, part: Part, make: Callable[[list[Run]], Pack]) -> Callable[[int], dict[str, Any] | None]:
    """The certificate of each run of a trained pack on its training rows; None where the job is not convex. `make`: an untrained pack of given runs."""
    if not _convex(pack) or not len(part):
        return lambda run: None
    twin = make([_exact(run) for run in pack.runs])
    twin.flat.copy_(pack.flat)
    for ours, theirs in zip(twin.penalties, pack.penalties, strict=True):
        ours.lam.copy_(theirs.lam)  # strengths that have adapted
    value, violation = _kkt(twin, part)
    gram = _Gram.of(twin, part)

    def of(run: int) -> dict[str, Any] | None:
        if not bool(torch.isfinite(value[run])):
            return None
        objective, gap = float(value[run]), _gap(twin, part, run, float(value[run]))
        return {
            "objective": objective,
            "duality_gap": gap,
            "relative_gap": None if gap is None else gap / objective if objective > 0 else 0.0,
            "kkt_violation": float(violation[run]),
            "closed_form_distance": None if gram is None else gram.distance(twin, run),
        }

    return of


def _convex(pack: Pack) -> bool:
    """Linear models whose regularizers are all part of the objective that is minimised."""
    others = any(isinstance(r, WeightDecay | Dropout | UnitNorm) for r in pack.spec.regularizers)
    return isinstance(pack.spec.model, LinearModel) and not others


def _exact(run: Run) -> Run:
    """The same run in float64, its L1 by proximal steps, whose fixed points are the minimum."""

    def proximal(r: Regularizer) -> Regularizer:
        return r.model_copy(update={"method": "proximal"}) if isinstance(r, L1) else r

    regularizers = tuple(proximal(r) for r in run.spec.regularizers)
    return replace(run, spec=run.spec.model_copy(update={"dtype": "float64", "regularizers": regularizers}))


def _chunks(part: Part) -> list[slice]:
    return [slice(first, first + CHUNK) for first in range(0, len(part), CHUNK)]


def _targets(spec: Loss, y: Tensor) -> Tensor:
    return y if isinstance(spec, CrossEntropy) else y.double()


# ---------------------------------------------------------------- KKT


def _kkt(twin: Pack, part: Part) -> tuple[Tensor, Tensor]:
    """Objective (R,) and max |w − prox_s(w − s·∇f(w))|/s (R,): 0 at the minimum and nowhere else, whatever s.

    Where no weight is within s of changing its sign it is the distance from −∇f to the subgradients of Ω, coordinate by coordinate.
    """
    spec, loss = twin.spec.loss, torch.zeros(twin.size, dtype=torch.float64, device=twin.device)
    size, whole = torch.zeros((), dtype=torch.float64, device=twin.device), size_of(spec, part.y, twin.class_weights)
    for c in _chunks(part):
        x, y = part.x[c].double(), _targets(spec, part.y[c])
        trace = forward(twin.net, x)
        value, slope = averaged(*loss_of(spec, trace.outputs, y, smoothing=twin.smoothing, weights=twin.class_weights), whole)
        backward(twin.net, trace, slope, add=c.start > 0)
        loss += value
        squares = x.square().sum(1)
        size = size + (squares if twin.class_weights is None else squares * of_rows(spec, twin.class_weights, y)).sum() / whole
    gradient, strength = twin.gradient, torch.zeros_like(twin.flat[:, :1])
    for p in twin.penalties:
        loss = loss + p.value(twin.flat)
        if is_coupled(p.spec):
            strength = strength + p.lam
            for own, c in zip(p.gradients(twin.flat), p.columns, strict=True):
                gradient[:, c] += own
    s = 1 / (curvature(spec) * (size + 1) + strength)  # the trace bounds the largest curvature
    moved = twin.settled(twin.flat - s * gradient, s)
    return loss, ((twin.flat - moved).abs() / s).amax(1)


# ---------------------------------------------------------------- duality gap


@dataclass(frozen=True)
class _Omega:
    """Ω(W) = λ₁Σ|w| + λ_g Σ_g f_g‖w_g‖ + λ₂/2 Σw² of one run."""

    l1: float
    group: float
    l2: float
    groups: Groups | None

    def excess(self, u: Tensor) -> Tensor:
        """How far each group (or entry) of u is beyond what the norms allow."""
        rest = soft_threshold(u, u.new_tensor(self.l1)).flatten().unsqueeze(0)
        if self.groups is None:
            return rest.abs()
        return (self.groups.norms(rest) - self.group * self.groups.factor).clamp(min=0)

    def conjugate(self, u: Tensor) -> float:
        """Ω*(u) where it is finite."""
        return float(self.excess(u).square().sum()) / (2 * self.l2) if self.l2 > 0 else 0.0

    def shortening(self, u: Tensor) -> float:
        """Without squares: the largest c ≤ 1 for which Ω*(c·u) is finite."""
        if self.groups is None:
            largest = float(u.abs().max())
            return 1.0 if largest <= self.l1 else self.l1 / largest
        low, high = 0.0, 1.0
        if not bool(self.excess(u).any()):
            return 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if bool(self.excess(middle * u).any()) else (middle, high)
        return low


def _omega(twin: Pack, run: int) -> _Omega | None:
    """None where the objective has no conjugate in this form: constraints, penalised biases, nothing that holds the weights, or rows of different weight."""
    if twin.bounds or twin.class_weights is not None or any(p.tensors != ["head.weight"] for p in twin.penalties):
        return None
    l1 = group = l2 = 0.0
    groups = None
    for p in twin.penalties:
        lam, ratio = float(p.lam[run]), 0.0 if p.ratio is None else float(p.ratio[run])
        match p.spec:
            case L1():
                l1 += lam
            case L2():
                l2 += lam
            case ElasticNet():
                l1, l2 = l1 + lam * ratio, l2 + lam * (1 - ratio)
            case GroupLasso():
                group, groups = group + lam, p.groups
            case SparseGroupLasso():
                l1, group, groups = l1 + lam * ratio, group + lam * (1 - ratio), p.groups
            case WeightDecay():
                return None
            case _:
                assert_never(p.spec)
    return _Omega(l1, group, l2, groups) if l1 + group + l2 > 0 else None


def _gap(twin: Pack, part: Part, run: int, objective: float) -> float | None:
    omega = _omega(twin, run)
    if omega is None:
        return None
    spec, weight = twin.spec.loss, twin.net.tensors["head.weight"][run]
    smoothing = None if twin.smoothing is None else twin.smoothing[run : run + 1]
    y = _targets(spec, part.y)
    outputs = torch.cat([part.x[c].double() @ weight.T for c in _chunks(part)])
    if "head.bias" in twin.net.tensors:
        outputs = _best_bias(spec, outputs, y, smoothing, twin.net.tensors["head.bias"][run])
    theta = -loss_of(spec, outputs.unsqueeze(0), y, smoothing=smoothing)[1][0]
    u = sum((theta[c].T @ part.x[c].double() for c in _chunks(part)), torch.zeros_like(weight)) / len(part)

    def bound(c: float) -> float:
        return _of_loss(spec, c, theta, outputs, y, smoothing) - omega.conjugate(c * u)

    return objective - (_highest(bound, enough=objective * (1 - ROUNDING)) if omega.l2 > 0 else bound(omega.shortening(u)))


def _highest(bound: Callable[[float], float], *, enough: float) -> float:
    """The largest value of a concave function on [0, 1], by trisection; that at 1 where it is `enough`, as it is at the minimum."""
    if bound(1.0) >= enough:
        return bound(1.0)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (one, high) if bound(one) < bound(two) else (low, two)
    return max(bound((low + high) / 2), bound(1.0))


def _of_loss(spec: Loss, c: float, theta: Tensor, outputs: Tensor, y: Tensor, smoothing: Tensor | None) -> float:
    """−mean ℓ*(−cθ)."""
    match spec:
        case HalfSquaredError():
            found = c * theta * y.unsqueeze(1) - 0.5 * (c * theta).square()
        case SquaredError():
            found = c * theta * y.unsqueeze(1) - 0.25 * (c * theta).square()
        case Binary():
            a = c * theta.abs()
            found = torch.special.entr(a) + torch.special.entr(1 - a)
        case CrossEntropy():
            target = theta + outputs.softmax(1)  # θ = q − p
            found = torch.special.entr((target - c * theta).clamp(min=0))
        case _:
            assert_never(spec)
    return float(found.sum()) / len(theta)


def _best_bias(spec: Loss, outputs: Tensor, y: Tensor, smoothing: Tensor | None, start: Tensor) -> Tensor:
    """The outputs with the bias that is best for these weights: there Σᵢθᵢ = 0. By Newton's method, which is exact in one step for squares.  (n, C) -> (n, C)"""

    def at(bias: Tensor) -> tuple[float, Tensor, float]:
        value, slope = loss_of(spec, (outputs + bias).unsqueeze(0), y, smoothing=smoothing)
        return float(value), slope[0].sum(0), float(slope.abs().sum())

    bias, (value, slope, size) = start, at(start)
    for _ in range(NEWTON):
        if slope.abs().max() <= ROUNDING * size:
            break
        move = torch.linalg.lstsq(_bend(spec, outputs + bias), -slope.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        for _ in range(BISECTIONS):
            later, (there, slope_there, _) = bias + move, at(bias + move)
            if there <= value and slope_there.abs().max() < slope.abs().max():
                break
            move = move / 2
        else:
            break
        bias, value, slope = later, there, slope_there
    return outputs + bias


def _bend(spec: Loss, outputs: Tensor) -> Tensor:
    """The second derivative of the summed loss in the bias.  (C, C)"""
    match spec:
        case HalfSquaredError() | SquaredError():
            return curvature(spec) * len(outputs) * torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        case Binary():
            p = outputs.sigmoid()
            return (p * (1 - p)).sum(0).unsqueeze(0)
        case CrossEntropy():
            p = outputs.softmax(1)
            return p.sum(0).diag() - p.T @ p
        case _:
            assert_never(spec)


# ---------------------------------------------------------------- closed form


@dataclass(frozen=True)
class _Gram:
    """The normal equations of the training rows: kXᵀX/n and kXᵀy/n, centred where there is an intercept; k = 1 or 2."""

    square: Tensor
    product: Tensor
    mean_x: Tensor
    mean_y: Tensor

    @classmethod
    def of(cls, twin: Pack, part: Part) -> "_Gram | None":
        """None for losses and penalties without a closed form."""
        smooth = all(isinstance(p.spec, L2) and p.tensors == ["head.weight"] for p in twin.penalties) and not twin.bounds
        if not (smooth and isinstance(twin.spec.loss, HalfSquaredError | SquaredError) and part.x.shape[1] <= LARGEST_SYSTEM):
            return None
        n, k, bias = len(part), curvature(twin.spec.loss), "head.bias" in twin.net.tensors
        y, zero = part.y.double(), torch.zeros(part.x.shape[1], dtype=torch.float64, device=twin.device)
        mean_x = sum((part.x[c].double().sum(0) for c in _chunks(part)), zero) / n if bias else zero
        mean_y = y.mean() if bias else y.new_zeros(())
        square, product = zero.new_zeros(len(zero), len(zero)), zero.clone()
        for c in _chunks(part):
            x = part.x[c].double() - mean_x
            square += k * x.T @ x / n
            product += k * x.T @ (y[c] - mean_y) / n
        return cls(square, product, mean_x, mean_y)

    def distance(self, twin: Pack, run: int) -> float | None:
        """‖(w, b) − (w*, b*)‖/‖(w*, b*)‖; None where the minimum is not unique."""
        strength = sum(float(p.lam[run]) for p in twin.penalties)
        system = self.square + strength * torch.eye(len(self.square), dtype=torch.float64, device=self.square.device)
        if strength == 0 and int(torch.linalg.matrix_rank(system, hermitian=True)) < len(system):
            return None
        best = torch.linalg.solve(system, self.product)
        at, want = [twin.net.tensors["head.weight"][run].flatten()], [best]
        if "head.bias" in twin.net.tensors:
            at.append(twin.net.tensors["head.bias"][run])
            want.append((self.mean_y - self.mean_x @ best).view(1))
        error, size = float((torch.cat(at) - torch.cat(want)).norm()), float(torch.cat(want).norm())
        return error / size if size > 0 else error
