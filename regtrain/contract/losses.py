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


ClassWeights = Literal["balanced"] | Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Field(min_length=2, max_length=1000)]


class _OfClasses(Part):
    class_weights: ClassWeights | None = None
    """w_c, how much a row of class c counts: the loss is Σ w_y ℓ / Σ w_y over the rows of a batch or split; accuracies count every row alike.
    One number a class, in the order of the labels, or `balanced`: n/(C·n_c) of the training rows (King & Zeng 2001). A class that has none counts as if it had one."""


class CrossEntropy(_OfClasses):
    """mean over rows of −Σ_c q_c log softmax(f(x))_c, q = (1−s)·onehot(y) + s/C with smoothing s (Szegedy et al. 2016)."""

    kind: Literal["cross_entropy"]
    label_smoothing: Annotated[Number, Searchable(ge=0, lt=1)] = 0.0
    """s, the share of the target spread evenly over all classes."""


class Binary(_OfClasses):
    """mean over rows of log(1 + exp(−t·f(x))) with t ∈ {−1, +1}: the logistic loss on one output. Targets 0/1 and −1/+1 mean the same."""

    kind: Literal["binary"]


Loss = Annotated[SquaredError | HalfSquaredError | CrossEntropy | Binary, Field(discriminator="kind")]
