"""What a worker has measured of the laws of gradients, and when it was asked to.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("workers", sa.Column("selftest", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("workers", sa.Column("selftest_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("workers", sa.Column("selftest_asked_at", sa.DateTime(timezone=True), nullable=True))
