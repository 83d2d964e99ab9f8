"""Webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from contract.views import OpenEnum, View


class WebhookEvent(StrEnum):
    """Type of a delivery. ``job.queued`` reports a job that is queued again, not a new one."""

    QUEUED = "job.queued"
    RUNNING = "job.running"
    PAUSING = "job.pausing"
    PAUSED = "job.paused"
    CANCELLING = "job.cancelling"
    CANCELLED = "job.cancelled"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CHECKPOINT = "job.checkpoint"
    EVALUATION = "job.evaluation"
    NOTICE = "job.notice"


class DeliveryStatus(StrEnum):
    """Status of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # after the last try


class WebhookView(View):
    """A receiver of events, without its secret."""

    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    event_types: list[OpenEnum[WebhookEvent]]
    """Events that are sent; empty means all."""
    is_enabled: bool
    created_at: datetime


class CreatedWebhook(WebhookView):
    """The only response that contains the secret."""

    secret: str
    """Verifies the signatures, with any library of Standard Webhooks."""


class DeletedWebhook(View):
    """What was deleted."""

    object: Literal["webhook"] = "webhook"
    id: str
    deleted: Literal[True] = True


class DeliveryView(View):
    """One event for one receiver, with the answer to the last try."""

    object: Literal["webhook.delivery"] = "webhook.delivery"
    id: str
    """Sent as ``webhook-id``, the same at every try."""
    webhook_id: str
    job_id: str
    event_type: OpenEnum[WebhookEvent]
    status: OpenEnum[DeliveryStatus]
    """pending: sent now or at ``due_at``; failed: no further try is made unless it is replayed."""
    num_tries: int
    created_at: datetime
    due_at: datetime | None
    tried_at: datetime | None
    response_status: int | None
    """Null if there was no answer."""
    response_head: str | None
    """First bytes of the answer's body."""
    error: str | None
    """Why there was no answer."""
    latency_seconds: float | None
    body: str
    """What is sent."""
