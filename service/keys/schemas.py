"""Keys as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.tables import ApiKey
from service.auth import KeyScope


class NewKey(BaseModel):
    """What to make."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
    """For people; not blank."""
    owner: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w.@-]+$")] | None = None
    """Who sees what is made with the key; null takes the caller's own."""
    scopes: Annotated[list[KeyScope], Field(min_length=1)] = [KeyScope.SUBMIT]
    """read: look; submit: also make and change; admin: also manage keys."""


class KeyView(BaseModel):
    """A key, without the key."""

    object: Literal["key"] = "key"
    id: str
    name: str
    owner: str
    scopes: list[KeyScope]
    created_at: datetime
    revoked_at: datetime | None


class CreatedKey(KeyView):
    """The one answer that holds the key itself."""

    key: str


def key_view(row: ApiKey) -> KeyView:
    """A row as the API shows it."""
    return KeyView(
        id=row.id,
        name=row.name,
        owner=row.owner,
        scopes=[KeyScope(scope) for scope in row.scopes],
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
