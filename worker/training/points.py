"""What was measured, gathered step by step and copied out as `Points`: the first update at once, then about four times a second."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.events import Points
from worker.training import laws
from worker.training.diagnostics import Measured, Reading, Sums, finish, reduced, told
from worker.training.pack import Pack

MOST_STEPS = 1024
"""Steps after which points are copied out even if no quarter of a second has passed: bounds what waits on the device."""
SECONDS = 0.25


@dataclass
class Recorder:
    """The points of one pack that have not been reported yet. Measured tensors stay on the device until they are."""

    index: int
    size: int
    """Runs of the pack, those that have left it, or never trained, included."""
    trained: int
    """Runs that train or have trained."""
    died: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Place of a run → where it first met a number that is not finite."""
    ended: dict[int, int] = field(default_factory=dict)
    """Place of a run → updates that it made before it stopped ahead of its budget."""
    broken: str | None = None
    """Where a law of gradients was first seen not to hold."""
    _steps: list[int] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _rates: list[NDArray[np.float64]] = field(default_factory=list)
    _measured: dict[str, list[Tensor | list[Tensor]]] = field(default_factory=dict)
    _readings: list[Reading] = field(default_factory=list)
    """Of the last updates, all of one shape: not reduced yet."""
    _sums: list[Sums] = field(default_factory=list)
    _read: list[int] = field(default_factory=list)
    """Places in `_steps` at which the layers were read."""
    _looked: list[int] = field(default_factory=list)
    """Places in `_steps` at which what is measured once an epoch was."""
    _after: list[tuple[int, dict[str, Tensor], Tensor]] = field(default_factory=list)
    _since: float = -SECONDS
    """When the last report was made; long ago at first, so that the first update shows at once that training goes on."""

    def add(self, pack: Pack, t: int, rows: int, rates: NDArray[np.float64], measured: Measured, reading: Reading | None, *, look: bool) -> None:
        """What update t measured on a batch of `rows`, with `look` also what is measured once an epoch, and what it left to be reduced; rates: (r,) the learning
        rates on the host."""
        if look:
            self._looked.append(len(self._steps))
        if reading is not None:
            if self._readings and self._rows[self._read[-1]] != rows:
                self._reduce(pack)
            self._read.append(len(self._steps))
            self._readings.append(reading)
            if len(self._readings) >= pack.together(rows):
                self._reduce(pack)
        self._steps.append(t)
        self._rows.append(rows)
        self._rates.append(rates)
        for name, value in measured.items():
            self._measured.setdefault(name, []).append(value)

    def add_after(self, t: int, metrics: dict[str, Tensor], alive: Tensor) -> None:
        """What was evaluated or probed after t updates, of the runs that were alive.  (R,), (R, L) or (R, L, bins) each"""
        self._after.append((t, metrics, alive))

    @property
    def living(self) -> bool:
        """Whether any run is known to go on."""
        return len(self.ended) < self.trained

    @property
    def due(self) -> bool:
        return len(self._steps) >= MOST_STEPS or time.monotonic() - self._since > SECONDS

    def report(self, pack: Pack, places: list[int], done: int) -> Points | None:
        """Everything that was gathered, as one event: the only place where training waits for the device."""
        self._since = time.monotonic()
        if not self._steps and not self._after:
            return None
        points = Points(pack=self.index, step=done, steps={}, values={}, counts={})
        if self._steps:
            self._reduce(pack)
            self._dense(points, pack, places)
        if self._after:
            self._sparse(points, places)
        self._steps, self._rows, self._rates, self._measured, self._sums, self._read, self._looked, self._after = [], [], [], {}, [], [], [], []
        return points

    def settle(self, alive: NDArray[np.bool_], places: list[int], done: int) -> None:
        """After a report, before runs leave and at the end: a run that early stopping ended with the very last update has shown it in no step yet.  alive: (r,)"""
        for row in np.flatnonzero(~alive):
            self.ended.setdefault(places[row], done)

    def _reduce(self, pack: Pack) -> None:
        """What was left so far becomes numbers."""
        if self._readings:
            self._sums.append(reduced(pack, self._readings))
            self._readings = []

    def _dense(self, points: Points, pack: Pack, places: list[int]) -> None:
        steps = np.array(self._steps, np.int64)
        values = {name: _host(parts) for name, parts in self._measured.items()}
        alive, active = values.pop("alive"), values.pop("active")
        values.setdefault("learning_rate", np.stack(self._rates))
        rows, read, looked = np.array(self._rows), np.array(self._read, np.int64), np.array(self._looked, np.int64)
        at = dict.fromkeys(values, np.arange(len(steps))) | {"signal/time": looked}
        if self._sums:
            values |= told(pack, self._sums)
        finish(pack, values, rows[read], rows[looked])
        dtype = np.float64 if pack.dtype == torch.float64 else np.float32
        for name, value in values.items():
            with np.errstate(over="ignore"):  # a norm beyond float32 is infinite there
                points.values[name] = self._spread(value.astype(dtype, copy=False), places, axis=1)
            of_series = at.get(name, read)  # what `told` and `finish` add stands for the updates whose layers were read
            points.steps[name], points.counts[name] = steps[of_series], self._spread(alive[of_series].sum(0, dtype=np.int64), places, axis=0)
        if laws.EXCESS in values and self.broken is None and (at_fault := laws.broken(values[laws.EXCESS], active[read])) is not None:
            row, run, layer = at_fault
            self.broken = (
                f"{pack.shape[layer].name} at step {steps[read[row]]} of run {pack.runs[run].index}: {values[laws.EXCESS][row, run, layer]:.3g} times what rounding explains"
            )
        self._notice_ends(steps, alive, active, places, points, stop=pack.spec.on_nonfinite == "stop")

    def _sparse(self, points: Points, places: list[int]) -> None:
        after = [(t, metrics, alive.cpu().numpy()) for t, metrics, alive in self._after]
        for name in dict.fromkeys(name for _, metrics, _ in after for name in metrics):
            found = [(t, metrics[name], alive) for t, metrics, alive in after if name in metrics]
            value = np.stack([value.flatten(1).cpu().numpy() if value.dim() > 2 else value.cpu().numpy() for _, value, _ in found])
            counts = np.stack([alive for _, _, alive in found]).sum(0, dtype=np.int64)
            points.values[name] = self._spread(value, places, axis=1)
            points.steps[name], points.counts[name] = np.array([t for t, _, _ in found], np.int64), self._spread(counts, places, axis=0)

    def _spread(self, values: NDArray[Any], places: list[int], *, axis: int) -> NDArray[Any]:
        """From the runs that still train to all runs of the pack: the others have no points (a count of 0; the NaN beside it is none)."""
        if len(places) == self.size:
            return values
        shape = list(values.shape)
        shape[axis] = self.size
        whole = np.full(shape, np.nan if values.dtype.kind == "f" else 0, values.dtype)
        whole[(slice(None),) * axis + (places,)] = values
        return whole

    def _notice_ends(self, steps: NDArray[np.int64], alive: NDArray[np.bool_], active: NDArray[np.bool_], places: list[int], points: Points, *, stop: bool) -> None:
        """A run that was alive and not active has met a bad number: that step was not taken. One that is no longer alive was stopped early."""
        counts = alive.sum(0)
        for row, place in enumerate(places):
            last = int(counts[row]) - 1
            if place in self.ended:
                continue
            if last >= 0 and not active[last, row] and stop:
                self.ended[place] = int(steps[last])
                self.died[place] = {"step": int(steps[last]), **_first_bad(points, last, place)}
            elif counts[row] < len(steps):
                self.ended[place] = int(steps[0]) + int(counts[row])


def _first_bad(points: Points, row: int, run: int) -> dict[str, Any]:
    """Which series was not finite in this row of the losses of this run, and the layer nearest to the output whose gradient was not, if the layers were read: there it began."""
    step, losses = points.steps["loss/train"][row], points.values["loss/train"]
    read = np.flatnonzero(points.steps["gradient/norm"] == step) if "gradient/norm" in points.steps else []
    layers = np.flatnonzero(~np.isfinite(points.values["gradient/norm"][read[0], run])) if len(read) else []
    series = "loss/train" if not np.isfinite(losses[row, run]) else "gradient/norm"
    return {"series": series, **({"layer": int(layers[-1])} if len(layers) else {})}


def _host(parts: list[Tensor | list[Tensor]]) -> NDArray[Any]:
    """n × (R,) -> (n, R), or n × L × (R,) -> (n, R, L)"""
    first = parts[0]
    if isinstance(first, list):
        flat = torch.stack([tensor for part in parts for tensor in part])
        return flat.view(len(parts), len(first), -1).transpose(1, 2).cpu().numpy()
    return torch.stack(list(parts)).cpu().numpy()  # pyright: ignore[reportArgumentType]
