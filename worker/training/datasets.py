"""From the words of a dataset to its rows, and which of them are train, val and test."""

import gzip
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from regtrain.contract.datasets import (
    Adding,
    Blobs,
    BreastCancer,
    Circles,
    Copying,
    Dataset,
    Diabetes,
    Digits,
    Inline,
    Iris,
    LinearRows,
    Mnist,
    TemporalOrder,
    Upload,
    Wine,
    counts,
    facts_of,
    inline_groups,
    parts_of,
    target_facts,
)
from regtrain.contract.datasets import Facts as Facts
from regtrain.contract.errors import DataError
from regtrain.contract.groups import group_folds, sizes_of
from regtrain.contract.seeds import seed_at
from regtrain.contract.selection import Selection

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """All rows of a dataset. x: (n, features) float64; y: (n,) float64, class numbers for a class target."""

    x: Array
    y: Array
    facts: Facts
    groups: NDArray[np.int64] | None = None
    """(n,) numbers of the groups that the rows belong to."""


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, in rising order."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def load(dataset: Dataset, *, data: Path, upload: Path | None, classify: bool) -> Rows:
    """The rows that a spec names. With `classify`, whole-number targets become class numbers 0 … C−1 in rising order.

    Raises:
        DataError: files are missing or unfit.
    """
    match dataset:
        case Inline(x=x, y=y):
            rows, target = np.array(x, float), np.array(y, float)
        case Digits() | Iris() | Wine() | BreastCancer() | Diabetes():
            rows, target = _bundled(dataset)
        case Mnist():
            rows, target = _mnist(data / "mnist")
        case LinearRows():
            rows, target = _linear(dataset)
        case Blobs():
            rows, target = _blobs(dataset)
        case Circles():
            rows, target = _circles(dataset)
        case Adding():
            rows, target = _adding(dataset)
        case TemporalOrder():
            rows, target = _temporal_order(dataset)
        case Copying():
            rows, target = _copying(dataset)
        case Upload():
            return _uploaded(dataset, upload, classify)
        case _:
            assert_never(dataset)
    facts = facts_of(dataset)
    assert facts is not None
    groups = inline_groups(dataset)[0] if isinstance(dataset, Inline) else None
    return Rows(rows, np.unique(target, return_inverse=True)[1].astype(float) if classify else target, facts, groups)


def split(dataset: Dataset, rows: Rows, *, seed: int) -> Split:
    """Which rows are held out: from the job's seed alone."""
    want, n = counts(dataset, rows.facts, seed=seed), len(rows.y)
    if rows.groups is not None and (parts := parts_of(dataset, rows.facts, seed=seed)) is not None:
        return _split(n, np.flatnonzero(np.isin(rows.groups, parts.val)), np.flatnonzero(np.isin(rows.groups, parts.test)))
    if isinstance(dataset, Mnist):
        last = n - want.test
        held = np.random.default_rng(seed_at(seed, "split")).permutation(last)[: want.val]
        return _split(n, held, np.arange(last, n))
    order = np.arange(n)[::-1] if dataset.split == "last" else np.random.default_rng(seed_at(seed, "split")).permutation(n)
    if dataset.split == "stratified":
        test = _stratified(order, rows.y, want.test)
        val = _stratified(order[~np.isin(order, test)], rows.y, want.val)
        return _split(n, val, test)
    return _split(n, order[want.test : want.test + want.val], order[: want.test])


def folds(train: NDArray[np.int64], y: Array, selection: Selection, *, groups: NDArray[np.int64] | None = None, seed: int, purpose: str = "folds") -> list[NDArray[np.int64]]:
    """The rows left out by each fold of each repetition, in rising order; sizes differ by one at most (scikit-learn's KFold), but for whole groups (GroupKFold).
    `purpose`: outer folds are cut by themselves."""
    assert selection.folds is not None
    if selection.grouped:
        assert groups is not None
        of_row = np.unique(groups[train], return_inverse=True)[1]  # numbered anew: groups that are held out are none of these
        return [train[np.isin(of_row, held)] for held in group_folds(sizes_of(of_row), selection, seed=seed)]
    found: list[NDArray[np.int64]] = []
    for repeat in range(selection.repeats):
        order = np.random.default_rng(seed_at(seed, purpose, repeat)).permutation(train) if selection.shuffle else train
        if selection.stratified:  # dealt out like cards, class by class
            order = order[np.argsort(y[order], kind="stable")]
            found += [np.sort(order[fold :: selection.folds]) for fold in range(selection.folds)]
        else:
            found += [np.sort(part) for part in np.array_split(order, selection.folds)]
    return found


def _split(n: int, val: NDArray[np.int64], test: NDArray[np.int64]) -> Split:
    return Split(np.setdiff1d(np.arange(n), np.concatenate([val, test])), np.sort(val), np.sort(test))


def _stratified(order: NDArray[np.int64], y: Array, take: int) -> NDArray[np.int64]:
    """The first rows of each class in `order`, each class by its share; rows left over by rounding go to the largest remainders."""
    classes, sizes = np.unique(y[order], return_counts=True)
    exact = sizes * take / len(order)
    each = np.floor(exact).astype(int)
    each[np.argsort(each - exact, kind="stable")[: take - each.sum()]] += 1
    return np.concatenate([order[y[order] == c][:k] for c, k in zip(classes, each, strict=True)] or [order[:0]])


def _bundled(dataset: Digits | Iris | Wine | BreastCancer | Diabetes) -> tuple[Array, Array]:
    from sklearn import datasets  # takes a second to import, and only bundled sets need it

    loader = {
        "digits": datasets.load_digits,
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
        "breast_cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
    }
    x, y = loader[dataset.kind](return_X_y=True)
    return np.asarray(x, float) / (16 if dataset.kind == "digits" else 1), np.asarray(y, float)


_IDX = {"train-images-idx3-ubyte": 16, "train-labels-idx1-ubyte": 8, "t10k-images-idx3-ubyte": 16, "t10k-labels-idx1-ubyte": 8}
"""Published file → length of its header in bytes."""


def _mnist(folder: Path) -> tuple[Array, Array]:
    npz = folder / "mnist.npz"
    try:
        parts = [np.atleast_1d(part) for part in (_npz(npz) if npz.is_file() else [_idx(folder, name, header) for name, header in _IDX.items()])]
        train_x, train_y, test_x, test_y = (part.reshape(len(part), -1) for part in parts)
        shapes, labels = [part.shape for part in (train_x, train_y, test_x, test_y)], np.concatenate([train_y.ravel(), test_y.ravel()]).astype(float)
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"the MNIST files in {folder.resolve()} cannot be read ({error}): replace them") from error
    if shapes != [(60_000, 784), (60_000, 1), (10_000, 784), (10_000, 1)] or not np.isin(labels, np.arange(10)).all():
        raise DataError(f"MNIST in {folder.resolve()} has arrays of {shapes}, expected 60,000 and 10,000 images of 784 pixels with a label 0 to 9 each: replace its files")
    return np.concatenate([train_x, test_x]) / 255.0, labels


def _npz(path: Path) -> list[NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} is not an npz file")
    with np.load(path, allow_pickle=False) as file:
        for names in (("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")):
            if set(names) <= set(file.files):
                return [file[name] for name in names]
        raise ValueError(f"{path.name} holds {', '.join(file.files)}; expected x_train, y_train, x_test, y_test")


def _idx(folder: Path, name: str, header: int) -> NDArray[np.uint8]:
    for path in (folder / name, folder / name.replace("-idx", ".idx"), folder / f"{name}.gz"):
        if path.is_file():
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if len(raw) < header:
                raise ValueError(f"{path.name} is shorter than its header")
            body = np.frombuffer(raw, np.uint8, offset=header)
            return body.reshape(-1, 784) if header == 16 else body
    raise DataError(f"MNIST is not there: put mnist.npz, or the four published files ({', '.join(_IDX)}, plain or .gz), into {folder.resolve()}")


def _linear(dataset: LinearRows) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed_at(dataset.draw, "linear"))
    x = draw.standard_normal((dataset.rows, len(dataset.coefficients)))
    return x, dataset.intercept + x @ np.array(dataset.coefficients) + dataset.noise * draw.standard_normal(dataset.rows)


def _blobs(dataset: Blobs) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed_at(dataset.draw, "blobs"))
    centers = draw.uniform(-10, 10, (dataset.centers, dataset.features))
    y = np.arange(dataset.rows) % dataset.centers
    return centers[y] + dataset.std * draw.standard_normal((dataset.rows, dataset.features)), y.astype(float)


def _circles(dataset: Circles) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed_at(dataset.draw, "circles"))
    y = np.arange(dataset.rows) % 2
    angle, radius = draw.uniform(0, 2 * np.pi, dataset.rows), np.where(y == 0, 1.0, dataset.factor)
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return circle + dataset.noise * draw.standard_normal((dataset.rows, 2)), y.astype(float)


def _adding(dataset: Adding) -> tuple[Array, Array]:
    draw, rows, half = np.random.default_rng(seed_at(dataset.draw, "adding")), np.arange(dataset.rows), dataset.length // 2
    values, marks = draw.random((dataset.rows, dataset.length)), np.zeros((dataset.rows, dataset.length))
    first, second = draw.integers(0, half, dataset.rows), draw.integers(half, dataset.length, dataset.rows)
    marks[rows, first] = marks[rows, second] = 1
    return np.stack([values, marks], 2).reshape(dataset.rows, -1), values[rows, first] + values[rows, second]


def _temporal_order(dataset: TemporalOrder) -> tuple[Array, Array]:
    draw, rows, length = np.random.default_rng(seed_at(dataset.draw, "temporal_order")), np.arange(dataset.rows), dataset.length
    y, symbols = rows % 4, draw.integers(2, 6, (dataset.rows, length))
    symbols[rows, draw.integers(length // 10, 2 * length // 10, dataset.rows)] = y // 2
    symbols[rows, draw.integers(4 * length // 10, 5 * length // 10, dataset.rows)] = y % 2
    return _as_channels(symbols, 6), y.astype(float)


def _copying(dataset: Copying) -> tuple[Array, Array]:
    draw, blank = np.random.default_rng(seed_at(dataset.draw, "copying")), dataset.alphabet
    symbols = draw.integers(0, dataset.alphabet, (dataset.rows, dataset.memory))
    asked = draw.integers(0, dataset.memory, dataset.rows)
    y = np.arange(dataset.rows) % dataset.alphabet  # every class in equal shares, whatever is drawn beside it
    symbols[np.arange(dataset.rows), asked] = y
    steps = np.concatenate([symbols, np.full((dataset.rows, dataset.blanks), blank), (blank + 1 + asked)[:, None]], 1)
    return _as_channels(steps, blank + 1 + dataset.memory), y.astype(float)


def _as_channels(symbols: NDArray[np.int64], channels: int) -> Array:
    """Each symbol as a 1 in its channel.  (n, T) -> (n, T·channels)"""
    x = np.zeros((*symbols.shape, channels))
    np.put_along_axis(x, symbols[:, :, None], 1.0, 2)
    return x.reshape(len(symbols), -1)


def _uploaded(dataset: Upload, file: Path | None, classify: bool) -> Rows:
    if file is None or not file.is_file():
        raise DataError(f"the rows of dataset {dataset.id} are not there: upload it again")
    from safetensors import safe_open  # only uploads need it

    with safe_open(file, framework="numpy") as stored:
        x, y = (stored.get_tensor(name).astype(float) for name in ("x", "y"))
        groups = stored.get_tensor("groups") if "groups" in stored.keys() else None  # noqa: SIM118 - the file is no dict
        about: dict[str, Any] = json.loads((stored.metadata() or {}).get("about", "{}"))
    known = target_facts(tuple(np.unique(y).tolist())) if classify else {"target": "real"}
    words = {name: tuple(value) for name, value in about.items() if value and (classify or name != "class_names")}
    facts = Facts.model_validate({"rows": len(y), "features": x.shape[1], "group_sizes": None if groups is None else sizes_of(groups), **known, **words})
    return Rows(x, np.unique(y, return_inverse=True)[1].astype(float) if classify else y, facts, groups)
