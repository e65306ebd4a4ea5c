"""R models of one shape as one computation: where their parameters lie, and the forward pass with its trace.

All parameters of a run lie in one row of a flat matrix (R, P), weight tensors first: an optimizer, a clip or a penalty is then
one operation, whatever the number of layers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.autograd import forward_ad

from regtrain.contract.models import BatchNorm, Cnn, Layer, LayerNorm, Model, Recurrence, SpectralNorm
from worker.training import layers as F
from worker.training.recurrent import unrolled
from worker.training.reparametrized import Made, made, pull_back


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
    """Running mean and variance of batch norm, running singular vectors of spectral norm, in a row of their own."""

    @property
    def parameters(self) -> int:
        return self.slots[-1].stop

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """(R, P) -> name → (R, *shape), sharing memory."""
        return {slot.name: flat[:, slot.start : slot.stop].unflatten(1, slot.shape) for slot in self.slots}

    def buffer_views(self, flat: Tensor) -> dict[str, Tensor]:
        return {slot.name: flat[:, slot.start : slot.stop] for slot in self.buffers}

    @cached_property
    def neighbours(self) -> list[tuple[int, int]]:
        """Numbers of a weight tensor, and of how many layers beside each other, which are reduced as one."""
        sizes = groupby(slot.stop - slot.start for slot in self.weights)
        return [(size, len(list(same))) for size, same in sizes]

    def alike(self, flat: Any) -> list[Any]:
        """The weight tensors of neighbours of one size, each in a row, tensor or array: (…, P or weights) -> (…, layers, numbers), sharing memory."""
        found, start = [], 0
        for size, count in self.neighbours:
            stop = start + size * count
            found.append(flat[..., start:stop].reshape(*flat.shape[:-1], count, size))
            start = stop
        return found


def layout_of(shape: list[Layer]) -> Layout:
    tensors = [item for layer in shape for item in layer.tensors.items()]
    weights = [(name, size) for name, size in tensors if name.endswith(".weight") and not name.endswith(".norm.weight")]
    rest = [item for item in tensors if item not in weights]
    running = [(f"{layer.name}.norm.{name}", layer.weight[:1]) for layer in shape if isinstance(layer.normalization, BatchNorm) for name in ("running_mean", "running_var")]
    spectral = [layer for layer in shape if isinstance(layer.reparametrization, SpectralNorm)]
    running += [(f"{layer.name}.running_{side}", (size,)) for layer in spectral for side, size in (("left", layer.weight[0]), ("right", math.prod(layer.weight[1:])))]
    slots = _slots(weights + rest)
    return Layout(slots, slots[: len(weights)], _slots(running))


def _slots(tensors: list[tuple[str, tuple[int, ...]]]) -> tuple[Slot, ...]:
    slots, start = [], 0
    for name, shape in tensors:
        slots.append(Slot(name, start, start + math.prod(shape), shape))
        start = slots[-1].stop
    return tuple(slots)


Moments = dict[str, tuple[Tensor, Tensor, int]]
"""Batch norm: layer → mean and biased variance of the batch, (R, units) each, and over how many numbers."""


@dataclass
class Passed:
    """What one layer keeps of the forward pass for its way back."""

    input: Tensor
    weight: Made
    signal: Tensor
    """Linear output, the h of the instruments, as it lies in memory."""
    back: Callable[[Tensor, bool], Tensor]
    """From the gradient at the layer's output to the gradient at its linear output; norm parameters' gradients are put, or added."""
    beyond: Callable[[], Tensor] | None = None
    """After `back`: the gradient at what the layer before put out, where that is not δ·W."""
    activation: Tensor | None = None
    """φ, in front of pooling and dropout, as it lies in memory; None where there is no φ."""


@dataclass
class Trace:
    """A forward pass: the outputs (R, B, outputs), and what each layer keeps."""

    outputs: Tensor
    layers: list[Passed] = field(default_factory=list)
    moments: Moments = field(default_factory=dict)


@dataclass(frozen=True)
class Net:
    """A model over stacked parameters: `tensors`, `gradients` and `buffers` by name, (R, *shape) each."""

    model: Model
    shape: list[Layer]
    runs: int
    tensors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


def by_run(signal: Tensor, runs: int) -> Tensor:
    """A dense signal as it is, an image signal (B, R·C, height, width) as (R, B, C, height, width)."""
    return signal if signal.dim() == 3 else signal.unflatten(1, (runs, -1)).movedim(1, 0)


def forward(net: Net, x: Tensor, *, kept: Mapping[str, Tensor] | None = None, running: Mapping[str, Tensor] | None = None) -> Trace:
    """x: (B, features) shared by all runs, or (R, B, features). Under `torch.no_grad`, or the outputs carry autograd's graph.

    `kept`: dropout factors of `inputs` and layers, (R, B, *output), 0 or 1/(1 − rate); none in evaluation.
    `running`: averages of batch norm for evaluation; without them the statistics are those of the batch.
    """
    kept = kept or {}
    h = x.expand(net.runs, *x.shape[-2:])
    if "inputs" in kept:
        h = h * kept["inputs"]
    if isinstance(net.model, Cnn):
        assert net.model.image is not None, "the engine takes the image from the dataset's facts"
        h = h.unflatten(2, net.model.image).movedim(0, 1).flatten(1, 2)
    trace = Trace(h)
    for layer in net.shape:
        of, bias = made(layer, net.tensors, net.buffers), net.tensors.get(f"{layer.name}.bias")
        weight = of.weight
        if layer.recurrence is not None:
            h, passed = _in_time(layer, layer.recurrence, h, of, bias, kept.get(layer.name))
            trace.layers.append(passed)
            continue
        if weight.dim() == 5:
            assert isinstance(net.model, Cnn)
            z = F.convolution(h, weight, bias, stride=net.model.stride)
        else:
            h = _as_rows(h, net.runs)
            z = F.linear(h, weight, bias)
        out, phi, back = _behind(net, layer, z, kept.get(layer.name), running, trace.moments)
        trace.layers.append(Passed(h, of, z, back, activation=phi))
        h = out + h if layer.residual else out
    trace.outputs = h
    return trace


def backward(net: Net, trace: Trace, delta: Tensor, *, add: bool) -> list[Tensor]:
    """From the gradient at the outputs to the gradient of every parameter, written to its place (or added to it).

    Returns the gradient at the linear output of every layer, in forward order, as it lies in memory.
    """
    deltas: list[Tensor] = []
    for layer, passed in zip(reversed(net.shape), reversed(trace.layers), strict=True):
        if passed.signal.dim() == 4 and delta.dim() == 3:
            delta = _as_images(delta, layer)
        around = delta
        delta = passed.back(delta, add)
        deltas.append(delta)
        weight, first, learned = passed.weight.weight, layer is net.shape[0], layer.reparametrization is None
        of_weight, of_bias = net.gradients[f"{layer.name}.weight"] if learned else torch.zeros_like(weight), net.gradients.get(f"{layer.name}.bias")
        if weight.dim() == 5:
            assert isinstance(net.model, Cnn)
            at_input = F.convolution_backward(delta, passed.input, weight, of_weight, of_bias, stride=net.model.stride, add=add, first=first)
            delta = delta if at_input is None else at_input
        else:
            F.linear_backward(delta, passed.input, of_weight, of_bias, add=add)
            if passed.beyond is not None:
                delta = passed.beyond()
            elif not first:
                delta = torch.baddbmm(around, delta, weight) if layer.residual else torch.bmm(delta, weight)
        if not learned:
            pull_back(layer, passed.weight, of_weight, net.tensors, net.gradients, net.buffers, add=add)
    return deltas[::-1]


def _in_time(layer: Layer, of: Recurrence, h: Tensor, own: Made, bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Passed]:
    """Half a recurrent layer. Its input half puts out (R, B·T, units) for the other, which gives h_1 … h_T (R, B, T, H), or h_T (R, B, H) if it is the last.

    `Passed` has every time step of every row as a row of its own.
    """
    weight = own.weight
    if of.half == "input":
        h = h.reshape(len(h), -1, weight.shape[2])
        z = F.linear(h, weight, bias)
        return z, Passed(h, own, z, lambda delta, add: delta)
    through, last = unrolled(of.cell, h.unflatten(1, (-1, of.steps)), weight, bias), len(layer.output) == 1
    out = through.states[:, :, -1] if last else through.states[:, :, 1:]
    deltas: list[Tensor] = []

    def back(delta: Tensor, add: bool) -> Tensor:
        delta = delta if last else delta.unflatten(1, (-1, of.steps))
        of_input, of_state = through.back(delta if mask is None else delta * mask)
        deltas.append(of_input.flatten(1, 2))
        return of_state.flatten(1, 2)

    passed = Passed(through.states[:, :, :-1].flatten(1, 2), own, through.linear.flatten(1, 2), back, deltas.pop)
    return out if mask is None else out * mask, passed


def _as_rows(h: Tensor, runs: int) -> Tensor:
    """Images (B, R·C, height, width) as rows (R, B, C·height·width); rows as they are."""
    return h if h.dim() == 3 else h.unflatten(1, (runs, -1)).movedim(1, 0).flatten(2)


def _as_images(delta: Tensor, layer: Layer) -> Tensor:
    """The way back: (R, B, C·height·width) as (B, R·C, height, width)."""
    return delta.unflatten(2, layer.output).movedim(0, 1).flatten(1, 2)


def _behind(
    net: Net, layer: Layer, z: Tensor, mask: Tensor | None, running: Mapping[str, Tensor] | None, moments: Moments
) -> tuple[Tensor, Tensor | None, Callable[[Tensor, bool], Tensor]]:
    """Normalization, activation, pooling and dropout of one layer, the activation by itself, and their way back."""
    if layer.activation is None:
        return z, None, lambda delta, add: delta
    phi = F.ACTIVATIONS[layer.activation]
    if mask is not None and z.dim() == 4:
        mask = mask.movedim(0, 1).flatten(1, 2)
    if layer.normalization is None and layer.pool == "none":
        a = phi.forward(z)
        if mask is None:
            return a, a, lambda delta, add: phi.backward(delta, z, a)
        return a * mask, a, lambda delta, add: phi.backward(delta * mask, z, a)
    norms = [name for name in (f"{layer.name}.norm.weight", f"{layer.name}.norm.bias") if name in net.tensors]

    def through(z: Tensor, *of_norm: Tensor) -> tuple[Tensor, Tensor]:
        v = z if layer.normalization is None else _normalise(layer, layer.normalization, z, of_norm[0], of_norm[1], net.runs, running, moments)
        a = phi.forward(v)
        out = F.pool(a, layer.pool)
        return out if mask is None else out * mask, a

    if torch.is_grad_enabled() or forward_ad.unpack_dual(z).tangent is not None:  # a leaf would lose graph and tangent, and who asks for them goes forward only
        return *through(z, *(net.tensors[name] for name in norms)), lambda delta, add: delta
    leaves = [z.detach().requires_grad_(), *(net.tensors[name].detach().requires_grad_() for name in norms)]
    with torch.enable_grad():
        out, a = through(*leaves)

    def back(delta: Tensor, add: bool) -> Tensor:
        of_z, *of_norms = torch.autograd.grad(out, leaves, delta)
        for name, gradient in zip(norms, of_norms, strict=True):
            F.put(net.gradients[name], gradient, add=add)
        return of_z

    return out.detach(), a.detach(), back


def _normalise(layer: Layer, spec: BatchNorm | LayerNorm, h: Tensor, gamma: Tensor, beta: Tensor, runs: int, running: Mapping[str, Tensor] | None, moments: Moments) -> Tensor:
    image = h.dim() == 4

    def broadcast(units: Tensor) -> Tensor:  # (R, units)
        return units.reshape(1, -1, 1, 1) if image else units.unsqueeze(1)

    match spec:
        case BatchNorm(eps=eps) if running is not None:
            h = F.normalised(h, broadcast(running[f"{layer.name}.norm.running_mean"]), broadcast(running[f"{layer.name}.norm.running_var"]), eps)
        case BatchNorm(eps=eps):
            h, mean, variance = F.image_batch_norm(h, eps, runs) if image else F.dense_batch_norm(h, eps)
            moments[layer.name] = (mean.detach(), variance.detach(), h.numel() // mean.numel())
        case LayerNorm(eps=eps):
            h = F.layer_norm(h.unflatten(1, (runs, -1)), eps, (2, 3, 4)).flatten(1, 2) if image else F.layer_norm(h, eps, (2,))
        case _:
            assert_never(spec)
    return h * broadcast(gamma) + broadcast(beta)
