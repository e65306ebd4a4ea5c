"""pydantic's refusals in the caller's terms: one problem for each mistake, at the path that the caller wrote, and what to do."""

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, cast, get_args

from pydantic import ValidationError

from regtrain.contract.base import Part, Unfit, is_list, is_object
from regtrain.contract.errors import Problem
from regtrain.contract.given import kind_of_json
from regtrain.contract.ranges import SHAPES

MOST_PROBLEMS = 50
"""Of one body."""
MOST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""
RANGES = (
    'a range is {"values": […]}, {"log": [low, high], "points": n}, {"linear": [low, high], "points": n}, {"path": n}, '
    '{"suggest": [low, high], "log": true} or {"adapt": "evidence", "start": x}'
)
MEANT = {"lam": "lambda", "alpha": "lambda", "strength": "lambda", "learning_rate": "lr", "p": "rate"}
"""Names of other places for our fields."""
HINTS = {
    "adamw": 'AdamW is {"kind": "adam"} with {"kind": "weight_decay", "lambda": …} among the regularizers',
    "fista": 'use {"kind": "proximal"}',
    "ista": 'use {"kind": "proximal", "accelerated": false}',
    "lasso": 'use {"kind": "l1", …}',
    "ridge": 'use {"kind": "l2", …}',
    "group_l1": 'use {"kind": "group_lasso", …}',
    "nonneg": 'use {"kind": "non_negative"}',
    "mse": 'use {"kind": "squared_error"}',
    "logistic": 'use {"kind": "binary"}',
    "lam": "write it as in JSON: lambda",
    "alpha": "the strength is called lambda",
    "strength": "the strength is called lambda",
    "weight_decay": 'weight decay is a regularizer: {"kind": "weight_decay", "lambda": …} (decoupled) or {"kind": "l2", …} (coupled)',
    "learning_rate": "it is called lr",
    "epochs": "it belongs to budget: budget.epochs",
    "batch_size": "it belongs to budget: budget.batch_size",
}
_WORDS = {
    "a valid number": "a number",
    "a valid integer": "a whole number",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "a valid string": "a string",
    "a valid boolean": "true or false",
}
_SIZES = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}
_CATALOG = "see /v1/catalog for what this field takes"


def problems(refusal: ValidationError, given: Any, *, root: type[Part]) -> list[Problem]:
    """What is wrong with `given`, which was to be a `root`."""
    errors = refusal.errors(include_url=False)
    found = [_problem(error, given, root) for error in errors if not _follows(error, errors)]
    return _joined(found)[:MOST_PROBLEMS]


def _problem(error: Any, given: Any, root: type[Part]) -> Problem:
    path, node = _walk(error["loc"], given, missing=error["type"] in ("missing", "union_tag_not_found"))
    context = error.get("ctx", {})
    where = ".".join(map(str, path))
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(path, _allowed_keys(path, given, root))
        case "literal_error" if error["loc"][-1:] == ("[key]",):  # of an object whose keys are words
            return _unknown_key(path, re.findall(r"'([^']+)'", context["expected"]))
        case "union_tag_invalid":
            kinds = re.findall(r"'([^']+)'", context["expected_tags"])
            return Problem(f"{where}.kind", f"unknown kind {context['tag']!r}", HINTS.get(context["tag"]) or _nearest(context["tag"], kinds))
        case "union_tag_not_found":
            kinds = "one of " + ", ".join(_kinds_at(path, root))
            return Problem(f"{where}.kind", "the kind is missing", kinds) if is_object(node) else Problem(where, f"expected an object with a kind, found {_shown(node)}", kinds)
        case "missing":
            return Problem(where, "this field is required", f"add {json.dumps(str(path[-1]))}")
        case "value_error":
            reason = context["error"]
            return Problem(where, str(reason), reason.hint if isinstance(reason, Unfit) else _CATALOG)
        case "too_short" | "too_long":
            words, key = _SIZES[error["type"]]
            count = context[key]
            return Problem(where, f"expected {words} {count} item{'s' * (count != 1)}, found {len(node)}", f"give {words} {count}")
        case "float_type" | "int_type" if is_object(node):
            return _misplaced_range(path, node, searchable=error["loc"][-1:] == ("<number>",))
        case _:
            expected = error["msg"].removeprefix("Input should be ").replace("String should match pattern", "text that matches").replace("String should have", "text of")
            message = f"expected {_WORDS.get(expected, expected)}, found {_shown(node)}" if expected != error["msg"] else error["msg"]
            return Problem(where, message, _hint(error["type"], node, path, root, expected))


def _misplaced_range(path: list[Any], node: dict[str, Any], *, searchable: bool) -> Problem:
    where = ".".join(map(str, path))
    if not searchable:
        return Problem(where, "expected a number, found an object", "no range can stand here")
    misspelled = next((key for key in node if difflib.get_close_matches(key, list(SHAPES), n=1, cutoff=0.5)), None)
    return _unknown_key([*path, misspelled], list(SHAPES)) if misspelled else Problem(where, "expected a number or a range in its place", RANGES)


def _unknown_key(path: list[Any], allowed: list[str]) -> Problem:
    name = str(path[-1])
    return Problem(".".join(map(str, path)), f"unknown key {name!r}", HINTS.get(name) or _nearest(name, allowed))


def _follows(error: Any, errors: Sequence[Any]) -> bool:
    """A list that is too short only because its members were refused; a word or a number that a list is not, where it is refused as a list too; a field that
    is missing only because its name is misspelled."""
    if error["type"] == "too_short":
        return any(other is not error and other["loc"][: len(error["loc"])] == error["loc"] for other in errors)
    if error["type"] in ("literal_error", "float_type") and is_list(error["input"]):
        *field, _ = error["loc"]
        beside = [other["loc"] for other in errors if other is not error and list(other["loc"][: len(field)]) == field]
        return any(len(loc) > len(field) and str(loc[len(field)]).startswith("tuple[") for loc in beside)
    if error["type"] == "missing":
        *parent, name = error["loc"]
        strays = [str(other["loc"][-1]) for other in errors if other["type"] == "extra_forbidden" and other["loc"][:-1] == tuple(parent)]
        return any(MEANT.get(stray) == name or difflib.SequenceMatcher(None, stray, str(name)).ratio() >= 0.6 for stray in strays)
    return False


def _joined(found: list[Problem]) -> list[Problem]:
    """Alternatives of one field that all refuse it are one problem."""
    places: dict[tuple[str, str], Problem] = {}
    for problem in found:
        expected, comma, shown = problem.message.partition(", found ")
        key = (problem.path, shown) if comma else (problem.path, problem.message)
        before = places.get(key)
        if before is None:
            places[key] = problem
        elif comma:
            places[key] = Problem(problem.path, f"{before.message.partition(', found ')[0]} or {expected.removeprefix('expected ')}, found {shown}", problem.hint)
    return list(places.values())


def _hint(kind: str, node: Any, path: list[Any], root: type[Part], expected: str) -> str:
    if kind.startswith(("float", "int")) and isinstance(node, str) and re.fullmatch(r"\s*[-+.\d][\d.eE+-]*\s*", node):
        return "write the number without quotes"
    if kind.startswith(("float", "int")) and isinstance(node, bool):
        return "true and false are not numbers"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return "choose a value inside the bounds"
    if kinds := _kinds_at(path, root):
        return f'write {{"kind": "{node}"}}' if isinstance(node, str) and node in kinds else 'write {"kind": …}, one of ' + ", ".join(kinds)
    if kind == "literal_error" and isinstance(node, str) and (close := _close(node, re.findall(r"'([^']+)'", expected))):
        return f"did you mean {close!r}?"
    return _CATALOG


def _shown(node: Any) -> str:
    return json.dumps(node) if isinstance(node, int | float | str | bool | None) and len(str(node)) < MOST_SHOWN else kind_of_json(node)


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


def _allowed_keys(path: list[Any], given: Any, root: type[Part]) -> list[str]:
    """The keys that the object at the parent of this path may have."""
    node: Any = given
    for part in path[:-1]:
        node = node[part]
    shape = next((SHAPES[key] for key in SHAPES if is_object(node) and key in node), None)
    owners = [shape] if shape else [model for model in _parts_at(path[:-1], root) if not is_object(node) or _kind(model) in (None, node.get("kind"))]
    return [info.alias or name for model in owners for name, info in model.model_fields.items()]


def _kinds_at(path: list[Any], root: type[Part]) -> list[str]:
    return [kind for model in _parts_at(path, root) if (kind := _kind(model))]


def _parts_at(path: list[Any], root: type[Part]) -> list[type[Part]]:
    """The parts that may stand at a path."""
    owners: list[type[Part]] = [root]
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
    close = _close(name, allowed)
    return (f"did you mean {close!r}? " if close else "") + ("allowed: " + ", ".join(dict.fromkeys(allowed)) if allowed else "remove it")


def _close(name: str, allowed: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)), None)
