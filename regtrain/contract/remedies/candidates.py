"""For every symptom the changes to a spec that may cure it, the most promising first, each with what it is expected to do and why. They are guesses until a trial.

A cause may have been named wrongly: what is unusual in the spec goes before what the symptom asks for, and a recipe that trains most nets has the last place.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import assert_never

from regtrain.contract.datasets import Facts
from regtrain.contract.job import JobSpec
from regtrain.contract.remedies import fit, signal, steps, surgery, unusual
from regtrain.contract.remedies.remedy import Case, Evidence, Maker, Remedy, accepted
from regtrain.contract.symptoms import SymptomName

MOST = 6
"""Remedies of one symptom: with six, Holm's correction still leaves a remedy that wins all but the smallest of eight pairs at p < 0.05 (6·2/2⁸ = 0.047)."""
OF_THE_SPEC = 2
"""At most so many give back what is unusual: all of it, and what is furthest off."""
WITHOUT_RECIPE: frozenset[SymptomName | None] = frozenset(
    {"wrong_output", "class_imbalance", "penalty_dominates", "penalty_fights", "penalty_invisible", "penalty_wasted", "label_noise", "overfitting"}
)
"""The net follows its rows, will not by another training, or the ledger has measured what holds it."""


def remedies(
    spec: JobSpec,
    facts: Facts,
    symptom: SymptomName | None,
    *,
    evidence: Evidence | None = None,
    shown: frozenset[SymptomName] | None = None,
    before: Mapping[str, int] | None = None,
    most: int = MOST,
) -> list[Remedy]:
    """Candidates for a spec without ranges and variants that `check` has accepted; so are all that come back. None where no change of a spec is known to help.

    `symptom`: None asks for what helps most nets, where nothing is known to be wrong. `before`: label → how often that remedy has been confirmed for this symptom; what
    helped more often comes first. `shown`: by the run from whose weights the spec begins; then surgery comes first.
    """
    case = Case(spec, facts, evidence, shown)
    last = [] if symptom in WITHOUT_RECIPE else [remedy for remedy in unusual.recipe(case) if accepted(spec, facts, remedy.set)]
    first = _different(spec, facts, [*surgery.operations(case), *islice(unusual.given_back(case), OF_THE_SPEC), *_of(symptom, case)], helped=before or {})
    found = [*islice((remedy for remedy in first if remedy.set not in [known.set for known in last]), most - len(last)), *last]
    return sorted(found, key=lambda remedy: -(before or {}).get(remedy.label, 0))


def _different(spec: JobSpec, facts: Facts, proposed: Iterable[Remedy], *, helped: Mapping[str, int]) -> Iterator[Remedy]:
    """What can be trained, each set of values and each label once; what helped more often first."""
    seen: list[Remedy] = []
    for remedy in sorted(proposed, key=lambda remedy: -helped.get(remedy.label, 0)):
        if not any(remedy.set == one.set or remedy.label == one.label for one in seen) and accepted(spec, facts, remedy.set):
            seen.append(remedy)
            yield remedy


def _of(symptom: SymptomName | None, case: Case) -> Iterable[Remedy]:
    """Candidates, the most promising first; some may be none for this spec."""
    match symptom:
        case "unscaled_inputs":
            return _each(case, signal.standardized, steps.rates(0.1), steps.adam, signal.normalizations)
        case "wrong_output":
            return _each(case, signal.classes, signal.bias)
        case "poor_first_loss":
            return _each(case, signal.smaller_weights, signal.theory, steps.rates(1 / 3), steps.clipped)
        case "saturated" | "vanishing_signal" | "vanishing_gradient":
            return _each(case, signal.theory, signal.recurrent, signal.standardized, signal.smaller_weights, signal.open_units, steps.adam, steps.rates(10))
        case "exploding_signal" | "exploding_gradient":
            return _each(case, signal.theory, steps.clipped, signal.recurrent, signal.standardized, steps.rates(0.1, 1 / 30), signal.smaller_weights)
        case "class_imbalance":
            return _each(case, fit.balanced, fit.wider, fit.longer)
        case "penalty_dominates" | "penalty_fights":
            return _each(case, fit.penalties(0.1, 0.01, 0.001), fit.without_constraints)
        case "penalty_invisible":
            return _each(case, fit.penalties(10, 100, 1000))
        case "penalty_wasted":
            return _each(case, fit.without_penalties, fit.penalties(0.1))
        case "rate_too_high" | "oscillating":
            return _each(case, steps.measured_rate, steps.rates(0.1, 1 / 100, 1 / 3), steps.calmer, steps.clipped, steps.larger_batches, signal.standardized)
        case "rate_too_low":
            return _each(case, steps.travelled, steps.rates(10, 100), steps.adam, steps.momentum, fit.longer)
        case "non_finite":
            return _each(case, steps.rates(0.1, 1 / 30), steps.clipped, signal.standardized, signal.theory, signal.smaller_weights)
        case "dead_units":
            return _each(case, steps.rates(0.1), signal.open_units, signal.normalizations, signal.theory, signal.standardized, steps.clipped)
        case "equal_units" | "no_gradient":
            return _each(case, signal.drawn_weights, signal.open_units, signal.theory, signal.normalizations, steps.rates(0.1), signal.standardized, fit.weaker_dropout)
        case "no_change":
            return _each(case, steps.moving, steps.rates(10, 1000), steps.epsilon, steps.adam, steps.step_penalties, steps.double)
        case "clip_always":
            return _each(case, steps.wider_clip, steps.rates(1 / 3, 0.1), signal.standardized)
        case "plateau":
            return _each(case, steps.adam, steps.rates(10, 0.1), steps.momentum, signal.theory, signal.standardized, fit.wider, steps.cosine)
        case "label_noise":
            return _each(case, fit.smoothed, fit.early, fit.dropout, fit.l2, fit.penalties(10))
        case "overfitting":
            return _each(case, fit.early, fit.dropout, fit.l2, fit.penalties(10, 100), fit.narrower)
        case "underfitting":
            return _each(case, steps.rates(10, 3), steps.adam, fit.penalties(0.01), fit.weaker_dropout, fit.wider, fit.longer, signal.theory, fit.deeper)
        case None:
            return _each(case, steps.rates(3, 1 / 3), steps.adam, signal.standardized, fit.dropout, fit.l2, signal.theory)
        case _:
            assert_never(symptom)


def _each(case: Case, *makers: Maker) -> Iterator[Remedy]:
    for make in makers:
        yield from make(case)
