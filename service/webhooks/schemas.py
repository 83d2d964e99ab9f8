"""Request bodies of ``/webhooks``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool

from contract.strict_model import WITHOUT_CONTROLS
from contract.views.webhooks import WebhookEvent
from service.query import RequestModel

Url = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^\S+$"), WITHOUT_CONTROLS]


class NewWebhook(RequestModel):
    """What to make."""

    url: Url
    """Where deliveries are posted: https, and an address that the operator's ``TRD_WEBHOOK_NETWORK`` allows."""
    event_types: Annotated[list[WebhookEvent], Field(max_length=32)] = []  # noqa: RUF012 - pydantic copies it
    """Events to send; empty means all."""
    is_enabled: StrictBool = True
    """Whether deliveries are stored and sent."""


class WebhookChange(RequestModel):
    """What to change; fields that are left out stay."""

    url: Url | None = None
    """The new address."""
    event_types: Annotated[list[WebhookEvent], Field(max_length=32)] | None = None
    """The new events; empty means all."""
    is_enabled: StrictBool | None = None
    """While false, nothing is stored or sent; pending deliveries wait."""
