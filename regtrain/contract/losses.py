"""The data term of the objective, a mean over examples. Computed in worker/training/losses.py."""

from typing import Annotated, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.ranges import Number, Searchable


class SquaredError(Part):
    """mean over rows of Σ_outputs (f(x) − y)²."""

    kind: Literal["squared_error"]


class HalfSquaredError(Part):
    """mean over rows of ½ Σ_outputs (f(x) − y)². scikit-learn's Lasso and ElasticNet have this one: there λ = alpha."""

    kind: Literal["half_squared_error"]


class CrossEntropy(Part):
    """mean over rows of −Σ_c q_c log softmax(f(x))_c, q = (1−s)·onehot(y) + s/C with smoothing s (Szegedy et al. 2016)."""

    kind: Literal["cross_entropy"]
    label_smoothing: Annotated[Number, Searchable(ge=0, lt=1)] = 0.0
    """s, the share of the target spread evenly over all classes."""


class Binary(Part):
    """mean over rows of log(1 + exp(−t·f(x))) with t ∈ {−1, +1}: the logistic loss on one output. Targets 0/1 and −1/+1 mean the same."""

    kind: Literal["binary"]


Loss = Annotated[SquaredError | HalfSquaredError | CrossEntropy | Binary, Field(discriminator="kind")]
