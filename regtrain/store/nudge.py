"""A tap on the shoulder of every worker of this machine after a commit, so that a job starts in milliseconds.

It carries nothing and promises nothing: workers look into the store by themselves a few times a second.
"""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


def wake(data: Path) -> None:
    """Tells the workers that share this data folder to look now. Never waits and never fails."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.setblocking(False)
        for path in (data / "workers").glob("*.sock"):
            try:
                ours.sendto(b"!", os.fspath(path))
            except ConnectionRefusedError:  # its worker is dead
                path.unlink(missing_ok=True)
            except OSError:
                continue


@contextmanager
def listening(data: Path, worker: str) -> Generator[socket.socket | None, None, None]:
    """The socket on which a worker is nudged; None where the folder's path is too long for one, or knows no sockets."""
    path = data / "workers" / f"{worker}.sock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        try:
            ours.bind(os.fspath(path))
        except OSError:
            yield None
            return
        try:
            yield ours
        finally:
            path.unlink(missing_ok=True)
