"""Which cases are to be repaired, who judges whom, and one case through remedies and chance."""

import pytest

from benchmarks.faults.cases import groups
from benchmarks.faults.repair import CONTROL, best, patients, summary, trained, tried
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
    assert chosen[0].spec(0).model.model_dump()["hidden"] == (5,) * 12


def test_runs_that_judge_are_counted_by_the_floor_and_labels_that_are_wrong_apart() -> None:
    """Two cases: remedies repair 3 of 4 runs, chance 1 of 4 and makes one case worse; another seed none. In the third the labels themselves are wrong."""
    cost = {"seconds": 6.0, "alone": 2.0}
    cases = [
        {**cost, "kind": "lr too high", "floor": 0.8, "contestants": 3, "control": [0.5, 0.6], "remedy": {"accuracy": [0.9, 0.9]}, "random": {"accuracy": [0.4, 0.4]}},
        {**cost, "kind": "λ too strong", "floor": 0.8, "contestants": 1, "control": [0.5, 0.6], "remedy": {"accuracy": [0.7, 0.9]}, "random": {"accuracy": [0.9, 0.6]}},
        {**cost, "kind": "label noise", "floor": 0.8, "contestants": 2, "control": [0.2, 0.2], "remedy": None, "random": {"accuracy": [0.3, 0.3]}},
    ]
    untried = [
        {"first": [0.9], "remedies": [0.9, 0.9, 0.1], "random": [0.4, 0.9, 0.1]},
        {"first": [0.1], "remedies": [0.1], "random": [0.1]},
        {"first": [], "remedies": [], "random": []},
    ]
    found = summary([{**case, "untried": one} for case, one in zip(cases, untried, strict=True)])
    assert counts(found["repaired"]) == {"control": (0, 4), "remedy": (3, 4), "random": (1, 4)}
    assert counts(found["untried"]) == {"first": (1, 2), "remedies": (2, 4), "random": (1, 4)}
    assert counts(found["beyond"]) == {"control": (0, 2), "remedy": (0, 2), "random": (0, 2)}
    assert counts(found["worse"]) == {"remedy": (0, 3), "random": (1, 3)}
    assert found["cost"] == {"runs": 3.0, "time": [3.0, 3.0, 3.0]}


def counts(shares: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {name: (share["hits"], share["of"]) for name, share in shares.items()}


def test_a_contestant_that_does_not_beat_the_control_is_not_chosen() -> None:
    """Means 0.5 of the control, 0.45 and 0.5 of the others; then 0.55 of one."""
    one, other = Remedy("a", {"optimizer.lr": 1.0}), Remedy("b", {"optimizer.lr": 2.0})
    accuracy = {CONTROL: [0.4, 0.6], "a": [0.3, 0.6], "b": [0.5, 0.5]}
    assert best([one, other], accuracy) is None
    assert best([], accuracy) is None
    assert best([one, other], {**accuracy, "b": [0.5, 0.6]}) == other


def test_one_case_from_its_cause_to_a_net_that_learns() -> None:
    """Weights of 0 on blobs: the control stays at a guess in every seed, the remedy learns in the seeds that did not choose it."""
    group = next(group for group in groups() if group.name == "blobs: broken")
    patient = patients([row(group.name, "all weights 0", "init of zeros", [0.33], [["no_gradient"]])])[0]
    found = tried(patient, seed=7, seeds=2, most=2)
    assert found["control"] == pytest.approx([1 / 3, 1 / 3], abs=0.02)
    assert min(found["remedy"]["accuracy"]) >= group.floor
    assert trained(patient.spec(0), [Remedy(CONTROL, {})], seeds=1)[CONTROL] == [pytest.approx(1 / 3, abs=0.02)]


def test_where_every_run_diverges_none_has_learned() -> None:
    group = next(group for group in groups() if group.name == "digits: broken")
    patient = patients([row(group.name, "lr × 3000", "lr too high", [0.0], [["rate_too_high"]])])[0]
    assert trained(patient.spec(0), [Remedy("faster", {"optimizer.lr": 1e30})], seeds=2) == {"faster": [0.0, 0.0]}
