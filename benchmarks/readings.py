"""What a step costs with `standard`, read in every update, where readings wait for each other, and where each is reduced on the spot, against `off`: processor time.

OMP_NUM_THREADS=1 python benchmarks/readings.py
"""

import math
import time
from pathlib import Path

import torch
from jobs import spec

from worker.training import step
from worker.training.pack import BYTES, TOGETHER
from worker.training.prepare import for_pack, prepare
from worker.training.running import Running

NETS = ([10, 16, 1], [32, 64, 64, 10], [64, 256, 10], [128, 128, 128, 10], [64, *[64] * 8, 10], [256, 256, 10], [784, 128, 10])
BATCH, SECONDS = 64, 9.0


def main() -> None:
    torch.set_num_threads(1)
    step.reads = lambda preset, t: preset != "off"
    for sizes in NETS:
        ways = {"off": _begun(sizes, "off"), "wait": _begun(sizes, "standard"), "on the spot": _begun(sizes, "standard")}
        pack = ways["wait"].pack
        reading = 4 * (3 * pack.flat.numel() + 2 * BATCH * sum(math.prod(layer.signal) for layer in pack.shape))
        together = max(2, min(TOGETHER, BYTES // reading))
        ways["wait"].pack.together = lambda rows, together=together: together  # pyright: ignore[reportAttributeAccessIssue]
        ways["on the spot"].pack.together = lambda rows: 1  # pyright: ignore[reportAttributeAccessIssue]
        taken: dict[str, list[float]] = {way: [] for way in ways}
        steps = together * max(1, 32 // together)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for way, running in ways.items():
                taken[way].append(_taken(running, steps))
        us = {way: sorted(times[1:])[len(times) // 6] for way, times in taken.items()}
        ratios = ", ".join(f"{way} {us[way] / us['off']:.2f}" for way in ("wait", "on the spot"))
        print(f"{sizes}: {reading / 1024:.0f} KiB, off {us['off']:.0f} µs, {ratios} ({len(taken['off'])} rounds)", flush=True)


def _begun(sizes: list[int], mode: str) -> Running:
    job = prepare(spec(sizes, rows=6400, epochs=100_000, batch=BATCH, diagnostics=mode), device="cpu", data=Path("data"), upload=None, scratch=None)
    return Running(for_pack(job, job.runs), 0, [run.index for run in job.runs], job.runs)


def _taken(running: Running, steps: int) -> float:
    """Microseconds of processor time a step, with the report of them all."""
    begin = time.thread_time()
    for _ in range(steps):
        running.update()
    running.recorder.report(running.pack, running.slots, running.done)
    return (time.thread_time() - begin) / steps * 1e6


if __name__ == "__main__":
    main()
