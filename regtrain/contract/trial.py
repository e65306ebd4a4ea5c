"""The trial of remedies: an untouched control and contestants over the same seeds and rows, halved wave by wave or tried in turn, judged by paired tests. Pure: the
worker trains, every page can say why.

A wave is some of the seeds, each at its whole budget: what an early loss would rank wrongly (a low rate, a strong λ) is never ranked by it, and every pair counts in the
final test. A contestant that is left out, or never tried, counts in Holm's correction as if it had lost, so that leaving out can only withhold a verdict, never make one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from regtrain.contract.symptoms import BY_NAME, SymptomName

if TYPE_CHECKING:
    from regtrain.contract.job import JobSpec

LEAST_PAIRS = 8
"""Of five pairs even a unanimous vote has p = 1/32 (Wilcoxon 1945); eight leave room for a correction over several remedies."""
P = 0.05
HALVINGS = 2
"""How often the worse half is left out: a quarter of the seeds, another quarter, then the rest for those that are left."""
RANDOM = "random "
"""Labels of the contestants that were drawn at random begin so."""
Order = Literal["together", "in_turn"]


@dataclass(frozen=True)
class Contestant:
    """What is known of one variant: of each seed its held-out metric (not finite where the run diverged) and whether the run showed what is to be cured (`signs`). As
    long as all."""

    label: str
    metrics: tuple[float, ...]
    shown: tuple[bool, ...]

    @property
    def random(self) -> bool:
        return self.label.startswith(RANDOM)

    def until(self, seed: int) -> "Contestant":
        """What was known before a seed."""
        return Contestant(self.label, self.metrics[:seed], self.shown[:seed])


class Known(Part):
    """What the job itself has come to, where its run is the one that the control's only seed would be."""

    metric: float | None
    """Null where it diverged."""
    shown: bool
    """Whether it shows the symptom."""

    def contestant(self, label: str) -> Contestant:
        return Contestant(label, (nan if self.metric is None else self.metric,), (self.shown,))


class Trial(Part):
    """That a job is the trial of remedies for another one: its variants are contestants, and its result has a verdict on each."""

    of: Annotated[str, Field(pattern=r"^job_[0-9A-Za-z]{1,64}$")]
    """The job whose symptom is to be cured."""
    symptom: SymptomName | None = None
    """What is to be gone. Without one the metric alone decides."""
    control: Annotated[str, Field(min_length=1, max_length=200)]
    """Label of the variant that nothing was changed in."""
    order: Order = "together"
    """`together`: all contestants train the same seeds, and the worse half leaves after a quarter and after half of them. `in_turn`: one after the other in the order
    of the variants, until one is confirmed, or, with fewer than 8 seeds, until one helps; each leaves after a quarter of the seeds if it can no longer be either."""
    known: Known | None = None
    """With one seed: the job's own run stands for the control, which is not trained again."""


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
    if trial.known is not None and (spec.selection.seeds > 1 or trial.order == "together"):
        yield Problem("trial.known", "one run that is known is the control of one seed, in turn", 'leave it out, or use "order": "in_turn" and one seed')
    if not contestants:
        yield Problem("variants", "there is no remedy to try", "give at least one variant beside the control")
    if spec.selection.seeds < LEAST_PAIRS and trial.order == "together":
        hint = f'use at least {LEAST_PAIRS} seeds, or the order "in_turn", which takes the first remedy that helps'
        yield Problem("selection.seeds", f"{spec.selection.seeds} pairs are too few to confirm anything", hint)
    elif spec.selection.seeds >= LEAST_PAIRS and len(contestants) / 2**spec.selection.seeds >= P:
        yield Problem("selection.seeds", f"with {len(contestants)} remedies not even {spec.selection.seeds} of {spec.selection.seeds} pairs are significant", "use more seeds")
    if spec.begin is not None and spec.selection.seeds > 1 and not _differs(spec, counts(spec.dataset, facts, seed=spec.seed).train):
        reason = f"from trained weights, with all rows in every batch and without dropout, every seed is the same run: there would be one pair, not {spec.selection.seeds}"
        yield Problem("budget.batch_size", reason, "use smaller batches, or dropout")
    if spec.dataset.validation == 0:
        yield Problem("dataset.validation", "remedies are compared on validation rows", "set dataset.validation, such as 0.2")
    if spec.selection.folds is not None or spec.selection.refit:
        yield Problem("selection", "a trial compares seeds on the same held-out rows", "leave folds and refit out")


def _differs(spec: "JobSpec", rows: int) -> bool:
    """Whether the control's runs differ from seed to seed though they begin from the same weights: by the rows of their batches, or by what dropout drops."""
    return spec.budget.batch_size not in ("all", rows) or any(isinstance(r, Dropout) and concrete(r.rate) > 0 for r in spec.regularizers)


# ---------------------------------------------------------------- waves


def wave_of(seed: int, seeds: int, order: Order = "together") -> int:
    """The wave in which a seed is trained, by its first seed: a quarter of the seeds, a quarter, the rest; in turn a quarter and the rest."""
    quarter = max(1, seeds // 4)
    return min(seed // quarter, HALVINGS if order == "together" else 1) * quarter


def turn_of(trial: Trial, label: str | None, place: int, *, seed: int, seeds: int) -> tuple[int, int]:
    """What the runs of a trial are ordered by. `place`: of the variant. In turn the control comes first, with all its seeds."""
    wave = wave_of(seed, seeds, trial.order)
    if trial.order == "together":
        return wave, place
    return (-1, 0) if label == trial.control else (place, wave)


def signs(trial: Trial, *, seeds: int) -> frozenset[SymptomName]:
    """By what a run shows that it is not cured: the symptom. With fewer than 8 seeds no test asks whether a run without it is better; then also what it may bring about."""
    if trial.symptom is None:
        return frozenset()
    return frozenset({trial.symptom, *(BY_NAME[trial.symptom].brings if seeds < LEAST_PAIRS else ())})


def trains(trial: Trial, contestants: Sequence[Contestant], label: str, *, wave: int, metric: str, seeds: int) -> bool:
    """Whether a contestant trains the seeds of a wave, by what has been trained before. `wave`: as `wave_of` counts."""
    control, others = parted(trial, contestants)
    if label == control.label:
        return trial.known is None
    known = [one.until(wave) for one in others if len(one.metrics) >= wave]
    if trial.order == "in_turn" and wave == 0:
        return _enters(trial, contestants, label, metric=metric, seeds=seeds)
    if trial.order == "in_turn":
        return any(one.label == label and _holds(control, one, seeds=seeds, higher=_higher(metric)) for one in known)
    return wave == 0 or label in standing(control, known, seeds=seeds, higher_is_better=_higher(metric))


def _enters(trial: Trial, contestants: Sequence[Contestant], label: str, *, metric: str, seeds: int) -> bool:
    """Whether it is a contestant's turn: there is something to cure, none before it has cured it, and what is drawn at random costs no more than the remedies did."""
    control, others = parted(trial, contestants)
    drawn = label.startswith(RANDOM)
    ended = any(v.verdict in ENDS and v.label.startswith(RANDOM) == drawn for v in _verdicts(trial, contestants, metric=metric, seeds=seeds))
    spent, most = _runs(one for one in others if one.random and one.label != label), _runs(one for one in others if not one.random)
    return curable(trial, control, seeds=seeds) and not ended and (not drawn or spent + seeds <= most)


def _runs(contestants: Iterable[Contestant]) -> int:
    return sum(len(one.metrics) for one in contestants)


def curable(trial: Trial, control: Contestant, *, seeds: int) -> bool:
    """Whether the control shows the symptom so often that its absence would mean something: with 5 of 8 seeds; with fewer than 8, where nothing is tested, with any."""
    never = [False] * len(control.shown)
    return trial.symptom is None or (any(control.shown) if seeds < LEAST_PAIRS else fewer(control.shown, never) < P)


def _holds(control: Contestant, one: Contestant, *, seeds: int, higher: bool) -> bool:
    """Whether a contestant can still be confirmed, or help."""
    return _rarely(one, seeds=seeds) and _mean_rank(control, one, higher) > 0


def _rarely(one: Contestant, *, seeds: int) -> bool:
    """Whether the symptom is gone as far as one is trained: at most one of eight runs shows it."""
    return sum(one.shown) <= seeds // 8


def standing(control: Contestant, others: Sequence[Contestant], *, seeds: int, higher_is_better: bool) -> set[str]:
    """Who goes on to the next wave: the better half of the remedies, and the better half of what was drawn at random, by the mean difference to the control; those that
    have shown the symptom too often to be confirmed come after all others."""
    kept: set[str] = set()
    for group in ([other for other in others if not other.random], [other for other in others if other.random]):
        ranked = sorted(group, key=lambda other: (not _rarely(other, seeds=seeds), -_mean_rank(control, other, higher_is_better)))
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

Says = Literal["confirmed", "helps", "left_out", "not_tried", "symptom_stays", "undecided", "not_better"]
ENDS: tuple[Says, ...] = ("confirmed", "helps")
"""With such a verdict a trial in turn has found what it was made for."""


@dataclass(frozen=True)
class Verdict:
    """What a trial says of one contestant."""

    label: str
    verdict: Says
    """`confirmed`: the symptom is gone and the metric beats the control's. `helps`: of fewer than 8 pairs, which cannot confirm, none shows the symptom and each is
    better. `left_out`: it belonged to the worse half of a wave, or in turn could no longer be confirmed. `not_tried`: its turn never came. `undecided`: the control
    shows the symptom too rarely for its absence to mean anything."""
    pairs: int
    """Seeds that it and the control were both trained with."""
    shown: float | None
    """Share of its runs that show the symptom, or, with fewer than 8 seeds, what it may bring about; null where none was named, and where there are no runs."""
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
    """The verdicts, the best remedy that is confirmed or helps if there is one, and one sentence."""
    control, _ = parted(trial, contestants)
    verdicts = _verdicts(trial, contestants, metric=metric, seeds=seeds)
    best = sorted((v for v in verdicts if v.verdict in ENDS), key=lambda v: -(inf if v.difference is None else v.difference))
    remedies = [v for v in best if not v.label.startswith(RANDOM)]
    first = {v.verdict: v.label for v in reversed(remedies)}
    return {
        "of": trial.of, "symptom": trial.symptom, "metric": metric, "seeds": seeds, "order": trial.order,
        "control": {"label": control.label, "metric": _finite(_mean(control.metrics)), "shown": _share(trial, control)},
        "verdicts": [asdict(v) for v in verdicts], "confirmed": first.get("confirmed"), "helps": first.get("helps"),
        "random": best[0].label if best and best[0].label.startswith(RANDOM) else None,
        "in_words": _in_words(trial, control, verdicts, best, metric=metric, seeds=seeds),
    }  # fmt: skip


def parted(trial: Trial, contestants: Sequence[Contestant]) -> tuple[Contestant, list[Contestant]]:
    """The control, and the others in their order."""
    control = next(one for one in contestants if one.label == trial.control)
    return control, [one for one in contestants if one is not control]


def _verdicts(trial: Trial, contestants: Sequence[Contestant], *, metric: str, seeds: int) -> list[Verdict]:
    control, others = parted(trial, contestants)
    gains = {one.label: differences(control.metrics, one.metrics, higher_is_better=_higher(metric)) for one in others}
    raw = {one.label: signed_rank(gains[one.label]) if len(one.metrics) == seeds else 1.0 for one in others}
    adjusted = holm({one.label: raw[one.label] for one in others if not one.random}) | holm({one.label: raw[one.label] for one in others if one.random})
    return [_verdict(trial, control, one, gains[one.label], p=adjusted[one.label], seeds=seeds) for one in others]


def _verdict(trial: Trial, control: Contestant, one: Contestant, gains: Sequence[float], *, p: float, seeds: int) -> Verdict:
    symptom_p = fewer(control.shown, one.shown) if trial.symptom is not None else None
    says = _says(one, gains, symptom_p=symptom_p, p=p, seeds=seeds)
    return Verdict(one.label, says, len(one.metrics), _share(trial, one), symptom_p, _finite(_mean(one.metrics)), _finite(_mean(gains)), p, 1 - p)


def _says(one: Contestant, gains: Sequence[float], *, symptom_p: float | None, p: float, seeds: int) -> Says:
    if len(one.metrics) < seeds:
        return "left_out" if one.metrics else "not_tried"
    if symptom_p is not None and not _rarely(one, seeds=seeds):
        return "symptom_stays"
    if seeds < LEAST_PAIRS:
        return "helps" if all(gain > 0 for gain in gains) else "not_better"
    if symptom_p is not None and symptom_p >= P:
        return "undecided"
    return "confirmed" if p < P else "not_better"


def _higher(metric: str) -> bool:
    return metric.startswith("accuracy")


def _share(trial: Trial, one: Contestant) -> float | None:
    return sum(one.shown) / len(one.shown) if trial.symptom is not None and one.shown else None


def _mean(numbers: Sequence[float]) -> float:
    return fmean(numbers) if numbers and all(map(isfinite, numbers)) else nan


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


# ---------------------------------------------------------------- words


def _in_words(trial: Trial, control: Contestant, verdicts: Sequence[Verdict], best: Sequence[Verdict], *, metric: str, seeds: int) -> str:
    if trial.symptom is not None and not any(control.shown):
        return f"Nothing to cure: with none of {_count(seeds, 'seed')} does the job as it is show {trial.symptom}."
    if trial.order == "in_turn" and not curable(trial, control, seeds=seeds):
        return f"No remedy was tried: {sum(control.shown)} of {seeds} seeds show {trial.symptom}, too few for its absence to mean anything."
    remedies = [v for v in best if not v.label.startswith(RANDOM)]
    over = f"over {seeds} paired seeds" if seeds >= LEAST_PAIRS else "with the same seed" if seeds == 1 else f"with each of {seeds} paired seeds"
    if not remedies:
        cures = "" if trial.symptom is None else f"rids the job of {trial.symptom} and "
        sure = f" at p < {P}" if seeds >= LEAST_PAIRS else ""
        drawn = f" But {best[0].label}, drawn by chance, does." if best else ""
        return f"No remedy helps: none {cures}has a better {metric} than the control {over}{sure}.{drawn}"
    first = remedies[0]
    gone = "" if trial.symptom is None else f"{trial.symptom} is gone and "
    by = "where the control diverges" if first.difference is None else f"by {first.difference:.4g}" + (" on average" if seeds > 1 else "")
    says = "is confirmed" if first.verdict == "confirmed" else "helps"
    beaten = f" {best[0].label}, drawn by chance, is better still." if best[0] is not first else ""
    return f"{first.label} {says}: {gone}{metric} is better than the control's {by} {over}{_sureness(first, verdicts, seeds=seeds)}.{beaten}"


def _sureness(first: Verdict, verdicts: Sequence[Verdict], *, seeds: int) -> str:
    """How sure the best remedy is, and what became of the others."""
    remedies = [v.verdict for v in verdicts if not v.label.startswith(RANDOM)]
    more, untried = remedies.count("confirmed") - 1, remedies.count("not_tried")
    sure = f" (p = {first.p:.2g})" if first.verdict == "confirmed" else f"; {_count(seeds, 'pair')} cannot confirm it, {LEAST_PAIRS} can"
    also = f"; {_count(more, 'more remedy', 'more remedies')} {'is' if more == 1 else 'are'} confirmed" if more > 0 else ""
    return sure + also + (f"; {_count(untried, 'remedy was', 'remedies were')} not tried" if untried else "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
