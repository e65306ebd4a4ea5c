"""What can be wrong with a run: every symptom, by what it is recognised, where that is from, and what it brings about. In causal order: causes first.

A symptom is reported by training with its evidence; `diagnosis.py` orders and words what has been reported.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from regtrain.contract.diagnostics import Diagnostics, includes

SymptomName = Literal[
    "unscaled_inputs",
    "wrong_output",
    "equal_units",
    "exploding_signal",
    "poor_first_loss",
    "class_imbalance",
    "penalty_dominates",
    "penalty_invisible",
    "penalty_fights",
    "penalty_wasted",
    "rate_too_high",
    "saturated",
    "vanishing_signal",
    "exploding_gradient",
    "non_finite",
    "clip_always",
    "rate_too_low",
    "dead_units",
    "vanishing_gradient",
    "no_gradient",
    "no_change",
    "oscillating",
    "plateau",
    "label_noise",
    "overfitting",
    "underfitting",
]
Phase = Literal["initialisation", "training", "generalisation"]
Severity = Literal["note", "warning", "critical"]


@dataclass(frozen=True)
class Symptom:
    """One kind of thing that can be wrong."""

    name: SymptomName
    phase: Phase
    criterion: str
    """When it is reported; every criterion is free of the scale of the loss."""
    source: str
    brings: tuple[SymptomName, ...] = ()
    """Symptoms that it may bring about: they are listed under it."""
    needs: Diagnostics = "standard"
    """The cheapest preset whose series can show it."""


SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "unscaled_inputs", "initialisation", "a column's deviation, or its mean, is more than 100 times another's deviation, or the inputs of a net have an rms above 30",
        "LeCun et al. 1998, Efficient BackProp, 4.3",
        ("poor_first_loss", "saturated", "exploding_signal", "vanishing_signal", "rate_too_high", "rate_too_low", "non_finite", "dead_units", "no_gradient", "oscillating", "plateau", "underfitting"),
        needs="off",
    ),
    Symptom(
        "wrong_output", "initialisation", "a squared loss on the labels of more than two classes, whose numbers have no order and no distances", "Goodfellow et al. 2016, Deep Learning, 6.2.2",
        ("poor_first_loss", "plateau", "underfitting", "no_gradient"), needs="off",
    ),
    Symptom(
        "equal_units", "initialisation", "before the first update the weights of a hidden layer and those behind it are all 0: its units are alike, and get the same gradient for ever",
        "Goodfellow et al. 2016, Deep Learning, 8.4", ("dead_units", "vanishing_gradient", "no_gradient", "no_change", "plateau", "underfitting"),
    ),
    Symptom(
        "exploding_signal", "initialisation", "ln ‖δ_l‖² rises so by more than 6; in front of a normalization, which takes the scale away, by more than 24", "Poole et al. 2016; Schoenholz et al. 2017",
        ("poor_first_loss", "exploding_gradient", "rate_too_high", "non_finite", "dead_units", "no_gradient", "clip_always", "oscillating", "plateau", "underfitting"),
    ),
    Symptom(
        "poor_first_loss", "initialisation", "the loss before the first update is more than ln 100 above ln C: on geometric average the right class gets less than a hundredth of what guessing gives it; squared losses: more than 10 times the mean square of the target",
        "Karpathy 2019, A Recipe for Training Neural Networks", ("rate_too_high", "exploding_gradient", "non_finite"), needs="off",
    ),
    Symptom(
        "class_imbalance", "initialisation", "a class has fewer than a tenth of the rows of the largest, and five evaluations in a row predict the largest alone", "He & Garcia 2009",
        ("plateau", "underfitting"), needs="off",
    ),
    Symptom(
        "penalty_dominates", "training", "in every penalised layer the gradient of the penalties is more than 10 times that of the loss, or has brought the weights below a hundredth of their first norm; or a constraint has, in any layer that it holds",
        "regtrain: the penalty ledger", ("dead_units", "vanishing_gradient", "no_gradient", "no_change", "plateau", "underfitting"),
    ),
    Symptom("penalty_invisible", "training", "in every layer and wherever it is read the gradient of the penalties is below a thousandth of the loss's", "regtrain: the penalty ledger", ("overfitting",)),
    Symptom(
        "penalty_fights", "training", "in every penalised layer the gradient of the penalties is the loss's, turned round (cosine below −0.9, norms within a factor of 2), while the loss is above half of a constant's",
        "regtrain: the penalty ledger", ("plateau", "underfitting"),
    ),
    Symptom("penalty_wasted", "training", "a penalty acts on weights whose scale a batch normalization takes away: it changes the step size, not the function", "van Laarhoven 2017", needs="off"),
    Symptom(
        "rate_too_high", "training",
        "the loss of a window (median of its eighths) is twice that of knowing nothing and twice its first; or above a constant's after it had been half of that; or, behind 128 updates that are longer than the weights together, above 1.2 times it; or an update is as long as all weights while the loss is a constant's; or the loss doubled before it ceased to be finite; `full`: lr·sharpness is twice its bound",
        "LeCun et al. 1998; Cohen et al. 2021", ("saturated", "exploding_gradient", "non_finite", "dead_units", "vanishing_gradient", "no_gradient", "oscillating", "plateau", "underfitting"),
    ),
    Symptom(
        "saturated", "initialisation", "more than half of a layer's activations lie where |φ′| is below 1 % of its maximum; once it trains, more than nine tenths", "Glorot & Bengio 2010",
        ("vanishing_signal", "vanishing_gradient", "no_gradient", "plateau", "underfitting"), needs="full",
    ),
    Symptom(
        "vanishing_signal", "initialisation", "ln ‖δ_l‖² falls by more than 6 from the last hidden layer to the first, in itself and at the near end of the 95 % interval of its fitted slope",
        "Poole et al. 2016; Schoenholz et al. 2017", ("vanishing_gradient", "no_change", "rate_too_low", "plateau", "underfitting"),
    ),
    Symptom(
        "exploding_gradient", "training", "the gradient's norm rises to more than 100 times its median in the window before and more than 10 times the largest so far, and the loss to more than 10 times its own and above a constant's",
        "Pascanu et al. 2013", ("non_finite", "dead_units", "no_gradient", "clip_always", "oscillating", "plateau", "underfitting"), needs="light",
    ),
    Symptom("non_finite", "training", "a loss or an entry of a gradient is NaN or infinite", "IEEE 754", needs="off"),
    Symptom("clip_always", "training", "the clip cuts 99 % of all steps: their length is the clip's, not the gradient's", "Pascanu et al. 2013", ("rate_too_low", "no_change", "plateau", "underfitting"), needs="light"),
    Symptom(
        "rate_too_low", "training", "all updates of the budget together are shorter than a twentieth of the weights, the loss is within a tenth of what it was in the first 32 updates and the gradient above half of its own", "Bottou 2012",
        ("plateau", "underfitting"),
    ),
    Symptom(
        "dead_units", "training", "more than half of a layer's units fire on fewer than 1 of 1000 rows: the least share of them with which those that are 0 on each of up to 2,995 distinct rows can be explained",
        "Lu et al. 2020, Dying ReLU and Initialization", ("vanishing_gradient", "no_gradient", "plateau", "underfitting"),
    ),
    Symptom(
        "vanishing_gradient", "training", "over a window the medians of ln ‖δ_l‖² fall as for vanishing_signal, and the rms of the weight gradient falls with them by more than e³",
        "Hochreiter 1991; Bengio et al. 1994", ("no_change", "plateau", "underfitting"),
    ),
    Symptom(
        "no_gradient", "training", "a layer's gradient is exactly 0 in 31 readings in a row or more, while the loss is above a tenth of a constant's", "Lu et al. 2020",
        ("no_change", "plateau", "underfitting"), needs="light",
    ),
    Symptom(
        "no_change", "training", "a layer's gradient is above a tenth of its first one, and its updates are below the rounding of its weights", "IEEE 754", ("plateau", "underfitting"),
    ),
    Symptom(
        "oscillating", "training", "in ten evaluations the validation loss (in full batches: in a window the training loss) goes up by more than e^2.5 altogether, turns at least six times, and stays above a tenth of a constant's",
        "Cohen et al. 2021", ("plateau", "underfitting"), needs="off",
    ),
    Symptom("plateau", "training", "behind half of the budget the loss is above nine tenths of a constant's and changes by less than 1 % within a window", "regtrain: the best constant", ("underfitting",), needs="off"),
    Symptom(
        "label_noise", "generalisation", "at the end of the budget the training loss is below nine tenths of a constant's, and no evaluation has ever been below 0.95 of it: what is learned holds for the rows alone that it was learned from. Noise that leaves the labels half right is not seen by this",
        "Arpit et al. 2017; Zhang et al. 2017", ("overfitting",), needs="off",
    ),
    Symptom(
        "overfitting", "generalisation", "the validation loss has been above 1.2 times its best in each of the last three evaluations, and at least five after that best, while the training loss fell by a tenth; a note where the rise is below a tenth of a constant's loss",
        "Prechelt 1998, Early Stopping: But When?", needs="off",
    ),
    Symptom("underfitting", "generalisation", "at the end of the budget the training loss is above 0.95 times that of the best constant", "Goodfellow et al. 2016, Deep Learning, 5.2", needs="off"),
)  # fmt: skip
"""A model that knows nothing answers 0; the best constant answers the mean of the targets, or the shares of the classes."""

OF_INITIAL_WEIGHTS: frozenset[SymptomName] = frozenset({"equal_units", "poor_first_loss", "vanishing_signal", "exploding_signal", "rate_too_low"})
"""Looked for in nets that draw their weights: one that goes on from trained weights never shows them."""

BY_NAME: dict[str, Symptom] = {symptom.name: symptom for symptom in SYMPTOMS}
assert tuple(BY_NAME) == get_args(SymptomName)


def judged(preset: Diagnostics) -> list[SymptomName]:
    """What a job with this preset can be found to have; the others are not judged."""
    return [symptom.name for symptom in SYMPTOMS if includes(preset, symptom.needs)]
