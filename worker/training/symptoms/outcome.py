"""What is wrong with how a run generalises, and what only its end can tell."""

from collections.abc import Iterator

import numpy as np

from worker.training.symptoms.known import Known
from worker.training.symptoms.window import Finding, Past, Window, sure

RISEN, LATEST, PATIENCE, FELL = 1.2, 3, 5, 0.9
RARE, ALONE = 10.0, 5
SHORT = 0.05
MATTERS = 0.1
"""Share of the best constant's loss by which a rise has undone what was learned; less is often sureness that grows while the answers stay right: a note."""
INVISIBLE = 1e-3
CUT, STEPS = 0.99, 64
UNDER = 0.95


def overfitting(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """L_val above 1.2 times its best in each of the last three evaluations, the best five or more ago, while L_train fell by a tenth (Prechelt 1998: GL₂₀ and progress)."""
    if not (window.has("loss/val") and window.has("loss/train")) or known.restores:
        return
    best, since, train = past.best.T
    with np.errstate(invalid="ignore"):
        gone = (past.evaluated[:, -LATEST:] > RISEN * best[:, None]).all(1) & (since >= PATIENCE) & (best > 0) & (window.median("loss/train") < FELL * train)
    for place in np.flatnonzero(gone):
        value = float(past.evaluated[place, -1] / best[place])
        if np.isfinite(value):
            evidence = {"best": float(best[place]), "now": float(past.evaluated[place, -1]), "evaluations": float(since[place])}
            yield Finding(
                "overfitting",
                int(place),
                None,
                window.done,
                value,
                RISEN,
                "warning" if past.evaluated[place, -1] - best[place] > MATTERS * known.constant[place] else "note",
                sure(value, RISEN),
                {**evidence},
            )


def class_imbalance(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """n_max/n_min > 10, and the accuracy of the last five evaluations is exactly the share of the largest class: that it predicts, and nothing else."""
    rows = [n for n in known.class_rows if n]
    if not rows or max(rows) <= RARE * min(rows) or not window.has("accuracy/val"):
        return
    alone = (np.abs(past.accuracy[:, -ALONE:] - known.majority) < 1e-6).all(1)
    for place in np.flatnonzero(alone):
        evidence = {"rarest": float(min(rows)), "largest": float(max(rows)), "accuracy": float(past.accuracy[place, -1])}
        yield Finding("class_imbalance", int(place), None, window.done, max(rows) / min(rows), RARE, "warning", sure(max(rows) / min(rows), RARE), {**evidence})


def clip_always(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: 99 % of 64 steps or more were cut (Pascanu et al. 2013)."""
    if _ended(known, window):
        cut, steps = past.clipped.T
        for place in np.flatnonzero((steps >= STEPS) & (cut >= CUT * steps)):
            value = float(cut[place] / steps[place])
            yield Finding("clip_always", int(place), None, window.done, value, CUT, "note", 1.0, {"steps": float(steps[place])})


def rate_too_low(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: Σ‖Δw‖/‖w‖ < 1/20, the loss is within a tenth of the first and the gradient within half: there was a way to go. A warm-up is over by then."""
    if not (_ended(known, window) and window.has("update/ratio", "loss/train", "gradient/norm")) or known.own_steps or not known.fresh:
        return
    loss, first = window.late("loss/train"), past.first_loss
    left = np.hypot.reduce(window.late("gradient/norm"), axis=1) > 0.5 * np.hypot.reduce(past.first_gradient, axis=1)
    same = (np.abs(loss - first) < (1 - FELL) * first) & (loss > 0.5 * known.constant)
    for place in np.flatnonzero((past.moved < SHORT) & (past.moved > 0) & same & left & (window.counts == window.length)):
        value = float(past.moved[place])
        yield Finding("rate_too_low", int(place), None, window.done, value, SHORT, "warning", sure(value, SHORT), {"first": float(first[place]), "loss": float(loss[place])})


def penalty_invisible(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: max over steps and layers of ‖λ∇R‖/‖∇L‖ below 1/1000. Decay beside Adam acts on Adam's steps, so it is not compared."""
    if _ended(known, window) and window.has("penalty_gradient/norm") and not known.decoupled:
        for place in np.flatnonzero((past.visible > 0) & (past.visible < INVISIBLE)):
            value = float(past.visible[place])
            yield Finding("penalty_invisible", int(place), None, window.done, value, INVISIBLE, "note", sure(value, INVISIBLE), {})


def underfitting(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: L_train above 0.95 of the best constant's."""
    if not (_ended(known, window) and window.has("loss/train")):
        return
    loss = window.late("loss/train")
    for place in np.flatnonzero((loss > UNDER * known.constant) & (known.constant > 0)):
        value = float(loss[place] / known.constant[place])
        yield Finding(
            "underfitting", int(place), None, window.done, value, UNDER, "warning", sure(value, UNDER), {"loss": float(loss[place]), "constant": float(known.constant[place])}
        )


def _ended(known: Known, window: Window) -> bool:
    return window.last and window.done >= known.steps and window.first > 0


CRITERIA = (overfitting, class_imbalance, clip_always, rate_too_low, penalty_invisible, underfitting)
