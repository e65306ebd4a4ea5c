"""Loss and accuracy of whole splits, without dropout and with the running averages of batch norm."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.training.losses import correct
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import forward
from worker.training.pack import Pack

CHUNK, NUMBERS = 1024, 2**19
"""Rows at a time, or fewer where a run's activations would be more numbers than caches hold: 3,200 rows pass eight layers of 64 in 4 ms, by 2,048 in 14.
Static, so that the sum is the same on every run of a job."""


@dataclass(frozen=True)
class Part:
    """The rows of one split on the device. x: (n, features), y: (n,); of joined folds (F, n, features), (F, n)"""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.y.shape[-1]

    def rows(self, which: slice | Tensor) -> "Part":
        """Some of its rows, the same places in every fold."""
        return Part(self.x[..., which, :], self.y[..., which])


@torch.no_grad()
def evaluate(pack: Pack, part: Part, name: str) -> dict[str, Tensor]:
    """`loss/<name>` and, for classes, `accuracy/<name>` of every run.  -> (R,) each, float64"""
    loss = torch.zeros(pack.size, dtype=torch.float64, device=pack.device)
    hits: Tensor | None = None
    running = pack.layout.buffer_views(pack.buffers) or None
    chunk = chunk_of(pack)
    for first in range(0, len(part), chunk):
        own = part.rows(slice(first, first + chunk))
        x, y = pack.per_fold(own.x), pack.per_fold(own.y)
        outputs = forward(pack.net, x, running=running).outputs
        loss += loss_of(pack.spec.loss, outputs, y, smoothing=pack.smoothing, weights=pack.class_weights)[0]
        found = correct(pack.spec.loss, outputs, y)
        hits = found if hits is None else None if found is None else hits + found
    return {
        f"loss/{name}": loss / size_of(pack.spec.loss, pack.per_fold(part.y), pack.class_weights),
        **({f"accuracy/{name}": hits.double() / len(part)} if hits is not None else {}),
    }


def chunk_of(pack: Pack) -> int:
    """Rows at a time."""
    return max(1, min(CHUNK, NUMBERS // sum(math.prod(layer.signal) for layer in pack.shape)))
