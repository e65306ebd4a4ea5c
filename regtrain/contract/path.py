"""The regularization path of a job: its results ordered by λ, strongest first, with what each rule takes and what is left of the weights.

Pure: from the spec and what its runs have become, while the job trains as well as afterwards. As soon as every run has ended the choice is the worker's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from regtrain.contract import lam
from regtrain.contract.datasets import Facts
from regtrain.contract.job import JobSpec
from regtrain.contract.lam import Converted
from regtrain.contract.models import LinearModel
from regtrain.contract.ranges import Adapt, Suggest
from regtrain.contract.runs import ranges
from regtrain.contract.selection import Choice, Score, choose, in_words, scores, strength
from regtrain.contract.states import RunState, StopReason
from regtrain.contract.variants import specs_of

RULES = ("best", "one_standard_error", "median")
NO_COEFFICIENTS = "coefficients are those of linear models; zeros and penalties say what is left of these weights"
ONLY_FOLDS = 'every run with these values was trained without a fold; selection.refit "all" trains each set of values once more, on all training rows'


class Trained(Protocol):
    """What has to be known of a run."""

    @property
    def index(self) -> int: ...
    @property
    def values(self) -> dict[str, float]: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def point(self) -> int | None: ...
    @property
    def outer(self) -> int | None: ...
    @property
    def refit(self) -> bool: ...
    @property
    def state(self) -> RunState: ...
    @property
    def stop_reason(self) -> StopReason | None: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def zeros(self) -> dict[str, int]: ...
    @property
    def coefficients(self) -> dict[str, Any] | None: ...
    @property
    def certificate(self) -> dict[str, Any] | None: ...
    @property
    def adaptation(self) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Weights:
    """What is left of the weights: of the refit on all training rows where there is one, else the mean over the runs."""

    of: Literal["refit", "seeds", "folds"]
    runs: tuple[int, ...]
    zeros: dict[str, float]
    """Exact zeros of each penalised tensor."""
    zeros_in_all: float
    penalties: dict[str, float]
    """Final value of each penalty."""
    surviving: tuple[str, ...] | None
    """Names of the features with a weight that is not zero, in the order of the rows' columns; None without coefficients."""
    coefficients: dict[str, Any] | None
    """`weights` and `intercept` in the units of the raw columns."""
    reason: str | None
    """Why there are no coefficients."""


@dataclass(frozen=True)
class Entry:
    """One set of values."""

    place: int
    """In the table of scores, and `point` of its runs."""
    variant: str | None
    values: dict[str, float]
    """Everything that was searched, as far as it has been found."""
    strength: float | None
    """λ, by which the path is ordered."""
    adapted: tuple[float, ...]
    """Of a strength that adapts: what each run has come to."""
    score: float | None
    standard_error: float | None
    median: float | None
    n: int
    """Runs that have ended."""
    of: int
    """Runs that there will be."""
    state: Literal["waiting", "training", "done", "pruned", "failed"]
    taken_by: tuple[str, ...]
    """The rules that take it."""
    chosen: bool
    weights: Weights | None
    """None before a run has ended well."""
    relative_gap: float | None
    """Convex jobs: the largest of its runs' certificates."""
    conventions: dict[str, dict[str, float | None]]
    """Path of each strength → convention → its number there."""


@dataclass(frozen=True)
class Entered:
    """A feature on its way along the path, strongest λ first."""

    feature: str
    strength: float
    """λ at which its weight is first not zero."""
    leaves: tuple[float, ...]
    """λ at which it is zero again."""
    returns: tuple[float, ...]


@dataclass(frozen=True)
class Path:
    """Entries that differ in λ alone, or, without one strength to order by, the table as it is."""

    variant: str | None
    fixed: dict[str, float]
    """The other searched values, which all entries share."""
    ordered_by: str | None
    """Path of the strength."""
    reason: str | None
    """Why it is not ordered."""
    entries: tuple[Entry, ...]
    conventions: dict[str, list[dict[str, str]]]
    """Path of each strength → every convention in which the entries say it: title, parameter, formula, objective."""
    entry_order: tuple[Entered, ...] | None
    """Linear models with weights from all training rows: the features in the order in which they enter."""


@dataclass(frozen=True)
class RegularizationPath:
    complete: bool
    """Every run has ended."""
    metric: str
    higher_is_better: bool
    rule: str
    choice: dict[str, int | None]
    """What each rule takes, and `chosen`, as places; among those with the most runs ended, as long as not all have."""
    in_words: str | None
    """What the data cannot tell apart."""
    features: tuple[str, ...] | None
    """Names of the columns, in the order of the coefficients."""
    certificates: dict[str, Any] | None
    """Convex jobs: how many runs have one, and the largest `relative_gap` and `kkt_violation` of them."""
    paths: tuple[Path, ...]

    @property
    def entries(self) -> list[Entry]:
        return [entry for path in self.paths for entry in path.entries]

    @property
    def main(self) -> Path:
        """The path that holds the choice, else the best so far, else the first."""
        wanted = next((place for place in (self.choice["chosen"], self.choice["best"]) if place is not None), None)
        return next((path for path in self.paths if any(entry.place == wanted for entry in path.entries)), self.paths[0])


def path_of(spec: JobSpec, runs: Sequence[Trained], facts: Facts | None) -> RegularizationPath:
    """The path of a job. runs: all of them, by index; facts: None where the rows are gone, and with them what λ is elsewhere."""
    members = _members(runs)
    table = [_score(of, spec.selection.metric) for of in members]
    choice, words = _choice(spec, table)
    chosen = 0 if len(runs) == 1 else choice.by(spec.selection.rule)
    specs = dict(specs_of(spec))
    axes = {label: strength([path for path, r in ranges(variant) if not isinstance(r, Adapt)]) for label, variant in specs.items()}
    converted = [_converted(specs[of[0].variant], facts, score.values, of) for of, score in zip(members, table, strict=True)]

    def entry(place: int) -> Entry:
        of, score, variant = members[place], table[place], members[place][0].variant
        weights = _weights(spec, specs[variant], of, _refit(runs, place, chosen=place == chosen))
        adapted, axis = tuple(run.adaptation["strength"] for run in of if run.adaptation), axes[variant]
        return Entry(
            place, variant, dict(score.values), score.values.get(axis) if axis else None, adapted, _plain(score.mean), _plain(score.standard_error), _plain(score.median),
            score.n, len(of), _state(of), tuple(rule for rule in RULES if getattr(choice, rule) == place), place == chosen, weights, _largest(of, "relative_gap"),
            {path: {one.convention: one.value for one in found} for path, found in converted[place].items()},
        )  # fmt: skip

    entries = [entry(place) for place in range(len(members))]
    return RegularizationPath(
        complete=all(_ended(run) for run in runs), metric=spec.selection.metric, higher_is_better=_higher(spec), rule=spec.selection.rule,
        choice={rule: getattr(choice, rule) for rule in RULES} | {"chosen": chosen}, in_words=words, features=_features(runs), certificates=_certificates(runs),
        paths=tuple(_paths(entries, specs, axes, converted)),
    )  # fmt: skip


def _paths(entries: list[Entry], specs: Mapping[str | None, JobSpec], axes: Mapping[str | None, str | None], converted: Sequence[dict[str, list[Converted]]]) -> Iterator[Path]:
    """One for each variant and each set of other values; suggested values belong to their entry, as no two are the same."""
    if not any(axes.values()):
        yield Path(None, {}, None, _unordered(list(specs.values())), tuple(entries), _formulas(converted), None)
        return
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        suggested = {path for path, r in ranges(specs[entry.variant]) if isinstance(r, Suggest)}
        others = tuple((path, value) for path, value in entry.values.items() if path != axes[entry.variant] and path not in suggested and axes[entry.variant])
        found.setdefault((entry.variant, others), []).append(entry)
    for (variant, others), of in found.items():
        axis = axes[variant]
        falling = sorted(of, key=lambda entry: np.inf if entry.strength is None else -entry.strength)
        reason = None if axis else _unordered([specs[variant]])
        yield Path(variant, dict(others), axis, reason, tuple(falling), _formulas([converted[entry.place] for entry in of]), _entry_order(falling) if axis else None)


def _unordered(specs: Sequence[JobSpec]) -> str:
    searched = {path for spec in specs for path, r in ranges(spec) if not isinstance(r, Adapt)}
    strengths = sorted(path for path in searched if strength([path]))
    if len(strengths) > 1:
        return f"{len(strengths)} strengths are searched ({', '.join(strengths)}), and results have an order by one: they stand in the order of the grid"
    return "no strength is searched: the results stand in the order of the grid"


def _members(runs: Sequence[Trained]) -> list[list[Trained]]:
    """The repetitions of every set of values, in the order of the grid."""
    found: dict[int, list[Trained]] = {}
    for run in runs:
        if not run.refit and run.point is not None and run.outer is None:
            found.setdefault(run.point, []).append(run)
    return [found[place] for place in sorted(found)]


def _score(of: Sequence[Trained], metric: str) -> Score:
    ended = [(run.index, _metric(run, metric)) for run in of if _ended(run)]
    return scores([(of[0].variant, of[0].values, ended)])[0] if ended else Score(of[0].variant, of[0].values, (), nan, nan, nan, 0)


def _choice(spec: JobSpec, table: Sequence[Score]) -> tuple[Choice, str | None]:
    """What each rule takes of those of which most is known, and in words how far that goes."""
    most = max(score.n for score in table)
    kept = [place for place, score in enumerate(table) if score.n == most > 0]
    part = [table[place] for place in kept]
    found = choose(part, higher_is_better=_higher(spec))
    whole = Choice(*(None if at is None else kept[at] for at in (found.best, found.median, found.one_standard_error)))
    return whole, in_words(part, found, spec.selection) if len(part) > 1 else None


def _refit(runs: Sequence[Trained], place: int, *, chosen: bool) -> Trained | None:
    """The run that was trained with these values on all training rows."""
    of = [run for run in runs if run.refit and run.outer is None and run.state == RunState.SUCCEEDED]
    return next((run for run in of if run.point == place or (run.point is None and chosen)), None)


def _weights(spec: JobSpec, variant: JobSpec, of: Sequence[Trained], refit: Trained | None) -> Weights | None:
    runs = [refit] if refit else [run for run in of if run.state == RunState.SUCCEEDED]
    if not runs:
        return None
    basis = "refit" if refit else "folds" if spec.selection.folds else "seeds"
    zeros = {name: _mean([run.zeros.get(name, 0) for run in runs]) for name in runs[0].zeros}
    names = [name for name in runs[0].metrics if name.startswith("penalty/")]
    penalties = {name: _mean([run.metrics[name] for run in runs]) for name in names if all(run.metrics.get(name) is not None for run in runs)}
    reason = NO_COEFFICIENTS if not isinstance(variant.model, LinearModel) else ONLY_FOLDS if basis == "folds" else None
    coefficients = None if reason else _coefficients(runs)
    surviving = None if coefficients is None else _surviving(_features(runs) or (), np.atleast_2d(np.asarray(coefficients["weights"], float)))
    return Weights(basis, tuple(run.index for run in runs), zeros, sum(zeros.values()), penalties, surviving, coefficients, reason)


def _surviving(names: Sequence[str], weights: NDArray[np.float64]) -> tuple[str, ...]:
    """weights: (outputs, features)"""
    return tuple(names[column] for column in np.flatnonzero((weights != 0).any(0)).tolist())


def _coefficients(runs: Sequence[Trained]) -> dict[str, Any] | None:
    """In raw units, the mean over runs."""
    known = [run.coefficients for run in runs if run.coefficients]
    if len(known) < len(runs):
        return None
    return {name: np.mean([np.asarray(one[name], float) for one in known], axis=0).tolist() for name in ("weights", "intercept")}


def _entry_order(entries: Sequence[Entry]) -> tuple[Entered, ...] | None:
    """Features by the λ at which they enter, the strongest first; None where some sets of values have been trained without a fold only, or by nothing linear."""
    found = [(entry.strength, entry.weights) for entry in entries if entry.weights is not None and entry.strength is not None]
    if not found or any(weights.surviving is None for _, weights in found):
        return None
    moves: dict[str, list[float]] = {}
    before: set[str] = set()
    for lam_, weights in found:
        now = weights.surviving or ()
        for name in [*(name for name in now if name not in before), *sorted(before - set(now))]:
            moves.setdefault(name, []).append(lam_)
        before = set(now)
    return tuple(Entered(name, at[0], tuple(at[1::2]), tuple(at[2::2])) for name, at in moves.items())


def _converted(spec: JobSpec, facts: Facts | None, values: Mapping[str, float], of: Sequence[Trained]) -> dict[str, list[Converted]]:
    """The strengths in all conventions; empty where a value has not been found yet, or every run has found its own."""
    adapting = {path for path, r in ranges(spec) if isinstance(r, Adapt)}
    own = {run.adaptation["path"]: run.adaptation["strength"] for run in of if run.adaptation} if len(of) == 1 else {}
    known = {path: value for path, value in values.items() if path not in adapting} | own
    if facts is None or any(path not in known for path, _ in ranges(spec)):
        return {}
    return lam.of_result(spec, facts, known)


def _formulas(converted: Sequence[dict[str, list[Converted]]]) -> dict[str, list[dict[str, str]]]:
    """Each convention once; where variants write different penalties at the same place, once for each formula."""
    found: dict[str, list[dict[str, str]]] = {}
    for path, one in ((path, one) for entry in converted for path, known in entry.items() for one in known):
        told = {"convention": one.convention, "title": one.title, "parameter": one.parameter, "formula": one.formula, "objective": one.objective}
        if told not in found.setdefault(path, []):
            found[path].append(told)
    return found


def _certificates(runs: Sequence[Trained]) -> dict[str, Any] | None:
    having = [run for run in runs if run.certificate]
    return {"runs": len(having), **{name: _largest(having, name) for name in ("relative_gap", "kkt_violation")}} if having else None


def _largest(runs: Sequence[Trained], name: str) -> float | None:
    return max((number for run in runs if run.certificate and (number := run.certificate.get(name)) is not None), default=None)


def _features(runs: Sequence[Trained]) -> tuple[str, ...] | None:
    return next((tuple(run.coefficients["features"]) for run in runs if run.coefficients), None)


def _state(of: Sequence[Trained]) -> Literal["waiting", "training", "done", "pruned", "failed"]:
    if any(run.stop_reason == StopReason.PRUNED for run in of):
        return "pruned"
    if any(run.state == RunState.FAILED for run in of if _ended(run)):
        return "failed"
    ended = sum(_ended(run) for run in of)
    return "done" if ended == len(of) else "training" if ended or any(run.state == RunState.RUNNING for run in of) else "waiting"


def _ended(run: Trained) -> bool:
    """Of its own accord: runs of a job that was cancelled or failed have no reason."""
    return run.stop_reason is not None


def _metric(run: Trained, name: str) -> float:
    number = run.metrics.get(name) if run.state == RunState.SUCCEEDED else None
    return nan if number is None else number


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def _plain(number: float) -> float | None:
    return number if isfinite(number) else None


def _higher(spec: JobSpec) -> bool:
    return spec.selection.metric.startswith("accuracy")
