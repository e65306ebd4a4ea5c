"""Curves over seeds, or over folds and seeds: the runs of one set of values as one curve, with mean, least, greatest, standard error and how many.

Exact points are aggregated as they are, buckets by their last values. All values of one point were taken at one step: a run that
has stopped (or is not there yet) is left out of it, and out of its n. Numbers that are not finite are counted, and are in no mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.series import series_named
from regtrain.store.runs import Run
from regtrain.store.series import Curve
from service.faces import Record, chart, columns_of, nullable, printable, short

STATISTICS = ("mean", "min", "max", "standard_error")
TABLE_ROWS = 8
Values = dict[str, float]
Across = Literal["seeds", "folds"]
Array = NDArray[Any]


@dataclass(frozen=True)
class Spread:
    """One series of the runs that differ in nothing but their seed, or their fold and seed. Arrays are (m,), or (m, layers) for per-layer series."""

    series: str
    values: Values
    variant: str | None
    fold: int | None
    """The fold that all of them are of."""
    runs: list[int]
    exact: bool
    x: NDArray[np.int64]
    """Steps; of a bucket its first."""
    mean: Array
    min: Array
    max: Array
    standard_error: Array
    """Sample deviation (n − 1) over √n; NaN where n < 2."""
    n: NDArray[np.int64]
    """Finite values at this point."""
    nonfinite: NDArray[np.int64]
    first_nonfinite: int | None
    bucket: int
    layers: list[str] | None
    steps_per_epoch: int


def spreads(curves: Sequence[Curve], runs: Sequence[Run], *, over: Across) -> list[Spread]:
    """One spread a series and set of values, and a fold where it is over seeds, in the order in which they first appear. `runs`: all of the job, by index."""
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in curves:
        run = runs[curve.run]
        groups.setdefault((curve.series, run.point, run.fold if over == "seeds" else None, run.outer, run.refit), []).append(curve)
    return [_spread(members, runs[members[0].run], fold=runs[members[0].run].fold if over == "seeds" else None) for members in groups.values()]


def _spread(members: Sequence[Curve], of: Run, *, fold: int | None) -> Spread:
    width = max(curve.bucket for curve in members)
    parts = [_coarse(curve, width) for curve in members]
    x = np.unique(np.concatenate([part[0] for part in parts]))
    counts = np.zeros((len(parts), len(x)), np.int64)
    taken = np.full((len(parts), len(x), *parts[0][1].shape[1:]), np.nan)
    for row, (own, last, count) in enumerate(parts):
        places = np.searchsorted(x, own)
        counts[row, places], taken[row, places] = count, last
    present = (counts == counts.max(0)) & (counts > 0)  # the points of one step: a run that stopped within a bucket has fewer
    present = present.reshape(*present.shape, *[1] * (taken.ndim - 2))
    sound = np.isfinite(taken) & present
    stopped = [curve.first_nonfinite for curve in members if curve.first_nonfinite is not None]
    return Spread(
        series=members[0].series, values=of.values, variant=of.variant, fold=fold, runs=[curve.run for curve in members], exact=width == 1, x=x, **_statistics(taken, sound),
        n=sound.sum(0), nonfinite=(present & ~sound).sum(0), first_nonfinite=min(stopped, default=None), bucket=width, layers=members[0].layers,
        steps_per_epoch=members[0].steps_per_epoch,
    )  # fmt: skip


def _statistics(taken: Array, sound: Array) -> dict[str, Array]:
    """Over the first axis, of the sound values alone; NaN where there are too few."""
    n = sound.sum(0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = np.where(sound, taken, 0.0).sum(0) / n
        squares = np.where(sound, (taken - mean) ** 2, 0.0).sum(0)
        error = np.where(n > 1, np.sqrt(squares / (n - 1) / n), np.nan)
    low, high = np.where(sound, taken, np.inf).min(0), np.where(sound, taken, -np.inf).max(0)
    low, high = np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)
    return {"mean": np.clip(mean, low, high), "min": low, "max": high, "standard_error": error}  # rounding puts the mean of equal numbers beside them


def _coarse(curve: Curve, width: int) -> tuple[NDArray[np.int64], Array, NDArray[np.int64]]:
    """First step, last value and number of points of each bucket of `width` steps, a power of two; of a width of 1 the points themselves."""
    last = curve.y if curve.exact else curve.last
    assert last is not None
    count = np.ones(len(curve.x), np.int64) if curve.count is None else curve.count.astype(np.int64)
    if width == 1 or not len(curve.x):
        return curve.x, last.astype(np.float64), count
    starts = curve.x // width * width
    edges = np.flatnonzero(np.diff(starts, prepend=-1))
    ends = np.append(edges[1:], len(starts)) - 1
    return starts[edges], last[ends].astype(np.float64), np.add.reduceat(count, edges)


def as_json(spread: Spread, x: list[float]) -> dict[str, Any]:
    declared = series_named(spread.series)
    head = {
        "series": spread.series,
        "values": spread.values,
        "variant": spread.variant,
        "fold": spread.fold,
        "runs": spread.runs,
        "unit": declared.unit if declared else "",
        "exact": spread.exact,
        "x": x,
    }
    numbers = {name: nullable(getattr(spread, name)) for name in STATISTICS}
    return {**head, **numbers, "n": spread.n.tolist(), "nonfinite": spread.nonfinite.tolist(), "first_nonfinite": spread.first_nonfinite}


def columns(spreads: Sequence[Spread]) -> list[str]:
    """Of the table: the searched values stand as columns of their own."""
    variants = ["variant"] if any(spread.variant for spread in spreads) else []
    return ["series", *variants, *dict.fromkeys(path for spread in spreads for path in spread.values), "fold", "layer", "step", "epoch", *STATISTICS, "n", "nonfinite"]


def records(spreads: Sequence[Spread]) -> Iterator[Record]:
    """One record a point (and layer)."""
    for spread in spreads:
        for i, step in enumerate(spread.x.tolist()):
            for place, layer in enumerate(spread.layers or [None]):
                at = i if spread.layers is None else (i, place)
                numbers: dict[str, float | None] = {name: float(getattr(spread, name)[at]) for name in STATISTICS}
                numbers["standard_error"] = numbers["standard_error"] if spread.n[at] > 1 else None  # unknown, which is not NaN
                place_of = {
                    "series": spread.series,
                    **({"variant": spread.variant} if spread.variant else {}),
                    **spread.values,
                    "fold": spread.fold,
                    "layer": layer,
                    "step": step,
                    "epoch": step / spread.steps_per_epoch,
                }
                yield {**place_of, **numbers, "n": int(spread.n[at]), "nonfinite": int(spread.nonfinite[at])}


def drawn(spread: Spread, x: list[float], *, axis: str) -> Iterator[str]:
    """A chart of the mean and a short table; with layers, mean ± standard error of each."""
    declared = series_named(spread.series)
    unit = f" [{declared.unit}]" if declared and declared.unit else ""
    of = (
        (f", {printable(spread.variant)}" if spread.variant else "")
        + "".join(f", {path} = {short(value)}" for path, value in spread.values.items())
        + ("" if spread.fold is None else f", fold {spread.fold}")
    )
    shown = sorted({round(i) for i in np.linspace(0, len(x) - 1, min(TABLE_ROWS, len(x)))})
    yield f"{printable(spread.series)}{unit}{of}, mean over {len(spread.runs)} run{'s' * (len(spread.runs) != 1)}" + (
        "" if spread.exact else f", last of each {spread.bucket} steps"
    )
    if spread.layers is None:
        yield from chart(x, spread.mean.tolist(), log=declared is not None and declared.scale == "log" and bool((spread.mean > 0).any()), x_label=axis)
        names = [*STATISTICS[:-1], "± s.e.", "n"]
        numbers = [[short(float(getattr(spread, name)[i])) for name in STATISTICS[:-1]] + [_error(spread, i), str(int(spread.n[i]))] for i in shown]
        yield from columns_of([[axis, *names], *([short(x[i]), *row] for i, row in zip(shown, numbers, strict=True))])
    else:
        cells = [[f"{short(float(spread.mean[i, at]))} ± {_error(spread, (i, at))}" for at in range(len(spread.layers))] for i in shown]
        yield from columns_of([[axis, *spread.layers], *([short(x[i]), *row] for i, row in zip(shown, cells, strict=True))])
    if spread.first_nonfinite is not None:
        yield f"first value that is not finite: step {spread.first_nonfinite}"


def _error(spread: Spread, at: Any) -> str:
    return f"{float(spread.standard_error[at]):.2g}" if spread.n[at] > 1 else "-"
