"""What an activation does to a Gaussian: E φ, E φ², E φ′ and E φ′² at z ~ N(0, q), the integrals of which every prediction is made.

Kinked activations and gelu have closed forms (Gauss–Hermite quadrature is wrong at a kink); the smooth ones are integrated on a dense grid, once
for a table, and interpolated. Sources: Cho & Saul 2009 and He et al. 2015 (relu), Klambauer et al. 2017 (selu), Tsuchida et al. 2021 (elu, gelu),
Poole et al. 2016 (the integrals themselves).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.models import Activation

Array = NDArray[np.float64]
Smooth = Literal["tanh", "sigmoid", "silu", "softsign", "softplus"]
LEAK = 0.01
"""Slope of leaky_relu below 0."""
SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
"""α and λ (Klambauer et al. 2017)."""


@dataclass(frozen=True)
class Moments:
    """Of one activation at z ~ N(0, q). NaN where q is not known and they depend on it."""

    mean: float
    """E φ(z)"""
    square: float
    """E φ(z)²"""
    gain: float
    """E φ′(z)"""
    slope: float
    """E φ′(z)²"""


@lru_cache(2**14)
def moments(activation: Activation, q: float) -> Moments:
    """At variance q ≥ 0, or NaN where it is not known. Accurate to 1e-9 of their size."""
    match activation:
        case "identity":
            return Moments(0.0 * q, q, 1.0, 1.0)
        case "relu":
            return _leaky(0.0, q)
        case "leaky_relu":
            return _leaky(LEAK, q)
        case "elu":
            return _elu(1.0, 1.0, q)
        case "selu":
            return _elu(*SELU, q)
        case "gelu":
            return _gelu(q)
        case "tanh" | "sigmoid" | "silu" | "softsign" | "softplus":
            return _smooth(activation, q)
        case _:
            assert_never(activation)


def product(activation: Activation, q: float, p: float) -> float:
    """E φ(z)φ(z′) for two Gaussians of variance q and covariance p.

    Exact for identity, relu and leaky_relu (Cho & Saul 2009); else the first two terms of Mehler's series, which are exact at p = 0 and to O(p²) near it,
    where batch normalization leaves the rows of a batch.
    """
    found = moments(activation, q)
    if activation not in ("relu", "leaky_relu"):
        return found.mean**2 + p * found.gain**2
    if not 0 < q < math.inf or math.isnan(p):
        return 0.0 if q == 0 else math.nan
    leak, cosine = LEAK if activation == "leaky_relu" else 0.0, min(1.0, max(-1.0, p / q))
    both = q * (math.sqrt(1 - cosine**2) + cosine * (math.pi - math.acos(cosine))) / (2 * math.pi)
    return leak**2 * p + leak * (1 - leak) * p + (1 - leak) ** 2 * both


# ---------------------------------------------------------------- closed forms


def _leaky(leak: float, q: float) -> Moments:
    return Moments((1 - leak) * math.sqrt(q / (2 * math.pi)), q * (1 + leak**2) / 2, (1 + leak) / 2, (1 + leak**2) / 2)


def _elu(alpha: float, scale: float, q: float) -> Moments:
    """φ = scale·z above 0, scale·alpha·(e^z − 1) below; E[e^{tz}; z < 0] = erfcx(t√(q/2))/2."""
    once, twice = erfcx(math.sqrt(q / 2)) / 2, erfcx(math.sqrt(2 * q)) / 2
    below = _small(q) if q < 1e-3 else twice - 2 * once + 0.5
    mean = math.sqrt(q / (2 * math.pi)) + alpha * (once - 0.5)
    return Moments(scale * mean, scale**2 * (q / 2 + alpha**2 * below), scale * (0.5 + alpha * once), scale**2 * (0.5 + alpha**2 * twice))


def _small(q: float) -> float:
    """E[(e^z − 1)²; z < 0] by the series of erfcx, where the closed form cancels."""
    return sum((-1) ** k / math.gamma(k / 2 + 1) * q ** (k / 2) * (2 ** (k / 2 - 1) - 2 ** (-k / 2)) for k in range(2, 14))


def _gelu(q: float) -> Moments:
    """φ = zΦ(z), by Stein's lemma from E Φ² = ¼ + arcsin(q/(1+q))/2π and E ϕ² = 1/(2π√(1+2q))."""
    if math.isinf(q):
        return _leaky(0.0, q)
    cdf, pdf = 0.25 + math.asin(q / (1 + q)) / (2 * math.pi), 1 / (2 * math.pi * math.sqrt(1 + 2 * q))
    return Moments(q / math.sqrt(2 * math.pi * (1 + q)), q * (cdf + 2 * q / (1 + q) * pdf), 0.5, cdf + pdf * q * (2 / (1 + q) + 1 / (1 + 2 * q)))


def erfcx(x: float) -> float:
    """e^{x²}·erfc(x) for x ≥ 0."""
    if x < 20:
        return math.exp(x * x) * math.erfc(x)
    y = 1 / (2 * x * x)
    return (1 - y * (1 - 3 * y * (1 - 5 * y * (1 - 7 * y)))) / (x * math.sqrt(math.pi))


# ---------------------------------------------------------------- quadrature


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(z / 2))


def _of_silu(z: Array) -> tuple[Array, Array]:
    s = _sigmoid(z)
    return z * s, s * (1 + z * (1 - s))


def _of_sigmoid(z: Array) -> tuple[Array, Array]:
    s = _sigmoid(z)
    return s, s * _sigmoid(-z)


def _of_tanh(z: Array) -> tuple[Array, Array]:
    s = np.tanh(z)
    return s, 4 * _sigmoid(2 * z) * _sigmoid(-2 * z)


FUNCTIONS: dict[Smooth, Callable[[Array], tuple[Array, Array]]] = {
    "tanh": _of_tanh,
    "sigmoid": _of_sigmoid,
    "silu": _of_silu,
    "softsign": lambda z: (z / (1 + np.abs(z)), (1 + np.abs(z)) ** -2.0),
    "softplus": lambda z: (np.logaddexp(0, z), _sigmoid(z)),
}
"""z -> φ(z), φ′(z)"""

_T = np.arange(-34, 2.5, 1 / 6)
_Z = np.exp(_T)
"""Half of the grid: equal steps in ln z, on which the trapezoid rule converges geometrically however narrow φ is beside the Gaussian, kink at 0 included."""
_WEIGHTS = _Z * np.exp(-(_Z**2) / 2) / (6 * math.sqrt(2 * math.pi))

_LOW, _HIGH, _A_UNIT = -24, 16, 16
"""ln q of the table's ends, and its points in each unit."""


def integrated(activation: Smooth, q: Array) -> Array:
    """E φ, E φ², E φ′, E φ′² at each variance, integrated.  (n,) -> (4, n)"""
    h = np.sqrt(q)[:, None] * _Z
    (up, up_slope), (down, down_slope) = FUNCTIONS[activation](h), FUNCTIONS[activation](-h)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack([(up + down) @ _WEIGHTS, (up**2 + down**2) @ _WEIGHTS, (up_slope + down_slope) @ _WEIGHTS, (up_slope**2 + down_slope**2) @ _WEIGHTS])


@cache
def _table(activation: Smooth) -> list[tuple[float, float, float, float]]:
    """A point each 1/16 in ln q. 5 ms, once."""
    rows = integrated(activation, np.exp(np.arange(_LOW * _A_UNIT, _HIGH * _A_UNIT + 1) / _A_UNIT)).T
    return [(mean, square, gain, slope) for mean, square, gain, slope in rows.tolist()]


def _smooth(activation: Smooth, q: float) -> Moments:
    """Six-point interpolation in ln q, 1e-9 off; outside of the table the integral itself. In Python's floats: a fifth of the time of small arrays."""
    if not math.isfinite(q):
        return Moments(math.nan, math.nan, math.nan, math.nan)
    place = (math.log(q) - _LOW) * _A_UNIT if q > 0 else -1.0
    first, table = math.floor(place) - 2, _table(activation)
    if first < 0 or first + 6 > len(table):
        return Moments(*integrated(activation, np.array([q]))[:, 0].tolist())
    a, b, c, d, e, f = _lagrange(place - first)
    return Moments(*(a * u + b * v + c * w + d * x + e * y + f * z for u, v, w, x, y, z in zip(*table[first : first + 6], strict=True)))


def _lagrange(x: float) -> tuple[float, float, float, float, float, float]:
    """Weights of six points 0 … 5 at x."""
    a, b, c, d, e, f = x, x - 1, x - 2, x - 3, x - 4, x - 5
    return b * c * d * e * f / -120, a * c * d * e * f / 24, a * b * d * e * f / -12, a * b * c * e * f / 12, a * b * c * d * f / -24, a * b * c * d * e / 120
