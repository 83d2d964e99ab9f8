# Generated from client/_async/operations.py by `python client/generate.py`. Do not edit.

"""``/keys`` and ``/models``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from client._sync.transport import Resource
from client.call import Call, path_part
from contract.views import Page
from contract.views.audit import AuditView
from contract.views.keys import CreatedKey, KeyView, SignInLink
from contract.views.models import ModelView


class Keys(Resource):
    """API keys; for admins."""

    def create(
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
        return self._transport.send(Call("POST", "/keys", CreatedKey, json=document, is_repeatable=False))

    def sign_in_link(self) -> SignInLink:
        """Make a link that signs a browser in to the dashboard with this client's key, once and soon."""
        return self._transport.send(Call("POST", "/ui/sign-in-links", SignInLink, is_repeatable=False))

    def list(self, *, num_wanted: int | None = None) -> Iterator[KeyView]:
        """Iterate over the keys of all owners, newest first, including revoked ones."""
        return self._transport.walk("/keys", Page[KeyView], lambda key: key.id, num_wanted=num_wanted)

    def rotate(self, key_id: str, *, grace_seconds: int = 86_400) -> CreatedKey:
        """Create a key with the rights of another, which works on for `grace_seconds`."""
        path = f"/keys/{path_part(key_id)}/rotate"
        return self._transport.send(
            Call("POST", path, CreatedKey, json={"grace_seconds": grace_seconds}, is_repeatable=False)
        )

    def audit(self, *, num_wanted: int | None = None, **wanted: str | None) -> Iterator[AuditView]:
        """Iterate over who did what, newest first; `wanted`: owner, action, target or since (a time with a zone)."""
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._transport.walk(
            "/audit", Page[AuditView], lambda entry: entry.id, params=params, num_wanted=num_wanted
        )

    def revoke(self, key_id: str) -> KeyView:
        """Revoke a key: from now on it is refused."""
        return self._transport.send(Call("DELETE", f"/keys/{path_part(key_id)}", KeyView))


class Models(Resource):
    """Models that a job may name as student or teacher."""

    def list(self) -> Sequence[ModelView]:
        """Return the operator's allow-list."""
        return (self._transport.send(Call("GET", "/models", Page[ModelView]))).data

    def get(self, name: str) -> ModelView:
        """Return one model by its name in a spec."""
        # A hub id contains a slash.
        return self._transport.send(Call("GET", f"/models/{quote(name, safe='/')}", ModelView))
