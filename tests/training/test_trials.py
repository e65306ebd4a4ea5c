"""Trials of remedies by training: halving over waves of seeds, paired with the control, and the verdict in the result."""

import json
from typing import Any

import numpy as np
import pytest
from training_jobs import run, sgd

from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse, resolved
from regtrain.contract.remedies import patient, request_of, trial_of
from regtrain.contract.states import StopReason
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import signed_rank

BLOBS = {"kind": "blobs", "rows": 120, "centers": 3, "std": 1.0, "validation": 0.4, "standardize": True}
SLOW: dict[str, Any] = {"dataset": BLOBS, "model": {"kind": "linear"}, "loss": {"kind": "cross_entropy"}, "optimizer": sgd(1e-4), "budget": {"epochs": 2, "batch_size": 24}}
FASTER = [{"label": f"lr {lr}", "set": {"optimizer.lr": lr}} for lr in (1e-3, 1e-2, 0.1)]
"""On blobs far apart a linear model, from zero weights, learns more the larger the rate: who wins is known beforehand."""


def tried(body: dict[str, Any], symptom: SymptomName | None = None, **request: Any) -> dict[str, Any]:
    spec = parse(json.dumps(body))
    facts = facts_of(spec.dataset)
    assert facts is not None
    return resolved(trial_of(patient("job_1", spec, symptom, variant=None, values={}), facts, request_of(json.dumps(request).encode()))[0])


@pytest.fixture(scope="module")
def slow() -> Any:
    return run(tried(SLOW, remedies=FASTER))


def test_the_best_rate_is_confirmed_over_eight_pairs(slow: Any) -> None:
    trial = slow.finished.result["trial"]
    assert trial["confirmed"] == "lr 0.1"
    best = next(v for v in trial["verdicts"] if v["label"] == "lr 0.1")
    assert best["pairs"] == 8
    assert best["p"] == 3 / 256  # all eight pairs, the best of three
    assert trial["in_words"].startswith("lr 0.1 is confirmed: loss/val is better than the control's by ")


def test_worse_halves_are_left_out_wave_by_wave(slow: Any) -> None:
    """Of three remedies two go on after two seeds, and one after four; of three random ones as many."""
    spec = tried(SLOW, remedies=FASTER)
    labels = [variant["label"] for variant in spec["variants"]]
    pairs = {v["label"]: v["pairs"] for v in slow.finished.result["trial"]["verdicts"]}
    assert [pairs[f"lr {lr}"] for lr in (0.001, 0.01, 0.1)] == [2, 4, 8]
    assert sorted(pairs[label] for label in labels if label.startswith("random ")) == [2, 4, 8]
    for place, label in enumerate(labels):
        reasons = [slow.runs[place * 8 + seed].stop_reason for seed in range(8)]
        kept = pairs.get(label, 8)
        assert reasons == [StopReason.BUDGET] * kept + [StopReason.PRUNED] * (8 - kept)


def test_the_verdict_follows_from_the_runs(slow: Any) -> None:
    """The control is variant 0, the fastest remedy variant 3: eight runs each, in the order of the seeds."""
    control, best = ([slow.runs[first + seed].metrics["loss/val"] for seed in range(8)] for first in (0, 24))
    gains = (np.array(control) - np.array(best)).tolist()
    trial = slow.finished.result["trial"]
    verdict = next(v for v in trial["verdicts"] if v["label"] == "lr 0.1")
    assert verdict["difference"] == pytest.approx(np.mean(gains))
    assert verdict["p"] == 3 * signed_rank(gains)
    assert trial["control"]["metric"] == pytest.approx(np.mean(control))


def test_contestants_share_seeds_and_rows() -> None:
    """A remedy that changes nothing that counts is the control, bit for bit: no difference, no verdict."""
    same = [{"label": "the same", "set": {"clip": {"kind": "global_norm", "max": 1e9}}}]
    outcome = run(tried(SLOW, remedies=same))
    verdict = outcome.finished.result["trial"]["verdicts"][0]
    assert (verdict["difference"], verdict["p"], verdict["verdict"]) == (0.0, 1.0, "not_better")
    for seed in range(8):
        np.testing.assert_array_equal(outcome.curve("loss/val", seed), outcome.curve("loss/val", 8 + seed))


def test_for_a_job_that_is_well_as_it_is_no_remedy_helps() -> None:
    """Ordinary least squares of a noisy line from 80 rows, at a rate of its own scale: what is proposed at random ends no better on rows that it has not seen."""
    worse = [{"label": f"λ {lam}", "set": {"regularizers.0": {"kind": "l2", "lambda": lam}}} for lam in (1.0, 10.0)]
    line = {"kind": "linear", "rows": 160, "coefficients": [2.0, -1.0], "noise": 0.1, "validation": 0.5}
    well = {"dataset": line, "model": {"kind": "linear"}, "loss": {"kind": "half_squared_error"}, "optimizer": sgd(0.1), "budget": {"epochs": 40, "batch_size": 16}}
    trial = run(tried(well, remedies=worse)).finished.result["trial"]
    assert trial["confirmed"] is None
    assert trial["in_words"].startswith("No remedy helps: none has a better loss/val than the control over 8 paired seeds")


def test_a_control_that_diverges_is_cured_by_smaller_steps() -> None:
    """Full-batch descent on a quadratic diverges above 2/λ_max, so at 1e4 with every seed, and not at 0.1."""
    line = {"kind": "linear", "rows": 60, "coefficients": [2.0], "noise": 0.1, "validation": 0.3}
    wild = {"dataset": line, "model": {"kind": "linear"}, "loss": {"kind": "half_squared_error"}, "optimizer": sgd(1e4), "budget": {"epochs": 120, "batch_size": "all"}}
    outcome = run(tried(wild, "non_finite", remedies=[{"label": "lr 0.1", "set": {"optimizer.lr": 0.1}}]))
    trial = outcome.finished.result["trial"]
    assert trial["control"] == {"label": "as it is", "metric": None, "shown": 1.0}
    assert trial["confirmed"] == "lr 0.1"
    assert "non_finite is gone and loss/val is better than the control's where the control diverges over 8 paired seeds" in trial["in_words"]


# ---------------------------------------------------------------- in turn

UPHILL = [{"label": "lr 1e-05", "set": {"optimizer.lr": 1e-5}}, *FASTER]
"""The first learns less than the control."""


@pytest.fixture(scope="module")
def turns() -> Any:
    return run(tried(SLOW, remedies=UPHILL, order="in_turn"))


def test_in_turn_the_first_that_is_confirmed_is_the_last_that_is_tried(turns: Any) -> None:
    """Two runs of the first, which is worse with the first quarter of the seeds, and eight of the second; those drawn at random share ten at most."""
    trial = turns.finished.result["trial"]
    verdicts = {v["label"]: v for v in trial["verdicts"]}
    assert [verdicts[remedy["label"]]["verdict"] for remedy in UPHILL] == ["left_out", "confirmed", "not_tried", "not_tried"]
    assert [verdicts[remedy["label"]]["pairs"] for remedy in UPHILL] == [2, 8, 0, 0]
    assert verdicts["lr 0.001"]["p"] == 4 / 256  # all eight pairs, the only one of four
    assert trial["confirmed"] == "lr 0.001"
    assert "over 8 paired seeds (p = 0.016); 2 remedies were not tried." in trial["in_words"]
    assert 2 <= sum(v["pairs"] for label, v in verdicts.items() if label.startswith("random ")) <= 10
    for place, label in enumerate(["as it is", *verdicts]):
        reasons = [turns.runs[place * 8 + seed].stop_reason for seed in range(8)]
        kept = verdicts[label]["pairs"] if label in verdicts else 8
        assert reasons == [StopReason.BUDGET] * kept + [StopReason.PRUNED] * (8 - kept)


def test_the_order_changes_who_trains_and_no_run(turns: Any, slow: Any) -> None:
    """`lr 0.001` is variant 2 of the one trial and 1 of the other: the same curves where both have trained it, and the same control."""
    for seed in range(8):
        np.testing.assert_array_equal(turns.curve("loss/val", seed), slow.curve("loss/val", seed))
    for seed in range(2):
        np.testing.assert_array_equal(turns.curve("loss/val", 16 + seed), slow.curve("loss/val", 8 + seed))


DEEP: dict[str, Any] = {
    "dataset": {"kind": "blobs", "rows": 200, "std": 2.0, "standardize": True},
    "model": {"kind": "mlp", "hidden": [16] * 8, "activation": "sigmoid"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": sgd(0.1),
    "budget": {"epochs": 10, "batch_size": 32},
}
"""Eight sigmoids with torch's own init: by theory the first layer gets 1e-6 of the last one's signal gradient."""


def test_one_seed_is_enough_for_a_quick_repair_and_a_run_that_shows_the_symptom_stops_there() -> None:
    """Ten epochs of 160 rows in batches of 32 are 50 updates. That the signal vanishes, of the control and of the first remedy, is seen after the first one; the one
    that helps has them all, and one behind it is never begun."""
    own = [
        {"label": "slower", "set": {"optimizer.lr": 0.01}},
        {"label": "relu", "set": {"model.activation": "relu", "model.init": {"kind": "he_normal"}}},
        {"label": "tanh", "set": {"model.activation": "tanh"}},
    ]
    outcome = run(tried(DEEP, "vanishing_signal", remedies=own, order="in_turn", seeds=1))
    assert [(outcome.runs[n].stop_reason, outcome.runs[n].steps) for n in range(4)] == [
        (StopReason.SYMPTOM, 1), (StopReason.SYMPTOM, 1), (StopReason.BUDGET, 50), (StopReason.PRUNED, 0),
    ]  # fmt: skip
    trial = outcome.finished.result["trial"]
    assert [v["verdict"] for v in trial["verdicts"]] == ["symptom_stays", "helps", "not_tried"]
    assert (trial["confirmed"], trial["helps"]) == (None, "relu")
    gain = outcome.runs[0].metrics["loss/val"] - outcome.runs[2].metrics["loss/val"]
    assert trial["verdicts"][1]["difference"] == pytest.approx(gain)
    assert gain > 0.5  # of ln 3 = 1.1


def test_a_control_that_is_known_is_not_trained_again() -> None:
    """The job's own run is what the control would be: the same verdict as with it, at the cost of the remedy alone."""
    own = [{"label": "relu", "set": {"model.activation": "relu", "model.init": {"kind": "he_normal"}}}]
    body = tried({**DEEP, "dataset": {**DEEP["dataset"], "validation": 0.2}}, "vanishing_signal", remedies=own, order="in_turn", seeds=1)
    whole = run(body)
    reached = whole.runs[0].metrics["loss/val"]
    outcome = run({**body, "trial": {**body["trial"], "known": {"metric": reached, "shown": True}}})
    assert [outcome.runs[n].stop_reason for n in range(2)] == [StopReason.PRUNED, StopReason.BUDGET]
    assert outcome.finished.result["trial"] == whole.finished.result["trial"]
    assert outcome.finished.result["chosen_run"] == 1


def test_remedies_that_all_diverge_beside_a_known_control_are_a_verdict_and_no_failure() -> None:
    wild = [{"label": "wild", "set": {"model.activation": "relu", "model.init": {"kind": "he_normal"}, "optimizer.lr": 1e30}}]
    body = tried({**DEEP, "dataset": {**DEEP["dataset"], "validation": 0.2}}, "vanishing_signal", remedies=wild, order="in_turn", seeds=1)
    outcome = run({**body, "trial": {**body["trial"], "known": {"metric": None, "shown": True}}})
    trial = outcome.finished.result["trial"]
    assert outcome.finished.result["chosen_run"] is None
    assert trial["control"] == {"label": "as it is", "metric": None, "shown": 1.0}
    assert [v["verdict"] for v in trial["verdicts"]] == ["not_better"]
    assert trial["in_words"] == "No remedy helps: none rids the job of vanishing_signal and has a better loss/val than the control with the same seed."


def test_what_is_not_shown_is_not_repaired() -> None:
    trial = run(tried(SLOW, "overfitting", remedies=FASTER, order="in_turn", seeds=2)).finished.result["trial"]
    assert [v["verdict"] for v in trial["verdicts"]] == ["not_tried"] * 3
    assert trial["in_words"].startswith("Nothing to cure: with none of 2 seeds")
