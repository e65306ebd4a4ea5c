"""64 runs as one job against 64 lean loops one after the other, on the four nets of the design's table.

OMP_NUM_THREADS=1 python benchmarks/runs.py
"""

import torch
from harness import interleaved, publish, quartiles, ratios
from jobs import ours, spec, tensors
from peers import lean_loop
from torch import nn

CASES = {"10-16-1": ([10, 16, 1], 40), "64-32-32-10": ([64, 32, 32, 10], 20), "64-(64x8)-10": ([64, *[64] * 8, 10], 10), "784-128-10": ([784, 128, 10], 10)}
RUNS, ROWS, ROUNDS = 64, 640, 5


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (sizes, epochs) in CASES.items():
        x, y = tensors(sizes, ROWS)
        lams = [{"kind": "l2", "lambda": {"log": [1e-6, 1e-1], "points": RUNS}}]

        def serial(sizes: list[int] = sizes, x: torch.Tensor = x, y: torch.Tensor = y, epochs: int = epochs) -> float:
            return sum(lean_loop(sizes, x, y, epochs=epochs, batch=64, lr=0.01, activation=nn.Tanh) for _ in range(RUNS))

        contestants = {
            f"{RUNS} {what}, {mode}": lambda sizes=sizes, epochs=epochs, mode=mode, seeds=seeds, penalties=penalties: ours(
                spec(sizes, rows=ROWS, epochs=epochs, activation="tanh", diagnostics=mode, seeds=seeds, regularizers=penalties)
            )
            for mode in ("standard", "off")
            for what, seeds, penalties in (("lambdas", 1, lams), ("seeds", RUNS, []))
        }
        taken = interleaved({**contestants, "serial": serial}, rounds=ROUNDS)
        for contestant in contestants:
            rows.append({
                "net": name, "what": contestant, "batch": 64, "epochs": epochs, "runs": ROUNDS, "seconds": quartiles(taken[contestant]),
                "serial_seconds": quartiles(taken["serial"]), "times_faster": quartiles(ratios(taken["serial"], taken[contestant])),
            })  # fmt: skip
    publish("runs", rows)


if __name__ == "__main__":
    main()
