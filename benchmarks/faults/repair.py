"""Repair: of every kind of fault one case a problem, its remedies beside as many random changes of the same paths, and beside the broken spec with other seeds.

OMP_NUM_THREADS=1 PYTHONPATH=. python -m benchmarks.faults.repair [--seeds 8] [--most 6] [--groups NAME …] [--quick]

What is to be cured is the cause that the diagnosis gave to most seeds of the case in the newest entry of benchmarks/results/faults.json, right or wrong; cases
that were not struck are left out. All contestants of a case are variants of one job. The first half of the seeds chooses the best remedy and the best random
change by their mean accuracy on held-out rows, the other half judges both, so that no contestant is judged by the runs that chose it.
--quick: two seeds, one group, nothing kept.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.faults.cases import Case, Group, groups
from benchmarks.faults.score import wilson
from benchmarks.harness import RESULTS, publish
from regtrain.contract.datasets import facts_of
from regtrain.contract.events import PackBegun, RunFinished
from regtrain.contract.job import JobSpec, parse, resolved
from regtrain.contract.remedies import Evidence, Remedy, drawn, remedies
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.variants import specs_of
from worker.training.train import train

CONTROL = "as it is"


@dataclass(frozen=True)
class Patient:
    """A broken case, and what the diagnosis gave as its cause."""

    group: Group
    case: Case
    symptom: SymptomName | None
    evidence: Evidence | None
    """As measured in the first seed that has it."""

    @property
    def spec(self) -> JobSpec:
        job = parse(json.dumps({**self.group.spec, "variants": [{"label": self.case.name, "set": self.case.changes}], "diagnostics": "off"}))
        return specs_of(job)[0][1]


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    found = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))[-1]["rows"][0]["cases"]
    chosen = [one for one in patients(found) if not arguments.groups or any(part in one.group.name for part in arguments.groups)]
    rows = list[dict[str, Any]]()
    for one in chosen[: 3 if arguments.quick else None]:
        rows.append(tried(one, seeds=2 if arguments.quick else arguments.seeds, most=arguments.most))
        print(f"{one.group.name} | {one.case.name}: {rows[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    publish("repairs", [summary(rows)], keep=not arguments.quick)
    return 0


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


def tried(patient: Patient, *, seeds: int, most: int) -> dict[str, Any]:
    """One case: accuracy of the control, of the best remedy and of the best random change, on the seeds that did not choose them."""
    begin, spec = time.perf_counter(), patient.spec
    facts = facts_of(spec.dataset)
    assert facts is not None
    candidates = remedies(spec, facts, patient.symptom, evidence=patient.evidence, most=most)
    random = drawn(spec, facts, candidates, count=len(candidates))
    accuracy = trained(spec, [Remedy(CONTROL, {}), *candidates, *random], seeds=seeds)
    half, control = seeds // 2, accuracy[CONTROL][seeds // 2 :]
    row: dict[str, Any] = {"group": patient.group.name, "case": patient.case.name, "kind": patient.case.truth.kind if patient.case.truth else "", "symptom": patient.symptom}
    row |= {"floor": patient.group.floor, "contestants": len(candidates), "control": control, "seconds": time.perf_counter() - begin}
    for name, contestants in (("remedy", candidates), ("random", random)):
        best = max(contestants, key=lambda one: fmean(accuracy[one.label][:half]), default=None)
        row[name] = None if best is None else {"label": best.label, "set": best.set, "accuracy": accuracy[best.label][half:]}
    return row


def trained(spec: JobSpec, contestants: list[Remedy], *, seeds: int) -> dict[str, list[float]]:
    """Label → accuracy on held-out rows of every seed; 0 of runs that diverged."""
    body = {**resolved(spec), "variants": [{"label": one.label, "set": one.set} for one in contestants], "selection": {"seeds": seeds}}
    labels, accuracy = dict[int, str](), {one.label: list[float]() for one in contestants}
    with TemporaryDirectory() as folder:
        for event in train(parse(json.dumps(body)), data=Path(folder)):
            match event:
                case PackBegun():
                    labels.update(dict.fromkeys(event.runs, event.variant or ""))
                case RunFinished():
                    accuracy[labels[event.run]].append(0.0 if event.stop_reason == "diverged" else round(event.metrics.get("accuracy/val", 0.0), 4))
                case _:
                    pass
    return accuracy


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all runs that judge: how many learned; and how many cases ended worse than they were."""

    def learned(name: str) -> dict[str, float]:
        values = [(accuracy, row["floor"]) for row in rows for accuracy in _judged(row, name)]
        return wilson(sum(accuracy >= floor for accuracy, floor in values), len(values))

    def worse(name: str) -> dict[str, float]:
        return wilson(sum(fmean(_judged(row, name)) < fmean(row["control"]) for row in rows), len(rows))

    return {
        "repaired": {name: learned(name) for name in ("control", "remedy", "random")},
        "worse": {name: worse(name) for name in ("remedy", "random")},
        "cost": fmean(1 + row["contestants"] for row in rows) if rows else 0.0,
        "cases": rows,
    }


def _judged(row: dict[str, Any], name: str) -> list[float]:
    """Where there is no remedy the net stays as it is."""
    return row["control"] if name == "control" or row[name] is None else row[name]["accuracy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What remedies repair, and what chance does.")
    parser.add_argument("--seeds", type=int, default=8, help="runs of every contestant; half of them choose, half judge (default: 8)")
    parser.add_argument("--most", type=int, default=6, help="remedies of a case, and as many random changes (default: 6)")
    parser.add_argument("--groups", nargs="+", default=[], help="only groups whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="two seeds of three cases, nothing is kept")
    sys.exit(main(parser.parse_args()))
