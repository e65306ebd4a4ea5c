"""What goes wrong while a run trains: judged from one window of steps, and from what the windows before it left behind."""

from collections.abc import Iterator
from math import exp

import numpy as np

from worker.training.firing import ROWS
from worker.training.symptoms.initialisation import REACH, falls
from worker.training.symptoms.known import Known
from worker.training.symptoms.penalties import penalty_dominates, penalty_fights
from worker.training.symptoms.rates import WORSE, rate_too_high
from worker.training.symptoms.slope import fall
from worker.training.symptoms.window import LEARNING, Finding, Past, Window, judged, sure, unlearned

MOST_SATURATED = 0.9
DYING, FIRING = 0.5, 1e-3
"""Share of dead units that is reported, the firing probability below which a unit is dead."""
WEIGHT_FALL = 3.0
JUMP, NEVER, LOSS_JUMP = 100.0, 10.0, 10.0
"""Times the median gradient of the window before, times the largest gradient so far, times the median loss of the window before. Single rows have gradients
of all sizes once most of them are learned; none of them is far beyond those of the beginning."""
SWING, TURNS = 2.5, 6
STILL, HIGH = 0.01, 0.9
SILENCE = 31
"""Readings of the first window that is judged."""


def non_finite(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The first step whose loss or gradient has an entry that is NaN or infinite; the layer nearest to the output whose gradient has one: there it began."""
    if not window.has("loss/train"):
        return
    for place in map(int, np.flatnonzero(window.counts > 0)):
        steps, losses = window.reached("loss/train", place)
        read, entries = window.reached("gradient/nonfinite", place)
        bad = [*steps[~np.isfinite(losses)][:1], *read[(entries > 0).any(-1)][:1]]
        if bad:
            step = min(bad)
            found = entries[read == step].sum(0) if step in read else np.zeros(0)
            layers = np.flatnonzero(found > 0)
            layer = known.layers[int(layers[-1])] if len(layers) else None
            yield Finding("non_finite", place, layer, int(step), max(float(found.sum()), 1.0), 0.0, "critical", 1.0, {"loss": str(losses[steps == step][0])})


def saturated(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The same as before the first update, with nine tenths: trained units may well be used as switches."""
    if window.has("activation/saturated") and judged(known, window):
        values = window.median("activation/saturated")
        for place in np.flatnonzero(values.max(1) > MOST_SATURATED):
            layer = int(np.argmax(values[place] > MOST_SATURATED))
            value = float(values[place, layer])
            yield Finding(
                "saturated",
                int(place),
                known.layers[layer],
                window.first,
                value,
                MOST_SATURATED,
                "warning",
                sure(value, MOST_SATURATED),
                {"layers": float((values[place] > MOST_SATURATED).sum())},
            )


def dead_units(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Units that were 0 on each of n distinct rows, at the last count of a window. Of those that fire on 1/1000 of all rows, 0.999^n would be silent, too: the
    others are dead, d ≥ (silent − 0.999^n)/(1 − 0.999^n) (Lu et al. 2020). With 95 % a silent unit fires on fewer than 1 − 0.05^(1/n) of all rows."""
    if not window.has("activation/silent") or not judged(known, window):
        return
    rows = min(ROWS, known.rows)
    off = (1 - FIRING) ** rows
    silent = window.values["activation/silent"][-1]  # (R, L)
    dead = (silent - off) / (1 - off)
    for place in np.flatnonzero((dead.max(1) > DYING) & unlearned(known, window)):
        layer = int(dead[place].argmax())
        value = float(dead[place, layer])
        evidence = {"share": float(silent[place, layer]), "rows": float(rows), "bound_reached": float(1 - 0.05 ** (1 / rows))}
        yield Finding("dead_units", int(place), known.layers[layer], window.first, value, DYING, "critical" if value > 0.9 else "warning", sure(value, DYING), {**evidence})


def vanishing_gradient(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """The medians of the signal gradient fall over the layers, and the weight gradients with them: ln rms g_first − ln rms g_last < −3 (Hochreiter 1991)."""
    if not (window.has("signal/backward", "gradient/rms") and judged(known, window)):
        return
    rms = window.median("gradient/rms")
    for place, found in falls(known, window.median("signal/backward")):
        if not (found.fitted < 0 and found.beyond(REACH)) or not unlearned(known, window)[place]:
            continue
        ratio = float(rms[place, 0] / rms[place, -2]) if rms[place, -2] > 0 else 1.0
        if ratio < exp(-WEIGHT_FALL):
            evidence = {"seen": exp(found.seen / 2), "last": known.layers[-2], "weights": ratio, "layers": float(found.layers)}
            yield Finding("vanishing_gradient", place, known.layers[0], window.first, exp(found.fitted / 2), exp(-REACH / 2), "critical", found.confidence(REACH), {**evidence})


def vanishing_over_time(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Recurrent nets: ln ‖δ_t‖² falls by more than 6 from a layer's last time step to its first, as seen and at the near end of the interval of its fitted
    slope, behind half of the budget, while the loss is a constant's (Bengio et al. 1994). A net that learns needs no more than its last steps."""
    if not (window.has("signal/time", "loss/train") and judged(known, window)) or window.done < known.steps / 2:
        return
    last, first = window.values["signal/time"][-1], 0  # (R, ΣT)
    nothing = (window.median("loss/train") > HIGH * known.constant) & (known.constant > 0)
    for layer, steps in known.times:
        with np.errstate(divide="ignore"):
            logs = 2 * np.log(last[:, first : first + steps])
        first += steps
        for place in np.flatnonzero(nothing & np.isfinite(logs[:, -1])):
            found = fall(logs[place][np.isfinite(logs[place])])
            if found is not None and found.fitted < 0 and found.beyond(REACH):
                evidence = {"seen": exp(found.seen / 2), "time_steps": float(steps)}
                yield Finding("vanishing_gradient", int(place), layer, window.first, exp(found.fitted / 2), exp(-REACH / 2), "critical", found.confidence(REACH), {**evidence})


def exploding_gradient(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """max ‖g‖ of a window above 100 times the median before and 10 times the largest so far, with a loss above 10 times its own and above the best
    constant's (Pascanu et al. 2013)."""
    if not window.has("gradient/total", "loss/train") or window.first == 0:
        return
    for place in map(int, np.flatnonzero(window.counts > 0)):
        (steps, norms), (_, losses) = window.reached("gradient/total", place), window.reached("loss/train", place)
        before, level = float(past.before_gradient[place]), float(past.before_loss[place])
        finite = norms[np.isfinite(norms)]
        if not (len(finite) and before > 0 and level > 0):
            continue
        value, worst = float(finite.max() / before), float(np.max(np.where(np.isfinite(losses), losses, np.inf)))
        if value > JUMP and finite.max() > NEVER * past.most_gradient[place] and worst > LOSS_JUMP * level and worst > known.constant[place]:
            row = int(np.argmax(norms == finite.max()))
            layer = known.layers[int(np.nan_to_num(window.values["gradient/norm"][row, place]).argmax())] if window.has("gradient/norm") else None
            yield Finding("exploding_gradient", place, layer, int(steps[row]), value, JUMP, "critical", sure(value, JUMP), {"before": before, "norm": float(finite.max())})


def no_gradient(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """‖g_l‖ = 0 in 31 readings in a row or more: what dropout leaves of a batch may well be 0 now and then. The layer is the last whose signal gradient is 0 too:
    behind a layer that lets nothing forward the weights' own is 0 as well."""
    if not (window.has("gradient/norm") and judged(known, window)) or len(known.layers) < 2:
        return
    readings = past.zeros(window)
    zero = (readings >= SILENCE) & unlearned(known, window)[:, None]  # (R, L)
    silent = (window.values["signal/backward"] == 0).all(0) if window.has("signal/backward") else zero
    for place in np.flatnonzero(zero.any(1)):
        layers = np.flatnonzero(zero[place] & silent[place])
        layer = int(layers[-1]) if len(layers) else int(np.flatnonzero(zero[place])[-1])
        yield Finding(
            "no_gradient", int(place), known.layers[layer], window.first, 0.0, 0.0, "critical", 1.0, {"layers": float(zero[place].sum()), "steps": float(readings[place, layer])}
        )


def no_change(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Median ‖Δw‖/‖w‖ below ε/4 of the dtype, where half of it rounds to nothing, with a gradient above a tenth of its first; warm-up has no gradient to answer for."""
    if not (window.has("update/ratio", "gradient/norm", "learning_rate") and judged(known, window)) or known.pinned or known.own_steps:
        return
    rates = window.values["learning_rate"]
    steady = rates.min(0) >= 0.5 * rates.max(0)
    still = (window.median("update/ratio") < known.rounding / 4) & (window.median("gradient/norm") > 0.1 * past.first_gradient) & (past.first_gradient > 0)
    if window.has("penalty_gradient/norm"):
        still &= window.median("penalty_gradient/norm") < 0.1 * window.median("gradient/norm")  # else the two may hold each other
    for place in np.flatnonzero(still.any(1) & steady & unlearned(known, window)):
        layer = int(np.argmax(still[place]))
        value = float(window.median("update/ratio")[place, layer])
        yield Finding("no_change", int(place), known.layers[layer], window.first, value, known.rounding / 4, "critical", sure(value, known.rounding / 4) if value else 1.0, {"layers": float(still[place].sum()), "rate": float(rates[-1, place])})  # fmt: skip


def oscillating(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Rises of ln L_val over ten evaluations add up to more than 2.5 with six turns or more: fixed rows, so no batch's noise. In full batches the training loss itself."""
    if known.batch >= known.rows and window.has("loss/train") and judged(known, window) and window.length >= 32:
        losses, first = window.values["loss/train"][-32:].T, window.done - 32
    elif window.has("loss/val"):
        losses, first = past.evaluated, int(window.steps["loss/val"][0])
    else:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.diff(np.log(losses), axis=1)  # (R, m)
    rise = np.where(change > 0, change, 0.0).sum(1)
    turns = (np.sign(change[:, 1:]) * np.sign(change[:, :-1]) < 0).sum(1)
    level = np.median(losses, 1) > LEARNING * known.constant
    for place in np.flatnonzero(np.isfinite(change).all(1) & (rise > SWING) & (turns >= TURNS) & level & (known.constant > 0)):
        value = float(rise[place])
        yield Finding(
            "oscillating",
            int(place),
            None,
            first,
            value,
            SWING,
            "warning",
            sure(value, SWING),
            {"turns": float(turns[place]), "low": float(losses[place].min()), "high": float(losses[place].max())},
        )


def plateau(known: Known, window: Window, past: Past) -> Iterator[Finding]:
    """Behind half of the budget: median loss above 0.9 of the best constant's, within 1 % of the median of the window before."""
    if not (window.has("loss/train") and judged(known, window)) or window.done < known.steps / 2:
        return
    loss = window.median("loss/train")
    still = (np.abs(loss - past.before_loss) < STILL * loss) & (loss > HIGH * known.constant) & (known.constant > 0) & (loss < WORSE * known.nothing)
    for place in np.flatnonzero(still):
        value = float(loss[place] / known.constant[place])
        yield Finding("plateau", int(place), None, window.first, value, HIGH, "warning", sure(value, HIGH), {"loss": float(loss[place]), "constant": float(known.constant[place])})


CRITERIA = (
    non_finite, rate_too_high, saturated, dead_units, vanishing_gradient, vanishing_over_time, exploding_gradient, no_gradient, no_change, penalty_dominates, penalty_fights, oscillating, plateau,
)  # fmt: skip
