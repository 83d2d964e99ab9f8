"""How a trajectory becomes a view."""

from __future__ import annotations

from itertools import takewhile

from contract.tables import Trajectory
from contract.views.trajectories import TokenKl, TrajectoryView


def trajectory_view(row: Trajectory, *, with_token_kl: bool = False) -> TrajectoryView:
    """Return the view of a trajectory."""
    kl = row.token_kl if with_token_kl else None
    return TrajectoryView.of(
        row,
        id=f"{row.round}:{row.position}",
        parts_at=_num_alike(row.rollout, row.refined) if row.refined is not None else None,
        per_token_kl=TokenKl.model_validate(kl) if kl is not None else None,
    )


def _num_alike(rollout: str, refined: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rollout, refined, strict=False)))
