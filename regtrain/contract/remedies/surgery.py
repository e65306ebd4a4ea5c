"""Surgery by which a net goes on from its own weights (regtrain/contract/begin.py): what was learned is kept, what hindered more of it is taken away."""

from collections.abc import Iterator, Sequence
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
    if shown & (DEAD | KILLS | STUCK):
        revive = _operated("revive", ["revive"], {"activation/silent": "down"}, REVIVE)
        yield revive
        for calmer in (*steps.rates(SLOWER)(case), *steps.clipped(case)):
            words, expects, why = f"{revive.label}, {calmer.label}", revive.expects | calmer.expects, f"{revive.why}; {calmer.why}"
            yield replace(revive, label=words, set=revive.set | calmer.set, expects=expects, why=why)
    if shown & UNEVEN or not shown or (shown & STUCK and not shown & DEAD):
        yield _operated("rescale", ["rescale"], {"signal/backward": "even"}, RESCALE)
        yield _operated("rebalance", ["rebalance"], {"weight/norm": "even"}, REBALANCE)
    if shown & (DEAD | KILLS) and shown & UNEVEN:
        yield _operated("revive, rebalance", ["revive", "rebalance"], {"activation/silent": "down", "weight/norm": "even"}, f"{REVIVE}; {REBALANCE}")


def _operated(label: str, kinds: Sequence[str], expects: dict[str, Direction], why: str) -> Remedy:
    return Remedy(label, {"begin.surgery": [{"kind": kind} for kind in kinds]}, expects, KEEPS + why, continues=True)
