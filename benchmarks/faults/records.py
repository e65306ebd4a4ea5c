"""A group of cases trained as one job, and what every run left behind: its series, what was noticed, how well it did."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.faults.cases import Case, Group
from regtrain.contract.diagnostics import Diagnostics
from regtrain.contract.events import Noticed, PackBegun, Points, RunFinished, Started
from regtrain.contract.job import parse
from worker.training.train import train

Array = NDArray[np.float64]
ROSE, ERRORS = 1.2, 3.0


@dataclass
class Record:
    """One run of one case."""

    group: Group
    case: Case
    seed: int
    diagnostics: Diagnostics = "full"
    layers: list[str] = field(default_factory=list[str])
    curves: dict[str, tuple[NDArray[np.int64], Array]] = field(default_factory=dict[str, tuple[NDArray[np.int64], Array]])
    """Series → steps (n,) and values (n,) or (n, L)."""
    noticed: list[Noticed] = field(default_factory=list[Noticed])
    accuracy: float = 0.0
    """On the held-out rows, at the end; 0 of a run that diverged, or was trained on another loss than that of classes."""

    @property
    def learned(self) -> bool:
        return self.accuracy >= self.group.floor

    @property
    def overfits(self) -> bool:
        """Whether a net is no sound one, however it was made: the mean of the last quarter of its held-out losses is more than a fifth above the lowest of them
        (Prechelt's GL₂₀), and by more than three standard errors of that mean."""
        losses = self.values("loss/val")
        if losses is None or len(losses) < 8:
            return False
        late, lowest = losses[-(len(losses) // 4) :], float(losses.min())
        return float(late.mean()) > max(ROSE * lowest, lowest + ERRORS * float(late.std(ddof=1)) / len(late) ** 0.5)

    @property
    def risen(self) -> float:
        """The validation loss at the end over its best: what overfitting is measured by (Prechelt 1998)."""
        losses = self.values("loss/val")
        return float(losses[-1] / losses.min()) if losses is not None and losses.min() > 0 else 1.0

    def values(self, name: str) -> Array | None:
        """The values of a series; None where it was not recorded."""
        return self.curves[name][1] if name in self.curves and len(self.curves[name][1]) else None


def trained(group: Group, *, seed: int, seeds: int, diagnostics: Diagnostics) -> tuple[list[Record], float]:
    """One record a case and seed, and the seconds that it took."""
    begin, cases = time.perf_counter(), {case.name: case for case in group.cases}
    packs, records = list[list[int]](), dict[int, Record]()
    pieces: dict[int, dict[str, list[tuple[NDArray[np.int64], Array]]]] = {}
    with TemporaryDirectory() as folder:
        for event in train(parse(json.dumps(group.job(seed=seed, seeds=seeds, diagnostics=diagnostics))), data=Path(folder)):
            match event:
                case Started():
                    packs = event.packs
                case PackBegun():
                    for run in event.runs:
                        records[run] = Record(group, cases[event.variant or ""], run % seeds, diagnostics, event.layers)
                case Points():
                    for run, name, piece in _pieces(event, packs[event.pack]):
                        pieces.setdefault(run, {}).setdefault(name, []).append(piece)
                case Noticed():
                    records[event.run].noticed.append(event)
                case RunFinished():
                    records[event.run].accuracy = 0.0 if event.stop_reason == "diverged" else event.metrics.get("accuracy/val", 0.0)
                case _:
                    pass
    for run, record in records.items():
        record.curves = {name: (np.concatenate([s for s, _ in parts]), np.concatenate([v for _, v in parts])) for name, parts in pieces.get(run, {}).items()}
    return list(records.values()), time.perf_counter() - begin


def _pieces(event: Points, members: list[int]) -> Iterator[tuple[int, str, tuple[NDArray[np.int64], Array]]]:
    for name, steps in event.steps.items():
        if name.startswith(("histogram/", "identity/")):
            continue
        for slot, run in enumerate(members):
            count = int(event.counts[name][slot])
            yield run, name, (steps[:count], np.array(event.values[name][:count, slot], dtype=np.float64))
