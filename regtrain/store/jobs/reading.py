"""A job as it is remembered, and how jobs are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, select

from regtrain.contract.errors import NotFound
from regtrain.contract.states import FINAL, Intent, State
from regtrain.store.cursors import decoded, encoded
from regtrain.store.database import Database
from regtrain.store.started import places_of
from regtrain.store.tables import jobs as table
from regtrain.store.tables import logs as logs_table


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A job without its spec, as lists show it."""

    id: str
    name: str
    state: State
    intent: Intent | None
    reason: str | None
    attempt: int
    crashes: int
    """Since the newest checkpoint."""
    version: int
    priority: int
    metadata: dict[str, str]
    progress: dict[str, Any]
    """step and steps over all packs of the job, epoch of the pack that trains, runs, eta_seconds."""
    metrics: dict[str, Any]
    """Latest values of the only run, or of the best so far, whose index is then `run`."""
    retry_of: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    runs: int

    @property
    def terminal(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, kw_only=True)
class Job(Summary):
    """Everything about a job but its runs and curves."""

    spec: dict[str, Any]
    given: dict[str, Any]
    warnings: list[dict[str, Any]]
    packs: list[list[int]] | None
    layers: list[str] | None
    started: dict[str, Any] | None
    """What `Started` said: steps, steps_per_epoch, series, penalised, step_order, environment."""
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    """failure, message, detail."""
    worker: str | None
    model_path: str | None
    """The model file, relative to the data folder."""
    model_sha256: str | None


@dataclass(frozen=True)
class LogLine:
    number: int
    attempt: int
    level: str
    message: str
    at: datetime


_SUMMARY = [table.c[name] for name in Summary.__dataclass_fields__]
_JOB = [table.c[name] for name in Job.__dataclass_fields__ if name != "layers"]


def get(db: Database, job_id: str) -> Job:
    """The job.

    Raises:
        NotFound: there is none of this id.
    """
    with db.read() as connection:
        return read(connection, job_id)


def read(connection: Connection, job_id: str) -> Job:
    """The job, within a transaction that is already open."""
    row = connection.execute(select(*_JOB).where(table.c.id == job_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return job_of(row)


def job_of(row: Mapping[Any, Any]) -> Job:
    """The job of a row's columns."""
    columns = {name: row[name] for name in Job.__dataclass_fields__ if name != "layers"}
    started: dict[str, Any] | None = row["started"]
    return Job(**_words(columns), layers=places_of(started, "per_layer") if started else None)


def summaries(
    db: Database,
    *,
    state: State | Sequence[State] | None = None,
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    order: Literal["newest", "oldest"] = "newest",
    limit: int = 50,
    cursor: str | None = None,
) -> tuple[list[Summary], str | None]:
    """One page of the jobs that match, and the cursor of the next page, if there is one.

    Raises:
        SpecRefused: the cursor is none of ours, or belongs to another filter.
    """
    states = [state] if isinstance(state, State) else state
    bound = [states and sorted(states), name, dict(sorted((metadata or {}).items())), created_after.isoformat() if created_after else None, order]
    query = select(*_SUMMARY).order_by(table.c.id.desc() if order == "newest" else table.c.id).limit(limit + 1)
    if cursor is not None:
        after = decoded(cursor, bound)
        query = query.where(table.c.id < after if order == "newest" else table.c.id > after)
    if states is not None:
        query = query.where(table.c.state.in_(states))
    if name is not None:
        query = query.where(table.c.name == name)
    if created_after is not None:
        query = query.where(table.c.created_at > created_after)
    for key, value in (metadata or {}).items():
        query = query.where(table.c.metadata[key].as_string() == value)
    with db.read() as connection:
        found = [Summary(**_words(row)) for row in connection.execute(query).mappings()]
    page = found[:limit]
    return page, encoded(page[-1].id, bound) if len(found) > limit else None


def glances(db: Database, job_ids: Sequence[str]) -> dict[str, tuple[State, dict[str, Any]]]:
    """State and latest metrics of many jobs at once, for those who wait for them; ids of jobs that are gone are left out."""
    with db.read() as connection:
        query = select(table.c.id, table.c.state, table.c.metrics).where(table.c.id.in_(list(job_ids)))
        return {row.id: (State(row.state), row.metrics) for row in connection.execute(query)}


def model(db: Database, job_id: str) -> tuple[str, str] | None:
    """The model file of a job, relative to the data folder, and its sha256; None as long as there is none.

    Raises:
        NotFound: there is no such job.
    """
    with db.read() as connection:
        row = connection.execute(select(table.c.model_path, table.c.model_sha256).where(table.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return (row.model_path, row.model_sha256) if row.model_path else None


def logs(db: Database, job_id: str, *, after: int = 0, limit: int = 1000) -> list[LogLine]:
    """The lines of a job's log with a number above `after`; numbers start at 1.

    Raises:
        NotFound: there is no such job.
    """
    with db.read() as connection:
        read(connection, job_id)
        query = select(logs_table).where(logs_table.c.job == job_id, logs_table.c.number > after).order_by(logs_table.c.number).limit(limit)
        return [LogLine(row.number, row.attempt, row.level, row.message, row.at) for row in connection.execute(query)]


def _words(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "state": State(row["state"]), "intent": Intent(row["intent"]) if row["intent"] else None}
