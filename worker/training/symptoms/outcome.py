"""What is wrong with how a run generalises, and what only its end can tell."""

from collections.abc import Iterator

import numpy as np

from worker.training.symptoms.known import Known
from worker.training.symptoms.penalties import penalty_invisible
from worker.training.symptoms.rates import rate_too_low
from worker.training.symptoms.window import Finding, Past, Window, ended, sure

RISEN, LATEST, PATIENCE, FELL = 1.2, 3, 5, 0.9
LEARNED, CARRIED = 0.9, 0.95
"""Shares of a constant's loss: of the training rows below which something was learned, of held-out rows above which none of it was."""
RARE, ALONE = 10.0, 5
MATTERS = 0.1
"""Share of the best constant's loss by which a rise has undone what was learned; less is often sureness that grows while the answers stay right: a note."""
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


def label_noise(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: the training loss of the last window is below 0.9 of a constant's, and the best evaluation above 0.95 of the same constant's on
    its rows: what was learned holds for no other row (Zhang et al. 2017, random labels)."""
    if not (ended(known, window) and window.has("loss/train")) or known.held is None:
        return
    train, best = window.level("loss/train") / known.constant, past.best[:, 0] / known.held
    for place in np.flatnonzero((train < LEARNED) & np.isfinite(best) & (best > CARRIED) & (known.constant > 0)):
        value, seen = float(best[place]), {"loss": float(window.level("loss/train")[place]), "best": float(past.best[place, 0]), "constant": float(known.held[place])}
        yield Finding("label_noise", int(place), None, window.done, value, CARRIED, "warning", sure(value, CARRIED), {**seen})


def class_imbalance(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """n_max/n_min > 10, and the accuracy of the last five evaluations is exactly the share of the largest class: that it predicts, and nothing else."""
    if not window.has("accuracy/val"):
        return
    for place in range(len(past.accuracy)):
        own = known.own(place)
        rows = [n for n in own.class_rows if n]
        if not rows or max(rows) <= RARE * min(rows) or not bool((np.abs(past.accuracy[place, -ALONE:] - own.majority) < 1e-6).all()):
            continue
        evidence = {"rarest": float(min(rows)), "largest": float(max(rows)), "accuracy": float(past.accuracy[place, -1])}
        yield Finding("class_imbalance", place, None, window.done, max(rows) / min(rows), RARE, "warning", sure(max(rows) / min(rows), RARE), {**evidence})


def clip_always(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: 99 % of 64 steps or more were cut (Pascanu et al. 2013)."""
    if ended(known, window):
        cut, steps = past.clipped.T
        for place in np.flatnonzero((steps >= STEPS) & (cut >= CUT * steps)):
            value = float(cut[place] / steps[place])
            yield Finding("clip_always", int(place), None, window.done, value, CUT, "note", 1.0, {"steps": float(steps[place])})


def underfitting(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """At the end of the budget: L_train above 0.95 of the best constant's."""
    if not (ended(known, window) and window.has("loss/train")):
        return
    loss = window.late("loss/train")
    for place in np.flatnonzero((loss > UNDER * known.constant) & (known.constant > 0)):
        value = float(loss[place] / known.constant[place])
        yield Finding(
            "underfitting", int(place), None, window.done, value, UNDER, "warning", sure(value, UNDER), {"loss": float(loss[place]), "constant": float(known.constant[place])}
        )


CRITERIA = (overfitting, label_noise, class_imbalance, clip_always, rate_too_low, penalty_invisible, underfitting)
