"""Death at every named place, every time that a job passes there: what comes out is what the uninterrupted run gives."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from outcomes import complete, outcome, same
from sqlalchemy import text
from worker_houses import PATIENCE, QUICK, House

from regtrain.contract.events import Finished
from regtrain.contract.states import Failure, State
from regtrain.store import jobs, workers
from worker.attempt import Attempt
from worker.child import Child, Inbox, Ready
from worker.crash import POINTS
from worker.settings import Settings

SPEC: dict[str, Any] = {
    "dataset": {"kind": "iris", "validation": 0.2, "standardize": True},
    "model": {"kind": "mlp", "hidden": [8]},
    "loss": {"kind": "cross_entropy"},
    "regularizers": [{"kind": "dropout", "rate": 0.1}, {"kind": "l1", "lambda": {"values": [0.0001, 0.001]}}],
    "optimizer": {"kind": "adam", "lr": 0.003},
    "budget": {"epochs": 5, "batch_size": 16},
    "seed": 3,
}
"""Some hundredths of a second, and one checkpoint."""
LONGER: dict[str, Any] = {**SPEC, "budget": {"epochs": 300, "batch_size": 16}}
"""A second: checkpoints before the last."""
MOST_HITS = 60


class Trainer:
    """A trainer in this process's hands, on which the loop's own attempts are driven: saves a start of the loop a death."""

    def __init__(self) -> None:
        self._inbox: Inbox = queue.Queue(64)
        self.child = Child(device="cpu", threads=1, inbox=self._inbox)
        assert isinstance(self._next(), Ready)

    def attempt(self, house: House, job: str, *, at_once: bool = False) -> str:
        """Claims the job and follows it to the end of the attempt; says how that was. `at_once`: as if the loop had slept until then."""
        claim = jobs.claim(house.db, worker="test")
        assert claim is not None
        assert claim.job == job
        attempt = Attempt(house.db, claim, self.child, Settings(data=house.data, checkpoint_seconds=0))
        attempt.begin()
        if at_once:
            said = [self._next()]
            while not isinstance(said[-1], Finished):
                said.append(self._next())
            attempt.take(said)
        while not attempt.over:
            attempt.take([self._next()])
            attempt.tick(leaving=0, nudged=False)
        return attempt.ending

    def close(self) -> None:
        self.child.close()

    def _next(self) -> Any:
        _, said = self._inbox.get(timeout=PATIENCE)
        return said


@pytest.fixture(scope="module")
def trainers() -> Iterator["queue.Queue[Trainer]"]:
    """Two that are warm, for whoever needs one."""
    free: queue.Queue[Trainer] = queue.Queue()
    for _ in range(2):
        free.put(Trainer())
    yield free
    for _ in range(2):
        free.get(timeout=PATIENCE).close()


@pytest.fixture(scope="module")
def uninterrupted(house: House, trainers: "queue.Queue[Trainer]") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with _one_of(trainers) as trainer:
        for name, spec in (("short", SPEC), ("longer", LONGER)):
            job = house.submit(spec)
            assert trainer.attempt(house, job) == "succeeded"
            found[name] = outcome(house, job)
    return found


def test_the_loop_dies_anywhere(tmp_path: Path, trainers: "queue.Queue[Trainer]", uninterrupted: dict[str, dict[str, Any]]) -> None:
    def die_at(place: str, n: int, *, longer: bool = False) -> str | None:
        with closing(House(tmp_path / f"{place}-{n}-{longer}")) as house:
            job, marker = house.submit(LONGER if longer else SPEC), house.data / "died"
            code = house.start("--idle-exit", "0", "--checkpoint-seconds", "0", REGTRAIN_CRASH=f"{place}:{n}:{marker}").wait(PATIENCE)
            place = marker.read_text() if marker.exists() else None
            assert code == (0 if place is None else -9)
            if house.job(job).state is State.RUNNING:
                assert [r.worker for r in jobs.running(house.db)] == workers.gone(house.db)
                (held,) = jobs.running(house.db)
                assert jobs.rescue(house.db, held.job, held.attempt, held.beat) is State.QUEUED
                with _one_of(trainers) as trainer:
                    assert trainer.attempt(house, job) == "succeeded"
            complete(house, job)
            same(outcome(house, job), uninterrupted["longer" if longer else "short"])
            return place

    _sweep(die_at, "loop.")
    for place in ("loop.points", "loop.renamed", "loop.checkpointed"):
        assert die_at(place, 2, longer=True) == place


def test_a_checkpoint_is_recorded_after_its_points_even_when_all_arrive_together(house: House, trainers: "queue.Queue[Trainer]", uninterrupted: dict[str, dict[str, Any]]) -> None:
    """The database itself refuses a checkpoint whose points it does not have: loss/train of t updates ends at step t − 1."""
    behind = "coalesce((SELECT max(last_step) FROM series WHERE job = NEW.job AND pack = NEW.pack AND name = 'loss/train'), -1) < NEW.step - 1"
    with house.db.write() as connection:
        connection.execute(text(f"CREATE TRIGGER in_order BEFORE INSERT ON checkpoints WHEN {behind} BEGIN SELECT RAISE(ABORT, 'before its points'); END"))
    job = house.submit(LONGER)
    with _one_of(trainers) as trainer:
        assert trainer.attempt(house, job, at_once=True) == "succeeded"
    with house.db.write() as connection:
        connection.execute(text("DROP TRIGGER in_order"))
    assert house.checkpoints(job) == 2
    same(outcome(house, job), uninterrupted["longer"])


def test_the_child_dies_anywhere(tmp_path: Path, trainers: "queue.Queue[Trainer]", uninterrupted: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    spawning = threading.Lock()

    def die_at(place: str, n: int) -> str | None:
        with closing(House(tmp_path / f"{place}-{n}")) as house:
            job, marker = house.submit(SPEC), house.data / "died"
            with spawning:
                monkeypatch.setenv("REGTRAIN_CRASH", f"{place}:{n}:{marker}")
                mortal = Trainer()
            with closing(mortal):
                ending = mortal.attempt(house, job)
            place = marker.read_text() if marker.exists() else None
            assert ending == ("succeeded" if place is None or house.job(job).state is State.SUCCEEDED else "crashed")
            if ending == "crashed":
                with _one_of(trainers) as trainer:
                    assert trainer.attempt(house, job) == "succeeded"
            complete(house, job)
            same(outcome(house, job), uninterrupted["short"])
            return place

    _sweep(die_at, "child.")


def test_a_job_that_kills_its_trainer_every_time_fails_after_three(house: House) -> None:
    worker = house.start("--idle-exit", "0", REGTRAIN_CRASH="child.sent:1")
    job = house.ended(house.submit(QUICK))
    assert (job.state, job.reason, job.attempt) == (State.FAILED, Failure.CRASH_LOOP, 3)
    assert job.error is not None
    assert "SIGKILL" in job.error["detail"]
    assert worker.wait(PATIENCE) == 0


@contextmanager
def _one_of(trainers: "queue.Queue[Trainer]") -> Iterator[Trainer]:
    trainer = trainers.get(timeout=PATIENCE)
    try:
        yield trainer
    finally:
        trainers.put(trainer)


def _sweep(die_at: Callable[[str, int], str | None], prefix: str) -> None:
    """Deaths at the first, the second, … place that the job passes, until there was none; two at a time, for two cores.

    How often a job passes depends on the clock, so a place that no death met is then visited by itself.
    """
    met: set[str | None] = set()
    with ThreadPoolExecutor(2) as two:
        for n in range(1, MOST_HITS, 2):
            met |= set(two.map(die_at, (prefix, prefix), (n, n + 1)))
            if None in met:
                break
        missing = [name for name in POINTS if name.startswith(prefix) and name not in met]
        assert list(two.map(die_at, missing, [1] * len(missing))) == missing
    assert None in met
