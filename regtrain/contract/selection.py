"""Which repetitions a job makes of each set of values, and how one set is chosen by them. Pure: the worker chooses, every page can say why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from statistics import fmean, median, stdev
from typing import Annotated, Literal, assert_never

from pydantic import Field

from regtrain.contract.base import Part

Rule = Literal["best", "one_standard_error", "median"]
STRENGTHS = (".lambda", ".rate")
"""Ends of the paths whose numbers say how strongly a run is regularized: larger is stronger."""


class Selection(Part):
    """Which repetitions a job makes of each set of values, and the rule that chooses one."""

    folds: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Cross-validation: the training rows are cut into this many folds, and every set of values is trained once without each of them."""
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    """How often the folds are cut anew; needs `shuffle`."""
    shuffle: bool = True
    """Cut the folds from rows in random order (from the job's seed), not as they stand."""
    stratified: bool = False
    """Every fold has the same share of every class."""
    grouped: bool = False
    """Every fold holds whole groups of the dataset, so that no group is trained on and validated on at once: as many groups in each fold with `shuffle`, as equal numbers of rows as the groups allow without."""
    seeds: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Runs with seeds 0 … n−1: other initial weights, row order and noise, the same rows held out."""
    metric: Literal["loss/val", "accuracy/val"] = "loss/val"
    """What is compared: the loss (lower is better) or the accuracy (higher is better) on the validation rows."""
    rule: Rule = "best"
    """`best`: the best mean. `median`: the best median. `one_standard_error`: the strongest regularization whose mean lies within one standard error of the best (Breiman et al. 1984)."""
    refit: bool | None = None
    """Train the choice once more, on all training rows. Default: with folds, where no run has seen all of them."""

    @property
    def repetitions(self) -> int:
        """Runs of each set of values."""
        return (self.folds or 1) * (self.repeats if self.folds else 1) * self.seeds

    @property
    def refits(self) -> bool:
        return self.folds is not None if self.refit is None else self.refit


@dataclass(frozen=True)
class Score:
    """What the repetitions of one set of values say. `mean`, `median` and `standard_error` are NaN where a run failed."""

    values: Mapping[str, float]
    runs: tuple[int, ...]
    mean: float
    median: float
    standard_error: float
    """Deviation (n − 1) over √n of the runs; NaN for one run."""
    n: int


@dataclass(frozen=True)
class Choice:
    """Which set of values each rule takes, as places in the table; None where it cannot say."""

    best: int | None
    median: int | None
    one_standard_error: int | None

    def by(self, rule: Rule) -> int | None:
        match rule:
            case "best":
                return self.best
            case "median":
                return self.median
            case "one_standard_error":
                return self.one_standard_error
            case _:
                assert_never(rule)


def scores(points: Sequence[tuple[Mapping[str, float], Sequence[tuple[int, float]]]]) -> list[Score]:
    """The table of a job. points: (values, [(run, metric)]) for each set of values, a failed run's metric NaN."""
    return [_score(values, runs) for values, runs in points]


def choose(table: Sequence[Score], *, higher_is_better: bool) -> Choice:
    """What each rule takes from a table. Sets with a failed run are not taken."""
    sign = -1.0 if higher_is_better else 1.0
    able = [place for place, score in enumerate(table) if isfinite(score.mean)]
    if not able:
        return Choice(None, None, None)
    best = min(able, key=lambda place: sign * table[place].mean)
    middle = min(able, key=lambda place: sign * table[place].median)
    return Choice(best, middle, _one_standard_error(table, able, best, sign))


def strength(paths: Sequence[str]) -> str | None:
    """The path whose number says how strongly a run is regularized: the only searched one that ends like a strength."""
    found = [path for path in paths if path.endswith(STRENGTHS)]
    return found[0] if len(found) == 1 else None


def _score(values: Mapping[str, float], runs: Sequence[tuple[int, float]]) -> Score:
    numbers = [metric for _, metric in runs]
    sound = all(isfinite(number) for number in numbers)
    return Score(
        values=dict(values),
        runs=tuple(run for run, _ in runs),
        mean=fmean(numbers) if sound else nan,
        median=median(numbers) if sound else nan,
        standard_error=stdev(numbers) / sqrt(len(numbers)) if sound and len(numbers) > 1 else nan,
        n=len(numbers),
    )


def _one_standard_error(table: Sequence[Score], able: Sequence[int], best: int, sign: float) -> int | None:
    """The strongest of those within one standard error of the best, all other values being the best's."""
    path = strength(list(table[best].values))
    if path is None or not isfinite(table[best].standard_error):
        return None
    limit = sign * table[best].mean + table[best].standard_error
    others = {key: value for key, value in table[best].values.items() if key != path}
    near = [place for place in able if sign * table[place].mean <= limit and all(table[place].values[key] == value for key, value in others.items())]
    return max(near, key=lambda place: table[place].values[path])
