"""The bench itself: its truth fits its jobs, its figures are Wilson's, its baselines are the published rules; and a small part of it, trained."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.faults.cases import LOOKED_AT, PROBLEMS, PUBLISHED, Group, groups
from benchmarks.faults.detectors import Verdict, autotrainer, autotrainer_ungated, ours, sagemaker
from benchmarks.faults.records import Record, trained
from benchmarks.faults.score import alarmed, detected, localised, named, scores, wilson
from regtrain.contract.checks import shape_of
from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse
from regtrain.contract.symptoms import BY_NAME
from regtrain.contract.variants import specs_of

GROUPS = list(groups())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_truth_fits_the_job(group: Group) -> None:
    """Every case is a spec that is accepted; what is said to be broken exists."""
    specs = dict(specs_of(parse(json.dumps(group.job(seed=0, seeds=2, diagnostics="full")))))
    assert len(specs) == len(group.cases)
    for case in group.cases:
        facts = facts_of(specs[case.name].dataset)
        assert facts is not None
        if case.truth is not None:
            assert set(case.truth.root) <= BY_NAME.keys()
            assert set(case.truth.layers) <= {layer.name for layer in shape_of(specs[case.name], facts)}


def test_there_are_enough_of_both() -> None:
    """Of seven seeds: 300 sound nets without an alarm would only just show 1 %."""
    cases = [case for group in GROUPS for case in group.cases]
    assert 7 * sum(case.truth is not None for case in cases) >= 600
    assert 7 * sum(case.truth is None for case in cases) >= 600


@pytest.mark.parametrize(("hits", "of"), [(0, 665), (3, 665), (1, 1), (0, 1), (480, 500), (7, 13)])
def test_intervals_are_wilsons(hits: int, of: int) -> None:
    found, theirs = wilson(hits, of), binomtest(hits, of).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def made(accuracy: float, **series: Any) -> Record:
    """A run of a net of three layers that left these series behind; `a__b` stands for a/b."""
    record = Record(GROUPS[0], GROUPS[0].cases[0], 0, layers=["layers.0", "layers.1", "head"], accuracy=accuracy)
    for name, values in series.items():
        record.curves[name.replace("__", "/")] = (np.arange(len(values)), np.array(values, float))
    return record


LEARNS = [0.1, 0.3, 0.5, 0.7]


@pytest.mark.parametrize(
    ("norms", "accuracies", "said"),
    [
        ([[9e-5, 1e-2, 0.1]], LEARNS, ["vanishing_gradient"]),  # ratio 9e-4, and below 1e-4
        ([[2e-4, 1e-2, 10.0]], LEARNS, []),  # ratio 2e-5, but not below 1e-4
        ([[71.0, 5.0, 1.0]], LEARNS, ["exploding_gradient"]),
        ([[1.0, np.nan, 1.0]], LEARNS, ["exploding_gradient"]),
        ([[1.0, 1.0, 1.0]], [0.2, 0.2, 0.2, 0.205], ["plateau"]),
        ([[1.0, 1.0, 1.0]], [0.1, 0.3, 0.2, 0.4, 0.3, 0.5], ["oscillating"]),
    ],
)
def test_autotrainers_rules(norms: Any, accuracies: list[float], said: list[str]) -> None:
    """Its table, by hand; and nothing behind its gate."""
    found = made(0.5, gradient__norm=norms, accuracy__val=accuracies)
    assert [verdict.symptom for verdict in autotrainer_ungated(found)] == said
    assert [verdict.symptom for verdict in autotrainer(found)] == said
    assert autotrainer(replace(found, accuracy=0.6)) == []


def test_sagemakers_rules() -> None:
    falls = [float(0.9**t) for t in range(12)]
    quiet = {"gradient__rms": [[1.0, 1.0, 1.0]] * 12, "update__ratio": [[1e-3] * 3] * 12, "loss__train": falls}
    assert sagemaker(made(0.9, **quiet)) == []
    loud = {"gradient__rms": [[9e-8, 1.0, 1.0]] * 12, "update__ratio": [[11.0] * 3] * 12, "loss__train": [1.0] * 12, "loss__val": [1.2] * 3}
    assert [verdict.symptom for verdict in sagemaker(made(0.9, **loud))] == ["vanishing_gradient", "rate_too_high", "plateau", "overfitting"]


@pytest.mark.parametrize(
    ("losses", "overfits"),
    [
        ([2.0, 1.5, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0], False),
        ([2.0, 1.5, 1.2, 1.0, 1.0, 1.1, 1.18, 1.19], False),  # less than a fifth
        ([2.0, 1.5, 1.2, 1.0, 1.1, 1.2, 1.3, 1.31], True),  # 1.305 against 1 + 3·0.005
        ([2.0, 1.5, 1.2, 1.0, 1.1, 1.2, 1.0, 2.0], False),  # 1.5 against 1 + 3·0.5
        ([1.0, 2.0, 2.0], False),  # too few to say
    ],
)
def test_a_net_that_overfits_is_no_sound_one(losses: list[float], overfits: bool) -> None:
    """Last quarter of eight evaluations: two. One that overfits may be told so, and nothing else."""
    found = made(0.9, loss__val=losses)
    assert found.overfits is overfits
    assert alarmed(found, [Verdict("overfitting", None, 0)]) is not overfits
    assert alarmed(found, [Verdict("overfitting", None, 0), Verdict("plateau", None, 0)])
    assert not alarmed(found, [Verdict("plateau", None, 0, alarm=False)])


def test_what_is_published_was_not_looked_at_while_bounds_were_set() -> None:
    """Another seed of the job: other held-out rows, initial weights and orders of rows."""
    group = next(group for group in GROUPS if group.name == "blobs: sound")
    few = replace(group, cases=group.cases[:1])
    losses = [trained(few, seed=seed, seeds=1, diagnostics="off")[0][0].values("loss/val") for seed in (LOOKED_AT, PUBLISHED)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert not np.isin(losses[0], losses[1]).any()


def test_a_small_part_of_it() -> None:
    """Five faults of deep narrow nets and the sound one of their problem, two seeds: all detected, each named; nothing said of the sound ones."""
    by_name = {group.name: group for group in GROUPS}
    broken, sound = by_name["blobs: broken"], by_name["blobs: sound"]
    wanted = ("12 sigmoid layers", "lr × 1e-6", "all weights 0", "L2, λ = 10", "weights × 0.1, 12 layers")
    few = replace(broken, cases=tuple(case for case in broken.cases if case.name in wanted))
    records = [record for group in (few, replace(sound, cases=sound.cases[:2])) for record in trained(group, seed=LOOKED_AT, seeds=2, diagnostics="full")[0]]
    figures = scores(records, ours)
    for record in records:
        if (truth := record.case.truth) is not None:
            assert not record.learned
            assert detected(ours(record)), record.case.name
            assert named(ours(record), truth), (record.case.name, ours(record))
            assert localised(ours(record), truth) or not truth.layers, (record.case.name, ours(record))
    assert (figures["detected"]["share"], figures["false alarms"]["hits"]) == (1.0, 0)
    assert {problem.name for problem in PROBLEMS} == {"digits", "breast cancer", "blobs", "circles"}
