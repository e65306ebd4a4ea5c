"""Which units fire, and on what share of the training rows: counted between updates, on distinct rows and at one and the same weights.

Batches cannot say that a unit is dead: over an epoch its weights change, and rows that come back with the next epoch are no new ones. Here every row is
seen once. Of n distinct rows without a firing, the firing probability is below 1 − 0.05^(1/n) with 95 %, which ROWS rows bring below 1/1000. A unit that is
0 on three rows of four fires on the fourth, so FEW rows clear most nets, and only where they leave MANY units of a layer silent are the others looked at: a
count costs the forward passes of its rows. The model is the one that is evaluated: no dropout, batch norm by its running averages.
"""

import torch
from torch import Tensor

from worker.training.activations import ONE_SIDED
from worker.training.evaluate import Part, chunk_of
from worker.training.models import by_run, forward
from worker.training.pack import Pack
from worker.training.probes import histogram

ROWS = 2995
"""log 0.05/log 0.999: the fewest distinct rows without a firing that show a firing probability below 1/1000 at 95 %."""
FEW, MANY = 256, 0.25
"""Rows that are looked at first: of units that fire on 2 % of all rows they clear 99.4 %. The share of silent units of a layer from which on a run is looked at
on all ROWS; it is half of what is reported as a symptom."""
FIRST, EVERY = 128, 4096
"""Updates behind which the second count is made, and about so many between two from then on."""

SILENT, RATES = "activation/silent", "histogram/firing"


def due(done: int, *, per_epoch: int, steps: int) -> bool:
    """Whether units are counted at the evaluation after `done` of `steps` updates: at the first, behind FIRST, about once in EVERY, at the last."""
    before = done - per_epoch
    return done == 0 or done + per_epoch > steps or done // EVERY > before // EVERY or before < FIRST <= done


@torch.no_grad()
def counted(pack: Pack, train: Part) -> dict[str, Tensor]:
    """The share of each ReLU layer's units (channels) that fire nowhere, (R, L), and its units by the share of rows on which they fire, (R, L, bins)."""
    kinds = {layer.activation for layer in pack.shape}
    if not kinds & ONE_SIDED:
        return {}
    rows = min(ROWS, len(train))
    spread = torch.arange(rows, device=pack.device) * len(train) // rows
    few = -(-rows // FEW)
    rates = _rates(pack, train, spread[::few])
    doubtful = torch.stack([(own == 0).double().mean(1) > MANY for own in rates if own is not None]).any(0).unsqueeze(1)  # (R, 1)
    if few > 1 and bool(doubtful.any()):
        whole = _rates(pack, train, spread)
        rates = [None if a is None or b is None else torch.where(doubtful, b, a) for a, b in zip(rates, whole, strict=True)]
    found = {RATES: torch.stack([histogram(pack.flat[:, :0] if own is None else own) for own in rates], 1)}
    if "relu" in kinds:
        nothing = torch.zeros(pack.size, dtype=torch.float64, device=pack.device)
        silent = [own is not None and layer.activation == "relu" for layer, own in zip(pack.shape, rates, strict=True)]
        found[SILENT] = torch.stack([(own == 0).double().mean(1) if is_relu and own is not None else nothing for is_relu, own in zip(silent, rates, strict=True)], 1)
    return found


def _rates(pack: Pack, train: Part, rows: Tensor) -> list[Tensor | None]:
    """Of each layer on what share of rows (on any pixel of them) each unit is above 0, (R, units) float64; None where the word means nothing."""
    x = pack.per_fold(train.rows(rows).x)
    running, size = pack.layout.buffer_views(pack.buffers) or None, chunk_of(pack)
    found: list[Tensor | None] = [None] * len(pack.shape)
    for part in x.split(size, -2):
        for place, (layer, passed) in enumerate(zip(pack.shape, forward(pack.net, part, running=running).layers, strict=True)):
            if layer.activation in ONE_SIDED and passed.activation is not None:
                on = by_run(passed.activation, pack.size) > 0  # (R, B, units, …)
                counts = (on.flatten(3).any(3) if on.dim() > 3 else on).sum(1, dtype=torch.int32)
                before = found[place]
                found[place] = counts if before is None else before + counts
    return [None if counts is None else counts.double() / len(rows) for counts in found]
