"""Reads one uploaded file in a process of its own, with little memory, time and room on the disk: `python -P -m service.parse`.

Takes its orders as JSON on stdin, answers with JSON on stdout, and writes the rows as safetensors: "x" float64 (n, d),
"y" float64 (n,). Nothing else ever reads what users upload. No pickle: arrays are read from their raw bytes.
"""

import csv
import hashlib
import json
import os
import resource
import sys
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from regtrain.contract.errors import Problem, SpecRefused
from service.limits import Limits
from service.names import nearest

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
MOST_PROBLEMS = 20
MOST_LINE = 2**21
"""Characters of a line of CSV."""
MOST_LABELS = 1000
LARGEST = 1e300
PREVIEW_ROWS = 5
NAMES = ("x", "y", "feature_names")


@dataclass(frozen=True)
class Table:
    """Rows as numbers. With labels, y holds their numbers."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    names: list[str]
    target: str
    labels: list[str] | None
    image: tuple[int, int, int] | None = None


def main() -> None:
    orders = json.load(sys.stdin)
    limits = Limits(**orders["limits"])
    _jail(limits)
    try:
        answer = parse(Path(orders["source"]), Path(orders["place"]), kind=orders["format"], target=orders["target"], limits=limits)
    except SpecRefused as refusal:
        answer = {"problems": [[p.path, p.message, p.hint] for p in refusal.problems]}
    except MemoryError:
        answer = {"problems": [["", "the file needs more memory than an upload may use", "upload fewer rows or columns"]]}
    json.dump(answer, sys.stdout)


def parse(source: Path, place: Path, *, kind: str, target: str | None, limits: Limits) -> dict[str, Any]:
    """Writes the canonical file to `place` and says what is in it: what its facts follow from, its first rows, its hash.

    Raises:
        SpecRefused: the file cannot be taken, with the line or row and column of what is wrong.
    """
    table = read_csv(source, target=target, limits=limits) if kind == "csv" else read_npz(source, limits=limits)
    about = {"feature_names": table.names, "class_names": table.labels, "image": table.image}
    save_file({"x": np.ascontiguousarray(table.x), "y": np.ascontiguousarray(table.y)}, place, metadata={"about": json.dumps(about)})
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
        "distinct": distinct.tolist() if len(distinct) <= MOST_LABELS else None,
        "preview": _preview(table),
        "sha256": digest,
    }


def read_csv(source: Path, *, target: str | None, limits: Limits) -> Table:
    """A header line (or none, where every cell of the first line is a number), then one row a line. The target is the last column, or the named one."""
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            return _rows_of_csv(file, target=target, limits=limits)
    except UnicodeDecodeError as error:
        raise _refused("", f"not UTF-8 text: byte {error.start} of a block cannot be read", "save the file as UTF-8") from None
    except csv.Error as error:
        raise _refused("", f"not CSV: {error}", "check the quotes") from None


def read_npz(source: Path, *, limits: Limits) -> Table:
    """An archive as numpy.savez(file, x=…, y=…) writes it: x (n, d), or images (n, height, width) or (n, channels, height, width); y (n,)."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = _members(archive, limits)
            arrays = {name: _array(archive, info, limits) for name, info in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _refused("", f"not an NPZ archive: {error}", 'write it with numpy.savez("rows.npz", x=x, y=y)') from None
    return _table_of_arrays(arrays, limits)


def _jail(limits: Limits) -> None:
    """From here on this process may use so much, and no core file may be left."""
    for what, most in ((resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_CPU, limits.seconds), (resource.RLIMIT_FSIZE, 2 * limits.bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def _rows_of_csv(file: TextIO, *, target: str | None, limits: Limits) -> Table:
    csv.field_size_limit(100_000)
    first = _line(file)
    if not first.strip():
        raise _refused("", "the file is empty", "send a header line and one line a row")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(_chain(first, file), delimiter=delimiter, strict=True)
    opening = [cell.strip() for cell in next(reader)]
    names, headed = _names(opening, limits)
    place = _target_place(names, target)
    features, targets, lines = array("d"), list[str](), array("q")
    problems: list[Problem] = []
    for row in _with_first(reader, None if headed else opening):
        if not row:
            continue
        line = reader.line_num
        if len(row) != len(names):
            problems.append(Problem(f"lines.{line}", f"line {line} has {len(row)} cells, the first line has {len(names)}", "give every line the same number of cells"))
        else:
            problems += _take(row, line, names, place, features, targets)
            lines.append(line)
        if len(problems) >= MOST_PROBLEMS:
            raise SpecRefused(problems[:MOST_PROBLEMS])
        _within(len(targets), len(names), limits)
    if not problems and not targets:
        problems.append(Problem("", "there is no row below the header", "send one line a row"))
    if problems:
        raise SpecRefused(problems)
    y, labels = _targets(targets, lambda i: (f"lines.{lines[i]}.{names[place]}", f"line {lines[i]}, column {names[place]!r}"))
    x = np.frombuffer(features).reshape(len(targets), len(names) - 1)
    return Table(x=x, y=y, names=[name for i, name in enumerate(names) if i != place], target=names[place], labels=labels)


def _take(row: list[str], line: int, names: list[str], place: int, features: "array[float]", targets: list[str]) -> Iterator[Problem]:
    """Adds a row, or says what is wrong with its cells."""
    targets.append(row.pop(place).strip())
    before = len(features)
    try:
        features.extend(map(float, row))
    except ValueError:
        bad = True
    else:
        bad = "_" in "".join(row) or not all(-LARGEST <= value <= LARGEST for value in features[before:])
    if bad or targets[-1].lower() in MISSING:
        row.insert(place, targets[-1])
        yield from (
            Problem(f"lines.{line}.{names[i]}", f"line {line}, column {names[i]!r}: {wrong[0]}", wrong[1])
            for i, cell in enumerate(row)
            if (wrong := _wrong(cell.strip(), target=i == place))
        )


def _wrong(cell: str, *, target: bool) -> tuple[str, str] | None:
    if cell.lower() in MISSING:
        return f"a missing value ({cell!r})", "remove the row, or fill the value in"
    if target:
        return None
    value = _number(cell)
    if value is None:
        return f"not a number: {cell[:60]!r}", "write numbers with a decimal point, and categories as numbers"
    return None if abs(value) <= LARGEST else (f"not a finite number: {cell[:60]!r}", "remove the row, or write a finite number")


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _names(opening: list[str], limits: Limits) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first line was a header."""
    if len(opening) > limits.columns:
        raise _refused("", f"{len(opening):,} columns are more than {limits.columns:,}", "upload fewer columns")
    if len(opening) < 2:
        raise _refused("", "there is only one column", "send at least one feature and the target, separated by commas, semicolons or tabs")
    if all(_number(cell) is not None for cell in opening):
        return [f"column_{i + 1}" for i in range(len(opening))], False
    for i, name in enumerate(opening):
        if not name or len(name) > 200:
            raise _refused("lines.1", f"column {i + 1} has {'no name' if not name else 'a name longer than 200 characters'}", "give every column a short name in the first line")
        if _strange([name]) is not None:
            raise _refused("lines.1", f"the name {name!r} has characters that are no text", "give every column a short name in the first line")
        if opening.index(name) != i:
            raise _refused(f"lines.1.{name}", f"two columns are called {name!r}", "rename one of them")
    return opening, True


def _target_place(names: list[str], target: str | None) -> int:
    if target is None:
        return len(names) - 1
    if target not in names:
        raise _refused("target", f"there is no column {target[:100]!r}", nearest(target, names[:50]))
    return names.index(target)


def _targets(cells: list[str], where: Any) -> tuple[NDArray[np.float64], list[str] | None]:
    """Targets as numbers; words become their number in alphabetical order."""
    numbers = [_number(cell) for cell in cells]
    words = sum(number is None for number in numbers)
    if words == 0:
        wrong = [i for i, number in enumerate(numbers) if number is None or not isfinite(number) or abs(number) > LARGEST]
        _refuse_places(wrong, where, "not a finite number", "remove the row, or write a finite number")
        return np.array(numbers, dtype=np.float64), None
    if words < len(cells):
        few_words = words <= len(cells) / 2
        wrong = [i for i, number in enumerate(numbers) if (number is None) == few_words]
        _refuse_places(wrong, where, "a word among numbers" if few_words else "a number among words", "write all targets as numbers, or all as words")
    return _numbered(cells)


def _numbered(cells: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    labels = sorted(set(cells))
    if (strange := _strange(labels)) is not None:
        raise _refused("target", f"the label {strange!r} has characters that are no text", "write labels without control characters")
    if len(labels) > MOST_LABELS:
        raise _refused("target", f"the target has {len(labels):,} different words; {MOST_LABELS:,} labels is the most", "name another column with target=")
    number = {label: float(i) for i, label in enumerate(labels)}
    return np.array([number[cell] for cell in cells], dtype=np.float64), labels


def _members(archive: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays. Their declared sizes bound what reading them can yield."""
    found = {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()}
    if len(archive.infolist()) > len(NAMES) or set(found) - set(NAMES):
        raise _refused("", f"expected the arrays x and y, found {', '.join(sorted(found))[:200]}", 'write numpy.savez("rows.npz", x=x, y=y)')
    for name in ("x", "y"):
        if name not in found:
            raise _refused(name, f"the archive has no array {name}", 'write numpy.savez("rows.npz", x=x, y=y)')
    if sum(info.file_size for info in found.values()) > limits.bytes:
        raise _refused("", f"the arrays unpack to more than {limits.bytes:,} bytes", "upload fewer rows or columns")
    for name, info in found.items():
        if info.file_size > limits.ratio * max(info.compress_size, 1) and info.file_size > 2**20:
            raise _refused(name, f"unpacks to more than {limits.ratio} times its size", "write it with numpy.savez, not savez_compressed")
    return found


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> NDArray[Any]:
    """One array, from its header and its raw bytes."""
    name = info.filename.removesuffix(".npy").lower()
    with archive.open(info) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
        except ValueError as error:
            raise _refused(name, f"not a numpy array: {str(error)[:200]}", "write it with numpy.savez") from None
        if dtype.hasobject or dtype.kind not in "biufUS":
            raise _refused(name, f"an array of {dtype} is not taken", "use numbers, or text for labels")
        size = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize if shape else dtype.itemsize
        if not 0 <= size <= min(info.file_size, limits.bytes):
            raise _refused(name, f"the header promises {size:,} bytes, the member has {info.file_size:,}", "write it with numpy.savez")
        raw = stream.read(size)
    if len(raw) != size:
        raise _refused(name, f"ends after {len(raw):,} of {size:,} bytes", "write it again")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _table_of_arrays(arrays: dict[str, NDArray[Any]], limits: Limits) -> Table:
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "biuf":
        raise _refused("x", f"expected numbers, found {x.dtype}", "write categories as numbers")
    if x.ndim not in (1, 2, 3, 4) or x.size == 0:
        raise _refused("x", f"expected rows (n, d) or images (n, height, width) or (n, channels, height, width), found the shape {list(x.shape)}", "reshape it")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != x.shape[:1]:
        raise _refused("y", f"x has {x.shape[0]} rows and y has the shape {list(y.shape)}", "give one target a row")
    image = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:] if x.ndim == 4 else None
    rows = x.reshape(len(x), -1)
    _within(*rows.shape, limits)
    numbers = rows.astype(np.float64)
    _refuse_places(_bad_cells(numbers), lambda cell: (f"x.{cell[0]}.{cell[1]}", f"row {cell[0]}, column {cell[1]}"), "not a finite number", "remove the row, or fill the value in")
    targets, labels = _targets_of_array(y)
    return Table(x=numbers, y=targets, names=_feature_names(arrays.get("feature_names"), numbers.shape[1]), target="y", labels=labels, image=image)  # pyright: ignore[reportArgumentType]


def _targets_of_array(y: NDArray[Any]) -> tuple[NDArray[np.float64], list[str] | None]:
    if y.dtype.kind in "US":
        cells = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in y.tolist()]
        _refuse_places([i for i, cell in enumerate(cells) if cell.strip().lower() in MISSING], lambda i: (f"y.{i}", f"row {i}"), "a missing label", "remove the row, or fill it in")
        return _numbered(cells)
    targets = y.astype(np.float64)
    _refuse_places(np.flatnonzero(~(np.abs(targets) <= LARGEST)).tolist(), lambda i: (f"y.{i}", f"row {i}"), "not a finite number", "remove the row, or fill the value in")
    return targets, None


def _feature_names(given: NDArray[Any] | None, columns: int) -> list[str]:
    if given is None:
        return [f"column_{i + 1}" for i in range(columns)]
    names = [str(name)[:200] for name in given.reshape(-1).tolist()]
    if given.dtype.kind != "U" or len(names) != columns or len(set(names)) != columns:
        raise _refused("feature_names", f"expected {columns} different names", "give one text a column, or leave feature_names out")
    if (strange := _strange(names)) is not None:
        raise _refused("feature_names", f"the name {strange!r} has characters that are no text", "write names without control characters")
    return names


def _strange(words: list[str]) -> str | None:
    """The first word with a control character or half a character, which not every database and terminal can bear."""
    return next((word for word in words if any(c < " " or "\ud800" <= c <= "\udfff" for c in word)), None)


def _bad_cells(numbers: NDArray[np.float64]) -> list[list[int]]:
    return np.argwhere(~(np.abs(numbers) <= LARGEST)).tolist()


def _refuse_places(wrong: list[Any], where: Any, message: str, hint: str) -> None:
    if wrong:
        places = [where(place) for place in wrong[:MOST_PROBLEMS]]
        raise SpecRefused([Problem(path, f"{words}: {message}", hint) for path, words in places])


def _within(rows: int, columns: int, limits: Limits) -> None:
    if rows > limits.rows:
        raise _refused("", f"more than {limits.rows:,} rows", "upload fewer rows")
    if columns > limits.columns:
        raise _refused("", f"{columns:,} columns are more than {limits.columns:,}", "upload fewer columns")
    if rows * columns > limits.cells:
        raise _refused("", f"more than {limits.cells:,} cells", "upload fewer rows or columns")


def _preview(table: Table) -> dict[str, Any]:
    """The first rows, and the range of every column."""
    targets = [table.labels[int(value)] if table.labels else value for value in table.y[:PREVIEW_ROWS].tolist()]
    columns = [*table.names[:100], table.target]
    return {
        "target": table.target,
        "columns": columns,
        "rows": [[*row[:100], target] for row, target in zip(table.x[:PREVIEW_ROWS].tolist(), targets, strict=True)],
        "min": [*table.x.min(0).tolist()[:100], float(table.y.min())],
        "max": [*table.x.max(0).tolist()[:100], float(table.y.max())],
    }


def _line(file: TextIO) -> str:
    line = file.readline(MOST_LINE)
    if "\0" in line:
        raise _refused("", "not text: it contains a NUL character", "save the file as CSV in UTF-8; for an NPZ archive say format=npz")
    if len(line) >= MOST_LINE:
        raise _refused("", f"a line is longer than {MOST_LINE:,} characters", "send one row a line")
    return line


def _chain(first: str, file: TextIO) -> Iterator[str]:
    line = first
    while line:
        yield line
        line = _line(file)


def _with_first(reader: Iterable[list[str]], first: list[str] | None) -> Iterator[list[str]]:
    if first is not None:
        yield first
    yield from reader


def _refused(path: str, message: str, hint: str) -> SpecRefused:
    return SpecRefused([Problem(path, message, hint)])


if __name__ == "__main__":
    main()
