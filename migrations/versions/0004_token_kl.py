"""Each trajectory's KL token by token where it was diagnosed, and the token at which y_o and y_r part.

Revision 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    with op.batch_alter_table("trajectories") as table:
        table.add_column(sa.Column("parts_at_token", sa.Integer(), nullable=True))
        table.add_column(sa.Column("token_kl", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("trajectories") as table:
        table.drop_column("token_kl")
        table.drop_column("parts_at_token")
