"""What is not the job's fault: a database that refuses, a device that is not there. And the same loop on PostgreSQL."""

import signal
import subprocess
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from outcomes import complete
from processes import is_over
from sqlalchemy import text
from worker_houses import ENDLESS, PATIENCE, QUICK, House, child_of, until

from regtrain.contract.states import State
from regtrain.store import jobs
from worker.__main__ import main


@pytest.fixture(scope="module")
def worker(house: House) -> "subprocess.Popen[bytes]":
    process = house.start("--stall-seconds", "4")
    house.ready(1)
    return process


def test_a_fault_while_storing_counts_as_a_crash(house: House, worker: "subprocess.Popen[bytes]") -> None:
    first = "(SELECT attempt FROM jobs JOIN series ON series.job = jobs.id WHERE series.id = NEW.series) = 1"
    with house.db.write() as connection:
        connection.execute(text(f"CREATE TRIGGER broken BEFORE INSERT ON chunks WHEN {first} BEGIN SELECT RAISE(ABORT, 'broken'); END"))
    ended = house.ended(house.submit(QUICK))
    with house.db.write() as connection:
        connection.execute(text("DROP TRIGGER broken"))
    assert (ended.state, ended.attempt >= 2) == (State.SUCCEEDED, True)
    complete(house, ended.id)
    assert any("what the trainer said could not be stored" in line["event"] for line in house.said())


def test_a_stalled_child_is_killed_and_counted_as_a_crash(house: House, worker: "subprocess.Popen[bytes]") -> None:
    job = house.submit(ENDLESS)
    house.moved(job)
    child = child_of(psutil.Process(worker.pid))
    child.suspend()
    until(lambda: is_over(child))
    until(lambda: house.job(job).attempt >= 2)
    assert any(line["event"] == "crashed" and line["job"] == job and line["reason"].startswith("stalled") for line in house.said())
    jobs.cancel(house.db, job)
    assert house.ended(job).state is State.CANCELLED


def test_what_it_has_borne_harms_no_worker(house: House, worker: "subprocess.Popen[bytes]") -> None:
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0


def test_a_worker_without_its_device_says_so_and_leaves(tmp_path: Path) -> None:
    with closing(House(tmp_path)) as house:
        job = house.submit(QUICK)
        assert house.start("--device", "cuda:99").wait(PATIENCE) == 1
        assert house.job(job).attempt == 0
        (line,) = (line for line in house.said() if line["event"] == "the trainer does not start")
        assert "device 'cuda:99' was asked for" in line["reason"]


@pytest.mark.parametrize("options", [("--lease-seconds", "0"), ("--device", "tpu"), ("--threads", "0"), ("--database-url", "mysql://localhost/x")])
def test_wrong_settings_are_refused(tmp_path: Path, options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err.startswith("worker: ")


def test_a_killed_child_and_a_cancel_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    with closing(House(tmp_path, postgresql_url)) as house:
        house.start("--database-url", postgresql_url, "--checkpoint-seconds", "0")
        house.ready(1)
        quick, endless = house.submit(QUICK), house.submit(ENDLESS)
        assert house.ended(quick).state is State.SUCCEEDED
        complete(house, quick)
        until(lambda: house.checkpoints(endless))
        child_of(house.holder(endless)).kill()
        until(lambda: house.job(endless).attempt == 2 and house.job(endless).progress["step"] > 0)
        jobs.cancel(house.db, endless)
        assert house.ended(endless).state is State.CANCELLED
