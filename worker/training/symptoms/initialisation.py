"""What is wrong before the first update: judged from step 0 alone, and from what is known without it."""

from collections.abc import Iterator
from math import exp

import numpy as np

from regtrain.contract.symptoms import Severity, SymptomName
from worker.training.symptoms.known import Known
from worker.training.symptoms.slope import Fall, fall
from worker.training.symptoms.window import Array, Finding, Past, Window, sure

REACH = 6.0
"""By how much ln ‖δ‖² may change between the hidden layers of a net that is to be trained (Schoenholz et al. 2017: six depth scales)."""
NORMALIZED_REACH = 24.0
"""The same for a rise in nets with normalizations: a scale-invariant layer grows with its gradient until its steps are short again. Batch norm alone
makes 0.38 a layer: 34 healthy layers make 13."""
UNEVEN = 100.0
LARGE = 30.0
"""rms of inputs: pixels from 0 to 255 have about 100, standardized columns 1."""
SATURATED = 0.5


def unscaled_inputs(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """max σ_i/min σ_j, or max |mean_i|/σ_i, above 100; or rms of all inputs above 30 (LeCun et al. 1998)."""
    for place in _reporting(window):
        yield from _unscaled(known.own(place), place)


def _unscaled(known: Known, place: int) -> Iterator[Finding]:
    """Of one run's inputs."""
    columns = known.columns
    if columns is None or not len(columns.deviation):
        return
    low, high, far = int(columns.deviation.argmin()), int(columns.deviation.argmax()), int((np.abs(columns.mean) / columns.deviation).argmax())
    uneven, offset = float(columns.deviation[high] / columns.deviation[low]), float(abs(columns.mean[far]) / columns.deviation[far])
    rms = known.input_rms or 0.0
    if uneven > UNEVEN:
        value, bound, words = uneven, UNEVEN, {"why": f"column {columns.names[high]} has {uneven:.3g} times the deviation of column {columns.names[low]}"}
    elif offset > UNEVEN:
        value, bound, words = offset, UNEVEN, {"why": f"the mean of column {columns.names[far]} is {offset:.3g} times its deviation"}
    elif rms > LARGE:
        value, bound, words = rms, LARGE, {"why": f"the inputs have an rms of {rms:.3g}, not of about 1"}
    else:
        return
    severity: Severity = "warning" if len(known.layers) > 1 and not known.own_steps else "note"  # a linear model is slower for it, and no worse
    yield Finding("unscaled_inputs", place, None, 0, value, bound, severity, 1.0, {**words})


def wrong_output(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """A squared loss on labels 0 … C − 1, C > 2."""
    if known.unordered:
        for place in _reporting(window):
            yield Finding("wrong_output", place, known.layers[-1], 0, float(known.unordered), 2.0, "warning", 1.0, {"classes": float(known.unordered)})


def penalty_wasted(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """f(αw) = f(w) in front of batch norm: R(w) shrinks w, which only lengthens the steps (van Laarhoven 2017)."""
    if known.wasted is not None:
        for place in _reporting(window):
            yield Finding("penalty_wasted", place, known.wasted, 0, 1.0, 0.0, "note", 1.0, {})


def equal_units(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """‖W_l‖ = ‖W_{l+1}‖ = 0 of a hidden layer l: nothing tells its units apart. Residual blocks of zeros are the identity, and a head of zeros alone is harmless."""
    if not (window.has("weight/norm") and known.fresh) or known.residual:
        return
    zero = window.values["weight/norm"][0] == 0  # (R, L)
    alike = zero[:, :-1] & zero[:, 1:]
    for place in np.flatnonzero(alike.any(1)):
        layers = float(alike[place].sum())
        yield Finding("equal_units", int(place), known.layers[int(np.argmax(alike[place]))], 0, 0.0, 0.0, "critical", 1.0, {"layers": layers})


def poor_first_loss(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """L_0 − ln C > ln 100, so that the right class gets less than a hundredth of 1/C on geometric average; squared losses: L_0 > 10·mean y²."""
    if not known.fresh:
        return
    ratio = window.values["loss/train"][0] / known.nothing
    for place in np.flatnonzero(ratio > known.first_bound):
        value, bound = float(ratio[place]), known.first_bound
        evidence = {"loss": float(window.values["loss/train"][0, place]), "nothing": float(known.nothing[place])}
        yield Finding("poor_first_loss", int(place), known.layers[-1], 0, value, bound, "warning", sure(value, bound), {**evidence})


def saturated(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Share of a layer's activations with |φ′| < max φ′/100 above ½ (Glorot & Bengio 2010)."""
    if not window.has("activation/saturated"):
        return
    share = window.values["activation/saturated"][0]  # (R, L)
    for place in np.flatnonzero(share.max(1) > SATURATED):
        layer = int(np.argmax(share[place] > SATURATED))  # the first that is: those behind it read its ±1
        value = float(share[place, layer])
        yield Finding("saturated", int(place), known.layers[layer], 0, value, SATURATED, "warning", sure(value, SATURATED), {"layers": float((share[place] > SATURATED).sum())})


def vanishing_signal(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The fitted fall of ln ‖δ_l‖² over the hidden layers is below −6 with its whole 95 % interval (Poole et al. 2016; Schoenholz et al. 2017)."""
    for place, found in falls(known, _first(known, window)):
        if found.fitted < 0 and found.beyond(REACH):
            yield _signal("vanishing_signal", known, place, found, REACH)


def exploding_signal(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The fitted rise is above 6, or above 24 with normalizations."""
    reach = NORMALIZED_REACH if known.normalized else REACH
    for place, found in falls(known, _first(known, window)):
        if found.fitted > 0 and found.beyond(reach):
            yield _signal("exploding_signal", known, place, found, reach)


def falls(known: Known, rms: Array | None) -> Iterator[tuple[int, Fall]]:
    """Of every run with three hidden layers whose signal gradient is not 0.  rms δ (R, L)"""
    if rms is None or not known.feedforward:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = 2 * np.log(rms[:, :-1].astype(np.float64)) + np.log(np.array(known.sizes[:-1]))
    for place, run in enumerate(logs):
        alive = run[np.isfinite(run)]
        if (found := fall(alive)) is not None and np.isfinite(run[-1]):
            yield place, found


def _first(known: Known, window: Window) -> Array | None:
    return window.values["signal/backward"][0] if window.has("signal/backward") and known.fresh else None


def _signal(symptom: SymptomName, known: Known, place: int, found: Fall, reach: float) -> Finding:
    steps, sign = found.layers - 1, 1 if found.fitted > 0 else -1
    evidence = {
        "seen": exp(found.seen / 2), "chi": exp(found.fitted / steps), "chi_low": exp((found.fitted - found.half) / steps), "chi_high": exp((found.fitted + found.half) / steps),
        "layers": float(found.layers), "last": known.layers[-2],
    }  # fmt: skip
    return Finding(symptom, place, known.layers[0], 0, exp(min(found.fitted / 2, 700.0)), exp(sign * reach / 2), "critical", found.confidence(reach), {**evidence})


def _reporting(window: Window) -> list[int]:
    return np.flatnonzero(window.counts > 0).tolist()


CRITERIA = (unscaled_inputs, wrong_output, equal_units, poor_first_loss, saturated, vanishing_signal, exploding_signal, penalty_wasted)
