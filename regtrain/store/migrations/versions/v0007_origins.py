"""From whose weights a job begins.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "origins",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["origin"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "origin"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("origins_origin", "origins", ["origin"])
