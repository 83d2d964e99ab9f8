"""Queries on ``webhooks`` and ``webhook_deliveries``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contract.tables import Webhook, WebhookDelivery


def page(session: Session, owner: str, after: str | None, limit: int) -> Sequence[Webhook]:
    """Return webhooks of the owner, newest first, one more than `limit`."""
    query = select(Webhook).where(Webhook.owner == owner).order_by(Webhook.id.desc()).limit(limit + 1)
    return session.scalars(query if after is None else query.where(Webhook.id < after)).all()


def count(session: Session, owner: str) -> int:
    """Return the number of the owner's webhooks."""
    return session.scalar(select(func.count()).select_from(Webhook).where(Webhook.owner == owner)) or 0


def find(session: Session, owner: str, webhook_id: str) -> Webhook | None:
    """Return the owner's webhook."""
    return session.scalar(select(Webhook).where(Webhook.id == webhook_id, Webhook.owner == owner))


def deliveries(session: Session, webhook_id: str, after: str | None, limit: int) -> Sequence[WebhookDelivery]:
    """Return deliveries of the webhook, newest first, one more than `limit`."""
    mine = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    query = mine.order_by(WebhookDelivery.id.desc()).limit(limit + 1)
    return session.scalars(query if after is None else query.where(WebhookDelivery.id < after)).all()


def find_delivery(session: Session, webhook_id: str, delivery_id: str) -> WebhookDelivery | None:
    """Return one delivery of the webhook, locked until the transaction ends."""
    mine = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook_id)
    return session.scalar(mine.with_for_update())
