"""A stretch of one series as arrays, and its form in the database: run-major, byte-shuffled, compressed with zstd.

Shuffling puts the exponent bytes of all numbers next to each other, where neighbours are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from regtrain.contract.events import Points

Array = NDArray[Any]


@dataclass(frozen=True)
class Block:
    """Rising steps and the values at them. Of run r the first `counts[r]` steps carry a point; a run that stopped has fewer."""

    steps: NDArray[np.int64]  # (n,)
    counts: NDArray[np.int64]  # (R,)
    values: Array  # (R, W, n); W is 1 for a scalar series, else the number of layers

    def between(self, first: int, end: int) -> "Block":
        """The part with first ≤ step < end."""
        low, high = (int(i) for i in np.searchsorted(self.steps, (first, end)))
        return Block(self.steps[low:high], np.clip(self.counts - low, 0, high - low), self.values[:, :, low:high])

    def latest(self) -> Array:
        """The last point of each run, (R, W); NaN for a run that has none here."""
        if not len(self.steps):
            return np.full(self.values.shape[:2], np.nan, self.values.dtype)
        picked = np.take_along_axis(self.values, np.maximum(self.counts - 1, 0)[:, None, None], axis=2)[:, :, 0]
        return np.where(self.counts[:, None] > 0, picked, np.asarray(np.nan, self.values.dtype))

    def first_nonfinite(self) -> dict[str, int]:
        """Position of the run → the first step at which one of its numbers is not finite."""
        finite = np.isfinite(self.values).all(axis=1)
        if finite.all():
            return {}
        bad = ~finite & (np.arange(len(self.steps)) < self.counts[:, None])
        return {str(run): int(self.steps[bad[run].argmax()]) for run in np.flatnonzero(bad.any(axis=1))}


def block_of(points: Points, name: str) -> Block:
    """One series of an event. Numbers that are neither float32 nor float64 are widened."""
    values = points.values[name]
    dtype = "<f4" if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else "<f8"
    wide = values.reshape(*values.shape[:2], -1)
    return Block(points.steps[name].astype(np.int64), points.counts[name].astype(np.int64), np.ascontiguousarray(wide.transpose(1, 2, 0), dtype=dtype))


def join(blocks: Sequence[Block]) -> Block:
    """Consecutive blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(np.concatenate([b.steps for b in blocks]), np.sum([b.counts for b in blocks], axis=0), np.concatenate([b.values for b in blocks], axis=2))


def packed(block: Block) -> dict[str, Any]:
    """The columns of a chunk."""
    whole = bool((block.counts == len(block.steps)).all())
    return {
        "first_step": int(block.steps[0]),
        "last_step": int(block.steps[-1]),
        "points": len(block.steps),
        "steps": squeeze(np.diff(block.steps, prepend=0)),
        "counts": None if whole else squeeze(block.counts),
        "values": squeeze(block.values),
    }


def unpacked(row: Any, *, runs: int, layers: int, dtype: str) -> Block:
    """The block of a chunk's row."""
    counts = np.full(runs, row.points, np.int64) if row.counts is None else expand(row.counts, "<i8")
    return Block(steps_of(row.steps), counts, expand(row.values, dtype).reshape(runs, max(layers, 1), row.points))


def steps_of(stored: bytes) -> NDArray[np.int64]:
    return np.cumsum(expand(stored, "<i8"))


def squeeze(array: Array) -> bytes:
    """Byte-shuffled and compressed."""
    size = array.dtype.itemsize
    shuffled = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, size).T
    return zstandard.ZstdCompressor(level=1).compress(shuffled.tobytes())


def expand(stored: bytes, dtype: str) -> Array:
    """The inverse of `squeeze`, flat."""
    plain = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored), np.uint8)
    return np.ascontiguousarray(plain.reshape(np.dtype(dtype).itemsize, -1).T).reshape(-1).view(dtype)
