"""The job spec: all parts together, how it is read from JSON, its digest, and where each of its values came from."""

import hashlib
import json
from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from regtrain.contract.base import Part, is_list, is_object
from regtrain.contract.begin import Begin
from regtrain.contract.datasets import Counts, Dataset
from regtrain.contract.diagnostics import Diagnostics
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.given import given_of as given_of
from regtrain.contract.losses import Loss
from regtrain.contract.models import Model
from regtrain.contract.optimizers import Clip, Optimizer
from regtrain.contract.ranges import SHAPES
from regtrain.contract.refusals import problems
from regtrain.contract.regularizers import Regularizer
from regtrain.contract.selection import Selection
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.trial import Trial
from regtrain.contract.variants import NoSuchPlace, Variants, changed

Whole = Annotated[int, Field(ge=0, le=2**53)]
Label = Annotated[str, Field(max_length=200)]
MetadataKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Budget(Part):
    """How long to train, and on how many rows at a time."""

    epochs: Annotated[int, Field(ge=1, le=10_000_000)] = 10
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["all"] = 64
    """Rows an update; `all` for full batch. A short last batch is used, weighted by its rows."""
    accumulate: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Micro-batches into which each batch is split; the update is the same, but for batch norm's statistics."""


class JobSpec(Part):
    """One piece of work: what to train, on what, how strongly regularized, and what to measure."""

    name: Label = ""
    """A label for people."""
    dataset: Dataset
    """The rows, and which of them are held out."""
    model: Model
    """The function to fit."""
    loss: Loss
    """The data term of the objective."""
    regularizers: Annotated[tuple[Regularizer, ...], Field(max_length=32)] = ()
    """What is added to the loss, or done to the training, against overfitting."""
    optimizer: Optimizer
    """How gradients become updates."""
    clip: Clip | None = None
    """Acts on the accumulated gradient, coupled penalties included, before the step."""
    budget: Budget = Budget()
    """Epochs and batches."""
    begin: Begin | None = None
    """An earlier job's weights to begin from, in place of initial ones."""
    variants: Variants = ()
    """Alternatives that may differ in shape, each trained with all ranges, folds and seeds. Without any, the spec as it stands."""
    selection: Selection = Selection()
    """Repetitions, and the rule that chooses."""
    seed: Whole = 0
    """Seed of the job: held-out rows follow from it; initial weights, row order and noise from it and the run's seed."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights, rows and curves."""
    diagnostics: Diagnostics = "standard"
    """How much is measured: `off` (losses, metrics), `light` (and gradient norms), `standard` (and signals, weights, updates, penalty ledger), `full` (and the exact identities, and the layers in every update instead of every 32nd)."""
    on_symptom: dict[SymptomName, Literal["continue", "stop"]] = {}
    """What a run does when it shows a symptom (see `symptoms` in the catalogue): go on, which is the default, or stop."""
    remedy: Literal["try", "quick"] | None = None
    """`try`: when the job has ended with a symptom, the trial of its remedies is submitted by itself. `quick`: a trial in turn with one seed, which ends with the first that helps."""
    trial: Trial | None = None
    """Makes the job the trial of remedies for another one; `POST /v1/jobs/{id}/remedies` fills it in."""
    on_nonfinite: Literal["stop", "skip_step"] = "stop"
    """A step with a loss or gradient that is not finite ends its run, or is left out."""
    metadata: Annotated[dict[MetadataKey, Label], Field(max_length=64)] = {}
    """Labels to find the job by."""


def parse(body: bytes | str) -> JobSpec:
    """The spec that a JSON text describes.

    Raises:
        SpecRefused: with one problem for each thing that is wrong, at the path that the caller wrote.
    """
    given = given_of(body)
    try:
        spec = JobSpec.model_validate_json(body)
    except ValidationError as refusal:
        raise SpecRefused(problems(refusal, given, root=JobSpec)) from None
    if found := [problem for place in range(len(spec.variants)) for problem in _of_variant(spec, place)]:
        raise SpecRefused(found)
    return spec


def resolved(spec: JobSpec) -> dict[str, Any]:
    """The spec with every default filled in, as JSON values."""
    return spec.model_dump(mode="json", by_alias=True)


def digest(spec: JobSpec) -> str:
    """sha256 over all that determines the numbers: not the name, not the metadata."""
    return hashlib.sha256(json.dumps({k: v for k, v in resolved(spec).items() if k not in ("name", "metadata")}, sort_keys=True).encode()).hexdigest()


def origin(given: dict[str, Any], spec: dict[str, Any]) -> dict[str, str]:
    """Path → `given`, `default` or `searched` for every value of the resolved spec (rows of inline datasets count as one)."""
    return dict(_origins(spec, given, ""))


def batch_size(spec: JobSpec, rows: Counts) -> int:
    """Rows of a full batch."""
    return rows.train if spec.budget.batch_size == "all" else spec.budget.batch_size


def steps_per_epoch(spec: JobSpec, rows: Counts) -> int:
    return ceil(rows.train / batch_size(spec, rows))


def steps(spec: JobSpec, rows: Counts) -> int:
    """Updates of one run that uses its whole budget."""
    return spec.budget.epochs * steps_per_epoch(spec, rows)


def _of_variant(spec: JobSpec, place: int) -> Iterator[Problem]:
    """What is wrong with a variant's values, at the paths in its `set`."""
    variant, at = spec.variants[place], f"variants.{place}"
    if variant.label in [other.label for other in spec.variants[:place]]:
        yield Problem(f"{at}.label", f"the label {variant.label!r} stands twice", "give each variant its own label")
    given = {name: value for name, value in resolved(spec).items() if name != "variants"}
    try:
        given = changed(given, variant.set)
        JobSpec.model_validate_json(json.dumps(given))
    except NoSuchPlace as lost:
        yield Problem(f"{at}.set", str(lost), "paths are those of the resolved spec, entries of lists by number")
    except ValidationError as refusal:
        yield from (Problem(f"{at}.set.{problem.path}", problem.message, problem.hint) for problem in problems(refusal, given, root=JobSpec))


def _origins(value: Any, given: Any, path: str) -> Iterator[tuple[str, str]]:
    if is_object(value) and not any(key in value for key in SHAPES if path != "metadata"):
        for key, inner in value.items():
            yield from _origins(inner, given[key] if is_object(given) and key in given else _ABSENT, f"{path}.{key}" if path else key)
    elif is_list(value) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _origins(inner, given[index] if is_list(given) and index < len(given) else _ABSENT, f"{path}.{index}")
    elif is_object(value):
        yield path, "searched"
    else:
        yield path, "default" if given is _ABSENT else "given"


_ABSENT = object()
