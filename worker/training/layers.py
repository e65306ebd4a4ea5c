"""Layers as functions over stacked parameters: every tensor has a run axis, and runs never mix.

Dense activations are (R, B, features). Convolutional ones are (B, R·channels, height, width): one grouped convolution for all runs.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": torch.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "identity": lambda h: h,
}


def linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(R, B, in) × (R, out, in) -> (R, B, out). bias: (R, out)"""
    return torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight.mT)


def convolution(h: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int) -> Tensor:
    """(B, R·in, height, width) × (R, out, in, k, k) -> (B, R·out, …). bias: (R, out)"""
    runs = len(weight)
    return F.conv2d(h, weight.flatten(0, 1), None if bias is None else bias.flatten(), stride=stride, padding=weight.shape[-1] // 2, groups=runs)


def pool(h: Tensor, kind: Literal["max", "average", "none"]) -> Tensor:
    """2 × 2 over the last two axes."""
    return F.max_pool2d(h, 2) if kind == "max" else F.avg_pool2d(h, 2) if kind == "average" else h


def dense_batch_norm(h: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each unit over the rows of its run.  (R, B, H) -> same, mean (R, H), biased variance (R, H)"""
    variance, mean = torch.var_mean(h, 1, correction=0, keepdim=True)
    return (h - mean) * (variance + eps).rsqrt(), mean.squeeze(1), variance.squeeze(1)


def image_batch_norm(h: Tensor, eps: float, runs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel over the rows and pixels of its run.  (B, R·C, …) -> same, mean (R, C), biased variance (R, C)"""
    variance, mean = torch.var_mean(h, (0, 2, 3), correction=0, keepdim=True)
    return (h - mean) * (variance + eps).rsqrt(), mean.view(runs, -1), variance.view(runs, -1)


def layer_norm(h: Tensor, eps: float, dims: tuple[int, ...]) -> Tensor:
    """Each row over its own features."""
    variance, mean = torch.var_mean(h, dims, correction=0, keepdim=True)
    return (h - mean) * (variance + eps).rsqrt()


def normalised(h: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """With given statistics, broadcast to h."""
    return (h - mean) * (variance + eps).rsqrt()
