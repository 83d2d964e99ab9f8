"""What the check of an upload found, and the mapping of its columns.

Revision 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("columns", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("datasets", sa.Column("findings", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("datasets", "findings")
    op.drop_column("datasets", "columns")
