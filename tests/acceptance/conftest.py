"""One real service and one real worker for the session, spoken to over HTTP alone."""

from collections.abc import Iterator

import pytest
from doors import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Tests share the jobs in it, so each looks at its own."""
    with House(tmp_path_factory.mktemp("house")) as opened:
        yield opened
