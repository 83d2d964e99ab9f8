"""``/keys`` and ``/models``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from client._async.transport import AsyncResource
from client.call import Call, path_part
from contract.views import Page
from contract.views.audit import AuditView
from contract.views.keys import CreatedKey, KeyView, SignInLink
from contract.views.models import ModelView


class AsyncKeys(AsyncResource):
    """API keys; for admins."""

    async def create(
        self,
        name: str,
        *,
        owner: str | None = None,
        scopes: Sequence[str] = ("submit",),
        expires_at: datetime | None = None,
    ) -> CreatedKey:
        """Create a key; only this response contains it. Without an owner, it gets the caller's."""
        document: dict[str, Any] = {"name": name, "owner": owner, "scopes": list(scopes)}
        if expires_at is not None:
            document["expires_at"] = expires_at.isoformat()
        return await self._transport.send(Call("POST", "/keys", CreatedKey, json=document, is_repeatable=False))

    async def sign_in_link(self) -> SignInLink:
        """Make a link that signs a browser in to the dashboard with this client's key, once and soon."""
        return await self._transport.send(Call("POST", "/ui/sign-in-links", SignInLink, is_repeatable=False))

    def list(self, *, num_wanted: int | None = None) -> AsyncIterator[KeyView]:
        """Iterate over the keys of all owners, newest first, including revoked ones."""
        return self._transport.walk("/keys", Page[KeyView], lambda key: key.id, num_wanted=num_wanted)

    async def rotate(self, key_id: str, *, grace_seconds: int = 86_400) -> CreatedKey:
        """Create a key with the rights of another, which works on for `grace_seconds`."""
        path = f"/keys/{path_part(key_id)}/rotate"
        return await self._transport.send(
            Call("POST", path, CreatedKey, json={"grace_seconds": grace_seconds}, is_repeatable=False)
        )

    def audit(self, *, num_wanted: int | None = None, **wanted: str | None) -> AsyncIterator[AuditView]:
        """Iterate over who did what, newest first; `wanted`: owner, action, target or since (a time with a zone)."""
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._transport.walk(
            "/audit", Page[AuditView], lambda entry: entry.id, params=params, num_wanted=num_wanted
        )

    async def revoke(self, key_id: str) -> KeyView:
        """Revoke a key: from now on it is refused."""
        return await self._transport.send(Call("DELETE", f"/keys/{path_part(key_id)}", KeyView))


class AsyncModels(AsyncResource):
    """Models that a job may name as student or teacher."""

    async def list(self) -> Sequence[ModelView]:
        """Return the operator's allow-list."""
        return (await self._transport.send(Call("GET", "/models", Page[ModelView]))).data

    async def get(self, name: str) -> ModelView:
        """Return one model by its name in a spec."""
        # A hub id contains a slash.
        return await self._transport.send(Call("GET", f"/models/{quote(name, safe='/')}", ModelView))
