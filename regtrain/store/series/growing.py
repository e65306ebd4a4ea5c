"""Points are added to series, and taken away behind a checkpoint.

Chunks are cut at fixed multiples of steps. A report that crosses such a multiple takes up the small chunks before it, so
a series that grows a point at a time ends in the same few large chunks as one that is written at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, literal, select, tuple_, update

from regtrain.contract.events import Points
from regtrain.contract.series import series_named
from regtrain.store import blocks, buckets
from regtrain.store.blocks import Block
from regtrain.store.series.stored import Head, heads, load, summaries, unpacked
from regtrain.store.tables import chunks, pyramid
from regtrain.store.tables import series as series_table

MOST_STEPS = 65_536
MOST_NUMBERS = 2**19
"""A chunk spans at most so many steps, and as many numbers unless 256 steps are more."""
SMALL_REPORT = 64
"""Reports of at most so many steps are also taken up into chunks of 256, or there would be too many."""


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
                found.setdefault(row.series, []).append(unpacked(growth.head, row))
    return found


def _siblings(connection: Connection, growing: list[_Growth]) -> dict[int, dict[tuple[int, int], buckets.Summary]]:
    """The stored older halves of the buckets that are closed: by the key of the series."""
    mine = {growth.head.id: growth.head for growth in growing}
    wanted = [(growth.head.id, level, bucket) for growth in growing for level, bucket in buckets.siblings(growth.start, growth.end)]
    found: dict[int, dict[tuple[int, int], buckets.Summary]] = {}
    if wanted:
        for row in connection.execute(select(pyramid).where(tuple_(pyramid.c.series, pyramid.c.level, pyramid.c.bucket).in_(wanted))):
            found.setdefault(row.series, {})[row.level, row.bucket] = summaries(mine[row.series], [(row.bucket << row.level, row.summary)])
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


def _cut(connection: Connection, head: Head, cut: int) -> None:
    """Removes the points at steps ≥ cut, and the buckets that hold any of them."""
    if head.last_step < cut:
        return
    mine = chunks.c.series == head.id
    straddling = connection.execute(select(chunks).where(mine, chunks.c.first_step < cut, chunks.c.last_step >= cut)).one_or_none()
    connection.execute(delete(chunks).where(mine, chunks.c.last_step >= cut))
    if straddling is not None:
        kept = unpacked(head, straddling).between(0, cut)
        sizes = _sizes(head)  # what is left of a full chunk is cut like all others that are not full
        pieces = _pieces(kept, int(kept.steps[0]) // sizes[0] * sizes[0], int(kept.steps[-1]) + 1, sizes)
        connection.execute(insert(chunks), [{"series": head.id, **blocks.packed(piece)} for piece in pieces])
    last = connection.execute(select(func.max(chunks.c.last_step)).where(mine)).scalar()
    head.last_step = -1 if last is None else int(last)
    if last is not None:
        newest = load(connection, head, head.last_step, head.last_step + 1)[-1]
        head.latest = np.where(newest.counts[:, None] > 0, newest.latest(), head.latest)
    head.first_nonfinite = {run: step for run, step in head.first_nonfinite.items() if step < cut}
    connection.execute(delete(pyramid).where(pyramid.c.series == head.id, pyramid.c.bucket >= literal(head.last_step + 1, BigInteger).bitwise_rshift(pyramid.c.level)))
    connection.execute(
        update(series_table).where(series_table.c.id == head.id).values(last_step=head.last_step, latest=head.latest.tobytes(), first_nonfinite=head.first_nonfinite)
    )
