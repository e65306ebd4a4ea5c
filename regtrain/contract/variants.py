"""Alternatives of a job that may differ in shape: labelled changes to its spec, by path, as in errors and origins. Each is trained with all ranges, folds and seeds."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter

from regtrain.contract.base import Part, Unfit, is_list, is_object

if TYPE_CHECKING:
    from regtrain.contract.job import JobSpec

MOST_VARIANTS = 64
CHANGEABLE = ("model", "loss", "regularizers", "optimizer", "clip", "budget", "begin", "dtype", "on_nonfinite")
"""What a variant may change, beside `dataset.standardize`: not the rows, by which variants are compared."""


def _changeable(path: str) -> str:
    if path.split(".")[0] not in CHANGEABLE and path != "dataset.standardize":
        raise Unfit(
            f"a variant cannot change {path!r}: variants share their rows, seeds and measurements", "paths begin with " + ", ".join(CHANGEABLE) + ", or are dataset.standardize"
        )
    return path


class Variant(Part):
    """One alternative: these values at these paths of the spec, all else as it stands there."""

    label: Annotated[str, Field(min_length=1, max_length=200)]
    """What the variant is called in runs, tables and answers."""
    set: Annotated[dict[Annotated[str, Field(max_length=200), AfterValidator(_changeable)], JsonValue], Field(max_length=100)]
    """Path → whole value, such as {"model.activation": "relu", "model.init": {"kind": "he_normal"}}. Entries of lists by number; the next number appends. {} is the
    spec as it stands."""


Variants = Annotated[tuple[Variant, ...], Field(max_length=MOST_VARIANTS)]


class NoSuchPlace(ValueError):
    """The path leads nowhere."""


def changed(tree: Any, changes: Mapping[str, Any]) -> Any:
    """A JSON value with other values at these paths; the value itself stays as it is.

    Raises:
        NoSuchPlace: a path leads through something that is neither an object nor a list, or beyond the end of a list.
    """
    for path, value in changes.items():
        tree = _changed(tree, path.split("."), value, path)
    return tree


def spec_of(spec: "JobSpec", variant: Variant) -> "JobSpec":
    """The spec that a variant makes of a valid job, without variants. Only the changed fields are validated."""
    given = spec.model_dump(mode="json", by_alias=True, include={path.split(".")[0] for path in variant.set})
    fields = changed(given, variant.set)
    values = {name: _adapter(type(spec), name).validate_json(json.dumps(value)) for name, value in fields.items()}
    return spec.model_copy(update={**values, "variants": ()})


def specs_of(spec: "JobSpec") -> list[tuple[str | None, "JobSpec"]]:
    """Label and spec of every variant; the job's own spec where it has none."""
    return [(variant.label, spec_of(spec, variant)) for variant in spec.variants] or [(None, spec)]


@cache
def _adapter(of: "type[JobSpec]", name: str) -> TypeAdapter[Any]:
    info = of.model_fields[name]
    kind: Any = Annotated[info.annotation, info]  # pyright: ignore[reportInvalidTypeForm, reportUnknownVariableType, reportUnknownMemberType]
    return TypeAdapter[Any](kind)


def _changed(node: Any, path: list[str], value: Any, whole: str) -> Any:
    if not path:
        return value
    first, *rest = path
    if is_object(node) and (first in node or not rest):
        return {**node, first: _changed(node.get(first), rest, value, whole)}
    if is_list(node) and first.isdecimal() and int(first) <= len(node) and (int(first) < len(node) or not rest):
        place = int(first)
        return [*node[:place], _changed(node[place] if place < len(node) else None, rest, value, whole), *node[place + 1 :]]
    raise NoSuchPlace(f"there is no {first!r} on the way of {whole!r}")
