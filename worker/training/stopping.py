"""Early stopping of each run by itself, on the device: nobody waits to learn that a run has stopped."""

import torch
from torch import Tensor

from regtrain.contract.regularizers import EarlyStopping
from worker.training.pack import Pack


class Best:
    """The best evaluation of every run so far, and the weights that gave it."""

    def __init__(self, pack: Pack, metric: str, spec: EarlyStopping | None) -> None:
        self.metric, self.spec = metric, spec
        self.sign = -1.0 if metric.startswith("accuracy") else 1.0
        self.state = {
            "best/value": torch.full((pack.size,), torch.inf, dtype=torch.float64, device=pack.device),
            "best/step": torch.zeros(pack.size, dtype=torch.int64, device=pack.device),
            "best/bad": torch.zeros(pack.size, dtype=torch.int64, device=pack.device),
        }
        if spec is not None and spec.restore:
            self.state |= {"best/flat": pack.flat.clone(), "best/buffers": pack.buffers.clone()}

    def update(self, pack: Pack, t: int, metrics: dict[str, Tensor]) -> None:
        """After an evaluation that follows t updates: remember improvements, stop runs that have run out of patience."""
        value, delta = self.sign * metrics[self.metric], 0.0 if self.spec is None else self.spec.min_delta
        better = pack.alive & (value < self.state["best/value"] - delta)
        self._put("best/value", better, value)
        self._put("best/step", better, torch.full_like(self.state["best/step"], t))
        self._put("best/bad", better, torch.zeros_like(self.state["best/bad"]), otherwise=self.state["best/bad"] + pack.alive)
        if "best/flat" in self.state:
            self._put("best/flat", better, pack.flat)
            self._put("best/buffers", better, pack.buffers)
        if self.spec is not None:
            pack.alive = pack.alive & (self.state["best/bad"] < self.spec.patience)

    def restore(self, pack: Pack) -> None:
        """Ends every run with the weights of its best evaluation."""
        if "best/flat" in self.state:
            pack.flat.copy_(self.state["best/flat"])
            pack.buffers.copy_(self.state["best/buffers"])

    def of(self, run: int) -> dict[str, float]:
        """Step and value of the best evaluation of one run; empty before the first finite one."""
        value = float(self.state["best/value"][run])
        return {"step": int(self.state["best/step"][run]), self.metric: self.sign * value} if value < torch.inf else {}

    def _put(self, name: str, where: Tensor, new: Tensor, otherwise: Tensor | None = None) -> None:
        old = self.state[name] if otherwise is None else otherwise
        self.state[name] = torch.where(where.view(-1, *[1] * (old.dim() - 1)), new, old)
