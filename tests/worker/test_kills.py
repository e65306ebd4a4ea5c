"""Two workers, and one of them dies, stops, or leaves in mid-run: the job ends as if nothing had happened."""

import asyncio
import random
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from dying import DYING
from outcomes import complete, outcome, same
from processes import children_of, is_over
from worker_houses import PATIENCE, House, child_of, until

from regtrain.contract.states import FINAL, State, StopReason
from regtrain.store.database import sqlite
from regtrain.store.jobs import Job
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
LEASE, SHORT_LEASE = "60", "3"
"""Seconds. One that only starves on a busy machine keeps its job; the short one is for who watches a worker that was stopped."""
MOST_TRIES = 5


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

    def struck(self, spec: dict[str, Any], *, when: Callable[[str], object], blow: Callable[[psutil.Process], object]) -> Job:
        """A job that had to be taken up again since its worker was dealt a blow when it was so far. One that ended before it was hit shows nothing: then another."""
        for _ in range(MOST_TRIES):
            self.complete()
            job = self.house.submit(spec)
            until(lambda job=job: when(job) or self.house.job(job).state in FINAL)
            with suppress(KeyError):  # it has ended
                blow(self.house.holder(job))
            ended = self.house.ended(job)
            if ended.attempt > 1:
                return ended
        raise AssertionError(f"{MOST_TRIES} jobs ended before they could be struck")


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
    least = MOMENTS[moment] * max(run.steps for run in uninterrupted["runs"])
    ended = pair.struck(
        SPEC,
        when=lambda job: house.checkpoints(job) >= 2 and house.job(job).progress["step"] >= least,
        blow=lambda worker: (child_of(worker) if moment % 2 == 0 else worker).kill(),
    )
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    complete(house, ended.id)
    same(outcome(house, ended.id), uninterrupted)
    assert bodies(house, ended.id) == uninterrupted["bodies"]


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


def test_a_job_that_is_killed_after_surgery_begins_from_the_same_weights_again(house: House, pair: Pair) -> None:
    """With seeds that revive different weights, and an attempt that finds them in the earlier job's file, not in its memory."""
    first = house.ended(house.submit(DYING))
    spec = {**DYING, "optimizer": {"kind": "sgd", "lr": 0.01}, "budget": {"epochs": 60, "batch_size": 64}, "selection": {"seeds": 4}}
    spec["begin"] = {"job": first.id, "run": 0, "surgery": [{"kind": "revive"}, {"kind": "rebalance"}]}
    whole = house.ended(house.submit(spec))
    assert (whole.state, whole.attempt) == (State.SUCCEEDED, 1)
    (told,) = (whole.result or {})["begin"]
    assert [done["applied"] for done in told["operations"]] == [True, True]
    assert told["operations"][0]["fire"] > 0
    expected, least = outcome(house, whole.id), 0.4 * whole.progress["steps"]
    ended = pair.struck(spec, when=lambda job: house.checkpoints(job) and house.job(job).progress["step"] >= least, blow=lambda worker: worker.kill())
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    complete(house, ended.id)
    same(outcome(house, ended.id), expected)
    assert (ended.result or {})["begin"] == [told]


def test_sigterm_leaves_a_checkpoint_and_no_crash(house: House, pair: Pair, uninterrupted: dict[str, Any]) -> None:
    def leave(worker: psutil.Process) -> None:
        process = next(one for one in pair.processes if one.pid == worker.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

    ended = pair.struck(SPEC, when=house.checkpoints, blow=leave)
    assert (ended.state, ended.attempt, ended.crashes) == (State.SUCCEEDED, 2, 0)
    assert any(line["event"] == "ended" and line["job"] == ended.id and line["how"] == "released: queued" for line in house.said())
    same(outcome(house, ended.id), uninterrupted)


def test_a_worker_that_was_stopped_past_its_lease_changes_nothing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    with closing(House(tmp_path)) as house:
        zombie = psutil.Process(house.start("--lease-seconds", LEASE, "--checkpoint-seconds", "0").pid)
        job, child = stopped(house, zombie)
        house.start("--lease-seconds", SHORT_LEASE)
        ended = house.ended(job)
        assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
        until(lambda: not any("scratch" in name for name in house.files(job)))
        before = _rows(house, job), house.files(job)
        child.resume()
        zombie.resume()
        until(lambda: is_over(child))
        until(lambda: any(line["event"] == "lost" and line["job"] == job for line in house.said()))
        until(lambda: len(children_of(zombie, "worker.trainer")) == 1)
        assert (_rows(house, job), house.files(job)) == before
        same(outcome(house, job), uninterrupted)


def stopped(house: House, worker: psutil.Process) -> tuple[str, psutil.Process]:
    """A job in whose midst its worker and the trainer, which is returned too, were suspended."""
    for _ in range(MOST_TRIES):
        job = house.submit(SPEC)
        until(lambda job=job: house.checkpoints(job))
        child = child_of(worker)
        until(lambda: rests(house, worker))
        child.suspend()
        if house.job(job).state is State.RUNNING:
            return job, child
        child.resume()
        worker.resume()
    raise AssertionError(f"{MOST_TRIES} jobs ended before they could be stopped")


def rests(house: House, worker: psutil.Process) -> bool:
    """Suspends a worker, unless it is just writing: it would keep the database locked for everybody."""
    worker.suspend()
    until(lambda: worker.status() == psutil.STATUS_STOPPED)
    with closing(sqlite.connect(house.data / "regtrain.db", timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite.OperationalError:
            worker.resume()
            return False
    return True


def _rows(house: House, job: str) -> str:
    """All rows of a job in all tables."""
    from regtrain.store.tables import metadata

    with house.db.read() as connection:
        owned = [table for table in metadata.sorted_tables if table.name == "jobs" or ("job" in table.c and table.name != "workers")]
        return repr([connection.execute(table.select().where((table.c.id if table.name == "jobs" else table.c.job) == job)).all() for table in owned])
