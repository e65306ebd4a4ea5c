"""What is not the job's fault: a database that refuses, a device that is not there. And the same loop on PostgreSQL."""

import signal
from contextlib import closing
from pathlib import Path

import pytest
from outcomes import complete
from sqlalchemy import text
from worker_houses import ENDLESS, QUICK, House, child_of, until

from regtrain.contract.states import State
from regtrain.store import jobs


def test_a_fault_while_storing_counts_as_a_crash_and_harms_no_worker(house: House) -> None:
    worker = house.start()
    house.ready(1)
    with house.db.write() as connection:
        connection.execute(text("CREATE TRIGGER broken BEFORE INSERT ON chunks BEGIN SELECT RAISE(ABORT, 'broken'); END"))
    job = house.submit(QUICK)
    until(lambda: house.job(job).crashes == 1, 120)
    with house.db.write() as connection:
        connection.execute(text("DROP TRIGGER broken"))
    ended = house.ended(job)
    assert ended.state is State.SUCCEEDED
    complete(house, job)
    assert any("what the trainer said could not be stored" in line["event"] for line in house.said())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(25) == 0


def test_a_worker_without_its_device_says_so_and_leaves(tmp_path: Path) -> None:
    with closing(House(tmp_path)) as house:
        job = house.submit(QUICK)
        assert house.start("--device", "cuda:99").wait(60) == 1
        assert house.job(job).attempt == 0
        (line,) = (line for line in house.said() if line["event"] == "the trainer does not start")
        assert "device 'cuda:99' was asked for" in line["reason"]


@pytest.mark.parametrize("options", [("--lease-seconds", "0"), ("--device", "tpu"), ("--threads", "0"), ("--database-url", "mysql://localhost/x")])
def test_wrong_settings_are_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    with closing(House(tmp_path)) as house:
        assert house.start(*options).wait(60) == 2


def test_a_killed_child_and_a_cancel_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    with closing(House(tmp_path, postgresql_url)) as house:
        house.start("--database-url", postgresql_url, "--checkpoint-seconds", "0")
        house.ready(1)
        quick, endless = house.submit(QUICK), house.submit(ENDLESS)
        assert house.ended(quick).state is State.SUCCEEDED
        complete(house, quick)
        until(lambda: house.checkpoints(endless) >= 1, 120)
        child_of(house.holder(endless)).kill()
        until(lambda: house.job(endless).attempt == 2 and house.job(endless).progress["step"] > 0, 120)
        jobs.cancel(house.db, endless)
        assert house.ended(endless, 20).state is State.CANCELLED
