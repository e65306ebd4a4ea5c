"""A job through the engine's door, and what it reported, joined into curves and weights."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from regtrain.contract.events import Event, Finished, Points, RunFinished, Started
from regtrain.contract.job import parse
from worker.training.pack import Pack
from worker.training.prepare import prepare
from worker.training.running import pack_of
from worker.training.step import step
from worker.training.train import train

REFERENCE = Path(__file__).parent.parent / "reference"
FROZEN = 1e-300
"""A learning rate that moves no weight other than an exact zero."""


@dataclass(frozen=True)
class Outcome:
    """Everything that a job reported."""

    started: Started
    finished: Finished
    runs: dict[int, RunFinished]
    curves: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]
    """Series → run → steps (n,) and values (n,) or (n, L)."""
    weights: dict[str, Tensor]
    """Tensor → (R, *shape)."""

    def curve(self, series: str, run: int = 0) -> np.ndarray:
        return self.curves[series][run][1]

    def flat(self, run: int = 0) -> Tensor:
        """All parameters of one run in a row."""
        return torch.cat([w[run].flatten() for name, w in sorted(self.weights.items()) if "running" not in name])


def spec(dataset: dict[str, Any], model: dict[str, Any], loss: str | dict[str, Any], optimizer: dict[str, Any], *regularizers: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A job spec as JSON object, in float64 and full batch unless said otherwise."""
    budget = {"epochs": rest.pop("epochs", 1), "batch_size": rest.pop("batch_size", "all"), "accumulate": rest.pop("accumulate", 1)}
    loss = {"kind": loss} if isinstance(loss, str) else loss
    return {"dataset": dataset, "model": model, "loss": loss, "optimizer": optimizer, "regularizers": list(regularizers), "budget": budget, "dtype": "float64", **rest}


def sgd(lr: Any, momentum: Any = 0.0, *, nesterov: bool = False, **schedule: Any) -> dict[str, Any]:
    return {"kind": "sgd", "lr": lr, "momentum": momentum, "nesterov": nesterov, "schedule": schedule or {"kind": "constant"}}


def inline(x: Any, y: Any, **rest: Any) -> dict[str, Any]:
    return {"kind": "inline", "x": np.asarray(x, float).tolist(), "y": np.asarray(y, float).tolist(), **rest}


def events(job: dict[str, Any], *, scratch: Path, **how: Any) -> list[Event]:
    return list(train(parse(json.dumps(job)), data=scratch, scratch=scratch, **how))


def run(job: dict[str, Any], **how: Any) -> Outcome:
    """Trains a job to its end in a folder that lives as long as this call."""
    with tempfile.TemporaryDirectory() as folder:
        return outcome(events(job, scratch=Path(folder), **how))


def outcome(found: Iterable[Event]) -> Outcome:
    found = list(found)
    started, finished = found[0], found[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    points = [event for event in found if isinstance(event, Points)]
    return Outcome(started, finished, {e.run: e for e in found if isinstance(e, RunFinished)}, joined(started.packs, points), load_file(finished.path))


def joined(packs: list[list[int]], points: Iterable[Points]) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """The blocks of all `Points` as one curve a series and run, each cut where its run stopped."""
    parts: dict[str, dict[int, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for block in points:
        for name, steps in block.steps.items():
            for slot, index in enumerate(packs[block.pack]):
                n = int(block.counts[name][slot])
                parts.setdefault(name, {}).setdefault(index, []).append((steps[:n], block.values[name][:n, slot]))
    return {name: {index: (np.concatenate([x for x, _ in p]), np.concatenate([y for _, y in p])) for index, p in of.items()} for name, of in parts.items()}


def gradient_at(job: dict[str, Any], weights: Mapping[str, Tensor]) -> tuple[Pack, dict[str, Any]]:
    """What a step of the first run computes at given weights, with a learning rate of 0: `pack.gradient` and everything that is measured."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(parse(json.dumps(job)), device="cpu", data=Path(folder), upload=None, scratch=None)
    pack = pack_of(prepared, prepared.runs[:1])
    for name, tensor in weights.items():
        pack.net.tensors[name][0] = tensor
    return pack, step(pack, prepared.train.x, prepared.train.y, t=0, lr=torch.zeros(1, 1, dtype=torch.float64))[0]


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖/‖b‖"""
    return float((a - b).norm() / b.norm())


def reference(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / f"{name}.json").read_text())


def torch_order(job: dict[str, Any], *, rows: int, epochs: int, seed: int = 0) -> list[Tensor]:
    """The rows of each update of a job without held-out rows, epoch after epoch."""
    from worker.training.draws import row_order

    size = job["budget"]["batch_size"]
    if size == "all":
        return [torch.arange(rows)] * epochs
    return [part for epoch in range(epochs) for part in row_order(job=job.get("seed", 0), run=seed, epoch=epoch, rows=rows).split(size)]
