"""Two worker processes and one queue."""

import signal
from collections import Counter

from outcomes import complete
from worker_houses import PATIENCE, QUICK, House

from regtrain.contract.states import State
from regtrain.store import jobs

JOBS = 200


def test_each_of_200_jobs_is_executed_once(house: House) -> None:
    """Each is claimed by one worker in one attempt, and every curve is whole."""
    processes = [house.start() for _ in range(2)]
    house.ready(2)
    submitted = [house.submit({**QUICK, "seed": seed}) for seed in range(JOBS)]
    for job in submitted:
        house.ended(job)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    found = [house.job(job) for job in submitted]
    assert {(job.state, job.attempt, job.crashes) for job in found} == {(State.SUCCEEDED, 1, 0)}
    lines = house.said()
    assert Counter(line["job"] for line in lines if line["event"] == "claimed") == Counter(submitted)
    assert Counter(line["job"] for line in lines if line["event"] == "ended") == Counter(submitted)
    for job in submitted:
        complete(house, job)
        assert sorted(name.rpartition("/")[2] for name in house.files(job)) == ["1", "checkpoint-0-5.safetensors", "model.safetensors"]
    assert jobs.running(house.db) == []
