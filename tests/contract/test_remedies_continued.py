"""Remedies for a run that goes on from its own weights: surgery where the net allows it, and nothing that would change the function that the weights were trained for."""

import json
from typing import Any

import pytest

from regtrain.contract.datasets import Facts, facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import parse, resolved
from regtrain.contract.plan import plan
from regtrain.contract.remedies import MOST, Patient, Remedy, candidates_for, going_on, patient, request_of, trial_of
from regtrain.contract.symptoms import SymptomName

DYING: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16, 16, 16], "activation": "relu"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.3},
    "budget": {"epochs": 2, "batch_size": 64},
}
CONTINUE = request_of(b'{"continue": true}')


def ill(*shown: SymptomName, symptom: SymptomName | None = None, refit: bool = False, **changes: Any) -> tuple[Patient, Facts]:
    spec = parse(json.dumps({**DYING, **changes}))
    facts = facts_of(spec.dataset)
    assert facts is not None
    return patient("job_1", spec, symptom or (shown[0] if shown else None), variant=None, values={}, run=3, shown=frozenset(shown), refit=refit), facts


def proposed(*shown: SymptomName, **changes: Any) -> list[Remedy]:
    of, facts = ill(*shown, **changes)
    return candidates_for(going_on(of), facts)


def kinds(remedies: list[Remedy]) -> list[list[str]]:
    return [[operation["kind"] for operation in remedy.set["begin.surgery"]] for remedy in remedies if remedy.continues]


def test_dead_units_are_revived_as_they_are_and_with_calmer_steps() -> None:
    found = proposed("dead_units")
    assert kinds(found) == [["revive"]] * 3
    assert found[1].set["optimizer.lr"] == pytest.approx(0.03)
    assert found[2].set["clip"] == {"kind": "global_norm", "max": 1.0}
    assert all(remedy.why.startswith("continues what was learned: ") for remedy in found[:3])
    assert found[0].expects == {"activation/silent": "down"}


def test_units_that_may_be_dead_are_revived_behind_what_was_seen() -> None:
    """What brings dead units about comes before they are counted; a net that stands still is uneven before it is dead."""
    assert kinds(proposed("rate_too_high")) == [["revive"]] * 3
    assert kinds(proposed("exploding_gradient")) == [["rescale"], ["rescale"], ["rebalance"], ["revive"], ["revive"], ["revive"]]
    assert kinds(proposed("dead_units", "exploding_gradient")) == [["revive"], ["revive"], ["revive"], ["rescale"], ["rescale"], ["rebalance"]]
    assert kinds(proposed("plateau")) == [["rescale"], ["rescale"], ["rebalance"]]


def test_without_a_symptom_of_its_own_it_gets_the_remedies_of_its_cause() -> None:
    labels = [remedy.label for remedy in proposed("vanishing_signal")]
    assert labels[:3] == ["rescale", "rescale, adam", "rebalance"]
    assert {"adam", "lr × 10"} <= set(labels)


@pytest.mark.parametrize("symptom", ["vanishing_signal", "exploding_signal", "exploding_gradient", "vanishing_gradient"])
def test_uneven_signals_are_rescaled_and_rebalanced(symptom: SymptomName) -> None:
    for activation in ("leaky_relu", "identity"):
        assert kinds(proposed(symptom, model={**DYING["model"], "activation": activation}))[:3] == [["rescale"], ["rescale"], ["rebalance"]]
    assert ["rescale"] in kinds(proposed(symptom))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"kind": "linear"}},
        {"model": {**DYING["model"], "activation": "tanh"}},
        {"model": {**DYING["model"], "normalization": {"kind": "batch"}}},
        {"model": {**DYING["model"], "residual": True}},
        {"model": {"kind": "rnn", "hidden": [6], "cell": "relu", "sequence": [8, 8]}},
        {"regularizers": [{"kind": "max_norm", "max": 3.0}]},
    ],
)
def test_no_surgery_where_it_would_change_the_function(changes: dict[str, Any]) -> None:
    assert kinds(proposed("dead_units", "vanishing_gradient", **changes)) == []


def test_beside_surgery_nothing_touches_model_or_columns() -> None:
    for symptom in ("dead_units", "plateau", "vanishing_gradient", "oscillating", "overfitting"):
        found = proposed(symptom)
        assert 2 <= len(found) <= MOST
        assert any(not remedy.continues for remedy in found), symptom
        assert {path.split(".")[0] for remedy in found for path in remedy.set} <= {"begin", "optimizer", "clip", "regularizers", "budget", "loss", "dtype"}


def test_a_job_that_draws_its_weights_is_offered_none_and_one_that_does_not_keeps_its_shapes() -> None:
    of, facts = ill("dead_units")
    assert kinds(candidates_for(of, facts)) == []
    begun, facts = ill("dead_units", begin={"job": "job_0"})
    found = candidates_for(begun, facts)
    assert found
    assert kinds(found) == []
    assert not any(path.startswith(("model", "dataset")) for remedy in found for path in remedy.set)


def test_all_contestants_go_on_from_the_weights_of_the_same_run() -> None:
    of, facts = ill("dead_units")
    trial, _ = trial_of(going_on(of), facts, CONTINUE)
    assert resolved(trial)["begin"] == {"job": "job_1", "run": 3, "sha256": None, "surgery": []}
    control, *others = trial.variants
    assert control.set == {}
    assert not any("begin.run" in variant.set or "begin.job" in variant.set for variant in others)
    assert [variant.set for variant in others[:2]] == [remedy.set for remedy in proposed("dead_units")[:2]]
    assert any(variant.label.startswith("random ") and "begin.surgery" in variant.set for variant in others)


@pytest.mark.parametrize("size", ["all", 1438])
def test_seeds_that_differ_by_nothing_are_no_pairs(size: int | str) -> None:
    """Of 1797 rows a fifth is held out, 359: 1438 train."""
    whole: dict[str, Any] = {"budget": {"epochs": 2, "batch_size": size}}
    of, facts = ill("dead_units", **whole)
    with pytest.raises(SpecRefused, match="every seed is the same run") as refusal:
        trial_of(going_on(of), facts, CONTINUE)
    assert [problem.path for problem in refusal.value.problems] == ["budget.batch_size"]
    trial_of(of, facts, request_of(b""))  # anew they differ by their weights
    dropped, facts = ill("dead_units", **whole, regularizers=[{"kind": "dropout", "rate": 0.2}])
    assert trial_of(going_on(dropped), facts, CONTINUE)[0].begin is not None
    smaller, facts = ill("dead_units", budget={"epochs": 2, "batch_size": 1437})
    assert trial_of(going_on(smaller), facts, CONTINUE)[0].begin is not None
    idle, facts = ill("dead_units", **whole, regularizers=[{"kind": "dropout", "rate": 0.0}])
    with pytest.raises(SpecRefused, match="every seed is the same run"):
        trial_of(going_on(idle), facts, CONTINUE)


def test_weights_that_have_seen_all_rows_cannot_be_compared() -> None:
    for of, _ in (ill("dead_units", dataset={"kind": "digits"}), ill("dead_units", refit=True)):
        with pytest.raises(SpecRefused, match="none is left on which") as refusal:
            going_on(of)
        assert [problem.path for problem in refusal.value.problems] == ["continue"]


@pytest.mark.parametrize(
    ("shown", "left"),
    [
        (("exploding_signal", "dead_units"), "dead_units"),
        (("rate_too_high", "dead_units"), "dead_units"),
        (("rate_too_high", "plateau"), "rate_too_high"),
        (("vanishing_signal", "plateau"), None),
        (("poor_first_loss",), None),
        (("plateau",), "plateau"),
    ],
)
def test_what_is_to_be_cured_is_what_the_weights_have_kept(shown: tuple[SymptomName, ...], left: SymptomName | None) -> None:
    of, facts = ill(*shown)
    trial, warnings = trial_of(going_on(of), facts, CONTINUE)
    assert trial.trial is not None
    assert trial.trial.symptom == left
    assert ("trial.symptom" in [warned.path for warned in warnings]) is (left != shown[0])


def test_what_only_initial_weights_can_show_cannot_be_asked_for() -> None:
    of, _ = ill("dead_units", symptom="vanishing_signal")
    with pytest.raises(SpecRefused, match="before the first update"):
        going_on(of, "vanishing_signal")
    assert going_on(of, "plateau").symptom == "plateau"


def test_the_plan_of_a_job_that_begins_from_weights_predicts_no_initial_signal() -> None:
    of, facts = ill("dead_units")
    assert plan(of.spec, facts).signal is not None
    assert plan(going_on(of).spec, facts).signal is None
