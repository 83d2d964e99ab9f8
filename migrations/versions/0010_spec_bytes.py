"""The size of a job's specs, for a quota; deleted jobs keep no spec.

Revision 0010, after 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("spec_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET spec = '{}', requested = NULL WHERE deleted_at IS NOT NULL")
    op.execute("UPDATE jobs SET spec_bytes = length(CAST(spec AS TEXT)) WHERE deleted_at IS NULL")
    with op.batch_alter_table("jobs") as table:
        table.alter_column("spec_bytes", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("jobs") as table:
        table.drop_column("spec_bytes")
