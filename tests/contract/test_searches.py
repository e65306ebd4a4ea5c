"""Ranges whose values are found by training, variants, nested folds: what is refused and at which path, and which runs they make."""

import json
from typing import Any

import pytest
from contract_specs import GOOD, changed

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import origin, parse, resolved
from regtrain.contract.plan import plan
from regtrain.contract.runs import count, expand

LINEAR: dict[str, Any] = {
    "dataset": {"kind": "diabetes"},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "optimizer": {"kind": "proximal"},
    "budget": {"batch_size": "all"},
    "regularizers": [{"kind": "l1", "lambda": {"path": 5}}],
    "selection": {"folds": 3},
}
SEARCH: dict[str, Any] = {**LINEAR, "regularizers": [{"kind": "l1", "lambda": {"suggest": [1e-3, 1], "log": True}}], "selection": {"folds": 3, "trials": 4}}


def refused(body: dict[str, Any]) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecRefused) as refusal:
        accepted(body)
    return [(problem.path, problem.message, problem.hint) for problem in refusal.value.problems]


def accepted(body: dict[str, Any]) -> None:
    spec = parse(json.dumps(body))
    facts = facts_of(spec.dataset)
    assert facts is not None
    check(spec, facts)


@pytest.mark.parametrize(
    ("base", "changes", "path", "words"),
    [
        (LINEAR, {"regularizers": [{"kind": "l2", "lambda": {"path": 5}}]}, "regularizers.0.lambda", "λ_max"),
        (LINEAR, {"optimizer": {"kind": "sgd", "lr": {"path": 5}}, "regularizers": []}, "optimizer.lr", "λ_max"),
        (LINEAR, {"model": {"kind": "mlp", "hidden": [4]}}, "regularizers.0.lambda", "linear models alone"),
        (LINEAR, {"regularizers": [{"kind": "l1", "lambda": {"path": 5}, "on": "all"}]}, "regularizers.0.on", "penalised bias"),
        (LINEAR, {"regularizers": [{"kind": "elastic_net", "lambda": {"path": 5}, "l1_ratio": {"values": [0, 1]}}]}, "regularizers.0.l1_ratio", "share of L1"),
        (LINEAR, {"regularizers": [{"kind": "l1", "lambda": {"path": 5}}, {"kind": "l1", "lambda": 1}]}, "regularizers.0.lambda", "another penalty"),
        (LINEAR, {"regularizers": [{"kind": "l1", "lambda": {"path": 1}}]}, "regularizers.0.lambda.path", "greater than or equal to 2"),
        (LINEAR, {"regularizers": [{"kind": "l1", "lambda": {"path": 5, "ratio": 1.0}}]}, "regularizers.0.lambda.ratio", "less than 1"),
        (LINEAR, {"regularizers": [{"kind": "l1", "lambda": {"path": 5, "points": 3}}]}, "regularizers.0.lambda.points", "unknown key"),
        (LINEAR, {"selection": {"outer": 3}}, "selection.outer", "inner ones"),
        (LINEAR, {"selection": {"folds": 400, "outer": 2}}, "selection.outer", "too few rows"),
        (LINEAR, {"selection": {"folds": 3, "warm_start": True}, "regularizers": [{"kind": "l1", "lambda": 1}]}, "selection.warm_start", "not exactly one"),
        (LINEAR, {"selection": {"folds": 3, "trials": 5}}, "selection.trials", "nothing is suggested"),
        (SEARCH, {"selection": {"folds": 3}}, "selection.trials", "how often"),
        (SEARCH, {"selection": {"trials": 3}}, "selection", "validation rows"),
        (SEARCH, {"regularizers": [{"kind": "l1", "lambda": {"suggest": [0, 1], "log": True}}]}, "regularizers.0.lambda", "greater than 0"),
        (SEARCH, {"regularizers": [{"kind": "l1", "lambda": {"suggest": [2, 1]}}]}, "regularizers.0.lambda", "below the high end"),
        (SEARCH, {"regularizers": [{"kind": "l1", "lambda": {"suggest": [-1, 1]}}]}, "regularizers.0.lambda.suggest.0", "greater than or equal to 0"),
        (SEARCH, {"regularizers": [*SEARCH["regularizers"], {"kind": "l2", "lambda": {"values": [1, 2]}}]}, "regularizers.1.lambda", "do not go together"),
        (SEARCH, {"regularizers": [{"kind": "l1", "lambda": {"sugest": [0, 1]}}]}, "regularizers.0.lambda.sugest", "unknown key"),
        (LINEAR, {"variants": [{"label": "a", "set": {"model.hiden": [3]}}]}, "variants.0.set.model.hiden", "unknown key"),
        (LINEAR, {"variants": [{"label": "a", "set": {"optimizer.accelerated.deep": 1}}]}, "variants.0.set", "no 'deep'"),
        (LINEAR, {"variants": [{"label": "a", "set": {"regularizers.2": {"kind": "l1", "lambda": 1}}}]}, "variants.0.set", "no '2'"),
        (LINEAR, {"variants": [{"label": "a", "set": {"dataset.kind": "iris"}}]}, "variants.0.set.dataset.kind", "cannot change"),
        (LINEAR, {"variants": [{"label": "a", "set": {}}, {"label": "a", "set": {}}]}, "variants.1.label", "stands twice"),
        (LINEAR, {"variants": [{"label": "a", "set": {"model": {"kind": "mlp", "hidden": [3]}}}]}, "variants.0.set.regularizers.0.lambda", "linear models alone"),
        (LINEAR, {"variants": [{"label": "a", "set": {}}, {"label": "b", "set": {"loss.kind": "squared_error"}}]}, "selection.metric", "cannot be compared"),
        (LINEAR, {"variants": [{"label": str(n), "set": {}} for n in range(64)], "selection": {"folds": 50}}, "", "16,320 runs"),
        (LINEAR, {"selection": {"folds": 3, "refit": "some"}}, "selection.refit", "all"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_at_its_path(base: dict[str, Any], changes: dict[str, Any], path: str, words: str) -> None:
    found = refused(base | changes)
    assert path in [at for at, _, _ in found]
    assert any(words in message for at, message, _ in found if at == path), found
    assert all(hint for at, _, hint in found if at == path)


def test_a_path_makes_its_runs_and_refits_all_of_them() -> None:
    spec = parse(json.dumps(LINEAR))
    runs = expand(spec)
    assert len(runs) == count(spec) == 5 * 3 + 5
    assert [run.open for run in runs] == [["regularizers.0.lambda"]] * 20
    assert [(run.point, run.place, run.refit) for run in runs[15:]] == [(n, n, True) for n in range(5)]


def test_variants_come_first_then_grid_then_fold_then_seed() -> None:
    variants = [{"label": "one", "set": {}}, {"label": "two", "set": {"optimizer": {"kind": "lbfgs"}, "regularizers": [{"kind": "l2", "lambda": {"values": [1, 2]}}]}}]
    spec = parse(json.dumps({**LINEAR, "regularizers": [], "variants": variants, "selection": {"folds": 2, "seeds": 2}}))
    found = [(run.variant, run.point, run.fold, run.seed) for run in expand(spec)]
    assert found == [
        *(("one", 0, fold, seed) for fold in (0, 1) for seed in (0, 1)),
        *(("two", point, fold, seed) for point in (1, 2) for fold in (0, 1) for seed in (0, 1)),
        (None, None, None, 0),
    ]
    assert [run.values for run in expand(spec)[4::4]] == [{"regularizers.0.lambda": 1.0}, {"regularizers.0.lambda": 2.0}, {}]
    assert expand(spec)[4].spec.optimizer.kind == "lbfgs"


def test_every_start_of_an_adapting_strength_is_a_run() -> None:
    body = {**LINEAR, "regularizers": [{"kind": "l2", "lambda": {"adapt": "evidence", "start": [0.1, 10]}}], "selection": {}}
    spec = parse(json.dumps(body))
    assert [run.values for run in expand(spec)] == [{"regularizers.0.lambda": 0.1}, {"regularizers.0.lambda": 10}]
    assert origin(body, resolved(spec))["regularizers.0.lambda"] == "searched"


def test_metadata_may_be_called_like_a_range() -> None:
    body = changed({"metadata": {"path": "a", "values": "b"}})
    assert origin(body, resolved(parse(json.dumps(body))))["metadata.path"] == "given"
    assert GOOD is not body


def test_what_is_predicted_of_a_search_is_that_of_its_least_values() -> None:
    body = changed({"regularizers": [{"kind": "dropout", "rate": {"suggest": [0.25, 0.5]}}], "dataset.validation": 0.2, "selection": {"trials": 5}})
    spec, least = parse(json.dumps(body)), parse(json.dumps({**body, "regularizers": [{"kind": "dropout", "rate": 0.25}], "selection": {}}))
    facts = facts_of(spec.dataset)
    assert facts is not None
    assert plan(spec, facts).signal == plan(least, facts).signal
    assert [warned.path for warned in check(spec, facts)] == [warned.path for warned in check(least, facts)]
