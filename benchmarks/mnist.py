"""784-128-10 on MNIST through a service and a worker of its own: what L1 does at one λ, and λ chosen from 480 trainings sent as one request.

OMP_NUM_THREADS=1 python benchmarks/mnist.py --data FOLDER [--part methods|search] [--epochs 3] [--quick]

FOLDER (or REGTRAIN_DATA) holds mnist/mnist.npz or the four published files. ReLU, batch 64, plain SGD, L1 on both weight matrices.

methods: λ = 1e-4, 3 epochs by proximal steps and by subgradients at lr 0.1, 3 and 10 epochs by proximal steps at lr 0.01, ten seeds each as one job;
         the accuracy on the 10,000 test rows and the exact zeros of every seed. The same seed means the same initial weights and row order, so differences are paired.
search:  32 λ × 5 folds × 3 seeds = 480 trainings on 48,000 rows each, and a last one of the choice on all 60,000: wall time from before the POST to the
         answer that the job has ended. Beside it a lean loop with the same net, rows and epochs: eight whole trainings at different λ, half of them
         before the job and half after it, stand for 480. The worker computes with one thread, as the loop does; what it reports is stored by a second process.
--quick: a few runs of one epoch, nothing kept.

`docs/results.py` writes docs/results.md from what is kept in benchmarks/results/mnist.json.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import publish
from peers import lean_fit
from torch import Tensor
from torch.nn.functional import cross_entropy

from regtrain.cli.processes import house
from regtrain.client import Client, Job
from regtrain.contract.datasets import Mnist
from regtrain.contract.errors import DataError
from worker.training.datasets import load

SIZES, BATCH, TRAIN_ROWS = [784, 128, 10], 64, 60_000
METHODS = (("proximal", 0.1, 3), ("subgradient", 0.1, 3), ("proximal", 0.01, 3), ("proximal", 0.01, 10))
"""Method, learning rate, epochs."""
LOW, HIGH = 1e-6, 1e-2
PARTS = ("methods", "search")


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    most_epochs: int = 10
    """Of a line of the methods."""
    method_seeds: int = 10
    epochs: int = 3
    lambdas: int = 32
    folds: int = 5
    seeds: int = 3
    sample: int = 8

    @property
    def trainings(self) -> int:
        return self.lambdas * self.folds * self.seeds


QUICK = Scale(most_epochs=1, method_seeds=2, epochs=1, lambdas=4, folds=2, seeds=1, sample=2)


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    try:
        rows = load(Mnist(kind="mnist"), data=arguments.data, upload=None, classify=True)
    except DataError as missing:
        print(f"{missing}. Say where the data folder is with --data FOLDER or REGTRAIN_DATA=FOLDER; here it is {arguments.data.resolve()}", file=sys.stderr)
        return 1
    x, y = torch.from_numpy(rows.x).float(), torch.from_numpy(rows.y).long()
    scale = QUICK if arguments.quick else Scale(epochs=arguments.epochs)
    with TemporaryDirectory() as folder:
        (Path(folder) / "mnist").symlink_to((arguments.data / "mnist").resolve())
        with house(workers=1, log=Path(folder) / "log", port=0, data=folder, threads=1, device="cpu", selftest_seconds="inf") as running, Client(running.url) as client:
            found = [*(methods(client, scale) if "methods" in arguments.part else ()), *([search(client, scale, x, y)] if "search" in arguments.part else ())]
    publish("mnist", found, keep=not arguments.quick)
    return 0


def spec(*, lr: float, lam: Any, epochs: int, method: str = "proximal", selection: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": {"kind": "mnist"}, "model": {"kind": "mlp", "hidden": SIZES[1:-1], "activation": "relu"}, "loss": {"kind": "cross_entropy"},
        "regularizers": [{"kind": "l1", "lambda": lam, "method": method}], "optimizer": {"kind": "sgd", "lr": lr},
        "budget": {"epochs": epochs, "batch_size": BATCH}, "selection": selection, "diagnostics": "off",
    }  # fmt: skip


def trained(client: Client, body: dict[str, Any]) -> tuple[Job, list[dict[str, Any]], float]:
    """The ended job, its runs, and the seconds that the client waited."""
    begin = time.perf_counter()
    job = client.wait(client.submit(body)["id"])
    seconds = time.perf_counter() - begin
    assert job["state"] == "succeeded", job
    return job, list(client.runs(job["id"])), seconds


def methods(client: Client, scale: Scale) -> list[dict[str, Any]]:
    """One row a method and learning rate: the accuracy and the share of zeros in the first layer, seed by seed."""
    found: list[dict[str, Any]] = []
    for method, lr, most in METHODS:
        epochs = min(most, scale.most_epochs)
        _, runs, seconds = trained(client, spec(lr=lr, lam=1e-4, method=method, epochs=epochs, selection={"seeds": scale.method_seeds}))
        found.append({
            "part": "methods", "method": method, "lr": lr, "epochs": epochs, "seconds": seconds,
            "accuracy": [run["metrics"]["accuracy/test"] for run in runs], "zeros": [run["zeros"]["layers.0.weight"] / (SIZES[0] * SIZES[1]) for run in runs],
        })  # fmt: skip
    return found


def search(client: Client, scale: Scale, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The search as one job, in the middle of the sampled loop."""
    lambdas = [float(value) for value in np.geomspace(LOW, HIGH, scale.lambdas)]
    sample = [round(place) for place in np.linspace(0, scale.lambdas - 1, scale.sample)]
    held = [torch.from_numpy(part) for part in np.array_split(np.arange(TRAIN_ROWS), scale.folds)]

    def by_hand(number: int, place: int) -> dict[str, float]:
        return {"lambda": lambdas[place], **serial(x, y, held[number % scale.folds], lam=lambdas[place], epochs=scale.epochs)}

    before, after = ([*enumerate(sample)][half::2] for half in (0, 1))
    by_hand(*before[0])
    early = [by_hand(*one) for one in before]
    job, runs, seconds = trained(
        client, spec(lr=0.1, lam={"log": [LOW, HIGH], "points": scale.lambdas}, epochs=scale.epochs, selection={"folds": scale.folds, "shuffle": False, "seeds": scale.seeds})
    )
    late = [by_hand(*one) for one in after]
    result, refit = job.get("result") or {}, runs[-1]
    selection = result["selection"]
    return {
        "part": "search", "epochs": scale.epochs, "lambdas": scale.lambdas, "folds": scale.folds, "seeds": scale.seeds, "trainings": scale.trainings,
        "seconds": seconds, "where": result["seconds"], "serial": sorted([*early, *late], key=lambda one: one["lambda"]),
        "best": selection["best"], "one_standard_error": selection["one_standard_error"],
        "table": [{"lambda": lam, "mean": score["mean"], "standard_error": score["standard_error"]} for lam, score in zip(lambdas, selection["table"], strict=True)],
        "refit": {"lambda": refit["values"]["regularizers.0.lambda"], "accuracy": refit["metrics"]["accuracy/test"], "zeros": refit["zeros"]["layers.0.weight"] / (SIZES[0] * SIZES[1])},
    }  # fmt: skip


def serial(x: Tensor, y: Tensor, held: Tensor, *, lam: float, epochs: int) -> dict[str, float]:
    """One training without the rows that are held out, and the loss on those."""
    begin = time.perf_counter()
    kept = torch.ones(TRAIN_ROWS, dtype=torch.bool)
    kept[held] = False
    rows = kept.nonzero().squeeze(1)
    model = lean_fit(SIZES, x[rows], y[rows], loss_of=cross_entropy, epochs=epochs, batch=BATCH, lr=0.1, l1=lam)
    with torch.no_grad():
        loss = cross_entropy(model(x[held]), y[held]).item()
    return {"seconds": time.perf_counter() - begin, "loss": loss}


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="MNIST through a service and a worker, and beside a lean loop.")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("REGTRAIN_DATA", "regtrain-data")), help="the data folder, with mnist/ in it (default: REGTRAIN_DATA, else regtrain-data)"
    )
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS, help="what to measure (default: everything)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each of the 480 trainings (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a few runs of one epoch; nothing is kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(asked()))
