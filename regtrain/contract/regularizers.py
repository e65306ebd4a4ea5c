"""What a regularizer is: its formula, its fields, their bounds. Computed in worker/training/regularizers.py.

λ multiplies the penalty of the mean objective: mean loss + λ·R(w). It is per example, so it does not change with the number of rows.
"""

from typing import Annotated, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.ranges import Number, Searchable

LayerName = Annotated[str, Field(min_length=1, max_length=200)]
On = Literal["weights", "all"] | Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=1000)]
Strength = Annotated[Number, Searchable(ge=0)]


class _OnWeights(Part):
    lam: Annotated[Strength, Field(alias="lambda")]
    """λ, the strength."""
    on: On = "weights"
    """Which parameters: `weights` (matrices and filters), `all` (biases and norm parameters too), or layer names such as ["layers.0", "head"] (their weights)."""


class L1(_OnWeights):
    """R(w) = Σ|wᵢ|. Proximal steps set small weights to exactly zero (Tibshirani 1996; Daubechies et al. 2004)."""

    kind: Literal["l1"]
    method: Literal["proximal", "subgradient"] = "proximal"
    """`proximal`: soft threshold ηλ after the step, exact zeros. `subgradient`: λ·sign(w) joins the gradient, as most frameworks do; never reaches zero."""


class L2(_OnWeights):
    """R(w) = ½ Σwᵢ². Its gradient is w, so λ equals `weight_decay` of torch's SGD at any momentum."""

    kind: Literal["l2"]


class ElasticNet(_OnWeights):
    """R(w) = l1_ratio·Σ|wᵢ| + (1 − l1_ratio)·½Σwᵢ², by proximal steps (Zou & Hastie 2005). scikit-learn's ElasticNet with alpha = λ on `half_squared_error`."""

    kind: Literal["elastic_net"]
    l1_ratio: Annotated[Number, Searchable(ge=0, le=1)] = 0.5
    """The share of the L1 part."""


class FeatureGroup(Part):
    """Input features of a linear model that enter or leave it together."""

    name: LayerName
    """What the group is called."""
    features: Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=100_000)]
    """Names of its features; without names of its own a dataset's columns are x0, x1, …"""


Groups = Literal["rows", "columns", "tensor"] | Annotated[tuple[FeatureGroup, ...], Field(min_length=1, max_length=10_000)]


class _OnGroups(_OnWeights):
    groups: Groups = "rows"
    """What is zero together: `rows` (one unit or filter each), `columns` (one input or input channel each), the whole `tensor` (no factor √d: the
    unsquared norm), or for linear models a list of named groups of features, each feature in exactly one."""


class GroupLasso(_OnGroups):
    """R(w) = Σ_g √d_g·‖w_g‖₂, d_g the numbers of the group; one group a `tensor` has no factor. By proximal steps whole groups become zero (Yuan & Lin 2006)."""

    kind: Literal["group_lasso"]


class SparseGroupLasso(_OnGroups):
    """R(w) = l1_ratio·Σ|wᵢ| + (1 − l1_ratio)·Σ_g √d_g·‖w_g‖₂: zero groups, and zeros inside the others (Simon et al. 2013). Its proximal step is that of the
    L1 part followed by that of the groups."""

    kind: Literal["sparse_group_lasso"]
    l1_ratio: Annotated[Number, Searchable(ge=0, le=1)] = 0.5
    """The share of the L1 part."""


class _Constraint(Part):
    on: On = "weights"
    """Which parameters: `weights` (matrices and filters), `all` (biases and norm parameters too), or layer names such as ["layers.0", "head"] (their weights)."""


class NonNegative(_Constraint):
    """w ≥ 0: after every update each negative weight is set to exactly zero (projected gradient; Lawson & Hanson 1974 for least squares)."""

    kind: Literal["non_negative"]


class Box(_Constraint):
    """low ≤ w ≤ high: after every update each weight is cut to the interval."""

    kind: Literal["box"]
    low: Annotated[Number, Searchable()]
    """The smallest value."""
    high: Annotated[Number, Searchable()]
    """The largest value, greater than low."""


class L2Ball(_Constraint):
    """‖w‖₂ ≤ radius, over all these parameters together: after every update w ← w·min(1, radius/‖w‖). The constrained form of `l2`."""

    kind: Literal["l2_ball"]
    radius: Annotated[Number, Searchable(gt=0)]
    """The largest norm."""


class MaxNorm(_Constraint):
    """‖w_i‖₂ ≤ max for every row, the weights into one unit or filter: w_i ← w_i·min(1, max/‖w_i‖) after every update (Srebro et al. 2005; Srivastava et al. 2014)."""

    kind: Literal["max_norm"]
    max: Annotated[Number, Searchable(gt=0)]
    """The largest norm of a row."""


class UnitNorm(_Constraint):
    """‖w_i‖₂ = 1 for every row: w_i ← w_i/‖w_i‖ after every update; a row of zeros stays zero. Not convex (Salimans & Kingma 2016 parametrise the same sphere)."""

    kind: Literal["unit_norm"]


class WeightDecay(_OnWeights):
    """Decoupled: w ← w·(1 − η_t·λ) before the update, as torch's AdamW (Loshchilov & Hutter 2019). Its ledger value is λ·½Σw², which only plain SGD minimises."""

    kind: Literal["weight_decay"]


class StepPenalty(Part):
    """A penalty on the step Δ = w_new − w, over all parameters of the run together; g is the optimizer's direction.

    Unsquared, α‖Δ‖: argmin_Δ ⟨g,Δ⟩ + ‖Δ‖²/2η + α‖Δ‖ = −η·max(0, 1 − α/‖g‖)·g, so nothing moves while ‖g‖ ≤ α.
    Squared, (α/2)‖Δ‖²: Δ = −η/(1 + ηα)·g, a smaller learning rate.
    """

    kind: Literal["step_penalty"]
    lam: Annotated[Strength, Field(alias="lambda")]
    """α, the strength."""
    squared: bool = False
    """Penalise the squared length."""


class VanishingGradient(Part):
    """Ω = mean over rows of Σ_t (‖δ_{t+1} U diag φ′(z_t)‖/‖δ_{t+1}‖ − 1)², δ_t the gradient at the linear output z_t of a recurrent layer and U its
    recurrent matrix: the gradient should keep its length from each time step to the one before (Pascanu et al. 2013, equation 9).

    As there, only the immediate derivative in U joins the gradient: δ and z are held. Summed over the recurrent layers of a net, for the cells `tanh`,
    `relu` and `identity`. λΩ of the batch is the series `penalty/vanishing_gradient`.
    """

    kind: Literal["vanishing_gradient"]
    lam: Annotated[Strength, Field(alias="lambda")]
    """λ, the strength."""


class Dropout(Part):
    """Each activation is 0 with probability `rate`, else divided by 1 − rate; off in evaluation (Srivastava et al. 2014)."""

    kind: Literal["dropout"]
    rate: Annotated[Number, Searchable(ge=0, lt=1)]
    """Probability of zero."""
    on: Literal["inputs", "hidden"] | Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=1000)] = "hidden"
    """Where: the model's `inputs`, the outputs of all `hidden` layers, or the outputs of the named layers."""


class EarlyStopping(Part):
    """A run stops when its metric has not improved for `patience` evaluations (one an epoch); with `restore` it ends with the best weights (Prechelt 1998)."""

    kind: Literal["early_stopping"]
    metric: Literal["loss/val", "accuracy/val"] = "loss/val"
    """What is watched, on the validation split."""
    patience: Annotated[int, Field(ge=1, le=2**53)] = 5
    """Evaluations without improvement that are allowed."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """An improvement smaller than this does not count."""
    restore: bool = True
    """End with the weights of the best evaluation."""


Regularizer = Annotated[
    L1
    | L2
    | ElasticNet
    | GroupLasso
    | SparseGroupLasso
    | WeightDecay
    | NonNegative
    | Box
    | L2Ball
    | MaxNorm
    | UnitNorm
    | StepPenalty
    | VanishingGradient
    | Dropout
    | EarlyStopping,
    Field(discriminator="kind"),
]
