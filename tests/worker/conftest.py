from collections.abc import Iterator
from contextlib import closing

import pytest
from worker_houses import House


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A fresh data folder; all its workers end with the module."""
    with closing(House(tmp_path_factory.mktemp("house"))) as one:
        yield one
