"""Crash points: named places at which a test lets this process die as if the power had failed.

`REGTRAIN_CRASH=name:n` kills the process with SIGKILL at the n-th place whose name begins with `name`.
With `name:n:marker` this happens once: the file `marker` is made at the hit, with the name of the place in it, and where it
exists nothing is killed.
"""

import os
import signal
from itertools import count

POINTS = (
    "loop.claimed",
    "loop.points",
    "loop.renamed",
    "loop.checkpointed",
    "loop.model_renamed",
    "loop.finished",
    "child.torn",
    "child.sent",
)
"""Every place, in the order in which a job comes by. The sweeps in tests/worker/test_crashes.py die at each."""

_NAME, _, _REST = os.environ.get("REGTRAIN_CRASH", "").partition(":")
_AT, _, _MARKER = _REST.partition(":")
_hits = count(1)


def crash_point(name: str) -> None:
    """Dies here if a test wants it; otherwise costs a comparison."""
    if _NAME and name.startswith(_NAME) and next(_hits) == int(_AT) and _first_time(name):
        os.kill(os.getpid(), signal.SIGKILL)


def _first_time(name: str) -> bool:
    if not _MARKER:
        return True
    try:
        with open(_MARKER, "x") as marker:
            marker.write(name)
    except FileExistsError:
        return False
    return True
