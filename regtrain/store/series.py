"""Curves: appended as chunks, read as exact points or as buckets of the pyramid. Nothing is averaged, sampled or dropped.

Chunks are cut at fixed multiples of steps. A report that crosses such a multiple takes up the small chunks before it, so
a series that grows a point at a time ends in the same few large chunks as one that is written at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, literal, select, tuple_, update

from regtrain.contract.errors import NotFound
from regtrain.contract.events import Points
from regtrain.contract.series import series_named
from regtrain.store import blocks, buckets
from regtrain.store.blocks import Array, Block
from regtrain.store.database import Database
from regtrain.store.started import of_pack, places_of
from regtrain.store.tables import chunks, jobs, pyramid
from regtrain.store.tables import series as series_table

MOST_STEPS = 65_536
MOST_NUMBERS = 2**19
"""A chunk spans at most so many steps, and as many numbers unless 256 steps are more."""


SMALL_REPORT = 64
"""Reports of at most so many steps are also taken up into chunks of 256, or there would be too many."""


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


@dataclass
class Head:
    """What is known of a stored series without its points."""

    id: int
    pack: int
    name: str
    runs: int
    layers: int
    dtype: str
    last_step: int
    latest: Array  # (R, W)
    first_nonfinite: dict[str, int]


@dataclass
class _Batch:
    """The statements of one report, gathered so that each kind is sent once."""

    deletes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    chunks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    pyramid: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    heads: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def send(self, connection: Connection) -> None:
        if self.deletes:
            connection.execute(delete(chunks).where(chunks.c.series == bindparam("of"), chunks.c.first_step >= bindparam("since")), self.deletes)
        if self.chunks:
            connection.execute(insert(chunks), self.chunks)
        if self.pyramid:
            connection.execute(insert(pyramid), self.pyramid)
        if self.heads:
            connection.execute(update(series_table).where(series_table.c.id == bindparam("of")), self.heads)


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


def append(connection: Connection, job: str, points: Points) -> None:
    """Stores a report. What the series already has from its first step on is replaced, so that a repeated report changes nothing."""
    arrived = {name: block for name in points.steps if len((block := blocks.block_of(points, name)).steps) and block.counts.any()}
    known = {head.name: head for head in heads(connection, job, pack=points.pack)}
    known |= _create(connection, job, points, {name: block for name, block in arrived.items() if name not in known})
    for name, block in arrived.items():
        if block.steps[0] <= known[name].last_step:
            _cut(connection, known[name], int(block.steps[0]))
    growing = [_growth(known[name], block) for name, block in arrived.items()]
    tails = _tails(connection, growing)
    older = _siblings(connection, growing)
    batch = _Batch()
    for growth in growing:
        _extend(growth, tails.get(growth.head.id, []), older.get(growth.head.id, {}), batch)
    batch.send(connection)


def truncate(connection: Connection, job: str, checkpoints: dict[int, int]) -> None:
    """Removes what lies beyond the checkpoints (pack → step), and all points of packs that have none."""
    for head in heads(connection, job):
        declared = series_named(head.name)
        if head.pack not in checkpoints:
            connection.execute(delete(series_table).where(series_table.c.id == head.id))
        else:
            _cut(connection, head, checkpoints[head.pack] + (declared is not None and declared.after))


def heads(connection: Connection, job: str, *, pack: int | None = None, names: Sequence[str] | None = None) -> list[Head]:
    """The stored series of a job, by pack and age."""
    query = select(series_table).where(series_table.c.job == job).order_by(series_table.c.pack, series_table.c.id)
    if pack is not None:
        query = query.where(series_table.c.pack == pack)
    if names is not None:
        query = query.where(series_table.c.name.in_(list(names)))
    return [_head(row) for row in connection.execute(query)]


def _head(row: Any) -> Head:
    shape = (row.runs, max(row.layers, 1))
    latest = np.full(shape, np.nan, row.dtype) if row.latest is None else np.frombuffer(row.latest, row.dtype).reshape(shape)
    return Head(row.id, row.pack, row.name, row.runs, row.layers, row.dtype, row.last_step, latest, row.first_nonfinite)


def _create(connection: Connection, job: str, points: Points, fresh: dict[str, Block]) -> dict[str, Head]:
    """Empty series for what has come for the first time, by name: in one statement, since all series of a job begin with its first report."""
    if not fresh:
        return {}
    rows: list[dict[str, Any]] = [
        {
            "job": job,
            "pack": points.pack,
            "name": name,
            "runs": len(block.values),
            "layers": points.values[name].shape[2] if points.values[name].ndim == 3 else 0,
            "dtype": block.values.dtype.str,
            "last_step": -1,
            "first_nonfinite": {},
        }
        for name, block in fresh.items()
    ]
    keys = connection.execute(insert(series_table).returning(series_table.c.id, sort_by_parameter_order=True), rows).scalars().all()
    return {row["name"]: _empty(key, row) for key, row in zip(keys, rows, strict=True)}


def _empty(key: int, row: dict[str, Any]) -> Head:
    latest = np.full((row["runs"], max(row["layers"], 1)), np.nan, row["dtype"])
    return Head(key, row["pack"], row["name"], row["runs"], row["layers"], row["dtype"], -1, latest, {})


@dataclass(frozen=True)
class _Growth:
    """A series, what is to be added to it, and from where on its stored points are needed for that."""

    head: Head
    block: Block
    start: int
    """The step after the last one so far."""
    end: int
    takes_up_from: int
    """Small chunks from this step on are taken up into larger ones: those behind the last multiple that the series passes."""
    needs_from: int


def _growth(head: Head, block: Block) -> _Growth:
    start, end = head.last_step + 1, int(block.steps[-1]) + 1
    sizes = [*_sizes(head), *([1 << buckets.LOWEST] if len(block.steps) <= SMALL_REPORT else [])]
    takes_up_from = next((start // size * size for size in sizes if start // size < end // size), start)
    first, past = buckets.closed(start, end, buckets.LOWEST)
    needs_from = min(takes_up_from, first << buckets.LOWEST) if first < past else start
    return _Growth(head, Block(block.steps, block.counts, block.values.astype(head.dtype, copy=False)), start, end, takes_up_from, needs_from)


def _tails(connection: Connection, growing: list[_Growth]) -> dict[int, list[Block]]:
    """The stored chunks, whole, that hold points which are needed: by the key of the series."""
    alike: dict[int, list[_Growth]] = {}
    for growth in growing:
        if growth.needs_from < growth.start:
            alike.setdefault(growth.needs_from // (unit := _sizes(growth.head)[-1]) * unit, []).append(growth)
    found: dict[int, list[Block]] = {}
    for since, group in alike.items():
        mine = {growth.head.id: growth for growth in group}
        query = select(chunks).where(chunks.c.series.in_(list(mine)), chunks.c.first_step >= since).order_by(chunks.c.series, chunks.c.first_step)
        for row in connection.execute(query):
            growth = mine[row.series]
            if row.last_step >= growth.needs_from:
                found.setdefault(row.series, []).append(_unpacked(growth.head, row))
    return found


def _siblings(connection: Connection, growing: list[_Growth]) -> dict[int, dict[tuple[int, int], buckets.Summary]]:
    """The stored older halves of the buckets that are closed: by the key of the series."""
    mine = {growth.head.id: growth.head for growth in growing}
    wanted = [(growth.head.id, level, bucket) for growth in growing for level, bucket in buckets.siblings(growth.start, growth.end)]
    found: dict[int, dict[tuple[int, int], buckets.Summary]] = {}
    if wanted:
        for row in connection.execute(select(pyramid).where(tuple_(pyramid.c.series, pyramid.c.level, pyramid.c.bucket).in_(wanted))):
            found.setdefault(row.series, {})[row.level, row.bucket] = _summaries(mine[row.series], [(row.bucket << row.level, row.summary)])
    return found


def _extend(growth: _Growth, tail: list[Block], older: dict[tuple[int, int], buckets.Summary], batch: _Batch) -> None:
    head, block, start, end = growth.head, growth.block, growth.start, growth.end
    if start >> buckets.LOWEST < end >> buckets.LOWEST:
        fresh = blocks.join([*tail, block])
        for level, summary in buckets.close(fresh, older, start, end):
            batch.pyramid += [
                {"series": head.id, "level": level, "bucket": bucket, "summary": row}
                for bucket, row in zip((summary.start >> level).tolist(), buckets.packed(summary), strict=True)
            ]
    since = growth.takes_up_from
    taken_up = [one for one in tail if one.steps[-1] >= since]
    if taken_up:
        since = min(since, int(taken_up[0].steps[0]))
        batch.deletes.append({"of": head.id, "since": since})
    batch.chunks += [{"series": head.id, **blocks.packed(piece)} for piece in _pieces(blocks.join([*taken_up, block]), since, end, _sizes(head))]
    latest = np.where(block.counts[:, None] > 0, block.latest(), head.latest)
    nonfinite = {**block.first_nonfinite(), **head.first_nonfinite}
    batch.heads.append({"of": head.id, "last_step": end - 1, "latest": latest.tobytes(), "first_nonfinite": nonfinite})


def _sizes(head: Head) -> list[int]:
    """The multiples of steps at which chunks of this series are cut: a full chunk, and what no smaller one spans."""
    numbers = head.runs * max(head.layers, 1)
    most = min(MOST_STEPS, 1 << max(buckets.LOWEST, (MOST_NUMBERS // numbers).bit_length() - 1))
    return [most, 4096] if most > 4096 else [most]


def _pieces(block: Block, first: int, end: int, sizes: list[int]) -> Iterable[Block]:
    """The steps from `first` to `end` in full chunks where they fit, else cut at the smaller multiple."""
    at = first
    while at < end:
        full = at % sizes[0] == 0 and at + sizes[0] <= end
        past = at + sizes[0] if full else min(end, (at // sizes[-1] + 1) * sizes[-1])
        piece = block.between(at, past)
        if len(piece.steps):
            yield piece
        at = past


def _load(connection: Connection, head: Head, first: int, end: int) -> list[Block]:
    """The stored blocks that overlap first … end−1, cut to it."""
    query = select(chunks).where(chunks.c.series == head.id, chunks.c.first_step >= _chunk_at(head.id, first), chunks.c.first_step < end).order_by(chunks.c.first_step)
    found = [_unpacked(head, row).between(first, end) for row in connection.execute(query)]
    return [block for block in found if len(block.steps)]


def _chunk_at(key: int, step: int) -> Any:
    """First step of the chunk in which a step lies, by one probe of the index."""
    before = select(func.max(chunks.c.first_step)).where(chunks.c.series == key, chunks.c.first_step <= step).scalar_subquery()
    return func.coalesce(before, step)


def _unpacked(head: Head, row: Any) -> Block:
    return blocks.unpacked(row, runs=head.runs, layers=head.layers, dtype=head.dtype)


def _summaries(head: Head, rows: list[tuple[int, bytes]]) -> buckets.Summary:
    return buckets.unpacked(rows, runs=head.runs, layers=head.layers, dtype=head.dtype)


def _cut(connection: Connection, head: Head, cut: int) -> None:
    """Removes the points at steps ≥ cut, and the buckets that hold any of them."""
    if head.last_step < cut:
        return
    mine = chunks.c.series == head.id
    straddling = connection.execute(select(chunks).where(mine, chunks.c.first_step < cut, chunks.c.last_step >= cut)).one_or_none()
    connection.execute(delete(chunks).where(mine, chunks.c.last_step >= cut))
    if straddling is not None:
        kept = _unpacked(head, straddling).between(0, cut)
        sizes = _sizes(head)  # what is left of a full chunk is cut like all others that are not full
        pieces = _pieces(kept, int(kept.steps[0]) // sizes[0] * sizes[0], int(kept.steps[-1]) + 1, sizes)
        connection.execute(insert(chunks), [{"series": head.id, **blocks.packed(piece)} for piece in pieces])
    last = connection.execute(select(func.max(chunks.c.last_step)).where(mine)).scalar()
    head.last_step = -1 if last is None else int(last)
    if last is not None:
        newest = _load(connection, head, head.last_step, head.last_step + 1)[-1]
        head.latest = np.where(newest.counts[:, None] > 0, newest.latest(), head.latest)
    head.first_nonfinite = {run: step for run, step in head.first_nonfinite.items() if step < cut}
    connection.execute(delete(pyramid).where(pyramid.c.series == head.id, pyramid.c.bucket >= literal(head.last_step + 1, BigInteger).bitwise_rshift(pyramid.c.level)))
    connection.execute(
        update(series_table).where(series_table.c.id == head.id).values(last_step=head.last_step, latest=head.latest.tobytes(), first_nonfinite=head.first_nonfinite)
    )


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
        block = _joined(head, _load(connection, head, first, end) if first < end else [])
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
    found = connection.execute(select(*columns).where(chunks.c.series == head.id, chunks.c.first_step >= _chunk_at(head.id, first), chunks.c.first_step < end)).all()
    inside = sum(row.points for row in found if first <= row.first_step and row.last_step < end)
    if inside > most:
        return inside
    edges = [row.first_step for row in found if not (first <= row.first_step and row.last_step < end)]
    steps = connection.execute(select(chunks.c.steps).where(chunks.c.series == head.id, chunks.c.first_step.in_(edges))).scalars()
    return inside + sum(int(np.diff(np.searchsorted(blocks.steps_of(stored), (first, end)))[0]) for stored in steps)


def _summary(connection: Connection, head: Head, first: int, end: int, level: int) -> buckets.Summary:
    if level < buckets.LOWEST:
        return buckets.summarize(_joined(head, _load(connection, head, first, end)), level)
    loose, whole = buckets.cover(first, end, level)
    parts = [buckets.summarize(block, buckets.LOWEST) for low, past in loose for block in _load(connection, head, low, past)]
    single = [(head.id, at, bucket) for at, bucket, past in whole if past - bucket == 1]
    queries = [select(*_ROW).where(tuple_(pyramid.c.series, pyramid.c.level, pyramid.c.bucket).in_(single))] if single else []
    queries += [
        select(*_ROW).where(pyramid.c.series == head.id, pyramid.c.level == at, pyramid.c.bucket >= bucket, pyramid.c.bucket < past)
        for at, bucket, past in whole
        if past - bucket > 1
    ]
    rows = [(bucket << at, row) for query in queries for at, bucket, row in connection.execute(query)]
    if rows:
        parts.append(_summaries(head, rows))
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
