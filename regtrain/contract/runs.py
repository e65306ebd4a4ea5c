"""From a spec to its runs: every variant, range, fold and seed becomes concrete. Pure, so plan, store and worker agree."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod, sqrt
from typing import Any, Literal, TypeGuard, cast

from regtrain.contract.base import Part
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.models import Layer, parameters
from regtrain.contract.optimizers import Lbfgs, Optimizer, Proximal
from regtrain.contract.ranges import Adapt, Linear, Log, Path, Range, Suggest, Values, ends_of, values_of
from regtrain.contract.selection import Selection, strength
from regtrain.contract.trial import turn_of
from regtrain.contract.variants import specs_of

RANGES = (Values, Log, Linear, Path, Suggest, Adapt)
MOST_RUNS = 4096
PACK_BYTES = {"cpu": 2**24, "cuda": 2**33}
"""A pack holds as many runs as fit in this much memory: on a CPU its caches, since a pack that does not fit there is slower than its runs
one by one. Static, so that the arithmetic of a run does not depend on what is free."""
MOST_IN_A_PACK = 512
JOINED_BYTES = {"cpu": 2**22, "cuda": 2**33}
"""Folds share a pack as long as it is no larger than this. On a CPU less than any pack may be: what joining saves is the overhead of a step, and what it costs is a
pack that leaves the nearer cache (docs/decisions/folds-share-a-pack.md)."""
COPIES_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""And as long as their rows, which every fold scales by itself, take no more."""
LEAST_ROUNDS = 5
"""A search asks at least so often, each time knowing more."""


@dataclass(frozen=True)
class Run:
    """One training of one concrete set of values. `spec` has no repetitions, and no ranges but those whose values are found by training."""

    index: int
    values: dict[str, float]
    """Path → value of everything that was searched, as far as it is known at submission: not of paths, suggestions, and the refit."""
    seed: int
    spec: JobSpec
    point: int | None = None
    """Place of its set of values in the table of scores; None for the refit of a choice that is still to be made."""
    fold: int | None = None
    """Which fold it is trained without: repetition · folds + fold; None without cross-validation, and for the refit."""
    refit: bool = False
    """Trained with chosen values, or with all of them, on all training rows."""
    variant: str | None = None
    outer: int | None = None
    """Which outer fold it knows nothing of; None for the job itself."""
    place: int | None = None
    """Its place on a path, 0 the strongest, or among the suggestions."""

    @property
    def open(self) -> list[str]:
        """The paths whose values are still to be found."""
        return [path for path, r in ranges(self.spec) if not isinstance(r, Adapt)]


@dataclass(frozen=True)
class FoldRows:
    """What joining folds in one pack depends on, beside the runs."""

    held_out: Mapping[int | None, Sequence[int]]
    """Outer fold → how many rows each fold leaves out. Folds that leave out the same number have the same batches, steps and epochs."""
    copy_bytes: int
    """Of all rows, scaled as one fold says."""
    batch_bytes: Callable[[JobSpec], int]
    """Of one batch of a variant: in a joined pack every run has rows of its own."""


@dataclass(frozen=True)
class Point:
    """One set of values of the grid of a variant."""

    values: dict[str, float]
    place: int | None


def count(spec: JobSpec) -> int:
    """How many runs the spec makes."""
    selection, each = spec.selection, sum(prod(lengths(concrete)) for _, concrete in specs_of(spec))
    refits = each if _refit(spec) == "all" else int(_refit(spec))
    outer = (selection.outer or 0) * (each * selection.repetitions + 1)
    return each * selection.repetitions + refits + outer


def expand(spec: JobSpec) -> list[Run]:
    """The runs of a job, ordered by variant, grid (in the order of the spec, the last range fastest), then fold, then seed; then the refit; then, in
    the same order, what is done without each outer fold.

    Raises:
        SpecRefused: there would be more than MOST_RUNS.
    """
    if (runs := count(spec)) > MOST_RUNS:
        raise SpecRefused(
            [Problem("", f"the ranges, variants, folds and seeds of this job make {runs:,} runs; {MOST_RUNS:,} is the most", "use fewer points, folds or seeds, or several jobs")]
        )
    selection, points, made = spec.selection, list[tuple[str | None, Point, JobSpec]](), list[Run]()
    for label, variant in specs_of(spec):
        single = variant.model_copy(update={"selection": Selection()})
        points += [(label, point, _with(single, point.values)) for point in _grid(variant)]

    def block(outer: int | None, refit: bool | Literal["all"]) -> None:
        for number, (label, point, concrete) in enumerate(points):
            for fold in range(selection.folds * selection.repeats) if selection.folds else [None]:
                for seed in range(selection.seeds):
                    made.append(Run(len(made), point.values, seed, concrete, number, fold, False, label, outer, point.place))
        if refit == "all":
            first = len(made)
            made.extend(Run(first + n, point.values, 0, concrete, n, None, True, label, outer, point.place) for n, (label, point, concrete) in enumerate(points))
        elif refit:
            made.append(Run(len(made), {}, 0, points[0][2], refit=True, outer=outer))

    block(None, _refit(spec))
    for outer in range(selection.outer or 0):
        block(outer, True)
    return made


def lengths(spec: JobSpec) -> list[int]:
    """How many values each range of a variant has; those that are suggested have theirs together."""
    found = [r for _, r in ranges(spec)]
    each = [r.path if isinstance(r, Path) else len(values_of(r)) for r in found if not isinstance(r, Suggest)]
    return each if len(each) == len(found) else [*each, spec.selection.trials or 1]


def points(runs: list[Run], outer: int | None = None) -> list[list[Run]]:
    """The runs of each set of values, in the order of the grid; without refits. `outer`: those that know nothing of an outer fold."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        if not run.refit and run.point is not None and run.outer == outer:
            found.setdefault(run.point, []).append(run)
    return list(found.values())


def with_values(spec: JobSpec, values: dict[str, float]) -> JobSpec:
    """The spec of one run: these values in their places, no repetitions."""
    return _with(spec.model_copy(update={"selection": Selection()}), values)


def provisional(spec: JobSpec) -> JobSpec:
    """The spec of a run with the least value in place of every one that is still to be found: to describe a job by."""
    return with_values(spec, {path: ends_of(r)[0] for path, r in ranges(spec) if isinstance(r, Path | Suggest)})


def ranges(spec: JobSpec) -> Iterator[tuple[str, Range]]:
    """Path and range wherever one stands in place of a number."""
    return _ranges(spec, [])


def warm_axis(spec: JobSpec) -> str | None:
    """The path of the strength that is trained from the strongest down, each from the weights of a stronger one; None where every run starts by itself."""
    if spec.selection.warm_start is False:
        return None
    path = next((path for path, r in ranges(spec) if isinstance(r, Path)), None)
    return path if path or not spec.selection.warm_start else strength([path for path, r in ranges(spec) if not isinstance(r, Adapt | Suggest)])


def wave_of(place: int, count: int) -> int:
    """A warm-started axis of `count` values goes in about √count waves: of one value each it would be a chain of small packs, all at once nothing to start from."""
    return place // ceil(sqrt(count))


def origin_of(place: int, count: int) -> int | None:
    """The place on the axis from whose weights this one starts: the last of the wave before."""
    wave = wave_of(place, count)
    return wave * ceil(sqrt(count)) - 1 if wave else None


def packs(runs: list[Run], spec: JobSpec, *, bytes_of: Callable[[JobSpec], int], device: str, folds: FoldRows | None = None) -> list[list[int]]:
    """Indices of the runs that train together, in the order of training: they share their variant, how many rows they train on and what they wait for, and fit into
    memory. Runs of one fold stand together.

    `bytes_of`: a run of this spec needs so much memory; `device`: cpu or cuda; `folds`: their rows, without which each fold is a pack of its own.
    """
    order = {label: number for number, label in enumerate(dict.fromkeys(run.variant for run in runs))}
    most = {label: max(1, min(MOST_IN_A_PACK, PACK_BYTES[device] // bytes_of(concrete))) for label, concrete in specs_of(spec)}
    waits = {label: _waiting(concrete, most[label]) for label, concrete in specs_of(spec)}
    leads = {} if folds is None else _leads(runs, spec, folds, waits, bytes_of=bytes_of, device=device)
    found: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        fold, wave, searches = -1 if run.fold is None else leads.get((run.variant, run.outer, run.fold), run.fold), 0, False
        if run.point is not None:
            wave, searches = waits[run.variant](run)
        place = order[run.variant]
        turn = (0, place) if spec.trial is None else turn_of(spec.trial, run.variant, place, seed=run.seed, seeds=spec.selection.seeds)
        found.setdefault((-1 if run.outer is None else run.outer, run.refit, *turn, *((wave, fold) if searches else (fold, wave))), []).append(run)
    members = [
        (most[run_of[0].variant] if run_of[0].point is not None else 1, [run.index for run in sorted(run_of, key=lambda run: run.fold or 0)]) for _, run_of in sorted(found.items())
    ]
    return [indices[first : first + size] for size, indices in members for first in range(0, len(indices), size)]


def _leads(
    runs: list[Run], spec: JobSpec, folds: FoldRows, waits: Mapping[str | None, Callable[[Run], tuple[int, bool]]], *, bytes_of: Callable[[JobSpec], int], device: str
) -> dict[tuple[str | None, int | None, int], int]:
    """Variant, outer fold and fold → the first of the folds with which it shares its packs: neighbours that leave out as many rows, as many as fit, evenly dealt."""
    found: dict[tuple[str | None, int | None, int], int] = {}
    for label, concrete in specs_of(spec):
        together = Counter(waits[label](run)[0] for run in runs if run.point is not None and (run.variant, run.outer, run.fold) == (label, None, 0))
        if not together or _apart(concrete):
            continue
        each = max(together.values())
        bytes_of_fold = each * (bytes_of(concrete) + folds.batch_bytes(concrete))
        width = max(1, min(JOINED_BYTES[device] // bytes_of_fold, MOST_IN_A_PACK // each, COPIES_BYTES[device] // folds.copy_bytes))
        for outer, held_out in folds.held_out.items():
            for size in dict.fromkeys(held_out):
                alike = [fold for fold, rows in enumerate(held_out) if rows == size]
                number = ceil(len(alike) / width)
                for part in (alike[len(alike) * n // number : len(alike) * (n + 1) // number] for n in range(number)):
                    found |= {(label, outer, fold): part[0] for fold in part}
    return found


def _apart(spec: JobSpec) -> bool:
    """Whether the folds of a variant train one after the other, whatever they cost: a proposal may be left out after each, or a strength follows the rows of its fold."""
    found = [r for _, r in ranges(spec)]
    return any(isinstance(r, Adapt) for r in found) or (spec.selection.prune and any(isinstance(r, Suggest) for r in found))


def _waiting(spec: JobSpec, most: int) -> Callable[[Run], tuple[int, bool]]:
    """From a run of a variant to the number of the wave or the batch that it belongs to, and whether that is a batch of a search."""
    trials, axis = spec.selection.trials, warm_axis(spec)
    if any(isinstance(r, Suggest) for _, r in ranges(spec)):
        width = max(1, min(most // spec.selection.seeds, ceil((trials or 1) / LEAST_ROUNDS)))
        return lambda run: ((run.place or 0) // width, True)
    if axis is not None:
        number = length_of(spec, axis)
        return lambda run: (wave_of(run.place or 0, number), False)
    return lambda run: (0, False)


def length_of(spec: JobSpec, path: str) -> int:
    """How many values the range at a path has."""
    return next(r.path if isinstance(r, Path) else len(values_of(r)) for at, r in ranges(spec) if at == path)


def vectors_of(optimizer: Optimizer) -> int:
    """How many vectors as long as all parameters a run keeps: weights, gradient, update, and the optimizer's own."""
    return 8 + 2 * optimizer.history if isinstance(optimizer, Lbfgs) else 8 if isinstance(optimizer, Proximal) else 6


def bytes_of_run(shape: list[Layer], *, batch: int, item_bytes: int, vectors: int = 6) -> int:
    """Memory of one run while it trains: so many `vectors` of all parameters (weights, gradient, update, the optimizer's own), and three tensors an activation."""
    activations = batch * sum(prod(layer.signal) for layer in shape)
    return item_bytes * (vectors * parameters(shape) + 3 * activations)


def _refit(spec: JobSpec) -> bool | Literal["all"]:
    selection = spec.selection
    if selection.refit is not None or selection.folds is None:
        return selection.refit or False
    return "all" if any(isinstance(r, Path) for _, variant in specs_of(spec) for _, r in ranges(variant)) else True


def _grid(spec: JobSpec) -> list[Point]:
    """Every set of values of one variant, in the order of its ranges, the last one fastest; suggestions last."""
    axis, axes = warm_axis(spec), list[list[tuple[dict[str, float], int | None]]]()
    for path, r in ranges(spec):
        if isinstance(r, Path):
            axes.append([({}, place) for place in range(r.path)])
        elif not isinstance(r, Suggest):
            values = values_of(r)
            falling = sorted(range(len(values)), key=lambda at: -values[at])
            axes.append([({path: value}, falling.index(at) if path == axis else None) for at, value in enumerate(values)])
    if any(isinstance(r, Suggest) for _, r in ranges(spec)):
        axes.append([({}, trial) for trial in range(spec.selection.trials or 1)])
    return [_joined(parts) for parts in product(*axes)]


def _joined(parts: Sequence[tuple[dict[str, float], int | None]]) -> Point:
    values = {path: value for own, _ in parts for path, value in own.items()}
    return Point(values, next((place for _, place in parts if place is not None), None))


def _ranges(node: Any, path: list[str]) -> Iterator[tuple[str, Range]]:
    if isinstance(node, RANGES):
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


def _in_place(before: Any, value: Any) -> Any:
    """A strength that adapts goes on adapting, from its own start."""
    adapting = isinstance(before, Adapt)
    return cast(Part, before).model_copy(update={"start": value}) if adapting else value


def _replace(node: Any, path: list[str], value: Any) -> Any:
    if not path:
        return _in_place(node, value)
    first, *rest = path
    if _is_tuple(node):
        index = int(first)
        return (*node[:index], _replace(node[index], rest, value), *node[index + 1 :])
    name = next(name for name, info in cast(type[Part], type(node)).model_fields.items() if first in (name, info.alias))
    return node.model_copy(update={name: _replace(getattr(node, name), rest, value)})


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)
