"""Specs for the contract's tests: a small good one, and ways to change it."""

import copy
import json
from typing import Any

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.errors import Problem, SpecRefused, Warned
from regtrain.contract.job import JobSpec, parse

GOOD: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16]},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "l1", "lambda": 0.01}, {"kind": "dropout", "rate": 0.5}],
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "budget": {"epochs": 2, "batch_size": 64},
}
REMOVED = object()
INLINE = {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]}
LINEAR: dict[str, Any] = {"dataset": INLINE, "model": {"kind": "linear"}, "loss": {"kind": "half_squared_error"}, "regularizers": [], "budget": {"batch_size": "all"}}


def changed(changes: dict[str, Any], start: dict[str, Any] = GOOD) -> dict[str, Any]:
    """The good spec with values set (or REMOVED) by path, in order."""
    spec = copy.deepcopy(start)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = spec
        for part in parents:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        if value is REMOVED:
            del node[last]
        elif isinstance(node, list) and last == len(node):
            node.append(copy.deepcopy(value))
        else:
            node[last] = copy.deepcopy(value)
    return spec


def spec_of(changes: dict[str, Any]) -> JobSpec:
    return parse(json.dumps(changed(changes)))


def accept(body: str | bytes) -> list[Warned]:
    """Parses and checks, as a submission does; returns the warnings."""
    spec = parse(body)
    facts = facts_of(spec.dataset)
    assert facts is not None
    return check(spec, facts)


def refused(body: str | bytes) -> list[Problem]:
    """The problems for which a body is refused; none if it is accepted."""
    try:
        accept(body)
    except SpecRefused as refusal:
        return refusal.problems
    return []
