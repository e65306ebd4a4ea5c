"""CSV to a table: line by line, with the line and column of what is wrong."""

import csv
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.errors import Problem, SpecRefused
from service.limits import Limits
from service.names import nearest
from service.tables import LARGEST, MISSING, MOST_PROBLEMS, Table, Where, groups_of_words, numbered_words, refuse_places, refused, strange_word, within

MOST_LINE = 2**21
"""Characters of a line."""


@dataclass(frozen=True)
class Columns:
    """The columns of a CSV, and which of them are no features."""

    names: list[str]
    target: int
    groups: int | None

    @property
    def special(self) -> list[int]:
        """In falling order, so that one can be taken out of a row after the other."""
        return sorted((place for place in (self.target, self.groups) if place is not None), reverse=True)


def read_csv(source: Path, *, target: str | None, groups: str | None, limits: Limits) -> Table:
    """A header line (or none, where every cell of the first line is a number), then one row a line.

    The target is the named column, or the last one that does not name the groups.
    """
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            return _rows_of_csv(file, target=target, groups=groups, limits=limits)
    except UnicodeDecodeError as error:
        raise refused("", f"not UTF-8 text: byte {error.start} of a block cannot be read", "save the file as UTF-8") from None
    except csv.Error as error:
        raise refused("", f"not CSV: {error}", "check the quotes") from None


def _rows_of_csv(file: TextIO, *, target: str | None, groups: str | None, limits: Limits) -> Table:
    csv.field_size_limit(100_000)
    first = _line(file)
    if not first.strip():
        raise refused("", "the file is empty", "send a header line and one line a row")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(_chain(first, file), delimiter=delimiter, strict=True)
    opening = [cell.strip() for cell in next(reader)]
    names, headed = _names(opening, limits)
    columns = _columns(names, target, groups)
    features, taken, lines = array("d"), [list[str]() for _ in columns.special], array("q")
    problems: list[Problem] = []
    for row in _with_first(reader, None if headed else opening):
        if not row:
            continue
        line = reader.line_num
        if len(row) != len(names):
            problems.append(Problem(f"lines.{line}", f"line {line} has {len(row)} cells, the first line has {len(names)}", "give every line the same number of cells"))
        else:
            problems += _take(row, line, columns, features, taken)
            lines.append(line)
        if len(problems) >= MOST_PROBLEMS:
            raise SpecRefused(problems[:MOST_PROBLEMS])
        within(len(lines), len(names), limits)
    if not problems and not lines:
        problems.append(Problem("", "there is no row below the header", "send one line a row"))
    if problems:
        raise SpecRefused(problems)
    cells = dict(zip(columns.special, taken, strict=True))

    def where(place: int) -> Where:
        return lambda i: (f"lines.{lines[i]}.{names[place]}", f"line {lines[i]}, column {names[place]!r}")

    y, labels = _targets(cells[columns.target], where(columns.target))
    found = None if columns.groups is None else groups_of_words(names[columns.groups], cells[columns.groups], where(columns.groups))
    features_of = [name for i, name in enumerate(names) if i not in cells]
    return Table(x=np.frombuffer(features).reshape(len(lines), len(features_of)), y=y, names=features_of, target=names[columns.target], labels=labels, groups=found)


def _take(row: list[str], line: int, columns: Columns, features: "array[float]", taken: list[list[str]]) -> Iterator[Problem]:
    """Adds a row, or says what is wrong with its cells."""
    special, names = columns.special, columns.names
    for place, cells in zip(special, taken, strict=True):
        cells.append(row.pop(place).strip())
    before = len(features)
    try:
        features.extend(map(float, row))
    except ValueError:
        bad = True
    else:
        bad = "_" in "".join(row) or not all(-LARGEST <= value <= LARGEST for value in features[before:])
    if bad or any(cells[-1].lower() in MISSING for cells in taken):
        for place, cells in reversed(list(zip(special, taken, strict=True))):
            row.insert(place, cells[-1])
        yield from (
            Problem(f"lines.{line}.{names[i]}", f"line {line}, column {names[i]!r}: {wrong[0]}", wrong[1])
            for i, cell in enumerate(row)
            if (wrong := _wrong(cell.strip(), word=i in special))
        )


def _wrong(cell: str, *, word: bool) -> tuple[str, str] | None:
    if cell.lower() in MISSING:
        return f"a missing value ({cell!r})", "remove the row, or fill the value in"
    if word:
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
        raise refused("", f"{len(opening):,} columns are more than {limits.columns:,}", "upload fewer columns")
    if len(opening) < 2:
        raise refused("", "there is only one column", "send at least one feature and the target, separated by commas, semicolons or tabs")
    if all(_number(cell) is not None for cell in opening):
        return [f"column_{i + 1}" for i in range(len(opening))], False
    for i, name in enumerate(opening):
        if not name or len(name) > 200:
            raise refused("lines.1", f"column {i + 1} has {'no name' if not name else 'a name longer than 200 characters'}", "give every column a short name in the first line")
        if strange_word([name]) is not None:
            raise refused("lines.1", f"the name {name!r} has characters that are no text", "give every column a short name in the first line")
        if opening.index(name) != i:
            raise refused(f"lines.1.{name}", f"two columns are called {name!r}", "rename one of them")
    return opening, True


def _columns(names: list[str], target: str | None, groups: str | None) -> Columns:
    grouping = None if groups is None else _place("groups", groups, names)
    last = max(place for place in range(len(names)) if place != grouping)
    place = last if target is None else _place("target", target, names)
    if place == grouping:
        raise refused("groups", f"column {names[place]!r} is the target", "name another column as groups, or as target")
    if grouping is not None and len(names) < 3:
        raise refused("groups", "beside the target and the groups there is no column", "send at least one feature")
    return Columns(names, place, grouping)


def _place(path: str, name: str, names: list[str]) -> int:
    if name not in names:
        raise refused(path, f"there is no column {name[:100]!r}", nearest(name, names[:50]))
    return names.index(name)


def _targets(cells: list[str], where: Any) -> tuple[NDArray[np.float64], list[str] | None]:
    """Targets as numbers; words become their number in alphabetical order."""
    numbers = [_number(cell) for cell in cells]
    words = sum(number is None for number in numbers)
    if words == 0:
        wrong = [i for i, number in enumerate(numbers) if number is None or not isfinite(number) or abs(number) > LARGEST]
        refuse_places(wrong, where, "not a finite number", "remove the row, or write a finite number")
        return np.array(numbers, dtype=np.float64), None
    if words < len(cells):
        few_words = words <= len(cells) / 2
        wrong = [i for i, number in enumerate(numbers) if (number is None) == few_words]
        refuse_places(wrong, where, "a word among numbers" if few_words else "a number among words", "write all targets as numbers, or all as words")
    return numbered_words(cells)


def _line(file: TextIO) -> str:
    line = file.readline(MOST_LINE)
    if "\0" in line:
        raise refused("", "not text: it contains a NUL character", "save the file as CSV in UTF-8; for an NPZ archive say format=npz")
    if len(line) >= MOST_LINE:
        raise refused("", f"a line is longer than {MOST_LINE:,} characters", "send one row a line")
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
