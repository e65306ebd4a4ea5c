"""One server a module: its tests share a database, so each looks only at what it has made itself."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog
from serving import Serving, serving

os.environ.setdefault("OMP_NUM_THREADS", "1")
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running
