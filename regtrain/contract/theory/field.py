"""How a signal passes through a net of random weights, layer by layer: the mean-field recursion at finite depth, and where it tends to.

Forward: q_l = σ_w²·E a² + σ_b² (Poole et al. 2016). Backward, in norms: E‖δ_l‖² = χ_l·E‖δ_{l+1}‖², χ_l = σ_w²·E φ′(√q_l z)² (Schoenholz et al. 2017), the
mean squared singular value of the Jacobian from one linear output to the next. σ_w² = fan_in·Var w belongs to the layer behind.
Dropout divides both by the share that it keeps (Schoenholz et al. 2017, section 5). Normalization sets q to 1 and divides δ by the deviation that it removed
(Yang et al. 2019; for images and for few rows see `_normalised`). Residual: s_l = s_{l−1} + φ(W s_{l−1} + b) (Yang & Schoenholz 2017).
What is not known is NaN, and spreads by itself to what depends on it, no further: relu's χ needs no scale of the inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from regtrain.contract.models import Activation
from regtrain.contract.theory.moments import moments, product

SCALES = 6
"""Depth scales through which a net can be trained (Schoenholz et al. 2017, section 5): there ‖δ‖² has changed by e⁶, ‖δ‖ by 20."""


@dataclass(frozen=True)
class Rows:
    """The numbers that enter a net, or a layer."""

    square: float
    """E a²"""
    product: float
    """E a·a′ of the same number in two different rows."""
    mean: float
    """E a"""


@dataclass(frozen=True)
class Stage:
    """One layer, as theory sees it."""

    weights: float
    """σ_w² = fan_in·Var w. For convolutions fan_in counts the taps that lie inside the image."""
    biases: float
    """σ_b²"""
    activation: Activation | None = None
    """None for the head."""
    normalization: Literal["batch", "layer"] | None = None
    eps: float = 0.0
    count: float = math.inf
    """Numbers over which a normalization takes its mean and variance; NaN where their correlation is not known."""
    kept: float = 1.0
    """Share of its activations that dropout keeps."""
    image: bool = False
    """Whether its units are filters: they see many places of each row, so what theory says of dead units does not hold."""
    residual: bool = False
    """Whether what enters is added to what leaves."""
    pooled: bool = False
    variance: float | None = None
    """To which the weights are scaled by the rows themselves (LSUV, Mishkin & Matas 2016), in place of σ_w²."""


@dataclass(frozen=True)
class Passage:
    """What happens in one layer."""

    weights: float
    """σ_w²"""
    q: float
    """Variance of the linear output: the square of `signal/forward`."""
    gain: float
    """E‖δ‖² of the linear output over E‖∂loss/∂output‖² of the whole layer."""
    dead: float
    """Share of units that are 0 for all rows; NaN where units cannot die."""
    rows: Rows
    """What it gives on."""


def passages(stages: Sequence[Stage], inputs: Rows, *, rows: int) -> list[Passage]:
    """Every layer in forward order. `rows`: how many a unit must be silent on to count as dead; 0 leaves that out."""
    found: list[Passage] = []
    enters, last = inputs, None
    for stage in stages:
        if stage is last and enters == found[-1].rows:  # nothing changes any more
            found.append(found[-1])
            continue
        enters, last = found[-1].rows if found else inputs, stage
        found.append(passage(stage, enters, rows=rows))
    return found


def passage(stage: Stage, enters: Rows, *, rows: int = 0) -> Passage:
    """One layer."""
    weights = _weights(stage, enters.square)
    q, p = weights * enters.square + stage.biases, weights * enters.product + stage.biases
    if stage.activation is None:
        return Passage(weights, q, math.nan, math.nan, Rows(q, p, 0.0))
    seen, both, squeeze = _normalised(stage, q, p)
    m, cross = moments(stage.activation, seen), product(stage.activation, seen, both)
    dead = silent(seen, both, rows) if stage.activation == "relu" and rows and not stage.image else math.nan
    if stage.pooled:
        return Passage(weights, q, math.nan, dead, Rows(math.nan, math.nan, math.nan))
    leaves = Rows(m.square / stage.kept, cross, m.mean)
    if stage.residual:  # the branch knows the sign of what goes around it only through its own mean
        twice = 2 * enters.mean * m.mean
        leaves = Rows(enters.square + leaves.square + twice, enters.product + cross + twice, enters.mean + m.mean)
    return Passage(weights, q, m.slope * squeeze / stage.kept, dead, leaves)


def _weights(stage: Stage, square: float) -> float:
    """σ_w², for what enters."""
    if stage.variance is None:
        return stage.weights
    return stage.variance / square if square > 0 else math.nan


def _normalised(stage: Stage, q: float, p: float) -> tuple[float, float, float]:
    """Variance and covariance behind the normalization, and what it does to ‖δ‖².

    The backward pass divides by the variance v and takes out the directions of the mean and of the signal itself: (B−2)/((B−3)·v) on average over
    B numbers whose deviations are Gaussian and independent, exact for linear nets; for relu and many rows π/(π−1) a layer (Yang et al. 2019).
    Batch norm: v is the variance over the rows, what they share is taken out, and any two rows are left at covariance −1/(B−1).
    """
    match stage.normalization:
        case None:
            return q, p, 1.0
        case "layer":
            over, left = q, p / (q + stage.eps)
        case "batch":
            over, left = q - p, -1 / (stage.count - 1) if stage.count > 1 else math.nan
    v = over * (1 - 1 / stage.count) if stage.count > 1 else math.nan
    squeeze = (1.0 if math.isinf(stage.count) else (stage.count - 2) / (stage.count - 3)) / (v + stage.eps) if stage.count > 3 and v + stage.eps > 0 else math.nan
    behind = 1.0 if math.isnan(v) else v / (v + stage.eps) if v + stage.eps > 0 else 0.0
    return behind, left * behind if stage.normalization == "batch" else left, squeeze


def steps_back(stages: Sequence[Stage], passed: Sequence[Passage]) -> list[float]:
    """ln χ_l from each layer to the one in front of it: ln E‖δ_l‖²/E‖δ_{l+1}‖². One less than layers."""
    found: list[float] = []
    stream, delta = -math.inf, 0.0  # logarithms: of ‖∂loss/∂stream‖² that a residual connection passes on, of ‖δ‖² in the layer behind
    for this, behind, stage in zip(reversed(passed[:-1]), reversed(passed[1:]), reversed(stages[1:]), strict=True):
        stream = _added(delta + log(behind.weights), stream) if stage.residual else delta + log(behind.weights)
        before, delta = delta, stream + log(this.gain)
        found.append(delta - before)
    return found[::-1]


def _added(a: float, b: float) -> float:
    """ln(e^a + e^b)"""
    return max(a, b) + math.log1p(math.exp(-abs(a - b))) if max(a, b) > -math.inf else -math.inf


def log(x: float) -> float:
    """ln x, with ln 0 = −∞."""
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def limit(stage: Stage, starts: Rows) -> float:
    """χ far behind many layers like this one, as wide as each other. NaN for residual nets, whose stream grows for ever, and where pooling comes in."""
    if stage.residual or stage.pooled or stage.activation is None:
        return math.nan
    if stage.normalization is not None or stage.variance is not None:  # q is the same from the second layer on
        last = passages([stage] * 4, starts, rows=0)[-1]
        return last.weights * last.gain
    return stage.weights * moments(stage.activation, _fixed_point(stage, stage.activation, starts.square)).slope / stage.kept


def _fixed_point(stage: Stage, activation: Activation, square: float) -> float:
    """q = σ_w²·E φ² + σ_b², the one towards which the variance moves; a very small or large number where it goes to 0 or ∞."""
    low, high = 1e-18, 1e12
    if math.isnan(stage.weights):
        return math.nan

    def after(q: float) -> float:
        return stage.weights * moments(activation, q).square / stage.kept + stage.biases

    q = min(high, max(low, stage.weights * (1.0 if math.isnan(square) else square) + stage.biases))
    rising = after(q) > q
    other = q
    while low < other < high and (after(other) > other) == rising and not math.isclose(after(other), other, rel_tol=1e-12):
        other = other * 2 if rising else other / 2
    if not low < other < high or (after(other) > other) == rising:
        return other
    q = other / 2 if rising else other * 2
    for _ in range(60):
        middle = math.sqrt(q * other)
        q, other = (middle, other) if (after(middle) > middle) == rising else (q, middle)
    return math.sqrt(q * other)


def depth_scale(chi: float) -> float:
    """Layers in which ‖δ‖² changes by e: 1/|ln χ|, ∞ at χ = 1 (Schoenholz et al. 2017)."""
    away = abs(log(chi))
    return math.inf if away < 1e-9 else 1 / away


# ---------------------------------------------------------------- dead units

_U = np.arange(-9, 9.01, 0.05)
_NORMAL = np.exp(-(_U**2) / 2) * 0.05 / math.sqrt(2 * math.pi)
_X = np.arange(-38, 38.01, 0.01)
_LOG_CDF = np.array([math.log(math.erfc(-x / math.sqrt(2)) / 2) for x in _X.tolist()])


def silent(q: float, p: float, rows: int) -> float:
    """Share of relu units whose input is ≤ 0 in all rows, where any two rows have covariance p: h = √p·u + √(q − p)·e_row, ∫ Φ(−u·√(p/(q − p)))^rows dN(u)."""
    if math.isnan(p):
        return math.nan
    if q <= 0:
        return 1.0
    if p <= 0:
        return 0.5**rows if p == 0 else 0.0
    if p >= q:
        return 0.5
    return float(np.exp(rows * np.interp(-_U * math.sqrt(p / (q - p)), _X, _LOG_CDF)) @ _NORMAL)
