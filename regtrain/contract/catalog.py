"""The unions as a list of kinds with their fields and docs: feeds /v1/catalog, /v1/schema/job and docs/reference.md."""

from inspect import cleandoc
from typing import Any, get_args

from regtrain.contract.base import Part
from regtrain.contract.begin import Begin, Operation
from regtrain.contract.datasets import Dataset
from regtrain.contract.job import Budget, JobSpec
from regtrain.contract.losses import Loss
from regtrain.contract.models import Init, Model, Normalization, Reparametrization
from regtrain.contract.optimizers import Clip, Optimizer, Schedule
from regtrain.contract.ranges import SHAPES
from regtrain.contract.regularizers import Regularizer
from regtrain.contract.selection import Selection
from regtrain.contract.series import SERIES
from regtrain.contract.symptoms import SYMPTOMS
from regtrain.contract.trial import Known, Trial
from regtrain.contract.variants import Variant

RANGES = tuple(shape.__name__ for shape in SHAPES.values())
FAMILIES: dict[str, Any] = {
    "datasets": Dataset,
    "models": Model,
    "init": Init,
    "normalization": Normalization,
    "reparametrization": Reparametrization,
    "losses": Loss,
    "regularizers": Regularizer,
    "optimizers": Optimizer,
    "schedules": Schedule,
    "clip": Clip,
    "surgery": Operation,
}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the job spec."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema(by_alias=True)}


def catalog() -> dict[str, Any]:
    """Every family with its kinds, each with its meaning and its fields; the ranges; the series; the symptoms."""
    return {
        "families": {family: [_kind(part) for part in _members(union)] for family, union in FAMILIES.items()},
        "job": [_part(part) for part in (JobSpec, Budget, Begin, Selection, Variant, Trial, Known)],
        "ranges": [{**_part(shape[float]), "doc": cleandoc(shape.__doc__)} for shape in SHAPES.values()],
        "series": [
            {"name": s.name, "symbol": s.symbol, "unit": s.unit, "shape": s.shape, "scale": s.scale, "better": s.better, "preset": s.preset, "meaning": s.meaning} for s in SERIES
        ],
        "symptoms": [{"name": s.name, "phase": s.phase, "criterion": s.criterion, "source": s.source, "brings": list(s.brings), "needs": s.needs} for s in SYMPTOMS],
    }


def _members(union: Any) -> list[type[Part]]:
    return list(get_args(get_args(union)[0]))


def _kind(part: type[Part]) -> dict[str, Any]:
    return {"kind": get_args(part.model_fields["kind"].annotation)[0], **_part(part)}


def _part(part: type[Part]) -> dict[str, Any]:
    own = part.model_json_schema(by_alias=True)
    required = set(own.get("required", ()))
    definitions = own.get("$defs", {})
    return {
        "title": part.__name__.split("[")[0],
        "doc": cleandoc(part.__doc__ or ""),
        "fields": [
            {"name": name, "required": name in required, "type": _words(field, definitions), "default": field.get("default"), "doc": field.get("description", "")}
            for name, field in own.get("properties", {}).items()
            if name != "kind"
        ],
    }


def _words(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A field's schema in words, with its bounds."""
    if "$ref" in field:
        target = field["$ref"].rsplit("/", 1)[1]
        if target.split("_")[0] in RANGES:
            return target.lower()
        return f"`{definitions[target].get('properties', {}).get('kind', {}).get('const', target.lower())}`"
    for key in ("oneOf", "anyOf"):
        if key in field:
            return _alternatives(field[key], definitions)
    if "enum" in field:
        return " | ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"[{_words(field['items'], definitions)}, …]" if "items" in field else "[" + ", ".join(_words(item, definitions) for item in field.get("prefixItems", ())) + "]"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([field.get("type", "object"), *(f"{sign} {field[key]}" for key, sign in bounds.items() if key in field)])


def _alternatives(options: list[dict[str, Any]], definitions: dict[str, Any]) -> str:
    words = [_words(option, definitions) for option in options]
    plain = [word for word in words if not word.startswith(tuple(name.lower() for name in RANGES))]
    return " | ".join(plain) + (" or a range" if len(plain) < len(words) else "")
