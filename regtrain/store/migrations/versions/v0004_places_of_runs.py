"""What a run is in its job: variant, place in the table of scores, folds, whether it is a refit; how its strength adapted; more reasons to stop.

Revision ID: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

WORDS = sa.JSON(none_as_null=True)
KEPT = ("job", "index", "seed", "state", "stop_reason", "steps", "values", "metrics", "best", "zeros", "coefficients", "first_nonfinite", "certificate")


def upgrade() -> None:
    op.rename_table("runs", "runs_before")
    op.create_table(
        "runs",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("variant", sa.String(), nullable=True),
        sa.Column("point", sa.BigInteger(), nullable=True),
        sa.Column("fold", sa.BigInteger(), nullable=True),
        sa.Column("outer", sa.BigInteger(), nullable=True),
        sa.Column("refit", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stop_reason", sa.String(), nullable=True),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("values", WORDS, nullable=False),
        sa.Column("metrics", WORDS, nullable=False),
        sa.Column("best", WORDS, nullable=False),
        sa.Column("zeros", WORDS, nullable=False),
        sa.Column("coefficients", WORDS, nullable=True),
        sa.Column("first_nonfinite", WORDS, nullable=True),
        sa.Column("certificate", WORDS, nullable=True),
        sa.Column("adaptation", WORDS, nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="runs_state"),
        sa.CheckConstraint(
            "stop_reason IS NULL OR stop_reason IN ('budget', 'converged', 'early_stopping', 'pruned', 'symptom', 'diverged', 'cancelled')", name="runs_stop_reason"
        ),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "index"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    names = ", ".join(f'"{name}"' for name in KEPT)
    op.execute(f"INSERT INTO runs ({names}, refit) SELECT {names}, 0 FROM runs_before")
    op.drop_table("runs_before")
    _fill_places()


def _fill_places() -> None:
    """Until now places were computed from the spec: grid, then fold, then seed, the refit last."""
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in ("job", "index", "point", "fold", "refit")]
    runs = sa.table("runs", *columns)
    jobs = sa.table("jobs", sa.column("id"), sa.column("runs"), sa.column("spec", sa.JSON()))
    for job in op.get_bind().execute(sa.select(jobs)).all():
        rows = [{"of": job.id, "at": index, **place} for index, place in enumerate(_places(job.runs, job.spec["selection"]))]
        mine = (runs.c.job == sa.bindparam("of")) & (runs.c["index"] == sa.bindparam("at"))
        op.get_bind().execute(sa.update(runs).where(mine).values(point=sa.bindparam("p"), fold=sa.bindparam("f"), refit=sa.bindparam("r")), rows)


def _places(count: int, selection: dict[str, Any]) -> list[dict[str, int | None]]:
    folds, seeds = (selection.get("folds") or 0) * selection.get("repeats", 1), selection.get("seeds", 1)
    refits = int(bool(folds) if selection.get("refit") is None else selection["refit"])
    found: list[dict[str, int | None]] = [{"p": index // (seeds * max(folds, 1)), "f": index // seeds % folds if folds else None, "r": 0} for index in range(count - refits)]
    return [*found, *({"p": None, "f": None, "r": 1} for _ in range(refits))]
