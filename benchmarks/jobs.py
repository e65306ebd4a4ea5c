"""The jobs of the benchmarks: multilayer perceptrons on generated rows, as specs and as the tensors that the peers train on."""

import json
import time
from typing import Any

import torch
from torch import Tensor

from regtrain.contract.events import Started
from regtrain.contract.job import JobSpec, parse
from worker.training.train import train


def spec(
    sizes: list[int], *, rows: int, epochs: int, batch: int = 64, lr: Any = 0.01, activation: str = "relu", diagnostics: str = "standard", seeds: int = 1, regularizers: Any = ()
) -> JobSpec:
    """One output: a linear target and squared error. Several: blobs and cross-entropy."""
    one = sizes[-1] == 1
    data = {"kind": "linear", "rows": rows, "coefficients": [1.0] * sizes[0]} if one else {"kind": "blobs", "rows": rows, "features": sizes[0], "centers": sizes[-1], "std": 3.0}
    return parse(json.dumps({
        "dataset": data, "model": {"kind": "mlp", "hidden": sizes[1:-1], "activation": activation}, "loss": {"kind": "squared_error" if one else "cross_entropy"},
        "optimizer": {"kind": "sgd", "lr": lr}, "budget": {"epochs": epochs, "batch_size": batch}, "diagnostics": diagnostics, "selection": {"seeds": seeds}, "regularizers": list(regularizers),
    }))  # fmt: skip


def tensors(sizes: list[int], rows: int) -> tuple[Tensor, Tensor]:
    """Rows of the same shape for the peers; their values do not change the time."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, sizes[0], generator=draw)
    return x, torch.randn(rows, 1, generator=draw) if sizes[-1] == 1 else torch.randint(0, sizes[-1], (rows,), generator=draw)


def ours(job: JobSpec) -> float:
    """Seconds from the first event, when the rows are loaded, to the last: all updates, all measurements, the final evaluation."""
    events = train(job)
    assert isinstance(next(events), Started)
    begin = time.perf_counter()
    for _ in events:
        pass
    return time.perf_counter() - begin
