"""Real databases: an SQLite file a test, and a database on a real PostgreSQL server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from regtrain.store.database import Database, open_database
from regtrain.store.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind."""
    opened = open_database(request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None, tmp_path)
    empty(opened)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_db(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(None, tmp_path)
    yield opened
    opened.close()


def empty(db: Database) -> None:
    with db.write() as connection:
        if db.on_sqlite:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        else:
            connection.execute(text("TRUNCATE " + ", ".join(f'"{table.name}"' for table in metadata.sorted_tables) + " CASCADE"))
