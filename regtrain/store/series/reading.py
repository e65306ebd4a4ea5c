"""Curves of a job's runs, as exact points where they fit, else as buckets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select, tuple_

from regtrain.contract.errors import NotFound
from regtrain.contract.series import series_named
from regtrain.store import blocks, buckets
from regtrain.store.blocks import Array, Block
from regtrain.store.database import Database
from regtrain.store.series.stored import Head, chunk_at, heads, load, summaries
from regtrain.store.started import of_pack, places_of
from regtrain.store.tables import chunks, jobs, pyramid


@dataclass(frozen=True)
class Curve:
    """One series of one run. Exact: every point, in `y`. Otherwise buckets: `x` is the bucket's first step.

    Arrays are (n,), or (n, layers) for per-layer series; `count` is always (n,). `min` and `max` are over finite numbers,
    NaN where a bucket has none; `last` is the bucket's last point as it is; `count` counts all points.
    """

    series: str
    run: int
    exact: bool
    x: NDArray[np.int64]
    y: Array | None = None
    last: Array | None = None
    min: Array | None = None
    max: Array | None = None
    count: NDArray[Any] | None = None
    nonfinite: NDArray[Any] | None = None
    first_nonfinite: int | None = None
    """The first step of the whole series with a number that is not finite."""
    bucket: int = 1
    """Steps in a bucket."""
    layers: list[str] | None = None
    """Names of the columns of a per-layer series."""
    steps_per_epoch: int = 1


def read(
    db: Database,
    job_id: str,
    *,
    series: Sequence[str],
    runs: Sequence[int] | None = None,
    first: int | None = None,
    last: int | None = None,
    points: int | None = None,
    layers: Sequence[str] | None = None,
) -> list[Curve]:
    """The curves of a job, in the order of `series`, then of the runs; a series that has no points yet gives none.

    `first` and `last` are steps, both included. With `points`, a stretch of more points comes as at most so many buckets.

    Raises:
        NotFound: no such job, series, run or layer.
    """
    with db.read() as connection:
        row = connection.execute(select(jobs.c.runs, jobs.c.packs, jobs.c.started).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no job {job_id}")
        _known(job_id, row.started, layers)
        for index in runs or ():
            if not 0 <= index < row.runs:
                raise NotFound(f"job {job_id} has no run {index}: it has {row.runs}")
        found = heads(connection, job_id, names=series)
        for name in series:
            if series_named(name) is None and not any(head.name == name for head in found):
                raise NotFound(f"job {job_id} has no series {name!r}")
        return [
            curve
            for name in dict.fromkeys(series)
            for head in found
            if head.name == name
            for curve in _curves(connection, head, row.packs[head.pack], row.started, runs=runs, first=first or 0, last=last, points=points, layers=layers)
        ]


def names(db: Database, job_id: str) -> list[str]:
    """The series of a job that have points, in the order in which they were first reported.

    Raises:
        NotFound: no such job.
    """
    with db.read() as connection:
        if connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none() is None:
            raise NotFound(f"there is no job {job_id}")
        return list(dict.fromkeys(head.name for head in heads(connection, job_id)))


def _known(job_id: str, started: Any, wanted: Sequence[str] | None) -> None:
    known = [name for shape in ("per_layer", "per_time", "histogram") for name in places_of(started, shape)]
    for name in wanted or ():
        if name not in known:
            raise NotFound(f"job {job_id} has no layer {name!r}" + (f": it has {', '.join(known[:20])}" if known else " yet: it has not started"))


def _curves(
    connection: Connection, head: Head, pack: list[int], started: Any, *, runs: Sequence[int] | None, first: int, last: int | None, points: int | None, layers: Sequence[str] | None
) -> list[Curve]:
    declared = series_named(head.name)
    own = places_of(started, declared.shape if declared else "per_layer", head.pack) if head.layers else []
    names = own if layers is None else [name for name in layers if name in own]
    per_epoch = of_pack(started, head.pack, "steps_per_epoch") if started else 1
    found = _of_runs(connection, head, pack, runs=runs, first=first, last=last, points=points, layers=None if layers is None or not own else [own.index(name) for name in names])
    return [replace(curve, layers=names if head.layers else None, steps_per_epoch=per_epoch) for curve in found if not head.layers or names or not own]


def _of_runs(
    connection: Connection, head: Head, pack: list[int], *, runs: Sequence[int] | None, first: int, last: int | None, points: int | None, layers: list[int] | None
) -> list[Curve]:
    places = [(position, index) for position, index in enumerate(pack) if runs is None or index in runs]
    end = min(head.last_step if last is None else last, head.last_step) + 1
    if not places:
        return []
    if first >= end or points is None or _points_between(connection, head, first, end, most=points) <= points:
        block = _joined(head, load(connection, head, first, end) if first < end else [])
        return [_exact(head, block, position, index, layers) for position, index in places]
    level = buckets.level_for(first, end, max(points, 1))
    summary = _summary(connection, head, first, end, level)
    return [_bucketed(head, summary, position, index, layers, width=1 << level) for position, index in places]


def _joined(head: Head, found: list[Block]) -> Block:
    nothing = Block(np.empty(0, np.int64), np.zeros(head.runs, np.int64), np.empty((head.runs, max(head.layers, 1), 0), head.dtype))
    return blocks.join(found or [nothing])


def _points_between(connection: Connection, head: Head, first: int, end: int, *, most: int) -> int:
    """How many steps of the series lie in first … end−1; any number above `most` may stand for more."""
    if end - first <= most:
        return end - first
    columns = (chunks.c.first_step, chunks.c.last_step, chunks.c.points)
    found = connection.execute(select(*columns).where(chunks.c.series == head.id, chunks.c.first_step >= chunk_at(head.id, first), chunks.c.first_step < end)).all()
    inside = sum(row.points for row in found if first <= row.first_step and row.last_step < end)
    if inside > most:
        return inside
    edges = [row.first_step for row in found if not (first <= row.first_step and row.last_step < end)]
    steps = connection.execute(select(chunks.c.steps).where(chunks.c.series == head.id, chunks.c.first_step.in_(edges))).scalars()
    return inside + sum(int(np.diff(np.searchsorted(blocks.steps_of(stored), (first, end)))[0]) for stored in steps)


def _summary(connection: Connection, head: Head, first: int, end: int, level: int) -> buckets.Summary:
    if level < buckets.LOWEST:
        return buckets.summarize(_joined(head, load(connection, head, first, end)), level)
    loose, whole = buckets.cover(first, end, level)
    parts = [buckets.summarize(block, buckets.LOWEST) for low, past in loose for block in load(connection, head, low, past)]
    single = [(head.id, at, bucket) for at, bucket, past in whole if past - bucket == 1]
    queries = [select(*_ROW).where(tuple_(pyramid.c.series, pyramid.c.level, pyramid.c.bucket).in_(single))] if single else []
    queries += [
        select(*_ROW).where(pyramid.c.series == head.id, pyramid.c.level == at, pyramid.c.bucket >= bucket, pyramid.c.bucket < past)
        for at, bucket, past in whole
        if past - bucket > 1
    ]
    rows = [(bucket << at, row) for query in queries for at, bucket, row in connection.execute(query)]
    if rows:
        parts.append(summaries(head, rows))
    together = buckets.concat(parts)
    return buckets.merge(together.take(np.argsort(together.start, kind="stable")), level)


_ROW = (pyramid.c.level, pyramid.c.bucket, pyramid.c.summary)


def _exact(head: Head, block: Block, position: int, index: int, layers: list[int] | None) -> Curve:
    count = int(block.counts[position])
    y = _shaped(head, block.values[position, :, :count].T, layers)
    return Curve(head.name, index, True, block.steps[:count], y=y, first_nonfinite=head.first_nonfinite.get(str(position)))


def _bucketed(head: Head, summary: buckets.Summary, position: int, index: int, layers: list[int] | None, *, width: int) -> Curve:
    full = summary.count[:, position] > 0
    last, low, high, nonfinite = (_shaped(head, array[full, position, :], layers) for array in (summary.last, summary.min, summary.max, summary.nonfinite))
    nonfinite_from = head.first_nonfinite.get(str(position))
    return Curve(
        head.name, index, False, summary.start[full], last=last, min=low, max=high, count=summary.count[full, position], nonfinite=nonfinite, first_nonfinite=nonfinite_from, bucket=width
    )  # fmt: skip


def _shaped(head: Head, array: Array, layers: list[int] | None) -> Array:
    """(n, W) → (n,) for a scalar series, (n, chosen layers) for one with layers."""
    if not head.layers:
        return array[:, 0]
    return array if layers is None else array[:, layers]
