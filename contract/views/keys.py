"""API keys."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from contract.views import OpenEnum, View


class KeyScope(StrEnum):
    """What a key may do. Each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


class KeyView(View):
    """A key, without the secret."""

    object: Literal["key"] = "key"
    id: str
    name: str
    owner: str
    scopes: list[OpenEnum[KeyScope]]
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = None
    """Null: never."""


class CreatedKey(KeyView):
    """The only response that contains the key itself."""

    key: str


class SignInLink(View):
    """A link that signs a browser in to the dashboard, once."""

    object: Literal["sign_in_link"] = "sign_in_link"
    path: str
    """Path on this server."""
    expires_in_seconds: float
