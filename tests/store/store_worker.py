"""A process that works the queue until it is empty: `python store_worker.py URL DATA NAME SEED`. Prints what it took and did."""

import random
import sys
from pathlib import Path

from regtrain.contract.events import Finished
from regtrain.store import jobs
from regtrain.store.database import open_database


def main(url: str, data: str, name: str, seed: str) -> None:
    db = open_database(url, Path(data))
    chance = random.Random(int(seed))
    while (claim := jobs.claim(db, worker=name)) is not None:
        if chance.random() < 0.3:
            jobs.release(db, claim)
            print(claim.job, claim.attempt, "released")
        else:
            jobs.finish(db, claim, Finished(result={"by": name}, path="", sha256=""), db.data / "jobs" / claim.job / str(claim.attempt) / "model")
            print(claim.job, claim.attempt, "finished")
    db.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
