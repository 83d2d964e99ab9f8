"""The application: parts wired together, started and stopped. ``uvicorn service.app:app``."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from types import FrameType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from contract.database import Database
from contract.json_logs import JsonFormatter
from contract.settings import make_private_folder
from contract.storage import Storage
from contract.tracing import start_tracing, stop_tracing
from contract.views.keys import KeyScope
from service.api import add_routes, allowed_methods
from service.audit.log import AuditLog
from service.auth import KeyGate, wants_page
from service.bodies import invalid_request
from service.chats.service import ChatService
from service.checkpoints.service import CheckpointService
from service.context import ServiceContext
from service.dashboard.pages import error_page
from service.datasets.service import DatasetService
from service.db import migrate
from service.enqueue import Doorbell
from service.errors import error_response
from service.events.feed import EventFeed
from service.events.streams import OpenStreams
from service.jobs.fleet import Fleet
from service.jobs.service import JobService
from service.keys.identity import Bearers, IdentityTokens
from service.keys.secret import load_pepper
from service.keys.service import BOOTSTRAP_OWNER, KeyRing
from service.keys.sessions import Sessions
from service.leftovers import collect_deleted
from service.metrics import RequestMetrics
from service.models.service import ModelCatalog
from service.openapi import openapi_document
from service.places.service import PlaceService
from service.rate_limit import RateLimiter
from service.readiness import Readiness
from service.request_envelope import RequestEnvelope
from service.runs.service import RunService
from service.settings import Settings
from service.webhooks.service import WebhookService

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Make the application. Nothing is opened or written before it starts."""

    metrics = RequestMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if "uvicorn.protocols.http.httptools_impl" in sys.modules:
            from service.header_limits import limit_headers

            limit_headers(2 * settings.max_header_bytes, settings.header_seconds)
        context = await run_in_threadpool(_start, settings, metrics)
        app.state.context = context
        async with context.feed.running():
            with _streams_end_on_signal(context.feed.close):
                yield
        await run_in_threadpool(_stop, context)

    app = FastAPI(
        title="TRD service",
        version="0.1.0",
        summary="Distils language models: OPD, OPSD and Trajectory-Refined Distillation.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # the page would load its scripts from elsewhere
        redoc_url=None,
    )
    add_routes(app)
    app.openapi = cache(lambda: openapi_document(app))  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    # The last one added is the outermost.
    app.add_middleware(RateLimiter, per_minute=settings.max_requests_per_minute)
    app.add_middleware(KeyGate, keys=lambda: app.state.context.bearers, sessions=lambda: app.state.context.sessions)
    app.add_middleware(RequestEnvelope, settings=settings, metrics=metrics)
    return app


def _start(settings: Settings, metrics: RequestMetrics) -> ServiceContext:
    start_tracing("trd-api")
    make_private_folder(settings.data_dir)
    if settings.is_embedded:
        migrate(settings.database_url)
    database = Database(settings.database_url)
    keys = KeyRing(database, load_pepper(settings.key_pepper, settings.data_dir), settings.api_key)
    if settings.api_key is None:
        _ensure_key(settings, keys)
    storage = Storage(settings.storage_url)
    doorbell = Doorbell(settings.broker_url)
    models = ModelCatalog(settings.models)
    jobs = JobService(settings, database, models, doorbell)
    jobs.threads.submit(collect_deleted, database, storage)
    runs = RunService(database)
    checkpoints = CheckpointService(database)
    return ServiceContext(
        settings=settings,
        database=database,
        storage=storage,
        doorbell=doorbell,
        readiness=Readiness(database, storage, doorbell),
        keys=keys,
        bearers=Bearers(keys, IdentityTokens(settings) if settings.oidc_issuer is not None else None),
        sessions=Sessions(database, keys),
        models=models,
        feed=EventFeed(database),
        streams=OpenStreams(settings.max_streams_per_key, settings.max_streams),
        datasets=DatasetService(settings, database, storage, models),
        jobs=jobs,
        fleet=Fleet(database),
        runs=runs,
        checkpoints=checkpoints,
        chats=ChatService(database, checkpoints),
        webhooks=WebhookService(database, settings.webhook_network),
        metrics=metrics,
        audit=AuditLog(database),
        places=PlaceService(database, runs),
    )


def _log_as_json() -> None:
    """Log the server's records, and those without a handler of the operator's, as JSON; never headers or bodies."""
    server, access = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")
    for handler in (logging.lastResort, *server.handlers, *access.handlers):
        if handler is not None:
            handler.setFormatter(JsonFormatter())
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.INFO)
    logging.getLogger("service").setLevel(logging.INFO)
    access.addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    """Remove the query from a line of the server's own access log: some clients send their key there."""
    if isinstance(record.args, tuple):
        record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
    return True


def _ensure_key(settings: Settings, keys: KeyRing) -> None:
    """Make a key at the first embedded start and print it; without a key nobody can make one."""
    if not settings.is_embedded:
        logger.warning("TRD_API_KEY is not set: only keys in the database are accepted")
        return
    if keys.page(None, 1)[0]:  # a key was made before, which may be revoked
        return
    _, key = keys.create(BOOTSTRAP_OWNER, "first start", [KeyScope.ADMIN])
    sys.stderr.write(f"\n  API key, shown this once: {key}\n  (lost it? start with TRD_API_KEY=…)\n\n")
    sys.stderr.flush()


def _stop(context: ServiceContext) -> None:
    context.jobs.threads.shutdown(wait=True)
    context.datasets.threads.shutdown(wait=True)
    context.doorbell.close()
    context.database.dispose()
    stop_tracing()


@contextmanager
def _streams_end_on_signal(end_streams: Callable[[], None]) -> Iterator[None]:
    """End the streams on SIGTERM and SIGINT: the server waits for its connections, and streams do not end alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def end(number: int, frame: FrameType | None) -> None:
        end_streams()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    if error.status_code == 405:
        error.headers = {"allow": allowed_methods(request.app, request.scope)}
    return error_page(request, error) if wants_page(request.scope) else error_response(error)


def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for nothing else"
    return _refuse(request, invalid_request(error, request.scope["route"]))


_log_as_json()
app = create_app(Settings.of_process())
