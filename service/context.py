"""The parts of one API process, wired once by `service.app`. Only endpoints and the app know the context: a noun's
other modules get the parts that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from contract.database import Database
from contract.storage import Storage
from service.audit.log import AuditLog
from service.chats.service import ChatService
from service.checkpoints.service import CheckpointService
from service.datasets.service import DatasetService
from service.enqueue import Doorbell
from service.events.feed import EventFeed
from service.events.streams import OpenStreams
from service.jobs.fleet import Fleet
from service.jobs.service import JobService
from service.keys.identity import Bearers
from service.keys.service import KeyRing
from service.keys.sessions import Sessions
from service.metrics import RequestMetrics
from service.models.service import ModelCatalog
from service.places.service import PlaceService
from service.readiness import Readiness
from service.runs.service import RunService
from service.settings import Settings
from service.webhooks.service import WebhookService


@dataclass(frozen=True)
class ServiceContext:
    """The parts that endpoints use."""

    settings: Settings
    database: Database
    storage: Storage
    doorbell: Doorbell
    keys: KeyRing
    bearers: Bearers
    sessions: Sessions
    models: ModelCatalog
    feed: EventFeed
    streams: OpenStreams
    readiness: Readiness
    datasets: DatasetService
    jobs: JobService
    fleet: Fleet
    runs: RunService
    checkpoints: CheckpointService
    chats: ChatService
    webhooks: WebhookService
    metrics: RequestMetrics
    audit: AuditLog
    places: PlaceService

    def presigned_url(self, key: str) -> str | None:
        """Return a URL at which a client downloads a stored file from its store; None if the service sends it."""
        return self.storage.presigned_url(key) if self.settings.presigned_downloads else None


async def service_context(request: Request) -> ServiceContext:
    """Return the process's context. A coroutine, because a plain function would cost every request a thread."""
    context: ServiceContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(service_context)]
