"""Random search over the space that candidates span: what a remedy must be better than to have been worth a thought."""

from collections.abc import Sequence
from math import exp, log
from typing import Any, TypeGuard

import numpy as np

from regtrain.contract.base import is_list, is_object
from regtrain.contract.datasets import Facts
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.remedies.remedy import Remedy, accepted

TRIES = 20
"""Draws for each contestant that is wanted: most are accepted."""
ABSENT = object()


def drawn(spec: JobSpec, facts: Facts, remedies: Sequence[Remedy], *, count: int) -> list[Remedy]:
    """At most `count` different sets of values from the space of these remedies, all of which `check` accepts, drawn from the job's seed.

    Each path is changed with probability ½: a positive number log-uniformly between the smallest and the largest that the spec or a remedy has there,
    anything else to one of their values.
    """
    found: list[Remedy] = []
    space, generator = _space(spec, remedies), np.random.default_rng([spec.seed, len(remedies), count])
    taken = [remedy.set for remedy in remedies]
    for _ in range(TRIES * count if space else 0):
        if len(found) == count:
            break
        changes = {path: _value(now, others, generator) for path, (now, others) in space.items() if generator.random() < 0.5}
        if changes and changes not in taken and accepted(spec, facts, changes):
            taken.append(changes)
            found.append(Remedy(f"random {len(found) + 1}", changes, why="drawn from the space of the remedies"))
    return found


def _space(spec: JobSpec, remedies: Sequence[Remedy]) -> dict[str, tuple[Any, list[Any]]]:
    """Path → the value that stands there now, and those of remedies. Sorted, so that the order of remedies draws nothing else."""
    now, space = resolved(spec), dict[str, tuple[Any, list[Any]]]()
    for remedy in remedies:
        for path, value in remedy.set.items():
            _, values = space.setdefault(path, (_at(now, path), []))
            if value not in values:
                values.append(value)
    return dict(sorted(space.items()))


def _value(now: Any, others: Sequence[Any], generator: np.random.Generator) -> Any:
    numbers = [value for value in (now, *others) if _is_number(value) and value > 0]
    if len(numbers) == 1 + len(others):
        number = exp(generator.uniform(log(min(numbers)), log(max(numbers))))
        return round(number) if all(isinstance(value, int) for value in numbers) else float(f"{number:.4g}")
    return others[int(generator.integers(len(others)))]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if is_object(tree) and part in tree:
            tree = tree[part]
        elif is_list(tree) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return ABSENT
    return tree
