"""Migrations: they lead to the tables of tables.py, keep what is stored, and never leave a child without its parent."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_acting as act
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from regtrain.store import jobs, migrations
from regtrain.store.database import Database, StoreError, open_database, sqlite, sqlite_engine
from regtrain.store.tables import metadata

HEAD = migrations.HEAD
NEXT = f"{int(HEAD) + 1:04}"
STEP = '''
"""A step of the future."""
import sqlalchemy as sa
from alembic import op

revision = "NEXT"
down_revision = "HEAD"


def upgrade() -> None:
    with op.batch_alter_table("jobs", recreate="always" if op.get_bind().dialect.name == "sqlite" else "never", table_kwargs={"sqlite_strict": True}) as batch:
        batch.add_column(sa.Column("owner", sa.String()))
    %s
'''


@pytest.fixture
def future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a step that rebuilds the table of jobs, and whatever else it is told."""

    def add(more: str = "") -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(Path(migrations.__file__).parent, folder)
        (folder / "versions" / f"v{NEXT}_future.py").write_text(STEP.replace("NEXT", NEXT).replace("HEAD", HEAD) % more)
        monkeypatch.setattr(migrations, "__file__", str(folder / "__init__.py"))
        monkeypatch.setattr(migrations, "HEAD", NEXT)

    return add


def populated(db: Database) -> dict[str, Any]:
    job = act.submit(db, idempotency=("key", "digest"), selection={"seeds": 2})
    held = act.claim(db)
    jobs.report(db, held, [act.started([[0, 1]]), act.points(loss_train=(range(600), np.ones((600, 2))))])
    act.checkpoint(db, held, step=600)
    assert jobs.get(db, job.id).attempt == 1
    return act.everything(db)


def test_the_steps_lead_to_the_declared_tables(sqlite_db: Database) -> None:
    engine = create_engine("sqlite://", module=sqlite)
    metadata.create_all(engine)
    schemas: list[dict[str, str]] = []
    with engine.connect() as declared, sqlite_db.read() as migrated:
        for connection in (declared, migrated):
            found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"))
            schemas.append({name: sorted(part.strip() for line in sql.splitlines() for part in line.split(",") if part.strip()) for name, sql in found})
    engine.dispose()
    assert schemas[0] == schemas[1]


def test_places_of_runs_that_were_computed_until_now_are_filled_in(tmp_path: Path) -> None:
    """Two values, three folds, two seeds, a refit: 13 runs of a job that is older than the columns."""
    engine = sqlite_engine(str(tmp_path / "old.db"), begin="BEGIN IMMEDIATE")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        job = dict.fromkeys(("attempt", "crashes", "priority", "beat", "step", "pack", "attempt_step"), 0) | {
            "id": "job_1",
            "name": "",
            "state": "queued",
            "version": 1,
            "runs": 13,
        }
        job |= dict.fromkeys(("given", "warnings", "metadata", "progress", "metrics"), "{}") | {"created_at": "2026-01-01 00:00:00.000000"}
        job |= {"spec": '{"selection": {"folds": 3, "repeats": 1, "seeds": 2, "refit": null}}'}
        connection.execute(text(f"INSERT INTO jobs ({', '.join(job)}) VALUES ({', '.join(f':{name}' for name in job)})"), job)
        for index in range(13):
            words = {"job": "job_1", "at": index, "seed": index % 2, "state": "queued", "none": "{}"}
            columns = 'job, "index", seed, state, steps, "values", metrics, best, zeros'
            connection.execute(text(f"INSERT INTO runs ({columns}) VALUES (:job, :at, :seed, :state, 0, :none, :none, :none, :none)"), words)
        command.upgrade(config, "head")
        found = [tuple(row) for row in connection.execute(text('SELECT point, fold, seed, refit FROM runs ORDER BY "index"'))]
    engine.dispose()
    assert found == [*((point, fold, seed, 0) for point in range(2) for fold in range(3) for seed in range(2)), (None, None, 0, 1)]


def test_head_is_the_newest_step() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [migrations.HEAD]


def test_a_populated_database_keeps_every_row(db: Database, future: Any) -> None:
    before = populated(db)
    future()
    try:
        migrations.migrate(db)
        after = act.everything(db)
        assert after == before
        assert {name for name, rows in after.items() if rows} >= {"jobs", "runs", "series", "chunks", "pyramid", "checkpoints", "idempotency"}
        with db.read() as connection:
            assert connection.execute(text("SELECT owner FROM jobs")).scalars().all() == [None]
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == NEXT
    finally:
        if not db.on_sqlite:  # the server is shared with the other tests
            with db.write() as connection:
                connection.execute(text("ALTER TABLE jobs DROP COLUMN owner"))
                connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD})


def test_a_step_that_would_orphan_rows_changes_nothing(sqlite_db: Database, future: Any) -> None:
    before = populated(sqlite_db)
    future('op.execute("DELETE FROM jobs")')
    with pytest.raises(StoreError, match="parent is gone"):
        migrations.migrate(sqlite_db)
    assert act.everything(sqlite_db) == before
    with sqlite_db.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD


def test_with_foreign_keys_on_the_same_step_would_delete_the_children(sqlite_db: Database) -> None:
    """Why they are off: the danger is real in this SQLite and this alembic."""
    populated(sqlite_db)
    with sqlite_db.write() as connection, Operations(MigrationContext.configure(connection)).batch_alter_table("jobs", recreate="always"):
        pass
    assert act.everything(sqlite_db)["runs"] == []


def test_a_step_that_fails_changes_nothing(db: Database, future: Any) -> None:
    before = populated(db)
    future("raise RuntimeError('half way')")
    with pytest.raises(RuntimeError, match="half way"):
        migrations.migrate(db)
    assert act.everything(db) == before


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    db = open_database(None, tmp_path)
    with db.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        open_database(None, tmp_path)


def test_several_processes_open_a_new_database_at_once(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from regtrain.store.database import open_database; open_database(None, Path({str(tmp_path)!r})).close()"
    openers = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(opener.communicate(timeout=200)[1], opener.returncode) for opener in openers] == [("", 0)] * 3
    db = open_database(None, tmp_path)
    act.submit(db)
    db.close()


def test_an_installed_package_has_the_steps(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    source = tmp_path / "source"
    shutil.copytree(project / "regtrain", source / "regtrain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(project / "pyproject.toml", source)
    for name in ("README.md", "LICENSE"):
        (source / name).touch()
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=200, check=False)
    if "No module named 'setuptools" in done.stderr:
        pytest.skip("setuptools is not installed here")
    assert done.returncode == 0, done.stderr
    [wheel] = source.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"regtrain/store/migrations/env.py", "regtrain/store/migrations/versions/v0001_first_tables.py"} <= set(names)
