"""How the database is opened: the recipe is in force, and what could lose data is refused."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_acting as act
from sqlalchemy import text

from regtrain.contract.states import State
from regtrain.store import database, jobs, series
from regtrain.store.database import Database, StoreError, file_system, open_database, safe_version
from regtrain.store.tables import dumps, metadata


def pragmas(db: Database, names: list[str]) -> list[Any]:
    with db.write() as connection:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]


def test_the_recipe_is_in_force(sqlite_db: Database) -> None:
    assert pragmas(sqlite_db, ["journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema", "auto_vacuum"]) == ["wal", 2, 1, 30_000, 0, 2]
    with sqlite_db.read() as connection:
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
        strict = {row.name: (row.strict, row.wr) for row in connection.exec_driver_sql("PRAGMA table_list") if row.name in metadata.tables}
    assert {name for name, (is_strict, _) in strict.items() if is_strict} == set(metadata.tables)
    assert {name for name, (_, without) in strict.items() if without} == {"runs", "checkpoints", "logs", "pyramid", "rates", "symptoms", "origins"}


@pytest.mark.parametrize(
    ("version", "safe"),
    [((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False), ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 4), True), ((4, 0, 0), True)],
)  # fmt: skip
def test_versions_of_sqlite_that_can_corrupt_are_known(version: tuple[int, int, int], safe: bool) -> None:
    assert safe_version(version) is safe


def test_an_sqlite_that_can_corrupt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.sqlite, "sqlite_version_info", (3, 40, 1))
    with pytest.raises(StoreError, match="pysqlite3"):
        open_database(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


MOUNTS = r"""
22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 27 0:30 / /home rw,relatime shared:1 - nfs4 server:/home rw
32 31 0:31 / /home/local rw - xfs /dev/vdb rw
33 27 0:32 / /mnt/my\040share rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"), [("/var/lib", "ext4"), ("/home", "nfs4"), ("/home/me/data", "nfs4"), ("/home/local/data", "xfs"), ("/homely", "ext4"), ("/mnt/my share/x", "cifs")]
)
def test_the_file_system_under_a_path_is_found(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS.strip()) == kind
    assert (kind in database.NETWORK) is (kind in ("nfs4", "cifs"))


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "NETWORK", {file_system(tmp_path.resolve(), Path("/proc/self/mountinfo").read_text())})
    with pytest.raises(StoreError, match="network file system"):
        open_database(None, tmp_path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db"])
def test_databases_that_cannot_hold_jobs_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError):
        open_database(url, tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "regtrain.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StoreError):
        open_database(None, tmp_path)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        open_database(f"postgresql://postgres@/none?host={tmp_path}", tmp_path)


def test_a_database_can_lie_elsewhere_than_the_data(tmp_path: Path) -> None:
    db = open_database(f"sqlite:///{tmp_path}/else/where.db", tmp_path / "data")
    act.submit(db)
    db.close()
    assert (tmp_path / "else" / "where.db").exists()
    assert not (tmp_path / "data" / "regtrain.db").exists()


def test_sqlite_does_not_cross_a_fork(sqlite_db: Database) -> None:
    def child(answer: Any) -> None:
        try:
            jobs.summaries(sqlite_db)
            answer.send("it did")
        except StoreError:
            answer.send("refused")

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(200)
    assert ours.recv() == "refused"
    process.join()


def test_threads_write_and_read_at_once(db: Database) -> None:
    """No thread sees half of a transaction, and none fails because another writes."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(15):
                job = act.submit(db, selection={"seeds": 4})
                assert jobs.get(db, job.id).runs == 4
                jobs.cancel(db, job.id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(jobs.summaries(db, state=State.CANCELLED, limit=200)[0]) == 90


def test_a_reader_sees_one_moment_while_others_write(db: Database) -> None:
    act.submit(db)
    with db.read() as connection:
        first = connection.execute(text("SELECT count(*) FROM jobs")).scalar()
        act.submit(db)
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == first == 1


def test_the_log_is_written_back_in_quiet_moments(sqlite_db: Database) -> None:
    job = act.submit(sqlite_db)
    assert sqlite_db.log_bytes() > 0
    before = os.path.getsize(sqlite_db.writer.url.database or "")
    held = act.claim(sqlite_db)
    jobs.report(sqlite_db, held, [act.started(), act.points(loss_train=(range(100_000), [0.1 * (i % 997) for i in range(100_000)]))])
    sqlite_db.write_back()
    assert os.path.getsize(sqlite_db.writer.url.database or "") > before
    assert len(series.read(sqlite_db, job.id, series=["loss/train"])[0].x) == 100_000


def test_the_room_of_deleted_jobs_is_given_back(sqlite_db: Database) -> None:
    act.submit(sqlite_db)
    held = act.claim(sqlite_db)
    jobs.report(sqlite_db, held, [act.started(), act.points(loss_train=(range(4_000_000), np.random.default_rng(0).random(4_000_000)))])
    act.finish(sqlite_db, held)
    sqlite_db.write_back()
    file = sqlite_db.writer.url.database or ""
    full = os.path.getsize(file)
    jobs.delete(sqlite_db, held.job)
    for _ in range(8):
        sqlite_db.write_back()
    assert full > 20_000_000
    assert os.path.getsize(file) < full / 2


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"a": float("nan"), "b": 1}, '{"a":null,"b":1,"nonfinite":{"a":"NaN"}}'),
        ({"a": [1.0, float("inf"), [float("-inf")]]}, '{"a":[1.0,null,[null]],"nonfinite":{"a.1":"Infinity","a.2.0":"-Infinity"}}'),
        ({"a": {"b": float("nan")}}, '{"a":{"b":null,"nonfinite":{"b":"NaN"}}}'),
        ([float("nan"), "é"], '[null,"é"]'),
        ({"a": 0.5}, '{"a":0.5}'),
    ],
)
def test_numbers_that_json_does_not_know_are_listed_beside_it(value: Any, stored: str) -> None:
    assert dumps(value) == stored
