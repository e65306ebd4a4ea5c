"""The runs of a job: their values, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from sqlalchemy import Connection, select

from regtrain.contract.errors import NotFound
from regtrain.contract.states import RunState, StopReason
from regtrain.store import series
from regtrain.store.cursors import decoded, encoded
from regtrain.store.database import Database
from regtrain.store.jobs.progress import SHOWN
from regtrain.store.tables import finite, jobs
from regtrain.store.tables import runs as table


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. While it trains, `metrics` are its latest points; numbers that are not finite are null and listed as `nonfinite`."""

    index: int
    values: dict[str, float]
    seed: int
    variant: str | None
    point: int | None
    """Place of its set of values in the table of scores."""
    fold: int | None
    outer: int | None
    refit: bool
    state: RunState
    stop_reason: StopReason | None
    steps: int
    metrics: dict[str, Any]
    best: dict[str, Any]
    zeros: dict[str, int]
    coefficients: dict[str, Any] | None
    first_nonfinite: dict[str, Any] | None
    certificate: dict[str, Any] | None
    adaptation: dict[str, Any] | None


def listing(db: Database, job_id: str, *, sort: str = "index", limit: int = 100, cursor: str | None = None) -> tuple[list[Run], str | None]:
    """One page of a job's runs and the cursor of the next. `sort` is `index`, `steps`, a metric or a value's path; `-` before it turns it round.

    Runs without the number by which they are sorted come last.

    Raises:
        NotFound: there is no such job.
        SpecRefused: the cursor is none of ours, or belongs to another order.
    """
    with db.read() as connection:
        job = connection.execute(select(jobs.c.packs).where(jobs.c.id == job_id)).one_or_none()
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        live = _live(connection, job_id, job.packs or [])
        columns = select(table.c.index, table.c.steps, table.c["values"], table.c.metrics).where(table.c.job == job_id).order_by(table.c.index)
        ordered = sorted(connection.execute(columns).all(), key=lambda row: _key(row, live, sort))
        first = 0 if cursor is None else int(decoded(cursor, [job_id, sort]))
        page: list[int] = [row[0] for row in ordered[first : first + limit]]
        found = {row["index"]: row for row in connection.execute(select(table).where(table.c.job == job_id, table.c.index.in_(page))).mappings()}
    following = encoded(first + limit, [job_id, sort]) if first + limit < len(ordered) else None
    return [_run(found[index], live.get(index, {})) for index in page], following


def every(db: Database, job_id: str) -> list[Run]:
    """All runs of a job, by index, with what they have become; without the latest points of those that train. Empty where there is no such job."""
    with db.read() as connection:
        return [_run(row, {}) for row in connection.execute(select(table).where(table.c.job == job_id).order_by(table.c.index)).mappings()]


def failures(db: Database, job_id: str, indices: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Where those of these runs that failed first met a number that is not finite, and what led there."""
    with db.read() as connection:
        found = connection.execute(select(table.c.index, table.c.first_nonfinite).where(table.c.job == job_id, table.c.index.in_(indices)))
        return {index: where for index, where in found if where is not None}


def _live(connection: Connection, job_id: str, packs: list[list[int]]) -> dict[int, dict[str, float]]:
    """The latest points of each run."""
    found: dict[int, dict[str, float]] = {}
    for head in series.heads(connection, job_id, names=SHOWN) if packs else ():
        for index, value in zip(packs[head.pack], head.latest[:, 0].tolist(), strict=True):
            found.setdefault(index, {})[head.name] = value
    return found


def _key(row: Any, live: dict[int, dict[str, float]], sort: str) -> tuple[float, int]:
    down = sort.startswith("-")
    name = sort.removeprefix("-")
    known: dict[str, Any] = {"index": row[0], "steps": row.steps, **row.values, **(row.metrics or live.get(row[0], {}))}
    number: Any = known.get(name)
    if not isinstance(number, int | float) or not isfinite(number):
        return inf, row[0]
    return (-number if down else number), row[0]


def _run(row: Any, live: dict[str, float]) -> Run:
    columns: dict[str, Any] = {name: row[name] for name in Run.__dataclass_fields__}
    words: dict[str, Any] = {"refit": bool(row["refit"]), "state": RunState(row["state"]), "stop_reason": StopReason(row["stop_reason"]) if row["stop_reason"] else None}
    return Run(**columns | words | {"metrics": row["metrics"] or finite(live)})
