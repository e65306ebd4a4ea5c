"""Every random number is a function of its place: (job seed, run seed, purpose, step or epoch, layer). Never of the pack.

Initial weights and row order are drawn on the CPU everywhere; masks on the device of the pack, in float32 in every dtype.
"""

import torch
from torch import Tensor

from regtrain.contract.seeds import seed_at


def generator(*place: int | str, device: torch.device | None = None) -> torch.Generator:
    return torch.Generator(device or torch.device("cpu")).manual_seed(seed_at(*place) & (2**63 - 1))


def row_order(*, job: int, run: int, epoch: int, rows: int) -> Tensor:
    """The order in which an epoch visits the training rows.  (rows,) int64 on the CPU"""
    return torch.randperm(rows, generator=generator(job, run, "order", epoch))


class Masks:
    """Uniform numbers for the seeds of a pack, from one reseeded generator: reseeding costs a fifth of a `bernoulli_`."""

    def __init__(self, *, job: int, seeds: list[int], device: torch.device) -> None:
        self.job, self.seeds, self.device = job, seeds, device
        self._generator = torch.Generator(device)

    def uniform(self, purpose: str, step: int, layer: str, shape: tuple[int, ...]) -> Tensor:
        """(S, *shape) float32 in [0, 1), one slice for each different run seed."""
        out = torch.empty((len(self.seeds), *shape), device=self.device)
        for slot, seed in enumerate(self.seeds):
            self._generator.manual_seed(seed_at(self.job, seed, purpose, step, layer) & (2**63 - 1))
            torch.rand(shape, generator=self._generator, device=self.device, out=out[slot])
        return out
