"""The JSON object that a caller sent, read strictly: what two readers would understand differently is refused."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from regtrain.contract.base import is_list, is_object
from regtrain.contract.errors import Problem, SpecRefused

MOST_DEPTH = 20
"""JSON nested deeper than this is refused."""


def given_of(body: bytes | str) -> dict[str, Any]:
    """The JSON object as it was sent. Duplicate keys, NaN, NUL and deep nesting are refused.

    Raises:
        SpecRefused: it is no JSON object, or not a strict one.
    """
    try:
        given = json.loads(body, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise SpecRefused([Problem("", "the body is not UTF-8 text", "send JSON encoded as UTF-8")]) from None
    except json.JSONDecodeError as error:
        raise SpecRefused(
            [Problem("", f"not JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}", "check quotes, commas and brackets there")]
        ) from None
    except ValueError:
        raise SpecRefused([Problem("", "a number has more than 4,300 digits", "write shorter numbers")]) from None
    if not is_object(given):
        raise SpecRefused([Problem("", f"expected a JSON object, found {kind_of_json(given)}", 'send {"dataset": …, "model": …, "loss": …, "optimizer": …}')])
    if _depth(given) > MOST_DEPTH:
        raise _too_deep()
    if wrong := [*_doubled(given, ""), *(_nul(given, "") if "\\u0000" in (body if isinstance(body, str) else body.decode(errors="replace")) else ())]:
        raise SpecRefused(wrong)
    return given


def kind_of_json(value: Any) -> str:
    """What a JSON value is, in words."""
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


class _Doubled(dict[str, Any]):
    """An object in which `keys_twice` stand twice."""

    keys_twice: tuple[str, ...]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [key for key, _ in pairs]
    doubled = _Doubled(found)
    doubled.keys_twice = tuple(key for key in found if names.count(key) > 1)
    return doubled


def _doubled(value: Any, path: str) -> Iterator[Problem]:
    if isinstance(value, _Doubled):
        for key in value.keys_twice:
            yield Problem(f"{path}{key}", f"the key {key!r} stands twice in one object", "remove one of them")
    for name, inner in value.items() if is_object(value) else enumerate(value) if is_list(value) else ():
        if isinstance(inner, dict | list):
            yield from _doubled(inner, f"{path}{name}.")


def _nul(value: Any, path: str) -> Iterator[Problem]:
    """Texts with a NUL, which not every database can store."""
    for name, inner in value.items() if is_object(value) else enumerate(value) if is_list(value) else ():
        if "\0" in str(name) or (isinstance(inner, str) and "\0" in inner):
            yield Problem(f"{path}{name}", "contains a NUL character", "remove it")
        yield from _nul(inner, f"{path}{name}.")


def _refuse_constant(name: str) -> Any:
    raise SpecRefused([Problem("", f"{name} is not JSON", "numbers must be finite")])


def _too_deep() -> SpecRefused:
    return SpecRefused([Problem("", f"JSON is nested deeper than {MOST_DEPTH} levels", "flatten it")])


def _depth(value: Any) -> int:
    deepest = 0
    level: list[Any] = [value]
    while level and deepest <= MOST_DEPTH:
        deepest += 1
        level = [inner for node in level for inner in _members(node) if isinstance(inner, dict | list)]
    return deepest


def _members(node: Any) -> Iterable[Any]:
    return node.values() if is_object(node) else node if is_list(node) else ()
