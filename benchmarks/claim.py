"""What regularization does to the gradients of deep nets, and what does change them: the claim of five articles, measured.

OMP_NUM_THREADS=1 python benchmarks/claim.py [--part depth|time] [--depths 2 4 8 16 32] [--epochs 16] [--quick]

Depth: nets of 2, 4, 8, 16 and 32 hidden layers of 32 units on digits; one job a depth. Its variants are sigmoid, tanh and relu, each with torch's default weights
       and with He's, and with each of the METHODS; five seeds each. A seed means the same initial weights (where shapes agree), rows and batches in every
       variant, so differences from the bare net are paired.
Time:  a tanh net over sequences of 40 steps (temporal_order), one job, ten seeds.

Recorded at step 0 and as geometric mean over the last epoch, first over last hidden layer (earliest over latest time step): the signal gradient ∂loss/∂h,
the weight gradient, and the weight gradient with the penalties' own gradient added; χ from the first of them; accuracy on held-out rows.
--quick: depths 2 and 8, two epochs, two seeds, nothing kept.

`docs/claim.py` writes docs/does-regularization-fix-gradients.md from what is kept in benchmarks/results/claim.json.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import publish
from numpy.typing import NDArray

from regtrain.contract.events import PackBegun, Points, RunFinished, Started
from regtrain.contract.job import parse
from worker.training.train import train

DEPTHS, WIDTH = (2, 4, 8, 16, 32), 32
ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITS = ("torch", "he_normal")
PARTS = ("depth", "time")
Changes = dict[str, Any]
METHODS: dict[str, Changes] = {
    "none": {},
    "L1, λ = 1e-4": {"regularizers": [{"kind": "l1", "lambda": 1e-4}]},
    "L1, λ = 0.01": {"regularizers": [{"kind": "l1", "lambda": 1e-2}]},
    "L2, λ = 1e-4": {"regularizers": [{"kind": "l2", "lambda": 1e-4}]},
    "L2, λ = 0.01": {"regularizers": [{"kind": "l2", "lambda": 1e-2}]},
    "dropout 0.2": {"regularizers": [{"kind": "dropout", "rate": 0.2}]},
    "dropout 0.5": {"regularizers": [{"kind": "dropout", "rate": 0.5}]},
    "clip at norm 1": {"clip": {"kind": "global_norm", "max": 1.0}},
    "batch norm": {"model.normalization": {"kind": "batch"}},
    "residual": {"model.residual": True},
}
"""0.01 is the λ of the articles' code."""
EXTRA: dict[str, Changes] = {
    **{f"{activation} | torch | step penalty 0.1": {"model.activation": activation, "regularizers": [{"kind": "step_penalty", "lambda": 0.1}]} for activation in ACTIVATIONS},
    "sigmoid | scaled | none": {"model.activation": "sigmoid", "model.init": {"kind": "xavier_normal", "scale": 4.0}},
}
"""The penalty of the articles on the step; and an init that makes up for φ′(0) = 1/4, as He's does not."""
GROWING: Changes = {"model.cell": "identity", "model.init": {"kind": "orthogonal", "scale": 1.2}}
RECURRENT: dict[str, Changes] = {
    "tanh | torch | none": {},
    "tanh | torch | L1, λ = 1e-4": {"regularizers": [{"kind": "l1", "lambda": 1e-4}]},
    "tanh | torch | L1, λ = 0.01": {"regularizers": [{"kind": "l1", "lambda": 1e-2}]},
    "tanh | torch | L2, λ = 1e-4": {"regularizers": [{"kind": "l2", "lambda": 1e-4}]},
    "tanh | torch | L2, λ = 0.01": {"regularizers": [{"kind": "l2", "lambda": 1e-2}]},
    "tanh | torch | dropout 0.2": {"regularizers": [{"kind": "dropout", "rate": 0.2}]},
    "tanh | torch | clip at norm 1": {"clip": {"kind": "global_norm", "max": 1.0}},
    "tanh | torch | Ω, λ = 1": {"regularizers": [{"kind": "vanishing_gradient", "lambda": 1.0}]},
    "tanh | torch | Ω, λ = 1, clip at norm 1": {"regularizers": [{"kind": "vanishing_gradient", "lambda": 1.0}], "clip": {"kind": "global_norm", "max": 1.0}},
    "tanh | orthogonal | none": {"model.init": {"kind": "orthogonal"}},
    "tanh | orthogonal | clip at norm 1": {"model.init": {"kind": "orthogonal"}, "clip": {"kind": "global_norm", "max": 1.0}},
    "lstm | torch | none": {"model.cell": "lstm"},
    "gru | torch | none": {"model.cell": "gru"},
    "linear | orthogonal × 1.2 | none": GROWING,
    "linear | orthogonal × 1.2 | L1, λ = 1e-4": {**GROWING, "regularizers": [{"kind": "l1", "lambda": 1e-4}]},
    "linear | orthogonal × 1.2 | L2, λ = 0.01": {**GROWING, "regularizers": [{"kind": "l2", "lambda": 1e-2}]},
    "linear | orthogonal × 1.2 | clip at norm 1": {**GROWING, "clip": {"kind": "global_norm", "max": 1.0}},
}
"""Ω is the one penalty made for this: on how the gradient's length changes from step to step (Pascanu et al. 2013). The last four explode: 1.2^39 = 1,225."""
LAYERS = {"signal/backward", "gradient/norm", "penalty_gradient/norm", "penalty_gradient/cosine"}


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    depths: tuple[int, ...] = DEPTHS
    epochs: int = 16
    seeds: int = 5
    time_epochs: int = 30
    time_seeds: int = 10


QUICK = Scale(depths=(2, 8), epochs=2, seeds=2, time_epochs=2, time_seeds=2)


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    scale = QUICK if arguments.quick else Scale(depths=tuple(arguments.depths), epochs=arguments.epochs)
    rows = [row for depth in scale.depths for row in measured(deep(depth, scale), depth=depth)] if "depth" in arguments.part else []
    rows += measured(recurrent(scale), depth=None) if "time" in arguments.part else []
    publish("claim", rows, keep=not arguments.quick)
    return 0


def deep(depth: int, scale: Scale) -> dict[str, Any]:
    """The job of one depth."""
    variants = [
        {"label": f"{activation} | {init} | {method}", "set": {"model.activation": activation, "model.init": {"kind": init}, **changes}}
        for activation, init, (method, changes) in product(ACTIVATIONS, INITS, METHODS.items())
    ]
    extra = [{"label": label, "set": changes} for label, changes in EXTRA.items()]
    return {
        "dataset": {"kind": "digits", "validation": 0.2, "split": "stratified", "standardize": True},
        "model": {"kind": "mlp", "hidden": [WIDTH] * depth},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "budget": {"epochs": scale.epochs, "batch_size": 128},
        "variants": [*variants, *extra],
        "selection": {"seeds": scale.seeds},
        "diagnostics": "full",
    }


def recurrent(scale: Scale) -> dict[str, Any]:
    """The job of the net that is deep in time."""
    return {
        "dataset": {"kind": "temporal_order", "length": 40, "rows": 1000, "validation": 0.2},
        "model": {"kind": "rnn", "hidden": [24], "cell": "tanh"},
        "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "budget": {"epochs": scale.time_epochs, "batch_size": 100},
        "variants": [{"label": label, "set": changes} for label, changes in RECURRENT.items()],
        "selection": {"seeds": scale.time_seeds},
    }


class Record:
    """Of one run: the logarithms of its ratios at step 0 and in the last epoch."""

    def __init__(self) -> None:
        self.first: dict[str, float | None] = {}
        self.last: dict[str, list[float]] = {}
        self.finished: RunFinished | None = None

    def add(self, step: int, tail: int, ratios: dict[str, float]) -> None:
        if step == 0:
            self.first = {name: _logarithm(ratio) for name, ratio in ratios.items()}
        if step >= tail:
            for name, ratio in ratios.items():
                self.last.setdefault(name, []).append(ratio)

    def after(self, name: str) -> float | None:
        """Mean of log10 over the last epoch; None where a gradient was 0 or not finite at any of its steps."""
        logs = [_logarithm(ratio) for ratio in self.last.get(name, [])]
        return float(np.mean([log for log in logs if log is not None])) if logs and None not in logs else None


def measured(body: dict[str, Any], *, depth: int | None) -> list[dict[str, Any]]:
    """Trains the job and keeps a row for each of its variants: one number a seed of everything."""
    begin, records, began = time.perf_counter(), dict[int, Record](), dict[int, PackBegun]()
    packs, recorded, labels = list[list[int]](), list[str](), dict[int, str]()
    with TemporaryDirectory() as folder:
        for event in train(parse(json.dumps(body)), data=Path(folder)):
            match event:
                case Started():
                    packs, recorded = event.packs, event.series
                case PackBegun():
                    began[event.pack] = event
                    labels.update(dict.fromkeys(event.runs, event.variant or ""))
                case Points():
                    _keep(event, packs[event.pack], began[event.pack], records, recorded)
                case RunFinished():
                    records.setdefault(event.run, Record()).finished = event
                case _:
                    pass
    seconds = time.perf_counter() - begin
    print(f"depth {depth}: {len(records)} runs in {seconds:.0f} s", file=sys.stderr)
    return [_row(label, [records[run] for run, its in labels.items() if its == label], depth, seconds) for label in dict.fromkeys(labels.values())]


def _keep(event: Points, members: list[int], begun: PackBegun, records: dict[int, Record], recorded: list[str]) -> None:
    """What this report adds to the records of its runs. With `full` series of layers have a point at every update; that of time has one an epoch."""
    names = event.values.keys() & ({"signal/time"} if "signal/time" in recorded else LAYERS)
    tail = begun.steps - begun.steps_per_epoch
    for slot, run in enumerate(members):
        record = records.setdefault(run, Record())
        points: dict[int, dict[str, NDArray[Any]]] = {}
        for name in names:
            count = int(event.counts[name][slot])
            for step, value in zip(event.steps[name][:count].tolist(), event.values[name][:count, slot], strict=True):
                if step == 0 or step >= tail:
                    points.setdefault(step, {})[name] = value.astype(float)
        for step, values in points.items():
            record.add(step, tail, dict(_ratios(values)))


def _ratios(values: dict[str, NDArray[Any]]) -> Iterator[tuple[str, float]]:
    """First over last hidden layer, or earliest over latest time step."""
    if "signal/time" in values:
        yield "signal", _over(values["signal/time"][0], values["signal/time"][-1])
        return
    yield "signal", _over(values["signal/backward"][0], values["signal/backward"][-2])
    g = values["gradient/norm"]
    p, cosine = (values.get(name, np.zeros_like(g)) for name in ("penalty_gradient/norm", "penalty_gradient/cosine"))
    whole = np.sqrt(np.maximum(0.0, g**2 + p**2 + 2 * g * p * cosine))
    yield "weight", _over(g[0], g[-2])
    yield "with penalty", _over(whole[0], whole[-2])


def _over(a: float, b: float) -> float:
    return float(a / b) if b > 0 else math.nan


def _logarithm(ratio: float) -> float | None:
    return math.log10(ratio) if 0 < ratio < math.inf else None


def _row(label: str, records: list[Record], depth: int | None, seconds: float) -> dict[str, Any]:
    activation, init, method = label.split(" | ")
    finished = [record.finished for record in records if record.finished is not None]
    return {
        "part": "time" if depth is None else "depth", "depth": depth, "updates": records[0].finished.steps if records[0].finished else 0, "activation": activation, "init": init, "method": method, "seconds": round(seconds, 1),
        "before": {name: [_short(record.first.get(name)) for record in records] for name in ("signal", "weight", "with penalty") if name in records[0].first},
        "after": {name: [_short(record.after(name)) for record in records] for name in ("signal", "weight", "with penalty") if name in records[0].first},
        "accuracy": [_short(run.metrics.get("accuracy/val")) for run in finished],
        "diverged": sum(run.stop_reason == "diverged" for run in finished),
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What regularization does to the gradients of deep nets.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: both)")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS, help="hidden layers, one job each (default: 2 4 8 16 32)")
    parser.add_argument("--epochs", type=int, default=Scale.epochs, help="of 12 updates each, for every net of the part depth (default: 16)")
    parser.add_argument("--quick", action="store_true", help="depths 2 and 8, two epochs, two seeds; nothing is kept")
    sys.exit(main(parser.parse_args()))
