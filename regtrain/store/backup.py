"""Copies of the SQLite database: taken while it is in use, checked before they are trusted, put back when nothing uses it.

The files of jobs and datasets are never changed once they are published: copy the folders `jobs` and `datasets` after the
database, and every file to which the copy points is there. PostgreSQL has its own tools (pg_dump, pg_restore).
"""

import os
import shutil
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from regtrain.store.database import StoreError, sqlite
from regtrain.store.files import place, sync_folder
from regtrain.store.migrations import HEAD

_PAGES = 1024
"""Pages a step; between steps writers go on."""


def backup(database: Path, target: Path) -> Path:
    """Copies the database into one file, durably: first under a temporary name, and renamed only when it is found whole.

    Raises:
        StoreError: there is no such database, or the copy is damaged.
    """
    if not database.is_file():
        raise StoreError(f"there is no database {database}")
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as copy:
        try:
            with closing(sqlite.connect(database)) as source, closing(sqlite.connect(copy)) as destination:
                source.backup(destination, pages=_PAGES)
                destination.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        except sqlite.DatabaseError as error:
            raise StoreError(f"{database} cannot be copied: {error}") from error
        _check(copy)
        _sync(copy)
        return place(target.parent, copy, target)


def restore(source: Path, database: Path) -> Path:
    """Puts a backup in the place of a database that nothing uses.

    Raises:
        StoreError: the backup is damaged or no backup, or the database is in use.
    """
    if not source.is_file():
        raise StoreError(f"there is no file {source}")
    database = database.resolve()
    database.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(database) as copy:
        shutil.copyfile(source, copy)
        _check(copy)
        _sync(copy)
        if database.exists():
            _take_out_of_use(database)
        return place(database.parent, copy, database)


@contextmanager
def _temporary(target: Path) -> Generator[Path]:
    """A name beside the target; whatever is left under it is removed."""
    copy = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        yield copy
    finally:
        for left in (copy, Path(f"{copy}-wal"), Path(f"{copy}-shm"), Path(f"{copy}-journal")):
            left.unlink(missing_ok=True)
        sync_folder(target.parent)


def _check(copy: Path) -> None:
    try:
        with closing(sqlite.connect(copy)) as connection:
            verdict: Any = connection.execute("PRAGMA integrity_check").fetchall()
            version: Any = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite.DatabaseError as error:
        raise StoreError(f"this is no backup of a regtrain database: {error}") from error
    if verdict != [("ok",)]:
        raise StoreError(f"the copy is damaged: {verdict[0][0]}")
    if version[0] > HEAD:
        raise StoreError(f"the backup is of a newer version of regtrain ({version[0]}, here {HEAD})")


def _take_out_of_use(database: Path) -> None:
    """Leaving WAL mode needs the file alone: it fails while anyone has it open, and removes the log."""
    try:
        with closing(sqlite.connect(database, timeout=1)) as connection:
            mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    except sqlite.OperationalError as error:
        raise StoreError(f"{database} is in use ({error}): stop the service and the workers first") from error
    except sqlite.DatabaseError:
        mode = "delete"  # what stands there is damaged: that is why it is replaced
    if mode != "delete":
        raise StoreError(f"{database} is in use: stop the service and the workers first")
    for left in (Path(f"{database}-wal"), Path(f"{database}-shm")):
        left.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
