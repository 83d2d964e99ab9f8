"""The request in which a job was submitted, or a chat's question asked.

Revision 0021, after 0020.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("jobs", "chat_answers")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("origin", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    for table in TABLES:
        with op.batch_alter_table(table) as batch:
            batch.drop_column("origin")
