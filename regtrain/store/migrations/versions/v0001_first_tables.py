"""The first tables.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
WORDS = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("facts", WORDS, nullable=False),
        sa.Column("preview", WORDS, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_strict=True,
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("versions", WORDS, nullable=False),
        sa.Column("job", sa.String(), nullable=True),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_strict=True,
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("intent", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("crashes", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("pack", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("attempt_at", MOMENT, nullable=True),
        sa.Column("attempt_step", sa.BigInteger(), nullable=False),
        sa.Column("spec", WORDS, nullable=False),
        sa.Column("given", WORDS, nullable=False),
        sa.Column("warnings", WORDS, nullable=False),
        sa.Column("metadata", WORDS, nullable=False),
        sa.Column("progress", WORDS, nullable=False),
        sa.Column("metrics", WORDS, nullable=False),
        sa.Column("packs", WORDS, nullable=True),
        sa.Column("started", WORDS, nullable=True),
        sa.Column("result", WORDS, nullable=True),
        sa.Column("error", WORDS, nullable=True),
        sa.Column("model_path", sa.String(), nullable=True),
        sa.Column("model_sha256", sa.String(), nullable=True),
        sa.Column("dataset", sa.String(), nullable=True),
        sa.Column("retry_of", sa.String(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.CheckConstraint("(finished_at IS NOT NULL) = (state IN ('cancelled', 'failed', 'succeeded'))", name="jobs_finished"),
        sa.CheckConstraint("(worker IS NOT NULL) = (state = 'running')", name="jobs_worker"),
        sa.CheckConstraint("intent IS NULL OR (intent IN ('cancelling', 'pausing') AND state = 'running')", name="jobs_intent"),
        sa.CheckConstraint(
            "state <> 'failed' OR (reason IN ('spec', 'data', 'diverged', 'resource', 'crash_loop', 'stalled', 'deadline', 'infrastructure') AND error IS NOT NULL)",
            name="jobs_failed",
        ),
        sa.CheckConstraint("state <> 'succeeded' OR result IS NOT NULL", name="jobs_succeeded"),
        sa.CheckConstraint("state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')", name="jobs_state"),
        sa.CheckConstraint("attempt >= 0 AND crashes BETWEEN 0 AND 3 AND version >= 1 AND runs >= 1", name="jobs_counts"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.id"], ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_strict=True,
    )
    op.create_index("jobs_dataset", "jobs", ["dataset"], unique=False, sqlite_where=sa.text("dataset IS NOT NULL"), postgresql_where=sa.text("dataset IS NOT NULL"))
    op.create_index(
        "jobs_queue", "jobs", [sa.literal_column("priority DESC"), "id"], unique=False, sqlite_where=sa.text("state = 'queued'"), postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index("jobs_running", "jobs", ["id"], unique=False, sqlite_where=sa.text("state = 'running'"), postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("pack", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "pack", "step"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key"),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_idempotency_job"), "idempotency", ["job"], unique=False)
    op.create_table(
        "logs",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "number"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stop_reason", sa.String(), nullable=True),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("values", WORDS, nullable=False),
        sa.Column("metrics", WORDS, nullable=False),
        sa.Column("best", WORDS, nullable=False),
        sa.Column("zeros", WORDS, nullable=False),
        sa.Column("coefficients", WORDS, nullable=True),
        sa.Column("first_nonfinite", WORDS, nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="runs_state"),
        sa.CheckConstraint("stop_reason IS NULL OR stop_reason IN ('budget', 'early_stopping', 'diverged', 'cancelled')", name="runs_stop_reason"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "index"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "series",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("pack", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("layers", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("latest", sa.LargeBinary(), nullable=True),
        sa.Column("first_nonfinite", WORDS, nullable=False),
        sa.CheckConstraint("dtype IN ('<f4', '<f8') AND runs >= 1 AND layers >= 0", name="series_shape"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job", "pack", "name", name="series_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "chunks",
        sa.Column("series", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("points", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=True),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("first_step >= 0 AND last_step >= first_step AND points >= 1", name="chunks_span"),
        sa.ForeignKeyConstraint(["series"], ["series.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("series", "first_step"),
        sqlite_strict=True,
    )
    op.create_table(
        "pyramid",
        sa.Column("series", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bucket", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("summary", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["series"], ["series.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("series", "level", "bucket"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
