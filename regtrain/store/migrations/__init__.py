"""Brings the tables of a database up to date when it is opened. The steps are alembic's, in `versions/`."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from regtrain.store.database import Database, StoreError, alone, sqlite_engine

HEAD = "0007"
"""The newest step, so that opening a database that is up to date does not load alembic."""
_LOCK = 0x72656774
"""PostgreSQL's advisory lock of this program's migrations."""


def migrate(database: Database) -> None:
    """Brings the database up to date. Of several processes one does it and the others wait.

    Raises:
        StoreError: it was written by a newer version, cannot be reached, or would have lost references.
    """
    try:
        with database.read() as connection:
            if _revision(connection) == HEAD:
                return
    except OperationalError as error:
        raise StoreError(f"the database cannot be reached: {error.orig}") from error
    with _alone(database) as connection:
        if _revision(connection) != HEAD:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@contextmanager
def _alone(database: Database) -> Generator[Connection]:
    """One transaction that no other migration can overlap."""
    if not database.on_sqlite:
        with database.writer.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            yield connection
        return
    file = database.writer.url.database
    # alembic rebuilds a table to change it, and dropping the old one deletes its children unless foreign keys are off before BEGIN.
    engine = sqlite_engine(f"{file}", begin="BEGIN IMMEDIATE", setup=("PRAGMA foreign_keys=OFF", "PRAGMA synchronous=FULL"), poolclass=NullPool)
    with alone(f"{file}"), engine.begin() as connection:
        yield connection
        if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
            raise StoreError(f"the migration would leave {len(broken)} rows whose parent is gone, first in table {broken[0][0]!r}: nothing was changed")


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"the database was written by a newer version of regtrain: {error}") from error
