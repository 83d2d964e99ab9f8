"""Which events webhooks report, and the deliveries that are stored together with an event.

The format is that of Standard Webhooks (https://www.standardwebhooks.com): a JSON object with ``type``, ``timestamp``
and ``data``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from contract.ids import DELIVERY_PREFIX, new_id
from contract.tables import Webhook, WebhookDelivery
from contract.views.webhooks import DeliveryStatus, WebhookEvent


def queue_deliveries(session: Session, owner: str, events: Sequence[dict[str, Any]]) -> None:
    """Store a delivery for each enabled webhook of the owner and each of the job's new events that it wants.

    `events` are rows of ``job_events`` of one job, in order.
    """
    by_type = [(kind, event) for event in events if (kind := _event_type(event)) is not None]
    if not by_type:
        return
    enabled = select(Webhook.id, Webhook.event_types).where(Webhook.owner == owner, Webhook.is_enabled)
    webhooks = session.execute(enabled).all()
    rows = [
        {
            "webhook_id": webhook.id,
            "job_id": event["job_id"],
            "event_type": kind,
            "body": _body(kind, event),
            "status": DeliveryStatus.PENDING,
            "num_tries": 0,
            "created_at": event["created_at"],
            "due_at": event["created_at"],
        }
        for kind, event in by_type
        for webhook in webhooks
        if not webhook.event_types or kind in webhook.event_types
    ]
    if rows:
        ids = sorted(new_id(DELIVERY_PREFIX) for _ in rows)  # those of one millisecond are in no order
        session.execute(insert(WebhookDelivery), [{"id": id, **row} for id, row in zip(ids, rows, strict=True)])


def _event_type(event: dict[str, Any]) -> WebhookEvent | None:
    """Return the type of the event's deliveries; None if webhooks do not report it."""
    if event["type"] == "status":
        return WebhookEvent(f"job.{event['data']['status']}")
    if event["type"] in ("checkpoint", "evaluation"):
        return WebhookEvent(f"job.{event['type']}")
    return WebhookEvent.NOTICE if event["type"] == "notice" and event["level"] != "info" else None


def _body(kind: WebhookEvent, event: dict[str, Any]) -> str:
    at: datetime = event["created_at"]
    about = {"job_id": event["job_id"], "sequence": event["sequence"], "level": event["level"]}
    data = {**about, "message": event["message"], **event["data"]}
    document = {"type": kind, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(document, ensure_ascii=False)
