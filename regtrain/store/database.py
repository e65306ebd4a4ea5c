"""The database: how it is opened, and its two ways in. One process at a time writes; readers never wait for it.

SQLite is the default and needs no server. Writing transactions begin IMMEDIATE behind one lock a process: a transaction
that reads first and writes later fails at once with SQLITE_BUSY_SNAPSHOT, whatever the timeout. PostgreSQL takes the
same verbs through psycopg.
"""

import fcntl
import importlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url

from regtrain.contract.errors import RegtrainError
from regtrain.store.tables import dumps

sqlite: Any = importlib.import_module("pysqlite3.dbapi2")
"""SQLite as bundled with pysqlite3: Python's own is often one whose WAL can corrupt."""

WAL_PAGES = 4096
"""Pages (of 4 KiB) in the write-ahead log at which a commit writes them back by itself. Quiet moments do it earlier."""
MOST_TOGETHER = 64
"""Items that one transaction writes at most."""
FREE_PAGES = 2048
"""Pages that deleted rows leave free before a quiet moment gives so many back."""
NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "ncpfs",
        "ceph",
        "glusterfs",
        "lustre",
        "beegfs",
        "gpfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.gcsfuse",
        "9p",
        "virtiofs",
    ]
)
"""File systems on which SQLite's locks or shared memory cannot be trusted."""


class StoreError(RegtrainError):
    """The database cannot be used: what is wrong with it, and what to do."""


T = TypeVar("T")


@dataclass
class _Waiting(Generic[T]):
    """Something that is to be written, and what became of it."""

    item: T
    done: bool = False
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class Database:
    """An open database and the data folder beside it. Not to be carried across fork()."""

    data: Path
    url: str
    writer: Engine
    reader: Engine
    lock: AbstractContextManager[Any]
    pid: int = field(default_factory=os.getpid)
    _waiting: deque[_Waiting[Any]] = field(default_factory=deque[_Waiting[Any]])
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def on_sqlite(self) -> bool:
        return self.writer.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One writing transaction: committed at the end, rolled back on an exception."""
        self._same_process()
        with self.lock, self.writer.begin() as connection:
            yield connection

    def write_together(self, item: T, write: Callable[[Connection, list[T]], None]) -> None:
        """Writes an item durably, in one transaction with all that other threads bring while the one before is being committed.

        Waiting for the disk is most of a small transaction; this shares it. If the transaction fails, each item is tried alone,
        so that nobody fails for another's sake. All callers must bring the same `write`.
        """
        mine = _Waiting(item)
        self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                self._write_waiting(mine, write)
        if mine.error is not None:
            raise mine.error

    def _write_waiting(self, mine: _Waiting[T], write: Callable[[Connection, list[T]], None]) -> None:
        batch: list[_Waiting[T]] = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
        if mine not in batch:
            batch.append(mine)
        for group in (batch, *([one] for one in batch)):
            waiting = [one for one in group if not one.done]
            if not waiting:
                return
            try:
                with self.write() as connection:
                    write(connection, [one.item for one in waiting])
            except Exception as error:
                if len(waiting) == 1:
                    waiting[0].error, waiting[0].done = error, True
            else:
                for one in waiting:
                    one.done = True

    @contextmanager
    def read(self) -> Generator[Connection]:
        """One consistent view, which cannot write. Not to be held across a stream: it keeps the log from shrinking."""
        self._same_process()
        with self.reader.connect() as connection:
            yield connection

    def write_back(self) -> None:
        """Moves the write-ahead log into the database, as far as no reader is in the way, and gives deleted pages back to the disk, a batch at a time.

        For quiet moments: it waits for the disk.
        """
        if self.on_sqlite:
            self._same_process()
            with self.lock, self.writer.connect() as connection:
                driver: Any = connection.connection.driver_connection  # these two are not to be inside of a transaction
                if driver.execute("PRAGMA freelist_count").fetchone()[0] > FREE_PAGES:
                    driver.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()
                driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def log_bytes(self) -> int:
        """Size of the write-ahead log; 0 on PostgreSQL."""
        log = Path(f"{self.writer.url.database}-wal")
        return log.stat().st_size if self.on_sqlite and log.exists() else 0

    def close(self) -> None:
        self.reader.dispose()
        self.writer.dispose()

    def _same_process(self) -> None:
        if os.getpid() != self.pid:
            raise StoreError("this database was opened by another process: SQLite does not cross fork(), so open it again")


def open_database(url: str | None, data: Path) -> Database:
    """Opens the database, and brings its tables up to date. Without a URL it is `regtrain.db` in the data folder.

    Raises:
        StoreError: an SQLite that can corrupt, a network file system, a database of a newer version, or no such server.
    """
    from regtrain.store.migrations import migrate

    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    address = make_url(url) if url else make_url("sqlite://").set(database=str(data / "regtrain.db"))
    if address.get_backend_name() == "sqlite":
        database = _open_sqlite(address.database or "", data)
    elif address.get_backend_name() == "postgresql":
        database = _open_postgresql(address.set(drivername="postgresql+psycopg").render_as_string(hide_password=False), data)
    else:
        raise StoreError(f"a database of kind {address.get_backend_name()!r} is not supported: use sqlite:///FILE or postgresql://…")
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def sqlite_engine(file: Path | str, *, begin: str, setup: tuple[str, ...] = (), **options: Any) -> Engine:
    """An engine on an SQLite file whose transactions open with `begin`, and whose connections run `setup` first."""
    engine = create_engine(f"sqlite:///{file}", module=sqlite, json_serializer=dumps, connect_args={"check_same_thread": False, "timeout": 30}, **options)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # the driver begins nothing by itself
        for statement in ("PRAGMA busy_timeout=30000", "PRAGMA foreign_keys=ON", "PRAGMA trusted_schema=OFF", *setup):
            connection.execute(statement)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql(begin)

    return engine


def safe_version(version: tuple[int, ...]) -> bool:
    """Whether this SQLite's WAL is free of the bug that corrupts when one connection writes while another writes back."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def file_system(path: Path, mounts: str) -> str:
    """The kind of file system on which a path lies, from the text of /proc/self/mountinfo; empty if unknown."""
    found, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        if len(point) >= len(found) and (path == Path(point) or Path(point) in path.parents):
            found, kind = point, right.split()[0]
    return kind


def _open_sqlite(file: str, data: Path) -> Database:
    if not safe_version(sqlite.sqlite_version_info):
        raise StoreError(f"SQLite {sqlite.sqlite_version} can corrupt a database in WAL mode: install a newer pysqlite3")
    if file in ("", ":memory:"):
        raise StoreError("a database in memory is forgotten: give it a file, sqlite:///FILE")
    path = Path(file).resolve()
    _refuse_network(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_ahead(path)
    writer = sqlite_engine(path, begin="BEGIN IMMEDIATE", setup=("PRAGMA synchronous=FULL", f"PRAGMA wal_autocheckpoint={WAL_PAGES}"), pool_size=1, max_overflow=0)
    reader = sqlite_engine(path, begin="BEGIN", setup=("PRAGMA query_only=ON",), pool_size=8, max_overflow=64)
    return Database(data=data, url=f"sqlite:///{path}", writer=writer, reader=reader, lock=threading.Lock())


def _refuse_network(folder: Path) -> None:
    mounts = Path("/proc/self/mountinfo")
    kind = file_system(folder, mounts.read_text()) if mounts.exists() else ""
    if kind in NETWORK:
        raise StoreError(f"{folder} lies on a network file system ({kind}), on which SQLite's locks do not hold: use a local folder, or PostgreSQL")


@contextmanager
def alone(path: Path | str) -> Generator[None]:
    """Among all processes that set up or migrate this file, the only one."""
    with Path(f"{path}.migrating").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_ahead(path: Path) -> None:
    """WAL mode stays with the file; the answer says whether it could be had."""
    try:
        with alone(path), closing(sqlite.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    except (sqlite.DatabaseError, OSError) as error:
        raise StoreError(f"{path} cannot be opened: {error}") from error
    if mode != "wal":
        raise StoreError(f"{path} cannot be put into WAL mode, it stays in {mode!r}: use a local folder")


def _open_postgresql(address: str, data: Path) -> Database:
    options: Any = {"json_serializer": dumps, "pool_pre_ping": True}
    engine = create_engine(address, pool_size=8, max_overflow=64, **options)
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Database(data=data, url=address, writer=engine, reader=reader, lock=nullcontext())
