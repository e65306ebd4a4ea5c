"""The loss before the first update: outputs that are Gaussian and know nothing of the target yet."""

import math
from typing import assert_never

import numpy as np

from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, Loss, SquaredError
from regtrain.contract.theory.moments import moments

WIDE = 6.0
"""Deviation of the outputs beyond which the largest of them decides."""


def initial_loss(loss: Loss, *, variance: float, outputs: int, target: float) -> float:
    """Mean loss over draws of the weights, for outputs N(0, variance), independent of each other and of the target.

    `target`: mean square of a real target. ln C for softmax and ln 2 for the logistic loss, plus what the variance of the outputs adds; label smoothing
    changes nothing, since outputs have mean 0. A squared loss is the variance plus the mean square of the target.
    """
    match loss:
        case CrossEntropy():
            return log_sum_exp(math.sqrt(variance), outputs)
        case Binary():
            return moments("softplus", variance).mean
        case SquaredError():
            return outputs * (variance + target)
        case HalfSquaredError():
            return outputs * (variance + target) / 2
        case _:
            assert_never(loss)


def log_sum_exp(deviation: float, count: int) -> float:
    """E ln Σ e^z over `count` independent z ~ N(0, deviation²): ln C + ½σ²(1 − 1/C) where σ is small, σ·E max where it is large.

    ln S = ∫ (e^{−t} − e^{−tS}) dt/t, whose mean needs E e^{−t·e^z} alone, to the power of `count`. Trapezoids in ln t and in z. Beyond a deviation of 6 the
    integrand is a step, and S is its largest term and now and then a second one: σ·E max + (π²/12)·(density at 0 of the gap between the two largest).
    """
    if not deviation < WIDE:
        return _largest(deviation, count)
    z = np.arange(-9, 9.01, min(0.1, 0.4 / max(deviation, 1e-9)))
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    step = 0.25
    u = np.arange(-36 - math.log(count) - 9 * deviation, 4.5 + 9 * deviation, step)
    fails = -np.expm1(-np.exp(u[:, None] + deviation * z)) @ weights  # 1 − E e^{−t·e^z}
    with np.errstate(divide="ignore"):
        none = np.exp(count * np.log1p(-np.minimum(fails, 1.0)))
    return float((np.exp(-np.exp(u)) - none).sum() * step)


def _largest(deviation: float, count: int) -> float:
    z = np.arange(-9, 9.01, 0.02)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in z.tolist()])
    largest = float((z * count * density * below ** (count - 1)).sum() * 0.02)
    if count == 1:
        return 0.0 * deviation
    gap = float((count * (count - 1) * density**2 * below ** (count - 2)).sum() * 0.02)
    return deviation * largest + math.pi**2 / 12 * gap / deviation
