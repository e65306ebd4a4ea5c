"""What a series is, and every series that training can report. Charts draw by `shape`, so a new series needs no new chart."""

from dataclasses import dataclass
from typing import Literal, assert_never

from regtrain.contract.diagnostics import Diagnostics

Shape = Literal["scalar", "per_layer", "per_time"]


@dataclass(frozen=True)
class Series:
    """A named sequence. Per-layer series have one number a layer at each step, in the order of the job's `layers`; per-time series one a time step of
    each recurrent layer, in the order of `places`.
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
    Series("identity/weight_product", "⟨W_l, ∇W_l⟩", "loss", "per_layer", "linear", "none", "equal in all layers of a bias-free homogeneous net; 0 in front of batch norm with ε = 0", "full"),
    Series("identity/bias_product", "⟨b_l, ∇b_l⟩", "loss", "per_layer", "linear", "none", "what a bias adds to the same product", "full"),
    Series("identity/class_sum", "max |Σ_c g_c|", "loss/weight", "scalar", "log", "none", "softmax cross-entropy: the head's gradient summed over classes, 0 up to rounding", "full"),
    Series("identity/batch_norm", "max |⟨w_i,∇w_i⟩ − ε/(var_i+ε)·γ_i∇γ_i|", "loss", "per_layer", "log", "none", "scale invariance of units in front of batch norm, 0 up to rounding for any ε", "full"),
)  # fmt: skip
"""In the order in which they are shown. `penalty/*` stands for one series a regularizer."""

BY_NAME = {series.name: series for series in SERIES}


def series_named(name: str) -> Series | None:
    """The declaration of a series; `penalty/l1` and `penalty/l1.2` are declared by `penalty/*`."""
    return BY_NAME.get("penalty/*" if name.startswith("penalty/") else name)


def places(shape: Shape, *, layers: list[str], times: dict[str, int]) -> list[str]:
    """What the numbers of a point belong to: layers, or their time steps `layers.0.t1` … `layers.0.tT`, `layers.1.t1` …; nothing of a scalar."""
    match shape:
        case "scalar":
            return []
        case "per_layer":
            return layers
        case "per_time":
            return [f"{layer}.t{step}" for layer, steps in times.items() for step in range(1, steps + 1)]
        case _:
            assert_never(shape)
