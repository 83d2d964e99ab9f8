"""The database tables that the service and the workers share.

Owns tables only; `contract.database` says where queries are. Times are UTC with a time zone. JSON columns hold
documents that no list is filtered by. `migrations/` creates the schema; a test compares it with these models, on SQLite
and on PostgreSQL.
"""

from contract.tables.access import ApiKey, AuditEntry, BrowserSession, OfferedPlace
from contract.tables.base import Base, UtcDateTime
from contract.tables.jobs import (
    Attempt,
    ChatAnswer,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Diagnosis,
    Evaluation,
    Job,
    JobEvent,
    JobTag,
    LeaderLease,
    MetricPoint,
    ProbeSample,
    Trajectory,
    Webhook,
    WebhookDelivery,
    Worker,
)

__all__ = [
    "ApiKey",
    "Attempt",
    "AuditEntry",
    "Base",
    "BrowserSession",
    "ChatAnswer",
    "Checkpoint",
    "CheckpointFile",
    "Dataset",
    "Diagnosis",
    "Evaluation",
    "Job",
    "JobEvent",
    "JobTag",
    "LeaderLease",
    "MetricPoint",
    "OfferedPlace",
    "ProbeSample",
    "Trajectory",
    "UtcDateTime",
    "Webhook",
    "WebhookDelivery",
    "Worker",
]
