"""``/webhooks``: make, list, show, change, delete; deliveries and their replay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from client._async.transport import AsyncResource
from client.call import Call, path_part
from contract.views import Page
from contract.views.webhooks import CreatedWebhook, DeletedWebhook, DeliveryView, WebhookView


class AsyncWebhooks(AsyncResource):
    """Receivers of the events of the key's owner."""

    async def create(self, url: str, *, event_types: Sequence[str] = ()) -> CreatedWebhook:
        """Make a webhook; only this response contains its secret. Without types, it gets all events."""
        document = {"url": url, "event_types": list(event_types)}
        return await self._transport.send(Call("POST", "/webhooks", CreatedWebhook, json=document, is_repeatable=False))

    def list(self, *, num_wanted: int | None = None) -> AsyncIterator[WebhookView]:
        """Iterate over all pages, newest first."""
        return self._transport.walk("/webhooks", Page[WebhookView], lambda webhook: webhook.id, num_wanted=num_wanted)

    async def get(self, webhook_id: str) -> WebhookView:
        """Return one webhook."""
        return await self._transport.send(Call("GET", f"/webhooks/{path_part(webhook_id)}", WebhookView))

    async def change(self, webhook_id: str, **fields: Any) -> WebhookView:
        """Change ``url``, ``event_types`` or ``is_enabled``."""
        call = Call("PATCH", f"/webhooks/{path_part(webhook_id)}", WebhookView, json=fields)
        return await self._transport.send(call)

    async def delete(self, webhook_id: str) -> DeletedWebhook:
        """Delete a webhook and its deliveries."""
        call = Call("DELETE", f"/webhooks/{path_part(webhook_id)}", DeletedWebhook, is_repeatable=False)
        return await self._transport.send(call)

    def deliveries(self, webhook_id: str, *, num_wanted: int | None = None) -> AsyncIterator[DeliveryView]:
        """Iterate over all pages of a webhook's deliveries, newest first."""
        path = f"/webhooks/{path_part(webhook_id)}/deliveries"
        return self._transport.walk(path, Page[DeliveryView], lambda delivery: delivery.id, num_wanted=num_wanted)

    async def replay(self, webhook_id: str, delivery_id: str) -> DeliveryView:
        """Send a delivery again, with the same id and body."""
        path = f"/webhooks/{path_part(webhook_id)}/deliveries/{path_part(delivery_id)}/replay"
        return await self._transport.send(Call("POST", path, DeliveryView))
