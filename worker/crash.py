"""Crash points: named places at which a test lets this process die as if the power had failed.

`REGTRAIN_CRASH=name:n` kills the process with SIGKILL at the n-th place whose name begins with `name`.
With `name:n:marker` this happens once: the file `marker` is made at the hit, and where it exists nothing is killed.
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
    "child.event",
    "child.sent",
)
"""Every place, in the order in which a job comes by. The sweep in tests/worker/test_crashes.py dies at each."""

_NAME, _, _REST = os.environ.get("REGTRAIN_CRASH", "").partition(":")
_AT, _, _MARKER = _REST.partition(":")
_hits = count(1)


def crash_point(name: str) -> None:
    """Dies here if a test wants it; otherwise costs a comparison."""
    if _NAME and name.startswith(_NAME) and next(_hits) == int(_AT) and _first_time():
        os.kill(os.getpid(), signal.SIGKILL)


def _first_time() -> bool:
    if not _MARKER:
        return True
    try:
        os.close(os.open(_MARKER, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
