"""The tables. Their CHECKs are built from the contract's states, so that a state the contract does not know cannot be stored.

Types are SQLAlchemy's general ones; on SQLite they are compiled to the four that STRICT tables know.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from math import isfinite, isnan
from typing import Any, cast

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Double, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import JSON, TypeDecorator

from regtrain.contract.states import FINAL, Failure, Intent, RunState, State, StopReason

MOST_CRASHES = 3
"""So many crashes without a newer checkpoint between them, and a job has failed."""


@compiles(String, "sqlite")
@compiles(JSON, "sqlite")
@compiles(DateTime, "sqlite")
def _text(*_: Any, **__: Any) -> str:
    return "TEXT"


@compiles(BigInteger, "sqlite")
def _integer(*_: Any, **__: Any) -> str:
    return "INTEGER"


@compiles(Double, "sqlite")
def _real(*_: Any, **__: Any) -> str:
    return "REAL"


@compiles(LargeBinary, "sqlite")
def _blob(*_: Any, **__: Any) -> str:
    return "BLOB"


_COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps it as sortable text, without the zone that all of them share."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


def dumps(value: Any) -> str:
    """Compact JSON. Numbers that are not finite are null, and are listed beside as `nonfinite` in the object that holds them."""
    try:
        return _COMPACT.encode(value)
    except ValueError:
        return _COMPACT.encode(finite(value))


def finite(value: Any) -> Any:
    """The value with null for every NaN and ±Infinity; the object around it lists them: {"nonfinite": {"loss/val": "NaN"}}."""
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        found = {place: _word(number) for key, inner in given.items() for place, number in _nonfinite(inner, key)}
        plain = {key: finite(inner) for key, inner in given.items()}
        return {**plain, "nonfinite": found} if found else plain
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in cast("list[Any]", value)]
    return None if isinstance(value, float) and not isfinite(value) else value


def _nonfinite(value: Any, path: str) -> Iterable[tuple[str, float]]:
    if isinstance(value, float) and not isfinite(value):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(cast("list[Any]", value)):
            yield from _nonfinite(inner, f"{path}.{index}")


def _word(number: float) -> str:
    return "NaN" if isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _one_of(column: str, words: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(word.value) for word in words)})"


def _job(**options: Any) -> Column[str]:
    return Column("job", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, **options)


def _whole(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, nullable=False, **options)


def _words(name: str, **options: Any) -> Column[Any]:
    """A JSON column; SQL NULL where there is nothing."""
    return Column(name, JSON(none_as_null=True), **options)


metadata = MetaData()

datasets = Table(
    "datasets",
    metadata,
    Column("id", String, primary_key=True, nullable=False),
    Column("name", String, nullable=False),
    Column("sha256", String, nullable=False),
    _whole("bytes"),
    Column("path", String, nullable=False),
    _words("facts", nullable=False),
    _words("preview"),
    Column("created_at", Utc, nullable=False),
    sqlite_strict=True,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True, nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("intent", String),
    Column("reason", String),
    _whole("attempt"),
    _whole("crashes"),
    _whole("version"),
    _whole("priority"),
    Column("worker", String),
    _whole("beat"),
    _whole("step"),
    _whole("pack"),
    _whole("runs"),
    Column("attempt_at", Utc),
    _whole("attempt_step"),
    _words("spec", nullable=False),
    _words("given", nullable=False),
    _words("warnings", nullable=False),
    _words("metadata", nullable=False),
    _words("progress", nullable=False),
    _words("metrics", nullable=False),
    _words("packs"),
    _words("started"),
    _words("result"),
    _words("error"),
    Column("model_path", String),
    Column("model_sha256", String),
    Column("dataset", String, ForeignKey("datasets.id", ondelete="SET NULL")),
    Column("retry_of", String),
    Column("created_at", Utc, nullable=False),
    Column("started_at", Utc),
    Column("finished_at", Utc),
    CheckConstraint(_one_of("state", State), name="jobs_state"),
    CheckConstraint(f"intent IS NULL OR ({_one_of('intent', Intent)} AND state = '{State.RUNNING}')", name="jobs_intent"),
    CheckConstraint(f"(worker IS NOT NULL) = (state = '{State.RUNNING}')", name="jobs_worker"),
    CheckConstraint(f"(finished_at IS NOT NULL) = ({_one_of('state', sorted(FINAL))})", name="jobs_finished"),
    CheckConstraint(f"state <> '{State.FAILED}' OR ({_one_of('reason', Failure)} AND error IS NOT NULL)", name="jobs_failed"),
    CheckConstraint(f"state <> '{State.SUCCEEDED}' OR result IS NOT NULL", name="jobs_succeeded"),
    CheckConstraint(f"attempt >= 0 AND crashes BETWEEN 0 AND {MOST_CRASHES} AND version >= 1 AND runs >= 1", name="jobs_counts"),
    sqlite_strict=True,
)
Index("jobs_queue", jobs.c.priority.desc(), jobs.c.id, sqlite_where=text(f"state = '{State.QUEUED}'"), postgresql_where=text(f"state = '{State.QUEUED}'"))
Index("jobs_running", jobs.c.id, sqlite_where=text(f"state = '{State.RUNNING}'"), postgresql_where=text(f"state = '{State.RUNNING}'"))
Index("jobs_dataset", jobs.c.dataset, sqlite_where=text("dataset IS NOT NULL"), postgresql_where=text("dataset IS NOT NULL"))

origins = Table(
    "origins",
    metadata,
    _job(primary_key=True),
    Column("origin", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, nullable=False),
    Index("origins_origin", "origin"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String, primary_key=True, nullable=False),
    Column("digest", String, nullable=False),
    _job(index=True),
    Column("created_at", Utc, nullable=False),
    sqlite_strict=True,
)

runs = Table(
    "runs",
    metadata,
    _job(primary_key=True),
    _whole("index", primary_key=True, autoincrement=False),
    _whole("seed"),
    Column("variant", String),
    Column("point", BigInteger),
    Column("fold", BigInteger),
    Column("outer", BigInteger),
    _whole("refit"),
    Column("state", String, nullable=False),
    Column("stop_reason", String),
    _whole("steps"),
    _words("values", nullable=False),
    _words("metrics", nullable=False),
    _words("best", nullable=False),
    _words("zeros", nullable=False),
    _words("coefficients"),
    _words("first_nonfinite"),
    _words("certificate"),
    _words("adaptation"),
    CheckConstraint(_one_of("state", RunState), name="runs_state"),
    CheckConstraint(f"stop_reason IS NULL OR {_one_of('stop_reason', StopReason)}", name="runs_stop_reason"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

NUMBER: Double[float] = Double()

symptoms = Table(
    "symptoms",
    metadata,
    _job(primary_key=True),
    _whole("run", primary_key=True, autoincrement=False),
    Column("symptom", String, primary_key=True, nullable=False),
    Column("layer", String, primary_key=True, nullable=False),
    _whole("pack"),
    _whole("step"),
    _whole("done"),
    Column("value", NUMBER, nullable=False),
    Column("bound", NUMBER, nullable=False),
    Column("severity", String, nullable=False),
    Column("confidence", NUMBER, nullable=False),
    _words("evidence", nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _job(primary_key=True),
    _whole("pack", primary_key=True, autoincrement=False),
    _whole("step", primary_key=True, autoincrement=False),
    _whole("attempt"),
    Column("path", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("created_at", Utc, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

logs = Table(
    "logs",
    metadata,
    _job(primary_key=True),
    _whole("number", primary_key=True, autoincrement=False),
    _whole("attempt"),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("at", Utc, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

series = Table(
    "series",
    metadata,
    _whole("id", primary_key=True),
    _job(),
    _whole("pack"),
    Column("name", String, nullable=False),
    _whole("runs"),
    _whole("layers"),
    Column("dtype", String, nullable=False),
    _whole("last_step"),
    Column("latest", LargeBinary),
    _words("first_nonfinite", nullable=False),
    UniqueConstraint("job", "pack", "name", name="series_name"),
    CheckConstraint("dtype IN ('<f4', '<f8') AND runs >= 1 AND layers >= 0", name="series_shape"),
    sqlite_strict=True,
)

chunks = Table(
    "chunks",
    metadata,
    Column("series", BigInteger, ForeignKey("series.id", ondelete="CASCADE"), primary_key=True, autoincrement=False, nullable=False),
    _whole("first_step", primary_key=True, autoincrement=False),
    _whole("last_step"),
    _whole("points"),
    Column("steps", LargeBinary, nullable=False),
    Column("counts", LargeBinary),
    Column("values", LargeBinary, nullable=False),
    CheckConstraint("first_step >= 0 AND last_step >= first_step AND points >= 1", name="chunks_span"),
    sqlite_strict=True,
)

pyramid = Table(
    "pyramid",
    metadata,
    Column("series", BigInteger, ForeignKey("series.id", ondelete="CASCADE"), primary_key=True, autoincrement=False, nullable=False),
    Column("level", Integer, primary_key=True, autoincrement=False, nullable=False),
    _whole("bucket", primary_key=True, autoincrement=False),
    Column("summary", LargeBinary, nullable=False),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True, nullable=False),
    Column("host", String, nullable=False),
    _whole("pid"),
    Column("device", String, nullable=False),
    _words("versions", nullable=False),
    Column("job", String),
    Column("started_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
    _words("selftest"),
    Column("selftest_at", Utc),
    Column("selftest_asked_at", Utc),
    sqlite_strict=True,
)

rates = Table(
    "rates",
    metadata,
    Column("key", String, primary_key=True, nullable=False),
    Column("device", String, primary_key=True, nullable=False),
    _whole("nanoseconds"),
    Column("measured_at", Utc, nullable=False),
    CheckConstraint("nanoseconds > 0", name="rates_positive"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)
