"""What lies in the database of a series: its head, its chunks, its pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select

from regtrain.store import blocks, buckets
from regtrain.store.blocks import Array, Block
from regtrain.store.tables import chunks
from regtrain.store.tables import series as series_table


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


def heads(connection: Connection, job: str, *, pack: int | None = None, names: Sequence[str] | None = None) -> list[Head]:
    """The stored series of a job, by pack and age."""
    query = select(series_table).where(series_table.c.job == job).order_by(series_table.c.pack, series_table.c.id)
    if pack is not None:
        query = query.where(series_table.c.pack == pack)
    if names is not None:
        query = query.where(series_table.c.name.in_(list(names)))
    return [_head(row) for row in connection.execute(query)]


def load(connection: Connection, head: Head, first: int, end: int) -> list[Block]:
    """The stored blocks that overlap first … end−1, cut to it."""
    query = select(chunks).where(chunks.c.series == head.id, chunks.c.first_step >= chunk_at(head.id, first), chunks.c.first_step < end).order_by(chunks.c.first_step)
    found = [unpacked(head, row).between(first, end) for row in connection.execute(query)]
    return [block for block in found if len(block.steps)]


def unpacked(head: Head, row: Any) -> Block:
    return blocks.unpacked(row, runs=head.runs, layers=head.layers, dtype=head.dtype)


def summaries(head: Head, rows: list[tuple[int, bytes]]) -> buckets.Summary:
    return buckets.unpacked(rows, runs=head.runs, layers=head.layers, dtype=head.dtype)


def _head(row: Any) -> Head:
    shape = (row.runs, max(row.layers, 1))
    latest = np.full(shape, np.nan, row.dtype) if row.latest is None else np.frombuffer(row.latest, row.dtype).reshape(shape)
    return Head(row.id, row.pack, row.name, row.runs, row.layers, row.dtype, row.last_step, latest, row.first_nonfinite)


def chunk_at(key: int, step: int) -> Any:
    """First step of the chunk in which a step lies, by one probe of the index."""
    before = select(func.max(chunks.c.first_step)).where(chunks.c.series == key, chunks.c.first_step <= step).scalar_subquery()
    return func.coalesce(before, step)
