"""``/webhooks``: receivers of events, and their deliveries."""

from __future__ import annotations

from fastapi import APIRouter

from contract.views import Page
from contract.views.webhooks import CreatedWebhook, DeletedWebhook, DeliveryView, WebhookView
from service.auth import Reader, Submitter
from service.bodies import JsonRoute
from service.context import Context
from service.errors import ERROR_RESPONSES, NotFoundError, QuotaError, raises
from service.query import Limit
from service.webhooks.schemas import NewWebhook, WebhookChange

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=JsonRoute, responses=ERROR_RESPONSES)


@router.post("", status_code=201, summary="Make a webhook; its secret is shown this once")
@raises(QuotaError)
def create(context: Context, caller: Submitter, wanted: NewWebhook) -> CreatedWebhook:
    """From now on the caller's jobs report their events to the URL, signed as Standard Webhooks describes."""
    return CreatedWebhook.of(context.webhooks.create(caller.owner, wanted))


@router.get("", summary="List webhooks, newest first")
def list_webhooks(context: Context, caller: Reader, after: str | None = None, limit: Limit = 20) -> Page[WebhookView]:
    """The secrets are not shown."""
    rows, has_more = context.webhooks.page(caller.owner, after, limit)
    return Page(data=[WebhookView.of(row) for row in rows], has_more=has_more)


@router.get("/{webhook_id}", summary="One webhook")
@raises(NotFoundError)
def show(context: Context, caller: Reader, webhook_id: str) -> WebhookView:
    """The secret is not shown."""
    return WebhookView.of(context.webhooks.find(caller.owner, webhook_id))


@router.patch("/{webhook_id}", summary="Change a webhook, or switch it off")
@raises(NotFoundError)
def change(context: Context, caller: Submitter, webhook_id: str, wanted: WebhookChange) -> WebhookView:
    """Fields that are left out stay. Pending deliveries go to the new URL."""
    return WebhookView.of(context.webhooks.change(caller.owner, webhook_id, wanted))


@router.delete("/{webhook_id}", summary="Delete a webhook and its deliveries")
@raises(NotFoundError)
def delete(context: Context, caller: Submitter, webhook_id: str) -> DeletedWebhook:
    """Pending deliveries are not sent any more."""
    context.webhooks.delete(caller.owner, webhook_id)
    return DeletedWebhook(id=webhook_id)


@router.get("/{webhook_id}/deliveries", summary="Deliveries, newest first, with the receiver's last answers")
@raises(NotFoundError)
def list_deliveries(
    context: Context, caller: Reader, webhook_id: str, after: str | None = None, limit: Limit = 20
) -> Page[DeliveryView]:
    """Each has the status, the first bytes and the latency of the answer to its last try."""
    rows, has_more = context.webhooks.deliveries(caller.owner, webhook_id, after, limit)
    return Page(data=[DeliveryView.of(row) for row in rows], has_more=has_more)


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", summary="Send a delivery again")
@raises(NotFoundError)
def replay(context: Context, caller: Submitter, webhook_id: str, delivery_id: str) -> DeliveryView:
    """It has the same ``webhook-id`` and body, so that a receiver can tell that it has it already."""
    return DeliveryView.of(context.webhooks.replay(caller.owner, webhook_id, delivery_id))
