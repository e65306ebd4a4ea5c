"""What is unusual in a spec is given back, whatever the symptom: one number in ten thousand is found, and nothing is found in what is usual."""

import json
from typing import Any

import pytest

from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse
from regtrain.contract.remedies import Remedy, remedies
from regtrain.contract.remedies.remedy import Case
from regtrain.contract.remedies.unusual import given_back, recipe
from regtrain.contract.variants import Variant, spec_of

USUAL: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.3, "standardize": True},
    "model": {"kind": "mlp", "hidden": [32, 32, 32], "activation": "relu", "init": {"kind": "he_normal"}},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "adam", "lr": 0.01},
    "budget": {"epochs": 14, "batch_size": 64},
}
SGD: dict[str, Any] = {"optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}}


def case(*changes: dict[str, Any]) -> Case:
    spec = parse(json.dumps(USUAL))
    for one in changes:
        spec = spec_of(spec, Variant(label="-", set=one))
    facts = facts_of(spec.dataset)
    assert facts is not None
    return Case(spec, facts, None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**SGD, "optimizer.momentum": 0.99},
        {**SGD, "optimizer.lr": 1.0, "optimizer.nesterov": True},
        {"optimizer.eps": 0.1},
        {"optimizer.schedule": {"kind": "cosine", "warmup_steps": 60}},
        {"optimizer.schedule": {"kind": "step", "every": 100, "factor": 0.1}},
        {"clip": {"kind": "global_norm", "max": 0.1}},
        {"regularizers": [{"kind": "dropout", "rate": 0.5}, {"kind": "max_norm", "max": 3.0}, {"kind": "l2", "lambda": 0.1}, {"kind": "weight_decay", "lambda": 1.0}]},
        {"model": {"kind": "linear"}, "regularizers": [{"kind": "l2", "lambda": 100.0}]},
        {"model.init": {"kind": "normal", "std": 0.01}},
        {"budget.batch_size": "all"},
        {"budget.batch_size": 2},
    ],
    ids=str,
)
def test_nothing_is_unusual_in_what_nets_are_trained_with(changes: dict[str, Any]) -> None:
    assert list(given_back(case(changes))) == []


@pytest.mark.parametrize(
    ("changes", "back"),
    [
        ({"optimizer.eps": 1e4}, {"optimizer.eps": 1e-8}),
        ({"optimizer.lr": 3.0}, {"optimizer.lr": 0.01}),  # 14 epochs of 20 updates: 4/280 is above 0.01
        ({"optimizer.lr": 3.0, "budget.epochs": 140}, {"optimizer.lr": 0.0014}),  # 4/2800
        ({"optimizer.beta1": 0.9999}, {"optimizer.beta1": 0.9}),
        ({**SGD, "optimizer.lr": 1e-9}, {"optimizer.lr": 0.01}),
        ({**SGD, "optimizer.momentum": 0.9999}, {"optimizer.momentum": 0.9}),
        ({"optimizer.schedule": {"kind": "step", "every": 5, "factor": 1e-4}}, {"optimizer.schedule": {"kind": "constant"}}),
        ({"optimizer.schedule": {"kind": "constant", "warmup_steps": 1000}}, {"optimizer.schedule": {"kind": "constant"}}),
        ({"clip": {"kind": "global_norm", "max": 1e-6}}, {"clip": None}),
        ({"regularizers": [{"kind": "early_stopping"}, {"kind": "dropout", "rate": 0.9}]}, {"regularizers": [{"kind": "early_stopping"}]}),
        ({"regularizers": [{"kind": "max_norm", "max": 1e-4, "on": ["layers.1"]}]}, {"regularizers": []}),
        ({"regularizers": [{"kind": "box", "low": 0.0, "high": 0.0, "on": ["layers.2"]}]}, {"regularizers": []}),
        ({"regularizers": [{"kind": "l2_ball", "radius": 1e-3}]}, {"regularizers": []}),
        ({"regularizers": [{"kind": "l1", "lambda": 10.0}, {"kind": "l2", "lambda": 0.1}]}, {"regularizers": [{"kind": "l2", "lambda": 0.1}]}),
        ({"model.init": {"kind": "zeros"}}, {"model.init": {"kind": "he_normal"}}),
        ({"model.init": {"kind": "he_uniform", "scale": 30.0}}, {"model.init.scale": 1.0}),
        ({"budget": {"epochs": 1, "batch_size": 1}}, {"budget.batch_size": 32, "budget.epochs": 31}),  # 1258 updates, 40 an epoch
    ],
    ids=str,
)
def test_one_number_that_is_orders_of_magnitude_off_is_given_back_and_nothing_else(changes: dict[str, Any], back: dict[str, Any]) -> None:
    broken = case(changes)
    (found,) = given_back(broken)
    assert same(broken, found.set, back)
    for symptom in ("plateau", "saturated", "no_change", "overfitting"):  # whichever was named
        assert found.set in [remedy.set for remedy in remedies(broken.spec, broken.facts, symptom)]


def same(broken: Case, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return spec_of(broken.spec, Variant(label="-", set=one)) == spec_of(broken.spec, Variant(label="-", set=other))


def test_all_that_is_unusual_at_once_comes_first_then_what_is_furthest_off() -> None:
    broken = case({"optimizer.eps": 1e4, "clip": {"kind": "global_norm", "max": 1e-3}, "regularizers": [{"kind": "dropout", "rate": 0.9}, {"kind": "l2", "lambda": 100.0}]})
    together, *single = given_back(broken)
    assert together.set == {"optimizer.eps": 1e-8, "clip": None, "regularizers": []}
    assert [one.label for one in single] == ["eps 1e-08", "no l2", "no clip", "no dropout"]  # 4, 2, 1 and log₁₀ 5 orders
    assert [one.label for one in remedies(broken.spec, broken.facts, "plateau")[:2]] == [together.label, "eps 1e-08"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.hidden": [8] * 12, "model.activation": "sigmoid", "dataset.standardize": False},
        {"model": {"kind": "cnn", "channels": [4]}, **SGD},
        {"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8]}},
        {"model": {"kind": "linear"}, "regularizers": [{"kind": "l1", "lambda": 1.0}]},
        {"budget": {"epochs": 1, "batch_size": 1}, "model.normalization": {"kind": "layer"}},
    ],
    ids=str,
)
def test_the_recipe_of_every_family_is_the_last_candidate_and_leaves_nothing_unusual(changes: dict[str, Any]) -> None:
    broken = case(changes)
    last = remedies(broken.spec, broken.facts, "plateau")[-1]
    assert last == next(recipe(broken))
    assert list(given_back(Case(spec_of(broken.spec, Variant(label="-", set=last.set)), broken.facts, None))) == []


def test_a_net_that_learned_is_not_given_another_recipe() -> None:
    sound = case()
    assert "recipe" not in [remedy.label for remedy in remedies(sound.spec, sound.facts, "overfitting")]
    assert isinstance(next(recipe(sound)), Remedy)
