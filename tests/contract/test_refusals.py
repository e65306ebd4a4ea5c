"""Wrong specs: each is refused at the exact path that was written, with one problem for each mistake and a hint."""

import json
from typing import Any

import pytest
from contract_specs import INLINE, LINEAR, REMOVED, accept, changed, refused, spec_of

from regtrain.contract.given import MOST_DEPTH
from regtrain.contract.refusals import MOST_PROBLEMS

GROUPED = {**LINEAR, "dataset.groups": ["a", "a", "b", "b", "c"]}
"""Five rows in groups of 2, 2 and 1."""

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    # changes to a good spec, path, part of the message, part of the hint
    ({"optimiser": {}}, "optimiser", "unknown key", "did you mean 'optimizer'?"),
    ({"optimizer.momentun": 0.9}, "optimizer.momentun", "unknown key", "did you mean 'momentum'?"),
    ({"regularizers.0": {"kind": "l1", "lam": 1}}, "regularizers.0.lam", "unknown key", "as in JSON: lambda"),
    ({"regularizers.0": {"kind": "l1", "alpha": 1}}, "regularizers.0.alpha", "unknown key", "called lambda"),
    ({"optimizer": {"kind": "sgd", "learning_rate": 1}}, "optimizer.learning_rate", "unknown key", "called lr"),
    ({"epochs": 3}, "epochs", "unknown key", "budget.epochs"),
    ({"optimizer.weight_decay": 1}, "optimizer.weight_decay", "unknown key", "is a regularizer"),
    ({"optimizer.kind": "sdg"}, "optimizer.kind", "unknown kind 'sdg'", "did you mean 'sgd'?"),
    ({"optimizer.kind": "adamw"}, "optimizer.kind", "unknown kind", '{"kind": "weight_decay"'),
    ({"regularizers.0.kind": "lasso"}, "regularizers.0.kind", "unknown kind", '{"kind": "l1"'),
    ({"loss.kind": "mse"}, "loss.kind", "unknown kind", "squared_error"),
    ({"model.init": {"kind": "he"}}, "model.init.kind", "unknown kind", "he_uniform, he_normal"),
    ({"loss": {}}, "loss.kind", "the kind is missing", "one of squared_error"),
    ({"regularizers.0": {"lambda": 1}}, "regularizers.0.kind", "the kind is missing", "one of l1, l2"),
    ({"loss": "cross_entropy"}, "loss", "expected an object", '{"kind": "cross_entropy"}'),
    ({"model.normalization": "batch"}, "model.normalization", "expected an object", '{"kind": "batch"}'),
    ({"dataset": REMOVED}, "dataset", "required", 'add "dataset"'),
    ({"regularizers.0": {"kind": "l1"}}, "regularizers.0.lambda", "required", 'add "lambda"'),
    ({"optimizer.lr": REMOVED}, "optimizer.lr", "required", 'add "lr"'),
    ({"optimizer.schedule": {"kind": "step"}}, "optimizer.schedule.every", "required", 'add "every"'),
    ({"optimizer.lr": "0.1"}, "optimizer.lr", 'expected a number, found "0.1"', "without quotes"),
    ({"optimizer.lr": True}, "optimizer.lr", "found true", "not numbers"),
    ({"optimizer.lr": None}, "optimizer.lr", "found null", "/v1/catalog"),
    ({"optimizer.lr": 0}, "optimizer.lr", "greater than 0", "inside the bounds"),
    ({"optimizer.momentum": 1}, "optimizer.momentum", "less than 1", "inside the bounds"),
    ({"regularizers.0.lambda": -1}, "regularizers.0.lambda", "greater than or equal to 0", "inside the bounds"),
    ({"regularizers.0.lambda": {"values": [0.1, -1]}}, "regularizers.0.lambda.values.1", "found -1", "inside the bounds"),
    ({"regularizers.0.lambda": {"values": [0.1, "1"]}}, "regularizers.0.lambda.values.1", 'found "1"', "without quotes"),
    ({"regularizers.0.lambda": {"values": []}}, "regularizers.0.lambda.values", "at least 1 item, found 0", "give at least 1"),
    ({"regularizers.0.lambda": {"log": [0, 1], "points": 3}}, "regularizers.0.lambda.log.0", "greater than 0", "inside the bounds"),
    ({"regularizers.0.lambda": {"log": [1, 0.1], "points": 3}}, "regularizers.0.lambda", "low end", "low < high"),
    ({"regularizers.0.lambda": {"log": [0.1, 1], "points": 1}}, "regularizers.0.lambda.points", "greater than or equal to 2", "inside the bounds"),
    ({"regularizers.0.lambda": {"log": [0.1, 1]}}, "regularizers.0.lambda.points", "required", 'add "points"'),
    ({"regularizers.0.lambda": {"values": [1], "log": [1, 2]}}, "regularizers.0.lambda.log", "unknown key", "allowed: values"),
    ({"regularizers.0.lambda": {"valeus": [1]}}, "regularizers.0.lambda.valeus", "unknown key", "did you mean 'values'?"),
    ({"regularizers.0.lambda": {}}, "regularizers.0.lambda", "a number or a range", '{"values": […]}'),
    ({"budget.epochs": {"values": [1, 2]}}, "budget.epochs", "found an object", "no range"),
    ({"regularizers.1.rate": 1}, "regularizers.1.rate", "less than 1", "inside the bounds"),
    ({"model.reparametrization": {"kind": "weight"}}, "model.reparametrization.kind", "unknown kind 'weight'", "weight_norm"),
    ({"model.reparametrization": "weight_norm"}, "model.reparametrization", "found \"weight_norm\"", '{"kind": "weight_norm"}'),
    ({"model.reparametrization": {"kind": "weight_norm"}, "model.init": {"kind": "zeros"}}, "model.init.kind", "these are all zero", "he_normal"),
    ({"model.reparametrization": {"kind": "spectral_norm"}, "model.init": {"kind": "lsuv"}}, "model.init.kind", "takes their scale away", "orthogonal"),
    ({"model": {"kind": "rnn", "hidden": [8]}, "regularizers": []}, "model.sequence", "rows that are sequences", "digits row by row are [8, 8]"),
    ({"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 7]}, "regularizers": []}, "model.sequence", "56 numbers, a row of the dataset has 64", "[8, 8]"),
    ({"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8], "cell": "elman"}, "regularizers": []}, "model.cell", "'tanh', 'relu', 'identity', 'lstm' or 'gru'", "/v1/catalog"),
    ({"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8], "init": {"kind": "lsuv"}}, "regularizers": []}, "model.init.kind", "at every step", "orthogonal"),
    ({"regularizers.0": {"kind": "vanishing_gradient", "lambda": 1}}, "regularizers.0", "only an rnn has them", '"kind": "rnn"'),
    (
        {"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8], "cell": "gru"}, "regularizers": [{"kind": "vanishing_gradient", "lambda": 1}]},
        "regularizers.0", "in gru cells the gradient has other ways back", '"cell": "tanh"',
    ),
    (
        {"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8]}, "regularizers": [{"kind": "vanishing_gradient", "lambda": 1}] * 2},
        "regularizers.1", "stands twice", "keep one",
    ),
    (
        {"model": {"kind": "rnn", "hidden": [8], "sequence": [8, 8]}, "regularizers": [{"kind": "vanishing_gradient", "lambda": 1}], "optimizer": {"kind": "lbfgs"},
         "budget.batch_size": "all"},
        "regularizers.0", "immediate derivative of Ω", "use sgd or adam",
    ),
    ({"dataset": {"kind": "temporal_order", "length": 9}}, "dataset.length", "greater than or equal to 10", "inside the bounds"),
    ({"dataset": {"kind": "adding"}}, "loss.kind", "the target of dataset adding is a quantity", "squared_error"),
    ({"regularizers.0.on": ["layers.7"]}, "regularizers.0.on.0", "no layer 'layers.7'", "layers.0, head"),
    ({"regularizers.1.on": ["head"]}, "regularizers.1.on.0", "no layer 'head'", "layers.0"),
    ({"regularizers.0.on": "biases"}, "regularizers.0.on", "'weights' or 'all' or a list", "/v1/catalog"),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": -1}}, "regularizers.0.lambda", "greater than or equal to 0", "inside the bounds"),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": 1, "groups": "row"}}, "regularizers.0.groups", "'rows', 'columns' or 'tensor' or a list", "/v1/catalog"),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": 1, "groups": [{"name": "a", "features": ["pixel_0_0"]}]}}, "regularizers.0.groups", "need a linear model", '"columns"'),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": 1, "groups": []}}, "regularizers.0.groups", "at least 1 item, found 0", "at least 1"),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": 1, "groups": [{"features": ["pixel_0_0"]}]}}, "regularizers.0.groups.0.name", "required", "name"),
    ({"loss.class_weights": [1.0, -1.0]}, "loss.class_weights.1", "greater than 0", "inside the bounds"),
    ({"loss.class_weights": [1.0, 2.0]}, "loss.class_weights", "2 weights for the", '"balanced"'),
    ({"loss.class_weights": "balance"}, "loss.class_weights", "'balanced' or a list", ""),
    ({"regularizers.0": {"kind": "group_lasso", "lambda": 1}, "optimizer": {"kind": "adam"}}, "regularizers.0", "norm of several weights", "use sgd"),
    ({"regularizers.0": {"kind": "sparse_group_lasso", "lambda": 1}, "optimizer": {"kind": "adam"}}, "regularizers.0", "norm of several weights", "l1, elastic_net"),
    ({"regularizers.0": {"kind": "l2_ball", "radius": 1}, "optimizer": {"kind": "adam"}}, "regularizers.0", "no closed form", "non_negative, box"),
    ({"regularizers.0": {"kind": "max_norm", "max": 1}, "optimizer": {"kind": "adam"}}, "regularizers.0", "no closed form", "non_negative, box"),
    ({"regularizers.0": {"kind": "l2_ball", "radius": 0}}, "regularizers.0.radius", "greater than 0", "inside the bounds"),
    ({"regularizers.0": {"kind": "l2_ball", "radius": 1, "lambda": 1}}, "regularizers.0.lambda", "unknown key", "allowed: on, kind, radius"),
    ({"regularizers.0": {"kind": "box", "low": 1, "high": {"values": [2, 0.5]}}}, "regularizers.0.low", "below its high end", "low < high"),
    ({"regularizers.0": {"kind": "box", "low": 1}}, "regularizers.0.high", "required", 'add "high"'),
    ({"regularizers.1": {"kind": "max_norm", "max": 1, "on": ["layers.7"]}}, "regularizers.1.on.0", "no layer 'layers.7'", "layers.0, head"),
    (
        {"regularizers": [{"kind": "group_lasso", "lambda": 1}, {"kind": "max_norm", "max": 1, "on": ["head"]}]},
        "regularizers.1", "max_norm and group_lasso on the same weights", "different layers",
    ),
    ({"regularizers": [{"kind": "group_lasso", "lambda": 1}, {"kind": "group_lasso", "lambda": 1, "groups": "columns"}]}, "regularizers.1", "on the same weights", "different layers"),
    ({"regularizers": [{"kind": "group_lasso", "lambda": 1}, {"kind": "step_penalty", "lambda": 1}]}, "regularizers.1", "group penalties depends", "drop one"),
    ({"optimizer.kind": "fista"}, "optimizer.kind", "unknown kind", '{"kind": "proximal"}'),
    ({"optimizer": {"kind": "proximal", "lr": 1}}, "optimizer.lr", "unknown key", "allowed: kind, accelerated, step"),
    ({"optimizer": {"kind": "proximal"}, "regularizers": []}, "budget.batch_size", "a batch has 64 of the 1438 training rows", '"batch_size": "all"'),
    ({"optimizer": {"kind": "lbfgs"}, "regularizers": []}, "budget.batch_size", "a batch has 64 of the 1438 training rows", '"batch_size": "all"'),
    ({"optimizer": {"kind": "lbfgs", "history": 0}}, "optimizer.history", "greater than or equal to 1", "inside the bounds"),
    ({"optimizer": {"kind": "proximal"}, "budget.batch_size": "all"}, "regularizers.1", "dropout draws another", "sgd or adam"),
    ({"optimizer": {"kind": "lbfgs"}, "budget.batch_size": "all", "regularizers.1": REMOVED}, "regularizers.0", "without kinks", '{"kind": "proximal"}'),
    ({"optimizer": {"kind": "lbfgs"}, "budget.batch_size": "all", "regularizers": [{"kind": "box", "low": 0, "high": 1}]}, "regularizers.0", "box has them", '{"kind": "proximal"}'),
    ({"optimizer": {"kind": "lbfgs"}, "budget.batch_size": "all", "regularizers": [{"kind": "weight_decay", "lambda": 1}]}, "regularizers.0", "lbfgs has none", "use l2"),
    ({"optimizer": {"kind": "lbfgs"}, "budget.batch_size": "all", "regularizers": [], "clip": {"kind": "value", "max": 1}}, "clip", "length of its steps", "leave clip out"),
    (
        {"optimizer": {"kind": "proximal"}, "budget.batch_size": "all", "regularizers": [{"kind": "l1", "lambda": 1, "method": "subgradient"}]},
        "regularizers.0.method", "jump at 0", '"proximal"',
    ),
    ({"optimizer": {"kind": "proximal"}, "budget.batch_size": "all", "regularizers": [{"kind": "step_penalty", "lambda": 1}]}, "regularizers.0", "length of its steps", "sgd or adam"),
    ({"dataset.validation": 1}, "dataset.validation", "less than 1", "inside the bounds"),
    ({"budget.epochs": 0}, "budget.epochs", "greater than or equal to 1", "inside the bounds"),
    ({"budget.epochs": 1.5}, "budget.epochs", "a whole number, found 1.5", "/v1/catalog"),
    ({"budget.batch_size": 5000}, "budget.batch_size", "larger than the 1438 training rows", '"all"'),
    ({"budget.batch_size": "full"}, "budget.batch_size", "a whole number or 'all'", "did you mean 'all'?"),
    ({"selection": {"folds": 5}}, "selection.folds", "both hold out", "keep one"),
    ({"selection": {"folds": 1}}, "selection.folds", "greater than or equal to 2", "inside the bounds"),
    ({"dataset.validation": 0, "selection": {"folds": 500, "stratified": True}, "dataset.test": 0.9, "budget.batch_size": 1}, "selection.folds", "180 training rows cannot be cut into 500 folds", "fewer folds"),
    ({"selection": {"repeats": 2}}, "selection.repeats", "only folds can be cut anew", "set selection.folds"),
    ({"dataset.validation": 0, "selection": {"folds": 5, "repeats": 2, "shuffle": False}}, "selection.repeats", "the same each time", '"shuffle": true'),
    ({"dataset.validation": 0, "selection": {"refit": True}}, "selection.refit", "nothing to refit on", "set selection.folds"),
    ({"selection": {"rule": "one_standard_error", "seeds": 2}}, "selection.rule", "exactly one strength must be searched", "range in place of one lambda"),
    ({"regularizers.0.lambda": {"values": [0.1, 1]}, "selection": {"rule": "one_standard_error"}}, "selection.rule", "no standard error", "set selection.folds"),
    ({"selection": {"rule": "1se"}}, "selection.rule", "'best'", "/v1/catalog"),
    ({"dataset.validation": 0, "selection": {"folds": 2}, "budget.batch_size": 1000}, "budget.batch_size", "training rows of a fold", '"all"'),
    ({"budget.accumulate": 65}, "budget.accumulate", "cannot be split into 65", "at most as often"),
    ({"model.hidden": []}, "model.hidden", "at least 1 item", "give at least 1"),
    ({"model.hidden": [16, 0]}, "model.hidden.1", "found 0", "inside the bounds"),
    ({"model.activation": "rleu"}, "model.activation", 'found "rleu"', "did you mean 'relu'?"),
    ({"dtype": "float16"}, "dtype", 'found "float16"', "did you mean"),
    ({"seed": -1}, "seed", "found -1", "inside the bounds"),
    ({"seed": 2**53 + 1}, "seed", "less than or equal to 9007199254740992", "inside the bounds"),
    ({"selection.seeds": 0}, "selection.seeds", "found 0", "inside the bounds"),
    ({"metadata": {"a b": "x"}}, "metadata.a b", "matches", "/v1/catalog"),
    ({"metadata": {"team": 3}}, "metadata.team", "a string, found 3", "/v1/catalog"),
    ({"name": "x" * 201}, "name", "at most 200 characters", "/v1/catalog"),
    ({"loss.kind": "squared_error"}, "loss.kind", "needs a quantity", "cross_entropy"),
    ({"loss.kind": "binary"}, "loss.kind", "has 10", "cross_entropy"),
    ({"dataset": {"kind": "diabetes"}}, "loss.kind", "needs labels", "squared_error"),
    ({"dataset": {"kind": "diabetes", "split": "stratified", "validation": 0.2}, "loss": {"kind": "squared_error"}}, "dataset.split", "needs classes", "random"),
    ({"dataset": {"kind": "digits"}, "regularizers.1": {"kind": "early_stopping"}}, "regularizers.1.metric", "needs validation rows", "dataset.validation"),
    (
        {"dataset": {"kind": "diabetes", "validation": 0.2}, "loss": {"kind": "squared_error"}, "regularizers.1": {"kind": "early_stopping", "metric": "accuracy/val"}},
        "regularizers.1.metric",
        "no accuracy",
        "loss/val",
    ),
    ({"regularizers": [{"kind": "early_stopping"}, {"kind": "early_stopping"}]}, "regularizers.1", "stands twice", "keep one"),
    ({"regularizers.1": {"kind": "step_penalty", "lambda": 1}}, "regularizers.1", "proximal threshold", "subgradient"),
    ({"regularizers": [{"kind": "l2", "lambda": 1}] * 33}, "regularizers", "at most 32 items, found 33", "give at most 32"),
    ({"optimizer": {"kind": "sgd", "lr": 0.1, "nesterov": True}}, "optimizer.nesterov", "momentum is 0", "optimizer.momentum"),
    ({"clip": {"kind": "global_norm", "max": 0}}, "clip.max", "greater than 0", "inside the bounds"),
    ({"regularizers.0.lambda": {"log": [1e-3, 1], "points": 5000}}, "", "5,000 runs; 4,096 is the most", "fewer points"),
    ({"model.hidden": [65536, 65536]}, "model", "parameters are more than", "smaller model"),
    ({"budget.epochs": 10_000_000, "selection.seeds": 100}, "budget.epochs", "steps of 100 runs", "fewer epochs"),
    ({"dataset": {"kind": "iris"}, "model": {"kind": "cnn", "channels": [4]}}, "model.image", "rows that are images", "[1, 8, 8]"),
    ({"model": {"kind": "cnn", "channels": [4], "image": [1, 4, 4]}}, "model.image", "16 numbers, a row of the dataset has 64", "[1, 8, 8]"),
    ({"model": {"kind": "linear"}}, "regularizers.1.on", "no hidden layers", '"inputs"'),
    ({"model.normalization": {"kind": "batch"}, "budget.batch_size": 1}, "budget.batch_size", "at least two rows", "layer normalization"),
    ({"dataset": {"kind": "inline", "x": [[1], [2, 3]], "y": [0, 1]}}, "dataset", "different lengths", "same number of columns"),
    ({"dataset": {"kind": "inline", "x": [[1], [2]], "y": [0]}}, "dataset", "2 rows and y has 1", "one target a row"),
    ({"dataset": {"kind": "inline", "x": [[1], ["2"]], "y": [0, 1]}}, "dataset.x.1.0", 'found "2"', "without quotes"),
    ({"dataset": {**INLINE, "y": [1, 1, 1, 1, 1]}, "budget.batch_size": 2}, "loss.kind", "at least two classes", "two classes"),
    ({"dataset": {**INLINE, "validation": 0.05}, "budget.batch_size": 2}, "dataset.validation", "is no row", "larger share"),
    ({"dataset": {"kind": "upload", "id": "../etc"}}, "dataset.id", "matches", "/v1/catalog"),
    ({"dataset.split": "grouped"}, "dataset.split", "dataset digits has none", 'or use "random"'),
    ({"dataset.validation": 0, "selection": {"folds": 5, "grouped": True}}, "selection.grouped", "dataset digits has none", "groups=COLUMN"),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b"]}, "dataset.groups", "x has 5 rows and groups has 4 labels", "one label a row"),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", 3]}, "dataset.groups", "some are words", "all as words"),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", 1.5]}, "dataset.groups.4", "found 1.5", "/v1/catalog"),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", True]}, "dataset.groups.4", "found true", ""),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", None]}, "dataset.groups.4", "found null", ""),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", ""]}, "dataset.groups.4", "at least 1 character", ""),
    ({**GROUPED, "dataset.groups": ["a", "a", "b", "b", "c" * 201]}, "dataset.groups.4", "at most 200 characters", ""),
    ({**GROUPED, "dataset.groups": "patient"}, "dataset.groups", 'a list, found "patient"', "/v1/catalog"),
    ({**GROUPED, "dataset.groups": []}, "dataset.groups", "at least 1 item", "give at least 1"),
    ({**GROUPED, "dataset.split": "grouped", "dataset.test": 0.2, "dataset.validation": 0.2, "dataset.groups": [1, 1, 2, 2, 2]}, "dataset.split", "2 groups cannot be cut into 3 parts", "hold out less"),
    ({**GROUPED, "selection": {"grouped": True}}, "selection.grouped", "there are no folds", "set selection.folds"),
    ({**GROUPED, "selection": {"folds": 4, "grouped": True}}, "selection.folds", "3 groups of training rows cannot be cut into 4 folds", "use fewer folds"),
    ({**GROUPED, "selection": {"folds": 3, "grouped": True}, "dataset.test": 0.2, "dataset.split": "grouped"}, "selection.folds", "2 groups of training rows cannot", "fewer"),
    ({**GROUPED, "selection": {"folds": 2, "grouped": True, "stratified": True}, "dataset.y": [0, 1, 0, 1, 0]}, "selection.stratified", "classes as the groups have them", "keep one"),
    ({**GROUPED, "selection": {"folds": 2, "grouped": True}, "dataset.test": 0.2}, "dataset.split", "folds hold whole groups and the test rows do not (random)", '"split": "grouped"'),
    ({**GROUPED, "selection": {"folds": 3, "grouped": True, "shuffle": False}, "budget.batch_size": 4}, "budget.batch_size", "larger than the 3 training rows of a fold", '"all"'),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "message", "hint"), CASES, ids=[f"{i}-{path}" for i, (_, path, _, _) in enumerate(CASES)])
def test_one_mistake_is_one_problem_at_its_path(changes: dict[str, Any], path: str, message: str, hint: str) -> None:
    (problem,) = refused(json.dumps(changed(changes)))
    assert problem.path == path
    assert message in problem.message
    assert hint in problem.hint


BODIES = [
    ("", "", "not JSON"),
    ("{", "", "not JSON"),
    ('{"name', "", "Unterminated string starting at line 1, column 2"),
    ("[]", "", "found a list"),
    ("null", "", "found null"),
    ('{"seed": NaN}', "", "NaN is not JSON"),
    ('{"seed": -Infinity}', "", "-Infinity is not JSON"),
    ('{"seed": 1, "seed": 2}', "seed", "stands twice"),
    ('{"optimizer": {"kind": "sgd", "lr": 1, "lr": 2}}', "optimizer.lr", "stands twice"),
    ('{"regularizers": [{"kind": "l1"}, {"kind": "l1", "kind": "l2"}]}', "regularizers.1.kind", "stands twice"),
    ('{"dataset":' * 30 + "1" + "}" * 30, "", f"deeper than {MOST_DEPTH}"),
    ("[" * 100_000, "", ""),
    ('{"seed": ' + "9" * 5000 + "}", "", "digits"),
    (b"\xff\xfe", "", ""),
    ('{"name": "a\\u0000b"}', "name", "NUL"),
    ('{"metadata": {"team": "a\\u0000b"}}', "metadata.team", "NUL"),
]


@pytest.mark.parametrize(("body", "path", "message"), BODIES, ids=range(len(BODIES)))
def test_what_is_no_strict_json_object_is_refused_with_a_hint(body: str | bytes, path: str, message: str) -> None:
    (problem,) = refused(body)
    assert problem.path == path
    assert message in problem.message
    assert problem.hint


BY_FEATURES: list[tuple[Any, str, str, str]] = [
    ([{"name": "a", "features": ["age", "sex"]}], "regularizers.0.groups", "no group has bmi, bp, s1", "each feature into one group"),
    ([{"name": "a", "features": ["agee"]}], "regularizers.0.groups.0.features.0", "no feature 'agee'", "one of age, sex"),
    ([{"name": "a", "features": ["age"]}, {"name": "b", "features": ["sex", "age"]}], "regularizers.0.groups.1.features.1", "stands in group 'a' already", "one group"),
]


@pytest.mark.parametrize(("groups", "path", "message", "hint"), BY_FEATURES, ids=["missing", "unknown", "twice"])
def test_groups_hold_each_feature_once(groups: Any, path: str, message: str, hint: str) -> None:
    job = {**LINEAR, "dataset": {"kind": "diabetes"}, "optimizer": {"kind": "sgd", "lr": 0.1}, "regularizers": [{"kind": "group_lasso", "lambda": 1, "groups": groups}]}
    problem = refused(json.dumps(job))[0]
    assert problem.path == path
    assert message in problem.message
    assert hint in problem.hint


def test_columns_without_names_are_x0_x1() -> None:
    job = {**LINEAR, "optimizer": {"kind": "sgd", "lr": 0.1}, "regularizers": [{"kind": "group_lasso", "lambda": 1, "groups": [{"name": "a", "features": ["x0"]}]}]}
    assert refused(json.dumps(job)) == []


def test_every_mistake_is_named_at_once() -> None:
    found = refused(json.dumps(changed({"optimizer.lr": "0.1", "model.kind": "mpl", "loss": REMOVED, "extra": 1})))
    assert {problem.path for problem in found} == {"optimizer.lr", "model.kind", "loss", "extra"}


def test_a_body_full_of_mistakes_gets_a_bounded_answer() -> None:
    rows = {"kind": "inline", "x": [["a"]] * 1000, "y": ["b"] * 1000}
    assert len(refused(json.dumps(changed({"dataset": rows})))) == MOST_PROBLEMS


def test_a_number_beyond_double_is_refused() -> None:
    body = json.dumps(changed({"optimizer.lr": 12345.5})).replace("12345.5", "1e999")
    (problem,) = refused(body)
    assert problem.path == "optimizer.lr"


WARNINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"regularizers.0.method": "subgradient"}, "regularizers.0.method", "never reaches an exact zero"),
    ({"model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "l2", "lambda": 1}]}, "regularizers.0", "effective learning rate"),
    ({"model.reparametrization": {"kind": "weight_norm"}, "regularizers": [{"kind": "l2", "lambda": 1}]}, "regularizers.0", "takes the scale of the weights away"),
    ({"model.normalization": {"kind": "layer"}, "regularizers": [{"kind": "weight_decay", "lambda": 1}]}, "regularizers.0", "effective learning rate"),
    ({"model.hidden": [8, 8], "model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "dropout", "rate": 0.5}]}, "regularizers.0", "shifts the variance"),
    ({"model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "dropout", "rate": 0.5, "on": "inputs"}]}, "regularizers.0", "shifts the variance"),
    ({"dataset.validation": 0.2, "regularizers": [{"kind": "early_stopping", "patience": 10}]}, "regularizers.0.patience", "no run stops early"),
    ({"optimizer.schedule": {"kind": "constant", "warmup_steps": 1_000_000}}, "optimizer.schedule.warmup_steps", "never reaches lr"),
    ({"optimizer.schedule": {"kind": "step", "every": 1_000_000}}, "optimizer.schedule.every", "before the first reduction"),
    ({"dataset": {"kind": "wine"}}, "dataset.standardize", "differ in size"),
    ({"model.normalization": {"kind": "batch"}, "budget.accumulate": 2}, "budget.accumulate", "each micro-batch"),
    ({"model.normalization": {"kind": "batch"}, "budget.batch_size": 1437}, "budget.batch_size", "one row"),
    ({"model.hidden": [8] * 5, "model.activation": "sigmoid"}, "model.activation", "deeper than a signal gradient"),
    ({**GROUPED, "selection.folds": 2}, "selection.grouped", "has 3 groups, and the folds cut through them"),
    ({**GROUPED, "dataset.validation": 0.2}, "dataset.split", "has 3 groups, and random held-out rows cut through them"),
    ({**GROUPED, "dataset.test": 0.2, "dataset.split": "grouped", "selection.folds": 2}, "selection.grouped", "the folds cut through them"),
]


@pytest.mark.parametrize(("changes", "path", "message"), WARNINGS, ids=[path for _, path, _ in WARNINGS])
def test_what_was_probably_not_meant_is_accepted_with_a_warning(changes: dict[str, Any], path: str, message: str) -> None:
    warned = [w for w in accept(json.dumps(changed(changes))) if w.path == path]
    assert [message in w.message and w.source == "spec" for w in warned] == [True]


SILENT: list[dict[str, Any]] = [
    {"model.hidden": [8], "model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "dropout", "rate": 0.5}]},
    {"model.hidden": [8, 8], "model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "dropout", "rate": 0.5, "on": ["layers.1"]}]},
    {"model.hidden": [8, 8], "model.normalization": {"kind": "layer"}, "regularizers": [{"kind": "dropout", "rate": 0.5}]},
    {"model.normalization": {"kind": "batch"}, "regularizers": [{"kind": "l2", "lambda": 1, "on": ["head"]}]},
    {"dataset": {"kind": "wine", "standardize": True}},
    GROUPED,
    {**GROUPED, "dataset.validation": 0.2, "dataset.split": "grouped"},
    {**GROUPED, "dataset.test": 0.2, "dataset.split": "grouped", "selection": {"folds": 2, "grouped": True}},
    {**GROUPED, "selection": {"folds": 3, "grouped": True, "shuffle": False}, "budget.batch_size": 3},
    {"dataset.validation": 0.2, "regularizers": [{"kind": "early_stopping", "patience": 2}], "budget.epochs": 3},
]
"""Specs that are near to those with warnings, and mean what they say."""


@pytest.mark.parametrize("changes", SILENT, ids=str)
def test_what_is_right_is_not_warned_about(changes: dict[str, Any]) -> None:
    assert accept(json.dumps(changed(changes))) == []


def test_a_good_spec_has_no_warnings() -> None:
    assert accept(json.dumps(changed({}))) == []
    assert accept(json.dumps(changed({**LINEAR}))) == []


def test_integers_stand_for_numbers() -> None:
    assert spec_of({"optimizer.lr": 1}).optimizer.lr == 1
