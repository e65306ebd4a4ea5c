"""A worker measures the laws of gradients: when it has nothing to do, out of the way of jobs, and when it is asked, beside them."""

import psutil
from processes import children_of, is_over
from worker_houses import ENDLESS, PATIENCE, QUICK, House, until

from regtrain.contract.states import State
from regtrain.store import jobs, workers


def measurement_of(worker: psutil.Process) -> psutil.Process:
    found: list[psutil.Process] = []
    until(lambda: found.extend(children_of(worker, "selftest")) or found)
    return found[0]


def test_idle_it_begins_by_itself_and_gives_way_to_a_job_and_asked_it_measures_beside_one(house: House) -> None:
    worker = psutil.Process(house.start("--selftest-seconds", "0").pid)
    house.ready(1)
    by_itself = measurement_of(worker)
    until(lambda: by_itself.nice() == 19)
    job = house.submit(ENDLESS)
    house.moved(job)
    until(lambda: is_over(by_itself))
    (row,) = workers.listing(house.db)
    assert row.selftest is None

    workers.ask_for_selftests(house.db)
    until(lambda: workers.asked(house.db, row.id) is None)
    assert house.job(job).state is State.RUNNING
    (row,) = workers.listing(house.db)
    assert row.selftest is not None
    assert row.selftest["ok"] is True, row.selftest
    assert {"equal_products", "finite_differences", "mean_field"} <= {law["name"] for law in row.selftest["laws"]}
    assert row.selftest["environment"]["device_kind"] == "cpu"
    jobs.cancel(house.db, job)
    house.ended(job)
    worker.terminate()
    worker.wait(PATIENCE)


def test_one_that_dies_says_so_and_one_ends_with_its_worker(house: House) -> None:
    worker = psutil.Process(house.start().pid)
    house.ready(1)
    (row,) = workers.listing(house.db)
    workers.ask_for_selftests(house.db)
    measurement_of(worker).kill()
    until(lambda: workers.asked(house.db, row.id) is None)
    (row,) = workers.listing(house.db)
    assert row.selftest is not None
    assert (row.selftest["ok"], row.selftest["laws"]) == (None, [])
    assert "exit code -9" in row.selftest["error"]
    assert house.ended(house.submit(QUICK)).state is State.SUCCEEDED

    workers.ask_for_selftests(house.db)
    another = measurement_of(worker)
    worker.kill()
    until(lambda: is_over(another))
