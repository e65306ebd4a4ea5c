"""One job against the articles' DataLoader loop and against a lean loop: training wall time, same net, rows, batch and epochs.

OMP_NUM_THREADS=1 python benchmarks/one_job.py
"""

import torch
from harness import interleaved, publish, quartiles, ratios
from jobs import ours, spec, tensors
from peers import article_loop, lean_loop

CASES = {"784-128-10": ([784, 128, 10], 12_800, 5), "10-16-1": ([10, 16, 1], 12_800, 10)}
ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (sizes, count, epochs) in CASES.items():
        x, y = tensors(sizes, count)
        taken = interleaved(
            {
                "standard": lambda sizes=sizes, count=count, epochs=epochs: ours(spec(sizes, rows=count, epochs=epochs)),
                "off": lambda sizes=sizes, count=count, epochs=epochs: ours(spec(sizes, rows=count, epochs=epochs, diagnostics="off")),
                "article": lambda sizes=sizes, x=x, y=y, epochs=epochs: article_loop(sizes, x, y, epochs=epochs, batch=64, lr=0.01),
                "lean": lambda sizes=sizes, x=x, y=y, epochs=epochs: lean_loop(sizes, x, y, epochs=epochs, batch=64, lr=0.01),
            },
            rounds=ROUNDS,
        )
        steps = epochs * count // 64
        for mode in ("standard", "off"):
            rows.append({
                "net": name, "batch": 64, "steps": steps, "diagnostics": mode, "runs": ROUNDS, "us_a_step": quartiles([1e6 * t / steps for t in taken[mode]]),
                "article_us": quartiles([1e6 * t / steps for t in taken["article"]]), "lean_us": quartiles([1e6 * t / steps for t in taken["lean"]]),
                "to_article": quartiles(ratios(taken[mode], taken["article"])), "to_lean": quartiles(ratios(taken[mode], taken["lean"])),
            })  # fmt: skip
    publish("one_job", rows)


if __name__ == "__main__":
    main()
