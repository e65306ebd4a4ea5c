"""A strength that adapts: what is refused at which path, what is warned of, and what its runs are."""

import json
from typing import Any

import pytest
from contract_specs import LINEAR, accept, changed, refused

from regtrain.contract.job import parse
from regtrain.contract.ranges import Adapt, concrete
from regtrain.contract.runs import expand

L2 = {"kind": "l2", "lambda": {"adapt": "evidence", "start": 1.0}}
DOWNHILL = {"kind": "l2", "lambda": {"adapt": "validation_gradient", "start": [1.0, 10.0]}}
START: dict[str, Any] = {**LINEAR, "regularizers": [L2], "optimizer": {"kind": "sgd", "lr": 0.1}}
NET = {"dataset": {"kind": "digits", "validation": 0.2}, "model": {"kind": "mlp", "hidden": [4]}, "loss": {"kind": "cross_entropy"}, "budget": {"epochs": 200}}

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"regularizers.0": {"kind": "l1", "lambda": {"adapt": "evidence"}}}, "regularizers.0.lambda", "only the strength of l2", '"log"'),
    ({"optimizer.lr": {"adapt": "evidence"}}, "optimizer.lr", "only the strength of l2", '"log"'),
    ({"regularizers.1": {"kind": "dropout", "rate": {"adapt": "evidence", "start": 0.5}, "on": "inputs"}}, "regularizers.1.rate", "only the strength of l2", '"log"'),
    ({"regularizers.0.lambda.start": 0.0}, "regularizers.0.lambda.start", "0 has none", "start large"),
    ({"regularizers.0.lambda.start": [1.0, 0.0]}, "regularizers.0.lambda.start", "0 has none", "start large"),
    ({"regularizers.0.lambda.start": []}, "regularizers.0.lambda.start", "at least 1 item", "give at least 1"),
    ({"regularizers.0.lambda.start": [1.0, -1.0]}, "regularizers.0.lambda.start.1", "found -1", "inside the bounds"),
    ({"regularizers.0.lambda.start": "large"}, "regularizers.0.lambda.start", "a number or a list", "catalog"),
    ({"model": {"kind": "mlp", "hidden": [4], "reparametrization": {"kind": "weight_norm"}}}, "regularizers.0.lambda.adapt", "curvature of single weights", "validation_gradient"),
    ({"regularizers.0.lambda.adapt": "evidance"}, "regularizers.0.lambda.adapt", "'evidence' or 'validation_gradient'", "did you mean 'evidence'?"),
    ({"regularizers.0.lambda": {"adept": "evidence"}}, "regularizers.0.lambda.adept", "unknown key", "did you mean 'adapt'?"),
    ({"regularizers.0.lambda.adapt": "validation_gradient"}, "regularizers.0.lambda.adapt", "there are none", "dataset.validation"),
    ({"regularizers.1": {"kind": "l2", "lambda": 0.1, "on": "all"}}, "regularizers.1", "another l2", "different layers"),
    ({"regularizers.1": {"kind": "weight_decay", "lambda": 0.1}}, "regularizers.1", "no smooth part", "leave one"),
    ({"regularizers.1": {"kind": "l1", "lambda": 0.1}}, "regularizers.1", "no smooth part", "leave one"),
    ({"regularizers.1": {"kind": "non_negative"}}, "regularizers.1", "no smooth part", "leave one"),
    ({"dataset.validation": 0.4, "regularizers.1": {"kind": "early_stopping"}}, "regularizers.1", "before its strength has settled", "leave it out"),
    ({"optimizer": {"kind": "lbfgs"}}, "optimizer.kind", "lbfgs remembers", "proximal"),
    ({"optimizer": {"kind": "proximal", "tolerance": 1e-9}}, "optimizer.tolerance", "does not find the next", "the budget"),
    ({"selection": {"rule": "one_standard_error", "folds": 2}}, "selection.rule", "finds itself", "median"),
    ({**NET, "regularizers.0.on": ["layers.0"], "regularizers.1": {**L2, "on": ["head"]}}, "regularizers.1.lambda", "two strengths", "a number"),
    ({**NET, "regularizers.0.on": "all", "model.normalization": {"kind": "layer"}}, "regularizers.0.on", "normalization", '"weights"'),
    (
        {"dataset": {"kind": "adding", "length": 5, "rows": 20}, "loss": {"kind": "squared_error"}, "model": {"kind": "rnn", "hidden": [3]}},
        "regularizers.0.lambda", "recurrent", '"log"',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "message", "hint"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_it_is_refused_where_it_was_written(changes, path, message, hint):
    problems = refused(json.dumps(changed(changes, START)))
    assert [problem.path for problem in problems] == [path], problems
    assert message in problems[0].message
    assert hint in (problems[0].hint or "")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"kind": "proximal"}},
        {"dataset.validation": 0.4, "regularizers.0": DOWNHILL, "budget.epochs": 200},
        {"selection": {"folds": 2}, "regularizers.0": DOWNHILL, "budget.epochs": 200},
        {**NET, "regularizers.1": {"kind": "dropout", "rate": 0.2}},
        {**NET, "regularizers.0.on": ["layers.0"], "regularizers.1": {"kind": "l2", "lambda": {"values": [0.1, 0.2]}, "on": ["head"]}},
        {**NET, "regularizers.0": {**DOWNHILL, "on": "all"}, "model.normalization": {"kind": "batch"}},
    ],
)
def test_it_is_accepted(changes):
    assert not [warning for warning in accept(json.dumps(changed(changes, START))) if "validation_gradient" in warning.message]


def test_few_small_moves_are_warned_of():
    warned = accept(json.dumps(changed({"dataset.validation": 0.4, "regularizers.0": DOWNHILL, "budget.epochs": 20}, START)))
    assert [warning.path for warning in warned if "about 2.72" in warning.message] == ["budget.epochs"]


def test_each_start_is_a_run_that_goes_on_adapting():
    runs = expand(parse(json.dumps(changed({"regularizers.0.lambda.start": [1.0, 10.0]}, START))))
    assert [run.values for run in runs] == [{"regularizers.0.lambda": 1.0}, {"regularizers.0.lambda": 10.0}]
    for run, start in zip(runs, (1.0, 10.0), strict=True):
        lam = run.spec.regularizers[0].lam  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(lam, Adapt)
        assert (lam.starts, concrete(lam)) == ((start,), start)
