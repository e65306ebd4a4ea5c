"""The penalties and constraints of a pack: which columns of the flat matrix each acts on, and each run's numbers."""

import math
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.regularizers import Box, ElasticNet, FeatureGroup, L2Ball, MaxNorm, NonNegative, UnitNorm
from worker.training.models import Slot
from worker.training.regularizers import PART, Constraint, Groups, Proximal, WeightPenalty, gradient, groups_of, is_proximal, penalty, projected, prox_of_part


@dataclass(frozen=True)
class Penalty:
    """One weight penalty of a pack."""

    index: int
    """Its place among the spec's regularizers."""
    name: str
    """Its series: `penalty/<kind>`, the second of a kind `penalty/<kind>.2`."""
    spec: WeightPenalty
    lam: Tensor
    ratio: Tensor | None
    columns: list[slice]
    tensors: list[str]
    groups: Groups | None = None
    """Of all its columns side by side."""

    def value(self, flat: Tensor) -> Tensor:
        """λ·R(w) of each run.  (R, P) -> (R,)"""
        values = [penalty(self.spec, w, self.lam, self.ratio, self.groups) for w in self._read(flat)]
        return values[0] if len(values) == 1 else torch.stack(values).sum(0)

    def gradients(self, flat: Tensor) -> list[Tensor]:
        """λ∇R(w), one part for each of its columns."""
        parts = [gradient(self.spec, w, self.lam, self.ratio, self.groups) for w in self._read(flat)]
        return parts if len(parts) == len(self.columns) else list(parts[0].split([c.stop - c.start for c in self.columns], 1))

    def shrink(self, flat: Tensor, part: PART, reach: Tensor) -> None:
        """One part of its proximal step, in place. reach: (R, 1) or (R, P)"""
        assert isinstance(self.spec, Proximal)
        steps = self._read(reach) if reach.shape[1] > 1 else [reach] * len(self.columns)
        for place, (w, step) in enumerate(zip(self._read(flat), steps, strict=False)):
            _write(flat, self.columns if self.groups else [self.columns[place]], prox_of_part(self.spec, part, w, self.lam, step, self.ratio, self.groups))

    def curvature(self, reach: Tensor, flat: Tensor) -> Tensor:
        """step·λ·(1 − l1_ratio) of an elastic net on its columns, else 0: two of them divide by one plus their sum, not one after the other.  -> (R, P)"""
        assert self.ratio is not None
        found = torch.zeros_like(flat)
        for c in self.columns:
            found[:, c] = (reach if reach.shape[1] == 1 else reach[:, c]) * self.lam * (1 - self.ratio)
        return found

    def _read(self, flat: Tensor) -> list[Tensor]:
        return _columns(flat, self.columns, together=self.groups is not None)


@dataclass(frozen=True)
class Bound:
    """One constraint of a pack."""

    index: int
    spec: Constraint
    low: Tensor
    high: Tensor
    columns: list[slice]
    tensors: list[str]
    groups: Groups | None

    def project(self, flat: Tensor) -> None:
        """The nearest point of its set, in place."""
        for place, w in enumerate(_columns(flat, self.columns, together=self.groups is not None)):
            _write(flat, self.columns if self.groups else [self.columns[place]], projected(self.spec, w, self.low, self.high, self.groups))


def settle(flat: Tensor, penalties: list[Penalty], bounds: list[Bound], reach: Tensor) -> None:
    """Proximal steps and projections, in place, in the order in which their composition is the proximal step of their sum.

    L1, signs, groups, squares, then boxes and norms. flat: (R, P); reach: (R, 1) or (R, P), the effective step of the optimizer.
    """
    shrinking = [p for p in penalties if is_proximal(p.spec)]
    for p in shrinking:
        p.shrink(flat, "l1", reach)
    for bound in bounds:
        if isinstance(bound.spec, NonNegative):
            bound.project(flat)
    for p in shrinking:
        p.shrink(flat, "group", reach)
    squares = [p for p in shrinking if isinstance(p.spec, ElasticNet)]
    if len(squares) == 1:
        squares[0].shrink(flat, "l2", reach)
    elif squares:
        flat /= 1 + torch.stack([p.curvature(reach, flat) for p in squares]).sum(0)
    for bound in bounds:
        if not isinstance(bound.spec, NonNegative):
            bound.project(flat)


def groups_in(slots: list[Slot], by: str | tuple[FeatureGroup, ...], names: tuple[str, ...], device: torch.device) -> Groups:
    """The groups of tensors that stand side by side. `names`: of the features, in the order of the columns."""
    parts: list[Tensor] = []
    first = 0
    for slot in slots:
        of = _numbers(slot.shape, by, names)
        parts.append(of + first)
        first += int(of.max()) + 1
    return groups_of(torch.cat(parts).to(device), factor=by != "tensor")


def norms_in(spec: Constraint, slots: list[Slot], device: torch.device) -> Groups | None:
    """What a constraint on norms takes the norms of."""
    match spec:
        case NonNegative() | Box():
            return None
        case L2Ball():
            return groups_of(torch.zeros(sum(s.stop - s.start for s in slots), dtype=torch.int64, device=device), factor=False)
        case MaxNorm() | UnitNorm():
            return groups_in(slots, "rows", (), device)
        case _:
            assert_never(spec)


def joined(slots: list[Slot]) -> list[slice]:
    """Neighbouring tensors as one slice: fewer operations."""
    found: list[slice] = []
    for slot in slots:
        if found and found[-1].stop == slot.start:
            found[-1] = slice(found[-1].start, slot.stop)
        else:
            found.append(slice(slot.start, slot.stop))
    return found


def _numbers(shape: tuple[int, ...], by: str | tuple[FeatureGroup, ...], names: tuple[str, ...]) -> Tensor:
    """The group number of every entry of one tensor.  (n,)"""
    inputs = torch.arange(shape[1] if len(shape) > 1 else 1)
    if isinstance(by, tuple):
        place = {name: number for number, group in enumerate(by) for name in group.features}
        inputs = torch.tensor([place[name] for name in names])
    match by:
        case "rows":
            rows = torch.arange(math.prod(shape[:1])).view(-1, *[1] * (len(shape) - 1))
            return rows.expand(shape).flatten()
        case "tensor":
            return torch.zeros(shape, dtype=torch.int64).flatten()
        case _:
            return inputs.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).flatten() if len(shape) > 1 else inputs.expand(shape)


def _columns(flat: Tensor, columns: list[slice], *, together: bool) -> list[Tensor]:
    parts = [flat[:, c] for c in columns]
    return [torch.cat(parts, 1)] if together and len(parts) > 1 else parts


def _write(flat: Tensor, columns: list[slice], values: Tensor) -> None:
    for c, part in zip(columns, values.split([c.stop - c.start for c in columns], 1), strict=True):
        flat[:, c] = part
