"""Which cases are to be repaired, who judges whom, and one case through remedies and chance."""

import pytest

from benchmarks.faults import quick
from benchmarks.faults.cases import groups
from benchmarks.faults.repair import BEYOND, CONTROL, best, patients, summary, trained, tried
from regtrain.contract.optimizers import Sgd
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
    cost = {"seconds": 6.0, "alone": 2.0, "in_turn": []}
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


# ---------------------------------------------------------------- in turn


def test_a_net_by_itself_is_repaired_with_its_own_seed_and_its_cost_is_what_was_trained() -> None:
    """Weights of 0 on blobs: that units are equal is seen after one update, and the first remedy is trained whole: 13 epochs of 22 batches, 286 updates."""
    patient = patients([row("blobs: broken", "all weights 0", "init of zeros", [0.33], [["no_gradient"]])])[0]
    net = quick.repaired(patient.spec(7))
    assert (net["seed"], net["symptom"], net["stopped"], net["updates"]) == (7, "equal_units", 1, 286)
    assert net["control"] == pytest.approx(1 / 3, abs=0.02)
    assert net["remedy"]["accuracy"] >= patient.group.floor
    assert (net["remedy"]["tried"], net["remedy"]["updates"]) == (1, 287)
    assert net["random"]["tried"] <= 1
    assert net["remedy"]["seconds"] > 0


def test_a_spec_that_the_service_refuses_is_no_job_to_repair() -> None:
    refused, taken = (patients([row("blobs: broken", name, "a kind", [0.0], [["plateau"]])])[0] for name in ("squared error on labels", "lr × 300"))
    assert quick.refused(refused.spec(0))
    assert not quick.refused(taken.spec(0))


def test_over_eight_seeds_runs_are_counted_beside_those_of_all_together() -> None:
    """One remedy that is confirmed, and one random change: 8 + 8 + 8 at most; together it is the same."""
    patient = patients([row("blobs: broken", "norms of layers.1 at most 1e-4", "one layer held at 0", [0.33], [["penalty_dominates"]])])[0]
    spec = patient.spec(7).model_copy(update={"optimizer": Sgd(kind="sgd", lr=0.05, momentum=0.9)})
    found = quick.confirmed(spec, "penalty_dominates", None)
    assert found["confirmed"] == "no max_norm"
    assert (found["runs"], found["together"]) == (16, 16)
    assert [quick.halved(n) for n in (0, 1, 2, 3, 6)] == [0, 8, 10, 14, 26]  # 6: 12 + 6 + 8


def net(control: float, remedy: float, random: float, *, symptom: str | None = "plateau", updates: int | None = 100) -> dict[str, object]:
    one = {"label": "a", "tried": 2, "updates": 130, "seconds": 3.0}
    seconds = None if updates is None else 2.0
    return {
        "symptom": symptom,
        "control": control,
        "stopped": 30,
        "updates": updates,
        "seconds": seconds,
        "remedy": {**one, "accuracy": remedy},
        "random": {**one, "accuracy": random},
    }


def test_nets_are_counted_one_by_one_and_the_cost_of_those_that_were_diagnosed() -> None:
    """Three nets of two cases within: one learned as it is and has no symptom; one of them diverged as it is, so that there is nothing to divide by."""
    rows = [
        {"kind": "lr too high", "floor": 0.8, "in_turn": [net(0.3, 0.9, 0.2), net(0.9, 0.9, 0.9, symptom=None)], "eight": {"runs": 18, "together": 40, "confirmed": "a"}},
        {"kind": "λ too strong", "floor": 0.8, "in_turn": [net(0.0, 0.7, 0.9, updates=None)], "eight": {"runs": 10, "together": 20, "confirmed": None}},
        {"kind": "label noise", "floor": 0.8, "in_turn": [net(0.3, 0.2, 0.2)], "eight": None},
    ]
    found = quick.summary(rows, beyond=BEYOND)
    assert (found["cases"], found["nets"]) == (3, 4)
    assert counts(found["learned"]) == {"control": (1, 3), "remedy": (2, 3), "random": (2, 3)}
    assert counts(found["learned, diagnosed"]) == {"control": (0, 2), "remedy": (1, 2), "random": (1, 2)}
    assert (found["diagnosed"]["hits"], found["diagnosed"]["of"]) == (2, 2)
    assert counts(found["worse"]) == {"remedy": (1, 4), "random": (2, 4)}
    assert counts(found["worse cases"]) == {"remedy": (1, 3), "random": (2, 3)}
    assert found["cost"]["remedy"] == {"updates": [1.3, 1.3], "seconds": [1.5, 1.5]}
    assert found["stopped"] == [0.3, 0.3]
    assert found["tried"] == {"remedy": 2.0, "random": 2.0}
    assert (found["eight"]["runs"], found["eight"]["together"]) == (14, 30)
    assert counts({"confirmed": found["eight"]["confirmed"]}) == {"confirmed": (1, 2)}
