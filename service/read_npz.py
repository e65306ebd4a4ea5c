"""NPZ to a table: every array from its header and its raw bytes, never by pickle."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.limits import Limits
from service.tables import LARGEST, MISSING, Groups, Table, groups_of, groups_of_words, numbered_words, refuse_places, refused, strange_word, within

NAMES = ("x", "y", "feature_names", "groups")


def read_npz(source: Path, *, groups: str | None, limits: Limits) -> Table:
    """An archive as numpy.savez(file, x=…, y=…) writes it: x (n, d), or images (n, height, width) or (n, channels, height, width); y (n,); groups (n,) if there are any."""
    if groups is not None:
        raise refused("groups", "only the columns of a CSV have names to be chosen", "put an array groups into the archive, one label a row, and leave groups= out")
    try:
        with zipfile.ZipFile(source) as archive:
            members = _members(archive, limits)
            arrays = {name: _array(archive, info, limits) for name, info in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise refused("", f"not an NPZ archive: {error}", 'write it with numpy.savez("rows.npz", x=x, y=y)') from None
    return _table_of_arrays(arrays, limits)


def _members(archive: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays. Their declared sizes bound what reading them can yield."""
    found = {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()}
    if len(archive.infolist()) > len(NAMES) or set(found) - set(NAMES):
        raise refused("", f"expected the arrays x and y, found {', '.join(sorted(found))[:200]}", 'write numpy.savez("rows.npz", x=x, y=y), and groups=groups if there are any')
    for name in ("x", "y"):
        if name not in found:
            raise refused(name, f"the archive has no array {name}", 'write numpy.savez("rows.npz", x=x, y=y)')
    if sum(info.file_size for info in found.values()) > limits.bytes:
        raise refused("", f"the arrays unpack to more than {limits.bytes:,} bytes", "upload fewer rows or columns")
    for name, info in found.items():
        if info.file_size > limits.ratio * max(info.compress_size, 1) and info.file_size > 2**20:
            raise refused(name, f"unpacks to more than {limits.ratio} times its size", "write it with numpy.savez, not savez_compressed")
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
            raise refused(name, f"not a numpy array: {str(error)[:200]}", "write it with numpy.savez") from None
        if dtype.hasobject or dtype.kind not in "biufUS":
            raise refused(name, f"an array of {dtype} is not taken", "use numbers, or text for labels")
        size = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize if shape else dtype.itemsize
        if not 0 <= size <= min(info.file_size, limits.bytes):
            raise refused(name, f"the header promises {size:,} bytes, the member has {info.file_size:,}", "write it with numpy.savez")
        raw = stream.read(size)
    if len(raw) != size:
        raise refused(name, f"ends after {len(raw):,} of {size:,} bytes", "write it again")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _table_of_arrays(arrays: dict[str, NDArray[Any]], limits: Limits) -> Table:
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "biuf":
        raise refused("x", f"expected numbers, found {x.dtype}", "write categories as numbers")
    if x.ndim not in (1, 2, 3, 4) or x.size == 0:
        raise refused("x", f"expected rows (n, d) or images (n, height, width) or (n, channels, height, width), found the shape {list(x.shape)}", "reshape it")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != x.shape[:1]:
        raise refused("y", f"x has {x.shape[0]} rows and y has the shape {list(y.shape)}", "give one target a row")
    image = (1, *x.shape[1:]) if x.ndim == 3 else x.shape[1:] if x.ndim == 4 else None
    rows = x.reshape(len(x), -1)
    within(*rows.shape, limits)
    numbers = rows.astype(np.float64)
    refuse_places(_bad_cells(numbers), lambda cell: (f"x.{cell[0]}.{cell[1]}", f"row {cell[0]}, column {cell[1]}"), "not a finite number", "remove the row, or fill the value in")
    targets, labels = _targets_of_array(y)
    groups = _groups_of_array(arrays["groups"], len(x)) if "groups" in arrays else None
    return Table(x=numbers, y=targets, names=_feature_names(arrays.get("feature_names"), numbers.shape[1]), target="y", labels=labels, image=image, groups=groups)  # pyright: ignore[reportArgumentType]


def _groups_of_array(given: NDArray[Any], rows: int) -> Groups:
    given = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if given.shape != (rows,):
        raise refused("groups", f"x has {rows} rows and groups has the shape {list(given.shape)}", "give one label a row")
    if given.dtype.kind not in "biuUS":
        raise refused("groups", f"expected whole numbers or text, found {given.dtype}", "write the labels of the groups as whole numbers or text")
    if given.dtype.kind in "biu":
        return groups_of("groups", given.tolist())
    cells = [_text(cell).strip() for cell in given.tolist()]
    refuse_places([i for i, cell in enumerate(cells) if cell.lower() in MISSING], lambda i: (f"groups.{i}", f"row {i}"), "a missing label", "remove the row, or fill it in")
    return groups_of_words("groups", cells, lambda i: (f"groups.{i}", f"row {i}"))


def _text(cell: str | bytes) -> str:
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell


def _targets_of_array(y: NDArray[Any]) -> tuple[NDArray[np.float64], list[str] | None]:
    if y.dtype.kind in "US":
        cells = [_text(cell) for cell in y.tolist()]
        refuse_places([i for i, cell in enumerate(cells) if cell.strip().lower() in MISSING], lambda i: (f"y.{i}", f"row {i}"), "a missing label", "remove the row, or fill it in")
        return numbered_words(cells)
    targets = y.astype(np.float64)
    refuse_places(np.flatnonzero(~(np.abs(targets) <= LARGEST)).tolist(), lambda i: (f"y.{i}", f"row {i}"), "not a finite number", "remove the row, or fill the value in")
    return targets, None


def _feature_names(given: NDArray[Any] | None, columns: int) -> list[str]:
    if given is None:
        return [f"column_{i + 1}" for i in range(columns)]
    names = [str(name)[:200] for name in given.reshape(-1).tolist()]
    if given.dtype.kind != "U" or len(names) != columns or len(set(names)) != columns:
        raise refused("feature_names", f"expected {columns} different names", "give one text a column, or leave feature_names out")
    if (strange := strange_word(names)) is not None:
        raise refused("feature_names", f"the name {strange!r} has characters that are no text", "write names without control characters")
    return names


def _bad_cells(numbers: NDArray[np.float64]) -> list[list[int]]:
    return np.argwhere(~(np.abs(numbers) <= LARGEST)).tolist()
