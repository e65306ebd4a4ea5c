"""How far a run of a convex job is from the minimum.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("certificate", sa.JSON(none_as_null=True), nullable=True))
