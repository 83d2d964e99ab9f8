"""An index that counts the jobs that are not deleted by their status, and finds the one that waits longest.

Revision 0007, after 0006.
"""

from __future__ import annotations

from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index("ix_jobs_status_deleted_at_id", "jobs", ["status", "deleted_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_status_deleted_at_id", "jobs")
