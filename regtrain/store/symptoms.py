"""What was noticed of the runs of a job: stored once a run, symptom and layer, so that a resumed job can say it again."""

from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from regtrain.contract.events import Noticed
from regtrain.store.database import Database
from regtrain.store.tables import symptoms as table

NAMES = ("run", "symptom", "step", "value", "bound", "severity", "confidence", "evidence", "pack", "done")


def note(connection: Connection, job: str, event: Noticed) -> None:
    """Stores a symptom; one that is known already is told anew."""
    key = {"job": job, "run": event.run, "symptom": event.symptom, "layer": event.layer or ""}
    connection.execute(delete(table).where(*(table.c[name] == value for name, value in key.items())))
    connection.execute(insert(table).values(**{name: getattr(event, name) for name in NAMES}, job=job, layer=event.layer or ""))


def truncate(connection: Connection, job: str, checkpoints: dict[int, int]) -> None:
    """Removes what was noticed beyond the checkpoints (pack → step), and all of packs that have none."""
    connection.execute(delete(table).where(table.c.job == job, table.c.pack.not_in(list(checkpoints))))
    if checkpoints:
        beyond = (table.c.pack == bindparam("of")) & (table.c.done > bindparam("at"))
        connection.execute(delete(table).where(table.c.job == job, beyond), [{"of": pack, "at": step} for pack, step in checkpoints.items()])


def every(db: Database, job: str) -> list[Noticed]:
    """All of a job, by run and step; empty where there is no such job."""
    with db.read() as connection:
        return [_noticed(row) for row in connection.execute(select(table).where(table.c.job == job).order_by(table.c.run, table.c.step, table.c.symptom, table.c.layer)).mappings()]


def counted(db: Database, jobs: list[str]) -> dict[str, int]:
    """How many symptoms each job shows; jobs without any are left out."""
    with db.read() as connection:
        found = connection.execute(select(table.c.job, func.count()).where(table.c.job.in_(jobs)).group_by(table.c.job)).all()
        return {row[0]: row[1] for row in found}


def _noticed(row: Any) -> Noticed:
    return Noticed(**{name: row[name] for name in NAMES}, layer=row["layer"] or None)
