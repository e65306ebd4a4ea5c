"""What can be wrong with a run: every symptom, by what it is recognised, where that is from, and what it brings about. In causal order: causes first.

A symptom is reported by training with its evidence; `diagnosis.py` orders and words what has been reported.
"""

from dataclasses import dataclass
from typing import Literal, get_args

SymptomName = Literal[
    "unscaled_inputs",
    "wrong_output",
    "poor_first_loss",
    "saturated",
    "vanishing_signal",
    "exploding_signal",
    "class_imbalance",
    "penalty_dominates",
    "penalty_invisible",
    "penalty_fights",
    "penalty_wasted",
    "rate_too_high",
    "rate_too_low",
    "non_finite",
    "dead_units",
    "vanishing_gradient",
    "exploding_gradient",
    "no_gradient",
    "no_change",
    "clip_always",
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


SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "unscaled_inputs", "initialisation", "a column's deviation, or its mean, is more than 100 times another's deviation", "LeCun et al. 1998, Efficient BackProp, 4.3",
        ("saturated", "exploding_signal", "vanishing_signal", "rate_too_high", "rate_too_low", "plateau", "dead_units", "non_finite", "oscillating"),
    ),
    Symptom(
        "wrong_output", "initialisation", "the last activation cannot reach the targets that the loss asks for", "Goodfellow et al. 2016, Deep Learning, 6.2.2",
        ("plateau", "underfitting", "no_gradient"),
    ),
    Symptom("poor_first_loss", "initialisation", "the loss before the first update is far from that of a model that knows nothing: ln C", "Karpathy 2019; regtrain's theory", ("exploding_gradient", "rate_too_high")),
    Symptom(
        "saturated", "initialisation", "most activations of a layer lie where |φ′| is below 1 % of its maximum", "Glorot & Bengio 2010",
        ("vanishing_signal", "vanishing_gradient", "no_gradient", "plateau", "underfitting"),
    ),
    Symptom(
        "vanishing_signal", "initialisation", "‖δ_l‖² falls from the head to the first layer by a slope whose confidence interval excludes what a trainable net has",
        "Poole et al. 2016; Schoenholz et al. 2017", ("vanishing_gradient", "no_change", "plateau", "underfitting"),
    ),
    Symptom(
        "exploding_signal", "initialisation", "‖δ_l‖² rises from the head to the first layer by such a slope", "Poole et al. 2016; Schoenholz et al. 2017",
        ("exploding_gradient", "rate_too_high", "non_finite", "oscillating", "dead_units", "clip_always"),
    ),
    Symptom("class_imbalance", "initialisation", "a class has fewer than a tenth of the rows of the largest, and is never predicted", "He & Garcia 2009", ("underfitting", "plateau")),
    Symptom(
        "penalty_dominates", "training", "the gradient of the penalties is many times that of the loss and lets no layer follow it", "regtrain's ledger",
        ("vanishing_gradient", "plateau", "underfitting", "no_gradient"),
    ),
    Symptom("penalty_invisible", "training", "the gradient of the penalties is below a thousandth of the loss's in every layer, all the time", "regtrain's ledger", ("overfitting",)),
    Symptom("penalty_fights", "training", "the gradient of the penalties points against that of the loss, and they are of one size", "regtrain's ledger", ("plateau",)),
    Symptom("penalty_wasted", "training", "a penalty acts on weights whose scale the next normalization takes away", "van Laarhoven 2017"),
    Symptom(
        "rate_too_high", "training", "updates are of the size of the weights, or lr times the sharpness is above the bound of stability", "Cohen et al. 2021; LeCun et al. 1998",
        ("non_finite", "exploding_gradient", "dead_units", "oscillating", "no_gradient", "plateau"),
    ),
    Symptom("rate_too_low", "training", "updates are so small that the budget cannot move the weights by their own size, while the loss still falls", "Bottou 2012", ("plateau", "underfitting", "no_change")),
    Symptom("non_finite", "training", "a loss, gradient or weight is NaN or infinite", "IEEE 754"),
    Symptom("dead_units", "training", "units that were 0 on all rows: the 95 % upper bound of their firing probability is below 1/1000", "Lu et al. 2020", ("vanishing_gradient", "no_gradient", "plateau", "underfitting")),
    Symptom("vanishing_gradient", "training", "the gradient of the first layers is far below that of the last, over a window of steps", "Hochreiter 1991; Bengio et al. 1994", ("no_change", "plateau", "underfitting")),
    Symptom("exploding_gradient", "training", "the gradient's norm rises by orders of magnitude within a window", "Pascanu et al. 2013", ("non_finite", "oscillating", "clip_always", "dead_units", "plateau")),
    Symptom("no_gradient", "training", "a layer's gradient is exactly 0 at every step of a window", "regtrain", ("no_change", "plateau", "underfitting")),
    Symptom("no_change", "training", "a layer has a gradient and its weights do not move", "regtrain", ("plateau", "underfitting")),
    Symptom("clip_always", "training", "the clip cuts (nearly) every step: the norm of the update is the clip's, not the gradient's", "Pascanu et al. 2013", ("plateau",)),
    Symptom("oscillating", "training", "the loss goes up and down by more than its trend, beyond the noise of the batches", "Cohen et al. 2021", ("plateau",)),
    Symptom("plateau", "training", "the loss has stopped falling far above what a simple model reaches", "regtrain", ("underfitting",)),
    Symptom("label_noise", "generalisation", "rows keep the loss of a contradiction while the others are learned", "Arpit et al. 2017", ("overfitting",)),
    Symptom("overfitting", "generalisation", "the validation loss has risen for good while the training loss goes on falling", "Prechelt 1998"),
    Symptom("underfitting", "generalisation", "training and validation loss are alike and both near that of a model that knows nothing", "Goodfellow et al. 2016, 5.2"),
)  # fmt: skip

BY_NAME: dict[str, Symptom] = {symptom.name: symptom for symptom in SYMPTOMS}
assert tuple(BY_NAME) == get_args(SymptomName)
