"""How long a step took, for plans.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "rates",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("nanoseconds", sa.BigInteger(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("nanoseconds > 0", name="rates_positive"),
        sa.PrimaryKeyConstraint("key", "device"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
