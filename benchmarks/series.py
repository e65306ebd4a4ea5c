"""Curves: points stored a second, bytes a point, and a chart over ten million points; against one row a point in plain SQLite.

OMP_NUM_THREADS=1 python benchmarks/series.py
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from harness import interleaved, publish, quartiles, ratios, timed

from regtrain.contract.events import Points, Started
from regtrain.contract.job import given_of, parse
from regtrain.store import jobs, series
from regtrain.store.database import Database, open_database, sqlite

LONG, ROUNDS = 10_000_000, 7
BODY = json.dumps({"dataset": {"kind": "iris"}, "model": {"kind": "linear"}, "loss": {"kind": "cross_entropy"}, "optimizer": {"kind": "sgd", "lr": 0.1}})
LAYERS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [*stored(Path(folder)), *charts(Path(folder))]
    publish("series", rows)


def losses(n: int) -> np.ndarray:
    """A loss that falls and is noisy, as losses do: the mantissas are random, the exponents alike."""
    rng = np.random.default_rng(0)
    return (2.3 * np.exp(-np.arange(n) / n) + 0.05 * rng.normal(size=n)).astype(np.float32)


def stored(folder: Path) -> list[dict[str, Any]]:
    """Reports of several shapes, through the verb that workers use, every report a durable transaction."""
    shapes = {
        "one run, 3 scalar series, reports of 65,536 steps": (1, 3, 0, 65_536, 655_360),
        "one run, 3 scalar series, reports of 5,000 steps": (1, 3, 0, 5_000, 200_000),
        "one run, 9 series of 8 layers and 3 scalar ones, reports of 250 steps": (1, 3, 9, 250, 5_000),
        "64 runs, 3 scalar series, reports of 250 steps": (64, 3, 0, 250, 10_000),
        "64 runs, 9 series of 8 layers and 3 scalar ones, reports of 50 steps": (64, 3, 9, 50, 500),
    }
    rows: list[dict[str, Any]] = []
    for number, (name, (runs, scalars, layered, report, steps)) in enumerate(shapes.items()):
        db = open_database(None, folder / f"stored{number}")
        plain = row_a_point(folder / f"plain{number}.db")
        points = steps * runs * (scalars + layered * LAYERS)
        reports = list(reports_of(runs, scalars, layered, report, steps))
        sample = reports[: max(1, len(reports) // 10)]  # the baseline is slow: a tenth says enough
        sampled = points * len(sample) // len(reports)
        taken = interleaved({"ours": lambda db=db, r=reports, n=runs: write(db, r, n), "row": lambda plain=plain, r=sample: write_rows(plain, r)}, rounds=ROUNDS)
        ours, theirs = [points / t for t in taken["ours"]], [sampled / t for t in taken["row"]]
        db.close()
        written = (ROUNDS + 1) * points
        rows.append({
            "what": "stored", "case": name, "points": points, "runs": ROUNDS, "points_a_second": quartiles(ours), "one_row_a_point": quartiles(theirs),
            "ratio": quartiles(ratios(ours, theirs)), "bytes_a_point": _size(db.writer.url.database) / written,
            "bytes_a_point_one_row": _size(plain) / ((ROUNDS + 1) * sampled),
        })  # fmt: skip
    return rows


def charts(folder: Path) -> list[dict[str, Any]]:
    """500 buckets over all of ten million points, and over a tenth of them; the baseline groups its rows."""
    values = losses(LONG)
    db = open_database(None, folder / "chart")
    job_id = fresh(db, 1)
    with db.write() as connection:
        for first in range(0, LONG, 1_000_000):
            series.append(connection, job_id, points_of(first, {"loss/train": values[first : first + 1_000_000, None]}))
    db.close()
    db = open_database(None, folder / "chart")
    plain = row_a_point(folder / "chart.db")
    with closing(sqlite.connect(plain)) as connection, connection:
        connection.executemany("INSERT INTO points VALUES (1, ?, ?)", enumerate(values.tolist()))

    rows: list[dict[str, Any]] = []
    for name, first, last in (("all of 10,000,000 points", 0, LONG - 1), ("steps 3,000,001 to 4,000,000", 3_000_001, 4_000_000)):
        width = buckets_as_wide(db, job_id, first, last)
        contestants: dict[str, Callable[[], float]] = {
            "ours": lambda first=first, last=last: timed(lambda: series.read(db, job_id, series=["loss/train"], first=first, last=last, points=500)),
            "row": lambda first=first, last=last, width=width: timed(lambda: grouped(plain, first, last, width)),
        }
        taken = interleaved(contestants, rounds=ROUNDS)
        rows.append({
            "what": "chart", "case": name, "runs": ROUNDS, "ms": quartiles([1e3 * t for t in taken["ours"]]), "one_row_a_point_ms": quartiles([1e3 * t for t in taken["row"]]),
            "ratio": quartiles(ratios(taken["ours"], taken["row"])), "bytes_a_point": _size(db.writer.url.database) / LONG, "bytes_a_point_one_row": _size(plain) / LONG,
        })  # fmt: skip
    db.close()
    return rows


def fresh(db: Database, runs: int) -> str:
    """A running job of so many runs; jobs of earlier rounds are out of the way."""
    jobs.submit(db, parse(BODY), given=given_of(BODY), warnings=[])
    claim = jobs.claim(db, worker="bench")
    assert claim is not None
    began = Started(runs, [list(range(runs))], 10**9, 100, [f"layers.{i}" for i in range(LAYERS)], [], {}, [], {})
    jobs.report(db, claim, [began])
    return claim.job


def reports_of(runs: int, scalars: int, layered: int, report: int, steps: int) -> Any:
    rng = np.random.default_rng(1)
    names = ["loss/train", "objective/train", "learning_rate"][:scalars]
    for first in range(0, steps, report):
        flat = {name: np.exp(rng.normal(size=(report, runs))).astype(np.float32) for name in names}
        deep = {f"penalty/l2.{i}": np.exp(rng.normal(size=(report, runs, LAYERS))).astype(np.float32) for i in range(layered)}
        yield points_of(first, flat | deep)


def points_of(first: int, values: dict[str, np.ndarray]) -> Points:
    n = len(next(iter(values.values())))
    steps = np.arange(first, first + n)
    return Points(0, first + n, dict.fromkeys(values, steps), values, {name: np.full(v.shape[1], n) for name, v in values.items()})


def write(db: Database, reports: list[Points], runs: int) -> float:
    jobs.submit(db, parse(BODY), given=given_of(BODY), warnings=[])
    claim = jobs.claim(db, worker="bench")
    assert claim is not None
    jobs.report(db, claim, [Started(runs, [list(range(runs))], 10**9, 100, [f"layers.{i}" for i in range(LAYERS)], [], {}, [], {})])
    return timed(lambda: [jobs.report(db, claim, [report]) for report in reports])


def row_a_point(path: Path) -> Path:
    """The peer: plain sqlite3 with the same durability, and one narrow row a point."""
    with closing(sqlite.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE points (series INTEGER, step INTEGER, value REAL, PRIMARY KEY (series, step)) WITHOUT ROWID")
    return path


def write_rows(path: Path, reports: list[Points]) -> float:
    with closing(sqlite.connect(path)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        series_so_far = connection.execute("SELECT coalesce(max(series), 0) FROM points").fetchone()[0]

        def all_reports() -> None:
            for report in reports:
                with connection:
                    number = series_so_far
                    for name, values in report.values.items():
                        steps = report.steps[name].tolist()
                        for column in values.reshape(len(steps), -1).T:
                            number += 1
                            connection.executemany(f"INSERT INTO points VALUES ({number}, ?, ?)", zip(steps, column.tolist(), strict=True))

        return timed(all_reports)


def buckets_as_wide(db: Database, job_id: str, first: int, last: int) -> int:
    return series.read(db, job_id, series=["loss/train"], first=first, last=last, points=500)[0].bucket


def grouped(path: Path, first: int, last: int, width: int) -> list[Any]:
    with closing(sqlite.connect(path)) as connection:
        query = "SELECT step / ?, min(value), max(value), count(*), max(step) FROM points WHERE series = 1 AND step BETWEEN ? AND ? GROUP BY step / ?"
        return connection.execute(query, (width, first, last, width)).fetchall()


def _size(path: str | Path | None) -> int:
    return sum(Path(f"{path}{end}").stat().st_size for end in ("", "-wal") if Path(f"{path}{end}").exists())


if __name__ == "__main__":
    main()
