"""The audit log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from contract.views import OpenEnum, View


class AuditAction(StrEnum):
    """What was done."""

    KEY_CREATE = "key.create"
    KEY_ROTATE = "key.rotate"
    KEY_REVOKE = "key.revoke"
    SESSION_LINK = "session.link"  # a link was made that signs in once
    SESSION_OPEN = "session.open"
    SESSION_END = "session.end"
    JOB_CREATE = "job.create"
    JOB_PAUSE = "job.pause"
    JOB_RESUME = "job.resume"
    JOB_CANCEL = "job.cancel"
    JOB_DELETE = "job.delete"
    DATASET_CREATE = "dataset.create"
    DATASET_DOWNLOAD = "dataset.download"
    DATASET_DELETE = "dataset.delete"
    CHECKPOINT_DOWNLOAD = "checkpoint.download"
    CHECKPOINT_DELETE = "checkpoint.delete"
    WEBHOOK_CREATE = "webhook.create"
    WEBHOOK_CHANGE = "webhook.change"
    WEBHOOK_DELETE = "webhook.delete"
    WEBHOOK_REPLAY = "webhook.replay"
    RETENTION_REMOVE = "retention.remove"  # records of a job, by the retention policy


class AuditView(View):
    """An entry of the audit log."""

    object: Literal["audit_entry"] = "audit_entry"
    id: str
    at: datetime
    owner: str
    """Owner of the key; ``service`` for the service itself, ``retention`` for the retention policy."""
    key_id: str
    """Empty for the service itself and for the retention policy."""
    action: OpenEnum[AuditAction]
    target: str
    """The id of the object; of a download ``job_…/STEP/FILE``."""
    request_id: str
    """The answer's ``x-request-id``, which is in the logs too."""
    detail: dict[str, Any] | None
