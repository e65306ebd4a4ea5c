"""What an update needs from outside its pack: rows and learning rates, each a function of the step alone."""

from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regtrain.contract.optimizers import Adam, Lbfgs, Optimizer, Proximal, Sgd
from regtrain.contract.ranges import concrete
from worker.training.draws import row_order
from worker.training.optimizers import factors
from worker.training.pack import Pack
from worker.training.prepare import Job

BLOCK = 1024
"""Steps whose learning rates are computed and moved to the device at once."""


class Feed:
    """Rows and learning rates of one pack, step by step, in one table an epoch and one a block of steps."""

    def __init__(self, job: Job, pack: Pack) -> None:
        self.job, self.pack = job, pack
        self._epoch = self._block = -1
        self._order: Tensor | None = None
        self._whole: tuple[Tensor, Tensor] | None = None

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """The rows of update t: (B, features) and (B,) where all runs share rows and order, else with a run axis."""
        train, rows, folds, pack = self.job.train, self.rows(t), self.pack.fold_slot, self.pack
        if rows is None:
            self._whole = self._whole or (pack.per_fold(train.x), pack.per_fold(train.y))
            return self._whole
        if rows.dim() == 1:  # four times as fast as indexing
            return pack.per_fold(train.x.index_select(-2, rows)), pack.per_fold(train.y.index_select(-1, rows))
        if folds is None:
            return train.x[rows], train.y[rows]
        return train.x[folds.unsqueeze(1), rows], train.y[folds.unsqueeze(1), rows]

    def rows(self, t: int) -> Tensor | None:
        """Which training rows update t sees: (B,) where all runs share their order, else (R, B); None for all of them, whose order does not matter."""
        size = self.job.batch
        epoch, position = divmod(t, self.job.per_epoch)
        if size == len(self.job.train):
            return None
        if epoch != self._epoch or self._order is None:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self._order[..., position * size : (position + 1) * size]

    def rates(self, t: int) -> tuple[NDArray[np.float64], Tensor]:
        """The learning rates of update t, on the host (R,) and on the device (R, 1)."""
        block, position = divmod(t, BLOCK)
        if block != self._block:
            self._block, (self._host, self._device) = block, self._rates_of(block)
        return self._host[position], self._device[position]

    def _order_of(self, epoch: int) -> Tensor:
        """(n,) where all runs share their seed, else (R, n)."""
        orders = torch.stack([row_order(job=self.job.spec.seed, run=seed, epoch=epoch, rows=len(self.job.train)) for seed in self.pack.seeds]).to(self.job.device)
        return orders[0] if self.pack.seed_slot is None else orders[self.pack.seed_slot]

    def _rates_of(self, block: int) -> tuple[NDArray[np.float64], Tensor]:
        first, last = block * BLOCK, min((block + 1) * BLOCK, self.job.steps)
        optimizers = [run.spec.optimizer for run in self.pack.runs]
        rates = np.stack([_rates(o, first, last, self.job.steps) for o in optimizers], 1)
        return rates, torch.from_numpy(rates).to(self.job.device, self.pack.dtype).unsqueeze(2)


def _rates(optimizer: Optimizer, first: int, last: int, steps: int) -> NDArray[np.float64]:
    """(last − first,); 1 for optimizers that choose their own steps, which they measure themselves."""
    match optimizer:
        case Sgd() | Adam():
            return concrete(optimizer.lr) * factors(optimizer.schedule, first=first, last=last, steps=steps)
        case Proximal() | Lbfgs():
            return np.ones(last - first)
        case _:
            assert_never(optimizer)
