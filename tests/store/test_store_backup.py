"""Backup and restore, as an operator does them: by the command line, while the database is in use."""

import threading
from pathlib import Path

import numpy as np
import pytest
import store_acting as act

from regtrain.contract.errors import NotFound
from regtrain.store import jobs, series
from regtrain.store.__main__ import main
from regtrain.store.backup import backup
from regtrain.store.database import open_database


def test_a_drill(tmp_path: Path) -> None:
    """A backup under load, then a disaster, then a restore: what was there at the backup is there again."""
    data, copy = tmp_path / "data", tmp_path / "safe" / "copy.db"
    db = open_database(None, data)
    job = act.submit(db, name="kept")
    held = act.claim(db)
    values = np.random.default_rng(0).normal(size=200_000)
    jobs.report(db, held, [act.started(steps=200_000), act.points(loss_train=(range(200_000), values))])
    act.finish(db, held)
    before = jobs.get(db, job.id)
    waiting = act.submit(db)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            act.submit(db, name="load")

    writer = threading.Thread(target=load)
    writer.start()
    try:
        assert main(["backup", "--data", str(data), str(copy)]) == 0
    finally:
        stop.set()
        writer.join()
    late = act.submit(db, name="late")
    assert [path.name for path in copy.parent.iterdir()] == ["copy.db"]
    assert main(["restore", "--data", str(data), str(copy)]) == 1  # it is in use
    assert jobs.get(db, late.id).name == "late"
    db.close()
    (data / "regtrain.db").write_bytes(b"disaster")
    assert main(["restore", "--data", str(data), str(copy)]) == 0
    db = open_database(None, data)
    assert jobs.get(db, job.id) == before
    [curve] = series.read(db, job.id, series=["loss/train"])
    np.testing.assert_array_equal(curve.y, values)
    with pytest.raises(NotFound):
        jobs.get(db, late.id)
    assert act.claim(db).job == waiting.id
    act.submit(db)
    db.close()
    assert not list(data.glob("*.part*"))


def test_a_restore_over_a_healthy_database_replaces_its_log_too(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.db"
    db = open_database(None, data)
    first = act.submit(db)
    backup(data / "regtrain.db", copy)
    second = act.submit(db)
    db.close()
    assert main(["restore", "--data", str(data), str(copy)]) == 0
    db = open_database(None, data)
    assert jobs.get(db, first.id) == first
    with pytest.raises(NotFound):
        jobs.get(db, second.id)
    db.close()


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_what_is_no_backup_is_not_restored(tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    db = open_database(None, data)
    job = act.submit(db)
    db.close()
    if content is not None:
        (tmp_path / "bad").write_bytes(content)
    assert main(["restore", "--data", str(data), str(tmp_path / "bad")]) == 1
    assert capsys.readouterr().err
    db = open_database(None, data)
    assert jobs.get(db, job.id) == job
    db.close()
    assert not list(data.glob("*.part*"))


def test_a_damaged_copy_is_found(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.db"
    db = open_database(None, data)
    for _ in range(200):
        act.submit(db)
    backup(data / "regtrain.db", copy)
    db.close()
    content = bytearray(copy.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    copy.write_bytes(content)
    assert main(["restore", "--data", str(tmp_path / "other"), str(copy)]) == 1
    assert not (tmp_path / "other" / "regtrain.db").exists()


def test_migrate_says_that_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--data", str(tmp_path)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_a_backup_neither_makes_nor_changes_a_database(tmp_path: Path) -> None:
    assert main(["backup", "--data", str(tmp_path), str(tmp_path / "copy.db")]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_the_url_says_which_file(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    db = open_database(f"sqlite:///{tmp_path}/else.db", tmp_path)
    job = act.submit(db)
    db.close()
    where = ["--data", str(tmp_path), "--database-url"]
    assert main(["backup", *where, f"sqlite:///{tmp_path}/else.db", str(tmp_path / "copy.db")]) == 0
    assert main(["restore", *where, f"sqlite:///{tmp_path}/again.db", str(tmp_path / "copy.db")]) == 0
    db = open_database(f"sqlite:///{tmp_path}/again.db", tmp_path)
    assert jobs.get(db, job.id) == job
    db.close()
    assert main([command, *where, "postgresql://host/db", str(tmp_path / "copy.db")]) == 1
    assert "pg_dump" in capsys.readouterr().err
