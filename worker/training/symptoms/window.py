"""Points as windows of fixed steps, whatever the reports were cut into, and what is remembered of the windows before."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.symptoms import Severity, SymptomName
from worker.training.symptoms.known import Known

Array = NDArray[np.float64]
EVERY = 256
FIRST = (1, 32, 128)
"""Updates after which a window ends, and from then on every EVERY: what is wrong at once is seen early, and later looking costs little."""
WATCHED = (
    "loss/train", "gradient/total", "gradient/norm", "gradient/rms", "gradient/nonfinite", "gradient/clipped", "signal/backward", "weight/norm", "update/ratio",
    "penalty_gradient/norm", "penalty_gradient/cosine", "learning_rate", "activation/saturated", "signal/time",
)  # fmt: skip
AFTER = ("loss/val", "accuracy/val", "curvature/sharpness", "activation/silent")
"""Series whose point t follows t updates."""
LEARNING, HELD = 0.1, 0.5
"""Shares of the best constant's loss: below the first a run has learned, and exact zeros and tiny updates are what a solved problem looks like; below the
second it has learned something."""
PIECES = 8
"""Of a window, whose means a median is taken over."""
THIN = 64
"""Steps of a window that a median is taken over: every fourth of 256."""
KEPT = 10
"""Evaluations that are remembered."""


def next_look(done: int) -> int:
    """The end of the window that update `done` belongs to."""
    return next((end for end in FIRST if end > done), (done // EVERY + 1) * EVERY)


@dataclass(frozen=True)
class Window:
    """Consecutive steps of R runs; of run r the first `counts[r]` are points, what follows is NaN. Layers may have been read in some of them only: `steps` says in which."""

    first: int
    done: int
    """Updates done at its end."""
    counts: NDArray[np.int64]
    values: dict[str, Array]
    """Series → (n, R) or (n, R, L)."""
    steps: dict[str, NDArray[np.int64]]
    last: bool = False
    """The runs have ended."""
    _medians: dict[str, Array] = field(default_factory=dict[str, Array])

    def has(self, *names: str) -> bool:
        return all(name in self.values and len(self.values[name]) for name in names)

    def median(self, name: str) -> Array:
        """Over the window; NaN where a run did not reach its end.  (R,) or (R, L)"""
        if name not in self._medians:
            values = self.values[name]
            self._medians[name] = np.median(values[:: max(1, len(values) // THIN)], axis=0)
        return self._medians[name]

    def level(self, name: str) -> Array:
        """The median of the means of the window's eighths: what single steps, and single rows of small batches, do not move.  (R,)"""
        key = f"level {name}"
        if key not in self._medians:
            pieces = [piece.mean(0) for piece in np.array_split(self.values[name], PIECES) if len(piece)]
            self._medians[key] = np.median(pieces, axis=0)
        return self._medians[key]

    def reached(self, name: str, place: int) -> tuple[NDArray[np.int64], Array]:
        """The steps of a series up to which a run has come, and its values there.  (m,), (m,) or (m, L)"""
        m = int(np.searchsorted(self.steps[name], self.first + self.counts[place])) if name in self.steps else 0
        return (self.steps[name][:m], self.values[name][:m, place]) if m else (np.empty(0, np.int64), np.empty(0))

    def late(self, name: str) -> Array:
        """Median over the last quarter.  (R,) or (R, L)"""
        values = self.values[name]
        return np.median(values[-max(1, len(values) // 4) :], axis=0)

    @property
    def length(self) -> int:
        return len(self.values["loss/train"]) if "loss/train" in self.values else 0


@dataclass(frozen=True)
class Past:
    """What earlier windows leave behind, (R, …) each; NaN where nothing is known yet."""

    first_loss: Array
    first_gradient: Array
    first_weight: Array
    early_loss: Array
    """Median of updates 2 to 32."""
    early_gradient: Array
    """The same of the norm over all layers."""
    before_loss: Array
    """Median of the window before."""
    before_gradient: Array
    lowest: Array
    """The lowest loss of a window behind the first 32 updates so far, by the medians of its eighths' means."""
    most_gradient: Array
    """The largest norm of a finite gradient so far."""
    zero: Array
    """Readings in a row, whole windows of them, in which a layer's gradient was exactly 0.  (R, L)"""
    moved: Array
    """Σ‖Δw‖/‖w‖ over all layers together and all updates so far."""
    visible: Array
    """The largest ‖λ∇R‖/‖∇L‖ of any layer so far."""
    clipped: Array
    """Steps that were cut, and all.  (R, 2)"""
    sharp: Array
    """Probes in a row that found lr·sharpness too high."""
    evaluated: Array
    """The last validation losses, the newest last.  (R, KEPT)"""
    accuracy: Array
    best: Array
    """Lowest validation loss, evaluations since, and the median training loss of its window.  (R, 3)"""

    @staticmethod
    def begin(runs: int, layers: int) -> "Past":
        def unknown(*more: int) -> Array:
            return np.full((runs, *more), np.nan)

        best = np.column_stack([np.full(runs, np.inf), np.zeros(runs), unknown()])
        return Past(
            first_loss=unknown(), first_gradient=unknown(layers), first_weight=unknown(layers), early_loss=unknown(), early_gradient=unknown(), before_loss=unknown(),
            before_gradient=unknown(), zero=np.zeros((runs, layers)), lowest=unknown(), most_gradient=unknown(), moved=np.zeros(runs), visible=np.zeros(runs), clipped=np.zeros((runs, 2)),
            sharp=np.zeros(runs), evaluated=unknown(KEPT), accuracy=unknown(KEPT), best=best,
        )  # fmt: skip

    def with_evaluations(self, window: Window) -> "Past":
        """The evaluations of a window are known as it is judged."""
        if not window.has("loss/val"):
            return self
        losses = window.values["loss/val"].T  # (R, m)
        lowest, at = losses.min(1), np.argmin(losses, 1)
        better = lowest < self.best[:, 0]
        since = np.where(better, losses.shape[1] - 1 - at, self.best[:, 1] + losses.shape[1])
        train = np.where(better, window.median("loss/train") if window.has("loss/train") else np.nan, self.best[:, 2])
        best = np.column_stack([np.where(better, lowest, self.best[:, 0]), since, train])
        accuracy = np.hstack([self.accuracy, window.values["accuracy/val"].T])[:, -KEPT:] if window.has("accuracy/val") else self.accuracy
        return replace(self, evaluated=np.hstack([self.evaluated, losses])[:, -KEPT:], best=best, accuracy=accuracy)

    def zeros(self, window: Window) -> Array:
        """`zero` with this window.  (R, L)"""
        norms = window.values["gradient/norm"]
        return np.where((norms == 0).all(0), self.zero + len(norms), 0.0)

    def after(self, window: Window) -> "Past":
        """With what later windows are to know of this one."""
        changes: dict[str, Array] = {}
        if window.has("loss/train"):
            if window.first == 0:
                changes["first_loss"] = window.values["loss/train"][0]
            changes["before_loss"] = window.median("loss/train")
            if window.first >= FIRST[1]:
                changes["lowest"] = np.fmin(self.lowest, window.level("loss/train"))
            if window.first == 1 and not window.last:
                changes["early_loss"] = window.median("loss/train")
        if window.has("gradient/norm"):
            if window.first == 0:
                changes["first_gradient"] = window.values["gradient/norm"][0]
            changes["before_gradient"] = window.median("gradient/total")
            changes["zero"] = self.zeros(window)
            norms = window.values["gradient/total"]
            changes["most_gradient"] = np.fmax(self.most_gradient, np.where(np.isfinite(norms), norms, 0.0).max(0))
            if window.first == 1 and not window.last:
                changes["early_gradient"] = np.hypot.reduce(window.median("gradient/norm"), axis=1)
        if window.has("weight/norm") and window.first == 0:
            changes["first_weight"] = window.values["weight/norm"][0]
        if window.has("update/ratio"):
            spans = np.diff(window.steps["update/ratio"], append=window.done)  # an update that was read stands for those behind it that were not
            changes["moved"] = self.moved + np.nansum(moved(window) * spans[:, None], axis=0)
        if window.has("penalty_gradient/norm"):
            changes["visible"] = np.fmax(self.visible, np.nanmax(np.where(np.isfinite(ratio := share(window)), ratio, 0.0), axis=(0, 2)))
        if window.has("gradient/clipped"):
            cut = window.values["gradient/clipped"]
            changes["clipped"] = self.clipped + np.stack([np.nansum(cut, axis=0), np.isfinite(cut).sum(0)], 1)
        return replace(self, **changes)


def moved(window: Window) -> Array:
    """‖Δw‖/‖w‖ of all layers together, where layers were read.  (n, R)"""
    lengths = window.values["weight/norm"]
    updates = np.where(lengths > 0, window.values["update/ratio"] * lengths, 0.0)
    return np.sqrt((updates**2).sum(2) / np.fmax((lengths**2).sum(2), 1e-300))


def share(window: Window) -> Array:
    """‖λ∇R‖/‖∇L‖ of each layer where layers were read; 0 where nothing is penalised.  (n, R, L)"""
    penalty = window.values["penalty_gradient/norm"]
    return np.where(penalty > 0, penalty / np.fmax(window.values["gradient/norm"], 1e-300), 0.0)


@dataclass(frozen=True)
class Finding:
    """A criterion that a run meets: `Noticed` without its name."""

    symptom: SymptomName
    place: int
    """Of the run in the pack."""
    layer: str | None
    step: int
    value: float
    bound: float
    severity: Severity
    confidence: float
    evidence: dict[str, float | str]


def sure(value: float, bound: float) -> float:
    """How clearly a threshold is passed: ½ at the bound, 0.95 at ten times it (a tenth of it, where it is a lower one)."""
    if value <= 0 or bound <= 0 or not np.isfinite(value):
        return 1.0
    return 1 - 0.5 * min(value / bound, bound / value)


def judged(known: Known, window: Window) -> bool:
    """Whether enough steps are there to say something of a course."""
    return window.first > 0 and window.length >= 16 and len(known.runs) > 0


def unlearned(known: Known, window: Window) -> NDArray[np.bool_]:
    """Which runs have not yet learned.  (R,)"""
    return (window.median("loss/train") > LEARNING * known.constant) & (known.constant > 0)


def ended(known: Known, window: Window) -> bool:
    """Whether the budget is used up."""
    return window.last and window.done >= known.steps and window.first > 0
