"""What is wrong with a job, put into order and into words: from the symptoms that training reported to roots, consequences and sentences. Pure.

A symptom that another one of the same run may bring about is listed under it. That is an order, not a proof: a claimed cause is `suspected` until a trial of
a remedy has shown it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from regtrain.contract.diagnostics import Diagnostics
from regtrain.contract.events import Noticed
from regtrain.contract.symptoms import BY_NAME, SYMPTOMS, Severity, SymptomName, judged

ORDER: dict[SymptomName, int] = {symptom.name: place for place, symptom in enumerate(SYMPTOMS)}
RANK: dict[Severity, int] = {"note": 0, "warning": 1, "critical": 2}
GRAVE: tuple[Severity, ...] = ("warning", "critical")
"""Severities that make a verdict; a note is told and changes none."""

SENTENCES: dict[SymptomName, str] = {
    "unscaled_inputs": "The inputs are not of one size: {why}. One learning rate does not fit all of them.",
    "wrong_output": "The squared loss takes the labels of {classes:.0f} classes for numbers: as if class 2 lay between 1 and 3.",
    "equal_units": "The weights of {layer} and those behind it begin as 0, in {layers:.0f} layer(s): its units are all alike, and get the same gradient for ever.",
    "exploding_signal": "The gradient that reaches {layer} is {seen:.3g} times that at {last}: it grows by a factor of {per_layer:.3g} a layer (χ = {chi:.3g}, 95 % interval {chi_low:.3g} to {chi_high:.3g}, {layers:.0f} layers).",
    "poor_first_loss": "Before the first update the loss is {loss:.4g}, {value:.3g} times the {nothing:.4g} of outputs that are 0: the first outputs are far too large.",
    "class_imbalance": "The largest class has {largest:.0f} training rows, the rarest {rarest:.0f}, and the accuracy of {accuracy:.3g} is exactly that of always answering the largest.",
    "penalty_dominates": "Regularization decides, not the data: {why} (at {layer}: {value:.3g}, bound {bound:g}).",
    "penalty_invisible": "The penalties are never felt: their gradient is at most {value:.2g} of the loss's in any layer.",
    "penalty_fights": "The penalties hold the loss up: their gradient is the loss's turned round (cosine {value:.3f} at {layer}) while the loss is still {share:.0%} of a constant's.",
    "penalty_wasted": "The penalty on {layer} changes no prediction: a batch normalization behind it takes the scale of its weights away.",
    "rate_too_high": "The learning rate is too high: {why} (by a factor of {value:.3g}, at step {step}).",
    "saturated": "{value:.0%} of the activations of {layer} lie where the activation is flat; so do most of {layers:.0f} layer(s).",
    "vanishing_signal": "The gradient that reaches {layer} is {seen:.2g} of that at {last}: it falls by a factor of {per_layer:.3g} a layer (χ = {chi:.3g}, 95 % interval {chi_low:.3g} to {chi_high:.3g}, {layers:.0f} layers).",
    "exploding_gradient": "The gradient's norm rose to {norm:.3g}, {value:.3g} times its size before, at step {step}{at_layer}.",
    "non_finite": "At step {step} the loss was {loss} and {value:.0f} number(s) were not finite{at_layer}.",
    "clip_always": "The clip cuts {value:.0%} of {steps:.0f} steps: their length is that of the clip.",
    "rate_too_low": "The learning rate is too low: all updates together moved the weights by {value:.2g} of their size, and the loss only from {first:.4g} to {loss:.4g}.",
    "dead_units": "At least {value:.0%} of the units of {layer} are dead: {share:.1%} were 0 on each of {rows:.0f} rows (with 95 % a silent unit fires on less than {bound_reached:.2g} of all).",
    "vanishing_gradient": "While it trains, the gradient that reaches {layer} is {seen:.2g} of that at {last}, and its weights get {weights:.2g} of that layer's gradient.",
    "no_gradient": "{layer} gets no gradient: it is exactly 0 in each of {steps:.0f} updates that were read, in {layers:.0f} layer(s).",
    "no_change": "The weights of {layer} do not move: an update is {value:.2g} of them, below the rounding of their numbers, though their gradient is not small.",
    "oscillating": "The loss goes up and down: {turns:.0f} turns between {low:.3g} and {high:.3g}.",
    "plateau": "The loss stands still at {loss:.4g}; the best constant has {constant:.4g}.",
    "label_noise": "What is learned does not hold for other rows: the training loss fell to {loss:.4g}, the validation loss was never below {best:.4g}, where the best constant has {constant:.4g}. The labels may be noise.",
    "overfitting": "The validation loss rose from {best:.4g} to {now:.4g} in {evaluations:.0f} evaluations while the training loss went on falling.",
    "underfitting": "Hardly anything was learned: the training loss ends at {loss:.4g}, the best constant has {constant:.4g}.",
}  # fmt: skip
OVER_TIME = "While it trains, the gradient that reaches the first time step of {layer} is {seen:.2g} of that at its last, {time_steps:.0f} steps on, and nothing is learned: what the first steps show is not felt."
"""Of a gradient that vanishes on its way through the time steps of a recurrent layer."""


@dataclass(frozen=True)
class Found:
    """One symptom of one run, in words, with what it may have brought about."""

    noticed: Noticed
    sentence: str
    under: tuple["Found", ...] = ()
    cause: Literal["suspected"] | None = None
    """Whether it is claimed to be a cause, and how sure that is; None where nothing is listed under it."""


@dataclass(frozen=True)
class OfRun:
    """What is wrong with one run: its roots, causes first."""

    run: int
    verdict: Literal["healthy", "symptoms"]
    roots: tuple[Found, ...]


@dataclass(frozen=True)
class InRuns:
    """One kind of symptom over all runs of a job."""

    symptom: SymptomName
    runs: tuple[int, ...]
    root_of: int
    """In how many of them it is a root."""
    layers: tuple[str, ...]
    """Where, the most frequent first."""
    severity: Severity
    """The gravest."""
    sentence: str
    """Of the first run that has it, and in how many runs it is."""


@dataclass(frozen=True)
class Diagnosis:
    verdict: Literal["healthy", "symptoms"]
    root: SymptomName | None
    """Of most runs; of equals what was there before the first update, then the first in causal order."""
    summary: str
    judged: tuple[SymptomName, ...]
    """What could be found with these diagnostics."""
    runs: tuple[OfRun, ...]
    """Those that have any symptom, notes included."""
    symptoms: tuple[InRuns, ...]


def diagnose(found: Iterable[Noticed], *, runs: int, preset: Diagnostics) -> Diagnosis:
    """The diagnosis of a job of so many runs from everything that was noticed so far."""
    by_run: dict[int, list[Noticed]] = {}
    for noticed in found:
        by_run.setdefault(noticed.run, []).append(noticed)
    each = tuple(_of_run(run, by_run[run]) for run in sorted(by_run))
    kinds = tuple(_in_runs(name, each, runs) for name in ORDER if any(noticed.symptom == name for noticed in _flat(each)))
    sick = [one for one in each if one.verdict == "symptoms"]
    grave = [kind for kind in kinds if _is_root(kind.symptom, sick)]
    early = {noticed.symptom for noticed in _flat(sick) if not _late(noticed)}
    root = max(grave, key=lambda kind: (sum(_has_root(one, kind.symptom) for one in sick), kind.symptom in early, -ORDER[kind.symptom])) if grave else None
    return Diagnosis("symptoms" if sick else "healthy", root.symptom if root else None, _summary(root, sick, kinds, runs), tuple(judged(preset)), each, kinds)


def sentence(noticed: Noticed) -> str:
    """A symptom with its figures, for a person."""
    words = _Words(noticed.evidence | {"value": noticed.value, "bound": noticed.bound, "step": noticed.step, "layer": noticed.layer or "the net"})
    words["at_layer"] = f" in {noticed.layer}" if noticed.layer else ""
    if isinstance(chi := noticed.evidence.get("chi"), int | float):
        words["per_layer"] = chi**0.5
    return (OVER_TIME if "time_steps" in noticed.evidence else SENTENCES[noticed.symptom]).format_map(words)


class _Unknown:
    """What stands for a figure that is not there, however it was to be written."""

    def __format__(self, spec: str) -> str:
        return "?"


class _Words(dict[str, object]):
    def __missing__(self, key: str) -> object:
        return _Unknown()


def _of_run(run: int, found: Sequence[Noticed]) -> OfRun:
    """Each symptom goes under the first in causal order that may have brought it about; what nothing brings about is a root."""
    ordered = sorted(found, key=lambda noticed: (_late(noticed), ORDER[noticed.symptom], noticed.step))
    present = [noticed.symptom for noticed in ordered]
    parents = {name: next((cause for cause in present[:place] if name in BY_NAME[cause].brings), None) for place, name in enumerate(present)}

    def tree(noticed: Noticed) -> Found:
        under = tuple(tree(other) for other in ordered if parents[other.symptom] == noticed.symptom)
        return Found(noticed, sentence(noticed), under, "suspected" if under else None)

    roots = tuple(tree(noticed) for noticed in ordered if parents[noticed.symptom] is None)
    return OfRun(run, "symptoms" if any(noticed.severity in GRAVE for noticed in found) else "healthy", roots)


def _late(noticed: Noticed) -> bool:
    """Whether it was not there before the first update: what was, no training has brought about."""
    return noticed.done > 1


def _flat(each: Iterable[OfRun]) -> list[Noticed]:
    def walk(found: Found) -> list[Noticed]:
        return [found.noticed, *(noticed for inner in found.under for noticed in walk(inner))]

    return [noticed for one in each for root in one.roots for noticed in walk(root)]


def _in_runs(name: SymptomName, each: Sequence[OfRun], runs: int) -> InRuns:
    mine = [noticed for noticed in _flat(each) if noticed.symptom == name]
    having = tuple(dict.fromkeys(noticed.run for noticed in mine))
    layers = [noticed.layer for noticed in mine if noticed.layer]
    often = tuple(sorted(dict.fromkeys(layers), key=lambda layer: -layers.count(layer)))
    severity = max(mine, key=lambda noticed: RANK[noticed.severity]).severity
    text = sentence(mine[0]) if runs == 1 else f"In {len(having)} of {runs} runs, such as run {mine[0].run}: {sentence(mine[0])}"
    return InRuns(name, having, sum(_has_root(one, name) for one in each), often, severity, text)


def _has_root(one: OfRun, name: SymptomName) -> bool:
    """Whether it is a root of this run that is grave, or has anything grave under it."""
    return any(root.noticed.symptom == name and any(noticed.severity in GRAVE for noticed in _flat([OfRun(one.run, one.verdict, (root,))])) for root in one.roots)


def _is_root(name: SymptomName, sick: Sequence[OfRun]) -> bool:
    return any(_has_root(one, name) for one in sick)


def _summary(root: InRuns | None, sick: Sequence[OfRun], kinds: Sequence[InRuns], runs: int) -> str:
    if root is None:
        notes = f" Noted: {', '.join(kind.symptom for kind in kinds)}." if kinds else ""
        return ("No symptom." if runs == 1 else f"No symptom in any of {runs} runs.") + notes
    behind = [kind.symptom for kind in kinds if kind.symptom != root.symptom and any(kind.symptom in _under(one, root.symptom) for one in sick)]
    told = f" It is suspected to bring about {', '.join(behind)}." if behind else ""
    return root.sentence + told


def _under(one: OfRun, name: SymptomName) -> set[SymptomName]:
    return {noticed.symptom for root in one.roots if root.noticed.symptom == name for noticed in _flat([OfRun(one.run, one.verdict, root.under)])}
