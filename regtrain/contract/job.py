"""The job spec: all parts together, how it is read from JSON, its digest, and where each of its values came from."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, ValidationError

from regtrain.contract.base import Part, is_list, is_object
from regtrain.contract.datasets import Counts, Dataset
from regtrain.contract.diagnostics import Diagnostics
from regtrain.contract.errors import Problem, SpecRefused
from regtrain.contract.losses import Loss
from regtrain.contract.models import Model
from regtrain.contract.optimizers import Clip, Optimizer
from regtrain.contract.ranges import SHAPES
from regtrain.contract.regularizers import Regularizer
from regtrain.contract.selection import Selection

MOST_DEPTH = 20
"""JSON nested deeper than this is refused."""
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
    model: Model
    loss: Loss
    regularizers: Annotated[tuple[Regularizer, ...], Field(max_length=32)] = ()
    optimizer: Optimizer
    clip: Clip | None = None
    """Acts on the accumulated gradient, coupled penalties included, before the step."""
    budget: Budget = Budget()
    selection: Selection = Selection()
    seed: Whole = 0
    """Seed of the job: held-out rows follow from it; initial weights, row order and noise from it and the run's seed."""
    dtype: Literal["float32", "float64"] = "float32"
    diagnostics: Diagnostics = "standard"
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
        return JobSpec.model_validate_json(body)
    except ValidationError as refusal:
        raise SpecRefused(problems(refusal, given)) from None


def given_of(body: bytes | str) -> dict[str, Any]:
    """The JSON object as it was sent. Duplicate keys, NaN and deep nesting are refused.

    Raises:
        SpecRefused: it is no JSON object, or not a strict one.
    """
    try:
        given = json.loads(body, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError:
        raise SpecRefused([Problem("", f"JSON is nested deeper than {MOST_DEPTH} levels", "flatten it")]) from None
    except UnicodeDecodeError:
        raise SpecRefused([Problem("", "the body is not UTF-8 text", "send JSON encoded as UTF-8")]) from None
    except json.JSONDecodeError as error:
        raise SpecRefused([Problem("", f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}", "check quotes, commas and brackets there")]) from None
    if not is_object(given):
        raise SpecRefused([Problem("", f"expected a JSON object, found {_kind_of_json(given)}", 'send {"dataset": …, "model": …, "loss": …, "optimizer": …}')])
    if _depth(given) > MOST_DEPTH:
        raise SpecRefused([Problem("", f"JSON is nested deeper than {MOST_DEPTH} levels", "flatten it")])
    return given


def problems(refusal: ValidationError, given: Any) -> list[Problem]:
    """pydantic's refusal in the caller's terms: the path as written, without the union's inner tags, and what to do."""
    errors = refusal.errors(include_url=False)
    return [_problem(error, given) for error in errors if not _follows(error, errors)]


def resolved(spec: JobSpec) -> dict[str, Any]:
    """The spec with every default filled in, as JSON values."""
    return spec.model_dump(mode="json", by_alias=True)


def digest(spec: JobSpec) -> str:
    """sha256 over all that determines the numbers: not the name, not the metadata."""
    return hashlib.sha256(json.dumps({k: v for k, v in resolved(spec).items() if k not in ("name", "metadata")}, sort_keys=True).encode()).hexdigest()


def origin(given: dict[str, Any], spec: JobSpec) -> dict[str, str]:
    """Path → `given`, `default` or `searched` for every value of the resolved spec (rows of inline datasets count as one)."""
    return dict(_origins(resolved(spec), given, ""))


def batch_size(spec: JobSpec, rows: Counts) -> int:
    """Rows of a full batch."""
    return rows.train if spec.budget.batch_size == "all" else spec.budget.batch_size


def steps_per_epoch(spec: JobSpec, rows: Counts) -> int:
    return ceil(rows.train / batch_size(spec, rows))


def steps(spec: JobSpec, rows: Counts) -> int:
    """Updates of one run that uses its whole budget."""
    return spec.budget.epochs * steps_per_epoch(spec, rows)


_HINTS = {
    "adamw": 'AdamW is {"kind": "adam"} with {"kind": "weight_decay", "lambda": …} among the regularizers',
    "lasso": 'use {"kind": "l1", …}',
    "ridge": 'use {"kind": "l2", …}',
    "mse": 'use {"kind": "squared_error"}',
    "logistic": 'use {"kind": "binary"}',
    "lam": "write it as in JSON: lambda",
    "alpha": "the strength is called lambda",
    "weight_decay": 'weight decay is a regularizer: {"kind": "weight_decay", "lambda": …} (decoupled) or {"kind": "l2", …} (coupled)',
    "learning_rate": "it is called lr",
    "epochs": "it belongs to budget: budget.epochs",
    "batch_size": "it belongs to budget: budget.batch_size",
}


def _problem(error: Any, given: Any) -> Problem:
    path, node = _walk(error["loc"], given, missing=error["type"] in ("missing", "union_tag_not_found"))
    context = error.get("ctx", {})
    where = ".".join(map(str, path))
    match error["type"]:
        case "extra_forbidden":
            name, allowed = str(path[-1]), _allowed_keys(path, given)
            return Problem(where, f"unknown key {name!r}", _HINTS.get(name) or _nearest(name, allowed))
        case "union_tag_invalid":
            kinds = re.findall(r"'([^']+)'", context["expected_tags"])
            return Problem(f"{where}.kind", f"unknown kind {context['tag']!r}", _HINTS.get(context["tag"]) or _nearest(context["tag"], kinds))
        case "union_tag_not_found":
            kinds = [kind for kind in _kinds_at(path)]
            return Problem(
                f"{where}.kind" if isinstance(node, dict) else where,
                "the kind is missing" if isinstance(node, dict) else f"expected an object with a kind, found {_kind_of_json(node)}",
                "one of " + ", ".join(kinds) if kinds else 'say which: {"kind": …}',
            )
        case "missing":
            return Problem(where, "this field is required", f"add {json.dumps(str(path[-1]))}")
        case "value_error":
            return Problem(where, str(context["error"]), "")
        case "float_type" | "int_type" if isinstance(node, dict) and error["loc"][-1:] == ("<number>",):
            return Problem(
                where, "expected a number or a range in its place", 'a range is {"values": […]}, {"log": [low, high], "points": n} or {"linear": [low, high], "points": n}'
            )
        case _:
            message = error["msg"].removeprefix("Input should be ").replace("Value error, ", "")
            shown = json.dumps(node) if isinstance(node, int | float | str | bool | None) and len(str(node)) < 60 else _kind_of_json(node)
            return Problem(where, f"expected {message}, found {shown}" if error["msg"].startswith("Input should be") else error["msg"], _hint(error["type"], node))


def _follows(error: Any, errors: Sequence[Any]) -> bool:
    """A list that is too short only because its members were refused."""
    return error["type"] == "too_short" and any(other is not error and other["loc"][: len(error["loc"])] == error["loc"] for other in errors)


def _hint(kind: str, node: Any) -> str:
    if kind.startswith(("float", "int")) and isinstance(node, str):
        return "write the number without quotes"
    if kind.startswith(("float", "int")) and isinstance(node, bool):
        return "true and false are not numbers"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return "choose a value inside the bounds"
    return "see /v1/catalog for what this field takes"


def _walk(loc: tuple[Any, ...], given: Any, *, missing: bool) -> tuple[list[Any], Any]:
    """The path as the caller wrote it: elements that name an inner tag of a union are left out."""
    path: list[Any] = []
    node = given
    for place, part in enumerate(loc):
        last = place == len(loc) - 1
        here = not str(part).startswith("<") and part in node if is_object(node) else is_list(node) and isinstance(part, int) and part < len(node)
        if here:
            node = cast(Any, node)[part]
        elif not (missing and last and is_object(node) and part != node.get("kind")):
            continue
        path.append(part)
    return path, node


def _allowed_keys(path: list[Any], given: Any) -> list[str]:
    """The keys that the object at the parent of this path may have."""
    node: Any = given
    for part in path[:-1]:
        node = node[part]
    if len(path) == 1:
        return list(JobSpec.model_fields)
    owners = [model for model in _parts_at(path[:-1]) if not is_object(node) or _kind(model) in (None, node.get("kind"))]
    names = [info.alias or name for model in owners for name, info in model.model_fields.items()]
    return names + [key for key in SHAPES if is_object(node) and key in node] + (["points"] if is_object(node) and SHAPES.keys() & node.keys() else [])


def _kinds_at(path: list[Any]) -> list[str]:
    return [kind for model in _parts_at(path) if (kind := _kind(model))]


def _parts_at(path: list[Any]) -> list[type[Part]]:
    """The parts that may stand at a path."""
    owners: list[type[Part]] = [JobSpec]
    for part in path:
        if isinstance(part, int):
            continue
        owners = [inner for model in owners for name, info in model.model_fields.items() if part in (name, info.alias) for inner in _parts_in(info.annotation)]
    return owners


def _parts_in(annotation: Any) -> list[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return [annotation]
    return [part for inner in get_args(annotation) for part in _parts_in(inner)]


def _kind(model: type[Part]) -> str | None:
    info = model.model_fields.get("kind")
    return get_args(info.annotation)[0] if info else None


def _nearest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + ("allowed: " + ", ".join(dict.fromkeys(allowed)) if allowed else "remove it")


def _origins(value: Any, given: Any, path: str) -> Iterator[tuple[str, str]]:
    if is_object(value) and not SHAPES.keys() & value.keys():
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


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpecRefused([Problem(key, f"the key {key!r} stands twice in one object", "remove one of them")])
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise SpecRefused([Problem("", f"{name} is not JSON", "numbers must be finite")])


def _depth(value: Any) -> int:
    deepest = 0
    level: list[Any] = [value]
    while level:
        deepest += 1
        level = [inner for node in level for inner in _members(node) if isinstance(inner, dict | list)]
    return deepest


def _members(node: Any) -> Iterable[Any]:
    return node.values() if is_object(node) else node if is_list(node) else ()


def _kind_of_json(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
