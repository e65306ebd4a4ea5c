"""Hand-made points: what a run would report, with every number chosen by the test."""

from collections.abc import Container, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from regtrain.contract.events import Noticed, Points
from worker.training.symptoms import Known, Watch

STEPS = 256


def known(**changes: Any) -> Known:
    """One run of a net of four hidden layers and a head, batches of 64 of 640 rows, 256 steps, a loss of ln 10 that knows nothing."""
    given: dict[str, Any] = {
        "pack": 0, "runs": (0,), "layers": ("layers.0", "layers.1", "layers.2", "layers.3", "head"), "sizes": (8, 8, 8, 8, 10), "nothing": np.array([np.log(10)]),
        "constant": np.array([np.log(10)]), "rows": 640, "batch": 64, "per_epoch": 10, "steps": STEPS,
    }  # fmt: skip
    return Known(**given | changes)


def healthy(steps: int = STEPS) -> dict[str, np.ndarray]:
    """A run that learns: the loss falls from ln 10 as 1/√t, gradients and signals are alike in all layers, updates a hundredth of the weights."""
    ones = np.ones((steps, 1, 5))
    loss = np.log(10) / np.sqrt(1 + np.arange(steps, dtype=float))[:, None]
    return {
        "loss/train": loss, "gradient/norm": ones * loss[:, :, None], "gradient/rms": ones * loss[:, :, None], "gradient/total": 5**0.5 * loss, "gradient/nonfinite": 0 * ones,
        "signal/backward": ones * loss[:, :, None], "weight/norm": ones, "update/ratio": 0.01 * ones, "learning_rate": np.full((steps, 1), 0.1),
    }  # fmt: skip


def points(
    values: Mapping[str, Any],
    *,
    first: int = 0,
    last: int | None = None,
    after: Mapping[str, tuple[Any, Any]] | None = None,
    counts: Any = None,
    read: Container[int] | None = None,
) -> Points:
    """`values`: of steps from 0 on, cut to first … last − 1; `after`: series → steps and values; `read`: the steps in which layers are, default all."""
    last = len(values["loss/train"]) if last is None else last
    steps = {name: np.arange(first, last) for name in values}
    dense = {name: np.asarray(value)[first:last] for name, value in values.items()}
    if read is not None:
        of_layers = [step in read for step in range(first, last)]
        for name in values.keys() - {"loss/train", "learning_rate", "gradient/clipped"}:
            steps[name], dense[name] = steps[name][of_layers], dense[name][of_layers]
    for name, (at, value) in (after or {}).items():
        inside = [place for place, step in enumerate(at) if first < step <= last or (step == 0 and first == 0)]
        numbers = np.asarray(value, float)[inside]
        steps[name], dense[name] = np.asarray(at, np.int64)[inside], numbers[:, None]
    full = {name: np.full(value.shape[1], len(value)) for name, value in dense.items()}
    return Points(0, last, steps, dense, full if counts is None else {**full, **{name: np.array([counts]) for name in values}})


def seen(
    values: Mapping[str, Any],
    *,
    end: bool = True,
    cuts: tuple[int, ...] = (),
    after: Mapping[str, tuple[Any, Any]] | None = None,
    counts: Any = None,
    read: Container[int] | None = None,
    **facts: Any,
) -> list[Noticed]:
    """What is noticed of a run that reports these values, cut into several reports at `cuts`."""
    watch = Watch(known(**facts))
    edges = [0, *cuts, len(values["loss/train"])]
    found = [one for first, last in pairwise(edges) for one in watch.see(points(values, first=first, last=last, after=after, counts=counts, read=read))]
    return [*found, *(watch.end(edges[-1] if counts is None else counts) if end else ())]
