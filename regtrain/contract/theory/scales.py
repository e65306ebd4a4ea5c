"""How large a dataset's numbers are, known without its rows: what enters a net, and what a squared loss compares with."""

import math
from typing import assert_never

import numpy as np

from regtrain.contract.datasets import Adding, Blobs, BreastCancer, Circles, Copying, Dataset, Diabetes, Digits, Inline, Iris, LinearRows, Mnist, TemporalOrder, Upload, Wine
from regtrain.contract.theory.field import Rows

BUNDLED: dict[str, tuple[Rows, float]] = {
    "digits": (Rows(0.234597, 0.161264, 0.305260), 61 / 64),
    "iris": (Rows(15.8988, 14.7632, 3.46450), 1),
    "wine": (Rows(51325.9, 43723.3, 69.1337), 1),
    "breast_cancer": (Rows(55950.2, 40913.4, 61.8907), 1),
    "diabetes": (Rows(1 / 442, 0, 0), 1),
    "mnist": (Rows(0.112003, 0.0447513, 0.130660), 717 / 784),
}
"""Their moments over all rows, and the share of columns that are not constant."""

DIABETES_TARGET = 29074.482
"""Mean square of the target."""


def entering(dataset: Dataset) -> Rows:
    """What the rows are, as they enter the net; NaN for uploads that are not standardized. Expected values, where a generator draws."""
    rows, varied = _drawn(dataset)
    return Rows(varied, 0.0, 0.0) if dataset.standardize else rows


def _drawn(dataset: Dataset) -> tuple[Rows, float]:
    """The rows as they are, and the share of columns that are not constant."""
    match dataset:
        case Inline(x=x):
            rows = np.asarray(x, float)
            with np.errstate(over="ignore", invalid="ignore"):
                moments = Rows(float((rows**2).mean()), float((rows.mean(0) ** 2).mean()), float(rows.mean()))
            return moments, float((rows.min(0) < rows.max(0)).mean())
        case Digits() | Iris() | Wine() | BreastCancer() | Diabetes() | Mnist():
            return BUNDLED[dataset.kind]
        case LinearRows():
            return Rows(1.0, 0.0, 0.0), 1.0
        case Blobs(centers=centers, std=std):
            return Rows(100 / 3 + std * std, 100 / 3 / centers, 0.0), 1.0
        case Circles(noise=noise, factor=factor):
            return Rows((1 + factor * factor) / 4 + noise * noise, 0.0, 0.0), 1.0
        case Adding(length=length):
            half = length // 2
            marks = 1 / half + 1 / (length - half)  # Σ over steps of the squared share of rows that have a mark there
            return Rows((1 / 3 + 2 / length) / 2, (1 / 4 + marks / length) / 2, (1 / 2 + 2 / length) / 2), 1.0
        case TemporalOrder(length=length):
            places = (2 * length // 10 - length // 10, 5 * length // 10 - 4 * length // 10)  # of A or B, drawn uniformly
            products = (length - sum(places)) / 4 + sum(1 / (2 * n) + (n - 1) ** 2 / (4 * n) for n in places)
            constant = 2 * (length - sum(places)) + 4 * places.count(1)
            return Rows(1 / 6, products / (6 * length), 1 / 6), 1 - constant / (6 * length)
        case Copying(memory=memory, alphabet=alphabet, blanks=blanks):
            steps, channels = memory + blanks + 1, alphabet + 1 + memory
            products = memory / alphabet + blanks + 1 / memory
            return Rows(1 / channels, products / (steps * channels), 1 / channels), (memory * alphabet + (memory if memory > 1 else 0)) / (steps * channels)
        case Upload():
            return Rows(math.nan, math.nan, math.nan), 1.0
        case _:
            assert_never(dataset)


def target(dataset: Dataset) -> float:
    """Mean square of a real target; NaN where it is not known."""
    match dataset:
        case Inline(y=y):
            with np.errstate(over="ignore"):
                return float((np.asarray(y, float) ** 2).mean())
        case Diabetes():
            return DIABETES_TARGET
        case LinearRows(coefficients=coefficients, intercept=intercept, noise=noise):
            length = math.hypot(intercept, noise, *coefficients)
            return length * length
        case Adding():
            return 7 / 6
        case Digits() | Iris() | Wine() | BreastCancer() | Mnist() | Blobs() | Circles() | TemporalOrder() | Copying() | Upload():
            return math.nan
        case _:
            assert_never(dataset)
