"""How ‖δ_l‖² changes over the layers of a net: a straight line through its logarithms, with the interval of its slope."""

from dataclasses import dataclass
from functools import cache
from math import atan, exp, lgamma, pi, sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fall:
    """ln of ‖δ‖² of the first layer over that of the last."""

    seen: float
    fitted: float
    half: float
    """Half width of the 95 % interval of `fitted`."""
    layers: int
    error: float
    """Standard error of `fitted`."""

    def beyond(self, bound: float) -> bool:
        """Whether it is larger than a bound in absolute value, as seen and at the near end of its interval."""
        return min(abs(self.seen), abs(self.fitted) - self.half) > bound and (self.seen < 0) == (self.fitted < 0)

    def confidence(self, bound: float) -> float:
        """That the slope is beyond the bound, by the t distribution."""
        return 1.0 if self.error == 0 else t_below((abs(self.fitted) - bound) / self.error, self.layers - 2)


def fall(logs: NDArray[np.float64]) -> Fall | None:
    """The least-squares line through ln ‖δ_l‖² of D layers, first to last; None of fewer than three.  (D,)

    b = Σ(l − l̄)y_l/Σ(l − l̄)², standard error √(RSS/((D − 2)·Σ(l − l̄)²)), interval by Student's t with D − 2 degrees of freedom.
    """
    depth = len(logs)
    if depth < 3:
        return None
    at = np.arange(depth) - (depth - 1) / 2
    square = float((at**2).sum())
    slope = float((at * logs).sum()) / square
    rest = logs - logs.mean() - slope * at
    error = sqrt(float((rest**2).sum()) / ((depth - 2) * square)) * (depth - 1)
    return Fall(float(logs[0] - logs[-1]), -slope * (depth - 1), t_quantile(0.975, depth - 2) * error, depth, error)


def t_below(t: float, freedom: int) -> float:
    """P(T ≤ t) = ½ + Γ((ν+1)/2)/(√π Γ(ν/2)) ∫₀^{atan(t/√ν)} cos^{ν−1}θ dθ, by Simpson's rule."""
    end = atan(t / sqrt(freedom))
    grid = np.linspace(0.0, end, 401)
    weights = np.ones(401)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integral = float((weights * np.cos(grid) ** (freedom - 1)).sum()) * end / 1200
    return min(1.0, max(0.0, 0.5 + exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi) * integral))


@cache
def t_quantile(p: float, freedom: int) -> float:
    """The t below which a share p ≥ ½ lies, by bisection of the angle."""
    low, high = 0.0, pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(sqrt(freedom) * float(np.tan(middle)), freedom) < p else (low, middle)
    return sqrt(freedom) * float(np.tan(low))
