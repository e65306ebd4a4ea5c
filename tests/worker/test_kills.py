"""Two workers, and one of them dies, stops, or leaves in mid-run: the job ends as if nothing had happened."""

import asyncio
import random
import signal
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from outcomes import complete, outcome, same
from processes import children_of, is_over
from worker_houses import House, child_of, until

from regtrain.contract.states import State, StopReason
from service.app import create_app
from service.settings import Settings

SPEC: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2, "standardize": True},
    "model": {"kind": "mlp", "hidden": [24], "activation": "relu"},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "dropout", "rate": 0.2}, {"kind": "l2", "lambda": 1e-4}, {"kind": "early_stopping", "patience": 6}],
    "optimizer": {"kind": "adam", "lr": {"values": [0.00003, 0.0001, 0.001, 0.01]}, "schedule": {"kind": "cosine", "warmup_steps": 20}},
    "budget": {"epochs": 60, "batch_size": 64},
    "selection": {"seeds": 2},
    "seed": 11,
}
"""8 runs of Adam with dropout, of which some stop early and some do not."""
MOMENTS = [random.Random(2026 + i).uniform(0.3, 0.65) for i in range(10)]
"""Shares of the steps at which something is killed."""
LEASE = "8"


@dataclass
class Pair:
    """Two workers on one house, at any time."""

    house: House
    options: tuple[str, ...] = ("--lease-seconds", LEASE, "--checkpoint-seconds", "0")
    processes: list[Any] = field(default_factory=list)

    def complete(self) -> None:
        """Replaces who is no longer there. One who can start at once is enough to go on."""
        self.processes = [process for process in self.processes if process.poll() is None]
        while len(self.processes) < 2:
            self.processes.append(self.house.start(*self.options))
        self.house.ready(1)


@pytest.fixture(scope="module")
def pair(house: House) -> Pair:
    one = Pair(house)
    one.complete()
    return one


@pytest.fixture(scope="module")
def uninterrupted(house: House, pair: Pair) -> dict[str, Any]:
    job = house.ended(house.submit(SPEC))
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    found = outcome(house, job.id) | {"bodies": bodies(house, job.id)}
    reasons = {run.stop_reason for run in found["runs"]}
    assert reasons == {StopReason.EARLY_STOPPING, StopReason.BUDGET}
    return found


@pytest.mark.parametrize("moment", range(10))
def test_killed_and_resumed_equals_the_uninterrupted_job(house: House, pair: Pair, uninterrupted: dict[str, Any], moment: int) -> None:
    """Even moments kill the child, odd ones the worker; the store is as it was at the kill."""
    pair.complete()
    job, steps = house.submit(SPEC), max(run.steps for run in uninterrupted["runs"])
    until(lambda: house.checkpoints(job) >= 2 and house.job(job).progress["step"] >= MOMENTS[moment] * steps, 120)
    worker = house.holder(job)
    (child_of(worker) if moment % 2 == 0 else worker).kill()
    at = house.job(job)
    assert house.checkpoints(job) >= 2
    assert at.progress["step"] < 0.8 * steps
    ended = house.ended(job)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    complete(house, job)
    same(outcome(house, job), uninterrupted)
    assert bodies(house, job) == uninterrupted["bodies"]


def bodies(house: House, job: str) -> list[bytes]:
    """What the service answers about the curves and gradients of a job, every point of it, without the job's own ID."""

    async def asked() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as http:
            return [await http.get(f"/v1/jobs/{job}/{room}?points=10000") for room in ("curves", "gradients")]

    app = create_app(Settings(data=house.data))
    with closing(app.state.database):
        answers = asyncio.run(asked())
    assert [answer.status_code for answer in answers] == [200, 200]
    return [answer.content.replace(job.encode(), b"") for answer in answers]


def test_sigterm_leaves_a_checkpoint_and_no_crash(house: House, pair: Pair, uninterrupted: dict[str, Any]) -> None:
    pair.complete()
    job = house.submit(SPEC)
    until(lambda: house.checkpoints(job) >= 1, 120)
    leaving = house.holder(job)
    process = next(one for one in pair.processes if one.pid == leaving.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(25) == 0
    ended = house.ended(job)
    assert (ended.state, ended.attempt, ended.crashes) == (State.SUCCEEDED, 2, 0)
    assert any(line["event"] == "ended" and line["job"] == job and line["how"] == "released: queued" for line in house.said())
    same(outcome(house, job), uninterrupted)


def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(house: House, pair: Pair, uninterrupted: dict[str, Any]) -> None:
    pair.complete()
    job = house.submit(SPEC)
    until(lambda: house.checkpoints(job) >= 1, 120)
    zombie = house.holder(job)
    child = child_of(zombie)
    zombie.suspend()
    child.suspend()
    ended = house.ended(job)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    until(lambda: not any("scratch" in name for name in house.files(job)), 60)
    before = _rows(house, job), house.files(job)
    child.resume()
    zombie.resume()
    until(lambda: is_over(child), 60)
    until(lambda: any(line["event"] == "lost" and line["job"] == job for line in house.said()), 60)
    until(lambda: len(children_of(zombie, "worker.trainer")) == 1, 60)
    assert (_rows(house, job), house.files(job)) == before
    same(outcome(house, job), uninterrupted)


def _rows(house: House, job: str) -> str:
    """All rows of a job in all tables."""
    from regtrain.store.tables import metadata

    with house.db.read() as connection:
        owned = [table for table in metadata.sorted_tables if table.name == "jobs" or ("job" in table.c and table.name != "workers")]
        return repr([connection.execute(table.select().where((table.c.id if table.name == "jobs" else table.c.job) == job)).all() for table in owned])
