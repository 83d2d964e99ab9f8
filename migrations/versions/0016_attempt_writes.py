"""How many writes of its progress an attempt has committed, so that none is applied twice.

Revision 0016, after 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # The default stays: a worker of the version before inserts attempts without the column.
    op.add_column("attempts", sa.Column("num_writes", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.drop_column("num_writes")
