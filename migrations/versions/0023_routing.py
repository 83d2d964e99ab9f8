"""What jobs need and what workers offer, by which jobs are claimed.

Revision 0023, after 0022.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0023"
down_revision: str | None = "0022"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needs", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("offer", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "offer")
    op.drop_column("jobs", "needs")
