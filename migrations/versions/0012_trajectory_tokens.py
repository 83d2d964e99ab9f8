"""Trajectories: the step that trains on each, its tokens, and indexes that answer every filter of a list.

Revision 0012, after 0011.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None

_FILTERS = ["job_id", "round", "position", "outcome", "step", "rollout_tokens", "refined_tokens"]
_BY_STEP = ["job_id", "step", "round", "position"]


def upgrade() -> None:
    op.add_column("trajectories", sa.Column("step", sa.Integer(), nullable=True))
    op.add_column("trajectories", sa.Column("token_detail", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("ix_trajectories_filters", "trajectories", _FILTERS)
    op.create_index("ix_trajectories_job_id_step_round_position", "trajectories", _BY_STEP)


def downgrade() -> None:
    op.drop_index("ix_trajectories_job_id_step_round_position", "trajectories")
    op.drop_index("ix_trajectories_filters", "trajectories")
    op.drop_column("trajectories", "token_detail")
    op.drop_column("trajectories", "step")
