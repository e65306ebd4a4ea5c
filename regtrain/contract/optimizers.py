"""How gradients become updates: optimizers, learning-rate schedules, clipping. Computed in worker/training/optimizers.py."""

from typing import Annotated, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.ranges import Number, Searchable

Tolerance = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[Number, Searchable(gt=0)]


class _Schedule(Part):
    warmup_steps: Annotated[int, Field(ge=0, le=2**53)] = 0
    """The learning rate rises linearly over this many steps: factor (t+1)/(warmup_steps+1) at step t."""


class Constant(_Schedule):
    """η_t = lr."""

    kind: Literal["constant"]


class Step(_Schedule):
    """η_t = lr · factor^⌊(t − warmup)/every⌋."""

    kind: Literal["step"]
    every: Annotated[int, Field(ge=1, le=2**53)]
    """Steps between two reductions."""
    factor: Annotated[Number, Searchable(gt=0, le=1)] = 0.1
    """What the learning rate is multiplied with."""


class Cosine(_Schedule):
    """η_t = lr · (low + (1 − low) · ½(1 + cos(π·(t − warmup)/(T − warmup)))), T the steps of the budget (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"]
    low: Annotated[Number, Searchable(ge=0, le=1)] = 0.0
    """The share of lr that is left at the end."""


Schedule = Annotated[Constant | Step | Cosine, Field(discriminator="kind")]


class Sgd(Part):
    """v ← μ·v + g;  w ← w − η·v, with Nesterov w ← w − η·(g + μ·v). Equal to torch.optim.SGD with dampening 0."""

    kind: Literal["sgd"]
    lr: LearningRate
    """Learning rate η."""
    momentum: Annotated[Number, Searchable(ge=0, lt=1)] = 0.0
    """μ."""
    nesterov: bool = False
    """Look ahead along the momentum (Sutskever et al. 2013)."""
    schedule: Schedule = Constant(kind="constant")
    """Learning rate over the steps."""


class Adam(Part):
    """m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  w ← w − η·m̂/(√v̂ + ε) with bias-corrected m̂, v̂ (Kingma & Ba 2015).

    With the regularizer `weight_decay` it is AdamW (Loshchilov & Hutter 2019).
    """

    kind: Literal["adam"]
    lr: LearningRate = 0.001
    """Learning rate η."""
    beta1: Annotated[Number, Searchable(ge=0, lt=1)] = 0.9
    """β₁, the memory of the mean."""
    beta2: Annotated[Number, Searchable(ge=0, lt=1)] = 0.999
    """β₂, the memory of the square."""
    eps: Annotated[Number, Searchable(gt=0)] = 1e-8
    """ε, added to the root."""
    schedule: Schedule = Constant(kind="constant")
    """Learning rate over the steps."""


class Proximal(Part):
    """w ← prox_s(y − s·∇f(y)), y = w + β·(w − w_before): proximal gradient descent on the full batch, accelerated (FISTA; Beck & Teboulle 2009) and restarted
    whenever a step goes against the momentum (O'Donoghue & Candès 2015). It chooses its own step s; `learning_rate` shows it.
    """

    kind: Literal["proximal"]
    accelerated: bool = True
    """FISTA with restarts; without it ISTA, β = 0."""
    step: Literal["auto", "backtracking"] = "auto"
    """`auto`: 1/L for linear models, L the largest curvature of loss and l2 on these rows; else, and with `backtracking`, the largest s that keeps
    ⟨∇f(w) − ∇f(y), w − y⟩ ≤ ‖w − y‖²/s, halved until it does and a tenth larger at each new step."""
    tolerance: Tolerance = 0.0
    """A run whose objective can fall by about this share at most has converged and stops: max|w − prox(w − s·∇f)|/s · Σ|w| ≤ tolerance · objective. 0: never."""


class Lbfgs(Part):
    """w ← w − s·H·∇f(w), H from the last `history` steps and gradients by the two-loop recursion (Nocedal 1980; Liu & Nocedal 1989), s by a line search for
    the weak Wolfe conditions (Lewis & Overton 2013; approximate ones near the minimum, Hager & Zhang 2005). Full batch, for objectives without kinks.
    """

    kind: Literal["lbfgs"]
    tolerance: Tolerance = 0.0
    """A run whose objective can fall by about this share at most has converged and stops: max|∇f| · Σ|w| ≤ tolerance · objective. 0: never."""
    history: Annotated[int, Field(ge=1, le=100)] = 10
    """How many steps it remembers."""


Optimizer = Annotated[Sgd | Adam | Proximal | Lbfgs, Field(discriminator="kind")]


class GlobalNorm(Part):
    """g ← g · min(1, max/‖g‖) over all parameters of the run together (Pascanu et al. 2013). torch's 1e-6 in the denominator is left out."""

    kind: Literal["global_norm"]
    max: Annotated[Number, Searchable(gt=0)]
    """The largest norm that passes unchanged."""


class ClipValue(Part):
    """Every entry of g is cut to [−max, max]. Changes the direction."""

    kind: Literal["value"]
    max: Annotated[Number, Searchable(gt=0)]
    """The largest absolute entry that passes unchanged."""


Clip = Annotated[GlobalNorm | ClipValue, Field(discriminator="kind")]
