"""From a spec to its runs: every range and every seed becomes concrete values. Pure, so plan, store and worker agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeGuard, cast

from regtrain.contract.base import Part
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.models import Layer, parameters
from regtrain.contract.optimizers import Lbfgs, Optimizer, Proximal
from regtrain.contract.ranges import Linear, Log, Range, Values, values_of
from regtrain.contract.selection import Selection

MOST_RUNS = 4096
PACK_BYTES = {"cpu": 2**24, "cuda": 2**33}
"""A pack holds as many runs as fit in this much memory: on a CPU its caches, since a pack that does not fit there is slower than its runs
one by one. Static, so that the arithmetic of a run does not depend on what is free."""
MOST_IN_A_PACK = 512


@dataclass(frozen=True)
class Run:
    """One training of one concrete set of values. `spec` has no ranges left and no repetitions."""

    index: int
    values: dict[str, float]
    """Path → value of everything that was searched; empty for the refit, whose values are not known before the choice."""
    seed: int
    spec: JobSpec
    fold: int | None = None
    """Which fold it is trained without: repetition · folds + fold; None without cross-validation, and for the refit."""
    refit: bool = False
    """Trained after the choice, with the chosen values, on all training rows."""


def count(spec: JobSpec) -> int:
    """How many runs the spec makes."""
    return _count(spec, list(ranges(spec)))


def expand(spec: JobSpec) -> list[Run]:
    """The runs of a job, ordered by grid (in the order of the spec, the last range fastest), then fold, then seed; the refit last.

    Raises:
        SpecRefused: there would be more than MOST_RUNS.
    """
    found, selection = list(ranges(spec)), spec.selection
    if (runs := _count(spec, found)) > MOST_RUNS:
        raise SpecRefused(
            [Problem("", f"the ranges, folds and seeds of this job make {runs:,} runs; {MOST_RUNS:,} is the most", "use fewer points, folds or seeds, or several jobs")]
        )
    single = spec.model_copy(update={"selection": Selection()})
    grid = [dict(zip((path for path, _ in found), point, strict=True)) for point in product(*(values_of(r) for _, r in found))]
    folds = range(selection.folds * selection.repeats) if selection.folds else [None]
    each = [(values, _with(single, values)) for values in grid]
    places = [(values, concrete, fold, seed) for values, concrete in each for fold in folds for seed in range(selection.seeds)]
    made = [Run(index=index, values=values, seed=seed, spec=concrete, fold=fold) for index, (values, concrete, fold, seed) in enumerate(places)]
    return [*made, Run(index=len(made), values={}, seed=0, spec=each[0][1], refit=True)] if selection.refits else made


def fold_of(spec: JobSpec, index: int) -> int | None:
    """The fold of a run, without expanding all of them."""
    selection = spec.selection
    if not selection.folds or (selection.refits and index == count(spec) - 1):
        return None
    return index // selection.seeds % (selection.folds * selection.repeats)


def points(runs: list[Run]) -> list[list[Run]]:
    """The runs of each set of values, in the order of the grid; without the refit."""
    found: dict[tuple[float, ...], list[Run]] = {}
    for run in runs:
        if not run.refit:
            found.setdefault(tuple(run.values.values()), []).append(run)
    return list(found.values())


def with_values(spec: JobSpec, values: dict[str, float]) -> JobSpec:
    """The spec of one run: these values in their places, no repetitions."""
    return _with(spec.model_copy(update={"selection": Selection()}), values)


def ranges(spec: JobSpec) -> Iterator[tuple[str, Range]]:
    """Path and range wherever one stands in place of a number."""
    return _ranges(spec, [])


def packs(runs: list[Run], *, shape: list[Layer], batch: int, item_bytes: int, device: str) -> list[list[int]]:
    """Indices of the runs that train together: they share their training rows, and fit into memory. `device`: cpu or cuda."""
    each = bytes_of_run(shape, batch=batch, item_bytes=item_bytes, vectors=vectors_of(runs[0].spec.optimizer) if runs else 6)
    most = max(1, min(MOST_IN_A_PACK, PACK_BYTES[device] // each))
    found: dict[tuple[int | None, bool], list[int]] = {}
    for run in runs:
        found.setdefault((run.fold, run.refit), []).append(run.index)
    return [members[first : first + most] for members in found.values() for first in range(0, len(members), most)]


def vectors_of(optimizer: Optimizer) -> int:
    """How many vectors as long as all parameters a run keeps: weights, gradient, update, and the optimizer's own."""
    return 8 + 2 * optimizer.history if isinstance(optimizer, Lbfgs) else 8 if isinstance(optimizer, Proximal) else 6


def bytes_of_run(shape: list[Layer], *, batch: int, item_bytes: int, vectors: int = 6) -> int:
    """Memory of one run while it trains: so many `vectors` of all parameters (weights, gradient, update, the optimizer's own), and three tensors an activation."""
    activations = batch * sum(prod(layer.signal) for layer in shape)
    return item_bytes * (vectors * parameters(shape) + 3 * activations)


def _count(spec: JobSpec, found: list[tuple[str, Range]]) -> int:
    return prod(len(values_of(r)) for _, r in found) * spec.selection.repetitions + spec.selection.refits


def _ranges(node: Any, path: list[str]) -> Iterator[tuple[str, Range]]:
    if isinstance(node, Values | Log | Linear):
        yield ".".join(path), node
    elif _is_tuple(node):
        for index, inner in enumerate(node):
            if isinstance(inner, Part):
                yield from _ranges(inner, [*path, str(index)])
    elif isinstance(node, Part):
        for name, inner in vars(node).items():  # pydantic's own iteration takes three times as long
            if isinstance(inner, Part) or _is_tuple(inner):
                yield from _ranges(inner, [*path, type(node).model_fields[name].alias or name])


def _with(spec: JobSpec, values: dict[str, float]) -> JobSpec:
    for path, value in values.items():
        spec = _replace(spec, path.split("."), value)
    return spec


def _replace(node: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if _is_tuple(node):
        index = int(first)
        return (*node[:index], _replace(node[index], rest, value), *node[index + 1 :])
    name = next(name for name, info in cast(type[Part], type(node)).model_fields.items() if first in (name, info.alias))
    return node.model_copy(update={name: _replace(getattr(node, name), rest, value)})


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)
