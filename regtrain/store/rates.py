"""How long a step took, by what it depends on: stored when a job has finished, so that a plan can say how long the next one will take."""

from math import ceil
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects import postgresql, sqlite

from regtrain.contract.datasets import Facts, facts_of
from regtrain.contract.job import JobSpec
from regtrain.contract.plan import pace_key
from regtrain.store.database import Database
from regtrain.store.tables import datasets, dumps, now, rates, runs


def remember(connection: Connection, job: Row[Any]) -> None:
    """Stores the pace of a job's last attempt; not where a run has stopped before its budget's end, which makes steps look cheap."""
    started: dict[str, Any] = job.started or {}
    device = started.get("environment", {}).get("device_kind")
    packs: list[list[int]] = job.packs or []
    sizes = [len(pack) for pack in packs]
    done = started.get("steps", 0) * len(sizes) - (job.attempt_step or 0)
    if device is None or job.attempt_at is None or done <= 0 or _stopped_early(connection, job.id, started["steps"]):
        return
    spec = JobSpec.model_validate_json(dumps(job.spec))
    facts = facts_of(spec.dataset) or _facts(connection, job.dataset)
    if facts is None:
        return
    taken = max((now() - job.attempt_at).total_seconds(), 0.0)
    row = {"key": pace_key(spec, facts, sizes), "device": device, "nanoseconds": ceil(taken * 1e9 / done), "measured_at": now()}
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(
        dialect.insert(rates).values(**row).on_conflict_do_update(index_elements=["key", "device"], set_={name: row[name] for name in ("nanoseconds", "measured_at")})
    )


def seconds_a_step(db: Database, key: str, *, device: str) -> float | None:
    """Wall time of one step of one pack, validation and reports included, as it was last measured; None until a worker has."""
    with db.read() as connection:
        found = connection.execute(select(rates.c.nanoseconds).where(rates.c.key == key, rates.c.device == device)).scalar()
    return None if found is None else found / 1e9


def _stopped_early(connection: Connection, job_id: str, steps: int) -> bool:
    return connection.execute(select(func.count()).where(runs.c.job == job_id, runs.c.steps != steps)).scalar_one() > 0


def _facts(connection: Connection, dataset: str | None) -> Facts | None:
    found = connection.execute(select(datasets.c.facts).where(datasets.c.id == dataset)).scalar() if dataset else None
    return None if found is None else Facts.model_validate_json(dumps(found))
