"""The hint for a misspelled name."""

import difflib
from collections.abc import Sequence


def nearest(name: str, allowed: Sequence[str]) -> str:
    """What may have been meant, and what is allowed."""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + ("allowed: " + ", ".join(allowed) if allowed else "leave it out")
