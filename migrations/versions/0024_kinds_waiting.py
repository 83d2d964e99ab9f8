"""The kinds of waiting jobs have an index: a claim does not read jobs that its worker cannot run.

Revision 0024, after 0023.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0024"
down_revision: str | None = "0023"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    where = sa.text("lower(status) = 'queued' AND deleted_at IS NULL")
    op.create_index(
        "ix_jobs_kinds_waiting",
        "jobs",
        ["queue", "needs", sa.text("priority DESC"), "id"],
        postgresql_where=where,
        sqlite_where=where,
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_kinds_waiting", "jobs")
