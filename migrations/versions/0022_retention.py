"""Which records of ended jobs the retention policy has removed.

Revision 0022, after 0021.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0022"
down_revision: str | None = "0021"
branch_labels: str | None = None
depends_on: str | None = None

KINDS = ("events", "metrics", "trajectories", "checkpoints")


def upgrade() -> None:
    for kind in KINDS:
        op.add_column("jobs", sa.Column(f"{kind}_removed_before", sa.DateTime(timezone=True), nullable=True))
    for kind in KINDS:
        is_left = f"{kind}_removed_before IS NULL OR {kind}_removed_before <= finished_at"
        where = sa.text(f"finished_at IS NOT NULL AND deleted_at IS NULL AND ({is_left})")
        columns = ["finished_at", "id"]
        op.create_index(f"ix_jobs_with_{kind}", "jobs", columns, postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    for kind in KINDS:
        op.drop_index(f"ix_jobs_with_{kind}", "jobs")
    for kind in KINDS:
        op.drop_column("jobs", f"{kind}_removed_before")
