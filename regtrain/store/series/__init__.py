"""Curves: appended as chunks (`growing`), read as exact points or as buckets of the pyramid (`reading`). Nothing is averaged, sampled or dropped."""

from regtrain.store.series.growing import append, truncate
from regtrain.store.series.reading import Curve, names, read
from regtrain.store.series.stored import Head, heads

__all__ = ["Curve", "Head", "append", "heads", "names", "read", "truncate"]
