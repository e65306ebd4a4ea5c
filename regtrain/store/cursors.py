"""Cursors of lists: opaque to callers, and bound to the filter with which they were made."""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from regtrain.contract.errors import Problem, SpecRefused


def encoded(last: Any, bound: Any) -> str:
    """The cursor behind `last` in a list that was filtered by `bound`."""
    return urlsafe_b64encode(json.dumps([_digest(bound), last]).encode()).decode().rstrip("=")


def decoded(cursor: str, bound: Any) -> Any:
    """The `last` of a cursor.

    Raises:
        SpecRefused: it is none of ours, or belongs to another filter.
    """
    try:
        digest, last = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (ValueError, TypeError):
        raise SpecRefused([Problem("cursor", "this is no cursor that a list has answered", "take next_cursor of the page before")]) from None
    if digest != _digest(bound) or not isinstance(last, int | str):
        raise SpecRefused([Problem("cursor", "this cursor belongs to a list with another filter or order", "keep the filter while paging, or start again without a cursor")])
    return last


def _digest(bound: Any) -> str:
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()[:16]
