"""What the tests of the store do again and again: a spec, a report, a file, a look at every row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select, update

from regtrain.contract.events import Checkpointed, Finished, PackBegun, Points, Started
from regtrain.contract.job import given_of, parse
from regtrain.contract.states import Failure, State
from regtrain.store import files, jobs
from regtrain.store.database import Database
from regtrain.store.tables import jobs as jobs_table
from regtrain.store.tables import metadata

SPEC: dict[str, Any] = {
    "dataset": {"kind": "iris"},
    "model": {"kind": "linear"},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
}


def submit(db: Database, **changes: Any) -> jobs.Job:
    idempotency = changes.pop("idempotency", None)
    body = json.dumps(SPEC | changes)
    return jobs.submit(db, parse(body), given=given_of(body), warnings=[], idempotency=idempotency)


def claim(db: Database, worker: str = "w1") -> jobs.Claim:
    found = jobs.claim(db, worker=worker)
    assert found is not None
    return found


def started(packs: list[list[int]] | None = None, *, steps: int = 1000, layers: Sequence[str] = ("layers.0", "head"), pack: int = 0, step: int = 0) -> Started:
    packs = packs or [[0]]
    return Started(
        runs=sum(map(len, packs)),
        packs=packs,
        steps=steps,
        steps_per_epoch=10,
        layers=list(layers),
        series=["loss/train", "loss/val", "gradient/norm"],
        penalised={},
        step_order=["forward"],
        environment={"device": "cpu"},
        pack=pack,
        step=step,
    )


def begun(pack: int, members: list[int], *, values: list[dict[str, float]] | None = None, variant: str | None = None, layers: Sequence[str] = ("layers.0", "head")) -> PackBegun:
    return PackBegun(pack, list(layers), 1000, 10, members, values or [{}] * len(members), variant)


def points(*, pack: int = 0, counts: dict[str, Any] | None = None, step: int | None = None, **series: tuple[Any, Any]) -> Points:
    """`loss_train=(steps, values)`: a report of the series loss/train; values are (n,), (n, R) or (n, R, L)."""
    named = {name.replace("_", "/", 1): (np.asarray(steps, np.int64), np.asarray(values)) for name, (steps, values) in series.items()}
    shaped = {name: values[:, None] if values.ndim == 1 else values for name, (_, values) in named.items()}
    last = max((int(steps[-1]) for steps, _ in named.values() if len(steps)), default=0)
    given = {name.replace("_", "/", 1): count for name, count in (counts or {}).items()}
    return Points(
        pack=pack,
        step=last + 1 if step is None else step,
        steps={name: steps for name, (steps, _) in named.items()},
        values=shaped,
        counts={name: np.asarray(given.get(name, np.full(values.shape[1], values.shape[0])), np.int64) for name, values in shaped.items()},
    )


def file_of(db: Database, claim: jobs.Claim, name: str, content: bytes = b"weights") -> Path:
    temporary = files.scratch(db.data, claim.job, claim.attempt) / "part"
    temporary.write_bytes(content)
    return files.publish(db.data, temporary, job=claim.job, attempt=claim.attempt, name=name)


def checkpoint(db: Database, claim: jobs.Claim, *, step: int, pack: int = 0) -> Path:
    path = file_of(db, claim, files.checkpoint_name(pack, step))
    jobs.checkpointed(db, claim, Checkpointed(pack=pack, step=step, path=str(path), sha256=f"sha-{pack}-{step}"), path)
    return path


def finish(db: Database, claim: jobs.Claim, **result: Any) -> None:
    path = file_of(db, claim, "model.safetensors")
    jobs.finish(db, claim, Finished(result=result, path=str(path), sha256="sha-model"), path)


def job_in(db: Database, state: State) -> tuple[str, jobs.Claim]:
    """A job in a state, and the claim with which a worker last held it (or would have)."""
    job = submit(db)
    if state is State.QUEUED:
        return job.id, jobs.Claim(job=job.id, attempt=0, worker="w1", spec=parse(json.dumps(SPEC)))
    held = claim(db)
    match state:
        case State.PAUSED:
            with db.write() as connection:
                connection.execute(update(jobs_table).where(jobs_table.c.id == job.id).values(intent="pausing"))
            assert jobs.release(db, held) is State.PAUSED
        case State.SUCCEEDED:
            finish(db, held)
        case State.FAILED:
            jobs.fail(db, held, Failure.DATA, "no rows")
        case State.CANCELLED:
            jobs.cancel(db, job.id)
            jobs.cancelled(db, held)
        case _:
            assert state is State.RUNNING
    assert jobs.get(db, job.id).state is state
    return job.id, held


def everything(db: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with db.read() as connection:
        return {table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr) for table in metadata.sorted_tables}
