"""Queries of the sender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from contract.database import DatabaseNow
from contract.tables import Webhook, WebhookDelivery
from contract.views.webhooks import DeliveryStatus


@dataclass(frozen=True)
class DueDelivery:
    """A delivery that this sender has claimed."""

    id: str
    url: str
    secret: str
    body: str
    num_tries: int
    """Including the one that begins."""


def claim_due(session: Session, *, most: int, lost_seconds: float) -> list[DueDelivery]:
    """Claim the oldest due delivery of each of `most` webhooks; they are due again after `lost_seconds`."""
    pending = select(WebhookDelivery.webhook_id, func.min(WebhookDelivery.id).label("id")).where(
        WebhookDelivery.status == DeliveryStatus.PENDING, WebhookDelivery.due_at <= DatabaseNow()
    )
    enabled = pending.where(WebhookDelivery.webhook_id.in_(select(Webhook.id).where(Webhook.is_enabled)))
    first = enabled.group_by(WebhookDelivery.webhook_id).order_by(func.min(WebhookDelivery.id)).limit(most).subquery()
    # The time is compared again: another sender may have claimed the delivery while this one waited for the row.
    claimed = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(select(first.c.id)), WebhookDelivery.due_at <= DatabaseNow())
        .values(due_at=DatabaseNow(lost_seconds), num_tries=WebhookDelivery.num_tries + 1)
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    )
    ids = list(session.scalars(claimed))
    if not ids:
        return []
    columns = (WebhookDelivery.id, Webhook.url, Webhook.secret, WebhookDelivery.body, WebhookDelivery.num_tries)
    rows = session.execute(select(*columns).join(Webhook).where(WebhookDelivery.id.in_(ids)))
    return [DueDelivery(*row) for row in rows]


@dataclass(frozen=True)
class Outcome:
    """What one try led to."""

    delivery: DueDelivery
    latency_seconds: float
    status: int | None = None
    """HTTP status; None if there was no answer."""
    head: str | None = None
    error: str | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver accepted the delivery."""
        return self.status is not None and 200 <= self.status < 300


def record(session: Session, outcome: Outcome, retry_seconds: Sequence[float]) -> None:
    """Store the outcome; a failed try is repeated after the delay for its number, or was the last one."""
    num_tries = outcome.delivery.num_tries
    is_over = outcome.is_delivered or num_tries > len(retry_seconds)
    failed = DeliveryStatus.FAILED if is_over else DeliveryStatus.PENDING
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == outcome.delivery.id)
        .values(
            status=DeliveryStatus.DELIVERED if outcome.is_delivered else failed,
            due_at=None if is_over else DatabaseNow(retry_seconds[num_tries - 1]),
            tried_at=DatabaseNow(),
            response_status=outcome.status,
            response_head=outcome.head,
            error=outcome.error,
            latency_seconds=outcome.latency_seconds,
        )
        .execution_options(synchronize_session=False)
    )
