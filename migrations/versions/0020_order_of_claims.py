"""Waiting jobs are found in the order of claims: a claim reads one of them, however many wait.

Revision 0020, after 0019.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index("ix_jobs_waiting", "jobs", ["status", "queue", sa.text("priority DESC"), "id"])
    op.drop_index("ix_jobs_status_queue_priority_id", "jobs")


def downgrade() -> None:
    op.create_index("ix_jobs_status_queue_priority_id", "jobs", ["status", "queue", "priority", "id"])
    op.drop_index("ix_jobs_waiting", "jobs")
