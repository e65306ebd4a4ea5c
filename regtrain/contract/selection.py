"""Which repetitions a job makes of each set of values, and how one set is chosen by them. Pure: the worker chooses, every page can say why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from statistics import fmean, median, stdev
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from pydantic import Field

from regtrain.contract.base import Part

Rule = Literal["best", "one_standard_error", "median"]
QUARTILES = ("min", "lower_quartile", "median", "upper_quartile", "max")
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
    refit: bool | Literal["all"] | None = None
    """Train the choice once more, on all training rows; `all`: every set of values, so that a whole path is known on all rows. Default: with folds, where no run
    has seen all rows; there `all` for a `path`."""
    outer: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Nested cross-validation: the whole choice is made once more without each of so many outer folds, and its refit measured there, which reports what choosing
    costs (Varma & Simon 2006)."""
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """How many sets of values a search proposes (`suggest`)."""
    prune: bool = True
    """A proposal leaves the search when six or more pairs of the same fold and seed say that it is worse than the best one (Wilcoxon 1945, two-sided p < 0.05)."""
    warm_start: bool | None = None
    """Train the strengths from the strongest down, in waves, each from the weights of a stronger one. Default: for a `path`."""

    @property
    def repetitions(self) -> int:
        """Runs of each set of values."""
        return (self.folds or 1) * (self.repeats if self.folds else 1) * self.seeds


@dataclass(frozen=True)
class Score:
    """What the repetitions of one set of values say. `mean`, `median` and `standard_error` are NaN where a run failed."""

    variant: str | None
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


def scores(points: Sequence[tuple[str | None, Mapping[str, float], Sequence[tuple[int, float]]]]) -> list[Score]:
    """The table of a job. points: (variant, values, [(run, metric)]) for each set of values, a failed run's metric NaN."""
    return [_score(variant, values, runs) for variant, values, runs in points]


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


def in_words(table: Sequence[Score], choice: Choice, selection: Selection) -> str:
    """One sentence on what the data cannot tell apart: the sets of values whose means lie within one standard error of the best."""
    if choice.best is None:
        return "No set of values can be chosen: none has a score from every run."
    best, higher = table[choice.best], selection.metric.startswith("accuracy")
    if not isfinite(best.standard_error):
        return "One run of each set of values cannot say how far apart two of them must be to differ: set selection.folds or selection.seeds."
    limit = best.mean - best.standard_error if higher else best.mean + best.standard_error
    near = [score for score in table if isfinite(score.mean) and (score.mean >= limit if higher else score.mean <= limit)]
    head = f"The best mean {selection.metric} is {best.mean:.4g} ± {best.standard_error:.2g} (one standard error, {best.n} runs)"
    if len(near) == 1:
        return f"{head}; no other of the {len(table)} sets of values lies within one standard error of it."
    variants = list(dict.fromkeys(score.variant for score in near if score.variant is not None))
    spans = [
        f"{path} from {min(values):.3g} to {max(values):.3g}"
        for path in best.values
        if len(values := [s.values[path] for s in near if path in s.values]) > 1 and min(values) < max(values)
    ]
    told = ", ".join([*spans, *([f"variants {', '.join(variants)}"] if len(variants) > 1 else [])])
    return f"{head}; {len(near)} of {len(table)} sets of values lie within one standard error of it" + (f" ({told})" if told else "") + ": these data cannot tell them apart."


def spread(table: Sequence[Score], metrics: Mapping[int, float], selection: Selection) -> dict[str, Any] | None:
    """Where folds were cut more than once: what the rule takes from each cut alone, as a table of chosen places, and the quantiles of the searched strength."""
    if selection.repeats < 2 or not selection.folds:
        return None
    chosen: list[int | None] = []
    for repeat in range(selection.repeats):
        own = slice(repeat * selection.folds * selection.seeds, (repeat + 1) * selection.folds * selection.seeds)
        part = scores([(score.variant, score.values, [(index, metrics[index]) for index in score.runs[own]]) for score in table])
        chosen.append(choose(part, higher_is_better=selection.metric.startswith("accuracy")).by(selection.rule))
    path = strength(list(table[0].values)) if table else None
    strengths = [table[place].values[path] for place in chosen if place is not None and path in table[place].values] if path else []
    return {"chosen": chosen, "path": path, "quantiles": dict(zip(QUARTILES, np.quantile(strengths, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True)) if strengths else None}


def nested(folds: Sequence[tuple[Mapping[str, float], str | None, float]]) -> dict[str, Any]:
    """The report of nested folds: what was chosen without each outer fold (values, variant), and the score of its refit there."""
    numbers = [score for _, _, score in folds]
    sound = bool(numbers) and all(isfinite(number) for number in numbers)
    error = stdev(numbers) / sqrt(len(numbers)) if sound and len(numbers) > 1 else nan
    each = [{"values": dict(values), "variant": variant, "score": score} for values, variant, score in folds]
    return {"folds": each, "mean": fmean(numbers) if sound else nan, "standard_error": error}


def _score(variant: str | None, values: Mapping[str, float], runs: Sequence[tuple[int, float]]) -> Score:
    numbers = [metric for _, metric in runs]
    sound = all(isfinite(number) for number in numbers)
    return Score(
        variant=variant,
        values=dict(values),
        runs=tuple(run for run, _ in runs),
        mean=fmean(numbers) if sound else nan,
        median=median(numbers) if sound else nan,
        standard_error=stdev(numbers) / sqrt(len(numbers)) if sound and len(numbers) > 1 else nan,
        n=len(numbers),
    )


def _one_standard_error(table: Sequence[Score], able: Sequence[int], best: int, sign: float) -> int | None:
    """The strongest of those within one standard error of the best, variant and all other values being the best's."""
    path = strength(list(table[best].values))
    if path is None or not isfinite(table[best].standard_error):
        return None
    limit = sign * table[best].mean + table[best].standard_error

    def others(place: int) -> tuple[Any, ...]:
        return table[place].variant, {key: value for key, value in table[place].values.items() if key != path}

    near = [place for place in able if sign * table[place].mean <= limit and others(place) == others(best)]
    return max(near, key=lambda place: table[place].values[path])
