"""Who says what is wrong with a run: this project's symptoms, and the published tables of thresholds, all from the same recorded series.

A verdict is a symptom in this project's words, and the layer where one is named. Tables of thresholds know no causes: what they say first or last counts alike.
Where a rule needs what is not recorded, the docstring says what stands for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.faults.records import Record
from regtrain.contract.diagnosis import diagnose
from regtrain.contract.symptoms import SymptomName


@dataclass(frozen=True)
class Verdict:
    """One thing that a detector says of a run."""

    symptom: SymptomName
    layer: str | None
    first: int
    """The step at which it says so."""
    alarm: bool = True
    """Whether it wants somebody to look; notes do not."""
    root: bool = True
    """Whether it is given as the cause of the others."""


Detector = Callable[[Record], list[Verdict]]


def ours(record: Record) -> list[Verdict]:
    """What training noticed, and what the diagnosis says is the root of it. Notes are no alarms."""
    root = diagnose(record.noticed, runs=1, preset=record.diagnostics).root
    return [Verdict(noticed.symptom, noticed.layer, noticed.step, noticed.severity != "note", noticed.symptom == root) for noticed in record.noticed]


def autotrainer(record: Record) -> list[Verdict]:
    """The rules of Zhang et al. 2021, behind their gate: a net with an accuracy of 0.6 is not looked at."""
    return [] if record.accuracy >= 0.6 else autotrainer_ungated(record)


def autotrainer_ungated(record: Record) -> list[Verdict]:
    """Vanishing: ‖g_first‖/‖g_last‖ < 1e-3 and ‖g_first‖ < 1e-4. Explosion: > 70, or NaN. Dying relu: 70 % of a layer's gradient exactly 0; units that are 0 on the
    whole batch where these are recorded, else layers whose gradient is. Oscillation: accuracy turns by 0.03 in a fifth of the epochs. Slow: it gains less than 0.01.
    Accuracy is that of the held-out rows."""
    return list(_autotrainer(record))


def sagemaker(record: Record) -> list[Verdict]:
    """The rules of SageMaker Debugger with their defaults: vanishing mean |g| < 1e-7 (rms stands for it, and is larger); NaN; poor init: variances of the layers'
    outputs differ by more than 10 in the first 10 steps; updates over weights > 10 or < 1e-8; half of the units of a relu layer dead; (val − train)/train > 0.1;
    loss that falls by less than 0.1 % over 10 steps. Its rule on saturated inputs needs quantiles that are not recorded."""
    return list(_sagemaker(record))


DETECTORS: dict[str, Detector] = {"this project": ours, "AutoTrainer's rules": autotrainer, "AutoTrainer's rules, no gate": autotrainer_ungated, "SageMaker's rules": sagemaker}


def _autotrainer(record: Record) -> Iterator[Verdict]:
    norms, accuracy = record.values("gradient/norm"), record.values("accuracy/val")
    if norms is not None:
        first, last = norms[:, 0], norms[:, -1]
        with np.errstate(all="ignore"):
            ratio = first / last
        yield from _where((ratio < 1e-3) & (first < 1e-4), "vanishing_gradient", record.layers[0])
        yield from _where((ratio > 70) | ~np.isfinite(norms).all(1), "exploding_gradient", record.layers[0])
        dead = record.values("activation/dead")
        share = dead if dead is not None else (norms[:, :-1] == 0).astype(float)
        if share.shape[1] and (share.max(0) >= 0.7).any() and "relu" in record.group.spec["model"]["activation"] + str(record.case.changes):
            layer = int(np.argmax(share.max(0)))
            yield Verdict("dead_units", record.layers[layer], int(np.argmax(share[:, layer] >= 0.7)))
    if accuracy is not None and len(accuracy) > 3:
        swings = np.abs(np.diff(accuracy)) >= 0.03
        turns = np.diff(np.sign(np.diff(accuracy))) != 0
        if (swings[1:] & swings[:-1] & turns).sum() >= 0.2 * len(accuracy):
            yield Verdict("oscillating", None, len(accuracy))
        if accuracy[-1] - accuracy[0] < 0.01:
            yield Verdict("plateau", None, len(accuracy))


def _sagemaker(record: Record) -> Iterator[Verdict]:
    rms, forward, updates, dead = (record.values(name) for name in ("gradient/rms", "signal/forward", "update/ratio", "activation/dead"))
    loss, held = record.values("loss/train"), record.curves.get("loss/val")
    if rms is not None:
        for layer, name in enumerate(record.layers):
            yield from _where(rms[:, layer] < 1e-7, "vanishing_gradient", name)
        yield from _where(~np.isfinite(rms).all(1), "non_finite", None)
    if forward is not None and forward.shape[1] > 2:
        squares = forward[:10, :-1] ** 2
        with np.errstate(all="ignore"):
            yield from _where(squares.max(1) / squares.min(1) > 10, "vanishing_signal" if squares[0, -1] < squares[0, 0] else "exploding_signal", None)
    if updates is not None:
        yield from _where((updates > 10).any(1), "rate_too_high", None)
        yield from _where((updates < 1e-8).any(1), "no_change", None)
    if dead is not None:
        yield from _where((dead > 0.5).any(1), "dead_units", record.layers[int(dead.max(0).argmax())])
    if loss is not None and len(loss) > 10:
        yield from _where(loss[10:] > 0.999 * loss[:-10], "plateau", None)
        if held is not None:
            train = loss[np.clip(held[0], 0, len(loss) - 1)]
            yield from _where((held[1] - train) / np.maximum(train, 1e-12) > 0.1, "overfitting", None)


def _where(holds: ArrayLike, symptom: SymptomName, layer: str | None) -> Iterator[Verdict]:
    """A verdict at the first step at which it holds."""
    if np.any(holds):
        yield Verdict(symptom, layer, int(np.argmax(holds)))
