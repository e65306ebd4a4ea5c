"""One worker and what can be asked of it, through the store."""

import json
import signal

import numpy as np
import psutil
import pytest
from sqlalchemy import select
from worker_houses import ENDLESS, PATIENCE, QUICK, House, child_of, until

from regtrain.contract.events import Points, RunFinished
from regtrain.contract.job import parse
from regtrain.contract.states import Failure, RunState, State
from regtrain.store import jobs, nudge, runs, series, workers
from regtrain.store.database import Database
from regtrain.store.tables import checkpoints
from regtrain.store.tables import jobs as table
from worker.training.train import train


@pytest.fixture(scope="module")
def worker(house: House) -> psutil.Process:
    process = house.start("--poll-seconds", "600", "--checkpoint-seconds", "0")
    house.ready(1)
    return psutil.Process(process.pid)


def test_stores_what_training_reports(house: House, worker: psutil.Process) -> None:
    spec = {**QUICK, "regularizers": [{"kind": "l1", "lambda": {"values": [0, 1, 8]}}]}
    done = house.ended(house.submit(spec))
    assert done.state is State.SUCCEEDED
    assert done.attempt == 1
    assert done.progress["step"] == 5
    alone = list(train(parse(json.dumps(spec))))
    reported = [event for event in alone if isinstance(event, Points)]
    names = series.names(house.db, done.id)
    assert set(names) == {name for points in reported for name in points.steps}
    for name in names:
        whole = np.concatenate([points.values[name] for points in reported])
        for curve in series.read(house.db, done.id, series=[name]):
            assert np.array_equal(curve.y, whole[:, curve.run], equal_nan=True), name
    finished = [event for event in alone if isinstance(event, RunFinished)]
    stored, _ = runs.listing(house.db, done.id)
    assert [(run.index, run.state, run.metrics, run.zeros) for run in stored] == [(event.run, RunState.SUCCEEDED, event.metrics, event.zeros) for event in finished]


def test_keeps_only_files_to_which_rows_point(house: House, worker: psutil.Process) -> None:
    job = house.ended(house.submit(QUICK)).id
    until(lambda: not any("scratch" in name for name in house.files(job)))
    with house.db.read() as connection:
        kept = connection.execute(select(checkpoints.c.path).where(checkpoints.c.job == job)).scalars().all()
    assert sorted(house.files(job)) == sorted([f"jobs/{job}/1", f"jobs/{job}/1/model.safetensors", *kept])


def test_a_submission_wakes_a_worker_that_would_not_look_for_ten_minutes(house: House, worker: psutil.Process) -> None:
    house.ended(house.submit(QUICK))
    assert jobs.claim(house.db, worker="nobody") is None
    assert house.ended(house.submit(QUICK)).state is State.SUCCEEDED


def test_cancels_a_running_job_and_keeps_the_child(house: House, worker: psutil.Process) -> None:
    job, child = house.submit(ENDLESS), child_of(worker)
    house.moved(job)
    jobs.cancel(house.db, job)
    assert house.ended(job).state is State.CANCELLED
    assert house.ended(house.submit(QUICK)).state is State.SUCCEEDED
    assert child_of(worker).pid == child.pid


def test_kills_a_child_that_does_not_obey(house: House, worker: psutil.Process) -> None:
    job, child = house.submit(ENDLESS), child_of(worker)
    house.moved(job)
    child.suspend()
    jobs.cancel(house.db, job)
    ended = house.ended(job)
    assert ended.state is State.CANCELLED
    assert ended.finished_at is not None
    assert not child.is_running()


def test_a_pause_stops_at_a_checkpoint_and_is_no_crash(house: House, worker: psutil.Process) -> None:
    job = house.submit(ENDLESS)
    house.moved(job)
    _intend(house.db, job, "pausing")
    until(lambda: house.job(job).state is State.PAUSED)
    assert house.job(job).crashes == 0
    assert house.checkpoints(job) >= 1
    jobs.cancel(house.db, job)


def test_missing_files_of_a_dataset_fail_the_job_and_say_where_to_put_them(house: House, worker: psutil.Process) -> None:
    mnist = {**QUICK, "dataset": {"kind": "mnist"}, "loss": {"kind": "cross_entropy"}, "budget": {"epochs": 1}}
    job = house.ended(house.submit(mnist))
    assert (job.state, job.reason) == (State.FAILED, Failure.DATA)
    assert job.error is not None
    assert str(house.data / "mnist") in job.error["message"]
    until(lambda: house.files(job.id) == {})


def test_a_diverged_job_fails_once(house: House, worker: psutil.Process) -> None:
    job = house.ended(house.submit({**QUICK, "optimizer": {"kind": "sgd", "lr": 1e6}, "budget": {"epochs": 200, "batch_size": "all"}}))
    assert (job.state, job.reason, job.attempt) == (State.FAILED, Failure.DIVERGED, 1)


def test_a_killed_child_is_replaced_and_its_job_goes_on(house: House, worker: psutil.Process) -> None:
    job, child = house.submit(ENDLESS), child_of(worker)
    until(lambda: house.checkpoints(job))
    child.kill()
    until(lambda: house.job(job).attempt == 2 and house.job(job).progress["step"] > 0)
    assert house.job(job).crashes <= 1
    jobs.cancel(house.db, job)
    assert house.ended(job).state is State.CANCELLED


def test_leaves_cleanly_when_idle(house: House, worker: psutil.Process) -> None:
    until(lambda: not jobs.running(house.db))
    worker.send_signal(signal.SIGINT)
    assert house.started[0].wait(PATIENCE) == 0
    assert workers.listing(house.db) == []
    assert list((house.data / "workers").iterdir()) == []


def _intend(db: Database, job: str, intent: str) -> None:
    """Pausing has no verb yet; the worker obeys the column."""
    with db.write() as connection:
        connection.execute(table.update().where(table.c.id == job).values(intent=intent))
    nudge.wake(db.data, "workers")
