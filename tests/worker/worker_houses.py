"""Real workers on a real SQLite file, and ways to wait for what they do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from processes import children_of
from sqlalchemy import func, select

from regtrain.contract.job import parse
from regtrain.contract.states import FINAL
from regtrain.store import jobs, workers
from regtrain.store.database import Database, open_database
from regtrain.store.tables import checkpoints

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {
    "dataset": {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]},
    "model": {"kind": "linear"},
    "loss": {"kind": "squared_error"},
    "optimizer": {"kind": "sgd", "lr": 0.01},
    "budget": {"epochs": 5, "batch_size": "all"},
}
"""Milliseconds."""
ENDLESS: dict[str, Any] = {**QUICK, "budget": {"epochs": 5_000_000, "batch_size": "all"}, "diagnostics": "off"}
PATIENCE = 200.0
"""Seconds after which something that should have happened counts as not happening, on a machine that has ten other things to do."""

_opening = threading.Lock()
"""alembic migrates one database of a process at a time."""


class House:
    """A data folder with its database, and the workers on it."""

    def __init__(self, data: Path, url: str | None = None) -> None:
        self.data = data
        with _opening:
            self.db: Database = open_database(url, data)
        self.started: list[subprocess.Popen[bytes]] = []

    def submit(self, spec: dict[str, Any]) -> str:
        return jobs.submit(self.db, parse(json.dumps(spec)), given=spec, warnings=[]).id

    def start(self, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A worker process of its own; what it says goes to a file in the data folder."""
        with (self.data / f"worker-{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker", "--data", str(self.data), "--threads", "1", "--device", "cpu", *options],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        self.started.append(process)
        return process

    def said(self) -> list[dict[str, Any]]:
        """The log lines of all workers so far; one that is half written has not yet been said."""
        lines = [line for log in sorted(self.data.glob("worker-*.log")) for line in log.read_bytes().split(b"\n")[:-1]]
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def job(self, job: str) -> jobs.Job:
        return jobs.get(self.db, job)

    def ended(self, job: str) -> jobs.Job:
        until(lambda: self.job(job).state in FINAL)
        return self.job(job)

    def ready(self, count: int) -> None:
        """Waits until so many living workers have registered."""
        until(lambda: len(self._living()) >= count)

    def moved(self, job: str) -> None:
        """Waits until the job trains."""
        until(lambda: self.job(job).progress["step"] > 0)

    def holder(self, job: str) -> psutil.Process:
        """The process of the worker that has the job.

        Raises:
            KeyError: nobody has it.
        """
        held = {r.job: r.worker for r in jobs.running(self.db)}[job]
        return psutil.Process({w.id: w.pid for w in workers.listing(self.db)}[held])

    def checkpoints(self, job: str) -> int:
        with self.db.read() as connection:
            return connection.execute(select(func.count()).where(checkpoints.c.job == job)).scalar_one()

    def files(self, job: str) -> dict[str, tuple[int, int]]:
        """Every file and folder of a job, with its size and the time of its last change."""
        found: dict[str, tuple[int, int]] = {}
        for folder, folders, names in os.walk(self.data / "jobs" / job):
            for path in (Path(folder, name) for name in folders + names):
                with suppress(FileNotFoundError):  # a worker is tidying up
                    found[str(path.relative_to(self.data))] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        with ExitStack() as last:
            last.callback(self.db.close)
            for process in self.started:
                last.callback(process.kill)
            for process in self.started:
                process.wait(PATIENCE)

    def _living(self) -> set[str]:
        """Workers that have registered and not died. Who died is asked first: in between, another worker may strike it off the list."""
        dead = workers.gone(self.db)
        return {worker.id for worker in workers.listing(self.db)}.difference(dead)


def child_of(worker: psutil.Process) -> psutil.Process:
    """The trainer of a worker; after the end of one the next one starts."""
    until(lambda: children_of(worker, "worker.trainer"))
    return children_of(worker, "worker.trainer")[0]


def until(condition: Callable[[], object]) -> None:
    """Looks until it is so; fails when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE} s"
        time.sleep(0.01)
