"""Runs of one shape as one computation: their parameters in one matrix, their hyperparameters beside it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regtrain.contract.job import JobSpec
from regtrain.contract.losses import CrossEntropy
from regtrain.contract.models import Layer, hidden_layers
from regtrain.contract.optimizers import Optimizer
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import (
    L2,
    Box,
    Dropout,
    EarlyStopping,
    ElasticNet,
    GroupLasso,
    L2Ball,
    MaxNorm,
    Regularizer,
    SparseGroupLasso,
    StepPenalty,
    VanishingGradient,
    WeightDecay,
)
from regtrain.contract.runs import Run
from worker.training import reparametrized
from worker.training.draws import Masks
from worker.training.initial import initial
from worker.training.models import Layout, Net, Slot, layout_of
from worker.training.optimizers import Directions
from worker.training.penalties import Bound, Penalty, groups_in, joined, norms_in, settle
from worker.training.regularizers import Constraint, WeightPenalty, is_proximal

TOGETHER, BYTES, LARGE = 128, 2**22, 2**18
"""How many updates wait for each other to be reduced, at most, how many bytes they may keep, and how large weights are of which copies cost more than calls."""


@dataclass(frozen=True)
class DropoutAt:
    """One dropout of a pack: where it acts, on activations of which shape, and each run's rate (R,)."""

    places: dict[str, tuple[int, ...]]
    rate: Tensor


@dataclass(frozen=True)
class Omega:
    """Pascanu's Ω: the strength of each run (R, 1), and the recurrent matrices on which it acts."""

    index: int
    name: str
    lam: Tensor
    columns: list[slice]
    tensors: list[str]


class Pack:
    """R runs that train together. Row r of every tensor belongs to run r alone."""

    def __init__(
        self,
        runs: list[Run],
        shape: list[Layer],
        *,
        features: int,
        device: torch.device,
        names: tuple[str, ...] = (),
        curvature: Tensor | None = None,
        class_weights: Tensor | None = None,
        fold_slot: Tensor | None = None,
        begin: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """`names`: of the features, for groups of features. `curvature`: the largest of the loss on each run's training rows, (R, 1) or (1, 1), where it is
        known. `class_weights`: (C,) or (R, C), where classes count differently. `fold_slot`: which of the joined folds each run is of (R,). `begin`: weights (R, P) and running averages (R, Q) in place of the initial ones."""
        self.runs, self.shape, self.device = runs, shape, device
        self.spec: JobSpec = runs[0].spec
        """Of the first run: what all runs of a pack share. Numbers that may differ are read through `stack`."""
        self.dtype = torch.float64 if self.spec.dtype == "float64" else torch.float32
        self.layout: Layout = layout_of(shape)
        self.both = _two(self._initial() if begin is None else begin[0].to(device, self.dtype))
        """Weights and the loss's gradient, (2, R, P): one copy keeps both for the instruments."""
        self.flat, self.gradient = (half.data for half in self.both)  # as views they would share a version counter, and autograd refuse weights beside a new gradient
        self.update = torch.zeros_like(self.flat)
        """By how much the last update changed the weights."""
        self.weights, self.weight_gradients = ([t[:, s.start : s.stop] for s in self.layout.weights] for t in (self.flat, self.gradient))
        """Each layer's weight tensor in a row, (R, n) views."""
        self.other_start = self.layout.weights[-1].stop
        self.has_others = self.other_start < self.layout.parameters
        self._together: dict[int, int] = {}
        self._room = torch.empty_like(self.flat)
        self.none = torch.zeros(len(runs), dtype=torch.int64, device=device)
        self.buffers = torch.zeros(len(runs), sum(s.stop - s.start for s in self.layout.buffers), dtype=self.dtype, device=device)
        self.net = Net(self.spec.model, shape, len(runs), self.layout.views(self.flat), self.layout.views(self.gradient), self.layout.buffer_views(self.buffers))
        for name, view in self.net.buffers.items():
            view.fill_(1.0 if name.endswith("running_var") else 0.0)
        if begin is None:
            reparametrized.start(shape, self.net.tensors, self.net.buffers, job=self.spec.seed, runs=[run.seed for run in runs])
        else:
            self.buffers.copy_(begin[1])
        self.alive = torch.ones(len(runs), dtype=torch.bool, device=device)
        self.directions = Directions(self.spec.optimizer, self._stack_optimizer, self.flat)
        self.names = names
        self.penalties = [self._penalty(i, r) for i, r in enumerate(self.spec.regularizers) if isinstance(r, WeightPenalty)]
        self.bounds = [self._bound(i, r) for i, r in enumerate(self.spec.regularizers) if isinstance(r, Constraint)]
        self.reshapes = bool(self.bounds) or any(is_proximal(p.spec) or isinstance(p.spec, WeightDecay) for p in self.penalties)
        """Whether penalties or constraints act on the weights themselves, behind the optimizer's update."""
        self._of_loss = None if curvature is None else curvature.to(device, self.dtype)
        self.step_penalty = self._step_penalty()
        self.omega = self._omega()
        self.dropouts = [self._dropout(i, r, features) for i, r in enumerate(self.spec.regularizers) if isinstance(r, Dropout)]
        self.early = next((r for r in self.spec.regularizers if isinstance(r, EarlyStopping)), None)
        self.limit = None if self.spec.clip is None else self.stack(lambda s: 0.0 if s.clip is None else concrete(s.clip.max))
        self.smoothing = self._smoothing()
        self.class_weights = None if class_weights is None else class_weights.to(device, self.dtype)
        self.fold_slot = fold_slot
        """Which of the joined folds each run is of; None where all share their rows."""
        seeds = list(dict.fromkeys(run.seed for run in runs))
        self.seeds = seeds
        self.seed_slot = None if len(seeds) == 1 else torch.tensor([seeds.index(run.seed) for run in runs], device=device)
        """Which of the pack's different seeds each run has; None where all share one."""
        self.masks = Masks(job=self.spec.seed, seeds=seeds, device=device)

    @property
    def size(self) -> int:
        return len(self.runs)

    @property
    def curvature(self) -> Tensor | None:
        """The largest, of the loss and the coupled penalties as strong as they are now, (R, 1); None where it is not known."""
        if self._of_loss is None:
            return None
        return sum((p.lam for p in self.penalties if isinstance(p.spec, L2)), self._of_loss.expand(self.size, 1))

    @property
    def state(self) -> dict[str, Tensor]:
        """What changes from update to update, but for which runs are alive.  (R, …) each"""
        return {"flat": self.flat, "buffers": self.buffers, **{f"optimizer/{name}": tensor for name, tensor in self.directions.state.items()}}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from such a state."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def together(self, rows: int) -> int:
        """How many updates with batches of so many rows the instruments reduce at once. On a GPU one, since there the last bit of a sum may depend on the sums beside it."""
        if rows not in self._together:
            numbers = 3 * self.flat.numel() + 2 * rows * self.size * sum(math.prod(layer.signal) for layer in self.shape)
            waits = self.device.type == "cpu" and self.flat.nbytes <= LARGE
            self._together[rows] = max(1, min(TOGETHER, BYTES // (numbers * self.flat.element_size()))) if waits else 1
        return self._together[rows]

    def room(self, rows: int, *, waits: bool) -> Tensor | None:
        """Where the next update is written, (R, P); None: to a place of its own, since it `waits` to be reduced with others."""
        return None if waits and self.together(rows) > 1 else self._room

    def stack(self, number: Callable[[JobSpec], float]) -> Tensor:
        """One number of every run's spec, in the job's dtype.  (R, 1)"""
        return torch.tensor([[number(run.spec)] for run in self.runs], dtype=self.dtype, device=self.device)

    def per_seed(self, drawn: Tensor) -> Tensor:
        """(S, …) by seed -> (R, …) by run, or (1, …) where all runs share one seed."""
        return drawn if self.seed_slot is None else drawn[self.seed_slot]

    def per_fold(self, rows: Tensor) -> Tensor:
        """(F, …) by fold -> (R, …) by run; as they are where all runs share them."""
        return rows if self.fold_slot is None else rows[self.fold_slot]

    def kept(self, step: int, rows: int) -> dict[str, Tensor] | None:
        """Dropout factors of this step, 0 or 1/(1 − rate), for the whole batch.  place -> (R, B, *output)"""
        if not self.dropouts:
            return None
        factors: dict[str, Tensor] = {}
        for index, dropout in enumerate(self.dropouts):
            for place, output in dropout.places.items():
                drawn = self.per_seed(self.masks.uniform(f"dropout.{index}", step, place, (rows, *output)))
                rate = dropout.rate.view(-1, *[1] * (1 + len(output)))
                factor = (drawn >= rate.float()).to(self.dtype) / (1 - rate)
                factors[place] = factors[place] * factor if place in factors else factor
        return factors

    def settled(self, flat: Tensor, reach: Tensor) -> Tensor:
        """The proximal steps and projections of all penalties and constraints, in place.  (R, P), reach (R, 1) or (R, P)"""
        settle(flat, self.penalties, self.bounds, reach)
        return flat

    def columns(self, on: object) -> list[Slot]:
        """The tensors that `on` names, in their order."""
        if on == "weights":
            return list(self.layout.weights)
        if on == "all":
            return list(self.layout.slots)
        assert isinstance(on, tuple)
        return [slot for slot in self.layout.weights if slot.name.removesuffix(".weight") in on]

    def _initial(self) -> Tensor:
        drawn: dict[int, Tensor] = {}
        rows = []
        for run in self.runs:
            if run.seed not in drawn:
                drawn[run.seed] = initial(run.spec.model.init, self.shape, job=run.spec.seed, run=run.seed, scale=1.0)
            row, scale = drawn[run.seed], concrete(run.spec.model.init.scale)
            if scale != 1.0:
                row = initial(run.spec.model.init, self.shape, job=run.spec.seed, run=run.seed, scale=scale)
            rows.append(row.to(self.dtype))
        return torch.stack(rows).to(self.device)

    def _stack_optimizer(self, number: Callable[[Optimizer], float]) -> Tensor:
        return self.stack(lambda spec: number(spec.optimizer))

    def _of(self, index: int, number: Callable[[Regularizer], float]) -> Tensor:
        return self.stack(lambda spec: number(spec.regularizers[index]))

    def _penalty(self, index: int, spec: WeightPenalty) -> Penalty:
        slots = self.columns(spec.on)
        same = [i for i, r in enumerate(self.spec.regularizers) if r.kind == spec.kind].index(index)
        return Penalty(
            index=index,
            name=f"penalty/{spec.kind}" + (f".{same + 1}" if same else ""),
            spec=spec,
            lam=self._of(index, lambda r: concrete(r.lam) if isinstance(r, WeightPenalty) else 0.0),
            ratio=self._of(index, lambda r: concrete(r.l1_ratio) if isinstance(r, ElasticNet | SparseGroupLasso) else 0.0) if hasattr(spec, "l1_ratio") else None,
            columns=joined(slots),
            tensors=[slot.name for slot in slots],
            groups=groups_in(slots, spec.groups, self.names, self.device) if isinstance(spec, GroupLasso | SparseGroupLasso) else None,
        )

    def _bound(self, index: int, spec: Constraint) -> Bound:
        slots = self.columns(spec.on)
        return Bound(
            index=index,
            spec=spec,
            low=self._of(index, lambda r: concrete(r.low) if isinstance(r, Box) else 0.0),
            high=self._of(index, _highest),
            columns=joined(slots),
            tensors=[slot.name for slot in slots],
            groups=norms_in(spec, slots, self.device),
        )

    def _omega(self) -> Omega | None:
        for index, regularizer in enumerate(self.spec.regularizers):
            if isinstance(regularizer, VanishingGradient):
                matrices = [s for s in self.layout.weights if s.name.endswith(".recurrent.weight")]
                lam = self._of(index, lambda r: concrete(r.lam) if isinstance(r, VanishingGradient) else 0.0)
                return Omega(index, "penalty/vanishing_gradient", lam, [slice(s.start, s.stop) for s in matrices], [s.name for s in matrices])
        return None

    def _step_penalty(self) -> tuple[Tensor, bool] | None:
        for index, regularizer in enumerate(self.spec.regularizers):
            if isinstance(regularizer, StepPenalty):
                return self._of(index, lambda r: concrete(r.lam) if isinstance(r, StepPenalty) else 0.0), regularizer.squared
        return None

    def _dropout(self, index: int, spec: Dropout, features: int) -> DropoutAt:
        outputs = {layer.name: layer.output for layer in hidden_layers(self.shape)}
        places = {"inputs": (features,)} if spec.on == "inputs" else outputs if spec.on == "hidden" else {name: outputs[name] for name in spec.on}
        rate = self._of(index, lambda r: concrete(r.rate) if isinstance(r, Dropout) else 0.0).squeeze(1)
        return DropoutAt(places, rate)

    def _smoothing(self) -> Tensor | None:
        smoothing = [concrete(run.spec.loss.label_smoothing) if isinstance(run.spec.loss, CrossEntropy) else 0.0 for run in self.runs]
        return self.stack(lambda s: concrete(s.loss.label_smoothing) if isinstance(s.loss, CrossEntropy) else 0.0) if any(smoothing) else None


def _two(flat: Tensor) -> Tensor:
    """A matrix and as much room for another of its size, both at an address that fits the widest registers.  (R, P) -> (2, R, P)"""
    room = flat.new_zeros(2, -(-flat.numel() // 16) * 16)[:, : flat.numel()].unflatten(1, flat.shape)
    room[0] = flat
    return room


def _highest(spec: Regularizer) -> float:
    """The number above which a constraint lets nothing."""
    match spec:
        case Box(high=most) | L2Ball(radius=most) | MaxNorm(max=most):
            return concrete(most)
        case _:
            return 0.0
