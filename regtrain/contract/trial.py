"""The trial of remedies: an untouched control and contestants over the same seeds and rows, halved wave by wave, judged by paired tests. Pure: the worker trains,
every page can say why.

A wave is some of the seeds, each at its whole budget: what an early loss would rank wrongly (a low rate, a strong λ) is never ranked by it, and every pair counts in the
final test. A contestant that is left out counts in Holm's correction as if it had lost, so that halving can only withhold a verdict, never make one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, inf, isfinite, nan
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.datasets import Facts, counts
from regtrain.contract.errors import Problem
from regtrain.contract.ranges import concrete
from regtrain.contract.regularizers import Dropout
from regtrain.contract.symptoms import SymptomName

if TYPE_CHECKING:
    from regtrain.contract.job import JobSpec

LEAST_PAIRS = 8
"""Of five pairs even a unanimous vote has p = 1/32 (Wilcoxon 1945); eight leave room for a correction over several remedies."""
P = 0.05
HALVINGS = 2
"""How often the worse half is left out: a quarter of the seeds, another quarter, then the rest for those that are left."""
RANDOM = "random "
"""Labels of the contestants that were drawn at random begin so."""


class Trial(Part):
    """That a job is the trial of remedies for another one: its variants are contestants, and its result has a verdict on each."""

    of: Annotated[str, Field(pattern=r"^job_[0-9A-Za-z]{1,64}$")]
    """The job whose symptom is to be cured."""
    symptom: SymptomName | None = None
    """What is to be gone. Without one the metric alone decides."""
    control: Annotated[str, Field(min_length=1, max_length=200)]
    """Label of the variant that nothing was changed in."""


def refusals(spec: "JobSpec", facts: Facts) -> Iterator[Problem]:
    """What a trial cannot do without."""
    if (trial := spec.trial) is None:
        return
    labels = [variant.label for variant in spec.variants]
    contestants = [label for label in labels if label != trial.control and not label.startswith(RANDOM)]
    if trial.control not in labels:
        yield Problem("trial.control", f"no variant is labelled {trial.control!r}", "name the variant that changes nothing")
    elif spec.variants[labels.index(trial.control)].set:
        yield Problem("trial.control", f"the variant {trial.control!r} changes something", 'the control has "set": {}')
    if not contestants:
        yield Problem("variants", "there is no remedy to try", "give at least one variant beside the control")
    if spec.selection.seeds < LEAST_PAIRS:
        yield Problem("selection.seeds", f"{spec.selection.seeds} pairs are too few to confirm anything", f"use at least {LEAST_PAIRS} seeds")
    elif len(contestants) / 2**spec.selection.seeds >= P:
        yield Problem("selection.seeds", f"with {len(contestants)} remedies not even {spec.selection.seeds} of {spec.selection.seeds} pairs are significant", "use more seeds")
    if spec.begin is not None and not _differs(spec, counts(spec.dataset, facts, seed=spec.seed).train):
        reason = "from trained weights, with all rows in every batch and without dropout, every seed is the same run: there would be one pair, not eight"
        yield Problem("budget.batch_size", reason, "use smaller batches, or dropout")
    if spec.dataset.validation == 0:
        yield Problem("dataset.validation", "remedies are compared on validation rows", "set dataset.validation, such as 0.2")
    if spec.selection.folds is not None or spec.selection.refit:
        yield Problem("selection", "a trial compares seeds on the same held-out rows", "leave folds and refit out")


def _differs(spec: "JobSpec", rows: int) -> bool:
    """Whether the control's runs differ from seed to seed though they begin from the same weights: by the rows of their batches, or by what dropout drops."""
    return spec.budget.batch_size not in ("all", rows) or any(isinstance(r, Dropout) and concrete(r.rate) > 0 for r in spec.regularizers)


# ---------------------------------------------------------------- waves


def wave_of(seed: int, seeds: int) -> int:
    """The wave in which a seed is trained: a quarter of the seeds, a quarter, the rest."""
    return min(seed // max(1, seeds // 4), HALVINGS)


@dataclass(frozen=True)
class Contestant:
    """What is known of one variant: of each seed its held-out metric (not finite where the run diverged) and whether the run showed the symptom. As long as all."""

    label: str
    metrics: tuple[float, ...]
    shown: tuple[bool, ...]

    @property
    def random(self) -> bool:
        return self.label.startswith(RANDOM)


def standing(control: Contestant, others: Sequence[Contestant], *, seeds: int, higher_is_better: bool) -> set[str]:
    """Who goes on to the next wave: the better half of the remedies, and the better half of what was drawn at random, by the mean difference to the control; those that
    have shown the symptom too often to be confirmed come after all others."""
    kept: set[str] = set()
    for group in ([other for other in others if not other.random], [other for other in others if other.random]):
        ranked = sorted(group, key=lambda other: (sum(other.shown) > seeds // 8, -_mean_rank(control, other, higher_is_better)))
        kept |= {other.label for other in ranked[: (len(ranked) + 1) // 2]}
    return kept


def _mean_rank(control: Contestant, other: Contestant, higher: bool) -> float:
    gains = differences(control.metrics, other.metrics, higher_is_better=higher)
    if -inf in gains:
        return -inf
    return fmean(gains) if gains else 0.0


def differences(control: Sequence[float], other: Sequence[float], *, higher_is_better: bool) -> list[float]:
    """How much better each run is than the control's of the same seed, as far as both are known: ±∞ where only one diverged, 0 where both did."""
    sign = 1.0 if higher_is_better else -1.0
    return [_gain(sign * mine, sign * base) for mine, base in zip(other, control, strict=False)]


def _gain(mine: float, base: float) -> float:
    match isfinite(mine), isfinite(base):
        case True, True:
            return mine - base
        case True, False:
            return inf
        case False, True:
            return -inf
        case _:
            return 0.0


# ---------------------------------------------------------------- tests


def signed_rank(gains: Sequence[float]) -> float:
    """P(W ≥ w), one-sided: how often signs at random would speak for a gain at least as much (Wilcoxon 1945). Exact also with ties: all 2ⁿ signs are counted by
    the sums of doubled midranks. Pairs without a difference say nothing and are left out; 1 without any pair."""
    told = [gain for gain in gains if gain != 0]
    sizes = [abs(gain) for gain in told]
    ranks = [2 * sum(other < size for other in sizes) + sum(other == size for other in sizes) + 1 for size in sizes]  # twice the midrank
    ways = [1] + [0] * sum(ranks)
    for rank in ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    seen = sum(rank for rank, gain in zip(ranks, told, strict=True) if gain > 0)
    return sum(ways[seen:]) / 2 ** len(told)


def fewer(control: Sequence[bool], other: Sequence[bool]) -> float:
    """One-sided exact test of paired shares: how often chance alone would turn as many of the pairs that changed to the better (McNemar 1947)."""
    pairs = list(zip(control, other, strict=False))
    better, worse = sum(before and not after for before, after in pairs), sum(after and not before for before, after in pairs)
    n = better + worse
    return sum(comb(n, k) for k in range(better, n + 1)) / 2**n


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values: the chance of any false verdict among all stays below the level that they are compared with (Holm 1979)."""
    adjusted, last = dict[str, float](), 0.0
    for place, (label, p) in enumerate(sorted(ps.items(), key=lambda pair: pair[1])):
        last = max(last, min(1.0, (len(ps) - place) * p))
        adjusted[label] = last
    return adjusted


# ---------------------------------------------------------------- judgement

Says = Literal["confirmed", "left_out", "symptom_stays", "undecided", "not_better"]


@dataclass(frozen=True)
class Verdict:
    """What a trial says of one contestant."""

    label: str
    verdict: Says
    """`confirmed`: the symptom is gone and the metric beats the control's. `left_out`: it belonged to the worse half of a wave. `undecided`: the control shows the
    symptom too rarely for its absence to mean anything."""
    pairs: int
    """Seeds that it and the control were both trained with."""
    shown: float | None
    """Share of its runs that show the symptom; null where none was named."""
    symptom_p: float | None
    """Of its being shown by fewer of the paired runs than of the control's."""
    metric: float | None
    """Mean over seeds; null where a run diverged."""
    difference: float | None
    """Mean over pairs, positive where it is better than the control; null where only one of a pair diverged."""
    p: float
    """One-sided, exact signed-rank; adjusted by Holm over the remedies, or over what was drawn at random."""
    confidence: float
    """1 − p."""


def judged(trial: Trial, contestants: Sequence[Contestant], *, metric: str, seeds: int) -> dict[str, Any]:
    """The verdicts, the best confirmed remedy if there is one, and one sentence."""
    higher = metric.startswith("accuracy")
    control = next(one for one in contestants if one.label == trial.control)
    others = [one for one in contestants if one.label != trial.control]
    raw = {one.label: signed_rank(differences(control.metrics, one.metrics, higher_is_better=higher)) if len(one.metrics) == seeds else 1.0 for one in others}
    adjusted = holm({one.label: raw[one.label] for one in others if not one.random}) | holm({one.label: raw[one.label] for one in others if one.random})
    verdicts = [_verdict(trial, control, one, p=adjusted[one.label], seeds=seeds, higher=higher) for one in others]
    confirmed = sorted((v for v in verdicts if v.verdict == "confirmed"), key=lambda v: -(inf if v.difference is None else v.difference))
    remedies = [v for v in confirmed if not v.label.startswith(RANDOM)]
    return {
        "of": trial.of, "symptom": trial.symptom, "metric": metric, "seeds": seeds,
        "control": {"label": control.label, "metric": _finite(_mean(control.metrics)), "shown": _share(trial, control)},
        "verdicts": [asdict(v) for v in verdicts], "confirmed": remedies[0].label if remedies else None,
        "random": confirmed[0].label if confirmed and confirmed[0].label.startswith(RANDOM) else None,
        "in_words": _in_words(trial, control, remedies, confirmed, metric=metric, seeds=seeds),
    }  # fmt: skip


def _verdict(trial: Trial, control: Contestant, one: Contestant, *, p: float, seeds: int, higher: bool) -> Verdict:
    gains = differences(control.metrics, one.metrics, higher_is_better=higher)
    symptom_p = fewer(control.shown, one.shown) if trial.symptom is not None else None
    mean = _mean(gains)
    says = _says(one, symptom_p=symptom_p, p=p, seeds=seeds)
    return Verdict(one.label, says, len(one.metrics), _share(trial, one), symptom_p, _finite(_mean(one.metrics)), _finite(mean), p, 1 - p)


def _says(one: Contestant, *, symptom_p: float | None, p: float, seeds: int) -> Says:
    if len(one.metrics) < seeds:
        return "left_out"
    if symptom_p is not None and sum(one.shown) > seeds // 8:
        return "symptom_stays"
    if symptom_p is not None and symptom_p >= P:
        return "undecided"
    return "confirmed" if p < P and seeds >= LEAST_PAIRS else "not_better"


def _share(trial: Trial, one: Contestant) -> float | None:
    return sum(one.shown) / len(one.shown) if trial.symptom is not None and one.shown else None


def _mean(numbers: Sequence[float]) -> float:
    return fmean(numbers) if numbers and all(map(isfinite, numbers)) else nan


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _in_words(trial: Trial, control: Contestant, remedies: Sequence[Verdict], confirmed: Sequence[Verdict], *, metric: str, seeds: int) -> str:
    if trial.symptom is not None and not any(control.shown):
        return f"Nothing to cure: with none of {seeds} seeds does the job as it is show {trial.symptom}."
    if not remedies:
        cures = "" if trial.symptom is None else f"rids the job of {trial.symptom} and "
        drawn = f" But {confirmed[0].label}, drawn by chance, does." if confirmed else ""
        return f"No remedy helps: none {cures}has a better {metric} than the control over {seeds} paired seeds at p < {P}.{drawn}"
    gone = "" if trial.symptom is None else f"{trial.symptom} is gone and "
    best = remedies[0]
    by = "where the control diverges" if best.difference is None else f"by {best.difference:.4g} on average"
    more = f"; {len(remedies) - 1} more remed{'y is' if len(remedies) == 2 else 'ies are'} confirmed" if len(remedies) > 1 else ""
    beaten = f" {confirmed[0].label}, drawn by chance, is better still." if confirmed[0].label.startswith(RANDOM) else ""
    return f"{best.label} is confirmed: {gone}{metric} is better than the control's {by} over {seeds} paired seeds (p = {best.p:.2g}){more}.{beaten}"
