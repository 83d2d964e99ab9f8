"""Jobs are listed by name from an index.

Revision 0015, after 0014.
"""

from __future__ import annotations

from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    columns = ["owner", "id", "name", "mode", "deleted_at"]
    op.create_index("ix_jobs_owner_id_name_mode_deleted_at", "jobs", columns)
    op.drop_index("ix_jobs_owner_id", "jobs")


def downgrade() -> None:
    op.create_index("ix_jobs_owner_id", "jobs", ["owner", "id"])
    op.drop_index("ix_jobs_owner_id_name_mode_deleted_at", "jobs")
