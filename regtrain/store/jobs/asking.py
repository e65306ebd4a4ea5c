"""What callers ask of jobs: submit, cancel, delete."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from regtrain.contract.datasets import Upload
from regtrain.contract.errors import Conflict, NotFound, Problem, SpecRefused, Warned
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.runs import expand
from regtrain.contract.states import FINAL, Intent, RunState, State
from regtrain.store import files, nudge
from regtrain.store.database import Database
from regtrain.store.ids import new_id
from regtrain.store.jobs import origins
from regtrain.store.jobs.moves import move
from regtrain.store.jobs.reading import Job, job_of, read
from regtrain.store.tables import datasets, idempotency, now, runs
from regtrain.store.tables import jobs as table
from regtrain.store.tables import origins as origins_table


@dataclass(frozen=True)
class Submission:
    """A job and its runs as rows, the key under which a repetition finds them, and the jobs from whose weights it begins."""

    job: dict[str, Any]
    runs: list[dict[str, Any]]
    idempotency: tuple[str, str] | None
    origins: list[str]


class _Repeated(Exception):
    """The idempotency key has been used before."""


def submit(db: Database, spec: JobSpec, *, given: dict[str, Any], warnings: list[Warned], retry_of: str | None = None, idempotency: tuple[str, str] | None = None) -> Job:
    """Stores a job and its runs, durably. `idempotency` is (key, digest of the body): the same pair gives the job of the first time.

    Raises:
        SpecRefused: too many runs, a dataset or a job to begin from that does not exist, or an idempotency key that came with another body.
    """
    made = submission(spec, given=given, warnings=warnings, retry_of=retry_of, idempotency=idempotency)
    try:
        db.write_together(made, insert_all)
    except _Repeated:
        return _repeated(db, *(idempotency or ("", "")))
    except IntegrityError as error:
        if not (gone := _gone(db, made)):
            raise
        raise SpecRefused(gone) from error
    nudge.wake(db.data, "workers")
    return job_of(made.job)


def submission(spec: JobSpec, *, given: dict[str, Any], warnings: list[Warned], retry_of: str | None = None, idempotency: tuple[str, str] | None = None) -> Submission:
    """The rows of a new job.

    Raises:
        SpecRefused: too many runs.
    """
    expanded = expand(spec)
    job_id = new_id("job")
    job = _row(job_id, spec, given=given, warnings=warnings, retry_of=retry_of, runs=len(expanded))
    rows = [
        {
            **{"job": job_id, "index": run.index, "seed": run.seed, "state": RunState.QUEUED, "steps": 0, "values": run.values, "metrics": {}, "best": {}, "zeros": {}},
            **{"variant": run.variant, "point": run.point, "fold": run.fold, "outer": run.outer, "refit": int(run.refit)},
        }
        for run in expanded
    ]
    return Submission(job, rows, idempotency, origins.of_spec(spec))


def cancel(db: Database, job_id: str) -> Job:
    """A job that waits is cancelled at once; one that runs is asked to stop; one that is final stays as it is.

    Raises:
        NotFound: there is no such job.
    """
    with db.write() as connection:
        state = _state(connection, job_id)
        if state is State.RUNNING:
            connection.execute(update(table).where(table.c.id == job_id).values(intent=Intent.CANCELLING))
        elif state not in FINAL:
            move(connection, job_id, State.CANCELLED, reason="cancelled by request")
        job = read(connection, job_id)
    nudge.wake(db.data, "workers")
    return job


def delete(db: Database, job_id: str) -> None:
    """Removes a job with its runs, curves, log, checkpoints and files.

    Raises:
        NotFound: there is no such job.
        Conflict: it is not final yet, or a job that is not begins from its weights.
    """
    with db.write() as connection:
        state = _state(connection, job_id)
        if state not in FINAL:
            raise Conflict(f"job {job_id} is {state}: cancel it before it can be deleted")
        if (user := origins.needed_by(connection, job_id)) is not None:
            raise Conflict(f"job {user} begins from the weights of job {job_id}: cancel it, or wait for its end")
        connection.execute(delete_rows(table).where(table.c.id == job_id))
    files.remove(db.data, job_id)


def _gone(db: Database, made: Submission) -> list[Problem]:
    """What a job refers to and is not there: between the check of a spec and its submission somebody has deleted it."""
    dataset = made.job["dataset"]
    with db.read() as connection:
        rows = dataset is None or connection.execute(select(datasets.c.id).where(datasets.c.id == dataset)).scalar()
        there = set(connection.execute(select(table.c.id).where(table.c.id.in_(made.origins))).scalars())
    missing = [] if rows else [Problem("dataset.id", f"there is no dataset {dataset}", "upload it to /v1/datasets first")]
    return [*missing, *(Problem("begin.job", f"there is no job {origin}", "use the ID of a job that has succeeded") for origin in made.origins if origin not in there)]


def _row(job_id: str, spec: JobSpec, *, given: dict[str, Any], warnings: list[Warned], retry_of: str | None, runs: int) -> dict[str, Any]:
    return {
        **dict.fromkeys(column.name for column in table.c),
        "id": job_id,
        "name": spec.name,
        "state": State.QUEUED,
        "attempt": 0,
        "crashes": 0,
        "version": 1,
        "priority": 0,
        "beat": 0,
        "step": 0,
        "pack": 0,
        "attempt_step": 0,
        "runs": runs,
        "spec": resolved(spec),
        "given": given,
        "warnings": [{"path": w.path, "message": w.message, "source": w.source} for w in warnings],
        "metadata": spec.metadata,
        "progress": {"step": 0, "steps": None, "epoch": 0, "runs": runs, "eta_seconds": None},
        "metrics": {},
        "dataset": spec.dataset.id if isinstance(spec.dataset, Upload) else None,
        "retry_of": retry_of,
        "created_at": now(),
    }


def insert_all(connection: Connection, submissions: list[Submission]) -> None:
    """Stores new jobs, within a transaction that is already open."""
    connection.execute(insert(table), [submission.job for submission in submissions])
    connection.execute(insert(runs), [run for submission in submissions for run in submission.runs])
    if begun := [{"job": submission.job["id"], "origin": origin} for submission in submissions for origin in submission.origins]:
        connection.execute(insert(origins_table), begun)
    for submission in submissions:
        if submission.idempotency is not None:
            _remember(connection, submission.idempotency, submission.job["id"])


def _remember(connection: Connection, pair: tuple[str, str], job_id: str) -> None:
    """Ties the key to the job; another submission under the same key, also one under way, makes this one the repetition."""
    key, digest = pair
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    added = connection.execute(dialect.insert(idempotency).values(key=key, digest=digest, job=job_id, created_at=now()).on_conflict_do_nothing().returning(idempotency.c.key))
    if added.one_or_none() is None:
        raise _Repeated


def _repeated(db: Database, key: str, digest: str) -> Job:
    with db.read() as connection:
        first = connection.execute(select(idempotency.c.job, idempotency.c.digest).where(idempotency.c.key == key)).one()
        if first.digest != digest:
            raise SpecRefused([Problem("Idempotency-Key", "this key came before with another body", "use a new key for a new job")])
        return read(connection, first.job)


def _state(connection: Connection, job_id: str) -> State:
    """The state of a job, which nobody else changes until the transaction ends."""
    state = connection.execute(select(table.c.state).where(table.c.id == job_id).with_for_update()).scalar()
    if state is None:
        raise NotFound(f"there is no job {job_id}")
    return State(state)
