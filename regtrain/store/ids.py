"""Identifiers: a prefix and a ULID, so that ids sort by the time at which they were made."""

import os
import threading
import time

from ulid import ULID

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """A fresh id such as `job_01J…`. Those of one process rise strictly, also within a millisecond."""
    global _last
    with _lock:
        fresh = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10)) >> 1
        _last = fresh if fresh >> 80 > _last >> 80 else _last + 1
        return f"{prefix}_{ULID.from_bytes(_last.to_bytes(16))}"
