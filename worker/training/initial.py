"""Initial weights: one run's, drawn on the CPU in float64 from the seeds of job and run, tensor by tensor, so that no layer's draw depends on another's shape."""

import math
from typing import assert_never

import torch
from torch import Tensor

from regtrain.contract.models import (
    HeNormal,
    HeUniform,
    Identity,
    Init,
    Layer,
    LecunNormal,
    LecunUniform,
    Lsuv,
    Normal,
    Orthogonal,
    TorchInit,
    Uniform,
    WeightNorm,
    XavierNormal,
    XavierUniform,
    Zeros,
)
from worker.training.draws import generator
from worker.training.models import Net, by_run, forward, layout_of


def initial(init: Init, shape: list[Layer], *, job: int, run: int, scale: float) -> Tensor:
    """All parameters of one run in their places.  (P,)"""
    layout, owner = layout_of(shape), {tensor: layer for layer in shape for tensor in layer.tensors}
    drawn = {slot.name: _drawn(init, slot.name, slot.shape, owner[slot.name], generator(job, run, "init", slot.name), scale) for slot in layout.slots}
    gains = {name: drawn[name.removesuffix("gain") + "weight"].flatten(1).norm(dim=1) for name in drawn if name.endswith(".gain")}
    return torch.cat([tensor.flatten() for tensor in (drawn | gains).values()])


def unit_variance(net: Net, x: Tensor, scale: Tensor) -> None:
    """Layer after layer: divides its weights by the deviation of its linear outputs on these rows, times `scale`, in place.

    x: (B, features) or (R, B, features); scale: (R, 1)
    """
    for place, layer in enumerate(net.shape):
        outputs = by_run(forward(net, x).layers[place].signal, net.runs).flatten(1).double()
        deviation = outputs.var(1, correction=0).sqrt()
        factor = torch.where((deviation > 0) & torch.isfinite(deviation), scale.squeeze(1) / deviation, 1.0)
        weight = net.tensors[f"{layer.name}.gain" if isinstance(layer.reparametrization, WeightNorm) else f"{layer.name}.weight"]
        weight.mul_(factor.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1)))


def _drawn(init: Init, name: str, shape: tuple[int, ...], layer: Layer, draw: torch.Generator, scale: float) -> Tensor:
    if name.endswith(".norm.weight"):
        return torch.ones(shape, dtype=torch.float64)
    gates = layer.recurrence.gates if layer.recurrence else 1
    reach = 1 / math.sqrt(shape[0] // gates if layer.recurrence else math.prod(layer.weight[1:]))
    if name.endswith(".weight"):
        one = (shape[0] // gates, *shape[1:])
        return scale * torch.cat([_weight(init, one, reach, draw) for _ in range(gates)])
    if isinstance(init, TorchInit) and not name.endswith(".norm.bias"):
        return _uniform(shape, reach, draw)
    return torch.zeros(shape, dtype=torch.float64)


def _weight(init: Init, shape: tuple[int, ...], reach: float, draw: torch.Generator) -> Tensor:
    pixels = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * pixels, shape[0] * pixels
    match init:
        case TorchInit():
            return _uniform(shape, reach, draw)
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
        case Identity(std=std):
            return torch.eye(shape[0], dtype=torch.float64) if len(shape) == 2 and shape[0] == shape[1] else _normal(shape, std, draw)
        case Orthogonal() | Lsuv():
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
