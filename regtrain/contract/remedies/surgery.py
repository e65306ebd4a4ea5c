"""Surgery by which a net goes on from its own weights (regtrain/contract/begin.py): what was learned is kept, what hindered more of it is taken away."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from regtrain.contract.remedies import steps
from regtrain.contract.remedies.remedy import Case, Direction, Remedy
from regtrain.contract.symptoms import SYMPTOMS, SymptomName

UNEVEN: frozenset[SymptomName] = frozenset({"vanishing_signal", "exploding_signal", "vanishing_gradient", "exploding_gradient"})
STUCK: frozenset[SymptomName] = frozenset({"plateau", "underfitting", "no_change"})
DEAD: frozenset[SymptomName] = frozenset({"dead_units", "no_gradient"})
KILLS: frozenset[SymptomName] = frozenset(symptom.name for symptom in SYMPTOMS if "dead_units" in symptom.brings)
SLOWER = 0.1
"""By so much lower a rate beside `revive`, or a clip: steps that have killed the units would kill them again."""
REVIVE = "units that fire on no training row get new weights, which nothing reads yet, and can learn (Sokar et al. 2023)"
RESCALE = "one factor a layer, so that the gradient of every hidden layer is as long as the next one's"
REBALANCE = "what each unit reads and what reads it get the same norm, so that neighbouring layers learn at one rate (Du, Hu & Lee 2018)"
KEEPS = "continues what was learned: "


def operations(case: Case) -> Iterator[Remedy]:
    """Surgery for what the run has shown, most promising first; none for a job that draws its weights. Whether the net allows it `accepted` knows."""
    shown = case.shown
    if case.spec.begin is None or shown is None:
        return
    dead, uneven, stuck = bool(shown & DEAD), bool(shown & UNEVEN), bool(shown & STUCK)
    if dead:
        yield from _revived(case)
    if uneven or not shown or (stuck and not dead):
        yield (rescale := _operated("rescale", ["rescale"], {"signal/backward": "even"}, RESCALE))
        yield from _with(rescale, steps.adam(case))
        yield _operated("rebalance", ["rebalance"], {"weight/norm": "even"}, REBALANCE)
    if not dead and shown & KILLS:  # nobody has counted, or too few updates were made to say so
        yield from _revived(case)


def _revived(case: Case) -> Iterator[Remedy]:
    """By itself, and with steps that will not kill the units again."""
    yield (revive := _operated("revive", ["revive"], {"activation/silent": "down"}, REVIVE))
    yield from _with(revive, [*steps.rates(SLOWER)(case), *steps.clipped(case)])


def _with(surgery: Remedy, others: Iterable[Remedy]) -> Iterator[Remedy]:
    for other in others:
        words, expects, why = f"{surgery.label}, {other.label}", surgery.expects | other.expects, f"{surgery.why}; {other.why}"
        yield replace(surgery, label=words, set=surgery.set | other.set, expects=expects, why=why)


def _operated(label: str, kinds: Sequence[str], expects: dict[str, Direction], why: str) -> Remedy:
    return Remedy(label, {"begin.surgery": [{"kind": kind} for kind in kinds]}, expects, KEEPS + why, continues=True)
