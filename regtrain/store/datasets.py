"""Uploaded datasets: their facts, and where their canonical file lies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete as delete_rows
from sqlalchemy import insert, select

from regtrain.contract.datasets import Facts
from regtrain.contract.errors import Conflict, NotFound
from regtrain.contract.states import FINAL
from regtrain.store import files
from regtrain.store.cursors import decoded, encoded
from regtrain.store.database import Database
from regtrain.store.ids import new_id
from regtrain.store.tables import datasets as table
from regtrain.store.tables import dumps, jobs, now


@dataclass(frozen=True, kw_only=True)
class Dataset:
    id: str
    name: str
    sha256: str
    """Of the canonical file."""
    bytes: int
    path: str
    """The canonical file, relative to the data folder."""
    facts: Facts
    preview: Any
    """The first rows, as the service shows them."""
    created_at: datetime


def fresh_id() -> str:
    """The id under which the files of a new dataset are placed before its row is written."""
    return new_id("ds")


def create(db: Database, *, id: str, name: str, sha256: str, path: Path, facts: Facts, preview: Any = None) -> Dataset:
    """Records a dataset whose canonical file lies, durably, at `path`.

    Raises:
        NotFound: the file lies outside of the data folder.
    """
    row: dict[str, Any] = {"id": id, "name": name, "sha256": sha256, "bytes": path.stat().st_size, "path": files.relative(db.data, path)}
    row |= {"facts": facts.model_dump(mode="json"), "preview": preview, "created_at": now()}
    with db.write() as connection:
        connection.execute(insert(table).values(**row))
    return _dataset(row)


def get(db: Database, dataset_id: str) -> Dataset:
    """The dataset.

    Raises:
        NotFound: there is none of this id.
    """
    with db.read() as connection:
        row = connection.execute(select(table).where(table.c.id == dataset_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no dataset {dataset_id}")
    return _dataset(row)


def listing(db: Database, *, limit: int = 50, cursor: str | None = None) -> tuple[list[Dataset], str | None]:
    """One page of datasets, newest first, and the cursor of the next.

    Raises:
        SpecRefused: the cursor is none of ours.
    """
    query = select(table).order_by(table.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(table.c.id < decoded(cursor, "datasets"))
    with db.read() as connection:
        found = [_dataset(row) for row in connection.execute(query).mappings()]
    return found[:limit], encoded(found[limit - 1].id, "datasets") if len(found) > limit else None


def delete(db: Database, dataset_id: str) -> None:
    """Removes a dataset and its file. Jobs that have ended keep their results.

    Raises:
        NotFound: there is none of this id.
        Conflict: a job that is not final uses it.
    """
    with db.write() as connection:
        if connection.execute(select(table.c.id).where(table.c.id == dataset_id).with_for_update()).one_or_none() is None:
            raise NotFound(f"there is no dataset {dataset_id}")
        user = connection.execute(select(jobs.c.id).where(jobs.c.dataset == dataset_id, jobs.c.state.not_in(list(FINAL))).limit(1)).scalar()
        if user is not None:
            raise Conflict(f"dataset {dataset_id} is in use by job {user}: cancel it, or wait for its end")
        connection.execute(delete_rows(table).where(table.c.id == dataset_id))
    files.remove(db.data, dataset_id)


def _dataset(row: Mapping[Any, Any]) -> Dataset:
    columns: dict[str, Any] = {**row, "facts": Facts.model_validate_json(dumps(row["facts"]))}
    return Dataset(**columns)
