"""Repair: of every kind of fault one case a problem, its remedies beside as many random changes of the same paths, and beside the broken spec with other seeds.

OMP_NUM_THREADS=1 PYTHONPATH=. python -m benchmarks.faults.repair [--seeds 4] [--most 6] [--seed 2000] [--in-turn 3000] [--groups NAME …] [--quick]

What is to be cured is the cause that the diagnosis gave to most seeds of the case in the newest entry of benchmarks/results/faults.json, right or wrong; cases
that were not struck are left out. All contestants of a case are variants of one job, whose seeds choose the best remedy and the best random change by their mean
accuracy on held-out rows. A contestant is chosen only if it beats the control there, else the net stays as it is. As many seeds of another job judge: other draws,
other rows held out. Beside it every one of as many nets of the case is repaired by itself, in turn with its own seed (quick.py), and one trial in turn over eight seeds
counts its runs. The rules were developed with --seed 0, in turn with 0 to 3; what is published begins at 2000, in turn at 3000. --quick: two seeds of three cases, nothing kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.faults import quick
from benchmarks.faults.cases import Case, Group, groups
from benchmarks.faults.score import wilson
from benchmarks.harness import RESULTS, publish, timed
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import Diverged
from regtrain.contract.events import Event, PackBegun, RunFinished
from regtrain.contract.job import JobSpec, parse, resolved
from regtrain.contract.remedies import Evidence, Remedy, drawn, remedies
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.variants import specs_of
from worker.training.train import train

CONTROL = "as it is"
AS_IT_IS = Remedy(CONTROL, {})
JUDGES = 500
"""Added to the job's seed where contestants are judged."""
BEYOND = frozenset({"label noise"})
"""Kinds of fault that no change to a spec can repair: the labels that are held out are as wrong as those to train on, so no net can be above the floor."""


@dataclass(frozen=True)
class Patient:
    """A broken case, and what the diagnosis gave as its cause."""

    group: Group
    case: Case
    symptom: SymptomName | None
    evidence: Evidence | None
    """As measured in the first seed that has it."""

    def spec(self, seed: int) -> JobSpec:
        job = parse(json.dumps({**self.group.spec, "seed": seed, "variants": [{"label": self.case.name, "set": self.case.changes}], "diagnostics": "off"}))
        return specs_of(job)[0][1]


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    found = newest(json.loads((RESULTS / "faults.json").read_text(encoding="utf-8")))["cases"]
    chosen = [one for one in patients(found) if not arguments.groups or any(part in one.group.name for part in arguments.groups)]
    rows = list[dict[str, Any]]()
    for one in chosen[: 3 if arguments.quick else None]:
        seeds = 2 if arguments.quick else arguments.seeds
        rows.append({**tried(one, seed=arguments.seed, seeds=seeds, most=arguments.most), **in_turn(one, seed=arguments.in_turn, seeds=seeds)})
        said = {name: sum(accuracy >= one.group.floor for accuracy in _judged(rows[-1], name)) for name in ("control", "remedy", "random")}
        print(f"{one.group.name} | {one.case.name}: {rows[-1]['seconds']:.1f} s, learned {said}", file=sys.stderr, flush=True)
    publish("repairs", [summary(rows)], keep=not arguments.quick)
    return 0


def newest(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The last measurement with all diagnostics."""
    return next(entry["rows"][0] for entry in reversed(entries) if entry["rows"][0]["diagnostics"] == "full")


def patients(found: list[dict[str, Any]]) -> list[Patient]:
    """Of every kind of fault the first case of each problem most of whose seeds did not learn."""
    cases = {(group.name, case.name): (group, case) for group in groups() for case in group.cases}
    first: dict[tuple[str, str], Patient] = {}
    for row in found:
        struck = [place for place, accuracy in enumerate(row["accuracy"]) if accuracy < row["floor"]]
        if row["kind"] and 2 * len(struck) > len(row["accuracy"]) and (row["group"], row["case"]) in cases:
            causes = [cause for place in struck for cause in row["roots"][place]]
            symptom = max(dict.fromkeys(causes), key=causes.count) if causes else None
            measured = next((Evidence(*values[0]) for values, names in zip(row["evidence"], row["roots"], strict=True) if symptom in names), None)
            first.setdefault((row["group"], row["kind"]), Patient(*cases[row["group"], row["case"]], symptom, measured))
    return list(first.values())


def in_turn(patient: Patient, *, seed: int, seeds: int) -> dict[str, Any]:
    """One case in turn: net by net, each a job with a seed of its own; and over eight seeds. Neither where the service refuses the spec."""
    if quick.refused(patient.spec(seed)):
        return {"in_turn": [], "eight": None}
    return {
        "in_turn": [quick.repaired(patient.spec(seed + place)) for place in range(seeds)],
        "eight": None if patient.symptom is None else quick.confirmed(patient.spec(seed), patient.symptom, patient.evidence),
    }


def tried(patient: Patient, *, seed: int, seeds: int, most: int) -> dict[str, Any]:
    """One case: accuracy of the control, of the best remedy and of the best random change, on seeds that did not choose them."""
    spec = patient.spec(seed)
    facts = facts_of(spec.dataset)
    assert facts is not None
    candidates = remedies(spec, facts, patient.symptom, evidence=patient.evidence, most=most)
    random = drawn(spec, facts, candidates, count=len(candidates))
    alone = timed(lambda: trained(spec, [AS_IT_IS], seeds=1))
    begin = time.perf_counter()
    accuracy = trained(spec, [AS_IT_IS, *candidates], seeds=seeds)
    seconds = time.perf_counter() - begin
    accuracy |= trained(spec, random, seeds=seeds) if random else {}
    chosen = {"remedy": best(candidates, accuracy), "random": best(random, accuracy)}
    judging = [AS_IT_IS, *(one for one in chosen.values() if one is not None)]
    judged = trained(spec.model_copy(update={"seed": spec.seed + JUDGES}), judging, seeds=seeds)
    row: dict[str, Any] = {"group": patient.group.name, "case": patient.case.name, "kind": patient.case.truth.kind if patient.case.truth else "", "symptom": patient.symptom}
    row |= {"floor": patient.group.floor, "contestants": len(candidates), "control": judged[CONTROL], "seed": seed, "seconds": seconds, "alone": alone}
    row |= {"untried": {"first": _of(candidates[:1], accuracy), "remedies": _of(candidates, accuracy), "random": _of(random, accuracy)}}
    for name, one in chosen.items():
        row[name] = None if one is None else {"label": one.label, "set": one.set, "accuracy": judged[one.label]}
    return row


def best(contestants: list[Remedy], accuracy: dict[str, list[float]]) -> Remedy | None:
    """That of the highest mean accuracy on the seeds that choose; none where none beats the control there."""
    found = max(contestants, key=lambda one: fmean(accuracy[one.label]), default=None)
    return found if found is not None and fmean(accuracy[found.label]) > fmean(accuracy[CONTROL]) else None


def _of(contestants: list[Remedy], accuracy: dict[str, list[float]]) -> list[float]:
    return [value for one in contestants for value in accuracy[one.label]]


def trained(spec: JobSpec, contestants: list[Remedy], *, seeds: int) -> dict[str, list[float]]:
    """Label → accuracy on held-out rows of every seed; 0 of runs that diverged."""
    body = {**resolved(spec), "variants": [{"label": one.label, "set": one.set} for one in contestants], "selection": {"seeds": seeds}}
    labels, accuracy = dict[int, str](), {one.label: list[float]() for one in contestants}
    with TemporaryDirectory() as folder:
        try:
            _followed(train(parse(json.dumps(body)), data=Path(folder)), labels, accuracy)
        except Diverged:  # every run of the job did
            return {label: [0.0] * seeds for label in accuracy}
    return accuracy


def _followed(events: Iterable[Event], labels: dict[int, str], accuracy: dict[str, list[float]]) -> None:
    for event in events:
        match event:
            case PackBegun():
                labels.update(dict.fromkeys(event.runs, event.variant or ""))
            case RunFinished():
                accuracy[labels[event.run]].append(0.0 if event.stop_reason == "diverged" else round(event.metrics.get("accuracy/val", 0.0), 4))
            case _:
                pass


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all runs that judge: how many learned; how many cases ended worse than they were; what contestants are worth before any is chosen; and what it cost."""
    within = [row for row in rows if row["kind"] not in BEYOND]
    return {
        "repaired": {name: _learned(within, lambda row, name=name: _judged(row, name)) for name in ("control", "remedy", "random")},
        "untried": {name: _learned(within, lambda row, name=name: row["untried"][name]) for name in ("first", "remedies", "random")},
        "worse": {name: wilson(sum(fmean(_judged(row, name)) < fmean(row["control"]) for row in rows), len(rows)) for name in ("remedy", "random")},
        "beyond": {name: _learned([row for row in rows if row["kind"] in BEYOND], lambda row, name=name: _judged(row, name)) for name in ("control", "remedy", "random")},
        "cost": {"runs": fmean(1 + row["contestants"] for row in rows), "time": sorted(row["seconds"] / row["alone"] for row in rows)} if rows else {},
        "in_turn": quick.summary([row for row in rows if row["in_turn"]], beyond=BEYOND),
        "cases": rows,
    }


def _learned(rows: list[dict[str, Any]], values: Callable[[dict[str, Any]], list[float]]) -> dict[str, float]:
    told = [(accuracy, row["floor"]) for row in rows for accuracy in values(row)]
    return wilson(sum(accuracy >= floor for accuracy, floor in told), len(told))


def _judged(row: dict[str, Any], name: str) -> list[float]:
    """Where there is no remedy the net stays as it is."""
    return row["control"] if name == "control" or row[name] is None else row[name]["accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What remedies repair, and what chance does.")
    parser.add_argument("--seeds", type=int, default=4, help="runs of every contestant that choose; as many of those chosen judge (default: 4)")
    parser.add_argument("--seed", type=int, default=2000, help="of the jobs (default: 2000; the rules were developed with 0 and tried with 1000)")
    parser.add_argument("--in-turn", type=int, default=3000, help="seed of the first net of a case that is repaired in turn (default: 3000)")
    parser.add_argument("--most", type=int, default=6, help="remedies of a case, and as many random changes (default: 6)")
    parser.add_argument("--groups", nargs="+", default=[], help="only groups whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="two seeds of three cases, nothing is kept")
    sys.exit(main(parser.parse_args()))
