"""What needs a GPU to be checked: CPU and GPU agree, the same seed twice gives the same bits, a step does not wait for the device, and how long it takes.

    make bench-gpu

Needs torch, numpy and pydantic only. Where there is no GPU it says so and exits 0; a check that does not hold exits 1.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from regtrain.contract.events import Points
from regtrain.contract.job import JobSpec, parse
from worker.training.feed import Feed
from worker.training.pack import Pack
from worker.training.prepare import prepare
from worker.training.step import step
from worker.training.train import train

TOLERANCE = 1e-9
"""Largest relative difference of a float64 loss curve between CPU and GPU over 100 steps."""

JOBS = {
    "mlp": '{"kind": "mlp", "hidden": [64, 64], "activation": "tanh"}',
    "cnn": '{"kind": "cnn", "channels": [8, 16], "hidden": [32], "normalization": {"kind": "batch"}, "image": [1, 8, 8]}',
}


def spec(model: str, *, dtype: str, rows: int = 1280, features: int = 64, runs: int = 4, dropout: bool = False, epochs: int = 5) -> JobSpec:
    penalties = f'{{"kind": "l1", "lambda": {{"log": [1e-6, 1e-2], "points": {runs}}}}}' + (', {"kind": "dropout", "rate": 0.2}' if dropout else "")
    return parse(f"""{{"dataset": {{"kind": "blobs", "rows": {rows}, "features": {features}, "centers": 10, "std": 3.0, "standardize": true}}, "model": {model},
        "loss": {{"kind": "cross_entropy"}}, "optimizer": {{"kind": "sgd", "lr": 0.05, "momentum": 0.9}}, "regularizers": [{penalties}],
        "budget": {{"epochs": {epochs}, "batch_size": 64}}, "dtype": "{dtype}"}}""")


def curve(job: JobSpec, device: str) -> np.ndarray:
    """loss/train of every step and run."""
    return np.concatenate([event.values["loss/train"] for event in train(job, device=device) if isinstance(event, Points)])


def agreement(model: str) -> float:
    """Largest relative difference between the curves of CPU and GPU, without masks, which are drawn on the device."""
    cpu, gpu = curve(spec(model, dtype="float64"), "cpu"), curve(spec(model, dtype="float64"), "cuda")
    return float(np.max(np.abs(cpu - gpu) / np.abs(cpu)))


def repeats(model: str) -> bool:
    """The same job twice on the GPU, dropout on, float32: identical bits."""
    job = spec(model, dtype="float32", dropout=True)
    return bool(np.array_equal(curve(job, "cuda"), curve(job, "cuda")))


def waits(model: str) -> str:
    """Ten steps with every instrument, under torch's watch for synchronisation: empty if there was none."""
    job = prepare(spec(model, dtype="float32", dropout=True), device="cuda", data=Path("."), upload=None, scratch=None)
    pack = Pack(job.runs, job.shape, features=64, device=job.device)
    feed = Feed(job, pack)
    step(pack, *feed.batch(0), t=0, lr=feed.rates(0)[1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in range(1, 11):
            step(pack, *feed.batch(t), t=t, lr=feed.rates(t)[1])
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def microseconds(runs: int, diagnostics: str) -> float:
    """One eager step of 784-128-10, batch 64."""
    text = spec('{"kind": "mlp", "hidden": [128]}', dtype="float32", features=784, rows=6400, runs=max(2, runs), epochs=3)
    begin = time.perf_counter()
    events = train(text.model_copy(update={"diagnostics": diagnostics}), device="cuda")
    next(events)
    begin = time.perf_counter()
    for _ in events:
        pass
    return 1e6 * (time.perf_counter() - begin) / 300


def main() -> int:
    if not torch.cuda.is_available():
        print(f"no GPU here (torch {torch.__version__} sees none): nothing was checked")
        return 0
    from harness import publish

    rows = []
    for name, model in JOBS.items():
        rows.append({"what": f"{name}: CPU against GPU, float64, 100 steps", "relative_difference": agreement(model), "tolerance": TOLERANCE})
        rows.append({"what": f"{name}: same seed twice, float32, dropout", "identical": repeats(model)})
        rows.append({"what": f"{name}: synchronisation in a step", "found": waits(model) or "none"})
    for runs in (2, 64, 256):
        rows += [{"what": f"784-128-10, {runs} runs, {mode}", "us_a_step": sorted(microseconds(runs, mode) for _ in range(3))[1]} for mode in ("off", "standard")]
    for row in rows:
        row["device"] = torch.cuda.get_device_name()
    publish("gpu", rows)
    broken = [row for row in rows if row.get("relative_difference", 0) > TOLERANCE or row.get("identical") is False or row.get("found", "none") != "none"]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
