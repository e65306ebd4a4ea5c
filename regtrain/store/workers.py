"""Who is at work, and on what. On one machine a worker holds a lock on a file as long as it lives, so that its death is known at once."""

import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update

from regtrain.store import nudge
from regtrain.store.database import Database
from regtrain.store.tables import now
from regtrain.store.tables import workers as table


@dataclass(frozen=True, kw_only=True)
class Worker:
    id: str
    host: str
    pid: int
    device: str
    versions: dict[str, Any]
    job: str | None
    started_at: datetime
    seen_at: datetime
    selftest: dict[str, Any] | None
    """What it has measured last of the laws of gradients: ok, laws, environment, error."""
    selftest_at: datetime | None
    selftest_asked_at: datetime | None
    """It was asked to measure, and has not done so yet."""


@contextmanager
def register(db: Database, worker: str, *, device: str, versions: dict[str, Any]) -> Generator[None]:
    """Lists a worker as long as the context is open; its lock goes with the process, however that ends."""
    lock = _lock_file(db.data, worker)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with db.write() as connection:
            moment = now()
            row: dict[str, Any] = {"id": worker, "host": socket.gethostname(), "pid": os.getpid(), "device": device, "versions": versions}
            connection.execute(delete(table).where(table.c.id == worker))
            connection.execute(insert(table).values(**row, started_at=moment, seen_at=moment))
        try:
            yield
        finally:
            forget(db, worker)


def beat(db: Database, worker: str, *, job: str | None = None) -> None:
    """Says that the worker lives, and which job it has."""
    with db.write() as connection:
        connection.execute(update(table).where(table.c.id == worker).values(seen_at=now(), job=job))


def ask_for_selftests(db: Database) -> None:
    """Asks every worker to measure the laws of gradients on its device."""
    with db.write() as connection:
        connection.execute(update(table).values(selftest_asked_at=now()))
    nudge.wake(db.data, "workers")


def asked(db: Database, worker: str) -> datetime | None:
    """Since when the worker has been asked to measure."""
    with db.read() as connection:
        return connection.execute(select(table.c.selftest_asked_at).where(table.c.id == worker)).scalar()


def measured(db: Database, worker: str, outcome: dict[str, Any], *, asked: datetime | None) -> None:
    """Stores what the worker has measured. `asked`: the mark that this answers; a newer one stays."""
    mine = table.c.id == worker
    with db.write() as connection:
        connection.execute(update(table).where(mine).values(selftest=outcome, selftest_at=now()))
        connection.execute(update(table).where(mine, table.c.selftest_asked_at == asked).values(selftest_asked_at=None))


def listing(db: Database) -> list[Worker]:
    """All workers that have not left, oldest first."""
    with db.read() as connection:
        return [Worker(**row) for row in connection.execute(select(table).order_by(table.c.started_at)).mappings()]


def gone(db: Database) -> list[str]:
    """Workers of this machine that died without leaving: nobody holds their lock any more. Their jobs can be rescued at once."""
    here = socket.gethostname()
    return [worker.id for worker in listing(db) if worker.host == here and _is_free(_lock_file(db.data, worker.id))]


def forget(db: Database, worker: str) -> None:
    """Strikes a worker off the list."""
    with db.write() as connection:
        connection.execute(delete(table).where(table.c.id == worker))
    _lock_file(db.data, worker).unlink(missing_ok=True)


def _lock_file(data: Path, worker: str) -> Path:
    if not worker.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{worker!r} is no worker id: letters, digits, - and _")
    return data / "workers" / f"{worker}.lock"


def _is_free(lock: Path) -> bool:
    """Whether the process that held the lock is gone. A lock that is missing lies in another data folder, and says nothing."""
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except (FileNotFoundError, BlockingIOError):
        return False
