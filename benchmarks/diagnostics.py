"""What measuring costs: each preset against `off`, and what per-tensor `.item()` and histograms cost a lean loop.

OMP_NUM_THREADS=1 python benchmarks/diagnostics.py
"""

import torch
from harness import interleaved, publish, quartiles, ratios
from jobs import ours, spec, tensors
from peers import lean_loop

CASES = {
    "10-16-1": ([10, 16, 1], 40, 64),
    "784-128-10": ([784, 128, 10], 20, 64),
    "64-(64x8)-10": ([64, *[64] * 8, 10], 20, 64),
    "784-512-512-10, batch 256": ([784, 512, 512, 10], 20, 256),
}
"""Sizes of layers, epochs, rows a batch: 4,000 updates, 2,000, 2,000 and 500. The first 32 are read whole, so what is measured costs short jobs more."""
ROWS, ROUNDS = 6_400, 7


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (sizes, epochs, batch) in CASES.items():
        x, y = tensors(sizes, ROWS)
        presets = {
            mode: lambda sizes=sizes, epochs=epochs, batch=batch, mode=mode: ours(spec(sizes, rows=ROWS, epochs=epochs, batch=batch, diagnostics=mode))
            for mode in ("off", "light", "standard", "full")
        }
        watched = {
            f"lean {watch}": lambda sizes=sizes, x=x, y=y, epochs=epochs, batch=batch, watch=watch: lean_loop(sizes, x, y, epochs=epochs, batch=batch, lr=0.01, watch=watch)
            for watch in ("nothing", "item", "histogram")
        }
        taken = interleaved({**presets, **watched}, rounds=ROUNDS)
        steps = epochs * ROWS // batch
        for mode, base in [("light", "off"), ("standard", "off"), ("full", "off"), ("lean item", "lean nothing"), ("lean histogram", "lean nothing")]:
            rows.append({
                "net": name, "what": mode, "against": base, "runs": ROUNDS, "us_a_step": quartiles([1e6 * t / steps for t in taken[mode]]),
                "base_us": quartiles([1e6 * t / steps for t in taken[base]]), "ratio": quartiles(ratios(taken[mode], taken[base])),
            })  # fmt: skip
    publish("diagnostics", rows)


if __name__ == "__main__":
    main()
