"""What the flight recorder costs while nothing fails: a copy of a pack's state, once in LAST updates, beside those updates.

OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/flight.py
"""

from pathlib import Path

import torch
from harness import interleaved, publish, quartiles, timed
from jobs import ours, spec

from regtrain.contract.job import JobSpec
from worker.training.flight import LAST, Flight
from worker.training.prepare import prepare
from worker.training.running import pack_of

CASES = {"10-16-1": ([10, 16, 1], 10), "784-128-10": ([784, 128, 10], 3)}
ROWS, BATCH, ROUNDS, COPIES = 6_400, 64, 15, 200


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for net, (sizes, epochs) in CASES.items():
        job = spec(sizes, rows=ROWS, epochs=epochs, batch=BATCH)
        taken = interleaved({"copies": lambda job=job: copies(job), "updates": lambda job=job: ours(job)}, rounds=ROUNDS)
        copy = [1e6 * t / COPIES for t in taken["copies"]]
        update = [1e6 * t / (epochs * ROWS // BATCH) for t in taken["updates"]]
        share = [one / LAST / other for one, other in zip(copy, update, strict=True)]
        rows.append({"net": net, "runs": ROUNDS, "us_a_copy": quartiles(copy), "us_an_update": quartiles(update), "share": quartiles(share)})
    publish("flight", rows)


def copies(job: JobSpec) -> float:
    """Seconds of so many copies."""
    prepared = prepare(job, device="cpu", data=Path("data"), upload=None, scratch=None)
    pack, flight = pack_of(prepared, prepared.runs), Flight()
    for t in range(2):
        flight.keep(t * LAST, pack.state, pack.alive)
    return timed(lambda: [flight.keep(t * LAST, pack.state, pack.alive) for t in range(COPIES)])


if __name__ == "__main__":
    main()
