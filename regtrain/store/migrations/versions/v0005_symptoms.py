"""What was noticed of the runs of a job.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NUMBER: sa.Double[float] = sa.Double()


def upgrade() -> None:
    op.create_table(
        "symptoms",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("run", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("symptom", sa.String(), nullable=False),
        sa.Column("layer", sa.String(), nullable=False),
        sa.Column("pack", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("value", NUMBER, nullable=False),
        sa.Column("bound", NUMBER, nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("confidence", NUMBER, nullable=False),
        sa.Column("evidence", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "run", "symptom", "layer"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
