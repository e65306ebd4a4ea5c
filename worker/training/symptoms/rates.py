"""What the lengths of the steps do: a learning rate that is too high or too low, by the losses and the updates that it leads to."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from worker.training.symptoms.known import Known
from worker.training.symptoms.window import HELD, Array, Finding, Past, Window, ended, judged, moved, sure

WORSE = 2.0
"""A loss of so many times that of knowing nothing, over half a window, is no noise and no start."""
REPLACED = 1.0
"""An update as long as the weights leaves nothing of them."""
ABOVE, SETTLED, WAY = 1.2, 128, 1.0
"""Times the best constant's loss that training which descends is not above behind so many updates, once Σ‖Δw‖/‖w‖ has been 1: the noise of batches, of dropout
and of a poor start is less."""
NEAR = 0.98
"""Share of the best constant's loss above which nothing has been learned."""
UNSTABLE = 2.0
"""Times the bound of plain descent: sharpness hovers just above the bound in healthy full-batch training (Cohen et al. 2021)."""
SHORT, SAME, LEFT, FAR = 0.05, 0.1, 0.5, 0.5


def rate_too_high(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """What was learned is lost again, or worse than nothing is known, or updates replace the weights, or the loss grew until it was no number, or the
    sharpness is beyond twice its bound. Losses of a window: the median of the means of its eighths, which single rows with a large loss do not move."""
    if known.own_steps or not window.has("loss/train"):
        return
    yield from _blown_up(known, window, past)
    if judged(known, window):
        loss = window.level("loss/train")
        yield from _worse(known, window, past, loss)
        yield from _lost(known, window, past, loss)
        yield from _astray(known, window, past, loss)
        if window.has("update/ratio", "weight/norm"):
            unknowing = (loss > NEAR * known.constant) & (known.constant > 0)
            yield from _replaced(known, window, past, unknowing)
    yield from _too_sharp(known, window, past)


def _worse(known: Known, window: Window, past: Past, loss: Array) -> Iterator[Finding]:
    """L > 2·L(outputs 0), and L > 2·L_0: a poor start is another matter."""
    if not known.fresh:
        return
    for place in np.flatnonzero((loss > WORSE * known.nothing) & (loss > WORSE * past.first_loss)):
        value = float(loss[place] / known.nothing[place])
        yield _too_high(int(place), None, window.done - 1, value, WORSE, "the loss is worse than that of outputs 0", loss=float(loss[place]))


def _lost(known: Known, window: Window, past: Past, loss: Array) -> Iterator[Finding]:
    """L had been below half of a constant's loss, and L is above it. Recurrent nets lose what they know to their gradient (Pascanu et al. 2013)."""
    if not known.feedforward:
        return
    for place in np.flatnonzero((past.lowest < HELD * known.constant) & (loss > known.constant)):
        value, bound = float(loss[place] / known.constant[place]), 1.0
        evidence = {"loss": float(loss[place]), "lowest": float(past.lowest[place])}
        yield _too_high(int(place), None, window.done - 1, value, bound, "what had been learned is lost: the loss is above a constant's again", **evidence)


def _astray(known: Known, window: Window, past: Past, loss: Array) -> Iterator[Finding]:
    """Behind 128 updates L > 1.2 times the best constant's, where all updates together are longer than the weights: descent does not descend."""
    if window.first < SETTLED or not known.fresh:
        return
    for place in np.flatnonzero((loss > ABOVE * known.constant) & (known.constant > 0) & (past.moved > WAY)):
        value = float(loss[place] / known.constant[place])
        yield _too_high(int(place), None, window.done - 1, value, ABOVE, "after a long way the loss is above a constant's", loss=float(loss[place]), moved=float(past.moved[place]))


def _replaced(known: Known, window: Window, past: Past, unknowing: NDArray[np.bool_]) -> Iterator[Finding]:
    """‖Δw‖/‖w‖ of all layers together, above 1 at any step, where the loss is a constant's. Weights that a penalty takes to 0 are no measure."""
    lengths = _length(window.values["weight/norm"])
    steps = moved(window) * np.minimum(1.0, lengths / np.fmax(_length(past.first_weight), 1e-300))  # (n, R)
    for place in np.flatnonzero(unknowing & (steps.max(0) >= REPLACED)):
        layer = known.layers[int(window.values["update/ratio"][:, place].max(0).argmax())]
        step, value = int(window.steps["update/ratio"][steps[:, place].argmax()]), float(steps[:, place].max())
        yield _too_high(int(place), layer, step, value, REPLACED, "one update was as long as all weights together", loss=float(window.level("loss/train")[place]))


def _blown_up(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The loss had grown to twice its first, and twice that of outputs 0, before it ceased to be finite."""
    for place in np.flatnonzero(window.counts > 0):
        (_, losses), (_, norms) = window.reached("loss/train", int(place)), window.reached("gradient/total", int(place))
        if np.isfinite(losses[-1]) and np.isfinite(norms[-1:]).all():
            continue
        finite = losses[np.isfinite(losses)]
        start = past.first_loss[place] if window.first > 0 else losses[0]
        level = max(float(start), float(known.nothing[place]))
        if len(finite) and window.first > 0 and np.isfinite(start) and finite.max() > WORSE * level:
            at = window.first + int(np.argmax(losses == finite.max()))
            yield _too_high(int(place), None, at, float(finite.max() / level), WORSE, "the loss grew before it ceased to be finite", loss=float(finite.max()))


def _too_sharp(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """η·λ_max(H) above twice the bound of stable descent in two probes in a row (Cohen et al. 2021)."""
    product = _sharpness(known, window)
    if product is None or window.first == 0:
        return
    for place in np.flatnonzero((product > UNSTABLE) & (past.sharp > 0)):
        value, why = float(product[place]), "lr times the sharpness is above the bound of stability"
        yield Finding("rate_too_high", int(place), None, window.done, value, UNSTABLE, "warning", sure(value, UNSTABLE), {"why": why})


def too_sharp(known: Known, window: Window) -> Array | None:
    """Which runs the last probe of a window found too sharp.  (R,)"""
    product = _sharpness(known, window)
    return None if product is None else (product > UNSTABLE).astype(np.float64)


def _sharpness(known: Known, window: Window) -> Array | None:
    """η·λ_max(H) over the bound of stable descent, at the last probe.  (R,)"""
    if known.stable is None or not window.has("curvature/sharpness", "learning_rate"):
        return None
    return window.values["curvature/sharpness"][-1] * window.median("learning_rate") / known.stable


def rate_too_low(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: Σ‖Δw‖/‖w‖ < 1/20, the loss is within a tenth of that of the first 32 updates and the gradient above half of its own then:
    there was a way to go. A warm-up is over by then."""
    if not (ended(known, window) and window.has("update/ratio", "loss/train", "gradient/norm")) or known.own_steps or not known.fresh:
        return
    loss, first = window.late("loss/train"), np.where(np.isfinite(past.early_loss), past.early_loss, past.first_loss)
    gradient = np.hypot.reduce(window.late("gradient/norm"), axis=1)
    left = gradient > LEFT * np.where(np.isfinite(past.early_gradient), past.early_gradient, np.hypot.reduce(past.first_gradient, axis=1))
    same = (np.abs(loss - first) < SAME * first) & (loss > FAR * known.constant)
    for place in np.flatnonzero((past.moved < SHORT) & (past.moved > 0) & same & left & (window.counts == window.length)):
        value = float(past.moved[place])
        yield Finding("rate_too_low", int(place), None, window.done, value, SHORT, "warning", sure(value, SHORT), {"first": float(first[place]), "loss": float(loss[place])})


def _too_high(place: int, layer: str | None, step: int, value: float, bound: float, why: str, **evidence: float) -> Finding:
    return Finding("rate_too_high", place, layer, step, value, bound, "critical", sure(value, bound), {"why": why, **evidence})


def _length(norms: Array) -> Array:
    return np.sqrt((norms**2).sum(-1))
