"""Operations on the weights of a net that leave its function as it is: `rebalance`, `rescale`, `revive` (what they are for: regtrain/contract/begin.py).

All is computed in float64, for one run. After each operation the outputs of all training rows are computed again, with the weights rounded as they will be
trained; an operation that has changed them is undone, and says so.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, assert_never

import torch
from torch import Tensor

from regtrain.contract.begin import Operation, Rebalance, Rescale, Revive
from regtrain.contract.job import JobSpec
from regtrain.contract.losses import CrossEntropy
from regtrain.contract.models import Layer
from regtrain.contract.ranges import concrete
from regtrain.contract.seeds import seed_at
from worker.training import losses
from worker.training.evaluate import CHUNK, NUMBERS, Part
from worker.training.initial import initial
from worker.training.models import Net, Trace, backward, forward, layout_of

UNCHANGED = {torch.float32: 1e-6, torch.float64: 1e-10}
"""The greatest difference of any output, over the greatest output, that still counts as none."""
SWEEPS = 2000
"""Of rebalancing, at most: neighbours even each other out, so a chain of L layers needs about L² of them; the last digits may be left to the report."""
EVEN = 1e-9
"""Balanced: the two norms of every unit differ by no larger share."""


@dataclass(frozen=True)
class Theatre:
    """What operations on one run need to know beside its weights."""

    shape: list[Layer]
    spec: JobSpec
    buffers: Tensor
    """Running averages, float64.  (Q,)"""
    train: Part
    seed: int
    """Of the run."""
    class_weights: Tensor | None
    dtype: torch.dtype
    """In which the weights will be trained."""

    def net(self, flat: Tensor) -> Net:
        """The net whose tensors are views of these parameters.  (P,)"""
        layout, row = layout_of(self.shape), flat.unsqueeze(0)
        return Net(self.spec.model, self.shape, 1, layout.views(row), layout.views(torch.zeros_like(row)), layout.buffer_views(self.buffers.unsqueeze(0)))

    def traces(self, net: Net) -> Iterator[tuple[Trace, Tensor]]:
        """Forward passes over all training rows, some at a time, each with its targets."""
        size = max(1, min(CHUNK, NUMBERS // sum(math.prod(layer.signal) for layer in self.shape)))
        for first in range(0, len(self.train), size):
            yield forward(net, self.train.x[first : first + size].double()), self.train.y[first : first + size]

    def rounded(self, flat: Tensor) -> Tensor:
        """Parameters as they will be trained, in float64."""
        return flat.to(self.dtype).double()

    def outputs(self, flat: Tensor) -> Tensor:
        """Of all training rows.  (n, outputs)"""
        return torch.cat([trace.outputs[0] for trace, _ in self.traces(self.net(flat))])


Scales = dict[str, Tensor]
"""Hidden layer → the factor of each of its units, (units,); what reads a unit is divided by it."""


@torch.no_grad()
def operated(theatre: Theatre, flat: Tensor, operations: Sequence[Operation]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Parameters after these operations, and what each has done: `applied`, `difference`, `in_words`, and figures of its own.  (P,) float64"""
    flat, done = flat.to(theatre.train.x.device), list[dict[str, Any]]()
    before = theatre.outputs(flat) if operations else torch.zeros(0)
    for operation in operations:
        new = flat.clone()
        found = _revive(theatre, theatre.net(new)) if isinstance(operation, Revive) else _moved(theatre, new, operation, exact=False)
        difference = _difference(before, theatre.outputs(theatre.rounded(new)))
        if not difference <= UNCHANGED[theatre.dtype] and not isinstance(operation, Revive):
            new = flat.clone()
            found = _moved(theatre, new, operation, exact=True)
            difference = _difference(before, theatre.outputs(theatre.rounded(new)))
        applied = difference <= UNCHANGED[theatre.dtype]
        flat = theatre.rounded(new) if applied else flat
        if not applied:
            found["in_words"] = f"{operation.kind} was undone: it changed the outputs by {difference:.2g} of the largest, more than {UNCHANGED[theatre.dtype]:g}"
        done.append({"kind": operation.kind, "applied": applied, "difference": difference if math.isfinite(difference) else None, **found})
    return flat.cpu(), done


def _difference(before: Tensor, after: Tensor) -> float:
    largest = float(before.abs().max())
    return float((after - before).abs().max()) / (largest or 1.0)


# ---------------------------------------------------------------- scales


def _moved(theatre: Theatre, flat: Tensor, operation: Rebalance | Rescale, *, exact: bool) -> dict[str, Any]:
    """Scales the parameters in place. `exact`: by powers of two, which change no digit of any number, where rounding has changed too much."""
    net = theatre.net(flat)
    before, scales = _uneven(theatre, net, operation), _scales(theatre, theatre.net(flat.clone()), operation)
    if scales is None:
        return {"in_words": f"{operation.kind} did nothing: a layer has no gradient, or no weights"}
    for layer, behind in pairwise(net.shape):
        scale = scales[layer.name]
        _scale(net, layer, behind, torch.exp2(scale.log2().round()) if exact else scale)
    after = _uneven(theatre, net, operation)
    match operation:
        case Rebalance():
            words = f"rebalance: what a unit reads and what reads it differed in norm by a factor of up to {before:.4g}, now of {after:.4g}"
        case Rescale():
            words = f"rescale: the first hidden layer had {before:.3g} of the last one's signal gradient, now {after:.3g}"
        case _:
            assert_never(operation)
    spans = {name: [float(scale.min()), float(scale.max())] for name, scale in scales.items()}
    return {"before": before, "after": after, "scales": spans, "powers_of_two": exact, "in_words": words + (", by powers of two" if exact else "")}


def _uneven(theatre: Theatre, net: Net, operation: Rebalance | Rescale) -> float:
    """What the operation is to make 1: the largest factor between a unit's two norms, or ‖δ‖ of the first hidden layer over that of the last one."""
    if isinstance(operation, Rebalance):
        return _imbalance(net)
    lengths, _ = _lengths(theatre, net)
    return lengths[0] / lengths[-2] if lengths[-2] else math.nan


def _scales(theatre: Theatre, net: Net, operation: Rebalance | Rescale) -> Scales | None:
    """The factors that the operation takes, tried out on a copy of the net; None where there are none."""
    return _balancing(net) if isinstance(operation, Rebalance) else _levelling(theatre, net)


def _balancing(net: Net) -> Scales | None:
    """Layers first, by the closed form for nets without biases; then unit by unit, again and again, until nothing moves."""
    scales = {layer.name: torch.ones_like(_read(net, layer)) for layer in net.shape[:-1]}
    sizes = [float(net.tensors[f"{layer.name}.weight"].norm()) for layer in net.shape]
    if not min(sizes) > 0:
        return None

    def scale(layer: Layer, behind: Layer, factor: Tensor) -> None:
        _scale(net, layer, behind, factor)
        scales[layer.name] *= factor

    middle, factor = math.exp(sum(map(math.log, sizes)) / len(sizes)), 1.0
    for (layer, behind), size in zip(pairwise(net.shape), sizes, strict=False):
        factor *= middle / size
        scale(layer, behind, torch.full_like(scales[layer.name], factor))
    for _ in range(SWEEPS):
        if _imbalance(net) <= 1 + EVEN:
            break
        for layer, behind in pairwise(net.shape):
            scale(layer, behind, _factors(net, layer, behind).sqrt())
    return scales


def _levelling(theatre: Theatre, net: Net) -> Scales | None:
    """C_l = a·‖δ_l‖/‖δ_0‖ for hidden layer l: its gradient becomes ‖δ_0‖/a. With K = C of the last hidden layer at a = 1, ‖∇W‖/‖W‖ becomes 1/a² of what it was in the
    first layer and a²K² in the head: equal for a⁴ = ρ_first/(ρ_head·K²)."""
    lengths, gradients = _lengths(theatre, net)
    ends = [gradients[name] / float(net.tensors[f"{name}.weight"].norm() or math.nan) for name in (net.shape[0].name, net.shape[-1].name)]
    if not all(math.isfinite(number) and number > 0 for number in (*lengths, *ends)):
        return None
    *hidden, _ = lengths
    free = (ends[0] / ends[1]) ** 0.25 / math.sqrt(hidden[-1] / hidden[0])
    return {layer.name: torch.full_like(_read(net, layer), free * length / hidden[0]) for layer, length in zip(net.shape, hidden, strict=False)}


def _lengths(theatre: Theatre, net: Net) -> tuple[list[float], dict[str, float]]:
    """‖δ‖ of every layer over all training rows, and the norm of each layer's gradient of the mean loss."""
    loss = theatre.spec.loss
    smoothing = torch.full((1, 1), concrete(loss.label_smoothing), dtype=torch.float64, device=theatre.train.x.device) if isinstance(loss, CrossEntropy) else None
    whole, squares = losses.size(loss, theatre.train.y, theatre.class_weights), torch.zeros(len(net.shape), dtype=torch.float64)
    for place, (trace, y) in enumerate(theatre.traces(net)):
        value, slope = losses.loss(loss, trace.outputs, y, smoothing=smoothing, weights=theatre.class_weights)
        deltas = backward(net, trace, losses.averaged(value, slope, whole)[1], add=place > 0)
        squares += torch.stack([delta.square().sum() for delta in deltas]).cpu()
    return squares.sqrt().tolist(), {layer.name: float(net.gradients[f"{layer.name}.weight"].norm()) for layer in net.shape}


def _scale(net: Net, layer: Layer, behind: Layer, factor: Tensor) -> None:
    """Each unit of a layer times its factor, and what reads it divided by it.  factor: (units,)"""
    net.tensors[f"{layer.name}.weight"][0].flatten(1).mul_(factor.unsqueeze(1))
    if layer.bias:
        net.tensors[f"{layer.name}.bias"][0].mul_(factor)
    _readers(net, layer, behind).div_(factor.view(1, -1, 1))


def _readers(net: Net, layer: Layer, behind: Layer) -> Tensor:
    """The weights behind a layer by the unit that they read, a view: of a filter all that see it, of a flattened image all its pixels.  (out, units, n)"""
    weight = net.tensors[f"{behind.name}.weight"][0]
    return weight.view(len(weight), layer.weight[0], -1)


def _read(net: Net, layer: Layer) -> Tensor:
    """‖W‖² + b² of each unit.  (units,)"""
    squares = net.tensors[f"{layer.name}.weight"][0].flatten(1).square().sum(1)
    return squares + net.tensors[f"{layer.name}.bias"][0].square() if layer.bias else squares


def _factors(net: Net, layer: Layer, behind: Layer) -> Tensor:
    """Of each unit the norm of what reads it over that of what it reads; 1 where either is 0, for no scale makes them equal.  (units,)"""
    read, reading = _read(net, layer), _readers(net, layer, behind).square().sum((0, 2))
    return torch.where((read > 0) & (reading > 0), (reading / read).sqrt(), 1.0)


def _imbalance(net: Net) -> float:
    """The largest factor between the two norms of any unit."""
    return math.exp(max(float(_factors(net, layer, behind).log().abs().max()) for layer, behind in pairwise(net.shape)))


# ---------------------------------------------------------------- dead units


def _revive(theatre: Theatre, net: Net) -> dict[str, Any]:
    """Layer after layer: what a revived unit reads may have been revived before it."""
    model, seed = theatre.spec.model, seed_at(theatre.spec.seed, theatre.seed, "revive")
    drawn = initial(model.init, theatre.shape, job=seed, run=theatre.seed, scale=concrete(model.init.scale)).unsqueeze(0)
    fresh, dead = layout_of(theatre.shape).views(drawn.to(theatre.train.x.device)), [~fires for fires in _firing(theatre, net)]
    for place, (layer, behind) in enumerate(pairwise(net.shape)):
        mine = dead[place]
        if not bool(mine.any()):
            continue
        tensors = [f"{layer.name}.{name}" for name in ("weight", "bias") if f"{layer.name}.{name}" in net.tensors]
        for name in tensors:
            net.tensors[name][0][mine] = fresh[name][0][mine]
        _readers(net, layer, behind)[:, mine] = 0.0
        still = mine & ~_firing(theatre, net)[place]
        for name in tensors:
            net.tensors[name][0][still] *= -1
    found = {layer.name: int(mine.sum()) for layer, mine in zip(net.shape, dead, strict=False) if bool(mine.any())}
    firing = sum(int((mine & fires).sum()) for mine, fires in zip(dead, _firing(theatre, net), strict=True))
    units, which = sum(found.values()), ", ".join(f"{count} of {name}" for name, count in found.items())
    words = f"revive: {firing} of {units} units that fired on no training row fire now ({which})" if units else "revive: every unit fires on some training row"
    return {"units": found, "fire": firing, "in_words": words}


def _firing(theatre: Theatre, net: Net) -> list[Tensor]:
    """Of each hidden layer which units are above 0 on any training row.  (units,) each"""
    found: list[Tensor] = [torch.zeros(layer.weight[0], dtype=torch.bool, device=theatre.train.x.device) for layer in net.shape[:-1]]
    for trace, _ in theatre.traces(net):
        for place, passed in enumerate(trace.layers[:-1]):
            assert passed.activation is not None
            positive = passed.activation > 0  # (1, B, units), of images (B, units, height, width)
            found[place] |= positive.any(0).any(0) if positive.dim() == 3 else positive.any(0).flatten(1).any(1)
    return found
