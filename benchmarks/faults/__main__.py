"""The fault bench: nets that are broken in known ways, and sound ones; who notices, who names the cause and the layer, and who cries wolf.

OMP_NUM_THREADS=1 PYTHONPATH=. python -m benchmarks.faults [--seed 20] [--seeds 7] [--groups NAME …] [--diagnostics full] [--quick]

Every group of cases is one job: the cases are its variants, and the seeds of a case train as one pack. All detectors read the same recorded series.
--quick: one seed of the smallest groups, nothing kept. `docs/fault_bench.py` writes docs/fault-bench.md from what is kept in benchmarks/results/faults.json.
"""

import argparse
import sys
from functools import partial
from typing import Any, get_args

from benchmarks.faults.cases import LOOKED_AT, PUBLISHED, Group, groups
from benchmarks.faults.detectors import DETECTORS, ours
from benchmarks.faults.records import Record, trained
from benchmarks.faults.score import alarmed, detected, localised, mentioned, named, scores, wilson
from benchmarks.faults.spread import cores, spread
from benchmarks.harness import publish
from regtrain.contract.diagnostics import Diagnostics


def main(arguments: argparse.Namespace) -> int:
    chosen = [group for group in groups() if not arguments.groups or any(part in group.name for part in arguments.groups)]
    records, seconds = list[Record](), dict[str, float]()
    work = partial(trained, seed=arguments.seed, seeds=1 if arguments.quick else arguments.seeds, diagnostics=arguments.diagnostics)
    for group, (found, seconds[group.name]) in zip(chosen, spread(work, chosen, processes=arguments.processes), strict=True):
        print(f"{group.name}: {len(found)} runs, {seconds[group.name]:.1f} s", file=sys.stderr, flush=True)
        records += found
    publish("faults", [row(chosen, records, seconds, arguments)], keep=not arguments.quick)
    return 0


def row(chosen: list[Group], records: list[Record], seconds: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    """All that is kept: figures of every detector, and every case seed by seed."""
    return {
        "diagnostics": arguments.diagnostics,
        "processes": arguments.processes,
        "seed": arguments.seed,
        "seconds": seconds,
        "broken": sum(record.case.truth is not None for record in records),
        "sound": sum(record.case.truth is None for record in records),
        "sound that learned": sum(record.case.truth is None and record.learned for record in records),
        "detectors": {name: scores(records, detector) for name, detector in DETECTORS.items()},
        "reseeded": reseeded(records),
        "cases": [of_case(group, case.name, records) for group in chosen for case in group.cases],
    }


def reseeded(records: list[Record]) -> dict[str, Any]:
    """The cheapest repair: the same broken spec with another seed. Share of the nets that did not learn whose next seed did."""
    next_of = {(record.group.name, record.case.name, record.seed): record for record in records}
    seeds = 1 + max(record.seed for record in records)
    failed = [record for record in records if record.case.truth is not None and not record.learned]
    return wilson(sum(next_of[record.group.name, record.case.name, (record.seed + 1) % seeds].learned for record in failed), len(failed))


def of_case(group: Group, name: str, records: list[Record]) -> dict[str, Any]:
    """One case: its truth, and one entry a seed of everything that was said of it."""
    mine = [record for record in records if record.group.name == group.name and record.case.name == name]
    truth = mine[0].case.truth
    said: dict[str, dict[str, list[bool]]] = {}
    for who, detector in DETECTORS.items():
        verdicts = [detector(record) for record in mine]
        said[who] = {"detected": [detected(v) for v in verdicts], "alarmed": [alarmed(record, v) for record, v in zip(mine, verdicts, strict=True)]}
        if truth is not None:
            said[who] |= {"named": [named(v, truth) for v in verdicts], "mentioned": [mentioned(v, truth) for v in verdicts], "localised": [localised(v, truth) for v in verdicts]}
    return {
        "group": group.name, "case": name, "kind": truth.kind if truth else None, "root": list(truth.root) if truth else [], "layers": list(truth.layers) if truth else [],
        "accuracy": [round(record.accuracy, 4) for record in mine], "floor": group.floor, "said": said,
        "roots": [cause(record) for record in mine],
        "evidence": [[[noticed.value, noticed.bound] for noticed in record.noticed if noticed.symptom in cause(record)] for record in mine],
        "noticed": [min((noticed.done for noticed in record.noticed if noticed.severity != "note"), default=None) for record in mine],
        "overfits": [record.overfits for record in mine],
        "risen": [round(min(record.risen, 1e6), 3) for record in mine],
        "alarms": [sorted({verdict.symptom for verdict in ours(record) if verdict.alarm}) for record in mine],
    }  # fmt: skip


def cause(record: Record) -> list[str]:
    """The root of this project's diagnosis, if it gives one."""
    return [verdict.symptom for verdict in ours(record) if verdict.root]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Nets broken in known ways, and sound ones: who notices.")
    parser.add_argument("--seed", type=int, default=PUBLISHED, help=f"of the jobs (default: {PUBLISHED}; bounds were set while looking at {LOOKED_AT})")
    parser.add_argument("--seeds", type=int, default=7, help="runs of every case (default: 7, which makes 840 broken and 665 sound nets)")
    parser.add_argument("--groups", nargs="+", default=[], help="only groups whose name contains one of these")
    parser.add_argument("--diagnostics", choices=get_args(Diagnostics), default="full", help="what is measured (default: full, which dead and saturated units need)")
    parser.add_argument("--processes", type=int, default=cores(), help="groups at a time (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing is kept")
    sys.exit(main(parser.parse_args()))
