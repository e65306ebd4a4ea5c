"""What an uploaded file comes to, whatever its format, and how it is refused."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.groups import MOST_GROUPS, numbered
from service.limits import Limits

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
MOST_PROBLEMS = 20
MOST_LABELS = 1000
LONGEST_GROUP = 200
"""Characters of a label."""
WHOLE = re.compile(r"[+-]?[0-9]+")
LARGEST = 1e300
Where = Callable[[int], tuple[str, str]]
"""The path and the words for the place of a row."""


@dataclass(frozen=True)
class Groups:
    """Which rows belong together."""

    name: str
    codes: NDArray[np.int64]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Rows as numbers. With labels, y holds their numbers, and `groups` those of the groups."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    names: list[str]
    target: str
    labels: list[str] | None
    image: tuple[int, int, int] | None = None
    groups: Groups | None = None


def numbered_words(cells: list[str]) -> tuple[NDArray[np.float64], list[str]]:
    labels = sorted(set(cells))
    if (strange := strange_word(labels)) is not None:
        raise refused("target", f"the label {strange!r} has characters that are no text", "write labels without control characters")
    if len(labels) > MOST_LABELS:
        raise refused("target", f"the target has {len(labels):,} different words; {MOST_LABELS:,} labels is the most", "name another column with target=")
    number = {label: float(i) for i, label in enumerate(labels)}
    return np.array([number[cell] for cell in cells], dtype=np.float64), labels


def groups_of_words(name: str, cells: list[str], where: Where) -> Groups:
    """Groups by their labels, numbered in rising order: of numbers where all are whole numbers, else of the alphabet."""
    refuse_places([i for i, cell in enumerate(cells) if len(cell) > LONGEST_GROUP], where, f"a label longer than {LONGEST_GROUP} characters", "give the groups short labels")
    return groups_of(name, [int(cell) for cell in cells] if all(map(WHOLE.fullmatch, cells)) else cells)


def groups_of(name: str, labels: list[int] | list[str]) -> Groups:
    codes, sizes = numbered(labels)
    if len(sizes) > MOST_GROUPS:
        raise refused(
            "groups", f"{name} has {len(sizes):,} different labels; {MOST_GROUPS:,} groups are the most", "give rows that belong together the same label, or leave groups out"
        )
    return Groups(name, codes, sizes)


def strange_word(words: list[str]) -> str | None:
    """The first word with a control character or half a character, which not every database and terminal can bear."""
    return next((word for word in words if any(c < " " or "\ud800" <= c <= "\udfff" for c in word)), None)


def refuse_places(wrong: list[Any], where: Any, message: str, hint: str) -> None:
    if wrong:
        places = [where(place) for place in wrong[:MOST_PROBLEMS]]
        raise SpecRefused([Problem(path, f"{words}: {message}", hint) for path, words in places])


def within(rows: int, columns: int, limits: Limits) -> None:
    if rows > limits.rows:
        raise refused("", f"more than {limits.rows:,} rows", "upload fewer rows")
    if columns > limits.columns:
        raise refused("", f"{columns:,} columns are more than {limits.columns:,}", "upload fewer columns")
    if rows * columns > limits.cells:
        raise refused("", f"more than {limits.cells:,} cells", "upload fewer rows or columns")


def refused(path: str, message: str, hint: str) -> SpecRefused:
    return SpecRefused([Problem(path, message, hint)])
