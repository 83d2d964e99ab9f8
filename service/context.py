"""The parts of one API process, wired once by `service.app` and handed to every endpoint."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from contract.database import Database
from service.datasets.arriving import ArrivingBytes
from service.enqueue import Doorbell
from service.events.feed import EventFeed
from service.events.streams import OpenStreams
from service.jobs.in_flight import RequestsInFlight
from service.keys.service import KeyRing
from service.models.service import ModelShelf
from service.readiness import Readiness
from service.settings import Settings
from service.storage import Storage


@dataclass(frozen=True)
class ServiceContext:
    """What endpoints work with."""

    settings: Settings
    database: Database
    storage: Storage
    doorbell: Doorbell
    keys: KeyRing
    models: ModelShelf
    feed: EventFeed
    streams: OpenStreams
    arriving: ArrivingBytes
    in_flight: RequestsInFlight
    readiness: Readiness
    job_threads: Executor
    """They make jobs, see `service.jobs.threads`."""


async def service_context(request: Request) -> ServiceContext:
    """A dependency. It waits for nothing: as a plain function it would cost every request a thread."""
    context: ServiceContext = request.app.state.context
    return context


Context = Annotated[ServiceContext, Depends(service_context)]
