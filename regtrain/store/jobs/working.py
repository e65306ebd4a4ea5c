"""What workers do with jobs. `attempt` is the fencing token: it rises with every claim, and every write of a worker is
fenced by it, so that a worker that lost its job (stopped, cut off, too slow) changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from regtrain.contract.errors import NotFound, StaleAttempt
from regtrain.contract.events import Checkpointed, Event, Finished, Log, Noticed, PackBegun, Points, RunFinished, Started
from regtrain.contract.job import JobSpec
from regtrain.contract.states import Failure, Intent, RunState, State
from regtrain.store import files, nudge, series, symptoms
from regtrain.store.database import Database
from regtrain.store.jobs import origins, trials
from regtrain.store.jobs.asking import Submission, insert_all
from regtrain.store.jobs.moves import move
from regtrain.store.jobs.progress import advanced, begun, best_run, ended, pack_begun
from regtrain.store.tables import MOST_CRASHES, checkpoints, datasets, dumps, jobs, logs, now, runs

KEPT_CHECKPOINTS = 2
"""Of each pack the newest so many are kept: the last one, and one to fall back on."""


@dataclass(frozen=True)
class Claim:
    """A job that is ours as long as its attempt is the newest."""

    job: str
    attempt: int
    worker: str
    spec: JobSpec
    packs: list[list[int]] | None = None
    """As stored by the first attempt."""
    resume: dict[int, Path] = field(default_factory=dict[int, Path])
    """Pack → newest checkpoint file."""
    upload: Path | None = None
    """The canonical file of an uploaded dataset."""
    origins: dict[str, Path] = field(default_factory=dict[str, Path])
    """Earlier job → its model file, of those whose weights it begins from."""


@dataclass(frozen=True)
class Running:
    """A job that a worker holds. A beat that stands still means a dead worker, a step that does a stalled one."""

    job: str
    attempt: int
    beat: int
    step: int
    worker: str


def claim(db: Database, *, worker: str) -> Claim | None:
    """Takes the next queued job, by priority and then age; points beyond its checkpoints are removed. None if nothing waits."""
    with db.write() as connection:
        while (row := _next(connection)) is not None:
            taken = _take(connection, db.data, row, worker)
            if taken is not None:
                return taken
    return None


def heartbeat(db: Database, claim: Claim, *, step: int) -> Intent | None:
    """Prolongs the claim, with the trainer's step, and says what has been asked of the job meanwhile.

    Raises:
        StaleAttempt: the job is no longer ours.
    """
    with db.write() as connection:
        beaten = connection.execute(_ours(claim).values(beat=jobs.c.beat + 1, step=step).returning(jobs.c.intent)).one_or_none()
        if beaten is None:
            raise _stale(claim)
        return Intent(beaten.intent) if beaten.intent else None


def report(db: Database, claim: Claim, events: Sequence[Event]) -> None:
    """Stores Started, PackBegun, Points, Noticed, RunFinished and Log in one transaction, in their order. Without events it only asks whether the job is still ours.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    with db.write() as connection:
        job = _held(connection, claim)
        columns: dict[str, Any] = {}
        for event in events:
            match event:
                case Started():
                    columns |= begun(job, event, columns)
                case PackBegun():
                    columns |= pack_begun(job, event, columns)
                    _set_values(connection, claim, event)
                case Points():
                    series.append(connection, claim.job, event)
                    columns |= advanced(job, event, columns)
                case Noticed():
                    symptoms.note(connection, claim.job, event)
                case RunFinished():
                    _run_finished(connection, claim, event)
                case Log():
                    _log(connection, claim, event)
                case _:
                    raise TypeError(f"{type(event).__name__} has a verb of its own")
        _refresh(connection, job, columns, events)
        if columns:
            connection.execute(update(jobs).where(jobs.c.id == claim.job).values(**columns))
    if events:
        nudge.wake(db.data, "services")


def checkpointed(db: Database, claim: Claim, event: Checkpointed, path: Path) -> None:
    """Records a checkpoint that lies, durably, at `path`. Older ones than the newest two of its pack are removed.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    with db.write() as connection:
        _held(connection, claim)
        mine = checkpoints.c.job == claim.job
        newest = connection.execute(
            select(checkpoints.c.pack, checkpoints.c.step).where(mine).order_by(checkpoints.c.pack.desc(), checkpoints.c.step.desc()).limit(1)
        ).one_or_none()
        connection.execute(delete(checkpoints).where(mine, checkpoints.c.pack == event.pack, checkpoints.c.step == event.step))
        row = {"job": claim.job, "pack": event.pack, "step": event.step, "attempt": claim.attempt, "sha256": event.sha256, "created_at": now()}
        connection.execute(insert(checkpoints).values(**row, path=files.relative(db.data, path)))
        stale = connection.execute(
            select(checkpoints.c.step, checkpoints.c.path).where(mine, checkpoints.c.pack == event.pack).order_by(checkpoints.c.step.desc()).offset(KEPT_CHECKPOINTS)
        ).all()
        connection.execute(delete(checkpoints).where(mine, checkpoints.c.pack == event.pack, checkpoints.c.step.in_([row.step for row in stale])))
        if newest is None or (event.pack, event.step) > (newest.pack, newest.step):
            connection.execute(update(jobs).where(jobs.c.id == claim.job).values(crashes=0))
    files.discard(db.data, [row.path for row in stale])


def finish(db: Database, claim: Claim, finished: Finished, path: Path) -> None:
    """The job has succeeded; its model lies, durably, at `path`.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    following = trials.following(db, claim.job, claim.spec)
    with db.write() as connection:
        job = _held(connection, claim)
        model = {"model_path": files.relative(db.data, path), "model_sha256": finished.sha256}
        move(connection, claim.job, State.SUCCEEDED, result=finished.result, crashes=0, **model, **ended(connection, job, finished.result))
        _follow(connection, claim, following)
    _wake(db, following)


def fail(db: Database, claim: Claim, failure: Failure, message: str, detail: str = "") -> None:
    """The job has failed, and trying again cannot help.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    following = trials.following(db, claim.job, claim.spec) if failure is Failure.DIVERGED else None
    with db.write() as connection:
        _held(connection, claim)
        _fail(connection, claim.job, failure, message, detail)
        _follow(connection, claim, following)
    _wake(db, following)


def cancelled(db: Database, claim: Claim) -> None:
    """The job has been stopped as asked.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    with db.write() as connection:
        _held(connection, claim)
        move(connection, claim.job, State.CANCELLED, reason="cancelled by request")
    nudge.wake(db.data, "services")


def release(db: Database, claim: Claim) -> State:
    """Gives a job back to the queue because its worker leaves; this is no crash. One that was being cancelled is cancelled, one that was to pause is paused.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    with db.write() as connection:
        return _back(connection, _held(connection, claim))


def crashed(db: Database, claim: Claim, detail: str) -> State:
    """The process that computed has died. The job goes back to the queue; at the third crash without a newer checkpoint it has failed.

    Raises:
        StaleAttempt: the job is no longer ours; nothing was stored.
    """
    with db.write() as connection:
        state = _crashed(connection, _held(connection, claim), detail)
    nudge.wake(db.data, "services")
    return state


def running(db: Database) -> list[Running]:
    """The jobs that workers hold."""
    columns = (jobs.c.id, jobs.c.attempt, jobs.c.beat, jobs.c.step, jobs.c.worker)
    with db.read() as connection:
        return [Running(*row) for row in connection.execute(select(*columns).where(jobs.c.state == State.RUNNING).order_by(jobs.c.id))]


def rescue(db: Database, job_id: str, attempt: int, beat: int) -> State | None:
    """Takes a job from a worker whose beat has not changed for longer than its lease; counts as a crash.

    None, and nothing is changed, when the job beat again or moved on meanwhile.
    """
    with db.write() as connection:
        job = connection.execute(
            select(jobs).where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.beat == beat, jobs.c.state == State.RUNNING).with_for_update()
        ).one_or_none()
        return None if job is None else _crashed(connection, job, f"worker {job.worker} stopped answering during attempt {attempt}")


def _next(connection: Connection) -> Row[Any] | None:
    """The queued job whose turn it is, locked; one that another worker is just taking is passed over."""
    query = select(jobs).where(jobs.c.state == State.QUEUED).order_by(jobs.c.priority.desc(), jobs.c.id).limit(1)
    return connection.execute(query.with_for_update(skip_locked=True)).one_or_none()


def _take(connection: Connection, data: Path, row: Row[Any], worker: str) -> Claim | None:
    """Claims a locked job; a spec that this version does not understand fails instead of going round."""
    try:
        spec = JobSpec.model_validate_json(dumps(row.spec))
    except ValidationError as error:
        _fail(connection, row.id, Failure.SPEC, "this version of regtrain does not understand the job's spec", str(error))
        return None
    attempt = row.attempt + 1
    move(connection, row.id, State.RUNNING, worker=worker, attempt=attempt, beat=0, step=0, pack=0, started_at=row.started_at or now(), attempt_at=None)
    newest = select(checkpoints.c.pack, func.max(checkpoints.c.step).label("step")).where(checkpoints.c.job == row.id).group_by(checkpoints.c.pack).subquery()
    kept = connection.execute(
        select(checkpoints).join(newest, (checkpoints.c.pack == newest.c.pack) & (checkpoints.c.step == newest.c.step)).where(checkpoints.c.job == row.id)
    ).all()
    if row.attempt > 0:
        reached = {one.pack: one.step for one in kept}
        series.truncate(connection, row.id, reached)
        symptoms.truncate(connection, row.id, reached)
    upload = connection.execute(select(datasets.c.path).where(datasets.c.id == row.dataset)).scalar() if row.dataset else None
    return Claim(
        job=row.id,
        attempt=attempt,
        worker=worker,
        spec=spec,
        packs=row.packs,
        resume={one.pack: data / one.path for one in kept},
        upload=data / upload if upload else None,
        origins=origins.paths(connection, data, row.id),
    )


def _ours(claim: Claim) -> Any:
    return update(jobs).where(jobs.c.id == claim.job, jobs.c.attempt == claim.attempt, jobs.c.state == State.RUNNING)


def _held(connection: Connection, claim: Claim) -> Row[Any]:
    """The job's row, locked, if it is still ours."""
    row = connection.execute(select(jobs).where(jobs.c.id == claim.job, jobs.c.attempt == claim.attempt, jobs.c.state == State.RUNNING).with_for_update()).one_or_none()
    if row is None:
        raise _stale(claim)
    return row


def _stale(claim: Claim) -> StaleAttempt:
    return StaleAttempt(f"attempt {claim.attempt} of {claim.job} is over: the job was finished, cancelled or given to another worker")


def _run_finished(connection: Connection, claim: Claim, event: RunFinished) -> None:
    columns: dict[str, Any] = {
        "state": event.state,
        "stop_reason": event.stop_reason,
        "steps": event.steps,
        "metrics": event.metrics,
        "best": event.best,
        "zeros": event.zeros,
        "coefficients": event.coefficients,
        "first_nonfinite": event.first_nonfinite,
        "certificate": event.certificate,
        "adaptation": event.adaptation,
    }
    done = connection.execute(update(runs).where(runs.c.job == claim.job, runs.c.index == event.run).values(**columns))
    if done.rowcount != 1:
        raise NotFound(f"job {claim.job} has no run {event.run}")


def _set_values(connection: Connection, claim: Claim, event: PackBegun) -> None:
    """What the runs of a pack did not have when the job was submitted."""
    rows = [{"at": index, "new": values, "label": event.variant} for index, values in zip(event.runs, event.values, strict=True)]
    if rows:
        mine = (runs.c.job == claim.job) & (runs.c.index == bindparam("at"))
        connection.execute(update(runs).where(mine).values({runs.c["values"]: bindparam("new", type_=runs.c["values"].type), runs.c.variant: bindparam("label")}), rows)


def _log(connection: Connection, claim: Claim, event: Log) -> None:
    number = connection.execute(select(func.coalesce(func.max(logs.c.number), 0) + 1).where(logs.c.job == claim.job)).scalar_one()
    connection.execute(insert(logs).values(job=claim.job, number=number, attempt=claim.attempt, level=event.level, message=event.message, at=now()))


def _follow(connection: Connection, claim: Claim, following: Submission | str | None) -> None:
    """The trial of remedies that an ended job asked for, in the transaction that ends it: there is never one without the other. A reason why there is none is logged."""
    if isinstance(following, str):
        _log(connection, claim, Log("warning", following))
    elif following is not None:
        insert_all(connection, [following])


def _wake(db: Database, following: Submission | str | None) -> None:
    nudge.wake(db.data, "services")
    if isinstance(following, Submission):
        nudge.wake(db.data, "workers")


def _refresh(connection: Connection, job: Row[Any], columns: dict[str, Any], events: Sequence[Event]) -> None:
    """Latest metrics, and the runs that train now."""
    if any(isinstance(event, Points) for event in events):
        columns["metrics"] = best_run(connection, job, columns)
    training = [index for event in events if isinstance(event, PackBegun) for index in event.runs]
    if training:
        connection.execute(update(runs).where(runs.c.job == job.id, runs.c.index.in_(training), runs.c.state == RunState.QUEUED).values(state=RunState.RUNNING))


def _fail(connection: Connection, job_id: str, failure: Failure, message: str, detail: str) -> None:
    move(connection, job_id, State.FAILED, reason=failure, error={"failure": failure, "message": message, "detail": detail})


def _back(connection: Connection, job: Row[Any], **columns: Any) -> State:
    if job.intent == Intent.CANCELLING:
        move(connection, job.id, State.CANCELLED, **{"reason": "cancelled by request", **columns})
        return State.CANCELLED
    if job.intent == Intent.PAUSING:
        move(connection, job.id, State.PAUSED, **columns)
        return State.PAUSED
    move(connection, job.id, State.QUEUED, **columns)
    return State.QUEUED


def _crashed(connection: Connection, job: Row[Any], detail: str) -> State:
    crashes = job.crashes + 1
    if job.intent != Intent.CANCELLING and crashes >= MOST_CRASHES:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(crashes=crashes))
        _fail(connection, job.id, Failure.CRASH_LOOP, f"the job crashed {crashes} times without getting further than its newest checkpoint", detail)
        return State.FAILED
    return _back(connection, job, crashes=crashes)
