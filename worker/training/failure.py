"""The update in which a run first met a number that is not finite, made once more by this run alone: in its own dtype, which names layer, operation and rows,
and in float64, which says how large the number would have been.

Nothing is kept for it while training goes on: a run whose loss or gradient is not finite takes no update, so its weights stay those of the failure, and rows
and noise are functions of the step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regtrain.contract.runs import Run
from worker.training.feed import Feed
from worker.training.losses import averaged
from worker.training.losses import loss as loss_of
from worker.training.losses import size as size_of
from worker.training.models import backward, forward
from worker.training.pack import Pack
from worker.training.prepare import Job, split_of

MOST_ROWS = 20
"""Rows of the dataset that are named."""
OPERATIONS = {
    "update": "the weights of {layer} were not finite after the update before",
    "forward": "the linear output of {layer} is not finite",
    "activation": "the activation of {layer} is not finite",
    "loss": "the loss is not finite",
    "backward": "the gradient at the linear output of {layer} is not finite",
    "gradient": "the gradient of the weights of {layer} is not finite",
}


@dataclass(frozen=True)
class Seen:
    """One thing that an update computes. `rows`: the dimension of the batch's rows, None where rows have been summed up."""

    operation: str
    layer: str | None
    value: Tensor
    rows: int | None

    @property
    def sound(self) -> bool:
        return bool(torch.isfinite(self.value).all())

    @property
    def largest(self) -> float:
        """Of the finite numbers, in absolute value."""
        finite = self.value[torch.isfinite(self.value)]
        return float(finite.abs().max()) if len(finite) else math.nan


@torch.no_grad()
def replayed(job: Job, run: Run, t: int, pack_of: Callable[[Run], Pack]) -> dict[str, Any]:
    """What update t of a run that has failed in it finds first: `operation`, `layer`, `rows` of the dataset and how many, `float64`, and a sentence.

    `pack_of`: the run alone, at the weights of the failure. Empty where the run alone does not fail.
    """
    bad = next(((number, seen) for number, seen in enumerate(_seen(job, pack_of(run), t)) if not seen.sound), None)
    if bad is None:
        return {}
    wide = run if run.spec.dtype == "float64" else replace(run, spec=run.spec.model_copy(update={"dtype": "float64"}))
    number, seen = bad
    same = next(there for place, there in enumerate(_seen(job, pack_of(wide), t)) if place == number)
    rows, count = _rows(job, run, seen, Feed(job, pack_of(run)).rows(t))
    found = {"operation": seen.operation, **({"layer": seen.layer} if seen.layer else {}), "rows": rows, "rows_affected": count}
    return {**found, "float64": {"finite": same.sound, "largest": same.largest}, "in_words": _in_words(run, seen, same, rows, count, t)}


def _seen(job: Job, pack: Pack, t: int) -> Iterator[Seen]:
    """Everything that update t computes, in its order, micro-batch after micro-batch."""
    for slot in pack.layout.weights:
        yield Seen("update", slot.name.removesuffix(".weight"), pack.flat[:, slot.start : slot.stop], None)
    x, y = Feed(job, pack).batch(t)
    x, rows, kept = x.to(pack.dtype), y.shape[-1], pack.kept(t, y.shape[-1])
    target = y.to(pack.dtype) if y.is_floating_point() else y
    whole, size = size_of(pack.spec.loss, target, pack.class_weights), math.ceil(rows / pack.spec.budget.accumulate)
    for first in range(0, rows, size):
        part = slice(first, first + size)
        yield from _of_part(pack, x[..., part, :], target[..., part], None if kept is None else {place: mask[:, part] for place, mask in kept.items()}, whole)


def _of_part(pack: Pack, x: Tensor, y: Tensor, kept: dict[str, Tensor] | None, whole: Tensor | int) -> Iterator[Seen]:
    names = [layer.name for layer in pack.shape]
    trace = forward(pack.net, x, kept=kept)
    for name, passed in zip(names, trace.layers, strict=True):
        yield Seen("forward", name, passed.signal, _row_dimension(passed.signal, y.shape[-1]))
        if passed.activation is not None:
            yield Seen("activation", name, passed.activation, _row_dimension(passed.activation, y.shape[-1]))
    loss, slope = averaged(*loss_of(pack.spec.loss, trace.outputs, y, smoothing=pack.smoothing, weights=pack.class_weights), whole)
    yield Seen("loss", None, loss, None)
    yield Seen("loss", None, slope, 1)
    deltas = backward(pack.net, trace, slope, add=False)
    for name, delta in reversed(list(zip(names, deltas, strict=True))):
        yield Seen("backward", name, delta, _row_dimension(delta, y.shape[-1]))
    for name in reversed(names):
        yield Seen("gradient", name, pack.net.gradients[f"{name}.weight"], None)


def _row_dimension(signal: Tensor, rows: int) -> int | None:
    """Rows are the second dimension of dense signals and the first of images; recurrent layers have a row for every time step."""
    place = 1 if signal.dim() == 3 else 0
    return place if signal.shape[place] == rows else None


def _rows(job: Job, run: Run, seen: Seen, of_batch: Tensor | None) -> tuple[list[int], int | None]:
    """The rows of the dataset that show it, as far as they are named, and how many there are; None where rows have been summed up. `of_batch`: which training
    rows the batch has, None for all."""
    if seen.rows is None or job.spec.budget.accumulate > 1:
        return [], None
    others = [at for at in range(seen.value.dim()) if at != seen.rows]
    places = (~torch.isfinite(seen.value)).sum(others).nonzero().flatten().cpu()
    own = places if of_batch is None else of_batch.cpu()[places]
    named = np.sort(split_of(job, run).train[own.numpy()])
    return named[:MOST_ROWS].tolist(), len(named)


def _in_words(run: Run, seen: Seen, same: Seen, rows: list[int], count: int | None, t: int) -> str:
    what = OPERATIONS[seen.operation].format(layer=seen.layer)
    where = "" if count is None else f" for {count} row{'s' * (count != 1)} of the batch (of the dataset: {', '.join(map(str, rows))}{', …' if count > len(rows) else ''})"
    if run.spec.dtype == "float64" or not same.sound:
        return f"at step {t} {what}{where}, in float64 as well"
    limit = torch.finfo(torch.float32).max
    reason = f", beyond {limit:.2g}, the largest number of float32" if same.largest > limit else ": it is lost on the way there"
    return f"at step {t} {what}{where}; in float64 it is finite and up to {same.largest:.3g}{reason}"
