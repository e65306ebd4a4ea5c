"""What the activations of a batch say about their layer: how many entries fire, which units never do, how many sit where φ is flat.

Only where the word has a meaning: a unit can be dead behind ReLU alone, whose output is exactly 0; entries fire on the positive side of the
rectifier and its smooth kin; they saturate behind the bounded ones, where |φ′| is below a hundredth of its maximum. The linear
head has none of the three: its numbers are 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regtrain.contract.diagnostics import Diagnostics, includes
from regtrain.contract.models import Activation, Layer
from worker.training.models import Passed, by_run
from worker.training.pack import Pack


@dataclass(frozen=True)
class Flat:
    """Where a bounded φ is flat: |φ(z) − middle| > edge."""

    middle: float
    edge: float


FLAT: dict[Activation, Flat] = {
    "sigmoid": Flat(0.5, math.sqrt(0.25 * 0.99)),
    "tanh": Flat(0.0, math.sqrt(0.99)),
    "softsign": Flat(0.0, 0.9),
}
"""|φ′| < max φ′/100, said of a = φ(z): φ′ = a(1 − a) for sigmoid (|z| > 5.99), 1 − a² for tanh (|z| > 2.99), (1 − |a|)² for softsign (|z| > 9)."""

ONE_SIDED: frozenset[Activation] = frozenset({"relu", "leaky_relu", "elu", "selu", "gelu", "silu"})
"""φ(z) > 0 exactly where z > 0."""

DEAD, FIRING, SATURATED = "activation/dead", "activation/firing", "activation/saturated"


def names(shape: list[Layer]) -> list[str]:
    """The series that nets of this shape have."""
    kinds = {layer.activation for layer in shape}
    return [*([DEAD] if "relu" in kinds else []), *([FIRING] if kinds & ONE_SIDED else []), *([SATURATED] if kinds & FLAT.keys() else [])]


def of_activations(preset: Diagnostics, pack: Pack, layers: list[list[Passed]]) -> dict[str, list[Tensor]]:
    """Counts of units and of entries, which become shares when reported.  layers: of every micro-batch -> (R,) a layer"""
    if not includes(preset, "full"):
        return {}
    found = [_counts(layer, [_units(part[place], pack.size) for part in layers]) if layer.activation else {} for place, layer in enumerate(pack.shape)]
    return {name: [counts.get(name, pack.none) for counts in found] for name in names(pack.shape)}


def shares(name: str, shape: list[Layer], rows: int) -> list[float]:
    """What the counts of a batch of `rows` are divided by, of every layer."""
    return [float(layer.signal[0]) if name == DEAD else float(rows * math.prod(layer.signal)) for layer in shape]


def _units(passed: Passed, runs: int) -> Tensor:
    """φ of one micro-batch, (R, B, units, …)."""
    assert passed.activation is not None
    return by_run(passed.activation, runs)


def _counts(layer: Layer, parts: list[Tensor]) -> dict[str, Tensor]:
    others = (1, *range(3, parts[0].dim()))
    if layer.activation in FLAT:
        flat = FLAT[layer.activation]
        return {SATURATED: _total([torch.count_nonzero((a - flat.middle).abs() > flat.edge, dim=(*others, 2)) for a in parts])}
    if layer.activation == "relu":
        fired = _total([torch.count_nonzero(a, dim=others) for a in parts])  # (R, units)
        return {DEAD: (fired == 0).sum(1), FIRING: fired.sum(1)}
    if layer.activation in ONE_SIDED:
        return {FIRING: _total([torch.count_nonzero(a > 0, dim=(*others, 2)) for a in parts])}
    return {}


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
