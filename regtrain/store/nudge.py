"""A tap on the shoulder of every worker of this machine after a commit, so that a job starts in milliseconds.

It carries nothing and promises nothing: workers look into the store by themselves a few times a second.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

MOST_PATH = 107
"""Bytes that the address of a Unix socket may have."""


def wake(data: Path) -> None:
    """Tells the workers that share this data folder to look now. Never waits and never fails."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.setblocking(False)
        for path in (data / "workers").glob("*.sock"):
            with suppress(OSError):
                ours.sendto(b"!", os.fspath(path))


def listen(data: Path, worker: str) -> socket.socket | None:
    """The socket on which a worker is nudged; None where the folder's path is too long for one."""
    path = data / "workers" / f"{worker}.sock"
    if len(os.fsencode(path)) > MOST_PATH:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ours.bind(os.fspath(path))
    except OSError:
        ours.close()
        return None
    return ours
