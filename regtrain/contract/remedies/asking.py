"""From a job with a symptom to the job that tries its remedies: control, candidates and as many random contestants as variants, the same seeds and rows for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, ValidationError

from regtrain.contract.base import Part
from regtrain.contract.begin import Begin
from regtrain.contract.checks import check
from regtrain.contract.datasets import Facts, counts
from regtrain.contract.diagnostics import ORDER
from regtrain.contract.errors import Problem, SpecRefused, Warned
from regtrain.contract.given import given_of
from regtrain.contract.job import JobSpec, parse
from regtrain.contract.losses import Binary, CrossEntropy
from regtrain.contract.ranges import ends_of
from regtrain.contract.refusals import problems
from regtrain.contract.remedies.candidates import remedies
from regtrain.contract.remedies.drawn import drawn
from regtrain.contract.remedies.remedy import Evidence, Remedy
from regtrain.contract.runs import ranges, with_values
from regtrain.contract.selection import Selection
from regtrain.contract.symptoms import BY_NAME, OF_INITIAL_WEIGHTS, SymptomName
from regtrain.contract.trial import LEAST_PAIRS, RANDOM, Known, Order, Trial, signs
from regtrain.contract.variants import Variant, specs_of

CONTROL = "as it is"
HELD_OUT = 0.2
"""Share of the rows on which remedies are compared, where the job held out none."""
MOST_SEEDS = 64
MOST_OWN = 12
IN_THE_WEIGHTS: tuple[SymptomName, ...] = ("dead_units", "no_gradient", "vanishing_gradient")
"""What weights keep when its cause is gone."""
METADATA = "remedy_of"
"""Under this key the trial names the job."""


class Request(Part):
    """What may be said of a trial; all of it may be left out."""

    symptom: SymptomName | None = None
    """What is to be cured. Default: the root of the job's diagnosis."""
    remedies: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=MOST_OWN)] | None = None
    """Changes to try in place of the candidates."""
    order: Order = "together"
    """`in_turn`: one after the other, until one is confirmed, or, with fewer than 8 seeds, until one helps."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = LEAST_PAIRS
    """Runs of each contestant, paired by seed. Fewer than 8 confirm nothing, and need the order `in_turn`."""
    epochs: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Budget of each run. Default: the job's own."""
    goes_on: Annotated[bool, Field(alias="continue")] = False
    """All contestants go on from the weights with which the run has ended, and surgery is among them."""


BY_ITSELF: dict[str, dict[str, Any]] = {"try": {}, "quick": {"order": "in_turn", "seeds": 1}}
"""What `remedy` in a spec asks for when its job has ended with a symptom, as the body of a request."""


def request_of(body: bytes) -> Request:
    """The request that a JSON text describes; an empty one leaves everything out.

    Raises:
        SpecRefused: with one problem for each thing that is wrong.
    """
    given = given_of(body or b"{}")
    try:
        return Request.model_validate_json(body or b"{}")
    except ValidationError as refusal:
        raise SpecRefused(problems(refusal, given, root=Request)) from None


@dataclass(frozen=True)
class Patient:
    """The run that shows a symptom, as a spec of its own, and what was measured where it was noticed."""

    job: str
    spec: JobSpec
    """Without ranges, folds and variants; with validation rows."""
    symptom: SymptomName | None
    evidence: Evidence | None = None
    holds_out: bool = True
    """Whether the job has validation rows of its own."""
    run: int = 0
    shown: frozenset[SymptomName] = frozenset()
    """All that the run has been found to have, but for notes."""
    seen: bool = False
    """Whether the run was trained on the validation rows too."""
    goes_on: bool = False
    """Whether its weights are gone on from (`going_on`)."""
    cause: SymptomName | None = None
    """What was its symptom before that, where it is another now."""
    reached: Mapping[str, float | None] | None = None
    """Metrics of the run, null where it diverged; None where a control with the same values and one seed would be another run."""


def patient(
    job: str,
    spec: JobSpec,
    symptom: SymptomName | None,
    *,
    variant: str | None,
    values: Mapping[str, float],
    evidence: Evidence | None = None,
    run: int = 0,
    shown: frozenset[SymptomName] = frozenset(),
    refit: bool = False,
    reached: Mapping[str, float | None] | None = None,
) -> Patient:
    """`run`, `variant`, `values`, `shown`, `refit`, `reached`: of the run that shows the symptom. `reached`: what it has come to, if it trained without one of the
    folds, from weights of its own and with seed 0."""
    own = dict(specs_of(spec)).get(variant, spec)
    own = with_values(own, {path: values.get(path, ends_of(r)[0]) for path, r in ranges(own)})
    held_out = own.dataset if own.dataset.validation > 0 else own.dataset.model_copy(update={"validation": HELD_OUT})
    selection = Selection(metric=spec.selection.metric)
    plain = own.model_copy(update={"dataset": held_out, "selection": selection, "variants": (), "trial": None, "remedy": None, "on_symptom": {}})
    return Patient(job, plain, symptom, evidence, own.dataset.validation > 0, run, shown, refit, reached=reached)


def going_on(of: Patient, asked: SymptomName | None = None) -> Patient:
    """The same run, from the weights with which it has ended. `asked`: a symptom that was asked for by name; else what the weights have kept is to be cured: dead units
    and gradients that do not arrive, whatever has brought them about. Where there is none of it the symptom stays, but for those that initial weights alone can show.

    Raises:
        SpecRefused: there are no rows that these weights have not been trained on, or no trained weights can show what was asked for.
    """
    if asked in OF_INITIAL_WEIGHTS:
        raise SpecRefused(
            [Problem("symptom", f"{asked} is looked for before the first update, so weights that are gone on from never show it", "leave it out, or leave continue out")]
        )
    if of.seen or not of.holds_out:
        trained = "the validation rows too, as a refit is" if of.holds_out else "all rows"
        reason = f"the run was trained on {trained}: none is left on which what goes on from its weights can be compared"
        raise SpecRefused([Problem("continue", reason, "submit the job with dataset.validation, such as 0.2, and without refit")])
    of = replace(of, goes_on=True, spec=of.spec.model_copy(update={"begin": Begin(job=of.job, run=of.run)}))
    symptom = asked or _kept(of)
    return of if symptom == of.symptom else replace(of, symptom=symptom, evidence=None, cause=of.symptom)


def _kept(of: Patient) -> SymptomName | None:
    """What is still wrong with the weights of a run, as far as it can be judged by training them on."""
    kept: list[SymptomName | None] = [*(name for name in IN_THE_WEIGHTS if name in of.shown), of.symptom]
    return None if kept[0] in OF_INITIAL_WEIGHTS else kept[0]


def candidates_for(of: Patient, facts: Facts, *, before: Mapping[str, int] | None = None, spec: JobSpec | None = None) -> list[Remedy]:
    """The candidates for the patient's spec, or for another budget of it; of one that goes on surgery is among them."""
    shown: set[SymptomName] = {*of.shown, *([of.symptom] if of.symptom is not None else [])}
    return remedies(spec or of.spec, facts, of.symptom or of.cause, evidence=of.evidence, shown=frozenset(shown) if of.goes_on else None, before=before)


def trial_of(of: Patient, facts: Facts, request: Request, *, before: Mapping[str, int] | None = None) -> tuple[JobSpec, list[Warned]]:
    """The spec of the trial, and what `check` and the making of it say. `before`: label → how often that remedy has been confirmed for this symptom.

    Raises:
        SpecRefused: no remedy is known, a remedy of the caller's own does not fit, or the trial would be too large.
    """
    spec = of.spec if request.epochs is None else of.spec.model_copy(update={"budget": of.spec.budget.model_copy(update={"epochs": request.epochs})})
    check(spec, facts)
    tried = candidates_for(of, facts, before=before, spec=spec) if request.remedies is None else [Remedy(own.label, dict(own.set)) for own in request.remedies]
    tried = [remedy for remedy in tried if request.remedies is not None or comparable(spec, remedy)]
    if not tried:
        cured = of.symptom or "this job"
        raise SpecRefused([Problem("remedies", f"no change of the spec is known to cure {cured}", 'give your own: {"remedies": [{"label": "…", "set": {"path": value}}]}')])
    if reserved := [
        Problem(f"remedies.{i}.label", f"labels that begin with {RANDOM!r} are those of the random search", "choose another label")
        for i, one in enumerate(request.remedies or ())
        if one.label.startswith(RANDOM)
    ]:
        raise SpecRefused(reserved)
    random = drawn(spec, facts, tried, count=len(tried)) if request.seeds >= LEAST_PAIRS else []
    whole = _with(spec, of, [Remedy(CONTROL, {}), *tried, *random], request)
    try:
        made = parse(whole.model_dump_json(by_alias=True))
        warnings = check(made, facts)
    except SpecRefused as refusal:
        raise SpecRefused([_in_request(problem, request) for problem in refusal.problems]) from None
    return made, [*warnings, *_told(of, facts)]


def comparable(spec: JobSpec, remedy: Remedy) -> bool:
    """Whether there is a held-out metric that the spec has with and without a remedy: another loss than the control's has another unit."""
    return not any(path.split(".")[0] == "loss" for path in remedy.set) or isinstance(spec.loss, CrossEntropy | Binary)


def _with(spec: JobSpec, of: Patient, contestants: Sequence[Remedy], request: Request) -> JobSpec:
    """With fewer than eight seeds a run that shows what is to be cured stops there: a remedy cannot help any more, and the control has shown it."""
    losses = isinstance(spec.loss, CrossEntropy | Binary) and any(path.split(".")[0] == "loss" for one in contestants for path in one.set)
    selection = Selection(seeds=request.seeds, metric="accuracy/val" if losses else spec.selection.metric)
    trial = Trial(of=of.job, symptom=of.symptom, control=CONTROL, order=request.order, known=_known(of, request, selection.metric))
    update: dict[str, Any] = {
        "name": f"remedies for {of.symptom or 'all'}" + (f": {spec.name}" if spec.name else ""),
        "variants": tuple(Variant(label=one.label, set=one.set) for one in contestants),
        "selection": selection,
        "trial": trial,
        "on_symptom": dict.fromkeys(sorted(signs(trial, seeds=request.seeds)), "stop") if request.seeds < LEAST_PAIRS else {},
        "diagnostics": max(spec.diagnostics, "standard", BY_NAME[of.symptom].needs if of.symptom else "off", key=ORDER.index),
        "metadata": {**dict([pair for pair in spec.metadata.items() if pair[0] != METADATA][:63]), METADATA: of.job},
    }
    update["name"] = update["name"][:200]
    return spec.model_copy(update=update)


def _known(of: Patient, request: Request, metric: str) -> Known | None:
    """What the job's run says of the control, where it is the very run that the control would be."""
    same = request.order == "in_turn" and request.seeds == 1 and request.epochs is None and of.holds_out and not of.goes_on
    if not same or of.reached is None or metric not in of.reached or (of.symptom is not None and of.evidence is None):
        return None
    return Known(metric=of.reached[metric], shown=of.symptom is not None)


def _told(of: Patient, facts: Facts) -> list[Warned]:
    rows = counts(of.spec.dataset, facts, seed=of.spec.seed)
    if of.cause is not None:
        left = (
            f"what the weights have kept of it is {of.symptom}, and that is to be cured" if of.symptom is not None else "trained weights never show it, so the metric alone decides"
        )
        return [Warned("trial.symptom", f"the job's symptom is {of.cause}: {left}")]
    if of.holds_out:
        return []
    return [Warned("dataset.validation", f"the trial compares on {rows.val} validation rows, and trains on the other {rows.train}: a share of {HELD_OUT} where the job has none")]


def _in_request(problem: Problem, request: Request) -> Problem:
    """A problem of the trial at the caller's path: the control comes first among its variants."""
    if problem.path == "selection.seeds":
        return replace(problem, path="seeds")
    head, _, rest = problem.path.partition(".")
    number, _, inner = rest.partition(".")
    if head == "variants" and number.isdecimal() and request.remedies is not None and 0 < int(number) <= len(request.remedies):
        return replace(problem, path=f"remedies.{int(number) - 1}" + (f".{inner}" if inner else ""))
    return problem
