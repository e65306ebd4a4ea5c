"""What regularization does to training: the penalty ledger beside the loss's gradient, and weights that constraints hold down."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from worker.training.symptoms.known import Known
from worker.training.symptoms.window import HELD, Array, Finding, Past, Window, ended, judged, sure, unlearned

DOMINANT, SHRUNK = 10.0, 0.01
ALIKE, AGAINST = 2.0, -0.9
INVISIBLE = 1e-3


def penalty_dominates(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """‖λ∇R‖ > 10 ‖∇L‖ in every penalised layer, or ‖w‖ < ‖w_0‖/100 there: λ has decided; or a constraint leaves that little in any layer that it holds.
    A decay beside Adam is measured against Adam's steps, not the gradient."""
    if not (window.has("weight/norm") and judged(known, window)):
        return
    left: Array = np.where(past.first_weight > 0, window.median("weight/norm") / np.fmax(past.first_weight, 1e-300), np.inf)  # (R, L)
    held = (left < SHRUNK) & np.isin(known.layers, known.constrained)
    for place in np.flatnonzero(held.any(1) & unlearned(known, window)):
        yield _gone(known, window, int(place), left[place], int(np.argmax(held[place])), "a constraint leaves nothing of the weights")
    if not window.has("penalty_gradient/norm", "gradient/norm") or known.decoupled:
        return
    penalties, losses = window.median("penalty_gradient/norm"), window.median("gradient/norm")
    penalised = penalties > 0
    ratio = np.where(losses > 0, penalties / np.fmax(losses, 1e-300), np.inf)
    leads = np.logical_and(np.where(penalised, ratio > DOMINANT, True).all(1), penalised.any(1))
    shrunk: NDArray[np.bool_] = left < SHRUNK
    emptied = shrunk.any(1) & np.where(penalised, shrunk, True).all(1)
    for place in np.flatnonzero((leads | emptied) & unlearned(known, window)):
        if not leads[place]:
            yield _gone(known, window, int(place), left[place], int(np.argmax(shrunk[place])), "the weights are gone")
            continue
        finite = ratio[place][penalised[place] & np.isfinite(ratio[place])]
        layer = int(np.argmax(np.where(penalised[place], np.nan_to_num(ratio[place], posinf=1e300), -1.0)))
        value, why = float(finite.min()) if len(finite) else 1e300, "its gradient is many times that of the loss"
        yield Finding("penalty_dominates", int(place), known.layers[layer], window.first, value, DOMINANT, "warning", sure(value, DOMINANT), {"why": why})


def _gone(known: Known, window: Window, place: int, left: Array, layer: int, why: str) -> Finding:
    value = float(left[layer])
    return Finding("penalty_dominates", place, known.layers[layer], window.first, value, SHRUNK, "warning", sure(value, SHRUNK), {"why": why, "left": value})


def penalty_fights(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """cos(λ∇R, ∇L) < −0.9 and norms within a factor of 2 in every penalised layer: the balance at which regularized training ends, here far above what was to be learned."""
    if not (window.has("penalty_gradient/norm", "penalty_gradient/cosine") and judged(known, window)) or known.decoupled:
        return
    penalties, losses, cosine = window.median("penalty_gradient/norm"), window.median("gradient/norm"), window.median("penalty_gradient/cosine")
    penalised = penalties > 0
    alike = (penalties < ALIKE * losses) & (losses < ALIKE * penalties) & (cosine < AGAINST)
    held = window.median("loss/train") > HELD * known.constant
    for place in np.flatnonzero(np.where(penalised, alike, True).all(1) & penalised.any(1) & held & (known.constant > 0)):
        layer = int(np.argmin(np.where(penalised[place], cosine[place], 1.0)))
        value, share = float(cosine[place, layer]), float(window.median("loss/train")[place] / known.constant[place])
        yield Finding("penalty_fights", int(place), known.layers[layer], window.first, value, AGAINST, "note", sure(-value, -AGAINST), {"share": share})


def penalty_invisible(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: max over steps and layers of ‖λ∇R‖/‖∇L‖ below 1/1000. Decay beside Adam acts on Adam's steps, so it is not compared."""
    if ended(known, window) and window.has("penalty_gradient/norm") and not known.decoupled:
        for place in np.flatnonzero((past.visible > 0) & (past.visible < INVISIBLE)):
            value = float(past.visible[place])
            yield Finding("penalty_invisible", int(place), None, window.done, value, INVISIBLE, "note", sure(value, INVISIBLE), {})
