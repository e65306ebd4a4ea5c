"""Reads one uploaded file in a process of its own, with little memory, time and room on the disk: `python -P -m service.parse`.

Takes its orders as JSON on stdin, answers with JSON on stdout, and writes the rows as safetensors: "x" float64 (n, d),
"y" float64 (n,), and where there are groups "groups" int64 (n,), the number of each row's group.
Nothing else ever reads what users upload. No pickle: arrays are read from their raw bytes.
"""

import hashlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from regtrain.contract.errors import SpecRefused
from service.limits import Limits
from service.read_csv import read_csv
from service.read_npz import read_npz
from service.tables import MOST_LABELS, Table

PREVIEW_ROWS = 5


def main() -> None:
    orders = json.load(sys.stdin)
    limits = Limits(**orders["limits"])
    _jail(limits)
    try:
        answer = parse(Path(orders["source"]), Path(orders["place"]), kind=orders["format"], target=orders["target"], groups=orders["groups"], limits=limits)
    except SpecRefused as refusal:
        answer = {"problems": [[p.path, p.message, p.hint] for p in refusal.problems]}
    except MemoryError:
        answer = {"problems": [["", "the file needs more memory than an upload may use", "upload fewer rows or columns"]]}
    json.dump(answer, sys.stdout)


def parse(source: Path, place: Path, *, kind: str, target: str | None, groups: str | None = None, limits: Limits) -> dict[str, Any]:
    """Writes the canonical file to `place` and says what is in it: what its facts follow from, its first rows, its hash.

    Raises:
        SpecRefused: the file cannot be taken, with the line or row and column of what is wrong.
    """
    table = read_csv(source, target=target, groups=groups, limits=limits) if kind == "csv" else read_npz(source, groups=groups, limits=limits)
    about = {"feature_names": table.names, "class_names": table.labels, "image": table.image}
    arrays: dict[str, NDArray[Any]] = {"x": table.x, "y": table.y} if table.groups is None else {"x": table.x, "y": table.y, "groups": table.groups.codes}
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, place, metadata={"about": json.dumps(about)})
    with open(place, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    distinct = np.unique(table.y)
    return {
        "rows": len(table.y),
        "features": table.x.shape[1],
        "feature_names": table.names,
        "image": table.image,
        "labels": table.labels,
        "group_sizes": table.groups and table.groups.sizes,
        "distinct": distinct.tolist() if len(distinct) <= MOST_LABELS else None,
        "preview": _preview(table),
        "sha256": digest,
    }


def _jail(limits: Limits) -> None:
    """From here on this process may use so much, and no core file may be left."""
    for what, most in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, limits.seconds), (resource.RLIMIT_FSIZE, 2 * limits.bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def _preview(table: Table) -> dict[str, Any]:
    """The first rows, and the range of every column."""
    targets = [table.labels[int(value)] if table.labels else value for value in table.y[:PREVIEW_ROWS].tolist()]
    columns = [*table.names[:100], table.target]
    return {
        "target": table.target,
        "groups": table.groups and table.groups.name,
        "columns": columns,
        "rows": [[*row[:100], target] for row, target in zip(table.x[:PREVIEW_ROWS].tolist(), targets, strict=True)],
        "min": [*table.x.min(0).tolist()[:100], float(table.y.min())],
        "max": [*table.x.max(0).tolist()[:100], float(table.y.max())],
    }


if __name__ == "__main__":
    main()
