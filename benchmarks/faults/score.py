"""Verdicts beside the truth: detected, root named, layer named, false alarms, with Wilson's 95 % intervals."""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Any

from benchmarks.faults.cases import Truth
from benchmarks.faults.detectors import Detector, Verdict
from benchmarks.faults.records import Record

Z = 1.959964
Share = dict[str, float]


def wilson(hits: int, of: int) -> Share:
    """The share and its 95 % interval (Wilson 1927)."""
    if not of:
        return {"hits": 0, "of": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    share, square = hits / of, Z * Z
    middle, half = (share + square / (2 * of)) / (1 + square / of), Z * sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return {"hits": hits, "of": of, "share": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def detected(verdicts: Iterable[Verdict]) -> bool:
    """Whether somebody was asked to look."""
    return any(verdict.alarm for verdict in verdicts)


def mentioned(verdicts: Iterable[Verdict], truth: Truth) -> bool:
    """Whether anything that is said, cause or not, is what was done."""
    return any(verdict.symptom in truth.root for verdict in verdicts)


def named(verdicts: Iterable[Verdict], truth: Truth) -> bool:
    """Whether what is given as the cause says what was done."""
    return any(verdict.root and verdict.symptom in truth.root for verdict in verdicts)


def alarmed(record: Record, verdicts: Iterable[Verdict]) -> bool:
    """Whether a sound net is reported for what it does not have: one that overfits by the bench's own criterion is rightly told so, and nothing else."""
    return any(verdict.alarm and not (verdict.symptom == "overfitting" and record.overfits) for verdict in verdicts)


def localised(verdicts: Iterable[Verdict], truth: Truth) -> bool:
    """Whether the first layer that is named, of the cause if it has one, is where it was done."""
    placed = sorted((verdict for verdict in verdicts if verdict.layer is not None), key=lambda verdict: (not verdict.root, verdict.first))
    return bool(placed) and placed[0].layer in truth.layers


def scores(records: Sequence[Record], detector: Detector) -> dict[str, Any]:
    """Of one detector. `struck`: broken nets that did not learn; the others were broken without an effect that the held-out rows show."""
    broken = [(record, record.case.truth, detector(record)) for record in records if record.case.truth is not None]
    sound = [(record, detector(record)) for record in records if record.case.truth is None]
    struck = [(record, truth, verdicts) for record, truth, verdicts in broken if not record.learned]
    nameable = [(truth, verdicts) for _, truth, verdicts in struck if truth.root]
    placed = [(truth, verdicts) for _, truth, verdicts in struck if truth.layers]
    healthy = [(record, verdicts) for record, verdicts in sound if record.learned]
    overfitted = [verdicts for record, verdicts in healthy if record.overfits]
    return {
        "detected": wilson(sum(detected(verdicts) for _, _, verdicts in struck), len(struck)),
        "detected, all": wilson(sum(detected(verdicts) for _, _, verdicts in broken), len(broken)),
        "named": wilson(sum(named(verdicts, truth) for truth, verdicts in nameable), len(nameable)),
        "mentioned": wilson(sum(mentioned(verdicts, truth) for truth, verdicts in nameable), len(nameable)),
        "localised": wilson(sum(localised(verdicts, truth) for truth, verdicts in placed), len(placed)),
        "false alarms": wilson(sum(alarmed(record, verdicts) for record, verdicts in healthy), len(healthy)),
        "overfitting told": wilson(sum(any(verdict.symptom == "overfitting" for verdict in verdicts) for verdicts in overfitted), len(overfitted)),
        "unlearned alarms": wilson(sum(detected(verdicts) for record, verdicts in sound if not record.learned), len(sound) - len(healthy)),
    }
