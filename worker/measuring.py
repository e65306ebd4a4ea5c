"""The laws of worker/training/selftest.py, measured for a worker by `python -P -m worker selftest` in a process of its own, which ends with the worker.

Not in the trainer, which would keep a job waiting for seconds, and would keep the memory of nets of width 512. What a worker measures by itself, it
measures at the lowest priority; where somebody asks, he waits.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from typing import Any

SECONDS = 1800.0
"""After so long a measurement is given up."""
MOST_WORDS = 2000
"""Characters of what a process that gave no outcome has said last."""


class Measuring:
    """One measurement under way. `asked`: the mark in the worker's row that it answers; None: begun by the worker itself."""

    def __init__(self, *, device: str, threads: int | None, asked: datetime | None) -> None:
        self.asked = asked
        self._deadline = time.monotonic() + SECONDS
        with ExitStack() as files:
            self._said, self._complaints = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            self._files = files.pop_all()
        command = [sys.executable, "-P", "-m", "worker", "selftest", "--json", "--device", device, "--parent", str(os.getpid()), "--nice", "0" if asked else "19"]
        variables = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command if threads is None else [*command, "--threads", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._complaints,
            process_group=0,
            env={**os.environ, **variables},
        )

    def outcome(self) -> dict[str, Any] | None:
        """What was measured: ok (None: nothing), laws, environment, error (why nothing was); None as long as it goes on."""
        late = time.monotonic() >= self._deadline
        if self._process.poll() is None and not late:
            return None
        said, complaints = self._ended()
        try:
            found = json.loads(said)
            return {"ok": found["ok"], "laws": found["laws"], "environment": found["environment"], "error": None}
        except ValueError:
            why = f"nothing within {SECONDS:g} seconds" if late else f"exit code {self._process.returncode}"
            return {"ok": None, "laws": [], "environment": {}, "error": f"the laws were not measured: {why}\n{complaints[-MOST_WORDS:]}".strip()}

    def stop(self) -> None:
        """Ends it without an outcome."""
        self._ended()

    def _ended(self) -> list[str]:
        """What it has said, and its complaints."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        with self._files:
            for file in (self._said, self._complaints):
                file.seek(0)
            return [file.read().decode(errors="replace") for file in (self._said, self._complaints)]
