# Generated from client/_async/operations.py by `python client/generate.py`. Do not edit.

"""``/keys`` and ``/models``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from client._sync.transport import Resource
from client.call import Call, path_part
from contract.views import Page
from contract.views.keys import CreatedKey, KeyView, SignInLink
from contract.views.models import ModelView


class Keys(Resource):
    """API keys; for admins."""

    def create(self, name: str, *, owner: str | None = None, scopes: Sequence[str] = ("submit",)) -> CreatedKey:
        """Create a key; only this response contains it. Without an owner, it gets the caller's."""
        document = {"name": name, "owner": owner, "scopes": list(scopes)}
        return self._transport.send(Call("POST", "/keys", CreatedKey, json=document, is_repeatable=False))

    def sign_in_link(self) -> SignInLink:
        """Make a link that signs a browser in to the dashboard with this client's key, once and soon."""
        return self._transport.send(Call("POST", "/ui/sign-in-links", SignInLink, is_repeatable=False))

    def list(self, *, num_wanted: int | None = None) -> Iterator[KeyView]:
        """Iterate over the keys of all owners, newest first, including revoked ones."""
        return self._transport.walk("/keys", Page[KeyView], lambda key: key.id, num_wanted=num_wanted)

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
