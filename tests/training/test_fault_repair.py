"""Which cases are to be repaired, who judges whom, and one case through remedies and chance."""

import pytest

from benchmarks.faults.cases import groups
from benchmarks.faults.repair import CONTROL, patients, summary, trained, tried
from regtrain.contract.remedies import Remedy


def row(group: str, case: str, kind: str, accuracy: list[float], roots: list[list[str]]) -> dict[str, object]:
    return {"group": group, "case": case, "kind": kind, "accuracy": accuracy, "floor": 0.8, "roots": roots, "evidence": [[[0.001, 0.05]] if names else [] for names in roots]}


def test_patients_are_the_first_struck_case_of_a_kind_and_a_problem() -> None:
    found = [
        row("blobs: broken", "weights × 0.01", "init too small", [0.9, 0.9, 0.3], [[], [], ["vanishing_signal"]]),  # one of three struck
        row("blobs: broken", "weights × 0.1, 12 layers", "init too small", [0.3, 0.3, 0.9], [["plateau"], ["vanishing_signal"], ["vanishing_signal"]]),
        row("circles: broken", "weights × 0.01", "init too small", [0.5, 0.5, 0.5], [[], ["plateau"], ["plateau"]]),
        row("circles: broken", "weights × 0.1, 12 layers", "init too small", [0.5, 0.5, 0.5], [[], [], []]),
    ]
    chosen = patients(found)
    assert [(one.group.name, one.case.name, one.symptom) for one in chosen] == [
        ("blobs: broken", "weights × 0.1, 12 layers", "plateau"),
        ("circles: broken", "weights × 0.01", "plateau"),
    ]
    assert chosen[0].spec.model.model_dump()["hidden"] == (5,) * 12


def test_runs_that_judge_are_counted_by_the_floor() -> None:
    """Two cases: remedies repair 3 of 4 runs, chance 1 of 4 and makes one case worse; another seed none."""
    cases = [
        {"floor": 0.8, "contestants": 3, "control": [0.5, 0.6], "remedy": {"accuracy": [0.9, 0.9]}, "random": {"accuracy": [0.4, 0.4]}},
        {"floor": 0.8, "contestants": 1, "control": [0.5, 0.6], "remedy": {"accuracy": [0.7, 0.9]}, "random": {"accuracy": [0.9, 0.6]}},
    ]
    found = summary(cases)
    assert {name: (share["hits"], share["of"]) for name, share in found["repaired"].items()} == {"control": (0, 4), "remedy": (3, 4), "random": (1, 4)}
    assert {name: (share["hits"], share["of"]) for name, share in found["worse"].items()} == {"remedy": (0, 2), "random": (1, 2)}
    assert found["cost"] == pytest.approx(3.0)


def test_one_case_from_its_cause_to_a_net_that_learns() -> None:
    """Weights of 0 on blobs: the control stays at a guess in every seed, the remedy learns in the seeds that did not choose it."""
    group = next(group for group in groups() if group.name == "blobs: broken")
    patient = patients([row(group.name, "all weights 0", "init of zeros", [0.33], [["no_gradient"]])])[0]
    found = tried(patient, seeds=2, most=2)
    assert found["control"] == [pytest.approx(1 / 3, abs=0.02)]
    assert found["remedy"]["accuracy"][0] >= group.floor
    assert trained(patient.spec, [Remedy(CONTROL, {})], seeds=1)[CONTROL] == [pytest.approx(1 / 3, abs=0.02)]
