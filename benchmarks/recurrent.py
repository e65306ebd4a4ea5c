"""Recurrent nets beside torch's own modules: one job, and many runs as one job against the same one after the other.

OMP_NUM_THREADS=1 python benchmarks/recurrent.py
"""

import json
import time

import torch
from harness import interleaved, publish, quartiles, ratios
from jobs import ours
from torch import Tensor, nn
from torch.nn import functional as F

from regtrain.contract.job import JobSpec, parse

LENGTH, HIDDEN, BATCH, ROWS, EPOCHS, ROUNDS, RUNS = 50, 50, 20, 400, 1, 3, (1, 16)
MODULES = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for cell in MODULES:
        jobs = {f"ours, {mode}, {runs} runs": lambda cell=cell, mode=mode, runs=runs: ours(spec(cell, runs, mode)) for mode in ("off", "standard") for runs in RUNS}
        taken = interleaved({"torch": lambda cell=cell: loop(cell), **jobs}, rounds=ROUNDS)
        steps = EPOCHS * ROWS // BATCH
        for name in jobs:
            runs = int(name.split()[-2])
            rows.append({
                "cell": cell, "what": name, "against": f"torch, {runs} times", "rounds": ROUNDS, "ms_a_step": quartiles([1e3 * t / steps for t in taken[name]]),
                "ratio": quartiles(ratios(taken[name], [runs * t for t in taken["torch"]])),
            })  # fmt: skip
    publish("recurrent", rows)


def spec(cell: str, runs: int, diagnostics: str) -> JobSpec:
    return parse(json.dumps({
        "dataset": {"kind": "temporal_order", "rows": ROWS, "length": LENGTH}, "model": {"kind": "rnn", "cell": cell, "hidden": [HIDDEN]}, "loss": {"kind": "cross_entropy"},
        "optimizer": {"kind": "sgd", "lr": 0.01}, "budget": {"epochs": EPOCHS, "batch_size": BATCH}, "diagnostics": diagnostics, "selection": {"seeds": runs},
    }))  # fmt: skip


class Net(nn.Module):
    """The same net of torch's modules."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.body, self.head = MODULES[cell](6, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def loop(cell: str) -> float:
    """Seconds of a lean loop over rows in memory."""
    torch.manual_seed(0)
    x, y, net = torch.randn(ROWS, LENGTH, 6), torch.randint(0, 4, (ROWS,)), Net(cell)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    begin = time.perf_counter()
    for _ in range(EPOCHS):
        for rows in torch.randperm(ROWS).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
