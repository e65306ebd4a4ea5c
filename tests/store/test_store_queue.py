"""Several processes at one queue: each job ends once, and its attempts rise."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import store_acting as act

from regtrain.contract.states import State
from regtrain.store import jobs
from regtrain.store.database import Database

JOBS = 150
PROCESSES = 3


def test_many_processes_share_a_queue(db: Database) -> None:
    ids = [act.submit(db).id for _ in range(JOBS)]
    url = db.writer.url.render_as_string(hide_password=False)
    script = Path(__file__).with_name("store_worker.py")
    workers = [
        subprocess.Popen([sys.executable, str(script), url, str(db.data), f"w{n}", str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in range(PROCESSES)
    ]
    taken: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for worker in workers:
        out, err = worker.communicate(timeout=200)
        assert (worker.returncode, err) == (0, "")
        for line in out.splitlines():
            job, attempt, end = line.split()
            taken[job].append((int(attempt), end))
    assert sorted(taken) == ids
    for job, history in taken.items():
        attempts = sorted(history)
        assert [attempt for attempt, _ in attempts] == list(range(1, len(attempts) + 1)), job
        assert [end for _, end in attempts] == ["released"] * (len(attempts) - 1) + ["finished"], job
    done, _ = jobs.summaries(db, limit=JOBS, order="oldest")
    assert [(job.id, job.state, job.attempt) for job in done] == [(job, State.SUCCEEDED, len(taken[job])) for job in ids]
