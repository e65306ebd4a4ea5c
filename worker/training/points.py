"""What was measured, gathered step by step and copied out about four times a second as `Points`."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.events import Points
from worker.training.diagnostics import Measured, finish
from worker.training.pack import Pack

MOST_STEPS = 1024
"""Steps after which points are copied out even if no quarter of a second has passed: bounds what waits on the device."""
SECONDS = 0.25


@dataclass
class Recorder:
    """The points of one pack that have not been reported yet. Measured tensors stay on the device until they are."""

    pack: Pack
    index: int
    died: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Run → where it first met a number that is not finite."""
    ended: dict[int, int] = field(default_factory=dict)
    """Run → updates that it made before it stopped ahead of its budget."""
    living: int = 0
    _steps: list[int] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _rates: list[NDArray[np.float64]] = field(default_factory=list)
    _measured: dict[str, list[Tensor | list[Tensor]]] = field(default_factory=dict)
    _after: list[tuple[int, dict[str, Tensor], Tensor]] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.living = self.pack.size - len(self.ended)

    def add(self, t: int, rows: int, rate: NDArray[np.float64], measured: Measured) -> None:
        """What update t measured on a batch of `rows`; rate: (R,) the learning rates on the host."""
        self._steps.append(t)
        self._rows.append(rows)
        self._rates.append(rate)
        for name, value in measured.items():
            self._measured.setdefault(name, []).append(value)

    def add_after(self, t: int, metrics: dict[str, Tensor], alive: Tensor) -> None:
        """What was evaluated after t updates, of the runs that were alive."""
        self._after.append((t, metrics, alive))

    @property
    def due(self) -> bool:
        return len(self._steps) >= MOST_STEPS or time.monotonic() - self._since > SECONDS

    def report(self, done: int) -> Points | None:
        """Everything that was gathered, as one event: the only place where training waits for the device."""
        self._since = time.monotonic()
        if not self._steps and not self._after:
            return None
        points = Points(pack=self.index, step=done, steps={}, values={}, counts={})
        if self._steps:
            self._dense(points)
        if self._after:
            self._sparse(points)
        self._steps, self._rows, self._rates, self._measured, self._after = [], [], [], {}, []
        return points

    def _dense(self, points: Points) -> None:
        steps = np.array(self._steps, np.int64)
        values = {name: _host(parts) for name, parts in self._measured.items()}
        alive, active = values.pop("alive"), values.pop("active")
        counts = alive.sum(0).astype(np.int64)
        values["learning_rate"] = np.stack(self._rates)
        finish(self.pack, values, np.array(self._rows))
        for name, value in values.items():
            points.steps[name], points.counts[name] = steps, counts
            with np.errstate(over="ignore"):  # a norm beyond float32 is infinite there
                points.values[name] = value.astype(np.float64 if self.pack.dtype == torch.float64 else np.float32, copy=False)
        self._notice_ends(steps, alive, active, points.values)

    def _sparse(self, points: Points) -> None:
        steps = np.array([t for t, _, _ in self._after], np.int64)
        alive = np.stack([a.cpu().numpy() for _, _, a in self._after])
        for name in self._after[0][1]:
            points.steps[name], points.counts[name] = steps, alive.sum(0).astype(np.int64)
            points.values[name] = np.stack([metrics[name].cpu().numpy() for _, metrics, _ in self._after])

    def _notice_ends(self, steps: NDArray[np.int64], alive: NDArray[np.bool_], active: NDArray[np.bool_], values: dict[str, NDArray[Any]]) -> None:
        """A run that was alive and not active has met a bad number: that step was not taken. One that is no longer alive was stopped early."""
        counts = alive.sum(0)
        for run in range(self.pack.size):
            if run in self.ended:
                continue
            last = int(counts[run]) - 1
            if last >= 0 and not active[last, run] and self.pack.spec.on_nonfinite == "stop":
                self.ended[run] = int(steps[last])
                self.died[run] = {"step": int(steps[last]), **_first_bad(values, last, run)}
            elif counts[run] < len(steps):
                self.ended[run] = int(steps[0]) + int(counts[run])
        self.living = self.pack.size - len(self.ended)

    def settle(self, done: int) -> None:
        """At the end of a pack: a run that early stopping ended with the very last update shows it in no later step."""
        for run in np.flatnonzero(~self.pack.alive.cpu().numpy()):
            self.ended.setdefault(int(run), done)


def _first_bad(values: dict[str, NDArray[Any]], row: int, run: int) -> dict[str, Any]:
    """Which series was not finite in this row of this run, and the layer nearest to the output whose gradient was not: there it began."""
    layers = np.flatnonzero(~np.isfinite(values["gradient/norm"][row, run])) if "gradient/norm" in values else []
    series = "loss/train" if not np.isfinite(values["loss/train"][row, run]) else "gradient/norm"
    return {"series": series, **({"layer": int(layers[-1])} if len(layers) else {})}


def _host(parts: list[Tensor | list[Tensor]]) -> NDArray[Any]:
    """n × (R,) -> (n, R), or n × L × (R,) -> (n, R, L)"""
    first = parts[0]
    if isinstance(first, list):
        flat = torch.stack([tensor for part in parts for tensor in part])
        return flat.view(len(parts), len(first), -1).transpose(1, 2).cpu().numpy()
    return torch.stack(list(parts)).cpu().numpy()  # pyright: ignore[reportArgumentType]
