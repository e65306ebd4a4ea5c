"""A real server on a free port with a real database, and jobs that are trained by hand through the store's verbs."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from safetensors.numpy import save_file

from regtrain.contract.events import Finished, Points, RunFinished, Started
from regtrain.contract.runs import expand
from regtrain.contract.states import RunState, StopReason
from regtrain.store import files, jobs
from regtrain.store.database import Database
from service.app import create_app
from service.settings import Settings

LINEAR: dict[str, Any] = {
    "dataset": {"kind": "inline", "x": [[1], [2], [3], [4], [5]], "y": [2, 4, 7, 11, 16]},
    "model": {"kind": "linear"},
    "loss": {"kind": "half_squared_error"},
    "optimizer": {"kind": "sgd", "lr": 0.05},
    "budget": {"epochs": 100, "batch_size": "all"},
}
"""A spec that the service accepts."""
PATIENCE = 200.0
"""Seconds after which something that should have happened counts as not happening, on a machine that has ten other things to do."""
AT_ONCE = 30.0
"""Seconds within which a wait of 50 that is answered was not merely over."""


@dataclass(frozen=True)
class Serving:
    """A running server. `http` talks to it; `database` is its own, to look behind the answers."""

    url: str
    app: FastAPI
    http: httpx.Client

    @property
    def database(self) -> Database:
        return self.app.state.database

    @property
    def data(self) -> Path:
        return self.database.data

    def submit(self, spec: dict[str, Any] | None = None, **more: Any) -> str:
        """Submits a spec and returns the job's ID."""
        answer = self.http.post("/v1/jobs", json={**LINEAR, **(spec or {}), **more})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def job(self, job: str) -> dict[str, Any]:
        return self.http.get(f"/v1/jobs/{job}").json()

    def claim(self, job: str) -> jobs.Claim:
        """Takes this job, as a worker would; jobs that wait before it are taken too, and kept."""
        while True:
            claim = jobs.claim(self.database, worker="hand")
            assert claim is not None, f"{job} is not in the queue"
            if claim.job == job:
                return claim

    def train(self, job: str, values: dict[str, np.ndarray], *, layers: list[str] | None = None, times: dict[str, int] | None = None, steps_per_epoch: int = 1) -> None:
        """Claims a job of one pack, reports these points ((n, R) or (n, R, L), at steps 0 … n−1), and finishes it."""
        claim = self.claim(job)
        report(self.database, claim, values, layers=layers or ["head"], times=times, steps_per_epoch=steps_per_epoch)
        runs = next(iter(values.values())).shape[1]
        steps = len(next(iter(values.values())))
        ends = [
            RunFinished(run=r, state=RunState.SUCCEEDED, stop_reason=StopReason.BUDGET, steps=steps, metrics={"loss/train": 0.5 / (r + 1)}, zeros={"head.weight": r})
            for r in range(runs)
        ]
        jobs.report(self.database, claim, ends)
        temporary = files.scratch(self.data, job, claim.attempt) / "model.safetensors"
        save_file({"head.weight": np.ones((runs, 1, 1), np.float32)}, temporary)
        digest = sha256(temporary.read_bytes()).hexdigest()
        place = files.publish(self.data, temporary, job=job, attempt=claim.attempt, name="model.safetensors")
        jobs.finish(self.database, claim, Finished(result={"chosen_run": 0, "values": expand(claim.spec)[0].values, "coefficients": None}, path=str(place), sha256=digest), place)


def report(database: Database, claim: jobs.Claim, values: dict[str, np.ndarray], *, layers: list[str], times: dict[str, int] | None = None, steps_per_epoch: int = 1) -> None:
    """Reports the start of training and all points."""
    first = next(iter(values.values()))
    n, runs = first.shape[:2]
    started = Started(
        runs=runs,
        packs=[list(range(runs))],
        steps=n,
        steps_per_epoch=steps_per_epoch,
        layers=layers,
        times=times or {},
        series=list(values),
        penalised={},
        step_order=["gradient", "step"],
        environment={"device": "cpu"},
    )
    steps = {name: np.arange(len(array)) for name, array in values.items()}
    counts = {name: np.full(runs, len(array)) for name, array in values.items()}
    jobs.report(database, claim, [started, Points(pack=0, step=n, steps=steps, values=values, counts=counts)])


@contextmanager
def serving(data: Path, **settings: Any) -> Iterator[Serving]:
    """Serves a data folder as long as the context is open."""
    app = create_app(Settings(data=data, **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        eventually(lambda: server.started, "the server has not started")
        with httpx.Client(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None)) as http:
            yield Serving(url, app, http)
    finally:
        if server.started:
            app.state.stop()
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        app.state.database.close()


def eventually(condition: Callable[[], Any], complaint: str) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, complaint
        threading.Event().wait(0.005)


def assert_problem(answer: httpx.Response, status: int, *, path: str | None = None) -> dict[str, Any]:
    """An answer that is a problem in the sense of RFC 9457, with this status and, among its errors, this path with a hint."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    assert body["type"].startswith("urn:regtrain:")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    if path is not None:
        hints = {error["path"]: error["hint"] for error in body["errors"]}
        assert path in hints, body["errors"]
        assert hints[path], f"no hint at {path}: {body['errors']}"
    return body
