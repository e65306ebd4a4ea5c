"""What a series is, and every series that training can report. Charts draw by `shape`, so a new series needs no new chart."""

from dataclasses import dataclass
from typing import Literal, assert_never

from regtrain.contract.diagnostics import Diagnostics

Shape = Literal["scalar", "per_layer", "per_time", "histogram"]


@dataclass(frozen=True)
class Series:
    """A named sequence. Per-layer series have one number a layer at each step, in the order of the job's `layers`; per-time series one a time step of
    each recurrent layer, histograms one a bin of each layer, in the order of `places`.
    """

    name: str
    symbol: str
    unit: str
    shape: Shape
    scale: Literal["linear", "log"]
    better: Literal["lower", "higher", "none"]
    meaning: str
    preset: Diagnostics = "off"
    """The cheapest preset that records it."""
    after: bool = False
    """Its point t follows t updates, where most series' point t precedes update t."""


SERIES: tuple[Series, ...] = (
    Series("loss/train", "L", "loss", "scalar", "log", "lower", "mean loss of the batch before update t"),
    Series("loss/val", "L_val", "loss", "scalar", "log", "lower", "mean loss of the validation rows after t updates: at 0 and once an epoch", after=True),
    Series("accuracy/val", "", "share", "scalar", "linear", "higher", "share of validation rows classified correctly after t updates", after=True),
    Series("objective/train", "J", "loss", "scalar", "log", "lower", "loss/train plus all penalties"),
    Series("penalty/*", "λR", "loss", "scalar", "log", "none", "value of one penalty at the weights before update t, λ included"),
    Series("strength/*", "λ", "", "scalar", "log", "none", "strength of a penalty that adapts itself, after t updates: at 0 and once an epoch", after=True),
    Series("learning_rate", "η", "", "scalar", "log", "none", "learning rate of update t"),
    Series("gradient/total", "‖g‖", "loss/weight", "scalar", "log", "none", "norm over all parameters of the data's own gradient", "light"),
    Series("gradient/norm", "‖g_l‖", "loss/weight", "per_layer", "log", "none", "norm of the loss gradient of the layer's weight tensor, before penalties and clipping", "light"),
    Series("gradient/rms", "rms g_l", "loss/weight", "per_layer", "log", "none", "root mean square of the same", "standard"),
    Series("gradient/nonfinite", "", "entries", "per_layer", "linear", "lower", "NaN and infinite entries of the loss gradient of the layer's weight tensor", "light"),
    Series("gradient/clipped", "", "0 or 1", "scalar", "linear", "none", "1 where clipping changed the gradient of the step; its mean is the clip rate", "light"),
    Series("signal/backward", "rms δ_l", "loss/activation", "per_layer", "log", "none", "root mean square of ∂(mean loss)/∂(linear output of the layer)", "standard"),
    Series("signal/forward", "rms h_l", "", "per_layer", "log", "none", "root mean square of the linear output of the layer", "standard"),
    Series("signal/time", "rms δ_t", "loss/activation", "per_time", "log", "none", "root mean square of ∂(mean loss)/∂(W·x_t + b) at every time step of a recurrent layer, on the first batch of each epoch", "standard"),
    Series("weight/norm", "‖w_l‖", "weight", "per_layer", "log", "none", "norm of the layer's weight tensor before update t", "standard"),
    Series("update/ratio", "‖Δw_l‖/‖w_l‖", "", "per_layer", "log", "none", "norm of update t over the norm of the weights before it", "standard"),
    Series("penalty_gradient/norm", "‖λ∇R_l‖", "loss/weight", "per_layer", "log", "none", "norm of the gradient of all weight penalties together in the layer's weight tensor", "standard"),
    Series("penalty_gradient/cosine", "cos(λ∇R_l, g_l)", "", "per_layer", "linear", "none", "their angle to the loss gradient: −1 is a penalty that fights the loss", "standard"),
    Series("decrease/expected", "−⟨g, Δ⟩", "loss", "scalar", "linear", "higher", "what the last update was to take from the loss of its batch, to first order", "full", after=True),
    Series("decrease/quadratic", "−⟨g, Δ⟩ − ½ΔᵀHΔ", "loss", "scalar", "linear", "higher", "the same with the curvature of the loss", "full", after=True),
    Series("decrease/actual", "L(w − Δ) − L(w)", "loss", "scalar", "linear", "higher", "what it took: dropout and batch statistics as in the update", "full", after=True),
    Series("curvature/sharpness", "λ_max(H)", "loss/weight²", "scalar", "log", "none", "largest eigenvalue of the Hessian of the loss on up to 256 training rows, by 10 Lanczos steps; plain gradient descent is stable below 2/η", "full", after=True),
    Series("noise/trace", "tr Σ", "(loss/weight)²", "scalar", "log", "none", "variance of one row's gradient, summed over all parameters, from up to 256 training rows", "full", after=True),
    Series("noise/gradient", "‖G‖²", "(loss/weight)²", "scalar", "linear", "none", "squared norm of the mean gradient, unbiased; below 0 where it is lost in the noise", "full", after=True),
    Series("noise/scale", "tr Σ/‖G‖²", "rows", "scalar", "log", "none", "simple noise scale: the batch size at which noise and gradient are alike; infinite where the gradient is lost in the noise", "full", after=True),
    Series("gradient/validation_cosine", "cos(g, g_val)", "", "scalar", "linear", "higher", "angle between the gradients on training and on validation rows: near 0 training no longer helps the held-out rows", "full", after=True),
    Series("gradient/successive_cosine", "cos(g_t, g_{t+1})", "", "per_layer", "linear", "none", "angle between the gradients of the last update and of the next, in the layer's weight tensor: near 1 steps go one way, near 0 batches disagree, below 0 they go to and fro", "full", after=True),
    Series("histogram/weight", "w_l", "entries", "histogram", "linear", "none", "weights of the layer by sign and power of two", "full", after=True),
    Series("histogram/gradient", "g_l", "entries", "histogram", "linear", "none", "entries of the layer's gradient on up to 256 training rows, by sign and power of two", "full", after=True),
    Series("histogram/update", "Δw_l", "entries", "histogram", "linear", "none", "entries of the last update of the layer's weights, by sign and power of two", "full", after=True),
    Series("activation/dead", "", "share", "per_layer", "linear", "lower", "ReLU: share of the layer's units (channels) that are 0 on every row (and pixel) of the batch", "full"),
    Series("activation/silent", "", "share", "per_layer", "linear", "lower", "ReLU: share of the layer's units (channels) that fire on none of up to 2,995 distinct training rows, after t updates", "standard", after=True),
    Series("histogram/firing", "", "units", "histogram", "linear", "none", "ReLU and its kin: units of the layer by the share of those rows on which they fire, in powers of two; 0: on none", "standard", after=True),
    Series("activation/firing", "", "share", "per_layer", "linear", "none", "ReLU and its kin: share of the layer's activations that are positive; 0 for the head, which has none", "full"),
    Series("activation/saturated", "", "share", "per_layer", "linear", "lower", "sigmoid, tanh, softsign: share of the layer's activations where |φ′| is below 1 % of its maximum: |z| > 5.99, 2.99, 9", "full"),
    Series("identity/weight_product", "⟨W_l, ∇W_l⟩", "loss", "per_layer", "linear", "none", "equal in all layers of a bias-free homogeneous net; 0 in front of batch norm with ε = 0", "full"),
    Series("identity/bias_product", "⟨b_l, ∇b_l⟩", "loss", "per_layer", "linear", "none", "what a bias adds to the same product", "full"),
    Series("identity/excess", "", "rounding bounds", "per_layer", "log", "lower", "how far the exact laws that hold in this layer are missed, in units of what rounding explains: beyond 1 the way back is wrong, or the machine", "full"),
    Series("identity/class_sum", "max |Σ_c g_c|", "loss/weight", "scalar", "log", "none", "softmax cross-entropy: the head's gradient summed over classes, 0 up to rounding", "full"),
    Series("identity/batch_norm", "max |⟨w_i,∇w_i⟩ − ε/(var_i+ε)·γ_i∇γ_i|", "loss", "per_layer", "log", "none", "scale invariance of units in front of batch norm, 0 up to rounding for any ε", "full"),
)  # fmt: skip
"""In the order in which they are shown. `penalty/*` and `strength/*` stand for one series a regularizer."""

LOWEST, HIGHEST = -40, 8
"""Powers of two of the outermost bins of a histogram; they take what lies beyond, too."""

BINS: tuple[str, ...] = (
    *(f"-2^{e}" for e in range(HIGHEST, LOWEST - 1, -1)),
    "0",
    *(f"2^{e}" for e in range(LOWEST, HIGHEST + 1)),
    "nonfinite",
)
"""Of every histogram, in rising order: `2^3` counts 8 ≤ x < 16, `-2^3` counts −16 < x ≤ −8. Fixed, so that histograms can be added and compared."""

BY_NAME = {series.name: series for series in SERIES}


def series_named(name: str) -> Series | None:
    """The declaration of a series; `penalty/l1` and `penalty/l1.2` are declared by `penalty/*`, `strength/l2` by `strength/*`."""
    family = name.split("/")[0] + "/*"
    return BY_NAME.get(family if family in BY_NAME else name)


def places(shape: Shape, *, layers: list[str], times: dict[str, int]) -> list[str]:
    """What the numbers of a point belong to: layers, their time steps `layers.0.t1` … `layers.0.tT`, `layers.1.t1` …, or their bins `head.2^-3`; nothing of a scalar."""
    match shape:
        case "scalar":
            return []
        case "per_layer":
            return layers
        case "per_time":
            return [f"{layer}.t{step}" for layer, steps in times.items() for step in range(1, steps + 1)]
        case "histogram":
            return [f"{layer}.{bin}" for layer in layers for bin in BINS]
        case _:
            assert_never(shape)
