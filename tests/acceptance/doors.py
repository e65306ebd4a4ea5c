"""A service and a worker as processes of their own, and what a user does with them: HTTP, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ARTICLES: dict[str, Any] = json.loads((ROOT / "tests" / "reference" / "articles.json").read_text())
PATIENCE = 200.0
"""Seconds after which something that should have happened counts as not happening, on a machine that has ten other things to do."""
LISTENING = "regtrain service on "


class House:
    """A data folder with the service and the worker on it. Open as long as the context is."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._log = (folder / "log.txt").open("w+")
        self._service = self._start("service", "--port", "0", stdout=subprocess.PIPE)
        assert self._service.stdout is not None
        line = self._service.stdout.readline()
        assert line.startswith(LISTENING), self.said()
        self.url = line.removeprefix(LISTENING).strip()
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)
        self.worker = self.new_worker()

    def __enter__(self) -> "House":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        for process in (self.worker, self._service):
            process.send_signal(signal.SIGTERM)
        for process in (self.worker, self._service):
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
        assert self._service.stdout is not None
        self._service.stdout.close()
        self._log.close()

    def new_worker(self) -> "subprocess.Popen[str]":
        """Starts a worker; the one before it must be dead."""
        self.worker = self._start("worker", "--threads", "1", "--device", "cpu", "--checkpoint-seconds", "0.3")
        return self.worker

    def said(self) -> str:
        """What both processes have logged so far."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The job, as it was accepted."""
        answer = self.http.post("/v1/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        return answer.json()

    def job(self, job: str, **query: Any) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def until(self, job: str, condition: str = "terminal", *, met: Callable[[dict[str, Any]], bool] = lambda seen: False) -> dict[str, Any]:
        """The job when the condition of a long poll holds, or the job has ended."""
        end = time.monotonic() + PATIENCE
        while True:
            seen = self.job(job, wait=20, until=condition)
            if seen["terminal"] or met(seen):
                return seen
            assert time.monotonic() < end, f"{seen}\n{self.said()}"

    def trained(self, spec: dict[str, Any], *, state: str = "succeeded") -> dict[str, Any]:
        """The job when it has ended, as it should."""
        ended = self.until(self.submit(spec)["id"])
        assert ended["state"] == state, (ended["error"], self.said()[-3000:])
        return ended

    def moving(self, spec: dict[str, Any]) -> str:
        """The ID of a job that has reported its first points."""
        job = self.submit(spec)["id"]
        seen = self.until(job, "loss/train:lt:1e300", met=lambda seen: "loss/train" in seen["metrics"])
        assert seen["state"] == "running", seen
        return job

    def runs(self, job: str, **query: Any) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/jobs/{job}/runs", params={"limit": 5000, **query})
        assert answer.status_code == 200, answer.text
        return answer.json()["runs"]

    def curve(self, job: str, series: str, *, run: int = 0) -> dict[int, Any]:
        """Step → value of every point of one run; per-layer series have a list of values."""
        found = self._series(job, "curves", series, run)
        return dict(zip(found["x"], found["y"], strict=True))

    def gradient(self, job: str, series: str, *, run: int = 0) -> dict[int, list[float]]:
        """Step → one value a layer."""
        found = self._series(job, "gradients", series, run)
        return dict(zip(found["x"], found["y"], strict=True))

    def _series(self, job: str, kind: str, series: str, run: int) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job}/{kind}", params={"series": series, "runs": run, "points": 100_000})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["series"]
        assert found["exact"]
        return found

    def _start(self, module: str, *options: str, stdout: int | None = None) -> "subprocess.Popen[str]":
        plain = {name: value for name, value in os.environ.items() if not name.startswith("REGTRAIN_")}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, "--data", str(self.data), *options],
            stdin=subprocess.DEVNULL,
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**plain, "REGTRAIN_SELFTEST_SECONDS": "inf", "OMP_NUM_THREADS": "1"},
        )


def example(name: str) -> dict[str, Any]:
    """A spec from examples/."""
    return json.loads((EXAMPLES / f"{name}.json").read_bytes())


def eventually(condition: Callable[[], object], complaint: str) -> None:
    """Looks until it is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.02)
