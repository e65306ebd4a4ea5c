"""R models of one shape as one computation: where their parameters lie, how they are drawn, and the forward pass with its trace.

All parameters of a run lie in one row of a flat matrix (R, P), weight tensors first: an optimizer, a clip or a penalty is then
one operation, whatever the number of layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.models import (
    BatchNorm,
    Cnn,
    HeNormal,
    HeUniform,
    Init,
    Layer,
    LayerNorm,
    LecunNormal,
    LecunUniform,
    Model,
    Normal,
    Orthogonal,
    TorchInit,
    Uniform,
    XavierNormal,
    XavierUniform,
    Zeros,
)
from worker.training import layers as F
from worker.training.draws import generator


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the flat row of a run."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """All tensors of one run in their order: the weight of every layer, then biases and norm parameters."""

    slots: tuple[Slot, ...]
    weights: tuple[Slot, ...]
    buffers: tuple[Slot, ...]
    """Running mean and variance of batch norm, in a row of their own."""

    @property
    def parameters(self) -> int:
        return self.slots[-1].stop

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """(R, P) -> name → (R, *shape), sharing memory."""
        return {slot.name: flat[:, slot.start : slot.stop].unflatten(1, slot.shape) for slot in self.slots}

    def buffer_views(self, flat: Tensor) -> dict[str, Tensor]:
        return {slot.name: flat[:, slot.start : slot.stop] for slot in self.buffers}


def layout_of(shape: list[Layer]) -> Layout:
    tensors = [item for layer in shape for item in layer.tensors.items()]
    weights = [(name, size) for name, size in tensors if name.endswith(".weight") and not name.endswith(".norm.weight")]
    rest = [item for item in tensors if item not in weights]
    running = [(f"{layer.name}.norm.{name}", layer.weight[:1]) for layer in shape if isinstance(layer.normalization, BatchNorm) for name in ("running_mean", "running_var")]
    slots = _slots(weights + rest)
    return Layout(slots, slots[: len(weights)], _slots(running))


def _slots(tensors: list[tuple[str, tuple[int, ...]]]) -> tuple[Slot, ...]:
    slots, start = [], 0
    for name, shape in tensors:
        slots.append(Slot(name, start, start + math.prod(shape), shape))
        start = slots[-1].stop
    return tuple(slots)


def initial(init: Init, layout: Layout, *, job: int, run: int, scale: float) -> Tensor:
    """One run's parameters, drawn on the CPU in float64 from the seeds of job and run.  (P,)"""
    flat = torch.zeros(layout.parameters, dtype=torch.float64)
    for slot in layout.slots:
        flat[slot.start : slot.stop] = _drawn(init, slot, layout, generator(job, run, "init", slot.name), scale).flatten()
    return flat


def _drawn(init: Init, slot: Slot, layout: Layout, draw: torch.Generator, scale: float) -> Tensor:
    if slot.name.endswith(".norm.weight"):
        return torch.ones(slot.shape, dtype=torch.float64)
    if slot in layout.weights:
        return scale * _weight(init, slot.shape, draw)
    if isinstance(init, TorchInit) and not slot.name.endswith(".norm.bias"):
        weight = next(w for w in layout.weights if w.name == slot.name.removesuffix("bias") + "weight")
        return _uniform(slot.shape, 1 / math.sqrt(math.prod(weight.shape[1:])), draw)
    return torch.zeros(slot.shape, dtype=torch.float64)


def _weight(init: Init, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    pixels = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * pixels, shape[0] * pixels
    match init:
        case TorchInit():
            return _uniform(shape, 1 / math.sqrt(fan_in), draw)
        case Uniform(bound=bound):
            return _uniform(shape, bound, draw)
        case Normal(std=std):
            return _normal(shape, std, draw)
        case XavierUniform():
            return _uniform(shape, math.sqrt(6 / (fan_in + fan_out)), draw)
        case XavierNormal():
            return _normal(shape, math.sqrt(2 / (fan_in + fan_out)), draw)
        case HeUniform():
            return _uniform(shape, math.sqrt(6 / fan_in), draw)
        case HeNormal():
            return _normal(shape, math.sqrt(2 / fan_in), draw)
        case LecunUniform():
            return _uniform(shape, math.sqrt(3 / fan_in), draw)
        case LecunNormal():
            return _normal(shape, math.sqrt(1 / fan_in), draw)
        case Orthogonal():
            return _orthogonal(shape[0], fan_in, draw).reshape(shape)
        case Zeros():
            return torch.zeros(shape, dtype=torch.float64)
        case _:
            assert_never(init)


def _uniform(shape: tuple[int, ...], bound: float, draw: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=draw, dtype=torch.float64) - 1) * bound


def _normal(shape: tuple[int, ...], std: float, draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float64) * std


def _orthogonal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """Uniform over the orthonormal rows (or columns): QR with the signs of R's diagonal (Mezzadri 2007)."""
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=draw, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if rows >= columns else q.mT


Moments = dict[str, tuple[Tensor, Tensor, int]]
"""Batch norm: layer → mean and biased variance of the batch, (R, units) each, and over how many numbers."""


@dataclass
class Trace:
    """What the forward pass leaves for the instruments. Each signal has its run axis first when read through `by_run`."""

    outputs: Tensor
    """(R, B, outputs) of the head."""
    signals: list[Tensor] = field(default_factory=list)
    """Linear output of every layer, as it lies in memory."""
    moments: Moments = field(default_factory=dict)


def by_run(signal: Tensor, runs: int) -> Tensor:
    """A dense signal as it is, an image signal (B, R·C, height, width) as (R, B, C, height, width)."""
    return signal if signal.dim() == 3 else signal.unflatten(1, (runs, -1)).movedim(1, 0)


def forward(
    model: Model,
    shape: list[Layer],
    tensors: Mapping[str, Tensor],
    x: Tensor,
    *,
    runs: int,
    kept: Mapping[str, Tensor] | None = None,
    running: Mapping[str, Tensor] | None = None,
) -> Trace:
    """x: (B, features) shared by all runs, or (R, B, features).

    `kept`: dropout factors of `inputs` and layers, (R, B, *output), 0 or 1/(1 − rate); none in evaluation.
    `running`: averages of batch norm for evaluation; without them the statistics are those of the batch.
    """
    h = x.expand(runs, *x.shape[-2:])
    if kept and "inputs" in kept:
        h = h * kept["inputs"]
    size = _image_of(model, shape)
    if size is not None:
        h = h.unflatten(2, size).movedim(0, 1).flatten(1, 2)
    trace = Trace(h)
    for layer in shape:
        weight, bias = tensors[f"{layer.name}.weight"], tensors.get(f"{layer.name}.bias")
        if len(layer.weight) == 4:
            assert isinstance(model, Cnn)
            h = F.convolution(h, weight, bias, stride=model.stride)
        else:
            if h.dim() == 4:
                h = h.unflatten(1, (runs, -1)).movedim(1, 0).flatten(2)
            h = F.linear(h, weight, bias)
        trace.signals.append(h)
        if layer.normalization is not None:
            h = _normalise(layer, layer.normalization, h, tensors, runs, running, trace)
        if layer.activation is not None:
            h = F.pool(F.ACTIVATIONS[layer.activation](h), layer.pool)
        if kept and layer.name in kept:
            mask = kept[layer.name]
            h = h * (mask.movedim(0, 1).flatten(1, 2) if h.dim() == 4 else mask)
    trace.outputs = h
    return trace


def _image_of(model: Model, shape: list[Layer]) -> tuple[int, int, int] | None:
    """[channels, height, width] of the rows of a convolutional model."""
    if not isinstance(model, Cnn):
        return None
    assert model.image is not None, "the engine resolves the image from the dataset's facts"
    return model.image


def _normalise(layer: Layer, spec: BatchNorm | LayerNorm, h: Tensor, tensors: Mapping[str, Tensor], runs: int, running: Mapping[str, Tensor] | None, trace: Trace) -> Tensor:
    gamma, beta = tensors[f"{layer.name}.norm.weight"], tensors[f"{layer.name}.norm.bias"]
    image = h.dim() == 4

    def broadcast(units: Tensor) -> Tensor:  # (R, units)
        return units.reshape(1, -1, 1, 1) if image else units.unsqueeze(1)

    match spec:
        case BatchNorm(eps=eps) if running is not None:
            h = F.normalised(h, broadcast(running[f"{layer.name}.norm.running_mean"]), broadcast(running[f"{layer.name}.norm.running_var"]), eps)
        case BatchNorm(eps=eps):
            h, mean, variance = F.image_batch_norm(h, eps, runs) if image else F.dense_batch_norm(h, eps)
            trace.moments[layer.name] = (mean.detach(), variance.detach(), h.numel() // mean.numel())
        case LayerNorm(eps=eps):
            h = F.layer_norm(h.unflatten(1, (runs, -1)), eps, (2, 3, 4)).flatten(1, 2) if image else F.layer_norm(h, eps, (2,))
        case _:
            assert_never(spec)
    return h * broadcast(gamma) + broadcast(beta)
