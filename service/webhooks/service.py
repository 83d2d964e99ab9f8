"""Creates, changes, lists and deletes webhooks, and replays deliveries."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from contract.database import Database, lock_identical_requests
from contract.ids import WEBHOOK_PREFIX, new_id
from contract.tables import Webhook, WebhookDelivery
from contract.views.audit import AuditAction
from contract.views.webhooks import DeliveryStatus
from service.audit.log import record
from service.errors import InvalidRequestError, NotFoundError, QuotaError
from service.query import cut
from service.webhooks import repository
from service.webhooks.schemas import NewWebhook, WebhookChange
from trd_data.network_address import AddressRefusedError, Network, pin_address

MAX_WEBHOOKS = 20
"""Most webhooks of one owner."""
SECRET_BYTES = 32


class WebhookService:
    """The use cases of webhooks."""

    def __init__(self, database: Database, network: Network) -> None:
        """`network` says which addresses deliveries may be sent to."""
        self._database = database
        self._network = network

    def create(self, owner: str, wanted: NewWebhook) -> Webhook:
        """Store a webhook with a new secret; raise `InvalidRequestError` for its URL, and `QuotaError`."""
        self._require_allowed(wanted.url)
        row = Webhook(
            id=new_id(WEBHOOK_PREFIX),
            owner=owner,
            url=wanted.url,
            event_types=[str(kind) for kind in wanted.event_types],
            is_enabled=wanted.is_enabled,
            secret="whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode(),
            created_at=datetime.now(UTC),
        )
        with self._database.write() as session:
            lock_identical_requests(session, f"webhooks {owner}")
            if repository.count(session, owner) >= MAX_WEBHOOKS:
                raise QuotaError(f"you have {MAX_WEBHOOKS} webhooks, the most that are allowed; delete one first")
            session.add(row)
            record(session, AuditAction.WEBHOOK_CREATE, row.id, url=row.url)
        return row

    def page(self, owner: str, after: str | None, limit: int) -> tuple[Sequence[Webhook], bool]:
        """Return a page of the owner's webhooks, newest first, and whether more follow."""
        with self._database.read() as session:
            return cut(repository.page(session, owner, after, limit), limit)

    def find(self, owner: str, webhook_id: str) -> Webhook:
        """Return the webhook; raise `NotFoundError`."""
        with self._database.read() as session:
            return _get(session, owner, webhook_id)

    def change(self, owner: str, webhook_id: str, wanted: WebhookChange) -> Webhook:
        """Change the given fields; raise `InvalidRequestError` for the URL, and `NotFoundError`."""
        if wanted.url is not None:
            self._require_allowed(wanted.url)
        with self._database.write() as session:
            row = _get(session, owner, webhook_id)
            for name, value in wanted.model_dump(mode="json", exclude_none=True).items():
                setattr(row, name, value)
            record(session, AuditAction.WEBHOOK_CHANGE, row.id, url=row.url)
        return row

    def delete(self, owner: str, webhook_id: str) -> None:
        """Delete the webhook with its deliveries; raise `NotFoundError`."""
        with self._database.write() as session:
            session.delete(_get(session, owner, webhook_id))
            record(session, AuditAction.WEBHOOK_DELETE, webhook_id)

    def deliveries(
        self, owner: str, webhook_id: str, after: str | None, limit: int
    ) -> tuple[Sequence[WebhookDelivery], bool]:
        """Return a page of deliveries, newest first, and whether more follow; raise `NotFoundError`."""
        with self._database.read() as session:
            _get(session, owner, webhook_id)
            return cut(repository.deliveries(session, webhook_id, after, limit), limit)

    def replay(self, owner: str, webhook_id: str, delivery_id: str) -> WebhookDelivery:
        """Make the delivery due now, with all tries before it; raise `NotFoundError`."""
        with self._database.write() as session:
            _get(session, owner, webhook_id)
            row = repository.find_delivery(session, webhook_id, delivery_id)
            if row is None:
                raise NotFoundError(f"{webhook_id} has no delivery {delivery_id}", param="delivery_id")
            row.status, row.num_tries, row.due_at = DeliveryStatus.PENDING, 0, datetime.now(UTC)
            record(session, AuditAction.WEBHOOK_REPLAY, webhook_id, delivery=delivery_id)
        return row

    def _require_allowed(self, url: str) -> None:
        """Refuse an address early; it is checked again at every try, by the worker."""
        try:
            pin_address(url, self._network)
        except AddressRefusedError as error:
            raise InvalidRequestError(
                f"url = {url}: the address {error}; give another one, or have the operator change TRD_WEBHOOK_NETWORK",
                param="url",
            ) from None
        except OSError as error:
            raise InvalidRequestError(f"url = {url}: its host name cannot be resolved: {error}", param="url") from None


def _get(session: Session, owner: str, webhook_id: str) -> Webhook:
    row = repository.find(session, owner, webhook_id)
    if row is None:
        raise NotFoundError(f"there is no webhook {webhook_id}", param="webhook_id")
    return row
