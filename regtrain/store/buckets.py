"""The pyramid over a series: min, max, last, count and non-finite count in buckets of 2⁸, 2⁹, … steps.

A bucket is written once, when the series has passed its end; what is newer is summed up from smaller buckets and points
when it is read. One row holds a bucket of all runs and layers of a pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtrain.store.blocks import Array, Block, expand, squeeze

LOWEST = 8
"""The smallest buckets are 2⁸ = 256 steps wide."""
_WIDE = 32
"""Rows of at least so many numbers a field are compressed."""


@dataclass(frozen=True)
class Summary:
    """What m stretches of a series hold, in rising order. min and max are over finite numbers, NaN without any; last is as it is."""

    start: NDArray[np.int64]  # (m,) first step of the stretch
    min: Array  # (m, R, W)
    max: Array
    last: Array
    nonfinite: NDArray[np.uint32]
    count: NDArray[np.uint32]  # (m, R)

    def take(self, rows: Any) -> "Summary":
        return Summary(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def concat(summaries: Sequence[Summary]) -> Summary:
    return Summary(**{f.name: np.concatenate([getattr(s, f.name) for s in summaries]) for f in fields(Summary)})


def summarize(block: Block, level: int) -> Summary:
    """A block in buckets of 2^level steps; a bucket without steps is left out."""
    ids = block.steps >> level
    edges = np.flatnonzero(np.diff(ids, prepend=-1))
    present = np.arange(len(block.steps)) < block.counts[:, None]  # (R, n)
    sound = np.isfinite(block.values) & present[:, None, :]
    clean = block.values if sound.all() else np.where(sound, block.values, np.asarray(np.nan, block.values.dtype))
    ends = np.append(edges[1:], len(block.steps))
    count = np.clip(block.counts[:, None], edges, ends) - edges  # (R, m)
    last = np.take_along_axis(block.values, np.maximum(edges + count - 1, 0)[:, None, :], axis=2)
    nonfinite = np.add.reduceat(~sound & present[:, None, :], edges, axis=2, dtype=np.uint32)
    return Summary(
        start=ids[edges] << level,
        min=_first(np.fmin.reduceat(clean, edges, axis=2)),
        max=_first(np.fmax.reduceat(clean, edges, axis=2)),
        last=_first(np.where(count[:, None, :] > 0, last, np.asarray(np.nan, last.dtype))),
        nonfinite=_first(nonfinite),
        count=np.ascontiguousarray(count.T, dtype=np.uint32),
    )


def merge(summary: Summary, level: int) -> Summary:
    """Neighbouring stretches together, in buckets of 2^level steps."""
    ids = summary.start >> level
    edges = np.flatnonzero(np.diff(ids, prepend=-1))
    newest = np.maximum.reduceat(np.where(summary.count > 0, np.arange(len(ids))[:, None], -1), edges, axis=0)  # (m, R)
    last = np.take_along_axis(summary.last, np.maximum(newest, 0)[:, :, None], axis=0)
    return Summary(
        start=ids[edges] << level,
        min=np.fmin.reduceat(summary.min, edges, axis=0),
        max=np.fmax.reduceat(summary.max, edges, axis=0),
        last=np.where(newest[:, :, None] >= 0, last, np.asarray(np.nan, last.dtype)),
        nonfinite=np.add.reduceat(summary.nonfinite, edges, axis=0, dtype=np.uint32),
        count=np.add.reduceat(summary.count, edges, axis=0, dtype=np.uint32),
    )


def closed(start: int, end: int, level: int) -> tuple[int, int]:
    """First and past-the-last number of the buckets that are passed when a series grows from `start` to `end`."""
    return start >> level, end >> level


def siblings(start: int, end: int) -> list[tuple[int, int]]:
    """(level, bucket) of the older halves that are needed to close larger buckets."""
    levels = range(LOWEST, end.bit_length())
    return [(level, (start >> level) - 1) for level in levels if start >> level & 1 and start >> level + 1 < end >> level + 1]


def close(block: Block, older: dict[tuple[int, int], Summary], start: int, end: int) -> list[tuple[int, Summary]]:
    """All buckets that are passed when a series grows from `start` to `end`: (level, buckets).

    `block` holds every point from the open bucket of the lowest level on; `older` holds the siblings that exist.
    """
    first, past = closed(start, end, LOWEST)
    inside = block.between(first << LOWEST, past << LOWEST)
    summary = summarize(inside, LOWEST) if len(inside.steps) else None
    found: list[tuple[int, Summary]] = []
    level = LOWEST
    while first < past:
        if summary is not None:
            found.append((level, summary))
        parts = [part for part in (older.get((level, first - 1)) if first & 1 else None, summary) if part is not None]
        level += 1
        first, past = closed(start, end, level)
        both = concat(parts) if parts else None
        both = both.take(both.start < past << level) if both is not None else None
        summary = merge(both, level) if both is not None and len(both.start) else None
    return found


def cover(first: int, end: int, level: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """first … end−1 as few whole buckets up to `level`, and what is left: ([(from, to) of steps], [(level, bucket, past)])."""
    loose: list[tuple[int, int]] = []
    whole: list[tuple[int, int, int]] = []
    at = first
    while at < end:
        aligned = (at & -at).bit_length() - 1 if at else level
        size = min(level, aligned, (end - at).bit_length() - 1)
        if size < LOWEST:
            past = min(end, (at >> LOWEST) + 1 << LOWEST)
            loose.append((at, past))
        else:
            past = end >> size << size if size == level else at + (1 << size)
            whole.append((size, at >> size, past >> size))
        at = past
    return loose, whole


def level_for(first: int, end: int, points: int) -> int:
    """The lowest level at which the steps first … end−1 are at most `points` buckets; below LOWEST they are summed up from points."""
    level = 0
    while (end - 1 >> level) - (first >> level) + 1 > points:
        level += 1
    return level


def packed(summary: Summary) -> list[bytes]:
    """One row a bucket: min, max, last, count, and the non-finite counts where there are any."""
    shape = (len(summary.start), -1)
    parts = [np.ascontiguousarray(part).reshape(shape).view(np.uint8) for part in (summary.min, summary.max, summary.last, summary.count, summary.nonfinite)]
    clean: Array = ~np.any(summary.nonfinite.reshape(shape), axis=1)
    rows = np.concatenate(parts, axis=1)
    short = rows.shape[1] - parts[-1].shape[1]
    cut = [rows[at, :short] if is_clean else rows[at] for at, is_clean in enumerate(clean.tolist())]
    return [squeeze(row) if _compressed(summary.min.shape[1], summary.min.shape[2]) else row.tobytes() for row in cut]


def unpacked(rows: Sequence[tuple[int, bytes]], *, runs: int, layers: int, dtype: str) -> Summary:
    """The summary of rows (first step of the bucket, stored row)."""
    width = max(layers, 1)
    shape = (len(rows), runs, width)
    numbers = runs * width
    plain = [bytes(expand(row, "|u1")) if _compressed(runs, width) else row for _, row in rows]
    full = 3 * numbers * np.dtype(dtype).itemsize + 4 * runs + 4 * numbers
    table = np.frombuffer(b"".join(row.ljust(full, b"\0") for row in plain), np.uint8).reshape(len(rows), full)
    size = numbers * np.dtype(dtype).itemsize
    low, high, last = (np.ascontiguousarray(table[:, i * size : (i + 1) * size]).view(dtype).reshape(shape) for i in range(3))
    return Summary(
        start=np.array([start for start, _ in rows], np.int64),
        min=low,
        max=high,
        last=last,
        count=np.ascontiguousarray(table[:, 3 * size : 3 * size + 4 * runs]).view("<u4").reshape(len(rows), runs),
        nonfinite=np.ascontiguousarray(table[:, 3 * size + 4 * runs :]).view("<u4").reshape(shape),
    )


def _compressed(runs: int, width: int) -> bool:
    return runs * width >= _WIDE


def _first(array: Array) -> Array:
    """(R, W, m) → (m, R, W)."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))
