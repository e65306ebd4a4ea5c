"""Quick repair: one broken net by itself, as a user would have it. It is trained until it shows a symptom, its own diagnosis names what is to be cured, and remedies are
tried in turn with its seed until one helps. What is taken is judged on test rows, which neither trained nor chose: the same training once more, which costs nothing here.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, get_args

from benchmarks.faults.score import wilson
from regtrain.contract.checks import check
from regtrain.contract.datasets import Facts, facts_of
from regtrain.contract.diagnosis import diagnose
from regtrain.contract.errors import Diverged, SpecRefused
from regtrain.contract.events import Finished, Noticed, RunFinished
from regtrain.contract.job import JobSpec, parse, resolved
from regtrain.contract.remedies import Evidence, Patient, Remedy, Request, candidates_for, drawn, patient, trial_of
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import LEAST_PAIRS, RANDOM
from regtrain.contract.variants import Variant, spec_of
from worker.training.train import train

HELD = 0.15
"""Share of the rows that choose, and of those that judge: as many are left to train on as where three tenths choose."""
JOB = "job_bench"


@dataclass(frozen=True)
class Trained:
    """What a job left behind. `updates`: of all its runs."""

    runs: dict[int, RunFinished]
    noticed: list[Noticed]
    seconds: float
    trial: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def updates(self) -> int:
        return sum(run.steps for run in self.runs.values())

    @property
    def diverged(self) -> bool:
        return self.runs[0].stop_reason == "diverged"

    @property
    def accuracy(self) -> float:
        """Of the only run, on test rows; 0 where it diverged."""
        return 0.0 if self.diverged else round(self.runs[0].metrics.get("accuracy/test", 0.0), 4)


NOTHING = Trained({}, [], 0.0)


def refused(spec: JobSpec) -> bool:
    """Whether the service would name the fault at submission, so that there is no job to repair."""
    facts = facts_of(spec.dataset)
    assert facts is not None
    try:
        check(spec, facts)
    except SpecRefused:
        return True
    return False


def trained(spec: JobSpec) -> Trained:
    runs, noticed, trial, begin = dict[int, RunFinished](), list[Noticed](), dict[str, Any](), time.perf_counter()
    with TemporaryDirectory() as folder:
        try:
            for event in train(parse(json.dumps(resolved(spec))), data=Path(folder)):
                match event:
                    case RunFinished():
                        runs[event.run] = event
                    case Noticed():
                        noticed.append(event)
                    case Finished():
                        trial = event.result["trial"] or {}
                    case _:
                        pass
        except Diverged:  # every run of the job did
            pass
    return Trained(runs, noticed, time.perf_counter() - begin, trial)


def repaired(spec: JobSpec) -> dict[str, Any]:
    """One broken net: its accuracy as it is, trained whole, and after repair by remedies in turn and by as many random changes; updates and seconds of it whole, where
    it did not diverge, and of everything that each repair has trained, the broken net until its symptom included."""
    rows = spec.dataset.model_copy(update={"test": HELD, "validation": HELD / (1 - HELD)})
    spec = spec.model_copy(update={"dataset": rows, "diagnostics": "standard"})
    facts = facts_of(spec.dataset)
    assert facts is not None
    whole = trained(spec)
    first = trained(spec.model_copy(update={"on_symptom": dict.fromkeys(get_args(SymptomName), "stop")}))
    of = _patient(spec, first)
    unit = {"updates": whole.updates if not whole.diverged else None, "seconds": whole.seconds if not whole.diverged else None}
    row: dict[str, Any] = {"seed": spec.seed, "symptom": of.symptom, "control": whole.accuracy, "stopped": first.updates, **unit}
    candidates = [] if of.symptom is None else candidates_for(of, facts)
    row["remedy"] = _taken(of, facts, candidates, first, whole)
    row["random"] = _taken(of, facts, drawn(of.spec, facts, candidates, count=len(candidates))[: row["remedy"]["tried"]], first, whole)
    return row


def _patient(spec: JobSpec, first: Trained) -> Patient:
    """As the store makes it of a job that has ended."""
    symptom = diagnose(first.noticed, runs=1, preset=spec.diagnostics).root
    sign = next((noticed for noticed in first.noticed if noticed.symptom == symptom), None)
    reached = {name: None if first.diverged else value for name, value in first.runs[0].metrics.items()}
    return patient(JOB, spec, symptom, variant=None, values={}, evidence=None if sign is None else Evidence(sign.value, sign.bound), reached=reached)


def _taken(of: Patient, facts: Facts, contestants: Sequence[Remedy], first: Trained, whole: Trained) -> dict[str, Any]:
    """The first that helps; the net as it is where none does."""
    own = tuple(Variant(label=f"{place} {one.label}", set=one.set) for place, one in enumerate(contestants))
    trial = trained(trial_of(of, facts, Request(order="in_turn", seeds=1, remedies=own))[0]) if own else NOTHING
    label = trial.trial.get("helps")
    net = whole if label is None else trained(spec_of(of.spec, next(one for one in own if one.label == label)))
    tried = sum(verdict["verdict"] != "not_tried" for verdict in trial.trial.get("verdicts", []))
    cost = {"updates": first.updates + trial.updates, "seconds": first.seconds + trial.seconds}
    return {"label": label and label.split(" ", 1)[1], "accuracy": net.accuracy, "tried": tried, **cost}


def confirmed(spec: JobSpec, symptom: SymptomName | None, evidence: Evidence | None) -> dict[str, Any]:
    """The trial in turn over eight seeds: its runs, those of the same trial of all together, and what was confirmed."""
    facts = facts_of(spec.dataset)
    assert facts is not None
    of = patient(JOB, spec.model_copy(update={"diagnostics": "standard"}), symptom, variant=None, values={}, evidence=evidence)
    made = trial_of(of, facts, Request(order="in_turn"))[0]
    found = trained(made)
    random = sum(variant.label.startswith(RANDOM) for variant in made.variants)
    together = LEAST_PAIRS + halved(len(made.variants) - 1 - random) + halved(random)
    return {"runs": sum(run.stop_reason != "pruned" for run in found.runs.values()), "together": together, "confirmed": found.trial.get("confirmed")}


def halved(contestants: int) -> int:
    """Runs of so many contestants over eight seeds: all with two, the better half with two more, the better half of those with the other four."""
    half = (contestants + 1) // 2
    return 2 * contestants + 2 * half + 4 * ((half + 1) // 2)


def summary(rows: Sequence[dict[str, Any]], *, beyond: frozenset[str]) -> dict[str, Any]:
    """Over all nets of all cases. `rows`: of cases, with `in_turn`, their nets, and `eight`, their trial over eight seeds; `beyond`: kinds that no spec can repair."""
    within = [(row["floor"], net) for row in rows if row["kind"] not in beyond for net in row["in_turn"]]
    nets = [net for row in rows for net in row["in_turn"]]
    sick, eight = [net for net in nets if net["symptom"] is not None], [row["eight"] for row in rows if row["eight"]]
    ways = ("remedy", "random")
    return {
        "cases": len(rows), "nets": len(nets),
        "diagnosed": _share([net["symptom"] is not None for floor, net in within if net["control"] < floor]),
        "learned": {name: _share([_accuracy(net, name) >= floor for floor, net in within]) for name in ("control", *ways)},
        "learned, diagnosed": {name: _share([_accuracy(net, name) >= floor for floor, net in within if net["symptom"] is not None]) for name in ("control", *ways)},
        "worse": {name: _share([_accuracy(net, name) < net["control"] for net in nets]) for name in ways},
        "worse cases": {name: _share([fmean(_accuracy(net, name) - net["control"] for net in row["in_turn"]) < 0 for row in rows]) for name in ways},
        "cost": {name: {unit: sorted(net[name][unit] / net[unit] for net in sick if net[unit]) for unit in ("updates", "seconds")} for name in ways},
        "stopped": sorted(net["stopped"] / net["updates"] for net in sick if net["updates"]),
        "tried": {name: fmean(net[name]["tried"] for net in sick) if sick else 0.0 for name in ways},
        "eight": {name: fmean(one[name] for one in eight) for name in ("runs", "together")} | {"confirmed": _share([one["confirmed"] is not None for one in eight])} if eight else {},
    }  # fmt: skip


def _accuracy(net: dict[str, Any], name: str) -> float:
    return net["control"] if name == "control" else net[name]["accuracy"]


def _share(told: Sequence[bool]) -> dict[str, float]:
    return wilson(sum(told), len(told))
