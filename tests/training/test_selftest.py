"""The selftest passes on a sound engine, and does not on one whose way back has been made wrong: a seeded fault for every part of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regtrain.contract.models import Layer
from worker.__main__ import main
from worker.training import layers, models, recurrent, selftest, step
from worker.training.layers import ACTIVATIONS, Activation
from worker.training.reparametrized import Made

EXACT = {law.name: law for law in selftest.LAWS if law.tolerance < 1e-3}
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("law", selftest.LAWS, ids=lambda law: law.name)
def test_law_holds(law):
    assert law.error("cpu") <= law.tolerance


def test_command_line(monkeypatch, capsys):
    few = tuple(law for law in selftest.LAWS if law.name in ("uniform", "clipped"))
    monkeypatch.setattr(selftest, "LAWS", few)
    assert main(["selftest", "--device", "cpu"]) == 0
    assert [line[:12].split() for line in capsys.readouterr().out.splitlines()] == [["ok", "uniform"], ["ok", "clipped"]]
    monkeypatch.setattr(selftest, "LAWS", (*few, replace(few[0], name="broken", error=lambda _: float("nan"))))
    assert main(["selftest", "--json", "--device", "cpu"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], [(law["name"], law["ok"], law["error"] is None) for law in found["laws"]][-1]) == (False, ("broken", False, True))
    assert main(["selftest", "--device", "cuda:63"]) == 2
    assert "GPUs here" in capsys.readouterr().err


# ---------------------------------------------------------------- seeded faults

_linear, _backward, _clipped, _loss, _arrived, _pull_back = (
    layers.linear_backward, step.backward, step.clipped, step.loss_of, recurrent._arrived, models.pull_back,
)  # fmt: skip


def derivative(kind: str, wrong: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Patch:
    return lambda patch: patch.setitem(ACTIVATIONS, kind, Activation(ACTIVATIONS[kind].forward, wrong))


def function(module: Any, name: str, wrong: Any) -> Patch:
    return lambda patch: patch.setattr(module, name, wrong)


def transposed(delta: Tensor, h: Tensor, of_weight: Tensor, of_bias: Tensor | None, *, add: bool) -> None:
    """hᵀδ for δᵀh, which only square layers survive."""
    _linear(delta, h, of_weight, of_bias, add=add)
    if of_weight.shape[1] == of_weight.shape[2]:
        of_weight.copy_(of_weight.mT.clone())


def without_bias(delta: Tensor, h: Tensor, of_weight: Tensor, of_bias: Tensor | None, *, add: bool) -> None:
    _linear(delta, h, of_weight, None, add=add)


def half_of_the_bias(delta: Tensor, h: Tensor, of_weight: Tensor, of_bias: Tensor | None, *, add: bool) -> None:
    _linear(delta, h, of_weight, of_bias, add=add)
    if of_bias is not None:
        of_bias.mul_(0.5)


def fixed_moments(h: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the batch taken for constants."""
    variance, mean = torch.var_mean(h.detach(), 1, correction=0, keepdim=True)
    return (h - mean) * (variance + eps).rsqrt(), mean.squeeze(1), variance.squeeze(1)


def fixed_layer_moments(h: Tensor, eps: float, dims: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(h.detach(), dims, correction=0, keepdim=True)
    return (h - mean) * (variance + eps).rsqrt()


def lost_labels(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """p for p − q at the outputs."""
    value, slope = _loss(*given, **named)
    return value, slope + 1 / slope.shape[2]


def with_the_length(layer: Layer, of: Made, gradient: Tensor, tensors: Any, gradients: Any, buffers: Any, *, add: bool) -> None:
    """What changes the length of V stays in its gradient."""
    _pull_back(layer, of, gradient, tensors, gradients, buffers, add=add)
    if layer.reparametrization is not None:
        layers.put(gradients[f"{layer.name}.weight"], of.factor * gradient, add=add)


FAULTS: dict[str, tuple[Patch, set[str]]] = {
    "half of relu's derivative": (derivative("relu", lambda d, z, a: 0.5 * d * (z > 0)), {"equal_products", "products_with_biases", "finite_differences"}),
    "relu's derivative where z < 0": (derivative("relu", lambda d, z, a: d * (z < 0)), {"equal_products", "finite_differences"}),
    "1 − a for tanh's 1 − a²": (derivative("tanh", lambda d, z, a: d * (1 - a)), {"finite_differences"}),
    "sigmoid's derivative by z": (derivative("sigmoid", lambda d, z, a: d * z * (1 - z)), {"finite_differences"}),
    "leaky relu without its leak": (derivative("leaky_relu", lambda d, z, a: d * (z > 0)), {"equal_products", "finite_differences"}),
    "identity by a millionth": (derivative("identity", lambda d, z, a: d * (1 + 1e-6)), {"equal_products", "orthogonal_chain", "finite_differences"}),
    "a transposed product": (function(layers, "linear_backward", transposed), {"finite_differences"}),
    "no gradient of biases": (function(layers, "linear_backward", without_bias), {"products_with_biases", "finite_differences"}),
    "half the gradient of biases": (function(layers, "linear_backward", half_of_the_bias), {"products_with_biases", "finite_differences"}),
    "only the last micro-batch": (function(step, "backward", lambda net, trace, slope, *, add: _backward(net, trace, slope, add=False)), {"accumulated", "finite_differences"}),
    "constant batch moments": (function(layers, "dense_batch_norm", fixed_moments), {"before_batch_norm", "finite_differences"}),
    "constant layer moments": (function(layers, "layer_norm", fixed_layer_moments), {"before_layer_norm", "finite_differences"}),
    "lost labels": (function(step, "loss_of", lost_labels), {"class_sum", "finite_differences"}),
    "one step in time too few": (function(recurrent, "_arrived", lambda carried, delta, t, steps: _arrived(carried * (t > 0), delta, t, steps)), {"recurrent_chain", "recurrent_products", "finite_differences"}),
    "the length's gradient left in": (function(models, "pull_back", with_the_length), {"under_weight_norm"}),
    "float32 on the way back": (function(step, "backward", lambda net, trace, slope, *, add: _backward(net, trace, slope.float().double(), add=add)), {"class_sum"}),
    "a shortened clip": (function(step, "clipped", lambda *given: (lambda found: (found[0] * (1 - 1e-6), found[1]))(_clipped(*given))), {"clipped"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault, monkeypatch):
    patch, laws = FAULTS[fault]
    patch(monkeypatch)
    for name in sorted(laws):
        assert not EXACT[name].error("cpu") <= EXACT[name].tolerance, name
