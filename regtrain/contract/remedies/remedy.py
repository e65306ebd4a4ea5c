"""What a remedy is, what it is looked for by, and whether a spec with it can be trained."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from regtrain.contract.checks import check
from regtrain.contract.datasets import Facts
from regtrain.contract.errors import SpecRefused
from regtrain.contract.job import JobSpec
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.variants import Variant, spec_of

DEEP = 8
"""Hidden layers from which on remedies lead the identity around each first (He et al. 2016)."""
Direction = Literal["up", "down", "even"]
"""What becomes of a quantity; `even`: its values in all layers come nearer to each other."""


@dataclass(frozen=True)
class Remedy:
    """A change to the spec that may cure a symptom."""

    label: str
    set: dict[str, Any]
    """Path → whole value, as in variants."""
    expects: dict[str, Direction] = field(default_factory=dict[str, Direction])
    """Series or symptom's quantity → what should become of it."""
    why: str = ""
    continues: bool = False
    """Whether it goes on from trained weights, and keeps what was learned."""


@dataclass(frozen=True)
class Evidence:
    """What was measured where the symptom was noticed."""

    value: float
    bound: float
    """What the value is beyond."""


@dataclass(frozen=True)
class Case:
    """What candidates are looked for by: a spec without ranges and variants, its rows, and what was measured."""

    spec: JobSpec
    facts: Facts
    evidence: Evidence | None
    shown: frozenset[SymptomName] | None = None
    """What the run has shown whose weights are gone on from; None where surgery is not asked for."""


Maker = Callable[[Case], Iterator[Remedy]]
"""Candidates of one kind for a case; none where they do not apply."""


def accepted(spec: JobSpec, facts: Facts, changes: Mapping[str, Any]) -> bool:
    """Whether a spec with these changes can be trained, and is another one. From trained weights only without changing the function that they were trained for."""
    if spec.begin is not None and any(path.split(".")[0] in ("model", "dataset") or path == "loss" for path in changes):
        return False
    try:
        other = spec_of(spec, Variant(label="-", set=dict(changes)))
        check(other, facts)
    except (ValidationError, ValueError, SpecRefused):
        return False
    return other != spec


def added(case: Case, label: str, regularizer: dict[str, Any], expects: dict[str, Direction], why: str) -> Remedy:
    return Remedy(label, {f"regularizers.{len(case.spec.regularizers)}": regularizer}, expects, why)


def times(number: float, factor: float) -> float:
    return float(f"{number * factor:.4g}")
