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
from regtrain.contract.optimizers import Lbfgs, Proximal
from regtrain.contract.ranges import Linear, Log, Range, Values, values_of

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
    """Path → value of everything that was searched."""
    seed: int
    spec: JobSpec


def count(spec: JobSpec) -> int:
    """How many runs the spec makes."""
    return prod(len(values_of(r)) for _, r in ranges(spec)) * spec.selection.seeds


def expand(spec: JobSpec) -> list[Run]:
    """The runs of a job, ordered by grid (in the order of the spec, the last range fastest), then seed.

    Raises:
        SpecRefused: there would be more than MOST_RUNS.
    """
    found = list(ranges(spec))
    if (runs := prod(len(values_of(r)) for _, r in found) * spec.selection.seeds) > MOST_RUNS:
        raise SpecRefused([Problem("", f"the ranges and seeds of this job make {runs:,} runs; {MOST_RUNS:,} is the most", "use fewer points or seeds, or several jobs")])
    single = _replace(spec, ["selection", "seeds"], 1)
    grid = [dict(zip((path for path, _ in found), point, strict=True)) for point in product(*(values_of(r) for _, r in found))]
    runs_of_grid = [(values, _with(single, values)) for values in grid]
    return [
        Run(index=position * spec.selection.seeds + seed, values=values, seed=seed, spec=concrete)
        for position, (values, concrete) in enumerate(runs_of_grid)
        for seed in range(spec.selection.seeds)
    ]


def ranges(spec: JobSpec) -> Iterator[tuple[str, Range]]:
    """Path and range wherever one stands in place of a number."""
    return _ranges(spec, [])


def packs(runs: list[Run], *, shape: list[Layer], batch: int, item_bytes: int, device: str) -> list[list[int]]:
    """Indices of the runs that train together. All runs of a spec have one shape; memory alone splits them. `device`: cpu or cuda."""
    optimizer = runs[0].spec.optimizer if runs else None
    vectors = 8 + 2 * optimizer.history if isinstance(optimizer, Lbfgs) else 8 if isinstance(optimizer, Proximal) else 6
    each = bytes_of_run(shape, batch=batch, item_bytes=item_bytes, vectors=vectors)
    most = max(1, min(MOST_IN_A_PACK, PACK_BYTES[device] // each))
    return [[run.index for run in runs[first : first + most]] for first in range(0, len(runs), most)]


def bytes_of_run(shape: list[Layer], *, batch: int, item_bytes: int, vectors: int = 6) -> int:
    """Memory of one run while it trains: so many `vectors` of all parameters (weights, gradient, update, the optimizer's own), and three tensors an activation."""
    activations = batch * sum(prod(layer.signal) for layer in shape)
    return item_bytes * (vectors * parameters(shape) + 3 * activations)


def _ranges(node: Any, path: list[str]) -> Iterator[tuple[str, Range]]:
    if isinstance(node, Values | Log | Linear):
        yield ".".join(path), node
    elif _is_tuple(node):
        for index, inner in enumerate(node):
            if isinstance(inner, Part):
                yield from _ranges(inner, [*path, str(index)])
    elif isinstance(node, Part):
        for name, inner in node:
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
