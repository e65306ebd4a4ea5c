"""A tap on the shoulder of every worker, or every service, of this machine after a commit: a job starts, and who waits for it hears, in milliseconds.

It carries nothing and promises nothing: all look into the store by themselves, workers a few times a second, services that are waited at more often.
"""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

Whom = Literal["workers", "services"]


def wake(data: Path, whom: Whom) -> None:
    """Tells the workers or the services that share this data folder to look now. Never waits and never fails."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.setblocking(False)
        for path in (data / whom).glob("*.sock"):
            try:
                ours.sendto(b"!", os.fspath(path))
            except ConnectionRefusedError:  # who listened there is dead
                path.unlink(missing_ok=True)
            except OSError:
                continue


@contextmanager
def listening(data: Path, name: str, whom: Whom) -> Generator[socket.socket | None, None, None]:
    """The socket on which a worker or a service is nudged; None where the folder's path is too long for one, or knows no sockets."""
    path = data / whom / f"{name}.sock"
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
